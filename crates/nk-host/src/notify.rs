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

/// The poll thread's way to reach guests, NSMs and the control thread.
#[derive(Debug)]
pub struct Notifier {
    /// Doorbells by guest, then queue set.
    guests: Vec<Vec<Option<OwnedFd>>>,
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
            self.guests.resize_with(guest + 1, Vec::new);
        }
        let Some(doorbells) = self.guests.get_mut(guest) else { return };
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
            *doorbells = Vec::new();
        }
    }

    /// Rings the doorbells of all queue sets of all guests.
    pub fn ring_all(&mut self) {
        for guest in 0..self.guests.len() {
            for qset in 0..self.guests.get(guest).map_or(0, Vec::len) {
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
        let slot =
            self.guests.get_mut(usize::from(guest.0)).and_then(|g| g.get_mut(usize::from(qset)));
        let Some(slot) = slot else { return };
        let Some(fd) = slot else { return };
        watchdog::watch();
        if !sys::ring(&*fd) {
            tracing::warn!(guest = guest.0, qset, "a doorbell blocks: it is not rung again");
            *slot = None;
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
