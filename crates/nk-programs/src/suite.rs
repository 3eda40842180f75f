//! The list of tests, and running them, each in a [`World`] of its own: several at once do each other no harm.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::world::{Mode, Options, World};
use crate::{cases, moves, nsms, safety, spread, tenants};

/// Which of the suite's parts a test belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Programs,
    Tenants,
    Safety,
    /// Several NSMs.
    Nsms,
}

/// What a test does: the text says what it saw, for the log.
pub type Body = fn(&mut World, Mode) -> Result<String>;

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    pub name: &'static str,
    pub group: Group,
    pub modes: &'static [Mode],
    /// Its guests start private daemons.
    pub private: bool,
    /// It keeps the whole machine busy, or breaks things: nothing runs beside it.
    pub alone: bool,
    /// It makes sense with no guest at all (to try the test itself).
    pub native: bool,
    pub body: Body,
}

impl Test {
    /// Makes tests of guests, all of one daemon, beside which nothing runs.
    pub(crate) fn alone(
        group: Group,
        modes: &'static [Mode],
    ) -> impl Fn(&'static str, Body) -> Test {
        move |name, body| Test {
            name,
            group,
            modes,
            private: false,
            alone: true,
            native: false,
            body,
        }
    }
}

/// Both sides in turn, then both at once.
pub const ALL_MODES: &[Mode] = &[Mode::GUEST_SERVER, Mode::GUEST_CLIENT, Mode::BOTH_GUESTS];
/// For tests in which all programs are guests.
pub const GUESTS_ONLY: &[Mode] = &[Mode::BOTH_GUESTS];

/// All tests, cheap ones first.
#[must_use]
pub fn tests() -> Vec<Test> {
    let mut tests = cases::tests();
    tests.extend(tenants::tests());
    tests.extend(safety::tests());
    tests.extend(nsms::tests());
    tests.extend(moves::tests());
    tests.extend(spread::tests());
    tests
}

/// How one test ended in one mode.
#[derive(Debug)]
pub struct Outcome {
    pub name: String,
    pub elapsed: Duration,
    /// What it saw, or why it failed.
    pub result: Result<String>,
}

/// Runs tests, `jobs` at a time where they may have company, and reports each as it ends.
pub fn run_all(
    chosen: &[(Test, Mode)],
    options: &Options,
    jobs: usize,
    mut report: impl FnMut(&(Test, Mode), Outcome),
) {
    let (alone, among_others): (Vec<_>, Vec<_>) = chosen.iter().partition(|(test, _)| test.alone);
    run_group(&among_others, options, jobs, &mut report);
    run_group(&alone, options, 1, &mut report);
}

fn run_group(
    chosen: &[&(Test, Mode)],
    options: &Options,
    jobs: usize,
    report: &mut impl FnMut(&(Test, Mode), Outcome),
) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..jobs.max(1) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&one) = chosen.get(index) else { return };
                    if sender.send((one, run_one(&one.0, one.1, options))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (one, outcome) in receiver {
            report(one, outcome);
        }
    });
}

/// Runs a test in one mode: the test, then the checks of what it left.
#[must_use]
pub fn run_one(test: &Test, mode: Mode, options: &Options) -> Outcome {
    let begun = Instant::now();
    let options = Options { private: options.private || test.private, ..options.clone() };
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(&options)?;
        let saw = (test.body)(&mut world, mode)?;
        world.close()?;
        Ok(saw)
    }))
    .unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(anyhow!("panicked: {}", text.unwrap_or_default()))
    });
    Outcome { name: format!("{} ({})", test.name, mode.name()), elapsed: begun.elapsed(), result }
}
