//! nginx with keep-alive and with short connections: `rate`, `open`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nk_programs::load::{AbLoad, WrkLoad};
use nk_programs::nginx::{Nginx, WORKERS};
use nk_programs::world::{Side, World};
use serde_json::Value;

use super::Plan;
use super::place::pinned;
use super::table::{Figure, head, in_turn, lines};
use crate::measure::{busy_during, sample};
use crate::workspace;

/// Connections of wrk and of the open loop with keep-alive.
const KEPT: u32 = 64;
/// Connections at a time where each makes one request.
const SHORT: u32 = 100;

const RATE: Figure = ("requests/s", 0);
const COST: Figure = ("machine's CPU, µs/request", 1);

/// Both servers, and what loads them.
struct Servers<'a> {
    plan: &'a Plan,
    world: World,
    native: Nginx,
    guest: Nginx,
    client: Vec<String>,
}

impl<'a> Servers<'a> {
    fn start(plan: &'a Plan) -> Result<Self> {
        let world = plan.world()?;
        let prefix = pinned(plan.server_cpus.as_deref());
        let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
        let native = Nginx::start_by(&world, Side::Plain, &prefix)?;
        let guest = Nginx::start_by(&world, Side::Guest, &prefix)?;
        let client = pinned(plan.client_cpus.as_deref());
        println!("nginx has {WORKERS} workers and answers 64 bytes.\n");
        Ok(Servers { plan, world, native, guest, client })
    }

    fn on(&self, side: Side) -> &Nginx {
        if side == Side::Plain { &self.native } else { &self.guest }
    }

    fn wrk(&self, side: Side) -> Result<[f64; 2]> {
        let url = self.on(side).url();
        let seconds = self.plan.seconds;
        let load = WrkLoad { url: &url, connections: KEPT, threads: 2, seconds, short: false };
        let sample = sample(&self.world, &load, &self.client)?;
        Ok([sample.per_second, sample.cpu_us_per_request])
    }

    fn ab(&self, side: Side) -> Result<[f64; 2]> {
        let url = self.on(side).url();
        // About as long as the others take; ab counts requests.
        let requests = u64::from(self.plan.seconds) * 10_000;
        let load = AbLoad { url: &url, requests, concurrency: SHORT, keep_alive: false };
        let (report, busy) = busy_during(|| load.run_by(&self.world, Side::Plain, &self.client))?;
        Ok([report.per_second, busy.as_secs_f64() * 1e6 / report.complete as f64])
    }

    /// nk-load's report: every request must have been answered.
    fn nk_load(&self, side: Side, options: &[&str]) -> Result<Value> {
        let (port, seconds) = (self.on(side).port.to_string(), self.plan.seconds.to_string());
        let program = workspace::release("nk-load")?.display().to_string();
        let words: Vec<&str> = self
            .client
            .iter()
            .map(String::as_str)
            .chain([program.as_str(), "http", "--port", &port, "--seconds", &seconds])
            .chain(options.iter().copied())
            .collect();
        let limit = Duration::from_secs(u64::from(self.plan.seconds) + 20);
        let text = self.world.run(Side::Plain, &words, limit)?;
        let report: Value = serde_json::from_str(&text).context("nk-load's report")?;
        ensure!(number(&report, "failed")? == 0.0, "requests failed: {report}");
        Ok(report)
    }

    fn stop(self) -> Result<()> {
        self.guest.stop()?;
        self.native.stop()?;
        self.world.close()
    }
}

pub(super) fn number(report: &Value, name: &str) -> Result<f64> {
    report.get(name).and_then(Value::as_f64).with_context(|| format!("no {name} in {report}"))
}

fn figures<const N: usize>(report: &Value, names: [&str; N]) -> Result<[f64; N]> {
    let mut figures = [0.0; N];
    for (to, name) in figures.iter_mut().zip(names) {
        *to = number(report, name)?;
    }
    Ok(figures)
}

const SHORT_LOOP: [&str; 5] = ["--short", "--connections", "100", "--threads", "2"];

/// As many requests as they answer.
pub(super) fn rate(plan: &Plan) -> Result<()> {
    let servers = Servers::start(plan)?;
    head();
    let both = in_turn(plan.rounds, |side| servers.wrk(side))?;
    lines(&format!("keep-alive, wrk -t2 -c{KEPT}"), [RATE, COST], &both);
    let both = in_turn(plan.rounds, |side| servers.ab(side))?;
    lines(&format!("short connections, ab -c {SHORT}"), [RATE, COST], &both);
    let both = in_turn(plan.rounds, |side| {
        figures(&servers.nk_load(side, &SHORT_LOOP)?, ["per_second", "machine_cpu_us"])
    })?;
    lines("short connections, nk-load with 2 threads and 100 connections", [RATE, COST], &both);
    servers.stop()
}

/// The same number of requests per second for both: half of what native answers at best.
pub(super) fn open(plan: &Plan) -> Result<()> {
    let servers = Servers::start(plan)?;
    let best = |sample: &dyn Fn() -> Result<f64>| -> Result<f64> {
        (0..3).map(|_| sample()).try_fold(0.0, |best, rate| Ok(rate?.max(best)))
    };
    let kept = best(&|| Ok(servers.wrk(Side::Plain)?[0]))? / 2.0;
    let short = best(&|| {
        let report = servers.nk_load(Side::Plain, &SHORT_LOOP)?;
        number(&report, "per_second")
    })? / 2.0;
    println!(
        "A request is due at even intervals whatever became of those before it; latency counts from when it was due.\n"
    );
    head();
    let kept_connections = KEPT.to_string();
    for (name, rate, options) in [
        ("keep-alive", kept, vec!["--connections", &kept_connections]),
        ("short connections", short, vec!["--short", "--connections", "1000"]),
    ] {
        let rate = format!("{rate:.0}");
        let options: Vec<&str> = options.into_iter().chain(["--rate", &rate]).collect();
        let names = ["machine_cpu_us", "own_cpu_us", "p50_us", "p99_us", "per_second"];
        let both = in_turn(plan.rounds, |side| figures(&servers.nk_load(side, &options)?, names))?;
        let shown = [
            COST,
            ("of that the client's, µs/request", 1),
            ("latency p50, µs", 0),
            ("latency p99, µs", 0),
            ("answered requests/s", 0),
        ];
        lines(&format!("{name}, {rate} requests/s"), shown, &both);
    }
    servers.stop()
}
