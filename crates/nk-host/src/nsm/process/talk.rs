//! The thread that talks with the daemon: hands the worker what is asked, and sees when the daemon dies.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nk_attach::{Fds, Kind, Message};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;

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
        let timeout = left.and_then(|t| Timespec::try_from(t).ok());
        let [control, end] = {
            let control = PollFd::new(&*self.control, PollFlags::IN);
            // Only its end is of interest.
            let end = broker.as_ref().map(|b| PollFd::new(&**b, PollFlags::empty()));
            let mut fds: Vec<PollFd<'_>> = [control].into_iter().chain(end).collect();
            // What fails here fails again and again.
            retry_on_intr(|| poll(&mut fds, timeout.as_ref())).ok()?;
            [0, 1].map(|i| fds.get(i).is_some_and(|f| !f.revents().is_empty()))
        };
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
            self.way.change(sys::take(&mut fds, 3)?);
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
        let is_lost = sys::is_hung_up(&*b);
        if is_lost {
            self.way.lose(&b);
            self.is_alone();
        }
        is_lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    const ALONE: &str = "NK_TALK_WITHOUT_POLL";

    /// poll fails for good where it may not have as many descriptors as it is given: the test runs itself, with that limit.
    #[test]
    fn a_poll_that_fails_ends_it() {
        let name = "nsm::process::talk::tests::a_poll_that_fails_ends_it";
        if std::env::var_os(ALONE).is_none() {
            let this = std::env::current_exe().expect("this binary");
            let run = std::process::Command::new(this)
                .args(["--exact", name, "--nocapture"])
                .env(ALONE, "1")
                .output()
                .expect("run");
            let said = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let (control, _daemon) = sys::seqpacket_pair().expect("pair");
        let (broker, _its) = sys::seqpacket_pair().expect("pair");
        let (worker, _commands) = mpsc::channel();
        let bell = sys::eventfd().expect("eventfd");
        let grace = Duration::from_millis(1);
        let way = Way::new(broker);
        let mut talk = Talk::new(Arc::new(control), way, worker, bell, grace);
        talk.alone_since = Some(Instant::now() + Duration::from_secs(1000));
        assert_eq!(talk.step(), Some(()), "time passes");
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(1), maximum }).expect("lower");
        assert_eq!(talk.step(), None);
    }
}
