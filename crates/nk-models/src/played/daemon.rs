//! The control thread of the simulation: what it watches, hears and tells the keeper. What it makes of it is the daemon's own code.

use std::collections::{BTreeMap, HashMap};
use std::io;

use nk_attach::Message;
use nk_device::Addr;
use nk_engine::{GuestId, NsmId};
use nk_host::control::attach;
use nk_host::control::members::Life;
use nk_host::control::moves::Host as _;
use nk_host::keeper::book::{self, Said as Words};
use nk_host::keeper::link::Link;
use nk_host::keeper::{CLASS_GUEST, CLASS_LISTENER};
use nk_servicelib::Key;

use super::kernel::{Fd, Keeper, Said};
use super::simulation::{NSMS, Simulation, State};
use super::stack::Note;

/// Who is at the other end of what is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Not said yet.
    Stranger,
    Process(GuestId, u16),
    Pidfd(GuestId, u16),
    Hold(GuestId),
}

/// What ends with the daemon's process.
pub(super) struct Daemon {
    pub(super) link: Link<Keeper>,
    /// By token.
    pub(super) sources: BTreeMap<u32, (Fd, Role)>,
    last: u32,
    /// By NSM: the listeners that it reported.
    pub(super) listeners: [HashMap<u64, (Addr, u32)>; NSMS],
    /// By NSM: its process.
    pub(super) nsms: [i32; NSMS],
}

impl Daemon {
    pub(super) fn new(link: Link<Keeper>) -> Daemon {
        let (sources, listeners) = (BTreeMap::new(), Default::default());
        Daemon { link, sources, last: 0, listeners, nsms: [0; NSMS] }
    }
    pub(super) fn watch(&mut self, fd: Fd, role: Role) -> u32 {
        self.last += 1;
        self.sources.insert(self.last, (fd, role));
        self.last
    }
    /// By what a descriptor is watched.
    pub(super) fn token_of(&self, fd: Fd) -> Option<u32> {
        self.sources.iter().find(|(_, s)| s.0 == fd).map(|(token, _)| *token)
    }
}

impl Simulation {
    pub(super) fn keep(&mut self, m: Message, fds: &[Fd]) {
        self.moment(None);
        self.daemon.link.keep(m, fds);
        self.moment(None);
    }
    pub(super) fn drop_entry(&mut self, class: u64, key: u64) {
        self.moment(None);
        self.daemon.link.drop_entry(class, key);
        self.moment(None);
    }
    pub(super) fn note_guest(&mut self, at: usize) {
        let t = &self.tenants[at];
        let (uid, limits) = (t.members.uid, t.limits);
        let (nsm, name) = (t.place.nsm().0.to_string(), t.id.0.to_string());
        let said = Words { uid, flags: 0, limits, nsm, name };
        let entry = book::guest(t.id, t.members.token, &said);
        assert_eq!(entry.text().and_then(Words::from_text).as_ref(), Some(&said), "it can be read");
        self.keep(entry, &[Fd::Still; 4]);
    }
    /// An NSM has another process from now on.
    pub(super) fn nsm_serves(&mut self, nsm: usize) {
        self.nsm_pids[nsm] = self.kernel.start();
        self.note_nsm(nsm, self.nsm_pids[nsm]);
    }
    /// This daemon knows of an NSM's process.
    pub(super) fn note_nsm(&mut self, nsm: usize, pid: i32) {
        self.daemon.nsms[nsm] = pid;
        let m = book::nsm(pid, &nsm.to_string(), book::NsmCounts::default(), 0);
        self.keep(m, &[Fd::Still, Fd::Pidfd(pid)]);
    }

    // ---- what it hears ----

    /// Something of what there is to be heard.
    pub(super) fn hear_some(&mut self) {
        let ready = self.ready();
        if self.random.below(3) == 0
            && let Some(token) = ready.get(self.random.below(ready.len()))
        {
            let token = *token;
            self.act(|s| s.event(token));
        }
        if self.random.below(8) == 0 {
            let nsm = self.random.below(NSMS);
            self.act(|s| {
                s.take_notes(nsm);
                Ok::<(), io::Error>(())
            });
        }
    }

    /// All that there is.
    pub(super) fn hear_all(&mut self) {
        while let Some(token) = self.ready().first().copied() {
            self.act(|s| s.event(token));
        }
    }

    fn ready(&self) -> Vec<u32> {
        let sources = self.daemon.sources.iter();
        sources.filter(|(_, (fd, _))| self.kernel.is_ready(fd)).map(|(token, _)| *token).collect()
    }

    /// As `Server::event`.
    fn event(&mut self, token: u32) -> io::Result<()> {
        match self.daemon.sources.get(&token) {
            None => Ok(()),
            Some((_, Role::Stranger | Role::Process(..))) => self.messages(token),
            Some((_, Role::Pidfd(guest, row))) => {
                let (guest, row) = (*guest, *row);
                attach::ended(self, guest, row, "its process ended")
            }
            Some((_, Role::Hold(guest))) => {
                let guest = *guest;
                attach::hold_ended(self, guest, token)
            }
        }
    }

    /// As `Server::messages`.
    pub(super) fn messages(&mut self, token: u32) -> io::Result<()> {
        loop {
            let Some((Fd::Control(connection), role)) = self.daemon.sources.get(&token).copied()
            else {
                return Ok(());
            };
            let c = self.kernel.connections.get_mut(&connection);
            let Some(c) = c else { return self.connection_closed(token, role) };
            let (said, is_closed) = (c.queue.front().copied(), c.is_closed);
            let is_embryo =
                matches!(role, Role::Process(g, row) if attach::is_embryo(self, g, row));
            if !is_embryo {
                self.take(connection);
            }
            match (said, role) {
                (Some(Said::Hello(pid)), Role::Process(g, row)) => {
                    attach::hello(self, g, row, pid)?;
                }
                (Some(Said::ForkFailed(row)), Role::Process(g, parent)) => {
                    attach::fork_failed(self, g, parent, row.into())?;
                }
                (Some(Said::DropQset(qset)), Role::Process(g, row)) => {
                    attach::drop_qset(self, g, row, qset.into())?;
                }
                (Some(said), role) => panic!("{said:?} of {role:?}"),
                (None, _) if is_closed => return self.connection_closed(token, role),
                (None, _) => return Ok(()),
            }
            if is_embryo && self.daemon.sources.contains_key(&token) {
                self.take(connection);
            }
        }
    }

    /// Takes a message from a queue.
    fn take(&mut self, connection: u32) {
        self.kernel.connections.get_mut(&connection).and_then(|c| c.queue.pop_front());
    }

    /// As `Server::connection_closed`.
    fn connection_closed(&mut self, token: u32, role: Role) -> io::Result<()> {
        self.daemon.sources.remove(&token);
        match role {
            Role::Process(guest, row) => attach::closed(self, token, guest, row),
            _ => Ok(()),
        }
    }

    /// What an NSM that lives has told so far.
    pub(super) fn take_notes(&mut self, nsm: usize) {
        if self.states[nsm] == State::Up {
            let notes = std::mem::take(&mut self.w.services[nsm].stack_mut().notes);
            self.take_in(nsm, notes);
        }
    }

    /// As `Server::take_note`.
    pub(super) fn take_in(&mut self, nsm: usize, notes: Vec<Note>) {
        for (key, listener) in notes {
            let place = self.place(GuestId(key.guest));
            let is_its = place.is_some_and(|p| p.is_on(NsmId(nsm as u8)));
            match listener {
                Some(_) if !is_its => {}
                Some((local, backlog)) => {
                    let entry = book::listener(key, &local, backlog);
                    self.keep(entry, &[Fd::Listener(local)]);
                    self.daemon.listeners[nsm].insert(key.to_word(), (local, backlog));
                }
                None => {
                    self.daemon.listeners[nsm].remove(&key.to_word());
                    self.note_listener_gone(key);
                }
            }
        }
    }

    pub(super) fn note_listener_gone(&mut self, key: Key) {
        self.drop_entry(CLASS_LISTENER, key.to_word());
    }

    // ---- guests that end ----

    /// Guests of which nobody is left.
    pub(super) fn guests_end(&mut self) {
        let now = self.now();
        let is_due = |s: &Simulation, t: &super::tenant::Tenant| match t.members.life(now) {
            Life::Over => true,
            Life::Drains(_) => s.w.engine.guest_sockets(t.id) == 0,
            Life::Lives | Life::Lingers(_) => false,
        };
        let due = self.tenants.iter().find(|t| is_due(self, t)).map(|t| t.id);
        if let Some(id) = due {
            self.act(|s| s.remove_guest(id));
            self.see("a guest ended with its last process");
        }
        self.enter_missing();
    }

    /// As `Server::remove_guest`.
    pub(super) fn remove_guest(&mut self, id: GuestId) -> io::Result<()> {
        let Some(at) = self.at(id) else { return Ok(()) };
        for token in self.tenants[at].members.watched().collect::<Vec<_>>() {
            self.daemon.sources.remove(&token);
        }
        self.engine(move |e, _| e.remove_guest(id))?.map_err(io::Error::other)?;
        for nsm in self.tenants[at].place.all() {
            self.remove(nsm, id)?;
        }
        self.drop_entry(CLASS_GUEST, id.0.into());
        self.tenants.swap_remove(at);
        for service in &mut self.w.services {
            service.remove_guest(id.0);
        }
        Ok(())
    }
}

/// An NSM by its name.
pub(super) fn nsm_named(name: &str) -> NsmId {
    NsmId(name.parse().expect("a number"))
}
