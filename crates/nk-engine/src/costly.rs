//! Operations that cost an NSM far more than an element does: a socket to make, a handshake, a close, an option of a
//! datagram socket, which the daemon and the keeper are told of. A turn of elements bounds what the
//! engine does for a guest, not what the NSM then has to do; fifty connects in one poll are milliseconds in which nobody else is served.
//!
//! So an NSM has few of them before it at any time, a guest adds few in its turn, and the others wait on their guests' own rings, with what
//! stands behind them there. The queue sets that wait have their turn when the NSM has taken some. Of a guest that was moved each of its NSMs
//! has its own.

use std::collections::VecDeque;

use nk_device::qset::JOB_SLOTS;
use nk_device::{Nqe, Op};

use crate::NsmId;
use crate::engine::Parts;
use crate::guest::{Guest, Socket, State};

/// Before an NSM at once, of all guests: a few hundred microseconds' worth.
const AHEAD: usize = 8;
/// A guest of weight 1 adds in its turn.
pub(crate) const TURN: u32 = 4;

/// Whether an operation is one of them.
pub(crate) fn is_costly(op: u8) -> bool {
    matches!(
        Op::from_u8(op),
        Some(
            Op::Socket
                | Op::Bind
                | Op::Listen
                | Op::Connect
                | Op::Disconnect
                | Op::Shutdown
                | Op::Close
        )
    )
}

impl Guest {
    /// How many costly operations an element is. One that names an id which was granted makes a socket of it, whatever else it asks.
    pub(crate) fn price(&self, nqe: &Nqe) -> u32 {
        let its = |s: &&Socket| s.generation == nqe.generation;
        let makes = match self.socket(nqe.socket).filter(its).map(Socket::state) {
            // Given back, and no socket.
            Some(State::GrantedRow) => nqe.op != Op::Socket as u8 && nqe.op != Op::Close as u8,
            _ => false,
        };
        u32::from(makes) + u32::from(is_costly(nqe.op) || self.is_kept_option(nqe))
    }

    /// Whether an element sets an option of a datagram socket: that is told to the daemon and to the keeper, from where the next NSM has it.
    pub(crate) fn is_kept_option(&self, nqe: &Nqe) -> bool {
        nqe.op == Op::SetSockOpt as u8 && self.socket(nqe.socket).is_some_and(|s| s.datagram)
    }

    /// The NSM that an element about a socket, or about an id that was granted, is for.
    pub(crate) fn nsm_asked(&self, socket: u32) -> NsmId {
        match self.socket(socket) {
            Some(s) if s.state() != State::GrantedRow => s.nsm,
            _ => self.nsm,
        }
    }

    /// An NSM has nothing of the guest's any more: who waits for it looks again.
    pub(crate) fn await_no_nsm(&mut self) {
        self.active.extend(self.waiting.drain(..).map(|(q, _)| q));
    }
}

impl Parts<'_> {
    /// Queue sets that wait for an NSM have their turn when it has room.
    pub(crate) fn go_on_waiting(&mut self) {
        for _ in 0..self.guest.waiting.len() {
            let Some((q, nsm)) = self.guest.waiting.pop_front() else { break };
            if self.nsm_named(nsm).has_room_for_costly() {
                self.guest.active.push_back(q);
            } else {
                self.guest.waiting.push_back((q, nsm));
            }
        }
    }
}

/// Those that an NSM was given and has not taken, by their places on its job ring.
#[derive(Debug, Default)]
pub(crate) struct Ahead(VecDeque<u32>);

/// What is not taken is at most a ring ahead. By that, and not by the distance's sign: a place may be of any number of elements ago.
fn is_taken(place: u32, head: u32) -> bool {
    place.wrapping_sub(head) >= JOB_SLOTS as u32
}

impl Ahead {
    /// One more, at this place; the NSM's head says what it took.
    pub(crate) fn add(&mut self, place: u32, head: u32) {
        while self.0.front().is_some_and(|at| is_taken(*at, head)) {
            self.0.pop_front();
        }
        self.0.push_back(place);
    }

    /// Whether there is room for more.
    pub(crate) fn has_room(&self, head: u32) -> bool {
        // In order, so the one that must be taken for room to be is known.
        let last = self.0.len().checked_sub(AHEAD).and_then(|n| self.0.get(n));
        last.is_none_or(|at| is_taken(*at, head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_as_the_nsm_takes_some() {
        let start = u32::MAX - 3;
        let mut ahead = Ahead::default();
        for n in 0..AHEAD as u32 {
            assert!(ahead.has_room(start), "{n}");
            ahead.add(start.wrapping_add(n), start);
        }
        assert!(!ahead.has_room(start));
        assert!(ahead.has_room(start.wrapping_add(1)));
        // Pushed all the same (sockets of a process that died): as many must be taken before others are.
        ahead.add(start.wrapping_add(16), start);
        assert!(!ahead.has_room(start.wrapping_add(1)));
        assert!(ahead.has_room(start.wrapping_add(2)));
        ahead.add(start.wrapping_add(17), start.wrapping_add(17));
        assert_eq!(ahead.0.len(), 1);
    }

    #[test]
    fn places_of_long_ago_are_taken() {
        let mut ahead = Ahead::default();
        for n in 0..AHEAD as u32 {
            ahead.add(n, 0);
        }
        assert!(!ahead.has_room(0));
        for later in [JOB_SLOTS as u32, i32::MAX as u32, (1 << 31) + 9, u32::MAX - 1000] {
            assert!(ahead.has_room(later), "{later}");
        }
    }
}
