//! 200,000 connections opened and closed in one guest leave nothing behind: no descriptor, no chunk, no socket, and
//! the host's memory does not grow.

use std::io::Write;
use std::process::ChildStdin;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::leaks::{DaemonState, GuestCounts};
use crate::process::{Running, eventually};
use crate::procfs;
use crate::suite::{GUESTS_ONLY, Group, Test};
use crate::world::{Mode, World, free_port};

const CONNECTIONS: u64 = 200_000;
/// What the host's processes together may have grown by: allocators round up, and keep some of what was freed.
const GROWTH_BYTES_MAX: u64 = 1 << 20;

pub(super) fn tests() -> Vec<Test> {
    vec![Test {
        name: "200,000 connections leave nothing",
        group: Group::Safety,
        modes: GUESTS_ONLY,
        private: false,
        alone: true,
        native: true,
        body: churn,
    }]
}

/// Has the program make `count` connections.
pub(super) fn make(
    running: &mut Running,
    input: &mut ChildStdin,
    count: u64,
    limit: Duration,
) -> Result<()> {
    let before = done(running);
    writeln!(input, "run {count}").context("churn ended")?;
    let finished = eventually(limit, || {
        if running.ended_within(Duration::ZERO)? {
            return Ok(false);
        }
        ensure!(done(running) > before, "{count} connections take too long");
        Ok(true)
    });
    if !finished? {
        running.must_live()?;
    }
    Ok(())
}

fn done(running: &Running) -> usize {
    running.out().lines().filter(|line| line.starts_with("done")).count()
}

/// What the guest and the host hold while the guest is idle.
#[derive(Debug)]
struct Held {
    daemon: DaemonState,
    guest: GuestCounts,
    memory_bytes: u64,
    guest_descriptors: usize,
}

fn held(world: &World, guest: u32) -> Result<Held> {
    let memory_bytes = world.nk_pids()?.into_iter().map(procfs::private_memory_bytes).sum();
    Ok(Held {
        daemon: DaemonState::count(world)?,
        guest: GuestCounts::of(world, guest)?,
        memory_bytes,
        guest_descriptors: procfs::descriptors(guest).len(),
    })
}

fn churn(world: &mut World, mode: Mode) -> Result<String> {
    let program = world.compile("churn", include_str!("../../programs/churn.c"))?;
    let port = free_port()?.to_string();
    let mut running =
        world.start_piped("churn", mode.client, &[&program, &port, "4", "8", "500"])?;
    let mut input = running.input().context("no pipe")?;
    // Warm: lets every cache fill that is meant to fill.
    make(&mut running, &mut input, 5_000, Duration::from_secs(120))?;
    let native = world.options.nk.is_none();
    let before = if native { None } else { Some(settled(world, running.pid())?) };
    let count = world.scaled(CONNECTIONS);
    let begun = std::time::Instant::now();
    make(&mut running, &mut input, count, Duration::from_secs(600))?;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    let mut saw = format!("{count} connections, {rate:.0}/s");
    if let Some(before) = before {
        let after = eventually(Duration::from_secs(15), || {
            let after = held(world, running.pid())?;
            ensure!(
                after.daemon == before.daemon,
                "descriptors: {:?}, were {:?}",
                after.daemon,
                before.daemon
            );
            ensure!(
                after.guest == before.guest,
                "the guest holds {:?}, held {:?}",
                after.guest,
                before.guest
            );
            ensure!(
                after.guest_descriptors == before.guest_descriptors,
                "the guest's first process has {} descriptors, had {}",
                after.guest_descriptors,
                before.guest_descriptors
            );
            Ok(after)
        })?;
        let growth = after.memory_bytes.saturating_sub(before.memory_bytes);
        ensure!(growth <= GROWTH_BYTES_MAX, "the host's memory grew by {} KiB", growth >> 10);
        saw += &format!("; host memory +{} KiB, {:?} as before", growth >> 10, after.guest);
    }
    drop(input);
    running.ok(Duration::from_secs(10))?;
    Ok(saw)
}

/// What is held once nothing changes any more.
fn settled(world: &World, guest: u32) -> Result<Held> {
    let mut last = held(world, guest)?;
    eventually(Duration::from_secs(15), || {
        std::thread::sleep(Duration::from_millis(300));
        let next = held(world, guest)?;
        let same = next.guest == last.guest && next.daemon == last.daemon;
        last = next;
        ensure!(same, "what the idle guest holds keeps changing");
        Ok(())
    })?;
    Ok(last)
}
