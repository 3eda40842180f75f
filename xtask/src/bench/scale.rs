//! `scale`: a host with more and more guests that are all busy: an NSM each, all on one, and natively. A guest has one core's worth of an
//! NSM; a host has as many NSMs as it has cores to give.

use std::time::Duration;

use anyhow::{Context, Result};
use nk_programs::load::{Wrk, WrkLoad};
use nk_programs::process::Running;
use nk_programs::world::{Side, World};

use super::Plan;
use super::place::pinned;
use super::small::Small;
use super::table::{by_figure, show};
use crate::measure::{busy_during, cpus};

const COUNTS: [usize; 4] = [1, 2, 4, 8];
const SIDES: [&str; 3] = ["native", "an NSM each", "one NSM for all"];
const FIGURES: [(&str, usize); 2] =
    [("requests/s, all together", 0), ("machine's CPU, µs/request", 1)];

pub(super) fn scale(plan: &Plan) -> Result<()> {
    let counts: Vec<usize> = COUNTS.into_iter().filter(|count| *count <= cpus()).collect();
    let most = counts.last().copied().unwrap_or(1);
    let mut config = "[nsm.all]\nplacement = \"process\"\n".to_owned();
    for n in 0..most {
        config += &format!(
            "[nsm.n{n}]\nplacement = \"process\"\n[guest.each{n}]\nnsm = \"n{n}\"\n[guest.all{n}]\nnsm = \"all\"\n"
        );
    }
    let mut world = plan.world()?;
    world.configure(&config)?;
    let mut servers = Vec::new();
    for (side, prefix) in [("native", None), ("each", Some("each")), ("all", Some("all"))] {
        let start = |n: usize| {
            let guest = prefix.map(|prefix| format!("{prefix}{n}"));
            let answer = format!("return 200 \"{}\";", "x".repeat(64));
            Small::start(&world, &format!("{side}-{n}"), guest.as_deref(), "", &answer)
        };
        servers.push((0..most).map(start).collect::<Result<Vec<_>>>()?);
    }
    println!(
        "Each guest is an nginx with one worker that answers 64 bytes to a wrk of its own (one thread, 16 connections). NSMs are processes; the daemon's \
         one poll thread switches for all.\n"
    );
    println!(
        "| busy guests | figure | native | an NSM each | one NSM for all | each/native | all/native |"
    );
    println!("|---|---|---|---|---|---|---|");
    for count in counts {
        let mut samples: [Vec<[f64; 2]>; 3] = SIDES.map(|_| Vec::new());
        for round in 0..plan.rounds {
            for turn in 0..SIDES.len() {
                let side = (round + turn) % SIDES.len();
                let (Some(servers), Some(samples)) = (servers.get(side), samples.get_mut(side))
                else {
                    continue;
                };
                let busy = servers.get(..count).unwrap_or(servers);
                let name = SIDES.get(side).copied().unwrap_or_default();
                samples
                    .push(at_once(plan, &world, busy).with_context(|| format!("{name}, {count}"))?);
            }
        }
        let [native, each, all] = &samples;
        let (native, each, all) = (by_figure(native)?, by_figure(each)?, by_figure(all)?);
        for (((figure, native), each), all) in FIGURES.iter().zip(native).zip(each).zip(all) {
            let (name, digits) = *figure;
            println!(
                "| {count} | {name} | {} | {} | {} | {:.2} | {:.2} |",
                show(native, digits),
                show(each, digits),
                show(all, digits),
                each.median / native.median,
                all.median / native.median,
            );
        }
    }
    servers.into_iter().flatten().try_for_each(Small::stop)?;
    world.close()
}

/// A wrk for each server, all at the same time: requests/s, and the machine's CPU for each.
fn at_once(plan: &Plan, world: &World, servers: &[Small]) -> Result<[f64; 2]> {
    let (reports, busy) = busy_during(|| {
        let mut running = Vec::new();
        for server in servers {
            let url = format!("http://127.0.0.1:{}/", server.port);
            let load = WrkLoad {
                url: &url,
                threads: 1,
                connections: 16,
                seconds: plan.seconds,
                short: false,
            };
            let words: Vec<String> =
                pinned(plan.client_cpus.as_deref()).into_iter().chain(load.words()).collect();
            running.push((world.start("wrk", Side::Plain, &words)?, load.limit()));
        }
        let finished = |(wrk, limit): (Running, Duration)| Wrk::parse(&wrk.ok(limit)?)?.flawless();
        running.into_iter().map(finished).collect::<Result<Vec<Wrk>>>()
    })?;
    let requests: u64 = reports.iter().map(|wrk| wrk.requests).sum();
    let rate: f64 = reports.iter().map(|wrk| wrk.per_second).sum();
    Ok([rate, busy.as_secs_f64() * 1e6 / requests as f64])
}
