//! The two proofs that a guest has no network stack of its own: no process of it holds an IP socket, neither of the
//! host nor of its own namespace, and its namespace's interfaces never carried a packet.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::procfs;

/// How long a process may take from its start to its namespace.
const ENTERS: Duration = Duration::from_secs(5);

/// What was looked at, for the record: a check that looked at nothing proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isolation {
    pub processes: usize,
    /// Descriptors of the guest's processes that are sockets: stand-ins and Unix sockets.
    pub sockets: usize,
    pub interfaces: usize,
}

/// Checks the guest that the process belongs to, all of its processes included.
pub fn check(pid: u32) -> Result<Isolation> {
    look(pid, &[]).map(|(found, _)| found)
}

/// As [`check`], for a guest that serves or uses connections now: it must hold stand-ins, and somebody of `hosts` must
/// hold the real sockets, or the check looked in the wrong place. How many they hold is the second answer.
pub fn check_busy(pid: u32, hosts: &[u32]) -> Result<(Isolation, usize)> {
    let (found, held) = look(pid, hosts)?;
    ensure!(found.sockets > 0, "guest {pid} holds no sockets at all");
    ensure!(
        hosts.is_empty() || held > 0,
        "neither daemon nor NSM (pids {hosts:?}) holds an IP socket of the host"
    );
    Ok((found, held))
}

/// The guest's processes are looked at first: the tables of the host are long under load, and take their time.
fn look(pid: u32, hosts: &[u32]) -> Result<(Isolation, usize)> {
    let ours = procfs::net_namespace(std::process::id()).context("no namespace of our own")?;
    let namespace = || procfs::net_namespace(pid).context("the guest has ended");
    // On a busy machine `nk run` may not have come to that yet.
    let end = Instant::now() + ENTERS;
    while namespace()? == ours && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    let namespace = namespace()?;
    ensure!(namespace != ours, "the guest {pid} is in the host's network namespace");
    let counters = procfs::interface_counters(pid)?;
    for (interface, carried) in &counters {
        ensure!(
            *carried == 0,
            "interface {interface} of the guest's namespace carried traffic: {carried}"
        );
    }
    let own_namespace = procfs::ip_socket_inodes(pid);
    let processes = procfs::in_net_namespace(namespace)?;
    ensure!(!processes.is_empty(), "no process in the guest's namespace");
    let held: Vec<_> = processes
        .iter()
        .map(|process| (*process, procfs::command_line(*process), procfs::socket_inodes(*process)))
        .collect();
    let hosts: Vec<_> = hosts.iter().map(|host| procfs::socket_inodes(*host)).collect();
    let host_sockets = procfs::ip_socket_inodes(std::process::id());
    for (process, name, inodes) in &held {
        let is_ip = |inode: &&u64| host_sockets.contains(inode) || own_namespace.contains(inode);
        let leaked: Vec<_> = inodes.iter().filter(is_ip).collect();
        if !leaked.is_empty() {
            bail!("guest process {process} ({name}) holds IP sockets, inodes {leaked:?}");
        }
    }
    let sockets = held.iter().map(|(_, _, inodes)| inodes.len()).sum();
    let by_hosts = hosts.iter().map(|inodes| inodes.intersection(&host_sockets).count()).sum();
    Ok((Isolation { processes: processes.len(), sockets, interfaces: counters.len() }, by_hosts))
}
