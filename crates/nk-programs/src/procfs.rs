//! What the kernel says in /proc: processes, their namespaces, descriptors, memory and CPU time.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Clock ticks per second in /proc: fixed by the kernel's ABI on every architecture that this runs on.
const TICKS_PER_SECOND: u64 = 100;

/// All pids at this moment.
pub fn pids() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// The inode of a process's network namespace.
#[must_use]
pub fn net_namespace(pid: u32) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    bracketed(link.to_str()?, "net")
}

/// All processes in a guest's network namespace, zombies excluded (they have no namespace any more).
///
/// Errors for the namespace of this process: that a guest "is" there means that `nk run` has not entered its own yet, and what
/// else lives there is not a test's to look into or to kill.
pub fn in_net_namespace(namespace: u64) -> Result<Vec<u32>> {
    ensure!(net_namespace(std::process::id()) != Some(namespace), "not a guest's namespace");
    Ok(pids()?.into_iter().filter(|pid| net_namespace(*pid) == Some(namespace)).collect())
}

/// The executable behind a process.
#[must_use]
pub fn exe(pid: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    // A binary that was built anew while its process runs.
    Some(link.to_str()?.trim_end_matches(" (deleted)").to_owned())
}

/// The command line, words separated by blanks.
#[must_use]
pub fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

/// A variable of the environment that a process was started with.
#[must_use]
pub fn variable(pid: u32, name: &str) -> Option<PathBuf> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    bytes.split(|byte| *byte == 0).find_map(|line| {
        let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(PathBuf::from(OsStr::from_bytes(value)))
    })
}

/// The fields of /proc/PID/stat from the state on: index 0 is the state.
fn stat_fields(path: &str) -> Option<Vec<String>> {
    let text = fs::read_to_string(path).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// The parent of a process.
#[must_use]
pub fn parent(pid: u32) -> Option<u32> {
    stat_fields(&format!("/proc/{pid}/stat"))?.get(1)?.parse().ok()
}

/// Is the process gone, or only a zombie?
#[must_use]
pub fn is_gone(pid: u32) -> bool {
    stat_fields(&format!("/proc/{pid}/stat"))
        .is_none_or(|fields| fields.first().is_none_or(|state| state == "Z" || state == "X"))
}

/// Direct children of a process.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    Ok(pids()?
        .into_iter()
        .filter(|child| parent(*child) == Some(pid) && !is_gone(*child))
        .collect())
}

/// The processor on which a process ran last.
#[must_use]
pub fn last_cpu(pid: u32) -> Option<u32> {
    stat_fields(&format!("/proc/{pid}/stat"))?.get(36)?.parse().ok()
}

/// CPU time used by all threads of a process: nanoseconds where the kernel keeps them, else clock ticks.
#[must_use]
pub fn cpu_time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let nanoseconds: Option<u64> = threads.ok().and_then(|threads| {
        threads
            .flatten()
            .map(|thread| {
                let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
                text.split_whitespace().next()?.parse::<u64>().ok()
            })
            .sum()
    });
    match nanoseconds {
        Some(total) if total > 0 => Duration::from_nanos(total),
        _ => cpu_time_ticks(pid),
    }
}

/// User and system time from /proc/PID/stat, in steps of 10 ms.
#[must_use]
pub fn cpu_time_ticks(pid: u32) -> Duration {
    let fields = stat_fields(&format!("/proc/{pid}/stat")).unwrap_or_default();
    let ticks: u64 =
        [11, 12].iter().filter_map(|index| fields.get(*index)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

/// The machine's CPU time that was not idle (and not stolen by the host), from /proc/stat.
pub fn machine_busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user nice system (idle iowait) irq softirq: the rest is stolen or counted in user already.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|index| fields.get(*index)).sum();
    Ok(Duration::from_millis(busy * 1000 / TICKS_PER_SECOND))
}

/// The CPUs that [`machine_busy`] speaks of: all that are online, whatever this process may use.
pub fn machine_cpus() -> Result<usize> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let numbered = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    Ok(text.lines().filter(numbered).count())
}

/// Resident memory without what is mapped shared (a guest's device is counted in the guest and in the daemon).
#[must_use]
pub fn private_memory_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    value.and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// What each descriptor of a process refers to.
#[must_use]
pub fn descriptors(pid: u32) -> BTreeMap<u32, String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((number, target.to_string_lossy().into_owned()))
        })
        .collect()
}

/// The inodes of the sockets that a process holds.
#[must_use]
pub fn socket_inodes(pid: u32) -> BTreeSet<u64> {
    descriptors(pid).values().filter_map(|target| bracketed(target, "socket")).collect()
}

/// The inodes of all IP sockets in the network namespace of a process: TCP, UDP and raw, IPv4 and IPv6.
#[must_use]
pub fn ip_socket_inodes(pid: u32) -> BTreeSet<u64> {
    let tables =
        ["tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6"];
    tables
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok())
        .flat_map(|text| {
            text.lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().nth(9)?.parse().ok())
                .collect::<Vec<u64>>()
        })
        .filter(|inode| *inode != 0)
        .collect()
}

/// Bytes and packets that the interfaces of a process's network namespace have carried, both directions.
pub fn interface_counters(pid: u32) -> Result<BTreeMap<String, u64>> {
    let path = format!("/proc/{pid}/net/dev");
    let text = fs::read_to_string(&path).context(path)?;
    let counters = text.lines().skip(2).filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        // Received bytes and packets, sent bytes and packets.
        let sum = [0, 1, 8, 9].iter().filter_map(|index| numbers.get(*index)).sum();
        Some((name.trim().to_owned(), sum))
    });
    Ok(counters.collect())
}

fn bracketed(text: &str, kind: &str) -> Option<u64> {
    text.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_as_it_is() {
        let me = std::process::id();
        assert!(pids().unwrap().contains(&me));
        assert!(in_net_namespace(net_namespace(me).unwrap()).is_err());
        assert!(!is_gone(me));
        assert!(private_memory_bytes(me) > 0);
        assert_eq!(variable(me, "PATH"), std::env::var_os("PATH").map(PathBuf::from));
        assert_eq!(variable(me, "PAT"), None);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mine: Vec<u64> =
            socket_inodes(me).intersection(&ip_socket_inodes(me)).copied().collect();
        assert!(!mine.is_empty(), "the listener is an IP socket of this process");
        drop(listener);
    }

    #[test]
    fn cpu_time_grows_with_work() {
        // A process of one thread: of this one, threads of other tests end meanwhile, and their time goes with them.
        let mut busy = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .expect("a shell");
        let before = cpu_time(busy.id());
        std::thread::sleep(Duration::from_millis(300));
        let after = cpu_time(busy.id());
        busy.kill().expect("it runs");
        busy.wait().expect("it ends");
        assert!(after > before, "{before:?}, then {after:?}");
    }
}
