//! Going on after the death of another engine whose service lives: connections, leases and what stands on the rings stay; only this
//! engine's own tables are made again, of what the service tells and the device has.
//!
//! What was on its way is lost nowhere. Jobs and sends stay on a guest's rings until the engine has put them on the NSM's; the service
//! reads those to the end before it tells. What it said meanwhile is in what it tells; events are made up for by waking everybody.
//! Only what waited in the engine itself is gone, a connect that its guest's rate held back; and what stands on the rings of a process
//! that died meanwhile, of which a connect is all that anybody else can wait for. Both end.

use std::collections::{HashMap, HashSet};

use nk_device::cell::{
    CONNECT_HELD, GF_SHUT_RD, GF_SHUT_WR, IN_USE, SF_RX_STALLED, WATCH_QSET_MASK,
};
use nk_device::kept::{
    KS_BOUND, KS_CLOSING, KS_CONNECTION, KS_DATAGRAM, KS_LISTENING, KS_SHUT_WR, KS_V6ONLY,
    KeptSocket,
};
use nk_device::qset::JOB_SLOTS;
use nk_device::ring::Consumer;
use nk_device::stream::{AcceptedSocket, read_slot};
use nk_device::sync::Ordering;
use nk_device::{Cell, Device, Nqe, Op, STREAM_SLOTS};

use crate::engine::{Engine, Parts};
use crate::guest::{Listener, NONE, Socket, State};
use crate::nsm::Nsm;
use crate::out::Out;
use crate::{ControlError, KeptGuest, NsmId};

/// What the service says, by socket id.
#[derive(Debug, Default)]
pub(crate) struct Known<'a> {
    sockets: HashMap<u32, &'a KeptSocket>,
    ids: HashMap<u32, u16>,
    end: u32,
    /// Connects that nobody will read: they stand on the rings of processes that died meanwhile.
    pub(crate) lost: HashSet<(u32, u16)>,
}

impl<'a> Known<'a> {
    pub(crate) fn of(kept: Option<&'a KeptGuest>) -> Known<'a> {
        let Some(kept) = kept else { return Known::default() };
        let ids: HashMap<u32, u16> = kept.ids.iter().copied().collect();
        let sockets: HashMap<u32, &KeptSocket> =
            kept.sockets.iter().map(|s| (s.socket, s)).collect();
        let end = ids.keys().chain(sockets.keys()).max().map_or(0, |last| last.saturating_add(1));
        Known { sockets, ids, end, lost: HashSet::new() }
    }

    /// Whether there is more from this id on, whatever the cells say.
    pub(crate) fn goes_on_at(&self, id: u32) -> bool {
        id < self.end
    }
}

#[allow(clippy::missing_errors_doc, reason = "ControlError's variants say it")]
impl Engine {
    /// Adds an NSM whose service outlived another engine and uses this device, which no engine has used, from now on. What it says waits
    /// until all its guests are adopted and [`Engine::hear_nsm`] is called.
    pub fn adopt_nsm(&mut self, id: NsmId, device: Device) -> Result<(), ControlError> {
        let mut nsm = Nsm::living(id, device);
        nsm.is_unheard = true;
        match self.nsm_mut(id) {
            Some(old) => *old = nsm,
            None => self.nsms.push(nsm),
        }
        Ok(())
    }

    /// Forgets an NSM that serves no guest.
    pub fn remove_nsm(&mut self, id: NsmId) -> Result<(), ControlError> {
        if !self.guests_of(id).is_empty() {
            return Err(ControlError::Guest);
        }
        self.nsm_mut(id).ok_or(ControlError::Nsm)?;
        self.nsms.retain(|n| n.id != id);
        Ok(())
    }

    /// All guests of an adopted NSM are known.
    pub fn hear_nsm(&mut self, id: NsmId) -> Result<(), ControlError> {
        self.nsm_mut(id).ok_or(ControlError::Nsm)?.is_unheard = false;
        Ok(())
    }
}

impl Parts<'_> {
    /// Rows that died, and rows that were made, without the service having heard of it.
    pub(crate) fn compare_rows(&mut self, kept: &KeptGuest) {
        for row in &kept.rows {
            if !self.guest.is_live(*row) {
                self.row_job(*row, 0);
            }
        }
        for row in 0..self.guest.rows.len() as u16 {
            if self.guest.is_live(row) && !kept.rows.contains(&row) {
                let mut nqe = self.guest.nqe(Op::RowLive, 0, 0);
                nqe.op_data = u64::from(row);
                self.nsm.push(&nqe);
            }
        }
    }

    /// Watches for queue sets that nobody has any more.
    pub(crate) fn drop_watches_of_the_dead(&self, cell: &Cell) {
        for w in &cell.watch {
            let word = w.load(Ordering::Relaxed);
            let q = word & WATCH_QSET_MASK;
            let is_there = |q: u32| self.guest.qsets.get(q as usize - 1).is_some_and(|s| s.in_use);
            if q != 0 && !is_there(q) {
                let _ = w.compare_exchange(word, 0, Ordering::SeqCst, Ordering::Relaxed);
            }
        }
    }

    /// Enters an id of which the service told. `false`: it did not, or of another life of the id than the cell's, which is ended.
    pub(crate) fn adopt_known(
        &mut self,
        id: u32,
        generation: u16,
        host_holds: u32,
        known: &Known<'_>,
    ) -> bool {
        if let Some(told) = known.ids.get(&id) {
            let mut s = Socket::new(*told);
            s.host_holds = host_holds;
            self.guest.insert_adopted(id, s, State::GrantedNsm);
            if generation != *told
                && let Some(cell) = self.guest.cell(id)
            {
                // Nobody can have got it yet: a guest that wrote there deceives itself.
                cell.reset(*told);
                cell.in_use.store(IN_USE, Ordering::SeqCst);
            }
            return true;
        }
        let Some(k) = known.sockets.get(&id) else { return false };
        if k.generation != generation {
            self.close_kept(k);
            return false;
        }
        let mut s = Socket::new(generation);
        s.host_holds = host_holds;
        s.family = k.local.family;
        s.datagram = k.is(KS_DATAGRAM);
        s.v6only = k.is(KS_V6ONLY);
        s.connection = k.is(KS_CONNECTION);
        s.peer = (k.peer.family != 0).then_some(k.peer);
        s.backlog = k.backlog;
        s.listener = k.is(KS_LISTENING).then(|| Box::new(Listener::default()));
        if k.is(KS_BOUND) {
            let space =
                crate::ports::Space { namespace: self.guest.namespace, datagram: s.datagram };
            // It was claimed before, and another guest's claims are of its own sockets.
            self.ports.claim(space, self.guest.id, id, &k.local, s.v6only);
            s.local = Some(k.local);
        }
        if s.connection && !self.guest.counters.engine.counted.has(id) {
            // Accepted while there was no engine.
            self.guest.count_connection(id);
        }
        let state = if k.is(KS_CLOSING) { State::Closing } else { State::Open };
        self.guest.insert_adopted(id, s, state);
        true
    }

    fn close_kept(&mut self, k: &KeptSocket) {
        let mut close = self.guest.nqe(Op::Close, k.socket, k.generation);
        close.op_data = 1;
        self.nsm.push(&close);
    }

    /// All sockets are entered: what belongs together is joined, what ended meanwhile is ended, and what may have been lost is said again.
    pub(crate) fn go_on(&mut self, kept: &KeptGuest, known: &Known<'_>, out: &mut Out<'_>) {
        for k in kept.sockets.iter().filter(|k| k.is(KS_LISTENING)) {
            self.find_queued(k.socket);
        }
        let coming = self.connects_on_the_rings(true);
        for k in &kept.sockets {
            let Some(s) = self.guest.socket(k.socket) else { continue };
            if s.state() != State::Open || s.generation != k.generation {
                continue;
            }
            let id = (k.socket, k.generation);
            self.end_or_remind(k, coming.contains(&id), known.lost.contains(&id), out);
        }
        for q in 0..self.guest.qsets.len() as u16 {
            self.guest.activate(q);
        }
    }

    /// Who waits on a listener's ring.
    fn find_queued(&mut self, listener: u32) {
        let device = self.guest.device;
        let Some(cell) = device.cell(listener) else { return };
        let (first, tail) = (cell.position().index, cell.rx_tail.load(Ordering::Acquire));
        // The guest's word for its own ring; what it names is looked at as any id of the guest's is.
        let count = tail.wrapping_sub(first).min(STREAM_SLOTS as u32);
        for back in (1..=count).rev() {
            let index = tail.wrapping_sub(back);
            let Some(a) = read_slot(&cell.rx_slots, index).map(AcceptedSocket::from_payload) else {
                continue;
            };
            let is_child =
                |s: &&mut Socket| s.generation == a.generation && s.connection && s.parent == NONE;
            let Some(s) = self.guest.socket_mut(a.socket).filter(is_child) else { continue };
            s.parent = listener;
            if let Some(l) = self.guest.socket_mut(listener).and_then(|s| s.listener.as_mut()) {
                l.queued.push_back((a.socket, index));
            }
        }
        self.guest.sweep_queue(listener);
    }

    /// Sockets whose first connect stands on a ring: of those that this engine will read, or of those that nobody reads any more, whose
    /// process died while there was no engine.
    pub(crate) fn connects_on_the_rings(&self, are_read: bool) -> HashSet<(u32, u16)> {
        let mut found = HashSet::new();
        for q in 0..self.guest.qsets_max {
            let Some(qs) = self.guest.device.qset(q) else { continue };
            let mut job = match self.guest.qsets.get(usize::from(q)).filter(|s| s.in_use) {
                Some(s) if are_read => s.job,
                None if !are_read && qs.in_use.load(Ordering::Relaxed) != 0 => {
                    Consumer::at(qs.job_head.load(Ordering::Acquire))
                }
                _ => continue,
            };
            for nqe in (0..JOB_SLOTS).map_while(|_| job.pop(&qs.job())) {
                // Who waited for an answer is dead as well.
                if nqe.op == Op::Connect as u8 && (are_read || nqe.ticket == 0) {
                    found.insert((nqe.socket, nqe.generation));
                }
            }
        }
        found
    }

    /// `is_coming`, `is_lost`: a connect of it is on a ring that is read, and that is not.
    fn end_or_remind(&mut self, k: &KeptSocket, is_coming: bool, is_lost: bool, out: &mut Out<'_>) {
        let device = self.guest.device;
        let (id, generation) = (k.socket, k.generation);
        let Some(cell) = device.cell(id) else { return };
        let is_claimed = cell.claimed_by(generation).is_some_and(|row| self.guest.is_live(row));
        if cell.is_unheld() && !is_claimed {
            return self.close_if_unheld(id, out);
        }
        let called = cell.guest_state.load(Ordering::Relaxed);
        // What the last engine held back is known by what it wrote, not by the guest's rate, which may have been lifted since. One that it
        // died giving out was given out, or is still on its ring.
        let held = cell.in_use.fetch_and(!CONNECT_HELD, Ordering::SeqCst);
        let is_asked = k.flags & (KS_CONNECTION | KS_DATAGRAM | KS_LISTENING) == 0;
        if is_asked && !is_coming && (is_lost || held & CONNECT_HELD != 0) {
            self.close_kept(k);
            return self.bury(id, out);
        }
        let row = cell_holder(cell);
        let push = |p: &mut Self, op: Op, op_data: u64| {
            let nqe = p.guest.nqe(op, id, generation);
            p.nsm.push(&Nqe { op_data, ..nqe });
        };
        if cell.tx_tail.load(Ordering::Acquire) != cell.tx_head.load(Ordering::Acquire) {
            push(self, Op::Send, row);
        }
        if cell.state.load(Ordering::Acquire) & SF_RX_STALLED != 0 {
            push(self, Op::RxRoom, row);
        }
        if called & GF_SHUT_WR != 0 && !k.is(KS_SHUT_WR) && k.is(KS_CONNECTION) {
            let both = called & GF_SHUT_RD != 0;
            push(self, Op::Shutdown, if both { 2 } else { 1 });
        }
    }
}

/// Some row that holds the socket.
fn cell_holder(cell: &Cell) -> u64 {
    let word =
        |(i, w): (usize, u64)| (w != 0).then(|| i as u64 * 64 + u64::from(w.trailing_zeros()));
    let words = cell.holders.iter().map(|w| w.load(Ordering::Relaxed));
    words.enumerate().find_map(word).unwrap_or(0)
}
