//! Each part is killed with -9 many times, at random moments, under load whose every answer is checked: daemon, keeper, NSM process,
//! guests' processes. First the parts whose death nobody may notice where the NSM is a process; then all.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::chaos::Random;
use super::restart::{RECOVERY, part_pid};
use crate::leaks::GuestCounts;
use crate::load::WrkLoad;
use crate::nginx::{Nginx, WORKERS};
use crate::process::{Running, eventually, signal_pid};
use crate::procfs;
use crate::redis::Redis;
use crate::suite::{GUESTS_ONLY, Group, Test};
use crate::world::{Mode, Nsm, Side, World};

const PYTHON: &str = "/usr/bin/python3";
/// Kills of each part, where the command does not say.
const KILLS: u32 = 100;
/// Bytes of the file that is asked for: several times what the stacks' buffers take.
const FILE: usize = 3_000_000;
/// How much an NSM's memory may grow for what happened to it.
const GROWTH: u64 = 16 << 20;

pub(super) fn tests() -> Vec<Test> {
    let test = Test::alone(Group::Safety, GUESTS_ONLY);
    vec![
        test("no connection breaks when daemon and keeper are killed or replaced", unnoticed),
        test("kills of every part leave nothing", everything),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Daemon,
    /// The daemon, by `--replace`.
    Old,
    Keeper,
    Nsm,
    Process,
}

/// Servers as guests, and who asks them.
struct Load {
    nginx: Nginx,
    redis: Redis,
    clients: Vec<Running>,
    before: [GuestCounts; 2],
}

impl Load {
    fn start(world: &World, mode: Mode, strict: bool) -> Result<Load> {
        let nginx = Nginx::start(world, mode.server)?;
        let redis = Redis::start(world, mode.server, None)?;
        let content: Vec<u8> =
            (0..FILE).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        std::fs::write(nginx.files(world).join("big"), content)?;
        let sum = world.run(
            Side::Plain,
            &["/usr/bin/sha256sum", &nginx.files(world).join("big").display().to_string()],
            Duration::from_secs(10),
        )?;
        let sum = sum.split(' ').next().unwrap_or_default().to_owned();
        let before = Load::counts(world, &nginx, &redis)?;
        let script = world.write("steady.py", include_str!("../../programs/steady.py"))?;
        let how = if strict { "strict" } else { "tolerant" };
        let (http, keys) = (nginx.port.to_string(), redis.port.to_string());
        let mut clients = Vec::new();
        for side in [Side::Plain, mode.client] {
            clients.push(world.start(
                "http",
                side,
                &[PYTHON, &script, "http", &http, &sum, how],
            )?);
            clients.push(world.start("keys", side, &[PYTHON, &script, "redis", &keys, how])?);
        }
        eventually(RECOVERY, || {
            for c in &clients {
                ensure!(c.out().contains("begun"), "{} has not begun: {}", c.name(), c.err());
            }
            Ok(())
        })?;
        Ok(Load { nginx, redis, clients, before })
    }

    fn counts(world: &World, nginx: &Nginx, redis: &Redis) -> Result<[GuestCounts; 2]> {
        Ok([
            super::chaos::settled(world, nginx.running.pid())?,
            super::chaos::settled(world, redis.running.pid())?,
        ])
    }

    fn must_live(&mut self) -> Result<()> {
        for c in &mut self.clients {
            ensure!(!c.ended_within(Duration::ZERO)?, "{} ended: {}{}", c.name(), c.out(), c.err());
        }
        self.nginx.running.must_live()?;
        self.redis.running.must_live()
    }

    /// Ends the clients: no answer was wrong, none was missing. Then the servers hold what they held before, and serve.
    fn end(mut self, world: &World, mode: Mode) -> Result<String> {
        self.must_live()?;
        let mut said = String::new();
        for c in self.clients.drain(..) {
            let name = c.name().to_owned();
            c.signal(Signal::TERM)?;
            let ended = c.finish(Duration::from_secs(60))?;
            let last = ended.out.lines().last().unwrap_or_default().to_owned();
            ensure!(
                last.starts_with("done "),
                "{name}: {} {} {}",
                ended.how(),
                ended.out,
                ended.err
            );
            let right: u64 =
                last.split(' ').nth(1).and_then(|n| n.parse().ok()).context("count")?;
            ensure!(right > 0, "{name}: not one right answer: {last}");
            let _ = write!(said, "; {name} {last}");
        }
        eventually(Duration::from_secs(30), || {
            ensure!(self.nginx.workers()?.len() == WORKERS, "nginx is not complete");
            let now = [
                GuestCounts::of(world, self.nginx.running.pid())?,
                GuestCounts::of(world, self.redis.running.pid())?,
            ];
            ensure!(now == self.before, "the servers hold {now:?}, held {:?}", self.before);
            Ok(())
        })?;
        let url = self.nginx.url();
        WrkLoad { url: &url, connections: 16, threads: 1, seconds: 1, short: true }
            .run(world, mode.client)?
            .flawless()?;
        self.nginx.stop()?;
        self.redis.stop()?;
        Ok(said)
    }
}

fn seeded(
    world: &mut World,
    mode: Mode,
    body: fn(&mut World, Mode, Random) -> Result<String>,
) -> Result<String> {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64 | 1;
    let said = body(world, mode, Random(seed)).with_context(|| format!("seed {seed}"))?;
    Ok(format!("seed {seed}: {said}"))
}

fn unnoticed(world: &mut World, mode: Mode) -> Result<String> {
    if world.options.nsm == Nsm::Inline {
        return Ok("not with an inline NSM: its sockets die with the daemon".to_owned());
    }
    seeded(world, mode, |world, mode, mut random| {
        let mut load = Load::start(world, mode, true)?;
        let nsm = part_pid(world, "nsm")?;
        let (memory, descriptors) =
            (procfs::private_memory_bytes(nsm), procfs::descriptors(nsm).len());
        let parts = [Part::Daemon, Part::Old, Part::Keeper];
        let kills = kill_all(world, mode, &mut load, &mut random, &parts)?;
        ensure!(part_pid(world, "nsm")? == nsm, "the NSM was started again");
        let said = load.end(world, mode)?;
        let now = procfs::private_memory_bytes(nsm);
        ensure!(now < memory + GROWTH, "the NSM's memory grew from {memory} to {now}");
        eventually(RECOVERY, || {
            let now = procfs::descriptors(nsm).len();
            // Its guests are gone.
            ensure!(now <= descriptors, "the NSM had {descriptors} descriptors, and has {now}");
            Ok(())
        })?;
        Ok(format!("{kills}, no connection broke{said}"))
    })
}

fn everything(world: &mut World, mode: Mode) -> Result<String> {
    seeded(world, mode, |world, mode, mut random| {
        let mut load = Load::start(world, mode, false)?;
        let mut parts = vec![Part::Daemon, Part::Keeper, Part::Process];
        if world.options.nsm == Nsm::Separate {
            parts.push(Part::Nsm);
        }
        let kills = kill_all(world, mode, &mut load, &mut random, &parts)?;
        Ok(format!("{kills}{}", load.end(world, mode)?))
    })
}

/// Kills each part as often as was asked, in random order and at random moments.
fn kill_all(
    world: &mut World,
    mode: Mode,
    load: &mut Load,
    random: &mut Random,
    parts: &[Part],
) -> Result<String> {
    let of_each = world.options.kills.unwrap_or(KILLS);
    let of_each = if world.options.quick { of_each.div_ceil(10) } else { of_each };
    let mut left: Vec<Part> = parts.iter().flat_map(|p| vec![*p; of_each as usize]).collect();
    // Guests that are killed as a whole and started again.
    let url = load.nginx.url();
    let short = WrkLoad { url: &url, connections: 8, threads: 1, seconds: 600, short: true };
    let mut mortal = match parts.contains(&Part::Process) {
        true => Some(short.start(world, mode.client)?),
        false => None,
    };
    while !left.is_empty() {
        std::thread::sleep(Duration::from_millis(random.below(150) as u64));
        let part = left.swap_remove(random.below(left.len()));
        match part {
            Part::Daemon => {
                // A keeper that was just killed is replaced first: both at once are not survived (0004).
                keeper_is_whole(world)?;
                world.kill_daemon()?;
                std::thread::sleep(Duration::from_millis(random.below(100) as u64));
                world.start_daemon()?;
            }
            Part::Old => {
                keeper_is_whole(world)?;
                world.replace_daemon()?;
            }
            Part::Keeper => kill_part(world, "keeper")?,
            Part::Nsm => kill_part(world, "nsm")?,
            Part::Process => {
                let mut victims = load.nginx.workers()?;
                victims.extend(mortal.as_ref().map(Running::pid));
                if let Some(victim) = victims.get(random.below(victims.len())) {
                    signal_pid(*victim, Signal::KILL);
                }
            }
        }
        load.must_live()
            .with_context(|| format!("after a kill of {part:?}, {} left", left.len()))?;
        if let Some(m) = &mut mortal
            && m.ended_within(Duration::ZERO)?
        {
            *m = short.start(world, mode.client)?;
        }
    }
    keeper_is_whole(world)?;
    Ok(format!("{of_each} kills of each of {parts:?}"))
}

/// Waits until the keeper that followed a killed one has been told everything.
pub(super) fn keeper_is_whole(world: &World) -> Result<()> {
    eventually(RECOVERY, || {
        let log = world.daemon().context("no daemon")?.running.err();
        let (ended, whole) =
            (log.rfind("the keeper ended"), log.rfind("the next keeper has everything"));
        ensure!(ended <= whole, "the keeper is not replaced: {log}");
        Ok(())
    })
}

/// Kills a part and waits for the next.
fn kill_part(world: &World, part: &str) -> Result<()> {
    let old = eventually(RECOVERY, || part_pid(world, part))?;
    signal_pid(old, Signal::KILL);
    eventually(RECOVERY, || {
        ensure!(part_pid(world, part)? != old, "the {part} is not started again");
        Ok(())
    })
}
