//! A safe epoll.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::{check, own};

/// An epoll instance whose events carry a token.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// A new one.
    ///
    /// # Errors
    /// Those of epoll_create1.
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: plain numbers.
        Ok(Epoll(own(check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?)))
    }
    fn control(&self, op: i32, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        let mut e = libc::epoll_event { events, u64: token };
        // SAFETY: one event of ours.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), op, fd, &raw mut e) })?;
        Ok(())
    }
    /// Watches a descriptor.
    ///
    /// # Errors
    /// Those of epoll_ctl.
    pub fn add(&self, fd: RawFd, events: i32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events as u32, token)
    }
    /// Watches for other events.
    ///
    /// # Errors
    /// Those of epoll_ctl.
    pub fn change(&self, fd: RawFd, events: i32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events as u32, token)
    }
    /// Watches no more. Must come before the close: a guest may hold a copy of the description.
    pub fn remove(&self, fd: RawFd) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
    }
    /// Waits; -1 waits for ever. EINTR gives nothing.
    ///
    /// # Errors
    /// Those of epoll_wait.
    pub fn wait(&self, out: &mut Vec<(u64, u32)>, timeout_ms: i32) -> io::Result<()> {
        // SAFETY: plain data.
        let mut events: [libc::epoll_event; 64] = unsafe { zeroed() };
        out.clear();
        // SAFETY: 64 entries of ours.
        let n =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 64, timeout_ms) };
        if n < 0 {
            let e = io::Error::last_os_error();
            return if e.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(e) };
        }
        out.extend(events.iter().take(n as usize).map(|e| (e.u64, e.events)));
        Ok(())
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
