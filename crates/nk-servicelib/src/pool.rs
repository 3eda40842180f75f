//! The chunk allocator of one guest: which chunk is whose. Private to the service; nothing here lies where a guest can write.

use core::ops::Range;
use std::collections::VecDeque;

/// Free chunks that are rotated through, first in first out, before untouched ones are taken: more than an L2 cache, less than an
/// L3 (2 MiB measured best).
const ROTATION: usize = 128;

/// Whose a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Nobody's.
    Free,
    /// Leased to a row for sending; the index on its grant ring.
    Row(u16, u32),
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
}

/// A guest's pool.
#[derive(Debug)]
pub(crate) struct Pool {
    start: u32,
    /// Chunks of the range.
    size: u32,
    /// As far as they were ever used; those beyond are free.
    owners: Vec<Owner>,
    /// How many may be in use.
    limit: u32,
    free: VecDeque<u32>,
    /// Chunks below this were used once.
    touched: u32,
    pub(crate) leased: u32,
    pub(crate) tx: u32,
    pub(crate) rx: u32,
    /// Those of [`Owner::Late`].
    late: Vec<u32>,
    /// Something was freed since [`Pool::take_freed`].
    freed: bool,
}

impl Pool {
    pub(crate) fn new(range: Range<u32>) -> Pool {
        let n = range.end.saturating_sub(range.start);
        Pool {
            start: range.start,
            size: n,
            owners: Vec::new(),
            limit: n,
            free: VecDeque::new(),
            touched: 0,
            leased: 0,
            tx: 0,
            rx: 0,
            late: Vec::new(),
            freed: false,
        }
    }

    /// How many chunks there are to be used.
    pub(crate) fn total(&self) -> u32 {
        self.limit
    }

    /// Lets only so many be used. Those that are used already beyond that stay until they come back.
    pub(crate) fn set_limit(&mut self, limit: u32) {
        self.limit = limit.min(self.size);
        self.freed = true;
    }

    pub(crate) fn available(&self) -> u32 {
        let there = self.free.len() + (self.size - self.touched) as usize;
        self.limit.saturating_sub(self.leased + self.tx + self.rx).min(there as u32)
    }

    pub(crate) fn has_freed(&self) -> bool {
        self.freed
    }

    pub(crate) fn take_freed(&mut self) -> bool {
        core::mem::take(&mut self.freed)
    }

    fn slot(&mut self, chunk: u32) -> Option<&mut Owner> {
        let i = chunk.checked_sub(self.start).filter(|i| *i < self.size)? as usize;
        if self.owners.len() <= i {
            self.owners.resize(i + 1, Owner::Free);
        }
        self.owners.get_mut(i)
    }

    pub(crate) fn owner(&self, chunk: u32) -> Option<Owner> {
        let i = chunk.checked_sub(self.start).filter(|i| *i < self.size)? as usize;
        Some(self.owners.get(i).copied().unwrap_or(Owner::Free))
    }

    fn take(&mut self, owner: Owner) -> Option<u32> {
        if self.available() == 0 {
            return None;
        }
        let i = if self.free.len() < ROTATION && self.touched < self.size {
            self.touched += 1;
            self.touched - 1
        } else {
            // What adoption took from the middle is skipped.
            loop {
                let i = self.free.pop_front()?;
                if self.owners.get(i as usize) == Some(&Owner::Free) {
                    break i;
                }
            }
        };
        match self.slot(self.start + i) {
            Some(o) if *o == Owner::Free => *o = owner,
            // Adopted by a row before it was ever taken here.
            _ => return self.take(owner),
        }
        Some(self.start + i)
    }

    /// How many chunks may be leased for sending now: three quarters of the pool at most are on that side.
    pub(crate) fn leasable(&self) -> u32 {
        (self.total() / 4 * 3).saturating_sub(self.leased + self.tx).min(self.available())
    }

    /// Leases a chunk to a row, as number `index` on its grant ring.
    pub(crate) fn lease(&mut self, row: u16, index: u32) -> Option<u32> {
        if self.leasable() == 0 {
            return None;
        }
        let chunk = self.take(Owner::Row(row, index))?;
        self.leased += 1;
        Some(chunk)
    }

    /// Enters a lease that another service made.
    pub(crate) fn adopt_lease(&mut self, chunk: u32, row: u16, index: u32) -> bool {
        match self.slot(chunk) {
            Some(o) if *o == Owner::Free => {
                *o = Owner::Row(row, index);
                self.leased += 1;
                true
            }
            _ => false,
        }
    }

    /// A chunk for receiving: five eighths of the pool at most, and a socket that has many gets none when these get short.
    pub(crate) fn take_rx(&mut self, has: usize) -> Option<u32> {
        let share = self.total() / 8;
        if self.rx >= share * 5 || (self.rx >= share * 4 && has >= 4) {
            return None;
        }
        let chunk = self.take(Owner::Rx)?;
        self.rx += 1;
        Some(chunk)
    }

    /// A guest's descriptor names a chunk to send: it must be leased, and not be on its way already. Returns the row that had it.
    pub(crate) fn begin_tx(&mut self, chunk: u32) -> Option<Option<u16>> {
        let o = self.slot(chunk)?;
        let row = match *o {
            Owner::Row(row, _) => Some(row),
            Owner::Orphan => None,
            _ => return None,
        };
        *o = Owner::Tx;
        self.leased = self.leased.saturating_sub(1);
        self.tx += 1;
        Some(row)
    }

    /// Somebody may write into a chunk that is being sent: it comes back only by [`Pool::settle`].
    pub(crate) fn share(&mut self, chunk: u32) {
        if let Some(o) = self.slot(chunk)
            && *o == Owner::Tx
        {
            *o = Owner::Shared;
        }
    }

    pub(crate) fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Gives back chunks that were sent, if nobody writes into them now.
    pub(crate) fn settle(&mut self, is_written: impl Fn(u32) -> bool) {
        for chunk in core::mem::take(&mut self.late) {
            if is_written(chunk) {
                self.late.push(chunk);
            } else if let Some(o) = self.slot(chunk) {
                *o = Owner::Tx;
                self.free(chunk);
            }
        }
    }

    /// A dead row's chunk stays out, because a ring names it.
    pub(crate) fn orphan(&mut self, chunk: u32, row: u16) {
        if let Some(o) = self.slot(chunk)
            && matches!(*o, Owner::Row(r, _) if r == row)
        {
            *o = Owner::Orphan;
        }
    }

    /// Gives a chunk back.
    pub(crate) fn free(&mut self, chunk: u32) {
        let Some(o) = self.slot(chunk) else { return };
        match *o {
            Owner::Free | Owner::Late => return,
            Owner::Shared => {
                *o = Owner::Late;
                self.late.push(chunk);
                return;
            }
            Owner::Row(..) | Owner::Orphan => self.leased = self.leased.saturating_sub(1),
            Owner::Tx => self.tx = self.tx.saturating_sub(1),
            Owner::Rx => self.rx = self.rx.saturating_sub(1),
        }
        if let Some(o) = self.slot(chunk) {
            *o = Owner::Free;
        }
        self.freed = true;
        let i = chunk - self.start;
        if i < self.touched {
            self.free.push_back(i);
        }
    }

    /// Gives a chunk back that was taken and not touched: it is the next to be taken.
    pub(crate) fn untake_rx(&mut self, chunk: u32) {
        if let Some(o) = self.slot(chunk)
            && *o == Owner::Rx
        {
            *o = Owner::Free;
            self.rx = self.rx.saturating_sub(1);
            self.free.push_front(chunk - self.start);
        }
    }

    /// Chunks leased to a row, with their indices on its grant ring.
    pub(crate) fn leases_of(&self, row: u16) -> impl Iterator<Item = (u32, u32)> {
        self.owners.iter().enumerate().filter_map(move |(i, o)| match o {
            Owner::Row(r, index) if *r == row => Some((self.start + i as u32, *index)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chunk_is_sent_once_per_lease() {
        let mut p = Pool::new(10..18);
        let c = p.lease(3, 0).expect("chunk");
        assert_eq!(p.begin_tx(c), Some(Some(3)));
        assert_eq!(p.begin_tx(c), None, "twice");
        assert_eq!(p.begin_tx(9), None, "below the pool");
        assert_eq!(p.begin_tx(18), None, "above the pool");
        let r = p.take_rx(0).expect("chunk");
        assert_eq!(p.begin_tx(r), None, "not leased");
        p.free(c);
        assert_eq!(p.begin_tx(c), None, "free");
        p.free(r);
        assert_eq!((p.available(), p.leased, p.tx, p.rx), (8, 0, 0, 0));
    }

    #[test]
    fn neither_side_takes_all() {
        let mut p = Pool::new(0..64);
        let mut leased = 0;
        while p.lease(1, leased).is_some() {
            leased += 1;
        }
        assert_eq!(leased, 48);
        assert!(p.take_rx(0).is_some());
        let mut p = Pool::new(0..64);
        let mut taken = 0;
        while p.take_rx(taken).is_some() {
            taken += 1;
        }
        assert_eq!(taken, 32, "a socket with many stops at half");
        assert!(p.take_rx(0).is_some(), "one with none goes on");
        assert!(p.lease(1, 0).is_some());
    }

    #[test]
    fn what_somebody_may_write_into_comes_back_later() {
        let mut p = Pool::new(0..8);
        let c = p.lease(1, 0).expect("chunk");
        assert_eq!(p.begin_tx(c), Some(Some(1)));
        p.share(c);
        p.free(c);
        assert_eq!((p.owner(c), p.tx), (Some(Owner::Late), 1));
        assert_eq!(p.begin_tx(c), None, "nobody's to send");
        p.settle(|_| true);
        assert_eq!(p.owner(c), Some(Owner::Late));
        p.settle(|_| false);
        assert_eq!((p.owner(c), p.tx, p.has_late()), (Some(Owner::Free), 0, false));
    }

    proptest! {
        #[test]
        fn counts_agree_whatever_is_done(steps in proptest::collection::vec((0u8..8, 0u32..40), 1..400)) {
            let mut p = Pool::new(4..36);
            for (what, chunk) in steps {
                match what {
                    0 => { p.lease(1, chunk); }
                    1 => { p.take_rx(chunk as usize % 6); }
                    2 => { p.begin_tx(chunk); }
                    3 => p.orphan(chunk, 1),
                    4 => { p.adopt_lease(chunk, 2, 0); }
                    5 => p.share(chunk),
                    6 => p.settle(|c| c % 2 == chunk % 2),
                    _ => p.free(chunk),
                }
                let count = |f: fn(&Owner) -> bool| (4..36).filter(|c| p.owner(*c).is_some_and(|o| f(&o))).count() as u32;
                prop_assert_eq!(count(|o| matches!(o, Owner::Row(..) | Owner::Orphan)), p.leased);
                prop_assert_eq!(count(|o| matches!(o, Owner::Tx | Owner::Shared | Owner::Late)), p.tx);
                prop_assert_eq!(count(|o| *o == Owner::Rx), p.rx);
            }
        }
    }
}
