//! The two proofs that a guest has no network stack of its own: no process of it holds an IP socket, neither of the
//! host nor of its own namespace, and its namespace's interfaces never carried a packet.

use anyhow::{Context, Result, bail, ensure};

use crate::procfs;

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
    let namespace = procfs::net_namespace(pid).context("the guest has ended")?;
    let ours = procfs::net_namespace(std::process::id()).context("no namespace of our own")?;
    ensure!(namespace != ours, "the guest {pid} is in the host's network namespace");
    let host_sockets = procfs::ip_socket_inodes(std::process::id());
    let processes = procfs::in_net_namespace(namespace)?;
    let mut sockets = 0;
    for process in &processes {
        let held = procfs::socket_inodes(*process);
        let own_namespace = procfs::ip_socket_inodes(*process);
        sockets += held.len();
        let leaked: Vec<_> = held
            .iter()
            .filter(|inode| host_sockets.contains(inode) || own_namespace.contains(inode))
            .collect();
        if !leaked.is_empty() {
            let name = procfs::command_line(*process);
            bail!("guest process {process} ({name}) holds IP sockets, inodes {leaked:?}");
        }
    }
    let counters = procfs::interface_counters(pid)?;
    for (interface, carried) in &counters {
        ensure!(
            *carried == 0,
            "interface {interface} of the guest's namespace carried traffic: {carried}"
        );
    }
    ensure!(!processes.is_empty(), "no process in the guest's namespace");
    Ok(Isolation { processes: processes.len(), sockets, interfaces: counters.len() })
}

/// As [`check`], for a guest that serves or uses connections now: it must hold stand-ins, and somebody of `hosts` must
/// hold the real sockets, or the check looked in the wrong place.
pub fn check_busy(pid: u32, hosts: &[u32]) -> Result<Isolation> {
    let found = check(pid)?;
    ensure!(found.sockets > 0, "guest {pid} holds no sockets at all");
    if !hosts.is_empty() {
        let host_sockets = procfs::ip_socket_inodes(std::process::id());
        let held: usize = hosts
            .iter()
            .map(|host| procfs::socket_inodes(*host).intersection(&host_sockets).count())
            .sum();
        ensure!(held > 0, "neither daemon nor NSM (pids {hosts:?}) holds an IP socket of the host");
    }
    Ok(found)
}
