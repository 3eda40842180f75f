//! Processes, threads and signals; what they may use.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus,
    kill_process, pidfd_send_signal, waitpid,
};
use rustix::rand::GetRandomFlags;
use rustix::thread::{CapabilitySet, CapabilitySets, CpuSet};

use super::check;

/// A descriptor that becomes readable when the process has ended.
///
/// # Errors
/// Those of pidfd_open.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Some(pid).filter(|p| *p > 0).and_then(Pid::from_raw);
    let pid = pid.ok_or(io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether the process of the pidfd has ended.
#[must_use]
pub fn has_ended(pidfd: impl AsFd) -> bool {
    let mut p = [PollFd::new(&pidfd, PollFlags::IN)];
    poll(&mut p, Some(&Timespec::default())).is_ok_and(|n| n > 0)
}

/// SIGKILL; one that has ended is as good.
pub(crate) fn kill(pidfd: impl AsFd) {
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
}

/// A group's number, by name or number.
#[must_use]
pub fn group(name: &str) -> Option<u32> {
    if let Ok(gid) = name.parse() {
        return Some(gid);
    }
    let name = std::ffi::CString::new(name).ok()?;
    let mut buffer = vec![0u8; 1 << 16];
    // SAFETY: plain data that the call fills.
    let mut entry: libc::group = unsafe { zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: a name that ends, an entry, a buffer of that length, and where to say whether it was found: all ours.
    unsafe {
        let at = buffer.as_mut_ptr().cast();
        libc::getgrnam_r(name.as_ptr(), &raw mut entry, at, buffer.len(), &raw mut found);
    }
    (!found.is_null()).then_some(entry.gr_gid)
}

/// Kills a child that was not waited for.
pub(crate) fn kill_child(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Waits for a child, unless the options say otherwise; how it ended.
pub(crate) fn reap(pid: i32, options: WaitOptions) -> Option<WaitStatus> {
    let pid = Pid::from_raw(pid)?;
    let ended = rustix::io::retry_on_intr(|| waitpid(Some(pid), options));
    ended.ok().flatten().map(|(_, status)| status)
}

/// Ends a child, which may hang instead of having ended; how it ended.
pub(crate) fn end_child(pid: i32) -> Option<WaitStatus> {
    kill_child(pid);
    reap(pid, WaitOptions::empty())
}

/// A descriptor that is readable when the signal came. The signal is blocked in this thread from now on, and in those that it starts.
///
/// # Errors
/// Those of signalfd.
pub fn signals(signal: i32) -> io::Result<OwnedFd> {
    // SAFETY: a set of our own; what the kernel makes is nobody else's.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        Ok(OwnedFd::from_raw_fd(check(libc::signalfd(-1, &raw const set, flags))?))
    }
}

/// Empties such a descriptor.
pub fn drain_signals(fd: impl AsFd) {
    // One record.
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(&fd, &mut info).is_ok_and(|n| n > 0) {}
}

/// Raises RLIMIT_NOFILE to the hard limit and returns it.
pub fn raise_fd_limit() -> u64 {
    let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Nofile);
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    maximum.unwrap_or(u64::MAX)
}

/// 128 random bits.
///
/// # Errors
/// Those of getrandom.
pub fn random() -> io::Result<(u64, u64)> {
    let mut b = [0u8; 16];
    // So few come whole or not at all.
    rustix::rand::getrandom(&mut b, GetRandomFlags::empty())?;
    let n = u128::from_ne_bytes(b);
    Ok((n as u64, (n >> 64) as u64))
}

/// Names the calling thread, as ps and top show it.
pub fn name_thread(name: &std::ffi::CStr) {
    let _ = rustix::thread::set_name(name);
}

/// The CPUs that are online, as far as the kernel says.
pub(crate) fn cores_online() -> Vec<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let parse = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    };
    let cores: Vec<usize> = text.trim().split(',').filter_map(parse).flatten().collect();
    if cores.is_empty() {
        return (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    }
    cores
}

/// Lets the calling thread, and those that it makes, run on these CPUs only; on all where none is named.
///
/// # Errors
/// EINVAL where it may run on none of them.
pub(crate) fn pin(cores: &[usize]) -> io::Result<()> {
    if cores.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    cores.iter().filter(|c| **c < CpuSet::MAX_CPU).for_each(|c| set.set(*c));
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// The CPU on which the calling thread runs.
pub(crate) fn cpu() -> usize {
    rustix::thread::sched_getcpu()
}

/// A thread that runs on one CPU for a while.
#[derive(Debug)]
pub(crate) struct Stay {
    cpu: usize,
    /// Where it may run otherwise.
    allowed: CpuSet,
}

impl Stay {
    /// The calling thread goes on on this CPU, if it may run there, and stays.
    ///
    /// # Errors
    /// Those of sched_setaffinity.
    pub(crate) fn on(cpu: usize) -> io::Result<Option<Stay>> {
        let allowed = rustix::thread::sched_getaffinity(None)?;
        if cpu >= CpuSet::MAX_CPU || !allowed.is_set(cpu) || allowed.count() == 1 {
            return Ok(None);
        }
        pin(&[cpu])?;
        Ok(Some(Stay { cpu, allowed }))
    }

    /// The scheduler places the calling thread as before, unless somebody said meanwhile where it is to run.
    ///
    /// # Errors
    /// Those of sched_setaffinity.
    pub(crate) fn end(&self) -> io::Result<()> {
        let now = rustix::thread::sched_getaffinity(None)?;
        if now.count() == 1 && now.is_set(self.cpu) {
            rustix::thread::sched_setaffinity(None, &self.allowed)?;
        }
        Ok(())
    }
}

/// The calling thread, and those that it makes, have these capabilities and no others.
///
/// # Errors
/// EPERM where one of them is not there.
pub(crate) fn set_capabilities(mask: u64) -> io::Result<()> {
    let set = CapabilitySet::from_bits_retain(mask);
    let sets =
        CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Neither exec nor a debugger of the same user gets more than this process has.
///
/// # Errors
/// Those of prctl.
pub(crate) fn no_new_privileges() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rustix::thread::{sched_getaffinity, sched_setaffinity};

    fn set(cpus: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        cpus.iter().for_each(|c| set.set(*c));
        set
    }

    fn allowed() -> CpuSet {
        sched_getaffinity(None).expect("affinity")
    }

    /// The calling thread stays where it may run, and there is no CPU on which it might otherwise, until it is told of some.
    pub(crate) fn stay_without_end() -> Stay {
        let cpu = (0..CpuSet::MAX_CPU).find(|c| allowed().is_set(*c)).expect("a CPU");
        pin(&[cpu]).expect("pinned");
        Stay { cpu, allowed: CpuSet::new() }
    }

    #[test]
    fn a_thread_stays_and_then_runs_where_it_might_before() {
        let stays = || {
            let before = allowed();
            let may = |c: &usize| before.is_set(*c);
            let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(may).collect();
            let &[cpu, other, ..] = &cpus[..] else {
                assert!(Stay::on(cpus[0]).expect("asked").is_none(), "it is there anyway");
                return;
            };
            let stay = || Stay::on(cpu).expect("asked").expect("it may");
            let stayed = stay();
            assert_eq!((allowed(), cpu), (set(&[cpu]), super::cpu()));
            stayed.end().expect("the end");
            assert_eq!(allowed(), before);
            // Somebody says where it is to run, meanwhile and before.
            for says in [set(&[other]), set(&[cpu, other])] {
                let stayed = stay();
                sched_setaffinity(None, &says).expect("set");
                stayed.end().expect("the end");
                assert_eq!(allowed(), says);
                sched_setaffinity(None, &before).expect("set");
            }
            sched_setaffinity(None, &set(&[other])).expect("set");
            assert!(Stay::on(cpu).expect("asked").is_none(), "it may not run there");
            assert!(Stay::on(CpuSet::MAX_CPU).expect("asked").is_none(), "nobody can");
        };
        std::thread::spawn(stays).join().expect("it stays");
    }
}
