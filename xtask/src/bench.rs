//! `cargo xtask bench [SUITE…]`: guest against native, in turn, as the Markdown of docs/performance.md.
//!
//! | module | suites |
//! |---|---|
//! | [`http`] | `rate`, `open`: nginx |
//! | [`stream`] | `iperf`, `writes`, `gigabyte`: one stream |
//! | [`store`] | `redis` |
//! | [`trip`] | `trip`: 64-byte round trips |
//! | [`idle`] | `idle`, `memory`: connections on which nothing happens |
//! | [`isolation`] | `caps`, `isolation`: several guests at once |
//! | [`multiplex`] | `multiplex`: three gateways on one NSM or on three |
//! | [`scale`] | `scale`: more and more busy guests |
//! | [`guests`] | `guests`: a busy guest beside many idle ones |
//! | [`small`] | the server that several run of |
//! | [`table`] | both sides in turn, and the lines of the tables |
//! | [`place`] | on which CPUs what runs |
//!
//! All of it runs in a network namespace of its own, whose congestion control is the same for both sides and whose sockets are
//! nobody else's.

mod guests;
mod http;
mod idle;
mod isolation;
mod multiplex;
mod place;
mod scale;
mod small;
mod store;
mod stream;
mod table;
mod trip;

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nk_programs::world::{Nsm, Options, World};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::measure::{background, cpus};
use crate::{packages, workspace};

/// Set in the process that has the namespace.
const INSIDE: &str = "NK_BENCH_NAMESPACE";

struct Suite {
    name: &'static str,
    about: &'static str,
    body: fn(&Plan) -> Result<()>,
}

const SUITES: &[Suite] = &[
    Suite { name: "rate", about: "nginx: most requests per second", body: http::rate },
    Suite {
        name: "open",
        about: "nginx: CPU per request and p99 at half of native's best rate, open loop",
        body: http::open,
    },
    Suite { name: "iperf", about: "iperf3, one stream, by placement", body: stream::iperf },
    Suite { name: "writes", about: "1 KB and 8 KB writes, one stream", body: stream::writes },
    Suite { name: "gigabyte", about: "CPU per GB, 64 KB writes", body: stream::gigabyte },
    Suite { name: "redis", about: "redis-benchmark, 50 connections", body: store::redis },
    Suite { name: "trip", about: "64-byte round trips on one connection", body: trip::trip },
    Suite { name: "memory", about: "memory per idle connection", body: idle::memory },
    Suite { name: "idle", about: "CPU of 1,000 idle connections", body: idle::idle },
    Suite {
        name: "caps",
        about: "three guests at once, two of them with a limit",
        body: isolation::caps,
    },
    Suite {
        name: "isolation",
        about: "a guest's latency beside busy neighbours",
        body: isolation::neighbours,
    },
    Suite {
        name: "guests",
        about: "a busy guest beside 100 and 1,000 idle ones",
        body: guests::guests,
    },
    Suite {
        name: "multiplex",
        about: "three gateways with bursts, on one NSM or on three",
        body: multiplex::multiplex,
    },
    Suite {
        name: "scale",
        about: "more and more busy guests, an NSM each or one for all",
        body: scale::scale,
    },
    Suite { name: "switch", about: "`nk bench switch`", body: switch },
];

/// What to do, from the command line.
pub(crate) struct Plan {
    suites: Vec<&'static Suite>,
    rounds: usize,
    seconds: u32,
    server_cpus: Option<String>,
    daemon_cpus: Option<String>,
    client_cpus: Option<String>,
    congestion: String,
    nsm: Nsm,
}

pub(crate) fn run(words: &[String]) -> Result<()> {
    if words.iter().any(|word| word == "--list") {
        for suite in SUITES {
            println!("{:9} {}", suite.name, suite.about);
        }
        return Ok(());
    }
    let plan = Plan::parse(words)?;
    if std::env::var_os(INSIDE).is_none() {
        packages::ensure_programs(&[packages::PROGRAMS, packages::FOR_BENCH])?;
        workspace::build_release()?;
        return enter_namespace(&plan, words);
    }
    raise_descriptor_limit()?;
    describe(&plan, words)?;
    for suite in &plan.suites {
        println!("\n### {}: {}\n", suite.name, suite.about);
        (suite.body)(&plan).with_context(|| suite.name)?;
    }
    Ok(())
}

impl Plan {
    fn parse(words: &[String]) -> Result<Self> {
        let mut plan = Plan {
            suites: Vec::new(),
            rounds: 5,
            seconds: 2,
            server_cpus: None,
            daemon_cpus: None,
            client_cpus: None,
            congestion: "cubic".to_owned(),
            nsm: Nsm::Inline,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if !word.starts_with('-') {
                let suite = SUITES.iter().find(|suite| suite.name == word);
                plan.suites.push(suite.with_context(|| {
                    format!("bench has no suite {word:?}; `bench --list` names them")
                })?);
                continue;
            }
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--rounds" => plan.rounds = value.parse().context("--rounds")?,
                "--seconds" => plan.seconds = value.parse().context("--seconds")?,
                "--server-cpus" => plan.server_cpus = Some(value.clone()),
                "--daemon-cpus" => plan.daemon_cpus = Some(value.clone()),
                "--client-cpus" => plan.client_cpus = Some(value.clone()),
                "--congestion" => plan.congestion.clone_from(value),
                "--nsm" => {
                    plan.nsm = match value.as_str() {
                        "inline" => Nsm::Inline,
                        "separate" => Nsm::Separate,
                        other => bail!("--nsm is inline or separate, not {other:?}"),
                    }
                }
                other => bail!("bench has no option {other:?}"),
            }
        }
        ensure!(plan.rounds > 0 && plan.seconds > 0, "at least one round of one second");
        if plan.suites.is_empty() {
            plan.suites = SUITES.iter().collect();
        }
        Ok(plan)
    }

    /// A daemon of its own, placed as asked.
    fn world(&self) -> Result<World> {
        self.world_with("")
    }

    /// As above, with guests in its configuration.
    fn world_with(&self, config: &str) -> Result<World> {
        World::new(&Options {
            config: config.to_owned(),
            nk: Some(workspace::release("nk")?),
            nsm: self.nsm,
            host_prefix: place::pinned(self.daemon_cpus.as_deref()),
            ..Options::default()
        })
    }
}

/// This command again, in a network namespace with one congestion control for all.
fn enter_namespace(plan: &Plan, words: &[String]) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "bench makes a network namespace: run it as root"
    );
    let script = "ip link set lo up && \
                  echo \"$CONGESTION\" > /proc/sys/net/ipv4/tcp_congestion_control && \
                  exec \"$@\"";
    let _allowed = Allowed::also(&plan.congestion)?;
    let mut command = Command::new("/usr/bin/unshare");
    command
        .args(["--net", "--", "/bin/sh", "-c", script, "sh"])
        .arg(std::env::current_exe()?)
        .arg("bench")
        .args(words)
        .env("CONGESTION", &plan.congestion)
        .env(INSIDE, "1");
    workspace::run(&mut command)
}

/// While it lives, namespaces may choose this congestion control; what was allowed before is put back.
struct Allowed {
    before: String,
}

impl Allowed {
    const FILE: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

    fn also(wanted: &str) -> Result<Self> {
        let before = fs::read_to_string(Self::FILE)?.trim().to_owned();
        if !before.split(' ').any(|allowed| allowed == wanted) {
            fs::write(Self::FILE, format!("{before} {wanted}"))
                .with_context(|| format!("this kernel has no congestion control {wanted:?}"))?;
        }
        Ok(Allowed { before })
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        let _ = fs::write(Self::FILE, &self.before);
    }
}

/// Thousands of connections are more descriptors than a shell allows by default.
fn raise_descriptor_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let enough = limit.maximum.is_none_or(|most| most >= 16_384);
    let current = if enough { limit.maximum } else { Some(16_384) };
    let maximum = if enough { limit.maximum } else { Some(16_384) };
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).context("descriptor limit")
}

/// Where and how, so that the figures can be placed.
fn describe(plan: &Plan, words: &[String]) -> Result<()> {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let cpu = read("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let placed = |cpus: &Option<String>| {
        cpus.as_ref().map_or("unpinned".to_owned(), |c| format!("CPUs {c}"))
    };
    let command: String = words.iter().map(|w| format!(" {w}")).collect();
    println!("Command: `cargo xtask bench{command}`.\n");
    println!(
        "- machine: {} CPUs ({}), {}, Linux {}",
        cpus(),
        place::list(&place::allowed()?),
        model.trim_start_matches([' ', '\t', ':']),
        rustix::system::uname().release().to_string_lossy()
    );
    println!(
        "- placement where a table says no other: servers {}; daemon {}; clients {}; NSM {}",
        placed(&plan.server_cpus),
        placed(&plan.daemon_cpus),
        placed(&plan.client_cpus),
        if plan.nsm == Nsm::Inline { "inline" } else { "a process of its own" }
    );
    println!(
        "- congestion control on both sides: {}",
        read("/proc/sys/net/ipv4/tcp_congestion_control")?
    );
    println!(
        "- {} rounds, guest and native in turn in each, samples of {} s over 127.0.0.1; median (least to greatest)",
        plan.rounds, plan.seconds
    );
    println!(
        "- CPU: all of the machine that was not idle (/proc/stat), clients and kernel included"
    );
    println!(
        "- the machine was {:.1} % busy with other things before the first round",
        background(Duration::from_secs(2))? * 100.0
    );
    Ok(())
}

fn switch(plan: &Plan) -> Result<()> {
    let rounds = plan.rounds.to_string();
    let mut command = Command::new(workspace::release("nk")?);
    command.args(["bench", "switch", "--rounds", &rounds]);
    workspace::run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn suites_and_options_are_told_apart() {
        let plan = Plan::parse(&words("trip --rounds 7 rate --congestion reno")).unwrap();
        let names: Vec<_> = plan.suites.iter().map(|suite| suite.name).collect();
        assert_eq!((names, plan.rounds), (vec!["trip", "rate"], 7));
        assert_eq!(plan.congestion, "reno");
        assert_eq!(Plan::parse(&[]).unwrap().suites.len(), SUITES.len());
        for wrong in ["trips", "--rounds", "--rounds 0", "--colour red", "--nsm both"] {
            assert!(Plan::parse(&words(wrong)).is_err(), "{wrong}");
        }
    }
}
