//! The service's end of the NSM's device: it pops jobs and sends, and pushes completions and events.

use std::collections::VecDeque;

use nk_device::header::WANTS_ROOM;
use nk_device::ring::Consumer;
use nk_device::sync::{Ordering, fence};
use nk_device::{Device, Nqe, Op};

#[derive(Debug)]
pub(crate) struct Port {
    device: Device,
    job: Consumer,
    send: Consumer,
    /// What found its ring full. While there is something nothing new is begun, so this stays small.
    backlog: VecDeque<Nqe>,
    pushed: bool,
    popped: bool,
    /// Nobody reads there any more: what is pushed is dropped.
    is_deserted: bool,
}

impl Port {
    pub(crate) fn new(device: Device) -> Port {
        Port {
            device,
            job: Consumer::default(),
            send: Consumer::default(),
            backlog: VecDeque::new(),
            pushed: false,
            popped: false,
            is_deserted: false,
        }
    }

    /// The engine is dead: what it was to be told, another one is told anew.
    pub(crate) fn desert(&mut self) {
        self.is_deserted = true;
        self.backlog.clear();
    }

    pub(crate) fn is_congested(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether the next event goes on the ring at once. What the guest finds in its device must not be ahead of what is said of it
    /// there.
    pub(crate) fn has_room(&self) -> bool {
        !self.is_congested() && self.device.qset(0).is_some_and(|q| !q.receive().is_full())
    }

    pub(crate) fn push(&mut self, nqe: &Nqe) {
        if self.is_deserted {
            return;
        }
        self.pushed = true;
        if self.is_congested() || !self.try_push(nqe) {
            self.backlog.push_back(*nqe);
        }
    }

    fn try_push(&self, nqe: &Nqe) -> bool {
        let Some(q) = self.device.qset(0) else { return false };
        if nqe.op == Op::Reply as u8 {
            q.completion().push(nqe).is_ok()
        } else {
            q.receive().push(nqe).is_ok()
        }
    }

    pub(crate) fn flush(&mut self) {
        while let Some(nqe) = self.backlog.front() {
            if !self.try_push(nqe) {
                return;
            }
            self.pushed = true;
            self.backlog.pop_front();
        }
    }

    pub(crate) fn pop_job(&mut self) -> Option<Nqe> {
        let q = self.device.qset(0)?;
        let nqe = self.job.pop(&q.job());
        self.popped |= nqe.is_some();
        nqe
    }

    pub(crate) fn pop_send(&mut self) -> Option<Nqe> {
        let q = self.device.qset(0)?;
        let nqe = self.send.pop(&q.send());
        self.popped |= nqe.is_some();
        nqe
    }

    pub(crate) fn commit(&self) {
        if let Some(q) = self.device.qset(0) {
            self.job.commit(&q.job());
            self.send.commit(&q.send());
        }
    }

    pub(crate) fn has_work(&self) -> bool {
        self.device
            .qset(0)
            .is_some_and(|q| self.job.is_ready(&q.job()) || self.send.is_ready(&q.send()))
    }

    /// Wakes the engine if it sleeps and something is there for it.
    pub(crate) fn ring(&mut self, doorbell: &mut dyn FnMut()) {
        let pushed = core::mem::take(&mut self.pushed);
        let popped = core::mem::take(&mut self.popped);
        if !pushed && !popped {
            return;
        }
        fence(Ordering::SeqCst);
        match self.device.header().engine_sleeping.load(Ordering::SeqCst) {
            0 => {}
            WANTS_ROOM => doorbell(),
            _ if pushed => doorbell(),
            _ => {}
        }
    }

    /// Asks the engine for the doorbell; `true` when there is nothing to do.
    pub(crate) fn prepare_sleep(&self) -> bool {
        if let Some(q) = self.device.qset(0) {
            q.sleeping.store(1, Ordering::SeqCst);
        }
        fence(Ordering::SeqCst);
        !self.has_work() && !self.is_congested()
    }

    pub(crate) fn finish_sleep(&self) {
        if let Some(q) = self.device.qset(0) {
            q.sleeping.store(0, Ordering::SeqCst);
        }
    }
}
