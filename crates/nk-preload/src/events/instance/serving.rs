//! What an instance does once it has sockets: its queue set, taking news, sleeping, passing on.

use core::sync::atomic::{AtomicU32, Ordering};

use libc::c_int;
use nk_device::cell::WATCH_EXCLUSIVE;
use nk_device::qset::{RINGS_ALWAYS, next_sleep};

use super::{Instance, OF_QSET, any_descriptor, mark_of};
use crate::events::door::{self, Door};
use crate::events::inherit::Left;
use crate::events::interest::Interest;
use crate::events::look::Look;
use crate::events::{EPOLLET, EPOLLEXCLUSIVE, EPOLLIN, grants, inherit, native};
use crate::fdtable;
use crate::gate;
use crate::process::{self, Process};
use crate::sys;

/// What the lock guards.
#[derive(Debug)]
pub(in crate::events) struct State {
    pub(in crate::events) interest: Option<Interest>,
    pub(in crate::events) door: Door,
    /// Threads that sleep and know that the instance serves.
    pub(super) sleepers: u32,
    /// What the queue set's word says of them.
    shown: u32,
    /// The number of the last sleep that was to be rung once.
    last_sleep: u32,
    /// Shortages of chunks already answered.
    shortages_seen: u32,
    /// The primary doorbell is a member of the kernel's epoll.
    has_primary: bool,
}

impl State {
    pub(super) const fn new() -> State {
        State {
            interest: None,
            door: Door::none(),
            sleepers: 0,
            shown: 0,
            last_sleep: 0,
            shortages_seen: 0,
            has_primary: false,
        }
    }
}

impl Instance {
    /// Gives the instance a queue set of this process: with its first socket, or in a process that inherited it. The caller holds the
    /// gate.
    ///
    /// # Errors
    /// What epoll_ctl or epoll_wait is to fail with.
    pub(in crate::events) fn serve(
        &self,
        p: &Process,
        epfd: c_int,
        index: u32,
        gate: &gate::Changing,
    ) -> Result<Option<Left>, c_int> {
        let mut held = self.hold();
        if self.serves() && self.is_ours() {
            return Ok(None);
        }
        let mut left = None;
        if !self.is_ours() {
            // Without a descriptor to spare it is only missed by threads that wait there now.
            left = inherit::copy_kernel_epoll(epfd, index, inherit::farewell(gate).ok())?;
        }
        let cells = p.device().layout().cells;
        if held.state().interest.is_none() {
            held.state().interest = Some(Interest::map(cells).ok_or(libc::ENOMEM)?);
        }
        if self.deferred_next.load(Ordering::Acquire).is_null() {
            let links = sys::map_private(cells as usize * size_of::<AtomicU32>());
            if links.is_null() {
                return Err(libc::ENOMEM);
            }
            self.deferred_next.store(links.cast(), Ordering::Release);
        }
        let (qset, doorbell) = door::register(p, gate)?;
        let event = (EPOLLIN | EPOLLET, mark_of(index));
        if let Err(e) = native::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, doorbell, Some(event)) {
            door::unregister(p, qset, doorbell);
            return Err(e);
        }
        // Its end alone, which comes unasked.
        let event = (EPOLLET, mark_of(index));
        if let Err(e) = native::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, p.control_fd(), Some(event)) {
            door::unregister(p, qset, doorbell);
            return Err(e);
        }
        let state = held.state();
        state.door = Door::new(p.device(), qset);
        state.has_primary = false;
        state.shortages_seen = grants::shortages();
        self.doorbell.store(doorbell + 1, Ordering::SeqCst);
        if let Some(of) = OF_QSET.get(usize::from(qset)) {
            of.store(index + 1, Ordering::SeqCst);
        }
        self.now_ours();
        state.adopt(p);
        self.serves.store(1, Ordering::SeqCst);
        self.show_sleep(p, held.state(), false);
        // Threads that already wait in the kernel come out and see what has changed.
        self.ring();
        Ok(left)
    }

    /// The instance, which has no sockets, gets a kernel epoll of this process's own where it has another's. The caller holds the gate.
    ///
    /// # Errors
    /// The errno of what failed; the epoll is shared as before.
    pub(in crate::events) fn leave_shared(
        &self,
        epfd: c_int,
        index: u32,
        gate: &gate::Changing,
    ) -> Result<Option<Left>, c_int> {
        let _held = self.hold();
        if self.is_ours() {
            return Ok(None);
        }
        let left = inherit::copy_kernel_epoll(epfd, index, Some(inherit::farewell(gate)?))?;
        self.now_ours();
        Ok(left)
    }

    /// Says who sleeps. One who begins to and is alone is rung once: nobody else reads the ring then, see [`Held::collect`].
    fn show_sleep(&self, p: &Process, state: &mut State, begins: bool) {
        if !self.is_ours() {
            // A handler that interrupted epoll_wait forked, and this is the child: the word is the parent's.
            return;
        }
        let plain = self.plain_waiters.load(Ordering::SeqCst) != 0;
        state.shown = match state.sleepers {
            0 if !plain => 0,
            1 if begins && !plain => {
                state.last_sleep = next_sleep(state.last_sleep);
                state.last_sleep
            }
            _ => RINGS_ALWAYS,
        };
        door::set_sleeping(p.device(), state.door.qset, state.shown);
    }
}

/// The lock of an instance, held. Never while sleeping, nor across code of the program.
#[derive(Debug)]
pub(in crate::events) struct Held<'a> {
    pub(super) instance: &'a Instance,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.instance.release_lock();
    }
}

impl Held<'_> {
    /// What the lock guards.
    pub(in crate::events) fn state(&mut self) -> &mut State {
        // SAFETY: the lock is held, and the borrow of self keeps a second reference from being made through this guard. Signal
        // handlers reach the state by try_lock only.
        unsafe { &mut *self.instance.state.get() }
    }

    /// How sockets look now.
    pub(in crate::events) fn look(&self, p: &Process) -> Look {
        Look::new(p)
    }

    /// Takes news off the ring; what may be ready is queued after this.
    pub(in crate::events) fn collect(&mut self, p: &Process) -> Look {
        let look = self.look(p);
        let instance = self.instance;
        if instance.serves() && !instance.is_ours() {
            // As in `show_sleep`: the ring is the parent's.
            return look;
        }
        let state = self.state();
        if state.sleepers != 0 && state.shown != RINGS_ALWAYS {
            // What was rung for is read here, and with it the edge may be taken that was to wake the sleeper.
            instance.show_sleep(p, state, false);
        }
        let State { interest: Some(interest), door, .. } = state else { return look };
        match door.drain(&look.device, |e| interest.mark(&look, e.socket, e.generation)) {
            door::Drained::All => {}
            door::Drained::Lost => interest.mark_all(&look),
            door::Drained::Restarted => interest.mark_anew(false),
        }
        if look.can_send {
            let shortages = grants::shortages();
            if interest.is_starved() || shortages != state.shortages_seen {
                state.shortages_seen = shortages;
                interest.mark_anew(true);
            }
        }
        look
    }

    /// About to sleep in the kernel's epoll. `false` when there is something to look at: do not. Otherwise
    /// [`Held::leave_sleep`] follows.
    pub(in crate::events) fn enter_sleep(
        &mut self,
        p: &Process,
        epfd: Option<c_int>,
        index: u32,
    ) -> bool {
        let instance = self.instance;
        let state = self.state();
        state.sleepers += 1;
        instance.show_sleep(p, state, true);
        let State { interest, door, .. } = &mut *state;
        let queued = interest.as_ref().is_some_and(Interest::has_queued);
        if queued || door.has_news(p.device()) {
            self.leave_sleep(p);
            return false;
        }
        let short = interest.as_ref().is_some_and(Interest::is_starved)
            || state.shortages_seen != grants::shortages();
        if short && instance.short_of_chunks.swap(1, Ordering::SeqCst) == 0 {
            if !state.has_primary
                && let Some(epfd) = epfd.or_else(|| any_descriptor(index))
            {
                let event = (EPOLLIN | EPOLLET, mark_of(index));
                let fd = p.doorbell_fd();
                state.has_primary =
                    native::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, fd, Some(event)).is_ok();
            }
            if grants::enter(p) {
                self.leave_sleep(p);
                return false;
            }
        }
        true
    }

    /// Awake again.
    pub(in crate::events) fn leave_sleep(&mut self, p: &Process) {
        let instance = self.instance;
        let state = self.state();
        state.sleepers = state.sleepers.saturating_sub(1);
        instance.show_sleep(p, state, false);
        if instance.short_of_chunks.swap(0, Ordering::SeqCst) != 0 {
            grants::leave(p);
            // Whoever else sleeps here arranges it anew.
            if state.sleepers != 0 {
                instance.ring();
            }
        }
    }

    /// Something is left for others: wakes one, as the kernel does after each epoll_wait that leaves its ready list non-empty.
    pub(in crate::events) fn pass_on(&mut self) {
        let instance = self.instance;
        let state = self.state();
        let others = state.sleepers != 0 || instance.plain_waiters.load(Ordering::SeqCst) != 0;
        if others && state.interest.as_ref().is_some_and(Interest::has_queued) {
            instance.ring();
        }
    }
}

impl State {
    /// Removes entries about a socket that this process has no more.
    pub(super) fn sweep(&mut self, socket: u32) {
        let (Some(p), Some(interest)) = (process::current(), &mut self.interest) else { return };
        let Some(cell) = p.cell(socket) else { return };
        let generation = cell.generation.load(Ordering::Acquire);
        let gone = fdtable::holders(socket) == 0;
        interest.sweep(socket, |g| gone || u32::from(g) != generation);
        if !interest.has_socket(socket) {
            cell.unwatch(self.door.qset);
        }
    }

    /// Watches everything through the queue set that the state has now.
    fn adopt(&mut self, p: &Process) {
        let qset = self.door.qset;
        let Some(interest) = &mut self.interest else { return };
        interest.sweep_all(|socket, generation| {
            fdtable::holders(socket) == 0
                || p.cell(socket)
                    .is_none_or(|c| c.generation.load(Ordering::Acquire) != u32::from(generation))
        });
        interest.for_each(|socket, events| {
            if let Some(cell) = p.cell(socket) {
                cell.watch(qset, watch_flags(events));
            }
        });
        interest.mark_anew(false);
    }

    pub(super) fn unwatch_all(&mut self, p: &Process) {
        let qset = self.door.qset;
        if let Some(interest) = &mut self.interest {
            interest.for_each(|socket, _| {
                if let Some(cell) = p.cell(socket) {
                    cell.unwatch(qset);
                }
            });
        }
    }
}

/// Flags of the watch entry for an interest.
pub(in crate::events) fn watch_flags(events: u32) -> u32 {
    if events & EPOLLEXCLUSIVE != 0 { WATCH_EXCLUSIVE } else { 0 }
}
