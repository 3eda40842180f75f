//! The host's side of an ivshmem-doorbell device: the server protocol (version 0) that QEMU's device speaks as client.
//!
//! Every message is an i64, little endian, with at most one descriptor. The host plays peer 0, the VM is peer 1; one
//! region and one server per VM, so that no two guests can ever share memory through it.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

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
    let bytes = value.to_le_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &fd {
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    match sendmsg(stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)? {
        8 => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::WriteZero)),
    }
}
