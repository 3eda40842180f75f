//! What sockets hold whose peers read slowly or not at all. A blocked socket keeps what it published, up to a whole ring, and what it publishes further
//! counts as leased to its process until somebody looks. So when a process runs out, all that are blocked have a turn; and once the pool is
//! short, a stream that holds some of it sends nothing more until it holds few or the pool has enough again, so that what is left is for those
//! that hold none. The cell says so ([`SF_TX_BRAKED`]); what a guest does about that is its own affair.

use nk_device::Cell;
use nk_device::cell::SF_TX_BRAKED;

use crate::guest::Guest;
use crate::service::{Ctx, OUT, Taken};
use crate::socket::Socket;
use crate::{Key, Stack};

impl<T> Guest<T> {
    /// The socket has published what it cannot send now, and is not braked: so it may publish more.
    pub(crate) fn enter_blocked(&mut self, key: Key, s: &mut Socket<T>) {
        if !core::mem::replace(&mut s.in_blocked, true) {
            self.blocked.push_back(key);
        }
    }

    /// Forgets a socket that is closed, or another service's from now on.
    pub(crate) fn leave_blocked(&mut self, key: Key, s: &Socket<T>) {
        for (is_there, keys) in [(s.in_blocked, &mut self.blocked), (s.in_braked, &mut self.braked)]
        {
            if is_there {
                keys.retain(|k| *k != key);
            }
        }
    }
}

impl<S: Stack> Ctx<'_, S> {
    /// A process ran out of chunks, or the pool is short: whoever cannot go on has a turn, in which what it published is taken and counted.
    pub(crate) fn look_at_blocked(&mut self) {
        if !self.guest.braking && self.guest.pool.is_short(false) {
            self.guest.braking = true;
            self.guest.take_back_all();
        }
        for key in core::mem::take(&mut self.guest.blocked) {
            self.with(key, |c, key, _, mut s| {
                s.in_blocked = false;
                c.enqueue(key, &mut s);
                Some(s)
            });
        }
    }

    /// The pool is short: a stream that holds some of it leaves the rest to others.
    pub(crate) fn brake(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) {
        let holds = s.datagram.is_none() && s.tx.len() >= self.guest.pool.tx_share();
        if holds && !s.has(SF_TX_BRAKED) {
            s.change(cell, SF_TX_BRAKED, 0);
            // One that was released since stays among them: what comes of a brake is paid for by what was sent.
            if !core::mem::replace(&mut s.in_braked, true) {
                self.guest.braked.push_back(key);
            }
        }
    }

    /// Lets a socket send that holds so many and no more. Who waits for that is told by who calls this.
    pub(crate) fn release_if_few(&mut self, cell: &Cell, s: &mut Taken<S>, held: usize) {
        if s.has(SF_TX_BRAKED) && held <= self.guest.pool.tx_share() / 2 {
            s.change(cell, 0, SF_TX_BRAKED);
        }
    }

    /// Chunks came back: if they are enough, all may send again.
    pub(crate) fn ease_brake(&mut self) {
        if !self.guest.braking || self.guest.pool.is_short(true) {
            return;
        }
        self.guest.braking = false;
        for key in core::mem::take(&mut self.guest.braked) {
            self.with(key, |c, key, cell, mut s| {
                s.in_braked = false;
                if s.has(SF_TX_BRAKED) {
                    if s.release_brake(cell) {
                        c.tell(key, cell, OUT);
                    }
                    c.guest.enter_blocked(key, &mut s);
                }
                Some(s)
            });
        }
    }
}
