//! UDP: name servers and dig, iperf3 -u, asyncio, node, socat, QUIC.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{both_sides, says};
use crate::process::{Running, eventually};
use crate::suite::Test;
use crate::world::{Mode, World, free_port};

const LIMIT: Duration = Duration::from_secs(60);
const PYTHON: &str = "/usr/bin/python3";

pub(super) fn tests() -> Vec<Test> {
    both_sides(&[
        ("dig and dnsmasq", dnsmasq),
        ("dig and unbound", unbound),
        ("iperf3 -u", iperf3),
        ("python3 asyncio datagrams", asyncio),
        ("node dgram", node),
        ("socat UDP", socat),
        ("QUIC by aioquic", quic),
    ])
}

/// Asks a name server; what it says in short.
///
/// Errors while the server is not there: dig's second try may reach one that its first did not, and then it says so and the answer.
fn dig(world: &World, mode: Mode, server: &str, port: &str, words: &[&str]) -> Result<String> {
    let fixed = ["/usr/bin/dig", server, "-p", port, "+short", "+tries=3", "+time=5"];
    let said = world.run(mode.client, &[&fixed[..], words].concat(), LIMIT)?;
    ensure!(!said.contains("communications error"), "{said:?}");
    Ok(said)
}

fn dnsmasq(world: &mut World, mode: Mode) -> Result<String> {
    let port = free_port()?.to_string();
    let long = "x".repeat(250);
    let configuration = world.write(
        "dnsmasq.conf",
        format!(
            "port={port}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nuser=root\n\
             address=/example.test/192.0.2.7\naddress=/example.test/2001:db8::7\ntxt-record=long.test,{long}\n"
        ),
    )?;
    let pid_file = format!("--pid-file={}", world.path("dnsmasq.pid"));
    let words = ["/usr/sbin/dnsmasq", "-k", "-C", &configuration, &pid_file, "--log-facility=-"];
    let mut server = world.start("dnsmasq", mode.server, &words)?;
    for (question, answer) in [
        (&["example.test", "A"][..], "192.0.2.7"),
        (&["a.example.test", "AAAA"], "2001:db8::7"),
        (&["example.test", "A", "+tcp"], "192.0.2.7"),
        (&["long.test", "TXT"], &format!("\"{long}\"")),
    ] {
        let said = eventually(Duration::from_secs(15), || {
            server.must_live()?;
            dig(world, mode, "@127.0.0.1", &port, question)
        })?;
        ensure!(said.trim() == answer, "{question:?}: {said:?}");
    }
    server.must_live()?;
    server.stop(Signal::TERM, Duration::from_secs(10))?;
    Ok(String::new())
}

/// A server with threads, both families, and control messages that say where a question came in.
fn unbound(world: &mut World, mode: Mode) -> Result<String> {
    let port = free_port()?.to_string();
    let configuration = world.write(
        "unbound.conf",
        format!(
            "server:\n  interface: 0.0.0.0\n  interface: ::\n  port: {port}\n  interface-automatic: yes\n  do-daemonize: no\n  chroot: \"\"\n  \
             username: \"\"\n  directory: \"{directory}\"\n  pidfile: \"{pid}\"\n  use-syslog: no\n  logfile: \"\"\n  num-threads: 2\n  \
             local-zone: \"test.\" static\n  local-data: \"a.test. A 192.0.2.9\"\n  \
             access-control: 127.0.0.0/8 allow\n  access-control: ::1 allow\n\
             remote-control:\n  control-enable: no\n",
            directory = world.path(""),
            pid = world.path("unbound.pid"),
        ),
    )?;
    let mut server =
        world.start("unbound", mode.server, &["/usr/sbin/unbound", "-d", "-c", &configuration])?;
    for address in ["@127.0.0.1", "@127.0.0.2", "@::1"] {
        let said = eventually(Duration::from_secs(15), || {
            server.must_live()?;
            dig(world, mode, address, &port, &["a.test", "A"])
        })?;
        ensure!(said.trim() == "192.0.2.9", "{address}: {said:?}");
    }
    server.must_live()?;
    server.stop(Signal::TERM, Duration::from_secs(10))?;
    Ok(String::new())
}

fn iperf3(world: &mut World, mode: Mode) -> Result<String> {
    let port = free_port()?.to_string();
    let mut server = world.start("iperf3", mode.server, &["/usr/bin/iperf3", "-s", "-p", &port])?;
    let mut saw = Vec::new();
    for options in [&[][..], &["-R"], &["-l", "1200", "-P", "2"], &["-l", "65507"]] {
        let fixed =
            ["/usr/bin/iperf3", "-u", "-c", "127.0.0.1", "-p", &port, "-J", "-t", "1", "-b", "20M"];
        let words = [&fixed[..], options].concat();
        let report = eventually(Duration::from_secs(20), || {
            server.must_live()?;
            let said = world.start("client", mode.client, &words)?.finish(LIMIT)?.out;
            let report: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
            ensure!(report.get("error").is_none(), "{options:?}: {}", report["error"]);
            Ok(report)
        })?;
        let sum = &report["end"]["sum"];
        let number = |what: &str| sum[what].as_f64().with_context(|| format!("no {what}: {sum}"));
        let (packets, lost) = (number("packets")?, number("lost_packets")?);
        // Datagrams may be lost, also natively; at this rate few are.
        ensure!(packets > 20.0 && lost < packets / 5.0, "{options:?}: {lost} of {packets} lost");
        saw.push(format!("{packets}"));
    }
    server.must_live()?;
    Ok(format!("{} datagrams", saw.join(" ")))
}

/// `server PORT` says that it is ready and answers until it is killed; `client PORT` says what it saw.
fn echo(world: &mut World, mode: Mode, program: &[&str], saw: &str) -> Result<String> {
    let port = free_port()?.to_string();
    let mut server = world.start("server", mode.server, &[program, &["server", &port]].concat())?;
    says(&mut server, "ready", 1)?;
    let said = world.run(mode.client, &[program, &["client", &port]].concat(), LIMIT)?;
    ensure!(said.trim() == saw, "{said:?}");
    stop(server)?;
    Ok(String::new())
}

fn stop(mut server: Running) -> Result<()> {
    server.must_live()?;
    server.stop(Signal::TERM, Duration::from_secs(10))?;
    Ok(())
}

fn asyncio(world: &mut World, mode: Mode) -> Result<String> {
    let script = world.write("echo.py", include_str!("../../programs/datagram_echo.py"))?;
    echo(world, mode, &[PYTHON, &script], "300 answers")
}

fn node(world: &mut World, mode: Mode) -> Result<String> {
    let script = world.write("echo.js", include_str!("../../programs/datagram_echo.js"))?;
    echo(world, mode, &["/usr/bin/node", &script], "300 answers")
}

fn quic(world: &mut World, mode: Mode) -> Result<String> {
    let script = world.write("quic.py", include_str!("../../programs/quic_echo.py"))?;
    let (key, certificate) = (world.path("key.pem"), world.path("cert.pem"));
    let words = ["/usr/bin/openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
    let rest = ["-subj", "/CN=localhost", "-keyout", &key, "-out", &certificate];
    world.run(mode.client, &[&words[..], &rest].concat(), LIMIT)?;
    // Where `cargo xtask test` puts it, beside the directory of this program.
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(std::path::Path::parent).context("no target directory")?;
    let python = target.join("python/bin/python3");
    ensure!(python.exists(), "no {}: `cargo xtask test programs` makes it", python.display());
    let python = python.to_str().context("a path that is not UTF-8")?;
    echo(world, mode, &[python, &script], "3 streams")
}

/// A process for each datagram, whose answer goes back by the socket that it inherited.
fn socat(world: &mut World, mode: Mode) -> Result<String> {
    let port = free_port()?.to_string();
    let listen = format!("UDP4-RECVFROM:{port},bind=127.0.0.1,fork");
    let words = ["/usr/bin/socat", &listen, "EXEC:/usr/bin/tr a-z A-Z"];
    let mut server = world.start("socat", mode.server, &words)?;
    for n in 0..5 {
        let client = format!("echo hello{n} | /usr/bin/socat -t2 - UDP4:127.0.0.1:{port}");
        eventually(Duration::from_secs(15), || {
            server.must_live()?;
            let said = world.run(mode.client, &["/bin/sh", "-c", &client], LIMIT)?;
            ensure!(said == format!("HELLO{n}\n"), "{said:?}");
            Ok(())
        })?;
    }
    stop(server)?;
    Ok(String::new())
}
