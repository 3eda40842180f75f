//! The end of sockets, and a socket's turn.

use nk_device::cell::{SF_CONNECTED, SF_CONNECTING, SF_DEAD};
use nk_device::stream::{Span, take_slot};
use nk_device::sync::Ordering;
use nk_device::{Cell, Nqe, Op, STREAM_SLOTS};

use crate::service::{ALL, Ctx, Due, Taken};
use crate::{Key, Stack};

/// How long a closed socket may take to send what is left.
const ORPHAN_MS: u64 = 180_000;

impl<S: Stack> Ctx<'_, S> {
    /// A socket's turn: some of everything that it can do.
    pub(crate) fn turn(&mut self, key: Key, cell: &Cell, mut s: Taken<S>) -> Option<Taken<S>> {
        if s.is_listening() {
            self.accept(key, cell, &mut s);
            return Some(s);
        }
        if s.datagram.is_some() {
            return self.datagram_turn(key, cell, s);
        }
        if !s.closing {
            self.receive(key, cell, &mut s);
        } else if !s.sending && self.orphan_receives(&mut s) {
            self.end(key, cell, s, true);
            return None;
        }
        self.transmit_or_end(key, cell, s)
    }

    /// What there is to send; a closed socket ends when nothing is left.
    pub(crate) fn transmit_or_end(
        &mut self,
        key: Key,
        cell: &Cell,
        mut s: Taken<S>,
    ) -> Option<Taken<S>> {
        if !self.transmit(key, cell, &mut s) {
            self.break_off(key, cell, &mut s);
        }
        // One that is to be reset leaves what the stack does not take at once, as Linux drops what it could not yet send.
        let gives_up = s.resets && !s.sending && !s.waits_out;
        if s.closing && (s.tx_broken || gives_up || s.is_drained(cell)) {
            // Otherwise the stack resets by itself when it has unread bytes.
            let abort = s.tx_broken || s.resets;
            self.end(key, cell, s, abort);
            return None;
        }
        if s.closing && !s.sending && !s.waits_out && !s.orphaned {
            s.orphaned = true;
            s.readable = true;
            self.at(self.now_ms + ORPHAN_MS, key, Due::Orphan);
            self.enqueue(key, &mut s);
        }
        if s.drain.is_some() {
            s = self.look_at_drain(key, cell, s);
        }
        Some(s)
    }

    /// The guest broke the protocol on this socket: it is reset, and what its ring names is not looked at again.
    pub(crate) fn break_off(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) {
        self.guest.counters.service.violations.add(1);
        self.free_tx(cell, s);
        self.end_reports(s);
        if let Some(h) = s.handle.take() {
            self.stack.close(h, true, None);
        }
        s.open_error = libc::ECONNRESET;
        s.tx_broken = true;
        s.pass_published(cell);
        if !s.closing {
            s.post_error(cell, libc::ECONNRESET);
            s.change(cell, SF_DEAD, SF_CONNECTING);
            self.tell(key, cell, ALL);
        }
    }

    /// Nobody holds the socket any more.
    pub(crate) fn begin_close(
        &mut self,
        key: Key,
        cell: &Cell,
        mut s: Taken<S>,
        abort: bool,
    ) -> Option<Taken<S>> {
        if s.closing {
            return Some(s);
        }
        s.closing = true;
        if s.datagram.is_some() {
            return self.close_datagrams(key, cell, s);
        }
        let pos = cell.position();
        // SO_LINGER {1, 0}, or bytes that nobody read: a reset, as Linux does it.
        let lingers_not = cell.linger.load(Ordering::Relaxed) == 1;
        let connected = s.has(SF_CONNECTED) && !s.has(SF_DEAD);
        let unread = connected && !s.is_listening() && pos.index != s.rx_tail;
        let resets = lingers_not || unread;
        if abort || !connected || s.listener.is_some() {
            self.end(key, cell, s, abort || resets);
            return None;
        }
        // What was written before goes first: natively it was on its way before the reset was.
        s.resets = resets;
        self.free_rx(&mut s);
        // What is left goes now if the stack takes it, as it nearly always does: an orphan, with a timer of its own for minutes,
        // is what remains.
        self.transmit_or_end(key, cell, s)
    }

    /// The last of a socket: chunks come back, the stack closes, the engine may use the id again.
    pub(crate) fn end(&mut self, key: Key, cell: &Cell, mut s: Taken<S>, abort: bool) {
        self.free_rx(&mut s);
        self.free_tx(cell, &mut s);
        let _ = cell.tx().help();
        // What was published and not yet copied, with a slot that was filled and not published.
        let first = s.tx_next;
        for i in 0..=STREAM_SLOTS as u32 {
            let index = first.wrapping_add(i);
            let Some(taken) = take_slot(&cell.tx_slots, index) else { break };
            let Some(span) = Span::from_payload(taken.payload) else { break };
            if s.datagram.is_some() {
                self.enter_datagrams(key, &mut s, Some(taken));
                self.free_tx(cell, &mut s);
                continue;
            }
            if self.guest.begin_tx(span.chunk).is_none() {
                break;
            }
            cell.tx_head.store(index.wrapping_add(1), Ordering::SeqCst);
            if taken.appending {
                self.share(key, span.chunk);
            }
            self.guest.pool.free(span.chunk);
        }
        self.guest.leave_reap(key.socket, &s);
        self.guest.leave_blocked(key, &s);
        if let Some(h) = s.handle.take() {
            self.stack.close(h, abort, s.listener.is_some().then_some(key));
        }
        if s.datagram.as_ref().is_some_and(|d| d.has_options) {
            self.stack.forget_options(key);
        }
        self.end_reports(&mut s);
        if let Some(d) = s.drain.take() {
            let mut nqe = Nqe::new(Op::Drain, key.socket, key.generation);
            (nqe.guest, nqe.qset, nqe.ticket) = (key.guest, d.qset, d.ticket);
            self.reply(&nqe, Ok(0));
        }
        self.tell_closed(key, s.tx_bytes, s.rx_bytes);
    }

    pub(crate) fn tell_closed(&mut self, key: Key, sent: u64, received: u64) {
        let mut nqe = key.nqe(Op::Closed);
        nqe.op_data = sent;
        nqe.data = received;
        self.port.push(&nqe);
    }
}
