//! The deaths of the simulation: of an NSM, of the daemon with all, and of the daemon alone.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use nk_device::Layout;
use nk_device::cell::{SF_CONNECTED, SF_DEAD, SF_EOF};
use nk_engine::{
    AdoptedListener, AdoptedRow, Adoption, Engine, GuestId, GuestSetup, KeptGuest, NsmId,
};
use nk_servicelib::{GuestPool, Key, Service};

use super::region::Region;
use super::shell::Shell;
use super::simulation::{Killed, NSMS, Part, Simulation};
use super::stack::MemoryStack;
use super::world::World;

impl Simulation {
    pub(super) fn nsm_dies(&mut self, nsm: usize) {
        if self.is_down[nsm] {
            return;
        }
        self.is_down[nsm] = true;
        self.life += 1;
        self.kept[nsm] = std::mem::take(&mut self.w.services[nsm].stack_mut().kept);
        self.net.borrow_mut().end_stack(nsm as u8);
        let id = NsmId(nsm as u8);
        let listeners = self.w.engine.nsm_dead(id, &mut self.w.bells).expect("known");
        // Nothing of it is looked at again.
        self.begin_service(nsm);
        for (guest, l) in listeners {
            let key = Key { guest: guest.0, socket: l.socket, generation: l.generation };
            let present = self.tenants.iter().find(|t| t.id == guest).expect("known").nsm;
            self.give(present, nsm, key, &l);
        }
        for at in 0..self.tenants.len() {
            if self.tenants[at].ledger.is_some() {
                self.is_gone_from(at, nsm);
            }
        }
    }

    /// A fresh service of an NSM, which knows no guest.
    fn begin_service(&mut self, nsm: usize) {
        let stack = MemoryStack::on(Rc::clone(&self.net), nsm as u8, None);
        self.nsms.push(Region::new(Layout::NSM, 0));
        self.devices[nsm] = self.nsms.last().expect("just made").device;
        self.w.services[nsm] = Service::new(stack, self.devices[nsm]);
    }

    /// The next NSM, with the listeners whose descriptors the keeper has.
    pub(super) fn nsm_returns(&mut self, nsm: usize) {
        self.is_down[nsm] = false;
        for t in self.tenants.iter().filter(|t| t.nsm == nsm) {
            let ledger = t.ledger.as_ref().map(|l| l.ledger.of_service(nsm as u8));
            if ledger.is_none() {
                // What a process has taken from its grants, nobody leases to it any more.
                t.processes.iter().for_each(|p| p.spare.borrow_mut().clear());
            }
            self.w.services[nsm].add_guest(GuestPool { ledger, ..World::pool(&t.region, t.id) });
        }
        let device = self.devices[nsm];
        let listeners = self.w.engine.nsm_back(NsmId(nsm as u8), device).expect("known");
        for (guest, l) in listeners {
            let key = Key { guest: guest.0, socket: l.socket, generation: l.generation };
            self.give(nsm, nsm, key, &l);
        }
    }

    /// Gives an NSM a listener that was kept of one that died.
    fn give(&mut self, to: usize, of: usize, key: Key, l: &AdoptedListener) {
        let kept = self.kept[of].get(&key.to_word());
        let fd = kept.map(|(addr, _)| MemoryStack::kept_descriptor(addr));
        // One in four is missing.
        let given = fd
            .filter(|_| self.random.below(4) != 0)
            .map(|fd| self.w.services[to].adopt_listener(key, fd, l.backlog));
        if !matches!(given, Some(Ok(()))) {
            let (id, bells) = (GuestId(key.guest), &mut self.w.bells);
            let _ = self.w.engine.listener_lost(id, key.socket, key.generation, bells);
        }
    }

    /// Engine and services are gone, devices and kept listeners stay.
    pub(super) fn daemon_dies(&mut self) {
        self.life += 1;
        self.w.bells.left.clear();
        self.w.engine = Engine::new();
        for nsm in 0..NSMS {
            if !self.is_down[nsm] {
                self.kept[nsm] = std::mem::take(&mut self.w.services[nsm].stack_mut().kept);
                self.net.borrow_mut().end_stack(nsm as u8);
            }
            self.is_down[nsm] = false;
            self.begin_service(nsm);
            self.w.engine.add_nsm(NsmId(nsm as u8), self.devices[nsm]).expect("nsm");
        }
        for at in 0..self.tenants.len() {
            let t = &mut self.tenants[at];
            (t.old, t.ledger) = (None, None);
            t.processes.iter().for_each(|p| p.spare.borrow_mut().clear());
            let (t, nsm) = (&self.tenants[at], self.tenants[at].nsm);
            self.w.services[nsm].add_guest(World::pool(&t.region, t.id));
            let all = self.kept.iter().flatten();
            let of_guest = all.filter(|(word, _)| Key::from_word(**word).guest == t.id.0);
            let mut listeners: Vec<AdoptedListener> = of_guest
                .map(|(word, (local, backlog))| {
                    let key = Key::from_word(*word);
                    let (socket, generation) = (key.socket, key.generation);
                    AdoptedListener { socket, generation, local: *local, backlog: *backlog }
                })
                .collect();
            listeners.sort_by_key(|l| (l.socket, l.generation));
            listeners.dedup_by_key(|l| (l.socket, l.generation));
            self.adopt(at, listeners.clone(), None);
            let guest = self.tenants[at].id.0;
            for l in listeners {
                let key = Key { guest, socket: l.socket, generation: l.generation };
                if !self.w.engine.is_listener(GuestId(guest), l.socket, l.generation) {
                    continue;
                }
                let of = usize::from(self.kept[1].contains_key(&key.to_word()));
                self.give(nsm, of, key, &l);
            }
        }
    }

    fn adopt(&mut self, at: usize, listeners: Vec<AdoptedListener>, kept: Option<KeptGuest>) {
        let t = &self.tenants[at];
        let row = |p: &Shell| AdoptedRow { row: p.row, pid: 100, qsets: vec![p.qset] };
        let rows = t.processes.iter().map(row).collect();
        let adoption = Adoption { rows, listeners, holds: Vec::new(), kept };
        let (nsm, limits) = (NsmId(t.nsm as u8), t.limits);
        let setup = GuestSetup { nsm, limits, ..World::setup(&t.region, t.id) };
        self.w.engine.adopt_guest(setup, &adoption, &mut self.w.bells).expect("adopt");
    }

    /// The engine is gone, perhaps in the middle of a poll; service, stack and connections live.
    pub(super) fn engine_dies(&mut self) {
        if self.is_down != [false; NSMS] {
            return;
        }
        self.dies_in.set(Some(self.random.below(12)));
        if let Err(how) = catch_unwind(AssertUnwindSafe(|| self.w.poll_engine()))
            && !how.is::<Killed>()
        {
            resume_unwind(how);
        }
        self.dies_in.set(None);
        // What a guest left on another NSM ends with the daemon.
        let mut left = HashSet::new();
        for t in &self.tenants {
            let flows = self.w.engine.flows(Some(t.id)).into_iter();
            let elsewhere = flows.filter(|f| usize::from(f.nsm.0) != t.nsm);
            left.extend(elsewhere.map(|f| (t.id.0, f.socket)));
        }
        self.w.bells.left.clear();
        self.w.engine = Engine::new();
        // Without an engine: the service goes on, and processes end.
        for _ in 0..self.random.below(3) {
            self.w.poll_service();
        }
        for t in &mut self.tenants {
            if t.processes.len() > 1 && self.random.below(3) == 0 {
                let dead = t.processes.swap_remove(self.random.below(t.processes.len()));
                t.open.retain(|o| o.row != dead.row);
            }
        }
        if self.random.below(3) == 0 {
            let at = self.random.below(self.tenants.len());
            self.draw_limits(at);
        }
        let living: HashSet<_> = self.living().difference(&left).copied().collect();
        let mut told = Vec::new();
        for nsm in 0..NSMS {
            self.nsms.push(Region::new(Layout::NSM, 0));
            self.devices[nsm] = self.nsms.last().expect("just made").device;
            let words = self.w.services[nsm].keep(self.devices[nsm], self.w.now_ms * 1_000_000);
            told.push(KeptGuest::parse(&words).expect("complete"));
            self.w.engine.adopt_nsm(NsmId(nsm as u8), self.devices[nsm]).expect("nsm");
        }
        let goes_on = self.random.below(2) == 0;
        for at in 0..self.tenants.len() {
            let t = &mut self.tenants[at];
            let (id, nsm) = (t.id, t.nsm);
            let kept = told[nsm].iter().find(|(guest, _)| *guest == id).map(|(_, k)| k.clone());
            assert!(kept.is_some(), "the service knows guest {}", id.0);
            self.w.services[nsm].be_alone(id.0);
            (t.old, t.ledger) = (None, None);
            self.adopt(at, Vec::new(), kept);
            // Guests and service go on; the engine serves, and does not hear yet.
            if goes_on {
                self.w.poll_service();
                self.accept(at);
                self.send(at);
                self.receive(at);
                self.w.poll_engine();
            }
        }
        for nsm in 0..NSMS {
            self.w.engine.hear_nsm(NsmId(nsm as u8)).expect("nsm");
        }
        if goes_on {
            // What was closed at one end before has come to the other by now.
            return;
        }
        let now = self.living();
        let open = |(guest, id): &&(u16, u32)| {
            let its = self.tenants.iter().find(|t| t.id.0 == *guest);
            its.is_some_and(|t| t.open.iter().any(|o| o.id == *id))
        };
        let lost = living.difference(&now).find(open);
        assert_eq!(lost, None, "it was to live on");
    }

    /// Connections that live.
    fn living(&self) -> HashSet<(u16, u32)> {
        let mut found = HashSet::new();
        for t in &self.tenants {
            for o in &t.open {
                let state = t.state(o.id);
                if o.part != Part::Listener
                    && state & SF_CONNECTED != 0
                    && state & (SF_DEAD | SF_EOF) == 0
                {
                    found.insert((t.id.0, o.id));
                }
            }
        }
        found
    }
}
