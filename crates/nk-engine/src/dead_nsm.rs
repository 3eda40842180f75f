//! Going on after the death of an NSM: what it had ends, waits for the next one, or is another's.

use nk_device::cell::{SOCK_DGRAM, SOCK_STREAM};
use nk_device::nqe::OWED;
use nk_device::{Device, Op};

use crate::engine::{Engine, Parts};
use crate::guest::{OldNsm, State};
use crate::nsm::Nsm;
use crate::out::Out;
use crate::outlived::{drop_published, drop_unread, renewal};
use crate::{AdoptedListener, ControlError, GuestId, Notify, NsmId};

#[allow(clippy::missing_errors_doc, reason = "ControlError's variants say it")]
impl Engine {
    /// An NSM died: its connections get ECONNRESET, its listeners wait for the next one ([`Engine::nsm_back`]). What it had of a
    /// guest that was moved from it, and is no connection, is the guest's present NSM's now; returns the listeners among that: give
    /// each to ServiceLib there (`adopt_listener`).
    pub fn nsm_dead(
        &mut self,
        id: NsmId,
        notify: &mut dyn Notify,
    ) -> Result<Vec<(GuestId, AdoptedListener)>, ControlError> {
        self.nsm_mut(id).ok_or(ControlError::Nsm)?.down();
        let mut listeners = Vec::new();
        for guest in self.order.clone() {
            if !self.guest(guest).is_some_and(|g| g.is_served_by(id)) {
                continue;
            }
            self.control(guest, notify, |p, out| {
                p.lose_nsm(id, out);
                if p.guest.is_old(id) {
                    p.inherit(id, &mut listeners, out);
                }
            })?;
        }
        Ok(listeners)
    }

    pub(crate) fn guests_of(&self, id: NsmId) -> Vec<GuestId> {
        let on = |g: &&GuestId| self.guest(**g).is_some_and(|g| g.nsm == id);
        self.order.iter().filter(on).copied().collect()
    }

    /// A new NSM takes the place of a dead one. Its ServiceLib must have been given the guests (`Service::add_guest`) first.
    /// Returns the listeners of its guests: give each to ServiceLib (`adopt_listener`) with the descriptor that the keeper has,
    /// or, where there is none, call [`Engine::listener_lost`].
    pub fn nsm_back(
        &mut self,
        id: NsmId,
        device: Device,
    ) -> Result<Vec<(GuestId, AdoptedListener)>, ControlError> {
        *self.nsm_mut(id).ok_or(ControlError::Nsm)? = Nsm::new(id, device);
        let mut listeners = Vec::new();
        for guest in self.guests_of(id) {
            let mut p = self.parts(guest)?;
            p.announce_rows();
            p.renew(id, &mut listeners);
            if p.guest.is_split() {
                p.end_closing();
            } else {
                // This one knows of no lease of before; and what was to be closed there was forgotten with the last one.
                p.drop_owed();
            }
            p.guest.top_up_nsm(p.nsm);
        }
        Ok(listeners)
    }

    /// A guest's present NSM is dead, and the next one is not waited for: what is new goes to another NSM, and what the dead one left is that one's. ServiceLib
    /// there must have been given the guest first; returns the guest's listeners, as [`Engine::nsm_back`] does.
    pub fn flee_nsm(
        &mut self,
        guest: GuestId,
        to: NsmId,
        notify: &mut dyn Notify,
    ) -> Result<Vec<(GuestId, AdoptedListener)>, ControlError> {
        self.nsm_mut(to).ok_or(ControlError::Nsm)?;
        let from = self.control(guest, notify, |p, _| {
            let from = p.nsm.id;
            // With others it shares the guest's chunks to the end.
            if p.guest.is_split() {
                p.guest.old.push(OldNsm { id: from, sockets: 0, is_told: true });
            }
            p.guest.old.retain(|o| o.id != to);
            p.guest.old_calls.retain(|c| c.nsm != to);
            p.guest.nsm = to;
            from
        })?;
        let mut listeners = Vec::new();
        self.control(guest, notify, |p, out| {
            if !p.guest.is_split() {
                // As after a restart: this one knows of no lease of before.
                p.forget_owed(out);
            }
            p.announce_rows();
            p.inherit(from, &mut listeners, out);
        })?;
        Ok(listeners)
    }
}

impl Parts<'_> {
    fn lose_nsm(&mut self, nsm: NsmId, out: &mut Out<'_>) {
        for id in 0..self.guest.sockets.len() as u32 {
            let queued = self.guest.is_queued(id);
            let Some(s) = self.guest.socket(id) else { break };
            if s.nsm != nsm {
                continue;
            }
            if s.listener.is_some() {
                // Its ring goes on empty, also where what waits there is an NSM's that lives.
                self.lose_queued(id, out);
            }
            let Some(s) = self.guest.socket(id) else { break };
            // Another NSM has a part in the guest's chunks: what is leased stays so.
            if self.guest.is_split() {
                match s.state() {
                    State::Closing => {
                        self.owe(id);
                        continue;
                    }
                    State::Open if s.connection && !queued => self.owe(id),
                    _ => {}
                }
            }
            let Some(s) = self.guest.socket(id) else { break };
            match s.state() {
                State::GrantedNsm => {
                    self.guest.nsm_granted = self.guest.nsm_granted.saturating_sub(1);
                    // It may have been accepted into, and a process have sent, before this engine heard of it.
                    self.guest.count_cell(id);
                    self.guest.free_id(id);
                }
                State::Closing => self.forget(id, out),
                State::Open if queued => self.forget(id, out),
                State::Open if s.connection => self.bury(id, out),
                State::Open if s.datagram => {
                    if let Some(cell) = self.guest.cell(id) {
                        drop_unread(cell);
                    }
                }
                _ => {}
            }
        }
        self.end_calls_to(nsm, out);
    }

    /// What the ring of a dead NSM's socket names is to be taken back by another, once nobody holds the socket.
    fn owe(&mut self, id: u32) {
        if let Some(s) = self.guest.socket_mut(id) {
            s.is_owed = true;
        }
    }

    /// What a dead NSM leaves of a guest that was moved from it goes to the guest's present NSM.
    fn inherit(
        &mut self,
        from: NsmId,
        listeners: &mut Vec<(GuestId, AdoptedListener)>,
        out: &mut Out<'_>,
    ) {
        if self.nsm.up {
            self.renew(from, listeners);
        }
        self.guest.old.retain(|o| o.id != from);
        self.guest.await_no_nsm();
        let to = self.nsm.id;
        for s in self.guest.sockets.iter_mut().filter(|s| s.nsm == from) {
            s.nsm = to;
        }
        self.guest.count_share();
        if self.nsm.up || self.guest.is_split() {
            self.end_closing();
        } else {
            self.forget_owed(out);
        }
        self.guest.top_up_nsm(self.nsm);
    }

    /// No service knows of leases of before; returns the sockets that were being closed.
    fn drop_owed(&mut self) -> Vec<u32> {
        let mut closing = Vec::new();
        for id in 0..self.guest.sockets.len() as u32 {
            let Some(s) = self.guest.socket_mut(id) else { break };
            if !core::mem::take(&mut s.is_owed) {
                continue;
            }
            if s.state() == State::Closing {
                closing.push(id);
            }
            if let Some(cell) = self.guest.cell(id) {
                drop_published(cell);
            }
        }
        closing
    }

    /// No service knows of leases of before: what was to be closed for their sake is closed.
    pub(crate) fn forget_owed(&mut self, out: &mut Out<'_>) {
        for id in self.drop_owed() {
            self.forget(id, out);
        }
    }

    /// Sockets that a dead NSM was finishing: the guest's NSM says when their ids may be used again.
    fn end_closing(&mut self) {
        for id in 0..self.guest.sockets.len() as u32 {
            let Some(s) = self.guest.socket(id) else { break };
            if s.state() == State::Closing && s.is_owed && s.nsm == self.nsm.id {
                let mut nqe = self.guest.nqe(Op::Close, id, s.generation);
                nqe.data = OWED;
                self.nsm.push(&nqe);
            }
        }
    }

    /// Tells the guest's NSM of the sockets that outlived the one that had them.
    fn renew(&mut self, had: NsmId, listeners: &mut Vec<(GuestId, AdoptedListener)>) {
        let guest = self.guest.id;
        let is_split = self.guest.is_split();
        for id in 0..self.guest.sockets.len() as u32 {
            let Some(s) = self.guest.socket_mut(id) else { break };
            if s.state() != State::Open || s.nsm != had {
                continue;
            }
            let generation = s.generation;
            if let Some(l) = s.listener.as_mut() {
                l.queued.clear();
                listeners.push((
                    guest,
                    AdoptedListener {
                        socket: id,
                        generation,
                        local: s.local.unwrap_or_default(),
                        backlog: s.backlog,
                    },
                ));
                continue;
            }
            let (local, peer) = (s.local.filter(|a| a.port != 0), s.peer);
            // The next service counts from 0.
            self.guest.count_cell(id);
            let Some(s) = self.guest.socket(id) else { break };
            let mut nqe = self.guest.nqe(Op::Socket, id, generation);
            // By what the engine knows, not by the cell's word: its port is claimed among those of this type.
            let kind = if s.datagram { SOCK_DGRAM } else { SOCK_STREAM };
            nqe.op_data = u64::from(s.family) | u64::from(kind) << 16;
            nqe.data = if is_split { OWED } else { 0 };
            for nqe in renewal(nqe, local, peer).into_iter().flatten() {
                self.nsm.push(&nqe);
            }
        }
    }
}
