//! Datagrams from the guest's tx ring to the stack.

use nk_device::cell::SF_CONNECTED;
use nk_device::datagram::{DF_REPORT, FIRST_BYTES, Header};
use nk_device::stream::{self, Span};
use nk_device::sync::Ordering;
use nk_device::{CHUNK_SIZE, Cell, Nqe, STREAM_SLOTS};

use super::{CHUNKS, Queued, more_of};
use crate::service::{ALL, Ctx, OUT, Taken};
use crate::span::span;
use crate::{Errno, Key, RawSpan, Stack};

/// What an ICMP error becomes on a connected socket (Linux's icmp_err_convert and its IPv6 relative).
const ICMP_ERRORS: [i32; 9] = [
    libc::ECONNREFUSED,
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::ENOPROTOOPT,
    libc::EMSGSIZE,
    libc::EOPNOTSUPP,
    libc::EHOSTDOWN,
    libc::EACCES,
    libc::EPROTO,
];

/// Calls that wait for a report at once.
const REPORTS_MAX: usize = 64;
/// What a datagram counts for at least in its guest's turn, in bytes: it is a call of the stack, in whose time a stream moves some thousands, and a
/// descriptor may have many.
const COST_MIN: u64 = 8 * 1024;

/// A place in the queue of no bytes, which has these chunks.
fn nothing(chunks: &[u32]) -> (Span, Header) {
    let mut header = Header::default();
    let (first, more) = chunks.split_first().map_or((u32::MAX, chunks), |(f, more)| (*f, more));
    if !more.is_empty() {
        header.len = (FIRST_BYTES + more.len() * CHUNK_SIZE) as u32;
    }
    for (to, from) in header.more.iter_mut().zip(more) {
        *to = *from;
    }
    (Span { chunk: first, offset: 0, len: 0 }, header)
}

impl<S: Stack> Ctx<'_, S> {
    /// Takes the chunks that a descriptor names, which begins with this datagram.
    ///
    /// # Errors
    /// A place of no bytes, when not all of them are leased: it has those that were.
    fn begin_datagram(&mut self, span: Span) -> Result<Header, (Span, Header)> {
        let header = self.guest.device.header_of(span).ok_or_else(|| nothing(&[]))?;
        let (more, _) = header.split(span).ok_or_else(|| nothing(&[]))?;
        let mut chunks = [span.chunk; CHUNKS];
        for (to, from) in chunks.iter_mut().skip(1).zip(more) {
            *to = *from;
        }
        for (n, chunk) in chunks.iter().take(1 + more.len()).enumerate() {
            if self.guest.begin_tx(*chunk).is_none() {
                // The row's account is right: these are no more its. Free they are when the ring names them no more.
                return Err(nothing(chunks.get(..n).unwrap_or_default()));
            }
        }
        Ok(header)
    }

    /// Moves on from the datagram that is next to be sent: to the one behind it in its descriptor, if that has one. Its header is read now, once, and
    /// holds for a span that is this service's own, so whatever the guest writes there, the descriptor ends where it ended. One that is not
    /// right is dropped with all that is behind it, and counted.
    fn datagram_done(&mut self, cell: &Cell, s: &mut Taken<S>) {
        let queued = s.datagram.as_mut().and_then(|d| d.tx.front_mut());
        if let (Some(span), Some(queued)) = (s.tx.front_mut(), queued)
            && let Some((_, Some(left))) = queued.header.split(*span)
        {
            let next = self.guest.device.header_of(left).filter(|h| h.split(left).is_some());
            if let Some(header) = next {
                (*span, queued.header) = (left, header);
                return;
            }
            self.guest.counters.service.violations.add(1);
        }
        let _ = self.descriptor_done(cell, s);
    }

    /// Moves on from the descriptor that is next to be sent, and gives back its chunks ([`Ctx::free_tx`]). Who waits for room is told by
    /// [`Cell::consume_tx`]. `None`: there was none.
    pub(crate) fn descriptor_done(&mut self, cell: &Cell, s: &mut Taken<S>) -> Option<()> {
        let span = s.tx.pop_front()?;
        let queued = s.datagram.as_mut()?.tx.pop_front()?;
        s.tx_head = s.tx_head.wrapping_add(1);
        if self.guest.pool.ledger().is_some() {
            cell.tx_head.store(s.tx_head, Ordering::SeqCst);
        }
        for chunk in [span.chunk].iter().chain(more_of(&queued.header)) {
            self.guest.pool.free(*chunk);
        }
        Some(())
    }

    /// Enters what was taken at the next descriptor. One that is not right is dropped, and counted: after a restart of the service a
    /// guest's process may innocently use a chunk that the last service had leased to it.
    pub(crate) fn enter_datagrams(
        &mut self,
        key: Key,
        s: &mut Taken<S>,
        taken: Option<stream::Taken>,
    ) {
        let begun = match taken.and_then(|t| Span::from_payload(t.payload)) {
            Some(span) => self.begin_datagram(span).map(|header| (span, header)),
            None => Err(nothing(&[])),
        };
        if begun.is_err() {
            self.guest.counters.service.violations.add(1);
        }
        // One of no bytes keeps the order of the queue, and its index.
        let (Ok((span, header)) | Err((span, header))) = begun;
        if taken.is_some_and(|t| t.appending) {
            self.share(key, span.chunk);
        }
        s.tx.push_back(span);
        if let Some(d) = &mut s.datagram {
            d.tx.push_back(Queued { header, peer: None });
        }
        s.tx_next = s.tx_next.wrapping_add(1);
    }

    /// Sends what was taken from the ring, until the stack has no room. `false`: it has sent what one turn may, of which `spent` was before, and the
    /// rest has another.
    pub(crate) fn push_datagrams(
        &mut self,
        key: Key,
        cell: &Cell,
        s: &mut Taken<S>,
        spent: &mut u64,
    ) -> bool {
        let (mut bytes, before, mut is_over) = (0u64, *spent, false);
        self.choose_port(s);
        while let (Some(first), Some(header)) =
            (s.tx.front().copied(), s.datagram.as_ref().and_then(|d| Some(d.tx.front()?.to_send())))
        {
            is_over = *spent >= self.company.most(self.now_ms);
            if is_over {
                self.enqueue(key, s);
                break;
            }
            if first.len > 0 {
                let leave = u64::from(header.len);
                if !self.guest.out.take_whole(leave) {
                    self.guest.wait_out(key, s);
                    break;
                }
                match self.send_one(key, cell, s, first, &header) {
                    Ok(()) => bytes += u64::from(header.len),
                    Err(Errno(libc::EAGAIN)) => {
                        self.guest.out.settle(leave, 0);
                        s.writable = false;
                        break;
                    }
                    Err(Errno(e)) => {
                        self.guest.out.settle(leave, 0);
                        self.refused(key, cell, s, &header, e);
                    }
                }
                *spent += leave.max(COST_MIN);
            }
            self.datagram_done(cell, s);
        }
        if s.datagram.as_ref().is_some_and(|d| !d.has_port) {
            self.refresh_local(key, cell, s);
        }
        self.answer_reports(s);
        self.count_sent(cell, s, bytes);
        self.guest.turns.charge(*spent - before);
        if cell.consume_tx(s.tx_head, s.state(), &mut s.tx_served) {
            self.tell(key, cell, OUT);
        }
        !is_over
    }

    fn send_one(
        &mut self,
        key: Key,
        cell: &Cell,
        s: &mut Taken<S>,
        first: Span,
        header: &Header,
    ) -> Result<(), Errno> {
        let mut spans = [RawSpan::EMPTY; CHUNKS];
        let mut n = 0;
        header.for_each_part(first, |chunk, offset, len, _| {
            let part = Span { chunk, offset: offset as u32, len: len as u32 };
            let (Some(to), Some(raw)) = (spans.get_mut(n), span(&self.guest.device, part)) else {
                return false;
            };
            *to = raw;
            n += 1;
            true
        });
        let spans = spans.get(..n).unwrap_or_default();
        match self.on(s, |stack, h| stack.send_datagram(h, header, spans)) {
            Ok(()) => Ok(()),
            Err(Errno(libc::EAGAIN)) => Err(Errno(libc::EAGAIN)),
            // An error that the socket had pending (an ICMP error that came) stands in a send's way once.
            Err(e) if s.has(SF_CONNECTED) && ICMP_ERRORS.contains(&e.0) => {
                let again = self.on(s, |stack, h| stack.send_datagram(h, header, spans));
                if matches!(again, Ok(()) | Err(Errno(libc::EAGAIN))) {
                    s.post_error(cell, e.0);
                    self.tell(key, cell, ALL);
                }
                again
            }
            Err(e) => Err(e),
        }
    }

    /// The stack does not send this datagram.
    fn refused(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>, header: &Header, errno: i32) {
        if header.flags & DF_REPORT != 0 {
            let index = s.tx_head;
            if let Some(d) = &mut s.datagram {
                if d.failed.len() >= STREAM_SLOTS {
                    // Whoever should have asked for these was killed.
                    d.failed.pop_front();
                }
                d.failed.push_back((index, errno));
            }
            return;
        }
        self.guest.counters.service.datagrams_refused.add(1);
        cell.tx_refused.fetch_add(1, Ordering::SeqCst);
        if s.has(SF_CONNECTED) {
            s.post_error(cell, errno);
            self.tell(key, cell, ALL);
        }
    }

    /// Sends what is queued and tells what became of one.
    pub(crate) fn report(&mut self, nqe: &Nqe, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
        if s.datagram.is_none() {
            self.reply(nqe, Err(Errno(libc::EOPNOTSUPP)));
            return s;
        }
        if !self.transmit(key, cell, &mut s) {
            self.break_off(key, cell, &mut s);
        }
        let index = nqe.op_data as u32;
        // A rate holds it back, or more stands before it than goes in one turn; for what the stack has no room for nobody waits.
        let is_to_come = s.waits_out || s.writable;
        let is_held = is_to_come && (index.wrapping_sub(s.tx_head) as i32) >= 0;
        if let Some(d) = s.datagram.as_mut().filter(|d| is_held && d.reports.len() < REPORTS_MAX) {
            d.reports.push_back((index, *nqe));
            return s;
        }
        self.answer_report(&mut s, index, nqe);
        s
    }

    /// Answers those whose datagram is gone by now.
    fn answer_reports(&mut self, s: &mut Taken<S>) {
        let head = s.tx_head;
        while let Some((index, nqe)) = s.datagram.as_mut().and_then(|d| {
            let at = d.reports.iter().position(|(i, _)| (i.wrapping_sub(head) as i32) < 0)?;
            d.reports.remove(at)
        }) {
            self.answer_report(s, index, &nqe);
        }
    }

    /// What is queued is not sent any more: whoever waits for the report of it is told.
    pub(crate) fn end_reports(&mut self, s: &mut Taken<S>) {
        let all = s.datagram.as_mut().map(|d| core::mem::take(&mut d.reports));
        for (_, nqe) in all.into_iter().flatten() {
            self.reply(&nqe, Err(Errno(libc::ECONNRESET)));
        }
    }

    fn answer_report(&mut self, s: &mut Taken<S>, index: u32, nqe: &Nqe) {
        let found = s.datagram.as_mut().and_then(|d| {
            let at = d.failed.iter().position(|(i, _)| *i == index)?;
            d.failed.remove(at)
        });
        self.reply(nqe, found.map_or(Ok(0), |(_, errno)| Err(Errno(errno))));
    }
}
