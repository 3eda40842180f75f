//! What one epoll instance is interested in, and the queue of what may be ready. Plain data under the instance's lock.
//!
//! An entry is known by (socket, descriptor). Entries of one socket are chained from a table indexed by socket id, so an
//! event costs one load to find them. The ready queue holds entries that *may* be ready; [`Interest::walk`] looks at each and reports
//! those that are. Cost is O(queued), never O(entries), save after an overflow ([`Interest::mark_all`]).

use core::sync::atomic::Ordering;

use libc::c_int;
use nk_device::Cell;

use super::look::{ALWAYS, Look, OUT_BITS};
use super::{EPOLLET, EPOLLEXCLUSIVE, EPOLLONESHOT, EPOLLWAKEUP};

/// In the ready queue.
const QUEUED: u16 = 1;
/// Removed while in the queue; freed when it comes out.
const DEAD: u16 = 1 << 1;
/// A one-shot entry that has fired, until MOD.
const SPENT: u16 = 1 << 2;
/// Part of an entry that was never used or is free.
const FREE: u16 = 1 << 3;

/// Bits of `events` that say how to report, not what.
const HOW: u32 = EPOLLET | EPOLLONESHOT | EPOLLEXCLUSIVE | EPOLLWAKEUP;

/// Index of an entry plus one; 0 is none.
type Link = u32;

/// Interest in one descriptor of one socket.
#[derive(Debug)]
#[repr(C)]
struct Entry {
    data: u64,
    socket: u32,
    events: u32,
    fd: c_int,
    generation: u16,
    flags: u16,
    /// The cell's wake words when the entry was last looked at: an edge is a change of one of them.
    rx_seen: u32,
    tx_seen: u32,
    next_same: Link,
    next_ready: Link,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Interest {
    /// Per socket id: the first of its entries.
    first: *mut Link,
    entries: *mut Entry,
    sockets: u32,
    capacity: u32,
    /// Entries below this were used once.
    fresh: u32,
    free: Link,
    ready_head: Link,
    ready_tail: Link,
    queued: u32,
    live: u32,
    /// Some entry waits for chunks only.
    starved: bool,
}

/// A socket as an entry names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) socket: u32,
    pub(super) generation: u16,
    pub(super) fd: c_int,
}

impl Interest {
    /// Looks at an entry anew, as ADD and MOD do: what is ready now is an edge.
    fn arm(&mut self, look: &Look, link: Link) {
        let Some(e) = self.entry(link) else { return };
        let queued = e.flags & QUEUED != 0;
        let Some(cell) = look.cell(e.socket, e.generation) else { return };
        e.rx_seen = cell.rx_wake.load(Ordering::Acquire);
        e.tx_seen = cell.tx_wake.load(Ordering::Acquire);
        let seen = look.mask(cell, e.events & !HOW);
        self.starved |= seen.starved;
        if seen.mask != 0 && !queued {
            self.push_ready(link);
        }
    }

    /// Whether the socket has an entry for this descriptor, and its events if so.
    pub(super) fn events_of(&mut self, key: Key) -> Option<u32> {
        let link = self.find(key)?;
        self.entry(link).map(|e| e.events)
    }

    /// Adds an entry that is not there yet. The cell must be watched already.
    ///
    /// # Errors
    /// ENOSPC when the table is full.
    pub(super) fn add(
        &mut self,
        look: &Look,
        key: Key,
        events: u32,
        data: u64,
    ) -> Result<(), c_int> {
        let next_same = *self.first(key.socket).ok_or(libc::ENOSPC)?;
        let link = self.allocate().ok_or(libc::ENOSPC)?;
        if let Some(e) = self.entry(link) {
            *e = Entry {
                data,
                socket: key.socket,
                events,
                fd: key.fd,
                generation: key.generation,
                flags: 0,
                rx_seen: 0,
                tx_seen: 0,
                next_same,
                next_ready: 0,
            };
        }
        if let Some(first) = self.first(key.socket) {
            *first = link;
        }
        self.live += 1;
        self.arm(look, link);
        Ok(())
    }

    /// Changes an entry; a spent one is armed again. `false` when there is none.
    pub(super) fn modify(&mut self, look: &Look, key: Key, events: u32, data: u64) -> bool {
        let Some(link) = self.find(key) else { return false };
        if let Some(e) = self.entry(link) {
            e.events = events;
            e.data = data;
            e.flags &= !SPENT;
        }
        self.arm(look, link);
        true
    }

    /// Removes an entry. `false` when there is none.
    pub(super) fn remove(&mut self, key: Key) -> bool {
        match self.find(key) {
            Some(link) => {
                self.drop_entry(link);
                true
            }
            None => false,
        }
    }

    /// Whether any entry is about the socket id.
    pub(super) fn has_socket(&mut self, socket: u32) -> bool {
        self.first(socket).is_some_and(|l| *l != 0)
    }

    /// Removes the entries about a socket id for which `is_stale(generation)`.
    pub(super) fn sweep(&mut self, socket: u32, is_stale: impl Fn(u16) -> bool) {
        let Some(first) = self.first(socket) else { return };
        let mut link = *first;
        while let Some(e) = self.entry(link) {
            let (next, stale) = (e.next_same, is_stale(e.generation));
            if stale {
                self.drop_entry(link);
            }
            link = next;
        }
    }

    /// Removes every entry for which `is_stale(socket, generation)`.
    pub(super) fn sweep_all(&mut self, is_stale: impl Fn(u32, u16) -> bool) {
        for link in 1..=self.fresh {
            if let Some(e) = self.entry(link)
                && e.flags & (FREE | DEAD) == 0
                && is_stale(e.socket, e.generation)
            {
                self.drop_entry(link);
            }
        }
    }

    /// Calls `f` with (socket, events) of every entry.
    pub(super) fn for_each(&mut self, mut f: impl FnMut(u32, u32)) {
        for link in 1..=self.fresh {
            if let Some(e) = self.entry(link)
                && e.flags & (FREE | DEAD) == 0
            {
                f(e.socket, e.events);
            }
        }
    }

    fn mark_entry(&mut self, link: Link, cell: Option<&Cell>) {
        let Some(e) = self.entry(link) else { return };
        if e.flags & (QUEUED | DEAD | SPENT | FREE) != 0 {
            return;
        }
        if e.events & EPOLLET != 0
            && let Some(c) = cell
        {
            // An event that tells what a look has already seen is no edge: it was on its way when the look was taken.
            let rx = c.rx_wake.load(Ordering::Acquire) != e.rx_seen;
            let tx = c.tx_wake.load(Ordering::Acquire) != e.tx_seen;
            let wants_in = e.events & !(HOW | OUT_BITS | ALWAYS) != 0;
            let wants_out = e.events & OUT_BITS != 0;
            let only_always = !wants_in && !wants_out;
            let broken = || c.pending_error().is_some() || is_over(c);
            let edge = (rx && (wants_in || only_always))
                || (tx && (wants_out || only_always))
                || ((rx || tx) && broken());
            if !edge {
                return;
            }
        }
        self.push_ready(link);
    }

    /// An event about a socket arrived: its entries may be ready.
    pub(super) fn mark(&mut self, look: &Look, socket: u32, generation: u16) {
        let Some(first) = self.first(socket) else { return };
        let mut link = *first;
        while let Some(e) = self.entry(link) {
            let (next, same) = (e.next_same, e.generation == generation);
            if same {
                self.mark_entry(link, look.cell(socket, generation));
            }
            link = next;
        }
    }

    /// Events were lost: every entry may be ready.
    pub(super) fn mark_all(&mut self, look: &Look) {
        for link in 1..=self.fresh {
            let Some(e) = self.entry(link) else { return };
            let (socket, generation) = (e.socket, e.generation);
            self.mark_entry(link, look.cell(socket, generation));
        }
    }

    /// Everything counts as an edge: the sockets are watched through another queue set from now on, or chunks came for the writers.
    pub(super) fn mark_anew(&mut self, only_writers: bool) {
        for link in 1..=self.fresh {
            let writer = self.entry(link).is_some_and(|e| e.events & OUT_BITS != 0);
            if writer || !only_writers {
                self.mark_entry(link, None);
            }
        }
        self.starved = false;
    }

    /// Whether an entry waits for chunks only.
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Whether something may be ready.
    pub(super) fn has_queued(&self) -> bool {
        self.queued != 0
    }

    /// Entries.
    #[cfg(test)]
    pub(super) fn len(&self) -> u32 {
        self.live
    }

    /// Reports what is ready, up to `max`, oldest first. Level-triggered entries go to the end of the queue, one-shot ones are spent.
    pub(super) fn walk(
        &mut self,
        look: &Look,
        max: usize,
        mut report: impl FnMut(u32, u64),
    ) -> usize {
        let mut n = 0;
        // Only what is queued now, so that nothing is reported twice in one call.
        for _ in 0..self.queued {
            if n == max {
                break;
            }
            let Some(link) = self.pop_ready() else { break };
            let Some(mask) = self.look_at(look, link) else { continue };
            let Some(e) = self.entry(link) else { break };
            report(mask, e.data);
            n += 1;
            if e.events & EPOLLONESHOT != 0 {
                e.flags |= SPENT;
            } else if e.events & EPOLLET == 0 {
                self.push_ready(link);
            }
        }
        n
    }

    /// Drops what is not ready from the front of the queue; `true` when something ready stands there.
    pub(super) fn settle(&mut self, look: &Look) -> bool {
        for _ in 0..self.queued {
            let Some(link) = self.pop_ready() else { break };
            if self.look_at(look, link).is_some() {
                // Back to the front.
                let head = self.ready_head;
                self.push_front(link, head);
                return true;
            }
        }
        false
    }

    /// The mask of an entry that came out of the queue, if it is to be reported. Frees a removed one.
    fn look_at(&mut self, look: &Look, link: Link) -> Option<u32> {
        let e = self.entry(link)?;
        if e.flags & DEAD != 0 {
            self.release(link);
            return None;
        }
        if e.flags & SPENT != 0 {
            return None;
        }
        let cell = look.cell(e.socket, e.generation)?;
        // The wake words first: what changes behind them is a new edge, seen by this look or not.
        e.rx_seen = cell.rx_wake.load(Ordering::Acquire);
        e.tx_seen = cell.tx_wake.load(Ordering::Acquire);
        let seen = look.mask(cell, e.events & !HOW);
        self.starved |= seen.starved;
        (seen.mask != 0).then_some(seen.mask)
    }
}

fn is_over(cell: &Cell) -> bool {
    cell.state.load(Ordering::Acquire) & (nk_device::cell::SF_DEAD | nk_device::cell::SF_FAILED)
        != 0
}

mod entries;
#[cfg(test)]
mod tests;
