//! An epoll whose events carry a token.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

/// Events fetched at once.
const BATCH: usize = 64;

/// An epoll instance whose events carry a token.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// A new one.
    ///
    /// # Errors
    /// Those of epoll_create1.
    pub fn new() -> io::Result<Epoll> {
        Ok(Epoll(epoll::create(CreateFlags::CLOEXEC)?))
    }
    /// Watches a descriptor.
    ///
    /// # Errors
    /// Those of epoll_ctl.
    pub fn add(&self, fd: impl AsFd, events: EventFlags, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(token), events)?)
    }
    /// Watches for other events.
    ///
    /// # Errors
    /// Those of epoll_ctl.
    pub fn change(&self, fd: impl AsFd, events: EventFlags, token: u64) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, EventData::new_u64(token), events)?)
    }
    /// Watches no more. Must come before the close: a guest may hold a copy of the description.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }
    /// Waits; -1 waits for ever. EINTR gives nothing.
    ///
    /// # Errors
    /// Those of epoll_wait.
    pub fn wait(&self, out: &mut Vec<(u64, EventFlags)>, timeout_ms: i32) -> io::Result<()> {
        let mut room = [MaybeUninit::uninit(); BATCH];
        out.clear();
        match epoll::wait(&self.0, &mut room[..], timespec(timeout_ms).as_ref()) {
            Ok((events, _)) => out.extend(events.iter().map(|e| (e.data.u64(), e.flags))),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }
}

/// `None`: for ever.
fn timespec(timeout_ms: i32) -> Option<Timespec> {
    let ms = u32::try_from(timeout_ms).ok()?;
    Some(Timespec { tv_sec: (ms / 1000).into(), tv_nsec: (ms % 1000 * 1_000_000).into() })
}
