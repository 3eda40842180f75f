//! Datagrams from the stack onto the guest's rx ring.

use nk_device::cell::SF_DEAD;
use nk_device::datagram::{DATAGRAM_MAX, FIRST_BYTES, HEADER_BYTES, Header};
use nk_device::stream::{Span, publish_single};
use nk_device::{CHUNK_SIZE, Cell, STREAM_SLOTS};

use super::{CHUNKS, more_of};
use crate::service::{ALL, Ctx, Taken};
use crate::span::span;
use crate::{Datagram, Errno, Key, RawSpan, Stack};

/// Calls of the stack in one turn.
const ROUNDS: usize = 4;
/// Datagrams that one call may bring.
const BATCH: usize = 8;
/// Bytes that must be within the guest's rate before the stack is read.
const LEAVE: u64 = 1500;

impl<S: Stack> Ctx<'_, S> {
    pub(super) fn receive_datagrams(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) {
        self.guest.free_read(key.socket, s);
        let (mut count, mut bytes) = (0, 0u64);
        for round in 0.. {
            if !s.readable || s.handle.is_none() || s.has(SF_DEAD) || s.is_stalled() || s.waits_in {
                break;
            }
            if round >= ROUNDS {
                self.enqueue(key, s);
                break;
            }
            // How long they are is known when they are there: what is beyond this is owed.
            let leave = self.guest.input.take(LEAVE);
            if leave == 0 {
                self.guest.wait_in(key, s);
                break;
            }
            self.guest.input.settle(leave, 0);
            let room = STREAM_SLOTS - s.rx.len().min(STREAM_SLOTS);
            if room == 0 {
                self.stall(key, cell, s);
                continue;
            }
            let mut chunks = [[0u32; CHUNKS]; BATCH];
            let n = self.take_for_datagrams(s, &mut chunks, room.min(s.rx_want));
            let Some(chunks) = chunks.get(..n).filter(|c| !c.is_empty()) else {
                self.starve(key, cell, s);
                break;
            };
            let (datagrams, more) = self.read_datagrams(key, cell, s, chunks);
            self.guest.input.settle(0, more);
            count += datagrams;
            bytes += more;
        }
        if count > 0 {
            self.received(key, cell, s, bytes);
        }
        self.ask_while_short(key, cell, s);
    }

    /// Takes chunks for datagrams, for each as many as the longest needs; for how many.
    fn take_for_datagrams(
        &mut self,
        s: &Taken<S>,
        out: &mut [[u32; CHUNKS]; BATCH],
        want: usize,
    ) -> usize {
        self.guest.reap(2);
        for (n, chunks) in out.iter_mut().take(want).enumerate() {
            for i in 0..CHUNKS {
                // Most of them go back at once: what the socket has for good is one for each.
                let Some(chunk) = self.guest.pool.take_rx(s.rx.len() + n) else {
                    self.untake(chunks.get(..i).unwrap_or_default());
                    return n;
                };
                if let Some(slot) = chunks.get_mut(i) {
                    *slot = chunk;
                }
            }
        }
        want.min(BATCH)
    }

    /// One call of the stack; datagrams got, and their bytes. What was not filled goes back.
    fn read_datagrams(
        &mut self,
        key: Key,
        cell: &Cell,
        s: &mut Taken<S>,
        chunks: &[[u32; CHUNKS]],
    ) -> (usize, u64) {
        let empty = Datagram { spans: [RawSpan::EMPTY; CHUNKS], header: Header::default() };
        let mut into = [empty; BATCH];
        for (to, chunks) in into.iter_mut().zip(chunks) {
            for (i, (raw, chunk)) in to.spans.iter_mut().zip(chunks).enumerate() {
                let (offset, len) =
                    if i == 0 { (HEADER_BYTES, FIRST_BYTES) } else { (0, CHUNK_SIZE) };
                let part = Span { chunk: *chunk, offset: offset as u32, len: len as u32 };
                *raw = span(&self.guest.device, part).unwrap_or(RawSpan::EMPTY);
            }
        }
        let into = into.get_mut(..chunks.len()).unwrap_or_default();
        let result = self.on(s, |stack, h| stack.recv_datagrams(h, into));
        let got = result.unwrap_or(0).min(chunks.len());
        let mut bytes = 0;
        for (datagram, chunks) in into.iter().zip(chunks).take(got) {
            bytes += self.publish_datagram(cell, s, datagram, *chunks);
        }
        for chunks in chunks.iter().skip(got).rev() {
            self.untake(chunks);
        }
        match result {
            Ok(_) if got == chunks.len() => s.rx_want = (s.rx_want * 2).min(BATCH),
            Ok(_) => {
                s.rx_want = got.clamp(1, BATCH);
                // Nothing more is there, except an error that was announced.
                s.readable = s.hangup;
            }
            Err(e) if self.puts_off(key, s, e) => {}
            Err(Errno(e)) => {
                s.post_error(cell, e);
                self.tell(key, cell, ALL);
            }
        }
        (got, bytes)
    }

    fn publish_datagram(
        &mut self,
        cell: &Cell,
        s: &mut Taken<S>,
        datagram: &Datagram,
        chunks: [u32; CHUNKS],
    ) -> u64 {
        let [first, rest @ ..] = chunks;
        let mut header = datagram.header;
        header.len = header.len.min(DATAGRAM_MAX as u32);
        header.more = rest;
        let more = more_of(&header).to_vec();
        self.untake(rest.get(more.len()..).unwrap_or_default());
        let whole = Header::span_for(first, header.len as usize);
        self.guest.device.put_header(whole, &header);
        let payload = whole.to_payload();
        let index = s.rx_tail;
        // There is room: at most STREAM_SLOTS datagrams are out, and rx_freed is our own.
        let _ = publish_single(&cell.rx_tail, &cell.rx_slots, &mut s.rx_tail, s.rx_freed, payload);
        s.rx.push_back(first);
        if let Some(d) = &mut s.datagram {
            d.received(index, more);
            let news = header.dropped.wrapping_sub(d.dropped);
            if header.dropped != 0 && news < u32::MAX / 2 {
                d.dropped = header.dropped;
                self.guest.counters.service.datagrams_dropped.add(news.into());
            }
        }
        header.len.into()
    }

    /// The stack says that something became possible.
    pub(crate) fn datagram_event(
        &mut self,
        key: Key,
        cell: &Cell,
        s: &mut Taken<S>,
        e: &crate::StackEvent,
    ) {
        s.readable |= e.readable;
        s.writable |= e.writable;
        s.hangup |= e.error;
        if e.error && s.is_stalled() {
            // Nothing will be read now that could bring the error up.
            let errno = s.handle.as_ref().map_or(0, |h| self.stack.take_error(h));
            if errno != 0 {
                s.post_error(cell, errno);
                self.tell(key, cell, ALL);
            }
        }
        self.enqueue(key, s);
    }
}
