//! SIGKILL of random guest processes under load for a minute leaks nothing: not in guests that live on, and not in
//! the daemon once all are gone.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::leaks::GuestCounts;
use crate::load::WrkLoad;
use crate::nginx::{Nginx, WORKERS};
use crate::process::{Running, eventually, signal_pid};
use crate::procfs;
use crate::suite::{GUESTS_ONLY, Group, Test};
use crate::world::{Mode, World, free_port};

const SECONDS: u64 = 60;

pub(super) fn tests() -> Vec<Test> {
    vec![Test {
        name: "SIGKILL of random guest processes",
        group: Group::Safety,
        modes: GUESTS_ONLY,
        private: false,
        alone: true,
        native: false,
        body: chaos,
    }]
}

/// Enough randomness to pick victims; the seed is printed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound.max(1) as u64).unwrap_or(0)
    }
}

fn chaos(world: &mut World, mode: Mode) -> Result<String> {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64 | 1;
    run(world, mode, Random(seed)).with_context(|| format!("seed {seed}"))
}

fn run(world: &World, mode: Mode, mut random: Random) -> Result<String> {
    // Guests whose first process lives: what their other processes held must come back within the guest.
    let nginx = Nginx::start(world, mode.server)?;
    let program = world.compile("churn", include_str!("../../programs/churn.c"))?;
    let words = [
        program,
        free_port()?.to_string(),
        "4".into(),
        "6".into(),
        "200".into(),
        "tolerant".into(),
    ];
    let mut churn = world.start_piped("churn", mode.client, &words)?;
    let mut input = churn.input().context("no pipe")?;
    let url = nginx.url();
    let script =
        format!("while [ ! -e stop ]; do /usr/bin/curl -s -m 10 {url} | cat >/dev/null; done");
    let mut shell = world.start("shell", mode.client, &["/bin/sh", "-c", &script])?;
    eventually(Duration::from_secs(10), || {
        ensure!(churn.out().contains("ready"), "churn does not start: {}", churn.err());
        Ok(())
    })?;
    // The pace of natural ends is not known before: more than a minute's worth, and the rest is not waited for.
    let nginx_before = settled(world, nginx.running.pid())?;
    let churn_before = settled(world, churn.pid())?;
    writeln!(input, "run 100000000")?;
    let spared = BTreeSet::from([nginx.running.pid(), churn.pid(), shell.pid()]);
    let load = |short| WrkLoad { url: &url, connections: 16, threads: 1, seconds: 600, short };
    // Guests that are killed as a whole and started again.
    let mut mortal =
        vec![load(false).start(world, mode.client)?, load(true).start(world, mode.client)?];
    let ours = procfs::net_namespace(std::process::id());
    // One that was just started may be in the host's still, whose processes are nobody's to kill.
    let namespaces = |mortal: &[Running]| -> Vec<u64> {
        let pids = spared.iter().copied().chain(mortal.iter().map(Running::pid));
        pids.filter_map(procfs::net_namespace).filter(|one| Some(*one) != ours).collect()
    };
    let end = Instant::now() + Duration::from_secs(world.scaled(SECONDS));
    let (mut kills, mut restarts) = (0u32, 0u32);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5 + random.below(120) as u64));
        let guests = namespaces(&mortal);
        let guest = guests[random.below(guests.len())];
        let victims: Vec<u32> = procfs::in_net_namespace(guest)?
            .into_iter()
            .filter(|pid| !spared.contains(pid))
            .collect();
        if let Some(victim) = victims.get(random.below(victims.len())) {
            signal_pid(*victim, Signal::KILL);
            kills += 1;
        }
        for (index, running) in mortal.iter_mut().enumerate() {
            if running.ended_within(Duration::ZERO)? {
                *running = load(index == 1).start(world, mode.client)?;
                restarts += 1;
            }
        }
        churn.must_live()?;
        shell.must_live()?;
    }
    drop(mortal);
    world.write("stop", "")?;
    shell.finish(Duration::from_secs(20)).context("the shell's loop")?;
    churn.signal(Signal::USR1)?;
    eventually(Duration::from_secs(30), || {
        ensure!(churn.out().contains("done"), "churn's last clients do not end: {}", churn.err());
        Ok(())
    })?;
    eventually(Duration::from_secs(20), || {
        ensure!(nginx.workers()?.len() == WORKERS, "nginx is not complete");
        let now = GuestCounts::of(world, nginx.running.pid())?;
        ensure!(now == nginx_before, "nginx holds {now:?}, held {nginx_before:?}");
        let now = GuestCounts::of(world, churn.pid())?;
        ensure!(now == churn_before, "churn holds {now:?}, held {churn_before:?}");
        Ok(())
    })?;
    // Serves as before.
    WrkLoad { url: &url, connections: 16, threads: 1, seconds: 1, short: true }
        .run(world, mode.client)?
        .flawless()?;
    drop(input);
    drop(churn);
    nginx.stop()?;
    ensure!(kills > 0, "nothing was killed");
    Ok(format!("{kills} kills, {restarts} guests started again"))
}

/// What a guest holds when it does nothing.
pub(super) fn settled(world: &World, guest: u32) -> Result<GuestCounts> {
    let mut last = GuestCounts::of(world, guest)?;
    eventually(Duration::from_secs(10), || {
        std::thread::sleep(Duration::from_millis(200));
        let next = GuestCounts::of(world, guest)?;
        let same = next == last;
        last = next;
        ensure!(same, "what the idle guest holds keeps changing");
        Ok(())
    })?;
    Ok(last)
}
