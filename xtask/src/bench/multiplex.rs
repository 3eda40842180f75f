//! `multiplex`: the paper's multiplexing experiment in small. Three gateways with bursts in turn, each on an NSM of its own or all on one: the
//! machine's CPU for the same requests, and their latency.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nk_programs::nginx::Nginx;
use nk_programs::process::Running;
use nk_programs::world::{Side, World};
use serde_json::Value;

use super::Plan;
use super::http::number;
use super::small::Small;
use super::table::show;
use crate::measure::{busy_during, spread};
use crate::workspace;

const GATEWAYS: [&str; 3] = ["red", "green", "blue"];
/// Requests per second of the gateway that has its burst, and of the others meanwhile.
const BURST: u32 = 2000;
const CALM: u32 = 200;
const CONNECTIONS: &str = "16";

/// One placement of the three.
struct Host {
    world: World,
    origin: Nginx,
    gateways: Vec<Small>,
}

/// Of one round: CPU per request, p99 of the bursts (the worst of three) and of the rest.
type Sample = [f64; 3];

pub(super) fn multiplex(plan: &Plan) -> Result<()> {
    let process = "placement = \"process\"\n";
    let own: String = GATEWAYS
        .iter()
        .map(|g| format!("[nsm.{g}]\n{process}[guest.{g}]\nnsm = \"{g}\"\n"))
        .collect();
    let guests: String = GATEWAYS.iter().map(|g| format!("[guest.{g}]\nnsm = \"all\"\n")).collect();
    let hosts =
        [Host::start(plan, &own)?, Host::start(plan, &format!("[nsm.all]\n{process}{guests}"))?];
    let mut samples = [Vec::new(), Vec::new()];
    for round in 0..plan.rounds {
        for turn in 0..hosts.len() {
            let which = (round + turn) % hosts.len();
            if let (Some(host), Some(all)) = (hosts.get(which), samples.get_mut(which)) {
                all.push(host.round(plan).with_context(|| format!("host {which}"))?);
            }
        }
    }
    println!(
        "Three guests are gateways (nginx, proxy to a native nginx, {CONNECTIONS} connections each). Each in turn has {BURST} requests/s for {} s while the others have \
         {CALM}; open loop, so both sides serve the same requests. NSMs are processes.\n",
        plan.seconds
    );
    println!("| figure | an NSM each | one for all | one/each |");
    println!("|---|---|---|---|");
    let [each, one] = &samples;
    for (index, figure) in
        ["machine's CPU, µs/request", "p99 in the burst, µs", "p99 of the others, µs"]
            .iter()
            .enumerate()
    {
        let of = |all: &[Sample]| spread(all.iter().filter_map(|s| s.get(index).copied()));
        let (each, one) = (of(each)?, of(one)?);
        let ratio = one.median / each.median;
        println!("| {figure} | {} | {} | {ratio:.2} |", show(each, 0), show(one, 0));
    }
    hosts.into_iter().try_for_each(Host::stop)
}

impl Host {
    fn start(plan: &Plan, config: &str) -> Result<Host> {
        let mut world = plan.world()?;
        world.configure(config)?;
        let origin = Nginx::start(&world, Side::Plain)?;
        let gateways =
            GATEWAYS.iter().map(|g| gateway(&world, g, origin.port)).collect::<Result<_>>()?;
        Ok(Host { world, origin, gateways })
    }

    /// A burst of each.
    fn round(&self, plan: &Plan) -> Result<Sample> {
        let (mut requests, mut p99, mut busy) = (0.0, [0.0_f64; 2], Duration::ZERO);
        for bursting in 0..self.gateways.len() {
            let (reports, spent) = busy_during(|| self.burst(plan, bursting))?;
            busy += spent;
            for (at, report) in reports.iter().enumerate() {
                ensure!(number(report, "failed")? == 0.0, "requests failed: {report}");
                requests += number(report, "requests")?;
                if let Some(worst) = p99.get_mut(usize::from(at != bursting)) {
                    *worst = worst.max(number(report, "p99_us")?);
                }
            }
        }
        let [burst, calm] = p99;
        Ok([busy.as_secs_f64() * 1e6 / requests, burst, calm])
    }

    fn burst(&self, plan: &Plan, bursting: usize) -> Result<Vec<Value>> {
        let program = workspace::release("nk-load")?.display().to_string();
        let seconds = plan.seconds.to_string();
        let mut loads = Vec::new();
        for (at, gateway) in self.gateways.iter().enumerate() {
            let rate = if at == bursting { BURST } else { CALM }.to_string();
            let port = gateway.port.to_string();
            let words = ["http", "--port", &port, "--rate", &rate, "--connections", CONNECTIONS];
            let words = [&[program.as_str()][..], &words, &["--seconds", &seconds]].concat();
            loads.push(self.world.start("load", Side::Plain, &words)?);
        }
        let limit = Duration::from_secs(u64::from(plan.seconds) + 30);
        let parsed =
            |load: Running| serde_json::from_str(&load.ok(limit)?).context("nk-load's report");
        loads.into_iter().map(parsed).collect()
    }

    fn stop(self) -> Result<()> {
        self.gateways.into_iter().try_for_each(Small::stop)?;
        self.origin.stop()?;
        self.world.close()
    }
}

/// nginx that asks another for everything.
fn gateway(world: &World, guest: &str, origin: u16) -> Result<Small> {
    let upstream = format!(
        "upstream origin {{ server 127.0.0.1:{origin}; keepalive 32; keepalive_requests 100000000; }}"
    );
    let location =
        "proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\";";
    Small::start(world, guest, Some(guest), &upstream, location)
}
