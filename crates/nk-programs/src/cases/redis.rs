//! redis under redis-benchmark, with and without pipelining, and BGSAVE under load.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::loads;
use super::nginx::isolated;
use crate::Side;
use crate::redis::Redis;
use crate::suite::Test;
use crate::world::{Mode, World};

const LIMIT: Duration = Duration::from_secs(120);

pub(super) fn tests() -> Vec<Test> {
    loads(&[("redis-benchmark", benchmark), ("redis BGSAVE under load", bgsave_under_load)])
}

fn words(port: u16, rest: &[&str]) -> Vec<String> {
    let common = ["/usr/bin/redis-benchmark", "-h", "127.0.0.1", "--csv", "-p"];
    let words = common.iter().chain(rest.iter()).map(ToString::to_string);
    let mut words: Vec<String> = words.collect();
    words.insert(common.len(), port.to_string());
    words
}

/// Requests per second by command, from redis-benchmark's CSV.
fn rates(text: &str) -> Result<Vec<(String, f64)>> {
    let lines = text.lines().skip(1).map(|line| {
        let mut fields = line.split(',').map(|field| field.trim_matches('"'));
        let name = fields.next().context("an empty line")?.to_owned();
        let rate = fields.next().with_context(|| line.to_owned())?.parse()?;
        Ok((name, rate))
    });
    lines.collect()
}

fn benchmark(world: &mut World, mode: Mode) -> Result<String> {
    let redis = Redis::start(world, mode.server, None)?;
    let mut saw = Vec::new();
    let runs: [(&[&str], usize); 3] = [
        (&["-c", "50", "-n", "10000", "-t", "ping,set,get,incr,lpush,lrange_100,mset"], 9),
        (&["-c", "50", "-n", "200000", "-P", "16", "-t", "set,get"], 2),
        (&["-c", "20", "-n", "5000", "-d", "65536", "-t", "set,get"], 2),
    ];
    for (words_of_run, commands) in runs {
        let benchmark =
            world.start("redis-benchmark", mode.client, &words(redis.port, words_of_run))?;
        std::thread::sleep(Duration::from_millis(200));
        if !benchmark.ended_within(Duration::ZERO)? {
            isolated(world, mode, &redis.running, &benchmark)?;
        }
        let rates = rates(&benchmark.ok(LIMIT)?)?;
        ensure!(
            rates.len() == commands,
            "redis-benchmark reports {rates:?}, not {commands} commands"
        );
        ensure!(rates.iter().all(|(_, rate)| *rate > 0.0), "{rates:?}");
        let set = rates.iter().find(|(name, _)| name == "SET").context("no SET")?;
        saw.push(format!("{:.0}/s", set.1));
    }
    redis.stop()?;
    Ok(format!("SET {}; -P 16 {}; 64 KiB {}", saw[0], saw[1], saw[2]))
}

/// The data as saved in the background, under load, equals the data in memory; the forked child that ends does not
/// disturb its parent's connections.
fn bgsave_under_load(world: &mut World, mode: Mode) -> Result<String> {
    let redis = Redis::start(world, mode.server, None)?;
    let fill = ["-n", "200000", "-r", "100000", "-P", "16", "-d", "100", "-t", "set"];
    world.run(mode.client, &words(redis.port, &fill), LIMIT)?;
    // Saves while writing goes on: every command must succeed.
    let write = ["-n", "150000", "-r", "100000", "-c", "20", "-d", "100", "-t", "set"];
    let load = world.start("redis-benchmark", mode.client, &words(redis.port, &write))?;
    let mut saves = 0;
    while !load.ended_within(Duration::from_millis(300))? && saves < 20 {
        redis.background_save()?;
        saves += 1;
    }
    rates(&load.ok(LIMIT)?)?;
    ensure!(saves >= 2, "only {saves} saves fell into the load");
    // And one while only reading goes on, so that what must be in the file is known.
    let read = ["-n", "60000", "-r", "100000", "-c", "20", "-t", "get"];
    let digest = redis.digest()?;
    let load = world.start("redis-benchmark", mode.client, &words(redis.port, &read))?;
    redis.background_save()?;
    rates(&load.ok(LIMIT)?)?;
    ensure!(redis.digest()? == digest, "reading changed the data");
    let home = redis.home.clone();
    redis.stop()?;
    let again = Redis::start(world, Side::Plain, Some(home))?;
    ensure!(again.digest()? == digest, "the saved file holds other data");
    again.stop()?;
    Ok(format!("{saves} saves under writes, data intact"))
}
