//! `cargo xtask bench`: guest against native, interleaved, and the idle cost of 1,000 connections. Prints the Markdown
//! of docs/performance.md.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nk_programs::load::WrkLoad;
use nk_programs::nginx::{Nginx, WORKERS};
use nk_programs::procfs;
use nk_programs::world::{Nsm, Options, Side, World};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::measure::{Sample, Spread, background, cpus, sample, spread};
use crate::{packages, workspace};

const CONNECTIONS: u32 = 100;
const IDLE_CONNECTIONS: usize = 1000;
const IDLE_SECONDS: u64 = 20;

/// What to do, from the command line.
#[derive(Debug)]
struct Plan {
    rounds: usize,
    seconds: u32,
    server_cpus: Option<String>,
    client_cpus: Option<String>,
    nsm: Nsm,
}

pub(crate) fn run(words: &[String]) -> Result<()> {
    let plan = Plan::parse(words)?;
    packages::ensure_programs(&[packages::PROGRAMS])?;
    workspace::build_release()?;
    raise_descriptor_limit()?;
    let options = Options {
        nk: Some(workspace::release("nk")?),
        nsm: plan.nsm,
        host_prefix: pinned(plan.server_cpus.as_deref()),
        ..Options::default()
    };
    let world = World::new(&options)?;
    let prefix = pinned(plan.server_cpus.as_deref());
    let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
    let native = Nginx::start_by(&world, Side::Plain, &prefix)?;
    let guest = Nginx::start_by(&world, Side::Guest, &prefix)?;
    describe(&plan, words)?;
    loads(&world, &plan, [&native, &guest])?;
    idle(&world, [&native, &guest])?;
    guest.stop()?;
    native.stop()?;
    world.close()
}

impl Plan {
    fn parse(words: &[String]) -> Result<Self> {
        let mut plan =
            Plan { rounds: 5, seconds: 5, server_cpus: None, client_cpus: None, nsm: Nsm::Inline };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--rounds" => plan.rounds = value.parse().context("--rounds")?,
                "--seconds" => plan.seconds = value.parse().context("--seconds")?,
                "--server-cpus" => plan.server_cpus = Some(value.clone()),
                "--client-cpus" => plan.client_cpus = Some(value.clone()),
                "--nsm" => {
                    plan.nsm = match value.as_str() {
                        "inline" => Nsm::Inline,
                        "separate" => Nsm::Separate,
                        other => bail!("--nsm is inline or separate, not {other:?}"),
                    }
                }
                other => bail!("bench has no option {other:?}"),
            }
        }
        ensure!(plan.rounds > 0 && plan.seconds > 0, "at least one round of one second");
        Ok(plan)
    }
}

fn pinned(cpus: Option<&str>) -> Vec<String> {
    cpus.map_or_else(Vec::new, |cpus| ["/usr/bin/taskset", "-c", cpus].map(str::to_owned).to_vec())
}

/// 1,000 connections are more descriptors than a shell allows by default.
fn raise_descriptor_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("descriptor limit")
}

/// Where and how, so that the figures can be placed.
fn describe(plan: &Plan, words: &[String]) -> Result<()> {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let cpu = read("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let place = |cpus: &Option<String>| {
        cpus.as_ref().map_or("unpinned".to_owned(), |c| format!("CPUs {c}"))
    };
    let others = background(Duration::from_secs(2))?;
    println!(
        "Command: `cargo xtask bench{}`.",
        words.iter().map(|w| format!(" {w}")).collect::<String>()
    );
    println!();
    println!(
        "- machine: {} CPUs, {}, Linux {}",
        cpus(),
        model.trim_start_matches([' ', '\t', ':']),
        rustix::system::uname().release().to_string_lossy()
    );
    println!(
        "- placement: nginx ({WORKERS} workers), daemon, NSM: {}; wrk: {}; NSM {}",
        place(&plan.server_cpus),
        place(&plan.client_cpus),
        if plan.nsm == Nsm::Inline { "inline" } else { "a process of its own" }
    );
    println!(
        "- congestion control on both sides: {}",
        read("/proc/sys/net/ipv4/tcp_congestion_control")?
    );
    println!(
        "- load: wrk -t2 -c{CONNECTIONS} over 127.0.0.1, 64-byte answers; {} rounds of {} s, guest and native in turn",
        plan.rounds, plan.seconds
    );
    println!(
        "- CPU per request: all of the machine that was not idle (/proc/stat), wrk and kernel included"
    );
    println!(
        "- the machine was {:.1} % busy with other things before the first round",
        others * 100.0
    );
    println!();
    Ok(())
}

fn loads(world: &World, plan: &Plan, servers: [&Nginx; 2]) -> Result<()> {
    println!(
        "| load | figure | native: median (least to greatest) | guest: median (least to greatest) | guest/native |"
    );
    println!("|---|---|---|---|---|");
    let client = pinned(plan.client_cpus.as_deref());
    for (name, short) in [("keep-alive", false), ("one connection per request", true)] {
        let mut samples: [Vec<Sample>; 2] = [Vec::new(), Vec::new()];
        for round in 0..plan.rounds {
            // Who goes first takes turns, too.
            for turn in 0..2 {
                let which = (round + turn) % 2;
                let (Some(server), Some(samples)) = (servers.get(which), samples.get_mut(which))
                else {
                    bail!("no server {which}")
                };
                let url = server.url();
                let load = WrkLoad {
                    url: &url,
                    connections: CONNECTIONS,
                    threads: 2,
                    seconds: plan.seconds,
                    short,
                };
                samples.push(sample(world, &load, &client)?);
            }
        }
        let [native, guest] = &samples;
        let rates = |samples: &[Sample]| spread(samples.iter().map(|s| s.per_second));
        let costs = |samples: &[Sample]| spread(samples.iter().map(|s| s.cpu_us_per_request));
        line(name, "requests/s", rates(native)?, rates(guest)?, 0);
        line(name, "machine's CPU, µs/request", costs(native)?, costs(guest)?, 1);
    }
    println!();
    Ok(())
}

fn line(load: &str, figure: &str, native: Spread, guest: Spread, digits: usize) {
    let show = |s: Spread| {
        format!("{:.digits$} ({:.digits$} to {:.digits$})", s.median, s.least, s.greatest)
    };
    println!(
        "| {load} | {figure} | {} | {} | {:.2} |",
        show(native),
        show(guest),
        guest.median / native.median
    );
}

/// CPU time of the processes that serve 1,000 connections on which nothing happens.
fn idle(world: &World, servers: [&Nginx; 2]) -> Result<()> {
    println!(
        "| {IDLE_CONNECTIONS} idle connections over {IDLE_SECONDS} s | CPU, % of one core | its processes |"
    );
    println!("|---|---|---|");
    let [native, guest] = servers;
    for (name, server, mut pids) in
        [("native", native, Vec::new()), ("guest, with daemon and keeper", guest, world.nk_pids()?)]
    {
        pids.push(server.running.pid());
        pids.extend(server.workers()?);
        let connections = idle_connections(server.port)?;
        // What the last exchange left to do is not idle time.
        std::thread::sleep(Duration::from_secs(2));
        let used = |pids: &[u32]| pids.iter().map(|pid| procfs::cpu_time(*pid)).sum::<Duration>();
        let (before, begun) = (used(&pids), Instant::now());
        std::thread::sleep(Duration::from_secs(IDLE_SECONDS));
        let spent =
            used(&pids).saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64();
        println!("| {name} | {:.3} | {} |", spent * 100.0, pids.len());
        ensure!(connections.len() == IDLE_CONNECTIONS, "connections were lost");
        for mut stream in connections {
            exchange(&mut stream).context("an idle connection is dead")?;
        }
    }
    Ok(())
}

/// Connections that have each made one request.
fn idle_connections(port: u16) -> Result<Vec<TcpStream>> {
    (0..IDLE_CONNECTIONS)
        .map(|_| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            exchange(&mut stream)?;
            Ok(stream)
        })
        .collect()
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
