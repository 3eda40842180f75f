//! Going on after a death: of an NSM, or of the engine that served a guest before. Where the service outlived that engine, [`crate::kept`]
//! has the rest.

use nk_device::cell::{
    GF_CONNECT_CALLED, SF_CONNECTED, SF_CONNECTING, SF_DEAD, SF_EOF, SF_FAILED, SF_LISTENING,
    SF_RX_STALLED, SOCK_DGRAM,
};
use nk_device::header::ENGINE_UP;
use nk_device::sync::Ordering;
use nk_device::{Addr, Cell, Device, Nqe, Op};

use crate::deliver::ALL;
use crate::engine::{Engine, Parts};
use crate::guest::{Listener, Socket, State};
use crate::kept::Known;
use crate::nsm::Nsm;
use crate::out::Out;
use crate::ports::Space;
use crate::switch::is_datagram;
use crate::{AdoptedListener, Adoption, ControlError, GuestId, GuestSetup, Notify, NsmId};

const ECONNRESET: u64 = 104;
/// Flag in `data` of [`Op::RowLive`]: the row lived before; what stands on its chunk grants is its. In the upper half is how many such
/// rows of this guest follow: none is leased anything new before the service knows what each of them has.
pub const ROW_ADOPTED: u64 = 1;
/// Flag in `data` of [`Op::RowDead`]: no row died, but there are no others than those told of by [`Op::RowLive`]: what is still leased to
/// any other is a dead one's.
pub const ROWS_TOLD: u64 = 1 << 33;
/// Flag in `data` of [`Op::Socket`]: the socket lived before under another service; what its rings carry went with that one.
pub const SOCKET_RENEWED: u64 = 1;
/// Flag in `data` of [`Op::Socket`] and [`Op::Close`]: the NSM that had the socket is gone, and what the socket's ring names is leased
/// still: the guest's present NSM, which shared its chunks, takes it back.
pub const OWED: u64 = 2;

/// Takes back what was received and not read; whether there was any. The next service leases the chunks to somebody else. The engine
/// writes the service's field here: there is no service any more.
fn drop_unread(cell: &Cell) -> bool {
    let at = cell.position().index;
    cell.rx_tail.swap(at, Ordering::SeqCst) != at
}

/// No service knows any more to whom the chunks were leased that the tx ring names. They may be leased to somebody else by now.
fn drop_published(cell: &Cell) {
    cell.tx_head.store(cell.tx_tail.load(Ordering::SeqCst), Ordering::SeqCst);
}

/// Marks a connection as reset. The engine writes the service's fields here: there is no service any more.
/// `is_owed`: a service will take back what its ring names; else that is nobody's any more.
fn reset_cell(cell: &Cell, is_owed: bool) {
    if !is_owed {
        drop_published(cell);
    }
    let seq = (cell.error.load(Ordering::Relaxed) >> 32).wrapping_add(1) & 0xffff_ffff;
    cell.error.store(seq.max(1) << 32 | ECONNRESET, Ordering::SeqCst);
    let state = cell.state.load(Ordering::Relaxed);
    let failed = if state & SF_CONNECTED == 0 { SF_FAILED } else { 0 };
    // An end of the stream that comes after bytes which are lost is no end of it.
    let end = if drop_unread(cell) { SF_EOF } else { 0 };
    let gone = SF_CONNECTING | SF_RX_STALLED | SF_LISTENING | end;
    cell.state.store((state & !gone) | SF_DEAD | failed, Ordering::SeqCst);
    cell.rx_wake.fetch_add(1, Ordering::SeqCst);
    cell.tx_wake.fetch_add(1, Ordering::SeqCst);
}

/// What tells a service of a socket that outlived another: `nqe` makes it. A datagram socket keeps the address that the stack once
/// chose for it, and its peer.
fn renewal(mut nqe: Nqe, local: Option<Addr>, peer: Option<Addr>) -> [Option<Nqe>; 3] {
    nqe.data |= SOCKET_RENEWED;
    let with = |op: Op, a: Addr| {
        let (size, op_data, data) = a.to_words();
        Nqe { op: op as u8, size, op_data, data, ..nqe }
    };
    [Some(nqe), local.map(|a| with(Op::Bind, a)), peer.map(|a| with(Op::Connect, a))]
}

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

/// socket(2)'s type.
const SOCK_STREAM: u16 = 1;

impl Parts<'_> {
    /// Tells a new service of the rows that there are.
    pub(crate) fn announce_rows(&mut self) {
        let rows = self.guest.rows.iter().enumerate().filter(|(_, r)| r.in_use);
        let rows: Vec<u64> = rows.map(|(row, _)| row as u64).collect();
        for (row, follow) in rows.iter().zip((0..rows.len() as u64).rev()) {
            let mut nqe = Nqe::new(Op::RowLive, 0, 0);
            nqe.guest = self.guest.id.0;
            nqe.op_data = *row;
            nqe.data = ROW_ADOPTED | follow << 32;
            self.nsm.push(&nqe);
        }
        if self.guest.is_split() {
            self.row_job(0, ROWS_TOLD);
        }
    }

    /// The stack lost a socket for good.
    pub(crate) fn bury(&mut self, id: u32, out: &mut Out<'_>) {
        // One that lives ends the socket by itself.
        let lives = self.nsm_of(id).up;
        let device = self.guest.device;
        let Some(cell) = device.cell(id) else { return };
        if let Some(a) = self.guest.socket_mut(id).and_then(|s| s.local.take()) {
            self.ports.release(self.guest.space(id), self.guest.id, id, a.port);
        }
        let g = &mut *self.guest;
        g.set_state(id, State::Dead);
        let Some(s) = g.sockets.get_mut(id as usize) else { return };
        if s.listener.take().is_some() {
            g.listeners = g.listeners.saturating_sub(1);
        }
        let (generation, is_owed) = (s.generation, s.is_owed || lives);
        reset_cell(cell, is_owed);
        self.deliver(id, generation, ALL, false, out);
    }

    fn lose_nsm(&mut self, nsm: NsmId, out: &mut Out<'_>) {
        for id in 0..self.guest.sockets.len() as u32 {
            let queued = self.guest.is_queued(id);
            let Some(s) = self.guest.socket(id) else { break };
            if s.nsm != nsm {
                continue;
            }
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
        // Replies that will not come.
        for q in 0..self.guest.qsets.len() as u16 {
            for ticket in self.guest.calls_to(nsm, q) {
                let mut nqe = Nqe::new(Op::Reply, 0, 0);
                nqe.ticket = ticket;
                self.refuse(q, &nqe, ECONNRESET as i32, out);
            }
        }
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
                let mut nqe = Nqe::new(Op::Close, id, s.generation);
                nqe.guest = self.guest.id.0;
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
            let mut nqe = Nqe::new(Op::Socket, id, generation);
            nqe.guest = guest.0;
            // By what the engine knows, not by the cell's word: its port is claimed among those of this type.
            let kind = if s.datagram { SOCK_DGRAM } else { SOCK_STREAM };
            nqe.op_data = u64::from(s.family) | u64::from(kind) << 16;
            nqe.data = if is_split { OWED } else { 0 };
            for nqe in renewal(nqe, local, peer).into_iter().flatten() {
                self.nsm.push(&nqe);
            }
        }
    }

    fn adopt(&mut self, adoption: &Adoption, out: &mut Out<'_>) {
        let device = self.guest.device;
        let header = device.header();
        for r in &adoption.rows {
            self.guest.adopt_row(r.row, r.pid, &r.qsets);
        }
        let mut known = Known::of(adoption.kept.as_ref());
        match &adoption.kept {
            Some(kept) => {
                known.lost = self.connects_on_the_rings(false);
                self.compare_rows(kept);
            }
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
        let kind = u64::from(cell.kind.load(Ordering::Relaxed));
        let mut s = Socket::new(generation);
        s.host_holds = host_holds;
        s.family = kind as u16;
        let mut becomes = State::Open;
        let on_ring = self.granted_to(id);
        let datagram = is_datagram(kind);
        s.datagram = datagram;
        let mut jobs = [None; 3];
        let kept = adoption.listeners.iter().find(|l| l.socket == id && l.generation == generation);
        if cell.is_unheld() {
            if let (Some((row, index)), true) = (on_ring, cell.in_use.load(Ordering::Relaxed) != 0)
            {
                becomes = State::GrantedRow;
                s.row = row;
                s.grant_index = index;
            } else {
                becomes = State::Free;
                self.guest.count_cell(id);
                cell.reset(generation.checked_add(1).unwrap_or(1));
            }
        } else if let Some(l) = kept {
            let space = Space { namespace: self.guest.namespace, datagram: false };
            self.ports.claim(space, self.guest.id, id, &l.local, false);
            s.local = Some(l.local);
            s.family = l.local.family;
            s.backlog = l.backlog;
            s.listener = Some(Box::new(Listener::default()));
        } else {
            let state = cell.state.load(Ordering::Relaxed);
            // Where the service lives it has not heard of it: what was asked is on its way, or lost with who asked.
            let called = match adoption.kept {
                None => cell.guest_state.load(Ordering::Relaxed) & GF_CONNECT_CALLED != 0,
                Some(_) => known.lost.contains(&(id, generation)),
            };
            let lost =
                called || state & (SF_CONNECTED | SF_CONNECTING | SF_LISTENING | SF_DEAD) != 0;
            if lost && (!datagram || state & SF_DEAD != 0) {
                becomes = State::Dead;
                // A service that lives on knows the leases that the ring names.
                s.is_owed = adoption.kept.is_some();
                reset_cell(cell, s.is_owed);
            } else {
                let mut nqe = Nqe::new(Op::Socket, id, generation);
                nqe.guest = self.guest.id.0;
                nqe.op_data = kind;
                let (local, peer) = (cell.local.load(), cell.peer.load());
                // Else it was an NSM's that died, and the next one, which lives, was not yet told of it.
                let is_new = local.port == 0 && state & SF_CONNECTED == 0;
                if adoption.kept.is_some() && is_new {
                    self.guest.insert_adopted(id, s, becomes);
                    self.nsm.push(&nqe);
                    return;
                }
                drop_unread(cell);
                self.guest.count_cell(id);
                cell.state.store(0, Ordering::SeqCst);
                let rebinds = local.port != 0
                    && local.family == s.family
                    && self.may_rebind(id, datagram, &local);
                s.local = rebinds.then_some(local);
                // Where a datagram socket sends to is any guest's to say.
                let connected = datagram && state & SF_CONNECTED != 0 && peer.family == s.family;
                s.peer = connected.then_some(peer);
                jobs = renewal(nqe, s.local, s.peer);
            }
        }
        self.guest.insert_adopted(id, s, becomes);
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
