//! Going on after the death of the engine that served a guest before: its tables are made again of the device. Where the service outlived
//! that engine, [`crate::kept`] has the rest.

use std::collections::HashSet;

use nk_device::cell::{
    CLAIMED_BY_HOST, GF_CONNECT_CALLED, SF_CONNECTED, SF_CONNECTING, SF_DEAD, SF_LISTENING,
};
use nk_device::header::ENGINE_UP;
use nk_device::nqe::OWED;
use nk_device::sync::Ordering;
use nk_device::{Cell, Op};

use crate::deliver::ALL;
use crate::engine::{Engine, Parts};
use crate::guest::{Listener, Socket, State};
use crate::kept::Known;
use crate::out::Out;
use crate::outlived::{drop_unread, renewal, reset_cell};
use crate::ports::Space;
use crate::switch::is_datagram;
use crate::{Adoption, ControlError, GuestId, GuestSetup, Notify};

#[allow(clippy::missing_errors_doc, reason = "ControlError's variants say it")]
impl Engine {
    /// The keeper had no descriptor for a listener: it is dead, accept fails.
    pub fn listener_lost(
        &mut self,
        guest: GuestId,
        socket: u32,
        generation: u16,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        self.control(guest, notify, |p, out| {
            let ours = |s: &Socket| s.generation == generation && s.state() == State::Open;
            if !p.guest.socket(socket).is_some_and(ours) {
                return Err(ControlError::Socket);
            }
            p.bury(socket, out);
            Ok(())
        })?
    }

    /// Whether a socket listens, as far as the engine knows. A kept listener whose socket was closed just before the engine died does not:
    /// its descriptor is to be given to no service.
    #[must_use]
    pub fn is_listener(&self, guest: GuestId, socket: u32, generation: u16) -> bool {
        self.guest(guest).and_then(|g| g.socket(socket)).is_some_and(|s| {
            s.generation == generation && s.state() == State::Open && s.listener.is_some()
        })
    }

    /// Whether a socket is in use on a stack.
    #[must_use]
    pub fn is_open(&self, guest: GuestId, socket: u32, generation: u16) -> bool {
        self.guest(guest).and_then(|g| g.socket(socket)).is_some_and(|s| {
            s.generation == generation && matches!(s.state(), State::Open | State::Closing)
        })
    }

    /// Adds a guest that another engine served until it died. Everything is rebuilt from the device, and `header.epoch` is bumped. Where
    /// the service is a new one connections become dead with ECONNRESET, and kept listeners live on (give each to ServiceLib with
    /// `adopt_listener`); where it lives on ([`Adoption::kept`]) all goes on. Sockets that nobody holds are closed.
    pub fn adopt_guest(
        &mut self,
        setup: GuestSetup,
        adoption: &Adoption,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        let id = setup.id;
        self.insert_guest(&setup)?;
        self.control(id, notify, |p, out| p.adopt(adoption, out))
    }
}

impl Parts<'_> {
    fn adopt(&mut self, adoption: &Adoption, out: &mut Out<'_>) {
        let device = self.guest.device;
        let header = device.header();
        for r in &adoption.rows {
            self.guest.adopt_row(r.row, r.pid, &r.qsets);
        }
        let mut known = Known::of(adoption.kept.as_ref());
        match &adoption.kept {
            Some(_) => known.lost = self.connects_on_the_rings(false),
            None => {
                for q in 0..self.guest.qsets.len() as u16 {
                    self.guest.drop_stale(q);
                }
                self.announce_rows();
            }
        }
        // Ids are handed out in order, and a cell that was ever handed out has a generation: the first without ends the walk.
        for id in 0..device.layout().cells {
            let Some(cell) = device.cell(id) else { break };
            let generation = cell.generation.load(Ordering::Acquire) as u16;
            if generation == 0 && !known.goes_on_at(id) {
                break;
            }
            self.adopt_cell(id, generation, cell, adoption, &known);
        }
        if let Some(kept) = &adoption.kept {
            // Once the cells tell which connections are lost, and it is known how far there are sockets: what their rings name of a dead
            // row's is looked for there.
            self.compare_rows(kept);
            self.go_on(kept, &known, out);
        }
        header.epoch.fetch_add(1, Ordering::SeqCst);
        header.engine_state.store(ENGINE_UP, Ordering::SeqCst);
        for id in 0..self.guest.sockets.len() as u32 {
            let Some(s) = self.guest.socket(id) else { break };
            let is_news = match s.state() {
                State::Dead => true,
                State::Open => adoption.kept.is_some(),
                _ => false,
            };
            if is_news {
                let generation = s.generation;
                self.deliver(id, generation, ALL, false, out);
            }
        }
        for row in 0..self.guest.rows.len() as u16 {
            self.guest.top_up_row(row);
            if self.guest.is_live(row) {
                self.grants_changed(row, 0, out);
            }
        }
        self.guest.top_up_nsm(self.nsm);
        // Sleepers in synchronous calls ask again, senders without chunks look again.
        for q in 0..self.guest.qsets.len() as u16 {
            if let (true, Some(shared)) =
                (self.guest.qsets.get(usize::from(q)).is_some_and(|s| s.in_use), device.qset(q))
            {
                shared.completion_wake.fetch_add(1, Ordering::SeqCst);
                out.notify.futex_wake(&shared.completion_wake, u32::MAX);
                self.guest.ring(q, out);
            }
        }
    }

    fn adopt_cell(
        &mut self,
        id: u32,
        generation: u16,
        cell: &Cell,
        adoption: &Adoption,
        known: &Known<'_>,
    ) {
        let live = self.guest.live;
        for (w, live) in cell.holders.iter().zip(live) {
            w.fetch_and(live, Ordering::SeqCst);
        }
        let host_holds = adoption.holds.iter().filter(|h| **h == (id, generation)).count() as u32;
        if host_holds == 0 && !self.guest.vm {
            cell.release(0);
        }
        self.drop_watches_of_the_dead(cell);
        if self.adopt_known(id, generation, host_holds, known) {
            return;
        }
        // Once: the guest can write there.
        let kind = u64::from(cell.kind.load(Ordering::Relaxed));
        let mut s = Socket::new(generation);
        s.host_holds = host_holds;
        s.family = kind as u16;
        s.datagram = is_datagram(kind);
        let kept = adoption.listeners.iter().find(|l| l.socket == id && l.generation == generation);
        let service_lives = adoption.kept.is_some();
        if cell.is_unheld() {
            self.adopt_unheld(id, cell, s, service_lives);
        } else if let Some(l) = kept {
            let space = Space { namespace: self.guest.namespace, datagram: false };
            self.ports.claim(space, self.guest.id, id, &l.local, false);
            s.local = Some(l.local);
            s.family = l.local.family;
            s.backlog = l.backlog;
            s.listener = Some(Box::new(Listener::default()));
            self.guest.insert_adopted(id, s, State::Open);
        } else {
            self.adopt_held(id, cell, kind, s, service_lives.then_some(&known.lost));
        }
    }

    fn adopt_unheld(&mut self, id: u32, cell: &Cell, mut s: Socket, service_lives: bool) {
        let generation = s.generation;
        let is_in_use = cell.in_use.load(Ordering::Relaxed) != 0;
        let is_dead = cell.state.load(Ordering::Relaxed) & SF_DEAD != 0;
        if let Some((row, index)) = self.granted_to(id).filter(|_| is_in_use) {
            s.row = row;
            s.grant_index = index;
            self.guest.insert_adopted(id, s, State::GrantedRow);
        } else if service_lives && is_in_use && (!s.datagram || is_dead) {
            // Lost with an NSM before, or one of an NSM that forgot the guest with the daemon's death: the service that lives on
            // knows the leases that its ring names, and takes them back. Until then nobody accepts it.
            cell.claim(generation, CLAIMED_BY_HOST);
            s.is_owed = true;
            self.guest.insert_adopted(id, s, State::Closing);
            let mut nqe = self.guest.nqe(Op::Close, id, generation);
            nqe.data = OWED;
            self.nsm.push(&nqe);
        } else {
            self.guest.count_cell(id);
            cell.reset(generation.checked_add(1).unwrap_or(1));
            self.guest.insert_adopted(id, s, State::Free);
        }
    }

    /// `lost`: where the service lives, sockets whose connect nobody will read any more.
    fn adopt_held(
        &mut self,
        id: u32,
        cell: &Cell,
        kind: u64,
        mut s: Socket,
        lost: Option<&HashSet<(u32, u16)>>,
    ) {
        let state = cell.state.load(Ordering::Relaxed);
        // Where the service lives it has not heard of it: what was asked is on its way, or lost with who asked.
        let called = match lost {
            None => cell.guest_state.load(Ordering::Relaxed) & GF_CONNECT_CALLED != 0,
            Some(lost) => lost.contains(&(id, s.generation)),
        };
        let is_lost =
            called || state & (SF_CONNECTED | SF_CONNECTING | SF_LISTENING | SF_DEAD) != 0;
        if is_lost && (!s.datagram || state & SF_DEAD != 0) {
            // A service that lives on knows the leases that the ring names.
            s.is_owed = lost.is_some();
            reset_cell(cell, s.is_owed);
            return self.guest.insert_adopted(id, s, State::Dead);
        }
        let mut nqe = self.guest.nqe(Op::Socket, id, s.generation);
        nqe.op_data = kind;
        let (local, peer) = (cell.local.load(), cell.peer.load());
        // Else it was an NSM's that died, and the next one, which lives, was not yet told of it.
        let is_new = local.port == 0 && state & SF_CONNECTED == 0;
        if lost.is_some() && is_new {
            self.guest.insert_adopted(id, s, State::Open);
            return self.nsm.push(&nqe);
        }
        drop_unread(cell);
        self.guest.count_cell(id);
        cell.state.store(0, Ordering::SeqCst);
        let rebinds =
            local.port != 0 && local.family == s.family && self.may_rebind(id, s.datagram, &local);
        s.local = rebinds.then_some(local);
        // Where a datagram socket sends to is any guest's to say.
        let is_connected = s.datagram && state & SF_CONNECTED != 0 && peer.family == s.family;
        s.peer = is_connected.then_some(peer);
        let jobs = renewal(nqe, s.local, s.peer);
        self.guest.insert_adopted(id, s, State::Open);
        for nqe in jobs.into_iter().flatten() {
            self.nsm.push(&nqe);
        }
    }

    /// The cell's word for what it was bound to is the guest's own: it may ask for no more than by a bind.
    fn may_rebind(&mut self, id: u32, datagram: bool, local: &nk_device::Addr) -> bool {
        let space = Space { namespace: self.guest.namespace, datagram };
        local.port >= self.guest.limits.port_min
            && self.ports.claim(space, self.guest.id, id, local, false)
    }

    /// The row on whose grant ring an id stands, and where.
    fn granted_to(&self, id: u32) -> Option<(u16, u32)> {
        for (row, r) in self.guest.rows.iter().enumerate().filter(|(_, r)| r.in_use) {
            let ring = &self.guest.device.row(row as u16)?.id_grants;
            for back in 1..=ring.available() {
                let index = r.grant_tail.wrapping_sub(back);
                let slot = ring.slots.get(index as usize % ring.slots.len())?;
                if slot.load(Ordering::Relaxed) == id {
                    return Some((row as u16, index));
                }
            }
        }
        None
    }
}
