//! A guest's limits as the operator gives them: read from the configuration, changed at run time, kept over the daemon's death, and told to
//! who keeps each of them: CoreEngine what it counts, the guest's NSM the bytes and chunks.

mod change;

use std::fmt;
use std::str::FromStr;

use nk_device::bucket::Rate;
use serde::Deserialize;
use serde_json::{Value, json};

pub use change::{Change, LIMITS, Limit, Unit};

/// Bursts of a guest for which nothing is said: what comes in this time.
const BURST_MS: u32 = 20;
/// The least that a bucket of bytes holds.
const BURST_BYTES_MIN: u64 = 16 * 1024;
/// The least that a bucket of elements or connections holds.
const BURST_MIN: u64 = 4;
/// Bytes per second that can be given as a rate.
const BYTES_PER_S: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000;
/// The greatest weight.
pub const WEIGHT_MAX: u32 = 64;
/// The fewest chunks with which a guest works.
pub const CHUNKS_MIN: u32 = 64;
/// The longest burst.
pub const BURST_MS_MAX: u32 = 10_000;

/// Bytes per second, written with a unit: `500Mbit/s`, `2.5GB/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ByteRate(pub u64);

const UNITS: [(&str, f64); 6] = [
    ("kbit/s", 125.0),
    ("Mbit/s", 125e3),
    ("Gbit/s", 125e6),
    ("kB/s", 1e3),
    ("MB/s", 1e6),
    ("GB/s", 1e9),
];

impl FromStr for ByteRate {
    type Err = String;
    fn from_str(text: &str) -> Result<ByteRate, String> {
        let fail = || {
            let units = UNITS.map(|(unit, _)| unit).join(", ");
            format!(
                "{text:?} is not a rate: write a number with a unit ({units}), 1kB/s to 1000GB/s"
            )
        };
        let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(fail)?;
        let (number, unit) = text.split_at(at);
        let unit = unit.trim_start();
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(fail)?;
        let bytes = number.parse::<f64>().map_err(|_| fail())? * factor;
        let bytes = bytes.round() as u64;
        if BYTES_PER_S.contains(&bytes) { Ok(ByteRate(bytes)) } else { Err(fail()) }
    }
}

impl TryFrom<String> for ByteRate {
    type Error = String;
    fn try_from(text: String) -> Result<ByteRate, String> {
        text.parse()
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}kbit/s", self.0 as f64 / 125.0)
    }
}

/// All limits of a guest; 0 where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLimits {
    /// Bytes per second that it sends.
    pub out: u64,
    /// Bytes per second that it receives.
    pub input: u64,
    /// NQEs per second.
    pub nqes_per_s: u64,
    /// Connections per second, made and accepted.
    pub connections_per_s: u64,
    /// Sockets.
    pub sockets_max: u32,
    /// Chunks.
    pub chunks_max: u32,
    /// Processes.
    pub processes_max: u32,
    /// How much of its rates may come at once, as the time that it takes to come.
    pub burst_ms: u32,
    /// Its part where guests compete.
    pub weight: u32,
    /// The lowest port that it may bind.
    pub port_min: u16,
}

impl Default for GuestLimits {
    fn default() -> GuestLimits {
        GuestLimits {
            out: 0,
            input: 0,
            nqes_per_s: 0,
            connections_per_s: 0,
            sockets_max: 0,
            chunks_max: 0,
            processes_max: 0,
            burst_ms: BURST_MS,
            weight: 1,
            port_min: 0,
        }
    }
}

impl GuestLimits {
    fn rate(&self, per_s: u64, least: u64) -> Option<Rate> {
        (per_s > 0).then(|| Rate::with_burst(per_s, self.burst_ms, least))
    }

    /// Each part of these limits for one of so many NSMs that have sockets of the guest: bytes are divided, so that together they are no
    /// more than the guest's.
    #[must_use]
    pub fn divided(&self, nsms: usize) -> GuestLimits {
        let n = nsms.max(1) as u64;
        GuestLimits { out: self.out.div_ceil(n), input: self.input.div_ceil(n), ..*self }
    }

    /// CoreEngine's part.
    #[must_use]
    pub fn engine(&self) -> nk_engine::Limits {
        let d = nk_engine::Limits::default();
        let or = |max: u32, none: u32| if max == 0 { none } else { max };
        nk_engine::Limits {
            sockets_max: or(self.sockets_max, d.sockets_max),
            rows_max: or(self.processes_max, d.rows_max),
            port_min: self.port_min,
            nqes: self.rate(self.nqes_per_s, BURST_MIN),
            connections: self.rate(self.connections_per_s, BURST_MIN),
            weight: self.weight,
            ..d
        }
    }

    /// ServiceLib's part.
    #[must_use]
    pub fn service(&self) -> nk_servicelib::GuestLimits {
        nk_servicelib::GuestLimits {
            out: self.rate(self.out, BURST_BYTES_MIN),
            input: self.rate(self.input, BURST_BYTES_MIN),
            chunks_max: if self.chunks_max == 0 { u32::MAX } else { self.chunks_max },
            weight: self.weight,
        }
    }

    fn words(&self) -> [u64; 10] {
        [
            self.out,
            self.input,
            self.nqes_per_s,
            self.connections_per_s,
            self.sockets_max.into(),
            self.chunks_max.into(),
            self.processes_max.into(),
            self.burst_ms.into(),
            self.weight.into(),
            self.port_min.into(),
        ]
    }

    /// As one word of text.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.words().map(|n| format!("{n:x}")).join(",")
    }

    /// Undoes [`GuestLimits::to_text`].
    #[must_use]
    pub fn from_text(text: &str) -> Option<GuestLimits> {
        let mut words = text.split(',').map(|w| u64::from_str_radix(w, 16).ok());
        let mut next = || words.next().flatten();
        let l = GuestLimits {
            out: next()?,
            input: next()?,
            nqes_per_s: next()?,
            connections_per_s: next()?,
            sockets_max: next()?.try_into().ok()?,
            chunks_max: next()?.try_into().ok()?,
            processes_max: next()?.try_into().ok()?,
            burst_ms: next()?.try_into().ok()?,
            weight: next()?.try_into().ok()?,
            port_min: next()?.try_into().ok()?,
        };
        words.next().is_none().then_some(l)
    }

    /// As `nk guests --json` shows them: null where there is none, rates in bytes per second.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let or_none = |n: u64| if n == 0 { Value::Null } else { json!(n) };
        json!({
            "out_bytes_per_s": or_none(self.out),
            "in_bytes_per_s": or_none(self.input),
            "nqes_per_s": or_none(self.nqes_per_s),
            "connections_per_s": or_none(self.connections_per_s),
            "sockets_max": or_none(self.sockets_max.into()),
            "chunks_max": or_none(self.chunks_max.into()),
            "processes_max": or_none(self.processes_max.into()),
            "burst_ms": self.burst_ms,
            "weight": self.weight,
            "port_min": self.port_min,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units() {
        let rate = |text: &str| text.parse::<ByteRate>().map(|r| r.0);
        assert_eq!(rate("500Mbit/s"), Ok(62_500_000));
        assert_eq!(rate("1 Gbit/s"), Ok(125_000_000));
        assert_eq!(rate("2.5GB/s"), Ok(2_500_000_000));
        assert_eq!(rate("100Gbit/s"), Ok(12_500_000_000));
        assert_eq!(rate("8kbit/s"), Ok(1_000));
        for wrong in [
            "",
            "500",
            "Mbit/s",
            "5mbit/s",
            "5Mbit",
            "1.2.3MB/s",
            "-1MB/s",
            "7kbit/s",
            "2000GB/s",
            "0MB/s",
        ] {
            let why = rate(wrong).expect_err(wrong);
            assert!(why.contains("Mbit/s"), "{why}");
        }
    }

    #[test]
    fn limits_survive_and_change() {
        let mut l = GuestLimits::default();
        for (i, Limit { name, .. }) in LIMITS.iter().enumerate() {
            l.change(
                format!("{name}={}", 1000 + i)
                    .parse()
                    .or_else(|_| format!("{name}={}", 11 + i).parse())
                    .expect(name),
            );
        }
        assert_eq!(GuestLimits::from_text(&l.to_text()), Some(l));
        let words = l.words();
        let values: Vec<u64> = words.iter().take(9).copied().collect();
        assert_eq!(values, [1000, 1001, 1003, 1002, 1004, 1005, 17, 1007, 19]);
        assert_eq!(GuestLimits::from_text("1,2"), None);
        for wrong in [
            "out",
            "colour=1",
            "out=fast",
            "out=1",
            "weight=0",
            "weight=65",
            "chunks_max=1",
            "burst_ms=0",
            "processes_max=512",
        ] {
            assert!(wrong.parse::<Change>().is_err(), "{wrong}");
        }
        l.change("chunks_max=0".parse().expect("none"));
        assert_eq!(l.chunks_max, 0);
        assert_eq!(
            Limit::named("out").expect("there").parse("8kbit/s").expect("rate").to_string(),
            "out=1000"
        );
        assert_eq!(
            Limit::named("out").expect("there").parse("none").expect("none").to_string(),
            "out=0"
        );
        assert!(Limit::named("weight").expect("there").parse("none").is_err());
    }

    #[test]
    fn no_limit_is_the_engines_default() {
        assert_eq!(GuestLimits::default().engine(), nk_engine::Limits::default());
        assert_eq!(GuestLimits::default().service(), nk_servicelib::GuestLimits::default());
        let l = GuestLimits { out: 125_000_000, ..GuestLimits::default() };
        assert_eq!(l.service().out, Some(Rate { per_s: 125_000_000, burst: 2_500_000 }));
    }
}
