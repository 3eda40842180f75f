//! The NSM as the control thread sees it: nothing to do inline; a child process otherwise, which is started again when it dies.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nk_attach::{Kind, Message, RecvError};
use nk_device::Layout;
use nk_engine::GuestId;
use nk_servicelib::{GuestPool, Key};

use super::{NSM, Server, Source, Token};
use crate::guest::Region;
use crate::keeper::CLASS_LISTENER;
use crate::nsm::{command, note};
use crate::sys;

/// How long an NSM process may take to answer.
const ANSWER_MAX_S: i64 = 10;
/// An NSM that died sooner than this is not started again at once.
const RESTART_REST: Duration = Duration::from_secs(1);

/// What of an NSM process reports in the epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Its control socket.
    Control,
    /// Its pidfd.
    End,
}

/// The NSM.
#[derive(Debug)]
pub(crate) struct NsmState {
    /// Its own device; kept mapped as long as the engine uses it.
    region: Region,
    child: Option<Child>,
    /// Rung by the NSM for the engine.
    engine_bell: Option<OwnedFd>,
    /// Listeners that it reported: descriptor and backlog.
    listeners: HashMap<u64, (OwnedFd, u32)>,
    started: Instant,
    restart_at: Option<Instant>,
}

#[derive(Debug)]
struct Child {
    pid: i32,
    control: OwnedFd,
    control_token: Token,
    pidfd: OwnedFd,
    pidfd_token: Token,
}

impl NsmState {
    pub(super) fn new(region: Region) -> NsmState {
        NsmState {
            region,
            child: None,
            engine_bell: None,
            listeners: HashMap::new(),
            started: Instant::now(),
            restart_at: None,
        }
    }
}

impl Server {
    /// Starts the NSM process over the NSM's device. The engine knows the device already.
    pub(super) fn start_nsm(&mut self) -> io::Result<()> {
        let (control, theirs) = sys::seqpacket_pair()?;
        let (broker, their_broker) = sys::seqpacket_pair()?;
        let nsm_bell = sys::eventfd()?;
        if self.nsm.engine_bell.is_none() {
            let bell = sys::eventfd()?;
            let waker = bell.try_clone()?;
            self.ask(move |s| s.add_waker(&waker))??;
            self.nsm.engine_bell = Some(bell);
        }
        let Some(engine_bell) = &self.nsm.engine_bell else { return Ok(()) };
        let argv = [c"nk".as_ptr(), c"nsm".as_ptr(), std::ptr::null()];
        let pid = crate::spawn::child(crate::spawn::THIS, theirs.as_raw_fd(), &argv)?;
        drop(theirs);
        crate::nsm::serve_broker(self.broker.clone(), broker)?;
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (command::START, self.config.io().to_word());
        let fds = [
            self.nsm.region.memfd.as_raw_fd(),
            nsm_bell.as_raw_fd(),
            engine_bell.as_raw_fd(),
            their_broker.as_raw_fd(),
        ];
        nk_attach::send(control.as_raw_fd(), &m, &fds).map_err(io::Error::from_raw_os_error)?;
        sys::set_receive_timeout(control.as_raw_fd(), ANSWER_MAX_S)?;
        let pidfd = sys::pidfd(pid)?;
        let control_token = self.sources.insert(Source::Nsm(Part::Control));
        self.epoll.add(control.as_raw_fd(), libc::EPOLLIN, control_token.word())?;
        let pidfd_token = self.sources.insert(Source::Nsm(Part::End));
        self.epoll.add(pidfd.as_raw_fd(), libc::EPOLLIN, pidfd_token.word())?;
        self.ask(move |s| s.notify.set_nsm(NSM, Some(nsm_bell)))?;
        self.nsm.child = Some(Child { pid, control, control_token, pidfd, pidfd_token });
        self.nsm.started = Instant::now();
        tracing::info!(pid, "NSM process started");
        Ok(())
    }

    /// Sends a command and waits for its answer; what the NSM reports meanwhile is taken in.
    fn nsm_command(&mut self, m: &Message, fds: &[i32]) -> io::Result<Message> {
        let gone = || io::Error::other("the NSM process is gone");
        let raw = self.nsm.child.as_ref().ok_or_else(gone)?.control.as_raw_fd();
        nk_attach::send(raw, m, fds).map_err(io::Error::from_raw_os_error)?;
        loop {
            let (reply, mut fds, _) = nk_attach::recv(raw, false).map_err(|_| gone())?;
            if reply.a == m.a {
                return Ok(reply);
            }
            self.nsm_note(&reply, fds.take(0).map(sys::own));
        }
    }

    /// A listener came or went.
    fn nsm_note(&mut self, m: &Message, fd: Option<OwnedFd>) {
        match (m.a, fd) {
            (note::LISTENER, Some(fd)) => {
                if let Some(k) = &self.keeper {
                    let text = m.text().unwrap_or("");
                    k.keep(CLASS_LISTENER, m.b, (m.c, 0), text, &[fd.as_raw_fd()]);
                }
                self.nsm.listeners.insert(m.b, (fd, m.c as u32));
            }
            (note::LISTENER_GONE, _) => {
                self.nsm.listeners.remove(&m.b);
                if let Some(k) = &self.keeper {
                    k.drop_entry(CLASS_LISTENER, m.b);
                }
            }
            _ => tracing::warn!(what = m.a, "an odd message from the NSM"),
        }
    }

    pub(super) fn nsm_event(&mut self, part: Part) -> io::Result<()> {
        let Some(child) = &self.nsm.child else { return Ok(()) };
        if part == Part::End {
            return self.nsm_died();
        }
        let raw = child.control.as_raw_fd();
        loop {
            match nk_attach::recv(raw, true) {
                Ok((m, mut fds, _)) => self.nsm_note(&m, fds.take(0).map(sys::own)),
                Err(RecvError::Os(libc::EAGAIN)) => return Ok(()),
                Err(_) => return self.nsm_died(),
            }
        }
    }

    fn nsm_died(&mut self) -> io::Result<()> {
        let Some(c) = self.nsm.child.take() else { return Ok(()) };
        for (fd, token) in [(&c.control, c.control_token), (&c.pidfd, c.pidfd_token)] {
            self.epoll.remove(fd.as_raw_fd());
            self.sources.remove(token);
        }
        // It may hang instead of having ended.
        // SAFETY: our own child, not yet waited for.
        unsafe {
            libc::kill(c.pid, libc::SIGKILL);
            libc::waitpid(c.pid, std::ptr::null_mut(), 0);
        }
        tracing::error!(pid = c.pid, "the NSM process died; its connections are reset");
        self.ask(|s| {
            s.notify.set_nsm(NSM, None);
            s.engine.nsm_dead(NSM, &mut s.notify).map_err(io::Error::other)
        })??;
        let rest = self.nsm.started + RESTART_REST;
        if rest <= Instant::now() {
            return self.restart_nsm();
        }
        self.nsm.restart_at = Some(rest);
        Ok(())
    }

    /// When a restart is due; does it when it is.
    pub(super) fn nsm_timer(&mut self, now: Instant) -> io::Result<Option<Instant>> {
        match self.nsm.restart_at {
            Some(t) if t <= now => {
                self.nsm.restart_at = None;
                self.restart_nsm()?;
                Ok(None)
            }
            t => Ok(t),
        }
    }

    fn restart_nsm(&mut self) -> io::Result<()> {
        let region = Region::new("nsm", Layout::NSM, 0)?;
        let device = region.device;
        let old = std::mem::replace(&mut self.nsm.region, region);
        self.start_nsm()?;
        // Until the engine has the new device it does not look at the old one; the old one goes when it has.
        let ids: Vec<GuestId> = self.guests.values().map(|g| g.id).collect();
        for id in ids {
            self.nsm_add_guest(id)?;
        }
        let listeners =
            self.ask(move |s| s.engine.nsm_back(NSM, device).map_err(io::Error::other))??;
        drop(old);
        for (guest, l) in listeners {
            let key = Key { guest: guest.0, socket: l.socket, generation: l.generation };
            let fd = self.nsm.listeners.get(&key.to_word()).and_then(|k| k.0.try_clone().ok());
            match fd {
                Some(fd) => self.nsm_adopt_listener(key, fd, l.backlog)?,
                None => self.listener_lost(key)?,
            }
        }
        Ok(())
    }

    fn listener_lost(&mut self, key: Key) -> io::Result<()> {
        tracing::error!(?key, "a listener could not be given to the NSM: it is closed");
        self.ask(move |s| {
            let id = GuestId(key.guest);
            let _ = s.engine.listener_lost(id, key.socket, key.generation, &mut s.notify);
        })
    }

    /// Tells an NSM process of a guest that is known here.
    pub(super) fn nsm_add_guest(&mut self, id: GuestId) -> io::Result<()> {
        let Some(g) = self.guests.get(&id.0) else { return Ok(()) };
        let device = g.region.device;
        let pool = GuestPool {
            guest: id.0,
            device,
            namespace: g.namespace,
            pool: 0..device.layout().chunks,
        };
        let (memfd, flags) = (g.region.memfd.try_clone()?, g.flags);
        self.nsm_guest(&pool, flags, &memfd)?;
        self.nsm_limits(id)
    }

    /// Tells the guest's NSM process of its limits.
    pub(super) fn nsm_limits(&mut self, id: GuestId) -> io::Result<()> {
        let Some(limits) = self.guests.get(&id.0).map(|g| g.limits) else { return Ok(()) };
        if self.nsm.child.is_none() {
            return Ok(());
        }
        let mut m = Message::new(Kind::Nsm).with_text(&limits.to_text());
        (m.a, m.b) = (command::LIMITS, id.0.into());
        match self.nsm_command(&m, &[]).map(|r| r.status) {
            Ok(0) => Ok(()),
            Ok(e) => Err(io::Error::from_raw_os_error(e)),
            // It died, and its end is in the queue: the next one is told of every guest.
            Err(_) => Ok(()),
        }
    }

    /// Tells an NSM process of a guest, before the engine is told.
    pub(super) fn nsm_guest(
        &mut self,
        pool: &GuestPool,
        flags: u64,
        memfd: &OwnedFd,
    ) -> io::Result<()> {
        if self.nsm.child.is_none() {
            return Ok(());
        }
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b, m.c) = (command::ADD_GUEST, pool.guest.into(), pool.namespace);
        m.d = flags;
        match self.nsm_command(&m, &[memfd.as_raw_fd()]).map(|r| r.status) {
            Ok(0) => Ok(()),
            Ok(e) => Err(io::Error::from_raw_os_error(e)),
            // It died, and its end is in the queue: the next one is told of every guest.
            Err(e) => {
                tracing::debug!(error = %e, "the NSM was not told of a guest");
                Ok(())
            }
        }
    }

    pub(super) fn nsm_remove_guest(&mut self, id: GuestId) {
        self.nsm.listeners.retain(|k, _| Key::from_word(*k).guest != id.0);
        if self.nsm.child.is_none() {
            return;
        }
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (command::REMOVE_GUEST, id.0.into());
        if let Err(e) = self.nsm_command(&m, &[]) {
            tracing::debug!(error = %e, "the NSM was not told that a guest ended");
        }
    }

    /// Hands a kept listener to the NSM, inline or not; one that it cannot take is lost.
    pub(super) fn nsm_adopt_listener(
        &mut self,
        key: Key,
        fd: OwnedFd,
        backlog: u32,
    ) -> io::Result<()> {
        let errno = if self.nsm.engine_bell.is_some() {
            let mut m = Message::new(Kind::Nsm);
            (m.a, m.b, m.c) = (command::ADOPT_LISTENER, key.to_word(), backlog.into());
            let r = self.nsm_command(&m, &[fd.as_raw_fd()]);
            self.nsm.listeners.insert(key.to_word(), (fd, backlog));
            // One that died has its end in the queue: the next one is given every listener.
            r.map_or(0, |m| m.status)
        } else {
            let r = self.ask(move |s| {
                s.service.as_mut().map_or(Ok(()), |v| v.adopt_listener(key, fd, backlog))
            })?;
            r.map_or_else(|e| e.0, |()| 0)
        };
        if errno == 0 { Ok(()) } else { self.listener_lost(key) }
    }

    /// What an NSM process counted for a guest: the words of [`crate::nsm::format_stats`].
    pub(super) fn nsm_stats(&mut self, id: GuestId) -> Option<nk_servicelib::GuestStats> {
        self.nsm.child.as_ref()?;
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (command::STATS, id.0.into());
        let reply = self.nsm_command(&m, &[]).ok().filter(|r| r.status == 0)?;
        crate::nsm::parse_stats(reply.text()?)
    }

    /// The pid of the NSM process.
    pub(super) fn nsm_pid(&self) -> Option<i32> {
        self.nsm.child.as_ref().map(|c| c.pid)
    }
}
