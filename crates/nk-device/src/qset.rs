//! A queue set (paper §4.2): job, send, completion and receive rings, with a sleep word and a reply area.
//!
//! The rings of a queue set have CoreEngine at one end and one process (or one kernel) at the other. The NSM's device uses
//! the same structure: there ServiceLib is the "guest" end of completion and receive, turned round: it pops job and send, and
//! pushes completion and receive.

use crate::ring::{Consumer, Ring};
use crate::sync::{AtomicU32, AtomicU64, Ordering, Pad32, fence};

/// Slots of the job ring.
pub const JOB_SLOTS: usize = if cfg!(loom) { 2 } else { 256 };
/// Slots of the send ring.
pub const SEND_SLOTS: usize = if cfg!(loom) { 2 } else { 512 };
/// Slots of the completion ring.
pub const COMPLETION_SLOTS: usize = if cfg!(loom) { 2 } else { 256 };
/// Slots of the receive ring.
pub const RECEIVE_SLOTS: usize = if cfg!(loom) { 2 } else { 1024 };
/// Bytes of the reply area.
pub const REPLY_BYTES: usize = if cfg!(loom) { 8 } else { 512 };

/// In [`Qset::sleeping`]: the doorbell is wanted for each event.
pub const RINGS_ALWAYS: u32 = 1;

/// The number of the sleep after this one, as [`Qset::sleeping`] has it: neither 0 nor [`RINGS_ALWAYS`].
#[must_use]
pub fn next_sleep(last: u32) -> u32 {
    last.wrapping_add(1).max(RINGS_ALWAYS + 1)
}

/// One queue set.
#[repr(C, align(4096))]
#[derive(Debug)]
#[cfg_attr(loom, derive(Default))]
pub struct Qset {
    // ---- guest ----
    /// Whether somebody sleeps in poll or epoll_wait and wants the doorbell: 0, [`RINGS_ALWAYS`], or the number of one sleep, which wants
    /// it once. A waker reads it and never clears it.
    pub sleeping: AtomicU32,
    /// Reserved by producers.
    pub job_tail: AtomicU32,
    /// Reserved by producers.
    pub send_tail: AtomicU32,
    /// Consumed completions.
    pub completion_head: AtomicU32,
    /// Consumed events.
    pub receive_head: AtomicU32,
    /// The CPU on which somebody went to sleep last, plus one; 0: not said. A hint.
    pub sleeps_on: AtomicU32,
    guest_pad: [Pad32; 10],
    // ---- engine ----
    /// Consumed jobs.
    pub job_head: AtomicU32,
    /// Consumed sends.
    pub send_head: AtomicU32,
    /// Pushed completions.
    pub completion_tail: AtomicU32,
    /// Pushed events.
    pub receive_tail: AtomicU32,
    /// Futex word, bumped with every completion.
    pub completion_wake: AtomicU32,
    /// Bumped when an event did not fit: whoever uses this queue set looks at all its sockets again.
    pub overflow: AtomicU32,
    /// 1 while the queue set is in use.
    pub in_use: AtomicU32,
    engine_pad: [Pad32; 9],
    // ---- service ----
    /// Long replies, valid until the next synchronous call on this queue set.
    pub reply: [AtomicU64; REPLY_BYTES / 8],
    // ---- rings ----
    job: [AtomicU64; JOB_SLOTS * 4],
    send: [AtomicU64; SEND_SLOTS * 4],
    completion: [AtomicU64; COMPLETION_SLOTS * 4],
    receive: [AtomicU64; RECEIVE_SLOTS * 4],
}

/// A ring in shared memory.
pub type SharedRing<'a> = Ring<'a, AtomicU32, AtomicU64>;

impl Qset {
    /// Guest to stack: control operations.
    #[inline]
    #[must_use]
    pub fn job(&self) -> SharedRing<'_> {
        Ring { tail: &self.job_tail, head: &self.job_head, slots: &self.job }
    }
    /// Guest to stack: operations with data.
    #[inline]
    #[must_use]
    pub fn send(&self) -> SharedRing<'_> {
        Ring { tail: &self.send_tail, head: &self.send_head, slots: &self.send }
    }
    /// Stack to guest: results.
    #[inline]
    #[must_use]
    pub fn completion(&self) -> SharedRing<'_> {
        Ring { tail: &self.completion_tail, head: &self.completion_head, slots: &self.completion }
    }
    /// Stack to guest: events.
    #[inline]
    #[must_use]
    pub fn receive(&self) -> SharedRing<'_> {
        Ring { tail: &self.receive_tail, head: &self.receive_head, slots: &self.receive }
    }

    /// Guest: before sleeping in poll: asks for the doorbell, for this sleep. `true`: no event came meanwhile, sleep.
    /// [`Qset::finish_sleep`] follows in any case.
    #[must_use]
    pub fn prepare_sleep(&self, sleep: u32, receive: &Consumer) -> bool {
        self.sleeping.store(sleep, Ordering::SeqCst);
        // The engine pushes, fences, then reads `sleeping`.
        fence(Ordering::SeqCst);
        !receive.is_ready(&self.receive())
    }
    /// Guest: awake again.
    #[inline]
    pub fn finish_sleep(&self) {
        self.sleeping.store(0, Ordering::SeqCst);
    }
    /// Engine: after a push on the receive ring and a fence, whether the doorbell must be rung, if it was last rung for the sleep
    /// `rung`. A sleep that was rung for and goes on has not been woken yet, and whoever wakes from it reads everything.
    #[inline]
    #[must_use]
    pub fn wants_doorbell(&self, rung: u32) -> bool {
        let sleep = self.sleeping.load(Ordering::SeqCst);
        sleep == RINGS_ALWAYS || (sleep != 0 && sleep != rung)
    }

    /// Engine: zeroes a queue set that nobody uses.
    pub fn reset(&self) {
        for w in [
            &self.in_use,
            &self.sleeping,
            &self.sleeps_on,
            &self.job_tail,
            &self.send_tail,
            &self.completion_head,
            &self.receive_head,
            &self.job_head,
            &self.send_head,
            &self.completion_tail,
            &self.receive_tail,
            &self.overflow,
        ] {
            w.store(0, Ordering::SeqCst);
        }
        for w in self.job.iter().chain(&self.send).chain(&self.completion).chain(&self.receive) {
            w.store(0, Ordering::Relaxed);
        }
        self.completion_wake.fetch_add(1, Ordering::SeqCst);
    }
}
