//! epoll_wait.

use core::sync::atomic::Ordering;

use libc::{c_int, epoll_event, timespec};

use super::instance::{self, Pinned, is_mark};
use super::native::{self, Limit, Mask, NO_MASK};
use super::nested::Below;
use super::{EPOLLHUP, ctl, inherit, leave};
use crate::process::{Process, process};
use crate::{hangup, sys};

const ZERO: Option<timespec> = Some(timespec { tv_sec: 0, tv_nsec: 0 });
/// As the kernel: more would overflow.
const EVENTS_MAX: usize = c_int::MAX as usize / size_of::<epoll_event>();

/// The caller's array.
#[derive(Clone, Copy)]
struct Out {
    events: *mut epoll_event,
    max: usize,
}

impl Out {
    /// Writes one event; the index was checked by whoever counts.
    fn put(self, at: usize, events: u32, data: u64) {
        if at < self.max {
            // SAFETY: the caller of epoll_wait gave room for `max` events; packed, so any alignment will do.
            unsafe { self.events.add(at).write_unaligned(epoll_event { events, u64: data }) };
        }
    }

    /// Asks the kernel's epoll and appends to the first `n`. What is our own mark is left out. Returns the new count, and whether
    /// there was a mark; or the errno.
    fn ask_kernel(
        self,
        epfd: c_int,
        n: usize,
        left: Option<timespec>,
        mask: Mask,
    ) -> Result<(usize, Kernel), c_int> {
        let room = self.max.saturating_sub(n);
        // SAFETY: room for the rest of the caller's array; the mask is the caller's.
        let r = unsafe {
            native::epoll_wait(epfd, self.events.wrapping_add(n), room as c_int, left, mask)
        };
        let Ok(r) = usize::try_from(r) else { return Err(sys::errno()) };
        let kept = self.leave_out(n, r);
        let kernel = match (r, kept) {
            (0, _) => Kernel::Nothing,
            (r, k) if r == k => Kernel::Events,
            _ => Kernel::Marked,
        };
        Ok((n + kept, kernel))
    }

    /// Removes our marks among `r` events after the first `n`; returns how many stay.
    fn leave_out(self, n: usize, r: usize) -> usize {
        let mut kept = 0;
        for i in n..n + r {
            // SAFETY: the kernel wrote these.
            let e = unsafe { self.events.add(i).read_unaligned() };
            if !is_mark(e.u64) {
                if n + kept != i {
                    self.put(n + kept, e.events, e.u64);
                }
                kept += 1;
            } else if e.events & EPOLLHUP != 0
                && let Some(p) = process()
            {
                // A control socket's end: this process's, or that of one that had the instance before.
                hangup::look(p);
            }
        }
        kept
    }
}

/// What the kernel's epoll gave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Nothing,
    Events,
    /// The doorbell was among it: look at the ring.
    Marked,
}

/// # Safety
/// As epoll_pwait2(2).
pub(super) unsafe fn wait(
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    mut limit: Limit,
    mask: Mask,
) -> c_int {
    let (p, i) = loop {
        if let Some(pinned) = process().and_then(|p| instance::pin(epfd).map(|i| (p, i))) {
            break pinned;
        }
        // SAFETY: the caller's promise.
        if let Some(n) = unsafe { wait_natively(epfd, events, max, &mut limit, mask) } {
            return n;
        }
    };
    let out = match usize::try_from(max) {
        Ok(max) if max > 0 && max <= EVENTS_MAX => Out { events, max },
        _ => return sys::fail(libc::EINVAL),
    };
    let result = if !i.has_inner() && i.enter_plain() {
        wait_plain(p, &i, epfd, out, &mut limit, mask)
    } else {
        wait_serving(p, &i, epfd, out, &mut limit, mask)
    };
    match result {
        Ok(n) => n as c_int,
        Err(e) => sys::fail(e),
    }
}

/// An epoll that is none of ours. It may still have the doorbell of a process that it was inherited from, over exec or by a spawn:
/// the program must not see that one's mark, and that one must be woken by it. `None` when there was nothing else: wait again.
///
/// # Safety
/// As epoll_pwait2(2).
unsafe fn wait_natively(
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    limit: &mut Limit,
    mask: Mask,
) -> Option<c_int> {
    // SAFETY: the caller's promise.
    let r = unsafe { native::epoll_wait(epfd, events, max, limit.left(), mask) };
    let Ok(n @ 1..) = usize::try_from(r) else { return Some(r) };
    let kept = Out { events, max: n }.leave_out(0, n);
    if kept != n
        && let Some(p) = process()
        && let Ok(i) = ctl::know(epfd)
    {
        leave_shared(p, &i, epfd);
    }
    (kept != 0).then_some(kept as c_int)
}

/// A mark was taken from an epoll that another process shares, or did when this thread began to wait: leaves it, and wakes whoever was to be
/// woken.
fn leave_shared(p: &Process, i: &Pinned, epfd: c_int) {
    // Without a descriptor to spare the other is woken by its next event, unless this process takes that too.
    if leave::own(p, i, epfd, i.serves()).is_ok() {
        inherit::give_back();
    }
}

/// No NetKernel socket yet: the kernel's epoll alone.
fn wait_plain(
    p: &Process,
    i: &Pinned,
    epfd: c_int,
    out: Out,
    limit: &mut Limit,
    mask: Mask,
) -> Result<usize, c_int> {
    loop {
        let stray = i.enter_shared();
        let r = out.ask_kernel(epfd, 0, limit.left(), mask);
        let was_shared = stray.is_some();
        drop(stray);
        i.leave_plain();
        if i.serves() {
            // It began to meanwhile, and the mark may have been another's, in an epoll that was left.
            let (n, kernel) = r?;
            if kernel == Kernel::Marked && was_shared {
                inherit::give_back();
            }
            if n == 0 {
                return wait_serving(p, i, epfd, out, limit, mask);
            }
            let mut held = i.hold();
            held.collect(p);
            held.pass_on();
            return Ok(n);
        }
        let (n, kernel) = r?;
        if kernel == Kernel::Marked && was_shared {
            leave_shared(p, i, epfd);
        }
        if n != 0 || kernel == Kernel::Nothing {
            return Ok(n);
        }
        if !i.enter_plain() {
            return wait_serving(p, i, epfd, out, limit, mask);
        }
    }
}

fn wait_serving(
    p: &Process,
    i: &Pinned,
    epfd: c_int,
    out: Out,
    limit: &mut Limit,
    mask: Mask,
) -> Result<usize, c_int> {
    let index = i.index();
    loop {
        if leave::is_due(i) {
            leave::own(p, i, epfd, i.serves())?;
        }
        let mut below = Below::of(i);
        if let Some(b) = &below {
            b.refresh(p);
        }
        let has_kernel = i.kernel_members.load(Ordering::Relaxed) != 0;
        // One slot is kept for the kernel's members, so that neither side starves; with one slot they take turns.
        let mut room = out.max;
        if has_kernel && out.max > 1 {
            room -= 1;
        } else if has_kernel && i.turn.fetch_xor(1, Ordering::Relaxed) != 0 {
            let (mut n, kernel) = out.ask_kernel(epfd, 0, ZERO, NO_MASK)?;
            if kernel == Kernel::Marked {
                pass_on_news(p, i);
                // The mark took the only slot.
                (n, _) = out.ask_kernel(epfd, 0, ZERO, NO_MASK)?;
            }
            if n != 0 {
                return Ok(n);
            }
        }
        let mut n;
        {
            let mut held = i.hold();
            n = report(p, &mut held, out, 0, room);
            if n != 0 || limit.is_zero() {
                held.pass_on();
            } else if !held.enter_sleep(p, Some(epfd), index) {
                continue;
            }
        }
        if n != 0 {
            if has_kernel && n < out.max {
                // The kernel has the rest. It cannot fail in a way that matters more than what was found.
                if let Ok((more, kernel)) = out.ask_kernel(epfd, n, ZERO, NO_MASK) {
                    n = more;
                    if kernel == Kernel::Marked {
                        pass_on_news(p, i);
                    }
                }
            }
            return Ok(n);
        }
        if limit.is_zero() {
            if has_kernel {
                let kernel;
                (n, kernel) = out.ask_kernel(epfd, 0, ZERO, NO_MASK)?;
                if kernel == Kernel::Marked {
                    let mut held = i.hold();
                    n += report(p, &mut held, out, n, out.max);
                    held.pass_on();
                }
            }
            return Ok(n);
        }
        // An inner instance with news is readable by now, or will be once it is refreshed: ask, but do not sleep.
        let quiet = below.as_mut().is_none_or(|b| b.enter(p));
        let (left, mask) = if quiet { (limit.left(), mask) } else { (ZERO, NO_MASK) };
        let stray = i.enter_shared();
        let r = out.ask_kernel(epfd, 0, left, mask);
        drop(below);
        if stray.is_some_and(|_| matches!(r, Ok((_, Kernel::Marked)))) {
            leave_shared(p, i, epfd);
        }
        let mut held = i.hold();
        held.leave_sleep(p);
        match r {
            Ok((count, kernel)) => {
                n = count;
                n += report(p, &mut held, out, n, out.max);
                held.pass_on();
                if n != 0 || (quiet && kernel == Kernel::Nothing) {
                    return Ok(n);
                }
            }
            Err(e) => {
                held.pass_on();
                return Err(e);
            }
        }
    }
}

/// Takes news and appends what is ready to the first `n`, up to `end` in all; returns how many.
fn report(p: &Process, held: &mut instance::Held<'_>, out: Out, n: usize, end: usize) -> usize {
    let look = held.collect(p);
    let Some(interest) = &mut held.state().interest else { return 0 };
    let mut at = n;
    interest.walk(&look, end.saturating_sub(n), |events, data| {
        out.put(at, events, data);
        at += 1;
    })
}

/// A mark was taken from the kernel's epoll after the ring was looked at: it may have been meant for another sleeper.
fn pass_on_news(p: &Process, i: &Pinned) {
    let mut held = i.hold();
    held.collect(p);
    held.pass_on();
}
