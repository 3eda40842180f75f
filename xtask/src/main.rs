//! `cargo xtask`: the project's own commands.
//!
//! | module | what |
//! |---|---|
//! | [`mod@test`] | `cargo xtask test`: every check there is, by name |
//! | [`demo`] | `cargo xtask demo`: what NetKernel does, in a minute |
//! | [`mod@bench`] | `cargo xtask bench`: the figures of docs/performance.md |
//! | [`mod@options`] | `cargo xtask options`: docs/socket-options.md |
//! | [`measure`] | one measured load: requests and the machine's CPU |
//! | [`edges`] | which crate may depend on which, and where unsafe code may be |
//! | [`packages`] | Debian packages and Rust components that are missing |
//! | [`workspace`] | paths, and running cargo |
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod edges;
mod measure;
mod options;
mod packages;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test [STEP…]    run all checks, or those named; `test --list` names them
  options         writes docs/socket-options.md: what happens to each socket option
  demo            nginx and curl as guests, what the engine counted, native beside it
  bench [SUITE…] [--rounds N] [--seconds N] [--server-cpus LIST] [--daemon-cpus LIST] [--client-cpus LIST]
        [--congestion NAME] [--nsm inline|separate]
                  guest against native, interleaved, as Markdown; `bench --list` names the suites";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything passed.
fn run(words: &[String]) -> Result<bool> {
    let (command, rest) =
        words.split_first().map_or(("", words), |(first, rest)| (first.as_str(), rest));
    match command {
        "test" => test::run(rest),
        "demo" => demo::run(rest).map(|()| true),
        "options" => options::write().map(|()| true),
        "bench" => bench::run(rest).map(|()| true),
        "" | "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(!command.is_empty())
        }
        other => bail!("there is no command {other:?}\n\n{USAGE}"),
    }
}
