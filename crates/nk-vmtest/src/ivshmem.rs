//! The host's side of an ivshmem-doorbell device: the server protocol (version 0) that QEMU's device speaks as client.
//!
//! Every message is an i64, little endian, with at most one descriptor. The host plays peer 0, the VM is peer 1; one
//! region and one server per VM, so that no two guests can ever share memory through it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

const VERSION: i64 = 0;
const REGION: i64 = -1;
/// The host's peer id: what the VM writes to the doorbell register's high half.
pub const HOST_PEER: i64 = 0;
/// The VM's peer id.
pub const VM_PEER: i64 = 1;

/// Waits for QEMU on `listener` and hands over the region and the doorbells.
///
/// `engine_eventfd` is rung by the VM (peer 0, vector 0); writing `guest_eventfds[v]` raises the VM's MSI-X vector `v`. The stream
/// returned must be kept open as long as the VM runs: QEMU cannot connect again.
///
/// # Errors
/// The socket fails, or QEMU went away.
pub fn serve_ivshmem(
    listener: &UnixListener,
    memfd: BorrowedFd<'_>,
    engine_eventfd: BorrowedFd<'_>,
    guest_eventfds: &[BorrowedFd<'_>],
) -> io::Result<UnixStream> {
    let (stream, _) = listener.accept()?;
    send(&stream, VERSION, None)?;
    send(&stream, VM_PEER, None)?;
    send(&stream, REGION, Some(memfd))?;
    // QEMU wants as many vectors of each peer as the device has; all of ours are one doorbell.
    for _ in guest_eventfds {
        send(&stream, HOST_PEER, Some(engine_eventfd))?;
    }
    for fd in guest_eventfds {
        send(&stream, VM_PEER, Some(*fd))?;
    }
    Ok(stream)
}

fn send(stream: &UnixStream, value: i64, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut bytes = value.to_le_bytes();
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // Aligned as cmsghdr wants, and large enough for one descriptor.
    let mut control = [0u64; 4];
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    if let Some(fd) = fd {
        const FD_LEN: u32 = size_of::<RawFd>() as u32;
        msg.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        msg.msg_controllen = unsafe { libc::CMSG_SPACE(FD_LEN) } as usize;
        // SAFETY: msg_control points to 32 aligned bytes, which CMSG_SPACE(4) = 24 does not exceed, so the first header and
        // its data lie within; nobody else has the buffer.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const msg);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(FD_LEN) as usize;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
        }
    }
    // SAFETY: iov and control outlive the call and their lengths are right.
    let n = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const msg, libc::MSG_NOSIGNAL) };
    match n {
        8 => Ok(()),
        n if n < 0 => Err(io::Error::last_os_error()),
        _ => Err(io::Error::from(io::ErrorKind::WriteZero)),
    }
}
