//! nginx with 4 workers under wrk and ab: keep-alive, short connections, a reload and killed workers under load.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::loads;
use crate::isolation;
use crate::load::{AbLoad, Wrk, WrkLoad};
use crate::nginx::{Nginx, WORKERS};
use crate::process::{Running, eventually, signal_pid};
use crate::suite::Test;
use crate::world::{Mode, Side, World};

pub(super) fn tests() -> Vec<Test> {
    loads(&[
        ("nginx under wrk", under_wrk),
        ("nginx under ab", under_ab),
        ("nginx reloads under load", reloads_under_load),
        ("nginx loses workers under load", loses_workers),
    ])
}

/// Isolation of whichever programs are guests, while they run.
pub(super) fn isolated(
    world: &World,
    mode: Mode,
    server: &Running,
    client: &Running,
) -> Result<()> {
    for (side, running) in [(mode.client, client), (mode.server, server)] {
        if side == Side::Guest && world.options.nk.is_some() {
            let checked =
                isolation::check(running.pid()).with_context(|| running.name().to_owned());
            // A client may end while it is looked at.
            if checked.is_err() && !running.ended_within(Duration::from_millis(200))? {
                checked?;
            }
        }
    }
    Ok(())
}

/// As [`isolated`], for lasting connections: those of the guests are found with the host's processes.
fn isolated_and_connected(
    world: &World,
    mode: Mode,
    server: &Running,
    client: &Running,
) -> Result<()> {
    for (side, running) in [(mode.client, client), (mode.server, server)] {
        if side == Side::Guest && world.options.nk.is_some() {
            let hosts = world.nk_pids()?;
            isolation::check_busy(running.pid(), &hosts)
                .with_context(|| running.name().to_owned())?;
        }
    }
    Ok(())
}

fn load(url: &str, seconds: u32, short: bool) -> WrkLoad<'_> {
    WrkLoad { url, connections: 32, threads: 2, seconds, short }
}

fn under_wrk(world: &mut World, mode: Mode) -> Result<String> {
    let nginx = Nginx::start(world, mode.server)?;
    let mut saw = Vec::new();
    for (what, url, short) in [
        ("keep-alive", nginx.url(), false),
        ("short", nginx.url(), true),
        ("keep-alive v6", nginx.url_v6(), false),
        ("short v6", nginx.url_v6(), true),
    ] {
        let load = load(&url, 3, short);
        let wrk = load.start(world, mode.client)?;
        sleep(Duration::from_millis(300));
        if short {
            isolated(world, mode, &nginx.running, &wrk)?;
        } else {
            // On a busy machine it takes its time to connect.
            eventually(Duration::from_secs(2), || {
                isolated_and_connected(world, mode, &nginx.running, &wrk)
            })?;
        }
        let report = Wrk::parse(&wrk.ok(load.limit())?)?.flawless()?;
        saw.push(format!("{what} {:.0}/s", report.per_second));
    }
    let complaints = nginx.complaints(world)?;
    ensure!(complaints.is_empty(), "nginx complains: {}", complaints.join("\n"));
    nginx.stop()?;
    Ok(saw.join(", "))
}

fn under_ab(world: &mut World, mode: Mode) -> Result<String> {
    let nginx = Nginx::start(world, mode.server)?;
    let mut saw = Vec::new();
    for (what, concurrency, requests, keep_alive) in [
        ("one at a time", 1, 1000, false),
        ("-c 100", 100, 20_000, false),
        ("-c 100 -k", 100, 30_000, true),
    ] {
        let url = nginx.url();
        let report =
            AbLoad { url: &url, requests, concurrency, keep_alive }.run(world, mode.client)?;
        saw.push(format!("{what} {:.0}/s", report.per_second));
    }
    nginx.stop()?;
    Ok(saw.join(", "))
}

/// Connection: close, since a server that retires a worker may close an idle connection at the very moment in which
/// the client sends its next request: with keep-alive that happens natively, too.
fn reloads_under_load(world: &mut World, mode: Mode) -> Result<String> {
    let nginx = Nginx::start(world, mode.server)?;
    let url = nginx.url();
    let load = load(&url, 8, true);
    let wrk = load.start(world, mode.client)?;
    let mut reloads = 0;
    sleep(Duration::from_millis(1000));
    while reloads < 4 && !wrk.ended_within(Duration::from_millis(700))? {
        nginx.reload(world)?;
        reloads += 1;
    }
    let report = Wrk::parse(&wrk.ok(load.limit())?)?.flawless()?;
    ensure!(reloads >= 2, "only {reloads} reloads fell into the load");
    nginx.stop()?;
    Ok(format!("{reloads} reloads, {} requests, none failed", report.requests))
}

fn loses_workers(world: &mut World, mode: Mode) -> Result<String> {
    let nginx = Nginx::start(world, mode.server)?;
    let url = nginx.url();
    let load = load(&url, 6, false);
    let wrk = load.start(world, mode.client)?;
    let mut killed = 0;
    for _ in 0..2 {
        sleep(Duration::from_millis(1500));
        let Some(victim) = nginx.workers()?.first().copied() else { bail!("no worker to kill") };
        signal_pid(victim, Signal::KILL);
        killed += 1;
        eventually(Duration::from_secs(10), || {
            let workers = nginx.workers()?;
            ensure!(
                workers.len() == WORKERS && !workers.contains(&victim),
                "{} workers",
                workers.len()
            );
            Ok(())
        })?;
    }
    let report = Wrk::parse(&wrk.ok(load.limit())?)?;
    // Only what the dead worker served may fail: each connection at most once per kill.
    let bound = u64::from(load.connections) * killed;
    ensure!(report.requests > 0 && report.bad_statuses == 0, "{report:?}");
    ensure!(
        report.socket_errors <= bound,
        "{} errors, but only {bound} connections can have died with a worker",
        report.socket_errors
    );
    let after = super::nginx::load(&url, 2, true).run(world, mode.client)?.flawless()?;
    nginx.stop()?;
    Ok(format!("{} errors by {killed} kills, then {:.0}/s", report.socket_errors, after.per_second))
}
