//! Finding the stand-ins among a process's descriptors: at its start, and after exec.

use core::sync::atomic::Ordering;

use libc::{c_int, c_void};
use nk_device::{Cell, Nqe, Op};

use super::{ANCHOR_TAG, enter, read_tag, tag_of};
use crate::process::Process;
use crate::{fdtable, rings, sys};

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
