//! The engine's end of an NSM's device. The NSM is trusted more than a guest, but what it says about ids is checked all the same.

use std::collections::VecDeque;

use nk_device::nqe::{Nqe, PackedNqe};
use nk_device::ring::{Consumer, Producer};
use nk_device::sync::{Ordering, fence};
use nk_device::{Device, Op};

use crate::costly::{Ahead, is_costly};
use crate::{GuestId, Notify, NsmId};

/// An NSM.
#[derive(Debug)]
pub(crate) struct Nsm {
    pub(crate) id: NsmId,
    pub(crate) device: Device,
    pub(crate) up: bool,
    /// What it says waits until all its guests are known ([`crate::Engine::hear_nsm`]).
    pub(crate) is_unheard: bool,
    job: Producer,
    send: Producer,
    completion: Consumer,
    receive: Consumer,
    /// What found its ring full. While there is something, no guest's ring is read, so this stays small.
    backlog: VecDeque<Nqe>,
    /// Closes of what dead processes had, thousands perhaps: an NSM is given them as it takes what is costly, and nobody waits for them.
    closes: VecDeque<Nqe>,
    /// What was popped to hear of one guest and is about another: a ring's worth at most, since popped slots are given back only
    /// by [`Nsm::commit`].
    ahead: VecDeque<Nqe>,
    /// Something was pushed since its doorbell was last looked at.
    dirty: bool,
    costly: Ahead,
}

impl Nsm {
    pub(crate) fn new(id: NsmId, device: Device) -> Nsm {
        let nsm = Nsm::living(id, device);
        nsm.reset();
        nsm
    }

    /// One whose service has begun to use the device already.
    pub(crate) fn living(id: NsmId, device: Device) -> Nsm {
        Nsm {
            id,
            device,
            up: true,
            is_unheard: false,
            job: Producer::default(),
            send: Producer::default(),
            completion: Consumer::default(),
            receive: Consumer::default(),
            backlog: VecDeque::new(),
            closes: VecDeque::new(),
            ahead: VecDeque::new(),
            dirty: false,
            costly: Ahead::default(),
        }
    }

    fn reset(&self) {
        if let Some(q) = self.device.qset(0) {
            q.reset();
            // A process that serves it may have gone to sleep before this: what comes first rings, asked for or not.
            q.sleeping.store(1, Ordering::SeqCst);
            q.in_use.store(1, Ordering::SeqCst);
        }
    }

    /// Gives up on it: what was on its way is lost.
    pub(crate) fn down(&mut self) {
        self.up = false;
        self.backlog.clear();
        self.closes.clear();
        self.ahead.clear();
    }

    /// Whether NQEs wait for room.
    pub(crate) fn is_congested(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether nothing is taken from guests now: NQEs wait for room, the NSM is dead and the next one is awaited, or what it says is not
    /// heard yet (a guest may use a socket of which the engine would hear only then). What guests ask meanwhile waits on their own
    /// rings, so that no call is lost between two NSMs or engines.
    pub(crate) fn is_stuck(&self) -> bool {
        !self.up || self.is_unheard || self.is_congested()
    }

    pub(crate) fn push(&mut self, nqe: &Nqe) {
        if !self.up {
            return;
        }
        self.dirty = true;
        if self.is_congested() || !self.try_push(nqe) {
            self.backlog.push_back(*nqe);
        }
    }

    /// Closes a socket that nobody has any more, in its time.
    pub(crate) fn close_in_time(&mut self, nqe: &Nqe) {
        if self.up {
            self.closes.push_back(*nqe);
        }
    }

    /// Gives it closes that wait, as many as there is room for.
    pub(crate) fn give_closes(&mut self) {
        while !self.is_stuck() && self.has_room_for_costly() {
            let Some(nqe) = self.closes.pop_front() else { return };
            self.push(&nqe);
        }
    }

    /// Gives it at once what waits of a guest's.
    pub(crate) fn give_closes_of(&mut self, guest: GuestId) {
        let (its, rest) = self.closes.drain(..).partition(|nqe| nqe.guest == guest.0);
        self.closes = rest;
        let its: VecDeque<Nqe> = its;
        its.iter().for_each(|nqe| self.push(nqe));
    }

    /// Whether a close of a guest's waits.
    pub(crate) fn has_closes_of(&self, guest: GuestId) -> bool {
        self.closes.iter().any(|nqe| nqe.guest == guest.0)
    }

    /// Forgets what waits of a guest's that is no more.
    pub(crate) fn forget_closes_of(&mut self, guest: GuestId) {
        self.closes.retain(|nqe| nqe.guest != guest.0);
    }

    /// Whether the engine wants to know when it has taken something.
    pub(crate) fn is_awaited(&self) -> bool {
        self.is_congested() || !self.closes.is_empty()
    }

    fn try_push(&mut self, nqe: &Nqe) -> bool {
        let Some(q) = self.device.qset(0) else { return false };
        if nqe.op == Op::Send as u8 {
            self.send.push(&q.send(), nqe).is_ok()
        } else {
            let place = self.job.tail();
            let is_pushed = self.job.push(&q.job(), nqe).is_ok();
            if is_pushed && is_costly(nqe.op) {
                self.costly.add(place, q.job_head.load(Ordering::Acquire));
            }
            is_pushed
        }
    }

    /// What was just pushed is costly, though its operation is not always.
    pub(crate) fn last_is_costly(&mut self) {
        if self.up
            && !self.is_congested()
            && let Some(q) = self.device.qset(0)
        {
            let place = self.job.tail().wrapping_sub(1);
            self.costly.add(place, q.job_head.load(Ordering::Acquire));
        }
    }

    /// Whether it may be given one more operation that is costly.
    pub(crate) fn has_room_for_costly(&self) -> bool {
        self.device
            .qset(0)
            .is_some_and(|q| self.costly.has_room(q.job_head.load(Ordering::Acquire)))
    }

    /// How many SENDs it takes now, `wanted` at most; 0 while it is stuck.
    #[inline]
    pub(crate) fn send_room(&mut self, wanted: u32) -> u32 {
        match self.device.qset(0) {
            Some(q) if !self.is_stuck() => {
                let room = self.send.room(&q.send(), wanted).min(wanted);
                self.send.fetch(&q.send(), room);
                room
            }
            _ => 0,
        }
    }

    /// Pushes SENDs for which [`Nsm::send_room`] found room.
    #[inline]
    pub(crate) fn push_sends(&mut self, sends: impl Iterator<Item = PackedNqe>) {
        let Some(q) = self.device.qset(0) else { return };
        let ring = q.send();
        for nqe in sends {
            self.send.put(&ring, &nqe);
        }
        self.send.publish(&ring);
        self.dirty = true;
    }

    /// Moves what waited for room.
    pub(crate) fn flush(&mut self) {
        while let Some(nqe) = self.backlog.front().copied() {
            if !self.try_push(&nqe) {
                return;
            }
            self.backlog.pop_front();
            self.dirty = true;
        }
    }

    /// Next element of its receive ring, then of its completion ring.
    pub(crate) fn pop(&mut self) -> Option<Nqe> {
        self.ahead.pop_front().or_else(|| self.pop_ring())
    }

    /// Takes out what it has said about a guest by now, oldest first; the rest keeps its order.
    pub(crate) fn pop_about(&mut self, guest: u16) -> VecDeque<Nqe> {
        while let Some(nqe) = self.pop_ring() {
            self.ahead.push_back(nqe);
        }
        let (about, rest) = self.ahead.drain(..).partition(|nqe| nqe.guest == guest);
        self.ahead = rest;
        about
    }

    fn pop_ring(&mut self) -> Option<Nqe> {
        if !self.up || self.is_unheard {
            return None;
        }
        let q = self.device.qset(0)?;
        if let Some(nqe) = self.receive.pop(&q.receive()) {
            return Some(nqe);
        }
        self.completion.pop(&q.completion())
    }

    /// Gives what was popped back.
    pub(crate) fn commit(&self) {
        if let Some(q) = self.device.qset(0) {
            self.receive.commit(&q.receive());
            self.completion.commit(&q.completion());
        }
    }

    /// Whether there is something to pop, or room for what waits.
    pub(crate) fn has_work(&self) -> bool {
        let Some(q) = self.device.qset(0) else { return false };
        self.up
            && !self.is_unheard
            && (!self.ahead.is_empty()
                || (!self.closes.is_empty() && !self.is_stuck() && self.has_room_for_costly())
                || self.receive.is_ready(&q.receive())
                || self.completion.is_ready(&q.completion())
                || self.backlog.front().is_some_and(|n| {
                    // Copies: a look changes nothing.
                    let (mut job, mut send) = (self.job, self.send);
                    let is_send = n.op == Op::Send as u8;
                    0 < if is_send { send.room(&q.send(), 1) } else { job.room(&q.job(), 1) }
                }))
    }

    /// Wakes it if it sleeps and has got something.
    pub(crate) fn wake(&mut self, notify: &mut dyn Notify) {
        if !core::mem::take(&mut self.dirty) || !self.up {
            return;
        }
        fence(Ordering::SeqCst);
        if self.device.qset(0).is_some_and(|q| q.sleeping.load(Ordering::SeqCst) != 0) {
            notify.nsm_doorbell(self.id);
        }
    }
}
