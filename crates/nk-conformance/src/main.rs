//! `nk-conformance`: runs the conformance cases natively and as guests and prints where they differ.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use nk_conformance::case::Case;
use nk_conformance::{Modes, Options, Outcome, discover, run_suite};

/// Runs every case in conformance/cases natively and as a guest and compares what they saw.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The command prefix that makes a guest, split at spaces
    #[arg(long, default_value = "target/release/nk run --")]
    guest: String,
    /// Compare native runs with each other: finds cases that flake
    #[arg(long)]
    native_only: bool,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// How many cases run at once
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Which role of a two-program case is the guest
    #[arg(long, value_enum, default_value_t = Roles::Both)]
    modes: Roles,
    /// How many times each combination runs
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// The directory with case.h and cases/
    #[arg(long, default_value = "conformance")]
    dir: PathBuf,
    /// Where compiled cases and scratch files go
    #[arg(long, default_value = "target/conformance")]
    build_dir: PathBuf,
    /// Print the names of the cases and end
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Roles {
    /// Guest server with native client, native server with guest client, and both guests
    Both,
    /// Guest server with native client
    Server,
    /// Native server with guest client
    Client,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("nk-conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let cases = discover(&arguments.dir.join("cases"), &arguments.filter)?;
    ensure!(!cases.is_empty(), "no case has {:?} in its name", arguments.filter);
    if arguments.list {
        for case in &cases {
            println!("{}", case.name);
        }
        return Ok(true);
    }
    let guest = if arguments.native_only { Vec::new() } else { guest_prefix(&arguments.guest)? };
    let options = Options {
        conformance_dir: arguments.dir.canonicalize().context("no conformance directory")?,
        build_dir: std::path::absolute(&arguments.build_dir)?,
        guest,
        modes: match arguments.modes {
            Roles::Both => Modes::Both,
            Roles::Server => Modes::Server,
            Roles::Client => Modes::Client,
        },
        jobs: arguments.jobs,
        repeat: arguments.repeat,
    };
    let outcomes = run_suite(&options, &cases, print_outcome)?;
    let (unsteady, failed) = again_alone(&options, &cases, &outcomes)?;
    let runs: u32 = outcomes.iter().map(|one| one.runs).sum();
    println!("{} cases, {runs} runs: {} failed, {unsteady} unsteady", outcomes.len(), failed.len());
    for outcome in &failed {
        let runs: Vec<&str> = outcome.failures.iter().map(|failure| failure.run.as_str()).collect();
        println!("  {} ({})", outcome.name, runs.join("; "));
    }
    Ok(failed.is_empty())
}

/// A case that failed among others on a loaded machine has to pass this often in a row, alone, to count as unsteady and not as
/// failed.
const ALONE: u32 = 5;

/// Runs failed cases again: how many passed [`ALONE`] times in a row (named, so that somebody looks), and those that did not.
fn again_alone<'a>(
    options: &Options,
    cases: &[Case],
    outcomes: &'a [Outcome],
) -> Result<(usize, Vec<&'a Outcome>)> {
    let alone = Options { jobs: 1, repeat: ALONE, ..options.clone() };
    let mut unsteady = 0;
    let mut failed = Vec::new();
    for outcome in outcomes.iter().filter(|one| !one.failures.is_empty()) {
        let case: Vec<Case> =
            cases.iter().filter(|case| case.name == outcome.name).cloned().collect();
        println!("again, alone, {ALONE} times: {}", outcome.name);
        let second = run_suite(&alone, &case, print_outcome)?;
        if second.iter().all(|one| one.failures.is_empty()) {
            unsteady += 1;
        } else {
            failed.push(outcome);
        }
    }
    Ok((unsteady, failed))
}

/// The prefix's words; a program given by path is made absolute, since cases run in scratch directories.
fn guest_prefix(text: &str) -> Result<Vec<String>> {
    let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    let program =
        words.first_mut().context("--guest is empty (native runs only: --native-only)")?;
    if program.contains('/') {
        let path = PathBuf::from(&program).canonicalize();
        let path = path.with_context(|| format!("there is no guest launcher at {program}"))?;
        *program = path.to_str().context("the launcher's path is not UTF-8")?.to_owned();
    }
    Ok(words)
}

fn print_outcome(outcome: &Outcome) {
    let seconds = outcome.elapsed.as_secs_f64();
    if outcome.failures.is_empty() {
        println!("ok    {} ({seconds:.2} s)", outcome.name);
        return;
    }
    println!("FAIL  {} ({seconds:.2} s)", outcome.name);
    for failure in &outcome.failures {
        println!("    {}", failure.run);
        for line in failure.report.lines() {
            println!("    | {line}");
        }
    }
}
