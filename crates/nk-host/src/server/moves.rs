//! `nk guest move`, and all that [`crate::control::moves`] decides, carried out: by messages to NSM processes, or by the poll thread where
//! the NSM is inline.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nk_attach::{Kind, Message};
use nk_engine::{Engine, GuestId, Notify, NsmId};
use nk_servicelib::{Key, MovedAt, MovedSocket};

use super::nsm::Nsm;
use super::{Reply, Server};
use crate::control::in_time::{InTime, LEAVES_MAX_NS};
use crate::control::moves::{self, Host, Stays};
use crate::control::place::Place;
use crate::guest::SharedLedger;
use crate::nsm::{command, note, unread_from_text, unread_to_texts};
use crate::pace::now_ns;
use crate::poll::PollState;

/// Lets the engine and an inline NSM settle with each other: it has everything that it was told, and the engine what it says.
fn settle_inline(s: &mut PollState) -> io::Result<()> {
    InTime::new(now_ns, || {}, LEAVES_MAX_NS).get(|| {
        s.engine.poll(now_ns(), u32::MAX, &mut s.notify);
        let has_settled = s.service.as_mut().is_none_or(|v| v.settle(now_ns(), &mut || {}));
        Ok(has_settled.then_some(()))
    })
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
        let begun = Instant::now();
        let moved = moves::move_guest(self, id, to);
        self.spread(id)?;
        let name = |n| self.nsm(n).map_or("", |n| n.name.as_str());
        match moved {
            Ok(None) => Ok(Reply::ok(0, 0, 0, 0)),
            Ok(Some(moved)) => {
                let took_us = begun.elapsed().as_micros() as u64;
                let (from, to, sockets) = (name(moved.from), name(to), moved.sockets);
                tracing::info!(guest, from, to, sockets, took_us, "guest moved");
                Ok(Reply::ok(0, 0, 0, 0))
            }
            Err(Stays::Restarting(nsm)) => {
                let why = format!("the NSM {:?} is being restarted: try again", name(nsm));
                Ok(Reply::refused(libc::EAGAIN, &why))
            }
            Err(Stays::Failed(e)) if e.raw_os_error() == Some(libc::EAGAIN) => {
                Ok(Reply::refused(libc::EAGAIN, "the NSM has too much to do: try again"))
            }
            Err(Stays::Failed(e)) => Ok(Reply::failed("cannot move the guest", &e)),
        }
    }

    /// The present NSM gives up what is no connection.
    fn nsm_leaves(&mut self, nsm: NsmId, id: GuestId) -> io::Result<Vec<MovedSocket>> {
        let ledger = self.guests.get(&id.0).and_then(|g| g.place.ledger());
        let ledger = ledger.ok_or_else(|| io::Error::other("it has no ledger"))?;
        let (ledger, memfd) = (ledger.ledger.of_service(nsm.0), ledger.memfd.try_clone()?);
        if self.nsm(nsm).is_some_and(Nsm::is_inline) {
            return self.ask(move |s| {
                settle_inline(s)?;
                let moved = s.service.as_mut().map(|v| v.leave(id.0, ledger));
                // What it said meanwhile is heard by the engine before the guest is another's.
                Ok(moved.unwrap_or_default())
            })?;
        }
        let rest = || std::thread::sleep(Duration::from_millis(1));
        let mut time = InTime::new(now_ns, rest, LEAVES_MAX_NS);
        // What it is told after it gave the guest away, it would do for sockets that it has no more.
        time.get(|| Ok(self.ask(move |s| s.engine.is_told(nsm))?.then_some(())))?;
        let mut m = Message::new(Kind::Nsm).with_text(&nsm.0.to_string());
        (m.a, m.b) = (command::LEAVE, id.0.into());
        time.get(|| {
            let nsm_is_gone = || io::Error::from_raw_os_error(libc::EAGAIN);
            let asked = self.nsm(nsm).ok_or_else(nsm_is_gone)?;
            let (reply, notes) = asked.ask(&m, &[memfd.as_raw_fd()])?;
            let mut moved = Vec::new();
            let mut unread = Vec::new();
            for (told, fd) in notes {
                let key = Key::from_word(told.b);
                match (told.a, fd, told.text().and_then(MovedAt::from_text)) {
                    // Another guest's would be put in the place of that one's.
                    (note::MOVED, Some(fd), Some(at)) if key.guest == id.0 => {
                        let unread = std::mem::take(&mut unread);
                        moved.push(MovedSocket { key, fd, unread, at });
                    }
                    (note::UNREAD, ..) => {
                        unread.extend(told.text().and_then(unread_from_text).into_iter().flatten());
                    }
                    (_, fd, _) => self.nsm_note(nsm, &told, fd),
                }
            }
            match reply.status {
                0 => Ok(Some(moved)),
                libc::EAGAIN => Ok(None),
                e => Err(io::Error::from_raw_os_error(e)),
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
        self.nsm_order(nsm, &m);
        Ok(())
    }

    /// Gives a socket that its NSM gave away to the next.
    fn give_moved(&mut self, from: NsmId, to: NsmId, moved: MovedSocket) -> io::Result<bool> {
        let key = moved.key;
        let kept = self.nsm_mut(from).and_then(|n| n.listeners.remove(key));
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
            let errno = r.map_or(0, |m| m.status);
            let next = self.nsm_mut(to).filter(|_| errno == 0);
            if let (Some(backlog), Some(n)) = (moved.at.backlog, next) {
                // Should it die before it reports the listener itself.
                let fd = kept.map_or(moved.fd, |k| k.0);
                if !n.listeners.has(key) {
                    n.listeners.insert(key, fd, backlog);
                }
            }
            errno
        };
        Ok(self.is_taken(key, errno))
    }
}

impl Host for Server {
    type Ledger = SharedLedger;

    fn guests(&self) -> Vec<GuestId> {
        self.guests.values().map(|g| g.id).collect()
    }
    fn place(&mut self, guest: GuestId) -> Option<&mut Place<SharedLedger>> {
        self.guests.get_mut(&guest.0).map(|g| &mut g.place)
    }
    fn is_up(&self, nsm: NsmId) -> bool {
        self.nsm(nsm).is_some_and(Nsm::is_up)
    }
    fn engine<R: Send + 'static>(
        &mut self,
        ask: impl FnOnce(&mut Engine, &mut dyn Notify) -> R + Send + 'static,
    ) -> io::Result<R> {
        self.ask(move |s| ask(&mut s.engine, &mut s.notify))
    }

    fn new_ledger(&mut self, guest: GuestId) -> io::Result<SharedLedger> {
        let g = self.guests.get(&guest.0).ok_or(io::ErrorKind::NotFound)?;
        SharedLedger::new(&g.name, g.region.device.layout())
    }
    fn clear_ledger(&mut self, guest: GuestId, nsm: NsmId) {
        if let Some(l) = self.guests.get(&guest.0).and_then(|g| g.place.ledger()) {
            l.ledger.of_service(nsm.0).clear();
        }
    }

    fn add(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()> {
        self.nsm_add_guest(nsm, guest)
    }
    fn remove(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()> {
        if self.nsm(nsm).is_some_and(Nsm::is_inline) {
            return self.ask(move |s| {
                if let Some(service) = &mut s.service {
                    service.remove_guest(guest.0);
                }
            });
        }
        self.nsm_remove_guest(nsm, guest);
        Ok(())
    }
    fn leave(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<Vec<MovedSocket>> {
        self.nsm_leaves(nsm, guest)
    }
    fn enter(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()> {
        self.tell(nsm, guest, command::ENTER, move |s| {
            if let Some(service) = &mut s.service {
                service.enter(guest.0);
            }
        })
    }
    fn give(&mut self, from: NsmId, to: NsmId, moved: MovedSocket) -> io::Result<bool> {
        self.give_moved(from, to, moved)
    }
    fn give_kept(&mut self, from: NsmId, to: NsmId, key: Key, backlog: u32) -> io::Result<bool> {
        let kept = self.nsm_mut(from).and_then(|n| n.listeners.remove(key));
        let Some((fd, _)) = kept else { return Ok(false) };
        self.nsm_adopt_listener(to, key, fd, backlog)
    }
    fn alone(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()> {
        self.tell(nsm, guest, command::ALONE, move |s| {
            let _ = settle_inline(s);
            if let Some(service) = &mut s.service {
                service.be_alone(guest.0);
            }
        })
    }
    fn give_options(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()> {
        self.nsm_options(nsm, guest)
    }
    fn drop_stale_options(&mut self, guest: GuestId) -> io::Result<()> {
        self.forget_stale_options(guest)
    }
    fn limit(&mut self, guest: GuestId) -> io::Result<()> {
        self.limit_bytes(guest)
    }
    fn note(&mut self, guest: GuestId) {
        self.note_guest(guest);
    }
}
