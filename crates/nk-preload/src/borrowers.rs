//! Borrowers: children that share this process's memory (`CLONE_VM`) and are no threads of it, as some runtimes make them to exec at once.
//!
//! They read the table of descriptors that they share, while their descriptors are their own: what they close, duplicate and move is not
//! entered, and a socket that they may give to the image that they become is lent, that is, put into a stand-in that says which it is and
//! that the daemon watches ([`lend`]). Whether the caller is one is only asked while one may be there: a child that its parent waits for
//! (`CLONE_VFORK`) is gone when the parent goes on, others may be there for ever.
//!
//! One that is made by the program's own assembly is not known, and what it closes by the C library's functions its parent loses: to tell would cost every
//! call that changes descriptors a `getpid`, and who makes children so (Go's runtime) calls the kernel as directly for the rest.

use core::sync::atomic::{AtomicI32, Ordering};

use libc::{c_int, pid_t};

use crate::calls::rights::pair_for;
use crate::process::{Process, current};
use crate::{fdtable, sys};

/// Those that share the descriptors, too (`CLONE_FILES`): the table is theirs as well.
const COMPANIONS: usize = 16;
static COMPANION: [AtomicI32; COMPANIONS] = [const { AtomicI32::new(0) }; COMPANIONS];

/// In a forked child, whose memory is its own.
pub(crate) fn reset() {
    fdtable::forget_borrowers();
    for c in &COMPANION {
        c.store(0, Ordering::Release);
    }
}

/// In the new child: says whether it shares its parent's descriptors. One too many counts as a borrower.
pub(crate) fn begin(shares_descriptors: bool) {
    let pid = sys::getpid();
    for c in &COMPANION {
        // Of a process before it with that pid.
        let _ = c.compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
    if shares_descriptors {
        let enter =
            |c: &AtomicI32| c.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let _ = COMPANION.iter().any(enter);
    }
}

fn is_companion(pid: pid_t) -> bool {
    COMPANION.iter().any(|c| c.load(Ordering::Acquire) == pid)
}

/// The process whose memory and table the caller borrows; `None` when the caller is no borrower.
#[inline]
pub(crate) fn lender() -> Option<&'static Process> {
    if fdtable::has_borrowers() { look() } else { None }
}

#[cold]
fn look() -> Option<&'static Process> {
    current().filter(|p| !p.is_caller() && !is_companion(sys::getpid()))
}

/// A borrower is going to give its descriptor of a socket away, to a copy or over exec.
///
/// # Errors
/// EMFILE and the like, or the daemon's refusal.
pub(crate) fn lend(p: &Process, fd: c_int, id: u32, generation: u16) -> Result<(), c_int> {
    let near = pair_for(p, id, generation)?;
    let cloexec = sys::fcntl(fd, libc::F_GETFD, 0) & libc::FD_CLOEXEC != 0;
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: no memory is involved. It replaces what was there at once.
    let r = unsafe { sys::system_call!(libc::SYS_dup3, near, fd, flags) as c_int };
    let result = if r < 0 { Err(sys::errno()) } else { Ok(()) };
    sys::close(near);
    result
}

/// Before a borrower's exec: what the next image will have.
///
/// # Errors
/// As [`lend`].
pub(crate) fn lend_inheritable(p: &Process) -> Result<(), c_int> {
    let mut result = Ok(());
    fdtable::for_each_socket(|fd, id, generation| {
        let flags = sys::fcntl(fd, libc::F_GETFD, 0);
        if result.is_ok() && flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
            result = lend(p, fd, id, generation);
        }
    });
    result
}

/// A borrower sends one by SCM_RIGHTS, or spawns: all of its descriptors of the socket.
///
/// # Errors
/// As [`lend`].
pub(crate) fn lend_all(p: &Process, id: u32, generation: u16) -> Result<(), c_int> {
    let mut result = Ok(());
    fdtable::for_each_socket(|fd, i, g| {
        if result.is_ok() && (i, g) == (id, generation) {
            result = lend(p, fd, id, generation);
        }
    });
    result
}
