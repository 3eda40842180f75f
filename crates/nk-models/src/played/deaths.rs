//! The deaths of the simulation: of an NSM, of the daemon with all, and of the daemon alone.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use nk_device::Layout;
use nk_device::cell::{SF_CONNECTED, SF_DEAD, SF_EOF};
use nk_engine::{
    AdoptedListener, AdoptedRow, Adoption, Engine, GuestId, GuestSetup, KeptGuest, NsmId,
};
use nk_host::control::moves::{self, Host};
use nk_host::control::place::Place;
use nk_servicelib::{Key, Service};

use super::region::Region;
use super::shell::Shell;
use super::simulation::{Killed, NSMS, Part, Simulation, State};
use super::stack::MemoryStack;
use super::world::World;

impl Simulation {
    /// An NSM dies, and the control thread hears of it.
    pub(super) fn nsm_dies(&mut self, nsm: usize) {
        if self.states[nsm] != State::Up {
            return;
        }
        self.nsm_ends(nsm);
        self.states[nsm] = State::Down;
        moves::nsm_died(self, NsmId(nsm as u8)).expect("nothing is refused");
    }

    /// An NSM's process ends. Nothing of it is looked at again.
    fn nsm_ends(&mut self, nsm: usize) {
        self.states[nsm] = State::Dead;
        self.life += 1;
        self.kept[nsm] = std::mem::take(&mut self.w.services[nsm].stack_mut().kept);
        self.net.borrow_mut().end_stack(nsm as u8);
        self.begin_service(nsm);
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
        self.states[nsm] = State::Up;
        let device = self.devices[nsm];
        moves::nsm_back(self, NsmId(nsm as u8), device).expect("nothing is refused");
    }

    /// Engine and services are gone, devices and kept listeners stay.
    pub(super) fn daemon_dies(&mut self) {
        self.life += 1;
        self.w.bells.left.clear();
        self.w.engine = Engine::new();
        for nsm in 0..NSMS {
            if self.states[nsm] == State::Up {
                self.kept[nsm] = std::mem::take(&mut self.w.services[nsm].stack_mut().kept);
                self.net.borrow_mut().end_stack(nsm as u8);
            }
            self.states[nsm] = State::Up;
            self.begin_service(nsm);
            self.w.engine.add_nsm(NsmId(nsm as u8), self.devices[nsm]).expect("nsm");
        }
        for at in 0..self.tenants.len() {
            let t = &mut self.tenants[at];
            t.place = Place::new(t.noted);
            let (id, nsm) = (t.id, t.noted);
            self.add(nsm, id).expect("nothing is refused");
            let t = &self.tenants[at];
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
                let has = |n: &usize| self.kept[*n].contains_key(&key.to_word());
                let of = NsmId((0..NSMS).find(has).unwrap_or_default() as u8);
                if !self.give_kept(of, nsm, key, l.backlog).expect("nothing is refused") {
                    let (id, bells) = (GuestId(guest), &mut self.w.bells);
                    let _ = self.w.engine.listener_lost(id, key.socket, key.generation, bells);
                }
            }
        }
    }

    fn adopt(&mut self, at: usize, listeners: Vec<AdoptedListener>, kept: Option<KeptGuest>) {
        let t = &self.tenants[at];
        let row = |p: &Shell| AdoptedRow { row: p.row, pid: 100, qsets: vec![p.qset] };
        let rows = t.processes.iter().map(row).collect();
        let adoption = Adoption { rows, listeners, holds: Vec::new(), kept };
        let (nsm, limits) = (t.place.nsm(), t.limits.engine());
        let setup = GuestSetup { nsm, limits, ..World::setup(&t.region, t.id) };
        self.w.engine.adopt_guest(setup, &adoption, &mut self.w.bells).expect("adopt");
    }

    /// The engine is gone, perhaps in the middle of a poll; service, stack and connections live.
    pub(super) fn engine_dies(&mut self) {
        if self.states != [State::Up; NSMS] {
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
            let elsewhere = flows.filter(|f| f.nsm != t.place.nsm());
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
            let (id, nsm) = (t.id, usize::from(t.noted.0));
            let kept = told[nsm].iter().find(|(guest, _)| *guest == id).map(|(_, k)| k.clone());
            assert!(kept.is_some(), "the service knows guest {}", id.0);
            self.w.services[nsm].be_alone(id.0);
            self.tenants[at].place = Place::new(NsmId(nsm as u8));
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
