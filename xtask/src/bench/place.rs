//! On which CPUs what runs.

use std::fmt::Write;
use std::process::Command;

use anyhow::{Context, Result};
use nk_programs::world::World;
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::workspace;

/// Words before a command that run it on some CPUs.
pub(super) fn pinned(cpus: Option<&str>) -> Vec<String> {
    cpus.map_or_else(Vec::new, |cpus| ["/usr/bin/taskset", "-c", cpus].map(str::to_owned).to_vec())
}

/// The CPUs that may be used, in order: all, unless the command was started with `taskset`.
pub(super) fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None).context("sched_getaffinity")?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// As taskset and the kernel write it: `0-2,4`.
pub(super) fn list(cpus: &[usize]) -> String {
    let mut text = String::new();
    for run in cpus.chunk_by(|one, next| *next == one + 1) {
        if let [first, .., last] = run {
            let _ = write!(text, ",{first}-{last}");
        } else if let [only] = run {
            let _ = write!(text, ",{only}");
        }
    }
    text.trim_start_matches(',').to_owned()
}

/// The first, second, third of the CPUs that may be used; none: any of them.
pub(super) type Cpu = Option<usize>;

/// Where the three parties of one connection run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) name: &'static str,
    /// The program that is measured: native, or a guest.
    pub(super) program: Cpu,
    /// Its peer, which is always native.
    pub(super) peer: Cpu,
    pub(super) daemon: Cpu,
    /// Differs from another only by the daemon, which native has none of.
    pub(super) for_guests_only: bool,
}

const ZERO: Cpu = Some(0);
const ONE: Cpu = Some(1);
const TWO: Cpu = Some(2);

const ALL: [Placement; 6] = [
    Placement { name: "unpinned", program: None, peer: None, daemon: None, for_guests_only: false },
    Placement { name: "one CPU", program: ZERO, peer: ZERO, daemon: ZERO, for_guests_only: false },
    Placement {
        name: "two CPUs, daemon beside the program",
        program: ZERO,
        peer: ONE,
        daemon: ZERO,
        for_guests_only: false,
    },
    Placement {
        name: "two CPUs, daemon beside the peer",
        program: ZERO,
        peer: ONE,
        daemon: ONE,
        for_guests_only: true,
    },
    // Native's counterpart is "one CPU".
    Placement {
        name: "two CPUs, daemon alone",
        program: ZERO,
        peer: ZERO,
        daemon: ONE,
        for_guests_only: true,
    },
    // Native's counterpart is "two CPUs".
    Placement {
        name: "three CPUs, daemon alone",
        program: ZERO,
        peer: ONE,
        daemon: TWO,
        for_guests_only: true,
    },
];

/// The placements that this machine can have.
pub(super) fn all() -> Result<impl Iterator<Item = Placement>> {
    let cpus = allowed()?.len();
    Ok(ALL.into_iter().filter(move |place| {
        [place.program, place.peer, place.daemon].iter().flatten().all(|cpu| *cpu < cpus)
    }))
}

/// Words that run a program there.
pub(super) fn words(cpu: Cpu, program: &str, rest: &[&str]) -> Result<Vec<String>> {
    let mut words = match cpu {
        Some(cpu) => pinned(Some(&number(cpu)?.to_string())),
        None => Vec::new(),
    };
    words.extend([program].iter().chain(rest).map(|word| (*word).to_owned()));
    Ok(words)
}

/// The kernel's number of one of the CPUs that may be used.
fn number(cpu: usize) -> Result<usize> {
    allowed()?.get(cpu).copied().with_context(|| format!("here are no {} CPUs", cpu + 1))
}

impl Placement {
    /// Moves the daemon with all that belongs to it.
    pub(super) fn move_daemon(&self, world: &World) -> Result<()> {
        let cpus = match self.daemon {
            Some(cpu) => vec![number(cpu)?],
            None => allowed()?,
        };
        let list = list(&cpus);
        for pid in world.nk_pids()? {
            let pid = pid.to_string();
            let mut command = Command::new("/usr/bin/taskset");
            command.args(["-a", "-c", "-p", &list, &pid]).stdout(std::process::Stdio::null());
            workspace::run(&mut command)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(list(&[0]), "0");
        assert_eq!(list(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
    }
}
