//! The lives of NSM processes: each is started, told what it is, and started again when it dies, after ever longer rests where it dies again
//! and again.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nk_attach::{Kind, Message};
use nk_device::Layout;
use nk_engine::{GuestId, NsmId};
use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::WaitStatus;

use super::{Child, Nsm, Part, Server, Source, Token};
use crate::control::moves;
use crate::control::restarts::Restarts;
use crate::guest::Region;
use crate::keeper::CLASS_NSM;
use crate::nsm::command;
use crate::sys;

/// How long an NSM process may take to answer.
const ANSWER_MAX_S: u64 = 10;
/// How long the end of a killed process is waited for.
const END_MAX: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
impl Server {
    /// Starts the processes of all NSMs that are processes and have none. One that cannot work is a mistake of the configuration's.
    pub(in crate::server) fn start_nsms(&mut self) -> io::Result<()> {
        for at in 0..self.nsms.len() {
            let lacks_one = |n: &&Nsm| !n.is_inline() && n.child.is_none();
            let Some(nsm) = self.nsms.get(at).filter(lacks_one) else { continue };
            let (id, name) = (nsm.id, nsm.name.clone());
            self.start_nsm(id)
                .map_err(|e| io::Error::new(e.kind(), format!("NSM {name:?}: {e}")))?;
        }
        Ok(())
    }

    /// Starts an NSM's process over the NSM's device, and waits until it can serve. The engine knows the device already.
    pub(in crate::server) fn start_nsm(&mut self, id: NsmId) -> io::Result<()> {
        let (control, theirs) = sys::seqpacket_pair()?;
        let (broker, their_broker) = sys::seqpacket_pair()?;
        let nsm_bell = sys::eventfd()?;
        let bell = self.engine_bell(id)?;
        let engine_bell = bell.as_raw_fd();
        let server_broker = self.broker.clone();
        let Some(nsm) = self.nsm_mut(id) else { return Ok(()) };
        let name = std::ffi::CString::new(nsm.name.as_str())?;
        let argv =
            [c"nk".as_ptr(), c"nsm".as_ptr(), c"serve".as_ptr(), name.as_ptr(), std::ptr::null()];
        // It dies along with a daemon that leaves no keeper behind: by the end of its control socket.
        let pid = crate::spawn::child(crate::spawn::THIS, theirs.as_raw_fd(), &argv, false)?;
        drop(theirs);
        let started = nsm.greet(&control, [nsm_bell.as_raw_fd(), engine_bell], &their_broker);
        nsm.engine_bell = Some(bell);
        let (name, leave) = (nsm.name.clone(), nsm.leave.clone());
        let serves = started
            .and_then(|()| crate::nsm::serve_broker(server_broker, leave, broker))
            .and_then(|()| sys::pidfd(pid))
            .and_then(|pidfd| self.nsm_serves(id, pid, true, control, pidfd, nsm_bell));
        if let Err(e) = serves {
            sys::end_child(pid);
            return Err(e);
        }
        tracing::info!(nsm = name, pid, "NSM process started");
        Ok(())
    }

    /// What the NSM rings for the engine.
    pub(in crate::server) fn engine_bell(&self, id: NsmId) -> io::Result<Arc<OwnedFd>> {
        if let Some(bell) = self.nsm(id).and_then(|n| n.engine_bell.as_ref()) {
            return Ok(bell.clone());
        }
        let bell = Arc::new(sys::eventfd()?);
        let waker = bell.clone();
        self.ask(move |s| s.add_waker(&waker, None))??;
        Ok(bell)
    }

    /// An NSM has a process from now on.
    pub(in crate::server) fn nsm_serves(
        &mut self,
        id: NsmId,
        pid: i32,
        is_ours: bool,
        control: OwnedFd,
        pidfd: OwnedFd,
        bell: OwnedFd,
    ) -> io::Result<()> {
        let control_token = self.sources.insert(Source::Nsm(id, Part::Control));
        let pidfd_token = self.sources.insert(Source::Nsm(id, Part::End));
        let both = [(&control, control_token), (&pidfd, pidfd_token)];
        let add = |(fd, token): (&OwnedFd, Token)| self.epoll.add(fd, EventFlags::IN, token.word());
        if let Err(e) = both.into_iter().try_for_each(add) {
            self.forget_sources(both);
            return Err(e);
        }
        self.ask(move |s| s.notify.set_nsm(id, Some(bell)))?;
        if let Some(nsm) = self.nsm_mut(id) {
            let child = Child { pid, is_ours, control, control_token, pidfd, pidfd_token };
            nsm.child = Some(child);
            nsm.life.started(Instant::now());
        }
        self.note_nsm(id);
        Ok(())
    }

    pub(super) fn nsm_died(&mut self, id: NsmId) -> io::Result<()> {
        let Some(nsm) = self.nsm_mut(id) else { return Ok(()) };
        let Some(c) = nsm.child.take() else { return Ok(()) };
        let name = nsm.name.clone();
        let status = self.forget_child(&c);
        let violation = status.and_then(WaitStatus::terminating_signal) == Some(libc::SIGSYS);
        if violation && let Some(nsm) = self.nsm_mut(id) {
            nsm.counts.violations += 1;
            tracing::error!(
                nsm = name,
                pid = c.pid,
                "an NSM made a system call that it must not make: it was taken over, or its filter lacks one"
            );
        }
        let how = status.map_or_else(|| "not known".to_owned(), describe_end);
        tracing::error!(
            nsm = name,
            pid = c.pid,
            how,
            "an NSM process died; its connections are reset"
        );
        self.ask(move |s| s.notify.set_nsm(id, None))?;
        moves::nsm_died(self, id)?;
        self.rest(id, Restarts::died)
    }

    fn forget_sources(&mut self, both: [(&OwnedFd, Token); 2]) {
        for (fd, token) in both {
            self.epoll.remove(fd);
            self.sources.remove(token);
        }
    }

    /// Ends a process, if it lives, and all that is known of it; how it ended. Of one that another daemon started nobody here can learn that.
    pub(in crate::server) fn forget_child(&mut self, c: &Child) -> Option<WaitStatus> {
        self.forget_sources([(&c.control, c.control_token), (&c.pidfd, c.pidfd_token)]);
        if let Some(k) = &self.keeper {
            k.drop_entry(CLASS_NSM, c.pid as u64);
        }
        if c.is_ours {
            return sys::end_child(c.pid);
        }
        end_stranger(&c.pidfd);
        None
    }

    /// A dead NSM rests, or not, until the next is started. Guests that may be on others as well do not wait for it.
    fn rest(
        &mut self,
        id: NsmId,
        after: impl FnOnce(&mut Restarts, Instant) -> Duration,
    ) -> io::Result<()> {
        let Some(nsm) = self.nsm_mut(id) else { return Ok(()) };
        let rest = after(&mut nsm.life, Instant::now());
        if rest.is_zero() {
            return Ok(());
        }
        tracing::warn!(
            nsm = nsm.name,
            deaths = nsm.life.deaths(),
            rest_ms = rest.as_millis() as u64,
            "an NSM dies again and again: it rests before it is started"
        );
        let its = self.guests.values().filter(|g| g.place.nsm() == id);
        let its: Vec<GuestId> = its.map(|g| g.id).collect();
        its.into_iter().try_for_each(|guest| self.spread(guest))
    }

    /// When the next restart is due; does what is.
    pub(in crate::server) fn nsm_timer(&mut self, now: Instant) -> io::Result<Option<Instant>> {
        for at in 0..self.nsms.len() {
            let Some(nsm) = self.nsms.get_mut(at) else { continue };
            if nsm.life.take_due(now) {
                let id = nsm.id;
                self.restart_nsm(id)?;
            }
        }
        Ok(self.nsms.iter().filter_map(|n| n.life.due()).min())
    }

    fn restart_nsm(&mut self, id: NsmId) -> io::Result<()> {
        let Some(nsm) = self.nsm_mut(id) else { return Ok(()) };
        nsm.counts.restarts += 1;
        let Err(e) = self.begin_again(id) else { return Ok(()) };
        let Some(nsm) = self.nsm_mut(id) else { return Ok(()) };
        tracing::error!(nsm = nsm.name, error = %e, "an NSM cannot be started");
        if let Some(c) = nsm.child.take() {
            self.forget_child(&c);
            self.ask(move |s| s.notify.set_nsm(id, None))?;
        }
        self.rest(id, Restarts::failed)
    }

    /// Another process with another device, which knows of its guests. An error: the engine still has the old device.
    fn begin_again(&mut self, id: NsmId) -> io::Result<()> {
        let region = Region::new("nsm", Layout::NSM, 0)?;
        let device = region.device;
        let Some(nsm) = self.nsm_mut(id) else { return Ok(()) };
        let old = std::mem::replace(&mut nsm.region, region);
        let begun = self.start_nsm(id).and_then(|()| moves::nsm_back(self, id, device));
        // Until the engine has the new device it does not look at the old one; the old one goes when it has.
        if begun.is_err()
            && let Some(nsm) = self.nsm_mut(id)
        {
            nsm.region = old;
        }
        begun
    }
}

impl Nsm {
    /// Tells a process that was just started what it is, and waits for its word.
    fn greet(&self, control: &OwnedFd, bells: [i32; 2], broker: &OwnedFd) -> io::Result<()> {
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b, m.c) = (command::START, self.config.io.to_word(), self.config.grace_s().into());
        let cores: Vec<String> =
            self.config.cores.iter().map(|c| c.get_ref().to_string()).collect();
        let m = m.with_text(&cores.join(","));
        let [bell, engine_bell] = bells;
        let (memfd, totals) = (self.region.memfd.as_raw_fd(), self.totals.memfd.as_raw_fd());
        let fds = [memfd, bell, engine_bell, broker.as_raw_fd(), totals];
        let raw = control.as_raw_fd();
        nk_attach::send(raw, &m, &fds).map_err(io::Error::from_raw_os_error)?;
        sys::set_receive_timeout(control, ANSWER_MAX_S)?;
        let (reply, ..) = nk_attach::recv(raw, false)
            .map_err(|e| io::Error::other(format!("its process did not start ({e:?})")))?;
        match reply.status {
            0 => Ok(()),
            e => {
                let kind = io::Error::from_raw_os_error(e).kind();
                Err(io::Error::new(kind, reply.text().unwrap_or("").to_owned()))
            }
        }
    }
}

/// Ends an NSM process that another daemon started. Where it does not end nobody waits for it for ever.
pub(in crate::server) fn end_stranger(pidfd: &OwnedFd) {
    sys::kill(pidfd);
    let _ = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&END_MAX));
}

fn describe_end(status: WaitStatus) -> String {
    match status.terminating_signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("status {}", status.exit_status().unwrap_or_default()),
    }
}
