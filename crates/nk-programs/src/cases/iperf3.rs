//! iperf3: one stream each way, eight at once, both ways at once, and with the options that it sets.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::both_sides;
use crate::process::eventually;
use crate::suite::Test;
use crate::world::{Mode, World, free_port};

const IPERF3: &str = "/usr/bin/iperf3";
const LIMIT: Duration = Duration::from_secs(40);

pub(super) fn tests() -> Vec<Test> {
    both_sides(&[("iperf3", iperf3)])
}

/// What is asked for, and how many streams that makes.
const RUNS: &[(&[&str], usize)] = &[
    (&[], 1),
    (&["-R"], 1),
    (&["-P", "8"], 8),
    (&["-P", "4", "-R"], 4),
    (&["--bidir"], 2),
    (&["-Z", "-C", "reno", "-N", "-M", "1000", "-w", "200K"], 1),
    (&["-l", "1K", "--bind", "127.0.0.1"], 1),
];

fn iperf3(world: &mut World, mode: Mode) -> Result<String> {
    let port = free_port()?.to_string();
    let mut saw = Vec::new();
    // One that serves all runs, one after the other, as a user's would.
    let mut server =
        world.start("iperf3", mode.server, &[IPERF3, "-s", "-p", &port, "--forceflush"])?;
    for (options, streams) in RUNS {
        let bytes = if options.contains(&"1K") { "20M" } else { "100M" };
        let words =
            [&[IPERF3, "-c", "127.0.0.1", "-p", &port, "-J", "-n", bytes][..], options].concat();
        // It answers "busy" until it has closed the run before.
        let report = eventually(Duration::from_secs(20), || {
            server.must_live()?;
            let said = world.start("client", mode.client, &words)?.finish(LIMIT)?.out;
            let report: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
            ensure!(report.get("error").is_none(), "{options:?}: {}", report["error"]);
            Ok(report)
        })?;
        saw.push(check(&report, *streams).with_context(|| format!("{options:?}"))?);
    }
    server.must_live()?;
    Ok(format!("{} Gbit/s", saw.join(" ")))
}

/// Every stream moved bytes, and what was received is what was sent, but for what was under way at the end.
fn check(report: &Value, streams: usize) -> Result<String> {
    let end = &report["end"];
    let all = end["streams"].as_array().context("no streams")?;
    ensure!(all.len() == streams, "{} streams and not {streams}", all.len());
    let mut rate = 0.0;
    for one in all {
        let number = |side: &str, what: &str| one[side][what].as_f64().context("no number");
        let (sent, received) = (number("sender", "bytes")?, number("receiver", "bytes")?);
        ensure!(received > 0.0 && received <= sent, "{received} bytes of {sent} arrived");
        rate += number("receiver", "bits_per_second")?;
    }
    Ok(format!("{:.1}", rate / 1e9))
}
