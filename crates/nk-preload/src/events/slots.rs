//! Queue sets for poll and select: a pool of the process, not one per thread.
//!
//! A call that is going to sleep takes a slot and gives it back, so there are as many queue sets as calls ever slept at once, and
//! a thread's end needs no clean-up. Slots are taken by CAS: poll may be called in a signal handler that interrupted poll.
//! Slot 0 is the primary queue set.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use libc::c_int;

use super::door::{self, Door};
use super::grants;
use crate::process::Process;
use crate::{gate, sys};

/// Calls that sleep at once in one process, at most; more fail with ENOMEM, as poll does natively without memory.
const SLOTS_MAX: usize = 256;

/// A place to sleep.
#[derive(Debug)]
pub(super) struct Slot {
    taken: AtomicU32,
    /// Queue set + 1.
    qset: AtomicU32,
    doorbell: AtomicI32,
    sleepers: AtomicU32,
    short_of_chunks: AtomicU32,
    door: UnsafeCell<Door>,
    buffer: AtomicPtr<u8>,
    buffer_len: AtomicUsize,
}

// SAFETY: everything is atomic but `door`, which only the call that took the slot uses.
unsafe impl Sync for Slot {}

static SLOTS: [Slot; SLOTS_MAX] = [const {
    Slot {
        taken: AtomicU32::new(0),
        qset: AtomicU32::new(0),
        doorbell: AtomicI32::new(0),
        sleepers: AtomicU32::new(0),
        short_of_chunks: AtomicU32::new(0),
        door: UnsafeCell::new(Door::none()),
        buffer: AtomicPtr::new(core::ptr::null_mut()),
        buffer_len: AtomicUsize::new(0),
    }
}; SLOTS_MAX];

/// A slot in use.
#[derive(Debug)]
pub(super) struct Taken {
    slot: &'static Slot,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.slot.taken.store(0, Ordering::Release);
    }
}

/// Takes a slot.
///
/// # Errors
/// ENOMEM.
pub(super) fn take(p: &Process) -> Result<Taken, c_int> {
    for (n, slot) in SLOTS.iter().enumerate() {
        if slot.taken.load(Ordering::Relaxed) != 0
            || slot.taken.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            continue;
        }
        let taken = Taken { slot };
        if slot.qset.load(Ordering::Relaxed) == 0 {
            let (qset, doorbell) = if n == 0 {
                (p.qset(), p.doorbell_fd())
            } else {
                door::register(p, &gate::enter()).map_err(|_| libc::ENOMEM)?
            };
            // SAFETY: the slot is ours.
            unsafe { *slot.door.get() = Door::new(p.device(), qset) };
            slot.doorbell.store(doorbell, Ordering::Relaxed);
            slot.qset.store(u32::from(qset) + 1, Ordering::Relaxed);
        }
        return Ok(taken);
    }
    Err(libc::ENOMEM)
}

impl Taken {
    /// The queue set.
    pub(super) fn qset(&self) -> u16 {
        self.slot.qset.load(Ordering::Relaxed).wrapping_sub(1) as u16
    }

    /// What the engine writes when there is news.
    pub(super) fn doorbell(&self) -> c_int {
        self.slot.doorbell.load(Ordering::Relaxed)
    }

    fn is_primary(&self) -> bool {
        SLOTS.first().is_some_and(|s| core::ptr::eq(s, self.slot))
    }

    /// Drops what is on the ring: poll looks at all its sockets anyway.
    pub(super) fn drain(&mut self, p: &Process) {
        // SAFETY: the slot is ours, and the borrow of self keeps it to one reference.
        let door = unsafe { &mut *self.slot.door.get() };
        door.drain(p.device(), |_| {});
    }

    /// About to sleep: news ring the doorbell from now on. Look at the sockets after this.
    pub(super) fn enter_sleep(&self, p: &Process) {
        if self.is_primary() {
            grants::enter_primary(p);
        } else {
            door::enter_sleep(p.device(), self.qset(), &self.slot.sleepers);
        }
    }

    /// Undoes it.
    pub(super) fn leave_sleep(&self, p: &Process) {
        if self.is_primary() {
            grants::leave_primary(p);
        } else {
            door::leave_sleep(p.device(), self.qset(), &self.slot.sleepers, self.doorbell());
        }
    }

    /// Waits for chunks too: `true` when there are some. [`Taken::leave_shortage`] follows.
    pub(super) fn enter_shortage(&self, p: &Process) -> bool {
        self.slot.short_of_chunks.store(1, Ordering::SeqCst);
        grants::enter(p)
    }

    /// Undoes it.
    pub(super) fn leave_shortage(&self, p: &Process) {
        self.slot.short_of_chunks.store(0, Ordering::SeqCst);
        grants::leave(p);
    }

    /// The doorbell rang.
    pub(super) fn quieten(&self, p: &Process) {
        if self.is_primary() {
            grants::relay(p);
        } else {
            sys::drain_eventfd(self.doorbell());
        }
    }

    /// Memory of the slot for `len` bytes, page-aligned; its content is what the last user left.
    ///
    /// # Errors
    /// ENOMEM.
    pub(super) fn buffer(&mut self, len: usize) -> Result<*mut u8, c_int> {
        let old = self.slot.buffer.load(Ordering::Relaxed);
        let old_len = self.slot.buffer_len.load(Ordering::Relaxed);
        if len <= old_len {
            return Ok(old);
        }
        let len = len.next_power_of_two().max(1 << 16);
        let new = sys::map_private(len);
        if new.is_null() {
            return Err(libc::ENOMEM);
        }
        self.slot.buffer.store(new.cast(), Ordering::Relaxed);
        self.slot.buffer_len.store(len, Ordering::Relaxed);
        if old_len != 0 {
            // SAFETY: the slot's own mapping, which nobody uses: the slot is ours.
            unsafe { sys::system_call!(libc::SYS_munmap, old, old_len) };
        }
        Ok(new.cast())
    }
}

/// Rings every slot in which a sleeper waits for chunks.
pub(super) fn ring_those_short_of_chunks() {
    for s in &SLOTS {
        if s.short_of_chunks.load(Ordering::SeqCst) != 0 {
            sys::ring_eventfd(s.doorbell.load(Ordering::Relaxed));
        }
    }
}

/// One of this library's own descriptors has another number.
pub(super) fn doorbell_moved(from: c_int, to: c_int) {
    for s in &SLOTS {
        let _ = s.doorbell.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed);
    }
}

/// In a forked child: the queue sets were the parent's. A call that the fork's handler interrupted gives back a slot that is free, and
/// leaves a sleep that nobody counts.
pub(super) fn reset_after_fork() {
    for (n, s) in SLOTS.iter().enumerate() {
        if s.qset.swap(0, Ordering::Relaxed) != 0 && n != 0 {
            door::close_doorbell(s.doorbell.load(Ordering::Relaxed));
        }
        s.sleepers.store(0, Ordering::Relaxed);
        s.short_of_chunks.store(0, Ordering::Relaxed);
        s.taken.store(0, Ordering::Relaxed);
    }
}
