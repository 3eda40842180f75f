//! 64-byte round trips on one connection, by placement: `trip`. The measured program is the echo.

use std::time::Duration;

use anyhow::{Context, Result};
use nk_programs::world::{Side, World, free_port, wait_for_listener};
use serde_json::Value;

use super::Plan;
use super::http::number;
use super::place::{Placement, all, words};
use super::table::{Figure, head, in_turn, lines};
use crate::workspace;

const FIGURES: [Figure; 3] =
    [("round trip p50, µs", 1), ("round trip p99, µs", 1), ("machine's CPU, µs/trip", 1)];

pub(super) fn trip(plan: &Plan) -> Result<()> {
    let world = plan.world()?;
    head();
    for place in all()? {
        let both = in_turn(plan.rounds, |side| sample(plan, &world, side, place))?;
        lines(place.name, FIGURES, &both);
    }
    world.close()
}

fn sample(plan: &Plan, world: &World, side: Side, place: Placement) -> Result<[f64; 3]> {
    place.move_daemon(world)?;
    let program = workspace::release("nk-load")?.display().to_string();
    let (port, seconds) = (free_port()?, plan.seconds.to_string());
    let port_text = port.to_string();
    let mut echo = world.start(
        "echo",
        side,
        &words(place.program, &program, &["echo", "--port", &port_text])?,
    )?;
    wait_for_listener(&mut echo, port)?;
    let ping = ["ping", "--port", &port_text, "--bytes", "64", "--seconds", &seconds];
    let limit = Duration::from_secs(u64::from(plan.seconds) + 20);
    let text = world.run(Side::Plain, &words(place.peer, &program, &ping)?, limit)?;
    let report: Value = serde_json::from_str(&text).context("nk-load's report")?;
    echo.signal(rustix::process::Signal::KILL)?;
    echo.finish(Duration::from_secs(10))?;
    Ok([number(&report, "p50_us")?, number(&report, "p99_us")?, number(&report, "machine_cpu_us")?])
}
