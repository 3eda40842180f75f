//! A guest whose sockets are spread over several NSMs.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::load::{Wrk, WrkLoad};
use crate::nsms::{Nsm, RECOVERY, start_named};
use crate::process::{eventually, signal_pid};
use crate::suite::{Group, Test};
use crate::world::{Mode, Side, World};

/// Two NSMs in processes and one inline, all for one guest.
const SPREAD: &str = "
[guest.one]
nsm = [\"a\", \"b\", \"c\"]
[nsm.a]
placement = \"process\"
[nsm.b]
placement = \"process\"
[nsm.c]
placement = \"inline\"
";
const CONNECTIONS: u32 = 48;

pub(crate) fn tests() -> Vec<Test> {
    let test = Test::alone(Group::Nsms, &[Mode::GUEST_SERVER]);
    vec![
        test("a guest is spread over three NSMs", spread),
        test("the daemon dies and is replaced while a guest is spread", daemon),
    ]
}

/// How many sockets of the guest each NSM has.
fn sockets(world: &World) -> Result<BTreeMap<String, u64>> {
    let all: Vec<Value> = serde_json::from_str(&world.control(&["guests", "--json"])?)?;
    let its = all.iter().find(|g| g["name"] == "one").context("nk guests does not know it")?;
    let by_nsm = its["nsm_sockets"].as_object().context("nsm_sockets")?;
    Ok(by_nsm.iter().map(|(name, n)| (name.clone(), n.as_u64().unwrap_or(0))).collect())
}

/// What each NSM has, if none has more than twice what another has.
fn shared_out(world: &World) -> Result<BTreeMap<String, u64>> {
    let by_nsm = sockets(world)?;
    let ends = by_nsm.values().min().zip(by_nsm.values().max());
    ensure!(by_nsm.len() == 3 && ends.is_some_and(|(few, many)| *many <= 2 * few), "{by_nsm:?}");
    Ok(by_nsm)
}

/// A request on a connection that is kept, answered.
fn ask(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut answer = [0; 4096];
    let n = stream.read(&mut answer)?;
    ensure!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{:?}",
        String::from_utf8_lossy(answer.get(..n).unwrap_or(&[]))
    );
    Ok(())
}

/// New connections are answered at once after each, and no socket is left over.
fn daemon(world: &mut World, mode: Mode) -> Result<String> {
    world.configure(&SPREAD.replace("inline", "process"))?;
    let nginx = start_named(world, mode, "one")?;
    let before = sockets(world)?.values().sum::<u64>();
    let mut kept = Vec::new();
    for turn in 0..6 {
        let connect = || -> Result<TcpStream> {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, nginx.port))?;
            stream.set_read_timeout(Some(RECOVERY))?;
            Ok(stream)
        };
        let fresh: Vec<TcpStream> =
            (0..CONNECTIONS / 2).map(|_| connect()).collect::<Result<_>>()?;
        kept.extend(fresh);
        if turn % 2 == 0 {
            world.kill_daemon()?;
            world.start_daemon()?;
        } else {
            world.replace_daemon()?;
        }
        for n in 0..20 {
            let asked = connect().and_then(|mut stream| ask(&mut stream));
            asked.with_context(|| format!("request {n} after {turn}"))?;
        }
        // Some went on, and those that did not say so at once.
        let lives = |stream: &mut TcpStream| match ask(stream) {
            Ok(()) => Ok(true),
            Err(e)
                if e.downcast_ref::<std::io::Error>()
                    .is_some_and(|e| e.kind() == ErrorKind::WouldBlock) =>
            {
                Err(e).with_context(|| format!("a connection hangs after {turn}"))
            }
            Err(_) => Ok(false),
        };
        let mut on = Vec::new();
        for mut stream in kept.drain(..) {
            if lives(&mut stream)? {
                on.push(stream);
            }
        }
        ensure!(!on.is_empty(), "none of the present NSM's connections went on after {turn}");
        kept = on;
    }
    let on = kept.len();
    drop(kept);
    eventually(RECOVERY, || {
        let left = sockets(world)?.values().sum::<u64>();
        ensure!(left == before, "{left} sockets are left, {before} were there before");
        Ok(())
    })?;
    nginx.stop()?;
    Ok(format!("6 times; {on} connections were there at the end"))
}

fn spread(world: &mut World, mode: Mode) -> Result<String> {
    world.configure(SPREAD)?;
    let nginx = start_named(world, mode, "one")?;
    // Connections that stay, all at once.
    let connect = || -> Result<TcpStream> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, nginx.port))?;
        stream.set_read_timeout(Some(RECOVERY))?;
        Ok(stream)
    };
    let mut kept: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect()).collect::<Result<_>>()?;
    kept.iter_mut().try_for_each(ask).context("on connections that stay")?;
    let before = eventually(RECOVERY, || shared_out(world))?;

    // Others come and go, which moves it on and on, and it answers all of them.
    let url = nginx.url();
    let load =
        |connections, short| WrkLoad { url: &url, connections, threads: 1, seconds: 2, short };
    let running = load(16, false).start(world, Side::Plain)?;
    let short = Wrk::parse(&load(8, true).start(world, Side::Plain)?.ok(load(8, true).limit())?)?
        .flawless()?;
    let long = Wrk::parse(&running.ok(load(16, false).limit())?)?.flawless()?;
    kept.iter_mut().try_for_each(ask).context("on connections that stayed")?;

    // One dies: its connections and no others.
    let dead = Nsm::named(world, "a")?;
    let its = sockets(world)?.get("a").copied().unwrap_or(0);
    let (pid, restarts) = (dead.pid()?, dead.number("restarts")?);
    signal_pid(pid, Signal::KILL);
    eventually(RECOVERY, || {
        let now = Nsm::named(world, "a")?;
        ensure!(now.number("restarts")? > restarts, "it was not started again");
        now.pid().map(drop)
    })?;
    let lost = kept.iter_mut().map(ask).filter(Result::is_err).count() as u64;
    ensure!(lost > 0 && lost <= its, "{lost} connections are lost, {its} were its");
    // It gets its share again, which is not exact: the load has used up most of the moves.
    thread::sleep(Duration::from_millis(1200));
    let mut more: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect()).collect::<Result<_>>()?;
    more.iter_mut().try_for_each(ask).context("after a death")?;
    let after = sockets(world)?;
    ensure!(after.get("a").is_some_and(|n| *n >= u64::from(CONNECTIONS) / 4), "{after:?}");
    drop((kept, more));
    nginx.stop()?;
    Ok(format!("{before:?}, then {after:?}; {} + {} requests", short.requests, long.requests))
}
