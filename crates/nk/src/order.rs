//! `nk guest`: orders to the daemon, by root or the daemon's user.

use nk_attach::{Kind, TEXT_MAX};
use nk_host::limits::{Change, LIMITS, Unit};

use crate::Failure;
use crate::ask::{Engine, Whose};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum GuestCommand {
    /// Change a running guest's limits; what is not named stays, and "none" takes a limit away
    #[command(after_help = "\
Rates have units: kbit/s, Mbit/s, Gbit/s, kB/s, MB/s, GB/s. `nk guests --json` shows limits and what they held back.
They stay until the configuration says something else of the guest (SIGHUP), also when the daemon is killed or replaced.")]
    Limit(Limit),
    /// Move a running guest to another NSM: new connections and listeners at once, its connections end where they are
    #[command(after_help = "\
No request fails: connections that wait to be accepted, and those that come meanwhile, are served. `nk guests` and `nk nsm ls` show
where a guest is, and what it still has on the NSM that it left. Should that one die, its connections alone are reset.")]
    Move {
        /// The guest's name
        guest: String,
        /// The NSM, as `nk nsm ls` names it
        #[arg(long, value_name = "NSM")]
        to: String,
        #[command(flatten)]
        engine: Engine,
    },
    /// List guests: as `nk guests`
    Ls {
        #[command(flatten)]
        from: crate::query::From,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Limit {
    /// The guest's name
    guest: String,
    #[command(flatten)]
    engine: Engine,
    #[command(flatten)]
    changes: Changes,
}

/// An option for each limit there is.
#[derive(Debug)]
struct Changes(Vec<Change>);

impl clap::Args for Changes {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(LIMITS.iter().map(|limit| {
            let unit = match limit.unit {
                Unit::Rate => "RATE",
                Unit::Number(unit) => unit,
            };
            clap::Arg::new(limit.name)
                .long(limit.name.replace('_', "-"))
                .value_name(unit)
                .help(limit.what)
                .value_parser(move |text: &str| limit.parse(text))
        }))
    }
    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Changes {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Changes, clap::Error> {
        Ok(Changes(LIMITS.iter().filter_map(|l| matches.get_one(l.name).copied()).collect()))
    }
    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Changes::from_arg_matches(matches)?;
        Ok(())
    }
}

pub(crate) fn guest(command: &GuestCommand) -> Result<(), Failure> {
    match command {
        GuestCommand::Limit(l) => limit(l),
        GuestCommand::Move { guest, to, engine } => {
            if [guest, to].iter().any(|name| name.is_empty() || name.contains(char::is_whitespace))
            {
                return Err(Failure::new(2, "a guest and an NSM are named by one word each"));
            }
            give(engine, &format!("move {guest} {to}"), guest)
        }
        GuestCommand::Ls { from } => crate::query::guests(from),
    }
}

fn limit(l: &Limit) -> Result<(), Failure> {
    let words: Vec<String> = l.changes.0.iter().map(ToString::to_string).collect();
    if words.is_empty() {
        return Err(Failure::new(2, "say which limit is to change: see `nk guest limit --help`"));
    }
    let order = format!("limit {} {}", l.guest, words.join(" "));
    if order.len() > TEXT_MAX {
        return Err(Failure::new(
            2,
            "too much for one order: change some limits first, then the rest",
        ));
    }
    give(&l.engine, &order, &l.guest)
}

/// Gives an order to the daemon that has the guest.
fn give(engine: &Engine, order: &str, guest: &str) -> Result<(), Failure> {
    let none = || {
        format!(
            "no guest {guest:?} at any daemon that was asked; `nk guests` lists them, --engine names another daemon"
        )
    };
    let given = engine.first(Whose::Own, |daemon| daemon.request(Kind::Order, order))?;
    given.map(drop).ok_or_else(|| Failure::new(1, none()))
}
