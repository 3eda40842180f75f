//! One stream: `iperf`, `writes`, `gigabyte`. The measured program is iperf3's client, which sends, or receives with -R. For short writes it is
//! `nk-load source`: iperf3's reader takes pieces of the writes' length, and would be what is measured.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nk_programs::world::{Side, World, free_port, wait_for_listener};
use serde_json::Value;

use super::Plan;
use super::http::number;
use super::place::{Placement, all, words};
use super::table::{Figure, by_figure, head, line};
use crate::measure::{Spread, busy_during};
use crate::workspace;

const RATE: Figure = ("Gbit/s", 2);
const COST: Figure = ("machine's CPU, ms/GB", 0);

const IPERF3: &str = "/usr/bin/iperf3";

#[derive(Debug, Clone, Copy)]
struct Stream {
    name: &'static str,
    /// Bytes of each write.
    length: &'static str,
    receive: bool,
}

pub(super) fn iperf(plan: &Plan) -> Result<()> {
    let of = |name, receive| Stream { name, length: "128K", receive };
    by_placement(plan, &[of("send", false), of("receive", true)], 0, RATE, iperf3)
}

pub(super) fn writes(plan: &Plan) -> Result<()> {
    println!("The reader takes up to 64 KB at once.\n");
    let of = |name, length| Stream { name, length, receive: false };
    by_placement(plan, &[of("1 KB writes", "1024"), of("8 KB writes", "8192")], 0, RATE, source)
}

pub(super) fn gigabyte(plan: &Plan) -> Result<()> {
    let of = |name, receive| Stream { name, length: "64K", receive };
    by_placement(plan, &[of("64 KB, send", false), of("64 KB, receive", true)], 1, COST, iperf3)
}

/// One run: Gbit/s, and the machine's CPU per GB.
type Sample = fn(&Plan, &World, Side, Placement, Stream) -> Result<[f64; 2]>;

/// Every placement of both sides, all in turn; the best of a side is by the figure asked for.
fn by_placement(
    plan: &Plan,
    streams: &[Stream],
    figure: usize,
    best_by: Figure,
    sample: Sample,
) -> Result<()> {
    let world = plan.world()?;
    head();
    for stream in streams {
        let runs: Vec<(Side, Placement)> = all()?
            .flat_map(|place| [(Side::Plain, place), (Side::Guest, place)])
            .filter(|(side, place)| *side == Side::Guest || !place.for_guests_only)
            .collect();
        let mut samples = vec![Vec::new(); runs.len()];
        for _ in 0..plan.rounds {
            for ((side, place), samples) in runs.iter().zip(&mut samples) {
                let found = sample(plan, &world, *side, *place, *stream);
                samples.push(found.with_context(|| format!("{side:?}, {place:?}, {stream:?}"))?);
            }
        }
        let spreads: Vec<[Spread; 2]> =
            samples.iter().map(|samples| by_figure(samples)).collect::<Result<_>>()?;
        let found = |side: Side, place: Placement| {
            let at = runs.iter().position(|run| *run == (side, place))?;
            spreads.get(at).copied()
        };
        for place in all()? {
            let (native, guest) = (found(Side::Plain, place), found(Side::Guest, place));
            for (index, name) in [RATE, COST].into_iter().enumerate() {
                let of = |spreads: Option<[Spread; 2]>| spreads?.get(index).copied();
                line(&format!("{}, {}", stream.name, place.name), name, of(native), of(guest));
            }
        }
        let best = |wanted: Side| {
            let mine = runs.iter().zip(&spreads).filter(|((side, _), _)| *side == wanted);
            let medians = mine.filter_map(|(_, spreads)| spreads.get(figure).copied());
            if figure == 0 {
                medians.max_by(|a, b| a.median.total_cmp(&b.median))
            } else {
                medians.min_by(|a, b| a.median.total_cmp(&b.median))
            }
        };
        let name = format!("**{}, best placement of each side**", stream.name);
        line(&name, best_by, best(Side::Plain), best(Side::Guest));
    }
    world.close()
}

fn source(
    plan: &Plan,
    world: &World,
    side: Side,
    place: Placement,
    stream: Stream,
) -> Result<[f64; 2]> {
    place.move_daemon(world)?;
    let program = workspace::release("nk-load")?.display().to_string();
    let (port, seconds) = (free_port()?.to_string(), plan.seconds.to_string());
    let mut sink = world.start(
        "sink",
        Side::Plain,
        &words(place.peer, &program, &["sink", "--port", &port])?,
    )?;
    wait_for_listener(&mut sink, port.parse()?)?;
    let options = ["source", "--port", &port, "--bytes", stream.length, "--seconds", &seconds];
    let limit = Duration::from_secs(u64::from(plan.seconds) + 20);
    let text = world.run(side, &words(place.program, &program, &options)?, limit)?;
    sink.finish(Duration::from_secs(10))?;
    let report: Value = serde_json::from_str(&text).context("nk-load's report")?;
    Ok([number(&report, "gbit_per_second")?, number(&report, "machine_cpu_ms_per_gb")?])
}

fn iperf3(
    plan: &Plan,
    world: &World,
    side: Side,
    place: Placement,
    stream: Stream,
) -> Result<[f64; 2]> {
    place.move_daemon(world)?;
    let port = free_port()?;
    let (port_text, seconds) = (port.to_string(), plan.seconds.to_string());
    let mut peer = world.start(
        "iperf3-peer",
        Side::Plain,
        &words(place.peer, IPERF3, &["-s", "-1", "-p", &port_text])?,
    )?;
    wait_for_listener(&mut peer, port)?;
    let mut client = vec!["-c", "127.0.0.1", "-p", &port_text, "-t", &seconds, "-J"];
    client.extend(["-l", stream.length]);
    if stream.receive {
        client.push("-R");
    }
    let limit = Duration::from_secs(u64::from(plan.seconds) + 20);
    let client = world.start("iperf3", side, &words(place.program, IPERF3, &client)?)?;
    let (text, busy) = busy_during(|| client.ok(limit))?;
    peer.finish(Duration::from_secs(10))?;
    let report: Value = serde_json::from_str(&text).context("iperf3's report")?;
    let received = |name: &str| {
        let value = report.pointer(&format!("/end/sum_received/{name}")).and_then(Value::as_f64);
        value.with_context(|| format!("iperf3 reports no {name}: {text}"))
    };
    let used = report.pointer("/end/sender_tcp_congestion").and_then(Value::as_str);
    ensure!(
        used == Some(plan.congestion.as_str()),
        "the sender's congestion control was {used:?}, not {}",
        plan.congestion
    );
    Ok([received("bits_per_second")? / 1e9, busy.as_secs_f64() * 1e3 / (received("bytes")? / 1e9)])
}
