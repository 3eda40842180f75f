//! What the engine asks for: doorbells of queue sets, futex wake-ups, doorbells of NSM processes.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use nk_device::sync::AtomicU32;
use nk_engine::{GuestId, Notify, NsmId};

use crate::{sys, watchdog};

/// What another thread tells the control thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Every socket of the guest is done.
    Idle(GuestId),
    /// An NSM from which the guest was moved has none of its sockets any more.
    Left(GuestId, NsmId),
    /// Another keeper has everything that the last one had; `false`: it could not be started.
    Keeper(bool),
    /// The guest's present NSM has its share of sockets.
    Full(GuestId),
}

/// A guest's doorbells.
#[derive(Debug, Default)]
struct Doorbells {
    by_qset: Vec<Option<OwnedFd>>,
    /// One has blocked: this guest means harm, and none of its is rung any more. It could have as many as it likes, one after another.
    is_mute: bool,
}

/// The poll thread's way to reach guests, NSMs and the control thread.
#[derive(Debug)]
pub struct Notifier {
    /// By guest.
    guests: Vec<Doorbells>,
    nsms: HashMap<u8, OwnedFd>,
    news: Sender<News>,
    control: Arc<OwnedFd>,
}

impl Notifier {
    /// One that tells the control thread by `news`, and then rings `control`.
    #[must_use]
    pub fn new(news: Sender<News>, control: Arc<OwnedFd>) -> Notifier {
        Notifier { guests: Vec::new(), nsms: HashMap::new(), news, control }
    }

    fn tell(&mut self, news: News) {
        if self.news.send(news).is_ok() {
            sys::ring(&self.control);
        }
    }

    /// The doorbell of a queue set from now on; `None` takes it away.
    pub fn set_doorbell(&mut self, guest: GuestId, qset: u16, fd: Option<OwnedFd>) {
        let (guest, qset) = (usize::from(guest.0), usize::from(qset));
        if self.guests.len() <= guest {
            self.guests.resize_with(guest + 1, Doorbells::default);
        }
        let Some(doorbells) = self.guests.get_mut(guest).filter(|d| !d.is_mute) else { return };
        let doorbells = &mut doorbells.by_qset;
        if doorbells.len() <= qset {
            doorbells.resize_with(qset + 1, || None);
        }
        if let Some(slot) = doorbells.get_mut(qset) {
            *slot = fd;
        }
    }

    /// Forgets a guest's doorbells.
    pub fn remove_guest(&mut self, guest: GuestId) {
        if let Some(doorbells) = self.guests.get_mut(usize::from(guest.0)) {
            *doorbells = Doorbells::default();
        }
    }

    /// Rings the doorbells of all queue sets of all guests.
    pub fn ring_all(&mut self) {
        for guest in 0..self.guests.len() {
            for qset in 0..self.guests.get(guest).map_or(0, |d| d.by_qset.len()) {
                self.doorbell(GuestId(guest as u16), qset as u16);
            }
        }
    }

    /// The doorbell of a separate NSM.
    pub fn set_nsm(&mut self, nsm: NsmId, fd: Option<OwnedFd>) {
        match fd {
            Some(fd) => self.nsms.insert(nsm.0, fd),
            None => self.nsms.remove(&nsm.0),
        };
    }
}

impl Notify for Notifier {
    fn doorbell(&mut self, guest: GuestId, qset: u16) {
        let Some(doorbells) = self.guests.get_mut(usize::from(guest.0)) else { return };
        let Some(Some(fd)) = doorbells.by_qset.get(usize::from(qset)) else { return };
        watchdog::watch();
        if !sys::ring(fd) {
            tracing::warn!(
                guest = guest.0,
                qset,
                "a doorbell blocks: the guest has none from now on"
            );
            *doorbells = Doorbells { by_qset: Vec::new(), is_mute: true };
        }
    }
    fn futex_wake(&mut self, word: &AtomicU32, count: u32) {
        sys::futex_wake(word, count);
    }
    fn nsm_doorbell(&mut self, nsm: NsmId) {
        if let Some(fd) = self.nsms.get(&nsm.0) {
            sys::ring(fd);
        }
    }
    fn guest_idle(&mut self, guest: GuestId) {
        self.tell(News::Idle(guest));
    }
    fn nsm_left(&mut self, guest: GuestId, nsm: NsmId) {
        self.tell(News::Left(guest, nsm));
    }
    fn nsm_full(&mut self, guest: GuestId) {
        self.tell(News::Full(guest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that blocks, as a guest can make it at any time.
    fn blocking() -> OwnedFd {
        let fd = sys::eventfd().expect("eventfd");
        sys::set_blocking(&fd).expect("fcntl");
        assert_eq!(rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()), Ok(8));
        fd
    }

    #[test]
    fn a_guest_blocks_once() {
        std::thread::spawn(|| {
            watchdog::install(std::time::Duration::from_millis(100)).expect("timer");
            let (sender, _news) = std::sync::mpsc::channel();
            let mut n = Notifier::new(sender, Arc::new(sys::eventfd().expect("eventfd")));
            let (bad, other) = (GuestId(1), GuestId(2));
            (0..9).for_each(|q| n.set_doorbell(bad, q, Some(blocking())));
            let bell = sys::eventfd().expect("eventfd");
            n.set_doorbell(other, 0, Some(bell.try_clone().expect("a copy")));
            n.ring_all();
            assert!(sys::has_ended(&bell), "another guest's was not rung");
            n.set_doorbell(bad, 0, Some(blocking()));
            assert!(n.guests[1].by_qset.is_empty(), "it would block again");
            // The next of its number is another.
            n.remove_guest(bad);
            let bell = sys::eventfd().expect("eventfd");
            n.set_doorbell(bad, 0, Some(bell.try_clone().expect("a copy")));
            n.doorbell(bad, 0);
            assert!(sys::has_ended(&bell), "it was not rung");
        })
        .join()
        .expect("thread");
    }
}
