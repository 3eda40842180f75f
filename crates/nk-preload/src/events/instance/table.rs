//! Which instances there are: pins, descriptors, and what a fork does to all of them.

use core::sync::atomic::{AtomicU32, Ordering};

use libc::c_int;
use nk_device::cell::WATCH_QSET_MASK;
use nk_device::header::QSETS_MAX;

use super::{DYING, FOREIGN, FREE, INSTANCES_MAX, Instance, LIVE};
use crate::events::grants::lower;
use crate::events::{door, inherit, slots};
use crate::fdtable::{self, Entry};
use crate::gate;
use crate::process::Process;

static INSTANCES: [Instance; INSTANCES_MAX] = [const { Instance::new() }; INSTANCES_MAX];
/// One more than the highest instance ever used.
static TOP: AtomicU32 = AtomicU32::new(0);
/// Queue set → instance + 1.
pub(super) static OF_QSET: [AtomicU32; QSETS_MAX] = [const { AtomicU32::new(0) }; QSETS_MAX];
/// Counts the lives of this process image: bumped in each forked child.
pub(super) static EPOCH: AtomicU32 = AtomicU32::new(0);

fn used() -> impl Iterator<Item = (u32, &'static Instance)> {
    INSTANCES.iter().take(TOP.load(Ordering::Acquire) as usize).zip(0u32..).map(|(i, n)| (n, i))
}

/// An instance in use: it is not ended before this goes.
#[derive(Debug)]
pub(in crate::events) struct Pinned {
    instance: &'static Instance,
    index: u32,
}

impl core::ops::Deref for Pinned {
    type Target = Instance;
    fn deref(&self) -> &Instance {
        self.instance
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if lower(&self.instance.pins) <= 1 {
            self.instance.end_if_unused();
        }
    }
}

/// The instance of an epoll descriptor, if it is known to us.
pub(in crate::events) fn pin(epfd: c_int) -> Option<Pinned> {
    loop {
        let Entry::Epoll { index } = fdtable::get(epfd) else { return None };
        let p = pin_index(index);
        if fdtable::get(epfd) == (Entry::Epoll { index }) {
            return p;
        }
    }
}

/// The instance of an index, if it is live.
pub(in crate::events) fn pin_index(index: u32) -> Option<Pinned> {
    let instance = INSTANCES.get(index as usize)?;
    // Count, then look: whoever ends an instance says so, then looks at the count.
    instance.pins.fetch_add(1, Ordering::SeqCst);
    let p = Pinned { instance, index };
    (instance.life.load(Ordering::SeqCst) == LIVE).then_some(p)
}

/// Makes an instance for a new epoll descriptor. `ours`: this process made its kernel epoll. The caller holds the gate. `false`
/// when there are too many.
pub(in crate::events) fn open(epfd: c_int, ours: bool, _gate: &gate::Changing) -> bool {
    for (i, n) in INSTANCES.iter().zip(0u32..) {
        if i.life.load(Ordering::Relaxed) != FREE
            || i.life.compare_exchange(FREE, DYING, Ordering::SeqCst, Ordering::Relaxed).is_err()
        {
            continue;
        }
        i.refs.store(1, Ordering::Relaxed);
        i.serial.fetch_add(1, Ordering::Relaxed);
        let epoch = if ours { EPOCH.load(Ordering::Relaxed) } else { FOREIGN };
        i.epoch.store(epoch, Ordering::Relaxed);
        i.kernel_members.store(u32::from(!ours), Ordering::Relaxed);
        for x in &i.inner {
            x.store(0, Ordering::Relaxed);
        }
        i.may_have_inner.store(0, Ordering::Relaxed);
        TOP.fetch_max(n + 1, Ordering::SeqCst);
        i.life.store(LIVE, Ordering::SeqCst);
        return match fdtable::swap(epfd, Entry::Epoll { index: n }) {
            None => {
                closed(n);
                false
            }
            Some(Entry::Epoll { index }) => {
                closed(index);
                true
            }
            Some(_) => true,
        };
    }
    false
}

/// One more descriptor for the instance (dup and its like).
pub fn duplicated(index: u32) {
    if let Some(i) = INSTANCES.get(index as usize) {
        i.refs.fetch_add(1, Ordering::SeqCst);
    }
}

/// One less. The caller took the descriptor out of the table before.
pub fn closed(index: u32) {
    if let Some(i) = INSTANCES.get(index as usize)
        && lower(&i.refs) == 1
    {
        i.life.store(DYING, Ordering::SeqCst);
        if i.pins.load(Ordering::SeqCst) == 0 {
            i.end_if_unused();
        }
    }
}

/// The last descriptor of this process for the socket is gone; the holder bit is still set.
pub(in crate::events) fn socket_gone(p: &Process, id: u32) {
    let Some(cell) = p.cell(id) else { return };
    for w in &cell.watch {
        let qset = (w.load(Ordering::SeqCst) & WATCH_QSET_MASK).wrapping_sub(1);
        if let Some(of) = OF_QSET.get(qset as usize)
            && let Some(index) = of.load(Ordering::SeqCst).checked_sub(1)
            && let Some(i) = pin_index(index)
        {
            i.forget(id);
        }
    }
    if cell.watch_overflow.load(Ordering::SeqCst) != 0 {
        for (n, i) in used() {
            if i.serves.load(Ordering::SeqCst) != 0
                && let Some(i) = pin_index(n)
            {
                i.forget(id);
            }
        }
    }
}

/// One of this library's own descriptors has another number (the kernel's epoll goes on knowing the file).
fn doorbell_moved(from: c_int, to: c_int) {
    for (_, i) in used() {
        let _ = i.doorbell.compare_exchange(from + 1, to + 1, Ordering::SeqCst, Ordering::Relaxed);
    }
}

/// One of this library's own descriptors has another number.
pub fn internal_moved(from: c_int, to: c_int) {
    doorbell_moved(from, to);
    slots::doorbell_moved(from, to);
    inherit::farewell_moved(from, to);
}

/// Rings every instance in which a sleeper waits for chunks.
pub(in crate::events) fn ring_those_short_of_chunks() {
    for (_, i) in used() {
        if i.short_of_chunks.load(Ordering::SeqCst) != 0 {
            i.ring();
        }
    }
}

/// Takes every lock, so that the child finds consistent state. The gate is closed and signals are blocked.
pub(in crate::events) fn before_fork() {
    for (_, i) in used() {
        if i.lock.lock_for_fork() {
            i.fork_held.store(true, Ordering::Relaxed);
        }
    }
}

/// Gives them back in the parent.
pub(in crate::events) fn after_fork() {
    for (_, i) in used() {
        if i.fork_held.swap(false, Ordering::Relaxed) {
            i.release_lock();
        }
    }
}

/// In the child: the queue sets are the parent's, and nobody else is here. Instances that serve get queue sets of their own when they are
/// next used.
pub(in crate::events) fn reset_after_fork() {
    EPOCH.fetch_add(1, Ordering::SeqCst);
    for o in &OF_QSET {
        o.store(0, Ordering::Relaxed);
    }
    for (_, i) in used() {
        i.pins.store(0, Ordering::Relaxed);
        i.plain_waiters.store(0, Ordering::Relaxed);
        i.strays.store(0, Ordering::Relaxed);
        i.short_of_chunks.store(0, Ordering::Relaxed);
        door::close_doorbell(i.doorbell.swap(0, Ordering::Relaxed) - 1);
        if i.fork_held.swap(false, Ordering::Relaxed) || !i.lock.is_mine() {
            // Ours for the fork; or, after a raw fork, held by a thread that is not here.
            i.lock.reset();
            // SAFETY: the lock is free and the child has one thread, which is here.
            unsafe { (*i.state.get()).sleepers = 0 };
        }
        if i.life.load(Ordering::Relaxed) == DYING {
            i.end_if_unused();
        }
    }
}

/// Those that have the instance as a member.
pub(in crate::events) fn outer_of(inner: &Pinned) -> impl Iterator<Item = Pinned> {
    used()
        .filter(|(_, i)| i.has_inner() && i.contains(inner))
        .filter_map(|(index, _)| pin_index(index))
}

/// Whether a thread waits in a kernel epoll that this process has left.
pub(in crate::events) fn strays() -> bool {
    used().any(|(_, i)| i.is_ours() && i.strays.load(Ordering::SeqCst) != 0)
}

/// A descriptor of this process for the instance.
pub(in crate::events) fn any_descriptor(index: u32) -> Option<c_int> {
    (0..fdtable::top()).find(|fd| fdtable::get(*fd) == (Entry::Epoll { index }))
}

pub(super) fn pin_named(word: u64) -> Option<Pinned> {
    let p = pin_index((word as u32).checked_sub(1)?)?;
    (p.name() == word).then_some(p)
}

impl Pinned {
    /// Its index.
    pub(in crate::events) fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn name(&self) -> u64 {
        u64::from(self.instance.serial.load(Ordering::SeqCst)) << 32 | u64::from(self.index + 1)
    }
}
