//! Stand-ins: the descriptor that a program sees for a socket is a lone `AF_UNIX` `SOCK_SEQPACKET` socket, tagged with the
//! socket's id. The tag survives dup, fork, exec and SCM_RIGHTS, so the kernel keeps the truth of who has what.
//!
//! It costs 7 µs and 2.4 KiB of kernel memory, and most sockets never need it: they begin with a *shared* stand-in, a dup of one
//! socket per process, its anchor. Which socket that is, only the table knows, which a fork copies. Before a descriptor leaves what
//! the table sees (exec, spawn, SCM_RIGHTS), or is asked for what the kernel keeps per file, it is *settled*: it gets a stand-in of
//! its own in place.

use core::sync::atomic::{AtomicI32, Ordering};

use libc::c_int;
use nk_device::row::Missed;
use nk_device::{Nqe, Op};

use crate::process::Process;
use crate::{borrowers, fdtable, gate, rings, sys};

mod scan;

pub use scan::{for_each_open_fd, import, release_others};

const TAG: u64 = 0x4e4b;
/// The anchor's.
const ANCHOR_TAG: u64 = 0x4e41;

/// The anchor's descriptor, or -1 as long as there is none.
static ANCHOR: AtomicI32 = AtomicI32::new(-1);

/// `SO_MAX_PACING_RATE`: 64 bits that any user may set and that mean nothing on a Unix socket.
const TAG_OPTION: c_int = libc::SO_MAX_PACING_RATE;

/// Makes a tagged stand-in on the lowest free descriptor. `flags`: SOCK_NONBLOCK, SOCK_CLOEXEC.
///
/// # Errors
/// The errno of socket (EMFILE, ENFILE, ENOMEM, ...).
pub fn make(id: u32, generation: u16, flags: c_int) -> Result<c_int, c_int> {
    make_with(tag_word(id, generation), flags & (libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC))
}

fn make_with(tag: u64, flags: c_int) -> Result<c_int, c_int> {
    // SAFETY: no memory is involved.
    let fd = unsafe {
        sys::system_call!(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_SEQPACKET | flags, 0) as c_int
    };
    if fd < 0 {
        return Err(sys::errno());
    }
    if let Err(e) = set_tag(fd, tag) {
        sys::close(fd);
        return Err(e);
    }
    Ok(fd)
}

fn tag_word(id: u32, generation: u16) -> u64 {
    TAG << 48 | u64::from(generation) << 32 | u64::from(id)
}

/// Tags a Unix socket.
///
/// # Errors
/// The errno of setsockopt.
pub fn tag(fd: c_int, id: u32, generation: u16) -> Result<(), c_int> {
    set_tag(fd, tag_word(id, generation))
}

fn set_tag(fd: c_int, value: u64) -> Result<(), c_int> {
    // SAFETY: reads 8 bytes of a local.
    let r = unsafe {
        sys::system_call!(
            libc::SYS_setsockopt,
            fd,
            libc::SOL_SOCKET,
            TAG_OPTION,
            &raw const value,
            8usize,
        )
    };
    if r < 0 { Err(sys::errno()) } else { Ok(()) }
}

/// The socket that `fd` stands for, by its tag. errno is preserved.
#[must_use]
pub fn read_tag(fd: c_int) -> Option<(u32, u16)> {
    let value = tag_of(fd).filter(|v| v >> 48 == TAG)?;
    Some((value as u32, (value >> 32) as u16))
}

/// Whether the descriptor is a stand-in of this socket, whose number the table says it is: its own, or one that sockets share.
#[must_use]
pub(crate) fn stands_for(fd: c_int, id: u32, generation: u16) -> bool {
    tag_of(fd).is_some_and(|v| v == tag_word(id, generation) || v >> 48 == ANCHOR_TAG)
}

fn tag_of(fd: c_int) -> Option<u64> {
    let saved = sys::errno();
    let mut value = 0u64;
    let mut len: libc::socklen_t = 8;
    // SAFETY: writes at most 8 bytes of a local.
    let r = unsafe {
        sys::system_call!(
            libc::SYS_getsockopt,
            fd,
            libc::SOL_SOCKET,
            TAG_OPTION,
            &raw mut value,
            &raw mut len,
        )
    };
    sys::set_errno(saved);
    (r == 0 && len == 8).then_some(value)
}

/// A shared stand-in on the lowest free descriptor; to be entered with [`enter_shared`]. `flags`: SOCK_CLOEXEC (what it does when it
/// would block is the cell's alone). The caller holds the gate.
///
/// # Errors
/// As [`make`].
pub(crate) fn share(flags: c_int) -> Result<c_int, c_int> {
    if borrowers::lender().is_some() {
        // Its descriptors are not in the table.
        crate::process::count_missed(Missed::Call, libc::SYS_clone as u64);
        return Err(libc::EACCES);
    }
    let cloexec = flags & libc::SOCK_CLOEXEC != 0;
    let command = if cloexec { libc::F_DUPFD_CLOEXEC } else { libc::F_DUPFD };
    loop {
        let anchor = match ANCHOR.load(Ordering::Acquire) {
            fd if fd >= 0 => fd,
            _ => drop_anchor()?,
        };
        let fd = sys::fcntl(anchor, command, 0);
        let why = sys::errno();
        if ANCHOR.load(Ordering::Acquire) != anchor {
            // Another thread gave it up, and by then its number may have been anything's.
            if fd >= 0 {
                sys::close(fd);
            }
            continue;
        }
        return match (fd, why) {
            (-1, libc::EMFILE) => spend_anchor(anchor, cloexec),
            (-1, e) => Err(e),
            _ => Ok(fd),
        };
    }
}

/// Whether a descriptor could be had now: Linux takes the number before it looks what there is to accept.
///
/// # Errors
/// As [`make`].
pub(crate) fn find_number() -> Result<(), c_int> {
    if borrowers::lender().is_none() {
        let _changing = gate::enter();
        sys::close(share(libc::SOCK_CLOEXEC)?);
    }
    Ok(())
}

/// No number is left but the anchor's: it becomes the stand-in itself, and the next socket finds none, or makes another anchor.
fn spend_anchor(anchor: c_int, cloexec: bool) -> Result<c_int, c_int> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes a local.
    unsafe {
        sys::system_call!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, 0usize, &raw mut limit);
    }
    // One that was made before the limit was lowered is none of the numbers that the program may have.
    let counts = libc::rlim_t::try_from(anchor).is_ok_and(|fd| fd < limit.rlim_cur);
    if !counts || ANCHOR.compare_exchange(anchor, -1, Ordering::AcqRel, Ordering::Relaxed).is_err()
    {
        return Err(libc::EMFILE);
    }
    fdtable::swap(anchor, fdtable::Entry::None);
    sys::fcntl(anchor, libc::F_SETFD, if cloexec { libc::FD_CLOEXEC as usize } else { 0 });
    Ok(anchor)
}

/// Makes this process's anchor.
fn drop_anchor() -> Result<c_int, c_int> {
    let fd = sys::move_up(make_with(ANCHOR_TAG << 48, libc::SOCK_CLOEXEC)?);
    fdtable::swap(fd, fdtable::Entry::Internal);
    match ANCHOR.compare_exchange(-1, fd, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(fd),
        // Another thread's.
        Err(first) => {
            fdtable::swap(fd, fdtable::Entry::None);
            sys::close(fd);
            Ok(first)
        }
    }
}

/// The anchor has another number now.
pub(crate) fn anchor_moved(from: c_int, to: c_int) {
    let _ = ANCHOR.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
}

/// This process has no anchor; those that share it keep it alive. `false` when there was none.
pub(crate) fn weigh_anchor() -> bool {
    let fd = ANCHOR.swap(-1, Ordering::AcqRel);
    if fd >= 0 {
        fdtable::swap(fd, fdtable::Entry::None);
        sys::close(fd);
    }
    fd >= 0
}

/// As [`enter`], for a shared stand-in.
pub(crate) fn enter_shared(p: &Process, fd: c_int, id: u32, generation: u16) {
    enter(p, fd, id, generation);
    fdtable::set_shared(fd, id, generation);
}

/// Makes a socket's own stand-in on the number of one of its shared ones.
///
/// # Errors
/// EMFILE where another thread opened something on that number: the descriptor is gone.
fn make_in_place(
    p: &Process,
    fd: c_int,
    (id, generation): (u32, u16),
    make_own: impl FnOnce() -> Result<c_int, c_int>,
) -> Result<c_int, c_int> {
    sys::close(fd);
    let made = make_own();
    if made == Ok(fd) {
        return made;
    }
    if let Ok(elsewhere) = made {
        sys::close(elsewhere);
    }
    fdtable::swap(fd, fdtable::Entry::None);
    leave(p, id, generation);
    Err(libc::EMFILE)
}

/// Gives the descriptor's socket a stand-in of its own, if it has none; its other descriptors here get the same, as dups are one file.
/// No other thread changes descriptors meanwhile. `in_place`: with no number left it may be made on this one, which is free for a moment:
/// for an exec, beside which there is hardly ever a thread that opens something.
///
/// # Errors
/// As [`make`].
fn settle_alone(p: &Process, fd: c_int, in_place: bool) -> Result<(), c_int> {
    let fdtable::Entry::Socket { id, generation } = fdtable::get(fd) else { return Ok(()) };
    if !fdtable::is_shared(fd) {
        return Ok(());
    }
    let nonblock = p.cell(id).is_some_and(|c| c.nonblock.load(Ordering::Relaxed) != 0);
    let flags = if nonblock { libc::SOCK_NONBLOCK } else { 0 };
    let make_own = || make(id, generation, flags | libc::SOCK_CLOEXEC);
    let is_cloexec = |fd| sys::fcntl(fd, libc::F_GETFD, 0) & libc::FD_CLOEXEC != 0;
    let cloexec = is_cloexec(fd);
    let own = match make_own() {
        // There is one number that can be spared.
        Err(libc::EMFILE) if weigh_anchor() => make_own(),
        Err(libc::EMFILE) if in_place => make_in_place(p, fd, (id, generation), make_own),
        made => made,
    }?;
    let mut result = Ok(());
    let mut replace = |other| {
        if other == own {
            if !cloexec {
                sys::fcntl(own, libc::F_SETFD, 0);
            }
            fdtable::set_settled(other, id, generation);
            return;
        }
        let stays = if other == fd { !cloexec } else { !is_cloexec(other) };
        let flags = if stays { 0 } else { libc::O_CLOEXEC };
        // SAFETY: no memory is involved. It replaces the shared one at once.
        let r = unsafe { sys::system_call!(libc::SYS_dup3, own, other, flags) as c_int };
        if r < 0 {
            result = Err(sys::errno());
        } else if !fdtable::set_settled(other, id, generation)
            && fdtable::get(other) == fdtable::Entry::None
        {
            // Another thread closed it meanwhile.
            sys::close(other);
        }
    };
    if fdtable::holders(id) == 1 {
        replace(fd);
    } else {
        fdtable::for_each_socket(|fd, i, g| {
            if (i, g) == (id, generation) && fdtable::is_shared(fd) {
                replace(fd);
            }
        });
    }
    if own != fd {
        sys::close(own);
    }
    result
}

/// Before the kernel is asked for what it keeps per file: the descriptor gets a stand-in of its own. errno is preserved.
///
/// # Errors
/// As [`make`].
pub(crate) fn settle(fd: c_int) -> Result<(), c_int> {
    if !fdtable::is_shared(fd) {
        return Ok(());
    }
    let Some(p) = crate::process::process() else { return Ok(()) };
    let saved = sys::errno();
    let r = match (borrowers::lender(), fdtable::get(fd)) {
        (Some(p), fdtable::Entry::Socket { id, generation }) => {
            borrowers::lend(p, fd, id, generation)
        }
        _ => gate::alone(p, || settle_alone(p, fd, false)),
    };
    sys::set_errno(saved);
    r
}

/// Before an exec: what the next image will have gets stand-ins that tell it.
///
/// # Errors
/// As [`make`].
pub(crate) fn settle_inheritable(p: &Process) -> Result<(), c_int> {
    if let Some(p) = borrowers::lender() {
        return borrowers::lend_inheritable(p);
    }
    let mut result = Ok(());
    gate::alone(p, || {
        fdtable::for_each_socket(|fd, _, _| {
            if result.is_ok()
                && fdtable::is_shared(fd)
                && sys::fcntl(fd, libc::F_GETFD, 0) & libc::FD_CLOEXEC == 0
            {
                result = settle_alone(p, fd, true);
            }
        });
    });
    result
}

/// Enters `fd` as a descriptor of the socket: table, count, holder bit. The caller holds the gate.
///
/// A descriptor beyond the table is still held, so that nobody closes the socket under it, but calls on it fail.
pub fn enter(p: &Process, fd: c_int, id: u32, generation: u16) {
    if fdtable::add_holder(id)
        && let Some(cell) = p.cell(id)
    {
        cell.hold(p.row_number());
    }
    if let Some(fdtable::Entry::Socket { id, generation }) =
        fdtable::swap(fd, fdtable::Entry::Socket { id, generation })
    {
        // Something closed the old descriptor behind our back.
        leave(p, id, generation);
    }
}

/// One descriptor of the socket less; the last one lets the socket go. The caller holds the gate.
pub fn leave(p: &Process, id: u32, generation: u16) {
    if fdtable::drop_holder(id) {
        let_go(p, id, generation);
    }
}

/// This process uses the socket no more.
pub(crate) fn let_go(p: &Process, id: u32, generation: u16) {
    let Some(cell) = p.cell(id) else { return };
    crate::events::socket_gone(p, id);
    let unheld = cell.release(p.row_number());
    if fdtable::holders(id) != 0 {
        // Another thread got a descriptor for it meanwhile (by SCM_RIGHTS, which holds the socket in flight).
        cell.hold(p.row_number());
        return;
    }
    if unheld {
        // SO_LINGER {1, 0} is in the cell, where the service finds it.
        rings::push_job(p, &Nqe::new(Op::Close, id, generation));
    }
}

#[cfg(test)]
mod tests;
