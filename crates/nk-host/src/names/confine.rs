//! A resolver reads what name servers and guests send, so it runs with as little as glibc's functions need: the guest's network
//! namespace, files that everybody may read, a user id that nothing else has.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    Gid, LinkNameSpaceType, Uid, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
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
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    let root = rustix::process::geteuid().is_root();
    if let Some(etc) = etc.filter(|_| root) {
        bind_etc(&etc)?;
    }
    limit()?;
    if root {
        drop_user(guest)?;
    }
    sys::no_new_privileges()?;
    // It ends with the daemon; the change of user took that away.
    set_parent_process_death_signal(Some(Signal::KILL))?;
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
    // SAFETY: plain numbers; descriptors stay shared.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    for entry in fs::read_dir(dir)?.flatten() {
        let shown = entry.path();
        if let Err(e) = mount_bind(&shown, Path::new("/etc").join(entry.file_name())) {
            // As ip does: what has no counterpart in /etc is said and passed over.
            tracing::warn!(file = %shown.display(), error = %e, "cannot be put into /etc's place");
        }
    }
    Ok(())
}

fn limit() -> io::Result<()> {
    let set = |what, max| setrlimit(what, Rlimit { current: Some(max), maximum: Some(max) });
    set(Resource::Core, 0)?;
    set(Resource::Fsize, 0)?;
    let now = getrlimit(Resource::Nofile).maximum;
    set(Resource::Nofile, now.map_or(DESCRIPTORS_MAX, |now| now.min(DESCRIPTORS_MAX)))?;
    Ok(())
}

/// Another user and group, and with root's the capabilities are gone. A resolver must not be reachable by a guest's signals, so
/// each has an id of its own. The thread's ids are the process's: it has no other.
fn drop_user(guest: u16) -> io::Result<()> {
    // A daemon in a user namespace may not be allowed to; it then has no other groups that matter.
    let _ = set_thread_groups(&[]);
    for id in [UID_BASE + u32::from(guest), UID_NOBODY] {
        let (gid, uid) = (Gid::from_raw(id), Uid::from_raw(id));
        let group = set_thread_res_gid(gid, gid, gid);
        match group.and_then(|()| set_thread_res_uid(uid, uid, uid)) {
            Err(Errno::INVAL) => {}
            done => return Ok(done?),
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
