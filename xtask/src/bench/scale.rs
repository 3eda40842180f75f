//! `scale`: a host with more and more guests that are all busy: an NSM each, all on one, and natively; and one guest that is spread over more and
//! more NSMs.

use std::time::Duration;

use anyhow::{Context, Result};
use nk_programs::load::{Wrk, WrkLoad};
use nk_programs::nginx::{Nginx, WORKERS};
use nk_programs::process::Running;
use nk_programs::world::{Side, World};

use super::Plan;
use super::place::pinned;
use super::small::Small;
use super::table::{by_figure, line, show};
use crate::measure::{Spread, busy_during, cpus};

const COUNTS: [usize; 4] = [1, 2, 4, 8];
/// How many wrk load one server.
const LOADS: usize = 4;
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
                let ports: Vec<u16> = servers.iter().take(count).map(|s| s.port).collect();
                let name = SIDES.get(side).copied().unwrap_or_default();
                samples.push(
                    at_once(plan, &world, &ports).with_context(|| format!("{name}, {count}"))?,
                );
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
    world.close()?;
    spread(plan)
}

/// One guest, natively, on one NSM, and spread over several.
fn spread(plan: &Plan) -> Result<()> {
    let counts: Vec<usize> = COUNTS.into_iter().filter(|count| *count <= cpus().max(2)).collect();
    let most = counts.last().copied().unwrap_or(1);
    let mut config = String::new();
    for n in 0..most {
        config += &format!("[nsm.n{n}]\nplacement = \"process\"\n");
    }
    for count in &counts {
        let names: Vec<String> = (0..*count).map(|n| format!("\"n{n}\"")).collect();
        config += &format!("[guest.over{count}]\nnsm = [{}]\n", names.join(", "));
    }
    let mut world = plan.world()?;
    world.configure(&config)?;
    let native = Nginx::start(&world, Side::Plain)?;
    let mut guests = Vec::new();
    for count in &counts {
        world.name_guests(Some(&format!("over{count}")));
        guests.push((*count, Nginx::start(&world, Side::Guest)?));
    }
    world.name_guests(None);
    println!(
        "\nOne nginx with {WORKERS} workers that answers 64 bytes to {LOADS} wrk at once (one thread, 16 connections each), as a guest whose sockets are spread \
         over so many NSMs (`nsm = [\"n0\", …]`):\n"
    );
    println!("| NSMs | figure | native | guest | guest/native |");
    println!("|---|---|---|---|---|");
    let mut samples = vec![Vec::new(); guests.len() + 1];
    for _ in 0..plan.rounds {
        let ports = [native.port].into_iter().chain(guests.iter().map(|(_, g)| g.port));
        for (port, samples) in ports.zip(&mut samples) {
            let sample = at_once(plan, &world, &[port; LOADS]);
            samples.push(sample.with_context(|| format!("port {port}"))?);
        }
    }
    let mut spreads = samples.iter().map(|samples| by_figure(samples));
    let natively: [Spread; 2] = spreads.next().context("native")??;
    for ((count, _), guest) in guests.iter().zip(spreads) {
        for ((figure, native), guest) in FIGURES.iter().zip(natively).zip(guest?) {
            line(&count.to_string(), *figure, Some(native), Some(guest));
        }
    }
    for (_, guest) in guests {
        guest.stop()?;
    }
    native.stop()?;
    world.close()
}

/// A wrk for each of these ports, all at the same time: requests/s, and the machine's CPU for each.
fn at_once(plan: &Plan, world: &World, ports: &[u16]) -> Result<[f64; 2]> {
    let (reports, busy) = busy_during(|| {
        let mut running = Vec::new();
        for port in ports {
            let url = format!("http://127.0.0.1:{port}/");
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
