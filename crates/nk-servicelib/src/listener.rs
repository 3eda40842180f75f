//! Accepting ahead of demand.

use std::os::fd::OwnedFd;

use nk_device::cell::{
    SF_BOUND, SF_CONNECTED, SF_DEAD, SF_EOF, SF_FAILED, SF_LISTENING, SF_RX_STALLED,
};
use nk_device::stream::{AcceptedSocket, publish_single};
use nk_device::sync::Ordering;
use nk_device::{Addr, Cell, Op, STREAM_SLOTS};

use crate::service::{Ctx, Due, IN, Taken};
use crate::socket::{Listener, PAUSE_MS_MIN, Socket};
use crate::turns::TURN;
use crate::{Errno, Key, Stack};

/// Connections accepted in one turn.
const ROUNDS: usize = 16;
const PAUSE_MS_MAX: u64 = 500;

/// Accepted sockets that may wait on the ring.
fn ahead_max(backlog: u32) -> u32 {
    backlog.clamp(1, STREAM_SLOTS as u32)
}

/// How many the stack lets wait when this many wait on the ring: together no more than the guest asked for. A short backlog is
/// moved to and fro, so that all of it takes a burst that comes while nobody polls; of a long one the ring's part is set aside.
pub(crate) fn behind(backlog: u32, queued: u32) -> u32 {
    let slots = STREAM_SLOTS as u32;
    backlog.saturating_sub(if backlog > slots * 4 { slots } else { queued })
}

impl<S: Stack> Ctx<'_, S> {
    pub(crate) fn begin_listening(
        &mut self,
        cell: &Cell,
        s: &mut Taken<S>,
        local: &Addr,
        backlog: u32,
    ) {
        s.set_local(cell, local);
        s.is_claimed = true;
        s.readable = true;
        s.listener = Some(Box::new(Listener::new(backlog)));
        s.change(cell, SF_BOUND | SF_LISTENING, SF_FAILED | SF_DEAD | SF_EOF);
    }

    pub(crate) fn adopt_listener(
        &mut self,
        key: Key,
        fd: OwnedFd,
        backlog: u32,
    ) -> Result<(), Errno> {
        let device = self.guest.device;
        let cell = device.cell(key.socket).ok_or(Errno(libc::EINVAL))?;
        let handle = self.stack.adopt(self.guest.namespace, fd)?;
        let (handle, local) = self.take_in(handle, key, Some(backlog), true)?;
        let mut s: Taken<S> = Box::new(Socket::new(key.generation, local.family));
        s.is_v6only = self.is_v6only(&handle, local.family);
        s.handle = Some(handle);
        // What was on the ring went with the last service: the ring goes on, empty, where the guest is.
        s.rx_tail = cell.position().index;
        cell.rx_tail.store(s.rx_tail, Ordering::SeqCst);
        self.begin_listening(cell, &mut s, &local, backlog);
        self.enqueue(key, &mut s);
        self.guest.put(key.socket, s);
        Ok(())
    }

    /// The stack goes on with a socket that was another's, which listens where it has a backlog; or closes it, and nothing of it is left.
    pub(crate) fn take_in(
        &mut self,
        handle: S::Socket,
        key: Key,
        backlog: Option<u32>,
        is_watched: bool,
    ) -> Result<(S::Socket, Addr), Errno> {
        let stack = &mut *self.stack;
        let listens = match backlog {
            Some(backlog) => stack.listen(&handle, behind(backlog, 0), backlog, key),
            None => Ok(()),
        };
        let watches =
            listens.and_then(|()| if is_watched { stack.watch(&handle, key) } else { Ok(()) });
        match watches.and_then(|()| stack.local(&handle)) {
            Ok(local) => Ok((handle, local)),
            Err(e) => {
                stack.close(handle, false, backlog.map(|_| key));
                Err(e)
            }
        }
    }

    /// Accepted sockets on the ring; a nonsense position counts as full.
    fn queued(cell: &Cell, s: &Taken<S>) -> u32 {
        s.rx_tail.wrapping_sub(cell.position().index).min(STREAM_SLOTS as u32)
    }

    pub(crate) fn accept(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) {
        self.accept_ahead(key, cell, s);
        let queued = Self::queued(cell, s);
        if let (Some(l), Some(h)) = (&mut s.listener, &s.handle) {
            let behind = behind(l.backlog, queued);
            if behind != l.behind {
                l.behind = behind;
                self.stack.set_backlog(h, behind);
            }
        }
    }

    fn accept_ahead(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) {
        let Some((ahead, paused)) =
            s.listener.as_ref().map(|l| (ahead_max(l.backlog), l.paused_until_ms))
        else {
            return;
        };
        if paused > self.now_ms {
            return;
        }
        for round in 0.. {
            if !s.readable || s.is_stalled() {
                return;
            }
            if round >= ROUNDS || !self.port.has_room() {
                self.enqueue(key, s);
                return;
            }
            if Self::queued(cell, s) >= ahead {
                let _ = s.stall(cell);
                if Self::queued(cell, s) >= ahead {
                    return;
                }
                s.change(cell, 0, SF_RX_STALLED);
            }
            let Some(id) = self.guest.ids.pop_front() else {
                self.guest.id_starved.push(key);
                return;
            };
            let Some(handle) = &s.handle else { return };
            match self.stack.accept(handle) {
                Ok((new, peer)) => {
                    if let Some(l) = &mut s.listener {
                        l.pause_ms = PAUSE_MS_MIN;
                    }
                    self.enter_accepted(key, cell, s, id, new, &peer);
                    self.guest.turns.charge(TURN.unsigned_abs());
                }
                Err(e) => {
                    self.guest.ids.push_front(id);
                    if !self.after_failed_accept(key, s, e) {
                        return;
                    }
                }
            }
        }
    }

    /// `true` to go on at once.
    fn after_failed_accept(&mut self, key: Key, s: &mut Taken<S>, e: Errno) -> bool {
        match e.0 {
            libc::EAGAIN => {
                s.readable = false;
                false
            }
            libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS => {
                // No edge will tell when this is over: try again, ever less often.
                self.guest.counters.service.accept_failures.add(1);
                if let Some(l) = &mut s.listener {
                    let due_ms = self.now_ms + l.pause_ms;
                    l.paused_until_ms = due_ms;
                    l.pause_ms = (l.pause_ms * 2).min(PAUSE_MS_MAX);
                    self.at(due_ms, key, Due::Accept);
                }
                false
            }
            // Errors of the one connection that was next.
            libc::ECONNABORTED
            | libc::EPROTO
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENONET
            | libc::EOPNOTSUPP
            | libc::ENOPROTOOPT
            | libc::EPERM => true,
            _ => {
                s.readable = false;
                false
            }
        }
    }

    /// A new connection: its cell is complete, and the engine knows it, before it stands on the listener's ring.
    fn enter_accepted(
        &mut self,
        key: Key,
        cell: &Cell,
        s: &mut Taken<S>,
        (socket, generation): (u32, u16),
        handle: S::Socket,
        peer: &Addr,
    ) {
        let device = self.guest.device;
        let Some(new_cell) = device.cell(socket) else { return };
        let mut new: Taken<S> = Box::new(Socket::new(generation, s.family));
        let local = self.stack.local(&handle).unwrap_or_default();
        new.handle = Some(handle);
        new.writable = true;
        new_cell.local.store(&local);
        new_cell.peer.store(peer);
        // What Linux copies from the listener and GuestLib keeps; the guest's values, passed on unread.
        for (to, from) in [
            (&new_cell.kind, &cell.kind),
            (&new_cell.linger, &cell.linger),
            (&new_cell.rcv_lowat, &cell.rcv_lowat),
        ] {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        for (to, from) in [
            (&new_cell.rcv_timeout_us, &cell.rcv_timeout_us),
            (&new_cell.snd_timeout_us, &cell.snd_timeout_us),
        ] {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        new.change(new_cell, SF_BOUND | SF_CONNECTED, 0);
        let new_key = Key { guest: key.guest, socket, generation };
        let mut nqe = new_key.nqe(Op::Accepted);
        nqe.size = s.rx_tail;
        nqe.op_data = u64::from(key.socket) | u64::from(key.generation) << 32;
        self.port.push(&nqe);
        if let Some(h) = &new.handle
            && self.stack.watch(h, new_key).is_err()
        {
            // Unwatched it would only ever be what it is now: over.
            new.change(new_cell, SF_DEAD, 0);
        }
        self.guest.put(socket, new);
        let accepted = AcceptedSocket { socket, generation };
        let head = s.rx_tail.wrapping_sub(Self::queued(cell, s));
        let _ = publish_single(
            &cell.rx_tail,
            &cell.rx_slots,
            &mut s.rx_tail,
            head,
            accepted.to_payload(),
        );
        self.tell(key, cell, IN);
    }
}
