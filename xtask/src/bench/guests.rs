//! One busy guest beside many on which nothing happens: `guests`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nk_programs::load::WrkLoad;
use nk_programs::nginx::Nginx;
use nk_programs::process::{Running, eventually};
use nk_programs::procfs;
use nk_programs::world::{Side, World};

use super::Plan;
use super::idle::{IDLE_SECONDS, Memory};
use super::place::pinned;
use super::table::{by_figure, line};
use crate::measure::sample;

const IDLE: [usize; 2] = [100, 1000];
const CONNECTIONS: [u32; 2] = [1, 64];

/// A daemon with a busy guest, and with idle ones.
struct Host {
    world: World,
    nginx: Nginx,
    idle: Vec<Running>,
}

impl Host {
    fn start(plan: &Plan) -> Result<Host> {
        let world = plan.world()?;
        let prefix = pinned(plan.server_cpus.as_deref());
        let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
        let nginx = Nginx::start_by(&world, Side::Guest, &prefix)?;
        Ok(Host { world, nginx, idle: Vec::new() })
    }

    fn add_idle(&mut self, count: usize) -> Result<()> {
        while self.idle.len() < count {
            let name = format!("idle{}", self.idle.len());
            let mut words = self.world.prefix(Side::Guest)?;
            words.pop();
            words.extend(["--name", &name, "--", "/usr/bin/sleep", "3600"].map(str::to_owned));
            self.idle.push(self.world.start(&name, Side::Plain, &words)?);
            // All at once would measure how programs start on this machine.
            if self.idle.len().is_multiple_of(20) {
                self.attached()?;
            }
        }
        self.attached()?;
        // They doze after some polls.
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    }

    fn attached(&self) -> Result<()> {
        eventually(Duration::from_secs(30), || {
            let listed = self.world.control(&["guests"])?;
            let idle =
                listed.lines().filter(|l| l.split_whitespace().any(|w| w.starts_with("idle")));
            ensure!(idle.count() == self.idle.len(), "guests are missing: {listed}");
            Ok(())
        })
    }

    fn wrk(&self, plan: &Plan, connections: u32) -> Result<[f64; 2]> {
        let url = self.nginx.url();
        let seconds = plan.seconds;
        let load = WrkLoad { url: &url, connections, threads: 1, seconds, short: false };
        let sample = sample(&self.world, &load, &pinned(plan.client_cpus.as_deref()))?;
        Ok([sample.per_second, sample.cpu_us_per_request])
    }

    fn stop(self) -> Result<()> {
        for running in self.idle {
            drop(running);
        }
        self.nginx.stop()?;
        self.world.close()
    }
}

/// The same load on two daemons in turn; beside one of the two servers are idle guests.
pub(super) fn guests(plan: &Plan) -> Result<()> {
    let (alone, mut beside) = (Host::start(plan)?, Host::start(plan)?);
    let pids = beside.world.nk_pids()?;
    let before = Memory::of(&pids)?;
    println!("nginx as a guest, alone and beside idle guests (a sleeping process each).\n");
    println!("| load | figure | alone | beside them | ratio |");
    println!("|---|---|---|---|---|");
    for count in IDLE {
        beside.add_idle(count)?;
        for connections in CONNECTIONS {
            let mut samples = [Vec::new(), Vec::new()];
            for round in 0..plan.rounds {
                for turn in 0..2 {
                    let which = (round + turn) % 2;
                    let host = if which == 0 { &alone } else { &beside };
                    if let Some(s) = samples.get_mut(which) {
                        s.push(host.wrk(plan, connections)?);
                    }
                }
            }
            let [a, b] = samples;
            let (a, b) = (by_figure(&a)?, by_figure(&b)?);
            let load = format!("{count} idle guests, wrk -c{connections}");
            let figures = [("requests/s", 0), ("machine's CPU, µs/request", 1)];
            for ((figure, a), b) in figures.into_iter().zip(a).zip(b) {
                line(&load, figure, Some(a), Some(b));
            }
        }
    }
    let after = Memory::of(&pids)?;
    let used = || pids.iter().map(|pid| procfs::cpu_time(*pid)).sum::<Duration>();
    let (cpu, begun) = (used(), Instant::now());
    std::thread::sleep(Duration::from_secs(IDLE_SECONDS));
    let spent = used().saturating_sub(cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    let most = IDLE.last().copied().context("a number of guests")?;
    let each = (after.resident_kib.saturating_sub(before.resident_kib)) as f64 / most as f64;
    println!(
        "\n{most} idle guests: {:.3} % of a core in daemon and keeper over {IDLE_SECONDS} s; {each:.0} KiB resident (Pss) there per guest.",
        spent * 100.0
    );
    beside.stop()?;
    alone.stop()
}
