//! `nk`: runs programs as NetKernel guests, serves them, and shows what is there.
//!
//! | module | what |
//! |---|---|
//! | [`run`] | `nk run`: becomes the first process of a guest |
//! | [`daemon`] | `nk daemon`, also the private one |
//! | [`ask`] | requests to daemons, and which there are |
//! | [`mod@bench`] | `nk bench` |
//! | [`doctor`] | `nk doctor` |
//! | [`log`] | what is logged, and how often |
//! | [`order`] | `nk guest`: changes what runs |
//! | [`query`] | `nk guests`, `nk flows`, `nk nsm ls`, `nk why` |
//!
//! The program has no Rust runtime entry: that would ignore SIGPIPE, and a command run by `nk run` would inherit it.
#![cfg_attr(not(test), no_main)]

mod ask;
mod bench;
mod daemon;
mod doctor;
mod log;
mod metrics;
mod order;
mod query;
mod run;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use nk_host::config::{Config, NamespaceName};

/// Runs unmodified programs with no network stack of their own, served by the host's.
#[derive(Debug, Parser)]
#[command(name = "nk", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command as a guest, in place: same pid, terminal, signals and exit status
    #[command(after_help = "\
With no daemon on the default socket (or --engine), a private one is started that ends with the guest's last process.
A daemon that was killed and is to be started again, as its keeper is there, is waited for; after a second that is said.
Exit status: the command's; 126 when it cannot be run as a guest, 127 when it is not found, 125 when nk itself fails.")]
    Run {
        /// Namespace of the host in which its sockets are opened: "host" or "netns:NAME" [default: the caller's]
        #[arg(long, value_name = "host|netns:NAME")]
        net: Option<NamespaceName>,
        /// The guest's name [default: the command's, with its pid]
        #[arg(long, value_name = "G")]
        name: Option<String>,
        /// Attach socket of the daemon [default: /run/netkernel/nk.sock, else a private daemon]
        #[arg(long, value_name = "SOCKET")]
        engine: Option<PathBuf>,
        /// Stay in the caller's network namespace (where none can be made); IP sockets of its own stay refused
        #[arg(long)]
        share_net: bool,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Serve guests
    Daemon {
        /// Configuration file (TOML)
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Attach socket [default: the configuration's, else /run/netkernel/nk.sock]
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
        /// Where the NSM runs, if there is one only [default: the configuration's, else inline]
        #[arg(long, value_name = "inline|process")]
        nsm: Option<NsmPlacement>,
        /// Take over from the daemon that serves there, which ends: guests go on, and connections in NSM processes too
        #[arg(long)]
        replace: bool,
        #[arg(long, hide = true, value_name = "DIR")]
        private: Option<PathBuf>,
    },
    /// List guests with their processes and what the engine counted
    Guests {
        #[command(flatten)]
        from: query::From,
    },
    /// Change a running guest: its limits, its NSM
    Guest {
        #[command(subcommand)]
        command: order::GuestCommand,
    },
    /// List sockets, as ss does, with guest and pid
    Flows {
        #[command(flatten)]
        from: query::From,
    },
    /// Print what Prometheus is to know of the daemon's guests and NSMs (OpenMetrics)
    Metrics(metrics::Options),
    /// Say which calls, options and binaries of a guest's process were not redirected
    Why {
        #[command(flatten)]
        from: query::From,
        /// The process's number: `nk guests` lists them
        pid: i32,
    },
    /// Say what this machine lacks and what that costs
    #[command(after_help = "Exit status: 0 when nothing stops guests, 1 when something does.")]
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Measure parts of NetKernel by themselves; prints Markdown
    Bench {
        #[command(subcommand)]
        command: bench::Command,
    },
    /// Look at configuration files
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Network stack modules
    Nsm {
        #[command(subcommand)]
        command: NsmCommand,
    },
    #[command(hide = true)]
    Resolver,
    #[command(hide = true)]
    Keeper { socket: PathBuf, private: Option<PathBuf> },
}

#[derive(Debug, Subcommand)]
enum NsmCommand {
    /// List them with what they serve
    Ls {
        #[command(flatten)]
        from: query::From,
    },
    #[command(hide = true)]
    Serve { name: String },
    #[command(hide = true)]
    Probe { what: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum NsmPlacement {
    Inline,
    Process,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read a file as the daemon would; says what is wrong with it
    Check {
        /// The file
        file: PathBuf,
    },
}

/// A failure with the exit status that goes with it.
#[derive(Debug)]
struct Failure {
    status: i32,
    text: String,
}

impl Failure {
    fn new(status: i32, text: impl Into<String>) -> Failure {
        Failure { status, text: text.into() }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(e: E) -> Failure {
        Failure { status: 1, text: format!("{:#}", e.into()) }
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Run { net, name, engine, share_net, command } => {
            run::run(&run::Options { net, name, engine, share_net, command })
        }
        Command::Daemon { config, socket, nsm, replace, private } => {
            daemon::daemon(config.as_deref(), socket, nsm, replace, private)
        }
        Command::Guests { from } => query::guests(&from),
        Command::Guest { command } => order::guest(&command),
        Command::Flows { from } => query::flows(&from),
        Command::Metrics(options) => metrics::metrics(&options),
        Command::Why { from, pid } => query::why(&from, pid),
        Command::Doctor { json } => doctor::doctor(json),
        Command::Bench { command } => bench::bench(&command),
        Command::Config { command: ConfigCommand::Check { file } } => {
            Config::read(&file)?;
            println!("{}: good", file.display());
            Ok(())
        }
        Command::Nsm { command: NsmCommand::Ls { from } } => query::nsms(&from),
        // The name is for ps; what else there is to know the daemon says.
        Command::Nsm { command: NsmCommand::Serve { .. } } => daemon::nsm(),
        Command::Nsm { command: NsmCommand::Probe { what } } => Ok(nk_host::nsm::probe(&what)?),
        Command::Resolver => daemon::resolver(),
        Command::Keeper { socket, private } => daemon::keeper(socket, private),
    }
}

#[cfg_attr(test, allow(dead_code, reason = "the test harness has a main of its own"))]
fn run_command_line() -> i32 {
    let status = match start(Cli::parse()) {
        Ok(()) => 0,
        Err(f) => {
            let _ = writeln!(std::io::stderr(), "nk: {}", f.text);
            f.status
        }
    };
    let _ = std::io::stdout().flush();
    status
}

// SAFETY: the C runtime calls main once, with the arguments that std::env::args_os reads by its own means.
#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main(_argc: i32, _argv: *const *const std::ffi::c_char) -> i32 {
    run_command_line()
}
