//! Guests of the simulation that come and go, and their limits.

use std::io;

use nk_engine::{GuestId, GuestSetup, NsmId};
use nk_host::control::moves::Host as _;
use nk_host::limits::GuestLimits;

use super::region::Region;
use super::simulation::{GUESTS, LAYOUT, NSMS, Simulation, State};
use super::tenant::Tenant;
use super::world::World;

impl Simulation {
    /// Numbers go up: what is on an NSM's rings of a guest that left must not reach another. Nothing ends meanwhile.
    pub(super) fn enter(&mut self) {
        self.entered += 1;
        let id = GuestId(self.entered);
        let region = Region::new(LAYOUT, id.0);
        let nsm = (0..NSMS).find(|nsm| self.states[*nsm] == State::Up).expect("one serves");
        self.w.services[nsm].add_guest(World::pool(&region, id));
        let nsm = NsmId(nsm as u8);
        let setup = GuestSetup { nsm, ..World::setup(&region, id) };
        self.w.engine.add_guest(setup).expect("guest");
        self.tenants.push(Tenant::new(id, region, nsm, 1000 + u32::from(id.0)));
        let at = self.tenants.len() - 1;
        let is_over = std::mem::replace(&mut self.is_over, true);
        self.note_guest(at);
        self.says_spread(at);
        self.spawn(at);
        self.is_over = is_over;
    }

    /// The configuration says from the beginning whether a guest is spread.
    pub(super) fn says_spread(&mut self, at: usize) {
        if self.is_spread {
            let id = self.tenants[at].id;
            self.config.list(id, (0..NSMS).collect());
            self.file.list(id, (0..NSMS).collect());
        }
        let id = self.tenants[at].id;
        self.spread(id).expect("nothing is refused");
    }

    pub(super) fn change_limits(&mut self, at: usize) {
        self.draw_limits(at);
        self.act(|s| s.set_limits(at));
    }

    pub(super) fn set_limits(&mut self, at: usize) -> io::Result<()> {
        let (id, limits) = (self.tenants[at].id, self.tenants[at].limits.engine());
        self.engine(move |e, _| e.set_limits(id, limits))?.map_err(io::Error::other)?;
        self.limit(id)
    }

    pub(super) fn draw_limits(&mut self, at: usize) {
        self.tenants[at].limits = self.some_limits();
    }

    pub(super) fn some_limits(&mut self) -> GuestLimits {
        let mut rate = |per_s: u64| if self.random.below(2) == 0 { per_s } else { 0 };
        let (nqes_per_s, connections_per_s) = (rate(20_000), rate(200));
        let (out, input) = (rate(2_000_000), rate(2_000_000));
        let weight = 1 + self.random.below(4) as u32;
        GuestLimits {
            out,
            input,
            nqes_per_s,
            connections_per_s,
            weight,
            burst_ms: 100,
            ..GuestLimits::default()
        }
    }

    /// All processes of a guest end, and another comes.
    pub(super) fn leave_and_enter(&mut self, at: usize) {
        if !self.states.contains(&State::Up) {
            return;
        }
        for p in self.tenants[at].processes.clone() {
            self.dies(p.pid);
        }
        self.hear_all();
        let id = self.tenants[at].id;
        self.act(|s| s.remove_guest(id));
        self.enter_missing();
    }

    /// There are always as many.
    pub(super) fn enter_missing(&mut self) {
        while self.tenants.len() < usize::from(GUESTS) && self.states.contains(&State::Up) {
            self.enter();
        }
    }
}
