//! A guest is moved from one NSM to another: nothing that it serves notices.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::Value;

use crate::load::{Wrk, WrkLoad};
use crate::nginx::Nginx;
use crate::nsms::{Nsm, RECOVERY, ask, mapped, start_named};
use crate::process::{Running, eventually, signal_pid};
use crate::redis::Redis;
use crate::suite::{Group, Test};
use crate::world::{Mode, Side, World, free_port, wait_for_listener};

const PYTHON: &str = "/usr/bin/python3";
/// From process to process, to inline and back.
const ROUND: [&str; 6] = ["b", "a", "c", "b", "c", "a"];
/// Bytes of what is downloaded, and per second.
const FILE: usize = 24 << 20;
const SLOWLY: &str = "6M";

pub(crate) fn tests() -> Vec<Test> {
    let test = Test::alone(Group::Nsms, &[Mode::GUEST_SERVER]);
    vec![
        test("nginx is moved under load", nginx),
        test("redis is moved under load", redis),
        test("a UDP server is moved", datagrams),
        test("an NSM dies that a guest was moved from or to", deaths),
        test("the daemon dies while a guest is on two NSMs", daemon),
        test("a move that cannot be made changes nothing", refused),
        test("a listener that the next NSM cannot take is closed", lost),
    ]
}

/// Two NSMs in processes and one inline; `nsm`: those of the guest.
pub(crate) fn three(nsm: &[&str]) -> String {
    let processes = ["a", "b"].map(|name| format!("[nsm.{name}]\nplacement = \"process\"\n"));
    let all = processes.concat();
    format!("[guest.one]\nnsm = {nsm:?}\n{all}[nsm.c]\nplacement = \"inline\"\n")
}

fn move_to(world: &World, nsm: &str) -> Result<()> {
    world.control(&["guest", "move", "one", "--to", nsm]).map(drop)
}

/// Moves the guest round and round for at least this long; how often.
fn move_about(world: &World, time: Duration, rest: Duration) -> Result<u32> {
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < time {
        for nsm in ROUND {
            move_to(world, nsm).with_context(|| format!("after {count} moves"))?;
            count += 1;
            thread::sleep(rest);
        }
    }
    Ok(count)
}

/// The guest as `nk guest ls --json` has it.
fn guest(world: &World) -> Result<Value> {
    let all: Vec<Value> = serde_json::from_str(&world.control(&["guest", "ls", "--json"])?)?;
    let its = all.into_iter().find(|g| g.get("name").and_then(Value::as_str) == Some("one"));
    its.context("nk guest ls does not know it")
}

/// Waits until the guest is on one NSM alone.
fn settled(world: &World, on: &str) -> Result<()> {
    eventually(RECOVERY, || {
        let g = guest(world)?;
        let by_nsm = g.get("nsm_sockets").and_then(Value::as_object).context("nsm_sockets")?;
        let only: Vec<&String> = by_nsm.keys().collect();
        ensure!(g.get("nsm_name").and_then(Value::as_str) == Some(on), "it is elsewhere: {g}");
        ensure!(only == [on], "others have sockets of it: {by_nsm:?}");
        for name in ["a", "b", "c"] {
            let nsm = Nsm::named(world, name)?;
            let (guests, sockets) = (nsm.number("guests")?, nsm.number("sockets")?);
            let is_its = name == on;
            ensure!(guests == u64::from(is_its) && (sockets > 0) == is_its, "{nsm:?}");
            // The inline one is the daemon, which has all of them.
            if name != "c" {
                let seen = mapped(nsm.pid()?)?;
                ensure!(seen.is_empty() != is_its, "{name} has the regions of {seen:?}");
            }
        }
        Ok(())
    })
}

/// A file of noise below `/files/`, and its checksum.
fn file(world: &World, nginx: &Nginx) -> Result<String> {
    let path = nginx.files(world).join("noise");
    let mut noise = vec![0; FILE];
    fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
    fs::write(&path, noise)?;
    world.sha256(&path.display().to_string())
}

/// A download that takes some seconds.
fn download(world: &World, nginx: &Nginx, name: &str) -> Result<Running> {
    let url = format!("{}files/noise", nginx.url());
    let path = world.path(name);
    let words = ["/usr/bin/curl", "-sSf", "--limit-rate", SLOWLY, "-o", &path, &url];
    world.start("curl", Side::Plain, &words)
}

fn nginx(world: &mut World, mode: Mode) -> Result<String> {
    world.configure(&three(&["a"]))?;
    let nginx = start_named(world, mode, "one")?;
    let sum = file(world, &nginx)?;
    let url = nginx.url();
    let load = |short| WrkLoad { url: &url, connections: 8, threads: 1, seconds: 8, short };
    let kept = load(false).start(world, Side::Plain)?;
    let short = load(true).start(world, Side::Plain)?;
    thread::sleep(Duration::from_millis(300));
    let mut downloads = Vec::new();
    let mut moves = 0;
    for n in 0..3 {
        let name = format!("down-{n}");
        downloads.push((download(world, &nginx, &name)?, name));
        moves += move_about(world, Duration::from_millis(1500), Duration::from_millis(150))?;
    }
    let mut requests = Vec::new();
    for (wrk, what) in [(kept, "keep-alive"), (short, "a connection per request")] {
        let wrk = Wrk::parse(&wrk.ok(load(false).limit())?)?.flawless().context(what)?;
        requests.push(wrk.requests);
    }
    for (curl, name) in downloads {
        curl.ok(Duration::from_secs(30)).context("a download")?;
        let path = world.path(&name);
        ensure!(world.sha256(&path)? == sum, "the file that was downloaded differs");
    }
    settled(world, "a")?;
    ask(nginx.port)?;
    let complaints = nginx.complaints(world)?;
    ensure!(complaints.is_empty(), "nginx complains: {complaints:?}");
    nginx.stop()?;
    Ok(format!("moved {moves} times; {requests:?} requests and 3 downloads, none failed"))
}

fn redis(world: &mut World, mode: Mode) -> Result<String> {
    world.configure(&three(&["a"]))?;
    world.name_guests(Some("one"));
    let redis = Redis::start(world, mode.server, None)?;
    world.name_guests(None);
    let port = redis.port.to_string();
    let words = ["/usr/bin/redis-benchmark", "-h", "127.0.0.1", "-p", &port, "--csv"];
    // Kept connections, then one for each request.
    let kept = [&words[..], &["-n", "200000", "-P", "4", "-t", "set,get,incr"]].concat();
    let short = [&words[..], &["-n", "20000", "-k", "0", "-c", "20", "-t", "get"]].concat();
    let runs = [
        world.start("redis-benchmark", Side::Plain, &kept)?,
        world.start("redis-benchmark", Side::Plain, &short)?,
    ];
    let moves = move_about(world, Duration::from_secs(4), Duration::from_millis(100))?;
    for run in runs {
        let ended = run.finish(Duration::from_secs(120))?;
        let said = format!("{}{}", ended.out, ended.err);
        ensure!(ended.status.success() && !said.contains("rror"), "{} {said}", ended.how());
    }
    let counter = redis.ask("GET counter:__rand_int__")?;
    ensure!(counter == "200000", "200000 times incremented it is {counter}");
    settled(world, "a")?;
    redis.stop()?;
    Ok(format!("moved {moves} times; 620000 commands, none failed"))
}

const ECHO: &str = "
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', int(sys.argv[1])))
while True:
    data, peer = s.recvfrom(65535)
    s.sendto(data, peer)
";

/// Datagrams of all lengths, a few under way at any time: each comes back, once and whole.
fn datagrams(world: &mut World, mode: Mode) -> Result<String> {
    // Together no more than a socket takes by itself.
    const UNDER_WAY: usize = 4;
    world.configure(&three(&["a"]))?;
    world.name_guests(Some("one"));
    let port = free_port()?;
    let server = world.start("echo", mode.server, &[PYTHON, "-c", ECHO, &port.to_string()])?;
    world.name_guests(None);
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    client.connect((Ipv4Addr::LOCALHOST, port))?;
    client.set_read_timeout(Some(Duration::from_millis(200)))?;
    eventually(Duration::from_secs(10), || {
        let _ = client.send(b"?");
        let mut answer = [0; 16];
        ensure!(client.recv(&mut answer)? == 1, "an odd answer");
        Ok(())
    })?;
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    let is_over = AtomicBool::new(false);
    let exchange = || -> Result<u32> {
        let datagram = |n: u32| {
            let mut d = vec![n as u8; 4 + n as usize * 37 % 20_000];
            d.splice(..4, n.to_le_bytes());
            d
        };
        let mut answer = vec![0; 65_536];
        let mut n = 0u32;
        while !is_over.load(Ordering::Relaxed) {
            for i in 0..UNDER_WAY as u32 {
                client.send(&datagram(n + i))?;
            }
            for i in 0..UNDER_WAY as u32 {
                let len = client.recv(&mut answer).with_context(|| format!("answer {}", n + i))?;
                ensure!(
                    answer.get(..len) == Some(&datagram(n + i)[..]),
                    "answer {} differs",
                    n + i
                );
            }
            n += UNDER_WAY as u32;
        }
        Ok(n)
    };
    let (moves, count) = thread::scope(|scope| {
        let exchange = scope.spawn(exchange);
        let moves = move_about(world, Duration::from_secs(3), Duration::from_millis(60));
        is_over.store(true, Ordering::Relaxed);
        (moves, exchange.join())
    });
    let count = count.map_err(|_| anyhow::anyhow!("the client panicked"))??;
    settled(world, "a")?;
    server.stop(Signal::TERM, Duration::from_secs(10))?;
    Ok(format!("moved {} times; {count} datagrams came back", moves?))
}

/// Connections that are kept open, each with one request answered.
fn idle_connections(port: u16, count: usize) -> Result<Vec<TcpStream>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    (0..count)
        .map(|_| {
            let mut c = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            c.set_read_timeout(Some(Duration::from_secs(5)))?;
            again(&mut c)?;
            Ok(c)
        })
        .collect()
}

/// One more request on a connection.
fn again(c: &mut TcpStream) -> Result<()> {
    c.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while !answer.windows(4).any(|w| w == b"\r\n\r\n") {
        match c.read(&mut part)? {
            0 => bail!("the end came after {} bytes", answer.len()),
            n => answer.extend_from_slice(part.get(..n).unwrap_or_default()),
        }
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn is_reset(c: &mut TcpStream) -> bool {
    match c.read(&mut [0]) {
        Ok(n) => n == 0,
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

fn deaths(world: &mut World, mode: Mode) -> Result<String> {
    world.configure(&three(&["a"]))?;
    let nginx = start_named(world, mode, "one")?;
    let sum = file(world, &nginx)?;
    let mut on_a = idle_connections(nginx.port, 8)?;
    move_to(world, "b")?;
    let mut on_b = idle_connections(nginx.port, 8)?;
    let url = nginx.url();
    let load = WrkLoad { url: &url, connections: 8, threads: 1, seconds: 4, short: true };
    let wrk = load.start(world, Side::Plain)?;
    let curl = download(world, &nginx, "down")?;
    thread::sleep(Duration::from_secs(1));
    // The one that it left.
    signal_pid(Nsm::named(world, "a")?.pid()?, Signal::KILL);
    eventually(RECOVERY, || {
        let restarts = Nsm::named(world, "a")?.number("restarts")?;
        ensure!(restarts == 1, "{restarts} restarts");
        Ok(())
    })?;
    ensure!(on_a.iter_mut().all(is_reset), "a connection of the dead NSM lives on");
    on_b.iter_mut().try_for_each(again).context("a connection of the other NSM")?;
    let wrk = Wrk::parse(&wrk.ok(load.limit())?)?.flawless().context("new connections")?;
    curl.ok(Duration::from_secs(30)).context("a download")?;
    ensure!(world.sha256(&world.path("down"))? == sum, "the file that was downloaded differs");
    settled(world, "b")?;
    // The one that it was moved to, while the other has connections.
    let curl = download(world, &nginx, "down")?;
    thread::sleep(Duration::from_millis(300));
    move_to(world, "a")?;
    let mut on_a = idle_connections(nginx.port, 8)?;
    signal_pid(Nsm::named(world, "a")?.pid()?, Signal::KILL);
    eventually(RECOVERY, || ask(nginx.port)).context("a new connection")?;
    ensure!(on_a.iter_mut().all(is_reset), "a connection of the dead NSM lives on");
    on_b.iter_mut().try_for_each(again).context("a connection of the old NSM")?;
    curl.ok(Duration::from_secs(30)).context("a download")?;
    ensure!(world.sha256(&world.path("down"))? == sum, "the file that was downloaded differs");
    drop(on_b);
    settled(world, "a")?;
    ask(nginx.port)?;
    nginx.stop()?;
    Ok(format!(
        "each reset its own 8 connections; {} requests beside that, none failed",
        wrk.requests
    ))
}

fn daemon(world: &mut World, mode: Mode) -> Result<String> {
    world.configure(&three(&["a"]))?;
    let nginx = start_named(world, mode, "one")?;
    let sum = file(world, &nginx)?;
    let mut on_a = idle_connections(nginx.port, 8)?;
    let lost = download(world, &nginx, "lost")?;
    thread::sleep(Duration::from_millis(300));
    move_to(world, "b")?;
    let mut on_b = idle_connections(nginx.port, 8)?;
    let curl = download(world, &nginx, "down")?;
    thread::sleep(Duration::from_millis(500));
    world.kill_daemon()?;
    thread::sleep(Duration::from_millis(200));
    world.start_daemon()?;
    ensure!(on_a.iter_mut().all(is_reset), "what it left on another NSM lives on");
    let lost = lost.finish(Duration::from_secs(30))?;
    ensure!(!lost.status.success(), "a download on the NSM that it left was not cut off");
    on_b.iter_mut().try_for_each(again).context("a connection of its NSM")?;
    curl.ok(Duration::from_secs(30)).context("a download")?;
    ensure!(world.sha256(&world.path("down"))? == sum, "the file that was downloaded differs");
    settled(world, "b")?;
    // The next daemon moves it as the last one did.
    move_to(world, "c")?;
    on_b.iter_mut().try_for_each(again).context("after another move")?;
    ask(nginx.port)?;
    drop(on_b);
    settled(world, "c")?;
    nginx.stop()?;
    Ok("8 connections and a download of its NSM went on, 8 of the other were reset".to_owned())
}

fn refused(world: &mut World, mode: Mode) -> Result<String> {
    world.configure(&three(&["a"]))?;
    let nginx = start_named(world, mode, "one")?;
    let why = |words: [&str; 4]| match world.control(&[&["guest"], &words[..]].concat()) {
        Ok(_) => bail!("{words:?} was done"),
        Err(e) => Ok(format!("{e:#}")),
    };
    let no_nsm = why(["move", "one", "--to", "d"])?;
    ensure!(no_nsm.contains("no NSM \"d\"; there are: a, b, c"), "{no_nsm}");
    let no_guest = why(["move", "two", "--to", "b"])?;
    ensure!(no_guest.contains("no guest \"two\""), "{no_guest}");
    let no_word = why(["move", "one two", "--to", "b"])?;
    ensure!(no_word.contains("one word"), "{no_word}");
    move_to(world, "a")?;
    settled(world, "a")?;
    ask(nginx.port)?;
    nginx.stop()?;
    Ok("refused, and said why".to_owned())
}

/// One listener, and one connection that stays.
const HOLD: &str = "import socket, sys, time
s = socket.create_server(('127.0.0.1', int(sys.argv[1])))
kept = s.accept()
time.sleep(100)
";

/// Nobody is left who would serve it: the host must not listen in the name of a guest that does not.
fn lost(world: &mut World, _mode: Mode) -> Result<String> {
    world.configure(&three(&["a"]))?;
    let port = free_port()?;
    let mut server = world.start_as("one", &[PYTHON, "-c", HOLD, &port.to_string()])?;
    wait_for_listener(&mut server, port)?;
    move_to(world, "b")?;
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // With it the guest stays known to the second, which then needs no descriptor but the listener's.
    let _kept = TcpStream::connect(at)?;
    eventually(RECOVERY, || {
        let sockets = Nsm::named(world, "b")?.number("sockets")?;
        ensure!(sockets == 2, "{sockets} sockets");
        Ok(())
    })?;
    move_to(world, "a")?;
    let pid = Nsm::named(world, "b")?.pid()?;
    // It has more already; poll takes as many entries.
    let none = Rlimit { current: Some(4), maximum: Some(4) };
    let whom = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no pid")?;
    prlimit(Some(whom), Resource::Nofile, none)?;
    move_to(world, "b")?;
    ensure!(Nsm::named(world, "b")?.pid()? == pid, "the second NSM ended");
    eventually(RECOVERY, || match TcpStream::connect_timeout(&at, Duration::from_secs(1)) {
        Ok(_) => bail!("the host still listens"),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => Err(e.into()),
    })?;
    Ok("connects are refused".to_owned())
}
