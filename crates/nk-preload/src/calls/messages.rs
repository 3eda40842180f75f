//! read, write, send and recv in all their forms.

use core::sync::atomic::Ordering;

use libc::{c_int, c_void, iovec, msghdr, sockaddr, socklen_t};
use nk_device::cell::SF_LISTENING;
use nk_device::datagram::Header;

use super::{Target, datagrams, native, rights, size_result, target};
use crate::io::{Buffers, IO_MAX, Open, recv_stream, send_stream};
use crate::sys;

/// Linux's UIO_MAXIOV.
pub(super) const IOV_MAX: usize = 1024;

fn one(buffer: *mut c_void, len: usize) -> iovec {
    iovec { iov_base: buffer, iov_len: len.min(IO_MAX) }
}

/// Receives into one buffer.
#[inline]
fn recv_one(s: &Open, buffer: *mut c_void, len: usize, flags: c_int) -> Result<usize, c_int> {
    if buffer.is_null() && len > 0 && flags & libc::MSG_TRUNC == 0 {
        return Err(libc::EFAULT);
    }
    let v = one(buffer, len);
    if s.is_datagram() {
        return datagrams::recv(s, (&raw const v, 1), v.iov_len, flags)
            .map(|got| datagrams::result(got, flags));
    }
    // SAFETY: one iovec that outlives the call.
    recv_stream(s, &mut unsafe { Buffers::new(&raw const v, 1) }, v.iov_len, flags)
}

const NO_ADDRESS: (*const sockaddr, socklen_t) = (core::ptr::null(), 0);

/// Sends one buffer; the address of a stream is ignored, as on Linux.
#[inline]
fn send_one(
    s: &Open,
    buffer: *const c_void,
    len: usize,
    flags: c_int,
    to: (*const sockaddr, socklen_t),
) -> Result<usize, c_int> {
    if buffer.is_null() && len > 0 {
        return Err(libc::EFAULT);
    }
    let v = one(buffer.cast_mut(), len);
    if s.is_datagram() {
        return datagrams::send(s, (&raw const v, 1), len, flags, Header::default(), to);
    }
    // SAFETY: one iovec that outlives the call.
    send_stream(s, &mut unsafe { Buffers::new(&raw const v, 1) }, v.iov_len, flags)
}

/// The length of an array of iovecs, checked as Linux checks it.
fn total(iov: *const iovec, count: usize) -> Result<usize, c_int> {
    if count > IOV_MAX {
        return Err(libc::EINVAL);
    }
    if iov.is_null() && count > 0 {
        return Err(libc::EFAULT);
    }
    let mut sum = 0usize;
    for i in 0..count {
        // SAFETY: the program says that `count` iovecs are there.
        let v = unsafe { iov.add(i).read() };
        if v.iov_len as isize <= -1 {
            return Err(libc::EINVAL);
        }
        if v.iov_base.is_null() && v.iov_len > 0 {
            return Err(libc::EFAULT);
        }
        sum = sum.saturating_add(v.iov_len);
    }
    Ok(sum.min(IO_MAX))
}

fn recv_vector(s: &Open, iov: *const iovec, count: usize, flags: c_int) -> Result<usize, c_int> {
    let len = total(iov, count)?;
    if s.is_datagram() {
        return datagrams::recv(s, (iov, count), len, flags)
            .map(|got| datagrams::result(got, flags));
    }
    // SAFETY: `total` read all of them.
    recv_stream(s, &mut unsafe { Buffers::new(iov, count) }, len, flags)
}

fn send_vector(s: &Open, iov: *const iovec, count: usize, flags: c_int) -> Result<usize, c_int> {
    let len = total(iov, count)?;
    if s.is_datagram() {
        return datagrams::send(s, (iov, count), len, flags, Header::default(), NO_ADDRESS);
    }
    // SAFETY: `total` read all of them.
    send_stream(s, &mut unsafe { Buffers::new(iov, count) }, len, flags)
}

/// read(2).
///
/// # Safety
/// As read(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(fd: c_int, buffer: *mut c_void, len: usize) -> isize {
    match target(fd) {
        Target::Native => native!(libc::SYS_read, fd, buffer, len) as isize,
        // Unlike recv, read of nothing returns at once.
        Target::Socket(_) if len == 0 => 0,
        Target::Socket(s) => size_result(recv_one(&s, buffer, len, 0)),
        Target::Error(e) => sys::fail_size(e),
    }
}

/// write(2).
///
/// # Safety
/// As write(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, buffer: *const c_void, len: usize) -> isize {
    match target(fd) {
        Target::Native => native!(libc::SYS_write, fd, buffer, len) as isize,
        Target::Socket(s) => size_result(send_one(&s, buffer, len, 0, NO_ADDRESS)),
        Target::Error(e) => sys::fail_size(e),
    }
}

/// readv(2).
///
/// # Safety
/// As readv(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn readv(fd: c_int, iov: *const iovec, count: c_int) -> isize {
    match target(fd) {
        Target::Native => native!(libc::SYS_readv, fd, iov, count) as isize,
        Target::Socket(_) if count < 0 => sys::fail_size(libc::EINVAL),
        Target::Socket(s) => size_result(match total(iov, count as usize) {
            Ok(0) => Ok(0),
            _ => recv_vector(&s, iov, count as usize, 0),
        }),
        Target::Error(e) => sys::fail_size(e),
    }
}

/// writev(2).
///
/// # Safety
/// As writev(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, iov: *const iovec, count: c_int) -> isize {
    match target(fd) {
        Target::Native => native!(libc::SYS_writev, fd, iov, count) as isize,
        Target::Socket(_) if count < 0 => sys::fail_size(libc::EINVAL),
        Target::Socket(s) => size_result(match total(iov, count as usize) {
            Ok(0) => Ok(0),
            _ => send_vector(&s, iov, count as usize, 0),
        }),
        Target::Error(e) => sys::fail_size(e),
    }
}

fn recv_datagram_from(
    s: &Open,
    buffer: *mut c_void,
    len: usize,
    flags: c_int,
    addr: *mut sockaddr,
    addr_len: *mut socklen_t,
) -> Result<usize, c_int> {
    if buffer.is_null() && len > 0 {
        return Err(libc::EFAULT);
    }
    let v = one(buffer, len);
    let got = datagrams::recv(s, (&raw const v, 1), v.iov_len, flags)?;
    if !addr.is_null() {
        datagrams::write_peer(got, addr, addr_len)?;
    }
    Ok(datagrams::result(got, flags))
}

/// recvfrom(2).
///
/// # Safety
/// As recvfrom(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    len: usize,
    flags: c_int,
    addr: *mut sockaddr,
    addr_len: *mut socklen_t,
) -> isize {
    match target(fd) {
        Target::Native => {
            native!(libc::SYS_recvfrom, fd, buffer, len, flags, addr, addr_len) as isize
        }
        Target::Socket(s) if s.is_datagram() => {
            size_result(recv_datagram_from(&s, buffer, len, flags, addr, addr_len))
        }
        Target::Socket(s) => {
            let r = recv_one(&s, buffer, len, flags);
            if r.is_ok() && !addr.is_null() {
                if addr_len.is_null() {
                    return sys::fail_size(libc::EFAULT);
                }
                // A stream has no source addresses.
                // SAFETY: the program's pointer to a length.
                unsafe { addr_len.write_unaligned(0) };
            }
            size_result(r)
        }
        Target::Error(e) => sys::fail_size(e),
    }
}

/// recv(2).
///
/// # Safety
/// As recv(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recv(fd: c_int, buffer: *mut c_void, len: usize, flags: c_int) -> isize {
    match target(fd) {
        Target::Native => {
            native!(libc::SYS_recvfrom, fd, buffer, len, flags, 0usize, 0usize) as isize
        }
        Target::Socket(s) => size_result(recv_one(&s, buffer, len, flags)),
        Target::Error(e) => sys::fail_size(e),
    }
}

/// sendto(2).
///
/// # Safety
/// As sendto(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendto(
    fd: c_int,
    buffer: *const c_void,
    len: usize,
    flags: c_int,
    addr: *const sockaddr,
    addr_len: socklen_t,
) -> isize {
    match target(fd) {
        Target::Native => {
            native!(libc::SYS_sendto, fd, buffer, len, flags, addr, addr_len) as isize
        }
        Target::Socket(s) => size_result(send_one(&s, buffer, len, flags, (addr, addr_len))),
        Target::Error(e) => sys::fail_size(e),
    }
}

/// send(2).
///
/// # Safety
/// As send(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn send(fd: c_int, buffer: *const c_void, len: usize, flags: c_int) -> isize {
    match target(fd) {
        Target::Native => {
            native!(libc::SYS_sendto, fd, buffer, len, flags, 0usize, 0usize) as isize
        }
        Target::Socket(s) => size_result(send_one(&s, buffer, len, flags, NO_ADDRESS)),
        Target::Error(e) => sys::fail_size(e),
    }
}

fn do_recvmsg(s: &Open, message: *mut msghdr, flags: c_int) -> Result<usize, c_int> {
    if message.is_null() {
        return Err(libc::EFAULT);
    }
    // SAFETY: the program's message header.
    let m = unsafe { message.read() };
    if m.msg_iovlen > IOV_MAX {
        return Err(libc::EMSGSIZE);
    }
    if s.is_datagram() {
        let len = total(m.msg_iov, m.msg_iovlen)?;
        return datagrams::recv_message(s, message, &m, len, flags);
    }
    let n = recv_vector(s, m.msg_iov, m.msg_iovlen, flags)?;
    // SAFETY: as above.
    unsafe {
        if !m.msg_name.is_null() {
            (*message).msg_namelen = 0;
        }
        (*message).msg_controllen = 0;
        (*message).msg_flags = 0;
    }
    Ok(n)
}

/// recvmsg(2).
///
/// # Safety
/// As recvmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> isize {
    match target(fd) {
        Target::Native => {
            rights::received(message, || native!(libc::SYS_recvmsg, fd, message, flags) as isize)
        }
        Target::Socket(s) => size_result(do_recvmsg(&s, message, flags)),
        Target::Error(e) => sys::fail_size(e),
    }
}

fn do_sendmsg(s: &Open, message: *const msghdr, flags: c_int) -> Result<usize, c_int> {
    if message.is_null() {
        return Err(libc::EFAULT);
    }
    // SAFETY: the program's message header.
    let m = unsafe { message.read() };
    if m.msg_iovlen > IOV_MAX {
        return Err(libc::EMSGSIZE);
    }
    if s.is_datagram() {
        let len = total(m.msg_iov, m.msg_iovlen)?;
        return datagrams::send_message(s, &m, len, flags);
    }
    rights::check_control(s, &m)?;
    send_vector(s, m.msg_iov, m.msg_iovlen, flags)
}

/// sendmsg(2).
///
/// # Safety
/// As sendmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> isize {
    match target(fd) {
        Target::Native => match rights::about_to_send(message) {
            Ok(()) => native!(libc::SYS_sendmsg, fd, message, flags) as isize,
            Err(e) => sys::fail_size(e),
        },
        Target::Socket(s) => size_result(do_sendmsg(&s, message, flags)),
        Target::Error(e) => sys::fail_size(e),
    }
}

/// Whether the socket listens.
pub(crate) fn is_listening(s: &Open) -> bool {
    s.cell.state.load(Ordering::Acquire) & SF_LISTENING != 0
}
