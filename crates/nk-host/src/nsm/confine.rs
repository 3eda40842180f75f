//! An NSM process reads what guests and the network write, so it has what a stack over given descriptors needs and nothing else: the
//! sockets, regions and doorbells that it was passed.
//!
//! No capability but the one to bind low ports (the engine decides which guest may), no files, no new programs, processes or
//! sockets. A system call that is not on the list kills the process: the daemon says so, counts it and starts another.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
};
use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use crate::seccomp::{self, For};
use crate::sys;

/// CAP_NET_BIND_SERVICE.
const BIND_LOW_PORTS: u64 = 1 << 10;

/// For the calling thread and those that it makes from now on. Whether Landlock could be had as well.
pub(super) fn give_up_privileges() -> io::Result<bool> {
    // An NSM of a daemon that is no root has nothing to keep.
    sys::set_capabilities(BIND_LOW_PORTS).or_else(|_| sys::set_capabilities(0))?;
    sys::no_new_privileges()?;
    // Where seccomp has a hole, paths still lead nowhere.
    let closed = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self);
    let is_closed = closed.as_ref().is_ok_and(|s| s.ruleset != RulesetStatus::NotEnforced);
    match closed {
        Ok(s) if s.ruleset != RulesetStatus::NotEnforced => {}
        Ok(_) => {
            tracing::info!("this kernel has no Landlock: seccomp alone keeps the NSM from files")
        }
        Err(e) => tracing::info!(error = %e, "no Landlock: seccomp alone keeps the NSM from files"),
    }
    Ok(is_closed)
}

/// Calls that the poll thread, the thread of the control socket, and the C library under them make, whatever their arguments.
const ALLOWED: &[i64] = &[
    // Sockets, doorbells, the daemon.
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_recvfrom,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_ioctl,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_io_uring_enter,
    // Waiting.
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // At the end, where a region has pages.
    libc::SYS_lseek,
    // Threads that exist, and ends.
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrandom,
    libc::SYS_sched_getaffinity,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Older forms of calls above, which only some machines have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_newfstatat];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[libc::SYS_newfstatat];

/// For all threads that there are.
pub(super) fn refuse_calls() -> io::Result<()> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(OLDER).map(|number| (*number, Vec::new())).collect();
    // Memory, but none that runs.
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        let runs = libc::PROT_EXEC as u64;
        let data =
            SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(runs), 0);
        let rule = SeccompRule::new(vec![data.map_err(io::Error::other)?]);
        rules.insert(number, vec![rule.map_err(io::Error::other)?]);
    }
    // The names of its own threads.
    let name = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        libc::PR_SET_NAME as u64,
    );
    let rule = SeccompRule::new(vec![name.map_err(io::Error::other)?]);
    rules.insert(libc::SYS_prctl, vec![rule.map_err(io::Error::other)?]);
    seccomp::install(rules, SeccompAction::Allow, SeccompAction::KillProcess, For::AllThreads)
}

/// See [`super::probe`].
pub(super) fn probe(what: &str) -> io::Result<()> {
    // Made before, as an NSM's is.
    let ring = super::kernel_stack(Box::new(crate::broker::Broker::new()), None, super::Io::Auto)?;
    let list = std::fs::File::open("/proc/sys/net/ipv4/tcp_allowed_congestion_control")?;
    if give_up_privileges()? && std::fs::File::open("/proc/self/status").is_ok() {
        return Err(io::Error::other("a file could be opened, with Landlock"));
    }
    refuse_calls()?;
    // What an NSM does all the time is still allowed.
    std::os::unix::fs::FileExt::read_at(&list, &mut [0; 16], 0)?;
    let memory = vec![0u8; 4 << 20];
    drop((memory, ring));
    // SAFETY: plain numbers, C strings, and null where nothing is to be filled.
    let r = unsafe {
        match what {
            "nothing" => return Ok(()),
            "socket" => libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0),
            "open" => libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY),
            "exec" => libc::execv(c"/bin/true".as_ptr(), std::ptr::null()),
            "fork" => libc::fork(),
            "setns" => libc::setns(0, libc::CLONE_NEWNET),
            "kill" => libc::kill(1, 0),
            "ptrace" => libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) as i32,
            "io_uring" => libc::syscall(libc::SYS_io_uring_setup, 1, 0) as i32,
            "run" => {
                let (none, len) = (std::ptr::null_mut(), 4096);
                let prot = libc::PROT_READ | libc::PROT_EXEC;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(none, len, prot, flags, -1, 0) as usize as i32
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
    };
    Err(io::Error::other(format!("{what} was not stopped: it returned {r}")))
}
