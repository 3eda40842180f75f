//! Stand-ins: the descriptor that a program sees for a socket is a lone `AF_UNIX` `SOCK_SEQPACKET` socket, tagged with the
//! socket's id. The tag survives dup, fork, exec and SCM_RIGHTS, so the kernel keeps the truth of who has what.
//!
//! It costs 7 µs and 2.4 KiB of kernel memory, and most sockets never need it: they begin with a *shared* stand-in, a dup of one
//! socket per process, its anchor. Which socket that is, only the table knows, which a fork copies. Before a descriptor leaves what
//! the table sees (exec, spawn, SCM_RIGHTS), or is asked for what the kernel keeps per file, it is *settled*: it gets a stand-in of
//! its own in place.

use core::sync::atomic::{AtomicI32, Ordering};

use libc::{c_int, c_void};
use nk_device::{Cell, Nqe, Op};

use crate::process::Process;
use crate::{fdtable, gate, rings, sys};

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
    let anchor = match ANCHOR.load(Ordering::Acquire) {
        fd if fd >= 0 => fd,
        _ => drop_anchor()?,
    };
    let command =
        if flags & libc::SOCK_CLOEXEC != 0 { libc::F_DUPFD_CLOEXEC } else { libc::F_DUPFD };
    let fd = sys::fcntl(anchor, command, 0);
    if fd < 0 { Err(sys::errno()) } else { Ok(fd) }
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

/// This process has no anchor; those that share it keep it alive.
pub(crate) fn weigh_anchor() {
    let fd = ANCHOR.swap(-1, Ordering::AcqRel);
    if fd >= 0 {
        fdtable::swap(fd, fdtable::Entry::None);
        sys::close(fd);
    }
}

/// As [`enter`], for a shared stand-in.
pub(crate) fn enter_shared(p: &Process, fd: c_int, id: u32, generation: u16) {
    enter(p, fd, id, generation);
    fdtable::set_shared(fd, id, generation);
}

/// Gives the descriptor's socket a stand-in of its own, if it has none; its other descriptors here get the same, as dups are one file.
/// No other thread changes descriptors meanwhile.
///
/// # Errors
/// As [`make`].
fn settle_alone(p: &Process, fd: c_int) -> Result<(), c_int> {
    let fdtable::Entry::Socket { id, generation } = fdtable::get(fd) else { return Ok(()) };
    if !fdtable::is_shared(fd) {
        return Ok(());
    }
    let nonblock = p.cell(id).is_some_and(|c| c.nonblock.load(Ordering::Relaxed) != 0);
    let flags = if nonblock { libc::SOCK_NONBLOCK } else { 0 };
    let own = match make(id, generation, flags | libc::SOCK_CLOEXEC) {
        // There is one number that can be spared.
        Err(libc::EMFILE) if p.is_caller() && ANCHOR.load(Ordering::Acquire) >= 0 => {
            weigh_anchor();
            make(id, generation, flags | libc::SOCK_CLOEXEC)
        }
        made => made,
    }?;
    let mut result = Ok(());
    let mut replace = |fd| {
        let cloexec = sys::fcntl(fd, libc::F_GETFD, 0) & libc::FD_CLOEXEC != 0;
        let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
        // SAFETY: no memory is involved. It replaces the shared one at once.
        let r = unsafe { sys::system_call!(libc::SYS_dup3, own, fd, flags) as c_int };
        if r < 0 {
            result = Err(sys::errno());
        } else if p.is_caller()
            // A child that shares this memory has descriptors of its own, and the table is not about them.
            && !fdtable::set_settled(fd, id, generation)
            && fdtable::get(fd) == fdtable::Entry::None
        {
            // Another thread closed it meanwhile.
            sys::close(fd);
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
    sys::close(own);
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
    let r = gate::alone(p, || settle_alone(p, fd));
    sys::set_errno(saved);
    r
}

/// Before an exec: what the next image will have gets stand-ins that tell it.
///
/// # Errors
/// As [`make`].
pub(crate) fn settle_inheritable(p: &Process) -> Result<(), c_int> {
    let mut result = Ok(());
    gate::alone(p, || {
        fdtable::for_each_socket(|fd, _, _| {
            if result.is_ok()
                && fdtable::is_shared(fd)
                && sys::fcntl(fd, libc::F_GETFD, 0) & libc::FD_CLOEXEC == 0
            {
                result = settle_alone(p, fd);
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

#[repr(C, align(8))]
struct Entries([u8; 4096]);

/// Calls `f` for each open descriptor. Falls back to trying numbers where /proc is not mounted.
pub fn for_each_open_fd(mut f: impl FnMut(c_int)) {
    // SAFETY: a literal path; no other memory.
    let dir = unsafe {
        sys::system_call!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            c"/proc/self/fd".as_ptr(),
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC,
        ) as c_int
    };
    if dir < 0 {
        for fd in 0..4096 {
            f(fd);
        }
        return;
    }
    let mut buffer = Entries([0; 4096]);
    loop {
        // SAFETY: the kernel writes at most 4096 bytes.
        let n = unsafe {
            sys::system_call!(
                libc::SYS_getdents64,
                dir,
                (&raw mut buffer).cast::<c_void>(),
                4096usize
            )
        };
        let Ok(n) = usize::try_from(n) else { break };
        if n == 0 {
            break;
        }
        let mut at = 0;
        // linux_dirent64: u64 inode, u64 offset, u16 length, u8 type, name.
        while let Some(entry) = buffer.0.get(at..n)
            && let Some(&[lo, hi]) = entry.get(16..18)
        {
            let mut fd: c_int = 0;
            let mut digits = 0;
            for b in entry.iter().skip(19) {
                if !b.is_ascii_digit() {
                    break;
                }
                fd = fd.wrapping_mul(10).wrapping_add(c_int::from(b - b'0'));
                digits += 1;
            }
            if digits > 0 && fd != dir {
                f(fd);
            }
            let len = usize::from(u16::from_le_bytes([lo, hi]));
            if len == 0 {
                break;
            }
            at += len;
        }
    }
    sys::close(dir);
}

/// Finds the stand-ins among all open descriptors and enters them. For a process that starts.
pub fn import(p: &Process) {
    import_shared(p);
    for_each_open_fd(|fd| {
        if let Some((id, generation)) = read_tag(fd)
            && p.cell(id)
                .is_some_and(|c| c.generation.load(Ordering::Acquire) == u32::from(generation))
        {
            enter(p, fd, id, generation);
        }
    });
}

/// What the parent's table, copied by a raw fork, knows of shared stand-ins.
fn import_shared(p: &Process) {
    fdtable::for_each_socket(|fd, id, generation| {
        let cell = p
            .cell(id)
            .filter(|c| c.generation.load(Ordering::Acquire) == u32::from(generation))
            .filter(|_| tag_of(fd).is_some_and(|v| v >> 48 == ANCHOR_TAG));
        match cell {
            Some(cell) => cell.hold(p.row_number()),
            None => {
                fdtable::swap(fd, fdtable::Entry::None);
                fdtable::drop_holder(id);
            }
        }
    });
}

/// Clears this row's bit on all sockets that this process has no descriptor for: after an exec, what was CLOEXEC.
///
/// Only cells in memory are looked at: reading one that nobody used yet would allocate its page.
pub fn release_others(p: &Process) {
    let device = p.device();
    let row = p.row_number();
    let Some(first) = device.cell(0) else { return };
    let start = (&raw const *first) as usize & !4095;
    let cells = device.layout().cells;
    let end = (&raw const *first) as usize + cells as usize * size_of::<Cell>();
    let mut resident = [0u8; 256];
    let mut at = start;
    while at < end {
        let pages = (end - at).div_ceil(4096).min(resident.len());
        // SAFETY: within the mapping (rounded to its pages); writes `pages` bytes.
        let r = unsafe {
            sys::system_call!(libc::SYS_mincore, at, pages * 4096, resident.as_mut_ptr())
        };
        for (i, in_core) in resident.iter().take(pages).enumerate() {
            if r == 0 && in_core & 1 == 0 {
                continue;
            }
            // Cells that begin in this page: what is read of them lies at their beginning.
            let page = (at + i * 4096).saturating_sub(&raw const *first as usize);
            let ids = page.div_ceil(size_of::<Cell>())..(page + 4096).div_ceil(size_of::<Cell>());
            for id in ids.map(|id| id as u32) {
                if let Some(cell) = device.cell(id)
                    && cell.is_held_by(row)
                    && fdtable::holders(id) == 0
                    && cell.release(row)
                {
                    let generation = cell.generation.load(Ordering::Acquire);
                    rings::push_job(p, &Nqe::new(Op::Close, id, generation as u16));
                }
            }
        }
        at += pages * 4096;
    }
}
