//! From a daemon's death to the next one: what the keeper makes of it is its own code ([`nk_host::keeper::state`]), and what befalls it,
//! guests and NSMs meanwhile is drawn.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use nk_device::header::{ENGINE_AWAY, ENGINE_DOWN, ENGINE_GONE};
use nk_device::sync::Ordering;
use nk_engine::Engine;
use nk_host::keeper::CLASS_NSM;
use nk_host::keeper::entries::Entries;
use nk_host::keeper::link::{Link, complete};
use nk_host::keeper::state::Mark;

use super::daemon::Daemon;
use super::kernel::Keeper;
use super::simulation::{Killed, NSMS, Simulation, State};
use super::stack::NOBODY;

/// Moments of a take-over.
const MOMENTS: usize = 120;

impl Simulation {
    /// The daemon is dead, and another takes over.
    pub(super) fn next_daemon(&mut self) {
        let mut elsewhere = HashSet::new();
        loop {
            if self.keeper.lives() {
                elsewhere.extend(self.on_other_nsms());
            }
            if !self.daemon_ended() {
                return self.begin_anew();
            }
            self.daemons += 1;
            if !self.is_over && self.random.below(4) == 0 {
                self.draw_end(MOMENTS);
            }
            let how = catch_unwind(AssertUnwindSafe(|| self.take_over(&elsewhere)));
            self.ends_in = None;
            match how {
                Ok(()) => return,
                Err(how) if how.is::<Killed>() => {
                    self.see("the daemon ended while it took over");
                    if !self.keeper.lives() {
                        return self.begin_anew();
                    }
                }
                Err(how) => resume_unwind(how),
            }
        }
    }

    /// Its process is gone; `false`: nothing is left that has what it had.
    fn daemon_ended(&mut self) -> bool {
        self.is_quiet = false;
        self.w.engine = Engine::new();
        self.net.borrow_mut().end_stack(NOBODY);
        let kernel = &self.kernel;
        if let Some(next) = self.next_keeper.take() {
            if let Some(state) = next.0.borrow_mut().as_mut() {
                let marks = state.daemon_ended(|fd| kernel.is_end(fd));
                assert!(marks.is_empty() && state.is_over(), "it was not told everything");
            }
            self.see("the daemon ended while the next keeper was told");
        }
        self.unkept_nsms_end();
        let kernel = &self.kernel;
        let marks = match self.keeper.0.borrow_mut().as_mut() {
            Some(state) => state.daemon_ended(|fd| kernel.is_end(fd)),
            None => return false,
        };
        let kept = marks.iter().filter(|m| m.state != ENGINE_GONE);
        for m in kept {
            let guest = nk_engine::GuestId(m.guest as u16);
            let nsm = self.noted(guest).expect("it is kept");
            let lives = self.states[usize::from(nsm.0)] == State::Up;
            assert_eq!(m.state == ENGINE_AWAY, lives, "guest {}", m.guest);
        }
        self.mark(&marks);
        self.end_keeper_if_over();
        self.meanwhile();
        self.keeper.lives()
    }

    /// An NSM that was just started ends where nobody else has its control socket.
    fn unkept_nsms_end(&mut self) {
        for nsm in 0..NSMS {
            let pid = self.nsm_pids[nsm] as u64;
            let is_kept = |e: &Entries<_>| e.get(CLASS_NSM, pid).is_some();
            if !(self.keeper.lives() && self.keeper.has(is_kept)) {
                self.nsm_ends(nsm);
            }
        }
    }

    /// As the keeper's process.
    fn mark(&mut self, marks: &[Mark]) {
        for Mark { guest, state } in marks {
            let Some(t) = self.tenants.iter().find(|t| u64::from(t.id.0) == *guest) else {
                continue;
            };
            t.region.device.header().engine_state.store(*state, Ordering::SeqCst);
            self.see(match *state {
                ENGINE_AWAY => "a guest waited for the next daemon",
                ENGINE_DOWN => "a guest lost its connections with the daemon",
                _ => "no daemon was to follow",
            });
        }
    }

    fn end_keeper_if_over(&mut self) {
        let is_over = self.keeper.0.borrow().as_ref().is_some_and(|s| s.is_over());
        if is_over {
            self.keeper.end();
        }
    }

    /// Without a daemon: the services go on, processes and NSMs end, of which the keeper hears, and so does the keeper.
    fn meanwhile(&mut self) {
        for _ in 0..self.random.below(3) {
            self.w.poll_service();
        }
        if self.is_over {
            return;
        }
        let all_end = self.random.below(40) == 0;
        for at in 0..self.tenants.len() {
            let several = self.tenants[at].processes.len() > 1;
            if several && self.random.below(3) == 0 {
                let dead = self.some_process(at).expect("one of several");
                self.dies(dead.pid);
                self.see("a process ended without a daemon");
            }
            if all_end {
                let all = self.tenants[at].processes.clone();
                all.iter().for_each(|p| self.dies(p.pid));
            }
        }
        if self.random.below(8) == 0 {
            let nsm = self.random.below(NSMS);
            if self.states[nsm] == State::Up {
                self.nsm_ends(nsm);
                self.see("an NSM ended without a daemon");
            }
        }
        // Of each end, sooner or later.
        for _ in 0..2 {
            self.keeper_hears(all_end);
        }
        if self.keeper.lives() && self.random.below(24) == 0 {
            self.keeper.end();
            self.see("the keeper ended without a daemon");
        }
    }

    fn keeper_hears(&mut self, all: bool) {
        let (keeper, kernel) = (self.keeper.clone(), &self.kernel);
        let mut ends: Vec<(u64, u64)> = Vec::new();
        if let Some(state) = keeper.0.borrow().as_ref() {
            let ended = |end: &nk_host::keeper::state::End<'_, super::kernel::Fd>| match end {
                nk_host::keeper::state::End::Pidfd(fd) => kernel.is_end(fd),
                nk_host::keeper::state::End::Control(fd) => kernel.is_end(fd),
            };
            ends.extend(state.watched().into_iter().filter(|w| ended(&w.1)).map(|w| w.0));
        }
        for who in ends {
            if all || self.random.below(2) == 0 {
                let marks = keeper.0.borrow_mut().as_mut().map(|s| s.ended(who));
                self.mark(&marks.unwrap_or_default());
            }
        }
        let had = self.keeper.lives();
        self.end_keeper_if_over();
        if had && !self.keeper.lives() {
            self.see("the keeper had nobody left");
        }
    }

    /// The daemon ends for good (SIGQUIT), and somebody starts another.
    pub(super) fn last_daemon_ends(&mut self) {
        if !self.keeper.lives() {
            return;
        }
        self.daemon.link.end();
        assert!(!self.daemon_ended(), "nothing is left to keep");
        let gone = |t: &super::tenant::Tenant| t.engine_state() == ENGINE_GONE;
        assert!(self.tenants.iter().all(gone), "no daemon is to follow, and a guest waits");
        self.begin_anew();
    }

    /// Neither daemon nor keeper is left: NSMs end, nobody serves these guests any more, and a daemon that starts finds nothing.
    fn begin_anew(&mut self) {
        self.see("daemon and keeper were gone");
        self.hosts += 1;
        self.daemons += 1;
        self.life += 1;
        (0..NSMS).for_each(|nsm| self.nsm_ends(nsm));
        for at in 0..self.tenants.len() {
            let all = self.tenants[at].processes.clone();
            all.iter().for_each(|p| self.dies(p.pid));
        }
        self.tenants.clear();
        self.before.clear();
        self.kernel.pairs.clear();
        self.travelling.clear();
        self.w.engine = Engine::new();
        self.w.bells.left.clear();
        self.w.bells.full.clear();
        self.keeper = Keeper::start();
        self.next_keeper = None;
        complete(&self.keeper).expect("it lives");
        self.daemon = Daemon::new(Link::new(self.keeper.clone(), Entries::default()));
        let now = self.now();
        self.keeper_life.started(now);
        self.config = self.file.clone();
        self.lives = [Simulation::first_life(now); NSMS];
        self.start_nsms();
        self.enter_missing();
    }
}
