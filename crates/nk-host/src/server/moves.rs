//! `nk guest move`: a guest's new connections and listeners go to another NSM at once, its connections end where they are.
//!
//! The engine takes nothing from the guest while it is done, a few milliseconds: the present NSM handles what it was told, gives away
//! what is no connection, and leases nothing to the guest any more; then the next one is told of the guest's processes. From the first
//! move until the last connection on an old NSM has ended, all share the guest's chunks by a ledger.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nk_attach::{Kind, Message};
use nk_engine::{AdoptedListener, GuestId, NsmId};
use nk_servicelib::{Key, MovedAt, MovedSocket};

use super::nsm::Nsm;
use super::{Reply, Server};
use crate::guest::SharedLedger;
use crate::nsm::{command, note, unread_from_text, unread_to_texts};
use crate::pace::now_ns;
use crate::poll::PollState;

/// Tries to get everything to an NSM that it was told, and what it says to the engine.
const TRIES: u32 = 200;

/// Why a guest stays where it is.
enum Stays {
    /// Somebody is at fault, or has something else to do.
    Refused(i32, String),
    /// The daemon itself cannot.
    Failed(io::Error),
}

impl From<io::Error> for Stays {
    fn from(e: io::Error) -> Stays {
        Stays::Failed(e)
    }
}

fn refused<T>(errno: i32, why: String) -> Result<T, Stays> {
    Err(Stays::Refused(errno, why))
}

/// Lets the engine and an inline NSM settle with each other.
fn settle_inline(s: &mut PollState) -> bool {
    for _ in 0..TRIES {
        s.engine.poll(now_ns(), u32::MAX, &mut s.notify);
        if s.service.as_mut().is_none_or(|v| v.settle(now_ns(), &mut || {})) {
            return true;
        }
    }
    false
}

impl Server {
    pub(super) fn order_move(&mut self, guest: &str, nsm: &str) -> io::Result<Reply> {
        let found = self.guests.values().find(|g| g.name == guest).map(|g| g.id);
        let Some(id) = found else {
            return Ok(Reply::refused(libc::ESRCH, &format!("there is no guest {guest:?} here")));
        };
        let Some(to) = self.nsm_named(nsm) else {
            let names: Vec<&str> = self.nsms.iter().map(|n| n.name.as_str()).collect();
            let why = format!("there is no NSM {nsm:?}; there are: {}", names.join(", "));
            return Ok(Reply::refused(libc::ENOENT, &why));
        };
        match self.move_guest(id, to) {
            Ok(()) => Ok(Reply::ok(0, 0, 0, 0)),
            Err(Stays::Refused(errno, why)) => Ok(Reply::refused(errno, &why)),
            Err(Stays::Failed(e)) => Ok(Reply::failed("cannot move the guest", &e)),
        }
    }

    fn move_guest(&mut self, id: GuestId, to: NsmId) -> Result<(), Stays> {
        if self.guests.get(&id.0).is_none_or(|g| g.nsm == to) {
            return Ok(());
        }
        let r = self.try_move(id, to);
        self.forget_ledger(id);
        r
    }

    fn try_move(&mut self, id: GuestId, to: NsmId) -> Result<(), Stays> {
        let Some(g) = self.guests.get(&id.0) else { return Ok(()) };
        let (from, name, joins) = (g.nsm, g.name.clone(), !g.old_nsms.contains(&to));
        for nsm in [from, to] {
            if let Some(n) = self.nsm(nsm).filter(|n| !n.is_up()) {
                let why = format!("the NSM {:?} is being restarted: try again", n.name);
                return refused(libc::EAGAIN, why);
            }
        }
        if let Some(g) = self.guests.get_mut(&id.0).filter(|g| g.ledger.is_none()) {
            g.ledger = Some(SharedLedger::new(&name, g.region.device.layout())?);
        }
        if joins {
            self.nsm_add_guest(to, id)?;
        }
        let begun = Instant::now();
        self.ask(move |s| s.engine.pause_guest(id).map_err(io::Error::other))??;
        let moved = match self.leave(from, to, id) {
            Ok(moved) => moved,
            Err(why) => {
                self.ask(move |s| s.engine.resume_guest(id).map_err(io::Error::other))??;
                if joins {
                    self.drop_from_nsm(to, id)?;
                }
                return Err(why);
            }
        };
        // From here on nothing goes back: should the next NSM die now, its successor is told of everything as always.
        self.enter(to, id)?;
        let keys: Vec<(u32, u16)> =
            moved.iter().map(|m| (m.key.socket, m.key.generation)).collect();
        let count = keys.len();
        self.ask(move |s| {
            s.engine.move_guest(id, to, &keys, &mut s.notify).map_err(io::Error::other)
        })??;
        if let Some(g) = self.guests.get_mut(&id.0) {
            g.nsm = to;
            g.old_nsms.retain(|n| *n != to);
            g.old_nsms.push(from);
        }
        let given = moved.into_iter().try_for_each(|m| self.give_moved(from, to, m));
        self.ask(move |s| s.engine.resume_guest(id).map_err(io::Error::other))??;
        let paused_us = begun.elapsed().as_micros() as u64;
        given?;
        self.limit_bytes(id)?;
        if self.guests.get(&id.0).is_some_and(|g| !g.is_vm()) {
            self.note_guest(id);
        }
        let nsm = |n| self.nsm(n).map_or("", |n| n.name.as_str());
        tracing::info!(
            guest = name,
            from = nsm(from),
            to = nsm(to),
            sockets = count,
            paused_us,
            "guest moved"
        );
        Ok(())
    }

    /// The present NSM gives up what is no connection.
    fn leave(&mut self, nsm: NsmId, to: NsmId, id: GuestId) -> Result<Vec<MovedSocket>, Stays> {
        let Some(l) = self.guests.get(&id.0).and_then(|g| g.ledger.as_ref()) else {
            return Ok(Vec::new());
        };
        let (ledger, memfd) = (l.ledger.of_service(nsm.0), l.memfd.try_clone()?);
        let busy = || refused(libc::EAGAIN, "the NSM has too much to do: try again".to_owned());
        if self.nsm(nsm).is_some_and(Nsm::is_inline) {
            let moved = self.ask(move |s| {
                if !settle_inline(s) {
                    return None;
                }
                let moved = s.service.as_mut().map(|v| v.leave(id.0, ledger, to.0));
                // What it said meanwhile is heard by the engine before the guest is another's.
                Some(moved.unwrap_or_default())
            })?;
            return moved.map_or_else(busy, Ok);
        }
        for _ in 0..TRIES {
            if self.ask(move |s| s.engine.is_told(nsm))? {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut m = Message::new(Kind::Nsm).with_text(&nsm.0.to_string());
        (m.a, m.b, m.c) = (command::LEAVE, id.0.into(), to.0.into());
        for _ in 0..TRIES {
            let answer = match self.nsm(nsm).map(|n| n.ask(&m, &[memfd.as_raw_fd()])) {
                Some(Ok(answer)) => answer,
                Some(Err(e)) => return Err(Stays::Failed(e)),
                None => return busy(),
            };
            let (reply, notes) = answer;
            let mut moved = Vec::new();
            let mut unread = Vec::new();
            for (told, fd) in notes {
                match (told.a, fd, told.text().and_then(MovedAt::from_text)) {
                    (note::MOVED, Some(fd), Some(at)) => {
                        let unread = std::mem::take(&mut unread);
                        moved.push(MovedSocket { key: Key::from_word(told.b), fd, unread, at });
                    }
                    (note::UNREAD, ..) => {
                        unread.extend(told.text().and_then(unread_from_text).into_iter().flatten());
                    }
                    (_, fd, _) => self.nsm_note(nsm, &told, fd),
                }
            }
            match reply.status {
                0 => return Ok(moved),
                libc::EAGAIN => std::thread::sleep(Duration::from_millis(1)),
                e => return Err(Stays::Failed(io::Error::from_raw_os_error(e))),
            }
        }
        busy()
    }

    fn enter(&mut self, nsm: NsmId, id: GuestId) -> io::Result<()> {
        self.tell(nsm, id, command::ENTER, move |s| {
            if let Some(service) = &mut s.service {
                service.enter(id.0);
            }
        })
    }

    /// Tells an NSM something of a guest, inline or not. The successor of one that died is told of every guest.
    fn tell(
        &mut self,
        nsm: NsmId,
        id: GuestId,
        what: u64,
        inline: impl FnOnce(&mut PollState) + Send + 'static,
    ) -> io::Result<()> {
        if self.nsm(nsm).is_some_and(Nsm::is_inline) {
            return self.ask(inline);
        }
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (what, id.0.into());
        match self.nsm_command(nsm, &m, &[]) {
            Ok(reply) if reply.status != 0 => Err(io::Error::from_raw_os_error(reply.status)),
            Ok(_) => Ok(()),
            Err(e) => {
                tracing::debug!(error = %e, "an NSM was not told of a guest");
                Ok(())
            }
        }
    }

    /// Gives a socket that its NSM gave away to the next; one that it cannot take is lost.
    fn give_moved(&mut self, from: NsmId, to: NsmId, moved: MovedSocket) -> io::Result<()> {
        let key = moved.key;
        let kept = self.nsm_mut(from).and_then(|n| n.listeners.remove(&key.to_word()));
        let errno = if self.nsm(to).is_some_and(Nsm::is_inline) {
            let r =
                self.ask(move |s| s.service.as_mut().map_or(Ok(()), |v| v.adopt_moved(moved)))?;
            r.map_or_else(|e| e.0, |()| 0)
        } else {
            for text in unread_to_texts(&moved.unread) {
                let mut m = Message::new(Kind::Nsm).with_text(&text);
                (m.a, m.b) = (command::UNREAD, key.to_word());
                let _ = self.nsm_command(to, &m, &[]);
            }
            let mut m = Message::new(Kind::Nsm).with_text(&moved.at.to_text());
            (m.a, m.b) = (command::ADOPT_MOVED, key.to_word());
            let r = self.nsm_command(to, &m, &[moved.fd.as_raw_fd()]);
            if let (Some(backlog), Some(n)) = (moved.at.backlog, self.nsm_mut(to)) {
                // Should it die before it reports the listener itself.
                let fd = kept.map_or(moved.fd, |k| k.0);
                n.listeners.entry(key.to_word()).or_insert((fd, backlog));
            }
            r.map_or(0, |m| m.status)
        };
        if errno == 0 { Ok(()) } else { self.listener_lost(key) }
    }

    /// An NSM from which the guest was moved has none of its sockets any more.
    pub(super) fn nsm_left(&mut self, id: GuestId, nsm: NsmId) -> io::Result<()> {
        if !self.guests.get(&id.0).is_some_and(|g| g.old_nsms.contains(&nsm)) {
            return Ok(());
        }
        let left = self.ask(move |s| s.engine.leave_nsm(id, nsm, &mut s.notify))?;
        if !left.unwrap_or(false) {
            return Ok(());
        }
        self.drop_from_nsm(nsm, id)?;
        self.is_gone_from(nsm, id)
    }

    fn drop_from_nsm(&mut self, nsm: NsmId, id: GuestId) -> io::Result<()> {
        if self.nsm(nsm).is_some_and(Nsm::is_inline) {
            return self.ask(move |s| {
                if let Some(service) = &mut s.service {
                    service.remove_guest(id.0);
                }
            });
        }
        self.nsm_remove_guest(nsm, id);
        Ok(())
    }

    /// An NSM has nothing of a guest any more, because nothing is left or because it died.
    fn is_gone_from(&mut self, nsm: NsmId, id: GuestId) -> io::Result<()> {
        let Some(g) = self.guests.get_mut(&id.0) else { return Ok(()) };
        g.old_nsms.retain(|n| *n != nsm);
        if let Some(l) = &g.ledger {
            l.ledger.of_service(nsm.0).clear();
        }
        if g.old_nsms.is_empty() && g.nsm != nsm {
            self.nsm_alone(id)?;
            self.forget_ledger(id);
        }
        self.limit_bytes(id)
    }

    /// Tells a guest's NSM that no other has a part in its chunks.
    pub(super) fn nsm_alone(&mut self, id: GuestId) -> io::Result<()> {
        let Some(present) = self.guests.get(&id.0).map(|g| g.nsm) else { return Ok(()) };
        self.tell(present, id, command::ALONE, move |s| {
            settle_inline(s);
            if let Some(service) = &mut s.service {
                service.be_alone(id.0);
            }
        })
    }

    /// Nobody looks at a guest's ledger, unless several NSMs do.
    fn forget_ledger(&mut self, id: GuestId) {
        if let Some(g) = self.guests.get_mut(&id.0).filter(|g| g.old_nsms.is_empty()) {
            g.ledger = None;
        }
    }

    /// After the death of an NSM, of which the engine knows: what it had of guests that were moved from it is their present NSM's.
    pub(super) fn after_death(
        &mut self,
        nsm: NsmId,
        listeners: &[(GuestId, AdoptedListener)],
    ) -> io::Result<()> {
        for (guest, l) in listeners {
            let key = Key { guest: guest.0, socket: l.socket, generation: l.generation };
            let kept = self.nsm_mut(nsm).and_then(|n| n.listeners.remove(&key.to_word()));
            match kept {
                Some((fd, _)) => self.nsm_adopt_listener(key, fd, l.backlog)?,
                None => self.listener_lost(key)?,
            }
        }
        let all: Vec<GuestId> = self
            .guests
            .values()
            .filter(|g| g.ledger.is_some() && g.all_nsms().contains(&nsm))
            .map(|g| g.id)
            .collect();
        for id in all {
            self.is_gone_from(nsm, id)?;
        }
        Ok(())
    }
}
