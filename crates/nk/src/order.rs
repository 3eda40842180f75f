//! `nk guest`: orders to the daemon, by root or the daemon's user.

use std::path::PathBuf;

use nk_attach::{Kind, TEXT_MAX};
use nk_host::limits::{ByteRate, Change};

use crate::Failure;
use crate::query::{reachable, request};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum GuestCommand {
    /// Change a running guest's limits; what is not named stays, and "none" takes a limit away
    #[command(after_help = "\
Rates have units: kbit/s, Mbit/s, Gbit/s, kB/s, MB/s, GB/s. `nk guests --json` shows limits and what they held back.
The next SIGHUP of the daemon puts the configuration's limits in force again.")]
    Limit(Limit),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Limit {
    /// The guest's name
    guest: String,
    /// Attach socket of its daemon [default: any daemon that has the guest]
    #[arg(long, value_name = "SOCKET")]
    engine: Option<PathBuf>,
    /// What it sends
    #[arg(long, value_name = "RATE")]
    out: Option<Limited<ByteRate>>,
    /// What it receives
    #[arg(long = "in", value_name = "RATE")]
    input: Option<Limited<ByteRate>>,
    /// Connections per second, made and accepted
    #[arg(long, value_name = "N")]
    connections_per_s: Option<Limited<u64>>,
    /// NQEs per second
    #[arg(long, value_name = "N")]
    nqes_per_s: Option<Limited<u64>>,
    /// Sockets
    #[arg(long, value_name = "N")]
    sockets_max: Option<Limited<u64>>,
    /// Chunks of 16 KiB
    #[arg(long, value_name = "N")]
    chunks_max: Option<Limited<u64>>,
    /// Processes
    #[arg(long, value_name = "N")]
    processes_max: Option<Limited<u64>>,
    /// How much of its rates may come at once, in milliseconds of the rate
    #[arg(long, value_name = "MS")]
    burst_ms: Option<u64>,
    /// Its part where guests compete, 1 to 64
    #[arg(long, value_name = "N")]
    weight: Option<u64>,
}

/// A limit, or none.
#[derive(Clone, Copy, Debug)]
struct Limited<T>(Option<T>);

impl<T: std::str::FromStr> std::str::FromStr for Limited<T>
where
    T::Err: std::fmt::Display,
{
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Limited(None));
        }
        text.parse().map(|v| Limited(Some(v))).map_err(|e: T::Err| e.to_string())
    }
}

pub(crate) fn guest(command: &GuestCommand) -> Result<(), Failure> {
    let GuestCommand::Limit(l) = command;
    let rate = |r: Option<Limited<ByteRate>>| r.map(|r| r.0.map_or(0, |r| r.0));
    let number = |n: Option<Limited<u64>>| n.map(|n| n.0.unwrap_or(0));
    let asked = [
        ("out", rate(l.out)),
        ("in", rate(l.input)),
        ("connections_per_s", number(l.connections_per_s)),
        ("nqes_per_s", number(l.nqes_per_s)),
        ("sockets_max", number(l.sockets_max)),
        ("chunks_max", number(l.chunks_max)),
        ("processes_max", number(l.processes_max)),
        ("burst_ms", l.burst_ms),
        ("weight", l.weight),
    ];
    let words: Vec<String> =
        asked.iter().filter_map(|(key, value)| Some(format!("{key}={}", (*value)?))).collect();
    if words.is_empty() {
        return Err(Failure::new(2, "say which limit is to change: see `nk guest limit --help`"));
    }
    for word in &words {
        word.parse::<Change>().map_err(|why| Failure::new(2, why))?;
    }
    let order = format!("limit {} {}", l.guest, words.join(" "));
    if order.len() > TEXT_MAX {
        return Err(Failure::new(
            2,
            "too much for one order: change some limits first, then the rest",
        ));
    }
    give(l.engine.as_ref(), &order, &l.guest)
}

/// Gives an order to the daemon that has the guest.
fn give(engine: Option<&PathBuf>, order: &str, guest: &str) -> Result<(), Failure> {
    for socket in reachable(engine) {
        match request(&socket, Kind::Order, order) {
            Ok(_) => return Ok(()),
            Err((libc::ENOENT | libc::ECONNREFUSED | libc::ESRCH, _)) if engine.is_none() => {}
            Err((_, why)) => {
                return Err(Failure::new(1, format!("{}: {why}", socket.display())));
            }
        }
    }
    Err(Failure::new(1, format!("no daemon here has a guest {guest:?}; `nk guests` lists them")))
}
