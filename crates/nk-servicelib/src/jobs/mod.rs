//! Control operations: `connects`, `ends` and `options` have one kind each.

mod connects;
mod ends;
mod options;

use nk_device::cell::{SF_CONNECTED, SF_DEAD, SF_EOF, SF_RX_STALLED};
use nk_device::nqe::{
    FLAG_ERROR, OWED, REFILL_LOW, ROW_ADOPTED, ROW_EXECED, ROWS_TOLD, SOCKET_RENEWED,
};
use nk_device::{Addr, Cell, Nqe, Op};

use crate::service::{ALL, Ctx, HUP, RDHUP, Taken};
use crate::socket::Socket;
use crate::{Errno, Key, Kind, Stack};

const TCP: u32 = libc::IPPROTO_TCP as u32;
const UDP: u32 = libc::IPPROTO_UDP as u32;

pub(crate) fn key_of(nqe: &Nqe) -> Key {
    Key { guest: nqe.guest, socket: nqe.socket, generation: nqe.generation }
}

impl Key {
    /// An element about the socket.
    pub(crate) fn nqe(self, op: Op) -> Nqe {
        Nqe { guest: self.guest, ..Nqe::new(op, self.socket, self.generation) }
    }
}

impl<S: Stack> Ctx<'_, S> {
    pub(crate) fn job(&mut self, nqe: &Nqe) {
        let row = nqe.op_data as u16;
        match Op::from_u8(nqe.op) {
            Some(Op::Socket) => self.open(nqe),
            Some(Op::RowLive) => {
                let follow = (nqe.data & ROW_ADOPTED != 0).then_some((nqe.data >> 32) as u32);
                self.guest.row_live(row, follow, self.port);
            }
            Some(Op::RowDead) => {
                if nqe.data & ROWS_TOLD != 0 {
                    return self.guest.rows_told(nqe.size);
                }
                let below = (nqe.data & ROW_EXECED != 0).then_some(nqe.data as u32);
                self.guest.row_dead(row, below, nqe.size);
            }
            Some(Op::Refill) => self.guest.top_up(row, nqe.data & REFILL_LOW == 0, self.port),
            Some(Op::GrantId) => {
                self.guest.ids.push_back((nqe.socket, nqe.generation));
                for key in core::mem::take(&mut self.guest.id_starved) {
                    self.with(key, |c, key, _, mut s| {
                        c.enqueue(key, &mut s);
                        Some(s)
                    });
                }
            }
            Some(op) => {
                let found = self.with(key_of(nqe), |c, key, cell, s| match op {
                    Op::Bind => Some(c.bind(nqe, key, cell, s)),
                    Op::Listen => Some(c.listen(nqe, key, cell, s)),
                    Op::Connect => Some(c.connect(nqe, key, cell, s)),
                    Op::Disconnect => Some(c.disconnect(nqe, key, cell, s)),
                    Op::Shutdown => Some(c.shut(nqe, key, cell, s)),
                    Op::SetSockOpt => Some(c.set_option(nqe, s)),
                    Op::GetSockOpt => Some(c.get_option(nqe, s)),
                    Op::Drain => Some(c.begin_drain(nqe, key, cell, s)),
                    Op::Report => Some(c.report(nqe, key, cell, s)),
                    Op::RxRoom => Some(c.room(key, cell, s)),
                    Op::Close => c.begin_close(key, cell, s, nqe.op_data & 1 != 0),
                    _ => Some(s),
                });
                if !found {
                    self.reply(nqe, Err(Errno(libc::EBADF)));
                    if op == Op::Close {
                        let device = self.guest.device;
                        if let Some(cell) = device.cell(nqe.socket)
                            && nqe.data & OWED != 0
                        {
                            self.free_published(key_of(nqe), cell);
                        }
                        self.tell_closed(key_of(nqe), 0, 0);
                    }
                }
            }
            None => {}
        }
    }

    /// Answers a synchronous call.
    pub(crate) fn reply(&mut self, nqe: &Nqe, r: Result<u64, Errno>) {
        if nqe.ticket != 0 {
            self.reply_to(nqe.qset, nqe.ticket, key_of(nqe), r);
        }
    }

    fn reply_to(&mut self, qset: u16, ticket: u8, key: Key, r: Result<u64, Errno>) {
        let mut out = key.nqe(Op::Reply);
        out.qset = qset;
        out.ticket = ticket;
        match r {
            Ok(v) => out.op_data = v,
            Err(e) => out.set_error(e.0),
        }
        self.port.push(&out);
    }

    fn open(&mut self, nqe: &Nqe) {
        let key = key_of(nqe);
        let family = nqe.op_data as u16;
        let (kind, protocol) = ((nqe.op_data >> 16) as u16, (nqe.op_data >> 32) as u32);
        let mut s: Taken<S> = Box::new(Socket::new(key.generation, family));
        let kind = match i32::from(kind & 0xff) {
            _ if !matches!(i32::from(family), libc::AF_INET | libc::AF_INET6) => {
                Err(Errno(libc::EAFNOSUPPORT))
            }
            libc::SOCK_STREAM if matches!(protocol, 0 | TCP) => Ok(Kind::Stream),
            libc::SOCK_DGRAM if matches!(protocol, 0 | UDP) => Ok(Kind::Datagram),
            libc::SOCK_STREAM | libc::SOCK_DGRAM => Err(Errno(libc::EPROTONOSUPPORT)),
            _ => Err(Errno(libc::ESOCKTNOSUPPORT)),
        };
        match kind.and_then(|kind| self.stack.open(self.guest.namespace, family, kind)) {
            Ok(h) => s.handle = Some(h),
            Err(e) => s.open_error = e.0,
        }
        let device = self.guest.device;
        if kind == Ok(Kind::Datagram)
            && let Some(cell) = device.cell(key.socket)
        {
            if nqe.data & OWED != 0 {
                self.free_published(key_of(nqe), cell);
            }
            let renewed = nqe.data & SOCKET_RENEWED != 0;
            self.begin_datagrams(key, cell, &mut s, renewed);
            for option in self.guest.kept_options.remove(&key.to_word()).into_iter().flatten() {
                // One that cannot be had any more, as a group on an interface that is gone, would have ended with that as well.
                let _ = self.apply_option(&mut s, &option);
            }
        }
        self.guest.put(key.socket, s);
    }

    /// Calls the stack for a socket that has a handle; else the error with which opening it failed.
    pub(crate) fn on<R>(
        &mut self,
        s: &Socket<S::Socket>,
        f: impl FnOnce(&mut S, &S::Socket) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        match &s.handle {
            Some(h) => f(self.stack, h),
            None => Err(Errno(if s.open_error == 0 { libc::EBADF } else { s.open_error })),
        }
    }

    /// Tells the engine which address a socket has (after an error: was asked for).
    pub(crate) fn tell_bound(&mut self, op: Op, key: Key, addr: &Addr, failed: bool) {
        let mut nqe = key.nqe(op);
        nqe.flags = u8::from(failed) * FLAG_ERROR;
        (nqe.size, nqe.op_data, nqe.data) = addr.to_words();
        self.port.push(&nqe);
    }

    /// The guest read something, or popped accepted sockets, after it was told that we wait for that.
    fn room(&mut self, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
        if s.is_stalled() {
            s.change(cell, 0, SF_RX_STALLED);
            s.readable = true;
            self.enqueue(key, &mut s);
        }
        if !s.is_listening() {
            self.guest.free_read(key.socket, &mut s);
            if !s.can_receive() {
                self.ask_while_short(key, cell, &mut s);
            }
        }
        s
    }

    /// The stack says that something became possible.
    pub(crate) fn event(
        &mut self,
        key: Key,
        cell: &Cell,
        mut s: Taken<S>,
        e: &crate::StackEvent,
    ) -> Option<Taken<S>> {
        if s.datagram.is_some() {
            self.datagram_event(key, cell, &mut s, e);
            return Some(s);
        }
        if s.is_connecting() {
            if e.writable || e.hangup || e.error {
                return Some(self.finish_connect(key, cell, s));
            }
            return Some(s);
        }
        s.readable |= e.readable;
        s.writable |= e.writable;
        s.hangup |= e.hangup || e.error;
        let stuck = s.is_stalled() || !s.can_receive();
        if e.error && s.has(SF_CONNECTED) && stuck && !s.has(SF_DEAD) {
            // Nothing will be read now that could bring the error up.
            let errno = s.handle.as_ref().map_or(0, |h| self.stack.take_error(h));
            if errno != 0 {
                s.post_error(cell, errno);
                s.tx_broken = true;
                if s.has(SF_EOF) {
                    s.change(cell, SF_DEAD, 0);
                }
                self.tell(key, cell, ALL);
            }
        }
        if e.hangup && s.has(SF_EOF) && s.shut_wr && !s.has(SF_DEAD) {
            s.change(cell, SF_DEAD, 0);
            self.tell(key, cell, HUP | RDHUP);
        }
        self.enqueue(key, &mut s);
        Some(s)
    }
}
