//! What the control thread knows of a guest and its processes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use nk_attach::CREATE_VM;
use nk_device::counters::{COUNTERS_VERSION, HostCounters};
use nk_device::sync::Ordering;
use nk_device::{Counters, Device, Layout, Ledger, Row, SharedCounters, row};
use nk_engine::GuestId;

use crate::control::members::Members;
use crate::control::place::Place;
use crate::control::spread::Spread;
use crate::limits::GuestLimits;
use crate::names::Counters as NameCounters;
use crate::server::Token;
use crate::sys::{self, Mapping};

/// A guest's region, mapped by the host for as long as the value lives.
#[derive(Debug)]
pub struct Region {
    /// The memfd.
    pub memfd: OwnedFd,
    /// The device in it.
    pub device: Device,
    /// Keeps `device` valid.
    _mapping: Mapping,
    len: usize,
}

impl Region {
    /// A fresh region with a formatted header.
    ///
    /// # Errors
    /// Those of memfd_create and mmap.
    pub fn new(name: &str, layout: Layout, guest: u16) -> io::Result<Region> {
        let memfd = sys::region(&format!("nk-{name}"), layout.region_len())?;
        let r = Region::map(memfd, layout)?;
        r.device.format(guest);
        Ok(r)
    }

    /// A region that exists, of a layout that the host knows.
    ///
    /// # Errors
    /// Those of mmap; EINVAL when it is too small.
    pub fn map(memfd: OwnedFd, layout: Layout) -> io::Result<Region> {
        let len = layout.region_len();
        if sys::len(&memfd)? != len {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mapping = Mapping::new(&memfd, len)?;
        // SAFETY: the mapping is page-aligned, of `len` bytes, lives as long as the Region; sealed regions cannot shrink.
        let device = unsafe { Device::with_layout(mapping.base(), len, layout) }
            .map_err(|e| io::Error::other(format!("{e:?}")))?;
        Ok(Region { memfd, device, _mapping: mapping, len })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }
    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A guest's counters, mapped by the daemon for as long as the value lives. The keeper has the memory too, so that they go on after a
/// daemon's death.
#[derive(Debug)]
pub struct GuestCounters {
    /// The memfd.
    pub memfd: OwnedFd,
    /// The counters in it.
    pub shared: SharedCounters,
    _mapping: Mapping,
}

impl GuestCounters {
    /// Fresh ones: nothing was counted.
    ///
    /// # Errors
    /// Those of memfd_create and mmap.
    pub fn new(name: &str) -> io::Result<GuestCounters> {
        GuestCounters::map(sys::region(&format!("nk-counters-{name}"), size_of::<Counters>())?)
    }

    /// Those that another daemon counted.
    ///
    /// # Errors
    /// Those of mmap; when they are of another version.
    pub fn map(memfd: OwnedFd) -> io::Result<GuestCounters> {
        let len = size_of::<Counters>();
        let version = |v| io::Error::other(format!("of version {v}, not {COUNTERS_VERSION}"));
        if sys::len(&memfd)? < len {
            return Err(io::Error::other("of another version: too short"));
        }
        let mapping = Mapping::new(&memfd, len)?;
        // SAFETY: the mapping is page-aligned, as long as it must be, and lives as long as the value; the memfd is sealed.
        let shared = unsafe { SharedCounters::new(mapping.base()) }.map_err(version)?;
        Ok(GuestCounters { memfd, shared, _mapping: mapping })
    }
}

/// The ledger of a pool that several NSMs share, mapped for as long as the value lives. No guest ever has it.
#[derive(Debug)]
pub struct SharedLedger {
    /// The memfd.
    pub memfd: OwnedFd,
    /// The ledger in it.
    pub ledger: Ledger,
    _mapping: Mapping,
}

impl SharedLedger {
    /// A fresh one, for a device of this layout: every chunk is free.
    ///
    /// # Errors
    /// Those of memfd_create and mmap.
    pub fn new(name: &str, layout: Layout) -> io::Result<SharedLedger> {
        let memfd = sys::region(&format!("nk-ledger-{name}"), Ledger::bytes(layout))?;
        SharedLedger::map(memfd, layout, 0)
    }

    /// One that exists, as the NSM of this number sees it.
    ///
    /// # Errors
    /// Those of mmap.
    pub fn map(memfd: OwnedFd, layout: Layout, service: u8) -> io::Result<SharedLedger> {
        let len = Ledger::bytes(layout);
        let mapping = Mapping::new(&memfd, len)?;
        // SAFETY: the mapping is page-aligned, of `len` bytes, and lives as long as the value; the memfd is sealed.
        let ledger = unsafe { Ledger::new(mapping.base(), len, layout, service) };
        let ledger = ledger.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Ok(SharedLedger { memfd, ledger, _mapping: mapping })
    }
}

/// The layout of a guest's device, by the flags with which it was made.
#[must_use]
pub fn layout(flags: u64) -> Layout {
    if flags & CREATE_VM != 0 { Layout::VM } else { Layout::GUEST }
}

/// One guest.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) id: GuestId,
    pub(crate) name: String,
    /// Who is in it.
    pub(crate) members: Members<Token>,
    pub(crate) region: Region,
    /// The engine's doorbell.
    pub(crate) engine_bell: Arc<OwnedFd>,
    pub(crate) netns: OwnedFd,
    pub(crate) namespace: u64,
    /// On which NSMs it is.
    pub(crate) place: Place<SharedLedger>,
    /// Where it is to be on several at once.
    pub(crate) spread: Option<Spread>,
    pub(crate) limits: GuestLimits,
    pub(crate) flags: u64,
    pub(crate) counters: GuestCounters,
    /// Who answers its questions about names.
    pub(crate) names: Names,
}

/// A guest's resolver, and what was counted.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) resolver: Option<Resolver>,
    /// Shared with the resolver; there from the first question on.
    pub(crate) counters: Option<NameCounters>,
    /// When the last one was started.
    pub(crate) started: Option<Instant>,
}

/// A running resolver.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) pid: i32,
    /// What its end is watched by.
    pub(crate) token: Token,
    pub(crate) control: OwnedFd,
}

/// Counts of what was not redirected, by kind and detail as processes count it in their rows: information that a guest can write,
/// so there is a bound.
type Missed = BTreeMap<u64, u64>;

/// What a process counted.
fn missed(row: &Row) -> impl Iterator<Item = (u64, u64)> + '_ {
    let all = row.missed_keys.iter().zip(&row.missed_counts);
    let all = all.map(|(k, n)| (k.load(Ordering::Relaxed), n.load(Ordering::Relaxed).into()));
    all.filter(|(key, _)| *key != 0)
}

/// Adds what a process that ended had counted.
fn add_missed(counters: &HostCounters, row: &Row) {
    for (key, count) in missed(row) {
        let is_its = |k: u64| k == key || k == 0;
        let Some((k, n)) = counters.missed.iter().find(|(k, _)| is_its(k.get())) else { continue };
        n.set(n.get().saturating_add(count));
        k.set(key);
    }
}

impl Guest {
    /// Whether it is a VM: row 0 stands for its kernel, and the connection that made it for its life.
    pub(crate) fn is_vm(&self) -> bool {
        self.flags & CREATE_VM != 0
    }

    /// What all its processes counted as not redirected, also those that ended.
    pub(crate) fn all_missed(&self) -> Missed {
        let ended = self.counters.shared.host.missed.iter().map(|(k, n)| (k.get(), n.get()));
        let rows = self.members.processes.keys().filter_map(|row| self.region.device.row(*row));
        let mut all = Missed::new();
        for (key, count) in ended.filter(|(key, _)| *key != 0).chain(rows.flat_map(missed)) {
            let sum = all.entry(key).or_default();
            *sum = sum.saturating_add(count);
        }
        all
    }

    /// What a process that ended had counted as not redirected is the guest's from now on.
    pub(crate) fn keep_missed(&self, row: u16) {
        if let Some(r) = self.region.device.row(row) {
            add_missed(&self.counters.shared.host, r);
        }
    }

    /// Whether the row's process said that it is about to exec.
    pub(crate) fn is_execing(&self, row: u16) -> bool {
        self.region
            .device
            .row(row)
            .is_some_and(|r| r.phase.load(Ordering::SeqCst) == row::ROW_EXECING)
    }
}
