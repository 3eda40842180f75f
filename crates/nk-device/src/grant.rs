//! Grants: what the host leases to a guest process ahead of need (chunks for sending, ids for new sockets).
//!
//! The host keeps the truth about each lease in private memory; the ring only hands the numbers over. The host is the one
//! producer, the threads of the process pop by CAS, so a kill at any point loses nothing that the host cannot take back.

use crate::sync::{AtomicU32, Ordering, Pad32, Word32};

/// Entries of a grant ring.
pub const GRANT_SLOTS: usize = if cfg!(loom) { 2 } else { 256 };

/// A ring of leased numbers in the row.
#[derive(Debug)]
#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
pub struct GrantRing {
    /// Written by the host.
    pub tail: AtomicU32,
    pad0: [Pad32; 15],
    /// Written by the host.
    pub slots: [AtomicU32; GRANT_SLOTS],
    /// Written by the guest; the host moves it by CAS to take grants back.
    pub head: AtomicU32,
    pad1: [Pad32; 15],
}

impl GrantRing {
    /// Guest: takes one grant.
    pub fn pop(&self) -> Option<u32> {
        pop(&self.tail, &self.head, &self.slots)
    }

    /// Grants waiting to be popped, as either side sees it now, at most [`GRANT_SLOTS`].
    pub fn available(&self) -> u32 {
        let n = self.tail.load(Ordering::Acquire).wrapping_sub(self.head.load(Ordering::Acquire));
        n.min(GRANT_SLOTS as u32)
    }

    /// Host: takes one grant back that the guest has not popped. `private_tail` is the host's own copy. One try, since a guest may move
    /// its head for ever; what comes is the guest's word as much as the host's, and is checked as such.
    pub fn take_back(&self, private_tail: u32) -> Option<u32> {
        let head = self.head.load(Ordering::Acquire);
        let left = private_tail.wrapping_sub(head);
        if left == 0 || left > GRANT_SLOTS as u32 {
            return None;
        }
        let value = self.slots.get(head as usize % GRANT_SLOTS)?.load(Ordering::Relaxed);
        let next = head.wrapping_add(1);
        let taken = self.head.compare_exchange(head, next, Ordering::AcqRel, Ordering::Relaxed);
        taken.is_ok().then_some(value)
    }

    /// Host: adds one grant; `private_tail` is the host's own copy. `false` when there is no room (by the guest's hint).
    pub fn push(&self, private_tail: &mut u32, value: u32) -> bool {
        push(&self.tail, &self.head, &self.slots, private_tail, value)
    }
}

/// [`GrantRing::pop`] over any atomics.
pub fn pop<A: Word32>(tail: &A, head: &A, slots: &[A]) -> Option<u32> {
    loop {
        let h = head.load(Ordering::Acquire);
        let t = tail.load(Ordering::Acquire);
        let n = t.wrapping_sub(h);
        if n == 0 || n > slots.len() as u32 {
            // Nothing, or a head read before others moved it on: only an unchanged head counts.
            if head.load(Ordering::Acquire) == h {
                return None;
            }
            continue;
        }
        let value = slots.get(h as usize % slots.len())?.load(Ordering::Relaxed);
        if head.compare_exchange(h, h.wrapping_add(1), Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            return Some(value);
        }
    }
}

/// [`GrantRing::push`] over any atomics.
pub fn push<A: Word32>(
    tail: &A,
    head: &A,
    slots: &[A],
    private_tail: &mut u32,
    value: u32,
) -> bool {
    let used = private_tail.wrapping_sub(head.load(Ordering::Acquire));
    if used >= slots.len() as u32 {
        return false;
    }
    let Some(slot) = slots.get(*private_tail as usize % slots.len()) else { return false };
    slot.store(value, Ordering::Relaxed);
    *private_tail = private_tail.wrapping_add(1);
    tail.store(*private_tail, Ordering::Release);
    true
}
