//! When a process that ended is started again: the first of a row of deaths is mended at once, each further one after a rest that doubles.

use std::time::{Duration, Instant};

/// How a kind of process is started again.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// How long a process must have run for its death not to count as one of a row.
    pub ran_well: Duration,
    /// The first rest, before the second restart of a row.
    pub rest_min: Duration,
    /// The longest rest.
    pub rest_max: Duration,
}

/// NSM processes.
pub const NSM: Policy = Policy {
    ran_well: Duration::from_secs(10),
    rest_min: Duration::from_millis(100),
    rest_max: Duration::from_secs(10),
};

/// The keeper, without which guests do not survive the daemon: its rests are short.
pub const KEEPER: Policy = Policy {
    ran_well: Duration::from_secs(1),
    rest_min: Duration::from_millis(100),
    rest_max: Duration::from_secs(1),
};

/// One process's life, death and successors.
#[derive(Clone, Copy, Debug)]
pub struct Restarts {
    policy: Policy,
    started: Instant,
    /// Since it last ran well.
    deaths: u32,
    due: Option<Instant>,
}

impl Restarts {
    /// Of one that was just started.
    #[must_use]
    pub fn new(policy: Policy, now: Instant) -> Restarts {
        Restarts { policy, started: now, deaths: 0, due: None }
    }

    /// It runs.
    pub fn started(&mut self, now: Instant) {
        self.started = now;
        self.due = None;
    }

    /// It ended; the rest until the next is due.
    pub fn died(&mut self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.started) >= self.policy.ran_well {
            self.deaths = 0;
        }
        self.rest(now)
    }

    /// The next could not be started; the rest until another is due. It is never tried again at once.
    pub fn failed(&mut self, now: Instant) -> Duration {
        self.deaths = self.deaths.max(1);
        self.rest(now)
    }

    fn rest(&mut self, now: Instant) -> Duration {
        self.deaths = self.deaths.saturating_add(1);
        let Policy { rest_min, rest_max, .. } = self.policy;
        let rest = match self.deaths.checked_sub(2) {
            None => Duration::ZERO,
            Some(doublings) => rest_min.saturating_mul(1 << doublings.min(16)).min(rest_max),
        };
        self.due = Some(now + rest);
        rest
    }

    /// Deaths in a row.
    #[must_use]
    pub fn deaths(&self) -> u32 {
        self.deaths
    }

    /// When the next is due, if one is.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the next is to be started now; it is said once.
    pub fn take_due(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_deaths_rests_ever_longer_and_a_single_one_not() {
        let mut now = Instant::now();
        let mut r = Restarts::new(NSM, now);
        let ms: Vec<u128> = (0..10)
            .map(|_| {
                let rest = r.died(now);
                assert!(rest.is_zero() || !r.take_due(now), "not before its time");
                now += rest;
                assert!(r.take_due(now) && !r.take_due(now), "once");
                r.started(now);
                rest.as_millis()
            })
            .collect();
        assert_eq!(ms, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        now += NSM.ran_well;
        assert_eq!(r.died(now), Duration::ZERO, "it ran well");
        r.started(now);
        assert_eq!(r.died(now), NSM.rest_min, "the next did not");
    }

    #[test]
    fn one_that_cannot_be_started_is_not_tried_again_at_once() {
        let now = Instant::now();
        let mut r = Restarts::new(KEEPER, now);
        assert_eq!(r.died(now), Duration::ZERO);
        assert!(r.take_due(now));
        assert_eq!(r.due(), None, "it is being started");
        let rests: Vec<u128> = (0..6).map(|_| r.failed(now).as_millis()).collect();
        assert_eq!(rests, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(Restarts::new(NSM, now).failed(now), NSM.rest_min);
    }
}
