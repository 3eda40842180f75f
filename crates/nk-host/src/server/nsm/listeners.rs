//! The listeners of an NSM process, for the next one. It may be taken over, and reports what it likes: a socket of a guest has one listener at most.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use nk_servicelib::Key;

/// By guest and socket: generation, descriptor, backlog.
#[derive(Debug, Default)]
pub(in crate::server) struct Listeners(HashMap<(u16, u32), (u16, OwnedFd, u32)>);

impl Listeners {
    /// Enters one; the key of that in whose place it is.
    pub(in crate::server) fn insert(&mut self, key: Key, fd: OwnedFd, backlog: u32) -> Option<Key> {
        let (generation, ..) =
            self.0.insert((key.guest, key.socket), (key.generation, fd, backlog))?;
        (generation != key.generation).then_some(Key { generation, ..key })
    }

    pub(in crate::server) fn has(&self, key: Key) -> bool {
        let there = self.0.get(&(key.guest, key.socket));
        there.is_some_and(|(generation, ..)| *generation == key.generation)
    }

    /// Takes one out: descriptor and backlog.
    pub(in crate::server) fn remove(&mut self, key: Key) -> Option<(OwnedFd, u32)> {
        if !self.has(key) {
            return None;
        }
        let (_, fd, backlog) = self.0.remove(&(key.guest, key.socket))?;
        Some((fd, backlog))
    }

    pub(in crate::server) fn forget_guest(&mut self, guest: u16) {
        self.0.retain(|(of, _), _| *of != guest);
    }
}
