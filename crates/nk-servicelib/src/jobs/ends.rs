//! What ends one way or all of a connection, and what waits for its time.

use nk_device::cell::{SF_DEAD, SF_LISTENING, SF_RX_STALLED};
use nk_device::{Cell, Nqe};

use crate::service::{ALL, Ctx, Due, Taken};
use crate::socket::Drain;
use crate::{Errno, How, Key, Stack};

/// How often a drain looks again.
const DRAIN_STEP_MS: u64 = 2;
/// When a closed socket that its guest's rate holds back is looked at again.
const AGAIN_MS: u64 = 1_000;

impl<S: Stack> Ctx<'_, S> {
    pub(super) fn shut(&mut self, nqe: &Nqe, key: Key, cell: &Cell, mut s: Taken<S>) -> Taken<S> {
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

    pub(super) fn begin_drain(
        &mut self,
        nqe: &Nqe,
        key: Key,
        cell: &Cell,
        mut s: Taken<S>,
    ) -> Taken<S> {
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
}
