//! Going on for a daemon that died: guests, processes, queue sets, holds and listeners come back from the keeper.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use nk_device::sync::Ordering;
use nk_engine::{AdoptedListener, AdoptedRow, Adoption, GuestId, GuestSetup, KeptGuest, NsmId};
use nk_servicelib::{GuestPool, Key};

use super::nsm::Nsm;
use super::{Role, Server, Source};
use crate::control::adoption::{self, process_goes_on};
use crate::control::moves::{Host, lost};
use crate::control::place::Place;
use crate::guest::{Guest, GuestCounters, Names, Process, Region, layout};
use crate::keeper::{
    CLASS_GUEST, CLASS_HOLD, CLASS_LISTENER, CLASS_NSM, CLASS_PROCESS, CLASS_QSET, Entry,
    HAS_CONTROL, HAS_PIDFD, Keeper, parse_addr,
};
use crate::limits::GuestLimits;
use crate::names::Counters as NameCounters;
use crate::sys;

/// One guest's entries, sorted out.
#[derive(Debug, Default)]
struct Kept {
    guest: Option<Entry>,
    processes: BTreeMap<u16, Entry>,
    /// By row: number, primary, doorbell.
    qsets: BTreeMap<u16, Vec<(u16, bool, OwnedFd)>>,
    holds: Vec<Entry>,
    listeners: Vec<Entry>,
}

fn sort(entries: Vec<Entry>) -> BTreeMap<u16, Kept> {
    let mut all: BTreeMap<u16, Kept> = BTreeMap::new();
    for mut e in entries {
        let k = e.key;
        match e.class {
            CLASS_GUEST => all.entry(k as u16).or_default().guest = Some(e),
            CLASS_PROCESS => {
                all.entry((k >> 16) as u16).or_default().processes.insert(k as u16, e);
            }
            CLASS_QSET => {
                if let Some(bell) = e.fds.pop() {
                    let g = all.entry((k >> 32) as u16).or_default();
                    let row = g.qsets.entry((k >> 16) as u16).or_default();
                    row.push((k as u16, e.c == 1, bell));
                    // The primary one first.
                    row.sort_by_key(|q| !q.1);
                }
            }
            CLASS_HOLD => all.entry((k >> 48) as u16).or_default().holds.push(e),
            CLASS_LISTENER => all.entry((k >> 48) as u16).or_default().listeners.push(e),
            _ => {}
        }
    }
    all
}

/// uid, flags, limits, NSM, name.
fn parse_guest(text: &str) -> Option<(u32, u64, GuestLimits, String, String)> {
    let mut w = text.splitn(5, ' ');
    let uid = w.next()?.parse().ok()?;
    let flags = w.next()?.parse().ok()?;
    let limits = GuestLimits::from_text(w.next()?)?;
    Some((uid, flags, limits, w.next()?.to_owned(), w.next()?.to_owned()))
}

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

/// A guest of which the control thread knows again, and the engine not yet.
#[derive(Debug)]
struct Prepared {
    id: GuestId,
    adoption: Adoption,
    /// Doorbells of queue sets.
    bells: Vec<(u16, OwnedFd)>,
    /// Old key, new token, socket, generation.
    holds: Vec<(u64, super::Token, u32, u16)>,
    listeners: Vec<(Key, OwnedFd, u32)>,
    /// Rows whose process ended meanwhile.
    dead: Vec<u16>,
}

impl Server {
    /// Takes over everything that the keeper had, and starts the NSMs that lack a process. What cannot be taken over is dropped there too.
    pub(super) fn adopt(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        let (nsms, entries): (Vec<Entry>, Vec<Entry>) =
            entries.into_iter().partition(|e| e.class == CLASS_NSM);
        let mut prepared = BTreeMap::new();
        for (id, kept) in sort(entries) {
            let id = GuestId(id);
            self.next_guest = self.next_guest.max(id.0.wrapping_add(1));
            match self.prepare_guest(id, kept) {
                Ok(p) => drop(prepared.insert(id, p)),
                Err(e) => self.not_adopted(id, &e),
            }
        }
        // After the guests' namespaces are known: an NSM may be waiting for a socket there.
        let told = self.adopt_nsms(nsms);
        self.start_nsms()?;
        adoption::go_on(self, told, |server, id, kept| {
            if let Some(p) = prepared.remove(&id)
                && let Err(e) = server.enter_guest(p, kept)
            {
                server.not_adopted(id, &e);
            }
            Ok(())
        })?;
        self.hear_nsms()?;
        // Not before the engine has heard what NSMs that live on have to say: a move takes back the ids granted to the present one.
        let all: Vec<GuestId> = self.guests.values().map(|g| g.id).collect();
        all.into_iter().try_for_each(|id| self.spread(id))
    }

    fn not_adopted(&mut self, id: GuestId, e: &io::Error) {
        tracing::error!(guest = id.0, error = %e, "a guest could not be adopted");
        if let Some(g) = self.guests.remove(&id.0) {
            self.nsm_remove_guest(g.place.nsm(), id);
        }
        self.note_guest_gone(id);
    }

    fn prepare_guest(&mut self, id: GuestId, kept: Kept) -> io::Result<Prepared> {
        let lost = || io::Error::other("its entry is incomplete");
        let mut entry = kept.guest.ok_or_else(lost)?;
        let (uid, flags, limits, nsm, name) = parse_guest(&entry.text).ok_or_else(lost)?;
        let mut take = || if entry.fds.is_empty() { Err(lost()) } else { Ok(entry.fds.remove(0)) };
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
        let namespace = self.broker.register(&netns)?;
        // Where it was, if there still is such an NSM.
        let nsm = match self.nsm_named(&nsm) {
            Some(id) => id,
            None => self.choose_nsm(&self.config.guest(&name))?,
        };
        if let Some(n) = self.nsm(nsm).filter(|n| !n.is_inline()) {
            n.leave.give(id.0, namespace);
        }
        let mut guest = Guest {
            id,
            name,
            token: (entry.c, entry.d),
            uid,
            region,
            engine_bell,
            netns,
            namespace,
            place: Place::new(nsm),
            spread: None,
            limits,
            flags,
            processes: BTreeMap::new(),
            holds: BTreeMap::new(),
            creator: None,
            was_attached: true,
            empty_since: None,
            counters,
            names: Names { counters: names, ..Names::default() },
        };
        let mut adoption = Adoption::default();
        let mut bells: Vec<(u16, OwnedFd)> = Vec::new();
        let mut qsets = kept.qsets;
        let mut dead = Vec::new();
        for (row, mut e) in kept.processes {
            let pidfd = if e.d & HAS_PIDFD != 0 { e.fds.pop() } else { None };
            let control = if e.d & HAS_CONTROL != 0 { e.fds.pop() } else { None };
            let own = qsets.remove(&row).unwrap_or_default();
            let has_ended = pidfd.as_ref().map(sys::has_ended);
            if !process_goes_on(control.is_some(), has_ended, own.len()) {
                guest.keep_missed(row);
                dead.push(row);
                continue;
            }
            let numbers: Vec<u16> = own.iter().map(|q| q.0).collect();
            adoption.rows.push(AdoptedRow { row, pid: e.c as u32, qsets: numbers.clone() });
            bells.extend(own.into_iter().map(|q| (q.0, q.2)));
            let control = control.map(|fd| {
                let role = Role::Process(id, row);
                self.watch(Source::Connection { fd, role }, libc::EPOLLIN)
            });
            let pidfd =
                pidfd.map(|fd| self.watch(Source::Pidfd { fd, guest: id, row }, libc::EPOLLIN));
            guest.processes.insert(
                row,
                Process {
                    pid: e.c as i32,
                    control: control.transpose()?,
                    pidfd: pidfd.transpose()?,
                    qsets: numbers,
                },
            );
        }
        let mut holds = Vec::new();
        for mut e in kept.holds {
            let Some(fd) = e.fds.pop() else { continue };
            let (socket, generation) = (e.c as u32, e.d as u16);
            adoption.holds.push((socket, generation));
            let token = self.watch(Source::Hold { fd, guest: id }, 0)?;
            guest.holds.insert(token, (socket, generation));
            holds.push((e.key, token, socket, generation));
        }
        let mut listeners = Vec::new();
        for mut e in kept.listeners {
            let key = Key::from_word(e.key);
            let (Some(fd), Some(local)) = (e.fds.pop(), parse_addr(&e.text)) else { continue };
            adoption.listeners.push(AdoptedListener {
                socket: key.socket,
                generation: key.generation,
                local,
                backlog: e.c as u32,
            });
            listeners.push((key, fd, e.c as u32));
        }
        if guest.processes.is_empty() {
            guest.empty_since = Some(Instant::now());
        }
        self.guests.insert(id.0, guest);
        self.had_guest = true;
        Ok(Prepared { id, adoption, bells, holds, listeners, dead })
    }

    /// Gives a prepared guest to the engine. `kept`: what its NSM says, where that lives on.
    fn enter_guest(&mut self, mut p: Prepared, kept: Option<KeptGuest>) -> io::Result<()> {
        let id = p.id;
        let lives_on = kept.is_some();
        // Listeners that are where they were; an NSM that was just started may lack some, if the last daemon died before it gave them all.
        let (there, lacking): (Vec<_>, Vec<_>) =
            core::mem::take(&mut p.listeners).into_iter().partition(|(key, ..)| {
                kept.as_ref().is_some_and(|k| k.listens(key.socket, key.generation))
            });
        if lives_on {
            let is_there = |socket| there.iter().any(|(key, ..)| key.socket == socket);
            p.adoption.listeners.retain(|l| !is_there(l.socket));
            // What it left on others ended with the last daemon.
            if let Some(nsm) = self.guests.get(&id.0).map(|g| g.place.nsm()) {
                self.alone(nsm, id)?;
                self.nsm_limits(id)?;
                // Of sockets that it was not yet told of.
                self.nsm_options(nsm, id)?;
            }
        } else if let Some(nsm) = self.guests.get(&id.0).map(|g| g.place.nsm()) {
            self.nsm_add_guest(nsm, id)?;
        }
        p.adoption.kept = kept;
        let Some(g) = self.guests.get(&id.0) else { return Ok(()) };
        let (device, namespace, nsm) = (g.region.device, g.namespace, g.place.nsm());
        let counters = g.counters.shared;
        let setup = GuestSetup {
            id,
            device,
            namespace,
            nsm,
            limits: g.limits.engine(),
            vm: g.is_vm(),
            counters,
        };
        let pool = GuestPool {
            guest: id.0,
            device,
            namespace,
            pool: 0..device.layout().chunks,
            ledger: None,
            counters,
        };
        let bell = g.engine_bell.try_clone()?;
        let (name, processes) = (g.name.clone(), g.processes.len());
        let is_inline = self.nsm(nsm).is_some_and(Nsm::is_inline);
        let options = self.keeper.as_ref().map(|k| k.options_of(id.0)).unwrap_or_default();
        let Prepared { adoption, bells, holds, dead, .. } = p;
        let count = there.len() + lacking.len();
        self.ask(move |s| {
            for (q, fd) in bells {
                s.notify.set_doorbell(id, q, Some(fd));
            }
            s.add_waker(&bell, Some(id))?;
            if let Some(service) = s.service.as_mut().filter(|_| is_inline) {
                service.add_guest(pool);
                for (key, options) in options {
                    options.into_iter().for_each(|o| service.renew_option(key, o));
                }
            }
            s.engine.adopt_guest(setup, &adoption, &mut s.notify).map_err(io::Error::other)
        })??;
        self.limit_bytes(id)?;
        self.set_listen(id)?;
        self.forget_stale_options(id)?;
        self.remember_listeners(nsm, there)?;
        self.give_listeners(lacking)?;
        // Tokens are new ones, and with them the holds' keys.
        let keeper: Option<Keeper> = self.keeper.clone();
        for (old, token, socket, generation) in holds {
            if let Some(k) = &keeper {
                k.drop_entry(CLASS_HOLD, old);
            }
            self.note_hold(id, token, socket, generation);
        }
        for row in dead {
            self.note_process_gone(id, row);
        }
        tracing::info!(guest = name, processes, listeners = count, lives_on, "guest adopted");
        Ok(())
    }

    /// Listeners that are their NSM's still: their descriptors are for the next one.
    fn remember_listeners(
        &mut self,
        nsm: NsmId,
        listeners: Vec<(Key, OwnedFd, u32)>,
    ) -> io::Result<()> {
        for (key, fd, backlog) in listeners {
            if !self.is_listener(key)? {
                self.note_listener_gone(key);
            } else if let Some(n) = self.nsm_mut(nsm) {
                n.listeners.insert(key.to_word(), (fd, backlog));
            }
        }
        Ok(())
    }

    fn is_listener(&self, key: Key) -> io::Result<bool> {
        self.ask(move |s| s.engine.is_listener(GuestId(key.guest), key.socket, key.generation))
    }

    pub(super) fn note_listener_gone(&self, key: Key) {
        if let Some(k) = &self.keeper {
            k.drop_entry(CLASS_LISTENER, key.to_word());
        }
    }

    /// Hands listeners to the NSM; one that it cannot take is lost, and one that nobody has any more ends here.
    pub(super) fn give_listeners(&mut self, listeners: Vec<(Key, OwnedFd, u32)>) -> io::Result<()> {
        for (key, fd, backlog) in listeners {
            if !self.is_listener(key)? {
                self.note_listener_gone(key);
                continue;
            }
            let nsm = self.guests.get(&key.guest).map(|g| g.place.nsm());
            if let Some(nsm) = nsm
                && !self.nsm_adopt_listener(nsm, key, fd, backlog)?
            {
                lost(self, key)?;
            }
        }
        Ok(())
    }

    /// Puts a source into the epoll.
    pub(super) fn watch(&mut self, source: Source, events: i32) -> io::Result<super::Token> {
        let token = self.sources.insert(source);
        let Some(raw) = self.raw(Some(token)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if let Err(e) = self.epoll.add(raw, events, token.word()) {
            self.drop_source(token);
            return Err(e);
        }
        Ok(token)
    }
}
