//! Another daemon takes over in the simulation: what goes on is decided by the daemon's own code ([`nk_host::control::adoption`]).

use std::collections::{BTreeMap, HashSet};

use nk_device::cell::{SF_CONNECTED, SF_DEAD, SF_EOF};
use nk_device::{Addr, Layout};
use nk_engine::{AdoptedListener, AdoptedRow, Adoption, Engine, GuestSetup, KeptGuest, NsmId};
use nk_host::control::adoption;
use nk_host::control::moves::Host;
use nk_host::control::place::Place;
use nk_servicelib::Key;

use super::region::Region;
use super::shell::Shell;
use super::simulation::{NSMS, Part, Simulation, State, Tenant};
use super::stack::NOBODY;
use super::world::World;

impl Simulation {
    /// The daemon is dead, and another takes over.
    pub(super) fn next_daemon(&mut self) {
        let elsewhere = self.on_other_nsms();
        self.attaches();
        self.w.bells.left.clear();
        self.w.bells.full.clear();
        self.w.engine = Engine::new();
        // What was on its way from one NSM to another.
        self.net.borrow_mut().end_stack(NOBODY);
        self.meanwhile();
        self.read_config();
        let mut told = Vec::new();
        // It counts no deaths of before.
        self.lives = [Simulation::first_life(self.now()); NSMS];
        for nsm in 0..NSMS {
            let id = NsmId(nsm as u8);
            if self.states[nsm] == State::Absent {
                continue;
            }
            if self.states[nsm] != State::Up {
                self.states[nsm] = State::Up;
                self.begin_service(nsm);
                self.w.engine.add_nsm(id, self.devices[nsm]).expect("nsm");
                continue;
            }
            self.nsms.push(Region::new(Layout::NSM, 0));
            self.devices[nsm] = self.nsms.last().expect("just made").device;
            let words = self.w.services[nsm].keep(self.devices[nsm], self.w.now_ms * 1_000_000);
            let guests = KeptGuest::parse(&words).expect("complete");
            told.extend(guests.into_iter().map(|(guest, kept)| (id, guest, kept)));
            self.w.engine.adopt_nsm(id, self.devices[nsm]).expect("nsm");
        }
        let living: HashSet<_> = self.living().difference(&elsewhere).copied().collect();
        // Their ledgers are looked at until the NSMs know that they are alone.
        let place = |t: &mut Tenant| std::mem::replace(&mut t.place, Place::new(t.noted));
        let _before: Vec<_> = self.tenants.iter_mut().map(place).collect();
        // Guests go on, and so do the services that lived on.
        let goes_on = self.random.below(2) == 0;
        let mut renewed = HashSet::new();
        let entered = adoption::go_on(self, told, |s, guest, kept| {
            let at = s.at(guest).expect("known");
            if kept.is_none() {
                renewed.insert(guest.0);
            }
            s.adopt(at, kept, goes_on);
            // The engine serves, and does not hear yet.
            if goes_on {
                s.w.poll_service();
                s.accept(at);
                s.send(at);
                s.receive(at);
                s.w.poll_engine();
            }
            Ok(())
        });
        entered.expect("nothing is refused");
        for nsm in 0..NSMS {
            // One that was just started is heard at once.
            let _ = self.w.engine.hear_nsm(NsmId(nsm as u8));
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
        let goes_on = |(guest, _): &&(u16, u32)| !renewed.contains(guest);
        let lost = living.difference(&now).filter(goes_on).find(open);
        assert_eq!(lost, None, "it was to live on");
    }

    /// What a guest has on another NSM than that on which it is, as far as the keeper knows.
    fn on_other_nsms(&self) -> HashSet<(u16, u32)> {
        let mut found = HashSet::new();
        for t in &self.tenants {
            let flows = self.w.engine.flows(Some(t.id)).into_iter();
            let elsewhere = flows.filter(|f| f.nsm != t.noted);
            found.extend(elsewhere.map(|f| (t.id.0, f.socket)));
        }
        found
    }

    /// Processes that were just attaching: the keeper knows of one, or it asks the next daemon again.
    fn attaches(&mut self) {
        if self.is_over {
            return;
        }
        let at = self.random.below(self.tenants.len());
        match self.random.below(4) {
            0 => self.fork(at),
            1 => {
                let _ = self.w.engine.add_row(self.tenants[at].id, 400);
            }
            _ => return,
        }
        if self.random.below(2) == 0 {
            self.w.poll_engine();
        }
    }

    /// Without an engine: the services go on, processes end, and somebody changes what the configuration says.
    fn meanwhile(&mut self) {
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
    }

    /// What the keeper has of a guest's listeners.
    fn kept_listeners(&mut self, guest: u16) -> BTreeMap<u64, (Addr, u32)> {
        let living = self.w.services.iter_mut().map(|s| &s.stack_mut().kept);
        let all = living.chain(&self.kept).chain([&self.given]).flatten();
        let its = all.filter(|(word, _)| Key::from_word(**word).guest == guest);
        its.map(|(word, l)| (*word, *l)).collect()
    }

    /// As `Server::enter_guest`.
    fn adopt(&mut self, at: usize, kept: Option<KeptGuest>, goes_on: bool) {
        let (id, nsm) = (self.tenants[at].id, self.tenants[at].place.nsm());
        let listeners = self.kept_listeners(id.0);
        let listens = |word: &u64| {
            let key = Key::from_word(*word);
            kept.as_ref().is_some_and(|k| k.listens(key.socket, key.generation))
        };
        let lacking: BTreeMap<_, _> =
            listeners.into_iter().filter(|(word, _)| !listens(word)).collect();
        let listeners = lacking.iter().map(|(word, (local, backlog))| {
            let key = Key::from_word(*word);
            let (socket, generation) = (key.socket, key.generation);
            AdoptedListener { socket, generation, local: *local, backlog: *backlog }
        });
        let listeners = listeners.collect();
        if kept.is_some() && !goes_on {
            // As below, and no connection hears that its other end is gone.
            self.w.services[usize::from(nsm.0)].be_alone(id.0);
        } else if kept.is_some() {
            self.alone(nsm, id).expect("nothing is refused");
        } else {
            self.add(nsm, id).expect("nothing is refused");
        }
        let t = &self.tenants[at];
        let row = |p: &Shell| AdoptedRow { row: p.row, pid: 100, qsets: vec![p.qset] };
        let rows = t.processes.iter().map(row).collect();
        let adoption = Adoption { rows, listeners, holds: Vec::new(), kept };
        let setup = GuestSetup { nsm, limits: t.limits.engine(), ..World::setup(&t.region, t.id) };
        self.w.engine.adopt_guest(setup, &adoption, &mut self.w.bells).expect("adopt");
        self.limit(id).expect("nothing is refused");
        self.spread(at);
        for (word, (local, backlog)) in lacking {
            let key = Key::from_word(word);
            if self.w.engine.is_listener(id, key.socket, key.generation) {
                self.kept[usize::from(nsm.0)].insert(word, (local, backlog));
                if !self.give_kept(nsm, nsm, key, backlog).expect("nothing is refused") {
                    let bells = &mut self.w.bells;
                    let _ = self.w.engine.listener_lost(id, key.socket, key.generation, bells);
                }
            }
        }
        self.given.retain(|word, _| Key::from_word(*word).guest != id.0);
    }

    /// Connections that live.
    fn living(&self) -> HashSet<(u16, u32)> {
        let mut found = HashSet::new();
        for t in &self.tenants {
            for o in &t.open {
                let state = t.state(o.id);
                // A datagram socket is made again.
                if matches!(o.part, Part::Client | Part::Server)
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
