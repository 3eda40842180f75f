//! python3: http.server, asyncio, and a threaded socketserver with threaded clients.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::both_sides;
use super::nginx::isolated;
use crate::load::{AbLoad, WrkLoad};
use crate::process::Running;
use crate::suite::Test;
use crate::world::{Mode, World, free_port, wait_for_port};

const PYTHON: &str = "/usr/bin/python3";
const LIMIT: Duration = Duration::from_secs(90);

pub(super) fn tests() -> Vec<Test> {
    both_sides(&[
        ("python3 http.server", http_server),
        ("python3 asyncio", asyncio),
        ("python3 threaded socketserver", threaded),
    ])
}

fn http_server(world: &mut World, mode: Mode) -> Result<String> {
    world.write("hello", "hello, world\n")?;
    let port = free_port()?;
    let words = [PYTHON, "-m", "http.server", "--bind", "127.0.0.1", &port.to_string()];
    let mut server = world.start("http.server", mode.server, &words)?;
    wait_for_port(&mut server, port)?;
    let url = format!("http://127.0.0.1:{port}/hello");
    let got =
        world.run(mode.client, &["/usr/bin/curl", "-sS", "--fail", "-m", "20", &url], LIMIT)?;
    ensure!(got == "hello, world\n", "{got:?}");
    // HTTP/1.0: one connection per request, one thread per connection.
    AbLoad { url: &url, requests: 500, concurrency: 10, keep_alive: false }
        .run(world, mode.client)?;
    let wrk = WrkLoad { url: &url, connections: 4, threads: 1, seconds: 1, short: true };
    wrk.run(world, mode.client)?.flawless()?;
    let urllib =
        format!("import urllib.request as u; print(u.urlopen('{url}').read().decode(), end='')");
    let got = world.run(mode.client, &[PYTHON, "-c", &urllib], LIMIT)?;
    ensure!(got == "hello, world\n", "urllib: {got:?}");
    stop(server)?;
    Ok(String::new())
}

fn asyncio(world: &mut World, mode: Mode) -> Result<String> {
    echo(world, mode, "asyncio_echo.py", include_str!("../../programs/asyncio_echo.py"))
}

fn threaded(world: &mut World, mode: Mode) -> Result<String> {
    echo(world, mode, "threaded_echo.py", include_str!("../../programs/threaded_echo.py"))
}

/// `SCRIPT server PORT` until it is killed; `SCRIPT client PORT` checks every byte and prints a line.
fn echo(world: &mut World, mode: Mode, name: &str, text: &str) -> Result<String> {
    let script = world.write(name, text)?;
    let port = free_port()?.to_string();
    let mut server = world.start("server", mode.server, &[PYTHON, &script, "server", &port])?;
    wait_for_port(&mut server, port.parse()?)?;
    let client = world.start("client", mode.client, &[PYTHON, &script, "client", &port])?;
    std::thread::sleep(Duration::from_millis(400));
    if !client.ended_within(Duration::ZERO)? {
        isolated(world, mode, &server, &client)?;
    }
    let said = client.ok(LIMIT)?;
    server.must_live()?;
    stop(server)?;
    Ok(said.trim().to_owned())
}

fn stop(server: Running) -> Result<()> {
    let ended = server.stop(Signal::TERM, Duration::from_secs(10))?;
    ensure!(ended.how() == "signal 15", "the server ended with {}: {}", ended.how(), ended.err);
    Ok(())
}
