//! Where a socket is bound, listens and is connected to.

use nk_device::cell::{
    SF_BOUND, SF_CONNECTED, SF_CONNECTING, SF_DEAD, SF_EOF, SF_FAILED, SF_LISTENING, SF_RX_STALLED,
    SF_TX_BRAKED,
};
use nk_device::nqe::FLAG_AGAIN;
use nk_device::{Addr, Cell, Nqe, Op};

use crate::listener::behind;
use crate::service::{ALL, Ctx, IN, OUT, Taken};
use crate::{Connect, Errno, Key, Stack};

impl<S: Stack> Ctx<'_, S> {
    pub(super) fn bind(&mut self, nqe: &Nqe, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
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

    pub(super) fn listen(&mut self, nqe: &Nqe, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
        if s.datagram.is_some() {
            self.reply(nqe, Err(Errno(libc::EOPNOTSUPP)));
            return s;
        }
        let backlog = nqe.op_data as u32;
        let r = self.on(&s, |stack, h| {
            stack.listen(h, behind(backlog, 0), backlog, key)?;
            // It is not to listen where the guest was told that it does not.
            stack.watch(h, key).inspect_err(|_| {
                let _ = stack.disconnect(h);
            })?;
            stack.local(h)
        });
        match r {
            Ok(local) => {
                self.tell_bound(Op::Listen, key, &local, false);
                self.begin_listening(cell, &mut s, &local, backlog);
                self.enqueue(key, &mut s);
                self.reply(nqe, Ok(0));
            }
            Err(e) => self.reply(nqe, Err(e)),
        }
        s
    }

    pub(super) fn connect(
        &mut self,
        nqe: &Nqe,
        key: Key,
        cell: &Cell,
        mut s: Taken<S>,
    ) -> Taken<S> {
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

    pub(super) fn disconnect(
        &mut self,
        nqe: &Nqe,
        key: Key,
        cell: &Cell,
        mut s: Taken<S>,
    ) -> Taken<S> {
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
                | SF_RX_STALLED
                | SF_TX_BRAKED;
            s.change(cell, 0, gone);
            self.tell(key, cell, ALL);
            self.enqueue(key, &mut s);
        }
        self.reply(nqe, r.map(|()| 0));
        s
    }
}
