//! System calls on descriptors: this library's own, and the program's past its own names.

use libc::c_int;

use super::{errno, set_errno, system_call, timespec_us};

/// close by syscall. errno is left alone on success.
pub fn close(fd: c_int) -> c_int {
    // SAFETY: no memory is involved.
    unsafe { system_call!(libc::SYS_close, fd) as c_int }
}

/// Writes 1 to an eventfd; a full counter is as good as written. errno is preserved: this runs in calls that succeed.
pub fn ring_eventfd(fd: c_int) {
    let one = 1u64;
    let saved = errno();
    // SAFETY: reads 8 bytes of a local.
    unsafe { system_call!(libc::SYS_write, fd, &raw const one, 8usize) };
    set_errno(saved);
}

/// Reads an eventfd's counter away (it must be non-blocking). errno is preserved.
pub fn drain_eventfd(fd: c_int) {
    let mut count = 0u64;
    let saved = errno();
    // SAFETY: writes 8 bytes of a local.
    unsafe { system_call!(libc::SYS_read, fd, &raw mut count, 8usize) };
    set_errno(saved);
}

/// Lowest number for this library's own descriptors: out of the way of programs, yet low enough that the kernel's table stays small.
const INTERNAL_FD_MIN: c_int = 900;

/// Moves a descriptor of our own up, CLOEXEC. On failure it stays where it is.
#[must_use]
pub fn move_up(fd: c_int) -> c_int {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes a local.
    unsafe {
        system_call!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, 0usize, &raw mut limit);
    }
    let cap = c_int::try_from(limit.rlim_cur).unwrap_or(c_int::MAX);
    let min = INTERNAL_FD_MIN.min(cap.saturating_sub(24)).max(3);
    // SAFETY: no memory is involved.
    let up = unsafe { system_call!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, min) as c_int };
    if up < 0 {
        return fd;
    }
    close(fd);
    up
}

/// Bytes sent on a Unix socket that the peer has not read.
#[must_use]
pub fn unread_by_peer(fd: c_int) -> c_int {
    let mut n: c_int = 0;
    // SAFETY: SIOCOUTQ (= TIOCOUTQ) writes one int.
    unsafe { system_call!(libc::SYS_ioctl, fd, libc::TIOCOUTQ, &raw mut n) };
    n
}

/// Waits until the descriptor is readable or closed by its peer; `false` after the time.
#[must_use]
pub fn wait_readable(fd: c_int, timeout_ms: u32) -> bool {
    let mut p = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let t = timespec_us(u64::from(timeout_ms) * 1000);
    // SAFETY: one pollfd, one timespec, no mask.
    unsafe { system_call!(libc::SYS_ppoll, &raw mut p, 1usize, &raw const t, 0usize, 8usize) > 0 }
}

/// Whether all other ends of a socket are closed.
pub fn is_hung_up(fd: c_int) -> bool {
    let mut p = libc::pollfd { fd, events: 0, revents: 0 };
    let t = timespec_us(0);
    // SAFETY: one pollfd, one timespec, no mask.
    unsafe { system_call!(libc::SYS_ppoll, &raw mut p, 1usize, &raw const t, 0usize, 8usize) };
    p.revents & libc::POLLHUP != 0
}

/// An eventfd that does not block, or -errno.
pub fn eventfd() -> Result<c_int, c_int> {
    // SAFETY: no memory is involved.
    let fd = unsafe {
        system_call!(libc::SYS_eventfd2, 0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) as c_int
    };
    if fd < 0 { Err(errno()) } else { Ok(fd) }
}

/// A SEQPACKET pair, CLOEXEC.
pub fn seqpacket_pair() -> Result<[c_int; 2], c_int> {
    let mut p = [0; 2];
    // SAFETY: writes two ints.
    let r = unsafe {
        system_call!(
            libc::SYS_socketpair,
            libc::AF_UNIX,
            libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
            0,
            p.as_mut_ptr(),
        )
    };
    if r < 0 { Err(errno()) } else { Ok(p) }
}

/// fcntl by syscall.
pub fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the program's own argument, or a number of ours.
    unsafe { system_call!(libc::SYS_fcntl, fd, command, argument) as c_int }
}

/// Moves one of our descriptors to another number of the upper range; -1 when there is none. errno is preserved.
#[must_use]
pub fn move_internal(fd: c_int) -> c_int {
    let saved = errno();
    let up = fcntl(fd, libc::F_DUPFD_CLOEXEC, INTERNAL_FD_MIN as usize);
    let up = if up < 0 { fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) } else { up };
    set_errno(saved);
    up
}
