//! The deaths of the simulation: of an NSM, of the keeper, and of the daemon, alone or with others. Any of them may come in the middle of what the
//! control thread does.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Instant;

use nk_device::Layout;
use nk_engine::NsmId;
use nk_host::control::moves;
use nk_host::control::restarts::{self, Restarts};
use nk_host::keeper::CLASS_NSM;
use nk_servicelib::Service;

use super::region::Region;
use super::simulation::{Killed, NSMS, Simulation, State};
use super::stack::MemoryStack;

/// What ends in the middle of what the control thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    /// The NSM that is being told something.
    Asked,
    /// The process that asks for something.
    Asks,
    /// Any.
    Nsm(usize),
    Keeper,
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
            self.draw_end(MOMENTS);
        }
        let how = catch_unwind(AssertUnwindSafe(|| act(self)));
        self.ends_in = None;
        match how {
            Ok(done) => done.expect("nothing is refused"),
            Err(how) if how.is::<Killed>() => {
                self.see("the daemon ended in the middle of something");
                self.next_daemon();
            }
            Err(how) => resume_unwind(how),
        }
    }

    /// Something is to end at one of so many moments.
    pub(super) fn draw_end(&mut self, moments: usize) {
        let victim = match self.random.below(8) {
            0 | 1 if self.dies_with_keeper() => Victim::Daemon,
            2 | 3 => Victim::Nsm(self.random.below(NSMS)),
            4 => Victim::Asks,
            5 if self.random.below(6) == 0 => Victim::Keeper,
            _ => Victim::Asked,
        };
        self.ends_in = Some((self.random.below(moments), victim));
    }

    /// Whether the daemon may end now: without a keeper it takes everything along, which is to be seen, and not often.
    fn dies_with_keeper(&mut self) -> bool {
        self.keeper.lives() || self.random.below(12) == 0
    }

    /// Between two things that the control thread does; `asked`: which NSM it tells something.
    pub(super) fn moment(&mut self, asked: Option<NsmId>) {
        let Some((left, victim)) = self.ends_in else { return };
        let asked = match (victim, asked) {
            (Victim::Asked, None) => return,
            (Victim::Asked, Some(nsm)) => usize::from(nsm.0),
            _ => 0,
        };
        self.ends_in = left.checked_sub(1).map(|left| (left, victim));
        if left > 0 {
            return;
        }
        match victim {
            Victim::Asked => self.nsm_ends(asked),
            Victim::Nsm(nsm) => self.nsm_ends(nsm),
            Victim::Asks => {
                if let Some(pid) = self.asks {
                    self.dies(pid);
                }
            }
            Victim::Keeper => self.some_keeper_ends("the keeper ended in the middle of something"),
            // No panic: nothing is printed.
            Victim::Daemon => resume_unwind(Box::new(Killed)),
        }
    }

    // ---- NSMs ----

    /// An NSM's process ends, of which the control thread hears later. Nothing of it is looked at again.
    pub(super) fn nsm_ends(&mut self, nsm: usize) {
        if self.states[nsm] != State::Up {
            return;
        }
        self.states[nsm] = State::Dead;
        self.life += 1;
        self.kernel.end(self.nsm_pids[nsm]);
        self.last_words[nsm] = std::mem::take(&mut self.w.services[nsm].stack_mut().notes);
        self.net.borrow_mut().end_stack(nsm as u8);
        self.begin_service(nsm);
    }

    /// The control thread hears of an NSM's death, after what it said last.
    pub(super) fn nsm_died(&mut self, nsm: usize) {
        self.states[nsm] = State::Down;
        let now = self.now();
        let rest = self.lives[nsm].died(now);
        assert!(rest <= restarts::NSM.rest_max, "{rest:?}");
        self.act(|s| {
            let last = std::mem::take(&mut s.last_words[nsm]);
            s.take_in(nsm, last);
            let pid = std::mem::take(&mut s.daemon.nsms[nsm]);
            s.drop_entry(CLASS_NSM, pid as u64);
            moves::nsm_died(s, NsmId(nsm as u8))?;
            if rest.is_zero() { Ok(()) } else { s.spread_from(NsmId(nsm as u8)) }
        });
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
            self.act(|s| s.spread_from(NsmId(nsm as u8)));
        } else if due <= now {
            self.nsm_returns(nsm);
        } else {
            // Time passes.
            self.w.now_ms += (due - now).as_millis() as u64;
        }
    }

    /// The next NSM, with the listeners whose descriptors the daemon has.
    pub(super) fn nsm_returns(&mut self, nsm: usize) {
        self.states[nsm] = State::Up;
        let now = self.now();
        self.lives[nsm].started(now);
        let device = self.devices[nsm];
        self.act(|s| {
            s.nsm_serves(nsm);
            moves::nsm_back(s, NsmId(nsm as u8), device)
        });
    }

    // ---- the keeper ----

    /// The keeper ends under a daemon, or the one that is being told what there is.
    fn some_keeper_ends(&mut self, seen: &'static str) {
        if let Some(next) = &self.next_keeper {
            next.end();
        } else if self.keeper.lives() {
            self.keeper.end();
            let now = self.now();
            self.keeper_life.died(now);
            self.see(seen);
        }
    }

    /// Until there is another, guests would not survive the daemon.
    pub(super) fn keeper_ends(&mut self) {
        self.some_keeper_ends("the keeper ended under a daemon");
    }

    /// Another keeper starts when it is due, and is told everything, some at a time; perhaps it ends meanwhile.
    pub(super) fn keeper_is_due(&mut self) {
        let now = self.now();
        if let Some(next) = self.next_keeper.clone() {
            match self.daemon.link.give_some(1 + self.random.below(12)) {
                Ok(false) => {}
                Ok(true) => {
                    self.keeper = next;
                    self.next_keeper = None;
                    self.keeper_life.started(now);
                    self.see("the next keeper has everything");
                }
                Err(e) => {
                    assert!(!next.lives(), "{e}");
                    self.next_keeper = None;
                    self.keeper_life.failed(now);
                    self.see("the next keeper ended while it was told");
                }
            }
            return;
        }
        if self.keeper.lives() {
            return;
        }
        let due = self.keeper_life.due().expect("one that ended is started again");
        assert!(due <= now + restarts::KEEPER.rest_max, "it rests for too long");
        if !self.keeper_life.take_due(now) {
            self.w.now_ms += (due - now).as_millis() as u64;
        } else if !self.is_over && self.random.below(3) == 0 {
            assert!(!self.keeper_life.failed(now).is_zero(), "it is tried again at once");
        } else {
            let next = super::kernel::Keeper::start();
            self.daemon.link.begin(next.clone());
            self.next_keeper = Some(next);
        }
    }

    // ---- the daemon ----

    /// Engine and services are gone, devices and kept listeners stay.
    pub(super) fn all_die(&mut self) {
        if self.dies_with_keeper() {
            (0..NSMS).for_each(|nsm| self.nsm_ends(nsm));
            self.next_daemon();
        }
    }

    /// The engine is gone, perhaps in the middle of a poll; service, stack and connections live.
    pub(super) fn daemon_dies(&mut self) {
        if !self.dies_with_keeper() {
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
