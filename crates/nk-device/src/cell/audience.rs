//! Who sleeps on a socket, and who watches it: they are told of every change.

use super::{Cell, WATCH_QSET_MASK};
use crate::sync::{AtomicU32, Ordering, fence};

fn begin_sleep(sleepers: &AtomicU32, wake: &AtomicU32) -> u32 {
    sleepers.fetch_add(1, Ordering::SeqCst);
    let word = wake.load(Ordering::SeqCst);
    fence(Ordering::SeqCst);
    word
}

impl Cell {
    /// Guest: before a futex wait on `rx_wake`: the value to wait with. Look at the socket again after this.
    /// [`Cell::end_rx_sleep`] follows in any case.
    #[must_use]
    pub fn begin_rx_sleep(&self) -> u32 {
        begin_sleep(&self.rx_sleepers, &self.rx_wake)
    }
    /// Guest: after the wait.
    pub fn end_rx_sleep(&self) {
        self.rx_sleepers.fetch_sub(1, Ordering::SeqCst);
    }
    /// As [`Cell::begin_rx_sleep`], for `tx_wake`.
    #[must_use]
    pub fn begin_tx_sleep(&self) -> u32 {
        begin_sleep(&self.tx_sleepers, &self.tx_wake)
    }
    /// Guest: after the wait.
    pub fn end_tx_sleep(&self) {
        self.tx_sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Service: something changed for readers. `true` when somebody must be told with an Event NQE.
    #[must_use]
    pub fn announce_rx(&self) -> bool {
        self.announce(&self.rx_wake)
    }
    /// Service: something changed for writers. `true` when somebody must be told with an Event NQE.
    #[must_use]
    pub fn announce_tx(&self) -> bool {
        self.announce(&self.tx_wake)
    }
    fn announce(&self, wake: &AtomicU32) -> bool {
        wake.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.has_audience()
    }

    /// Guest: adds a watch entry for the queue set (once; the flags of a later call win).
    pub fn watch(&self, qset: u16, flags: u32) {
        let mine = (u32::from(qset) + 1) | flags;
        if !self.change_watch(mine) && !self.claim_watch(mine) {
            self.watch_overflow.store(1, Ordering::SeqCst);
        }
        // Whoever watches looks at the socket after this; the service looks for watchers after its change and a fence.
        fence(Ordering::SeqCst);
    }

    fn change_watch(&self, mine: u32) -> bool {
        self.watch.iter().any(|e| {
            let v = e.load(Ordering::Relaxed);
            // By CAS: the entry may have been freed and claimed by another queue set meanwhile.
            v & WATCH_QSET_MASK == mine & WATCH_QSET_MASK
                && e.compare_exchange(v, mine, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        })
    }

    fn claim_watch(&self, mine: u32) -> bool {
        self.watch
            .iter()
            .any(|e| e.compare_exchange(0, mine, Ordering::SeqCst, Ordering::Relaxed).is_ok())
    }

    /// Removes the queue set's watch entry.
    pub fn unwatch(&self, qset: u16) {
        for e in &self.watch {
            let v = e.load(Ordering::Relaxed);
            if v & WATCH_QSET_MASK == u32::from(qset) + 1 {
                let _ = e.compare_exchange(v, 0, Ordering::SeqCst, Ordering::Relaxed);
            }
        }
    }

    /// Whether anybody must be told of an event: watchers or sleepers. Call after a SeqCst fence that follows the change.
    #[must_use]
    pub fn has_audience(&self) -> bool {
        self.rx_sleepers.load(Ordering::SeqCst) != 0
            || self.tx_sleepers.load(Ordering::SeqCst) != 0
            || self.watch_overflow.load(Ordering::SeqCst) != 0
            || self.watch.iter().any(|e| e.load(Ordering::SeqCst) != 0)
    }
}
