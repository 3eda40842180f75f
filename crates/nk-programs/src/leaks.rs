//! What must be the same before and after a test: processes of `nk`, the daemon's descriptors, its guests and flows,
//! shared memory and named namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::World;
use crate::process::{eventually, signal_pid};
use crate::procfs;

/// How long the host may take to notice that a guest has ended and to take back what it held.
const SETTLE: Duration = Duration::from_secs(15);

/// All processes that run this very binary in a test's surroundings: each has them in the environment that it was started with.
pub fn nk_processes(nk: Option<&Path>, world: &Path) -> Result<BTreeSet<u32>> {
    let Some(nk) = nk else { return Ok(BTreeSet::new()) };
    let (nk, home) = (nk.to_string_lossy(), runtime_dir(world));
    Ok(procfs::pids()?
        .into_iter()
        .filter(|pid| procfs::exe(*pid).is_some_and(|exe| exe == nk) && !procfs::is_gone(*pid))
        .filter(|pid| procfs::variable(*pid, "XDG_RUNTIME_DIR").is_some_and(|dir| dir == home))
        .collect())
}

/// What a test's programs find as XDG_RUNTIME_DIR: of this test alone.
#[must_use]
pub fn runtime_dir(world: &Path) -> PathBuf {
    world.join("run")
}

/// Names that NetKernel could leave outside of its processes, but those of other tests that run now.
pub fn files(world: &Path) -> BTreeSet<String> {
    let own = world.file_name().unwrap_or_default().to_string_lossy();
    ["/dev/shm", "/run/netns"]
        .iter()
        .filter_map(|dir| Some((dir, fs::read_dir(dir).ok()?)))
        .flat_map(|(dir, entries)| {
            entries.flatten().map(move |e| format!("{dir}/{}", e.file_name().to_string_lossy()))
        })
        // Its own names only: others use the machine, too.
        .filter(|path| path.contains("netkernel"))
        .filter(|path| !path.contains(WORLD_NAME) || path.ends_with(&*own))
        .collect()
}

/// How the name of each test's directory begins.
pub const WORLD_NAME: &str = "nk-programs-";

/// Errors if processes are there, or files that were not there before.
pub fn nothing_left(
    nk: Option<&Path>,
    world: &Path,
    files_before: &BTreeSet<String>,
) -> Result<()> {
    eventually(SETTLE, || {
        let processes: Vec<String> = nk_processes(nk, world)?
            .into_iter()
            .map(|pid| format!("{pid} ({})", procfs::command_line(pid)))
            .collect();
        ensure!(processes.is_empty(), "processes left behind: {}", processes.join(", "));
        let now = files(world);
        let files: Vec<_> = now.difference(files_before).cloned().collect();
        ensure!(files.is_empty(), "left behind: {}", files.join(", "));
        Ok(())
    })
}

/// Private daemons remove their directories when they end.
pub fn directory_is_empty(directory: &Path) -> Result<()> {
    eventually(SETTLE, || {
        let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
        let names: Vec<_> =
            entries.flatten().map(|entry| entry.path().display().to_string()).collect();
        ensure!(names.is_empty(), "left behind: {}", names.join(", "));
        Ok(())
    })
}

/// Ends processes of `nk` that a failed test left.
pub fn kill_leftovers(nk: Option<&Path>, world: &Path) {
    for pid in nk_processes(nk, world).unwrap_or_default() {
        signal_pid(pid, Signal::KILL);
    }
}

/// The daemon with no guest: how many descriptors each of its processes holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonState {
    /// By role (daemon, keeper, nsm), since a test may have started the daemon again.
    descriptors: BTreeMap<String, usize>,
}

impl DaemonState {
    /// Waits for all guests to be gone, then counts.
    pub fn of(world: &World) -> Result<Self> {
        eventually(SETTLE, || no_guests(world))?;
        // What a guest's end sets free may take a moment more.
        let mut last = Self::count(world)?;
        let mut same = 0;
        eventually(SETTLE, || {
            std::thread::sleep(Duration::from_millis(100));
            let next = Self::count(world)?;
            same = if next == last { same + 1 } else { 0 };
            last = next;
            ensure!(same >= 5, "the daemon's descriptors keep changing");
            Ok(())
        })?;
        Ok(last)
    }

    /// Counts now, whatever guests there are.
    pub fn count(world: &World) -> Result<Self> {
        let mut descriptors = BTreeMap::new();
        for pid in world.nk_pids()? {
            let role = procfs::command_line(pid).split(' ').nth(1).unwrap_or("?").to_owned();
            *descriptors.entry(role).or_insert(0) += procfs::descriptors(pid).len();
        }
        // A look that finds less than there must be has looked in the wrong place.
        for role in ["daemon", "keeper"] {
            ensure!(
                descriptors.contains_key(role),
                "no {role} among the processes {descriptors:?}"
            );
        }
        Ok(DaemonState { descriptors })
    }
}

/// Errors while the daemon knows any guest or flow.
fn no_guests(world: &World) -> Result<()> {
    for list in ["guests", "flows"] {
        let text = world.control(&[list, "--json"])?;
        let value: serde_json::Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        let count = value.as_array().map(Vec::len).context("not a JSON array")?;
        ensure!(count == 0, "`nk {list}` still lists {count}: {}", text.trim());
    }
    Ok(())
}

/// Errors unless the daemon is as it was before.
pub fn daemon_is_back(world: &World, before: &DaemonState) -> Result<()> {
    eventually(SETTLE, || {
        no_guests(world)?;
        let now = DaemonState::count(world)?;
        ensure!(
            now == *before,
            "descriptors were {:?}, are {:?}; guests: {}",
            before.descriptors,
            now.descriptors,
            world.control(&["guests", "--json"])?.trim()
        );
        Ok(())
    })
}

/// What one guest holds on the host, as `nk guests` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestCounts {
    pub processes: u64,
    pub queue_sets: u64,
    pub sockets: u64,
    pub connections: u64,
    pub holds: u64,
    /// As the NSM counts them.
    pub nsm_sockets: u64,
    pub orphans: u64,
    /// Chunks that carry bytes, either way.
    pub chunks_busy: u64,
    /// Chunks that are free or leased to processes ahead of use: together, what is not lost.
    pub chunks_idle: u64,
}

/// Chunks that a process may have been given ahead of use: ServiceLib's share of a row, twice when it asked.
const LEASED_PER_PROCESS_MAX: u64 = 128;

impl GuestCounts {
    /// The guest that the process belongs to.
    pub fn of(world: &World, pid: u32) -> Result<Self> {
        let guest = describe_guest(world, pid)?;
        let number = |path: &str| {
            guest
                .pointer(path)
                .and_then(serde_json::Value::as_u64)
                .with_context(|| format!("`nk guests --json` has no number {path}: {guest}"))
        };
        let processes = number("/engine/rows")?;
        let leased = number("/nsm/chunks_leased")?;
        let leased_max = processes * LEASED_PER_PROCESS_MAX;
        ensure!(leased <= leased_max, "{leased} chunks leased to {processes} processes");
        Ok(GuestCounts {
            processes,
            queue_sets: number("/engine/queue_sets")?,
            sockets: number("/engine/sockets")?,
            connections: number("/engine/connections_open")?,
            holds: number("/holds")?,
            nsm_sockets: number("/nsm/sockets")?,
            orphans: number("/nsm/orphans")?,
            chunks_busy: number("/nsm/chunks_tx")? + number("/nsm/chunks_rx")?,
            chunks_idle: number("/nsm/chunks_free")? + leased,
        })
    }
}

/// What `nk guests` says of the guest that the process belongs to.
pub fn describe_guest(world: &World, pid: u32) -> Result<serde_json::Value> {
    let text = world.control(&["guests", "--json"])?;
    let guests: Vec<serde_json::Value> =
        serde_json::from_str(&text).with_context(|| text.clone())?;
    let has = |guest: &serde_json::Value| {
        let processes = guest.get("processes").and_then(serde_json::Value::as_array);
        processes.is_some_and(|all| all.iter().any(|one| one.get("pid") == Some(&pid.into())))
    };
    guests
        .into_iter()
        .find(has)
        .with_context(|| format!("`nk guests` does not list process {pid}: {text}"))
}
