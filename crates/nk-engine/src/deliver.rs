//! From the NSM to guests: replies, events, accepted sockets.

use nk_device::cell::{WATCH_EXCLUSIVE, WATCH_QSET_MASK};
use nk_device::nqe::{
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, FLAG_ERROR, Nqe, REFILL_LOW,
};
use nk_device::sync::{Ordering, fence};
use nk_device::{Addr, Op, STREAM_SLOTS, WATCH_SLOTS};

use crate::NsmId;
use crate::engine::Parts;
use crate::guest::{Guest, Listener, NONE, Socket, State};
use crate::out::Out;

const FOR_READERS: u64 = (EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP) as u64;
const FOR_WRITERS: u64 = (EPOLLOUT | EPOLLERR | EPOLLHUP) as u64;
/// Every event.
pub(crate) const ALL: u64 = FOR_READERS | FOR_WRITERS;

impl Guest {
    /// Forgets queued sockets that were claimed from a listener's ring meanwhile.
    pub(crate) fn sweep_queue(&mut self, listener: u32) {
        while let Some(l) = self.sockets.get(listener as usize).and_then(|s| s.listener.as_ref())
            && let (Some(&(id, index)), Some(&(_, newest))) = (l.queued.front(), l.queued.back())
        {
            // The ring went on a whole lap: whatever the guest says, this one is off it.
            let lapped = newest.wrapping_sub(index) >= STREAM_SLOTS as u32;
            if !lapped && self.is_queued(id) {
                break;
            }
            if let Some(l) = self.socket_mut(listener).and_then(|s| s.listener.as_mut()) {
                l.queued.pop_front();
            }
            if let Some(s) = self.socket_mut(id)
                && s.parent == listener
            {
                s.parent = NONE;
            }
        }
    }

    /// Whether the socket still waits on its listener's ring: nobody claimed it.
    pub(crate) fn is_queued(&self, id: u32) -> bool {
        self.socket(id).is_some_and(|s| {
            s.parent != NONE && self.cell(id).is_some_and(|c| c.claimed_by(s.generation).is_none())
        })
    }
}

impl Parts<'_> {
    /// Takes what the NSM has said about this guest by now, out of turn. A process finds an accepted socket in the device as soon as
    /// the NSM puts it there, and may use it before a poll has come to the word that the NSM sent ahead.
    pub(crate) fn hear_nsm(&mut self, out: &mut Out<'_>) {
        for id in self.guest.all_nsms() {
            let guest = self.guest.id.0;
            for nqe in self.nsm_named(id).pop_about(guest) {
                self.take_from_nsm(id, &nqe, out);
            }
        }
    }

    /// Takes what an NSM says about the guest. Of a socket only the one that has it has anything to say.
    pub(crate) fn take_from_nsm(&mut self, from: NsmId, nqe: &Nqe, out: &mut Out<'_>) {
        let op = Op::from_u8(nqe.op);
        let is_about_socket =
            matches!(op, Some(Op::Event | Op::Accepted | Op::Closed | Op::Bind | Op::Listen));
        if is_about_socket && self.guest.socket(nqe.socket).is_none_or(|s| s.nsm != from) {
            return;
        }
        match op {
            Some(Op::Event) => {
                // A listener's event for readers alone is one connection.
                let accept = nqe.op_data == u64::from(EPOLLIN)
                    && self.guest.socket(nqe.socket).is_some_and(|s| s.listener.is_some());
                self.deliver(nqe.socket, nqe.generation, nqe.op_data, accept, out);
            }
            Some(Op::Accepted) => self.accepted(nqe, out),
            Some(Op::Closed) => self.closed(nqe, out),
            Some(Op::Reply) => {
                // Only what was asked: the queue set may have another owner by now.
                let due = self
                    .guest
                    .qsets
                    .get(usize::from(nqe.qset))
                    .is_some_and(|q| q.in_use && q.calls & (1u64 << (nqe.ticket & 63)) != 0);
                if due {
                    self.guest.reply(nqe.qset, nqe, out);
                }
            }
            Some(Op::Granted) => self.granted(nqe, out),
            Some(Op::LowChunks) if from != self.nsm.id => self.low_chunks(nqe),
            Some(Op::Bind) => self.bound(nqe, out),
            Some(Op::Listen) => self.listening(nqe, out),
            _ => {}
        }
    }

    /// Tells everybody who watches or sleeps on a socket.
    pub(crate) fn deliver(
        &mut self,
        id: u32,
        generation: u16,
        hint: u64,
        accept: bool,
        out: &mut Out<'_>,
    ) {
        let device = self.guest.device;
        let Some(cell) = device.cell(id) else { return };
        if self.guest.socket(id).is_none_or(|s| {
            s.generation != generation || !matches!(s.state(), State::Open | State::Dead)
        }) {
            return;
        }
        let hint = if hint & ALL == 0 { ALL } else { hint };
        if hint & FOR_READERS != 0 && cell.rx_sleepers.load(Ordering::SeqCst) != 0 {
            // One connection, one waiter; the others would only find the queue empty again.
            out.notify.futex_wake(&cell.rx_wake, if accept { 1 } else { u32::MAX });
        }
        if hint & FOR_WRITERS != 0 && cell.tx_sleepers.load(Ordering::SeqCst) != 0 {
            out.notify.futex_wake(&cell.tx_wake, u32::MAX);
        }
        let mut nqe = self.guest.nqe(Op::Event, id, generation);
        nqe.op_data = hint;
        if cell.watch_overflow.load(Ordering::SeqCst) != 0 {
            for q in 0..self.guest.qsets.len() as u16 {
                if self.guest.qsets.get(usize::from(q)).is_some_and(|s| s.in_use) {
                    self.guest.push_event(q, &nqe);
                    fence(Ordering::SeqCst);
                    if self.guest.wants_bell(q, out) {
                        self.guest.ring(q, out);
                    }
                }
            }
            return;
        }
        let mut watchers = [(0u16, false); WATCH_SLOTS];
        let mut n = 0;
        let words = cell.watch.iter().map(|w| w.load(Ordering::SeqCst));
        for (slot, word) in watchers.iter_mut().zip(words.filter(|w| w & WATCH_QSET_MASK != 0)) {
            let q = ((word & WATCH_QSET_MASK) - 1) as u16;
            *slot = (q, word & WATCH_EXCLUSIVE != 0);
            n += 1;
        }
        let Some(watchers) = watchers.get(..n) else { return };
        for (q, _) in watchers {
            if self.guest.qsets.get(usize::from(*q)).is_some_and(|s| s.in_use) {
                self.guest.push_event(*q, &nqe);
            }
        }
        if watchers.is_empty() {
            return;
        }
        fence(Ordering::SeqCst);
        for (q, _) in watchers.iter().filter(|(_, exclusive)| !exclusive) {
            if self.guest.wants_bell(*q, out) {
                self.guest.ring(*q, out);
            }
        }
        self.ring_one(id, watchers, out);
    }

    /// Of the exclusive watchers rings one that sleeps, in turn. One that was rung and has not come yet is no sleeper, as natively: a
    /// process that is stopped is passed over from then on.
    fn ring_one(&mut self, id: u32, watchers: &[(u16, bool)], out: &mut Out<'_>) {
        let turn = self.guest.socket(id).and_then(|s| s.listener.as_ref()).map_or(0, |l| l.turn);
        let n = watchers.len();
        for i in 0..n {
            let at = (turn + i) % n;
            let Some(&(q, true)) = watchers.get(at) else { continue };
            if !self.guest.is_roused(q) && self.guest.wants_bell(q, out) {
                self.guest.ring(q, out);
                if let Some(l) = self.guest.socket_mut(id).and_then(|s| s.listener.as_mut()) {
                    l.turn = at + 1;
                }
                return;
            }
        }
    }

    /// A connection was accepted into a granted id, and is about to stand on the listener's ring at index `size`.
    fn accepted(&mut self, nqe: &Nqe, out: &mut Out<'_>) {
        let (parent, parent_generation) = (nqe.op_data as u32, (nqe.op_data >> 32) as u16);
        let is_granted = self
            .guest
            .socket(nqe.socket)
            .is_some_and(|s| s.state() == State::GrantedNsm && s.generation == nqe.generation);
        if !is_granted {
            return;
        }
        self.guest.open_id(nqe.socket, true);
        self.tell_full(out);
        self.guest.limiter.connected();
        let listens = self.guest.socket(parent).is_some_and(|l| {
            l.generation == parent_generation && l.state() == State::Open && l.listener.is_some()
        });
        if !listens {
            // The listener was closed meanwhile: nobody will ever pop it.
            self.close_now(nqe.socket, true, out);
            return;
        }
        let family = self.guest.socket(parent).map_or(0, |l| l.family);
        if let Some(s) = self.guest.socket_mut(nqe.socket) {
            s.family = family;
            s.parent = parent;
        }
        if let Some(l) = self.guest.socket_mut(parent).and_then(|s| s.listener.as_mut()) {
            l.queued.push_back((nqe.socket, nqe.size));
        }
        self.guest.sweep_queue(parent);
        self.guest.top_up_nsm(self.nsm);
        // Who waits is told by the Event that follows once the socket stands on the ring.
    }

    /// The stack is done with a socket: `op_data` and `data` are the bytes it sent and received.
    fn closed(&mut self, nqe: &Nqe, out: &mut Out<'_>) {
        let is_its = |s: &&Socket| s.state() == State::Closing && s.generation == nqe.generation;
        let Some(s) = self.guest.socket(nqe.socket).filter(is_its) else { return };
        if s.is_owed {
            // The one that counted is dead.
            return self.forget(nqe.socket, out);
        }
        let c = &self.guest.counters.engine;
        c.bytes_sent.add(nqe.op_data);
        c.bytes_received.add(nqe.data);
        self.free(nqe.socket, out);
    }

    /// Frees the id of a socket whose stack is gone, and cannot say how many bytes it sent and received: its cell can.
    pub(crate) fn forget(&mut self, id: u32, out: &mut Out<'_>) {
        self.guest.count_cell(id);
        self.free(id, out);
    }

    fn free(&mut self, id: u32, out: &mut Out<'_>) {
        if let Some(port) = self.guest.socket(id).and_then(|s| s.local).map(|a| a.port) {
            self.ports.release(self.guest.space(id), self.guest.id, id, port);
        }
        self.guest.free_id(id);
        while let Some(row) = self.guest.starved.pop() {
            if self.guest.top_up_row(row) > 0 {
                self.grants_changed(row, 1, out);
            }
            if self.guest.starved.last() == Some(&row) {
                break;
            }
        }
        self.guest.top_up_nsm(self.nsm);
        self.tell_left(out);
        if self.guest.open == 0 {
            out.notify.guest_idle(self.guest.id);
        }
    }

    /// ServiceLib granted chunks and bumped the row's word.
    fn granted(&mut self, nqe: &Nqe, out: &mut Out<'_>) {
        self.grants_changed(nqe.op_data as u16, 0, out);
    }

    /// A row has few chunks left, says an NSM that leases none any more.
    fn low_chunks(&mut self, nqe: &Nqe) {
        let mut refill = self.guest.nqe(Op::Refill, 0, 0);
        refill.op_data = nqe.op_data;
        refill.data = REFILL_LOW;
        self.nsm.push(&refill);
    }

    /// How a bind ended: the address is what the stack says, after an error what was asked.
    fn bound(&mut self, nqe: &Nqe, out: &mut Out<'_>) {
        let g = &mut *self.guest;
        let space = g.space(nqe.socket);
        let Some(s) = g.sockets.get_mut(nqe.socket as usize) else { return };
        if s.generation != nqe.generation || s.state() != State::Open {
            return;
        }
        let addr = Addr::from_words(s.family, nqe.size, nqe.op_data, nqe.data);
        if nqe.flags & FLAG_ERROR != 0 {
            if s.local == Some(addr) {
                s.local = None;
                self.ports.release(space, g.id, nqe.socket, addr.port);
            }
            return;
        }
        if let Some(old) = s.local
            && old.port != addr.port
        {
            self.ports.release(space, g.id, nqe.socket, old.port);
        }
        s.local = None;
        if self.ports.claim(space, g.id, nqe.socket, &addr, s.v6only) {
            s.local = Some(addr);
            return;
        }
        // The stack chose a port that is another guest's: it lets sockets that ask for SO_REUSEADDR share one.
        g.counters.engine.ports_refused.add(1);
        let mut close = g.nqe(Op::Close, nqe.socket, nqe.generation);
        close.op_data = 1;
        self.nsm_of(nqe.socket).push(&close);
        self.bury(nqe.socket, out);
    }

    /// A socket listens; the address is what the stack says.
    fn listening(&mut self, nqe: &Nqe, out: &mut Out<'_>) {
        self.bound(nqe, out);
        let g = &mut *self.guest;
        let Some(s) = g.sockets.get_mut(nqe.socket as usize) else { return };
        if s.generation != nqe.generation || s.state() != State::Open {
            return;
        }
        if s.listener.is_none() {
            g.listeners += 1;
            s.listener = Some(Box::new(Listener::default()));
        }
        // It is no connection, whatever was tried before.
        if core::mem::take(&mut s.connection) {
            g.count_share();
            g.connections_open = g.connections_open.saturating_sub(1);
        }
        g.top_up_nsm(self.nsm);
    }
}
