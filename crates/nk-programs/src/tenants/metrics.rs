//! `nk metrics`, scraped over HTTP by curl as by Prometheus.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{describe, guests_only};
use crate::nsms::Nsm;
use crate::process::{eventually, signal_pid};
use crate::suite::Test;
use crate::world::{Mode, Side, World, free_port, wait_for_listener};

/// Two connections, and bytes on one.
const GUEST: &str = "
import socket, time
server = socket.create_server(('127.0.0.1', 0))
near = socket.create_connection(server.getsockname())
far, _ = server.accept()
near.sendall(b'x' * 100000)
time.sleep(60)
";
const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn tests() -> Vec<Test> {
    guests_only(&[("metrics for Prometheus", scraped)])
}

/// The value of a series.
fn value(text: &str, series: &str) -> Result<f64> {
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.with_context(|| format!("no {series} in:\n{text}"))?.parse().context("a number")
}

/// The value of what is told of the NSM.
fn of_nsm(text: &str, engine: &str, what: &str) -> Result<f64> {
    value(text, &format!("netkernel_nsm_{what}{{daemon=\"{engine}\",nsm=\"own\"}}"))
}

/// What the guest sent, and some of what it got, is among what its NSM did.
fn in_all(text: &str, engine: &str) -> Result<()> {
    let bytes = |what| of_nsm(text, engine, &format!("{what}_bytes_total"));
    let (sent, received) = (bytes("sent")?, bytes("received")?);
    ensure!(sent == 100_000.0 && received > 0.0, "{sent} bytes were sent, {received} received");
    Ok(())
}

fn scraped(world: &mut World, _: Mode) -> Result<String> {
    world.restart_with("[nsm.own]\nplacement = \"process\"\n[guest.watched]\nnsm = \"own\"\n")?;
    let port = free_port()?;
    let engine = world.daemon().context("no daemon")?.socket.display().to_string();
    let listen = format!("127.0.0.1:{port}");
    let words =
        ["/usr/bin/systemd-socket-activate", "--accept", "--inetd", "-l", &listen, world.nk()?];
    let words = [&words[..], &["metrics", "--http", "--engine", &engine]].concat();
    let mut server = world.start("metrics", Side::Plain, &words)?;
    wait_for_listener(&mut server, port)?;
    let curl = |world: &World, path: &str| {
        let url = format!("http://{listen}{path}");
        world.run(
            Side::Plain,
            &["/usr/bin/curl", "-sS", "-m", "10", "-w", "%{http_code} %{content_type}", &url],
            LIMIT,
        )
    };

    let mut guest = world.start_as("watched", &["/usr/bin/python3", "-c", GUEST])?;
    let said = eventually(LIMIT, || {
        guest.must_live()?;
        let text = curl(world, "/metrics")?;
        let own = describe(world, "watched")?;
        let labels = format!("{{daemon=\"{engine}\",guest=\"watched\",id=\"{}\"}}", own["id"]);
        let sent = value(&text, &format!("netkernel_guest_sent_bytes_total{labels}"))?;
        ensure!(sent == 100_000.0, "{sent} bytes were sent");
        ensure!(value(&text, &format!("netkernel_guest_connections_open{labels}"))? == 2.0);
        ensure!(of_nsm(&text, &engine, "up")? == 1.0);
        in_all(&text, &engine)?;
        Ok(text)
    })?;
    ensure!(
        said.ends_with("# EOF\n200 application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "the end is {:?}",
        said.lines().last()
    );
    guest.signal(rustix::process::Signal::KILL)?;
    guest.finish(LIMIT)?;
    // Neither the guest's end nor the NSM's takes anything away, and the next process counts on.
    eventually(LIMIT, || {
        ensure!(describe(world, "watched").is_err(), "the guest is there still");
        in_all(&curl(world, "/metrics")?, &engine)
    })?;
    signal_pid(Nsm::named(world, "own")?.pid()?, rustix::process::Signal::KILL);
    let again = eventually(LIMIT, || {
        let text = curl(world, "/metrics")?;
        ensure!(of_nsm(&text, &engine, "restarts_total")? == 1.0);
        Ok(text)
    })?;
    in_all(&again, &engine)?;
    let words = ["/usr/bin/python3", "-c", &GUEST.replace("60", "0")];
    world.start_as("watched", &words)?.ok(LIMIT)?;
    let sent = of_nsm(&curl(world, "/metrics")?, &engine, "sent_bytes_total")?;
    ensure!(sent == 200_000.0, "two guests sent {sent} bytes");

    ensure!(curl(world, "/")?.ends_with("404 text/plain"));
    world.kill_daemon()?;
    let without = curl(world, "/metrics")?;
    ensure!(
        without.starts_with("no daemon answers at ") && without.ends_with("503 text/plain"),
        "{without}"
    );
    world.start_daemon()?;
    server.signal(rustix::process::Signal::TERM)?;
    server.finish(LIMIT)?;
    Ok(format!("{} lines", said.lines().count()))
}
