//! On which CPU the poll thread runs: beside the guest's thread, where that has to wait for one.
//!
//! Poll thread, a guest's thread and its peer are three where natively there are two. On few CPUs the scheduler may keep the first alone,
//! half idle, while the others share what is left: a wake-up goes to where a thread ran last, unless a CPU is idle at that moment, and the
//! poll thread's is busy whenever it rings. So where it keeps finding that the thread that it rang still waits on another CPU, it goes there and
//! stays for a while; its own is idle then, and the next that is woken gets it.

use std::io;

use crate::sys::Stay;

/// To be apart from a thread that waits counts so much, anything else takes one off.
const APART: u32 = 3;
/// So many are enough to move.
const ENOUGH: u32 = 16;
/// The shortest time between two moves.
const PAUSE_MIN_NS: u64 = 2_000_000;
/// The longest, where they change nothing.
const PAUSE_MAX_NS: u64 = 1_000_000_000;
/// A move after which it took so much longer than the pause to be apart again did change something.
const HELD_NS: u64 = 20_000_000;
/// So long it stays where it went, and where the guest was last found to wait, whatever the scheduler thinks: left to that, it is woken on the
/// peer's CPU as soon as the peer pauses, and both are where they began. Not longer, since somebody else may come to need that CPU.
const STAY_NS: u64 = 100_000_000;

/// Where the poll thread goes.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    seen: Seen,
    stay: Option<Stay>,
}

impl Beside {
    /// The poll thread is on CPU `here`, and what was rung last waits on `awaited`: goes there if it keeps finding that, and leaves the choice
    /// to the scheduler again once it has not found it here for a while.
    ///
    /// # Errors
    /// Those of sched_setaffinity.
    pub(crate) fn place(
        &mut self,
        now_ns: u64,
        here: usize,
        awaited: Option<u32>,
    ) -> io::Result<()> {
        let to = self.seen.place(now_ns, here, awaited);
        if (to.is_some() || self.seen.has_stayed(now_ns))
            && let Some(stay) = &self.stay
        {
            // Where that fails it is tried again the next time: the thread would stay there for ever.
            stay.end()?;
            self.stay = None;
        }
        if let Some(cpu) = to {
            self.stay = Stay::on(cpu)?;
        }
        Ok(())
    }
}

/// What the poll thread has seen. It reads no clock and makes no system call.
#[derive(Debug, Default)]
struct Seen {
    score: u32,
    moved_ns: u64,
    pause_ns: u64,
    /// When the guest last waited here.
    together_ns: u64,
}

impl Seen {
    /// Where to go, if anywhere.
    fn place(&mut self, now_ns: u64, here: usize, awaited: Option<u32>) -> Option<usize> {
        let Some(there) = awaited.map(|c| c as usize).filter(|c| *c != here) else {
            self.score = self.score.saturating_sub(1);
            if awaited.is_some() {
                self.together_ns = now_ns;
            }
            return None;
        };
        self.score = (self.score + APART).min(ENOUGH);
        let since_ns = now_ns.saturating_sub(self.moved_ns);
        if self.score < ENOUGH || since_ns < self.pause_ns {
            return None;
        }
        let held = since_ns >= self.pause_ns + HELD_NS;
        self.pause_ns = if held { 0 } else { self.pause_ns * 2 }.clamp(PAUSE_MIN_NS, PAUSE_MAX_NS);
        self.score = 0;
        self.moved_ns = now_ns;
        Some(there)
    }

    fn has_stayed(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.moved_ns.max(self.together_ns)) >= STAY_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLEEP_NS: u64 = 20_000;

    /// Falls asleep apart from whom it rang for so long; when it moved.
    fn apart(b: &mut Seen, from_ns: u64, for_ns: u64) -> Vec<u64> {
        let times = (from_ns..from_ns + for_ns).step_by(SLEEP_NS as usize);
        times.filter(|t| b.place(*t, 0, Some(1)).is_some()).collect()
    }

    #[test]
    fn it_goes_where_the_guest_waits() {
        let mut b = Seen::default();
        for n in 0..100 {
            assert_eq!(b.place(n, 0, Some(0)), None, "they are together");
            assert_eq!(b.place(n, 0, None), None, "nobody waits");
        }
        let moved = (0..u64::from(ENOUGH)).find_map(|n| b.place(n, 0, Some(1)));
        assert_eq!(moved, Some(1));
    }

    #[test]
    fn who_is_seldom_apart_stays() {
        let mut b = Seen::default();
        for n in 0..1000 {
            assert_eq!(b.place(n, 0, (n % 8 == 0).then_some(1)), None);
        }
    }

    #[test]
    fn moves_that_change_nothing_become_rare() {
        let moved = apart(&mut Seen::default(), 0, 20_000_000_000);
        let gaps: Vec<u64> = moved.windows(2).map(|w| (w[1] - w[0]) / 1_000_000).collect();
        assert_eq!(gaps[..9], [2, 4, 8, 16, 32, 64, 128, 256, 512], "ms");
        assert!(gaps[9..].iter().all(|g| *g == 1000), "{gaps:?}");
    }

    #[test]
    fn it_stays_until_nobody_waits_here_for_a_while() {
        let mut b = Seen::default();
        let moved_ns = *apart(&mut b, STAY_NS, PAUSE_MIN_NS).first().expect("a move");
        assert!(!b.has_stayed(moved_ns + STAY_NS - 1));
        assert!(b.has_stayed(moved_ns + STAY_NS));
        b.place(moved_ns + STAY_NS, 1, None);
        assert!(b.has_stayed(moved_ns + STAY_NS), "nobody waits");
        b.place(moved_ns + STAY_NS, 1, Some(1));
        assert!(!b.has_stayed(moved_ns + 2 * STAY_NS - 1));
        assert!(b.has_stayed(moved_ns + 2 * STAY_NS));
    }

    #[test]
    fn where_the_end_fails_it_is_tried_again() {
        let ends = || {
            let stay = Some(crate::sys::process::tests::stay_without_end());
            let mut beside = Beside { seen: Seen::default(), stay };
            for _ in 0..3 {
                assert!(beside.place(STAY_NS, 0, None).is_err());
            }
        };
        std::thread::spawn(ends).join().expect("it is tried");
    }

    #[test]
    fn one_that_held_may_soon_be_made_again() {
        let mut b = Seen::default();
        let last = *apart(&mut b, 0, 10_000_000_000).last().expect("moves");
        let anew = apart(&mut b, last + PAUSE_MAX_NS + HELD_NS, 10_000_000);
        assert_eq!(anew.len(), 3, "at once, and 2 and 4 ms later: {anew:?}");
    }
}
