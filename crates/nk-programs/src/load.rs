//! wrk and ab: started, and their reports read.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process::Running;
use crate::world::{Side, World};

/// What wrk reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wrk {
    pub requests: u64,
    pub per_second: f64,
    /// Failed connects, reads, writes, time-outs.
    pub socket_errors: u64,
    pub bad_statuses: u64,
}

/// How to load a server with wrk.
#[derive(Debug, Clone, Copy)]
pub struct WrkLoad<'a> {
    pub url: &'a str,
    pub connections: u32,
    pub threads: u32,
    pub seconds: u32,
    /// One connection per request.
    pub short: bool,
}

impl WrkLoad<'_> {
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![
            "/usr/bin/wrk".to_owned(),
            format!("-t{}", self.threads),
            format!("-c{}", self.connections),
            format!("-d{}s", self.seconds),
        ];
        if self.short {
            words.extend(["-H".to_owned(), "Connection: close".to_owned()]);
        }
        words.push(self.url.to_owned());
        words
    }

    pub fn start(&self, world: &World, side: Side) -> Result<Running> {
        world.start("wrk", side, &self.words())
    }

    /// The longest that this load may take.
    #[must_use]
    pub fn limit(&self) -> Duration {
        Duration::from_secs(u64::from(self.seconds) + 20)
    }

    pub fn run(&self, world: &World, side: Side) -> Result<Wrk> {
        Wrk::parse(&self.start(world, side)?.ok(self.limit())?)
    }
}

impl Wrk {
    pub fn parse(text: &str) -> Result<Self> {
        let line = |start: &str| text.lines().map(str::trim).find_map(|l| l.strip_prefix(start));
        let requests = text
            .lines()
            .find_map(|l| l.split_once(" requests in ")?.0.trim().parse().ok())
            .with_context(|| format!("wrk's report has no requests: {text}"))?;
        let per_second =
            line("Requests/sec:").context("wrk's report has no rate")?.trim().parse()?;
        let socket_errors = line("Socket errors:").map_or(0, |rest| {
            rest.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum()
        });
        let bad_statuses = match line("Non-2xx or 3xx responses:") {
            Some(rest) => rest.trim().parse()?,
            None => 0,
        };
        Ok(Wrk { requests, per_second, socket_errors, bad_statuses })
    }

    /// Errors unless every request succeeded and there was at least one.
    pub fn flawless(self) -> Result<Self> {
        ensure!(self.requests > 0, "wrk made no request");
        if self.socket_errors > 0 || self.bad_statuses > 0 {
            bail!(
                "of {} requests, {} failed on the socket and {} had a bad status",
                self.requests,
                self.socket_errors,
                self.bad_statuses
            );
        }
        Ok(self)
    }
}

/// What ab reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ab {
    pub complete: u64,
    pub failed: u64,
    pub per_second: f64,
}

/// How to load a server with ab.
#[derive(Debug, Clone, Copy)]
pub struct AbLoad<'a> {
    pub url: &'a str,
    pub requests: u64,
    pub concurrency: u32,
    pub keep_alive: bool,
}

impl AbLoad<'_> {
    pub fn run(&self, world: &World, side: Side) -> Result<Ab> {
        self.run_by(world, side, &[])
    }

    /// With words before the command, such as `taskset`.
    pub fn run_by(&self, world: &World, side: Side, prefix: &[String]) -> Result<Ab> {
        let mut words = prefix.to_vec();
        words.extend([
            "/usr/bin/ab".to_owned(),
            "-q".to_owned(),
            format!("-n{}", self.requests),
            format!("-c{}", self.concurrency),
        ]);
        if self.keep_alive {
            words.push("-k".to_owned());
        }
        words.push(self.url.to_owned());
        let text = world.run(side, &words, Duration::from_secs(120))?;
        let report = Ab::parse(&text)?;
        ensure!(
            report.complete == self.requests && report.failed == 0,
            "ab: {} of {} requests complete, {} failed",
            report.complete,
            self.requests,
            report.failed
        );
        Ok(report)
    }
}

impl Ab {
    pub fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(name));
            rest.and_then(|rest| rest.split_whitespace().next())
        };
        let must =
            |name: &str| field(name).with_context(|| format!("ab's report lacks {name:?}: {text}"));
        let bad_statuses: u64 = field("Non-2xx responses:").map_or(Ok(0), str::parse)?;
        Ok(Ab {
            complete: must("Complete requests:")?.parse()?,
            failed: must("Failed requests:")?.parse::<u64>()? + bad_statuses,
            per_second: must("Requests per second:")?.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_reports_are_read() {
        let text = "Running 1s test\n  2 threads\n  98 requests in 1.00s, 5MB read\n  \
                    Socket errors: connect 1, read 2, write 3, timeout 4\n  \
                    Non-2xx or 3xx responses: 5\nRequests/sec:  97.50\n";
        let wrk = Wrk::parse(text).unwrap();
        assert_eq!(wrk, Wrk { requests: 98, per_second: 97.5, socket_errors: 10, bad_statuses: 5 });
        assert!(wrk.flawless().is_err());
        assert!(Wrk::parse("unable to connect").is_err());
    }

    #[test]
    fn ab_reports_are_read() {
        let text = "Complete requests:      10\nFailed requests:        1\nNon-2xx responses:      2\n\
                    Requests per second:    81.5 [#/sec] (mean)\n";
        assert_eq!(Ab::parse(text).unwrap(), Ab { complete: 10, failed: 3, per_second: 81.5 });
    }
}
