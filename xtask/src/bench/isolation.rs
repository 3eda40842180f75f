//! Several guests at once: `caps`, the paper's experiment, and `isolation`: what a guest's neighbours do to its latency.
//!
//! On few cores a busy neighbour takes CPU time whatever serves it. So each neighbour also runs natively beside the same guest: what is more than
//! that is NetKernel's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nk_programs::nginx::Nginx;
use nk_programs::process::Running;
use nk_programs::world::{Side, World, free_port, wait_for_listener};
use rustix::process::Signal;
use serde_json::Value;

use super::Plan;
use super::http::number;
use super::table::show;
use crate::measure::spread;
use crate::workspace;

const IPERF3: &str = "/usr/bin/iperf3";
/// Name, limit in Gbit/s both ways; the third has none.
const GUESTS: [(&str, Option<f64>); 3] =
    [("capped", Some(1.0)), ("halved", Some(0.5)), ("free", None)];
const CONFIG: &str = "[guest.capped]\nout = \"1Gbit/s\"\nin = \"1Gbit/s\"\n\
                      [guest.halved]\nout = \"500Mbit/s\"\nin = \"500Mbit/s\"\n[guest.free]\n";
/// Requests per second of the guest that is watched.
const RATE: &str = "2000";

/// Three guests send (or receive) at once, each to a native peer of its own.
pub(super) fn caps(plan: &Plan) -> Result<()> {
    let world = plan.world_with(CONFIG)?;
    println!("Three guests at once, one iperf3 stream each, without its first second:\n");
    println!("| direction | guest | limit, Gbit/s | Gbit/s | off by |");
    println!("|---|---|---|---|---|");
    for (direction, options) in [("out", &[][..]), ("in", &["-R"])] {
        let mut samples = vec![Vec::new(); GUESTS.len()];
        for _ in 0..plan.rounds {
            let rates = at_once(plan, &world, options)?;
            samples.iter_mut().zip(rates).for_each(|(all, rate)| all.push(rate));
        }
        for ((name, limit), samples) in GUESTS.iter().zip(samples) {
            let rate = spread(samples)?;
            let (limit, off) = match limit {
                Some(limit) => {
                    let off = (rate.median / limit - 1.0) * 100.0;
                    (format!("{limit:.1}"), format!("{off:+.1} %"))
                }
                None => ("none".to_owned(), String::new()),
            };
            println!("| {direction} | {name} | {limit} | {} | {off} |", show(rate, 3));
        }
    }
    world.close()
}

fn at_once(plan: &Plan, world: &World, options: &[&str]) -> Result<Vec<f64>> {
    let limit = Duration::from_secs(u64::from(plan.seconds) + 20);
    let mut running = Vec::new();
    for (name, _) in GUESTS {
        let port = free_port()?;
        let text = port.to_string();
        let mut peer = world.start("peer", Side::Plain, &[IPERF3, "-s", "-1", "-p", &text])?;
        wait_for_listener(&mut peer, port)?;
        running.push((name, text, peer));
    }
    let seconds = plan.seconds.to_string();
    let mut clients = Vec::new();
    for (name, port, peer) in running {
        let words = ["-c", "127.0.0.1", "-p", &port, "-J", "-O", "1", "-t", &seconds];
        let words = [&[IPERF3][..], &words, options].concat();
        clients.push((world.start_as(name, &words)?, peer));
    }
    let mut rates = Vec::new();
    for (client, peer) in clients {
        let text = client.ok(limit)?;
        peer.finish(Duration::from_secs(10))?;
        let report: Value = serde_json::from_str(&text).context("iperf3's report")?;
        let rate = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
        rates.push(rate.with_context(|| format!("iperf3 reports no rate: {text}"))? / 1e9);
    }
    Ok(rates)
}

/// What runs beside the guest that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Neighbour {
    None,
    /// One iperf3 stream, flat out.
    Bulk,
    /// ab, a connection for each request.
    Connections,
    /// One element after the other, and a doorbell for each whenever the engine sleeps.
    Elements,
}

const NEIGHBOURS: [(Neighbour, &str); 4] = [
    (Neighbour::None, "nobody"),
    (Neighbour::Bulk, "one iperf3 stream, flat out"),
    (Neighbour::Connections, "connections without end (ab -c 50)"),
    (Neighbour::Elements, "elements and doorbells without end"),
];

/// A guest serves small requests, an open loop of them; somebody else is busy, natively or as another guest.
pub(super) fn neighbours(plan: &Plan) -> Result<()> {
    let world = plan.world_with("[guest.neighbour]\n")?;
    let flood = world.compile("flood", include_str!("flood.c"))?;
    let server = Nginx::start(&world, Side::Guest)?;
    let mut samples = vec![Vec::new(); NEIGHBOURS.len() * 2];
    for _ in 0..plan.rounds {
        let cases = NEIGHBOURS.iter().flat_map(|n| [(n.0, Side::Plain), (n.0, Side::Guest)]);
        for ((neighbour, side), samples) in cases.zip(&mut samples) {
            let latencies = beside(plan, &world, &server, neighbour, side, &flood);
            samples.push(latencies.with_context(|| format!("{neighbour:?}, {side:?}"))?);
        }
    }
    println!(
        "\nA guest's nginx answers {RATE} small requests/s (open loop, 16 connections) while a neighbour is busy, natively or as another \
         guest of the same daemon:\n"
    );
    println!(
        "| neighbour | figure | it is native | it is a guest | guest/native | native/nobody | guest/nobody |"
    );
    println!("|---|---|---|---|---|---|---|");
    // Beside nobody both sides are the same.
    let alone: Vec<[f64; 2]> = samples.iter().take(2).flatten().copied().collect();
    for ((_, name), both) in NEIGHBOURS.iter().zip(samples.chunks(2)) {
        let [native, guest] = both else { continue };
        for (index, figure) in ["p50, µs", "p99, µs"].iter().enumerate() {
            let of = |all: &[[f64; 2]]| spread(all.iter().filter_map(|l| l.get(index).copied()));
            let (native, guest, alone) = (of(native)?, of(guest)?, of(&alone)?);
            println!(
                "| {name} | {figure} | {} | {} | {:.2} | {:.2} | {:.2} |",
                show(native, 0),
                show(guest, 0),
                guest.median / native.median,
                native.median / alone.median,
                guest.median / alone.median,
            );
        }
    }
    server.stop()?;
    world.close()
}

/// Latencies of the watched guest, p50 and p99.
fn beside(
    plan: &Plan,
    world: &World,
    server: &Nginx,
    neighbour: Neighbour,
    side: Side,
    flood: &str,
) -> Result<[f64; 2]> {
    let port = free_port()?;
    let text = port.to_string();
    let start = |words: &[&str]| match side {
        Side::Plain => world.start("neighbour", side, words),
        Side::Guest => world.start_as("neighbour", words),
    };
    let mut busy: Vec<Running> = Vec::new();
    match neighbour {
        Neighbour::None => {}
        Neighbour::Bulk => {
            let mut peer = world.start("peer", Side::Plain, &[IPERF3, "-s", "-1", "-p", &text])?;
            wait_for_listener(&mut peer, port)?;
            busy.push(start(&[IPERF3, "-c", "127.0.0.1", "-p", &text, "-t", "600"])?);
            busy.push(peer);
        }
        Neighbour::Connections => {
            let peer = Nginx::start(world, Side::Plain)?;
            let url = peer.url();
            busy.push(start(&["/usr/bin/ab", "-q", "-r", "-c50", "-n100000000", &url])?);
            busy.push(peer.running);
        }
        Neighbour::Elements => busy.push(start(&[flood])?),
    }
    // Until it is at it.
    std::thread::sleep(Duration::from_millis(500));
    for one in &mut busy {
        one.must_live()?;
    }
    let program = workspace::release("nk-load")?.display().to_string();
    let (port, seconds) = (server.port.to_string(), plan.seconds.to_string());
    let words = ["http", "--port", &port, "--rate", RATE, "--connections", "16"];
    let words = [&[program.as_str()][..], &words, &["--seconds", &seconds]].concat();
    let limit = Duration::from_secs(u64::from(plan.seconds) + 30);
    let said = world.run(Side::Plain, &words, limit)?;
    for one in &mut busy {
        one.must_live()?;
    }
    for one in busy {
        // iperf3's server ends by itself when its client is gone.
        let _ = one.signal(Signal::KILL);
        one.finish(Duration::from_secs(10))?;
    }
    let report: Value = serde_json::from_str(&said).context("nk-load's report")?;
    ensure!(number(&report, "failed")? == 0.0, "requests failed: {report}");
    Ok([number(&report, "p50_us")?, number(&report, "p99_us")?])
}
