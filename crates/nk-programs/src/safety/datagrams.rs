//! UDP sockets outlive the daemon and the NSM; senders that are killed leave nothing.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::restart::{RECOVERY, ROUNDS, kill_nsm};
use crate::cases::says;
use crate::leaks::describe_guest;
use crate::process::{Running, eventually};
use crate::suite::{GUESTS_ONLY, Group, Test};
use crate::world::{Mode, Nsm, World, free_port, free_ports};

const PYTHON: &str = "/usr/bin/python3";

pub(super) fn tests() -> Vec<Test> {
    let test = Test::alone(Group::Safety, GUESTS_ONLY);
    vec![
        test("UDP sockets outlive the daemon and the NSM", survive),
        test("UDP sockets keep their options", keep_options),
        test("killed senders of datagrams leave nothing", kills),
    ]
}

/// Asks as a plain client; a question that comes in the middle of a restart may be lost.
fn answers(server: &mut Running, port: u16) -> Result<()> {
    for (question, answer) in [("hello", "hello"), ("self", "by the connected socket")] {
        eventually(RECOVERY, || {
            server.must_live()?;
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            socket.send_to(question.as_bytes(), SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
            let mut back = [0; 100];
            let n = socket.recv(&mut back)?;
            ensure!(back.get(..n) == Some(answer.as_bytes()), "another answer");
            Ok(())
        })
        .with_context(|| format!("asked {question:?}: {}", server.err()))?;
    }
    Ok(())
}

fn survive(world: &mut World, mode: Mode) -> Result<String> {
    let script = world.write("survivor.py", include_str!("../../programs/datagram_survivor.py"))?;
    let port = free_port()?;
    let mut server = world.start("survivor", mode.server, &[PYTHON, &script, &port.to_string()])?;
    says(&mut server, "ready", 1)?;
    answers(&mut server, port)?;
    for _ in 0..ROUNDS {
        world.kill_daemon()?;
        std::thread::sleep(Duration::from_millis(200));
        world.start_daemon()?;
        answers(&mut server, port).context("after the daemon's death")?;
        if world.options.nsm == Nsm::Separate {
            kill_nsm(world)?;
            answers(&mut server, port).context("after the NSM's death")?;
        }
    }
    server.stop(Signal::TERM, Duration::from_secs(10))?;
    Ok(format!("{ROUNDS} times"))
}

fn keep_options(world: &mut World, mode: Mode) -> Result<String> {
    let script = world.write("udp_options.py", include_str!("../../programs/udp_options.py"))?;
    let port = free_ports(3)?.to_string();
    let mut guest = world.start_piped("options", mode.server, &[PYTHON, &script, &port])?;
    let mut input = guest.input().context("no pipe")?;
    let mut asked = 0;
    let mut ask = |guest: &mut Running| -> Result<String> {
        writeln!(input, "ask")?;
        asked += 1;
        says(guest, "first:", asked).with_context(|| guest.err())?;
        Ok(guest.out().lines().last().unwrap_or_default().to_owned())
    };
    let before = ask(&mut guest)?;
    ensure!(before.ends_with("joined:True long:True left:False"), "{before}");
    for round in 0..ROUNDS {
        if world.options.nsm == Nsm::Separate {
            kill_nsm(world)?;
        } else {
            world.kill_daemon()?;
            world.start_daemon()?;
        }
        if round == 1 && world.options.nsm == Nsm::Separate {
            // What the next daemon knows of them it has from the keeper.
            world.kill_daemon()?;
            world.start_daemon()?;
            kill_nsm(world)?;
        }
        // A datagram that comes before the next NSM has the socket is lost.
        eventually(RECOVERY, || {
            let now = ask(&mut guest)?;
            ensure!(now == before, "they were {before}, and are {now}");
            Ok(())
        })?;
    }
    guest.stop(Signal::TERM, Duration::from_secs(10))?;
    Ok(format!("{ROUNDS} deaths: {before}"))
}

fn kills(world: &mut World, mode: Mode) -> Result<String> {
    let script = world.write("kills.py", include_str!("../../programs/datagram_kills.py"))?;
    let mut guest = world.start("kills", mode.server, &[PYTHON, &script])?;
    if let Err(e) = says(&mut guest, "done", 1) {
        return Err(e.context(guest.err()));
    }
    let nsm = describe_guest(world, guest.pid())?["nsm"].clone();
    let number = |what: &str| nsm[what].as_u64().with_context(|| format!("no {what}: {nsm}"));
    // What one process is leased ahead, and what was read last of one socket.
    if number("chunks_leased")? > 256 || number("chunks_tx")? > 0 || number("chunks_rx")? > 64 {
        bail!("chunks are lost: {nsm}");
    }
    ensure!(number("violations")? == 0, "descriptors of killed senders broke the protocol: {nsm}");
    guest.must_live()?;
    let said = guest.out().trim().to_owned();
    guest.stop(Signal::TERM, Duration::from_secs(10))?;
    Ok(format!("120 kills, {said}"))
}
