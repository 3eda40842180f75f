//! epoll_create and epoll_ctl.

use libc::{c_int, epoll_event};

use super::instance::{self, Pinned, watch_flags};
use super::interest::Key;
use super::{
    EPOLLERR, EPOLLET, EPOLLEXCLUSIVE, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLWAKEUP, leave, native,
};
use crate::fdtable::{self, Entry};
use crate::process::{Process, process};
use crate::{borrowers, gate, sys};

/// What may stand beside EPOLLEXCLUSIVE.
const EXCLUSIVE_OK: u32 =
    EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;

pub(super) fn create(flags: c_int) -> c_int {
    if process().is_none() || borrowers::lender().is_some() {
        return native::epoll_create1(flags);
    }
    let gate = gate::enter();
    let epfd = native::epoll_create1(flags);
    if epfd >= 0 {
        // One too many stays the kernel's alone; adding a socket to it fails.
        instance::open(epfd, true, &gate);
    }
    epfd
}

/// # Safety
/// As epoll_ctl(2).
pub(super) unsafe fn ctl(epfd: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    let Some(p) = process() else {
        // SAFETY: the caller's promise.
        return unsafe { native::epoll_ctl_as_is(epfd, op, fd, event) };
    };
    let target = fdtable::get(fd);
    let result = match target {
        // SAFETY: the caller's promise.
        Entry::Socket { id, generation } => unsafe {
            ctl_socket(p, epfd, op, Key { socket: id, generation, fd }, event)
        },
        Entry::Internal => Err(libc::EBADF),
        // SAFETY: the caller's promise.
        Entry::None | Entry::Epoll { .. } => unsafe { ctl_kernel(p, epfd, op, fd, event) },
    };
    match result {
        Ok(()) => 0,
        Err(e) => sys::fail(e),
    }
}

/// A kernel descriptor, or another epoll instance: into the kernel's epoll.
///
/// # Safety
/// As epoll_ctl(2).
unsafe fn ctl_kernel(
    p: &Process,
    epfd: c_int,
    op: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> Result<(), c_int> {
    if matches!(fdtable::get(epfd), Entry::Internal) {
        return Err(libc::EBADF);
    }
    let mut outer = instance::pin(epfd);
    if let Some(i) = &outer
        && leave::is_due(i)
    {
        // Inherited over fork: not into the parent's.
        leave::own(p, i, epfd, i.serves())?;
    }
    let inner = instance::pin(fd);
    if op == libc::EPOLL_CTL_ADD
        && let Some(inner) = &inner
        && !inner.is_ours()
    {
        leave::own(p, inner, fd, inner.serves())?;
    }
    // SAFETY: the caller's promise; the kernel checks the pointer.
    if unsafe { native::epoll_ctl_as_is(epfd, op, fd, event) } != 0 {
        return Err(sys::errno());
    }
    if inner.is_some() && outer.is_none() {
        outer = know(epfd).ok();
    }
    let Some(outer) = outer else { return Ok(()) };
    match op {
        libc::EPOLL_CTL_ADD => {
            outer.kernel_members.fetch_add(1, core::sync::atomic::Ordering::SeqCst);
            if let Some(inner) = &inner
                && let Err(e) = outer.add_inner(inner)
            {
                let _ = native::epoll_ctl(epfd, libc::EPOLL_CTL_DEL, fd, None);
                return Err(e);
            }
        }
        libc::EPOLL_CTL_DEL => {
            super::grants::lower(&outer.kernel_members);
            if let Some(inner) = &inner {
                outer.remove_inner(inner);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Makes an instance for an epoll descriptor that came from elsewhere.
pub(super) fn know(epfd: c_int) -> Result<Pinned, c_int> {
    // Is it one at all? MOD of itself: EBADF, EINVAL, or EINVAL for "itself", so ask about a descriptor that is no member.
    let probe = sys::eventfd()?;
    let answer = native::epoll_ctl(epfd, libc::EPOLL_CTL_DEL, probe, None);
    sys::close(probe);
    match answer {
        Err(libc::ENOENT) => {}
        Err(e) => return Err(e),
        Ok(()) => return Err(libc::EINVAL),
    }
    let gate = gate::enter();
    if let Some(i) = instance::pin(epfd) {
        return Ok(i);
    }
    if !instance::open(epfd, false, &gate) {
        return Err(libc::ENOMEM);
    }
    instance::pin(epfd).ok_or(libc::EBADF)
}

/// # Safety
/// `event` is null or readable when `op` needs it.
unsafe fn ctl_socket(
    p: &Process,
    epfd: c_int,
    op: c_int,
    key: Key,
    event: *mut epoll_event,
) -> Result<(), c_int> {
    let (mut events, mut data) = (0, 0);
    if op != libc::EPOLL_CTL_DEL {
        if event.is_null() {
            return Err(libc::EFAULT);
        }
        // SAFETY: the caller's promise; epoll_event is packed, so any alignment will do.
        let e = unsafe { event.read_unaligned() };
        (events, data) = (e.events, e.u64);
    }
    let i = match fdtable::get(epfd) {
        Entry::Socket { .. } => return Err(libc::EINVAL),
        Entry::Internal => return Err(libc::EBADF),
        Entry::Epoll { .. } => instance::pin(epfd).ok_or(libc::EBADF)?,
        Entry::None => know(epfd)?,
    };
    let exclusive = events & EPOLLEXCLUSIVE != 0;
    match op {
        libc::EPOLL_CTL_ADD if !exclusive || events & !EXCLUSIVE_OK == 0 => {}
        libc::EPOLL_CTL_MOD if !exclusive => {}
        libc::EPOLL_CTL_DEL => {}
        _ => return Err(libc::EINVAL),
    }
    if op == libc::EPOLL_CTL_ADD || i.serves() {
        if !(i.serves() && i.is_ours()) {
            leave::own(p, &i, epfd, true)?;
        }
    } else {
        return Err(libc::ENOENT);
    }
    let cell = p.cell(key.socket).ok_or(libc::EBADF)?;
    let mut held = i.hold();
    let look = held.look(p);
    let state = held.state();
    let qset = state.door.qset;
    let Some(interest) = &mut state.interest else { return Err(libc::ENOMEM) };
    let before = interest.events_of(key);
    match (op, before) {
        (libc::EPOLL_CTL_ADD, Some(_)) => return Err(libc::EEXIST),
        (libc::EPOLL_CTL_ADD, None) => {
            // Entries of an earlier socket with the same id, should its end have escaped us.
            interest.sweep(key.socket, |g| g != key.generation);
            // Watched first, looked at after: a change is either seen by the look or told by an event.
            cell.watch(qset, watch_flags(events));
            if let Err(e) = interest.add(&look, key, events, data) {
                if !interest.has_socket(key.socket) {
                    cell.unwatch(qset);
                }
                return Err(e);
            }
        }
        (_, None) => return Err(libc::ENOENT),
        (libc::EPOLL_CTL_MOD, Some(old)) => {
            if old & EPOLLEXCLUSIVE != 0 {
                return Err(libc::EINVAL);
            }
            interest.modify(&look, key, events, data);
        }
        (_, Some(_)) => {
            interest.remove(key);
            if !interest.has_socket(key.socket) {
                cell.unwatch(qset);
            }
        }
    }
    // Ready already, and somebody waits: natively that thread returns.
    held.pass_on();
    Ok(())
}
