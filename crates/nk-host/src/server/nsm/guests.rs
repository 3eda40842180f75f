//! What an NSM is told of guests, and what it says of them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nk_attach::{Kind, Message};
use nk_engine::{GuestId, NsmId};
use nk_servicelib::{GuestPool, Key};

use super::{Nsm, Server};
use crate::keeper::options_to_text;
use crate::limits::GuestLimits;
use crate::nsm::command;
use crate::sys;

impl Server {
    /// Tells an NSM of a guest that is known here.
    pub(in crate::server) fn nsm_add_guest(&mut self, nsm: NsmId, id: GuestId) -> io::Result<()> {
        let Some(g) = self.guests.get(&id.0) else { return Ok(()) };
        let device = g.region.device;
        let pool = GuestPool {
            guest: id.0,
            device,
            namespace: g.namespace,
            pool: 0..device.layout().chunks,
            ledger: g.place.ledger().map(|l| l.ledger.of_service(nsm.0)),
            counters: g.counters.shared,
        };
        let (memfd, flags) = (g.region.memfd.try_clone()?, g.flags);
        let ledger = g.place.ledger().map(|l| l.memfd.try_clone()).transpose()?;
        if self.nsm(nsm).is_some_and(Nsm::is_inline) {
            return self.ask(move |s| {
                if let Some(service) = &mut s.service {
                    service.add_guest(pool);
                }
            });
        }
        self.nsm_guest(nsm, &pool, flags, &memfd, ledger.as_ref())?;
        self.nsm_options(nsm, id)?;
        self.nsm_limits(id)
    }

    /// Tells an NSM which options the guest's datagram sockets are to have again when they are made again there.
    pub(in crate::server) fn nsm_options(&mut self, nsm: NsmId, id: GuestId) -> io::Result<()> {
        let all = self.keeper.as_ref().map(|k| k.options_of(id.0)).unwrap_or_default();
        let Some(n) = self.nsm(nsm).filter(|_| !all.is_empty()) else { return Ok(()) };
        if n.is_inline() {
            return self.ask(move |s| {
                let Some(service) = &mut s.service else { return };
                service.renew_options(id.0);
                for (key, options) in all {
                    options.into_iter().for_each(|o| service.renew_option(key, o));
                }
            });
        }
        if n.child.is_none() {
            // The next one is told of every guest.
            return Ok(());
        }
        let text = options_to_text(&all);
        let without = |error: io::Error| tracing::error!(guest = id.0, %error, "an NSM did not take the options of UDP sockets");
        // Not worth anybody's end.
        let memfd = match sys::memfd_with(text.as_bytes()) {
            Ok(memfd) => memfd,
            Err(e) => {
                without(e);
                return Ok(());
            }
        };
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b, m.d) = (command::OPTIONS, id.0.into(), text.len() as u64);
        match self.nsm_command(nsm, &m, &[memfd.as_raw_fd()]).map(|r| r.status) {
            Ok(0) => {}
            Ok(e) => without(io::Error::from_raw_os_error(e)),
            // It died, and its end is in the queue: the next one is told of every guest.
            Err(e) => tracing::debug!(error = %e, "the NSM was not told of options"),
        }
        Ok(())
    }

    /// Options of sockets that the guest closed while no NSM could tell are not kept any more.
    pub(in crate::server) fn forget_stale_options(&self, id: GuestId) -> io::Result<()> {
        let Some(k) = &self.keeper else { return Ok(()) };
        let mut keys: Vec<Key> = k.options_of(id.0).into_iter().map(|(key, _)| key).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let stale = self.ask(move |s| {
            keys.retain(|k| !s.engine.is_open(id, k.socket, k.generation));
            keys
        })?;
        stale.into_iter().for_each(|key| k.forget_options(key));
        k.tell_options();
        Ok(())
    }

    /// Tells the guest's NSM processes of its limits.
    pub(in crate::server) fn nsm_limits(&mut self, id: GuestId) -> io::Result<()> {
        let Some(g) = self.guests.get(&id.0) else { return Ok(()) };
        let nsms = g.place.all();
        let limits = g.limits.divided(nsms.len());
        nsms.into_iter().try_for_each(|nsm| self.nsm_limit(nsm, id, &limits))
    }

    fn nsm_limit(&mut self, nsm: NsmId, id: GuestId, limits: &GuestLimits) -> io::Result<()> {
        if self.nsm(nsm).is_none_or(|n| n.child.is_none()) {
            return Ok(());
        }
        let mut m = Message::new(Kind::Nsm).with_text(&limits.to_text());
        (m.a, m.b) = (command::LIMITS, id.0.into());
        // One that died has its end in the queue: the next one is told of every guest.
        self.nsm_order(nsm, &m);
        Ok(())
    }

    /// Tells an NSM process of a guest, before the engine is told.
    pub(in crate::server) fn nsm_guest(
        &mut self,
        id: NsmId,
        pool: &GuestPool,
        flags: u64,
        memfd: &OwnedFd,
        ledger: Option<&OwnedFd>,
    ) -> io::Result<()> {
        let Some(nsm) = self.nsm(id).filter(|n| !n.is_inline()) else { return Ok(()) };
        nsm.leave.give(pool.guest, pool.namespace);
        if nsm.child.is_none() {
            // The next one is told of every guest.
            return Ok(());
        }
        let mut m = Message::new(Kind::Nsm).with_text(&id.0.to_string());
        (m.a, m.b, m.c) = (command::ADD_GUEST, pool.guest.into(), pool.namespace);
        m.d = flags;
        let fds: Vec<i32> = [memfd].into_iter().chain(ledger).map(AsRawFd::as_raw_fd).collect();
        match self.nsm_command(id, &m, &fds).map(|r| r.status) {
            Ok(0) => Ok(()),
            Ok(e) => {
                if let Some(nsm) = self.nsm(id) {
                    nsm.leave.take(pool.guest);
                }
                Err(io::Error::from_raw_os_error(e))
            }
            // It died, and its end is in the queue: the next one is told of every guest.
            Err(e) => {
                tracing::debug!(error = %e, "the NSM was not told of a guest");
                Ok(())
            }
        }
    }

    pub(in crate::server) fn nsm_remove_guest(&mut self, nsm: NsmId, id: GuestId) {
        let Some(n) = self.nsm_mut(nsm).filter(|n| !n.is_inline()) else { return };
        n.listeners.forget_guest(id.0);
        n.leave.take(id.0);
        if n.child.is_none() {
            return;
        }
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (command::REMOVE_GUEST, id.0.into());
        if let Err(e) = self.nsm_command(nsm, &m, &[]) {
            tracing::debug!(error = %e, "the NSM was not told that a guest ended");
        }
    }

    /// Hands a kept listener to an NSM, inline or not; `false`: it cannot take it.
    pub(in crate::server) fn nsm_adopt_listener(
        &mut self,
        id: NsmId,
        key: Key,
        fd: OwnedFd,
        backlog: u32,
    ) -> io::Result<bool> {
        let errno = if self.nsm(id).is_some_and(|n| !n.is_inline()) {
            let mut m = Message::new(Kind::Nsm);
            (m.a, m.b, m.c) = (command::ADOPT_LISTENER, key.to_word(), backlog.into());
            // One that died has its end in the queue: the next one is given every listener.
            let errno = self.nsm_command(id, &m, &[fd.as_raw_fd()]).map_or(0, |m| m.status);
            if let Some(nsm) = self.nsm_mut(id).filter(|_| errno == 0) {
                nsm.listeners.insert(key, fd, backlog);
            }
            errno
        } else {
            let r = self.ask(move |s| {
                s.service.as_mut().map_or(Ok(()), |v| v.adopt_listener(key, fd, backlog))
            })?;
            r.map_or_else(|e| e.0, |()| 0)
        };
        Ok(self.is_taken(key, errno))
    }

    /// Whether an NSM took a socket. One that it did not is kept by nobody: the host would go on to listen where no one accepts.
    pub(in crate::server) fn is_taken(&self, key: Key, errno: i32) -> bool {
        if errno != 0 {
            self.note_listener_gone(key);
        }
        errno == 0
    }

    /// What an NSM process counted for a guest: the words of [`crate::nsm::format_stats`].
    pub(in crate::server) fn nsm_stats(
        &mut self,
        nsm: NsmId,
        id: GuestId,
    ) -> Option<nk_servicelib::GuestStats> {
        self.nsm(nsm)?.child.as_ref()?;
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (command::STATS, id.0.into());
        let reply = self.nsm_command(nsm, &m, &[]).ok().filter(|r| r.status == 0)?;
        crate::nsm::parse_stats(reply.text()?)
    }
}
