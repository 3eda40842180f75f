//! redis under its own benchmark: `redis`.

use std::time::Duration;

use anyhow::{Context, Result};
use nk_programs::redis::Redis;
use nk_programs::world::Side;

use super::Plan;
use super::place::pinned;
use super::table::{Figure, head, in_turn, lines};
use crate::measure::busy_during;

/// Requests by which the number of a sample is found.
const CALIBRATION: u64 = 50_000;
const CONNECTIONS: &str = "50";
const RATE: Figure = ("requests/s", 0);
const COST: Figure = ("machine's CPU, µs/request", 1);

pub(super) fn redis(plan: &Plan) -> Result<()> {
    let world = plan.world()?;
    let prefix = pinned(plan.server_cpus.as_deref());
    let native = Redis::start_by(&world, Side::Plain, &prefix)?;
    let guest = Redis::start_by(&world, Side::Guest, &prefix)?;
    head();
    for depth in ["1", "16"] {
        for test in ["get", "set"] {
            let sample = |side, requests: u64| {
                let server = if side == Side::Plain { &native } else { &guest };
                let (port, requests) = (server.port.to_string(), requests.to_string());
                let mut words = pinned(plan.client_cpus.as_deref());
                words.extend(
                    ["/usr/bin/redis-benchmark", "--csv", "-p", &port, "-c", CONNECTIONS]
                        .into_iter()
                        .chain(["-n", &requests, "-P", depth, "-t", test])
                        .map(str::to_owned),
                );
                let limit = Duration::from_secs(60 + u64::from(plan.seconds) * 10);
                let (text, busy) = busy_during(|| world.run(Side::Plain, &words, limit))?;
                let count: f64 = requests.parse()?;
                Ok([rate_of(&text)?, busy.as_secs_f64() * 1e6 / count])
            };
            // As many requests as native answers in the time.
            let [rate, _]: [f64; 2] = sample(Side::Plain, CALIBRATION)?;
            let requests = (rate * f64::from(plan.seconds)) as u64;
            let both = in_turn(plan.rounds, |side| sample(side, requests.max(1)))?;
            let load = format!("{}, -c {CONNECTIONS} -P {depth}", test.to_uppercase());
            lines(&load, [RATE, COST], &both);
        }
    }
    guest.stop()?;
    native.stop()?;
    world.close()
}

/// The rate in redis-benchmark's CSV: a line of names, then `"GET","81234.5",…`.
fn rate_of(text: &str) -> Result<f64> {
    let line = text.lines().find(|line| line.starts_with("\"GET\"") || line.starts_with("\"SET\""));
    let field = line.and_then(|line| line.split(',').nth(1));
    let rate = field.and_then(|field| field.trim_matches('"').parse().ok());
    rate.with_context(|| format!("redis-benchmark reports no rate: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\"\n\"GET\",\"81234.50\",\"0.3\"\n";
        assert_eq!(rate_of(text).unwrap(), 81234.5);
        assert!(rate_of("\"test\",\"rps\"\n").is_err());
    }
}
