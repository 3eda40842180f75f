//! Limits of a guest on bytes, kept where the bytes are consumed and produced.
//!
//! A socket that may not send or receive now waits here, in order, and has its turn again when its guest's bucket has something: nobody
//! kicks twice, and nothing is looked at meanwhile. Receiving is held back by not reading the stack, whose own window then holds the
//! peer.

use std::collections::VecDeque;

use nk_device::bucket::{Bucket, Rate};
use nk_device::counters::HeldCounters;

use crate::Key;

/// What a guest may use of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLimits {
    /// Bytes that it sends.
    pub out: Option<Rate>,
    /// Bytes that it receives.
    pub input: Option<Rate>,
    /// Chunks of its pool that may be in use.
    pub chunks_max: u32,
    /// Its turn is so many times that of a guest of weight 1.
    pub weight: u32,
}

impl Default for GuestLimits {
    fn default() -> GuestLimits {
        GuestLimits { out: None, input: None, chunks_max: u32::MAX, weight: 1 }
    }
}

/// Bytes that are worth waiting for: a packet, and at high rates what comes in a five-hundredth of a second.
const LOT_MIN: u64 = 1500;
const LOTS_PER_S: u64 = 500;
/// What a socket of a limited guest gets at once before the others have their turn.
const SHARE: u64 = 64 * 1024;

/// One direction of a guest.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    bucket: Option<Bucket>,
    waiting: VecDeque<Key>,
    now_ns: u64,
}

fn lot(b: &Bucket) -> u64 {
    (b.rate().per_s / LOTS_PER_S).max(LOT_MIN).min(b.rate().burst)
}

impl Gate {
    pub(crate) fn set(&mut self, rate: Option<Rate>) {
        self.bucket = Bucket::changed(self.bucket, rate);
    }

    /// What a socket may take at once.
    pub(crate) fn share(&self) -> u64 {
        self.bucket.as_ref().map_or(u64::MAX, |b| SHARE.max(lot(b)))
    }

    /// Takes leave for some of `wanted` bytes; none: wait. What is not used is to be given back.
    pub(crate) fn take(&mut self, wanted: u64) -> u64 {
        let wanted = wanted.min(self.share());
        let Some(b) = &mut self.bucket else { return wanted };
        let (there, lot) = (b.available(), lot(b));
        let granted = match wanted {
            n if n <= there => n,
            _ if there >= lot => there,
            _ => 0,
        };
        b.take(granted);
        granted
    }

    /// Takes leave for `whole` bytes that cannot be divided.
    pub(crate) fn take_whole(&mut self, whole: u64) -> bool {
        let Some(b) = &mut self.bucket else { return true };
        let may = b.available() >= whole.min(b.rate().burst);
        if may {
            b.take(whole);
        }
        may
    }

    /// Leave was taken for more than was used, or (`used` above `taken`) for less.
    pub(crate) fn settle(&mut self, taken: u64, used: u64) {
        if let Some(b) = &mut self.bucket {
            b.take(used.saturating_sub(taken));
            b.give_back(taken.saturating_sub(used));
        }
    }

    pub(crate) fn wait(&mut self, key: Key, held: &HeldCounters) {
        held.times.add(1);
        self.waiting.push_back(key);
    }

    /// What time brought.
    pub(crate) fn refill(&mut self, now_ns: u64, held: &HeldCounters) {
        if self.has_waiting() {
            held.ns.add(now_ns.saturating_sub(self.now_ns));
        }
        self.now_ns = now_ns;
        if let Some(b) = &mut self.bucket {
            b.refill(now_ns);
        }
    }

    /// The next that may go on, as long as there is leave for more than the bytes that those before it took.
    pub(crate) fn next(&mut self, taken: u64) -> Option<Key> {
        let may =
            self.bucket.as_ref().is_none_or(|b| b.available() >= lot(b) && b.available() > taken);
        if may { self.waiting.pop_front() } else { None }
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.bucket.is_some()
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// When the first that waits may go on.
    pub(crate) fn due_ns(&self) -> Option<u64> {
        let b = self.bucket.as_ref().filter(|_| self.has_waiting())?;
        Some(b.due_ns(lot(b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { guest: 1, socket: 2, generation: 3 };

    #[test]
    fn small_sends_pass_and_large_ones_wait_for_a_lot() {
        let (mut g, held) = (Gate::default(), HeldCounters::default());
        assert_eq!(g.take(u64::MAX), u64::MAX, "no limit");
        // 1 MB/s: a lot is 2000 bytes.
        g.set(Some(Rate { per_s: 1_000_000, burst: 10_000 }));
        g.refill(0, &held);
        assert_eq!(g.take(100_000), 10_000);
        g.refill(1_000_000, &held);
        assert_eq!(g.take(100_000), 0, "1000 bytes are no lot");
        assert_eq!(g.take(300), 300);
        g.settle(300, 0);
        g.wait(KEY, &held);
        assert_eq!((g.next(0), g.due_ns()), (None, Some(2_000_000)));
        g.refill(2_000_000, &held);
        assert_eq!(g.next(0), Some(KEY));
        assert_eq!((g.next(0), g.due_ns()), (None, None));
        assert_eq!((held.times.get(), held.ns.get()), (1, 1_000_000));
        assert_eq!(g.take(100_000), 2000);
    }

    #[test]
    fn what_is_longer_than_a_burst_goes_when_the_bucket_is_full() {
        let (mut g, held) = (Gate::default(), HeldCounters::default());
        g.set(Some(Rate { per_s: 1_000_000, burst: 10_000 }));
        g.refill(0, &held);
        assert!(g.take_whole(60_000));
        assert!(!g.take_whole(1));
        g.refill(59_000_000, &held);
        assert!(!g.take_whole(60_000));
        g.refill(60_000_000, &held);
        assert!(g.take_whole(60_000));
    }

    #[test]
    fn without_a_limit_all_that_wait_go_on() {
        let (mut g, held) = (Gate::default(), HeldCounters::default());
        g.set(Some(Rate { per_s: 1, burst: 1 }));
        g.refill(0, &held);
        assert!(g.take_whole(1));
        g.wait(KEY, &held);
        g.wait(KEY, &held);
        assert_eq!(g.next(0), None);
        g.set(None);
        assert_eq!((g.next(9), g.next(9), g.next(9)), (Some(KEY), Some(KEY), None));
    }
}
