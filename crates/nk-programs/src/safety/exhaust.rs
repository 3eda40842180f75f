//! Exhausted descriptors, in the guest and in the daemon, and exhausted chunks: the guest gets an errno or waits,
//! others are not disturbed, and all is well again when somebody lets go.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::{connect, greedy_echo};
use crate::process::{Running, eventually};
use crate::suite::{Body, GUESTS_ONLY, Group, Test};
use crate::world::{Mode, Side, World, free_port, wait_for_port};

const PYTHON: &str = "/usr/bin/python3";
const RECOVERY: Duration = Duration::from_secs(15);

pub(super) fn tests() -> Vec<Test> {
    let tests: [(&'static str, bool, Body); 4] = [
        ("a guest out of descriptors recovers", true, guest_descriptors),
        ("a daemon out of descriptors recovers", false, daemon_descriptors),
        ("a guest client meets a daemon out of descriptors", false, daemon_descriptors_client),
        ("a guest that reads nothing starves only itself", true, unread),
    ];
    tests
        .map(|(name, native, body)| Test {
            name,
            group: Group::Safety,
            modes: GUESTS_ONLY,
            private: false,
            alone: true,
            native,
            body,
        })
        .to_vec()
}

fn greedy(world: &World, side: Side, prefix: &[&str]) -> Result<(Running, u16)> {
    let script = world.write("greedy.py", include_str!("../../programs/greedy.py"))?;
    let port = free_port()?;
    let text = port.to_string();
    let words = [prefix, &[PYTHON, &script, &text]].concat();
    let mut running = world.start("greedy", side, &words)?;
    wait_for_port(&mut running, port)?;
    greedy_echo(port)?;
    Ok((running, port))
}

/// Opens up to `count` connections that the server holds. Fewer where the host's side refuses.
fn hold(port: u16, count: usize) -> Vec<TcpStream> {
    (0..count)
        .filter_map(|_| {
            let mut stream = connect(port).ok()?;
            stream.write_all(b"H").ok()?;
            Some(stream)
        })
        .collect()
}

fn end(mut server: Running) -> Result<()> {
    server.must_live()?;
    server.stop(Signal::TERM, Duration::from_secs(10)).map(drop)
}

/// Lets go of what it holds, and serves again.
fn recovers(server: &mut Running, port: u16, held: Vec<TcpStream>) -> Result<()> {
    drop(held);
    eventually(RECOVERY, || {
        // Keeps letting go while the backlog drains.
        server.signal(Signal::USR1)?;
        greedy_echo(port)
    })
}

fn guest_descriptors(world: &mut World, mode: Mode) -> Result<String> {
    let (mut server, port) =
        greedy(world, mode.server, &["/usr/bin/prlimit", "--nofile=64", "--"])?;
    let held = hold(port, 150);
    ensure!(
        held.len() > 64,
        "only {} connections: the kernel's backlog should have taken more",
        held.len()
    );
    eventually(RECOVERY, || {
        ensure!(
            server.out().contains("Too many open files"),
            "accept never failed: {:?}",
            server.out()
        );
        Ok(())
    })?;
    server.must_live()?;
    recovers(&mut server, port, held)?;
    end(server)?;
    Ok("EMFILE, then recovered".to_owned())
}

fn daemon_descriptors(world: &mut World, mode: Mode) -> Result<String> {
    let (mut server, port) = greedy(world, mode.server, &[])?;
    limit_host(world, 24)?;
    let held = hold(port, 200);
    // One that is not held: it may work or fail, but must not hang for ever nor kill anybody.
    let full = greedy_echo(port);
    server.must_live()?;
    let count = held.len();
    recovers(&mut server, port, held)?;
    unlimit_host(world)?;
    end(server)?;
    ensure!(full.is_err(), "the limit was never reached with {count} connections");
    Ok(format!("{count} connections tried, then recovered"))
}

/// Leaves the host's processes room for `room` more descriptors than they have now.
fn limit_host(world: &World, room: usize) -> Result<()> {
    for pid in world.nk_pids()? {
        // The limit is on the number itself, and some descriptors have high ones.
        let used = crate::procfs::descriptors(pid);
        let limit = (0u32..).filter(|number| !used.contains_key(number)).nth(room).unwrap_or(1024);
        set_limit(world, pid, usize::try_from(limit)?)?;
    }
    Ok(())
}

fn unlimit_host(world: &World) -> Result<()> {
    world.nk_pids()?.into_iter().try_for_each(|pid| set_limit(world, pid, 10_000))
}

fn set_limit(world: &World, pid: u32, limit: usize) -> Result<()> {
    let words = [
        "/usr/bin/prlimit".to_owned(),
        format!("--nofile={limit}:"),
        "--pid".to_owned(),
        pid.to_string(),
    ];
    world.run(Side::Plain, &words, Duration::from_secs(5)).map(drop)
}

/// A guest opens connections until the host refuses: an errno, not a hang, and all is well afterwards.
fn daemon_descriptors_client(world: &mut World, mode: Mode) -> Result<String> {
    let (server, port) = greedy(world, Side::Plain, &[])?;
    let script = world.write("opener.py", OPENER)?;
    let mut client = world.start("opener", mode.client, &[PYTHON, &script, &port.to_string()])?;
    let says =
        |client: &Running, what: &str| client.out().lines().any(|line| line.starts_with(what));
    eventually(RECOVERY, || {
        ensure!(says(&client, "ready"), "the guest does not start: {}", client.err());
        Ok(())
    })?;
    limit_host(world, 24)?;
    client.signal(Signal::USR1)?;
    eventually(Duration::from_secs(40), || {
        if client.ended_within(Duration::ZERO)? {
            return Ok(());
        }
        ensure!(says(&client, "opened"), "the guest hangs: {:?} {}", client.out(), client.err());
        Ok(())
    })?;
    client.must_live()?;
    unlimit_host(world)?;
    client.signal(Signal::USR2)?;
    let said = client.ok(Duration::from_secs(30))?;
    ensure!(said.contains("failed with E"), "nothing failed: {said}");
    end(server)?;
    Ok(said.lines().find(|line| line.starts_with("opened")).unwrap_or_default().to_owned())
}

const OPENER: &str = r#"
import errno, signal, socket, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
held, failed = [], "nothing"
for _ in range(200):
    try:
        held.append(socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5))
        held[-1].sendall(b"H")
    except OSError as error:
        failed = errno.errorcode.get(error.errno, str(error))
        break
print("opened", len(held), "failed with", failed, flush=True)
for connection in held:
    connection.close()
signal.sigwait({signal.SIGUSR2})
end = time.monotonic() + 15
while True:
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5) as connection:
            connection.sendall(b"Eback again")
            assert connection.recv(100)
        break
    except OSError:
        if time.monotonic() > end:
            raise
        time.sleep(0.1)
print("recovered", flush=True)
"#;

/// Hundreds of connections full of bytes that the guest does not read: its pool runs out, another guest's does not,
/// and when the connections go, the first guest works again.
fn unread(world: &mut World, mode: Mode) -> Result<String> {
    let (mut hoarder, port) = greedy(world, mode.server, &[])?;
    let (bystander, other_port) = greedy(world, mode.server, &[])?;
    let mut held = hold(port, 300);
    let mut sent = 0;
    let block = [1u8; 65536];
    for stream in &mut held {
        stream.set_nonblocking(true)?;
        loop {
            match stream.write(&block) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
            if sent > 4 << 30 {
                break;
            }
        }
    }
    greedy_echo(other_port)?;
    hoarder.must_live()?;
    let count = held.len();
    recovers(&mut hoarder, port, held)?;
    end(hoarder)?;
    end(bystander)?;
    Ok(format!("{count} connections, {} MiB unread", sent >> 20))
}
