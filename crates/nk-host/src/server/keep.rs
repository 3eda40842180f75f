//! What the control thread tells the keeper: everything that another daemon would need, before it is promised to anybody. And
//! the keeper's own end: another is started and told all of it again.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Instant;

use nk_engine::{GuestId, NsmId};
use rustix::event::epoll::EventFlags;

use super::{Server, Source, Token};
use crate::control::members::Hold;
use crate::keeper::book::{self, Said};
use crate::keeper::{CLASS_GUEST, CLASS_HOLD, CLASS_PROCESS, CLASS_QSET, CLASS_TOTALS};
use crate::notify::News;
use crate::nsm::PROTOCOL;
use crate::sys;

impl Server {
    /// Watches the keeper for its end. One that cannot be watched now keeps what it has, and is later.
    pub(super) fn watch_keeper(&mut self) {
        let Some(k) = &self.keeper else { return };
        self.keeper_is_away = false;
        let token = self.sources.insert(Source::Keeper);
        match k.with_connection(|fd| self.epoll.add(fd, EventFlags::IN, token.word())) {
            Ok(()) => self.keeper_life.started(Instant::now()),
            Err(e) => {
                self.sources.remove(token);
                self.keeper_life.failed(Instant::now());
                tracing::error!(error = %e, "the keeper cannot be watched: its end would not be seen");
            }
        }
    }

    /// The keeper closed its connection: until there is another, guests would not survive this daemon.
    pub(super) fn keeper_ended(&mut self, token: Token) {
        self.sources.remove(token);
        let Some(k) = &self.keeper else { return };
        k.with_connection(|fd| self.epoll.remove(fd));
        self.keeper_is_away = true;
        let rest = self.keeper_life.died(Instant::now());
        let rest_ms = rest.as_millis() as u64;
        tracing::error!(rest_ms, "the keeper ended; another is started");
    }

    /// When another keeper is due, or this one is to be watched; does it when it is. A thread waits until the other answers and has everything:
    /// guests go on meanwhile.
    pub(super) fn keeper_timer(&mut self, now: Instant) -> Option<Instant> {
        if let Some(k) = self.keeper.clone()
            && self.keeper_life.take_due(now)
        {
            if !self.keeper_is_away {
                self.watch_keeper();
                return self.keeper_life.due();
            }
            let (news, bell) = (self.news_sender.clone(), self.bell.clone());
            let start = move || {
                let started = k.restart();
                if let Err(e) = &started {
                    tracing::error!(error = %e, "no other keeper could be started: guests would not survive this daemon");
                }
                if news.send(News::Keeper(started.is_ok())).is_ok() {
                    sys::ring(&bell);
                }
            };
            let thread = std::thread::Builder::new().name("nk-next-keeper".to_owned());
            if let Err(e) = thread.spawn(start) {
                tracing::error!(error = %e, "no thread to start another keeper");
                self.keeper_life.failed(now);
            }
        }
        self.keeper_life.due()
    }

    /// Another keeper has everything, or could not be started.
    pub(super) fn next_keeper(&mut self, is_there: bool) {
        if !is_there {
            self.keeper_life.failed(Instant::now());
            return;
        }
        tracing::info!("the next keeper has everything");
        self.watch_keeper();
    }

    pub(super) fn raw(&self, token: Option<Token>) -> Option<RawFd> {
        Some(self.fd(token)?.as_raw_fd())
    }

    pub(super) fn fd(&self, token: Option<Token>) -> Option<&OwnedFd> {
        self.sources.get(token?)?.fd()
    }

    /// The keeper knows process guests only: a VM's ends with the daemon.
    pub(super) fn note_guest(&self, id: GuestId) {
        let guest = self.guests.get(&id.0).filter(|g| !g.is_vm());
        let (Some(k), Some(g)) = (&self.keeper, guest) else { return };
        let counters = g.counters.memfd.as_fd();
        let mut fds =
            vec![g.region.memfd.as_fd(), g.engine_bell.as_fd(), g.netns.as_fd(), counters];
        fds.extend(g.names.counters.as_ref().map(|c| c.memfd.as_fd()));
        let nsm = self.nsm(g.place.nsm()).map_or("", |n| n.name.as_str()).to_owned();
        let (uid, flags, limits) = (g.members.uid, g.flags, g.limits);
        let said = Said { uid, flags, limits, nsm, name: g.name.clone() };
        k.keep(book::guest(id, g.members.token, &said), &fds);
    }

    pub(super) fn note_nsm(&self, id: NsmId) {
        let (Some(k), Some(n)) = (&self.keeper, self.nsm(id)) else { return };
        let Some(c) = &n.child else { return };
        let fds = [c.control.as_fd(), c.pidfd.as_fd()];
        k.keep(book::nsm(c.pid, &n.name, n.counts, PROTOCOL), &fds);
    }

    /// All NSMs count on, or begin to; of those that had these numbers some are no more.
    pub(super) fn keep_totals(&self, old: &[u64]) {
        self.nsms.iter().for_each(|n| self.note_totals(n.id));
        let is_gone = |key: &&u64| !self.nsms.iter().any(|n| u64::from(n.id.0) == **key);
        if let Some(k) = &self.keeper {
            old.iter().filter(is_gone).for_each(|key| k.drop_entry(CLASS_TOTALS, *key));
        }
    }

    /// An NSM has begun to count.
    pub(super) fn note_totals(&self, id: NsmId) {
        if let (Some(k), Some(n)) = (&self.keeper, self.nsm(id)) {
            let fds = [n.totals.memfd.as_fd()];
            k.keep(book::entry(CLASS_TOTALS, id.0.into(), (0, 0), &n.name), &fds);
        }
    }

    pub(super) fn note_guest_gone(&self, id: GuestId) {
        if let Some(k) = &self.keeper {
            k.drop_entry(CLASS_GUEST, id.0.into());
        }
    }

    pub(super) fn note_process(&self, id: GuestId, row: u16) {
        let process = self.guests.get(&id.0).and_then(|g| g.members.processes.get(&row));
        let (Some(k), Some(p)) = (&self.keeper, process) else { return };
        let (control, pidfd) = (self.fd(p.control), self.fd(p.pidfd));
        let fds: Vec<BorrowedFd<'_>> = control.into_iter().chain(pidfd).map(AsFd::as_fd).collect();
        k.keep(book::process(id, row, p.pid, control.is_some(), pidfd.is_some()), &fds);
    }

    pub(super) fn note_process_gone(&self, id: GuestId, row: u16) {
        if let Some(k) = &self.keeper {
            k.drop_entry(CLASS_PROCESS, book::process_key(id, row));
        }
    }

    pub(super) fn note_qset(
        &self,
        id: GuestId,
        row: u16,
        qset: u16,
        primary: bool,
        bell: BorrowedFd<'_>,
    ) {
        if let Some(k) = &self.keeper {
            k.keep(book::qset(id, row, qset, primary), &[bell]);
        }
    }

    pub(super) fn note_qset_gone(&self, id: GuestId, row: u16, qset: u16) {
        if let Some(k) = &self.keeper {
            k.drop_entry(CLASS_QSET, book::qset_key(id, row, qset));
        }
    }

    pub(super) fn note_hold(&self, id: GuestId, far: Token, hold: Hold) {
        if let (Some(k), Some(fd)) = (&self.keeper, self.fd(Some(far))) {
            k.keep(book::hold(id, hold), &[fd.as_fd()]);
        }
    }

    pub(super) fn note_hold_gone(&self, id: GuestId, hold: Hold) {
        if let Some(k) = &self.keeper {
            k.drop_entry(CLASS_HOLD, book::hold_key(id, hold));
        }
    }
}
