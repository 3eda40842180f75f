//! The daemon, its keeper, and an NSM of its own, are killed with -9 and come back: the guests' processes live on, listeners answer
//! again, and nothing is left. Connections break with ECONNRESET where their NSM died, and go on where it is a process that lives.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::kills::keeper_is_whole;
use crate::cases::says;
use crate::leaks::describe_guest;
use crate::process::{Running, eventually, signal_pid};
use crate::procfs;
use crate::redis::Redis;
use crate::suite::{GUESTS_ONLY, Group, Test};
use crate::world::{Mode, Nsm, Side, World, free_port, wait_for_port};

const PYTHON: &str = "/usr/bin/python3";
pub(super) const ROUNDS: usize = 3;
pub(super) const RECOVERY: Duration = Duration::from_secs(15);
/// Connections made while there is no daemon.
const IN_BETWEEN: u64 = 3;

pub(super) fn tests() -> Vec<Test> {
    let test = Test::alone(Group::Safety, GUESTS_ONLY);
    vec![
        test("the daemon is killed and comes back", daemon_restarts),
        test("the keeper is killed, then the daemon", keeper_restarts),
        test("the NSM is killed and comes back", nsm_restarts),
        test("counters go on", counters_go_on),
        test("a daemon follows another at once", follows_at_once),
        test("daemon and keeper are killed together", both_die),
        Test { private: true, ..test("a private daemon is killed", private_dies) },
    ]
}

/// Two guests: a server, asked by plain clients, and a client of a plain server.
struct Guests {
    redis: Redis,
    plain_echo: Running,
    survivor: Running,
}

impl Guests {
    fn start(world: &World, mode: Mode) -> Result<Self> {
        let redis = Redis::start(world, mode.server, None)?;
        ensure!(redis.ask("SET kept through")? == "+OK", "redis does not answer");
        let script =
            world.write("threaded_echo.py", include_str!("../../programs/threaded_echo.py"))?;
        let port = free_port()?;
        let mut plain_echo =
            world.start("echo", Side::Plain, &[PYTHON, &script, "server", &port.to_string()])?;
        wait_for_port(&mut plain_echo, port)?;
        let script = world.write("survivor.py", include_str!("../../programs/survivor.py"))?;
        let survivor =
            world.start("survivor", mode.client, &[PYTHON, &script, &port.to_string(), "120"])?;
        let guests = Guests { redis, plain_echo, survivor };
        guests.talks(1)?;
        Ok(guests)
    }

    /// How often connections have broken when the daemon died this often.
    fn breaks(world: &World, deaths: usize) -> usize {
        match world.options.nsm {
            Nsm::Inline => deaths,
            Nsm::Separate => 0,
        }
    }

    /// The client has come back `count` times (the first is its start).
    fn talks(&self, count: usize) -> Result<()> {
        eventually(RECOVERY, || {
            let said = self.survivor.out();
            let again = said.lines().filter(|line| *line == "again").count();
            ensure!(
                again >= count,
                "the guest client is not back: it said {said:?} {}",
                self.survivor.err()
            );
            Ok(())
        })
    }

    /// The guest server answers, with its data.
    fn answers(&self) -> Result<()> {
        eventually(RECOVERY, || {
            ensure!(self.redis.ask("GET kept")? == "through", "redis lost its data");
            Ok(())
        })
        .context("redis as a guest")
    }

    /// Both processes live, and a connection that was open has broken: with ECONNRESET as the guest client sees it.
    fn end(mut self, breaks: usize) -> Result<String> {
        self.redis.running.must_live()?;
        self.survivor.must_live()?;
        let said = self.survivor.out();
        let resets = said.lines().filter(|line| *line == "ECONNRESET").count();
        ensure!(resets == breaks, "{breaks} ECONNRESET expected: the guest client saw {said:?}");
        self.survivor.stop(Signal::TERM, Duration::from_secs(10))?;
        self.plain_echo.stop(Signal::TERM, Duration::from_secs(10))?;
        self.redis.stop()?;
        Ok(format!("{breaks} times, each connection ECONNRESET, listener and client back"))
    }
}

fn daemon_restarts(world: &mut World, mode: Mode) -> Result<String> {
    let guests = Guests::start(world, mode)?;
    for round in 0..ROUNDS {
        world.kill_daemon()?;
        std::thread::sleep(Duration::from_millis(400));
        world.start_daemon()?;
        guests.answers()?;
        guests.talks(1 + Guests::breaks(world, round + 1))?;
    }
    guests.end(Guests::breaks(world, ROUNDS))
}

/// The next keeper must hold all that the first one held, and what came since: the daemon dies after it.
fn keeper_restarts(world: &mut World, mode: Mode) -> Result<String> {
    let guests = Guests::start(world, mode)?;
    for round in 0..ROUNDS {
        let keeper = part_pid(world, "keeper")?;
        signal_pid(keeper, Signal::KILL);
        eventually(RECOVERY, || {
            let new = part_pid(world, "keeper")?;
            ensure!(new != keeper, "the keeper is not replaced");
            Ok(())
        })?;
        keeper_is_whole(world)?;
        // Nobody noticed.
        guests.answers()?;
        guests.talks(1 + Guests::breaks(world, round))?;
        let since = Redis::start(world, mode.server, None)?;
        world.kill_daemon()?;
        world.start_daemon()?;
        guests.answers()?;
        guests.talks(1 + Guests::breaks(world, round + 1))?;
        eventually(RECOVERY, || {
            ensure!(since.ask("PING")? == "+PONG", "a guest made since does not answer");
            Ok(())
        })?;
        since.stop()?;
    }
    guests.end(Guests::breaks(world, ROUNDS))
}

fn nsm_restarts(world: &mut World, mode: Mode) -> Result<String> {
    if world.options.nsm == Nsm::Inline {
        return Ok("not with an inline NSM: it has no process of its own".to_owned());
    }
    let guests = Guests::start(world, mode)?;
    for round in 0..ROUNDS {
        kill_nsm(world)?;
        guests.answers()?;
        guests.talks(round + 2)?;
    }
    guests.end(ROUNDS)
}

/// What `nk guests` counts of a guest, by path; what rises and falls is not among it.
fn counters(world: &World, pid: u32) -> Result<Vec<(String, u64)>> {
    const GAUGES: [&str; 6] =
        ["connections_open", "sockets", "ids_granted", "rows", "queue_sets", "orphans"];
    fn walk(path: &str, v: &Value, found: &mut Vec<(String, u64)>) {
        match v {
            Value::Object(map) => {
                for (key, v) in map {
                    if !GAUGES.contains(&key.as_str()) && !key.starts_with("chunks_") {
                        walk(&format!("{path}/{key}"), v, found);
                    }
                }
            }
            v => found.extend(v.as_u64().map(|n| (path.to_owned(), n))),
        }
    }
    let guest = describe_guest(world, pid)?;
    let mut found = Vec::new();
    for part in ["engine", "nsm", "names"] {
        walk(part, guest.get(part).context(part)?, &mut found);
    }
    found.retain(|(path, _)| path != "names/resolver_pid");
    Ok(found)
}

/// No counter of a guest at rest fell, and those of bytes, connections and names are what they were.
fn compare(before: &[(String, u64)], after: &[(String, u64)]) -> Result<()> {
    for (path, n) in before {
        let now = after.iter().find(|(p, _)| p == path).map(|(_, n)| *n);
        ensure!(now >= Some(*n), "{path} was {n} and is {now:?}: {after:?}");
        let is_exact = ["bytes_", "connections_total", "names/"].iter().any(|w| path.contains(w));
        ensure!(!is_exact || now == Some(*n), "{path} was {n} and is {now:?}");
    }
    Ok(())
}

/// Bytes that the guests of the first NSM sent.
fn nsm_bytes(world: &World) -> Result<u64> {
    let all: Value = serde_json::from_str(&world.control(&["nsm", "ls", "--json"])?)?;
    let sent = all.pointer("/0/bytes_sent").and_then(Value::as_u64);
    sent.with_context(|| format!("nk nsm ls: {all}"))
}

fn counters_go_on(world: &mut World, mode: Mode) -> Result<String> {
    let redis = Redis::start(world, mode.server, None)?;
    let pid = redis.running.pid();
    let look_up = "import socket, time\nsocket.getaddrinfo('localhost', 80)\ntime.sleep(120)";
    let asks = world.start("asks", mode.client, &[PYTHON, "-c", look_up])?;
    eventually(RECOVERY, || {
        let asked = counters(world, asks.pid())?;
        ensure!(asked.contains(&("names/answered".into(), 1)), "no name asked: {asked:?}");
        Ok(())
    })?;
    for round in 0..3 * ROUNDS {
        redis.ask("SET a 0123456789")?;
        ensure!(redis.ask("GET a")? == "0123456789", "redis lost its data");
        // Until what was closed is counted as closed.
        let mut before = counters(world, pid)?;
        eventually(RECOVERY, || {
            std::thread::sleep(Duration::from_millis(50));
            let last = std::mem::replace(&mut before, counters(world, pid)?);
            ensure!(last == before, "redis does not come to rest");
            Ok(())
        })?;
        let (names, nsm) = (counters(world, asks.pid())?, nsm_bytes(world)?);
        match round % 3 {
            0 => {
                world.kill_daemon()?;
                world.start_daemon()?;
            }
            1 => world.replace_daemon()?,
            _ => connect_in_between(world, &redis)?,
        }
        let after = counters(world, pid)?;
        if round % 3 == 2 {
            let path = "engine/connections_total";
            let total =
                |all: &[(String, u64)]| all.iter().find(|(p, _)| p == path).map(|(_, n)| *n);
            let (was, is) = (total(&before).context(path)?, total(&after).context(path)?);
            ensure!(is == was + IN_BETWEEN, "{was} connections, {IN_BETWEEN} more, and now {is}");
        } else {
            compare(&before, &after)?;
        }
        let count = |path: &str| after.iter().find(|(p, _)| p == path).map_or(0, |(_, n)| *n);
        ensure!(
            ["engine/bytes_sent", "engine/connections_total", "nsm/bytes_received"]
                .iter()
                .all(|path| count(path) > 0),
            "nothing is counted: {after:?}"
        );
        compare(&names, &counters(world, asks.pid())?)?;
        ensure!(nsm_bytes(world)? >= nsm, "nk nsm ls: {nsm} bytes were sent");
    }
    asks.stop(Signal::TERM, Duration::from_secs(10))?;
    redis.stop()?;
    Ok(format!(
        "{ROUNDS} kills, {ROUNDS} replacements: bytes and connections to the last one; so {ROUNDS} times with connections in between"
    ))
}

/// Connections that an NSM accepts while nobody counts are counted all the same.
fn connect_in_between(world: &mut World, redis: &Redis) -> Result<()> {
    world.kill_daemon()?;
    let connect = |_| TcpStream::connect((Ipv4Addr::LOCALHOST, redis.port));
    let made: Vec<TcpStream> = (0..IN_BETWEEN).map(connect).collect::<Result<_, _>>()?;
    std::thread::sleep(Duration::from_millis(200));
    world.start_daemon()?;
    for mut stream in made {
        stream.set_read_timeout(Some(RECOVERY))?;
        stream.write_all(b"PING\r\n")?;
        stream.read_exact(&mut [0; 7]).context("a connection made in between")?;
    }
    Ok(())
}

/// The keeper of a daemon without guests is just ending when the next daemon looks for one.
fn follows_at_once(world: &mut World, _: Mode) -> Result<String> {
    let count = world.scaled(60);
    for n in 0..count {
        world.kill_daemon()?;
        world.start_daemon().with_context(|| format!("daemon {n}"))?;
    }
    // One that serves is told from one that ends.
    let socket = world.daemon().context("no daemon")?.socket.display().to_string();
    let words = [world.nk()?, "daemon", "--socket", &socket];
    let begun = Instant::now();
    let ended = world.start("second", Side::Plain, &words)?.finish(RECOVERY)?;
    ensure!(
        !ended.status.success() && ended.err.contains("serves"),
        "{} {}",
        ended.how(),
        ended.err
    );
    ensure!(begun.elapsed() < Duration::from_millis(900), "it took {:?}", begun.elapsed());
    Ok(format!("{count} times"))
}

/// What the sleepers in waits.py are.
const SLEEPERS: [&str; 6] = ["recv", "accept", "send", "poll", "epoll", "select"];

fn fails(said: &str, call: &str) -> bool {
    said.lines().any(|l| l.starts_with(&format!("{call} E")))
}

/// A guest with all of them, asleep.
fn sleepers(world: &World, mode: Mode) -> Result<Running> {
    let waits = world.write("waits.py", include_str!("../../programs/waits.py"))?;
    let mut guest = world.start_piped("waits", mode.server, &[PYTHON, &waits])?;
    says(&mut guest, "waits", 1)?;
    // Until the one that sends is asleep too.
    std::thread::sleep(Duration::from_millis(500));
    Ok(guest)
}

fn all_are_told(guest: &Running) -> Result<()> {
    eventually(RECOVERY, || {
        let said = guest.out();
        ensure!(SLEEPERS.iter().all(|s| fails(&said, s)), "not all were told: {said:?}");
        Ok(())
    })
}

/// What a guest calls that is served no more fails; it can still fork.
fn goes_on_alone(mut guest: Running) -> Result<()> {
    writeln!(guest.input().context("no pipe")?)?;
    let said = guest.ok(RECOVERY).context("calls of a guest that is served no more")?;
    let is_right = fails(&said, "new") && said.contains("pushes ended");
    ensure!(is_right && said.contains("fork ENETDOWN"), "{said:?}");
    Ok(())
}

/// Nobody follows a private daemon: its keeper says so.
fn private_dies(world: &mut World, mode: Mode) -> Result<String> {
    let guest = sleepers(world, mode)?;
    signal_pid(part_pid(world, "daemon")?, Signal::KILL);
    all_are_told(&guest)?;
    goes_on_alone(guest)?;
    eventually(RECOVERY, || {
        let left = world.nk_pids()?;
        ensure!(left.is_empty(), "processes are left: {left:?}");
        Ok(())
    })?;
    Ok("whoever slept was told".to_owned())
}

/// Nothing outlives both, but whoever waits is told (by the NSM's process, where there is one), and the next daemon finds nothing left.
fn both_die(world: &mut World, mode: Mode) -> Result<String> {
    let late = world.write("late_calls.py", include_str!("../../programs/late_calls.py"))?;
    for round in 0..ROUNDS {
        let guest = sleepers(world, mode)?;
        let mut calls = Vec::new();
        for call in ["connect", "recv", "recvfrom", "send"] {
            let mut p = world.start_piped(call, mode.client, &[PYTHON, &late, call])?;
            says(&mut p, "waits", 1)?;
            calls.push(p);
        }
        let keeper = part_pid(world, "keeper")?;
        let daemon = world.daemon().context("no daemon")?.running.pid();
        let (first, second) = if round % 2 == 0 { (keeper, daemon) } else { (daemon, keeper) };
        signal_pid(first, Signal::KILL);
        signal_pid(second, Signal::KILL);
        world.kill_daemon()?;
        all_are_told(&guest)?;
        // The NSM's process ends by itself.
        eventually(RECOVERY, || {
            let left = world.nk_pids()?;
            let is_guest = |p: &u32| *p == guest.pid() || calls.iter().any(|c| c.pid() == *p);
            let left: Vec<String> =
                left.into_iter().filter(|p| !is_guest(p)).map(procfs::command_line).collect();
            ensure!(left.is_empty(), "processes are left: {left:?}");
            Ok(())
        })?;
        goes_on_alone(guest)?;
        for mut p in calls {
            writeln!(p.input().context("no pipe")?)?;
            let said = p.ok(RECOVERY).context("a call of a guest that is served no more")?;
            ensure!(said.lines().nth(1).is_some_and(|l| l.starts_with('E')), "{said:?}");
        }
        world.start_daemon()?;
        let redis = Redis::start(world, mode.server, None)?;
        redis.stop()?;
    }
    Ok(format!("{ROUNDS} times; whoever slept or called was told, the next daemon serves"))
}

/// The pid of a part of the daemon that is a process of its own.
pub(super) fn part_pid(world: &World, part: &str) -> Result<u32> {
    let is_it = |pid: &u32| procfs::command_line(*pid).split(' ').nth(1) == Some(part);
    world.nk_pids()?.into_iter().find(is_it).with_context(|| format!("no {part} process"))
}

/// Kills the NSM's process and waits for the next.
pub(super) fn kill_nsm(world: &World) -> Result<()> {
    let nsm = part_pid(world, "nsm")?;
    signal_pid(nsm, Signal::KILL);
    eventually(RECOVERY, || {
        let new = part_pid(world, "nsm")?;
        ensure!(new != nsm, "the NSM is not started again");
        Ok(())
    })
}
