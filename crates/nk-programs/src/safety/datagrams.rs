//! UDP sockets outlive the daemon and the NSM; senders that are killed leave nothing.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::restart::{RECOVERY, ROUNDS, kill_nsm};
use crate::cases::says;
use crate::leaks::describe_guest;
use crate::process::{Running, eventually};
use crate::suite::{GUESTS_ONLY, Group, Test};
use crate::world::{Mode, Nsm, World, free_port};

const PYTHON: &str = "/usr/bin/python3";

pub(super) fn tests() -> Vec<Test> {
    let test = Test::alone(Group::Safety, GUESTS_ONLY);
    vec![
        test("UDP sockets outlive the daemon and the NSM", survive),
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
