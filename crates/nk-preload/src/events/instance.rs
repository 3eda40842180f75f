//! Epoll instances of this process, by index; an epoll descriptor's entry in the table names its instance.
//!
//! An instance starts plain: the kernel's epoll alone. With its first NetKernel socket it *serves*: it gets a queue set, whose
//! doorbell becomes a member of the kernel's epoll under a mark of our own, edge-triggered, so it never has to be read.
//! An instance is pinned while a call uses it; the last of {close, unpin} ends it.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering, fence};

use libc::c_int;

use super::door;
use super::grants::lower;
use super::lock::Lock;
use crate::process;
use crate::sys;

mod serving;
mod table;

use serving::State;
pub(super) use serving::{Held, watch_flags};
use table::{EPOCH, OF_QSET, pin_named};
pub(super) use table::{
    Pinned, after_fork, any_descriptor, before_fork, open, outer_of, pin, pin_index,
    reset_after_fork, ring_those_short_of_chunks, socket_gone, strays,
};
pub use table::{closed, duplicated, internal_moved};

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
    /// Threads in a kernel epoll that was, or still is, shared with another process.
    strays: AtomicU32,
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
            strays: AtomicU32::new(0),
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

    /// Counts a thread that goes into a kernel epoll that another process may share, until what this gives goes; `None` where it is this
    /// process's own.
    pub(super) fn enter_shared(&self) -> Option<Stray<'_>> {
        if self.is_ours() {
            return None;
        }
        self.strays.fetch_add(1, Ordering::SeqCst);
        let stray = Stray(&self.strays);
        fence(Ordering::SeqCst);
        (!self.is_ours()).then_some(stray)
    }

    /// The kernel epoll is this process's own from now on. Look for strays after this.
    fn now_ours(&self) {
        self.epoch.store(EPOCH.load(Ordering::Relaxed), Ordering::Release);
        fence(Ordering::SeqCst);
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

    /// Whether `inner` is a member.
    fn contains(&self, inner: &Pinned) -> bool {
        let word = inner.name();
        self.inner.iter().any(|x| x.load(Ordering::SeqCst) == word)
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

/// A thread in a kernel epoll that may be another process's.
#[derive(Debug)]
pub(super) struct Stray<'a>(&'a AtomicU32);

impl Drop for Stray<'_> {
    fn drop(&mut self) {
        lower(self.0);
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
