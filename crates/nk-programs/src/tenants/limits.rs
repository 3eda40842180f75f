//! Limits per guest.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{describe, guests_only, limit, nk, number};
use crate::leaks;
use crate::load::Ab;
use crate::nginx::Nginx;
use crate::process::eventually;
use crate::suite::Test;
use crate::world::{Mode, Side, World, free_port, wait_for_listener};

const IPERF3: &str = "/usr/bin/iperf3";
const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn tests() -> Vec<Test> {
    guests_only(&[
        ("limits: bytes out and in, TCP and UDP", bytes),
        ("limits: changed at run time and by SIGHUP", changed),
        ("limits: connections accepted", accepted),
        ("limits: connections made", made),
        ("limits: elements", elements),
        ("limits: processes", processes),
    ])
}

/// Bytes of one iperf3 run of the guest `name`, as its peer counted them, and the seconds that it took.
fn iperf3(world: &World, name: &str, options: &[&str]) -> Result<(f64, f64)> {
    let port = free_port()?;
    let text = port.to_string();
    let mut peer = world.start("peer", Side::Plain, &[IPERF3, "-s", "-1", "-p", &text])?;
    wait_for_listener(&mut peer, port)?;
    let words = [&[IPERF3, "-c", "127.0.0.1", "-p", &text, "-J", "-t", "3"][..], options].concat();
    let said = world.start_as(name, &words)?.ok(LIMIT)?;
    peer.finish(Duration::from_secs(10))?;
    let report: Value = serde_json::from_str(&said)?;
    let of = |sum: &str, what: &str| report["end"][sum][what].as_f64();
    // UDP's report has one sum, with what was sent; lost datagrams are not received.
    let received = of("sum_received", "bytes").filter(|n| *n > 0.0).or_else(|| of("sum", "bytes"));
    let seconds =
        of("sum_received", "seconds").filter(|n| *n > 0.0).or_else(|| of("sum", "seconds"));
    Ok((received.context("no bytes")?, seconds.context("no time")?))
}

/// What 200 Mbit/s may bring: a burst more at most, and no less than half on a machine with much else to do.
fn is_about(what: &str, (bytes, seconds): (f64, f64)) -> Result<String> {
    let rate = bytes * 8.0 / 1e6 / seconds;
    ensure!((100.0..230.0).contains(&rate), "{what}: {rate:.0} Mbit/s with a limit of 200");
    Ok(format!("{what} {rate:.0}"))
}

fn bytes(world: &mut World, _: Mode) -> Result<String> {
    world.restart_with(
        "[guest.sends]\nout = \"200Mbit/s\"\n[guest.receives]\nin = \"25MB/s\"\n[guest.free]\n",
    )?;
    let mut saw = Vec::new();
    for options in [&[][..], &["-P", "4"], &["-u", "-b", "400M"]] {
        saw.push(is_about(&format!("out {options:?}"), iperf3(world, "sends", options)?)?);
    }
    for options in [&["-R"][..], &["-R", "-P", "4"]] {
        saw.push(is_about(&format!("in {options:?}"), iperf3(world, "receives", options)?)?);
    }
    // The other direction, and another guest, are not touched.
    for (name, options) in [("sends", &["-R"][..]), ("receives", &[]), ("free", &[])] {
        let (bytes, seconds) = iperf3(world, name, options)?;
        let rate = bytes * 8.0 / 1e6 / seconds;
        ensure!(rate > 400.0, "{name} {options:?}: {rate:.0} Mbit/s without a limit");
    }
    Ok(format!("{} Mbit/s", saw.join(", ")))
}

/// A guest that sends to a peer of the host for as long as the test wants.
fn changed(world: &mut World, _: Mode) -> Result<String> {
    world.restart_with("[guest.web]\nweight = 2\n")?;
    let port = free_port()?;
    let text = port.to_string();
    let mut peer = world.start("peer", Side::Plain, &[IPERF3, "-s", "-1", "-p", &text])?;
    wait_for_listener(&mut peer, port)?;
    let guest = world.start_as("web", &[IPERF3, "-c", "127.0.0.1", "-p", &text, "-t", "60"])?;
    let sent = || number(&describe(world, "web")?, "/nsm/bytes_sent");
    let moved_in = |time: Duration| -> Result<f64> {
        let (before, begun) = (sent()?, Instant::now());
        std::thread::sleep(time);
        Ok((sent()? - before) as f64 * 8.0 / 1e6 / begun.elapsed().as_secs_f64())
    };
    eventually(LIMIT, || {
        ensure!(sent()? > 10_000_000, "it does not send yet");
        Ok(())
    })?;
    let second = Duration::from_secs(1);
    limit(world, "web", &["--out", "80Mbit/s"])?;
    let slow = moved_in(second)?;
    ensure!((20.0..110.0).contains(&slow), "{slow:.0} Mbit/s with a limit of 80");
    let told = describe(world, "web")?;
    ensure!(number(&told, "/limits/out_bytes_per_s")? == 10_000_000, "{}", told["limits"]);
    ensure!(number(&told, "/limits/weight")? == 2, "{}", told["limits"]);
    ensure!(number(&told, "/nsm/out_held")? > 0 && number(&told, "/nsm/out_held_ms")? > 100);
    // Who may not change it does not, and what is no limit is none.
    let nobody = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let _shared = Shared::of(world)?;
    for (before, words, why) in [
        (&nobody[..], &["guest", "limit", "web", "--out", "none"][..], "only root"),
        (&[][..], &["guest", "limit", "web", "--out", "5"], "Mbit/s"),
        (&[][..], &["guest", "limit", "web", "--weight", "0"], "weight: 1 to 64"),
        (&[][..], &["guest", "limit", "nobody", "--weight", "1"], "no guest"),
        (&[][..], &["guest", "limit", "web"], "which limit"),
    ] {
        let output = nk(world, before, words)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(why), "{words:?}: {said}");
    }
    // A configuration that is wrong changes nothing, and its line is said; a right one is in force.
    let file = world.dir.join("nk.toml");
    let config = fs::read_to_string(&file)?;
    let daemon = world.daemon().context("no daemon")?;
    fs::write(&file, format!("{config}out = \"fast\"\n"))?;
    daemon.running.signal(Signal::HUP)?;
    let line = format!("line {}", config.lines().count() + 1);
    eventually(LIMIT, || {
        let log = daemon.running.err();
        ensure!(log.contains("nothing is changed") && log.contains(&line), "{log}");
        Ok(())
    })?;
    ensure!(number(&describe(world, "web")?, "/limits/out_bytes_per_s")? == 10_000_000);
    fs::write(&file, format!("{config}out = \"40Mbit/s\"\n"))?;
    daemon.running.signal(Signal::HUP)?;
    eventually(LIMIT, || {
        ensure!(number(&describe(world, "web")?, "/limits/out_bytes_per_s")? == 5_000_000);
        Ok(())
    })?;
    let slower = moved_in(second)?;
    ensure!((10.0..60.0).contains(&slower), "{slower:.0} Mbit/s with a limit of 40");
    limit(world, "web", &["--out", "none"])?;
    let free = moved_in(second)?;
    ensure!(free > 400.0, "{free:.0} Mbit/s without a limit");
    guest.signal(Signal::INT)?;
    guest.finish(LIMIT)?;
    peer.finish(LIMIT)?;
    Ok(format!("80: {slow:.0}, 40: {slower:.0}, none: {free:.0} Mbit/s"))
}

/// While it lives, another user can reach the daemon's socket and run `nk`.
struct Shared(std::path::PathBuf);

impl Shared {
    fn of(world: &World) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&world.dir, fs::Permissions::from_mode(0o755))?;
        Ok(Shared(world.dir.clone()))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        use std::os::unix::fs::PermissionsExt;
        let _ = fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700));
    }
}

/// Connections of so many seconds, one per request.
fn short_load(port: u16, seconds: u32) -> Result<Vec<String>> {
    let program = std::env::current_exe()?.with_file_name("nk-load");
    let words = ["http", "--short", "--connections", "20", "--port"];
    let mut all = vec![program.to_str().context("its path")?.to_owned()];
    all.extend(words.map(str::to_owned));
    all.extend([port.to_string(), "--seconds".to_owned(), seconds.to_string()]);
    Ok(all)
}

fn accepted(world: &mut World, _: Mode) -> Result<String> {
    let server = Nginx::start(world, Side::Guest)?;
    let guest = leaks::describe_guest(world, server.running.pid())?;
    let name = guest["name"].as_str().context("no name")?.to_owned();
    limit(world, &name, &["--connections-per-s", "100"])?;
    let before = number(&describe(world, &name)?, "/engine/connections_total")?;
    world.run(Side::Plain, &short_load(server.port, 3)?, LIMIT)?;
    let after = describe(world, &name)?;
    let made = number(&after, "/engine/connections_total")? - before;
    // Some were accepted ahead before the limit, and some come after the load's end.
    ensure!((150..500).contains(&made), "{made} connections in 3 s with a limit of 100/s");
    ensure!(number(&after, "/engine/accepts_held")? > 0, "{after}");
    limit(world, &name, &["--connections-per-s", "none"])?;
    let before = number(&describe(world, &name)?, "/engine/connections_total")?;
    world.run(Side::Plain, &short_load(server.port, 1)?, LIMIT)?;
    let free = number(&describe(world, &name)?, "/engine/connections_total")? - before;
    ensure!(free > 500, "{free} connections in 1 s without a limit");
    server.stop()?;
    Ok(format!("{made} in 3 s at 100/s"))
}

fn made(world: &mut World, _: Mode) -> Result<String> {
    world.restart_with("[guest.client]\nconnections_per_s = 100\n")?;
    let server = Nginx::start(world, Side::Plain)?;
    let begun = Instant::now();
    let words = ["/usr/bin/ab", "-q", "-n300", "-c20", &server.url()].map(str::to_owned);
    let report = Ab::parse(&world.start_as("client", &words)?.ok(LIMIT)?)?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(report.complete == 300 && report.failed == 0, "{report:?}");
    ensure!((2.5..9.0).contains(&seconds), "300 connections at 100/s took {seconds:.1} s");
    server.stop()?;
    Ok(format!("300 at 100/s took {seconds:.1} s"))
}

fn elements(world: &mut World, _: Mode) -> Result<String> {
    world.restart_with("[guest.client]\nnqes_per_s = 2000\n")?;
    let server = Nginx::start(world, Side::Plain)?;
    let url = server.url();
    let guest = world.start_as("client", &["/usr/bin/wrk", "-t1", "-c8", "-d4", &url])?;
    let taken = || -> Result<u64> {
        let guest = describe(world, "client")?;
        let by_op = guest["engine"]["nqes_from_guest"].as_object().context("no counts")?;
        Ok(by_op.values().filter_map(Value::as_u64).sum())
    };
    eventually(LIMIT, || {
        ensure!(taken()? > 500, "it does nothing yet");
        Ok(())
    })?;
    let (before, begun) = (taken()?, Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let per_s = (taken()? - before) as f64 / begun.elapsed().as_secs_f64();
    ensure!((500.0..2600.0).contains(&per_s), "{per_s:.0} NQE/s with a limit of 2000");
    ensure!(number(&describe(world, "client")?, "/engine/nqes_held")? > 0);
    guest.ok(LIMIT)?;
    server.stop()?;
    Ok(format!("{per_s:.0} NQE/s"))
}

fn processes(world: &mut World, _: Mode) -> Result<String> {
    world.restart_with("[guest.few]\nprocesses_max = 4\n")?;
    let script = "import os, time\nmade = 0\nfor _ in range(8):\n    try:\n        if os.fork() == 0:\n            time.sleep(1)\n            os._exit(0)\n        made += 1\n    except BlockingIOError:\n        pass\nprint(made)\n";
    let file = world.write("few.py", script)?;
    let said = world.start_as("few", &["/usr/bin/python3", &file])?.ok(LIMIT)?;
    ensure!(said.trim() == "3", "{} forks beside the first of 4 processes", said.trim());
    Ok("3 forks of 8".to_owned())
}
