//! A resolver reads what name servers and guests send, so it runs with as little as glibc's functions need: the guest's network
//! namespace, files that everybody may read, a user id that nothing else has.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use crate::seccomp::{self, For};
use crate::sys::{self, check};

/// Files of a named namespace, in the place of those in /etc.
const ETC_NETNS: &str = "/etc/netns";
/// Plus the guest's number: ids that no distribution, user or container manager gives away.
const UID_BASE: u32 = 0x7e4b_0000;
/// Where that one is not mapped (a daemon in a user namespace).
const UID_NOBODY: u32 = 65534;
const DESCRIPTORS_MAX: u64 = 1024;
/// In the number of a call by the x32 ABI.
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

/// Enters the namespace, puts its own files in the place of /etc's as `ip netns exec` does, and gives up every privilege.
pub(super) fn enter(netns: &OwnedFd, guest: u16) -> io::Result<()> {
    let wanted = sys::identity(netns)?;
    // Looked for before anything is mounted or entered.
    let etc = etc_of(wanted);
    let own = fs::metadata("/proc/self/ns/net")?;
    if (own.dev(), own.ino()) != wanted {
        // SAFETY: plain numbers; this process has one thread.
        check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) })?;
    }
    // SAFETY: no arguments, cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if let Some(etc) = etc.filter(|_| root) {
        bind_etc(&etc)?;
    }
    limit()?;
    if root {
        drop_user(guest)?;
    }
    // SAFETY: plain numbers. Neither exec nor a debugger of the same user gets more than this process has.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
        // It ends with the daemon; the change of user took that away.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
    }
    forbid_offspring()
}

/// No process comes of this one, and no other program runs in it: what a name server made of it would outlive neither the resolver
/// nor the guest, whose user id is another guest's one day. Threads it may have.
///
/// What glibc's plug-ins for other databases call nobody can list, so this names what they never need, not what they do.
fn forbid_offspring() -> io::Result<()> {
    let without_thread = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64),
        0,
    );
    let fork = SeccompRule::new(vec![without_thread.map_err(io::Error::other)?]);
    let mut rules = BTreeMap::from([(libc::SYS_clone, vec![fork.map_err(io::Error::other)?])]);
    #[cfg(target_arch = "x86_64")]
    let forks = [libc::SYS_fork, libc::SYS_vfork];
    #[cfg(not(target_arch = "x86_64"))]
    let forks: [i64; 0] = [];
    let never = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_io_uring_setup,
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
    ];
    rules.extend(forks.into_iter().chain(never).map(|number| (number, Vec::new())));
    // The same calls by the x32 ABI of the same kernel: whoever has taken over the process may choose.
    #[cfg(target_arch = "x86_64")]
    rules.extend(rules.clone().into_iter().map(|(number, rule)| (number | X32, rule)));
    let refuse = |rules, errno: i32| {
        let refused = SeccompAction::Errno(errno as u32);
        seccomp::install(rules, refused, SeccompAction::Allow, For::ThisThread)
    };
    refuse(rules, libc::EPERM)?;
    // Its flags are in memory, where no filter can read them. The C library then takes clone.
    let mut rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_clone3 | X32, Vec::new());
    refuse(rules, libc::ENOSYS)
}

/// The directory with the files of a named namespace. A namespace may have several names; the first that has files counts.
fn etc_of(wanted: (u64, u64)) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(crate::netns::NAMES)
        .ok()?
        .flatten()
        .filter(|e| fs::metadata(e.path()).is_ok_and(|m| (m.dev(), m.ino()) == wanted))
        .map(|e| Path::new(ETC_NETNS).join(e.file_name()))
        .filter(|d| d.is_dir())
        .collect();
    found.sort();
    found.into_iter().next()
}

/// Mounts each file of the directory over the one in /etc, in a mount namespace of our own.
fn bind_etc(dir: &Path) -> io::Result<()> {
    let c = |p: &Path| CString::new(p.as_os_str().as_bytes()).map_err(io::Error::other);
    // SAFETY: plain numbers, and C strings that live during the calls.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let (none, all) = (std::ptr::null(), libc::MS_SLAVE | libc::MS_REC);
        check(libc::mount(none, c"/".as_ptr(), none, all, std::ptr::null()))?;
    }
    for entry in fs::read_dir(dir)?.flatten() {
        let (from, to) = (c(&entry.path())?, c(&Path::new("/etc").join(entry.file_name()))?);
        // SAFETY: as above.
        let r = unsafe {
            let none = std::ptr::null();
            check(libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, std::ptr::null()))
        };
        if let Err(e) = r {
            // As ip does: what has no counterpart in /etc is said and passed over.
            let shown = entry.path();
            tracing::warn!(file = %shown.display(), error = %e, "cannot be put into /etc's place");
        }
    }
    Ok(())
}

fn limit() -> io::Result<()> {
    let set = |what, max: u64| {
        let r = libc::rlimit { rlim_cur: max, rlim_max: max };
        // SAFETY: reads a local.
        check(unsafe { libc::setrlimit(what, &raw const r) })
    };
    set(libc::RLIMIT_CORE, 0)?;
    set(libc::RLIMIT_FSIZE, 0)?;
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes a local.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut now) })?;
    set(libc::RLIMIT_NOFILE, DESCRIPTORS_MAX.min(now.rlim_max))?;
    Ok(())
}

/// Another user and group, and with root's the capabilities are gone. A resolver must not be reachable by a guest's signals, so
/// each has an id of its own.
fn drop_user(guest: u16) -> io::Result<()> {
    // SAFETY: plain numbers. A daemon in a user namespace may not be allowed to; it then has no other groups that matter.
    unsafe { libc::setgroups(0, std::ptr::null()) };
    for id in [UID_BASE + u32::from(guest), UID_NOBODY] {
        // SAFETY: plain numbers.
        let group = check(unsafe { libc::setresgid(id, id, id) });
        // SAFETY: plain numbers.
        let user = group.and_then(|_| check(unsafe { libc::setresuid(id, id, id) }));
        match user {
            Ok(_) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            Err(e) => return Err(e),
        }
    }
    // Nobody else is mapped where this daemon runs. What is left is to give up the capabilities.
    sys::set_capabilities(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_has_threads_and_no_children() {
        // A filter is its thread's, and goes with it.
        let confined = std::thread::spawn(|| {
            forbid_offspring().expect("a filter");
            let threads = std::thread::spawn(|| 7).join().expect("a thread");
            let errno = || io::Error::last_os_error().raw_os_error();
            let mut refused = Vec::new();
            // SAFETY: where one were allowed, the child ends at once; the program does not exist.
            unsafe {
                let child = libc::fork();
                if child == 0 {
                    libc::_exit(0);
                }
                refused.push((child, errno()));
                let none = std::ptr::null();
                refused.push((libc::execv(c"/nonexistent".as_ptr(), none), errno()));
                refused.push((libc::unshare(libc::CLONE_NEWUSER), errno()));
                #[cfg(target_arch = "x86_64")]
                {
                    let child = libc::syscall(libc::SYS_fork | X32) as i32;
                    if child == 0 {
                        libc::_exit(0);
                    }
                    // ENOSYS is what a kernel without that ABI says where no filter answers.
                    refused.push((child, errno()));
                }
            }
            (threads, refused)
        });
        let (threads, refused) = confined.join().expect("no panic");
        assert_eq!(threads, 7);
        assert!(refused.len() >= 3);
        assert!(refused.iter().all(|r| *r == (-1, Some(libc::EPERM))), "{refused:?}");
    }
}
