//! A guest's turn: what is taken off its queue sets' rings, in which order and how much of it. [`crate::switch`] says what becomes of each
//! element.

use arrayvec::ArrayVec;
use nk_device::Op;
use nk_device::nqe::{Nqe, PackedNqe};
use nk_device::ring::Consumer;

use crate::NsmId;
use crate::engine::{DOZE_AFTER, Parts};
use crate::guest::{Guest, Socket};
use crate::out::Out;

/// SENDs that are taken together.
const LOT: usize = 32;

/// A ring of a queue set from the guest.
#[derive(Clone, Copy, Debug)]
enum Ring {
    Job,
    Send,
}

impl Guest {
    /// Notes which queue sets rang.
    pub(crate) fn take_bells(&mut self, round: u64) {
        let device = self.device;
        let header = device.header();
        for word in 0..self.bell_words {
            let mut bits = header.take_bells(word);
            if bits != 0 {
                self.rang_in = round;
            }
            while bits != 0 {
                let q = word as u16 * 64 + bits.trailing_zeros() as u16;
                bits &= bits - 1;
                self.activate(q);
            }
        }
    }

    /// Whether nothing is to be done for it and it has not rung for long.
    pub(crate) fn may_doze(&self, round: u64) -> bool {
        self.active.is_empty()
            && self.waiting.is_empty()
            && self.limiter.is_quiet()
            && round.saturating_sub(self.rang_in) > DOZE_AFTER
    }

    pub(crate) fn activate(&mut self, q: u16) {
        if let Some(s) = self.qsets.get_mut(usize::from(q))
            && s.in_use
            && !s.quarantined
            && !s.active
        {
            s.active = true;
            self.active.push_back(q);
        }
    }

    /// Takes an element of a queue set that is about to go, control before data.
    fn pop(&mut self, q: u16) -> Option<(Nqe, bool)> {
        [Ring::Job, Ring::Send].into_iter().find_map(|ring| {
            let (nqe, behind) = self.next(q, ring)?;
            self.take(q, ring, behind);
            Some((nqe, matches!(ring, Ring::Send)))
        })
    }

    /// The element of a ring that comes next and, to be given to [`Guest::take`], the ring's end behind it. What is decided of an element is
    /// decided of this copy: who can write the ring can change it at any time.
    fn next(&self, q: u16, ring: Ring) -> Option<(Nqe, Consumer)> {
        let (shared, s) = (self.device.qset(q)?, self.qsets.get(usize::from(q))?);
        let (mut behind, ring) = match ring {
            Ring::Job => (s.job, shared.job()),
            Ring::Send => (s.send, shared.send()),
        };
        behind.pop(&ring).map(|nqe| (nqe, behind))
    }

    fn take(&mut self, q: u16, ring: Ring, behind: Consumer) {
        if let Some(s) = self.qsets.get_mut(usize::from(q)) {
            match ring {
                Ring::Job => s.job = behind,
                Ring::Send => s.send = behind,
            }
        }
    }

    /// Whether a job that was just popped is from before this engine and not to be done: who waits for its reply asks again, or the
    /// connection that it asks for was begun.
    fn is_over(&mut self, q: u16, nqe: &Nqe) -> bool {
        match self.qsets.get_mut(usize::from(q)) {
            Some(s) if s.stale_jobs > 0 => s.stale_jobs -= 1,
            _ => return false,
        }
        let is_begun = |s: &Socket| s.generation == nqe.generation && s.connection;
        nqe.ticket != 0
            || (nqe.op == Op::Connect as u8 && self.socket(nqe.socket).is_some_and(is_begun))
    }

    fn commit(&self, q: u16) {
        if let (Some(s), Some(shared)) = (self.qsets.get(usize::from(q)), self.device.qset(q)) {
            s.job.commit(&shared.job());
            s.send.commit(&shared.send());
        }
    }

    pub(crate) fn violation(&mut self, q: u16) {
        self.counters.engine.violations.add(1);
        let max = self.limits.violations_max;
        if let Some(s) = self.qsets.get_mut(usize::from(q)) {
            s.violations += 1;
            if s.violations > max && !s.quarantined {
                s.quarantined = true;
                self.counters.engine.quarantined.add(1);
            }
        }
    }
}

/// What a queue set's turn left on its rings for a reason of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    /// For the guest's next turn.
    More,
    /// Until this NSM has taken some of what is costly.
    ForNsm(NsmId),
}

impl Parts<'_> {
    /// Serves the guest's queue sets in turn, with no more of what is costly than `costly`.
    pub(crate) fn serve(&mut self, budget: u32, mut costly: u32, out: &mut Out<'_>) -> u32 {
        let mut worked = 0;
        for _ in 0..self.guest.active.len() {
            if worked >= budget || self.is_stuck() {
                break;
            }
            let Some(q) = self.guest.active.pop_front() else { break };
            let turn = self.guest.limits.nqes_per_turn_max.min(budget - worked).max(1);
            let (n, left) = self.serve_qset(q, turn, &mut costly, out);
            worked += n;
            let is_served = self.guest.qsets.get(usize::from(q)).is_some_and(|s| !s.quarantined);
            if is_served && let Left::ForNsm(nsm) = left {
                self.guest.waiting.push_back((q, nsm));
            } else if is_served && (left == Left::More || n >= turn || self.is_stuck()) {
                self.guest.active.push_back(q);
            } else if let Some(s) = self.guest.qsets.get_mut(usize::from(q)) {
                s.active = false;
            }
        }
        worked
    }

    /// Takes at most `turn` elements of a queue set, control before data, and no more of the costly than `costly`.
    fn serve_qset(
        &mut self,
        q: u16,
        turn: u32,
        costly: &mut u32,
        out: &mut Out<'_>,
    ) -> (u32, Left) {
        let mut n = 0;
        let mut left = Left::Nothing;
        while n < turn && self.is_served(q) {
            let Some((nqe, behind)) = self.guest.next(q, Ring::Job) else { break };
            left = self.admit(&nqe, costly);
            if left != Left::Nothing {
                break;
            }
            self.guest.take(q, Ring::Job, behind);
            n += 1;
            if !self.guest.is_over(q, &nqe) {
                self.take_from_guest(q, nqe, false, out);
            }
        }
        // What was sent after a job stays behind it.
        while left == Left::Nothing && n < turn && self.is_served(q) {
            let taken;
            (taken, left) = self.serve_sends(q, turn - n, costly, out);
            if taken == 0 {
                break;
            }
            n += taken;
        }
        let is_congested = self.nsm.is_congested();
        if let Some(s) = self.guest.qsets.get_mut(usize::from(q)) {
            let is_due = n > 0 || s.is_uncommitted;
            // What waits for room in this engine's memory alone must be found on the ring if this engine dies.
            s.is_uncommitted = is_due && is_congested;
            if is_due && !is_congested {
                self.guest.commit(q);
            }
        }
        (n, left)
    }

    /// Whether an element may go on as far as costly operations are bounded; else what it waits for.
    fn admit(&mut self, nqe: &Nqe, costly: &mut u32) -> Left {
        let price = self.guest.price(nqe);
        if price == 0 {
            return Left::Nothing;
        }
        let nsm = self.guest.nsm_asked(nqe.socket);
        if !self.nsm_named(nsm).has_room_for_costly() {
            return Left::ForNsm(nsm);
        }
        if *costly == 0 {
            return Left::More;
        }
        *costly = costly.saturating_sub(price);
        Left::Nothing
    }

    fn is_served(&self, q: u16) -> bool {
        !self.is_stuck() && self.guest.qsets.get(usize::from(q)).is_some_and(|s| !s.quarantined)
    }

    /// Takes a lot of elements off the send ring. Most are a SEND for an open socket and nothing else: they are looked up all
    /// together, so that the look-ups' cache misses overlap, and go on all together. Where one is not, each takes the long way.
    fn serve_sends(
        &mut self,
        q: u16,
        max: u32,
        costly: &mut u32,
        out: &mut Out<'_>,
    ) -> (u32, Left) {
        let device = self.guest.device;
        let (Some(shared), Some(s)) = (device.qset(q), self.guest.qsets.get_mut(usize::from(q)))
        else {
            return (0, Left::Nothing);
        };
        let (ring, row, before) = (shared.send(), s.row, s.send);
        let room = self.nsm.send_room(max.min(LOT as u32)) as usize;
        let mut lot = ArrayVec::<PackedNqe, LOT>::new();
        // With no room one is taken all the same: it waits in the NSM's backlog, and all others on their rings.
        while lot.len() < room.max(1)
            && let Some(nqe) = s.send.pop_packed(&ring)
        {
            lot.push(nqe);
        }
        // No branch before the end, so that no look-up waits for another.
        let are_plain = lot.iter().fold(!self.guest.is_split(), |plain, nqe| {
            let open = self.guest.open_generation(nqe.socket());
            plain & nqe.is_untold(Op::Send) & (open != 0) & (open == nqe.generation())
        });
        let n = lot.len();
        if n > room || !are_plain {
            self.guest.take(q, Ring::Send, before);
            return self.serve_sends_singly(q, n as u32, costly, out);
        } else if n > 0 {
            self.guest.counters.engine.from_guest.add(Op::Send as u8, n as u64);
            let (guest, row) = (self.guest.id.0, u64::from(row));
            self.nsm.push_sends(lot.iter().map(|nqe| nqe.stamped(guest, q, row)));
        }
        (n as u32, Left::Nothing)
    }

    fn serve_sends_singly(
        &mut self,
        q: u16,
        max: u32,
        costly: &mut u32,
        out: &mut Out<'_>,
    ) -> (u32, Left) {
        for n in 0..max {
            let next = self.guest.next(q, Ring::Send).filter(|_| self.is_served(q));
            let Some((nqe, behind)) = next else { return (n, Left::Nothing) };
            let left = self.admit(&nqe, costly);
            if left != Left::Nothing {
                return (n, left);
            }
            self.guest.take(q, Ring::Send, behind);
            self.take_from_guest(q, nqe, true, out);
        }
        (max, Left::Nothing)
    }

    /// Takes one element of a queue set that is about to go, also when the NSM is congested.
    pub(crate) fn serve_dying(&mut self, q: u16, out: &mut Out<'_>) -> bool {
        let Some((nqe, is_send)) = self.guest.pop(q) else { return false };
        self.take_from_guest(q, nqe, is_send, out);
        true
    }
}
