//! Stand-ins: the descriptor that a program sees for a socket is a lone `AF_UNIX` `SOCK_SEQPACKET` socket, tagged with the
//! socket's id. The tag survives dup, fork, exec and SCM_RIGHTS, so the kernel keeps the truth of who has what.

use core::sync::atomic::Ordering;

use libc::{c_int, c_void};
use nk_device::{Cell, Nqe, Op};

use crate::process::Process;
use crate::{fdtable, rings, sys};

const TAG: u64 = 0x4e4b;

/// `SO_MAX_PACING_RATE`: 64 bits that any user may set and that mean nothing on a Unix socket.
const TAG_OPTION: c_int = libc::SO_MAX_PACING_RATE;

/// Makes a tagged stand-in on the lowest free descriptor. `flags`: SOCK_NONBLOCK, SOCK_CLOEXEC.
///
/// # Errors
/// The errno of socket (EMFILE, ENFILE, ENOMEM, ...).
pub fn make(id: u32, generation: u16, flags: c_int) -> Result<c_int, c_int> {
    let flags = flags & (libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    // SAFETY: no memory is involved.
    let fd = unsafe {
        sys::system_call!(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_SEQPACKET | flags, 0) as c_int
    };
    if fd < 0 {
        return Err(sys::errno());
    }
    if let Err(e) = tag(fd, id, generation) {
        sys::close(fd);
        return Err(e);
    }
    Ok(fd)
}

/// Tags a Unix socket.
///
/// # Errors
/// The errno of setsockopt.
pub fn tag(fd: c_int, id: u32, generation: u16) -> Result<(), c_int> {
    let value = TAG << 48 | u64::from(generation) << 32 | u64::from(id);
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
    (r == 0 && len == 8 && value >> 48 == TAG).then_some((value as u32, (value >> 32) as u16))
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
    for_each_open_fd(|fd| {
        if let Some((id, generation)) = read_tag(fd)
            && p.cell(id)
                .is_some_and(|c| c.generation.load(Ordering::Acquire) == u32::from(generation))
        {
            enter(p, fd, id, generation);
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
