//! Epoll instances of this process, by index; an epoll descriptor's entry in the table names its instance.
//!
//! An instance starts plain: the kernel's epoll alone. With its first NetKernel socket it *serves*: it gets a queue set, whose
//! doorbell becomes a member of the kernel's epoll under a mark of our own, edge-triggered, so it never has to be read.
//! An instance is pinned while a call uses it; the last of {close, unpin} ends it.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering};

use libc::c_int;
use nk_device::cell::WATCH_QSET_MASK;
use nk_device::header::QSETS_MAX;

use super::door;
use super::grants::lower;
use super::lock::Lock;
use crate::fdtable::{self, Entry};
use crate::process::{self, Process};
use crate::{gate, sys};

mod serving;

use serving::State;
pub(super) use serving::{Held, watch_flags};

/// Instances of one process; more stay plain.
const INSTANCES_MAX: usize = 1024;
/// Epoll instances with sockets that one plain or serving instance can contain.
const INNER_MAX: usize = 16;

const FREE: u32 = 0;
const LIVE: u32 = 1;
const DYING: u32 = 2;
const ENDING: u32 = 3;

/// `epoch` of an instance whose kernel epoll may be shared with another process.
const FOREIGN: u32 = u32::MAX;

/// The data word by which our doorbell is known in the kernel's epoll; no valid pointer, and far from any small number.
const MARK: u64 = 0x4e4b_6d61_726b_0000;
const DEFERRED_END: u32 = u32::MAX;

/// See the module.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Instance {
    life: AtomicU32,
    /// Descriptors.
    refs: AtomicU32,
    /// Calls that use it.
    pins: AtomicU32,
    /// Differs each time the slot is used.
    serial: AtomicU32,
    /// 1 once it has a queue set.
    serves: AtomicU32,
    /// The life of this process in which the kernel epoll and the queue set were made.
    epoch: AtomicU32,
    /// Kernel descriptors added and not removed: more than there are, since the kernel drops closed ones by itself.
    pub(super) kernel_members: AtomicU32,
    /// Threads in the kernel's epoll_wait that may not know that the instance serves.
    plain_waiters: AtomicU32,
    /// Whose turn it is when a caller takes one event at a time.
    pub(super) turn: AtomicU32,
    /// 1 while a sleeper waits for chunks.
    short_of_chunks: AtomicU32,
    doorbell: AtomicI32,
    /// Inner instances: serial << 32 | index + 1.
    inner: [core::sync::atomic::AtomicU64; INNER_MAX],
    /// 1 once an inner instance was added.
    may_have_inner: AtomicU32,
    /// Sockets whose last descriptor was closed while the lock was taken.
    deferred: AtomicU32,
    deferred_next: AtomicPtr<AtomicU32>,
    fork_held: AtomicBool,
    lock: Lock,
    state: UnsafeCell<State>,
}

// SAFETY: everything is atomic but `state`, which is only reached through `Held`, that is, under the lock; its raw pointers
// are to private memory that the state owns.
unsafe impl Sync for Instance {}

static INSTANCES: [Instance; INSTANCES_MAX] = [const { Instance::new() }; INSTANCES_MAX];
/// One more than the highest instance ever used.
static TOP: AtomicU32 = AtomicU32::new(0);
/// Queue set → instance + 1.
static OF_QSET: [AtomicU32; QSETS_MAX] = [const { AtomicU32::new(0) }; QSETS_MAX];
/// Counts the lives of this process image: bumped in each forked child.
static EPOCH: AtomicU32 = AtomicU32::new(0);

fn used() -> impl Iterator<Item = (u32, &'static Instance)> {
    INSTANCES.iter().take(TOP.load(Ordering::Acquire) as usize).zip(0u32..).map(|(i, n)| (n, i))
}

/// An instance in use: it is not ended before this goes.
#[derive(Debug)]
pub(super) struct Pinned {
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
pub(super) fn pin(epfd: c_int) -> Option<Pinned> {
    loop {
        let Entry::Epoll { index } = fdtable::get(epfd) else { return None };
        let p = pin_index(index);
        if fdtable::get(epfd) == (Entry::Epoll { index }) {
            return p;
        }
    }
}

/// The instance of an index, if it is live.
pub(super) fn pin_index(index: u32) -> Option<Pinned> {
    let instance = INSTANCES.get(index as usize)?;
    // Count, then look: whoever ends an instance says so, then looks at the count.
    instance.pins.fetch_add(1, Ordering::SeqCst);
    let p = Pinned { instance, index };
    (instance.life.load(Ordering::SeqCst) == LIVE).then_some(p)
}

/// Makes an instance for a new epoll descriptor. `ours`: this process made its kernel epoll. The caller holds the gate. `false`
/// when there are too many.
pub(super) fn open(epfd: c_int, ours: bool, _gate: &gate::Changing) -> bool {
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
pub(super) fn socket_gone(p: &Process, id: u32) {
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
pub(super) fn doorbell_moved(from: c_int, to: c_int) {
    for (_, i) in used() {
        let _ = i.doorbell.compare_exchange(from + 1, to + 1, Ordering::SeqCst, Ordering::Relaxed);
    }
}

/// One of this library's own descriptors has another number.
pub fn internal_moved(from: c_int, to: c_int) {
    doorbell_moved(from, to);
    super::slots::doorbell_moved(from, to);
}

/// Rings every instance in which a sleeper waits for chunks.
pub(super) fn ring_those_short_of_chunks() {
    for (_, i) in used() {
        if i.short_of_chunks.load(Ordering::SeqCst) != 0 {
            i.ring();
        }
    }
}

/// Takes every lock, so that the child finds consistent state. The gate is closed and signals are blocked.
pub(super) fn before_fork() {
    for (_, i) in used() {
        if i.lock.lock_for_fork() {
            i.fork_held.store(true, Ordering::Relaxed);
        }
    }
}

/// Gives them back in the parent.
pub(super) fn after_fork() {
    for (_, i) in used() {
        if i.fork_held.swap(false, Ordering::Relaxed) {
            i.release_lock();
        }
    }
}

/// In the child: the queue sets are the parent's, and nobody else is here. Instances that serve get queue sets of their own when they are
/// next used.
pub(super) fn reset_after_fork() {
    EPOCH.fetch_add(1, Ordering::SeqCst);
    for o in &OF_QSET {
        o.store(0, Ordering::Relaxed);
    }
    for (_, i) in used() {
        i.pins.store(0, Ordering::Relaxed);
        i.plain_waiters.store(0, Ordering::Relaxed);
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

impl Instance {
    const fn new() -> Instance {
        Instance {
            life: AtomicU32::new(FREE),
            refs: AtomicU32::new(0),
            pins: AtomicU32::new(0),
            serial: AtomicU32::new(0),
            serves: AtomicU32::new(0),
            epoch: AtomicU32::new(0),
            kernel_members: AtomicU32::new(0),
            plain_waiters: AtomicU32::new(0),
            turn: AtomicU32::new(0),
            short_of_chunks: AtomicU32::new(0),
            doorbell: AtomicI32::new(0),
            inner: [const { core::sync::atomic::AtomicU64::new(0) }; INNER_MAX],
            may_have_inner: AtomicU32::new(0),
            deferred: AtomicU32::new(0),
            deferred_next: AtomicPtr::new(core::ptr::null_mut()),
            fork_held: AtomicBool::new(false),
            lock: Lock::new(),
            state: UnsafeCell::new(State::new()),
        }
    }

    /// Whether it has NetKernel sockets.
    pub(super) fn serves(&self) -> bool {
        self.serves.load(Ordering::SeqCst) != 0
    }

    /// Whether its kernel epoll and its queue set are this process's own.
    pub(super) fn is_ours(&self) -> bool {
        self.epoch.load(Ordering::Acquire) == EPOCH.load(Ordering::Acquire)
    }

    /// Makes epoll_wait on the kernel's epoll return. (The number is kept plus one: 0 is none.)
    pub(super) fn ring(&self) {
        let fd = self.doorbell.load(Ordering::SeqCst) - 1;
        if fd >= 0 {
            sys::ring_eventfd(fd);
        }
    }

    /// Takes away that the doorbell is readable; what it told must be looked at after this.
    pub(super) fn quieten(&self) {
        let fd = self.doorbell.load(Ordering::SeqCst) - 1;
        if fd >= 0 {
            sys::drain_eventfd(fd);
        }
    }

    /// Takes the lock.
    pub(super) fn hold(&self) -> Held<'_> {
        self.lock.lock();
        Held { instance: self }
    }

    fn release_lock(&self) {
        loop {
            self.lock.unlock();
            if self.deferred.load(Ordering::SeqCst) == 0 || !self.lock.try_lock() {
                return;
            }
            // SAFETY: the lock was just taken, so nobody else has the state.
            self.forget_deferred(unsafe { &mut *self.state.get() });
        }
    }

    fn deferred_link(&self, socket: u32) -> Option<&AtomicU32> {
        let links = self.deferred_next.load(Ordering::Acquire);
        let cells = process::current()?.device().layout().cells;
        if links.is_null() || socket >= cells {
            return None;
        }
        // SAFETY: mapped with one link per cell before the pointer was published, and never unmapped.
        Some(unsafe { &*links.add(socket as usize) })
    }

    /// The socket may have no descriptor here any more. Never waits: if the lock is taken, by another thread or by the frame that
    /// this signal handler interrupted, its holder does it on the way out.
    fn forget(&self, socket: u32) {
        let Some(link) = self.deferred_link(socket) else { return };
        if link.compare_exchange(0, DEFERRED_END, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            let mut head = self.deferred.load(Ordering::SeqCst);
            loop {
                link.store(if head == 0 { DEFERRED_END } else { head }, Ordering::SeqCst);
                match self.deferred.compare_exchange(
                    head,
                    socket + 1,
                    Ordering::SeqCst,
                    Ordering::SeqCst,
                ) {
                    Ok(_) => break,
                    Err(h) => head = h,
                }
            }
        }
        if self.lock.try_lock() {
            // SAFETY: as in `release_lock`.
            self.forget_deferred(unsafe { &mut *self.state.get() });
            self.release_lock();
        }
    }

    fn forget_deferred(&self, state: &mut State) {
        let mut head = self.deferred.swap(0, Ordering::SeqCst);
        while head != 0 && head != DEFERRED_END {
            let socket = head - 1;
            let Some(link) = self.deferred_link(socket) else { return };
            head = link.swap(0, Ordering::SeqCst);
            state.sweep(socket);
        }
    }

    /// Counts a thread that goes into the kernel's epoll_wait; `false` when the instance serves, so that it must not.
    pub(super) fn enter_plain(&self) -> bool {
        // Count, then look: `serve` says that it serves, then counts.
        self.plain_waiters.fetch_add(1, Ordering::SeqCst);
        if self.serves() {
            lower(&self.plain_waiters);
            return false;
        }
        true
    }

    /// Undoes [`Instance::enter_plain`].
    pub(super) fn leave_plain(&self) {
        lower(&self.plain_waiters);
    }

    /// Remembers that `inner` is a member.
    ///
    /// # Errors
    /// ENOSPC.
    pub(super) fn add_inner(&self, inner: &Pinned) -> Result<(), c_int> {
        let word = inner.name();
        self.may_have_inner.store(1, Ordering::SeqCst);
        if self.inner.iter().any(|x| x.load(Ordering::SeqCst) == word) {
            return Ok(());
        }
        for x in &self.inner {
            let old = x.load(Ordering::SeqCst);
            if (old == 0 || pin_named(old).is_none())
                && x.compare_exchange(old, word, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            {
                return Ok(());
            }
        }
        Err(libc::ENOSPC)
    }

    /// Forgets it.
    pub(super) fn remove_inner(&self, inner: &Pinned) {
        let word = inner.name();
        for x in &self.inner {
            let _ = x.compare_exchange(word, 0, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// Whether it has (or had) instances as members.
    pub(super) fn has_inner(&self) -> bool {
        self.may_have_inner.load(Ordering::SeqCst) != 0
            && self.inner.iter().any(|x| x.load(Ordering::Relaxed) != 0)
    }

    /// Its inner instances.
    pub(super) fn inner(&self) -> impl Iterator<Item = Pinned> + '_ {
        self.inner.iter().filter_map(|x| pin_named(x.load(Ordering::SeqCst)))
    }

    fn end_if_unused(&self) {
        if self.life.compare_exchange(DYING, ENDING, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return;
        }
        let mut held = self.hold();
        if self.serves()
            && self.is_ours()
            && let Some(p) = process::current()
        {
            held.state().unwatch_all(p);
            let qset = held.state().door.qset;
            if let Some(of) = OF_QSET.get(usize::from(qset)) {
                of.store(0, Ordering::SeqCst);
            }
            let doorbell = self.doorbell.swap(0, Ordering::SeqCst) - 1;
            door::unregister(p, qset, doorbell);
        }
        if let Some(interest) = held.state().interest.take() {
            interest.unmap();
        }
        self.serves.store(0, Ordering::SeqCst);
        drop(held);
        self.life.store(FREE, Ordering::SeqCst);
    }
}

/// Whether a data word is the mark of some instance, of this process or another.
pub(super) fn is_mark(data: u64) -> bool {
    data & !0xffff == MARK
}

/// The data word of an instance's doorbell in its kernel epoll.
pub(super) fn mark_of(index: u32) -> u64 {
    MARK | u64::from(index)
}

fn any_descriptor(index: u32) -> Option<c_int> {
    (0..fdtable::top()).find(|fd| fdtable::get(*fd) == (Entry::Epoll { index }))
}

fn pin_named(word: u64) -> Option<Pinned> {
    let p = pin_index((word as u32).checked_sub(1)?)?;
    (p.name() == word).then_some(p)
}

impl Pinned {
    /// Its index.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    fn name(&self) -> u64 {
        u64::from(self.instance.serial.load(Ordering::SeqCst)) << 32 | u64::from(self.index + 1)
    }
}
