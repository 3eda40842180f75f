//! What the turns of a poll have to send goes to the stack together: every send may wake its receiver, and a poll thread that goes back to
//! user space after each is overtaken by each receiver in turn.

use core::ops::Range;

use crate::service::{Ctx, NS_PER_MS, Taken};
use crate::socket::Socket;
use crate::span::span;
use crate::turns::TURN;
use crate::{Errno, Key, RawSpan, Sending, Service, Stack};
use nk_device::stream::Span;

/// How often a poll goes back to those that published more meanwhile.
const ROUNDS: usize = 2;
/// Sends given to the stack at once.
const SENDS: usize = 64;

/// A socket that is out of its table while its send is with the stack.
struct Out<S: Stack> {
    key: Key,
    socket: Taken<S>,
    spans: Range<usize>,
    /// Bytes for which its guest's rate gave leave.
    leave: u64,
    /// What its guest's turns were charged for it.
    charged: u64,
}

/// Bytes of the socket's next send.
pub(crate) fn queued<T>(s: &Socket<T>, most: u64) -> u64 {
    s.tx.iter().map(|span| u64::from(span.len)).sum::<u64>().min(most)
}

impl<S: Stack> Ctx<'_, S> {
    /// What the socket has to send goes with the others'. Until then it stays the socket's as before.
    /// A guest whose turn is over waits for the next, but not to close.
    pub(crate) fn gather(&mut self, key: Key, s: &mut Socket<S::Socket>) {
        if s.sending {
            return;
        }
        if !s.closing && self.guest.turns.is_over() {
            return self.enqueue(key, s);
        }
        s.sending = true;
        s.charged = queued(s, self.company.most(self.now_ms));
        self.guest.turns.charge(s.charged);
        self.gathered.push(key);
    }
}

impl<S: Stack> Service<S> {
    /// Sends what was gathered. What is gathered by that, beyond some rounds, is for the next poll.
    pub(crate) fn send_gathered(&mut self, now_ns: u64) -> u32 {
        let mut n = 0;
        for _ in 0..ROUNDS {
            let mut keys = core::mem::take(&mut self.gathered);
            n += keys.len() as u32;
            for some in keys.chunks(SENDS) {
                self.send_some(some, now_ns);
            }
            keys.clear();
            if self.gathered.is_empty() {
                self.gathered = keys;
                break;
            }
        }
        n
    }

    fn send_some(&mut self, keys: &[Key], now_ns: u64) {
        let most = self.company.most(now_ns / NS_PER_MS);
        let mut spans: Vec<RawSpan> = Vec::new();
        let mut out: Vec<Out<S>> = Vec::with_capacity(keys.len());
        for key in keys {
            // One that ended meanwhile took back what it had.
            let Some(o) = self.take_out(*key, most, &mut spans) else { continue };
            out.push(o);
        }
        let sending = |o| {
            let Out { socket, spans: range, .. }: &Out<S> = o;
            let spans = spans.get(range.clone())?;
            Some(Sending { socket: socket.handle.as_ref()?, spans, result: Ok(0) })
        };
        let mut sends: Vec<_> = out.iter().filter_map(sending).collect();
        self.stack.send_all(&mut sends);
        let results: Vec<_> = sends.into_iter().map(|s| s.result).collect();
        for (o, result) in out.into_iter().zip(results) {
            let bytes =
                spans.get(o.spans.clone()).unwrap_or_default().iter().map(RawSpan::len).sum();
            self.put_back(o, bytes, result, now_ns);
        }
    }

    /// A socket with what it has to send, `most` bytes of it.
    fn take_out(&mut self, key: Key, most: u64, spans: &mut Vec<RawSpan>) -> Option<Out<S>> {
        let guest = self.guests.get_mut(usize::from(key.guest))?.as_deref_mut()?;
        let mut socket = guest.take(key)?;
        socket.sending = false;
        let charged = core::mem::take(&mut socket.charged);
        let unspent = charged.saturating_sub(TURN.unsigned_abs());
        if socket.handle.is_none() || socket.tx.is_empty() {
            guest.turns.give_back(unspent);
            guest.put(key.socket, socket);
            return None;
        }
        let leave = if socket.waits_out { 0 } else { guest.out.take(queued(&socket, most)) };
        if leave == 0 {
            if !socket.waits_out {
                guest.wait_out(key, &mut socket);
            }
            guest.turns.give_back(unspent);
            guest.put(key.socket, socket);
            return None;
        }
        let first = spans.len();
        let mut left = leave;
        spans.extend(socket.tx.iter().map_while(|s| {
            let len = left.min(s.len.into()) as u32;
            left -= u64::from(len);
            span(&guest.device, Span { len, ..*s }).filter(|_| len > 0)
        }));
        Some(Out { key, socket, spans: first..spans.len(), leave, charged })
    }

    fn put_back(&mut self, o: Out<S>, bytes: usize, result: Result<usize, Errno>, now_ns: u64) {
        let Out { key, socket, leave, charged, .. } = o;
        let sent = result.map_or(0, |sent| sent as u64);
        self.ctx(key.guest, now_ns, |c| {
            c.guest.out.settle(leave, sent);
            c.guest.turns.give_back(charged.saturating_sub(sent.max(TURN.unsigned_abs())));
            c.guest.put(key.socket, socket);
            c.with(key, |c, key, cell, mut s| {
                c.sent(key, cell, &mut s, bytes, result);
                c.transmit_or_end(key, cell, s)
            })
        });
    }
}
