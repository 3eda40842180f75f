//! sendmmsg and recvmmsg.

use libc::{c_int, c_uint, mmsghdr, timespec};

use super::messages::{IOV_MAX, recvmsg, sendmsg};
use super::{Target, native, rights, target};
use crate::fdtable::{self, Entry};
use crate::sys;

/// sendmmsg(2).
///
/// # Safety
/// As sendmmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    let is_ours = fdtable::get(fd) != Entry::None;
    let count = count.min(IOV_MAX as c_uint);
    let mut done = 0;
    for i in 0..count as usize {
        // SAFETY: the program says that `count` messages are there.
        let m = unsafe { messages.add(i) };
        // SAFETY: as above; the header is the first part of it.
        let header = unsafe { &raw mut (*m).msg_hdr };
        if !is_ours {
            if let Err(e) = rights::about_to_send(header) {
                return sys::fail(e);
            }
            continue;
        }
        // SAFETY: as above.
        let n = unsafe { sendmsg(fd, header, flags) };
        if n < 0 {
            return if done > 0 { done } else { -1 };
        }
        // SAFETY: as above.
        unsafe { (*m).msg_len = n as c_uint };
        done += 1;
    }
    if is_ours { done } else { native!(libc::SYS_sendmmsg, fd, messages, count, flags) as c_int }
}

/// recvmmsg(2).
///
/// # Safety
/// As recvmmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    let count = count.min(IOV_MAX as c_uint);
    if fdtable::get(fd) == Entry::None {
        let n = native!(libc::SYS_recvmmsg, fd, messages, count, flags, timeout) as c_int;
        for i in 0..n.max(0) as usize {
            // SAFETY: the kernel filled `n` messages.
            rights::import(unsafe { &raw mut (*messages.add(i)).msg_hdr });
        }
        return n;
    }
    let deadline = if timeout.is_null() {
        0
    } else {
        // SAFETY: the program's timespec.
        let t = unsafe { timeout.read() };
        sys::now_us() + t.tv_sec.max(0) as u64 * 1_000_000 + t.tv_nsec.max(0) as u64 / 1000
    };
    let is_datagram = matches!(target(fd), Target::Socket(s) if s.is_datagram());
    let mut flags = flags;
    let mut done = 0;
    for i in 0..count as usize {
        // SAFETY: the program says that `count` messages are there.
        let m = unsafe { messages.add(i) };
        // SAFETY: as above.
        let n = unsafe { recvmsg(fd, &raw mut (*m).msg_hdr, flags & !libc::MSG_WAITFORONE) };
        if n < 0 {
            return if done > 0 { done } else { -1 };
        }
        // SAFETY: as above.
        unsafe { (*m).msg_len = n as c_uint };
        done += 1;
        if flags & libc::MSG_WAITFORONE != 0 {
            flags |= libc::MSG_DONTWAIT;
        }
        // As on Linux the time is looked at after each message only.
        if (n == 0 && !is_datagram) || (deadline != 0 && sys::now_us() >= deadline) {
            break;
        }
    }
    done
}
