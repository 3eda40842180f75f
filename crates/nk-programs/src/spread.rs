//! A guest whose sockets are spread over several NSMs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::load::{Wrk, WrkLoad};
use crate::moves::three;
use crate::nsms::{Nsm, RECOVERY, ask as request, start_named};
use crate::process::{eventually, signal_pid};
use crate::suite::{Group, Test};
use crate::world::{Mode, Side, World};

const ALL: [&str; 3] = ["a", "b", "c"];
const CONNECTIONS: u32 = 48;

pub(crate) fn tests() -> Vec<Test> {
    let test = Test::alone(Group::Nsms, &[Mode::GUEST_SERVER]);
    vec![
        test("a guest is spread over three NSMs", spread),
        test("a spread guest does not wait for an NSM that rests", refuge),
        test("a guest follows a list of NSMs that is changed", relisted),
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
    world.configure(&three(&ALL).replace("inline", "process"))?;
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
    world.configure(&three(&ALL))?;
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

/// The NSM that has the guest's new sockets.
fn present(world: &World) -> Result<String> {
    let all: Vec<Value> = serde_json::from_str(&world.control(&["guests", "--json"])?)?;
    let its = all.iter().find(|g| g["name"] == "one").context("nk guests does not know it")?;
    Ok(its["nsm_name"].as_str().context("nsm_name")?.to_owned())
}

/// The present NSM dies twice in a row: the guest is on another one before the third process is started, and answers.
fn refuge(world: &mut World, mode: Mode) -> Result<String> {
    let mut went = Vec::new();
    for inline in ["inline", "process"] {
        world.configure(&three(&["a", "c"]).replace("inline", inline))?;
        let nginx = start_named(world, mode, "one")?;
        if present(world)? != "a" {
            world.control(&["guest", "move", "one", "--to", "a"])?;
        }
        let dies = || -> Result<()> {
            let nsm = Nsm::named(world, "a")?;
            let (pid, restarts) = (nsm.pid()?, nsm.number("restarts")?);
            signal_pid(pid, Signal::KILL);
            request(nginx.port).context("the guest of an NSM that died")?;
            eventually(RECOVERY, || {
                let now = Nsm::named(world, "a")?;
                ensure!(now.number("restarts")? > restarts && now.pid()? != pid, "{now:?}");
                Ok(())
            })
        };
        dies()?;
        ensure!(present(world)? == "a", "one death is no reason to go elsewhere");
        dies()?;
        ensure!(present(world)? == "c", "it waited for an NSM that rests");
        for n in 0..20 {
            request(nginx.port).with_context(|| format!("request {n} after it went"))?;
        }
        went.push(sockets(world)?);
        nginx.stop()?;
    }
    Ok(format!("{went:?}"))
}

/// A list, or a name, without its NSM takes the guest along; a list that it never was on by its own leaves it where an order took it.
fn relisted(world: &mut World, mode: Mode) -> Result<String> {
    let lists = |nsm: &[&str]| three(nsm).replace("inline", "process");
    world.configure(&lists(&["a", "b"]))?;
    let nginx = start_named(world, mode, "one")?;
    let first = present(world)?;
    let rest: Vec<&str> = ALL.into_iter().filter(|n| *n != first).collect();
    let read = |world: &World, nsm: &str| -> Result<()> {
        let file = world.dir.join("nk.toml");
        let (text, count) = (fs::read_to_string(&file)?, said(world)?);
        let old = text.lines().find(|l| l.starts_with("nsm = ")).context("no list")?;
        fs::write(&file, text.replace(old, &format!("nsm = {nsm}")))?;
        world.daemon().context("no daemon")?.running.signal(Signal::HUP)?;
        eventually(RECOVERY, || {
            ensure!(said(world)? > count, "not read again");
            Ok(())
        })
    };
    let goes_to = |world: &World, names: &[&str]| {
        eventually(RECOVERY, || {
            let now = present(world)?;
            ensure!(
                names.contains(&now.as_str()),
                "it is still on {now}, and is to be on {names:?}"
            );
            Ok(())
        })?;
        request(nginx.port)
    };
    read(world, &format!("{rest:?}"))?;
    goes_to(world, &rest)?;
    world.control(&["guest", "move", "one", "--to", &first])?;
    let turned: Vec<&str> = rest.iter().rev().copied().collect();
    read(world, &format!("{turned:?}"))?;
    request(nginx.port)?;
    ensure!(present(world)? == first, "an order is undone");
    // From one name to another.
    for name in [&*first, turned[0], turned[1]] {
        read(world, &format!("{name:?}"))?;
        goes_to(world, &[name])?;
    }
    nginx.stop()?;
    Ok(format!("from {first} to one of {rest:?}, and back by an order; then by name"))
}

/// How often the daemon has read its configuration again.
fn said(world: &World) -> Result<usize> {
    let log = world.daemon().context("no daemon")?.running.err();
    Ok(log.matches("configuration read again").count())
}
