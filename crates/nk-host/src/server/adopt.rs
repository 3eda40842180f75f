//! Going on for a daemon that died: guests, processes, queue sets, holds and listeners come back from the keeper.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nk_device::sync::Ordering;
use nk_engine::{Adoption, GuestId, GuestSetup, KeptGuest, NsmId};
use nk_servicelib::Key;
use rustix::event::epoll::EventFlags;

use super::nsm::Nsm;
use super::{Server, Source, Token};
use crate::control::adoption;
use crate::control::members::Members;
use crate::control::place::Place;
use crate::guest::{Guest, GuestCounters, Names, Region, layout};
use crate::keeper::book::{self, OfGuest, OfListener, Said};
use crate::keeper::{CLASS_LISTENER, CLASS_NSM, Entry};
use crate::names::Counters as NameCounters;
use crate::sys;

/// A guest's counters as the last daemon left them. Where that was of another version they begin at 0, and it is said.
fn kept_counters(guest: &str, memfd: Option<OwnedFd>) -> io::Result<GuestCounters> {
    let why = match memfd.map(GuestCounters::map) {
        Some(Ok(counters)) => return Ok(counters),
        Some(Err(e)) => e.to_string(),
        None => "of another version: the last daemon kept none".to_owned(),
    };
    tracing::warn!(guest, why, "the guest's counters cannot go on: they begin at 0");
    GuestCounters::new(guest)
}

type Prepared = adoption::Prepared<OwnedFd>;

fn incomplete() -> io::Error {
    io::Error::other("its entry is incomplete")
}

impl Server {
    /// Takes over everything that the keeper had, and starts the NSMs that lack a process. What cannot be taken over is dropped there too.
    pub(super) fn adopt(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        let (nsms, entries): (Vec<Entry>, Vec<Entry>) =
            entries.into_iter().partition(|e| e.class == CLASS_NSM);
        let mut prepared = BTreeMap::new();
        for (id, kept) in book::read(entries, |pidfd| sys::has_ended(pidfd)) {
            let id = GuestId(id);
            self.next_guest = self.next_guest.max(id.0.wrapping_add(1));
            match kept.ok_or_else(incomplete).and_then(|kept| self.prepare_guest(kept)) {
                Ok(p) => drop(prepared.insert(id, p)),
                Err(e) => self.not_adopted(id, &e)?,
            }
        }
        // After the guests' namespaces are known: an NSM may be waiting for a socket there.
        let told = self.adopt_nsms(nsms);
        self.start_nsms()?;
        adoption::go_on(self, told, |server, id, kept| {
            if let Some(p) = prepared.remove(&id)
                && let Err(e) = server.enter_guest(p, kept)
            {
                server.not_adopted(id, &e)?;
            }
            Ok(())
        })?;
        self.hear_nsms()?;
        // Not before the engine has heard what NSMs that live on have to say: a move takes back the ids granted to the present one.
        let all: Vec<GuestId> = self.guests.values().map(|g| g.id).collect();
        all.into_iter().try_for_each(|id| self.spread(id))
    }

    fn not_adopted(&mut self, id: GuestId, e: &io::Error) -> io::Result<()> {
        tracing::error!(guest = id.0, error = %e, "a guest could not be adopted");
        match self.guests.remove(&id.0) {
            Some(guest) => self.forget_guest(guest),
            None => {
                self.note_guest_gone(id);
                Ok(())
            }
        }
    }

    fn prepare_guest(&mut self, mut kept: OfGuest<OwnedFd>) -> io::Result<Prepared> {
        let (id, token) = (kept.id, kept.token);
        let Said { uid, flags, limits, nsm, name } = kept.said.clone();
        let fds = std::mem::take(&mut kept.fds);
        let mut fds = fds.into_iter();
        let mut take = || fds.next().ok_or_else(incomplete);
        let (memfd, engine_bell, netns) = (take()?, take()?, take()?);
        let region = Region::map(memfd, layout(flags))?;
        // A guest that writes there deceives itself.
        let version = region.device.header().version.load(Ordering::Relaxed);
        if version != nk_device::header::VERSION {
            return Err(io::Error::other(format!(
                "its device is of version {version}, this daemon's are of {}",
                nk_device::header::VERSION
            )));
        }
        let counters = kept_counters(&name, take().ok())?;
        let names = take().ok().and_then(|fd| NameCounters::map(fd).ok());
        // Where it was, if there still is such an NSM.
        let named = self.nsm_named(&nsm);
        let nsm = match named {
            Some(id) => id,
            None => self.choose_nsm(&self.config.guest(&name))?,
        };
        let namespace = self.broker.register(&netns)?;
        if let Some(n) = self.nsm(nsm).filter(|n| !n.is_inline()) {
            n.leave.give(id.0, namespace);
        }
        let guest = Guest {
            id,
            name,
            members: Members::new(token, uid),
            region,
            engine_bell: Arc::new(engine_bell),
            netns,
            namespace,
            place: Place::new(nsm),
            spread: None,
            limits,
            flags,
            counters,
            names: Names { counters: names, ..Names::default() },
        };
        self.guests.insert(id.0, guest);
        self.had_guest = true;
        adoption::prepare(self, kept, named.is_some())
    }

    /// Gives a prepared guest to the engine. `kept`: what its NSM says, where that lives on.
    fn enter_guest(&mut self, mut p: Prepared, kept: Option<KeptGuest>) -> io::Result<()> {
        let (id, lives_on, count) = (p.guest, kept.is_some(), p.listeners.len());
        let bells = std::mem::take(&mut p.bells);
        self.ask(move |s| {
            bells.into_iter().for_each(|(q, fd)| s.notify.set_doorbell(id, q, Some(fd)))
        })?;
        adoption::enter(self, p, kept)?;
        let Some(g) = self.guests.get(&id.0) else { return Ok(()) };
        let (name, processes) = (&g.name, g.members.processes.len());
        tracing::info!(guest = name, processes, listeners = count, lives_on, "guest adopted");
        Ok(())
    }

    pub(super) fn note_listener_gone(&self, key: Key) {
        if let Some(k) = &self.keeper {
            k.drop_entry(CLASS_LISTENER, key.to_word());
        }
    }

    /// Puts a source into the epoll.
    pub(super) fn watch(&mut self, source: Source, events: EventFlags) -> io::Result<Token> {
        let token = self.sources.insert(source);
        let Some(fd) = self.fd(Some(token)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if let Err(e) = self.epoll.add(fd, events, token.word()) {
            self.drop_source(token);
            return Err(e);
        }
        Ok(token)
    }
}

impl adoption::Host for Server {
    fn adopt_guest(&mut self, id: GuestId, adoption: Adoption) -> io::Result<()> {
        let Some(g) = self.guests.get(&id.0) else { return Ok(()) };
        let nsm = g.place.nsm();
        let setup = GuestSetup {
            id,
            device: g.region.device,
            namespace: g.namespace,
            nsm,
            limits: g.limits.engine(),
            vm: g.is_vm(),
            counters: g.counters.shared,
        };
        let bell = g.engine_bell.clone();
        let is_inline = self.nsm(nsm).is_some_and(Nsm::is_inline);
        let options = self.keeper.as_ref().map(|k| k.options_of(id.0)).unwrap_or_default();
        self.ask(move |s| {
            s.add_waker(&bell, Some(id))?;
            if let Some(service) = s.service.as_mut().filter(|_| is_inline) {
                for (key, options) in options {
                    options.into_iter().for_each(|o| service.renew_option(key, o));
                }
            }
            s.engine.adopt_guest(setup, &adoption, &mut s.notify).map_err(io::Error::other)
        })?
    }
    fn set_listen(&mut self, guest: GuestId) -> io::Result<()> {
        Server::set_listen(self, guest)
    }
    fn remember_listener(&mut self, nsm: NsmId, l: OfListener<OwnedFd>) {
        if let Some(n) = self.nsm_mut(nsm) {
            n.listeners.insert(l.key, l.fd, l.backlog);
        }
    }
    fn give_listener(&mut self, nsm: NsmId, l: OfListener<OwnedFd>) -> io::Result<bool> {
        self.nsm_adopt_listener(nsm, l.key, l.fd, l.backlog)
    }
    fn forget_listener(&mut self, key: Key) {
        self.note_listener_gone(key);
    }
}
