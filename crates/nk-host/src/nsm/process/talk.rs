//! The thread that talks with the daemon: hands the worker what is asked, and sees when the daemon dies.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nk_attach::{Fds, Kind, Message};

use super::super::broker::Way;
use super::super::{PROTOCOL, command};
use super::Command;
use crate::sys;

/// How often a thread that waits for the other's answer looks whether the daemon that asked still lives.
const LOOK: Duration = Duration::from_millis(100);
/// How long the guests' being told may take at the end.
const END_MAX: Duration = Duration::from_secs(10);

/// The thread that talks with the daemon.
pub(super) struct Talk {
    control: Arc<OwnedFd>,
    way: Way,
    worker: mpsc::Sender<Command>,
    command_bell: OwnedFd,
    /// For how long it goes on without a daemon.
    grace: Duration,
    /// Since when there is none.
    alone_since: Option<Instant>,
}

impl Talk {
    pub(super) fn new(
        control: Arc<OwnedFd>,
        way: Way,
        worker: mpsc::Sender<Command>,
        command_bell: OwnedFd,
        grace: Duration,
    ) -> Talk {
        Talk { control, way, worker, command_bell, grace, alone_since: None }
    }

    /// Waits for what comes next and does it; `None`: it is time to end.
    pub(super) fn step(&mut self) -> Option<()> {
        let left = match self.alone_since {
            Some(since) => Some(self.grace.checked_sub(since.elapsed())?),
            None => None,
        };
        let broker = self.way.socket();
        let mut fds = [
            libc::pollfd { fd: self.control.as_raw_fd(), events: libc::POLLIN, revents: 0 },
            // Only its end is of interest. A negative number is skipped by the kernel.
            libc::pollfd {
                fd: broker.as_ref().map_or(-1, |b| b.as_raw_fd()),
                events: 0,
                revents: 0,
            },
        ];
        let timeout = left.map_or(-1, |t| i32::try_from(t.as_millis() + 1).unwrap_or(i32::MAX));
        // SAFETY: two entries of ours.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout) };
        let [control, end] = fds.map(|f| f.revents != 0);
        if end && let Some(b) = &broker {
            self.way.lose(b);
            self.is_alone();
        }
        if control { self.message() } else { Some(()) }
    }

    /// Whoever held the other end of the control socket is gone. Where that were daemon and keeper together, nobody else can tell the
    /// guests. A daemon that ends for good, or with its last guest, has told them.
    pub(super) fn tell_guests(&self) {
        let (reply, answer) = mpsc::sync_channel(1);
        let mut m = Message::new(Kind::Nsm);
        m.a = command::END;
        if sys::is_hung_up(&self.control) && self.worker.send((m, Fds::none(), reply)).is_ok() {
            sys::ring(&self.command_bell);
            let _ = answer.recv_timeout(END_MAX);
        }
    }

    fn is_alone(&mut self) {
        self.alone_since.get_or_insert_with(Instant::now);
    }

    /// Takes one message of the daemon's.
    fn message(&mut self) -> Option<()> {
        let (m, mut fds, _) = nk_attach::recv(self.control.as_raw_fd(), false).ok()?;
        if m.a == command::ADOPT {
            if m.b != PROTOCOL {
                return None;
            }
            // Before the worker is asked: it may be waiting for the last daemon's broker.
            self.way.change(fds.take(3).map(sys::own)?);
            self.grace = Duration::from_secs(m.d);
            self.alone_since = None;
        }
        let (reply, answer) = mpsc::sync_channel(1);
        self.worker.send((m, fds, reply)).ok()?;
        sys::ring(&self.command_bell);
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(answer) => {
                    return nk_attach::send(self.control.as_raw_fd(), &answer, &[]).ok();
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                // The next daemon's first word may be what the worker waits for.
                Err(RecvTimeoutError::Timeout) if self.has_lost_daemon() => return Some(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn has_lost_daemon(&mut self) -> bool {
        let Some(b) = self.way.socket() else {
            self.is_alone();
            return true;
        };
        let mut end = libc::pollfd { fd: b.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one entry of ours.
        unsafe { libc::poll(&raw mut end, 1, 0) };
        if end.revents != 0 {
            self.way.lose(&b);
            self.is_alone();
        }
        end.revents != 0
    }
}
