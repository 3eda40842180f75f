//! What must be the same before and after a test: processes of `nk`, the daemon's descriptors, its guests and flows,
//! shared memory and named namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::World;
use crate::process::{eventually, signal_pid};
use crate::procfs;

/// How long the host may take to notice that a guest has ended and to take back what it held.
const SETTLE: Duration = Duration::from_secs(15);

/// The machine before a test.
#[derive(Debug, Clone)]
pub struct Snapshot {
    nk: BTreeSet<u32>,
    files: BTreeSet<String>,
}

impl Snapshot {
    pub fn take(nk: Option<&Path>) -> Result<Self> {
        Ok(Snapshot { nk: nk_processes(nk)?, files: files() })
    }
}

impl Snapshot {
    /// Was this process of `nk` there already?
    #[must_use]
    pub fn has(&self, pid: u32) -> bool {
        self.nk.contains(&pid)
    }
}

/// All processes that run this very binary.
pub fn nk_processes(nk: Option<&Path>) -> Result<BTreeSet<u32>> {
    let Some(nk) = nk else { return Ok(BTreeSet::new()) };
    let nk = nk.to_string_lossy();
    Ok(procfs::pids()?
        .into_iter()
        .filter(|pid| procfs::exe(*pid).is_some_and(|exe| exe == nk) && !procfs::is_gone(*pid))
        .collect())
}

/// Names that NetKernel could leave outside of its processes.
fn files() -> BTreeSet<String> {
    ["/dev/shm", "/run/netns"]
        .iter()
        .filter_map(|dir| Some((dir, fs::read_dir(dir).ok()?)))
        .flat_map(|(dir, entries)| {
            entries.flatten().map(move |e| format!("{dir}/{}", e.file_name().to_string_lossy()))
        })
        // Its own names only: others use the machine, too.
        .filter(|path| path.contains("netkernel"))
        .collect()
}

/// Errors if processes or files are there that were not there before.
pub fn nothing_left(nk: Option<&Path>, before: &Snapshot) -> Result<()> {
    eventually(SETTLE, || {
        let now = Snapshot::take(nk)?;
        let processes: Vec<String> = now
            .nk
            .difference(&before.nk)
            .map(|pid| format!("{pid} ({})", procfs::command_line(*pid)))
            .collect();
        ensure!(processes.is_empty(), "processes left behind: {}", processes.join(", "));
        let files: Vec<_> = now.files.difference(&before.files).cloned().collect();
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

/// Ends processes of `nk` that a failed test left. Only those that were not there when it began.
pub fn kill_leftovers(nk: Option<&Path>, before: &Snapshot) {
    for pid in nk_processes(nk).unwrap_or_default().difference(&before.nk) {
        signal_pid(*pid, Signal::KILL);
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
