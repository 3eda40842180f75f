//! Out of chunks: no socket of this process is writable until the host grants some.
//!
//! The host answers Refill on the process's primary queue set only, but those who wait sleep on queue sets of their own. So whoever
//! waits for chunks also waits for the primary doorbell, and whoever takes that doorbell rings all others that wait
//! ([`relay`]). Rare, so simple: nothing here is on a path that has chunks.

use core::sync::atomic::{AtomicU32, Ordering, fence};

use super::{door, instance, slots};
use crate::grants::{ask, can_send};
use crate::process::Process;
use crate::sys;

/// Counts shortages, so that an instance knows of one that a send() found.
static SHORTAGES: AtomicU32 = AtomicU32::new(0);
/// Those who wait for chunks.
static WAITERS: AtomicU32 = AtomicU32::new(0);
/// Sleepers on the primary queue set.
static PRIMARY_SLEEPERS: AtomicU32 = AtomicU32::new(0);

/// A non-blocking send found no chunk and gives EAGAIN: its EPOLLOUT must come when there are chunks.
pub fn note_shortage() {
    SHORTAGES.fetch_add(1, Ordering::SeqCst);
}

/// Shortages so far.
pub(super) fn shortages() -> u32 {
    SHORTAGES.load(Ordering::SeqCst)
}

/// Waits for chunks from now on. `true` when there are some: do not sleep; [`leave`] follows in any case.
pub(super) fn enter(p: &Process) -> bool {
    WAITERS.fetch_add(1, Ordering::SeqCst);
    enter_primary(p);
    if !can_send(p) {
        ask(p);
    }
    // The host grants, fences, then reads `want` and `sleeping`.
    fence(Ordering::SeqCst);
    can_send(p)
}

/// Undoes [`enter`].
pub(super) fn leave(p: &Process) {
    leave_primary(p);
    lower(&WAITERS);
}

/// Sleeps on the primary queue set, among others.
pub(super) fn enter_primary(p: &Process) {
    door::enter_sleep(p.device(), p.qset(), &PRIMARY_SLEEPERS);
}

/// Undoes [`enter_primary`].
pub(super) fn leave_primary(p: &Process) {
    door::leave_sleep(p.device(), p.qset(), &PRIMARY_SLEEPERS, p.doorbell_fd());
}

/// Takes the primary doorbell and tells everybody who waits for chunks.
pub(super) fn relay(p: &Process) {
    sys::drain_eventfd(p.doorbell_fd());
    if WAITERS.load(Ordering::SeqCst) != 0 {
        instance::ring_those_short_of_chunks();
        slots::ring_those_short_of_chunks();
    }
}

/// Counts down, not below zero: a forked child starts at 0 while a frame interrupted before the fork may still leave.
pub(super) fn lower(count: &AtomicU32) -> u32 {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).unwrap_or(0)
}

/// In a forked child nobody waits.
pub(super) fn reset() {
    WAITERS.store(0, Ordering::SeqCst);
    PRIMARY_SLEEPERS.store(0, Ordering::SeqCst);
}
