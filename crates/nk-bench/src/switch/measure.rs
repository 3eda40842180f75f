//! One sample: the engine on one CPU, its peers on another.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nk_device::qset::SEND_SLOTS;
use nk_engine::Engine;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::world::{NobodySleeps, Peers, World};

/// What a daemon gives its engine in each poll.
const BUDGET: u32 = 1024;
/// NQEs switched between two hand-overs: what the NSM's ring holds.
const LOT: u32 = SEND_SLOTS as u32;
/// The longest that one side waits for the other to begin.
const PATIENCE: Duration = Duration::from_secs(5);
/// Polls between two looks at the clock.
const POLLS: u32 = 64;

/// Million NQEs per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// By the engine's time.
    pub(super) engine: f64,
    /// By the clock on the wall, with both CPUs running freely.
    pub(super) wall: f64,
}

/// What the two sides of a sample found.
struct Sample {
    switched: u64,
    spent: Duration,
    pushed: u64,
    arrived: u64,
}

/// Takes both figures.
pub(super) fn measure(
    world: &mut World,
    batch: u32,
    sample_ms: u64,
    cpus: (usize, usize),
) -> Result<Figures> {
    ensure!((1..=LOT / 2).contains(&batch), "a batch is 1 to {}", LOT / 2);
    world.set_batch(batch)?;
    let time = Duration::from_millis(sample_ms);
    let World { engine, peers, .. } = world;
    let mut rate = |sample: fn(&mut Engine, &mut Peers, u32, Duration, _) -> Result<Sample>| {
        let s = sample(engine, peers, batch, time, cpus)?;
        // What was under way when the time was over.
        let mut arrived = s.arrived;
        loop {
            let worked = engine.poll(0, BUDGET, &mut NobodySleeps).worked;
            let drained = peers.nsm.drain();
            arrived += drained;
            if worked == 0 && drained == 0 {
                break;
            }
        }
        ensure!(s.pushed == arrived, "{} NQEs were pushed, {arrived} arrived", s.pushed);
        ensure!(s.switched > 0, "nothing was switched");
        Ok(s.switched as f64 / s.spent.as_secs_f64() / 1e6)
    };
    Ok(Figures { engine: rate(in_turn)?, wall: rate(at_once)? })
}

const ENGINE: u32 = 0;
const PEERS: u32 = 1;
const END: u32 = 2;

/// Fill, switch, drain, in turn; only the switching is timed.
fn in_turn(
    engine: &mut Engine,
    peers: &mut Peers,
    batch: u32,
    time: Duration,
    cpus: (usize, usize),
) -> Result<Sample> {
    let turn = AtomicU32::new(PEERS);
    // A lot for all together; at a large batch, a whole batch for each.
    let fill = batch.max(LOT / peers.producers.len() as u32);
    let switch = || {
        let (mut switched, mut spent) = (0u64, Duration::ZERO);
        let ends = Instant::now() + time;
        loop {
            wait_while(&turn, PEERS);
            let mut left = LOT;
            let begun = Instant::now();
            while left > 0 {
                let worked = engine.poll(0, left, &mut NobodySleeps).worked;
                if worked == 0 {
                    break;
                }
                left = left.saturating_sub(worked);
            }
            let now = Instant::now();
            spent += now - begun;
            switched += u64::from(LOT - left);
            let is_over = now >= ends || left == LOT;
            turn.store(if is_over { END } else { PEERS }, Ordering::Release);
            if is_over {
                return (switched, spent);
            }
        }
    };
    let play = || {
        let (mut pushed, mut arrived) = (0u64, 0u64);
        loop {
            arrived += peers.nsm.drain();
            for p in &mut peers.producers {
                pushed += u64::from(p.push(fill.saturating_sub(p.waiting())));
            }
            turn.store(ENGINE, Ordering::Release);
            if wait_while(&turn, ENGINE) == END {
                return (pushed, arrived);
            }
        }
    };
    let ((switched, spent), (pushed, arrived)) = on_two_cpus(cpus, switch, play)?;
    Ok(Sample { switched, spent, pushed, arrived })
}

/// Waits until the word says something else; what it says.
fn wait_while(word: &AtomicU32, value: u32) -> u32 {
    let mut looks = 0u32;
    loop {
        let now = word.load(Ordering::Acquire);
        if now != value {
            return now;
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(1 << 14) {
            // On a machine that is not quiet the other one may wait for this very CPU.
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// Both sides as fast as they can; the peers push and ring a batch at a time.
fn at_once(
    engine: &mut Engine,
    peers: &mut Peers,
    batch: u32,
    time: Duration,
    cpus: (usize, usize),
) -> Result<Sample> {
    let over = AtomicBool::new(false);
    let switch = || {
        let (mut switched, begun) = (0u64, Instant::now());
        let spent = loop {
            for _ in 0..POLLS {
                switched += u64::from(engine.poll(0, BUDGET, &mut NobodySleeps).worked);
            }
            let spent = begun.elapsed();
            // On a busy machine the other side may not even have begun.
            if spent >= time && (switched > 0 || spent > PATIENCE) {
                break spent;
            }
        };
        over.store(true, Ordering::Release);
        (switched, spent)
    };
    let play = || {
        let (mut pushed, mut arrived) = (0u64, 0u64);
        while !over.load(Ordering::Acquire) {
            for p in &mut peers.producers {
                pushed += u64::from(p.push(batch));
            }
            arrived += peers.nsm.drain();
        }
        (pushed, arrived)
    };
    let ((switched, spent), (pushed, arrived)) = on_two_cpus(cpus, switch, play)?;
    Ok(Sample { switched, spent, pushed, arrived })
}

/// Runs both sides, each in a thread of its own on its own CPU, so that the caller's placement stays what it was.
fn on_two_cpus<E: Send, P: Send>(
    cpus: (usize, usize),
    engine: impl FnOnce() -> E + Send,
    peers: impl FnOnce() -> P + Send,
) -> Result<(E, P)> {
    let ready = AtomicU32::new(0);
    let failed = AtomicBool::new(false);
    let (ready, failed) = (&ready, &failed);
    std::thread::scope(|scope| {
        let peers = scope.spawn(move || side(cpus.1, ready, failed, peers));
        let engine = scope.spawn(move || side(cpus.0, ready, failed, engine));
        let (engine, peers) = (engine.join(), peers.join());
        let panicked = || anyhow!("a measuring thread panicked");
        Ok((engine.map_err(|_| panicked())??, peers.map_err(|_| panicked())??))
    })
}

/// One side: begins when both are where they should be.
fn side<R>(
    cpu: usize,
    ready: &AtomicU32,
    failed: &AtomicBool,
    run: impl FnOnce() -> R,
) -> Result<R> {
    let mut set = CpuSet::new();
    set.set(cpu);
    let placed = sched_setaffinity(None, &set).with_context(|| format!("cannot run on CPU {cpu}"));
    failed.fetch_or(placed.is_err(), Ordering::SeqCst);
    ready.fetch_add(1, Ordering::SeqCst);
    while ready.load(Ordering::SeqCst) < 2 {
        std::thread::yield_now();
    }
    placed?;
    ensure!(!failed.load(Ordering::SeqCst), "the other side could not be placed");
    Ok(run())
}
