//! Programs that were not thought of first: haproxy (reloads by handing its listeners over), memcached (connections
//! move between threads), socat (forks and execs per connection), netcat, wget.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::nginx::isolated;
use super::{both_sides, loads};
use crate::load::{Wrk, WrkLoad};
use crate::nginx::Nginx;
use crate::process::eventually;
use crate::procfs;
use crate::suite::Test;
use crate::world::{Mode, Side, World, free_port, wait_for_port};

const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn tests() -> Vec<Test> {
    let mut tests = both_sides(&[
        ("memcached", memcached),
        ("socat and netcat", socat_and_netcat),
        ("wget", wget),
    ]);
    tests.extend(loads(&[("haproxy reloads under load", haproxy)]));
    tests
}

/// A proxy in front of a plain nginx: listener and connections to the backend are the guest's.
fn haproxy(world: &mut World, mode: Mode) -> Result<String> {
    let nginx = Nginx::start(world, Side::Plain)?;
    let port = free_port()?;
    // The resolvers section is there so that haproxy makes none from /etc/resolv.conf: it is about names, over UDP.
    let text = format!(
        "global\n  stats socket {}/haproxy.sock mode 600 level admin expose-fd listeners\n  nbthread 2\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
         resolvers default\n  hold valid 1s\n\
         frontend in\n  bind 127.0.0.1:{port}\n  default_backend out\n\
         backend out\n  server one 127.0.0.1:{}\n",
        world.dir.display(),
        nginx.port
    );
    let config = world.write("haproxy.cfg", text)?;
    let mut proxy =
        world.start("haproxy", mode.server, &["/usr/sbin/haproxy", "-W", "-db", "-f", &config])?;
    wait_for_port(&mut proxy, port)?;
    let url = format!("http://127.0.0.1:{port}/");
    let load = WrkLoad { url: &url, connections: 16, threads: 1, seconds: 6, short: true };
    let wrk = load.start(world, mode.client)?;
    std::thread::sleep(Duration::from_millis(800));
    isolated(world, mode, &proxy, &wrk)?;
    let mut reloads = 0;
    for _ in 0..3 {
        let old = procfs::children(proxy.pid())?;
        proxy.signal(Signal::USR2)?;
        eventually(Duration::from_secs(15), || {
            let new = procfs::children(proxy.pid())?;
            ensure!(
                new.iter().any(|pid| !old.contains(pid)),
                "no new worker: {old:?} {new:?} {}",
                proxy.err()
            );
            Ok(())
        })?;
        reloads += 1;
        std::thread::sleep(Duration::from_millis(700));
    }
    let report = Wrk::parse(&wrk.ok(load.limit())?)?.flawless()?;
    proxy.must_live()?;
    proxy.stop(Signal::TERM, Duration::from_secs(15))?;
    nginx.stop()?;
    Ok(format!("{reloads} reloads, {} requests, none failed", report.requests))
}

fn memcached(world: &mut World, mode: Mode) -> Result<String> {
    let script =
        world.write("memcached_client.py", include_str!("../../programs/memcached_client.py"))?;
    let port = free_port()?.to_string();
    let words =
        ["/usr/bin/memcached", "-u", "root", "-l", "127.0.0.1", "-p", &port, "-U", "0", "-t", "4"];
    let mut server = world.start("memcached", mode.server, &words)?;
    wait_for_port(&mut server, port.parse()?)?;
    let client = world.start("client", mode.client, &["/usr/bin/python3", &script, &port])?;
    std::thread::sleep(Duration::from_millis(300));
    if !client.ended_within(Duration::ZERO)? {
        isolated(world, mode, &server, &client)?;
    }
    let said = client.ok(LIMIT)?;
    server.must_live()?;
    server.stop(Signal::TERM, Duration::from_secs(15))?;
    Ok(said.trim().to_owned())
}

fn socat_and_netcat(world: &mut World, mode: Mode) -> Result<String> {
    let text: String = (0..400_000).map(|n| format!("{n}\n")).collect();
    let file = world.write("file", &text)?;
    let port = free_port()?.to_string();
    // One process and one `cat` per connection.
    let listen = format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr");
    let mut server =
        world.start("socat", mode.server, &["/usr/bin/socat", "-t10", &listen, "EXEC:/bin/cat"])?;
    wait_for_port(&mut server, port.parse()?)?;
    for client in [
        format!("/usr/bin/socat -t10 - TCP:127.0.0.1:{port} < {file}"),
        format!("/bin/nc -N 127.0.0.1 {port} < {file}"),
    ] {
        let ended =
            world.start("client", mode.client, &["/bin/sh", "-c", &client])?.finish(LIMIT)?;
        let got = ended.out.len();
        ensure!(
            ended.status.success() && ended.out == text,
            "{client}: {} {got} bytes {}",
            ended.how(),
            ended.err
        );
    }
    server.must_live()?;
    server.stop(Signal::TERM, Duration::from_secs(10))?;
    let port = free_port()?.to_string();
    let server = world.start("nc", mode.server, &["/bin/nc", "-l", "127.0.0.1", &port])?;
    eventually(Duration::from_secs(10), || {
        let client = format!("/bin/nc -N 127.0.0.1 {port} < {file}");
        world.start("client", mode.client, &["/bin/sh", "-c", &client])?.ok(LIMIT)
    })?;
    let got = server.ok(Duration::from_secs(15)).context("nc -l")?;
    ensure!(got == text, "nc -l received {} bytes of {}", got.len(), text.len());
    Ok(String::new())
}

fn wget(world: &mut World, mode: Mode) -> Result<String> {
    let nginx = Nginx::start(world, mode.server)?;
    let text: String = (0..300_000).map(|n| format!("{n}\n")).collect();
    fs::write(nginx.files(world).join("numbers"), &text)?;
    let (copy, certificate) = (world.path("copy"), world.path("cert.pem"));
    for url in [
        format!("{}files/numbers", nginx.url()),
        format!("{}files/numbers", nginx.url_v6()),
        format!("https://127.0.0.1:{}/files/numbers", nginx.tls_port),
    ] {
        let trust = format!("--ca-certificate={certificate}");
        let words = ["/usr/bin/wget", "-q", "-T", "20", "-t", "1", &trust, "-O", &copy, &url];
        world.run(mode.client, &words, LIMIT).with_context(|| url.clone())?;
        ensure!(fs::read_to_string(&copy)? == text, "{url}: other bytes");
    }
    nginx.stop()?;
    Ok(String::new())
}
