//! Into an empty network namespace, through a user namespace where that needs one.

use std::io;

use rustix::process::{getegid, geteuid};

use super::STATUS_NK;
use crate::Failure;

/// Leaves the caller's network namespace for an empty one.
pub(super) fn leave() -> Result<(), Failure> {
    // SAFETY: plain numbers; this process has one thread.
    let direct = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if direct == 0 {
        return Ok(());
    }
    let e = io::Error::last_os_error();
    if e.raw_os_error() != Some(libc::EPERM) {
        return Err(refused(&e.to_string()));
    }
    // Read before the namespace changes what they say.
    let (uid, gid) = (geteuid(), getegid());
    // SAFETY: plain numbers; this process has one thread.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) } != 0 {
        return Err(refused(&io::Error::last_os_error().to_string()));
    }
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text)
            .map_err(|e| refused(&format!("{file} of the new user namespace: {e}")))
    };
    // Without CAP_SETGID outside, gid_map takes one group, and only after setgroups was given up.
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))
}

fn refused(why: &str) -> Failure {
    let text = format!(
        "cannot make an empty network namespace: {why}; allow unprivileged user namespaces, run as root, or give --share-net \
         to stay in the caller's namespace"
    );
    Failure::new(STATUS_NK, text)
}
