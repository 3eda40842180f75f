//! Another daemon takes over in the simulation, by what the keeper has: what goes on is decided by the daemon's own code
//! ([`nk_host::control::adoption`]), and read as it reads it ([`nk_host::keeper::book`]). It may end in the middle of that, too.

use std::collections::{BTreeMap, HashSet};
use std::io;

use nk_attach::{Kind, Message};
use nk_device::Layout;
use nk_device::cell::{SF_CONNECTED, SF_DEAD, SF_EOF};
use nk_device::header::{ENGINE_AWAY, ENGINE_UP};
use nk_engine::{Adoption, Engine, GuestId, GuestSetup, KeptGuest, NsmId};
use nk_host::control::adoption::{self, Host, nsm_goes_on};
use nk_host::control::members::Members;
use nk_host::control::moves::Host as _;
use nk_host::control::place::Place;
use nk_host::control::restarts::{self, Restarts};
use nk_host::keeper::book::{self, OfGuest, OfListener, Said};
use nk_host::keeper::entries::Entries;
use nk_host::keeper::link::Link;
use nk_host::keeper::{CLASS_GUEST, CLASS_NSM, Entry};
use nk_servicelib::Key;

use super::daemon::{Daemon, nsm_named};
use super::kernel::Fd;
use super::region::Region;
use super::simulation::{NSMS, Simulation, State};
use super::stack::NOBODY;
use super::tenant::Part;
use super::world::World;

type Prepared = adoption::Prepared<Fd>;

impl Simulation {
    /// The daemon takes over what the keeper has. `elsewhere`: connections that are not to live on.
    pub(super) fn take_over(&mut self, elsewhere: &HashSet<(u16, u32)>) {
        let entries = self.take_back();
        self.config = self.file.clone();
        // It counts no deaths of before.
        self.lives = [Simulation::first_life(self.now()); NSMS];
        let (nsms, entries): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|e| e.class == CLASS_NSM);
        let kernel = &self.kernel;
        let kept = book::read(entries, |fd| kernel.is_end(fd));
        self.only(|guest| kept.contains_key(&guest.0));
        // On an NSM that is to be no more: it may have been on its way to the one that it gets.
        let is_moved: HashSet<u16> = kept
            .iter()
            .filter(|(_, g)| g.as_ref().is_some_and(|g| !self.config.has_named(&g.said.nsm)))
            .map(|(id, _)| *id)
            .collect();
        let mut prepared: BTreeMap<GuestId, Prepared> = kept
            .into_iter()
            .map(|(id, kept)| {
                (GuestId(id), self.prepare(kept.unwrap_or_else(|| panic!("guest {id}"))))
            })
            .collect();
        let told = self.adopt_nsms(nsms);
        // What these let go when they forgot guests that had just come to them.
        self.net.borrow_mut().end_stack(NOBODY);
        self.start_nsms();
        let living: HashSet<_> = self.living().difference(elsewhere).copied().collect();
        // Guests go on, and so do the services that lived on.
        let goes_on = self.random.below(2) == 0;
        self.is_quiet = !goes_on;
        let mut renewed = HashSet::new();
        let entered = adoption::go_on(self, told, |s, guest, kept| {
            let at = s.at(guest).expect("known");
            if kept.is_none() || is_moved.contains(&guest.0) {
                renewed.insert(guest.0);
            }
            let state = s.tenants[at].engine_state();
            assert!(
                kept.is_none()
                    || matches!(state, ENGINE_AWAY | ENGINE_UP)
                    || is_moved.contains(&guest.0),
                "guest {} was told that its connections are lost, and they live: {state}",
                guest.0
            );
            let p = prepared.remove(&guest).expect("the keeper has it");
            adoption::enter(s, p, kept)?;
            assert_eq!(s.tenants[at].engine_state(), ENGINE_UP);
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
        self.is_quiet = false;
        for nsm in 0..NSMS {
            // One that was just started is heard at once.
            let _ = self.w.engine.hear_nsm(NsmId(nsm as u8));
        }
        self.before.clear();
        // Else what was closed at one end before has come to the other by now.
        if !goes_on {
            let now = self.living();
            let open = |(guest, id): &&(u16, u32)| {
                let its = self.tenants.iter().find(|t| t.id.0 == *guest);
                its.is_some_and(|t| t.open.iter().any(|o| o.id == *id))
            };
            let goes_on = |(guest, _): &&(u16, u32)| !renewed.contains(guest);
            let lost = living.difference(&now).filter(goes_on).find(open);
            assert_eq!(lost, None, "it was to live on");
        }
        for guest in self.guests() {
            self.spread(guest).expect("nothing is refused");
        }
        self.assert_holds();
    }

    /// As `Keeper::find`: everything that the keeper has, and a copy of it.
    fn take_back(&mut self) -> Vec<Entry<Fd>> {
        let (mut entries, mut copies) = (Vec::new(), Entries::default());
        {
            let mut keeper = self.keeper.0.borrow_mut();
            let state = keeper.as_mut().expect("it lives");
            assert!(state.connected(), "the last daemon has ended");
            assert!(state.message(Message::new(Kind::Kept), Vec::new()), "it tells");
            for (_, e) in state.entries().after(None) {
                entries.push(Entry::new(&e.message, e.fds.clone()));
                copies.keep(e.message, e.fds.clone());
            }
        }
        self.daemon = Daemon::new(Link::new(self.keeper.clone(), copies));
        self.keeper_life = Restarts::new(restarts::KEEPER, self.now());
        self.w.engine = Engine::new();
        self.w.bells.left.clear();
        self.w.bells.full.clear();
        // What was on its way from one NSM to another.
        self.net.borrow_mut().end_stack(NOBODY);
        entries
    }

    /// Guests of which the keeper knows nothing had ended.
    fn only(&mut self, has: impl Fn(GuestId) -> bool) {
        let gone: Vec<usize> =
            (0..self.tenants.len()).rev().filter(|at| !has(self.tenants[*at].id)).collect();
        for at in gone {
            let t = self.tenants.swap_remove(at);
            assert!(t.processes.is_empty(), "guest {} is not kept", t.id.0);
            for service in &mut self.w.services {
                service.remove_guest(t.id.0);
            }
        }
    }

    /// As `Server::prepare_guest`.
    fn prepare(&mut self, kept: OfGuest<Fd>) -> Prepared {
        let at = self.at(kept.id).expect("it was made");
        let Said { uid, limits, nsm, name, .. } = kept.said.clone();
        let first = (0..NSMS).find(|nsm| self.config.has(*nsm)).expect("one serves");
        // Where it was, if there still is such an NSM.
        let nsm = self.config.has_named(&nsm).then(|| nsm_named(&nsm));
        let t = &mut self.tenants[at];
        assert_eq!(
            (uid, kept.token, &*name),
            (t.members.uid, t.members.token, &*t.id.0.to_string())
        );
        (t.members, t.limits, t.spread) = (Members::new(kept.token, uid), limits, None);
        let place = Place::new(nsm.unwrap_or(NsmId(first as u8)));
        // Their ledgers are looked at until the NSMs know that they are alone.
        self.before.push(std::mem::replace(&mut t.place, place));
        adoption::prepare(self, kept, nsm.is_some()).expect("nothing is refused")
    }

    /// As `Server::adopt_nsms`.
    fn adopt_nsms(&mut self, entries: Vec<Entry<Fd>>) -> Vec<(NsmId, GuestId, KeptGuest)> {
        let mut told = Vec::new();
        for e in entries {
            let (id, pid) = (nsm_named(&e.text), e.key as i32);
            let nsm = usize::from(id.0);
            let has_one = self.config.has(nsm).then_some(self.daemon.nsms[nsm] != 0);
            let has_ended = self.kernel.is_end(e.fds.last().expect("a pidfd"));
            if let Err(why) = nsm_goes_on(has_ended, has_one, e.d, 0) {
                assert!(has_ended || !self.config.has(nsm), "{why}");
                if !has_ended {
                    self.nsm_ends(nsm);
                    self.see("next daemon without an NSM");
                }
                self.drop_entry(e.class, e.key);
                continue;
            }
            assert_eq!((self.states[nsm], self.nsm_pids[nsm]), (State::Up, pid));
            self.nsms.push(Region::new(Layout::NSM, 0));
            self.devices[nsm] = self.nsms.last().expect("just made").device;
            let words = self.w.services[nsm].keep(self.devices[nsm], self.w.now_ms * 1_000_000);
            let guests = KeptGuest::parse(&words).expect("complete");
            told.extend(guests.into_iter().map(|(guest, kept)| (id, guest, kept)));
            self.w.engine.adopt_nsm(id, self.devices[nsm]).expect("nsm");
            self.note_nsm(nsm, pid);
            self.take_notes(nsm);
        }
        told
    }

    /// As `Server::start_nsms`.
    pub(super) fn start_nsms(&mut self) {
        for nsm in 0..NSMS {
            if !self.config.has(nsm) {
                self.states[nsm] = State::Absent;
            } else if self.daemon.nsms[nsm] == 0 {
                self.begin_service(nsm);
                self.states[nsm] = State::Up;
                self.w.engine.add_nsm(NsmId(nsm as u8), self.devices[nsm]).expect("nsm");
                self.nsm_serves(nsm);
            }
        }
    }

    /// What a guest has on another NSM than that on which it is, as far as the keeper knows.
    pub(super) fn on_other_nsms(&self) -> HashSet<(u16, u32)> {
        let mut found = HashSet::new();
        for t in &self.tenants {
            let noted = self.noted(t.id);
            let flows = self.w.engine.flows(Some(t.id)).into_iter();
            let elsewhere = flows.filter(|f| Some(f.nsm) != noted);
            found.extend(elsewhere.map(|f| (t.id.0, f.socket)));
        }
        found
    }

    /// Where the keeper has a guest.
    pub(super) fn noted(&self, guest: GuestId) -> Option<NsmId> {
        self.keeper.has(|entries| {
            let e = entries.get(CLASS_GUEST, guest.0.into())?;
            Some(nsm_named(&e.message.text().and_then(Said::from_text)?.nsm))
        })
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

impl Host for Simulation {
    fn adopt_guest(&mut self, guest: GuestId, adoption: Adoption) -> io::Result<()> {
        let t = &self.tenants[self.at(guest).expect("known")];
        let (nsm, limits) = (t.place.nsm(), t.limits.engine());
        let setup = GuestSetup { nsm, limits, ..World::setup(&t.region, t.id) };
        let adopted = self.engine(move |e, notify| e.adopt_guest(setup, &adoption, notify))?;
        adopted.map_err(io::Error::other)
    }
    fn set_listen(&mut self, _: GuestId) -> io::Result<()> {
        Ok(())
    }
    fn remember_listener(&mut self, nsm: NsmId, l: OfListener<Fd>) {
        let its = &mut self.daemon.listeners[usize::from(nsm.0)];
        its.insert(l.key.to_word(), (l.local, l.backlog));
    }
    fn give_listener(&mut self, nsm: NsmId, l: OfListener<Fd>) -> io::Result<bool> {
        self.give_to(nsm, l.key, l.local, l.backlog)
    }
    fn forget_listener(&mut self, key: Key) {
        self.note_listener_gone(key);
    }
}
