//! poll and ppoll; select is built on them.

use core::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, pollfd};

use super::instance::{self, Pinned};
use super::look::Look;
use super::native::{self, Limit, Mask, NO_MASK};
use super::nested::Below;
use super::slots::{self, Taken};
use super::{EPOLLERR, EPOLLHUP, grants, leave};
use crate::fdtable::{self, Entry};
use crate::process::{Process, process};
use crate::{hangup, sys};

/// Descriptors up to which everything is kept on the stack.
const SMALL: usize = 64;
/// Extra members of the kernel's poll: our doorbell, the primary one when chunks ran out, and the control socket.
const EXTRA: usize = 3;

const ZERO: Option<libc::timespec> = Some(libc::timespec { tv_sec: 0, tv_nsec: 0 });

/// A member of the call, in the order of the caller's array.
#[derive(Clone, Copy)]
#[repr(C)]
struct Member {
    /// Index in the caller's array.
    at: u32,
    /// A socket's id; its generation below.
    socket: u32,
    generation: u32,
}

/// The members that are sockets, and the others as the kernel shall see them.
struct Sets {
    sockets: *mut Member,
    sockets_len: usize,
    kernel: *mut pollfd,
    /// Index in the caller's array of each of `kernel`.
    kernel_at: *mut u32,
    kernel_len: usize,
}

fn is_ours(fd: c_int) -> bool {
    match fdtable::get(fd) {
        Entry::Socket { .. } | Entry::Internal => true,
        Entry::Epoll { index } => {
            instance::pin_index(index).is_some_and(|i| i.serves() || i.has_inner())
        }
        Entry::None => false,
    }
}

/// # Safety
/// `fds` names `n` pollfds; `mask` is null or valid.
pub(super) unsafe fn poll(fds: *mut pollfd, n: usize, limit: Limit, mask: Mask) -> c_int {
    let Some(p) = process() else {
        let mut limit = limit;
        // SAFETY: the caller's promise.
        return unsafe { native::ppoll(fds, n, limit.left(), mask) };
    };
    // SAFETY: the caller's promise.
    unsafe { poll_with(p, &mut None, fds, n, limit, mask) }
}

/// [`poll`] with a slot that the caller may have taken already, and keeps.
///
/// # Safety
/// As [`poll`].
pub(super) unsafe fn poll_with(
    p: &Process,
    slot: &mut Option<Taken>,
    fds: *mut pollfd,
    n: usize,
    mut limit: Limit,
    mask: Mask,
) -> c_int {
    // A null array with a count is the kernel's to refuse.
    let count = if fds.is_null() { 0 } else { n };
    // SAFETY: the caller's promise: n pollfds. Read and written by address only, since other threads may see them.
    let any = (0..count).any(|i| is_ours(unsafe { (*fds.add(i)).fd }));
    if !any {
        // SAFETY: the caller's promise.
        return unsafe { native::ppoll(fds, n, limit.left(), mask) };
    }
    let mut small_members = [const { Member { at: 0, socket: 0, generation: 0 } }; SMALL];
    let mut small_kernel = [const { pollfd { fd: -1, events: 0, revents: 0 } }; SMALL + EXTRA];
    let mut small_at = [0u32; SMALL];
    let mut sets = if n <= SMALL {
        Sets {
            sockets: small_members.as_mut_ptr(),
            sockets_len: 0,
            kernel: small_kernel.as_mut_ptr(),
            kernel_at: small_at.as_mut_ptr(),
            kernel_len: 0,
        }
    } else {
        let t = match slot_of(p, slot) {
            Ok(t) => t,
            Err(e) => return sys::fail(e),
        };
        let bytes = n * (size_of::<Member>() + size_of::<pollfd>() + size_of::<u32>())
            + EXTRA * size_of::<pollfd>()
            + n * size_of::<pollfd>();
        let base = match t.buffer(bytes) {
            Ok(b) => b,
            Err(e) => return sys::fail(e),
        };
        // The first n pollfds of the buffer are select's own list, which `fds` may point to.
        // SAFETY: within the buffer, whose parts are all of alignment 4 and sizes that are multiples of 4.
        unsafe {
            let kernel = base.add(n * size_of::<pollfd>()).cast::<pollfd>();
            let sockets = kernel.add(n + EXTRA).cast::<Member>();
            let kernel_at = sockets.add(n).cast::<u32>();
            Sets { sockets, sockets_len: 0, kernel, kernel_at, kernel_len: 0 }
        }
    };
    let mut below: Option<Below> = None;
    for i in 0..n {
        // SAFETY: i < n: within the caller's array and within each part of the sets, which have n places.
        unsafe {
            let f = &raw mut *fds.add(i);
            (*f).revents = 0;
            let entry = fdtable::get((*f).fd);
            if let Entry::Socket { id, generation } = entry {
                let m = Member { at: i as u32, socket: id, generation: generation.into() };
                sets.sockets.add(sets.sockets_len).write(m);
                sets.sockets_len += 1;
                continue;
            }
            if let Entry::Epoll { index } = entry
                && let Some(inner) = instance::pin_index(index)
                && may_report(&inner)
            {
                if leave::is_due(&inner) {
                    // Without a descriptor to spare it tells what it tells the other process.
                    let _ = leave::own(p, &inner, (*f).fd, inner.serves());
                }
                below.get_or_insert_with(Below::none).add(inner);
            }
            // One of this library's own is none of the program's: closed, as far as it can tell.
            let fd = if entry == Entry::Internal { c_int::MAX } else { (*f).fd };
            let k = pollfd { fd, events: (*f).events, revents: 0 };
            sets.kernel.add(sets.kernel_len).write(k);
            sets.kernel_at.add(sets.kernel_len).write(i as u32);
            sets.kernel_len += 1;
        }
    }
    // SAFETY: the sets describe the caller's array.
    let r = unsafe { wait(p, slot, fds, &sets, &mut below, &mut limit, mask) };
    match r {
        Ok(n) => n,
        Err(e) => sys::fail(e),
    }
}

fn slot_of<'a>(p: &Process, slot: &'a mut Option<Taken>) -> Result<&'a mut Taken, c_int> {
    match slot {
        Some(t) => Ok(t),
        None => Ok(slot.insert(slots::take(p)?)),
    }
}

fn may_report(i: &Pinned) -> bool {
    i.serves() || i.has_inner()
}

impl Sets {
    /// Looks at all sockets; returns how many have something to report, and whether one lacks chunks only.
    ///
    /// # Safety
    /// `fds` is the array that the sets were made from.
    unsafe fn look(&self, p: &Process, fds: *mut pollfd) -> (c_int, bool) {
        let look = Look::new(p);
        let (mut ready, mut short) = (0, false);
        for i in 0..self.sockets_len {
            // SAFETY: i is below the count written; `at` is an index of the caller's array.
            unsafe {
                let m = self.sockets.add(i).read();
                let f = &raw mut *fds.add(m.at as usize);
                // A socket that another thread closed meanwhile stays silent, as natively.
                let Some(cell) = look.cell(m.socket, m.generation as u16) else { continue };
                let seen = look.mask(cell, u32::from((*f).events as u16) | EPOLLERR | EPOLLHUP);
                short |= seen.starved;
                (*f).revents = seen.mask as u16 as i16;
                ready += c_int::from(seen.mask != 0);
            }
        }
        (ready, short)
    }

    /// Takes over what the kernel found; returns how many.
    ///
    /// # Safety
    /// As [`Sets::look`].
    unsafe fn merge(&self, fds: *mut pollfd) -> c_int {
        let mut ready = 0;
        for i in 0..self.kernel_len {
            // SAFETY: as in `look`.
            unsafe {
                let k = self.kernel.add(i).read();
                let at = self.kernel_at.add(i).read() as usize;
                (*fds.add(at)).revents = k.revents;
                ready += c_int::from(k.revents != 0);
            }
        }
        ready
    }

    /// Watches, or stops watching, all sockets.
    fn watch(&self, p: &Process, qset: u16, on: bool) {
        for i in 0..self.sockets_len {
            // SAFETY: i is below the count written.
            let m = unsafe { self.sockets.add(i).read() };
            if let Some(cell) = p.cell(m.socket) {
                if on {
                    cell.watch(qset, 0);
                } else {
                    cell.unwatch(qset);
                }
            }
        }
    }
}

/// # Safety
/// `fds` is the array that the sets were made from; `mask` is null or valid.
unsafe fn wait(
    p: &Process,
    slot: &mut Option<Taken>,
    fds: *mut pollfd,
    sets: &Sets,
    below: &mut Option<Below>,
    limit: &mut Limit,
    mask: Mask,
) -> Result<c_int, c_int> {
    if let Some(b) = below {
        b.refresh(p);
    }
    // SAFETY: the caller's promise.
    let (ready, _) = unsafe { sets.look(p, fds) };
    if ready != 0 || limit.is_zero() {
        if sets.kernel_len == 0 && (ready != 0 || mask.is_null()) {
            return Ok(ready);
        }
        // With something ready no signal is let in, as natively; with nothing, the mask counts even for no time.
        let mask = if ready != 0 { NO_MASK } else { mask };
        // SAFETY: the sets' own array; the mask is the caller's.
        if unsafe { native::ppoll(sets.kernel, sets.kernel_len, ZERO, mask) } < 0 {
            return if ready != 0 { Ok(ready) } else { Err(sys::errno()) };
        }
        // SAFETY: the caller's promise.
        return Ok(ready + unsafe { sets.merge(fds) });
    }
    let slot = slot_of(p, slot)?;
    sets.watch(p, slot.qset(), true);
    // SAFETY: as above.
    let r = unsafe { sleep(p, slot, fds, sets, below, limit, mask) };
    sets.watch(p, slot.qset(), false);
    r
}

/// This process may not poll one descriptor more than it needs: a sandbox took RLIMIT_NOFILE down (sshd's, to 1), and ppoll says EINVAL.
static CRAMPED: AtomicBool = AtomicBool::new(false);

/// # Safety
/// As [`wait`].
unsafe fn sleep(
    p: &Process,
    slot: &mut Taken,
    fds: *mut pollfd,
    sets: &Sets,
    below: &mut Option<Below>,
    limit: &mut Limit,
    mask: Mask,
) -> Result<c_int, c_int> {
    loop {
        slot.drain(p);
        if let Some(b) = below {
            b.refresh(p);
        }
        slot.enter_sleep(p);
        // Watching and sleeping are said; what happens from here on rings. So look once more.
        // SAFETY: the caller's promise.
        let (mut ready, short) = unsafe { sets.look(p, fds) };
        let quiet = below.as_mut().is_none_or(|b| b.enter(p));
        let (mut len, mut watched) = (sets.kernel_len, None);
        // SAFETY: the array has EXTRA places more than the kernel's members.
        unsafe {
            let bell = pollfd { fd: slot.doorbell(), events: libc::POLLIN, revents: 0 };
            sets.kernel.add(len).write(bell);
            len += 1;
            if short {
                let bell = pollfd { fd: p.doorbell_fd(), events: libc::POLLIN, revents: 0 };
                sets.kernel.add(len).write(bell);
                len += 1;
            }
            if !hangup::is_known() && !CRAMPED.load(Ordering::Relaxed) {
                let control = pollfd { fd: p.control_fd(), events: 0, revents: 0 };
                sets.kernel.add(len).write(control);
                watched = Some(len);
                len += 1;
            }
        }
        let short_no_more = short && slot.enter_shortage(p);
        let asleep = ready == 0 && quiet && !short_no_more;
        let (left, mask) = if asleep { (limit.left(), mask) } else { (ZERO, NO_MASK) };
        // SAFETY: `len` pollfds; the mask is the caller's.
        let mut r = unsafe { native::ppoll(sets.kernel, len, left, mask) };
        if r < 0 && sys::errno() == libc::EINVAL && watched.take().is_some() {
            CRAMPED.store(true, Ordering::Relaxed);
            // SAFETY: as above; it was the last.
            r = unsafe { native::ppoll(sets.kernel, len - 1, left, mask) };
        }
        let error = sys::errno();
        if short {
            slot.leave_shortage(p);
        }
        if let Some(b) = below {
            b.leave(p);
        }
        slot.leave_sleep(p);
        if r < 0 && asleep {
            return Err(error);
        }
        // SAFETY: these places after the kernel's members were written above.
        unsafe {
            if (*sets.kernel.add(sets.kernel_len)).revents != 0 {
                slot.quieten(p);
            }
            if short && (*sets.kernel.add(sets.kernel_len + 1)).revents != 0 {
                grants::relay(p);
            }
            if watched.is_some_and(|at| (*sets.kernel.add(at)).revents != 0) {
                hangup::look(p);
            }
        }
        if asleep {
            // SAFETY: the caller's promise.
            (ready, _) = unsafe { sets.look(p, fds) };
        }
        if r > 0 {
            // SAFETY: the caller's promise.
            ready += unsafe { sets.merge(fds) };
        }
        if ready != 0 || (asleep && r == 0) {
            return Ok(ready);
        }
    }
}
