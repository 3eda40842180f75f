//! The limits that can be changed while a guest runs: the one list of their names, ranges and meanings, for the configuration, `nk guest
//! limit` and orders.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error};

use super::{BURST_MS_MAX, BYTES_PER_S, ByteRate, CHUNKS_MIN, GuestLimits, WEIGHT_MAX};

/// How a limit is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// As a [`ByteRate`].
    Rate,
    /// A plain number of these.
    Number(&'static str),
}

/// One limit.
pub struct Limit {
    /// Its key.
    pub name: &'static str,
    /// What it limits.
    pub what: &'static str,
    /// How it is written.
    pub unit: Unit,
    /// Whether there may be none, which is 0 in an order.
    pub optional: bool,
    least: u64,
    most: u64,
    set: fn(&mut GuestLimits, u64),
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const fn rate(name: &'static str, what: &'static str, set: fn(&mut GuestLimits, u64)) -> Limit {
    let (least, most) = (*BYTES_PER_S.start(), *BYTES_PER_S.end());
    Limit { name, what, unit: Unit::Rate, optional: true, least, most, set }
}

const fn count(
    name: &'static str,
    what: &'static str,
    (least, most): (u32, u32),
    set: fn(&mut GuestLimits, u64),
) -> Limit {
    let (least, most) = (least as u64, most as u64);
    Limit { name, what, unit: Unit::Number("N"), optional: true, least, most, set }
}

/// All of them.
pub static LIMITS: [Limit; 9] = [
    rate("out", "What it sends", |l, n| l.out = n),
    rate("in", "What it receives", |l, n| l.input = n),
    count(
        "connections_per_s",
        "Connections per second, made and accepted",
        (1, u32::MAX),
        |l, n| {
            l.connections_per_s = n;
        },
    ),
    count("nqes_per_s", "NQEs per second", (1, u32::MAX), |l, n| l.nqes_per_s = n),
    count("sockets_max", "Sockets", (1, u32::MAX), |l, n| l.sockets_max = n as u32),
    count("chunks_max", "Chunks of 32 KiB", (CHUNKS_MIN, u32::MAX), |l, n| l.chunks_max = n as u32),
    count("processes_max", "Processes", (1, nk_device::ROWS_MAX as u32 - 1), |l, n| {
        l.processes_max = n as u32;
    }),
    Limit {
        unit: Unit::Number("MS"),
        optional: false,
        ..count(
            "burst_ms",
            "How much of its rates may come at once, in milliseconds of the rate",
            (1, BURST_MS_MAX),
            |l, n| l.burst_ms = n as u32,
        )
    },
    Limit {
        optional: false,
        ..count("weight", "Its part where guests compete, 1 to 64", (1, WEIGHT_MAX), |l, n| {
            l.weight = n as u32;
        })
    },
];

/// A change of one limit. 0 takes it away.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    limit: &'static Limit,
    value: u64,
}

impl Limit {
    /// By its key.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Limit> {
        LIMITS.iter().find(|l| l.name == name)
    }

    fn change(&'static self, value: u64) -> Result<Change, String> {
        if (self.least..=self.most).contains(&value) || (value == 0 && self.optional) {
            Ok(Change { limit: self, value })
        } else {
            Err(format!("{}: {} to {}", self.name, self.least, self.most))
        }
    }

    /// From what somebody wrote: a rate or a number, or "none".
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(&'static self, text: &str) -> Result<Change, String> {
        match self.unit {
            _ if text == "none" && self.optional => self.change(0),
            Unit::Rate => self.change(text.parse::<ByteRate>()?.0),
            Unit::Number(_) => {
                self.change(text.parse().map_err(|_| format!("{text:?} is no number"))?)
            }
        }
    }
}

/// From a configuration's value.
impl<'de> DeserializeSeed<'de> for &'static Limit {
    type Value = Change;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Change, D::Error> {
        let value = match self.unit {
            Unit::Rate => ByteRate::deserialize(d)?.0,
            Unit::Number(_) => u64::deserialize(d)?,
        };
        // At run time 0 takes a limit away; here that is said by saying nothing.
        match self.change(value) {
            Ok(_) if value == 0 => {
                Err(format!("{}: at least 1; for no limit leave it out", self.name))
            }
            other => other,
        }
        .map_err(D::Error::custom)
    }
}

/// As a word of an order: `key=number`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.limit.name, self.value)
    }
}

impl FromStr for Change {
    type Err = String;
    fn from_str(text: &str) -> Result<Change, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is no KEY=N"))?;
        let limit = Limit::named(key).ok_or_else(|| format!("there is no limit {key:?}"))?;
        limit.change(value.parse().map_err(|_| format!("{key}: {value:?} is no number"))?)
    }
}

impl GuestLimits {
    /// Makes a change.
    pub fn change(&mut self, c: Change) {
        (c.limit.set)(self, c.value);
    }
}
