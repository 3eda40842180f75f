//! NSMs as the control thread sees them: nothing to do for an inline one; a child process each otherwise.

mod exchange;
mod guests;
mod listeners;
mod lives;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use nk_attach::{Message, RecvError};
use nk_engine::{GuestId, NsmId};
use nk_servicelib::Key;

pub(super) use exchange::exchange;
pub(super) use lives::end_stranger;

use super::{Server, Source, Token};
use crate::config::{GuestConfig, NsmConfig, Placement};
use crate::control::restarts::{self, Restarts};
use crate::guest::Region;
use crate::keeper::book::{self, NsmCounts};
use crate::keeper::{CLASS_LISTENER, option_from_text};
use crate::nsm::{Leave, NsmTotals, note};
use crate::sys;
use exchange::{Note, gone, is_silent};
use listeners::Listeners;

/// Reports of an NSM process that are taken before others are looked at; the epoll tells of those that are left.
const NOTES_MAX: u32 = 64;

/// What of an NSM process reports in the epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Its control socket.
    Control,
    /// Its pidfd.
    End,
}

/// An NSM.
#[derive(Debug)]
pub(crate) struct Nsm {
    pub(super) id: NsmId,
    pub(super) name: String,
    pub(super) config: NsmConfig,
    /// Its own device; kept mapped as long as the engine uses it.
    pub(super) region: Region,
    /// What all its processes have counted.
    pub(super) totals: NsmTotals,
    /// Where its process may have sockets opened.
    pub(super) leave: Leave,
    pub(super) child: Option<Child>,
    /// Rung by the NSM for the engine.
    pub(super) engine_bell: Option<Arc<OwnedFd>>,
    /// Listeners that it reported, or was given.
    pub(super) listeners: Listeners,
    life: Restarts,
    pub(super) counts: NsmCounts,
}

#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: i32,
    /// Not of one that another daemon started.
    is_ours: bool,
    pub(super) control: OwnedFd,
    control_token: Token,
    pub(super) pidfd: OwnedFd,
    pidfd_token: Token,
}

impl Nsm {
    pub(super) fn new(
        id: NsmId,
        name: String,
        config: NsmConfig,
        region: Region,
        totals: NsmTotals,
    ) -> Nsm {
        Nsm {
            id,
            name,
            config,
            region,
            totals,
            leave: Leave::default(),
            child: None,
            engine_bell: None,
            listeners: Listeners::default(),
            life: Restarts::new(restarts::NSM, Instant::now()),
            counts: NsmCounts::default(),
        }
    }

    pub(super) fn is_inline(&self) -> bool {
        self.config.placement == Placement::Inline
    }

    /// The pid of its process.
    pub(super) fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(|c| c.pid)
    }

    /// Whether it serves now.
    pub(super) fn is_up(&self) -> bool {
        self.is_inline() || self.child.is_some()
    }

    /// Whether it died again and again, and is not started at once.
    pub(super) fn rests(&self) -> bool {
        !self.is_up() && self.life.deaths() > 1
    }

    /// Sends a command and waits for its answer; returns it and what the NSM reported meanwhile. One that gives none in time is ended: what it did
    /// of the command is not known, and a late answer would be taken for that to another.
    pub(super) fn ask(&self, m: &Message, fds: &[i32]) -> io::Result<(Message, Vec<Note>)> {
        let child = self.child.as_ref().ok_or_else(gone)?;
        let answer = exchange(&child.control, m, fds, |reply| reply.a == m.a);
        if answer.as_ref().is_err_and(is_silent) {
            tracing::error!(
                nsm = self.name,
                pid = child.pid,
                "an NSM gives no answer: it is ended"
            );
            sys::kill(&child.pidfd);
        }
        answer
    }
}

impl Server {
    pub(super) fn nsm(&self, id: NsmId) -> Option<&Nsm> {
        self.nsms.iter().find(|n| n.id == id)
    }

    pub(super) fn nsm_mut(&mut self, id: NsmId) -> Option<&mut Nsm> {
        self.nsms.iter_mut().find(|n| n.id == id)
    }

    /// The NSM of a name.
    pub(super) fn nsm_named(&self, name: &str) -> Option<NsmId> {
        self.nsms.iter().find(|n| n.name == name).map(|n| n.id)
    }

    /// The NSM of a new guest: of the configured ones, else of those that are for all that with the fewest guests, and of these that
    /// with the fewest sockets; one that rests after a death only if all do.
    pub(super) fn choose_nsm(&self, rules: &GuestConfig) -> io::Result<NsmId> {
        let named = self.named(rules);
        let any_default = self.nsms.iter().any(|n| n.config.default);
        let candidates: Vec<NsmId> = match named.is_empty() {
            true => {
                let is_for_all = |n: &&Nsm| n.config.default || !any_default;
                self.nsms.iter().filter(is_for_all).map(|n| n.id).collect()
            }
            false => named,
        };
        if let [only] = candidates[..] {
            return Ok(only);
        }
        let guests: Vec<(GuestId, NsmId)> =
            self.guests.values().map(|g| (g.id, g.place.nsm())).collect();
        let sockets = self.ask(move |s| {
            guests.into_iter().map(|(g, n)| (n, s.engine.guest_sockets(g))).collect::<Vec<_>>()
        })?;
        let load = |id: &NsmId| {
            let its = sockets.iter().filter(|(n, _)| n == id);
            let is_up = self.nsm(*id).is_some_and(Nsm::is_up);
            (!is_up, its.clone().count(), its.map(|(_, n)| u64::from(*n)).sum::<u64>())
        };
        candidates.into_iter().min_by_key(load).ok_or_else(|| io::Error::other("there is no NSM"))
    }

    /// Sends a command and waits for its answer; what the NSM reports meanwhile is taken in.
    pub(super) fn nsm_command(
        &mut self,
        id: NsmId,
        m: &Message,
        fds: &[i32],
    ) -> io::Result<Message> {
        let nsm = self.nsm(id).ok_or_else(|| io::Error::other("no such NSM"))?;
        let (reply, notes) = nsm.ask(m, fds)?;
        for (m, fd) in notes {
            self.nsm_note(id, &m, fd);
        }
        Ok(reply)
    }

    /// Tells an NSM what none has a reason to refuse. One that does is ended, as it would be if it were silent: nobody knows what it has done.
    pub(super) fn nsm_order(&mut self, id: NsmId, m: &Message) {
        let status = match self.nsm_command(id, m, &[]) {
            Ok(reply) => reply.status,
            Err(e) => return tracing::debug!(error = %e, "an NSM was not told of a guest"),
        };
        if status != 0
            && let Some(nsm) = self.nsm(id)
            && let Some(child) = &nsm.child
        {
            let (nsm, pid, what) = (&nsm.name, child.pid, m.a);
            tracing::error!(nsm, pid, what, status, "an NSM refuses an order: it is ended");
            sys::kill(&child.pidfd);
        }
    }

    /// What an NSM reports, done to its end.
    pub(super) fn nsm_note(&mut self, id: NsmId, m: &Message, fd: Option<OwnedFd>) {
        self.take_note(id, m, fd);
        self.tell_options();
    }

    fn tell_options(&self) {
        if let Some(k) = &self.keeper {
            k.tell_options();
        }
    }

    /// A listener came or went, or an option was set. [`Server::tell_options`] follows, once for many.
    fn take_note(&mut self, id: NsmId, m: &Message, fd: Option<OwnedFd>) {
        let keeper = self.keeper.clone();
        let key = Key::from_word(m.b);
        let guest = self.guests.get(&key.guest).filter(|g| g.place.is_on(id));
        let is_its = guest.is_some_and(|g| key.socket < g.region.device.layout().cells);
        let Some(nsm) = self.nsm_mut(id) else { return };
        match (m.a, fd) {
            // One of a guest that has ended meanwhile, or of a socket that none has, nobody would ever drop.
            (note::LISTENER, Some(_)) if !is_its => {}
            (note::LISTENER, Some(fd)) => {
                if let Some(k) = &keeper {
                    let text = m.text().unwrap_or("");
                    let entry = book::entry(CLASS_LISTENER, m.b, (m.c, 0), text);
                    k.keep(entry, &[fd.as_fd()]);
                }
                let last = nsm.listeners.insert(key, fd, m.c as u32);
                if let (Some(k), Some(last)) = (&keeper, last) {
                    k.drop_entry(CLASS_LISTENER, last.to_word());
                }
            }
            (note::LISTENER_GONE, _) => {
                nsm.listeners.remove(key);
                // Not that of a guest of another NSM's.
                if let Some(k) = keeper.filter(|_| is_its) {
                    k.drop_entry(CLASS_LISTENER, m.b);
                }
            }
            (note::OPTION | note::OPTIONS_GONE, _) => {
                let option = m.text().and_then(option_from_text);
                match (keeper.filter(|_| is_its), option) {
                    (Some(k), Some(option)) if m.a == note::OPTION => k.keep_option(key, &option),
                    (Some(k), _) if m.a == note::OPTIONS_GONE => k.forget_options(key),
                    _ => {}
                }
            }
            _ => tracing::warn!(nsm = nsm.name, what = m.a, "an odd message from an NSM"),
        }
    }

    pub(super) fn nsm_event(&mut self, id: NsmId, part: Part) -> io::Result<()> {
        let Some(child) = self.nsm(id).and_then(|n| n.child.as_ref()) else { return Ok(()) };
        let raw = child.control.as_raw_fd();
        let mut notes = 0;
        let ended = loop {
            // Guests make an NSM report: what else the control thread has to do comes in between.
            if part == Part::Control && notes == NOTES_MAX {
                break false;
            }
            notes += 1;
            match nk_attach::recv(raw, true) {
                Ok((m, mut fds, _)) => self.take_note(id, &m, sys::take(&mut fds, 0)),
                // What it said last, and is in force, is heard before its end.
                Err(RecvError::Os(libc::EAGAIN)) if part == Part::Control => break false,
                Err(_) => break true,
            }
        };
        self.tell_options();
        if ended { self.nsm_died(id) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
