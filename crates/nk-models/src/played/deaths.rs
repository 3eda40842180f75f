//! The deaths of the simulation: of an NSM, of the daemon with all, and of the daemon alone. Any of them may come in the middle of what the
//! control thread does.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Instant;

use nk_device::Layout;
use nk_engine::NsmId;
use nk_host::control::moves;
use nk_host::control::restarts::{self, Restarts};
use nk_servicelib::Service;

use super::region::Region;
use super::simulation::{Killed, NSMS, Simulation, State};
use super::stack::MemoryStack;

/// What ends in the middle of what the control thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    /// The NSM that is being told something.
    Asked,
    /// Any.
    Nsm(usize),
    Daemon,
}

/// Moments of one act of the control thread at which something may end.
const MOMENTS: usize = 16;

impl Simulation {
    /// Something that the control thread does, and in the middle of which something may end.
    pub(super) fn act<E: std::fmt::Debug>(
        &mut self,
        act: impl FnOnce(&mut Simulation) -> Result<(), E>,
    ) {
        if !self.is_over && self.random.below(4) == 0 {
            let victim = match self.random.below(4) {
                0 if self.keeper.is_up => Victim::Daemon,
                1 => Victim::Nsm(self.random.below(NSMS)),
                _ => Victim::Asked,
            };
            self.ends_in = Some((self.random.below(MOMENTS), victim));
        }
        let how = catch_unwind(AssertUnwindSafe(|| act(self)));
        self.ends_in = None;
        match how {
            Ok(done) => done.expect("nothing is refused"),
            Err(how) if how.is::<Killed>() => self.next_daemon(),
            Err(how) => resume_unwind(how),
        }
    }

    /// Between two things that the control thread does; `asked`: which NSM it tells something.
    pub(super) fn moment(&mut self, asked: Option<NsmId>) {
        let Some((left, victim)) = self.ends_in else { return };
        let nsm = match victim {
            Victim::Daemon => None,
            Victim::Nsm(nsm) => Some(nsm),
            Victim::Asked => match asked {
                Some(nsm) => Some(usize::from(nsm.0)),
                None => return,
            },
        };
        self.ends_in = left.checked_sub(1).map(|left| (left, victim));
        if left > 0 {
            return;
        }
        match nsm {
            Some(nsm) if self.states[nsm] == State::Up => self.nsm_ends(nsm),
            Some(_) => {}
            // No panic: nothing is printed.
            None => resume_unwind(Box::new(Killed)),
        }
    }

    /// An NSM's process ends, of which the control thread hears later. Nothing of it is looked at again.
    pub(super) fn nsm_ends(&mut self, nsm: usize) {
        if self.states[nsm] != State::Up {
            return;
        }
        self.states[nsm] = State::Dead;
        self.life += 1;
        self.kept[nsm] = std::mem::take(&mut self.w.services[nsm].stack_mut().kept);
        self.net.borrow_mut().end_stack(nsm as u8);
        self.begin_service(nsm);
    }

    /// The control thread hears of an NSM's death.
    pub(super) fn nsm_died(&mut self, nsm: usize) {
        self.states[nsm] = State::Down;
        let now = self.now();
        let rest = self.lives[nsm].died(now);
        assert!(rest <= restarts::NSM.rest_max, "{rest:?}");
        self.act(|s| moves::nsm_died(s, NsmId(nsm as u8)));
    }

    /// An NSM that did not die yet, as far as the daemon knows.
    pub(super) fn first_life(now: Instant) -> Restarts {
        Restarts::new(restarts::NSM, now)
    }

    /// A fresh service of an NSM, which knows no guest.
    pub(super) fn begin_service(&mut self, nsm: usize) {
        let stack = MemoryStack::on(Rc::clone(&self.net), nsm as u8, None);
        self.nsms.push(Region::new(Layout::NSM, 0));
        self.devices[nsm] = self.nsms.last().expect("just made").device;
        self.w.services[nsm] = Service::new(stack, self.devices[nsm]);
    }

    /// The next NSM starts when it is due, and sometimes cannot.
    pub(super) fn nsm_is_due(&mut self, nsm: usize) {
        let now = self.now();
        let due = self.lives[nsm].due().expect("one that is down is started again");
        if self.lives[nsm].take_due(now) && !self.is_over && self.random.below(6) == 0 {
            assert!(!self.lives[nsm].failed(now).is_zero(), "it is tried again at once");
        } else if due <= now {
            self.nsm_returns(nsm);
        } else {
            // Time passes.
            self.w.now_ms += (due - now).as_millis() as u64;
        }
    }

    /// The keeper ends: until there is another, guests would not survive the daemon, which does not die then.
    pub(super) fn keeper_ends(&mut self) {
        let now = self.now();
        if self.keeper.is_up {
            self.keeper.is_up = false;
            self.keeper.life.died(now);
        }
    }

    /// Another keeper starts when it is due, has everything, and perhaps ends at once.
    pub(super) fn keeper_is_due(&mut self) {
        let now = self.now();
        if self.keeper.is_up {
            return;
        }
        let due = self.keeper.life.due().expect("one that ended is started again");
        assert!(due <= now + restarts::KEEPER.rest_max, "it rests for too long");
        if !self.keeper.life.take_due(now) {
            self.w.now_ms += (due - now).as_millis() as u64;
        } else if self.random.below(3) == 0 {
            assert!(!self.keeper.life.failed(now).is_zero(), "it is tried again at once");
        } else {
            self.keeper.is_up = true;
            self.keeper.life.started(now);
        }
    }

    /// The next NSM, with the listeners whose descriptors the keeper has.
    pub(super) fn nsm_returns(&mut self, nsm: usize) {
        self.states[nsm] = State::Up;
        let now = self.now();
        self.lives[nsm].started(now);
        let device = self.devices[nsm];
        self.act(|s| moves::nsm_back(s, NsmId(nsm as u8), device));
    }

    /// Engine and services are gone, devices and kept listeners stay.
    pub(super) fn all_die(&mut self) {
        if !self.keeper.is_up {
            return;
        }
        (0..NSMS).for_each(|nsm| self.nsm_ends(nsm));
        self.next_daemon();
    }

    /// The engine is gone, perhaps in the middle of a poll; service, stack and connections live.
    pub(super) fn daemon_dies(&mut self) {
        if !self.keeper.is_up {
            return;
        }
        let in_the_middle = self.random.below(2) == 0;
        self.dies_in.set(in_the_middle.then(|| self.random.below(12)));
        if let Err(how) = catch_unwind(AssertUnwindSafe(|| self.w.poll_engine()))
            && !how.is::<Killed>()
        {
            resume_unwind(how);
        }
        self.dies_in.set(None);
        self.next_daemon();
    }
}
