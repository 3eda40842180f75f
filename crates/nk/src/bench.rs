//! `nk bench`: the command line of [`nk_bench`].

use clap::Subcommand;
use nk_bench::switch;

use crate::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// NQEs per second that CoreEngine switches on one core, by batch and number of connections
    Switch {
        /// Samples of each figure
        #[arg(long, default_value_t = 5, value_name = "N")]
        rounds: usize,
        /// Length of each sample
        #[arg(long, default_value_t = 40, value_name = "MS")]
        sample_ms: u64,
        /// Connections of all four guests together
        #[arg(long, value_delimiter = ',', default_values_t = [1000, 100_000, 1_000_000], value_name = "LIST")]
        connections: Vec<u32>,
        /// NQEs taken from a queue set in one turn [default: 1,2,4,...,256]
        #[arg(long, value_delimiter = ',', value_name = "LIST")]
        batches: Vec<u32>,
        /// CPU of the engine and CPU of producers and NSM [default: the first two]
        #[arg(long, value_delimiter = ',', num_args = 1, value_name = "A,B")]
        cpus: Vec<usize>,
    },
}

pub(crate) fn bench(command: &Command) -> Result<(), Failure> {
    let Command::Switch { rounds, sample_ms, connections, batches, cpus } = command;
    let cpus = match cpus.as_slice() {
        [] => None,
        [engine, peers] => Some((*engine, *peers)),
        _ => return Err(Failure::new(2, "--cpus takes two CPUs: A,B")),
    };
    let options = switch::Options {
        rounds: *rounds,
        sample_ms: *sample_ms,
        connections: connections.clone(),
        batches: batches.clone(),
        cpus,
    };
    Ok(switch::run(&options, &mut std::io::stdout())?)
}
