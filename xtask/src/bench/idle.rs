//! Connections on which nothing happens: `memory` and `idle`.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nk_programs::nginx::Nginx;
use nk_programs::procfs;
use nk_programs::world::{Side, World};

use super::Plan;
use super::place::pinned;
use super::table::{head, in_turn, lines};

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
const FOR_MEMORY: usize = 5000;
const FOR_TIME: usize = 1000;
pub(super) const IDLE_SECONDS: u64 = 20;

/// The server with what serves it.
fn pids(world: &World, server: &Nginx, side: Side) -> Result<Vec<u32>> {
    let mut pids = server.workers()?;
    pids.push(server.running.pid());
    if side == Side::Guest {
        pids.extend(world.nk_pids()?);
    }
    Ok(pids)
}

fn start(plan: &Plan, world: &World, side: Side) -> Result<Nginx> {
    let prefix = pinned(plan.server_cpus.as_deref());
    let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
    Nginx::start_by(world, side, &prefix)
}

/// Memory of the server's processes, of daemon and keeper (each shared page once), and of the kernel's slab.
pub(super) fn memory(plan: &Plan) -> Result<()> {
    println!(
        "{FOR_MEMORY} connections that have made one request each, against none, on a fresh server and a fresh daemon in each \
         round. Resident: Pss of all processes of the server, with daemon and keeper. Slab and page tables: the whole machine's, \
         the clients' ends included, without what it would free under pressure.\n"
    );
    let both = in_turn(plan.rounds, |side| {
        let world = plan.world()?;
        let server = start(plan, &world, side)?;
        let pids = pids(&world, &server, side)?;
        // What the first requests allocate once is no connection's.
        drop(connections(server.port, 100)?);
        std::thread::sleep(Duration::from_millis(500));
        let before = Memory::of(&pids)?;
        let connections = connections(server.port, FOR_MEMORY)?;
        std::thread::sleep(Duration::from_millis(500));
        let after = Memory::of(&pids)?;
        answer_again(connections)?;
        server.stop()?;
        world.close()?;
        let each = |after: u64, before: u64| (after as f64 - before as f64) / FOR_MEMORY as f64;
        let resident = each(after.resident_kib, before.resident_kib);
        let kernel = each(after.kernel_kib, before.kernel_kib);
        Ok([resident, kernel, resident + kernel])
    })?;
    head();
    let figures = [
        ("resident, KiB/connection", 2),
        ("slab and page tables, KiB/connection", 2),
        ("all, KiB/connection", 2),
    ];
    lines("idle connections", figures, &both);
    let [.., native] = both.native;
    let [.., guest] = both.guest;
    println!(
        "\nBeyond what native takes: **{:.2} KiB per idle connection** (by the medians).",
        guest.median - native.median
    );
    Ok(())
}

pub(super) struct Memory {
    pub(super) resident_kib: u64,
    kernel_kib: u64,
}

impl Memory {
    pub(super) fn of(pids: &[u32]) -> Result<Memory> {
        // Entries and inodes that nobody uses, of files that anybody on the machine has looked at, are no connection's.
        fs::write(DROP_CACHES, "2").context(DROP_CACHES)?;
        let mut resident_kib = 0;
        for pid in pids {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = fs::read_to_string(&path).with_context(|| path.clone())?;
            resident_kib += kib(&text, &["Pss:"]).context(path)?;
        }
        let text = fs::read_to_string("/proc/meminfo")?;
        Ok(Memory { resident_kib, kernel_kib: kib(&text, &["Slab:", "PageTables:"])? })
    }
}

/// The sum of some fields of a file like /proc/meminfo; each must be there.
fn kib(text: &str, names: &[&str]) -> Result<u64> {
    let field = |name: &&str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(*name));
        let value = rest.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        value.with_context(|| format!("no {name}"))
    };
    names.iter().map(field).sum()
}

/// CPU time of the processes that serve idle connections.
pub(super) fn idle(plan: &Plan) -> Result<()> {
    let world = plan.world()?;
    let servers = [start(plan, &world, Side::Plain)?, start(plan, &world, Side::Guest)?];
    println!(
        "| {FOR_TIME} idle connections over {IDLE_SECONDS} s | CPU, % of one core | its processes |"
    );
    println!("|---|---|---|");
    let names = [("native", Side::Plain), ("guest, with daemon and keeper", Side::Guest)];
    for ((name, side), server) in names.into_iter().zip(&servers) {
        let pids = pids(&world, server, side)?;
        let connections = connections(server.port, FOR_TIME)?;
        // What the last exchange left to do is not idle time.
        std::thread::sleep(Duration::from_secs(2));
        let used = || pids.iter().map(|pid| procfs::cpu_time(*pid)).sum::<Duration>();
        let (before, begun) = (used(), Instant::now());
        std::thread::sleep(Duration::from_secs(IDLE_SECONDS));
        let spent = used().saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64();
        println!("| {name} | {:.3} | {} |", spent * 100.0, pids.len());
        answer_again(connections)?;
    }
    for server in servers {
        server.stop()?;
    }
    world.close()
}

/// Connections that have each made one request.
fn connections(port: u16, count: usize) -> Result<Vec<TcpStream>> {
    (0..count)
        .map(|_| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            exchange(&mut stream)?;
            Ok(stream)
        })
        .collect()
}

/// They were idle, not dead.
fn answer_again(connections: Vec<TcpStream>) -> Result<()> {
    for mut stream in connections {
        exchange(&mut stream).context("an idle connection is dead")?;
    }
    Ok(())
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // The body ends with a newline, and nothing else does after the header.
    while !answer.ends_with(b"abcde\n") {
        let count = stream.read(&mut buffer)?;
        ensure!(count > 0, "the server closed the connection");
        answer.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_summed_and_none_may_lack() {
        let text = "MemTotal:  5 kB\nSlab:   30 kB\nPageTables:  12 kB\n";
        assert_eq!(kib(text, &["Slab:", "PageTables:"]).unwrap(), 42);
        assert!(kib(text, &["Slab:", "Pss:"]).is_err());
    }
}
