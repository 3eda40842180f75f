//! The moves of the simulation: guests go from one NSM to another, as the daemon does it.

use nk_engine::NsmId;
use nk_servicelib::GuestPool;

use super::region::SharedLedger;
use super::simulation::{LAYOUT, NSMS, Simulation};
use super::world::World;

impl Simulation {
    /// As `nk guest move`: to the other NSM, whatever is under way; now and then that one dies in the middle.
    pub(super) fn move_guest(&mut self, at: usize) {
        if self.is_down != [false; NSMS] {
            return;
        }
        let t = &mut self.tenants[at];
        let (id, from, to) = (t.id, t.nsm, 1 - t.nsm);
        let ledger = t.ledger.get_or_insert_with(|| SharedLedger::new(LAYOUT)).ledger;
        if t.old != Some(to) {
            let ledger = Some(ledger.of_service(to as u8));
            let pool = GuestPool { ledger, ..World::pool(&t.region, id) };
            self.w.services[to].add_guest(pool);
        }
        self.w.engine.pause_guest(id).expect("known");
        while !self.w.services[from].settle(self.w.now_ms * 1_000_000, &mut || {}) {
            self.w.poll_engine();
        }
        let moved = self.w.services[from].leave(id.0, ledger.of_service(from as u8), to as u8);
        let keys: Vec<(u32, u16)> =
            moved.iter().map(|m| (m.key.socket, m.key.generation)).collect();
        self.w.services[to].enter(id.0);
        let nsm = NsmId(to as u8);
        self.w.engine.move_guest(id, nsm, &keys, &mut self.w.bells).expect("known");
        (t.nsm, t.old) = (to, Some(from));
        let dies = self.random.below(8) == 0;
        for m in moved {
            // As the daemon has it of an NSM that did not report it yet.
            let local = self.tenants[at].region.device.cell(m.key.socket).map(|c| c.local.load());
            if let (true, Some(backlog), Some(local)) = (dies, m.at.backlog, local) {
                let kept = &mut self.w.services[to].stack_mut().kept;
                kept.insert(m.key.to_word(), (local, backlog));
            }
            let key = m.key;
            if dies {
                self.net.borrow_mut().end_given(&m.fd);
            } else if self.w.services[to].adopt_moved(m).is_err() {
                let bells = &mut self.w.bells;
                let _ = self.w.engine.listener_lost(id, key.socket, key.generation, bells);
            }
        }
        self.w.engine.resume_guest(id).expect("known");
        if dies {
            self.nsm_dies(to);
        }
    }

    /// What the engine told of NSMs that have nothing left of a guest.
    pub(super) fn leave_old(&mut self) {
        for (id, nsm) in std::mem::take(&mut self.w.bells.left) {
            let Some(at) = self.tenants.iter().position(|t| t.id == id) else { continue };
            if self.tenants[at].old != Some(usize::from(nsm.0)) {
                continue;
            }
            if self.w.engine.leave_nsm(id, nsm, &mut self.w.bells) != Ok(true) {
                continue;
            }
            self.w.services[usize::from(nsm.0)].remove_guest(id.0);
            self.is_gone_from(at, usize::from(nsm.0));
        }
    }

    pub(super) fn is_gone_from(&mut self, at: usize, nsm: usize) {
        let t = &mut self.tenants[at];
        let Some(shared) = &t.ledger else { return };
        shared.ledger.of_service(nsm as u8).clear();
        if t.nsm == nsm {
            return;
        }
        t.old = None;
        let (id, present) = (t.id, t.nsm);
        if !self.is_down[present] {
            while !self.w.services[present].settle(self.w.now_ms * 1_000_000, &mut || {}) {
                self.w.poll_engine();
            }
            self.w.services[present].be_alone(id.0);
        }
        self.tenants[at].ledger = None;
    }
}
