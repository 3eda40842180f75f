//! Runs every case natively and as a guest, in every combination it has, and compares.
//!
//! The native run is the reference and is made anew each time, on the same machine and under the same
//! load as the guest's. A native run that fails makes the case fail: a case that proves nothing is a bug.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::case::{Case, Shape};
use crate::compile::compile;
use crate::diff::diff;
use crate::ports::Ports;
use crate::process::{Finished, Start};

/// Ports of each run.
const PORTS: u16 = 8;
/// Enough for all runs of all cases.
const PORT_BLOCKS: usize = 4;

/// Which role of a pair case is the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modes {
    /// Guest server, guest client, and both.
    Both,
    Server,
    Client,
}

/// What to run and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that holds `case.h` and `cases/`.
    pub conformance_dir: PathBuf,
    pub build_dir: PathBuf,
    /// The command prefix that makes a guest; empty: native runs only, compared with each other.
    pub guest: Vec<String>,
    pub modes: Modes,
    pub jobs: usize,
    /// How many times each combination runs; a difference in any of them is a failure.
    pub repeat: u32,
}

/// One run that was not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which run: `guest`, `guest server, native client`, ...
    pub run: String,
    pub report: String,
}

/// A case's result.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub name: String,
    pub failures: Vec<Failure>,
    pub runs: u32,
    pub elapsed: Duration,
}

/// Runs the cases, `options.jobs` at a time, and reports each as it ends. Returns all in order of name.
pub fn run_suite(
    options: &Options,
    cases: &[Case],
    mut report: impl FnMut(&Outcome),
) -> Result<Vec<Outcome>> {
    fs::create_dir_all(&options.build_dir)
        .with_context(|| format!("cannot make {}", options.build_dir.display()))?;
    let next = AtomicUsize::new(0);
    let ports = Mutex::new(Ports::claim(PORT_BLOCKS).context("ports for the cases")?);
    let mut outcomes = Vec::with_capacity(cases.len());
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..options.jobs.clamp(1, 64) {
            let (sender, next, ports) = (sender.clone(), &next, &ports);
            scope.spawn(move || {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = Runner { options, case, ports }.run();
                    if sender.send(outcome).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for outcome in receiver {
            report(&outcome);
            outcomes.push(outcome);
        }
    });
    outcomes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(outcomes)
}

/// Which roles of a case are guests in one run.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Combination {
    server: bool,
    client: bool,
}

const NATIVE: Combination = Combination { server: false, client: false };

impl Combination {
    fn label(self, shape: Shape) -> String {
        let name = |guest| if guest { "guest" } else { "native" };
        match shape {
            Shape::Own => name(self.server).to_owned(),
            _ => format!("{} server, {} client", name(self.server), name(self.client)),
        }
    }
}

struct Runner<'a> {
    options: &'a Options,
    case: &'a Case,
    ports: &'a Mutex<Ports>,
}

impl Runner<'_> {
    fn run(&self) -> Outcome {
        let begun = Instant::now();
        let mut outcome = Outcome {
            name: self.case.name.clone(),
            failures: Vec::new(),
            runs: 0,
            elapsed: Duration::ZERO,
        };
        if let Err(error) = self.run_all(&mut outcome) {
            outcome.failures.push(Failure { run: "runner".into(), report: format!("{error:#}\n") });
        }
        outcome.elapsed = begun.elapsed();
        outcome
    }

    fn run_all(&self, outcome: &mut Outcome) -> Result<()> {
        let program = compile(self.case, &self.options.conformance_dir, &self.options.build_dir)?;
        let native = self.run_once(&program, NATIVE, outcome)?;
        for finished in &native {
            if finished.status != "exit 0" {
                outcome.failures.push(Failure {
                    run: NATIVE.label(self.case.shape),
                    report: format!("the native run itself failed\n{}", describe(finished)),
                });
                return Ok(());
            }
        }
        for _ in 0..self.options.repeat {
            for combination in self.combinations() {
                let seen = self.run_once(&program, combination, outcome)?;
                self.compare(combination, &native, &seen, outcome);
            }
        }
        Ok(())
    }

    /// The runs that are compared with the native one.
    fn combinations(&self) -> Vec<Combination> {
        if self.options.guest.is_empty() {
            return vec![NATIVE];
        }
        let server = Combination { server: true, client: false };
        let client = Combination { server: false, client: true };
        let both = Combination { server: true, client: true };
        let mut wanted = match self.options.modes {
            Modes::Both => vec![server, client, both],
            Modes::Server => vec![server],
            Modes::Client => vec![client],
        };
        match self.case.shape {
            Shape::Own => return vec![both],
            Shape::Pair => {}
            Shape::Server => wanted.retain(|combination| *combination == server),
            Shape::Client => wanted.retain(|combination| *combination == client),
        }
        wanted
    }

    fn run_once(
        &self,
        program: &Path,
        combination: Combination,
        outcome: &mut Outcome,
    ) -> Result<Vec<Finished>> {
        outcome.runs += 1;
        let dir = Scratch::new(&self.options.build_dir)?;
        let port = self.ports.lock().unwrap_or_else(PoisonError::into_inner).take(PORTS);
        let roles: &[(&str, &[&str], bool)] = match self.case.shape {
            Shape::Own => &[("self", &[], combination.server)],
            _ => &[
                ("server", &["server"], combination.server),
                ("client", &["client"], combination.client),
            ],
        };
        let mut running = Vec::new();
        for (label, arguments, is_guest) in roles {
            let start = Start {
                prefix: if *is_guest { &self.options.guest } else { &[] },
                program,
                arguments,
                dir: &dir.path,
                label,
                port,
                timeout: self.case.timeout,
            };
            running.push(start.spawn().with_context(|| format!("cannot start {start:?}"))?);
        }
        running.into_iter().map(|one| Ok(one.finish()?)).collect()
    }

    fn compare(
        &self,
        combination: Combination,
        native: &[Finished],
        seen: &[Finished],
        outcome: &mut Outcome,
    ) {
        let roles: &[&str] =
            if self.case.shape == Shape::Own { &[""] } else { &["the server: ", "the client: "] };
        let mut report = String::new();
        for ((role, native), seen) in roles.iter().zip(native).zip(seen) {
            let expected = match &self.case.expect_guest {
                Some(expected) if combination != NATIVE => expected,
                _ => &native.trace,
            };
            let difference = diff(expected, &seen.trace);
            if difference.is_empty() && seen.status == native.status {
                continue;
            }
            report += &format!("{role}{} (expected {})\n", seen.status, native.status);
            report += if difference.is_empty() { "  the same trace\n" } else { &difference };
            for line in seen.errors.lines().take(30) {
                report += &format!("! {line}\n");
            }
        }
        if !report.is_empty() {
            let run = combination.label(self.case.shape);
            outcome.failures.push(Failure { run, report });
        }
    }
}

fn describe(finished: &Finished) -> String {
    let mut text = format!("{}\n", finished.status);
    for line in finished.trace.lines() {
        text += &format!("  {line}\n");
    }
    for line in finished.errors.lines() {
        text += &format!("! {line}\n");
    }
    text
}

/// A directory for one run, gone with it.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(parent: &Path) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("run-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path: path.canonicalize()? })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
