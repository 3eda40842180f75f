//! Where entries are kept: a slab with a free list, chains by socket id, and the ready queue's links.

use super::{DEAD, Entry, FREE, Interest, Key, Link, QUEUED};
use crate::sys;

impl Interest {
    /// Entries per socket id, at most, on average: descriptors can be duplicated.
    const ENTRIES_PER_SOCKET: u32 = 2;

    /// An empty one for a device with that many sockets. `None` when there is no memory.
    pub(in super::super) fn map(sockets: u32) -> Option<Interest> {
        let capacity = sockets.saturating_mul(Self::ENTRIES_PER_SOCKET);
        let entries_at = sockets as usize * size_of::<Link>();
        let entries_at = entries_at.next_multiple_of(64);
        let base = sys::map_private(entries_at + capacity as usize * size_of::<Entry>());
        if base.is_null() {
            return None;
        }
        // SAFETY: within the mapping just made; page alignment plus a multiple of 64 aligns both arrays. Zeroed links are "none".
        let entries = unsafe { base.cast::<u8>().add(entries_at).cast() };
        Some(Interest {
            first: base.cast(),
            entries,
            sockets,
            capacity,
            fresh: 0,
            free: 0,
            ready_head: 0,
            ready_tail: 0,
            queued: 0,
            live: 0,
            starved: false,
        })
    }

    /// Gives the memory back.
    pub(in super::super) fn unmap(self) {
        let entries_at = (self.sockets as usize * size_of::<Link>()).next_multiple_of(64);
        let len = entries_at + self.capacity as usize * size_of::<Entry>();
        // SAFETY: exactly the mapping that `map` made; self is consumed, so nothing refers to it any more.
        unsafe { sys::system_call!(libc::SYS_munmap, self.first, len) };
    }

    pub(super) fn first(&mut self, socket: u32) -> Option<&mut Link> {
        if socket >= self.sockets {
            return None;
        }
        // SAFETY: in bounds of the table, which lives as long as self and is private to this process.
        Some(unsafe { &mut *self.first.add(socket as usize) })
    }

    pub(super) fn entry(&mut self, link: Link) -> Option<&mut Entry> {
        let index = link.checked_sub(1)?;
        if index >= self.fresh {
            return None;
        }
        // SAFETY: index < fresh <= capacity: within the mapping, and initialised when `fresh` passed it. Private memory.
        Some(unsafe { &mut *self.entries.add(index as usize) })
    }

    pub(super) fn allocate(&mut self) -> Option<Link> {
        if self.free != 0 {
            let link = self.free;
            self.free = self.entry(link)?.next_same;
            return Some(link);
        }
        if self.fresh >= self.capacity {
            return None;
        }
        // Zeroed by the kernel, which is a valid entry; `add` fills it.
        self.fresh += 1;
        Some(self.fresh)
    }

    pub(super) fn release(&mut self, link: Link) {
        let free = self.free;
        if let Some(e) = self.entry(link) {
            e.flags = FREE;
            e.next_same = free;
            self.free = link;
        }
    }

    pub(super) fn push_ready(&mut self, link: Link) {
        let tail = self.ready_tail;
        if let Some(e) = self.entry(link) {
            e.flags |= QUEUED;
            e.next_ready = 0;
            match self.entry(tail) {
                Some(t) => t.next_ready = link,
                None => self.ready_head = link,
            }
            self.ready_tail = link;
            self.queued += 1;
        }
    }

    pub(super) fn pop_ready(&mut self) -> Option<Link> {
        let link = self.ready_head;
        let e = self.entry(link)?;
        e.flags &= !QUEUED;
        self.ready_head = e.next_ready;
        if self.ready_head == 0 {
            self.ready_tail = 0;
        }
        self.queued = self.queued.saturating_sub(1);
        Some(link)
    }

    pub(super) fn find(&mut self, key: Key) -> Option<Link> {
        let mut link = *self.first(key.socket)?;
        while let Some(e) = self.entry(link) {
            if e.fd == key.fd && e.generation == key.generation {
                return Some(link);
            }
            link = e.next_same;
        }
        None
    }

    /// Takes a link out of its socket's chain.
    pub(super) fn unchain(&mut self, link: Link) {
        let Some(e) = self.entry(link) else { return };
        let (socket, next) = (e.socket, e.next_same);
        let Some(first) = self.first(socket) else { return };
        if *first == link {
            *first = next;
            return;
        }
        let mut at = *first;
        while let Some(e) = self.entry(at) {
            if e.next_same == link {
                e.next_same = next;
                return;
            }
            at = e.next_same;
        }
    }

    pub(super) fn drop_entry(&mut self, link: Link) {
        self.unchain(link);
        self.live = self.live.saturating_sub(1);
        let Some(e) = self.entry(link) else { return };
        if e.flags & QUEUED != 0 {
            e.flags |= DEAD;
        } else {
            self.release(link);
        }
    }

    pub(super) fn push_front(&mut self, link: Link, head: Link) {
        if let Some(e) = self.entry(link) {
            e.flags |= QUEUED;
            e.next_ready = head;
            self.ready_head = link;
            if head == 0 {
                self.ready_tail = link;
            }
            self.queued += 1;
        }
    }
}
