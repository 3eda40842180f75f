//! The names of the C library that this library answers for epoll, poll and select.

use libc::{c_int, epoll_event, fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};

use super::native::{Limit, NO_MASK};
use super::{ctl, poll as polling, select as selecting, wait};
use crate::sys;

unsafe extern "C" {
    /// glibc's abort of a fortified call whose buffer is too small.
    fn __chk_fail() -> !;
}

/// epoll_create(2).
#[unsafe(no_mangle)]
pub extern "C" fn epoll_create(size: c_int) -> c_int {
    if size <= 0 {
        return sys::fail(libc::EINVAL);
    }
    ctl::create(0)
}

/// epoll_create1(2).
#[unsafe(no_mangle)]
pub extern "C" fn epoll_create1(flags: c_int) -> c_int {
    ctl::create(flags)
}

/// epoll_ctl(2).
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_ctl(
    epfd: c_int,
    op: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { ctl::ctl(epfd, op, fd, event) }
}

/// epoll_wait(2).
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_wait(
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout_ms: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { wait::wait(epfd, events, max, Limit::from_ms(timeout_ms), NO_MASK) }
}

/// epoll_pwait(2).
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_pwait(
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout_ms: c_int,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { wait::wait(epfd, events, max, Limit::from_ms(timeout_ms), mask) }
}

/// epoll_pwait2(2).
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_pwait2(
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { Limit::from_timespec(timeout) } {
        // SAFETY: the caller's promise.
        Ok(limit) => unsafe { wait::wait(epfd, events, max, limit, mask) },
        Err(e) => sys::fail(e),
    }
}

/// poll(2).
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn poll(fds: *mut pollfd, n: nfds_t, timeout_ms: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { polling::poll(fds, n as usize, Limit::from_ms(timeout_ms), NO_MASK) }
}

/// poll(2) by glibc's second name.
///
/// # Safety
/// As [`poll`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __poll(fds: *mut pollfd, n: nfds_t, timeout_ms: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { poll(fds, n, timeout_ms) }
}

/// ppoll(2).
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ppoll(
    fds: *mut pollfd,
    n: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { Limit::from_timespec(timeout) } {
        // SAFETY: the caller's promise.
        Ok(limit) => unsafe { polling::poll(fds, n as usize, limit, mask) },
        Err(e) => sys::fail(e),
    }
}

/// poll(2) as a program built with _FORTIFY_SOURCE calls it.
///
/// # Safety
/// As [`poll`]; `len` is the size of the array in bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __poll_chk(
    fds: *mut pollfd,
    n: nfds_t,
    timeout_ms: c_int,
    len: size_t,
) -> c_int {
    if (len / size_of::<pollfd>()) < n as usize {
        // SAFETY: ends the process.
        unsafe { __chk_fail() };
    }
    // SAFETY: the caller's promise.
    unsafe { poll(fds, n, timeout_ms) }
}

/// ppoll(2) as a program built with _FORTIFY_SOURCE calls it.
///
/// # Safety
/// As [`ppoll`]; `len` is the size of the array in bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __ppoll_chk(
    fds: *mut pollfd,
    n: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    len: size_t,
) -> c_int {
    if (len / size_of::<pollfd>()) < n as usize {
        // SAFETY: ends the process.
        unsafe { __chk_fail() };
    }
    // SAFETY: the caller's promise.
    unsafe { ppoll(fds, n, timeout, mask) }
}

/// select(2). As on Linux, what is left of the time is written back.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn select(
    n: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    const US_PER_S: i64 = 1_000_000;
    let mut limit = Limit::from_ms(-1);
    if !timeout.is_null() {
        // SAFETY: the caller's promise.
        let t = unsafe { timeout.read() };
        if t.tv_sec < 0 || t.tv_usec < 0 {
            return sys::fail(libc::EINVAL);
        }
        let t = timespec {
            tv_sec: t.tv_sec.saturating_add(t.tv_usec / US_PER_S),
            tv_nsec: t.tv_usec % US_PER_S * 1000,
        };
        // SAFETY: a local.
        limit = match unsafe { Limit::from_timespec(&raw const t) } {
            Ok(l) => l,
            Err(e) => return sys::fail(e),
        };
        // The clock starts here, so that what is left is known at the end.
        let _ = limit.left();
    }
    let sets = selecting::Sets { n, read: read.cast(), write: write.cast(), except: except.cast() };
    // SAFETY: the caller's promise.
    let r = unsafe { selecting::select(sets, &mut limit, NO_MASK) };
    if !timeout.is_null()
        && let Some(left) = limit.left()
    {
        // SAFETY: the caller's promise: select may write here.
        unsafe { timeout.write(timeval { tv_sec: left.tv_sec, tv_usec: left.tv_nsec / 1000 }) };
    }
    r
}

/// select(2) by glibc's second name.
///
/// # Safety
/// As [`select`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __select(
    n: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { select(n, read, write, except, timeout) }
}

/// pselect(2).
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pselect(
    n: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    let sets = selecting::Sets { n, read: read.cast(), write: write.cast(), except: except.cast() };
    // SAFETY: the caller's promise.
    match unsafe { Limit::from_timespec(timeout) } {
        // SAFETY: the caller's promise.
        Ok(mut limit) => unsafe { selecting::select(sets, &mut limit, mask) },
        Err(e) => sys::fail(e),
    }
}
