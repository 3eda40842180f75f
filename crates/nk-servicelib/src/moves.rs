//! A guest moves from one service to another, which may be in another process: what is connected stays here, the rest goes there by
//! descriptor. The pool is shared meanwhile ([`Ledger`]).

use std::os::fd::OwnedFd;

use nk_device::cell::{SF_BOUND, SF_CONNECTED, SF_CONNECTING, SF_RX_STALLED};
use nk_device::stream::{Span, take_slot, untake_slot};
use nk_device::sync::Ordering;
use nk_device::{Cell, Ledger, STREAM_SLOTS};

use crate::datagram::Datagrams;
use crate::guest::Guest;
use crate::service::{Ctx, Taken};
use crate::socket::{Listener, Socket};
use crate::{Errno, Key, Service, Stack};

/// Polls in which everything on the rings is surely taken: each takes hundreds of elements, and a ring has a few thousand.
const POLLS: usize = 64;

/// A socket on its way to another service: its descriptor, and where its rings are.
#[derive(Debug)]
pub struct MovedSocket {
    /// Which.
    pub key: Key,
    /// The stack's socket.
    pub fd: OwnedFd,
    /// Datagrams that were received and not read, by their chunks.
    pub unread: Vec<Vec<u32>>,
    /// All the rest.
    pub at: MovedAt,
}

/// How a socket was left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MovedAt {
    /// What the guest gave to listen, if it listens.
    pub backlog: Option<u32>,
    /// Whether it is one for datagrams.
    pub datagram: bool,
    /// What its cell says of it: bits of the state, and the number of the last error.
    pub state: u32,
    /// See [`Cell::error`].
    pub error_seq: u32,
    /// See [`Cell::tx_seq`].
    pub tx_seq: u32,
    /// Everything below this is with the stack.
    pub tx_head: u32,
    /// See [`Cell::consume_tx`].
    pub tx_served: u32,
    /// Bytes sent and received.
    pub bytes: (u64, u64),
    /// Where the rx ring is filled to.
    pub rx_tail: u32,
}

impl MovedAt {
    /// As words, to be told to another process.
    #[must_use]
    pub fn to_text(&self) -> String {
        let backlog = self.backlog.map_or(u64::MAX, u64::from);
        let words = [
            backlog,
            self.datagram.into(),
            self.state.into(),
            self.error_seq.into(),
            self.tx_seq.into(),
            self.tx_head.into(),
            self.tx_served.into(),
            self.bytes.0,
            self.bytes.1,
            self.rx_tail.into(),
        ];
        words.map(|w| format!("{w:x}")).join(" ")
    }

    /// Undoes [`MovedAt::to_text`].
    #[must_use]
    pub fn from_text(text: &str) -> Option<MovedAt> {
        let mut words = text.split(' ').map(|w| u64::from_str_radix(w, 16));
        let mut long = || words.next()?.ok();
        let backlog = long()?;
        let backlog = if backlog == u64::MAX { None } else { Some(u32::try_from(backlog).ok()?) };
        let datagram = long()? != 0;
        let mut short = || u32::try_from(long()?).ok();
        Some(MovedAt {
            backlog,
            datagram,
            state: short()?,
            error_seq: short()?,
            tx_seq: short()?,
            tx_head: short()?,
            tx_served: short()?,
            bytes: (long()?, long()?),
            rx_tail: u32::try_from(long()?).ok()?,
        })
    }
}

impl<S: Stack> Service<S> {
    /// Handles what is on the rings; `false` when that does not come to an end, because the engine takes nothing.
    pub fn settle(&mut self, now_ns: u64, engine_doorbell: &mut dyn FnMut()) -> bool {
        for _ in 0..POLLS {
            let r = self.poll(now_ns, Some(0), engine_doorbell);
            if self.port.is_congested() {
                return false;
            }
            if r.worked == 0 && !self.port.has_work() {
                return true;
            }
        }
        // Others of its guests go on and on; each poll took what was there before it.
        true
    }

    /// Another service has the guest's new sockets from now on; after [`Service::settle`], and while the engine takes nothing from
    /// the guest. What is connected stays. Returns the rest.
    pub fn leave(&mut self, guest: u16, ledger: Ledger) -> Vec<MovedSocket> {
        self.ctx(guest, 0, |c| {
            c.guest.leave(ledger);
            c.give_sockets()
        })
        .unwrap_or_default()
    }

    /// The daemon is dead: guests that were moved from here, or to here and not wholly, are forgotten. Their connections here end; listeners
    /// live on, whoever has them. So are guests of whose processes the engine had not told yet, or not of all: what those were leased by the
    /// service before, this one would not learn any more.
    pub(crate) fn forget_begun(&mut self) {
        let is_begun = |g: &Guest<S::Socket>| {
            let knows_rows = g.live_rows().next().is_some() && !g.awaits_rows;
            match g.pool.ledger() {
                Some(_) => !g.leases || !knows_rows,
                None => !knows_rows && !g.sockets.iter().any(Option::is_some),
            }
        };
        let begun: Vec<u16> =
            self.guests.iter().flatten().filter(|g| is_begun(g)).map(|g| g.id).collect();
        for guest in begun {
            self.ctx(guest, 0, |c| {
                for s in c.guest.sockets.iter_mut().flatten().filter(|s| s.is_listening()) {
                    if let Some(Err(handle)) = s.handle.take().map(|h| c.stack.give(h)) {
                        s.handle = Some(handle);
                    }
                }
            });
            self.remove_guest(guest);
        }
    }

    /// This service has the guest's new sockets (again), and will be told of its rows.
    pub fn enter(&mut self, guest: u16) {
        self.ctx(guest, 0, |c| c.guest.enter());
    }

    /// Takes a socket that another service gave away.
    ///
    /// # Errors
    /// The stack's errno, or ENOENT for a guest that is not known.
    pub fn adopt_moved(&mut self, socket: MovedSocket) -> Result<(), Errno> {
        let guest = socket.key.guest;
        self.ctx(guest, 0, |c| {
            let unread = socket.unread.clone();
            if let Some(ledger) = c.guest.pool.ledger() {
                for chunk in unread.iter().flatten() {
                    ledger.take_over(*chunk);
                }
            }
            let taken = c.adopt_moved(socket);
            if taken.is_err() {
                unread.into_iter().flatten().for_each(|chunk| c.guest.pool.free(chunk));
            }
            taken
        })
        .unwrap_or(Err(Errno(libc::ENOENT)))
    }

    /// All other services have nothing of the guest any more: the pool is this one's alone, and the ledger is not looked at again.
    pub fn be_alone(&mut self, guest: u16) {
        self.ctx(guest, 0, |c| c.guest.be_alone());
    }
}

impl<S: Stack> Ctx<'_, S> {
    fn give_sockets(&mut self) -> Vec<MovedSocket> {
        let mut moved = Vec::new();
        for id in 0..self.guest.sockets.len() as u32 {
            let Some(Some(s)) = self.guest.sockets.get(id as usize) else { continue };
            let key = Key { guest: self.guest.id, socket: id, generation: s.generation };
            self.with(key, |c, key, cell, mut s| {
                if !s.is_listening() {
                    c.guest.free_read(key.socket, &mut s);
                }
                if !s.may_move(cell) {
                    return Some(s);
                }
                let Some(handle) = s.handle.take() else { return Some(s) };
                match c.stack.give(handle) {
                    Ok(fd) => {
                        c.guest.leave_reap(key.socket, &s);
                        c.guest.leave_blocked(key, &s);
                        let at = s.left_at();
                        let unread = c.hand_over(cell, &mut s);
                        moved.push(MovedSocket { key, fd, unread, at });
                        None
                    }
                    Err(handle) => {
                        s.handle = Some(handle);
                        Some(s)
                    }
                }
            });
        }
        moved
    }

    /// What stands on a datagram socket's rings is the next service's; returns what was received, by its chunks.
    fn hand_over(&mut self, cell: &Cell, s: &mut Taken<S>) -> Vec<Vec<u32>> {
        let (Some(ledger), Some(d)) = (self.guest.pool.ledger(), &mut s.datagram) else {
            return Vec::new();
        };
        for (n, (span, chunks)) in (0u32..).zip(s.tx.drain(..).zip(d.take_queued())) {
            // What was not right stands there as it was: the next service finds that again.
            let left = (span.len > 0).then_some(span);
            untake_slot(&cell.tx_slots, s.tx_head.wrapping_add(n), left);
            for chunk in [span.chunk].into_iter().chain(chunks) {
                self.guest.pool.untake_tx(chunk);
            }
        }
        let mut unread = Vec::new();
        while let Some(first) = s.rx.pop_front() {
            let more = d.take_more(s.rx_freed);
            s.rx_freed = s.rx_freed.wrapping_add(1);
            let chunks: Vec<u32> = [first].into_iter().chain(more).collect();
            for chunk in &chunks {
                ledger.hand_over(*chunk);
            }
            unread.push(chunks);
        }
        unread
    }

    fn adopt_moved(&mut self, m: MovedSocket) -> Result<(), Errno> {
        let device = self.guest.device;
        let (key, at) = (m.key, m.at);
        let cell = device.cell(key.socket).ok_or(Errno(libc::EINVAL))?;
        let handle = self.stack.take(m.fd)?;
        let is_watched = at.datagram || at.backlog.is_some();
        let (handle, local) = self.take_in(handle, key, at.backlog, is_watched)?;
        let mut s: Taken<S> = Box::new(Socket::left(key.generation, local.family, &at));
        s.is_v6only = self.is_v6only(&handle, local.family);
        if at.datagram {
            let is_set = |name| self.is_set(&handle, libc::SOL_SOCKET, name);
            let mut d = Datagrams::moved(local.port != 0, is_set);
            s.rx_freed = at.rx_tail.wrapping_sub(m.unread.len() as u32);
            for (n, chunks) in (0u32..).zip(&m.unread) {
                let Some((first, more)) = chunks.split_first() else { continue };
                s.rx.push_back(*first);
                d.received(s.rx_freed.wrapping_add(n), more.to_vec());
            }
            s.datagram = Some(Box::new(d));
            if !s.rx.is_empty() {
                self.guest.enter_reap(key.socket, &mut s);
            }
            s.writable = true;
        } else if let Some(backlog) = at.backlog {
            s.listener = Some(Box::new(Listener::new(backlog)));
        }
        // Whoever waits for room is not waited for: this service looks anyway.
        s.change(cell, 0, SF_RX_STALLED);
        s.readable = at.datagram || at.backlog.is_some();
        s.handle = Some(handle);
        self.enqueue(key, &mut s);
        self.guest.put(key.socket, s);
        Ok(())
    }

    /// Frees what a ring names that no service looks at any more: what was published there and taken by nobody.
    pub(crate) fn free_published(&mut self, key: Key, cell: &Cell) {
        let _ = cell.tx().help();
        let mut index = cell.tx_head.load(Ordering::Acquire);
        let tail = cell.tx_tail.load(Ordering::Acquire);
        for _ in 0..STREAM_SLOTS {
            if index == tail {
                return;
            }
            // What the dead service had taken was free with its end, and may be leased to somebody by now.
            let taken = take_slot(&cell.tx_slots, index).filter(|t| !t.again);
            let span = taken.and_then(|t| Span::from_payload(t.payload));
            let header = span.filter(|_| cell.is_datagram());
            let header = header.and_then(|s| self.guest.device.header_of(s).map(|h| (s, h)));
            let more = header.iter().filter_map(|(s, h)| h.split(*s)).flat_map(|(more, _)| more);
            cell.tx_head.store(index.wrapping_add(1), Ordering::SeqCst);
            for chunk in span.iter().map(|s| &s.chunk).chain(more) {
                if self.guest.begin_tx(*chunk).is_some() {
                    if taken.is_some_and(|t| t.appending) {
                        self.share(key, *chunk);
                    }
                    self.guest.pool.free(*chunk);
                }
            }
            index = index.wrapping_add(1);
        }
    }
}

impl<T> Socket<T> {
    /// Whether it is no connection, and nothing is under way on it that only this service can end: a listener, one that is not
    /// connected, one for datagrams.
    fn may_move(&self, cell: &Cell) -> bool {
        if self.closing || self.drain.is_some() {
            return false;
        }
        if let Some(d) = &self.datagram {
            return d.may_move();
        }
        let sends = !self.tx.is_empty() || self.tx_seq & 1 == 1 || !self.is_drained(cell);
        let shut = self.shut_wr_wanted || self.tx_broken;
        let is_apart = self.rx.is_empty() && !shut && !self.has(SF_CONNECTED | SF_CONNECTING);
        !sends && (self.is_listening() || is_apart)
    }

    /// The chunks that it has received, and that are not known to be read.
    pub(crate) fn received(&self) -> impl Iterator<Item = u32> {
        let more = self.datagram.iter().flat_map(|d| d.more());
        self.rx.iter().copied().chain(more)
    }

    fn left_at(&self) -> MovedAt {
        MovedAt {
            backlog: self.listener.as_ref().filter(|_| self.is_listening()).map(|l| l.backlog),
            datagram: self.datagram.is_some(),
            state: self.state(),
            error_seq: self.error_seq(),
            tx_seq: self.tx_seq,
            tx_head: self.tx_head,
            tx_served: self.tx_served,
            bytes: (self.tx_bytes, self.rx_bytes),
            rx_tail: self.rx_tail,
        }
    }

    fn left(generation: u16, family: u16, at: &MovedAt) -> Socket<T> {
        let mut s = Socket::new(generation, family);
        s.set_known(at.state, at.error_seq);
        // A connect alone makes a socket bound and claims nothing; what was connected is not moved.
        s.is_claimed = s.has(SF_BOUND);
        s.tx_seq = at.tx_seq;
        (s.tx_next, s.tx_head) = (at.tx_head, at.tx_head);
        s.tx_served = at.tx_served;
        (s.tx_bytes, s.rx_bytes) = at.bytes;
        (s.rx_tail, s.rx_freed) = (at.rx_tail, at.rx_tail);
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_socket_survives() {
        let listener = MovedAt {
            backlog: Some(511),
            state: 3,
            error_seq: 4,
            tx_seq: u32::MAX - 1,
            tx_head: 5,
            tx_served: 6,
            bytes: (u64::MAX, 7),
            rx_tail: 8,
            ..MovedAt::default()
        };
        for at in [listener, MovedAt { backlog: None, datagram: true, ..listener }] {
            assert_eq!(MovedAt::from_text(&at.to_text()), Some(at));
            assert!(at.to_text().len() < 200, "one message");
        }
        assert_eq!(MovedAt::from_text("1 2 3"), None);
        assert_eq!(MovedAt::from_text(""), None);
    }
}
