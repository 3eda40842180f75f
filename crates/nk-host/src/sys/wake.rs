//! Waking others: eventfds and futexes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::AtomicU32;

use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::thread::futex;

/// A non-blocking eventfd.
///
/// # Errors
/// Those of eventfd.
pub fn eventfd() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Rings an eventfd. `false` when the write was interrupted: it would have blocked, see [`crate::watchdog`]. Other errors are the
/// loss of whoever handed over the descriptor.
pub fn ring(fd: impl AsFd) -> bool {
    rustix::io::write(fd, &1u64.to_ne_bytes()) != Err(Errno::INTR)
}

/// Empties an eventfd.
pub fn drain(fd: impl AsFd) {
    let _ = rustix::io::read(fd, &mut [0u8; 8]);
}

/// Whether the descriptor is an eventfd: writing to what a guest names must have no other effect.
#[must_use]
pub fn is_eventfd(fd: impl AsFd) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
        .is_ok_and(|p| p.as_os_str().to_string_lossy().starts_with("anon_inode:[eventfd"))
}

/// Wakes everybody who sleeps on the word, also in other processes.
pub fn futex_wake_all(word: &AtomicU32) {
    futex_wake(word, u32::MAX);
}

/// Wakes so many sleepers of the word.
pub fn futex_wake(word: &AtomicU32, count: u32) {
    // The kernel's number has a sign.
    let _ = futex::wake(word, futex::Flags::empty(), count.min(i32::MAX as u32));
}
