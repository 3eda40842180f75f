//! Descriptors: their flags, copies of them, what they are.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat};

/// Sets O_NONBLOCK.
///
/// # Errors
/// Those of fcntl.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    Ok(fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?)
}

/// Clears O_NONBLOCK.
///
/// # Errors
/// Those of fcntl.
pub fn set_blocking(fd: impl AsFd) -> io::Result<()> {
    Ok(fcntl_setfl(&fd, fcntl_getfl(&fd)? - OFlags::NONBLOCK)?)
}

/// Takes a descriptor that came with a message, if it did.
#[must_use]
pub fn take(fds: &mut nk_attach::Fds, i: usize) -> Option<OwnedFd> {
    // SAFETY: the receiver's, and from now on not those `fds`'s.
    fds.take(i).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// (device, inode): two descriptors of one namespace have the same.
///
/// # Errors
/// Those of fstat.
pub fn identity(fd: impl AsFd) -> io::Result<(u64, u64)> {
    let stat = fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Whether the descriptor is a network namespace.
#[must_use]
pub fn is_netns(fd: impl AsFd) -> bool {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument; on other files it fails with ENOTTY.
    unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}
