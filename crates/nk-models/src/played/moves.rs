//! The moves of the simulation: decided by the daemon's own code ([`nk_host::control::moves`]), carried out on a host in memory.

use std::io;

use nk_engine::{Engine, GuestId, Notify, NsmId};
use nk_host::control::moves::{self, Host};
use nk_host::control::place::Place;
use nk_servicelib::{GuestPool, Key, MovedSocket};

use super::region::SharedLedger;
use super::simulation::{LAYOUT, NSMS, Simulation, State};
use super::stack::MemoryStack;
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
        if let Err(moves::Stays::Failed(e)) = moves::move_guest(self, id, NsmId(to as u8)) {
            panic!("guest {} cannot be moved: {e}", id.0);
        }
    }

    /// What the engine told of NSMs that have nothing left of a guest.
    pub(super) fn leave_old(&mut self) {
        for (guest, nsm) in std::mem::take(&mut self.w.bells.left) {
            moves::nsm_left(self, guest, nsm).expect("nothing is refused");
        }
    }

    /// Whether an NSM does what it is told: one that is dead, as is known or not, does nothing.
    fn serves(&self, nsm: NsmId) -> bool {
        self.states[usize::from(nsm.0)] == State::Up
    }

    fn settle(&mut self, nsm: NsmId) {
        let now_ns = self.w.now_ms * 1_000_000;
        while !self.w.services[usize::from(nsm.0)].settle(now_ns, &mut || {}) {
            self.w.poll_engine();
        }
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
        self.states[usize::from(nsm.0)] != State::Down
    }
    fn engine<R: Send + 'static>(
        &mut self,
        ask: impl FnOnce(&mut Engine, &mut dyn Notify) -> R + Send + 'static,
    ) -> io::Result<R> {
        Ok(ask(&mut self.w.engine, &mut self.w.bells))
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
        let Some(at) = self.at(guest).filter(|_| self.serves(nsm)) else { return Ok(()) };
        let t = &self.tenants[at];
        let ledger = t.place.ledger().map(|l| l.ledger.of_service(nsm.0));
        if ledger.is_none() {
            // What a process has taken from its grants, nobody leases to it any more.
            t.processes.iter().for_each(|p| p.spare.borrow_mut().clear());
        }
        let pool = GuestPool { ledger, ..World::pool(&t.region, t.id) };
        self.w.services[usize::from(nsm.0)].add_guest(pool);
        Ok(())
    }
    fn remove(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()> {
        self.w.services[usize::from(nsm.0)].remove_guest(guest.0);
        Ok(())
    }
    fn leave(&mut self, nsm: NsmId, to: NsmId, guest: GuestId) -> io::Result<Vec<MovedSocket>> {
        if !self.serves(nsm) {
            return Err(io::Error::other("it is dead"));
        }
        self.settle(nsm);
        let ledger = self.place(guest).and_then(|p| p.ledger()).expect("it is shared").ledger;
        let service = &mut self.w.services[usize::from(nsm.0)];
        Ok(service.leave(guest.0, ledger.of_service(nsm.0), to.0))
    }
    fn enter(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()> {
        self.w.services[usize::from(nsm.0)].enter(guest.0);
        Ok(())
    }
    fn give(&mut self, _: NsmId, to: NsmId, moved: MovedSocket) -> io::Result<bool> {
        let at = usize::from(to.0);
        if self.serves(to) {
            return Ok(self.w.services[at].adopt_moved(moved).is_ok());
        }
        // Its successor is given what the daemon has.
        let guest = self.at(GuestId(moved.key.guest)).map(|at| &self.tenants[at]);
        let cell = guest.and_then(|t| t.region.device.cell(moved.key.socket));
        let local = cell.map(|c| c.local.load());
        if let (Some(backlog), Some(local)) = (moved.at.backlog, local) {
            self.kept[at].insert(moved.key.to_word(), (local, backlog));
        }
        self.net.borrow_mut().end_given(&moved.fd);
        Ok(true)
    }
    fn give_kept(&mut self, from: NsmId, to: NsmId, key: Key, backlog: u32) -> io::Result<bool> {
        let kept = self.kept[usize::from(from.0)].remove(&key.to_word());
        // One in four is missing.
        let Some((local, _)) = kept.filter(|_| self.random.below(4) != 0) else { return Ok(false) };
        let at = usize::from(to.0);
        if !self.serves(to) {
            self.kept[at].insert(key.to_word(), (local, backlog));
            return Ok(true);
        }
        let fd = MemoryStack::kept_descriptor(&local);
        Ok(self.w.services[at].adopt_listener(key, fd, backlog).is_ok())
    }
    fn alone(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()> {
        if self.serves(nsm) {
            self.settle(nsm);
            self.w.services[usize::from(nsm.0)].be_alone(guest.0);
        }
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
            self.w.services[usize::from(nsm.0)].set_limits(guest.0, &part);
        }
        Ok(())
    }
    fn note(&mut self, guest: GuestId) {
        if let Some(at) = self.at(guest) {
            let t = &mut self.tenants[at];
            t.noted = t.place.nsm();
        }
    }
}
