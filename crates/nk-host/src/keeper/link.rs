//! The daemon's connection to its keeper, and to the next one while that is told what there is.
//!
//! The next one is told in the order of the entries, and some at a time. What is kept or dropped meanwhile it hears at once if that
//! entry's turn has been; otherwise it finds it, or does not, when its turn comes.
//!
//! The simulation (`nk-models`, `played`) has keepers in memory at the other ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nk_attach::{Kind, Message};

use super::entries::Entries;
use super::options::Options;
use super::{CLASS_GUEST, KEPT_COMPLETE, KEPT_END};

/// A way to a keeper.
pub trait Wire {
    /// A descriptor that is kept.
    type Fd;
    /// One that is handed along.
    type Raw<'a>: Copy;

    /// Hands it along.
    fn raw(fd: &Self::Fd) -> Self::Raw<'_>;
    /// Another of the same.
    ///
    /// # Errors
    /// When there is none left.
    fn duplicate(raw: Self::Raw<'_>) -> io::Result<Self::Fd>;
    /// Sends a message.
    ///
    /// # Errors
    /// The errno.
    fn send(&self, m: &Message, fds: &[Self::Raw<'_>]) -> Result<(), i32>;
}

impl Wire for OwnedFd {
    type Fd = OwnedFd;
    type Raw<'a> = BorrowedFd<'a>;

    fn raw(fd: &OwnedFd) -> BorrowedFd<'_> {
        fd.as_fd()
    }
    fn duplicate(raw: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        raw.try_clone_to_owned()
    }
    fn send(&self, m: &Message, fds: &[BorrowedFd<'_>]) -> Result<(), i32> {
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        nk_attach::send(self.as_raw_fd(), m, &fds)
    }
}

/// The daemon's end.
#[derive(Debug)]
pub struct Link<W: Wire> {
    pub(super) connection: W,
    next: Option<Next<W>>,
    pub(super) entries: Entries<W::Fd>,
    pub(super) options: Options,
    /// No other daemon is to follow: so says this to the next one, too.
    last_word: Option<Message>,
}

/// A keeper that is being told.
#[derive(Debug)]
struct Next<W> {
    connection: W,
    /// Class and key of the last entry that it was told.
    told: Option<(u64, u64)>,
    /// It was not told of a change.
    failed: Option<i32>,
}

/// Tells a keeper that it has everything.
///
/// # Errors
/// Those of the wire.
pub fn complete(keeper: &impl Wire) -> io::Result<()> {
    keeper.send(&asks_nothing(KEPT_COMPLETE), &[]).map_err(io::Error::from_raw_os_error)
}

fn asks_nothing(what: u64) -> Message {
    let mut m = Message::new(Kind::Kept);
    m.a = what;
    m
}

impl<W: Wire> Link<W> {
    /// To a keeper that has these already.
    #[must_use]
    pub fn new(connection: W, entries: Entries<W::Fd>) -> Link<W> {
        let options = Options::of(&entries);
        Link { connection, next: None, entries, options, last_word: None }
    }

    /// A keeper that knows nothing is to be the next.
    pub fn begin(&mut self, connection: W) {
        self.next = Some(Next { connection, told: None, failed: None });
    }

    /// Tells the next keeper some entries, `turn` at most; `true`: it has all, and is the one from now on. One that could not be told everything
    /// ends with its connection.
    ///
    /// # Errors
    /// Those of the wire: it is not the next one.
    pub fn give_some(&mut self, turn: usize) -> io::Result<bool> {
        let Some(mut next) = self.next.take() else { return Ok(true) };
        let mut left = turn;
        for (at, entry) in self.entries.after(next.told).take(turn) {
            entry.send(&next.connection).map_err(io::Error::from_raw_os_error)?;
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
            next.connection.send(m, &[]).map_err(io::Error::from_raw_os_error)?;
        }
        complete(&next.connection)?;
        self.connection = next.connection;
        Ok(true)
    }

    /// Keeps what the message says.
    pub fn keep(&mut self, m: Message, fds: &[W::Raw<'_>]) {
        match fds.iter().map(|fd| W::duplicate(*fd)).collect() {
            Ok(copies) => self.entries.keep(m, copies),
            Err(e) => {
                tracing::error!(error = %e, "no descriptor left: another keeper would lack part of an entry");
                self.entries.keep_without(m);
            }
        }
        self.send(&m, fds);
    }

    /// Keeps an entry no more.
    pub fn drop_entry(&mut self, class: u64, key: u64) {
        if class == CLASS_GUEST {
            self.options.forget_guest(key as u16);
        }
        let mut m = Message::new(Kind::Drop);
        (m.a, m.b) = (class, key);
        self.entries.drop_entry(class, key);
        self.send(&m, &[]);
    }

    /// When this daemon ends none is to follow: the keeper tells the guests, and ends.
    pub fn end(&mut self) {
        let m = asks_nothing(KEPT_END);
        self.last_word = Some(m);
        let _ = self.connection.send(&m, &[]);
    }

    fn send(&mut self, m: &Message, fds: &[W::Raw<'_>]) {
        if let Err(e) = self.connection.send(m, fds) {
            tracing::debug!(errno = e, "the keeper is gone; the next one is told");
        }
        // With a guest or a process go entries of higher classes: those it has not been told either, if this one's turn is yet to come.
        if let Some(next) = self.next.as_mut().filter(|n| n.told >= Some((m.a, m.b))) {
            let told = next.connection.send(m, fds);
            next.failed = next.failed.or(told.err());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::{CLASS_LISTENER, CLASS_PROCESS, CLASS_QSET, take_back};
    use crate::sys;

    /// Entries of one turn.
    const SOME: usize = 64;

    type Snapshot = Vec<((u64, u64), u64)>;

    fn snapshot<D>(entries: &Entries<D>) -> Snapshot {
        entries.after(None).map(|(at, e)| (at, e.message.c)).collect()
    }

    /// What a keeper's process makes of what comes on its socket, once it is told that this is all.
    fn played(socket: OwnedFd) -> std::thread::JoinHandle<Option<Snapshot>> {
        std::thread::spawn(move || {
            let mut entries = Entries::<()>::default();
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

    fn link() -> (Link<OwnedFd>, OwnedFd) {
        let (connection, last) = sys::seqpacket_pair().expect("pair");
        // As after its end.
        drop(last);
        let mut link = Link::new(connection, Entries::default());
        for guest in 1..=20 {
            change(&mut link, guest, 1);
        }
        let (next, its) = sys::seqpacket_pair().expect("pair");
        link.begin(next);
        (link, its)
    }

    /// Makes a guest with its entries, or part of it, or changes or ends it.
    fn change(link: &mut Link<OwnedFd>, guest: u64, n: u64) {
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
            while !link.give_some(SOME).expect("it lives") {
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

    /// To nowhere, with descriptors that cannot be had a second time: those from 100 on.
    struct Nowhere;

    impl Wire for Nowhere {
        type Fd = u32;
        type Raw<'a> = u32;

        fn raw(fd: &u32) -> u32 {
            *fd
        }
        fn duplicate(raw: u32) -> io::Result<u32> {
            if raw < 100 { Ok(raw) } else { Err(io::Error::from_raw_os_error(libc::EMFILE)) }
        }
        fn send(&self, _: &Message, _: &[u32]) -> Result<(), i32> {
            Ok(())
        }
    }

    #[test]
    fn without_a_copy_of_its_descriptors_an_entry_is_as_right_as_it_can_be() {
        let mut link = Link::new(Nowhere, Entries::default());
        let mut keep = |class, c, fds: &[u32]| {
            let mut m = Message::new(Kind::Keep);
            (m.a, m.b, m.c) = (class, 1, c);
            link.keep(m, fds);
            link.entries.get(class, 1).map(|e| (e.message.c, e.fds.clone()))
        };
        for class in [CLASS_GUEST, CLASS_LISTENER] {
            assert_eq!(keep(class, 1, &[5, 6]), Some((1, vec![5, 6])));
            // They are the same as before.
            assert_eq!(keep(class, 2, &[105, 106]), Some((2, vec![5, 6])), "class {class}");
        }
        // Its words say which it has.
        assert_eq!(keep(CLASS_PROCESS, 1, &[5]), Some((1, vec![5])));
        assert_eq!(keep(CLASS_PROCESS, 2, &[105, 106]), Some((1, vec![5])));
        // Another image's doorbell would ring nobody.
        assert_eq!(keep(CLASS_QSET, 1, &[5]), Some((1, vec![5])));
        assert_eq!(keep(CLASS_QSET, 1, &[105]), None);
    }

    #[test]
    fn one_that_ends_while_it_is_told_is_not_the_next() {
        let (mut link, its) = link();
        assert!(!link.give_some(SOME).expect("it lives"));
        drop(its);
        assert!(link.give_some(SOME).is_err());
        assert!(link.give_some(SOME).expect("none is told"), "it is still told");
        // And one that a daemon gave up before it had all was not told that it has.
        let (next, its) = sys::seqpacket_pair().expect("pair");
        let keeper = played(its);
        link.begin(next);
        assert!(!link.give_some(SOME).expect("it lives"));
        link.next = None;
        assert_eq!(keeper.join().expect("no panic"), None);
        assert!(take_back(&link.connection, &mut Entries::default()).is_err(), "the last one's");
    }
}
