//! `nk-load`: the loads that Debian has no program for. One line of JSON says what became of it.
//!
//! The same binary loads guests and native servers; it is cheap, so that what is measured is not itself.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use nk_programs::generator::{Generator, Load, Outcome, pingpong, stream};
use nk_programs::procfs;
use rustix::time::{ClockId, clock_gettime};

#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// GET / of a server on 127.0.0.1
    Http {
        #[arg(long)]
        port: u16,
        /// Connections, all threads together
        #[arg(long, default_value_t = 64)]
        connections: usize,
        #[arg(long, default_value_t = 1)]
        threads: u32,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Requests per second, whatever becomes of them (open loop) [default: as fast as answers come]
        #[arg(long)]
        rate: Option<f64>,
        /// One connection per request
        #[arg(long)]
        short: bool,
    },
    /// Send back what comes
    Echo {
        #[arg(long)]
        port: u16,
    },
    /// Round trips to an echo
    Ping {
        #[arg(long)]
        port: u16,
        #[arg(long, default_value_t = 64)]
        bytes: usize,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
    /// Read one connection to its end
    Sink {
        #[arg(long)]
        port: u16,
    },
    /// Write to a sink
    Source {
        #[arg(long)]
        port: u16,
        /// Of each write
        #[arg(long, default_value_t = 1024)]
        bytes: usize,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("nk-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<serde_json::Value> {
    match *command {
        Command::Http { port, connections, threads, seconds, rate, short } => {
            ensure!(threads > 0 && connections >= threads as usize, "a connection for each thread");
            let time = Duration::try_from_secs_f64(seconds).context("--seconds")?;
            ensure!(rate.is_none_or(|rate| rate > 0.0), "--rate must be positive");
            // Timers are to be kept, not gathered.
            rustix::thread::set_current_timer_slack(std::num::NonZero::new(1))?;
            let generators: Vec<Generator> = (0..threads)
                .map(|turn| {
                    Generator::new(Load {
                        port,
                        connections: connections / threads as usize,
                        time,
                        rate: rate.map(|rate| rate / f64::from(threads)),
                        short,
                        turn: (turn, threads),
                    })
                })
                .collect::<Result<_>>()?;
            let cost = Cost::begin()?;
            let outcomes = std::thread::scope(|scope| {
                let running: Vec<_> =
                    generators.into_iter().map(|g| scope.spawn(|| g.run())).collect();
                let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                    thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked"))
                };
                running.into_iter().map(join).collect::<Result<Vec<Outcome>>>()
            })?;
            let took = outcomes.iter().map(|o| o.took).max().unwrap_or_default();
            let failed: u64 = outcomes.iter().map(|o| o.failed).sum();
            let all = outcomes.into_iter().flat_map(|o| o.latencies_ns).collect();
            cost.report(all, failed, took)
        }
        Command::Echo { port } => {
            pingpong::echo(port)?;
            Ok(serde_json::Value::Null)
        }
        Command::Ping { port, bytes, seconds } => {
            let time = Duration::try_from_secs_f64(seconds).context("--seconds")?;
            let cost = Cost::begin()?;
            let begun = Instant::now();
            let trips = pingpong::ping(port, bytes, time)?;
            cost.report(trips, 0, begun.elapsed())
        }
        Command::Sink { port } => Ok(serde_json::json!({ "bytes": stream::sink(port)? })),
        Command::Source { port, bytes, seconds } => {
            ensure!(bytes > 0, "--bytes must be positive");
            let time = Duration::try_from_secs_f64(seconds).context("--seconds")?;
            let before = procfs::machine_busy()?;
            let (sum, took) = stream::source(port, bytes, time)?;
            let busy = procfs::machine_busy()?.saturating_sub(before);
            Ok(serde_json::json!({
                "bytes": sum,
                "gbit_per_second": sum as f64 * 8e-9 / took.as_secs_f64(),
                "machine_cpu_ms_per_gb": busy.as_secs_f64() * 1e3 / (sum as f64 / 1e9),
            }))
        }
    }
}

/// What the machine and this process have used so far.
struct Cost {
    machine: Duration,
    own: Duration,
}

impl Cost {
    fn begin() -> Result<Self> {
        let own = clock_gettime(ClockId::ProcessCPUTime);
        let own = Duration::try_from(own).context("process clock")?;
        Ok(Cost { machine: procfs::machine_busy()?, own })
    }

    fn report(self, mut ns: Vec<u64>, failed: u64, took: Duration) -> Result<serde_json::Value> {
        let now = Cost::begin()?;
        ensure!(!ns.is_empty(), "nothing was answered ({failed} failed)");
        ns.sort_unstable();
        let count = ns.len() as f64;
        let at = |part: f64| {
            let index = ((count * part).ceil() as usize).clamp(1, ns.len()) - 1;
            ns.get(index).map_or(0.0, |ns| *ns as f64 / 1e3)
        };
        let each = |spent: Duration| spent.as_secs_f64() * 1e6 / count;
        Ok(serde_json::json!({
            "requests": ns.len(),
            "failed": failed,
            "per_second": count / took.as_secs_f64(),
            "p50_us": at(0.5),
            "p99_us": at(0.99),
            "p999_us": at(0.999),
            "max_us": at(1.0),
            "machine_cpu_us": each(now.machine.saturating_sub(self.machine)),
            "own_cpu_us": each(now.own.saturating_sub(self.own)),
        }))
    }
}
