//! Languages that bring an event loop of their own: node (libuv; its cluster passes connections or listeners to workers by
//! `SCM_RIGHTS`), the JVM (NIO selectors, its dup2 in close), tokio (mio, edge-triggered).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::nginx::isolated;
use super::{both_sides, says};
use crate::load::WrkLoad;
use crate::process::{Running, signal_pid};
use crate::procfs;
use crate::suite::Test;
use crate::world::{Mode, Side, World, free_port, free_ports};

const LIMIT: Duration = Duration::from_secs(60);
const NODE: &str = "/usr/bin/node";

pub(super) fn tests() -> Vec<Test> {
    both_sides(&[
        ("node http", node_http),
        ("node cluster", node_cluster),
        ("node cluster that shares its listener", node_cluster_shared),
        ("java http, NIO, threads", java),
        ("tokio", tokio),
    ])
}

struct Node {
    running: Running,
    port: u16,
    client: String,
}

fn start_node(world: &World, side: Side, workers: usize, policy: &str) -> Result<Node> {
    let server = world.write("node_http.js", include_str!("../../programs/node_http.js"))?;
    let client = world.write("node_client.js", include_str!("../../programs/node_client.js"))?;
    let port = free_port()?;
    let words = [NODE, &server, &port.to_string(), &workers.to_string()];
    let running = world.start_with("node", side, &words, |command| {
        command.env("NODE_CLUSTER_SCHED_POLICY", policy);
    })?;
    let mut node = Node { running, port, client };
    says(&mut node.running, "listening", workers.max(1))?;
    Ok(node)
}

impl Node {
    fn ask(&self, world: &World, mode: Mode, workers: usize) -> Result<String> {
        let (port, closed) = (self.port.to_string(), free_port()?.to_string());
        let words = [NODE, &self.client, &port, &closed, &workers.to_string()];
        let client = world.start("client", mode.client, &words)?;
        std::thread::sleep(Duration::from_millis(300));
        if !client.ended_within(Duration::ZERO)? {
            isolated(world, mode, &self.running, &client)?;
        }
        Ok(client.ok(LIMIT)?.trim().to_owned())
    }

    fn stop(self) -> Result<()> {
        let ended = self.running.stop(Signal::TERM, Duration::from_secs(15))?;
        ensure!(ended.status.success(), "node ended with {}: {}", ended.how(), ended.err);
        Ok(())
    }
}

fn node_http(world: &mut World, mode: Mode) -> Result<String> {
    let node = start_node(world, mode.server, 0, "rr")?;
    node.ask(world, mode, 0)?;
    node.stop()?;
    Ok(String::new())
}

/// The primary accepts, and passes each connection to a worker. One that is killed is replaced.
fn node_cluster(world: &mut World, mode: Mode) -> Result<String> {
    let mut node = start_node(world, mode.server, 3, "rr")?;
    let said = node.ask(world, mode, 3)?;
    let workers = procfs::children(node.running.pid())?;
    let worker = workers.first().copied().context("no worker")?;
    signal_pid(worker, Signal::KILL);
    says(&mut node.running, "listening", 4)?;
    let url = format!("http://127.0.0.1:{}/", node.port);
    let load = WrkLoad { url: &url, connections: 8, threads: 1, seconds: 1, short: true };
    let report = load.run(world, mode.client)?.flawless()?;
    node.stop()?;
    Ok(format!("{said}, then {} requests without the one that was killed", report.requests))
}

/// The primary passes the listener, and all workers accept.
fn node_cluster_shared(world: &mut World, mode: Mode) -> Result<String> {
    let node = start_node(world, mode.server, 3, "none")?;
    let said = node.ask(world, mode, 0)?;
    node.stop()?;
    Ok(said)
}

fn java(world: &mut World, mode: Mode) -> Result<String> {
    let source = world.write("Http.java", include_str!("../../programs/Http.java"))?;
    let classes = world.dir.display().to_string();
    world.run(
        Side::Plain,
        &["/usr/bin/javac", "-Xlint:-options", "-d", &classes, &source],
        LIMIT,
    )?;
    let [port, closed] = [free_ports(3)?, free_port()?].map(|port| port.to_string());
    let java = ["/usr/bin/java", "-XX:TieredStopAtLevel=1", "-cp", &classes, "Http"];
    let mut server =
        world.start("server", mode.server, &[&java[..], &["server", &port]].concat())?;
    says(&mut server, "listening", 1)?;
    let client =
        world.start("client", mode.client, &[&java[..], &["client", &port, &closed]].concat())?;
    std::thread::sleep(Duration::from_millis(500));
    if !client.ended_within(Duration::ZERO)? {
        isolated(world, mode, &server, &client)?;
    }
    let said = client.ok(LIMIT)?;
    ensure!(said == "done\n", "the client says {said:?}");
    server.must_live()?;
    // The JVM's own way to end at a signal.
    let ended = server.stop(Signal::TERM, Duration::from_secs(15))?;
    ensure!(ended.how() == "status 143", "the server ended with {}: {}", ended.how(), ended.err);
    ensure!(ended.err.is_empty(), "the server complains: {}", ended.err);
    Ok(String::new())
}

fn tokio(world: &mut World, mode: Mode) -> Result<String> {
    // Built with this program, and beside it.
    let program = std::env::current_exe()?.with_file_name("nk-tokio");
    ensure!(program.exists(), "{} is not built", program.display());
    let program = program.display().to_string();
    let [port, closed] = [free_ports(2)?, free_port()?].map(|port| port.to_string());
    let mut server = world.start("server", mode.server, &[&program, "server", &port])?;
    says(&mut server, "listening", 1)?;
    let client = world.start("client", mode.client, &[&program, "client", &port, &closed])?;
    std::thread::sleep(Duration::from_millis(200));
    if !client.ended_within(Duration::ZERO)? {
        isolated(world, mode, &server, &client)?;
    }
    let said = client.ok(LIMIT)?;
    server.must_live()?;
    let ended = server.stop(Signal::TERM, Duration::from_secs(10))?;
    ensure!(ended.status.success(), "the server ended with {}: {}", ended.how(), ended.err);
    Ok(said.trim().to_owned())
}
