//! The ledger of a pool that several services share: which chunk is whose. Memory of the host's alone; no guest ever maps it.
//!
//! One service keeps this in private memory. While a guest is served by several (it was moved, and its old connections end where they
//! are), each chunk has a word here instead, changed by compare-and-swap, so that it has one owner at any time, whichever services
//! act and whichever dies.

use core::ptr::NonNull;

use crate::Layout;
use crate::sync::{AtomicU64, Ordering};

/// What counters there are: chunks leased, being sent, received.
const COUNTERS: usize = 3;
const FREE: u64 = 0;
const ROW: u64 = 1;
const ORPHAN: u64 = 2;
const TX: u64 = 3;
const RX: u64 = 4;
const SHARED: u64 = 5;
const LATE: u64 = 6;
/// The number of no service: there are never so many.
const NOBODY: u8 = u8::MAX;
/// Words of each row: chunks leased to it, and how many it is to have.
const ROW_WORDS: usize = 2;

/// A chunk leased for sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// To whom.
    pub row: u16,
    /// Which process in the row: [`crate::Row::generation`], as far as it fits. The next one has nothing of it.
    pub life: u8,
    /// The index on its grant ring.
    pub index: u32,
}

/// Whose a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody's.
    Free,
    /// Leased to a row for sending.
    Row(Lease),
    /// Leased to a row that is dead, and named by a ring on which somebody may yet publish it.
    Orphan,
    /// Being sent.
    Tx,
    /// Being sent, and somebody may still write into it, behind what is sent.
    Shared,
    /// Sent, and somebody may still write into it.
    Late,
    /// Received, and not yet read.
    Rx,
    /// Another service's, to send or received.
    Other,
}

impl Owner {
    /// The word of a chunk that a service has in use so.
    fn to_word(self, service: u8) -> u64 {
        let mine = |kind: u64| kind | u64::from(service) << 8;
        match self {
            Owner::Free => FREE,
            Owner::Row(l) => {
                ROW | u64::from(l.life) << 8 | u64::from(l.row) << 16 | u64::from(l.index) << 32
            }
            Owner::Orphan => ORPHAN,
            Owner::Tx => mine(TX),
            Owner::Shared => mine(SHARED),
            Owner::Late => mine(LATE),
            Owner::Rx => mine(RX),
            // No service ever makes something another's: this matches no word.
            Owner::Other => u64::MAX,
        }
    }

    fn from_word(w: u64, service: u8) -> Owner {
        match w & 0xff {
            FREE => Owner::Free,
            ROW => {
                let (life, row, index) = ((w >> 8) as u8, (w >> 16) as u16, (w >> 32) as u32);
                Owner::Row(Lease { row, life, index })
            }
            ORPHAN => Owner::Orphan,
            _ if (w >> 8) as u8 != service => Owner::Other,
            TX => Owner::Tx,
            RX => Owner::Rx,
            SHARED => Owner::Shared,
            LATE => Owner::Late,
            _ => Owner::Other,
        }
    }

    /// Which counter counts it.
    fn counter(self) -> Option<usize> {
        match self {
            Owner::Free | Owner::Other => None,
            Owner::Row(..) | Owner::Orphan => Some(0),
            Owner::Tx | Owner::Shared | Owner::Late => Some(1),
            Owner::Rx => Some(2),
        }
    }
}

/// The ledger as one service sees it. Copies refer to the same memory; whoever made the mapping keeps it alive.
#[derive(Clone, Copy, Debug)]
pub struct Ledger {
    base: NonNull<AtomicU64>,
    rows: u32,
    chunks: u32,
    /// Which service this is, among those that share the pool.
    service: u8,
}

// SAFETY: all access goes through atomics.
unsafe impl Send for Ledger {}
// SAFETY: as above.
unsafe impl Sync for Ledger {}

impl Ledger {
    /// Bytes that it needs, for a device of this layout.
    #[must_use]
    pub const fn bytes(layout: Layout) -> usize {
        (COUNTERS + layout.rows as usize * ROW_WORDS + layout.chunks as usize)
            * size_of::<AtomicU64>()
    }

    /// A ledger over memory that is zeroed, or was one before; `None` when it is too short.
    ///
    /// # Safety
    /// `base` is page-aligned and maps `len` readable and writable bytes for as long as any copy of the value is used.
    #[must_use]
    pub unsafe fn new(
        base: NonNull<u8>,
        len: usize,
        layout: Layout,
        service: u8,
    ) -> Option<Ledger> {
        (len >= Ledger::bytes(layout)).then_some(Ledger {
            base: base.cast(),
            rows: layout.rows,
            chunks: layout.chunks,
            service,
        })
    }

    /// The same ledger as another service sees it.
    #[must_use]
    pub fn of_service(self, service: u8) -> Ledger {
        Ledger { service, ..self }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: every caller checks its index against the counts, which fit the mapping; any bytes are a valid atomic.
        unsafe { self.base.add(at).as_ref() }
    }

    fn chunk(&self, chunk: u32) -> Option<&AtomicU64> {
        let at = COUNTERS + self.rows as usize * ROW_WORDS + chunk as usize;
        (chunk < self.chunks).then(|| self.word(at))
    }

    fn row(&self, row: u16, word: usize) -> Option<&AtomicU64> {
        let at = COUNTERS + usize::from(row) * ROW_WORDS + word;
        (u32::from(row) < self.rows).then(|| self.word(at))
    }

    /// Chunks leased, being sent, and received, by all services together. A service that died while it counted may have left
    /// these one off.
    #[must_use]
    pub fn counts(&self) -> [u32; COUNTERS] {
        core::array::from_fn(|n| count(self.word(n)))
    }

    /// Chunks leased to a row and not sent.
    #[must_use]
    pub fn leased(&self, row: u16) -> u32 {
        self.row(row, 0).map_or(0, count)
    }

    /// How many a row is to have; 0: nothing was said yet.
    #[must_use]
    pub fn target(&self, row: u16) -> u32 {
        self.row(row, 1).map_or(0, count)
    }

    /// Says how many a row is to have.
    pub fn set_target(&self, row: u16, target: u32) {
        if let Some(w) = self.row(row, 1) {
            w.store(target.into(), Ordering::Relaxed);
        }
    }

    /// Counts so many more chunks that are leased to a row, or fewer.
    pub fn add_leased(&self, row: u16, n: i32) {
        if let Some(w) = self.row(row, 0) {
            w.fetch_add(i64::from(n) as u64, Ordering::Relaxed);
        }
    }

    /// So many chunks are leased to the row.
    pub fn set_leased(&self, row: u16, n: u32) {
        if let Some(w) = self.row(row, 0) {
            w.store(n.into(), Ordering::Relaxed);
        }
    }

    /// Whose a chunk is.
    #[must_use]
    pub fn owner(&self, chunk: u32) -> Option<Owner> {
        self.chunk(chunk).map(|w| Owner::from_word(w.load(Ordering::Acquire), self.service))
    }

    /// Makes a chunk somebody's, if it still is `from`'s.
    pub fn change(&self, chunk: u32, from: Owner, to: Owner) -> bool {
        let Some(word) = self.chunk(chunk) else { return false };
        let (old, new) = (from.to_word(self.service), to.to_word(self.service));
        let changed = word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if changed {
            self.count(from, to);
        }
        changed
    }

    /// What this service has received is on its way to another, if it is so.
    pub fn hand_over(&self, chunk: u32) -> bool {
        self.pass(chunk, self.service, NOBODY)
    }

    /// What is on its way is received by this service.
    pub fn take_over(&self, chunk: u32) -> bool {
        self.pass(chunk, NOBODY, self.service)
    }

    fn pass(&self, chunk: u32, from: u8, to: u8) -> bool {
        let Some(word) = self.chunk(chunk) else { return false };
        let (old, new) = (Owner::Rx.to_word(from), Owner::Rx.to_word(to));
        word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Enters a chunk of the service that had the pool for itself until now.
    pub fn enter(&self, chunk: u32, owner: Owner) {
        if let Some(word) = self.chunk(chunk) {
            word.store(owner.to_word(self.service), Ordering::Release);
            self.count(Owner::Free, owner);
        }
    }

    fn count(&self, from: Owner, to: Owner) {
        if let Some(n) = from.counter() {
            self.word(n).fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(n) = to.counter() {
            self.word(n).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Frees what a service that is gone was sending or had received, and what is on its way: from it or to it, since nobody is cleared while
    /// two others move something. What a process may still write into is freed by who is left alone.
    pub fn clear(&self) {
        for chunk in 0..self.chunks {
            for owner in [Owner::Tx, Owner::Rx] {
                self.change(chunk, owner, Owner::Free);
            }
            self.of_service(NOBODY).change(chunk, Owner::Rx, Owner::Free);
        }
    }
}

fn count(word: &AtomicU64) -> u32 {
    u32::try_from(word.load(Ordering::Relaxed) as i64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_chunk_has_one_owner() {
        let layout = Layout { rows: 2, qsets: 1, cells: 1, chunks: 8 };
        let memory: Vec<AtomicU64> =
            (0..Ledger::bytes(layout) / 8).map(|_| AtomicU64::new(0)).collect();
        let base = NonNull::from(memory.as_slice()).cast();
        // SAFETY: the vector outlives its use here.
        let a = unsafe { Ledger::new(base, Ledger::bytes(layout), layout, 1) }.expect("fits");
        let b = a.of_service(2);
        let lease = Owner::Row(Lease { row: 1, life: 255, index: u32::MAX });
        assert!(a.change(3, Owner::Free, lease));
        assert!(!b.change(3, Owner::Free, Owner::Rx), "leased");
        assert_eq!(b.owner(3), Some(lease));
        assert!(b.change(3, lease, Owner::Tx));
        assert!(!a.change(3, lease, Owner::Tx), "sent already");
        assert_eq!((a.owner(3), b.owner(3)), (Some(Owner::Other), Some(Owner::Tx)));
        assert!(!a.change(3, Owner::Tx, Owner::Free), "another's");
        assert!(!a.change(3, Owner::Other, Owner::Free), "another's");
        assert!(a.change(4, Owner::Free, Owner::Rx));
        assert_eq!(a.counts(), [0, 1, 1]);
        assert!(!b.hand_over(4), "not its");
        assert!(a.hand_over(4) && !a.hand_over(4));
        assert!(b.take_over(4) && !a.take_over(4), "it was on its way");
        assert!(b.hand_over(4) && a.take_over(4));
        assert!(a.change(5, Owner::Free, Owner::Rx) && a.hand_over(5));
        assert_eq!(a.counts(), [0, 1, 2]);
        b.clear();
        assert_eq!(a.counts(), [0, 0, 1]);
        assert_eq!((a.owner(3), a.owner(4)), (Some(Owner::Free), Some(Owner::Rx)));
        assert_eq!(a.owner(8), None);
        a.add_leased(1, 3);
        b.add_leased(1, -1);
        assert_eq!((a.leased(1), a.leased(0), a.leased(2)), (2, 0, 0));
    }
}
