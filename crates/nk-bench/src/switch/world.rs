//! The engine with its guests and NSM, and the other ends of all rings.

use anyhow::{Context, Result, ensure};
use nk_device::ring::Consumer;
use nk_device::sync::{AtomicU32, Ordering};
use nk_device::{Device, Layout, Nqe, Op};
use nk_engine::{Engine, GuestId, GuestSetup, Limits, NewRow, Notify, NsmId};
use nk_host::guest::{GuestCounters, Region};

const NSM: NsmId = NsmId(0);
/// family | type << 16: AF_INET, SOCK_STREAM.
const TCP4: u64 = 2 | 1 << 16;

/// Nobody sleeps here, so nobody is woken.
#[derive(Debug)]
pub(super) struct NobodySleeps;

impl Notify for NobodySleeps {
    fn doorbell(&mut self, _: GuestId, _: u16) {}
    fn futex_wake(&mut self, _: &AtomicU32, _: u32) {}
    fn nsm_doorbell(&mut self, _: NsmId) {}
}

/// One guest's producer.
#[derive(Debug)]
pub(super) struct Producer {
    device: Device,
    qset: u16,
    /// Sockets with their generations, in the order of use.
    sockets: Vec<(u32, u16)>,
    at: usize,
}

impl Producer {
    /// NQEs on the ring that the engine has not taken.
    pub(super) fn waiting(&self) -> u32 {
        self.device.qset(self.qset).map_or(0, |q| {
            let tail = q.send_tail.load(Ordering::Relaxed);
            tail.wrapping_sub(q.send_head.load(Ordering::Acquire))
        })
    }

    /// Pushes at most `count` SEND NQEs and rings the bell; how many found room.
    pub(super) fn push(&mut self, count: u32) -> u32 {
        let Some(qset) = self.device.qset(self.qset) else { return 0 };
        let ring = qset.send();
        let mut pushed = 0;
        while pushed < count {
            if self.at >= self.sockets.len() {
                self.at = 0;
            }
            let Some(&(socket, generation)) = self.sockets.get(self.at) else { break };
            if ring.push(&Nqe::new(Op::Send, socket, generation)).is_err() {
                break;
            }
            self.at += 1;
            pushed += 1;
        }
        if pushed > 0 {
            let _asleep = self.device.header().ring_bell(self.qset);
        }
        pushed
    }
}

/// The NSM's end of its rings.
#[derive(Debug)]
pub(super) struct NsmEnd {
    device: Device,
    job: Consumer,
    send: Consumer,
}

impl NsmEnd {
    /// Takes what is there; how many of it were SENDs.
    pub(super) fn drain(&mut self) -> u64 {
        let Some(qset) = self.device.qset(0) else { return 0 };
        while self.job.pop(&qset.job()).is_some() {}
        self.job.commit(&qset.job());
        let ring = qset.send();
        let mut sends = 0;
        while let Some(nqe) = self.send.pop(&ring) {
            sends += u64::from(nqe.op == Op::Send as u8);
        }
        self.send.commit(&ring);
        sends
    }
}

/// What the other core plays: all guests' producers and the NSM.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) producers: Vec<Producer>,
    pub(super) nsm: NsmEnd,
}

/// All that is measured with.
#[derive(Debug)]
pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) peers: Peers,
    guests: Vec<(Region, GuestCounters)>,
    _nsm: Region,
}

impl World {
    /// An engine whose guests have so many connections together.
    pub(super) fn new(guests: usize, connections: u32) -> Result<World> {
        let each = connections / guests as u32;
        ensure!(
            each > 0 && each * guests as u32 == connections,
            "{connections} connections do not divide among {guests} guests"
        );
        // Some are granted ahead.
        let layout = Layout { cells: each + 64, ..Layout::GUEST };
        ensure!(
            layout.check().is_ok(),
            "{connections} connections: more than the largest devices hold"
        );
        enough_memory(u64::from(connections) * 1024)?;
        let mut engine = Engine::new();
        let nsm = Region::new("bench-nsm", Layout::NSM, 0)?;
        engine.add_nsm(NSM, nsm.device)?;
        let mut end =
            NsmEnd { device: nsm.device, job: Consumer::default(), send: Consumer::default() };
        let mut regions = Vec::new();
        let mut producers = Vec::new();
        for number in 0..guests {
            let id = GuestId(number as u16 + 1);
            let region = Region::new("bench", layout, id.0)?;
            let counted = GuestCounters::new("bench")?;
            engine.add_guest(GuestSetup {
                id,
                device: region.device,
                namespace: 1,
                nsm: NSM,
                limits: Limits::default(),
                vm: false,
                counters: counted.shared,
            })?;
            let row = engine.add_row(id, 1)?;
            let mut sockets = open_sockets(&mut engine, &mut end, region.device, row, each)?;
            shuffle(&mut sockets, number as u64 + 1);
            producers.push(Producer { device: region.device, qset: row.qset, sockets, at: 0 });
            regions.push((region, counted));
        }
        Ok(World { engine, peers: Peers { producers, nsm: end }, guests: regions, _nsm: nsm })
    }

    /// How many NQEs the engine takes from a queue set in one turn.
    pub(super) fn set_batch(&mut self, batch: u32) -> Result<()> {
        for number in 0..self.guests.len() {
            self.engine.set_turn(GuestId(number as u16 + 1), batch)?;
        }
        Ok(())
    }

    pub(super) fn connections(&self) -> usize {
        self.peers.producers.iter().map(|p| p.sockets.len()).sum()
    }

    /// Cells of each guest's device.
    pub(super) fn cells(&self) -> u32 {
        self.guests.first().map_or(0, |g| g.0.device.layout().cells)
    }

    /// Nothing that was pushed was refused.
    pub(super) fn check(&self) -> Result<()> {
        let stats = self.engine.stats(None);
        ensure!(
            stats.violations == 0 && stats.stale == 0 && stats.sockets == self.connections() as u64,
            "{} NQEs were violations, {} stale; {} sockets are open",
            stats.violations,
            stats.stale,
            stats.sockets
        );
        Ok(())
    }
}

/// Makes sockets as a process of the guest does: takes granted ids, holds them, pushes SOCKET NQEs.
fn open_sockets(
    engine: &mut Engine,
    nsm: &mut NsmEnd,
    device: Device,
    row: NewRow,
    count: u32,
) -> Result<Vec<(u32, u16)>> {
    let shared = device.row(row.row).context("row")?;
    let qset = device.qset(row.qset).context("queue set")?;
    let mut sockets = Vec::with_capacity(count as usize);
    while sockets.len() < count as usize {
        let before = sockets.len();
        while sockets.len() < count as usize
            && let Some(id) = shared.id_grants.pop()
        {
            let cell = device.cell(id).context("a granted id without a cell")?;
            cell.hold(row.row);
            let generation = cell.generation.load(Ordering::Acquire) as u16;
            let nqe = Nqe { op_data: TCP4, ..Nqe::new(Op::Socket, id, generation) };
            ensure!(qset.job().push(&nqe).is_ok(), "the job ring is full");
            sockets.push((id, generation));
        }
        ensure!(sockets.len() > before, "the engine grants no ids");
        let _asleep = device.header().ring_bell(row.qset);
        while engine.poll(0, 1024, &mut NobodySleeps).worked > 0 {
            nsm.drain();
        }
    }
    Ok(sockets)
}

/// The same order in every run (Fisher and Yates, by xorshift).
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for last in (1..items.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        items.swap(last, (state % (last as u64 + 1)) as usize);
    }
}

/// A cell that is used takes a page's share of memory; a memfd that finds none would end the process by SIGBUS.
fn enough_memory(bytes: u64) -> Result<()> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .context("/proc/meminfo has no MemAvailable")?;
    ensure!(
        kib * 1024 > bytes + bytes / 2,
        "cells need {} MiB, and {} MiB are available",
        bytes >> 20,
        kib >> 10
    );
    Ok(())
}
