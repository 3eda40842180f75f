//! One measured load: requests, and the whole machine's CPU time, since a guest's work is done by others, too.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nk_programs::load::{Wrk, WrkLoad};
use nk_programs::procfs;
use nk_programs::world::{Side, World};

/// What one load cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    /// The machine's CPU time that was not idle, by requests: client, kernel and everybody else included.
    pub(crate) cpu_us_per_request: f64,
}

/// Runs wrk as a plain program against `load.url`; every request must succeed. `prefix`: words before wrk.
pub(crate) fn sample(world: &World, load: &WrkLoad<'_>, prefix: &[String]) -> Result<Sample> {
    let words: Vec<String> = prefix.iter().cloned().chain(load.words()).collect();
    let wrk = || world.start("wrk", Side::Plain, &words)?.ok(load.limit());
    let (text, busy) = busy_during(wrk)?;
    let report = Wrk::parse(&text)?.flawless()?;
    Ok(Sample {
        per_second: report.per_second,
        cpu_us_per_request: busy.as_secs_f64() * 1e6 / report.requests as f64,
    })
}

/// What is done, and the CPU time that the machine was not idle meanwhile.
pub(crate) fn busy_during<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let before = procfs::machine_busy()?;
    let done = work()?;
    Ok((done, procfs::machine_busy()?.saturating_sub(before)))
}

/// The share of the machine that others use while nothing is measured: 0 to 1.
pub(crate) fn background(over: Duration) -> Result<f64> {
    let begun = Instant::now();
    let ((), busy) = busy_during(|| {
        std::thread::sleep(over);
        Ok(())
    })?;
    Ok(busy.as_secs_f64() / begun.elapsed().as_secs_f64() / procfs::machine_cpus()? as f64)
}

pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Median, least and greatest of some samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

pub(crate) fn spread(values: impl IntoIterator<Item = f64>) -> Result<Spread> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index: usize| values.get(index).copied();
    let median = match values.len() % 2 {
        1 => at(middle),
        _ => at(middle).zip(at(middle.wrapping_sub(1))).map(|(upper, lower)| (upper + lower) / 2.0),
    };
    let ends = values.first().copied().zip(values.last().copied());
    ensure!(median.is_some(), "nothing was measured");
    let ((least, greatest), median) = (ends.unwrap_or_default(), median.unwrap_or_default());
    Ok(Spread { median, least, greatest })
}

/// `12,345,678`.
pub(crate) fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(spread([3.0, 1.0, 2.0]).unwrap().median, 2.0);
        let even = spread([4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.median, even.least, even.greatest), (2.5, 1.0, 4.0));
        assert!(spread([]).is_err());
    }

    #[test]
    fn grouped_digits() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(123_456), "123,456");
    }
}
