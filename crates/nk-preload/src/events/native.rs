//! The kernel's own poll and epoll, past our own names, and time limits.

use core::ptr::{null, null_mut};

use libc::{c_int, epoll_event, pollfd, sigset_t, timespec};

use crate::sys;

/// Bytes of a signal mask as the kernel knows it.
const KERNEL_MASK_BYTES: usize = 8;
const NS_PER_S: i64 = 1_000_000_000;

/// How long a call may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// The caller's; `None` is for ever.
    wait_ns: Option<i64>,
    deadline_ns: Option<i64>,
}

fn now_ns() -> i64 {
    sys::now_ns() as i64
}

impl Limit {
    /// From milliseconds; negative is for ever.
    pub(super) fn from_ms(ms: c_int) -> Limit {
        Limit { wait_ns: (ms >= 0).then(|| i64::from(ms) * 1_000_000), deadline_ns: None }
    }

    /// From a timespec; null is for ever.
    ///
    /// # Errors
    /// EINVAL when it is no valid time.
    ///
    /// # Safety
    /// Null or a readable timespec.
    pub(super) unsafe fn from_timespec(t: *const timespec) -> Result<Limit, c_int> {
        if t.is_null() {
            return Ok(Limit { wait_ns: None, deadline_ns: None });
        }
        // SAFETY: the caller's promise.
        let t = unsafe { t.read() };
        if t.tv_sec < 0 || !(0..NS_PER_S).contains(&t.tv_nsec) {
            return Err(libc::EINVAL);
        }
        let ns = t.tv_sec.saturating_mul(NS_PER_S).saturating_add(t.tv_nsec);
        Ok(Limit { wait_ns: Some(ns), deadline_ns: None })
    }

    /// The caller does not want to wait at all.
    pub(super) fn is_zero(&self) -> bool {
        self.wait_ns == Some(0)
    }

    /// What is left. Reads the clock only when there is a limit; the first call starts it.
    pub(super) fn left(&mut self) -> Option<timespec> {
        let wait = self.wait_ns?;
        let left = match self.deadline_ns {
            None => {
                self.deadline_ns = Some(now_ns().saturating_add(wait));
                wait
            }
            Some(d) => d.saturating_sub(now_ns()).max(0),
        };
        Some(timespec { tv_sec: left / NS_PER_S, tv_nsec: left % NS_PER_S })
    }
}

/// The mask argument of ppoll and epoll_pwait.
pub(super) type Mask = *const sigset_t;

/// ppoll(2): -1 and errno on failure.
///
/// # Safety
/// `fds` names `n` pollfds; `mask` is null or valid.
pub(super) unsafe fn ppoll(
    fds: *mut pollfd,
    n: usize,
    left: Option<timespec>,
    mask: Mask,
) -> c_int {
    let mut t = left;
    let t = t.as_mut().map_or(null_mut(), |t| &raw mut *t);
    // SAFETY: the caller's promise; the timespec is a local copy, which the kernel may change.
    unsafe { sys::system_call!(libc::SYS_ppoll, fds, n, t, mask, KERNEL_MASK_BYTES) as c_int }
}

/// epoll_pwait2(2), or epoll_pwait(2) on kernels older than 5.11: -1 and errno on failure.
///
/// # Safety
/// `events` has room for `max`; `mask` is null or valid.
pub(super) unsafe fn epoll_wait(
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    left: Option<timespec>,
    mask: Mask,
) -> c_int {
    let ms = match left {
        None => -1,
        Some(t) if t.tv_nsec % 1_000_000 == 0 && t.tv_sec < 1_000_000 => {
            (t.tv_sec * 1000 + t.tv_nsec / 1_000_000) as c_int
        }
        Some(t) => {
            // SAFETY: the caller's promise; the timespec is a local.
            let r = unsafe {
                sys::system_call!(
                    libc::SYS_epoll_pwait2,
                    epfd,
                    events,
                    max,
                    &raw const t,
                    mask,
                    KERNEL_MASK_BYTES,
                ) as c_int
            };
            if r >= 0 || sys::errno() != libc::ENOSYS {
                return r;
            }
            let ms =
                t.tv_sec.saturating_mul(1000).saturating_add((t.tv_nsec + 999_999) / 1_000_000);
            c_int::try_from(ms).unwrap_or(c_int::MAX)
        }
    };
    // SAFETY: the caller's promise.
    unsafe {
        sys::system_call!(libc::SYS_epoll_pwait, epfd, events, max, ms, mask, KERNEL_MASK_BYTES)
            as c_int
    }
}

/// epoll_ctl(2): 0, or the errno.
pub(super) fn epoll_ctl(
    epfd: c_int,
    op: c_int,
    fd: c_int,
    event: Option<(u32, u64)>,
) -> Result<(), c_int> {
    let mut e = event.map(|(events, data)| epoll_event { events, u64: data });
    let e = e.as_mut().map_or(null_mut(), |e| &raw mut *e);
    // SAFETY: the event is a local or null.
    if unsafe { sys::system_call!(libc::SYS_epoll_ctl, epfd, op, fd, e) } == 0 {
        Ok(())
    } else {
        Err(sys::errno())
    }
}

/// epoll_ctl(2) with the caller's own pointer: 0 or -1 and errno.
///
/// # Safety
/// `event` is what the caller of epoll_ctl gave; the kernel checks it.
pub(super) unsafe fn epoll_ctl_as_is(
    epfd: c_int,
    op: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    // SAFETY: the kernel copies from the pointer and gives EFAULT for a bad one.
    unsafe { sys::system_call!(libc::SYS_epoll_ctl, epfd, op, fd, event) as c_int }
}

/// epoll_create1(2): -1 and errno on failure.
pub(super) fn epoll_create1(flags: c_int) -> c_int {
    // SAFETY: no memory is involved.
    unsafe { sys::system_call!(libc::SYS_epoll_create1, flags) as c_int }
}

/// No mask.
pub(super) const NO_MASK: Mask = null();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_count_down_and_end_at_zero() {
        let mut never = Limit::from_ms(-1);
        assert!(never.left().is_none() && !never.is_zero());
        assert!(Limit::from_ms(0).is_zero());
        let mut l = Limit::from_ms(30);
        let first = l.left().expect("limited");
        assert_eq!((first.tv_sec, first.tv_nsec), (0, 30_000_000));
        std::thread::sleep(std::time::Duration::from_millis(40));
        let last = l.left().expect("limited");
        assert_eq!((last.tv_sec, last.tv_nsec), (0, 0));
        let bad = timespec { tv_sec: 0, tv_nsec: NS_PER_S };
        // SAFETY: a readable timespec.
        assert_eq!(unsafe { Limit::from_timespec(&raw const bad) }.err(), Some(libc::EINVAL));
    }
}
