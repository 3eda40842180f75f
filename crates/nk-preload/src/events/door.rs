//! One queue set as its sleeper sees it: the receive ring, the sleep word and the doorbell.

use core::sync::atomic::{AtomicU32, Ordering, fence};

use libc::c_int;
use nk_attach::{Kind, Message};
use nk_device::nqe::Op;
use nk_device::qset::{RECEIVE_SLOTS, RINGS_ALWAYS};
use nk_device::ring::Consumer;
use nk_device::{Device, Nqe, Qset};

use super::grants;
use crate::process::Process;
use crate::{control, fdtable, gate, hangup, sys};

/// The private end of a queue set's receive ring. One thread at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Door {
    /// The queue set.
    pub(super) qset: u16,
    ring: Consumer,
    overflow: u32,
    epoch: u32,
    engine_state: u32,
}

/// What came out of the ring besides events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// Every event was handed over.
    All,
    /// The ring was full and events were lost: look at everything.
    Lost,
    /// Another engine, or none: everything may have changed, and every change is an edge.
    Restarted,
}

impl Door {
    /// No queue set yet.
    pub(super) const fn none() -> Door {
        Door { qset: u16::MAX, ring: Consumer::at(0), overflow: 0, epoch: 0, engine_state: 0 }
    }

    /// A door for a queue set that was just registered.
    pub(super) fn new(device: &Device, qset: u16) -> Door {
        let h = device.header();
        let mut d = Door { qset, ..Door::none() };
        d.epoch = h.epoch.load(Ordering::Acquire);
        d.engine_state = hangup::engine_state(device);
        if let Some(q) = device.qset(qset) {
            d.overflow = q.overflow.load(Ordering::Acquire);
            d.ring = Consumer::at(q.receive_head.load(Ordering::Acquire));
        }
        d
    }

    /// Takes what is on the ring.
    pub(super) fn drain(&mut self, device: &Device, mut on_event: impl FnMut(&Nqe)) -> Drained {
        let Some(q) = device.qset(self.qset) else { return Drained::All };
        let h = device.header();
        let epoch = h.epoch.load(Ordering::Acquire);
        let engine_state = hangup::engine_state(device);
        // All three are read before the sockets are looked at: what comes after this counts again.
        let overflow = q.overflow.load(Ordering::Acquire);
        let drained = if epoch != self.epoch || engine_state != self.engine_state {
            Drained::Restarted
        } else if overflow != self.overflow {
            Drained::Lost
        } else {
            Drained::All
        };
        (self.epoch, self.engine_state, self.overflow) = (epoch, engine_state, overflow);
        let ring = q.receive();
        let mut any = false;
        for _ in 0..RECEIVE_SLOTS {
            let Some(e) = self.ring.pop(&ring) else { break };
            any = true;
            if e.op == Op::Event as u8 {
                on_event(&e);
            }
        }
        if any || drained != Drained::All {
            self.ring.commit(&ring);
        }
        drained
    }

    fn has_lost(&self, device: &Device, q: &Qset) -> bool {
        let h = device.header();
        q.overflow.load(Ordering::Acquire) != self.overflow
            || h.epoch.load(Ordering::Acquire) != self.epoch
            || hangup::engine_state(device) != self.engine_state
    }

    /// Whether [`Door::drain`] would find anything.
    pub(super) fn has_news(&self, device: &Device) -> bool {
        device
            .qset(self.qset)
            .is_some_and(|q| self.ring.is_ready(&q.receive()) || self.has_lost(device, q))
    }
}

/// Says who sleeps, as [`Qset::sleeping`] has it. The caller orders this against other sleepers.
pub(super) fn set_sleeping(device: &Device, qset: u16, sleep: u32) {
    if let Some(q) = device.qset(qset) {
        if sleep != 0 {
            q.sleeps_on.store(sys::cpu() + 1, Ordering::Relaxed);
        }
        q.sleeping.store(sleep, Ordering::SeqCst);
    }
    // The engine pushes, fences and reads `sleeping`; we store it, fence and look at ring and sockets.
    fence(Ordering::SeqCst);
}

/// Sleepers of a queue set that have no common lock: counts them so that the word stays set while there is one.
pub(super) fn enter_sleep(device: &Device, qset: u16, count: &AtomicU32) {
    count.fetch_add(1, Ordering::SeqCst);
    set_sleeping(device, qset, RINGS_ALWAYS);
}

/// Undoes [`enter_sleep`].
pub(super) fn leave_sleep(device: &Device, qset: u16, count: &AtomicU32, doorbell: c_int) {
    if grants::lower(count) != 1 {
        return;
    }
    set_sleeping(device, qset, 0);
    if count.load(Ordering::SeqCst) != 0 {
        // Somebody came between the count and the store, and may sleep already, unheard: say it again and let it look.
        set_sleeping(device, qset, RINGS_ALWAYS);
        sys::ring_eventfd(doorbell);
    }
}

/// A doorbell and a queue set that rings it. The caller holds the gate.
///
/// # Errors
/// The errno of eventfd(2) or of the daemon.
pub(super) fn register(p: &Process, _gate: &gate::Changing) -> Result<(u16, c_int), c_int> {
    let doorbell = sys::move_up(sys::eventfd()?);
    match control::request(p, &Message::new(Kind::AddQset), &[doorbell]) {
        Ok((reply, _)) if p.device().qset(reply.a as u16).is_some() => {
            fdtable::swap(doorbell, fdtable::Entry::Internal);
            Ok((reply.a as u16, doorbell))
        }
        Ok(_) => {
            sys::close(doorbell);
            Err(libc::ENOMEM)
        }
        Err(e) => {
            sys::close(doorbell);
            Err(e)
        }
    }
}

/// Gives a queue set and its doorbell back.
pub(super) fn unregister(p: &Process, qset: u16, doorbell: c_int) {
    let mut message = Message::new(Kind::DropQset);
    message.a = u64::from(qset);
    control::tell(p, &message);
    close_doorbell(doorbell);
}

/// Closes a doorbell only (in a forked child the queue set is the parent's).
pub(super) fn close_doorbell(doorbell: c_int) {
    if doorbell >= 0 {
        fdtable::swap(doorbell, fdtable::Entry::None);
        sys::close(doorbell);
    }
}
