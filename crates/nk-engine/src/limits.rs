//! Limits on rates, and turns by weight.
//!
//! Elements per second and connections per second are kept here, where every element passes; bytes are ServiceLib's to count, where
//! they are consumed. What is over a limit is not lost and not refused: elements stay on the guest's rings, a connect waits here, and
//! an accept waits for an id. The guest never has to ask again: [`crate::PollResult::due_ns`] says when to poll next.

use nk_device::bucket::Bucket;
use nk_device::cell::CONNECT_HELD;
use nk_device::errno::{EALREADY, ECONNRESET};
use nk_device::sync::Ordering;
use nk_device::{Addr, Nqe, Op};

use crate::costly;
use crate::engine::{Engine, Parts};
use crate::guest::{Guest, State};
use crate::out::Out;
use crate::{ControlError, GuestId, Limits, Listen, NsmId};

/// Who ran out of elements is served again when a thousandth of a second's are there, so that they are taken in lots.
const LOTS_PER_S: u64 = 1000;

/// A guest's buckets, and who waits for them.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    nqes: Option<Bucket>,
    /// Elements wait on the guest's rings for the bucket.
    pub(crate) is_held: bool,
    pub(crate) connections: Option<Bucket>,
    /// Sockets whose connect waits here, oldest first; those that were closed meanwhile are passed over.
    connects: std::collections::VecDeque<(u32, u16)>,
    /// The NSM has no id to accept into because of the limit.
    pub(crate) accepts_held: bool,
}

/// A connect that waits for its turn.
#[derive(Debug)]
pub(crate) struct HeldConnect {
    nqe: Nqe,
    /// A shutdown or disconnect that came after it.
    after: Option<Nqe>,
}

fn lot(b: &Bucket) -> u64 {
    (b.rate().per_s / LOTS_PER_S).clamp(1, b.rate().burst)
}

impl Limiter {
    pub(crate) fn new(limits: &Limits) -> Limiter {
        let mut l = Limiter::default();
        l.set(limits);
        l
    }

    fn set(&mut self, limits: &Limits) {
        self.nqes = Bucket::changed(self.nqes, limits.nqes);
        self.connections = Bucket::changed(self.connections, limits.connections);
        self.is_held &= self.nqes.is_some();
    }

    /// How many ids the NSM may have to accept into, `most` at most.
    pub(crate) fn accepts(&self, most: u32) -> u32 {
        let there = self.connections.as_ref().map(Bucket::available);
        there.map_or(most, |n| u32::try_from(n).unwrap_or(most).min(most))
    }

    /// A connection came to be.
    pub(crate) fn connected(&mut self) {
        if let Some(b) = &mut self.connections {
            b.take(1);
        }
    }

    fn may_connect(&self) -> bool {
        self.connections.as_ref().is_none_or(|b| b.available() > 0)
    }

    /// Whether it has nothing to give out when time comes.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.is_held && !self.accepts_held && self.connects.is_empty()
    }

    /// When something that waits has its turn.
    pub(crate) fn due_ns(&self) -> Option<u64> {
        let nqes = self.nqes.as_ref().filter(|_| self.is_held).map(|b| b.due_ns(lot(b)));
        // A connect that the rate would let go waits for its NSM, which rings.
        let waits = self.accepts_held || (!self.connects.is_empty() && !self.may_connect());
        let connections = self.connections.as_ref().filter(|_| waits).map(|b| b.due_ns(1));
        nqes.into_iter().chain(connections).min()
    }

    fn refill(&mut self, now_ns: u64) {
        if let Some(b) = &mut self.nqes {
            b.refill(now_ns);
            self.is_held &= b.available() < lot(b);
        }
        if let Some(b) = &mut self.connections {
            b.refill(now_ns);
        }
    }
}

impl Guest {
    /// Notes where an engine that comes next looks whether a connect is in this engine's memory alone. Who waits for an answer asks again.
    pub(crate) fn note_held(&self, nqe: &Nqe, is_held: bool) {
        let Some(cell) = self.cell(nqe.socket).filter(|_| nqe.ticket == 0) else { return };
        if is_held {
            cell.in_use.fetch_or(CONNECT_HELD, Ordering::SeqCst);
        } else if cell.in_use.load(Ordering::Relaxed) & CONNECT_HELD != 0 {
            cell.in_use.fetch_and(!CONNECT_HELD, Ordering::SeqCst);
        }
    }

    /// The connect that goes on next, if the rate lets it, and the NSM that it is for.
    fn next_connect(&self) -> Option<(u32, u16, NsmId)> {
        let &(id, generation) =
            self.limiter.connects.front().filter(|_| self.limiter.may_connect())?;
        let open = self.socket(id).filter(|s| s.state() == State::Open);
        Some((id, generation, open.map_or(self.nsm, |s| s.nsm)))
    }

    /// Whether a socket's connect waits here; of those that do not, the socket was closed.
    fn is_connect_held(&self, id: u32, generation: u16) -> bool {
        self.socket(id).is_some_and(|s| s.generation == generation && s.held.is_some())
    }

    /// The NSM that the connect which goes on next is for.
    pub(crate) fn connect_awaits(&self) -> Option<NsmId> {
        self.next_connect().map(|(.., nsm)| nsm)
    }

    /// The NSMs that have to take something before more of the guest's that is costly goes on.
    pub(crate) fn awaited_nsms(&self) -> impl Iterator<Item = NsmId> {
        self.waiting.iter().map(|(_, nsm)| *nsm).chain(self.connect_awaits())
    }

    /// Elements that its turn may take: by its weight, and by what its bucket has.
    fn turn(&mut self) -> u32 {
        let turn = self.limits.nqes_per_turn_max.saturating_mul(self.limits.weight.max(1));
        match &self.limiter.nqes {
            Some(_) if self.limiter.is_held => 0,
            Some(b) if b.available() == 0 => {
                self.limiter.is_held = true;
                self.counters.engine.nqes_held.add(1);
                0
            }
            Some(b) => u32::try_from(b.available()).unwrap_or(u32::MAX).min(turn),
            None => turn,
        }
    }
}

impl Parts<'_> {
    /// Before the guest's first turn of a poll: takes its bells, and gives those who waited what time brought.
    pub(crate) fn begin_poll(&mut self, now_ns: u64, out: &mut Out<'_>) {
        if self.guest.is_paused {
            return;
        }
        self.guest.take_bells(out.round);
        self.go_on_waiting();
        self.guest.limiter.refill(now_ns);
        if self.guest.limiter.accepts_held && self.guest.limiter.may_connect() {
            self.guest.top_up_nsm(self.nsm);
        }
    }

    /// The guest's turn.
    pub(crate) fn serve_turn(&mut self, budget: u32, out: &mut Out<'_>) -> u32 {
        let mut costly = costly::TURN.saturating_mul(self.guest.limits.weight.max(1));
        let released = self.release_connects(&mut costly, out);
        if self.guest.active.is_empty() {
            return released;
        }
        let turn = self.guest.turn().min(budget);
        let n = self.serve(turn, costly, out);
        if let Some(b) = &mut self.guest.limiter.nqes {
            b.take(n.into());
        }
        released + n
    }

    /// Connects that the rate held back and lets go now: no more of them at a time than of what comes from the rings.
    fn release_connects(&mut self, costly: &mut u32, out: &mut Out<'_>) -> u32 {
        let mut n = 0;
        while *costly > 0 && !self.is_stuck() {
            let Some((id, generation, nsm)) = self.guest.next_connect() else { break };
            let is_held = self.guest.is_connect_held(id, generation);
            if is_held && !self.nsm_named(nsm).has_room_for_costly() {
                break;
            }
            self.guest.limiter.connects.pop_front();
            if is_held {
                *costly = costly.saturating_sub(self.release_connect(id, out));
                n += 1;
            }
        }
        n
    }

    /// Whether a connect may go on now; else it waits here, or is refused because one waits already.
    pub(crate) fn may_connect(&mut self, q: u16, nqe: &Nqe, out: &mut Out<'_>) -> bool {
        let g = &mut *self.guest;
        let Some(s) = g.sockets.get_mut(nqe.socket as usize) else { return false };
        if s.held.is_some() {
            self.refuse(q, nqe, EALREADY, out);
            return false;
        }
        if g.limiter.connects.is_empty() && g.limiter.may_connect() {
            g.limiter.connected();
            return true;
        }
        s.held = Some(Box::new(HeldConnect { nqe: *nqe, after: None }));
        // Before the element's place on the ring is given back.
        g.note_held(nqe, true);
        g.counters.engine.connects_held.add(1);
        if g.limiter.connects.len() > g.sockets.len() * 2 {
            // Most are of sockets that were closed.
            let mut connects = core::mem::take(&mut g.limiter.connects);
            connects.retain(|(id, generation)| g.is_connect_held(*id, *generation));
            g.limiter.connects = connects;
        }
        g.limiter.connects.push_back((nqe.socket, nqe.generation));
        false
    }

    /// A shutdown or disconnect waits behind the connect before it; `true` when it does.
    pub(crate) fn waits_behind(&mut self, q: u16, nqe: &Nqe, out: &mut Out<'_>) -> bool {
        let held = self.guest.socket_mut(nqe.socket).and_then(|s| s.held.as_mut());
        let Some(held) = held else { return false };
        if let Some(old) = held.after.replace(Nqe { qset: q, ..*nqe }) {
            self.refuse(old.qset, &old, EALREADY, out);
        }
        true
    }

    /// How many elements that were.
    fn release_connect(&mut self, id: u32, out: &mut Out<'_>) -> u32 {
        let Some(s) = self.guest.socket_mut(id) else { return 0 };
        let Some(held) = s.held.take() else { return 0 };
        let is_open = s.state() == State::Open;
        self.guest.limiter.connected();
        let n = 1 + u32::from(held.after.is_some());
        for nqe in [Some(held.nqe), held.after].into_iter().flatten() {
            if is_open {
                self.pass_on(nqe.qset, &nqe);
            } else {
                self.refuse(nqe.qset, &nqe, ECONNRESET, out);
            }
        }
        n
    }
}

impl Engine {
    /// Changes a guest's limits. What it has beyond a lower one it keeps.
    pub fn set_limits(&mut self, guest: GuestId, limits: Limits) -> Result<(), ControlError> {
        self.rouse(guest);
        let p = self.parts(guest)?;
        p.guest.limits = limits;
        p.guest.limiter.set(&limits);
        // Who found no id under the old limit asks again: with the next that is freed, or now.
        for row in core::mem::take(&mut p.guest.starved) {
            p.guest.top_up_row(row);
        }
        p.guest.top_up_nsm(p.nsm);
        Ok(())
    }
}

impl Guest {
    /// Whether the guest's policy lets a socket bind there by number, or listen there; counted where it does not.
    pub(crate) fn may_listen(&mut self, addr: &Addr, v6only: bool) -> bool {
        let may = self.listen.as_ref().is_none_or(|all| all.iter().any(|l| l.allows(addr, v6only)));
        self.counters.engine.listens_refused.add((!may).into());
        may
    }
}

impl Engine {
    /// Says where a guest may listen from now on; `None`: anywhere. Who listens already goes on.
    pub fn set_listen(
        &mut self,
        guest: GuestId,
        policy: Option<Vec<Listen>>,
    ) -> Result<(), ControlError> {
        self.parts(guest)?.guest.listen = policy;
        Ok(())
    }
}

/// Whether the operation must not overtake a connect.
pub(crate) fn follows_connect(op: Op) -> bool {
    matches!(op, Op::Shutdown | Op::Disconnect)
}
