//! `nk bench switch`: how many NQEs per second CoreEngine switches on one core.
//!
//! Four guests with a queue set each have their connections; producers on another core push SEND NQEs for sockets in random order,
//! and the NSM's end of the rings is drained there, too. What is measured is [`Engine::poll`](nk_engine::Engine::poll) as the
//! daemon calls it, with every check, limit and count. Two figures:
//!
//! - **the engine's core**: both cores in turn. The other core fills the rings, then the engine's time for switching what is there is
//!   taken. This is what one core can do, with every line of the rings coming from the other core's cache.
//! - **all at once**: wall-clock time with both cores running freely. One core that plays four guests and an NSM may be slower
//!   than the engine.
//!
//! The batch is how many NQEs the engine takes from a queue set in one turn.

mod measure;
mod world;

use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::spread::Spread;
use measure::{Figures, measure};
use world::World;

/// Guests.
const GUESTS: usize = 4;
/// Paper §7.2: batch and million NQEs per second on one core.
const PAPER: [(u32, f64); 9] = [
    (1, 8.0),
    (2, 14.4),
    (4, 22.3),
    (8, 41.4),
    (16, 65.9),
    (32, 100.2),
    (64, 119.6),
    (128, 178.2),
    (256, 198.5),
];

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Samples of each figure.
    pub rounds: usize,
    /// Milliseconds of each sample.
    pub sample_ms: u64,
    /// Connections of all guests together, one column each.
    pub connections: Vec<u32>,
    /// Batches, one line each; none: the paper's.
    pub batches: Vec<u32>,
    /// The engine's CPU and that of producers and NSM; none: the first two that this process may use.
    pub cpus: Option<(usize, usize)>,
}

/// Measures and prints a Markdown table.
///
/// # Errors
/// When there are not two CPUs or not enough memory, or when an NQE is lost or refused.
pub fn run(options: &Options, out: &mut dyn Write) -> Result<()> {
    ensure!(options.rounds > 0 && options.sample_ms > 0, "at least one round of one millisecond");
    ensure!(!options.connections.is_empty(), "no number of connections");
    let cpus = pick_cpus(options.cpus)?;
    let batches: Vec<u32> = match options.batches.as_slice() {
        [] => PAPER.iter().map(|(batch, _)| *batch).collect(),
        some => some.to_vec(),
    };
    let mut worlds = Vec::new();
    for connections in &options.connections {
        worlds.push(World::new(GUESTS, *connections)?);
    }
    let mut samples: Vec<Vec<Vec<Figures>>> = vec![vec![Vec::new(); batches.len()]; worlds.len()];
    for _ in 0..options.rounds {
        for (world, samples) in worlds.iter_mut().zip(&mut samples) {
            for (batch, samples) in batches.iter().zip(samples) {
                samples.push(measure(world, *batch, options.sample_ms, cpus)?);
            }
        }
    }
    for world in &worlds {
        world.check()?;
    }
    describe(options, cpus, &worlds, out)?;
    table(out, "the engine's core", &worlds, &batches, &samples, |f| f.engine)?;
    table(out, "all at once", &worlds, &batches, &samples, |f| f.wall)?;
    Ok(())
}

fn pick_cpus(wanted: Option<(usize, usize)>) -> Result<(usize, usize)> {
    let allowed = sched_getaffinity(None).context("sched_getaffinity")?;
    let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    match wanted {
        Some((a, b)) if a == b => bail!("the engine and the producers need a CPU each"),
        Some((a, b)) => {
            for cpu in [a, b] {
                ensure!(
                    cpu < CpuSet::MAX_CPU && allowed.is_set(cpu),
                    "CPU {cpu} may not be used here"
                );
            }
            Ok((a, b))
        }
        None => match (usable.next(), usable.next()) {
            (Some(a), Some(b)) => Ok((a, b)),
            _ => bail!("two CPUs are needed: the engine has one, producers and NSM the other"),
        },
    }
}

fn describe(
    options: &Options,
    cpus: (usize, usize),
    worlds: &[World],
    out: &mut dyn Write,
) -> Result<()> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    writeln!(
        out,
        "- machine: {}, Linux {}",
        model.unwrap_or("unknown processor").trim_start_matches([' ', '\t', ':']),
        rustix::system::uname().release().to_string_lossy()
    )?;
    writeln!(
        out,
        "- placement: engine pinned to CPU {}; producers of {GUESTS} guests and the NSM's end pinned to CPU {}",
        cpus.0, cpus.1
    )?;
    writeln!(
        out,
        "- {} rounds, all figures in turn in each; samples of {} ms; median (least to greatest)",
        options.rounds, options.sample_ms
    )?;
    let larger = worlds.iter().filter(|w| w.cells() > nk_device::Layout::GUEST.cells);
    let larger: Vec<String> = larger.map(|w| w.connections().to_string()).collect();
    if !larger.is_empty() {
        writeln!(
            out,
            "- {} connections: in devices larger than a guest gets today (at most {} sockets)",
            larger.join(" and "),
            nk_device::Layout::GUEST.cells
        )?;
    }
    writeln!(out)?;
    Ok(())
}

fn table(
    out: &mut dyn Write,
    name: &str,
    worlds: &[World],
    batches: &[u32],
    samples: &[Vec<Vec<Figures>>],
    figure: impl Fn(&Figures) -> f64,
) -> Result<()> {
    write!(out, "| {name}: M NQE/s at batch | paper |")?;
    for world in worlds {
        write!(out, " {} connections |", world.connections())?;
    }
    writeln!(out)?;
    writeln!(out, "|---|---|{}", "---|".repeat(worlds.len()))?;
    for (line, batch) in batches.iter().enumerate() {
        let paper = PAPER.iter().find(|(b, _)| b == batch);
        let paper = paper.map_or("-".to_owned(), |(_, rate)| format!("{rate:.1}"));
        write!(out, "| {batch} | {paper} |")?;
        for samples in samples {
            let samples: Vec<f64> = samples.get(line).into_iter().flatten().map(&figure).collect();
            let s = Spread::of(&samples).context("no samples")?;
            write!(out, " {:.1} ({:.1} to {:.1}) |", s.median, s.least, s.greatest)?;
        }
        writeln!(out)?;
    }
    writeln!(out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every NQE arrives, at batches that do and do not divide a ring; the figures themselves are no test's matter.
    #[test]
    fn nothing_is_lost() {
        let mut world = World::new(2, 100).expect("world");
        let Ok(cpus) = pick_cpus(None) else {
            // Nothing to measure with, and nothing that a second core would prove: `run` says so.
            assert!(run_on_one_cpu().is_err());
            return;
        };
        for batch in [1, 3, 256] {
            let f = measure(&mut world, batch, 2, cpus).expect("measured");
            assert!(f.engine > 0.0 && f.wall > 0.0);
        }
        world.check().expect("no violations");
        assert_eq!(world.connections(), 100);
    }

    fn run_on_one_cpu() -> Result<()> {
        let options =
            Options { rounds: 1, sample_ms: 1, connections: vec![4], batches: vec![1], cpus: None };
        run(&options, &mut Vec::new())
    }

    #[test]
    fn one_cpu_twice_is_refused() {
        assert!(pick_cpus(Some((0, 0))).is_err());
    }
}
