//! The syscalls of the kernel stack, each returning its errno.

use core::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nk_servicelib::{Errno, Kind, RawSpan};

use crate::address::SockAddr;

fn last() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

fn check(r: isize) -> Result<usize, Errno> {
    if r < 0 { Err(last()) } else { Ok(r as usize) }
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retry(mut f: impl FnMut() -> isize) -> Result<usize, Errno> {
    loop {
        match check(f()) {
            Err(Errno(libc::EINTR)) => {}
            r => return r,
        }
    }
}

pub(crate) fn socket(family: u16, kind: Kind) -> Result<OwnedFd, Errno> {
    let kind = match kind {
        Kind::Stream => libc::SOCK_STREAM,
        Kind::Datagram => libc::SOCK_DGRAM,
    };
    // SAFETY: no memory is passed; a descriptor that comes back is ours.
    unsafe {
        let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let fd = check(libc::socket(i32::from(family), kind, 0) as isize)?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

pub(crate) fn bind(fd: &OwnedFd, a: &SockAddr) -> Result<(), Errno> {
    // SAFETY: the address is our own memory and len does not exceed it.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const a.storage).cast(), a.len) } as isize)
        .map(|_| ())
}

pub(crate) fn listen(fd: &OwnedFd, backlog: u32) -> Result<(), Errno> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: no memory is passed.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) } as isize).map(|_| ())
}

pub(crate) fn connect(fd: &OwnedFd, a: &SockAddr) -> Result<(), Errno> {
    // SAFETY: the address is our own memory and len does not exceed it.
    check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const a.storage).cast(), a.len) } as isize)
        .map(|_| ())
}

pub(crate) fn shutdown(fd: &OwnedFd, how: i32) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), how) } as isize).map(|_| ())
}

pub(crate) fn accept(fd: &OwnedFd) -> Result<(OwnedFd, SockAddr), Errno> {
    let mut a = SockAddr::empty();
    // SAFETY: the kernel writes at most a.len bytes into our own storage; a descriptor that comes back is ours.
    unsafe {
        let n = retry(|| {
            libc::accept4(
                fd.as_raw_fd(),
                (&raw mut a.storage).cast(),
                &raw mut a.len,
                libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            ) as isize
        })?;
        Ok((OwnedFd::from_raw_fd(n as RawFd), a))
    }
}

pub(crate) fn local(fd: &OwnedFd) -> Result<SockAddr, Errno> {
    let mut a = SockAddr::empty();
    // SAFETY: the kernel writes at most a.len bytes into our own storage.
    let r =
        unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut a.storage).cast(), &raw mut a.len) };
    check(r as isize)?;
    Ok(a)
}

pub(crate) fn peer(fd: &OwnedFd) -> Result<SockAddr, Errno> {
    let mut a = SockAddr::empty();
    // SAFETY: the kernel writes at most a.len bytes into our own storage.
    let r =
        unsafe { libc::getpeername(fd.as_raw_fd(), (&raw mut a.storage).cast(), &raw mut a.len) };
    check(r as isize)?;
    Ok(a)
}

pub(crate) fn set_option(fd: &OwnedFd, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads len bytes of the slice.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) }
        as isize)
    .map(|_| ())
}

pub(crate) fn get_option(
    fd: &OwnedFd,
    level: i32,
    name: i32,
    out: &mut [u8],
) -> Result<usize, Errno> {
    let mut len = out.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most len bytes into the slice.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, out.as_mut_ptr().cast(), &raw mut len)
    } as isize)?;
    Ok((len as usize).min(out.len()))
}

pub(crate) fn get_int(fd: &OwnedFd, level: i32, name: i32) -> Result<i32, Errno> {
    let mut out = [0u8; 4];
    get_option(fd, level, name, &mut out)?;
    Ok(i32::from_ne_bytes(out))
}

pub(crate) fn send(fd: &OwnedFd, spans: &[RawSpan]) -> Result<usize, Errno> {
    // SAFETY: RawSpan has the layout of iovec and its maker vouches for the memory; only the kernel reads it. The guest may
    // change the bytes meanwhile: the kernel copies whatever it finds.
    unsafe {
        let mut m: libc::msghdr = zeroed();
        m.msg_iov = spans.as_ptr().cast_mut().cast();
        m.msg_iovlen = spans.len();
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        retry(|| libc::sendmsg(fd.as_raw_fd(), &raw const m, flags))
    }
}

pub(crate) fn recv(fd: &OwnedFd, spans: &[RawSpan]) -> Result<usize, Errno> {
    // SAFETY: as for send; only the kernel writes the memory.
    unsafe {
        if let [one] = spans {
            let (p, n) = (one.as_ptr().cast(), one.len());
            return retry(|| libc::recv(fd.as_raw_fd(), p, n, libc::MSG_DONTWAIT));
        }
        let mut m: libc::msghdr = zeroed();
        m.msg_iov = spans.as_ptr().cast_mut().cast();
        m.msg_iovlen = spans.len();
        retry(|| libc::recvmsg(fd.as_raw_fd(), &raw mut m, libc::MSG_DONTWAIT))
    }
}

/// SIOCINQ / SIOCOUTQ (`libc::FIONREAD`, `libc::TIOCOUTQ`).
pub(crate) fn queue_len(fd: &OwnedFd, request: libc::Ioctl) -> usize {
    let mut n: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut n) };
    if r < 0 { 0 } else { usize::try_from(n).unwrap_or(0) }
}

pub(crate) fn epoll() -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed; a descriptor that comes back is ours.
    unsafe {
        let fd = check(libc::epoll_create1(libc::EPOLL_CLOEXEC) as isize)?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

pub(crate) fn epoll_ctl(
    epoll: &OwnedFd,
    op: i32,
    fd: BorrowedFd<'_>,
    events: u32,
    data: u64,
) -> Result<(), Errno> {
    let mut e = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads one epoll_event of ours.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), op, fd.as_raw_fd(), &raw mut e) } as isize)
        .map(|_| ())
}

/// Waits; what a signal interrupted counts as no event.
pub(crate) fn epoll_wait(epoll: &OwnedFd, out: &mut [libc::epoll_event], wait_ms: i32) -> usize {
    let max = i32::try_from(out.len()).unwrap_or(i32::MAX);
    // SAFETY: the kernel writes at most max events into the slice.
    let n = unsafe { libc::epoll_wait(epoll.as_raw_fd(), out.as_mut_ptr(), max, wait_ms) };
    usize::try_from(n).unwrap_or(0).min(out.len())
}

const _: () = assert!(
    size_of::<RawSpan>() == size_of::<libc::iovec>()
        && align_of::<RawSpan>() == align_of::<libc::iovec>()
);
