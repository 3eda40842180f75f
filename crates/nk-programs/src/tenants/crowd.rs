//! As many guests as one daemon is meant for, at once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::guests_only;
use crate::nginx::Nginx;
use crate::process::{Running, eventually};
use crate::procfs;
use crate::suite::Test;
use crate::world::{Mode, Side, World};

const GUESTS: u64 = 1000;
/// Started together.
const AT_ONCE: usize = 20;
const LIMIT: Duration = Duration::from_secs(60);
/// How long idle CPU is counted.
const IDLE: Duration = Duration::from_secs(5);

pub(super) fn tests() -> Vec<Test> {
    guests_only(&[("crowd: 1,000 guests attached at once", crowd)])
}

fn count(world: &World) -> Result<u64> {
    let guests: Vec<serde_json::Value> =
        serde_json::from_str(&world.control(&["guests", "--json"])?)?;
    Ok(guests.iter().filter(|g| g["name"].as_str().is_some_and(|n| n.starts_with("crowd"))).count()
        as u64)
}

fn crowd(world: &mut World, _: Mode) -> Result<String> {
    let many = world.scaled(GUESTS);
    let server = Nginx::start(world, Side::Plain)?;
    let port = server.port.to_string();
    let program = world.compile("asker", include_str!("../../programs/asker.c"))?;
    let pids = world.nk_pids()?;
    let memory = |world: &World| -> Result<u64> {
        Ok(world.nk_pids()?.into_iter().map(procfs::private_memory_bytes).sum::<u64>() >> 10)
    };
    let before = memory(world)?;
    let mut guests: Vec<(Running, Option<std::process::ChildStdin>)> = Vec::new();
    for at in 0..many {
        let name = format!("crowd{at}");
        world.name_guests(Some(&name));
        let words = [program.as_str(), &port];
        let mut guest = world.start_piped(&name, Side::Guest, &words)?;
        let input = guest.input();
        guests.push((guest, input));
        if guests.len().is_multiple_of(AT_ONCE) {
            say(guests.iter_mut().rev().take(AT_ONCE), "first")?;
        }
    }
    world.name_guests(None);
    say(guests.iter_mut(), "first")?;
    ensure!(count(world)? == many, "{} of {many} guests are attached", count(world)?);
    let each = memory(world)?.saturating_sub(before) as f64 / many as f64;
    // They doze after some polls.
    std::thread::sleep(Duration::from_secs(1));
    let used = || pids.iter().map(|pid| procfs::cpu_time(*pid)).sum::<Duration>();
    let cpu = used();
    std::thread::sleep(IDLE);
    let idle = used().saturating_sub(cpu).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    for (_, input) in &mut guests {
        line(input)?;
    }
    say(guests.iter_mut(), "second")?;
    for (_, input) in &mut guests {
        line(input)?;
    }
    for (guest, _) in guests {
        guest.ok(LIMIT)?;
    }
    eventually(LIMIT, || {
        let left = count(world)?;
        ensure!(left == 0, "{left} guests are left");
        Ok(())
    })?;
    server.running.stop(Signal::TERM, LIMIT)?;
    Ok(format!(
        "{many} guests, 2 requests each; idle {idle:.3} % of a core, {each:.0} KiB each of private memory"
    ))
}

fn line(input: &mut Option<std::process::ChildStdin>) -> Result<()> {
    use std::io::Write;
    input.as_mut().context("no pipe")?.write_all(b"\n").context("a guest has ended")
}

fn say<'a>(
    guests: impl Iterator<Item = &'a mut (Running, Option<std::process::ChildStdin>)>,
    word: &str,
) -> Result<()> {
    for (guest, _) in guests {
        crate::cases::says(guest, word, 1)?;
    }
    Ok(())
}
