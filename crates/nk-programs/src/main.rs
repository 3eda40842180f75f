//! `nk-programs`: runs real programs and safety tests as guests and says what failed.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use nk_programs::suite::{Group, Outcome, Test, run_all, run_one, tests};
use nk_programs::world::{Nsm, Options};
use nk_programs::{Mode, process};

/// Runs Debian's programs as NetKernel guests, with plain peers and with each other.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The nk binary
    #[arg(long, default_value = "target/release/nk")]
    nk: PathBuf,
    /// Run everything natively, to try the tests themselves
    #[arg(long)]
    native: bool,
    /// Where the NSM runs
    #[arg(long, value_enum, default_value_t = NsmChoice::Inline)]
    nsm: NsmChoice,
    /// How the NSM calls the kernel: auto, epoll, io_uring
    #[arg(long)]
    io: Option<String>,
    /// Only tests of this group
    #[arg(long, value_enum)]
    group: Option<GroupChoice>,
    /// Only tests whose name and mode contain this
    #[arg(long, default_value = "")]
    filter: String,
    /// Shorter safety tests: a tenth of the connections and of the time
    #[arg(long)]
    quick: bool,
    /// How often the tests that kill each part do it (100 times; with --quick a tenth)
    #[arg(long)]
    kills: Option<u32>,
    /// How many times
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// How many tests run at once
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Leave the temporary directories
    #[arg(long)]
    keep: bool,
    /// Print the names and end
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NsmChoice {
    Inline,
    Separate,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GroupChoice {
    Programs,
    Tenants,
    Safety,
    Nsms,
}

/// How many of the slowest tests are named at the end.
const SLOWEST: usize = 10;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("nk-programs: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let chosen = choose(arguments);
    ensure!(!chosen.is_empty(), "no test matches");
    if arguments.list {
        for (test, mode) in &chosen {
            println!("{} ({})", test.name, mode.name());
        }
        return Ok(true);
    }
    let nk = if arguments.native {
        None
    } else {
        let path = arguments.nk.canonicalize();
        Some(path.with_context(|| format!("there is no nk at {}", arguments.nk.display()))?)
    };
    let nsm = match arguments.nsm {
        NsmChoice::Inline => Nsm::Inline,
        NsmChoice::Separate => Nsm::Separate,
    };
    let options = Options {
        nk,
        nsm,
        io: arguments.io.clone(),
        keep: arguments.keep,
        quick: arguments.quick,
        kills: arguments.kills,
        ..Options::default()
    };
    let mut failed = Vec::new();
    let mut unsteady = Vec::new();
    let mut passed = 0;
    let mut slowest = Vec::new();
    for _ in 0..arguments.repeat {
        let mut again = Vec::new();
        run_all(&chosen, &options, arguments.jobs, |one, outcome| {
            print_outcome(&outcome);
            match outcome.result {
                Ok(_) => passed += 1,
                Err(_) => again.push(*one),
            }
            slowest.push((outcome.elapsed, outcome.name));
        });
        for (test, mode) in again {
            // Once more, alone: a machine with few cores that others use too can miss a time limit. Named below, so that
            // somebody looks.
            let outcome = run_one(&test, mode, &options);
            print_outcome(&outcome);
            if outcome.result.is_ok() {
                passed += 1;
                unsteady.push(outcome.name);
            } else {
                failed.push(outcome.name);
            }
        }
    }
    slowest.sort();
    let times = slowest.iter().rev().take(SLOWEST);
    let times: Vec<_> =
        times.map(|(time, name)| format!("{name} {:.1} s", time.as_secs_f64())).collect();
    println!("slowest: {}", times.join(", "));
    println!("{passed} passed, {} failed", failed.len());
    for name in &unsteady {
        println!("  unsteady, passed the second time: {name}");
    }
    for name in &failed {
        println!("  failed: {name}");
    }
    Ok(failed.is_empty())
}

fn choose(arguments: &Arguments) -> Vec<(Test, Mode)> {
    let all = tests().into_iter().filter(|test| match arguments.group {
        None => true,
        Some(GroupChoice::Programs) => test.group == Group::Programs,
        Some(GroupChoice::Tenants) => test.group == Group::Tenants,
        Some(GroupChoice::Safety) => test.group == Group::Safety,
        Some(GroupChoice::Nsms) => test.group == Group::Nsms,
    });
    let native = [Mode::NATIVE];
    all.flat_map(|test| {
        let modes = match (arguments.native, test.native) {
            (true, true) => &native[..],
            (true, false) => &[],
            (false, _) => test.modes,
        };
        modes.iter().map(move |mode| (test, *mode)).collect::<Vec<_>>()
    })
    .filter(|(test, mode)| format!("{} ({})", test.name, mode.name()).contains(&arguments.filter))
    .collect()
}

fn print_outcome(outcome: &Outcome) {
    let seconds = outcome.elapsed.as_secs_f64();
    match &outcome.result {
        Ok(saw) if saw.is_empty() => println!("ok    {} ({seconds:.1} s)", outcome.name),
        Ok(saw) => println!("ok    {} ({seconds:.1} s): {saw}", outcome.name),
        Err(error) => {
            println!("FAIL  {} ({seconds:.1} s)", outcome.name);
            println!("{}", process::tail(&format!("{error:#}")).trim_start_matches('\n'));
        }
    }
}
