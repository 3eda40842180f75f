//! The daemon's connection to its keeper, and to the next one while that is told what there is.
//!
//! The next one is told in the order of the entries, and some at a time. What is kept or dropped meanwhile it hears at once if that
//! entry's turn has been; otherwise it finds it, or does not, when its turn comes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nk_attach::{Kind, Message};

use super::complete;
use super::entries::Entries;
use super::options::Options;
use crate::sys;

/// Entries that the next keeper is told before somebody else may have the lock.
const TURN: usize = 64;

#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: OwnedFd,
    next: Option<Next>,
    pub(super) entries: Entries,
    pub(super) options: Options,
    /// No other daemon is to follow: so says this to the next one, too.
    last_word: Option<Message>,
}

/// A keeper that is being told.
#[derive(Debug)]
struct Next {
    connection: OwnedFd,
    /// Class and key of the last entry that it was told.
    told: Option<(u64, u64)>,
    /// It was not told of a change.
    failed: Option<i32>,
}

impl Link {
    pub(super) fn new(connection: OwnedFd, entries: Entries, options: Options) -> Link {
        Link { connection, next: None, entries, options, last_word: None }
    }

    /// A keeper that knows nothing is to be the next.
    pub(super) fn begin(&mut self, connection: OwnedFd) {
        self.next = Some(Next { connection, told: None, failed: None });
    }

    /// Tells the next keeper some entries; `true`: it has all, and is the one from now on. One that could not be told everything ends
    /// with its connection.
    pub(super) fn give_some(&mut self) -> io::Result<bool> {
        let Some(mut next) = self.next.take() else { return Ok(true) };
        let mut left = TURN;
        for (at, entry) in self.entries.after(next.told).take(TURN) {
            entry.send(next.connection.as_raw_fd()).map_err(io::Error::from_raw_os_error)?;
            next.told = Some(at);
            left -= 1;
        }
        if let Some(errno) = next.failed {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if left == 0 {
            self.next = Some(next);
            return Ok(false);
        }
        if let Some(m) = &self.last_word {
            nk_attach::send(next.connection.as_raw_fd(), m, &[])
                .map_err(io::Error::from_raw_os_error)?;
        }
        complete(&next.connection)?;
        self.connection = next.connection;
        Ok(true)
    }

    pub(super) fn keep(&mut self, m: Message, fds: &[RawFd]) {
        match fds.iter().map(|fd| sys::duplicate(*fd)).collect() {
            Ok(copies) => self.entries.keep(m, copies),
            Err(e) => {
                tracing::error!(error = %e, "no descriptor left: another keeper would lack an entry");
            }
        }
        self.send(&m, fds);
    }

    pub(super) fn drop_entry(&mut self, class: u64, key: u64) {
        let mut m = Message::new(Kind::Drop);
        (m.a, m.b) = (class, key);
        self.entries.drop_entry(class, key);
        self.send(&m, &[]);
    }

    /// No other daemon is to follow.
    pub(super) fn end(&mut self, m: &Message) {
        self.last_word = Some(*m);
        let _ = nk_attach::send(self.connection.as_raw_fd(), m, &[]);
    }

    fn send(&mut self, m: &Message, fds: &[RawFd]) {
        if let Err(e) = nk_attach::send(self.connection.as_raw_fd(), m, fds) {
            tracing::debug!(errno = e, "the keeper is gone; the next one is told");
        }
        // With a guest or a process go entries of higher classes: those it has not been told either, if this one's turn is yet to come.
        if let Some(next) = self.next.as_mut().filter(|n| n.told >= Some((m.a, m.b))) {
            let told = nk_attach::send(next.connection.as_raw_fd(), m, fds);
            next.failed = next.failed.or(told.err());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::{
        CLASS_GUEST, CLASS_LISTENER, CLASS_PROCESS, CLASS_QSET, KEPT_COMPLETE, take_back,
    };

    type Snapshot = Vec<((u64, u64), u64)>;

    fn snapshot(entries: &Entries) -> Snapshot {
        entries.after(None).map(|(at, e)| (at, e.message.c)).collect()
    }

    /// What a keeper's process makes of what comes on its socket, once it is told that this is all.
    fn played(socket: OwnedFd) -> std::thread::JoinHandle<Option<Snapshot>> {
        std::thread::spawn(move || {
            let mut entries = Entries::default();
            while let Ok((m, ..)) = nk_attach::recv(socket.as_raw_fd(), false) {
                match Kind::from_u32(m.kind) {
                    Some(Kind::Keep) => entries.keep(m, Vec::new()),
                    Some(Kind::Drop) => entries.drop_entry(m.a, m.b),
                    Some(Kind::Kept) if m.a == KEPT_COMPLETE => return Some(snapshot(&entries)),
                    _ => {}
                }
            }
            None
        })
    }

    fn link() -> (Link, OwnedFd) {
        let (connection, last) = sys::seqpacket_pair().expect("pair");
        // As after its end.
        drop(last);
        let mut link = Link::new(connection, Entries::default(), Options::default());
        for guest in 1..=20 {
            change(&mut link, guest, 1);
        }
        let (next, its) = sys::seqpacket_pair().expect("pair");
        link.begin(next);
        (link, its)
    }

    /// Makes a guest with its entries, or part of it, or changes or ends it.
    fn change(link: &mut Link, guest: u64, n: u64) {
        let mut keep = |class, key| {
            let mut m = Message::new(Kind::Keep);
            (m.a, m.b, m.c) = (class, key, n);
            link.keep(m, &[]);
        };
        match n % 7 {
            0 => link.drop_entry(CLASS_GUEST, guest),
            2 => link.drop_entry(CLASS_PROCESS, (guest << 16) | (n % 5)),
            3 => link.drop_entry(CLASS_LISTENER, (guest << 48) | (n % 5)),
            _ => {
                keep(CLASS_GUEST, guest);
                for row in 0..5 {
                    keep(CLASS_PROCESS, guest << 16 | row);
                    keep(CLASS_QSET, guest << 32 | row << 16);
                    keep(CLASS_LISTENER, guest << 48 | row);
                }
            }
        }
    }

    #[test]
    fn the_next_keeper_has_what_changed_while_it_was_told() {
        for seed in 1..200u64 {
            let (mut link, its) = link();
            let keeper = played(its);
            let (mut n, mut turns) = (seed, 1);
            while !link.give_some().expect("it lives") {
                turns += 1;
                for _ in 0..3 {
                    n = n
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let (guest, what) = ((n >> 33) % 25 + 1, n >> 40);
                    change(&mut link, guest, what);
                }
            }
            assert!(turns > 3, "all was told in {turns} turns");
            // What comes later goes to it as well.
            let (had, now) = (keeper.join().expect("no panic"), snapshot(&link.entries));
            assert_eq!(had.as_ref(), Some(&now), "seed {seed}");
        }
    }

    #[test]
    fn one_that_ends_while_it_is_told_is_not_the_next() {
        let (mut link, its) = link();
        assert!(!link.give_some().expect("it lives"));
        drop(its);
        assert!(link.give_some().is_err());
        assert!(link.give_some().expect("none is told"), "it is still told");
        // And one that a daemon gave up before it had all was not told that it has.
        let (next, its) = sys::seqpacket_pair().expect("pair");
        let keeper = played(its);
        link.begin(next);
        assert!(!link.give_some().expect("it lives"));
        link.next = None;
        assert_eq!(keeper.join().expect("no panic"), None);
        assert!(take_back(&link.connection, &mut Entries::default()).is_err(), "the last one's");
    }
}
