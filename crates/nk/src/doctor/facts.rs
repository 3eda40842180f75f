//! What the machine is asked. Where something can be tried, it is tried: a file that says what should work is believed by no one.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use nk_host::broker::Broker;
use nk_host::config::{Io, LinkKind};
use nk_host::nsm::kernel_stack;
use nk_host::sys;
use rustix::process::{Resource, geteuid, getrlimit};

use crate::run;

/// Whether it worked, or why not.
pub(super) type Trial = Result<(), String>;

/// A limit; none: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit(pub(super) Option<u64>);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(n) => n.fmt(f),
            None => f.write_str("any number"),
        }
    }
}

/// What is known of the machine.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) architecture: String,
    pub(super) kernel: String,
    pub(super) glibc: String,
    /// Where libnetkernel.so is, or why it does not load.
    pub(super) guestlib: Result<String, String>,
    pub(super) sealed_memfd: Trial,
    pub(super) eventfd: Trial,
    pub(super) pidfd: Trial,
    pub(super) seccomp: Trial,
    pub(super) root: bool,
    /// An empty network namespace, by way of a user namespace for others than root.
    pub(super) namespace: Trial,
    /// Kinds of links of guests' networks.
    pub(super) veth: Trial,
    pub(super) macvlan: Trial,
    pub(super) nofile_hard: Limit,
    pub(super) memory_available: u64,
    pub(super) memory_max: Limit,
    pub(super) pids_max: Limit,
    pub(super) cpus: usize,
    /// The chosen word of shmem_enabled.
    pub(super) shmem_huge: Option<String>,
    pub(super) io_uring: Trial,
    pub(super) qemu: Option<String>,
    pub(super) kvm: Trial,
}

impl Facts {
    pub(super) fn read() -> Facts {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let root = geteuid().is_root();
        let group = control_group(&text("/proc/self/cgroup"));
        let of_group = |file: &str| {
            let at = format!("/sys/fs/cgroup{}/{file}", group.as_deref().unwrap_or(""));
            group_limit(&text(&at))
        };
        let tried = |r: io::Result<()>| r.map_err(|e| e.to_string());
        Facts {
            architecture: std::env::consts::ARCH.to_owned(),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            glibc: glibc(),
            guestlib: run::find_library().map_err(|f| f.text),
            sealed_memfd: tried(sys::region("doctor", 4096).map(drop)),
            eventfd: tried(sys::eventfd().map(drop)),
            pidfd: tried(sys::pidfd(std::process::id() as i32).map(drop)),
            seccomp: seccomp(&text("/proc/sys/kernel/seccomp/actions_avail")),
            root,
            namespace: tried(in_child(|| {
                let user = if root { 0 } else { libc::CLONE_NEWUSER };
                // SAFETY: plain numbers; only this child changes.
                unsafe { libc::unshare(libc::CLONE_NEWNET | user) }
            })),
            veth: tried(link(root, LinkKind::Veth)),
            macvlan: tried(link(root, LinkKind::Macvlan)),
            nofile_hard: Limit(getrlimit(Resource::Nofile).maximum),
            memory_available: available(&text("/proc/meminfo")),
            memory_max: of_group("memory.max"),
            pids_max: of_group("pids.max"),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            shmem_huge: chosen(&text("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
            io_uring: tried(io_uring()),
            qemu: qemu(),
            kvm: tried(File::options().read(true).write(true).open("/dev/kvm").map(drop)),
        }
    }
}

/// A link of this kind, in a namespace of its own.
fn link(root: bool, kind: LinkKind) -> io::Result<()> {
    in_child(|| {
        let user = if root { 0 } else { libc::CLONE_NEWUSER };
        // SAFETY: plain numbers; only this child changes.
        if unsafe { libc::unshare(libc::CLONE_NEWNET | user) } != 0 {
            return -1;
        }
        let Err(e) = nk_host::netns::probe(kind) else { return 0 };
        // SAFETY: this thread's own, which in_child reads next.
        unsafe { *libc::__errno_location() = e.raw_os_error().unwrap_or(libc::EIO) };
        -1
    })
}

fn glibc() -> String {
    // SAFETY: returns a constant string of the library.
    let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
    version.to_string_lossy().into_owned()
}

/// Tries something that would change this process.
fn in_child(attempt: impl FnOnce() -> i32) -> io::Result<()> {
    // SAFETY: this process has one thread; the child makes system calls and ends.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let r = attempt();
            libc::_exit(if r == 0 { 0 } else { *libc::__errno_location() });
        }
        let mut status = 0;
        if child < 0 || libc::waitpid(child, &raw mut status, 0) != child {
            return Err(io::Error::last_os_error());
        }
        match libc::WEXITSTATUS(status) {
            0 if libc::WIFEXITED(status) => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// As the kernel-stack NSM makes its ring.
fn io_uring() -> io::Result<()> {
    kernel_stack(Box::new(Broker::new()), None, Io::IoUring).map(drop)
}

/// Whether a filter may answer with an errno.
fn seccomp(actions: &str) -> Trial {
    if actions.split_whitespace().any(|action| action == "errno") {
        return Ok(());
    }
    Err("the kernel has no filters that answer with an errno".to_owned())
}

/// The word in brackets, as files in /sys show a choice.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// Bytes that can be had, by /proc/meminfo.
fn available(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The path of this process's group in the second version's tree.
fn control_group(text: &str) -> Option<String> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.trim_end_matches('/').to_owned())
}

fn group_limit(text: &str) -> Limit {
    Limit(text.trim().parse().ok())
}

fn qemu() -> Option<String> {
    let places = ["/usr/bin", "/usr/local/bin", "/usr/libexec"];
    let paths = places.iter().map(|place| format!("{place}/qemu-system-x86_64"));
    paths.into_iter().find(|path| Path::new(path).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_the_kernel_writes_them() {
        assert_eq!(chosen("always within_size [advise] never\n").as_deref(), Some("advise"));
        assert_eq!(chosen(""), None);
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), 2 << 20);
        assert_eq!(available(""), 0);
        assert_eq!(control_group("1:name=x:/a\n0::/user/b\n").as_deref(), Some("/user/b"));
        assert_eq!(control_group("0::/\n").as_deref(), Some(""));
        assert_eq!(group_limit("max\n"), Limit(None));
        assert_eq!(group_limit("1048576\n"), Limit(Some(1 << 20)));
        assert_eq!(group_limit(""), Limit(None));
        assert!(seccomp("kill_process trap errno allow").is_ok() && seccomp("").is_err());
    }

    /// On a machine where the tests run, guests run, too.
    #[test]
    fn this_machine_is_asked() {
        let facts = Facts::read();
        assert_eq!(facts.sealed_memfd, Ok(()));
        assert_eq!(facts.eventfd, Ok(()));
        assert!(facts.memory_available > 0 && facts.cpus > 0);
        assert!(super::super::judge::version(&facts.glibc).is_some(), "{}", facts.glibc);
        assert!(super::super::judge::version(&facts.kernel).is_some(), "{}", facts.kernel);
    }
}
