//! The syscalls of the kernel stack, each returning its errno.
//!
//! Where rustix has the call it is used. It has none for options by number, for TIOCOUTQ, and for bytes that a guest may change meanwhile,
//! of which there is never a slice.

use core::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nk_device::Addr;
use nk_servicelib::{Errno, Kind, RawSpan};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::retry_on_intr;
use rustix::net::{self, AddressFamily, Shutdown, SocketFlags, SocketType};

use crate::address::{from_kernel, to_kernel};

/// Of each socket.
const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

pub(crate) fn errno(e: rustix::io::Errno) -> Errno {
    Errno(e.raw_os_error())
}

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
        Kind::Stream => SocketType::STREAM,
        Kind::Datagram => SocketType::DGRAM,
    };
    net::socket_with(AddressFamily::from_raw(family), kind, FLAGS, None).map_err(errno)
}

pub(crate) fn bind(fd: &OwnedFd, a: &Addr) -> Result<(), Errno> {
    net::bind(fd, &to_kernel(a)?).map_err(errno)
}

pub(crate) fn listen(fd: &OwnedFd, backlog: u32) -> Result<(), Errno> {
    net::listen(fd, i32::try_from(backlog).unwrap_or(i32::MAX)).map_err(errno)
}

pub(crate) fn connect(fd: &OwnedFd, a: &Addr) -> Result<(), Errno> {
    net::connect(fd, &to_kernel(a)?).map_err(errno)
}

pub(crate) fn disconnect(fd: &OwnedFd) -> Result<(), Errno> {
    net::connect_unspec(fd).map_err(errno)
}

pub(crate) fn shutdown(fd: &OwnedFd, how: Shutdown) -> Result<(), Errno> {
    net::shutdown(fd, how).map_err(errno)
}

pub(crate) fn accept(fd: &OwnedFd) -> Result<(OwnedFd, Addr), Errno> {
    let (fd, peer) = retry_on_intr(|| net::acceptfrom_with(fd, FLAGS)).map_err(errno)?;
    Ok((fd, peer.and_then(|a| from_kernel(a).ok()).unwrap_or_default()))
}

pub(crate) fn local(fd: &OwnedFd) -> Result<Addr, Errno> {
    from_kernel(net::getsockname(fd).map_err(errno)?)
}

pub(crate) fn peer(fd: &OwnedFd) -> Result<Addr, Errno> {
    let peer = net::getpeername(fd).map_err(errno)?;
    from_kernel(peer.ok_or(Errno(libc::EAFNOSUPPORT))?)
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
    epoll::create(CreateFlags::CLOEXEC).map_err(errno)
}

pub(crate) fn epoll_add(
    epoll: &OwnedFd,
    fd: BorrowedFd<'_>,
    events: EventFlags,
    word: u64,
) -> Result<(), Errno> {
    epoll::add(epoll, fd, EventData::new_u64(word), events).map_err(errno)
}

pub(crate) fn epoll_change(
    epoll: &OwnedFd,
    fd: BorrowedFd<'_>,
    events: EventFlags,
    word: u64,
) -> Result<(), Errno> {
    epoll::modify(epoll, fd, EventData::new_u64(word), events).map_err(errno)
}

/// One that was not watched is as good.
pub(crate) fn epoll_remove(epoll: &OwnedFd, fd: BorrowedFd<'_>) {
    let _ = epoll::delete(epoll, fd);
}

/// Waits; what a signal interrupted counts as no event.
pub(crate) fn epoll_wait(epoll: &OwnedFd, out: &mut [libc::epoll_event], wait_ms: i32) -> usize {
    let max = i32::try_from(out.len()).unwrap_or(i32::MAX);
    // Not rustix's, which is epoll_pwait and takes a little longer: each poll makes this call.
    // SAFETY: the kernel writes at most max events into the slice.
    let n = unsafe { libc::epoll_wait(epoll.as_raw_fd(), out.as_mut_ptr(), max, wait_ms) };
    usize::try_from(n).unwrap_or(0).min(out.len())
}

const _: () = assert!(
    size_of::<RawSpan>() == size_of::<libc::iovec>()
        && align_of::<RawSpan>() == align_of::<libc::iovec>()
);
