//! The chunk allocator of one guest: which chunk is whose. Private to the service, or to the services that share the pool; nothing here
//! lies where a guest can write.

use core::ops::Range;

use nk_device::Ledger;
pub(crate) use nk_device::ledger::{Lease, Owner};

/// Chunks that were free when they were last seen, as many as are noted where several services share a pool.
const NOTED: usize = 128;

/// A guest's pool.
#[derive(Debug)]
pub(crate) struct Pool {
    start: u32,
    /// Chunks of the range.
    size: u32,
    /// As far as they were ever used; those beyond are free. Nothing of this counts where there is a ledger.
    owners: Vec<Owner>,
    /// Where the truth is while several services share the pool.
    ledger: Option<Ledger>,
    /// How many may be in use.
    limit: u32,
    /// Free chunks, by their place in the range; the last freed is the next to be taken, since the caches have most of it. With a ledger: chunks
    /// that were free when they were last seen.
    free: Vec<u32>,
    /// Chunks below this were used once; with a ledger, where to look for free ones next.
    touched: u32,
    leased: u32,
    tx: u32,
    rx: u32,
    /// Those of [`Owner::Late`] that are this service's.
    late: Vec<u32>,
    /// Something was freed since [`Pool::take_freed`].
    freed: bool,
}

impl Pool {
    pub(crate) fn new(range: Range<u32>, ledger: Option<Ledger>) -> Pool {
        let n = range.end.saturating_sub(range.start);
        Pool {
            start: range.start,
            size: n,
            owners: Vec::new(),
            ledger,
            limit: n,
            free: Vec::new(),
            touched: 0,
            leased: 0,
            tx: 0,
            rx: 0,
            late: Vec::new(),
            freed: false,
        }
    }

    // ---- one service, or several ----

    /// The ledger, where other services share the pool.
    pub(crate) fn ledger(&self) -> Option<Ledger> {
        self.ledger
    }

    /// From now on the truth is in a fresh ledger, which others may share.
    pub(crate) fn begin_ledger(&mut self, ledger: Ledger) {
        for (i, owner) in (0..self.size).zip(&self.owners) {
            if *owner != Owner::Free {
                ledger.enter(self.start + i, *owner);
            }
        }
        self.owners = Vec::new();
        self.ledger = Some(ledger);
        self.touched = self.touched.checked_rem(self.size).unwrap_or(0);
    }

    /// Nobody else shares the pool any more. `is_held`: a socket has this as received. What was handed over with one that never came, since
    /// somebody ended in the middle of a move, is nobody's.
    pub(crate) fn end_ledger(
        &mut self,
        is_written: impl Fn(u32) -> bool,
        is_held: impl Fn(u32) -> bool,
    ) {
        let Some(ledger) = self.ledger.take() else { return };
        let mut owners = Vec::new();
        for chunk in self.start..self.start + self.size {
            // What another service had went with it.
            owners.push(match ledger.owner(chunk).unwrap_or(Owner::Free) {
                Owner::Other if is_written(chunk) => {
                    self.late.push(chunk);
                    Owner::Late
                }
                Owner::Other => Owner::Free,
                Owner::Rx if !is_held(chunk) => Owner::Free,
                owner => owner,
            });
        }
        while owners.last() == Some(&Owner::Free) {
            owners.pop();
        }
        let indices = || (0u32..).zip(&owners);
        self.free = indices().filter(|(_, o)| **o == Owner::Free).map(|(i, _)| i).collect();
        self.touched = owners.len() as u32;
        let count = |f: fn(&Owner) -> bool| owners.iter().filter(|o| f(o)).count() as u32;
        self.leased = count(|o| matches!(o, Owner::Row(..) | Owner::Orphan));
        self.tx = count(|o| matches!(o, Owner::Tx | Owner::Shared | Owner::Late));
        self.rx = count(|o| *o == Owner::Rx);
        self.owners = owners;
        self.freed = true;
    }

    /// Chunks leased, being sent, and received; by all services that share the pool.
    pub(crate) fn counts(&self) -> [u32; 3] {
        self.ledger.map_or([self.leased, self.tx, self.rx], |l| l.counts())
    }

    fn used(&self) -> u32 {
        self.counts().into_iter().fold(0, u32::saturating_add)
    }

    /// Makes a chunk somebody's, if it still is `from`'s.
    fn change(&mut self, chunk: u32, from: Owner, to: Owner) -> bool {
        if let Some(ledger) = self.ledger {
            return ledger.change(chunk, from, to);
        }
        let Some(o) = self.slot(chunk).filter(|o| **o == from) else { return false };
        *o = to;
        for (owner, add) in [(from, u32::MAX), (to, 1)] {
            let counter = match owner {
                Owner::Free | Owner::Other => continue,
                Owner::Row(..) | Owner::Orphan => &mut self.leased,
                Owner::Tx | Owner::Shared | Owner::Late => &mut self.tx,
                Owner::Rx => &mut self.rx,
            };
            *counter = counter.wrapping_add(add);
        }
        true
    }

    fn place(&self, chunk: u32) -> Option<u32> {
        chunk.checked_sub(self.start).filter(|i| *i < self.size)
    }

    fn slot(&mut self, chunk: u32) -> Option<&mut Owner> {
        let i = self.place(chunk)? as usize;
        if self.owners.len() <= i {
            self.owners.resize(i + 1, Owner::Free);
        }
        self.owners.get_mut(i)
    }

    pub(crate) fn owner(&self, chunk: u32) -> Option<Owner> {
        let i = self.place(chunk)?;
        match self.ledger {
            Some(ledger) => ledger.owner(chunk),
            None => Some(self.owners.get(i as usize).copied().unwrap_or(Owner::Free)),
        }
    }

    // ---- limits ----

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
        let there = match self.ledger {
            Some(_) => self.size.saturating_sub(self.used()),
            None => (self.free.len() + (self.size - self.touched) as usize) as u32,
        };
        self.limit.saturating_sub(self.used()).min(there)
    }

    pub(crate) fn has_freed(&self) -> bool {
        self.freed
    }

    pub(crate) fn take_freed(&mut self) -> bool {
        core::mem::take(&mut self.freed)
    }

    // ---- taking and freeing ----

    fn take(&mut self, owner: Owner) -> Option<u32> {
        if self.available() == 0 {
            return None;
        }
        if self.ledger.is_some() {
            return self.take_shared(owner);
        }
        loop {
            let i = match self.free.pop() {
                Some(i) => i,
                None if self.touched < self.size => {
                    self.touched += 1;
                    self.touched - 1
                }
                None => return None,
            };
            // Else adopted by a row before it was ever taken here, or out of the middle.
            if self.change(self.start + i, Owner::Free, owner) {
                return Some(self.start + i);
            }
        }
    }

    /// Of the chunks that were free when they were last seen one that still is, else any that is.
    fn take_shared(&mut self, owner: Owner) -> Option<u32> {
        while let Some(i) = self.free.pop() {
            if self.change(self.start + i, Owner::Free, owner) {
                return Some(self.start + i);
            }
        }
        for _ in 0..self.size {
            let chunk = self.start + self.touched;
            self.touched = (self.touched + 1) % self.size;
            if self.change(chunk, Owner::Free, owner) {
                return Some(chunk);
            }
        }
        None
    }

    /// How many chunks may be leased for sending now: three quarters of the pool at most are on that side.
    pub(crate) fn leasable(&self) -> u32 {
        let [leased, tx, _] = self.counts();
        (self.total() / 4 * 3).saturating_sub(leased.saturating_add(tx)).min(self.available())
    }

    /// Whether sockets that hold chunks to be sent are to leave the rest to others: from where they hold half of the pool, or less than an eighth
    /// of it is left at all. `before`: they were; that ends only once there is an eighth more.
    pub(crate) fn is_short(&self, before: bool) -> bool {
        let more = u64::from(before);
        let [_, tx, _] = self.counts();
        let eighths = |n: u32| u64::from(n) * 8;
        let total = u64::from(self.total());
        eighths(tx) >= total * (4 - more) || eighths(self.available()) < total * (1 + more)
    }

    /// How many such a socket may hold meanwhile.
    pub(crate) fn tx_share(&self) -> usize {
        if self.leasable() > self.total() / 32 { 4 } else { 1 }
    }

    /// Leases a chunk to a row.
    pub(crate) fn lease(&mut self, lease: Lease) -> Option<u32> {
        if self.leasable() == 0 {
            return None;
        }
        self.take(Owner::Row(lease))
    }

    /// Enters a lease that another service made.
    pub(crate) fn adopt_lease(&mut self, chunk: u32, lease: Lease) -> bool {
        self.change(chunk, Owner::Free, Owner::Row(lease))
    }

    /// A chunk for receiving: five eighths of the pool at most, and a socket that has many gets none when these get short.
    pub(crate) fn take_rx(&mut self, has: usize) -> Option<u32> {
        let share = self.total() / 8;
        let [_, _, rx] = self.counts();
        if rx >= share * 5 || (rx >= share * 4 && has >= 4) {
            return None;
        }
        self.take(Owner::Rx)
    }

    /// A guest's descriptor names a chunk to send: it must be leased, and not be on its way already. Returns the row that had it.
    pub(crate) fn begin_tx(&mut self, chunk: u32) -> Option<Option<u16>> {
        // Meanwhile the service that leased it may hear that its row died: that is a change from one to the other, and no more.
        for _ in 0..3 {
            let owner = self.owner(chunk)?;
            let row = match owner {
                Owner::Row(lease) => Some(lease.row),
                Owner::Orphan => None,
                _ => return None,
            };
            if self.change(chunk, owner, Owner::Tx) {
                return Some(row);
            }
        }
        None
    }

    /// What was taken to be sent stands on its ring as before: another service takes it.
    pub(crate) fn untake_tx(&mut self, chunk: u32) {
        let _ = self.change(chunk, Owner::Tx, Owner::Orphan)
            || self.change(chunk, Owner::Shared, Owner::Orphan);
    }

    /// Somebody may write into a chunk that is being sent: it comes back only by [`Pool::settle`].
    pub(crate) fn share(&mut self, chunk: u32) {
        self.change(chunk, Owner::Tx, Owner::Shared);
    }

    pub(crate) fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Gives back chunks that were sent, if nobody writes into them now.
    pub(crate) fn settle(&mut self, is_written: impl Fn(u32) -> bool) {
        for chunk in core::mem::take(&mut self.late) {
            if is_written(chunk) {
                self.late.push(chunk);
            } else if self.change(chunk, Owner::Late, Owner::Free) {
                self.note_free(chunk);
            }
        }
    }

    /// A dead row's chunk stays out, because a ring names it.
    pub(crate) fn orphan(&mut self, chunk: u32) {
        if let Some(o @ Owner::Row(_)) = self.owner(chunk) {
            self.change(chunk, o, Owner::Orphan);
        }
    }

    /// Gives a chunk back.
    pub(crate) fn free(&mut self, chunk: u32) {
        match self.owner(chunk) {
            None | Some(Owner::Free | Owner::Late | Owner::Other) => {}
            Some(Owner::Shared) => {
                if self.change(chunk, Owner::Shared, Owner::Late) {
                    self.late.push(chunk);
                }
            }
            Some(owner) => {
                if self.change(chunk, owner, Owner::Free) {
                    self.note_free(chunk);
                }
            }
        }
    }

    fn note_free(&mut self, chunk: u32) {
        let Some(i) = self.place(chunk) else { return };
        self.freed = true;
        let is_worth_noting = match self.ledger {
            // Whoever sends what another leases frees more than it takes.
            Some(_) => self.free.len() < NOTED,
            None => i < self.touched,
        };
        if is_worth_noting {
            self.free.push(i);
        }
    }

    /// Gives a chunk back that was taken and not touched: it is the next to be taken.
    pub(crate) fn untake_rx(&mut self, chunk: u32) {
        if self.change(chunk, Owner::Rx, Owner::Free) {
            self.free.push(chunk - self.start);
        }
    }

    /// Chunks leased to rows.
    pub(crate) fn leases(&self) -> impl Iterator<Item = (u32, Lease)> {
        let known = self.ledger.map_or(self.owners.len() as u32, |_| self.size);
        (self.start..self.start + known).filter_map(|chunk| match self.owner(chunk) {
            Some(Owner::Row(lease)) => Some((chunk, lease)),
            _ => None,
        })
    }

    /// Chunks leased to a row.
    pub(crate) fn leases_of(&self, row: u16) -> impl Iterator<Item = (u32, Lease)> {
        self.leases().filter(move |(_, lease)| lease.row == row)
    }
}

#[cfg(test)]
mod tests;
