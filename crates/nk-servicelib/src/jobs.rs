//! Control operations.

use nk_device::cell::{
    SF_BOUND, SF_CONNECTED, SF_CONNECTING, SF_DEAD, SF_EOF, SF_FAILED, SF_LISTENING, SF_RX_STALLED,
};
use nk_device::nqe::{FLAG_AGAIN, FLAG_ERROR, unpack_option};
use nk_device::qset::REPLY_BYTES;
use nk_device::sync::Ordering;
use nk_device::{Addr, Cell, Nqe, Op};
use nk_guestlib::options::{Policy, lookup};

use crate::listener::behind;
use crate::service::{ALL, Ctx, Due, HUP, IN, OUT, RDHUP, Taken};
use crate::socket::{Drain, Socket};
use crate::{Connect, Errno, How, Key, Kind, SetOption, Stack};

/// Flag in `data` of [`Op::RowDead`] (`nk_engine::ROW_EXECED`).
const ROW_EXECED: u64 = 1 << 32;
/// Flag in `data` of [`Op::RowDead`] (`nk_engine::ROWS_TOLD`).
const ROWS_TOLD: u64 = 1 << 33;
/// Flag in `data` of [`Op::Refill`] (`nk_engine::LOW`).
const LOW: u64 = 1;
/// Flag in `data` of [`Op::RowLive`] (`nk_engine::ROW_ADOPTED`).
const ROW_ADOPTED: u64 = 1;
/// Flag in `data` of [`Op::Socket`] (`nk_engine::SOCKET_RENEWED`).
const SOCKET_RENEWED: u64 = 1;
/// Flag in `data` of [`Op::Socket`] and [`Op::Close`] (`nk_engine::OWED`).
const OWED: u64 = 2;
const TCP: u32 = libc::IPPROTO_TCP as u32;
const UDP: u32 = libc::IPPROTO_UDP as u32;
/// Bytes of an option's value that the element carries itself; a longer one is in a chunk.
const INLINE_MAX: usize = 16;
/// How often a drain looks again.
const DRAIN_STEP_MS: u64 = 2;
/// When a closed socket that its guest's rate holds back is looked at again.
const AGAIN_MS: u64 = 1_000;

fn negative(errno: i32) -> u64 {
    i64::from(-errno) as u64
}

fn key_of(nqe: &Nqe) -> Key {
    Key { guest: nqe.guest, socket: nqe.socket, generation: nqe.generation }
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
            Some(Op::Refill) => self.guest.top_up(row, nqe.data & LOW == 0, self.port),
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
        let mut out = Nqe::new(Op::Reply, key.socket, key.generation);
        out.guest = key.guest;
        out.qset = qset;
        out.ticket = ticket;
        match r {
            Ok(v) => out.op_data = v,
            Err(e) => {
                out.flags = FLAG_ERROR;
                out.op_data = negative(e.0);
            }
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
        let mut nqe = Nqe::new(op, key.socket, key.generation);
        nqe.guest = key.guest;
        nqe.flags = u8::from(failed) * FLAG_ERROR;
        (nqe.size, nqe.op_data, nqe.data) = addr.to_words();
        self.port.push(&nqe);
    }

    fn bind(&mut self, nqe: &Nqe, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
        let addr = Addr::from_words(s.family, nqe.size, nqe.op_data, nqe.data);
        let is_its = |port: u16| addr.port == 0 || addr.port == port;
        if nqe.flags & FLAG_AGAIN != 0 && s.is_claimed && is_its(cell.local.load().port) {
            // Done when it was asked of an engine that has died since.
            self.reply(nqe, Ok(0));
            return s;
        }
        let r = if s.datagram.is_some() {
            self.bind_datagram(&s, &addr)
        } else {
            self.on(&s, |stack, h| {
                stack.bind(h, &addr)?;
                stack.local(h)
            })
        };
        match r {
            Ok(local) => {
                s.set_local(cell, &local);
                s.change(cell, SF_BOUND, 0);
                s.is_claimed = true;
                self.tell_bound(Op::Bind, key, &local, false);
                if let Some(d) = &mut s.datagram {
                    d.has_port = true;
                }
                self.reply(nqe, Ok(0));
            }
            Err(e) => {
                self.tell_bound(Op::Bind, key, &addr, true);
                if nqe.ticket == 0 {
                    // Nobody asked: the socket was to be made again as it was, and is of no use without its address.
                    s.post_error(cell, libc::ENETDOWN);
                    s.change(cell, SF_DEAD, 0);
                    self.tell(key, cell, ALL);
                }
                self.reply(nqe, Err(e));
            }
        }
        s
    }

    fn listen(&mut self, nqe: &Nqe, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
        if s.datagram.is_some() {
            self.reply(nqe, Err(Errno(libc::EOPNOTSUPP)));
            return s;
        }
        let backlog = nqe.op_data as u32;
        let r = self.on(&s, |stack, h| {
            stack.listen(h, behind(backlog, 0), backlog, key)?;
            stack.watch(h, key)?;
            stack.local(h)
        });
        match r {
            Ok(local) => {
                s.is_claimed = true;
                self.tell_bound(Op::Listen, key, &local, false);
                self.begin_listening(cell, &mut s, &local, backlog);
                self.enqueue(key, &mut s);
                self.reply(nqe, Ok(0));
            }
            Err(e) => self.reply(nqe, Err(e)),
        }
        s
    }

    fn connect(&mut self, nqe: &Nqe, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
        if s.datagram.is_some() {
            return self.connect_datagram(nqe, key, cell, s);
        }
        let is_begun = s.has(SF_CONNECTING | SF_CONNECTED)
            || (s.has(SF_FAILED) && cell.pending_error().is_some());
        if nqe.flags & FLAG_AGAIN != 0 && is_begun {
            self.reply(nqe, Err(Errno(libc::EINPROGRESS)));
            return s;
        }
        let addr = Addr::from_words(s.family, nqe.size, nqe.op_data, nqe.data);
        let r = self.on(&s, |stack, h| {
            let c = stack.connect(h, &addr)?;
            stack.watch(h, key)?;
            Ok(c)
        });
        match r {
            Ok(how) => {
                if let Some(Ok(local)) = s.handle.as_ref().map(|h| self.stack.local(h)) {
                    s.set_local(cell, &local);
                }
                s.tx_broken = false;
                s.hangup = false;
                s.readable = false;
                s.writable = false;
                s.change(cell, SF_BOUND | SF_CONNECTING, SF_FAILED | SF_DEAD | SF_EOF);
                if how == Connect::Done {
                    s = self.finish_connect(key, cell, s);
                }
                self.reply(nqe, Err(Errno(libc::EINPROGRESS)));
            }
            Err(e) => {
                if nqe.ticket == 0 && !s.has(SF_CONNECTED | SF_CONNECTING) {
                    s.post_error(cell, e.0);
                    s.change(cell, SF_FAILED | SF_DEAD, 0);
                    self.tell(key, cell, ALL);
                }
                self.reply(nqe, Err(e));
            }
        }
        s
    }

    /// An event came for a socket that is connecting.
    pub(crate) fn finish_connect(&mut self, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
        let Some(h) = &s.handle else { return s };
        match self.stack.connect_result(h) {
            None => {}
            Some(Ok(())) => {
                let local = self.stack.local(h);
                let peer = self.stack.peer(h);
                if let Ok(a) = local {
                    cell.local.store(&a);
                }
                if let Ok(a) = peer {
                    cell.peer.store(&a);
                }
                s.writable = true;
                s.readable = true;
                s.change(cell, SF_CONNECTED, SF_CONNECTING);
                self.tell(key, cell, OUT | IN);
                self.enqueue(key, &mut s);
            }
            Some(Err(e)) => {
                s.post_error(cell, e.0);
                s.tx_broken = true;
                s.change(cell, SF_FAILED | SF_DEAD, SF_CONNECTING);
                self.tell(key, cell, ALL);
                self.enqueue(key, &mut s);
            }
        }
        s
    }

    fn disconnect(&mut self, nqe: &Nqe, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
        if s.datagram.is_some() {
            return self.disconnect_datagram(nqe, key, cell, s);
        }
        let r = self.on(&s, |stack, h| stack.disconnect(h));
        if r.is_ok() {
            s.listener = None;
            s.tx_broken = true;
            let gone = SF_CONNECTING
                | SF_CONNECTED
                | SF_EOF
                | SF_DEAD
                | SF_FAILED
                | SF_LISTENING
                | SF_RX_STALLED;
            s.change(cell, 0, gone);
            self.tell(key, cell, ALL);
            self.enqueue(key, &mut s);
        }
        self.reply(nqe, r.map(|()| 0));
        s
    }

    fn shut(&mut self, nqe: &Nqe, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
        if s.datagram.is_some() {
            // GuestLib's own bits say it all.
            self.tell(key, cell, ALL);
            return s;
        }
        let (read, write) = (nqe.op_data != 1, nqe.op_data != 0);
        if s.is_listening() {
            if read {
                let _ = self.on(&s, |stack, h| stack.shutdown(h, How::Read));
                s.change(cell, 0, SF_LISTENING | SF_RX_STALLED);
                self.tell(key, cell, ALL);
            }
            return s;
        }
        if s.is_connecting() {
            // Linux ends the attempt.
            let _ = self.on(&s, |stack, h| stack.shutdown(h, How::Both));
            return self.finish_connect(key, cell, s);
        }
        if read {
            // GuestLib's own bit ends reading (GF_SHUT_RD). The stack's would look like the peer's FIN from here; Linux, too, goes
            // on to receive.
            self.tell(key, cell, ALL);
        }
        s.shut_wr_wanted |= write;
        self.enqueue(key, &mut s);
        s
    }

    fn set_option(&mut self, nqe: &Nqe, mut s: Taken<S>) -> Taken<S> {
        let (level, name, length) = unpack_option(nqe.size);
        let (level, name) = (i32::from(level), i32::from(name));
        let mut value = [0u8; 256];
        if usize::from(length) > INLINE_MAX {
            if let Err(e) = self.take_value(nqe.op_data as u32, &mut value) {
                self.reply(nqe, Err(e));
                return s;
            }
        } else {
            let words = nqe.op_data.to_le_bytes().into_iter().chain(nqe.data.to_le_bytes());
            for (to, from) in value.iter_mut().zip(words) {
                *to = from;
            }
        }
        let r = match value.get(..usize::from(length)) {
            Some(value) => {
                let option = SetOption { level, name, value: value.to_vec() };
                let r = self.apply_option(&mut s, &option);
                if r.is_ok() && s.datagram.is_some() {
                    self.stack.note_option(key_of(nqe), &option);
                }
                r
            }
            None => Err(Errno(libc::EINVAL)),
        };
        self.reply(nqe, r.map(|()| 0));
        s
    }

    fn apply_option(&mut self, s: &mut Taken<S>, o: &SetOption) -> Result<(), Errno> {
        let (level, name, value) = (o.level, o.name, &o.value);
        match lookup(level, name).map(|o| o.policy) {
            // A datagram socket's port is chosen at its bind or first send, by rules that a choice of the kernel's own at a later
            // time would pass by.
            _ if s.datagram.is_some()
                && (level, name) == (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT) =>
            {
                Err(Errno(libc::ENOPROTOOPT))
            }
            Some(Policy::Forward | Policy::ForwardSync) => {
                self.on(s, |stack, h| stack.set_option(h, level, name, value))
            }
            Some(Policy::ReadOnly(e) | Policy::Off(e) | Policy::Refuse(e)) => Err(Errno(e)),
            Some(Policy::Local) | None => Err(Errno(libc::ENOPROTOOPT)),
        }?;
        if (level, name) == (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) && !s.is_claimed {
            s.is_v6only = value.iter().take(4).any(|b| *b != 0);
        }
        Self::note_option(s, level, name, value);
        Ok(())
    }

    /// Copies an option's value out of the leased chunk that it came in. ENETDOWN where it is not leased: a service that started
    /// meanwhile has taken it back.
    fn take_value(&mut self, chunk: u32, value: &mut [u8; 256]) -> Result<(), Errno> {
        let Some(row) = self.guest.pool.begin_tx(chunk) else {
            self.guest.counters.service.violations.add(1);
            return Err(Errno(libc::ENETDOWN));
        };
        self.guest.device.copy_from_chunk(chunk, value);
        self.guest.pool.free(chunk);
        if let Some(row) = row {
            self.guest.spent(row);
            self.guest.top_up(row, false, self.port);
        }
        Ok(())
    }

    fn get_option(&mut self, nqe: &Nqe, s: Taken<S>) -> Taken<S> {
        let (level, name, length) = unpack_option(nqe.size);
        let (level, name) = (i32::from(level), i32::from(name));
        let mut out = [0u8; REPLY_BYTES];
        let allowed = match lookup(level, name).map(|o| o.policy) {
            Some(Policy::Forward | Policy::ForwardSync | Policy::ReadOnly(_)) => Ok(()),
            Some(Policy::Refuse(e)) => Err(Errno(e)),
            Some(Policy::Local | Policy::Off(_)) | None => Err(Errno(libc::ENOPROTOOPT)),
        };
        // 255 asks for as much as there is: the length has a byte only.
        let room = if length == 255 { REPLY_BYTES } else { usize::from(length) };
        let r = allowed.and_then(|()| {
            let out = out.get_mut(..room).ok_or(Errno(libc::EINVAL))?;
            self.on(&s, |stack, h| stack.get_option(h, level, name, out))
        });
        match r {
            Ok(n) if nqe.ticket != 0 => self.reply_value(nqe, out.get(..n).unwrap_or_default()),
            Ok(_) => {}
            Err(e) => self.reply(nqe, Err(e)),
        }
        s
    }

    /// A reply with bytes: in the element, or in the queue set's reply area.
    fn reply_value(&mut self, nqe: &Nqe, value: &[u8]) {
        let mut out = Nqe::new(Op::Reply, nqe.socket, nqe.generation);
        out.guest = nqe.guest;
        out.qset = nqe.qset;
        out.ticket = nqe.ticket;
        out.size = value.len() as u32;
        let word = |b: &[u8]| {
            let mut w = [0u8; 8];
            for (to, from) in w.iter_mut().zip(b) {
                *to = *from;
            }
            u64::from_le_bytes(w)
        };
        if value.len() <= 16 {
            let mut words = value.chunks(8).map(word);
            out.op_data = words.next().unwrap_or(0);
            out.data = words.next().unwrap_or(0);
        } else if let Some(q) = self.guest.device.qset(nqe.qset) {
            for (to, from) in q.reply.iter().zip(value.chunks(8).map(word)) {
                to.store(from, Ordering::Relaxed);
            }
        }
        self.port.push(&out);
    }

    fn begin_drain(&mut self, nqe: &Nqe, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
        if nqe.ticket == 0 {
            return s;
        }
        if let Some(old) = s.drain.take() {
            self.reply_to(old.qset, old.ticket, key, Err(Errno(libc::EAGAIN)));
        }
        let wait_ms = nqe.op_data.min(u64::from(u32::MAX)).saturating_mul(1000);
        let until_ms = self.now_ms.saturating_add(wait_ms);
        s.drain = Some(Drain { qset: nqe.qset, ticket: nqe.ticket, until_ms });
        self.enqueue(key, &mut s);
        self.look_at_drain(key, cell, s)
    }

    /// Answers a drain that is done or out of time, else looks again soon.
    pub(crate) fn look_at_drain(&mut self, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
        let Some(d) = s.drain else { return s };
        let acknowledged = || s.handle.as_ref().is_none_or(|h| self.stack.unacknowledged(h) == 0);
        let done = s.has(SF_DEAD) || (s.is_drained(cell) && acknowledged());
        if done || self.now_ms >= d.until_ms {
            s.drain = None;
            let r = if done { Ok(0) } else { Err(Errno(libc::EAGAIN)) };
            self.reply_to(d.qset, d.ticket, key, r);
        } else {
            self.at(self.now_ms + DRAIN_STEP_MS, key, Due::Drain);
        }
        s
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

    pub(crate) fn timer(&mut self, key: Key, what: Due) {
        if what == Due::Settle {
            self.guest.settles = false;
            return self.guest.settle(self.now_ms);
        }
        self.with(key, |c, key, cell, mut s| match what {
            Due::Accept => {
                c.enqueue(key, &mut s);
                Some(s)
            }
            Due::Retry => {
                s.writable = true;
                s.readable = true;
                c.enqueue(key, &mut s);
                Some(s)
            }
            Due::Drain => Some(c.look_at_drain(key, cell, s)),
            // What its guest's rate holds back has its time.
            Due::Orphan if s.closing && s.waits_out => {
                c.at(c.now_ms + AGAIN_MS, key, Due::Orphan);
                Some(s)
            }
            Due::Orphan if s.closing => {
                c.end(key, cell, s, true);
                None
            }
            Due::Orphan | Due::Settle => Some(s),
        });
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
