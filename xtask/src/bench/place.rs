//! On which CPUs what runs.

use std::process::Command;

use anyhow::Result;
use nk_programs::world::World;

use crate::measure::cpus;
use crate::workspace;

/// Words before a command that run it on some CPUs.
pub(super) fn pinned(cpus: Option<&str>) -> Vec<String> {
    cpus.map_or_else(Vec::new, |cpus| ["/usr/bin/taskset", "-c", cpus].map(str::to_owned).to_vec())
}

/// Where the three parties of one connection run; none: anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) name: &'static str,
    /// The program that is measured: native, or a guest.
    pub(super) program: Option<&'static str>,
    /// Its peer, which is always native.
    pub(super) peer: Option<&'static str>,
    pub(super) daemon: Option<&'static str>,
    /// Differs from another only by the daemon, which native has none of.
    pub(super) for_guests_only: bool,
}

const ZERO: Option<&str> = Some("0");
const ONE: Option<&str> = Some("1");

const ALL: [Placement; 5] = [
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
];

/// The placements that this machine can have.
pub(super) fn all() -> impl Iterator<Item = Placement> {
    ALL.into_iter().filter(|p| cpus() > 1 || p.peer != ONE)
}

impl Placement {
    /// Moves the daemon with all that belongs to it.
    pub(super) fn move_daemon(&self, world: &World) -> Result<()> {
        let everywhere = format!("0-{}", cpus() - 1);
        let list = self.daemon.unwrap_or(&everywhere);
        for pid in world.nk_pids()? {
            let pid = pid.to_string();
            let mut command = Command::new("/usr/bin/taskset");
            command.args(["-a", "-c", "-p", list, &pid]).stdout(std::process::Stdio::null());
            workspace::run(&mut command)?;
        }
        Ok(())
    }
}
