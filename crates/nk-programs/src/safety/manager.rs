//! What a service manager sees of the daemon: the unit file, and the words of sd_notify, heard on a socket of the test's own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::kills::keeper_is_whole;
use super::restart::{RECOVERY, part_pid};
use crate::process::{eventually, signal_pid};
use crate::redis::Redis;
use crate::suite::{Group, Test};
use crate::world::{Mode, Side, World};

const PYTHON: &str = "/usr/bin/python3";
const UNIT: &str = include_str!("../../../../contrib/systemd/netkernel.service");
/// Those of `nk metrics`, which belong together.
const METRICS: [(&str, &str); 2] = [
    (
        "netkernel-metrics.socket",
        include_str!("../../../../contrib/systemd/netkernel-metrics.socket"),
    ),
    (
        "netkernel-metrics@.service",
        include_str!("../../../../contrib/systemd/netkernel-metrics@.service"),
    ),
];
/// Waits for bytes that never come, and says how that ended.
const GUEST: &str = "
import errno, socket
near, far = socket.socket(), socket.socket()
far.bind(('127.0.0.1', 0)); far.listen(1)
near.connect(far.getsockname())
print('waits', flush=True)
try:
    print('got', near.recv(1), flush=True)
except OSError as e:
    print('got', errno.errorcode[e.errno], flush=True)
";

/// The same, in poll.
const POLLER: &str = "
import errno, select, socket
near, far = socket.socket(), socket.socket()
far.bind(('127.0.0.1', 0)); far.listen(1)
near.connect(far.getsockname())
p = select.poll(); p.register(near, select.POLLIN)
print('waits', flush=True)
p.poll()
try:
    print('got', near.recv(1), flush=True)
except OSError as e:
    print('got', errno.errorcode[e.errno], flush=True)
";

/// A server of TCP and UDP that takes every error for a passing one; how many in two seconds.
const SERVER: &str = "
import errno, select, socket, time
tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
calls, p, said, end = {}, select.epoll(), 0, None
for s, call in ((tcp, tcp.accept), (udp, lambda: udp.recv(1))):
    s.bind(('127.0.0.1', 0)); s.setblocking(False); p.register(s, select.EPOLLIN); calls[s.fileno()] = call
tcp.listen(9)
print('waits', flush=True)
while end is None or time.monotonic() < end:
    for fd, _ in p.poll():
        try:
            calls[fd]()
        except OSError as e:
            end, said = end or time.monotonic() + 2, said + 1
print('got E in', said, flush=True)
";
/// What it may be told in that time, at ten a second.
const SERVER_TOLD_MAX: u32 = 30;

pub(super) fn tests() -> Vec<Test> {
    let test = Test::alone(Group::Safety, &[Mode::GUEST_SERVER]);
    vec![
        test("the systemd units are right", units),
        test("a service manager is told how the daemon fares", told),
        test("a daemon that ends tells its guests also without a keeper", without_keeper),
        test("a keeper that is stopped holds nobody up, and is replaced", keeper_stops),
    ]
}

fn units(world: &mut World, _: Mode) -> Result<String> {
    let (line, own) = ("/usr/local/bin/nk", world.nk()?.to_owned());
    ensure!(UNIT.contains(&format!("{line} daemon")), "the unit does not start {line:?}");
    let text = UNIT.replace(line, &own);
    for (name, text) in METRICS {
        world.write(name, text.replace(line, &own))?;
    }
    let [(socket, _), (scrape, _)] = METRICS;
    world.write("netkernel.service", &text)?;
    for name in ["netkernel.service", socket, scrape] {
        let (is_right, said) = verify(world, name)?;
        ensure!(is_right, "{name}: {said}");
    }
    world.write("netkernel.service", text.replace("KillMode=process", "KillMode=moon"))?;
    let (is_right, _) = verify(world, "netkernel.service")?;
    ensure!(!is_right, "systemd-analyze finds no mistake in {text}");
    Ok("systemd-analyze verify has nothing to say".to_owned())
}

/// Whether a unit in the test's directory is right, and what is said of it.
fn verify(world: &World, name: &str) -> Result<(bool, String)> {
    let output = Command::new("/usr/bin/systemd-analyze")
        .args(["verify", "--man=no", &world.path(name)])
        .output()
        .context("systemd-analyze, of Debian's package systemd")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let own: Vec<&str> = said.lines().filter(|l| l.contains("netkernel")).collect();
    Ok((output.status.success() && own.is_empty(), own.join("; ")))
}

/// The words of one message.
fn words(manager: &UnixDatagram) -> Result<BTreeSet<String>> {
    let mut bytes = [0; 1024];
    let n = manager.recv(&mut bytes).context("the manager hears nothing")?;
    let text = std::str::from_utf8(bytes.get(..n).unwrap_or_default())?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn told(world: &mut World, _: Mode) -> Result<String> {
    let (socket, notify) = (world.path("told.sock"), world.path("notify"));
    let config = world.write("told.toml", "[nsm.kernel]\nplacement = \"process\"\n")?;
    let manager = UnixDatagram::bind(&notify)?;
    manager.set_read_timeout(Some(Duration::from_secs(10)))?;
    let before: BTreeSet<u32> = world.nk_pids()?.into_iter().collect();
    let start = |more: &[&str]| {
        let all = ["daemon", "--socket", &socket, "--config", &config];
        let all = [&[world.nk()?], &all[..], more].concat();
        world.start_with("told", Side::Plain, &all, |c| {
            c.env("NOTIFY_SOCKET", &notify);
        })
    };
    let is = |want: &[&str]| -> Result<()> {
        let said = words(&manager)?;
        ensure!(want.iter().all(|w| said.contains(*w)), "{want:?} expected: {said:?}");
        Ok(())
    };
    let first = start(&[])?;
    is(&["READY=1"])?;
    // Its words are the last daemon's, not those of a private one below a service of its own.
    let run = [world.nk()?, "run", "--engine", &socket, "--", PYTHON, "-c", GUEST];
    let mut guest = world.start("waits", Side::Plain, &run)?;
    crate::cases::says(&mut guest, "waits", 1)?;
    first.signal(Signal::HUP)?;
    let said = words(&manager)?;
    let when = said.iter().find_map(|w| w.strip_prefix("MONOTONIC_USEC=")).map(str::parse::<u64>);
    ensure!(said.contains("RELOADING=1") && matches!(when, Some(Ok(1..))), "{said:?}");
    is(&["READY=1"])?;
    // A wrong one is not the end of reloading either.
    fs::write(&config, "[nsm.kernel]\nplacement = \"moon\"\n")?;
    first.signal(Signal::HUP)?;
    is(&["RELOADING=1"])?;
    is(&["READY=1"])?;
    fs::write(&config, "[nsm.kernel]\nplacement = \"process\"\n")?;
    let second = start(&["--replace"])?;
    is(&[&format!("MAINPID={}", second.pid())])?;
    is(&["READY=1"])?;
    ensure!(first.finish_alone(RECOVERY)?.status.success(), "the first daemon failed");
    let left = |world: &World| -> Result<Vec<u32>> {
        let now = world.nk_pids()?.into_iter();
        Ok(now.filter(|pid| !before.contains(pid) && *pid != guest.pid()).collect())
    };
    ensure!(left(world)?.len() == 3, "daemon, keeper and NSM: {:?}", left(world)?);
    // As KillMode=process does it, and nothing else is signalled.
    let begun = Instant::now();
    second.signal(Signal::QUIT)?;
    is(&["STOPPING=1"])?;
    ensure!(second.finish_alone(RECOVERY)?.status.success(), "SIGQUIT is no clean end");
    let took = begun.elapsed();
    eventually(RECOVERY, || {
        let pids = left(world)?;
        ensure!(pids.is_empty(), "processes are left: {pids:?}");
        Ok(())
    })?;
    let said = guest.ok(RECOVERY)?;
    ensure!(said.contains("got E"), "the guest was not told: {said:?}");
    let got = said.lines().last().unwrap_or_default().to_owned();
    Ok(format!(
        "ready, reloading, main pid, stopping; ended in {} ms; the guest {got}",
        took.as_millis()
    ))
}

/// SIGQUIT comes when the keeper has just died: nobody but the daemon is left to tell the guests.
fn without_keeper(world: &mut World, mode: Mode) -> Result<String> {
    let mut guests = Vec::new();
    for (name, program) in [("waits", GUEST), ("polls", POLLER), ("serves", SERVER)] {
        let mut guest = world.start(name, mode.server, &[PYTHON, "-c", program])?;
        crate::cases::says(&mut guest, "waits", 1)?;
        guests.push(guest);
    }
    let daemon = world.daemon().context("no daemon")?.running.pid();
    let keeper = part_pid(world, "keeper")?;
    // It learns of both at once, of the keeper's end first.
    signal_pid(daemon, Signal::STOP);
    signal_pid(keeper, Signal::KILL);
    eventually(RECOVERY, || {
        ensure!(crate::procfs::is_gone(keeper), "the keeper lives");
        Ok(())
    })?;
    signal_pid(daemon, Signal::QUIT);
    signal_pid(daemon, Signal::CONT);
    for guest in guests {
        let name = guest.name().to_owned();
        let said = guest.ok(RECOVERY).with_context(|| format!("{name} was not told"))?;
        ensure!(said.contains("got E"), "{name}: {said:?}");
        if let Some((_, times)) = said.split_once("got E in ") {
            let times: u32 = times.trim().parse().context("a number")?;
            ensure!((2..SERVER_TOLD_MAX).contains(&times), "{name} was told {times} times");
        }
    }
    world.kill_daemon()?;
    world.start_daemon()?;
    Ok("one in recv, one in poll, one that serves: all told".to_owned())
}

/// It takes what fits its socket, and then nothing more.
fn keeper_stops(world: &mut World, mode: Mode) -> Result<String> {
    const PROCESSES: &str = "i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i+1)); done";
    let redis = Redis::start(world, mode.server, None)?;
    ensure!(redis.ask("SET kept through")? == "+OK", "redis does not answer");
    let keeper = part_pid(world, "keeper")?;
    signal_pid(keeper, Signal::STOP);
    let mut runs = 0;
    while !crate::procfs::is_gone(keeper) {
        ensure!(runs < 10, "the keeper lives, with what {runs} x 100 processes had to be kept");
        runs += 1;
        world.run(mode.server, &["/bin/sh", "-c", PROCESSES], RECOVERY)?;
    }
    eventually(RECOVERY, || part_pid(world, "keeper").map(drop))?;
    keeper_is_whole(world)?;
    world.kill_daemon()?;
    world.start_daemon()?;
    eventually(RECOVERY, || {
        ensure!(redis.ask("GET kept")? == "through", "redis lost its data");
        Ok(())
    })?;
    redis.stop()?;
    Ok(format!("with {runs} x 100 processes; the next keeper had everything"))
}
