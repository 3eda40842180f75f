//! The end of a run: nothing fails any more, each guest is served, and when all have ended nothing of them is left.

use nk_device::CHUNK_SIZE;
use nk_device::cell::{SF_CONNECTED, SF_DEAD, SF_EOF, SF_FAILED};
use nk_host::keeper::{CLASS_HOLD, CLASS_PROCESS};
use nk_host::limits::GuestLimits;

use super::simulation::{LAYOUT, NSMS, Simulation, State};
use super::tenant::{Open, Part};
use super::world::{datagrams, transfer};

/// Longer than any orphan is left to send what it has.
const DRAIN_MS: u64 = 200_000;

impl Simulation {
    /// What was asked was done or has failed, and what was sent on a connection that lives at both ends comes, without anybody's doing.
    fn all_comes(&mut self, at: usize) {
        for _ in 0..40 {
            self.w.now_ms += 5;
            self.poll();
        }
        let t = &self.tenants[at];
        let asked = |o: &&Open| {
            (o.part, o.life) == (Part::Client, self.life) && t.generation(o.id) == o.generation
        };
        for o in t.open.iter().filter(asked) {
            let over = SF_CONNECTED | SF_FAILED | SF_DEAD;
            assert_ne!(t.state(o.id) & over, 0, "nothing came of {o:?}");
        }
        for o in self.tenants[at].open.clone() {
            let t = &self.tenants[at];
            let lives = |o: &Open| {
                let state = t.state(o.id);
                state & SF_CONNECTED != 0 && state & (SF_DEAD | SF_EOF) == 0
            };
            let is_other = |s: &&Open| {
                s.port == o.port
                    && s.life == self.life
                    && s.part != o.part
                    && matches!(s.part, Part::Client | Part::Server)
            };
            let is_pair =
                matches!(o.part, Part::Client | Part::Server) && o.port != 0 && o.life == self.life;
            if !is_pair || !lives(&o) || !t.open.iter().find(is_other).is_some_and(lives) {
                continue;
            }
            let way = (o.port, o.part == Part::Server);
            for _ in 0..400 {
                self.w.now_ms += 5;
                self.poll();
                self.receive_on(at, o, 9000);
            }
            let flow = self.tenants[at].flows.get(&way).copied().unwrap_or_default();
            assert_eq!(flow.0, flow.1, "bytes on their way to socket {} of guest {at}", o.id);
        }
    }

    fn close_all(&mut self, at: usize, which: impl Fn(&Open) -> bool) {
        let (close, keep) = self.tenants[at].open.drain(..).partition(which);
        self.tenants[at].open = keep;
        let close: Vec<Open> = close;
        for o in close.iter().rev() {
            self.tenants[at].close(o);
            self.poll();
        }
    }

    /// What travels comes to its end.
    fn end_travels(&mut self) {
        for pair in std::mem::take(&mut self.travelling) {
            self.kernel.pairs.remove(&pair);
        }
    }

    /// The keeper has what travels.
    pub(super) fn assert_holds(&self) {
        if !self.keeper.lives() {
            return;
        }
        for t in &self.tenants {
            let kept = self.keeper.has(|entries| {
                let its = entries.of(CLASS_HOLD).filter(|(k, _)| k >> 48 == u64::from(t.id.0));
                its.count()
            });
            assert_eq!(kept, t.members.holds.len(), "guest {}", t.id.0);
        }
    }

    /// Daemon and keeper know of each process that lives, and of no other.
    fn assert_kept(&self) {
        for t in &self.tenants {
            let mut living: Vec<_> = t.processes.iter().map(|p| (p.row, p.pid, p.qset)).collect();
            living.sort_unstable();
            let known = t.members.processes.iter();
            let known: Vec<_> = known.map(|(row, p)| (*row, p.pid, p.qsets[0])).collect();
            assert_eq!(known, living, "guest {}", t.id.0);
            assert!(t.members.holds.is_empty(), "{:?}", t.members.holds);
            let kept: Vec<_> = self.keeper.has(|entries| {
                let of = entries.of(CLASS_PROCESS).filter(|(k, _)| k >> 16 == u64::from(t.id.0));
                of.map(|(k, e)| (k as u16, e.message.c as i32)).collect()
            });
            let living: Vec<_> = living.iter().map(|(row, pid, _)| (*row, *pid)).collect();
            assert_eq!(kept, living, "guest {}", t.id.0);
        }
    }

    pub(super) fn drain(&mut self) {
        for _ in 0..60 {
            self.w.now_ms += DRAIN_MS / 60;
            self.poll();
        }
        self.leave_old();
        self.move_on();
    }

    pub(super) fn end(&mut self) {
        self.is_over = true;
        while !self.keeper.lives() {
            self.keeper_is_due();
        }
        self.end_travels();
        for nsm in 0..NSMS {
            if self.states[nsm] == State::Dead {
                self.nsm_died(nsm);
            }
            if self.states[nsm] == State::Down {
                self.nsm_returns(nsm);
            }
        }
        self.hear_all();
        self.enter_missing();
        for at in 0..self.tenants.len() {
            if self.tenants[at].processes.is_empty() {
                self.spawn(at);
            }
        }
        self.net.borrow_mut().faults.next.clear();
        for at in 0..self.tenants.len() {
            let id = self.tenants[at].id;
            self.tenants[at].limits = GuestLimits::default();
            self.set_limits(at).expect("nothing is refused");
            self.w.engine.rouse(id);
            self.w.assert_chunks(id, LAYOUT.chunks);
            if !self.stack_fails {
                self.all_comes(at);
            }
            self.config.list(id, Vec::new());
            self.spread(id).expect("nothing is refused");
            self.close_all(at, |o| o.part != Part::Datagram);
            self.drain();
            self.datagrams_come(at);
            self.close_all(at, |_| true);
            self.drain();
            self.w.engine.rouse(id);
            let shell = self.some_process(at).expect("one that lives");
            transfer(&mut self.w, &shell, id, 2 * CHUNK_SIZE + 1);
            datagrams(&mut self.w, &shell, id);
        }
        self.assert_kept();
        for at in 0..self.tenants.len() {
            for p in self.tenants[at].processes.clone() {
                self.dies(p.pid);
            }
        }
        self.hear_all();
        self.drain();
        for t in &self.tenants {
            let violations = self.w.engine.stats(Some(t.id)).violations;
            assert_eq!(violations, 0, "guest {} is an honest one", t.id.0);
            // All services that there were counted here, too.
            let (e, s) = (self.w.engine.stats(Some(t.id)), &t.region.counters.service);
            let counted = [e.bytes_sent, e.bytes_received];
            assert_eq!(counted, [s.bytes_sent.get(), s.bytes_received.get()], "guest {}", t.id.0);
            assert_eq!(self.w.engine.guest_sockets(t.id), 0, "sockets of guest {}", t.id.0);
            let is_on_one = t.place.old().is_empty() && t.place.ledger().is_none();
            assert!(is_on_one, "guest {} is on several NSMs", t.id.0);
            let s = self.w.stats(t.id);
            let left = (s.sockets, s.chunks_leased, s.chunks_tx, s.chunks_rx);
            assert_eq!(left, (0, 0, 0, 0), "guest {}: {s:?}", t.id.0);
        }
        assert_eq!(self.net.borrow().open_sockets(), 0);
    }
}
