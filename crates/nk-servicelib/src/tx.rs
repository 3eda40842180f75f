//! From the guest's tx rings to the stack.

use nk_device::cell::{SF_CONNECTED, SF_DEAD, SF_EOF, SF_TX_BRAKED};
use nk_device::stream::{Span, take_slot};
use nk_device::sync::Ordering;
use nk_device::{Cell, Nqe, STREAM_SLOTS};

use crate::jobs::key_of;
use crate::service::{ALL, Ctx, Due, HUP, OUT, RETRY_MS, Taken};
use crate::{Errno, How, Key, Stack};

/// Looks at the ring, or calls of the stack, in one turn.
const ROUNDS: usize = 2;
/// By then a thread that was appending has nearly always ended.
const SETTLE_MS: u64 = 20;

/// The guest broke the protocol on this ring.
struct Violation;

impl<S: Stack> Ctx<'_, S> {
    /// A SEND NQE: the ring went from idle to active.
    pub(crate) fn kicked(&mut self, nqe: &Nqe) {
        self.with(key_of(nqe), |c, key, _, mut s| {
            c.enqueue(key, &mut s);
            Some(s)
        });
        self.guest.settle(self.now_ms);
        self.guest.top_up(nqe.op_data as u16, false, self.port);
    }

    /// Takes what is on the ring and gives it to the stack; `false` when the guest broke the protocol.
    pub(crate) fn transmit(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) -> bool {
        if !s.has(SF_CONNECTED) && !s.tx_broken && s.datagram.is_none() {
            return true;
        }
        // Odd: we look at the ring, nobody needs to kick.
        if s.tx_seq & 1 == 0 {
            s.tx_seq = s.tx_seq.wrapping_add(1);
            cell.tx_seq.store(s.tx_seq, Ordering::SeqCst);
        }
        let mut spent = 0;
        for round in 0.. {
            if self.take_descriptors(key, cell, s).is_err() {
                return false;
            }
            if s.tx_broken {
                self.free_tx(cell, s);
            }
            let is_blocked = !s.writable || s.waits_out;
            if self.guest.braking {
                self.brake(key, cell, s);
            }
            if is_blocked && !s.tx.is_empty() && !s.has(SF_TX_BRAKED) {
                self.guest.enter_blocked(key, s);
            }
            // What a blocked one publishes is looked at when it can go or chunks are short. Who does not lease does not learn that they are.
            if s.tx.is_empty() || (is_blocked && !self.guest.leases) {
                // Even: kick from now on; then look whether somebody published before seeing that.
                s.tx_seq = s.tx_seq.wrapping_add(1);
                if !cell.idle_tx(s.tx_seq, s.tx_next) {
                    if s.tx.is_empty() {
                        self.drained(key, cell, s);
                    }
                    return true;
                }
                s.tx_seq = s.tx_seq.wrapping_add(1);
                cell.tx_seq.store(s.tx_seq, Ordering::SeqCst);
                if round >= ROUNDS {
                    self.enqueue(key, s);
                    return true;
                }
                continue;
            }
            if is_blocked {
                return true;
            }
            if s.datagram.is_none() {
                self.gather(key, s);
                return true;
            }
            if round >= ROUNDS {
                self.enqueue(key, s);
                return true;
            }
            if !self.push_datagrams(key, cell, s, &mut spent) {
                return true;
            }
        }
        true
    }

    /// Copies new descriptors, each checked against the private lease map.
    fn take_descriptors(
        &mut self,
        key: Key,
        cell: &Cell,
        s: &mut Taken<S>,
    ) -> Result<(), Violation> {
        let tail = cell.tx_tail.load(Ordering::Acquire);
        let new = tail.wrapping_sub(s.tx_next);
        if new as usize > STREAM_SLOTS - s.tx.len().min(STREAM_SLOTS) {
            return Err(Violation);
        }
        let mut last_row = None;
        for _ in 0..new {
            let taken = take_slot(&cell.tx_slots, s.tx_next);
            let span = taken.and_then(|t| Span::from_payload(t.payload));
            if s.datagram.is_some() {
                last_row = span.and_then(|s| self.guest.row_of(s.chunk)).or(last_row);
                self.enter_datagrams(key, s, taken);
                continue;
            }
            let span = span.ok_or(Violation)?;
            let row = self.guest.begin_tx(span.chunk).ok_or(Violation)?;
            if taken.is_some_and(|t| t.appending) {
                self.share(key, span.chunk);
            }
            s.tx.push_back(span);
            s.tx_next = s.tx_next.wrapping_add(1);
            last_row = row.or(last_row);
        }
        if let Some(row) = last_row {
            let asked = self.guest.wanting.contains(&row);
            self.guest.top_up(row, asked, self.port);
        }
        Ok(())
    }

    /// Somebody was appending when the descriptor was taken: the chunk comes back once nobody writes into it, which is asked with the next
    /// bytes, and a little later if none come.
    pub(crate) fn share(&mut self, key: Key, chunk: u32) {
        self.guest.pool.share(chunk);
        if !core::mem::replace(&mut self.guest.settles, true) {
            self.at(self.now_ms + SETTLE_MS, key, Due::Settle);
        }
    }

    /// Gives back what was taken from the ring, and will never be sent.
    ///
    /// The ring's head moves before its chunks are free, here and wherever one is freed that a ring names: else another service may lease one to a
    /// process, hear that this died, find the chunk on the ring as if somebody had yet to take it there, and keep it out for ever.
    pub(crate) fn free_tx(&mut self, cell: &Cell, s: &mut Taken<S>) {
        if s.tx_head != s.tx_next {
            cell.tx_head.store(s.tx_next, Ordering::SeqCst);
        }
        if s.datagram.is_some() {
            while self.descriptor_done(cell, s).is_some() {}
        }
        while let Some(span) = s.tx.pop_front() {
            self.guest.pool.free(span.chunk);
        }
        s.tx_head = s.tx_next;
        self.release_if_few(cell, s, 0);
    }

    /// What the stack said to a send of so many bytes.
    pub(crate) fn sent(
        &mut self,
        key: Key,
        cell: &Cell,
        s: &mut Taken<S>,
        bytes: usize,
        result: Result<usize, Errno>,
    ) {
        match result {
            Ok(sent) => {
                if sent < bytes {
                    s.writable = false;
                }
                self.consumed(key, cell, s, sent);
            }
            Err(Errno(libc::EAGAIN)) => s.writable = false,
            Err(Errno(libc::ENOBUFS | libc::ENOMEM)) => {
                s.writable = false;
                self.at(self.now_ms + RETRY_MS, key, Due::Retry);
            }
            Err(Errno(e)) => {
                // What was received before stays to be read; reading it to its end makes the socket dead.
                s.tx_broken = true;
                s.readable = true;
                s.hangup = true;
                if e != libc::EPIPE {
                    s.post_error(cell, e);
                    self.tell(key, cell, ALL);
                }
                if !s.can_receive() && !s.has(SF_DEAD) {
                    s.change(cell, SF_DEAD, 0);
                    self.tell(key, cell, ALL);
                }
                self.enqueue(key, s);
            }
        }
    }

    /// The stack took so many bytes.
    pub(crate) fn count_sent(&self, cell: &Cell, s: &mut Taken<S>, bytes: u64) {
        s.tx_bytes = s.tx_bytes.wrapping_add(bytes);
        cell.tx_bytes.store(s.tx_bytes, Ordering::Relaxed);
        self.guest.counters.service.bytes_sent.add(bytes);
        if let Some(t) = self.totals {
            t.bytes_sent.add(bytes);
        }
    }

    fn consumed(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>, bytes: usize) {
        let mut left = bytes;
        let mut done = 0;
        for span in &mut s.tx {
            let n = left.min(span.len as usize);
            left -= n;
            span.offset += n as u32;
            span.len -= n as u32;
            if span.len > 0 {
                break;
            }
            done += 1;
        }
        s.tx_head = s.tx_head.wrapping_add(done);
        self.count_sent(cell, s, bytes as u64);
        self.release_if_few(cell, s, s.tx.len() - done as usize);
        let has_room = cell.consume_tx(s.tx_head, s.state(), &mut s.tx_served);
        for _ in 0..done {
            if let Some(span) = s.tx.pop_front() {
                self.guest.pool.free(span.chunk);
            }
        }
        if has_room {
            self.tell(key, cell, OUT);
        }
    }

    /// Everything is with the stack: what waited for that is done.
    fn drained(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) {
        if s.shut_wr_wanted && !s.shut_wr && !s.closing {
            s.shut_wr = true;
            if let Some(h) = &s.handle {
                let _ = self.stack.shutdown(h, How::Write);
            }
            if s.has(SF_EOF) && !s.has(SF_DEAD) {
                s.change(cell, SF_DEAD, 0);
                self.tell(key, cell, HUP);
            }
        }
    }
}
