//! The deaths of the simulation: of the NSM, of the daemon with it, and of the daemon alone.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use nk_device::Layout;
use nk_device::cell::{SF_CONNECTED, SF_DEAD, SF_EOF};
use nk_engine::{AdoptedListener, AdoptedRow, Adoption, Engine, GuestId, KeptGuest};
use nk_servicelib::{Key, Service};

use super::region::Region;
use super::shell::Shell;
use super::simulation::{Killed, Part, Simulation, stack};
use super::stack::MemoryStack;
use super::world::{NSM, World};

impl Simulation {
    pub(super) fn nsm_dies(&mut self) {
        if self.is_down {
            return;
        }
        self.is_down = true;
        self.w.engine.nsm_dead(NSM, &mut self.w.bells).expect("known");
    }

    /// The next NSM, with the listeners whose descriptors the keeper has.
    pub(super) fn nsm_returns(&mut self) {
        self.is_down = false;
        let kept = self.next_service();
        let device = self.nsms.last().expect("an NSM's device").device;
        let listeners = self.w.engine.nsm_back(NSM, device).expect("known");
        self.w.service = Service::new(stack(self.life), device);
        for t in &self.tenants {
            self.w.service.add_guest(World::pool(&t.region, t.id));
        }
        for (guest, l) in listeners {
            let key = Key { guest: guest.0, socket: l.socket, generation: l.generation };
            self.give(key, &l, &kept);
        }
    }

    fn give(&mut self, key: Key, l: &AdoptedListener, kept: &HashMap<u64, (nk_device::Addr, u32)>) {
        let fd = kept.get(&key.to_word()).map(|(addr, _)| MemoryStack::kept_descriptor(addr));
        // One in four is missing.
        let given = fd
            .filter(|_| self.random.below(4) != 0)
            .map(|fd| self.w.service.adopt_listener(key, fd, l.backlog));
        if !matches!(given, Some(Ok(()))) {
            let (id, bells) = (GuestId(key.guest), &mut self.w.bells);
            let _ = self.w.engine.listener_lost(id, key.socket, key.generation, bells);
        }
    }

    /// Ends the present service; what its listeners were.
    fn next_service(&mut self) -> HashMap<u64, (nk_device::Addr, u32)> {
        self.life += 1;
        // What a process has taken from its grants, nobody leases to it any more.
        for p in self.tenants.iter().flat_map(|t| &t.processes) {
            p.spare.borrow_mut().clear();
        }
        self.nsms.push(Region::new(Layout::NSM, 0));
        std::mem::take(&mut self.w.service.stack_mut().kept)
    }

    /// Engine and service are gone, devices and kept listeners stay.
    pub(super) fn daemon_dies(&mut self) {
        self.is_down = false;
        let kept = self.next_service();
        let device = self.nsms.last().expect("an NSM's device").device;
        self.w.engine = Engine::new();
        self.w.engine.add_nsm(NSM, device).expect("nsm");
        self.w.service = Service::new(stack(self.life), device);
        for at in 0..self.tenants.len() {
            let t = &self.tenants[at];
            self.w.service.add_guest(World::pool(&t.region, t.id));
            let of_guest = kept.iter().filter(|(word, _)| Key::from_word(**word).guest == t.id.0);
            let mut listeners: Vec<AdoptedListener> = of_guest
                .map(|(word, (local, backlog))| {
                    let key = Key::from_word(*word);
                    let (socket, generation) = (key.socket, key.generation);
                    AdoptedListener { socket, generation, local: *local, backlog: *backlog }
                })
                .collect();
            listeners.sort_by_key(|l| l.socket);
            self.adopt(at, listeners.clone(), None);
            let guest = self.tenants[at].id.0;
            for l in listeners {
                let key = Key { guest, socket: l.socket, generation: l.generation };
                if !self.w.engine.is_listener(GuestId(guest), l.socket, l.generation) {
                    continue;
                }
                self.give(key, &l, &kept);
            }
        }
    }

    fn adopt(&mut self, at: usize, listeners: Vec<AdoptedListener>, kept: Option<KeptGuest>) {
        let t = &self.tenants[at];
        let row = |p: &Shell| AdoptedRow { row: p.row, pid: 100, qsets: vec![p.qset] };
        let rows = t.processes.iter().map(row).collect();
        let adoption = Adoption { rows, listeners, holds: Vec::new(), kept };
        let setup = World::setup(&t.region, t.id);
        self.w.engine.adopt_guest(setup, &adoption, &mut self.w.bells).expect("adopt");
    }

    /// The engine is gone, perhaps in the middle of a poll; service, stack and connections live.
    pub(super) fn engine_dies(&mut self) {
        if self.is_down {
            return;
        }
        self.dies_in.set(Some(self.random.below(12)));
        if let Err(how) = catch_unwind(AssertUnwindSafe(|| self.w.poll_engine()))
            && !how.is::<Killed>()
        {
            resume_unwind(how);
        }
        self.dies_in.set(None);
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
        let living = self.living();
        self.nsms.push(Region::new(Layout::NSM, 0));
        let device = self.nsms.last().expect("an NSM's device").device;
        let words = self.w.service.keep(device, self.w.now_ms * 1_000_000);
        let told = KeptGuest::parse(&words).expect("complete");
        self.w.engine.adopt_nsm(NSM, device).expect("nsm");
        for at in 0..self.tenants.len() {
            let id = self.tenants[at].id;
            let kept = told.iter().find(|(guest, _)| *guest == id).map(|(_, k)| k.clone());
            assert!(kept.is_some(), "the service knows guest {}", id.0);
            self.adopt(at, Vec::new(), kept);
        }
        self.w.engine.hear_nsm(NSM).expect("nsm");
        assert_eq!(self.living().intersection(&living).count(), living.len(), "all live on");
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
