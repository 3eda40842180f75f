//! The host's waiting policy, in one place: how often whoever found nothing to do lets others run and looks again before it sleeps.
//!
//! Falling asleep and being woken costs both sides a system call, and the sleeper's core a switch. Where the peer runs on the same
//! core, letting it run (`sched_yield`) does the same without either: it does its part, and what it has to say is there at
//! the next look. Where nobody else wants the core a yield returns at once, and sleeping is right: nothing here ever spins.
//! Whoever yields gives up its claim to run soon, though, to strangers too. So yields must pay: when nothing is found after them, or
//! they take so long that a stranger must be computing on this core, they pause for a time that doubles as long as that goes on.
//!
//! [`Patience`] is what a process remembers, [`Wait`] one wait of a thread. They read no clock and make no system call: the
//! shells do.

use crate::sync::{AtomicU64, Ordering};

/// Yields in one wait, at most.
const YIELDS: u32 = 2;
/// A yield that took less found nobody else who wants the core.
const ALONE_NS: u64 = 1_500;
/// A yield that took more let a stranger run, not the peer.
const STRANGER_NS: u64 = 500_000;
/// The first pause after yields that did not pay.
const PAUSE_MIN_NS: u64 = 10_000_000;
/// The longest.
const PAUSE_MAX_NS: u64 = 1_000_000_000;

/// What the waits of a process (or of the poll thread) have taught.
#[derive(Debug)]
pub struct Patience {
    /// No yields before this time.
    paused_until_ns: AtomicU64,
    /// Length of the last pause; 0 when the last yield paid.
    pause_ns: AtomicU64,
}

/// One wait, from the first look that found nothing until something is there or the thread sleeps.
#[derive(Debug)]
pub struct Wait<'a> {
    patience: &'a Patience,
    yields: u32,
    /// When the last yield ended, and whether somebody ran meanwhile.
    last_ns: u64,
    let_somebody_run: bool,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience::new()
    }
}

impl Patience {
    /// Nothing learned yet.
    #[must_use]
    #[cfg(not(loom))]
    pub const fn new() -> Patience {
        Patience { paused_until_ns: AtomicU64::new(0), pause_ns: AtomicU64::new(0) }
    }

    /// As above; loom's atomics have no constants.
    #[must_use]
    #[cfg(loom)]
    pub fn new() -> Patience {
        Patience { paused_until_ns: AtomicU64::new(0), pause_ns: AtomicU64::new(0) }
    }

    /// A wait begins: a look found nothing.
    pub fn wait(&self) -> Wait<'_> {
        Wait { patience: self, yields: 0, last_ns: 0, let_somebody_run: false }
    }
}

impl Wait<'_> {
    /// Whether others are to run before the thread looks again ([`Wait::let_run`]); else it sleeps.
    #[must_use]
    pub fn yields(&mut self, now_ns: u64) -> bool {
        if self.yields < YIELDS && now_ns >= self.patience.paused_until_ns.load(Ordering::Relaxed) {
            return true;
        }
        if self.let_somebody_run {
            self.pause();
        }
        false
    }

    /// Lets others run. `now_ns` reads any monotonic clock, always the same; `let_run` is `sched_yield`.
    pub fn let_run(&mut self, now_ns: impl Fn() -> u64, let_run: impl FnOnce()) {
        let from_ns = now_ns();
        let_run();
        self.last_ns = now_ns();
        let took_ns = self.last_ns.saturating_sub(from_ns);
        self.yields += 1;
        if took_ns < ALONE_NS {
            self.yields = YIELDS;
        } else {
            self.let_somebody_run = true;
            if took_ns > STRANGER_NS {
                self.pause();
                self.let_somebody_run = false;
                self.yields = YIELDS;
            }
        }
    }

    /// What was waited for is there.
    pub fn found(&mut self) {
        if self.let_somebody_run && self.patience.pause_ns.load(Ordering::Relaxed) != 0 {
            self.patience.pause_ns.store(0, Ordering::Relaxed);
        }
    }

    fn pause(&self) {
        let pause_ns = self.patience.pause_ns.load(Ordering::Relaxed);
        let pause_ns = (pause_ns * 2).clamp(PAUSE_MIN_NS, PAUSE_MAX_NS);
        self.patience.pause_ns.store(pause_ns, Ordering::Relaxed);
        let until_ns = self.last_ns.saturating_add(pause_ns);
        self.patience.paused_until_ns.store(until_ns, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// How many yields of this length a wait makes that begins at `now_ns` and finds nothing; with `pays`, it finds something
    /// after the first.
    fn yields(p: &Patience, now_ns: u64, each_ns: u64, pays: bool) -> u32 {
        let now_ns = core::cell::Cell::new(now_ns);
        let mut wait = p.wait();
        let mut n = 0;
        while wait.yields(now_ns.get()) {
            wait.let_run(|| now_ns.get(), || now_ns.set(now_ns.get() + each_ns));
            n += 1;
            if pays {
                wait.found();
                break;
            }
        }
        n
    }

    #[test]
    fn alone_on_a_core_it_sleeps_at_once() {
        let p = Patience::new();
        assert_eq!(yields(&p, 0, 300, false), 1);
        assert_eq!(yields(&p, 1_000, 300, false), 1, "which is no reason to pause");
    }

    #[test]
    fn yields_that_pay_go_on() {
        let p = Patience::new();
        for round in 0..100 {
            assert_eq!(yields(&p, round * 10_000, 5_000, true), 1);
        }
    }

    #[test]
    fn yields_that_do_not_pay_pause_for_longer_and_longer() {
        for (each_ns, tries) in [(5_000, YIELDS), (STRANGER_NS + 1, 1)] {
            let p = Patience::new();
            let mut now_ns = 0;
            for pause_ms in [10, 20, 40, 80, 160, 320, 640, 1000, 1000] {
                assert_eq!(yields(&p, now_ns, each_ns, false), tries);
                now_ns += each_ns * u64::from(tries) + pause_ms * 1_000_000;
                assert_eq!(yields(&p, now_ns - 1, 5_000, true), 0);
            }
            assert_eq!(yields(&p, now_ns, 5_000, true), 1);
            assert_eq!(yields(&p, now_ns, each_ns, false), tries, "one that pays ends that");
            now_ns += each_ns * u64::from(tries) + PAUSE_MIN_NS;
            assert_eq!(yields(&p, now_ns, 5_000, true), 1);
        }
    }
}
