//! Token buckets: how all limits on rates are kept. They read no clock: whoever polls says what time it is.

/// A rate, and how much may come at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units (bytes, elements, connections) per second; at least 1.
    pub per_s: u64,
    /// What the bucket holds; at least 1.
    pub burst: u64,
}

impl Rate {
    /// A rate whose burst is what it brings in so many milliseconds, and at least `least`.
    #[must_use]
    pub fn with_burst(per_s: u64, burst_ms: u32, least: u64) -> Rate {
        let burst = u128::from(per_s) * u128::from(burst_ms) / 1000;
        Rate {
            per_s: per_s.max(1),
            burst: u64::try_from(burst).unwrap_or(u64::MAX).max(least).max(1),
        }
    }
}

const NS_PER_S: i128 = 1_000_000_000;

/// A bucket. It begins full. What is taken may exceed what is there: the debt is paid before anything else is given.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: Rate,
    /// In billionths of a unit, so that no rate from one a second to 100 Gbit/s loses anything by rounding.
    level: i128,
    /// When `level` was right; `None` before the first look.
    at_ns: Option<u64>,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(rate: Rate) -> Bucket {
        Bucket { rate, level: full(rate), at_ns: None }
    }

    /// The bucket of a limit that may be there or not, after it was changed.
    #[must_use]
    pub fn changed(old: Option<Bucket>, rate: Option<Rate>) -> Option<Bucket> {
        let rate = rate?;
        let mut bucket = old.unwrap_or(Bucket::new(rate));
        bucket.set(rate);
        Some(bucket)
    }

    /// Changes the rate from now on; what is there stays, as far as it fits.
    pub fn set(&mut self, rate: Rate) {
        self.rate = rate;
        self.level = self.level.min(full(rate));
    }

    /// The rate.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Adds what time brought. A clock that goes back brings nothing.
    pub fn refill(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.at_ns.unwrap_or(now_ns));
        self.at_ns = Some(self.at_ns.map_or(now_ns, |at| at.max(now_ns)));
        let more = i128::from(passed) * i128::from(self.rate.per_s);
        self.level = self.level.saturating_add(more).min(full(self.rate));
    }

    /// Whole units that are there.
    #[must_use]
    pub fn available(&self) -> u64 {
        u64::try_from(self.level.max(0) / NS_PER_S).unwrap_or(u64::MAX)
    }

    /// Takes so many.
    pub fn take(&mut self, units: u64) {
        self.level = self.level.saturating_sub(i128::from(units) * NS_PER_S);
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&mut self, units: u64) {
        self.level = self.level.saturating_add(i128::from(units) * NS_PER_S).min(full(self.rate));
    }

    /// When so many (or a full bucket, if that is less) will be there.
    #[must_use]
    pub fn due_ns(&self, units: u64) -> u64 {
        let missing = i128::from(units.min(self.rate.burst)) * NS_PER_S - self.level;
        let per_s = i128::from(self.rate.per_s.max(1));
        let wait = (missing.max(0) + per_s - 1) / per_s;
        self.at_ns.unwrap_or(0).saturating_add(u64::try_from(wait).unwrap_or(u64::MAX))
    }
}

fn full(rate: Rate) -> i128 {
    i128::from(rate.burst) * NS_PER_S
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut b = Bucket::new(Rate { per_s: 1000, burst: 10 });
        b.refill(5_000_000_000);
        assert_eq!(b.available(), 10, "full, and no fuller for the time before");
        b.take(10);
        assert_eq!(b.available(), 0);
        assert_eq!(b.due_ns(1), 5_001_000_000);
        b.refill(5_000_999_999);
        assert_eq!(b.available(), 0);
        b.refill(5_001_000_000);
        assert_eq!(b.available(), 1);
        b.refill(4_000_000_000);
        assert_eq!(b.available(), 1, "a clock that goes back");
        b.refill(90_000_000_000);
        assert_eq!(b.available(), 10);
        b.take(30);
        assert_eq!(b.due_ns(1), 90_021_000_000, "a debt is paid first");
    }

    #[test]
    fn a_change_keeps_what_is_there() {
        let mut b = Bucket::new(Rate { per_s: 10, burst: 100 });
        b.refill(0);
        b.take(40);
        b.set(Rate { per_s: 1, burst: 50 });
        assert_eq!(b.available(), 50);
        b.set(Rate { per_s: 1, burst: 500 });
        assert_eq!(b.available(), 50);
    }

    proptest! {
        /// However time is cut into looks, over a second a busy bucket gives its rate: 1 kbyte/s to 100 Gbit/s.
        #[test]
        fn no_rate_is_lost_to_rounding(per_s in 1_000u64..12_500_000_000, steps in 1u64..2000) {
            let mut b = Bucket::new(Rate { per_s, burst: per_s });
            b.refill(0);
            b.take(per_s);
            let mut got = 0;
            for i in 1..=steps {
                b.refill(i * 1_000_000_000 / steps);
                let n = b.available();
                b.take(n);
                got += n;
            }
            prop_assert_eq!(got, per_s);
        }

        /// At the time that `due_ns` says there is as much as was asked for, and a nanosecond before there is not.
        #[test]
        fn due_is_exact(per_s in 1u64..12_500_000_000, burst in 1u64..1_000_000, taken in 0u64..2_000_000, units in 1u64..1_000_000) {
            let mut b = Bucket::new(Rate { per_s, burst });
            b.refill(1_000);
            b.take(taken);
            let due = b.due_ns(units);
            let wanted = units.min(burst);
            let mut then = b;
            then.refill(due);
            prop_assert!(then.available() >= wanted);
            if due > 1_000 {
                b.refill(due - 1);
                prop_assert!(b.available() < wanted);
            }
        }
    }
}
