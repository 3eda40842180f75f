//! Several NSMs: who serves whom, who sees what, and who notices when one dies.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::load::{Wrk, WrkLoad};
use crate::nginx::Nginx;
use crate::process::{eventually, signal_pid};
use crate::suite::{Group, Test};
use crate::world::{Mode, Side, World, free_port, wait_for_listener};

const PYTHON: &str = "/usr/bin/python3";
pub(crate) const RECOVERY: Duration = Duration::from_secs(15);
/// Two NSMs in processes, each with a guest of its own.
const TWO: &str = "
[guest.one]
nsm = \"a\"
[guest.two]
nsm = \"b\"
[nsm.a]
placement = \"process\"
default = true
[nsm.b]
placement = \"process\"
cores = [0]
default = true
[nsm.c]
";

pub(crate) fn tests() -> Vec<Test> {
    // Times are told.
    let test = Test::alone(Group::Nsms, &[Mode::GUEST_SERVER]);
    vec![
        test("each NSM has its guests and sees no others", assigned),
        test("an NSM's death is its own guests' alone", alone),
        test("an NSM that gives no answer is ended", silent),
        test("an NSM lives through many sockets", many_sockets),
        test("an NSM may do nothing but its work", confined),
        test("an NSM that cannot work is refused at the start", refused),
        test("NSMs come and go with the configuration read again", reloaded),
        test("a daemon is replaced, or refuses to be", replaced),
    ]
}

/// An NSM as `nk nsm ls --json` has it.
#[derive(Debug)]
pub(crate) struct Nsm(Value);

impl Nsm {
    pub(crate) fn named(world: &World, name: &str) -> Result<Nsm> {
        let all: Vec<Value> = serde_json::from_str(&world.control(&["nsm", "ls", "--json"])?)?;
        let its = all.into_iter().find(|n| n.get("name").and_then(Value::as_str) == Some(name));
        Ok(Nsm(its.with_context(|| format!("nk nsm ls does not know {name:?}"))?))
    }
    pub(crate) fn number(&self, key: &str) -> Result<u64> {
        let n = self.0.get(key).and_then(Value::as_u64);
        n.with_context(|| format!("{key}: {:?}", self.0))
    }
    pub(crate) fn pid(&self) -> Result<u32> {
        Ok(u32::try_from(self.number("pid")?)?)
    }
    fn guests(&self) -> Vec<&str> {
        let names = self.0.get("guest_names").and_then(Value::as_array);
        names.into_iter().flatten().filter_map(Value::as_str).collect()
    }
}

/// The guests whose regions a process has mapped, by the names of their memfds.
pub(crate) fn mapped(pid: u32) -> Result<Vec<String>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let name = |line: &str| {
        let (_, rest) = line.split_once("/memfd:nk-")?;
        Some(rest.trim_end_matches(" (deleted)").to_owned())
    };
    let is_guests = |n: &String| n != "nsm" && n != "nsm-totals";
    let mut names: Vec<String> = maps.lines().filter_map(name).filter(is_guests).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

pub(crate) fn start_named(world: &mut World, mode: Mode, name: &str) -> Result<Nginx> {
    world.name_guests(Some(name));
    let nginx = Nginx::start(world, mode.server);
    world.name_guests(None);
    nginx
}

fn assigned(world: &mut World, mode: Mode) -> Result<String> {
    world.configure(TWO)?;
    let one = start_named(world, mode, "one")?;
    let two = start_named(world, mode, "two")?;
    // Two more that are assigned to none.
    let mut others = Vec::new();
    for _ in 0..2 {
        let port = free_port()?;
        let words = [PYTHON, "-m", "http.server", "--bind", "127.0.0.1", &port.to_string()];
        let mut server = world.start("python", mode.server, &words)?;
        wait_for_listener(&mut server, port)?;
        others.push(server);
    }
    for (nsm, guest) in [("a", "one"), ("b", "two")] {
        let nsm = Nsm::named(world, nsm)?;
        let guests = nsm.guests();
        ensure!(
            guests.len() == 2 && guests.contains(&guest),
            "{nsm:?} should have the guest {guest:?} and one more"
        );
        let mut guests: Vec<String> = guests.into_iter().map(str::to_owned).collect();
        guests.sort();
        let seen = mapped(nsm.pid()?)?;
        ensure!(seen == guests, "it serves {guests:?} and has the regions of {seen:?}");
    }
    ensure!(Nsm::named(world, "c")?.guests().is_empty(), "c is not for those that name none");
    // Cores: all threads.
    for task in fs::read_dir(format!("/proc/{}/task", Nsm::named(world, "b")?.pid()?))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"));
        ensure!(allowed.map(str::trim) == Some("0"), "a thread may run on {allowed:?}");
    }
    for server in others {
        server.stop(Signal::TERM, Duration::from_secs(10))?;
    }
    one.stop()?;
    two.stop()?;
    eventually(RECOVERY, || {
        for nsm in ["a", "b"] {
            let left = mapped(Nsm::named(world, nsm)?.pid()?)?;
            ensure!(left.is_empty(), "{nsm} still has the regions of {left:?}");
        }
        Ok(())
    })?;
    Ok("2 assigned, 2 balanced; each NSM maps its own guests only".to_owned())
}

/// One request over a connection of its own.
pub(crate) fn ask(port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "answered {answer:?}");
    Ok(())
}

/// An NSM stands still: whoever waits for it is told, it is ended, and the next one serves.
fn silent(world: &mut World, mode: Mode) -> Result<String> {
    world.configure(TWO)?;
    let nginx = start_named(world, mode, "one")?;
    let pid = Nsm::named(world, "a")?.pid()?;
    signal_pid(pid, Signal::STOP);
    let begun = Instant::now();
    // `nk` waits for less long than the daemon does.
    let moved = world.control(&["guest", "move", "one", "--to", "b"]);
    ensure!(moved.is_err(), "an NSM that stands still gave a guest away");
    eventually(RECOVERY * 2, || {
        let now = Nsm::named(world, "a")?;
        ensure!(now.number("restarts")? == 1 && now.pid()? != pid, "it is there still");
        Ok(())
    })?;
    let took = begun.elapsed();
    eventually(RECOVERY, || ask(nginx.port))?;
    world.control(&["guest", "move", "one", "--to", "b"])?;
    ask(nginx.port)?;
    nginx.stop()?;
    Ok(format!("ended after {} s", took.as_secs()))
}

/// A guest opens many sockets and closes them: whatever that makes the NSM's process do is among what it may do.
fn many_sockets(world: &mut World, _: Mode) -> Result<String> {
    world.configure(TWO)?;
    let script = "import socket\nfor _ in range(2):\n    all = [socket.socket() for _ in range(15000)]\n    [s.close() for s in all]\nprint('done')";
    let words = ["/usr/bin/prlimit", "--nofile=20000", "/usr/bin/python3", "-c", script];
    let said = world.start_as("one", &words)?.ok(RECOVERY * 3)?;
    ensure!(said.trim() == "done", "{said}");
    let restarts = Nsm::named(world, "a")?.number("restarts")?;
    ensure!(restarts == 0, "its NSM was started again {restarts} times");
    Ok("30,000 sockets".to_owned())
}

fn alone(world: &mut World, mode: Mode) -> Result<String> {
    world.configure(TWO)?;
    let one = start_named(world, mode, "one")?;
    let two = start_named(world, mode, "two")?;
    let url = two.url();
    let load = WrkLoad { url: &url, connections: 16, threads: 1, seconds: 6, short: false };
    let wrk = load.start(world, Side::Plain)?;
    // An idle connection of the one that will die.
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, one.port));
    let mut open = TcpStream::connect(address)?;
    open.set_read_timeout(Some(Duration::from_secs(5)))?;
    std::thread::sleep(Duration::from_millis(500));
    let mut back_ms = Vec::new();
    for round in 1..=3u64 {
        let pid = Nsm::named(world, "a")?.pid()?;
        let begun = Instant::now();
        signal_pid(pid, Signal::KILL);
        eventually(RECOVERY, || ask(one.port)).context("the guest whose NSM died")?;
        back_ms.push(begun.elapsed().as_millis());
        eventually(RECOVERY, || {
            let nsm = Nsm::named(world, "a")?;
            ensure!(nsm.number("restarts")? == round, "not restarted {round} times: {nsm:?}");
            ensure!(nsm.pid()? != pid, "the dead one is still listed");
            Ok(())
        })?;
    }
    let mut byte = [0];
    let broken = match open.read(&mut byte) {
        Ok(n) => n == 0,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    };
    ensure!(broken, "a connection of the dead NSM lives on");
    let wrk = Wrk::parse(&wrk.ok(load.limit())?)?.flawless().context("the other NSM's guest")?;
    ensure!(Nsm::named(world, "b")?.number("restarts")? == 0, "the other NSM was restarted");
    one.stop()?;
    two.stop()?;
    Ok(format!(
        "killed 3 times, a new request answered after {back_ms:?} ms (rests: 0, 100, 200); the other NSM's guest: {} requests, none failed",
        wrk.requests
    ))
}

/// Each thing that an NSM must not do ends it, and it alone.
fn confined(world: &mut World, mode: Mode) -> Result<String> {
    let probe = |what: &str| {
        let words = [world.nk()?, "nsm", "probe", what];
        world.start("probe", Side::Plain, &words)?.finish(Duration::from_secs(10))
    };
    let unharmed = probe("nothing")?;
    ensure!(unharmed.status.success(), "{} {}", unharmed.how(), unharmed.err);
    let forbidden =
        ["socket", "open", "exec", "fork", "setns", "kill", "ptrace", "io_uring", "run"];
    for what in forbidden {
        let ended = probe(what)?;
        let signal = ended.status.signal();
        ensure!(signal == Some(Signal::SYS.as_raw()), "{what}: {} {}", ended.how(), ended.err);
    }
    world.configure(TWO)?;
    let one = start_named(world, mode, "one")?;
    let nsm = Nsm::named(world, "a")?;
    for task in fs::read_dir(format!("/proc/{}/task", nsm.pid()?))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let field = |name: &str| {
            status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap_or_default()
        };
        let bits = |name| u64::from_str_radix(field(name), 16);
        // CAP_NET_BIND_SERVICE.
        ensure!(bits("CapPrm:")? & !(1 << 10) == 0, "capabilities: {status}");
        ensure!(bits("CapEff:")? & !(1 << 10) == 0, "capabilities: {status}");
        ensure!(field("NoNewPrivs:") == "1" && field("Seccomp:") == "2", "{status}");
    }
    // As the kernel ends it.
    signal_pid(nsm.pid()?, Signal::SYS);
    eventually(RECOVERY, || ask(one.port)).context("the guest whose NSM was ended")?;
    eventually(RECOVERY, || {
        let count = Nsm::named(world, "a")?.number("violations")?;
        ensure!(count == 1, "{count} violations are counted");
        Ok(())
    })?;
    ensure!(Nsm::named(world, "b")?.number("violations")? == 0, "counted for another NSM too");
    one.stop()?;
    Ok(format!("{} forbidden calls, each ended the process", forbidden.len()))
}

/// `io = "io_uring"` where there is none.
fn refused(world: &mut World, _: Mode) -> Result<String> {
    let file = world.write(
        "refused.toml",
        "[nsm.web]\nplacement = \"process\"\nio = \"io_uring\"\n[nsm.kernel]\n",
    )?;
    let socket = world.path("refused.sock");
    let words = [world.nk()?, "daemon", "--config", &file, "--socket", &socket];
    // A guest's processes cannot make a ring.
    let ended = world
        .start("daemon", Side::Guest, &words)?
        .finish(Duration::from_secs(10))
        .context("a daemon that cannot serve goes on")?;
    ensure!(
        !ended.status.success() && ended.err.contains("NSM \"web\": io = \"io_uring\""),
        "{} {}",
        ended.how(),
        ended.err
    );
    // Nor is it taken from a configuration that is read again.
    let text = "[nsm.web]\nplacement = \"process\"\n[nsm.kernel]\n";
    fs::write(&file, text)?;
    let daemon = world.start("daemon", Side::Guest, &words)?;
    eventually(RECOVERY, || {
        ensure!(daemon.err().contains("NSM process started"), "{}", daemon.err());
        Ok(())
    })?;
    fs::write(&file, text.replace("\"process\"", "\"process\"\nio = \"io_uring\""))?;
    daemon.signal(Signal::HUP)?;
    eventually(RECOVERY, || {
        let log = daemon.err();
        let is_refused =
            |l: &str| l.contains("nothing is changed") && l.contains("nsm.web: io = \"io_uring\"");
        ensure!(log.lines().any(is_refused), "{log}");
        Ok(())
    })?;
    daemon.stop(Signal::QUIT, RECOVERY)?;
    Ok("refused, with the NSM's name".to_owned())
}

/// What `nk nsm ls` names.
fn names(world: &World) -> Result<Vec<String>> {
    let all: Vec<Value> = serde_json::from_str(&world.control(&["nsm", "ls", "--json"])?)?;
    Ok(all.iter().filter_map(|n| Some(n.get("name")?.as_str()?.to_owned())).collect())
}

fn out_limit(world: &World, pid: u32) -> Result<Option<u64>> {
    let guest = crate::leaks::describe_guest(world, pid)?;
    Ok(guest.pointer("/limits/out_bytes_per_s").and_then(Value::as_u64))
}

fn reloaded(world: &mut World, mode: Mode) -> Result<String> {
    world.configure(TWO)?;
    let one = start_named(world, mode, "one")?;
    world.control(&["guest", "limit", "one", "--out", "80Mbit/s"])?;
    let file = world.dir.join("nk.toml");
    let first = fs::read_to_string(&file)?;
    let read = |world: &World, text: &str| -> Result<()> {
        fs::write(&file, text)?;
        world.daemon().context("no daemon")?.running.signal(Signal::HUP)?;
        Ok(())
    };
    // One more, and one less.
    let b = "[nsm.b]\nplacement = \"process\"\ncores = [0]\ndefault = true\n";
    ensure!(first.contains(b), "the configuration is {first}");
    let (b_pid, with_d) = (
        Nsm::named(world, "b")?.pid()?,
        first
            .replace("[guest.two]\nnsm = \"b\"", "[guest.two]\nnsm = \"d\"")
            .replace(b, "[nsm.d]\nplacement = \"process\"\n"),
    );
    read(world, &with_d)?;
    eventually(RECOVERY, || {
        let names = names(world)?;
        ensure!(names.contains(&"d".into()) && !names.contains(&"b".into()), "NSMs: {names:?}");
        ensure!(crate::procfs::is_gone(b_pid), "the removed NSM's process lives");
        Ok(())
    })?;
    let two = start_named(world, mode, "two")?;
    ask(two.port)?;
    ensure!(Nsm::named(world, "d")?.guests() == ["two"], "not assigned to the new one");
    ensure!(out_limit(world, one.running.pid())? == Some(10_000_000), "the limit was forgotten");
    // One that serves is not removed, and then nothing else is changed.
    read(world, &first)?;
    let refusal = |world: &World, what: &str| {
        eventually(RECOVERY, || {
            let log = world.daemon().context("no daemon")?.running.err();
            let said = log.lines().any(|l| l.contains("nothing is changed") && l.contains(what));
            ensure!(said, "{log}");
            Ok(())
        })
    };
    refusal(world, "nsm.d: it serves two")?;
    ensure!(!names(world)?.contains(&"b".into()), "a part of what was refused is in force");
    read(world, &with_d.replace("[nsm.c]", "[nsm.e]"))?;
    refusal(world, "--replace")?;
    ask(one.port)?;
    ask(two.port)?;
    one.stop()?;
    two.stop()?;
    // As the leak check knows it.
    eventually(RECOVERY, || {
        // Refused while the guest that ended is still known.
        read(world, &first)?;
        std::thread::sleep(Duration::from_millis(200));
        ensure!(names(world)?.contains(&"b".into()), "NSM b is not back");
        Ok(())
    })?;
    Ok("added, removed, refused twice; a limit set at run time stayed".to_owned())
}

fn replaced(world: &mut World, mode: Mode) -> Result<String> {
    world.configure(TWO)?;
    let one = start_named(world, mode, "one")?;
    world.control(&["guest", "limit", "one", "--out", "80Mbit/s", "--weight", "3"])?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, one.port));
    let mut open = TcpStream::connect(address)?;
    open.set_read_timeout(Some(Duration::from_secs(5)))?;
    ask(one.port)?;
    let nsm = Nsm::named(world, "a")?.pid()?;
    let daemon = |world: &World| world.daemon().map(|d| d.running.pid()).context("no daemon");
    // With a wrong configuration the one that serves goes on serving.
    let wrong = world.write("wrong.toml", "\n[nsm.a]\nplacement = \"moon\"\n")?;
    let socket = world.path("nk.sock");
    let words = [world.nk()?, "daemon", "--replace", "--socket", &socket, "--config", &wrong];
    let ended = world.start("daemon", Side::Plain, &words)?.finish(Duration::from_secs(10))?;
    ensure!(
        !ended.status.success() && ended.err.contains("line 3"),
        "{} {}",
        ended.how(),
        ended.err
    );
    ask(one.port)?;
    let mut pids = vec![daemon(world)?];
    for _ in 0..3 {
        world.replace_daemon()?;
        pids.push(daemon(world)?);
        ask(one.port)?;
    }
    pids.dedup();
    ensure!(pids.len() == 4, "not replaced: {pids:?}");
    ensure!(Nsm::named(world, "a")?.pid()? == nsm, "the NSM was started again");
    ensure!(Nsm::named(world, "a")?.guests() == ["one"], "the guest is elsewhere");
    ensure!(out_limit(world, one.running.pid())? == Some(10_000_000), "the limit was forgotten");
    open.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    open.read_to_string(&mut answer).context("a connection from before")?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "answered {answer:?}");
    one.stop()?;
    Ok("3 times; limits, assignment and an idle connection as before; refused with a wrong configuration".to_owned())
}
