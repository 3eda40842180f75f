//! Unix sockets, and who is at the other end.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, chmod, fchmod};
use rustix::net::sockopt::{Timeout, set_socket_passcred, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// A socket's longest path, of which there is a zero after it: without one many programs could not connect.
const PATH_MAX: usize = 107;

/// An SEQPACKET pair.
///
/// # Errors
/// Those of socketpair.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(net::socketpair(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// A listening SEQPACKET socket at a path (which must be free).
///
/// # Errors
/// Those of socket, bind and listen; ENAMETOOLONG.
pub fn listen_at(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    if path.as_os_str().len() > PATH_MAX {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let mode = Mode::from_raw_mode(mode);
    let addr = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // The mode is set on the socket before bind, so that the path never exists with a wider one.
    fchmod(&fd, mode)?;
    net::bind(&fd, &addr)?;
    // bind applied the umask.
    chmod(path, mode)?;
    net::listen(&fd, 1024)?;
    Ok(fd)
}

/// Connects to the SEQPACKET socket at a path.
///
/// # Errors
/// Those of socket and connect; ENAMETOOLONG.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let fd = nk_attach::connect(path.as_os_str().as_bytes());
    let fd = fd.map_err(io::Error::from_raw_os_error)?;
    // SAFETY: it was just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// [`connect`] that waits no longer than that for room: with EAGAIN. A send on it waits no longer, either.
///
/// # Errors
/// As there.
pub fn connect_within(path: &Path, time: Duration) -> io::Result<OwnedFd> {
    let addr = SocketAddrUnix::new(path)?;
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let fd = net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    set_send_timeout(&fd, time)?;
    rustix::io::retry_on_intr(|| net::connect(&fd, &addr))?;
    Ok(fd)
}

/// Whether one could connect to the socket at a path; does not wait.
///
/// # Errors
/// As [`connect`].
pub fn try_connect(path: &Path) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    match net::connect(&fd, &SocketAddrUnix::new(path)?) {
        // It is served, and has no room at the moment.
        Err(rustix::io::Errno::AGAIN) => Ok(()),
        tried => Ok(tried?),
    }
}

/// Removes a socket that nobody serves any more; a file of another kind is somebody's, and stays.
///
/// # Errors
/// Those of unlink; EEXIST where it is no socket.
pub fn remove_socket(path: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is no socket"));
    }
    std::fs::remove_file(path)
}

/// Accepts a connection.
///
/// # Errors
/// Those of accept4.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

/// Whether all other ends of a socket are closed.
#[must_use]
pub fn is_hung_up(fd: impl AsFd) -> bool {
    let mut p = [PollFd::new(&fd, PollFlags::empty())];
    let _ = poll(&mut p, Some(&Timespec::default()));
    p.iter().any(|p| p.revents().contains(PollFlags::HUP))
}

/// Asks for the sender's credentials with every message.
///
/// # Errors
/// Those of setsockopt.
pub fn pass_credentials(fd: impl AsFd) -> io::Result<()> {
    Ok(set_socket_passcred(fd, true)?)
}

/// Who connected a Unix socket: its credentials at that time.
#[must_use]
pub fn peer_credentials(fd: RawFd) -> Option<nk_attach::Credentials> {
    let mut c = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as u32;
    // Not rustix's: its pid cannot be 0, as the kernel says of whom this pid namespace does not have.
    // SAFETY: a ucred of ours and its length.
    let r = unsafe {
        let p = (&raw mut c).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, p, &raw mut len)
    };
    (r == 0 && c.pid > 0).then_some(nk_attach::Credentials { pid: c.pid, uid: c.uid, gid: c.gid })
}

/// The supplementary groups of a connection's other end, as they were when it connected.
#[must_use]
pub fn peer_groups(fd: RawFd) -> Vec<u32> {
    const SO_PEERGROUPS: i32 = 59;
    let mut groups = vec![0u32; 1024];
    let mut len = (groups.len() * size_of::<u32>()) as u32;
    // SAFETY: the buffer has the length that is told, and the kernel says how much of it it filled.
    let r = unsafe {
        let to = groups.as_mut_ptr().cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, SO_PEERGROUPS, to, &raw mut len)
    };
    groups.truncate(if r == 0 { len as usize / size_of::<u32>() } else { 0 });
    groups
}

/// A peek begins at the first message, whatever somebody said who has the socket, too.
pub(crate) fn peek_at_start(fd: RawFd) {
    let none = -1i32;
    // SAFETY: the kernel reads a number of ours.
    unsafe {
        let from = (&raw const none).cast();
        let len = size_of::<i32>() as u32;
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, from, len);
    }
}

/// Lets a send fail with EAGAIN after that time.
///
/// # Errors
/// Those of setsockopt.
pub(crate) fn set_send_timeout(fd: impl AsFd, time: Duration) -> io::Result<()> {
    Ok(set_socket_timeout(fd, Timeout::Send, Some(time))?)
}

/// Lets a receive fail with EAGAIN after so many seconds.
///
/// # Errors
/// Those of setsockopt.
pub fn set_receive_timeout(fd: impl AsFd, seconds: u64) -> io::Result<()> {
    Ok(set_socket_timeout(fd, Timeout::Recv, Some(Duration::from_secs(seconds)))?)
}
