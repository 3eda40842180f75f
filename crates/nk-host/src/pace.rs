//! The pace of a thread that polls: when it looks again at once, when others run first, when it sleeps. The daemon's poll thread and
//! an NSM's go by the same.

use std::sync::OnceLock;
use std::time::Instant;

use nk_device::patience::{Patience, Wait};

/// Between two polls.
pub(crate) struct Pace<'a> {
    patience: &'a Patience,
    wait: Wait<'a>,
    /// The next poll asks the stack for events.
    asks: bool,
}

impl<'a> Pace<'a> {
    pub(crate) fn new(patience: &'a Patience) -> Pace<'a> {
        Pace { patience, wait: patience.wait(), asks: false }
    }

    /// What [`nk_servicelib::Service::poll`] is told in the next poll. With work, every other poll asks the stack; without, a look
    /// precedes and follows whatever others do meanwhile, and falling asleep is one.
    pub(crate) fn asks(&self) -> Option<i32> {
        self.asks.then_some(0)
    }

    /// After a poll: nothing where it was `busy`; else others run, unless a `look` at the stack finds something, or the thread goes
    /// to `sleep`.
    pub(crate) fn rest<T>(
        &mut self,
        state: &mut T,
        busy: bool,
        look: impl FnOnce(&mut T) -> bool,
        sleep: impl FnOnce(&mut T),
    ) {
        let asked = self.asks;
        self.asks = busy && !asked;
        if busy {
            self.wait.found();
        } else if !self.wait.yields(now_ns()) {
            sleep(state);
        } else if !asked && look(state) {
            self.wait.found();
        } else {
            self.wait.let_run(now_ns, std::thread::yield_now);
            self.asks = true;
            return;
        }
        self.wait = self.patience.wait();
    }
}

/// Nanoseconds since this process's first look at the clock.
pub(crate) fn now_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// How long to wait for something that is due then.
pub(crate) fn wait_ms(due_ns: Option<u64>) -> i32 {
    due_ns.map_or(-1, |t| {
        let left = t.saturating_sub(now_ns()).div_ceil(1_000_000);
        i32::try_from(left).unwrap_or(i32::MAX)
    })
}
