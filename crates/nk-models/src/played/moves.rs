//! The moves of the simulation: decided by the daemon's own code ([`nk_host::control::moves`]), carried out on a host in memory.

use std::io;

use nk_device::Addr;
use nk_engine::{Engine, GuestId, Notify, NsmId};
use nk_host::control::moves::{self, Host, Moved, Stays};
use nk_host::control::place::Place;
use nk_host::control::spread::{self, Spread};
use nk_servicelib::{GuestPool, Key, MovedSocket, Service};

use super::region::SharedLedger;
use super::simulation::{LAYOUT, NSMS, Simulation, State};
use super::stack::MemoryStack;
use super::tenant::Tenant;
use super::world::World;

impl Simulation {
    pub(super) fn at(&self, guest: GuestId) -> Option<usize> {
        self.tenants.iter().position(|t| t.id == guest)
    }

    /// As `nk guest move`: to another NSM, whatever is under way.
    pub(super) fn move_guest(&mut self, at: usize) {
        let t = &self.tenants[at];
        let (id, others) = (t.id, NSMS - 1);
        let to = (usize::from(t.place.nsm().0) + 1 + self.random.below(others)) % NSMS;
        if self.states[to] == State::Absent {
            return;
        }
        let from = t.place.nsm();
        // As a guest whose NSM rests: whether it is soon started again makes no difference.
        let flees = !self.is_up(from) && self.random.below(2) == 0;
        let to_other: fn(&mut Simulation, GuestId, NsmId) -> Result<Option<Moved>, Stays> =
            if flees { moves::flee } else { moves::move_guest };
        self.act(|s| match to_other(s, id, NsmId(to as u8)) {
            // Who gives a guest away may die before it does.
            Err(Stays::Failed(_)) if s.states.contains(&State::Dead) => Ok(()),
            Ok(_) | Err(Stays::Restarting(_)) => Ok(()),
            Err(Stays::Failed(e)) => Err(e),
        });
    }

    /// As `Server::spread`.
    pub(super) fn spread(&mut self, guest: GuestId) -> io::Result<()> {
        let now = self.now();
        let is_at = |s: &Simulation| s.at(guest).map(|at| s.tenants[at].place.nsm());
        let before = is_at(self);
        let was_up = before.is_some_and(|nsm| self.is_up(nsm));
        spread::spread(self, guest, now)?;
        if is_at(self) != before {
            self.see(match was_up {
                true => "a guest moved on to its next NSM",
                false => "a guest did not wait for an NSM that rests",
            });
        }
        Ok(())
    }

    /// What the engine told of NSMs that have their share, and guests whose time it is.
    pub(super) fn move_on(&mut self) {
        let now = self.now();
        let is_due = |t: &&Tenant| t.spread.and_then(|s| s.again()).is_some_and(|t| t <= now);
        let due: Vec<GuestId> = self.tenants.iter().filter(is_due).map(|t| t.id).collect();
        for guest in std::mem::take(&mut self.w.bells.full).into_iter().chain(due) {
            self.act(|s| s.spread(guest));
        }
    }

    /// Guests that may be elsewhere do not wait for an NSM that rests.
    pub(super) fn spread_from(&mut self, nsm: NsmId) -> io::Result<()> {
        let its = self.tenants.iter().filter(|t| t.place.nsm() == nsm);
        let its: Vec<GuestId> = its.map(|t| t.id).collect();
        its.into_iter().try_for_each(|guest| self.spread(guest))
    }

    /// What the engine told of NSMs that have nothing left of a guest.
    pub(super) fn leave_old(&mut self) {
        for (guest, nsm) in std::mem::take(&mut self.w.bells.left) {
            self.act(|s| moves::nsm_left(s, guest, nsm));
        }
    }

    /// Whether an NSM does what it is told: one that is dead, as is known or not, does nothing.
    fn serves(&self, nsm: NsmId) -> bool {
        self.states[usize::from(nsm.0)] == State::Up
    }

    fn service(&mut self, nsm: NsmId) -> &mut Service<MemoryStack> {
        &mut self.w.services[usize::from(nsm.0)]
    }

    /// An NSM is told something, and does it unless it is dead.
    fn told<R>(&mut self, nsm: NsmId, what: impl FnOnce(&mut Simulation) -> R) -> Option<R> {
        self.moment(Some(nsm));
        let done = self.serves(nsm).then(|| what(self));
        // What it told before its answer.
        self.take_notes(nsm.0.into());
        self.moment(Some(nsm));
        done
    }

    /// As `Server::nsm_adopt_listener`.
    pub(super) fn give_to(
        &mut self,
        to: NsmId,
        key: Key,
        local: Addr,
        backlog: u32,
    ) -> io::Result<bool> {
        let fd = MemoryStack::kept_descriptor(&local);
        let taken = self.told(to, |s| s.service(to).adopt_listener(key, fd, backlog).is_ok());
        // One that died has its end in the queue: the next one is given every listener.
        let is_taken = taken.unwrap_or(true);
        if is_taken {
            self.daemon.listeners[usize::from(to.0)].insert(key.to_word(), (local, backlog));
        }
        Ok(self.is_taken(key, is_taken))
    }

    /// As `Server::is_taken`.
    fn is_taken(&mut self, key: Key, is_taken: bool) -> bool {
        if !is_taken {
            self.note_listener_gone(key);
        }
        is_taken
    }

    fn settle(&mut self, nsm: NsmId) {
        let now_ns = self.w.now_ms * 1_000_000;
        while !self.service(nsm).settle(now_ns, &mut || {}) {
            self.w.poll_engine();
        }
    }
}

impl spread::Host for Simulation {
    fn listed(&self, guest: GuestId) -> Vec<NsmId> {
        self.config.listed(guest)
    }
    fn rests(&self, nsm: NsmId) -> bool {
        let nsm = usize::from(nsm.0);
        self.states[nsm] == State::Down && self.lives[nsm].deaths() > 1
    }
    fn spread(&mut self, guest: GuestId) -> Option<&mut Option<Spread>> {
        self.at(guest).map(|at| &mut self.tenants[at].spread)
    }
}

impl Host for Simulation {
    type Ledger = SharedLedger;

    fn guests(&self) -> Vec<GuestId> {
        self.tenants.iter().map(|t| t.id).collect()
    }
    fn place(&mut self, guest: GuestId) -> Option<&mut Place<SharedLedger>> {
        self.at(guest).map(|at| &mut self.tenants[at].place)
    }
    fn is_up(&self, nsm: NsmId) -> bool {
        matches!(self.states[usize::from(nsm.0)], State::Up | State::Dead)
    }
    fn engine<R: Send + 'static>(
        &mut self,
        ask: impl FnOnce(&mut Engine, &mut dyn Notify) -> R + Send + 'static,
    ) -> io::Result<R> {
        self.moment(None);
        let answer = ask(&mut self.w.engine, &mut self.w.bells);
        self.moment(None);
        Ok(answer)
    }

    fn new_ledger(&mut self, _: GuestId) -> io::Result<SharedLedger> {
        Ok(SharedLedger::new(LAYOUT))
    }
    fn clear_ledger(&mut self, guest: GuestId, nsm: NsmId) {
        if let Some(l) = self.place(guest).and_then(|p| p.ledger()) {
            l.ledger.of_service(nsm.0).clear();
        }
    }

    fn add(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()> {
        self.told(nsm, |s| {
            let Some(at) = s.at(guest) else { return };
            let t = &s.tenants[at];
            let ledger = t.place.ledger().map(|l| l.ledger.of_service(nsm.0));
            if ledger.is_none() {
                // What a process has taken from its grants, nobody leases to it any more.
                t.processes.iter().for_each(|p| p.spare.borrow_mut().clear());
            }
            let pool = GuestPool { ledger, ..World::pool(&t.region, t.id) };
            s.service(nsm).add_guest(pool);
        });
        self.limit(guest)
    }
    fn remove(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()> {
        let listeners = &mut self.daemon.listeners[usize::from(nsm.0)];
        listeners.retain(|word, _| Key::from_word(*word).guest != guest.0);
        self.told(nsm, |s| s.service(nsm).remove_guest(guest.0));
        Ok(())
    }
    fn leave(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<Vec<MovedSocket>> {
        let ledger = self.place(guest).and_then(|p| p.ledger()).expect("it is shared").ledger;
        let moved = self.told(nsm, |s| {
            s.settle(nsm);
            s.service(nsm).leave(guest.0, ledger.of_service(nsm.0))
        });
        if self.serves(nsm) {
            return moved.ok_or_else(|| io::Error::other("it is not told"));
        }
        // It died before it answered, or before anybody heard it.
        for m in moved.into_iter().flatten() {
            self.net.borrow_mut().end_given(&m.fd);
        }
        Err(io::Error::other("it is dead"))
    }
    fn enter(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()> {
        self.told(nsm, |s| s.service(nsm).enter(guest.0));
        Ok(())
    }
    /// As `Server::give_moved`.
    fn give(&mut self, from: NsmId, to: NsmId, moved: MovedSocket) -> io::Result<bool> {
        let (key, backlog) = (moved.key, moved.at.backlog);
        let kept = self.daemon.listeners[usize::from(from.0)].remove(&key.to_word());
        let mut moved = Some(moved);
        let taken = self.told(to, |s| moved.take().map(|m| s.service(to).adopt_moved(m).is_ok()));
        if let Some(moved) = moved {
            self.net.borrow_mut().end_given(&moved.fd);
        }
        // One that died has its end in the queue.
        let is_taken = taken.flatten().unwrap_or(true);
        if let (true, Some((local, _)), Some(backlog)) = (is_taken, kept, backlog) {
            let next = &mut self.daemon.listeners[usize::from(to.0)];
            next.entry(key.to_word()).or_insert((local, backlog));
        }
        Ok(self.is_taken(key, is_taken))
    }
    fn give_kept(&mut self, from: NsmId, to: NsmId, key: Key, backlog: u32) -> io::Result<bool> {
        let kept = self.daemon.listeners[usize::from(from.0)].remove(&key.to_word());
        // Sometimes one is missing.
        let Some((local, _)) = kept.filter(|_| self.random.below(6) != 0) else { return Ok(false) };
        self.give_to(to, key, local, backlog)
    }
    fn alone(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()> {
        self.told(nsm, |s| {
            // Else connections hear that their other ends are gone.
            if !s.is_quiet {
                s.settle(nsm);
            }
            s.service(nsm).be_alone(guest.0);
        });
        Ok(())
    }
    /// No process sets any.
    fn give_options(&mut self, _: NsmId, _: GuestId) -> io::Result<()> {
        Ok(())
    }
    fn drop_stale_options(&mut self, _: GuestId) -> io::Result<()> {
        Ok(())
    }
    fn limit(&mut self, guest: GuestId) -> io::Result<()> {
        let Some(at) = self.at(guest) else { return Ok(()) };
        let t = &self.tenants[at];
        let all = t.place.all();
        let part = t.limits.divided(all.len()).service();
        for nsm in all {
            self.told(nsm, |s| s.service(nsm).set_limits(guest.0, &part));
        }
        Ok(())
    }
    fn note(&mut self, guest: GuestId) {
        if let Some(at) = self.at(guest) {
            self.note_guest(at);
        }
    }
}
