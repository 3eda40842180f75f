//! From the stack into chunks and onto the guest's rx rings.

use nk_device::cell::{SF_DEAD, SF_EOF, SF_RX_STALLED};
use nk_device::stream::{Span, publish_single};
use nk_device::sync::Ordering;
use nk_device::{CHUNK_SIZE, Cell, STREAM_SLOTS};

use crate::service::{ALL, Ctx, Due, IN, RDHUP, RETRY_MS, Taken};
use crate::span::span;
use crate::{Errno, Key, RawSpan, Stack};

/// Calls of the stack in one turn.
const ROUNDS: usize = 2;
/// Chunks offered to one call: a stream's reader is woken after each turn, so few of them make it sleep often.
const CHUNKS: usize = 16;

impl<S: Stack> Ctx<'_, S> {
    pub(crate) fn receive(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) {
        self.guest.free_read(key.socket, s);
        let mut got = 0;
        let most = self.company.most(self.now_ms);
        for round in 0.. {
            if !s.readable || !s.can_receive() || s.is_stalled() || s.waits_in {
                break;
            }
            if round >= ROUNDS || got >= most {
                self.enqueue(key, s);
                break;
            }
            let room = STREAM_SLOTS - s.rx.len().min(STREAM_SLOTS);
            if room == 0 {
                self.stall(key, cell, s);
                continue;
            }
            let wanted = room.min(s.rx_want).min(most as usize / CHUNK_SIZE) * CHUNK_SIZE;
            let limit = self.guest.input.take(wanted as u64);
            if limit == 0 {
                self.guest.wait_in(key, s);
                break;
            }
            let mut chunks = [0u32; CHUNKS];
            let n = self.take_chunks(s, &mut chunks, (limit as usize).div_ceil(CHUNK_SIZE));
            let Some(chunks) = chunks.get(..n).filter(|c| !c.is_empty()) else {
                self.guest.input.settle(limit, 0);
                self.starve(key, cell, s);
                break;
            };
            let bytes = self.read(key, cell, s, chunks, limit as usize);
            self.guest.input.settle(limit, bytes);
            got += bytes;
        }
        if got > 0 {
            self.received(key, cell, s, got);
        }
        self.ask_while_short(key, cell, s);
    }

    /// What a turn got of the stack stands on the ring.
    pub(crate) fn received(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>, bytes: u64) {
        s.rx_bytes = s.rx_bytes.wrapping_add(bytes);
        self.guest.counters.service.bytes_received.add(bytes);
        if let Some(t) = self.totals {
            t.bytes_received.add(bytes);
        }
        self.guest.turns.charge(bytes);
        cell.rx_bytes.store(s.rx_bytes, Ordering::Relaxed);
        self.guest.enter_reap(key.socket, s);
        self.tell(key, cell, IN);
    }

    /// While some socket waits for chunks, every socket that has some is asked to tell when they were read: nothing else would
    /// bring them back to those who wait.
    pub(crate) fn ask_while_short(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) {
        if self.guest.pool_starved.is_empty() || s.rx.is_empty() || s.is_stalled() {
            return;
        }
        let _ = s.stall(cell);
        self.guest.free_read(key.socket, s);
        if s.rx.is_empty() {
            s.change(cell, 0, SF_RX_STALLED);
        }
    }

    fn take_chunks(&mut self, s: &Taken<S>, out: &mut [u32; CHUNKS], want: usize) -> usize {
        self.guest.reap(2);
        let mut n = 0;
        for slot in out.iter_mut().take(want) {
            let Some(chunk) = self.guest.pool.take_rx(s.rx.len() + n) else { break };
            *slot = chunk;
            n += 1;
        }
        n
    }

    /// Gives back chunks that nothing was received into.
    pub(crate) fn untake(&mut self, chunks: &[u32]) {
        for chunk in chunks.iter().rev() {
            self.guest.pool.untake_rx(*chunk);
        }
    }

    /// One call of the stack into these chunks, for `limit` bytes at most; bytes got. What was not filled goes back.
    fn read(
        &mut self,
        key: Key,
        cell: &Cell,
        s: &mut Taken<S>,
        chunks: &[u32],
        limit: usize,
    ) -> u64 {
        let mut spans = [RawSpan::EMPTY; CHUNKS];
        let (mut offered, mut parts) = (0, 0);
        for (to, chunk) in spans.iter_mut().zip(chunks) {
            let len = CHUNK_SIZE.min(limit - offered);
            let part = Span { chunk: *chunk, offset: 0, len: len as u32 };
            if let Some(raw) = span(&self.guest.device, part).filter(|_| len > 0) {
                *to = raw;
                offered += len;
                parts += 1;
            }
        }
        let result = match &s.handle {
            Some(h) => self.stack.recv(h, spans.get(..parts).unwrap_or_default()),
            None => Err(Errno(libc::ENOTCONN)),
        };
        let count = result.unwrap_or(0).min(offered);
        let mut left = count;
        for chunk in chunks {
            if left == 0 {
                break;
            }
            let len = left.min(CHUNK_SIZE);
            left -= len;
            let payload = Span { chunk: *chunk, offset: 0, len: len as u32 }.to_payload();
            // There is room: at most STREAM_SLOTS chunks are out, and rx_freed is our own.
            let _ =
                publish_single(&cell.rx_tail, &cell.rx_slots, &mut s.rx_tail, s.rx_freed, payload);
            s.rx.push_back(*chunk);
        }
        let used = count.div_ceil(CHUNK_SIZE);
        self.untake(chunks.get(used..).unwrap_or_default());
        match result {
            Ok(0) => self.end_of_stream(key, cell, s),
            Ok(_) if count == offered => s.rx_want = (s.rx_want * 2).min(CHUNKS),
            Ok(_) => {
                s.rx_want = used.clamp(1, CHUNKS);
                // Nothing more is there, except an end that was announced.
                s.readable = s.hangup;
            }
            Err(e) if self.puts_off(key, s, e) => {}
            Err(Errno(e)) => {
                s.readable = false;
                s.tx_broken = true;
                s.post_error(cell, e);
                // No SF_EOF: that is the peer's FIN, which a reader sees before any error.
                s.change(cell, SF_DEAD, 0);
                self.tell(key, cell, ALL);
                self.enqueue(key, s);
            }
        }
        count as u64
    }

    /// Whether an error only puts receiving off: until the stack has something to give, or for a while where it has no memory for it.
    pub(crate) fn puts_off(&mut self, key: Key, s: &mut Taken<S>, e: Errno) -> bool {
        match e.0 {
            libc::EAGAIN => s.hangup = false,
            libc::ENOMEM | libc::ENOBUFS => self.at(self.now_ms + RETRY_MS, key, Due::Retry),
            _ => return false,
        }
        s.readable = false;
        true
    }

    fn end_of_stream(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) {
        s.readable = false;
        let over = s.shut_wr || s.tx_broken;
        let fin = if s.tx_broken { 0 } else { SF_EOF };
        s.change(cell, if over { fin | SF_DEAD } else { fin }, 0);
        self.tell(key, cell, if over { ALL } else { IN | RDHUP });
    }

    /// The ring is full: asks to be told when something was read, then looks again.
    pub(crate) fn stall(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) {
        let before = s.rx.len();
        let _ = s.stall(cell);
        self.guest.free_read(key.socket, s);
        if s.rx.len() < before {
            s.change(cell, 0, SF_RX_STALLED);
        }
    }

    /// The pool is short: this socket, and all that have received chunks, are to tell when something was read.
    pub(crate) fn starve(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) {
        let first = self.guest.pool_starved.is_empty();
        let _ = s.stall(cell);
        // What was read before the flag was seen: it counts as freed, and this socket's turn comes again.
        self.guest.free_read(key.socket, s);
        if !self.guest.pool_starved.contains(&key) {
            self.guest.pool_starved.push(key);
        }
        if first {
            self.ask_all_for_room();
        }
    }

    fn ask_all_for_room(&mut self) {
        for key in self.guest.holders_of_rx() {
            self.with(key, |c, key, cell, mut s| {
                c.guest.free_read(key.socket, &mut s);
                c.ask_while_short(key, cell, &mut s);
                Some(s)
            });
        }
    }

    /// The rest of the stack's word on a connection that is closed on this side: bytes that come now are nobody's.
    pub(crate) fn orphan_receives(&mut self, s: &mut Taken<S>) -> bool {
        if !s.readable {
            return false;
        }
        s.readable = false;
        s.handle.as_ref().is_some_and(|h| self.stack.unread(h) > 0)
    }
}
