//! [`Engine`]: the tables, and the poll.

use nk_device::header::{Header, WANTS_ROOM};
use nk_device::sync::{Ordering, fence};

use crate::guest::Guest;
use crate::nsm::Nsm;
use crate::out::Out;
use crate::ports::Ports;
use crate::{ControlError, GuestId, Notify, NsmId, PollResult};

/// NQEs taken from an NSM in one turn.
const NSM_TURN: u32 = 1024;
/// Sockets of each guest that are looked at, for holder bits of the dead and closes that were lost, when a poll finds no more work
/// after others did.
const SWEEP: usize = 4;
/// While work does not end, NQEs between two such looks: their cells are cold, and each costs as much as many NQEs.
const SWEEP_NQES: u32 = 256;
/// Polls without a bell after which a guest dozes. Its next element costs a doorbell; looking at it costs each poll a cache miss or two.
pub(crate) const DOZE_AFTER: u64 = 256;

/// CoreEngine.
#[derive(Debug, Default)]
pub struct Engine {
    pub(crate) guests: Vec<Option<Box<Guest>>>,
    /// Numbers of the guests there are.
    pub(crate) order: Vec<GuestId>,
    /// Those of them that are looked at in each poll, in the order they are served. The others doze ([`Guest::dozes`]).
    pub(crate) awake: Vec<GuestId>,
    pub(crate) nsms: Vec<Nsm>,
    pub(crate) ports: Ports,
    next: usize,
    /// Number of the poll.
    pub(crate) round: u64,
    /// NQEs moved since the last sweep.
    unswept: u32,
    /// Whose turn it is to be swept while work does not end.
    sweep_next: usize,
    bells: Vec<(GuestId, u16)>,
    /// Whose doorbell was rung last.
    rung_last: Option<(GuestId, u16)>,
}

/// A guest, the NSM that serves it, the others, and the ports of all.
pub(crate) struct Parts<'a> {
    pub(crate) guest: &'a mut Guest,
    pub(crate) nsm: &'a mut Nsm,
    others: [&'a mut [Nsm]; 2],
    pub(crate) ports: &'a mut Ports,
}

impl Parts<'_> {
    /// An NSM that has sockets of the guest.
    pub(crate) fn nsm_named(&mut self, id: NsmId) -> &mut Nsm {
        if id == self.nsm.id {
            return self.nsm;
        }
        let mut others = self.others.iter_mut().flat_map(|half| half.iter_mut());
        match others.find(|n| n.id == id) {
            Some(n) => n,
            None => self.nsm,
        }
    }

    /// The NSM that has a socket.
    pub(crate) fn nsm_of(&mut self, socket: u32) -> &mut Nsm {
        match self.guest.socket(socket).map(|s| s.nsm) {
            Some(id) if id != self.nsm.id => self.nsm_named(id),
            _ => self.nsm,
        }
    }

    /// Whether nothing is taken from the guest now.
    pub(crate) fn is_stuck(&self) -> bool {
        let mut others = self.others.iter().flat_map(|half| half.iter());
        self.guest.is_paused
            || self.nsm.is_stuck()
            || (self.guest.is_split() && others.any(|n| self.guest.is_old(n.id) && n.is_stuck()))
    }
}

impl Engine {
    /// An engine without guests or NSMs.
    #[must_use]
    pub fn new() -> Engine {
        Engine::default()
    }

    pub(crate) fn guest(&self, id: GuestId) -> Option<&Guest> {
        self.guests.get(usize::from(id.0))?.as_deref()
    }

    pub(crate) fn parts(&mut self, id: GuestId) -> Result<Parts<'_>, ControlError> {
        let slot = self.guests.get_mut(usize::from(id.0)).ok_or(ControlError::Guest)?;
        let guest = slot.as_deref_mut().ok_or(ControlError::Guest)?;
        let at = self.nsms.iter().position(|n| n.id == guest.nsm).ok_or(ControlError::Nsm)?;
        let (left, rest) = self.nsms.split_at_mut(at);
        let (nsm, right) = rest.split_first_mut().ok_or(ControlError::Nsm)?;
        Ok(Parts { guest, nsm, others: [left, right], ports: &mut self.ports })
    }

    pub(crate) fn nsm_mut(&mut self, id: NsmId) -> Option<&mut Nsm> {
        self.nsms.iter_mut().find(|n| n.id == id)
    }

    /// Runs a control operation with what it needs to tell others, and wakes those at its end.
    pub(crate) fn control<R>(
        &mut self,
        id: GuestId,
        notify: &mut dyn Notify,
        f: impl FnOnce(&mut Parts<'_>, &mut Out<'_>) -> R,
    ) -> Result<R, ControlError> {
        self.round += 1;
        // What the host does may leave something to do for the guest.
        self.rouse(id);
        let mut out = Out { notify, bells: core::mem::take(&mut self.bells), round: self.round };
        let r = self.parts(id).map(|mut p| {
            // Whoever asks may know what the NSM said last, from the device.
            p.hear_nsm(&mut out);
            let r = f(&mut p, &mut out);
            p.nsm.wake(out.notify);
            for i in 0..p.guest.old.len() {
                if let Some(id) = p.guest.old.get(i).map(|o| o.id) {
                    p.nsm_named(id).wake(out.notify);
                }
            }
            r
        });
        self.bells = out.flush();
        r
    }

    /// Moves NQEs, at most about `budget`. `now_ns` is the time on any clock that does not go back; only rates look at it.
    pub fn poll(&mut self, now_ns: u64, budget: u32, notify: &mut dyn Notify) -> PollResult {
        self.round += 1;
        let mut out = Out { notify, bells: core::mem::take(&mut self.bells), round: self.round };
        let mut worked = 0;
        for i in 0..self.nsms.len() {
            worked += self.drain_nsm(i, &mut out);
        }
        // Every other time the living come first.
        if self.round.is_multiple_of(2) {
            self.nsms.iter_mut().for_each(Nsm::give_closes);
        }
        worked += self.serve_guests(now_ns, budget, &mut out);
        self.nsms.iter_mut().for_each(Nsm::give_closes);
        self.sweep(worked, &mut out);
        for nsm in &mut self.nsms {
            nsm.wake(out.notify);
        }
        self.rung_last = out.bells.last().copied().or(self.rung_last);
        self.bells = out.flush();
        PollResult { worked, pending: self.has_work(), due_ns: self.due_ns() }
    }

    fn sweep(&mut self, worked: u32, out: &mut Out<'_>) {
        if worked == 0 && self.unswept > 0 {
            self.unswept = 0;
            for i in 0..self.awake.len() {
                if let Some(&id) = self.awake.get(i) {
                    self.sweep_guest(id, SWEEP, out);
                }
            }
            self.sweep_next_guest(SWEEP, out);
        }
        self.unswept = self.unswept.saturating_add(worked);
        while self.unswept > SWEEP_NQES {
            self.unswept -= SWEEP_NQES;
            self.sweep_next_guest(1, out);
        }
    }

    /// One guest after another has its turn, also those that doze.
    fn sweep_next_guest(&mut self, sockets: usize, out: &mut Out<'_>) {
        self.sweep_next = (self.sweep_next + 1) % self.order.len().max(1);
        if let Some(&id) = self.order.get(self.sweep_next) {
            self.sweep_guest(id, sockets, out);
        }
    }

    fn sweep_guest(&mut self, id: GuestId, sockets: usize, out: &mut Out<'_>) {
        if let Ok(mut p) = self.parts(id)
            && !p.guest.is_paused
        {
            p.sweep(sockets, out);
        }
    }

    /// Everything an NSM has to say.
    fn drain_nsm(&mut self, index: usize, out: &mut Out<'_>) -> u32 {
        let mut n = 0;
        if let Some(nsm) = self.nsms.get_mut(index) {
            nsm.flush();
        }
        while n < NSM_TURN {
            let Some(nsm) = self.nsms.get_mut(index) else { break };
            let Some(nqe) = nsm.pop() else { break };
            n += 1;
            let from = nsm.id;
            if let Ok(mut p) = self.parts(GuestId(nqe.guest))
                && p.guest.is_served_by(from)
            {
                p.take_from_nsm(from, &nqe, out);
            }
        }
        if n > 0
            && let Some(nsm) = self.nsms.get(index)
        {
            nsm.commit();
        }
        n
    }

    /// Turns in order, each by its guest's weight, until nobody has anything or the budget is spent; the next poll goes on from there.
    fn serve_guests(&mut self, now_ns: u64, budget: u32, out: &mut Out<'_>) -> u32 {
        let count = self.awake.len();
        for i in 0..count {
            if let Some(&id) = self.awake.get(i)
                && let Ok(mut p) = self.parts(id)
            {
                p.begin_poll(now_ns, out);
            }
        }
        let (mut worked, mut idle) = (0, 0);
        while worked < budget && idle < count {
            self.next = if self.next + 1 < count { self.next + 1 } else { 0 };
            let Some(&id) = self.awake.get(self.next) else { break };
            let n = self.parts(id).map_or(0, |mut p| p.serve_turn(budget - worked, out));
            worked += n;
            idle = if n == 0 { idle + 1 } else { 0 };
        }
        worked
    }

    /// When something that a rate holds back has its turn. What waits for an NSM waits for that, not for time.
    fn due_ns(&self) -> Option<u64> {
        let guests = self.awake.iter().filter_map(|id| self.guest(*id));
        let awaited = guests.filter(|g| !self.is_stuck(g));
        awaited.filter_map(|g| g.limiter.due_ns()).min()
    }

    /// Whether a poll would move something now.
    fn has_work(&self) -> bool {
        self.nsms.iter().any(Nsm::has_work)
            || self
                .awake
                .iter()
                .filter_map(|id| self.guest(*id))
                .any(|g| self.has_turn(g) && !self.is_stuck(g))
    }

    fn has_turn(&self, g: &Guest) -> bool {
        let has_room = |id| self.nsms.iter().any(|n| n.id == id && n.has_room_for_costly());
        let has_queue = || !g.active.is_empty() || g.waiting.iter().any(|(_, id)| has_room(*id));
        g.connect_awaits().is_some_and(has_room) || (!g.limiter.is_held && has_queue())
    }

    /// Whether nothing is taken from a guest now.
    fn is_stuck(&self, g: &Guest) -> bool {
        g.is_paused || self.nsms.iter().any(|n| n.is_stuck() && g.is_served_by(n.id))
    }

    /// The header of each device whose guest is awake, how many words of its bell bitmap count, and whether its rate holds its elements
    /// back.
    fn headers(&self) -> impl Iterator<Item = (&Header, usize, bool)> {
        let guests = self.awake.iter().filter_map(|id| self.guest(*id));
        guests.map(|g| (g.device.header(), g.bell_words, g.limiter.is_held))
    }

    /// Before the poll thread sleeps: asks all peers for the doorbell and looks again. `true`: sleep (the guests' engine eventfd
    /// and, for a separate NSM, its doorbell end the sleep). `false`: there is work. Call [`Engine::finish_sleep`] in both cases.
    #[must_use]
    pub fn prepare_sleep(&mut self) -> bool {
        let mut idle = true;
        for (h, words, is_held) in self.headers() {
            // Whoever is over its rate is not asked to ring: its time comes by itself.
            idle &= is_held || h.prepare_sleep(words);
        }
        for n in &self.nsms {
            let waits = |id: &GuestId| {
                self.guest(*id).is_some_and(|g| g.awaited_nsms().any(|nsm| nsm == n.id))
            };
            let wants_room = n.is_awaited() || self.awake.iter().any(waits);
            let why = if wants_room { WANTS_ROOM } else { 1 };
            n.device.header().engine_sleeping.store(why, Ordering::SeqCst);
        }
        fence(Ordering::SeqCst);
        idle && !self.has_work()
    }

    /// The CPU on which the thread waits to run that was rung last and has not read what it was rung for. Only where no more than one guest is
    /// awake: what it says of itself then concerns nobody else.
    #[must_use]
    pub fn awaited_on(&self) -> Option<u32> {
        let (id, q) = self.rung_last.filter(|(id, _)| matches!(self.awake[..], [a] if a == *id))?;
        let guest = self.guest(id).filter(|g| g.is_roused(q))?;
        guest.device.qset(q)?.sleeps_on.load(Ordering::Relaxed).checked_sub(1)
    }

    /// After the sleep (or instead of it). Who has not rung for long goes on asleep, until [`Engine::rouse`].
    pub fn finish_sleep(&mut self) {
        let round = self.round;
        let guests = &mut self.guests;
        self.awake.retain(|id| {
            let Some(g) = guests.get_mut(usize::from(id.0)).and_then(Option::as_deref_mut) else {
                return false;
            };
            let h = g.device.header();
            // Who rang while its header still said that the engine is awake has written no eventfd, and this is the last look.
            g.dozes = g.may_doze(round) && !h.has_bells(g.bell_words);
            if !g.dozes {
                h.finish_sleep();
            }
            !g.dozes
        });
        for n in &self.nsms {
            n.device.header().finish_sleep();
        }
    }

    /// While there is work without end: lets those doze who have not rung for long, so that no poll looks at them. They ring their
    /// engine eventfd as they do while the engine sleeps, and the host says so ([`Engine::rouse`]).
    pub fn doze(&mut self) {
        let round = self.round;
        let guests = &mut self.guests;
        self.awake.retain(|id| {
            let Some(g) = guests.get_mut(usize::from(id.0)).and_then(Option::as_deref_mut) else {
                return false;
            };
            if !g.may_doze(round) {
                return true;
            }
            let h = g.device.header();
            g.dozes = h.prepare_sleep(g.bell_words);
            if !g.dozes {
                h.finish_sleep();
            }
            !g.dozes
        });
    }

    /// The guest's engine eventfd was written.
    pub fn rouse(&mut self, id: GuestId) {
        let round = self.round;
        let guest = self.guests.get_mut(usize::from(id.0)).and_then(Option::as_deref_mut);
        if let Some(g) = guest.filter(|g| g.dozes) {
            g.dozes = false;
            g.rang_in = round;
            g.device.header().finish_sleep();
            self.awake.push(id);
        }
    }
}
