//! The calls that programs built with _FORTIFY_SOURCE make instead of read and recv.

use libc::{c_int, c_void, sockaddr, socklen_t};

use super::messages::{read, recv, recvfrom};
use crate::sys;

/// What glibc's fortified calls do when a buffer is too small.
fn check_room(len: usize, room: usize) {
    if len > room {
        sys::complain(&[b"*** buffer overflow detected ***: terminated\n"]);
        // SAFETY: takes nothing.
        unsafe { libc::abort() }
    }
}

/// read(2) with _FORTIFY_SOURCE.
///
/// # Safety
/// As read(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __read_chk(
    fd: c_int,
    buffer: *mut c_void,
    len: usize,
    room: usize,
) -> isize {
    check_room(len, room);
    // SAFETY: the caller's promise.
    unsafe { read(fd, buffer, len) }
}

/// recv(2) with _FORTIFY_SOURCE.
///
/// # Safety
/// As recv(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __recv_chk(
    fd: c_int,
    buffer: *mut c_void,
    len: usize,
    room: usize,
    flags: c_int,
) -> isize {
    check_room(len, room);
    // SAFETY: the caller's promise.
    unsafe { recv(fd, buffer, len, flags) }
}

/// recvfrom(2) with _FORTIFY_SOURCE.
///
/// # Safety
/// As recvfrom(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __recvfrom_chk(
    fd: c_int,
    buffer: *mut c_void,
    len: usize,
    room: usize,
    flags: c_int,
    addr: *mut sockaddr,
    addr_len: *mut socklen_t,
) -> isize {
    check_room(len, room);
    // SAFETY: the caller's promise.
    unsafe { recvfrom(fd, buffer, len, flags, addr, addr_len) }
}
