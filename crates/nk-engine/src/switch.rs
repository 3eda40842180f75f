//! From guests to the NSM: every element is checked against the engine's private tables before it goes on.

use nk_device::cell::SOCK_DGRAM;
use nk_device::errno::{EACCES, EADDRINUSE, EBADF, ECONNRESET, EINVAL, ENETDOWN};
use nk_device::nqe::{FLAG_AGAIN, Nqe, unpack_option};
use nk_device::sync::{Ordering, fence};
use nk_device::{Addr, Op};

use crate::engine::Parts;
use crate::guest::{Socket, State};
use crate::limits::follows_connect;
use crate::out::Out;

const SOL_IPV6: u8 = 41;
const IPV6_V6ONLY: u16 = 26;

/// Whether a kind (family | type << 16 | protocol << 32) is one of datagrams.
pub(crate) fn is_datagram(kind: u64) -> bool {
    (kind >> 16) as u8 == SOCK_DGRAM as u8
}

impl Parts<'_> {
    pub(crate) fn take_from_guest(
        &mut self,
        q: u16,
        mut nqe: Nqe,
        is_send: bool,
        out: &mut Out<'_>,
    ) {
        self.guest.counters.engine.from_guest.add(nqe.op, 1);
        nqe.guest = self.guest.id.0;
        nqe.qset = q;
        nqe.flags = if nqe.ticket == 0 { 0 } else { nqe.flags & FLAG_AGAIN };
        let Some(row) = self.guest.qsets.get(usize::from(q)).map(|s| s.row) else { return };
        let op = match Op::from_u8(nqe.op) {
            Some(Op::Send) if is_send => Op::Send,
            Some(op) if !is_send && op.is_guest_job() => op,
            _ => return self.guest.violation(q),
        };
        if op == Op::Refill {
            return self.refill(row, nqe, out);
        }
        let is_unheard =
            |s: &Socket| s.state() == State::GrantedNsm && s.generation == nqe.generation;
        if self.guest.socket(nqe.socket).is_some_and(is_unheard) {
            self.hear_nsm(out);
        }
        if !self.has_socket(q, row, op, &nqe, out) {
            return;
        }
        match op {
            Op::Socket => {
                // Made above, or already by somebody who was faster.
                self.guest.top_up_row(row);
                return;
            }
            Op::Close => return self.close_if_unheld(nqe.socket, out),
            _ => {}
        }
        if !self.nsm_of(nqe.socket).up {
            self.end_unasked_connect(&nqe, out);
            return self.refuse(q, &nqe, ENETDOWN, out);
        }
        if follows_connect(op) && self.waits_behind(q, &nqe, out) {
            return;
        }
        if matches!(op, Op::Send | Op::RxRoom) {
            nqe.op_data = u64::from(row);
        }
        if self.may_go_on(q, op, &nqe, out) {
            self.pass_on(q, &nqe);
        }
    }

    /// Whether the element's socket is open, or was made of an id that was granted; else the element is answered or dropped.
    fn has_socket(&mut self, q: u16, row: u16, op: Op, nqe: &Nqe, out: &mut Out<'_>) -> bool {
        let Some(s) = self.guest.socket(nqe.socket) else {
            self.guest.violation(q);
            return false;
        };
        if s.generation != nqe.generation {
            self.guest.counters.engine.stale.add(1);
            self.refuse(q, nqe, EBADF, out);
            return false;
        }
        match s.state() {
            State::Open => return true,
            State::GrantedRow => return self.uses_granted(q, row, op, nqe, out),
            // The NSM has not used it: nobody can have got it from there.
            State::GrantedNsm => {
                self.guest.violation(q);
                self.refuse(q, nqe, EBADF, out);
            }
            State::Dead if op == Op::Close => self.close_if_unheld(nqe.socket, out),
            State::Dead => self.refuse(q, nqe, ECONNRESET, out),
            // Pushed before the close, on the ring that is read after it: the stack sends what was queued anyway.
            State::Closing if matches!(op, Op::Send | Op::RxRoom) => {}
            State::Closing | State::Free => {
                self.guest.counters.engine.stale.add(1);
                self.refuse(q, nqe, EBADF, out);
            }
        }
        false
    }

    /// An element names an id that was granted to a row: a socket is made of it, if it may be.
    fn uses_granted(&mut self, q: u16, row: u16, op: Op, nqe: &Nqe, out: &mut Out<'_>) -> bool {
        // Another process may use a socket before the element that made it is seen; the cell tells what it is.
        let is_own = self.guest.socket(nqe.socket).is_some_and(|s| s.row == row);
        if op == Op::Socket && !is_own {
            self.guest.violation(q);
            return false;
        }
        // Who makes one holds it first. By now its last holder may have been another process, or the host, neither of which pushes
        // a close here: of a socket that was made after that, nobody would ever ask the end.
        if self.guest.cell(nqe.socket).is_some_and(nk_device::Cell::is_unheld) {
            self.drop_granted(nqe.socket);
            self.guest.top_up_row(row);
            self.refuse(q, nqe, EBADF, out);
            return false;
        }
        if op == Op::Close {
            return false;
        }
        let kind = self.guest.cell(nqe.socket).map_or(0, |c| c.kind.load(Ordering::Relaxed));
        let kind = if op == Op::Socket { nqe.op_data } else { u64::from(kind) };
        self.make_socket(nqe.socket, kind);
        true
    }

    /// Notes what the engine keeps of an operation. `false`: it waits here, or was refused.
    fn may_go_on(&mut self, q: u16, op: Op, nqe: &Nqe, out: &mut Out<'_>) -> bool {
        let refused = match op {
            Op::Bind => self.claim(nqe).err(),
            Op::Connect => return self.connects(q, nqe, out),
            Op::Listen => self.listens(nqe).err(),
            Op::Disconnect => {
                if let Some(s) = self.guest.socket_mut(nqe.socket) {
                    s.peer = None;
                }
                None
            }
            Op::SetSockOpt => {
                self.note_v6only(nqe);
                None
            }
            _ => None,
        };
        if let Some(errno) = refused {
            self.refuse(q, nqe, errno, out);
        }
        refused.is_none()
    }

    /// Whether a connect goes on now.
    fn connects(&mut self, q: u16, nqe: &Nqe, out: &mut Out<'_>) -> bool {
        let g = &mut *self.guest;
        let Some(s) = g.sockets.get_mut(nqe.socket as usize) else { return false };
        let to = Addr::from_words(s.family, nqe.size, nqe.op_data, nqe.data);
        if s.datagram {
            s.peer = Some(to);
            return true;
        }
        if !s.connection && s.listener.is_none() {
            s.connection = true;
            g.connections_open += 1;
            g.count_connection(nqe.socket);
            g.share_connection(nqe.socket);
        }
        self.tell_full(out);
        self.close_unheld_listeners(to.port, out);
        self.may_connect(q, nqe, out)
    }

    /// Checks a listen.
    fn listens(&mut self, nqe: &Nqe) -> Result<(), i32> {
        let s = self.guest.socket(nqe.socket).ok_or(EBADF)?;
        // Without an address it would be all of them, at a port that the stack chooses.
        let local = s.local.unwrap_or(Addr { family: s.family, ..Addr::default() });
        let v6only = s.v6only;
        if !self.guest.may_listen(&local, v6only) {
            return Err(EACCES);
        }
        if let Some(s) = self.guest.socket_mut(nqe.socket) {
            s.backlog = nqe.op_data as u32;
        }
        Ok(())
    }

    /// An option that makes a socket one for IPv6 alone.
    fn note_v6only(&mut self, nqe: &Nqe) {
        let (level, name, length) = unpack_option(nqe.size);
        if (level, name) == (SOL_IPV6, IPV6_V6ONLY)
            && let Some(s) = self.guest.socket_mut(nqe.socket)
            && s.local.is_none()
        {
            // The stack takes it only before a bind and from four bytes on; longer values are not in the element. In
            // doubt the socket counts as one for both families.
            s.v6only = (4..=16).contains(&length) && nqe.op_data as u32 != 0;
        }
    }

    /// A process ended while there is no NSM, and what stands on its rings is read for the last time. Whoever inherited the socket would
    /// wait for this connect for ever: it ends as one that the dead NSM had begun. One that a rate holds back goes on by itself.
    fn end_unasked_connect(&mut self, nqe: &Nqe, out: &mut Out<'_>) {
        let is_waited_for = |s: &Socket| !s.datagram && s.listener.is_none() && s.held.is_none();
        if nqe.op == Op::Connect as u8
            && nqe.ticket == 0
            && self.guest.socket(nqe.socket).is_some_and(is_waited_for)
        {
            self.bury(nqe.socket, out);
        }
    }

    /// Gives the NSM an element that was found to be right.
    pub(crate) fn pass_on(&mut self, q: u16, nqe: &Nqe) {
        let is_kept_option = self.guest.is_kept_option(nqe);
        let nsm = self.nsm_of(nqe.socket);
        nsm.push(nqe);
        if is_kept_option {
            nsm.last_is_costly();
        }
        let (nsm, waits_for_room) = (nsm.id, nsm.is_congested());
        if nqe.op == Op::Connect as u8 {
            self.guest.note_held(nqe, waits_for_room);
        }
        if nqe.ticket != 0 {
            self.guest.note_call(q, nqe.ticket, nsm);
        }
    }

    /// Answers a synchronous call with an error.
    pub(crate) fn refuse(&mut self, q: u16, nqe: &Nqe, errno: i32, out: &mut Out<'_>) {
        if nqe.ticket != 0 {
            let mut r = self.guest.nqe(Op::Reply, nqe.socket, nqe.generation);
            r.ticket = nqe.ticket;
            r.set_error(errno);
            self.guest.reply(q, &r, out);
        }
    }

    /// A granted id becomes a socket of the kind that the guest says: family | type << 16 | protocol << 32.
    pub(crate) fn make_socket(&mut self, id: u32, kind: u64) {
        let nsm = self.guest.nsm;
        if let Some(s) = self.guest.socket_mut(id) {
            s.nsm = nsm;
        }
        self.guest.open_id(id, false);
        let Some(s) = self.guest.socket_mut(id) else { return };
        s.family = kind as u16;
        s.datagram = is_datagram(kind);
        let generation = s.generation;
        let mut nqe = self.guest.nqe(Op::Socket, id, generation);
        nqe.op_data = kind;
        self.nsm.push(&nqe);
    }

    /// A granted id comes back unused.
    pub(crate) fn drop_granted(&mut self, id: u32) {
        let Some(row) = self.guest.socket(id).map(|s| s.row) else { return };
        if let Some(r) = self.guest.rows.get_mut(usize::from(row)) {
            r.granted = r.granted.saturating_sub(1);
        }
        self.guest.free_id(id);
    }

    /// Checks a bind and claims its port.
    fn claim(&mut self, nqe: &Nqe) -> Result<(), i32> {
        let g = &mut *self.guest;
        let space = g.space(nqe.socket);
        let s = g.sockets.get_mut(nqe.socket as usize).ok_or(EBADF)?;
        let addr = Addr::from_words(s.family, nqe.size, nqe.op_data, nqe.data);
        if addr.port != 0 && addr.port < g.limits.port_min {
            return Err(EACCES);
        }
        let v6only = s.v6only;
        if addr.port != 0 && !g.may_listen(&addr, v6only) {
            return Err(EACCES);
        }
        let s = g.sockets.get_mut(nqe.socket as usize).ok_or(EBADF)?;
        if let Some(bound) = s.local {
            // Asked again: the stack knows whether it was done.
            if nqe.flags & FLAG_AGAIN != 0 && (addr.port == 0 || addr.port == bound.port) {
                return Ok(());
            }
            // Bound already, or another thread's bind is under way.
            if bound.port != 0 {
                return Err(EINVAL);
            }
        }
        if !self.ports.claim(space, g.id, nqe.socket, &addr, s.v6only) {
            g.counters.engine.ports_refused.add(1);
            return Err(EADDRINUSE);
        }
        if addr.port != 0 {
            s.local = Some(addr);
        }
        Ok(())
    }

    /// The guest ran out of grants.
    fn refill(&mut self, row: u16, mut nqe: Nqe, out: &mut Out<'_>) {
        let device = self.guest.device;
        let Some(shared) = device.row(row) else { return };
        let wanted_ids = shared.id_grants.available() == 0;
        let added = self.guest.top_up_row(row);
        if wanted_ids {
            // Also when none was left: whoever waits must learn that it gets none.
            self.grants_changed(row, u64::from(added), out);
        }
        (nqe.op_data, nqe.data) = (u64::from(row), 0);
        nqe.socket = 0;
        nqe.generation = 0;
        self.nsm.push(&nqe);
    }

    /// Tells a row that its grants changed.
    pub(crate) fn grants_changed(&mut self, row: u16, added: u64, out: &mut Out<'_>) {
        let device = self.guest.device;
        let Some(shared) = device.row(row) else { return };
        let Some(q) = self.guest.rows.get(usize::from(row)).filter(|r| r.in_use).map(|r| r.qset)
        else {
            return;
        };
        shared.grant_wake.fetch_add(1, Ordering::SeqCst);
        out.notify.futex_wake(&shared.grant_wake, u32::MAX);
        let mut nqe = self.guest.nqe(Op::Granted, 0, 0);
        nqe.op_data = added;
        self.guest.push_event(q, &nqe);
        fence(Ordering::SeqCst);
        if self.guest.wants_bell(q, out) {
            self.guest.ring(q, out);
        }
    }
}
