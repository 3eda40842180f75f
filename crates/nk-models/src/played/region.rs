//! Memory for a device between two guard pages, so that a step outside ends the process.

use core::ptr::NonNull;

use nk_device::sync::AtomicU64;
use nk_device::{Counters, Device, Layout, Ledger, SharedCounters};

const GUARD: usize = 4096;

/// A device's memory.
#[derive(Debug)]
pub struct Region {
    start: NonNull<u8>,
    len: usize,
    /// The device.
    pub device: Device,
    /// What is counted of its guest.
    pub counters: SharedCounters,
    _counters: Box<Counters>,
}

impl Region {
    /// Maps and formats a device.
    ///
    /// # Panics
    /// When memory cannot be had.
    #[must_use]
    pub fn new(layout: Layout, guest: u16) -> Region {
        let len = layout.region_len() + 2 * GUARD;
        // SAFETY: a fresh private mapping of our own; results are checked; the device stays within the part between the guards,
        // which is page-aligned and lives until drop.
        unsafe {
            let at = libc::mmap(
                core::ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            );
            assert_ne!(at, libc::MAP_FAILED, "mmap");
            let start = NonNull::new(at.cast::<u8>()).expect("mapping");
            let base = start.add(GUARD);
            let rw = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(base.as_ptr().cast(), len - 2 * GUARD, rw), 0, "mprotect");
            let device = Device::with_layout(base, len - 2 * GUARD, layout).expect("layout");
            device.format(guest);
            let memory = Box::<Counters>::default();
            let counters = SharedCounters::new(NonNull::from(&*memory).cast()).expect("fresh");
            Region { start, len, device, counters, _counters: memory }
        }
    }

    /// Words of the device.
    #[must_use]
    pub fn words(&self) -> usize {
        (self.len - 2 * GUARD) / 8
    }

    /// Overwrites one word, as any process of the guest could.
    pub fn scribble(&self, word: usize, value: u64) {
        let at = self.device.base().cast::<u64>();
        // SAFETY: within the device by the remainder; the host uses atomics and raw copies only.
        unsafe { at.add(word % self.words()).write_volatile(value) };
    }

    /// Reads one word.
    #[must_use]
    pub fn peek(&self, word: usize) -> u64 {
        let at = self.device.base().cast::<u64>();
        // SAFETY: as in scribble.
        unsafe { at.add(word % self.words()).read_volatile() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping made in new; whoever used the device is gone.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// The ledger of a pool that several services share.
#[derive(Debug)]
pub struct SharedLedger {
    _words: Box<[AtomicU64]>,
    /// The ledger.
    pub ledger: Ledger,
}

impl SharedLedger {
    /// Every chunk is free.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn new(layout: Layout) -> SharedLedger {
        let len = Ledger::bytes(layout);
        let words: Box<[AtomicU64]> = (0..len.div_ceil(8)).map(|_| AtomicU64::new(0)).collect();
        let base = NonNull::from(&*words).cast();
        // SAFETY: the words are where they are until the value is dropped, and whoever uses the ledger ends before that; it is
        // accessed by atomics alone, which need no more than their alignment.
        let ledger = unsafe { Ledger::new(base, len, layout, 0) }.expect("as long as it must be");
        SharedLedger { _words: words, ledger }
    }
}
