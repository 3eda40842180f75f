//! Going on for a daemon that died: guests, processes, queue sets, holds and listeners come back from the keeper.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nk_engine::{AdoptedListener, AdoptedRow, Adoption, GuestId, GuestSetup};
use nk_servicelib::{GuestPool, Key};

use super::keep::{HAS_CONTROL, HAS_PIDFD};
use super::nsm::Nsm;
use super::{Role, Server, Source};
use crate::guest::{Guest, Missed, Names, Process, Region, layout};
use crate::keeper::{
    CLASS_GUEST, CLASS_HOLD, CLASS_LISTENER, CLASS_PROCESS, CLASS_QSET, Entry, Keeper, parse_addr,
};
use crate::limits::GuestLimits;
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

impl Server {
    /// Takes over everything that the keeper had. What cannot be taken over is dropped there too.
    pub(super) fn adopt(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        let keeper = self.keeper.clone();
        for (id, kept) in sort(entries) {
            let id = GuestId(id);
            self.next_guest = self.next_guest.max(id.0.wrapping_add(1));
            if let Err(e) = self.adopt_guest(id, kept) {
                tracing::error!(guest = id.0, error = %e, "a guest could not be adopted");
                self.guests.remove(&id.0);
                if let Some(k) = &keeper {
                    k.drop_entry(CLASS_GUEST, id.0.into());
                }
            }
        }
        Ok(())
    }

    fn adopt_guest(&mut self, id: GuestId, kept: Kept) -> io::Result<()> {
        let lost = || io::Error::other("its entry is incomplete");
        let mut entry = kept.guest.ok_or_else(lost)?;
        let (uid, flags, limits, nsm, name) = parse_guest(&entry.text).ok_or_else(lost)?;
        let mut take = || if entry.fds.is_empty() { Err(lost()) } else { Ok(entry.fds.remove(0)) };
        let (memfd, engine_bell, netns) = (take()?, take()?, take()?);
        let region = Region::map(memfd, layout(flags))?;
        let namespace = self.broker.register(&netns)?;
        // Where it was, if there still is such an NSM.
        let nsm = match self.nsm_named(&nsm) {
            Some(id) => id,
            None => self.choose_nsm(&self.config.guest(&name))?,
        };
        let is_inline = self.nsm(nsm).is_some_and(Nsm::is_inline);
        let mut guest = Guest {
            id,
            name,
            token: (entry.c, entry.d),
            uid,
            region,
            engine_bell,
            netns,
            namespace,
            nsm,
            limits,
            flags,
            processes: BTreeMap::new(),
            holds: BTreeMap::new(),
            creator: None,
            was_attached: true,
            empty_since: None,
            missed: Missed::default(),
            names: Names::default(),
        };
        let mut adoption = Adoption::default();
        let mut bells: Vec<(u16, OwnedFd)> = Vec::new();
        let mut qsets = kept.qsets;
        let mut dead = Vec::new();
        for (row, mut e) in kept.processes {
            let pidfd = if e.d & HAS_PIDFD != 0 { e.fds.pop() } else { None };
            let control = if e.d & HAS_CONTROL != 0 { e.fds.pop() } else { None };
            let own = qsets.remove(&row).unwrap_or_default();
            let ended = pidfd.as_ref().is_some_and(|p| sys::has_ended(p.as_raw_fd()));
            if ended || (control.is_none() && pidfd.is_none()) || own.is_empty() {
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
        let device = guest.region.device;
        let vm = guest.is_vm();
        let setup = GuestSetup { id, device, namespace, nsm, limits: limits.engine(), vm };
        let pool = GuestPool { guest: id.0, device, namespace, pool: 0..device.layout().chunks };
        let bell = guest.engine_bell.try_clone()?;
        let counts = (guest.processes.len(), listeners.len());
        if guest.processes.is_empty() {
            guest.empty_since = Some(Instant::now());
        }
        let name = guest.name.clone();
        self.guests.insert(id.0, guest);
        self.had_guest = true;
        self.nsm_add_guest(id)?;
        self.ask(move |s| {
            for (q, fd) in bells {
                s.notify.set_doorbell(id, q, Some(fd));
            }
            s.add_waker(&bell, Some(id))?;
            if let Some(service) = s.service.as_mut().filter(|_| is_inline) {
                service.add_guest(pool);
            }
            s.engine.adopt_guest(setup, &adoption, &mut s.notify).map_err(io::Error::other)
        })??;
        self.limit_bytes(id)?;
        self.set_listen(id)?;
        self.give_listeners(listeners)?;
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
        tracing::info!(guest = name, processes = counts.0, listeners = counts.1, "guest adopted");
        Ok(())
    }

    /// Hands listeners to the NSM; one that it cannot take is lost, and one that nobody has any more ends here.
    pub(super) fn give_listeners(&mut self, listeners: Vec<(Key, OwnedFd, u32)>) -> io::Result<()> {
        for (key, fd, backlog) in listeners {
            let is_listener = self.ask(move |s| {
                s.engine.is_listener(GuestId(key.guest), key.socket, key.generation)
            })?;
            if !is_listener {
                if let Some(k) = &self.keeper {
                    k.drop_entry(CLASS_LISTENER, key.to_word());
                }
                continue;
            }
            self.nsm_adopt_listener(key, fd, backlog)?;
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
