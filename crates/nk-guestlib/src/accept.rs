//! Popping accepted sockets from a listener's ring.

use nk_device::cell::SF_RX_STALLED;
use nk_device::stream::{AcceptedSocket, Position, read_slot};
use nk_device::sync::{Ordering, fence};
use nk_device::{Cell, Device};

use crate::errno::EINVAL;
use crate::{MAX_QUEUED, View};

/// What accept gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// A socket that the row now holds.
    Socket {
        /// The socket.
        socket: AcceptedSocket,
        /// Push [`nk_device::Op::RxRoom`]: the service waits for room on the listener's ring.
        rx_room: bool,
    },
    /// None yet: wait on `rx_wake` or return EAGAIN.
    WouldBlock,
    /// An errno.
    Errno(i32),
}

/// Accepts for the process of `row`.
///
/// Three steps, each of which anybody may find done: the socket is claimed in its own cell ([`Cell::claim`]), which decides;
/// the row's holder bit is set; the listener's position moves on. Whoever meets a claimed socket moves the position for its
/// claimer, also a signal handler that interrupted it, but never touches the socket: that may have been used, closed and
/// born again since. A row that dies before its bit is set is found by [`Cell::claimed_by`].
pub fn accept(device: &Device, listener: &Cell, row: u16) -> Accepted {
    loop {
        let v = View::of(listener);
        if !v.listening() || v.local_shut_rd() || v.dead() {
            return match listener.take_error() {
                0 => Accepted::Errno(EINVAL),
                e => Accepted::Errno(e),
            };
        }
        let word = listener.rx_pos.load(Ordering::Acquire);
        let at = Position::from_word(word);
        let tail = listener.rx_tail.load(Ordering::Acquire);
        let payload = match tail.wrapping_sub(at.index) {
            1..=MAX_QUEUED => read_slot(&listener.rx_slots, at.index),
            _ => None,
        };
        let Some(payload) = payload else {
            if listener.rx_pos.load(Ordering::Acquire) != word {
                continue;
            }
            return Accepted::WouldBlock;
        };
        let socket = AcceptedSocket::from_payload(payload);
        let mine = device.cell(socket.socket).is_some_and(|c| {
            let mine = c.claim(socket.generation, row);
            if mine {
                c.hold(row);
            }
            mine
        });
        let next = Position { index: at.index.wrapping_add(1), offset: 0 };
        let _ = listener.rx_pos.compare_exchange(
            word,
            next.to_word(),
            Ordering::SeqCst,
            Ordering::Relaxed,
        );
        if mine {
            // Against `Cell::stall_rx`: the position moved, whoever moved it; now the service's state.
            fence(Ordering::SeqCst);
            let rx_room = listener.state.load(Ordering::SeqCst) & SF_RX_STALLED != 0;
            return Accepted::Socket { socket, rx_room };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;
    use nk_device::cell::SF_LISTENING;

    fn listener_with(f: &Fixture, sockets: &[u32]) {
        f.socket().cell.state.store(SF_LISTENING, Ordering::Relaxed);
        for &socket in sockets {
            f.device().cell(socket).expect("cell").reset(9);
            f.push_rx(AcceptedSocket { socket, generation: 9 }.to_payload());
        }
    }

    fn got(socket: u32) -> Accepted {
        Accepted::Socket { socket: AcceptedSocket { socket, generation: 9 }, rx_room: false }
    }

    #[test]
    fn pops_in_order_and_holds() {
        let f = Fixture::new();
        let l = f.socket().cell;
        assert_eq!(accept(f.device(), l, 3), Accepted::Errno(EINVAL));
        listener_with(&f, &[]);
        assert_eq!(accept(f.device(), l, 3), Accepted::WouldBlock);
        listener_with(&f, &[5, 6]);
        for socket in [5, 6] {
            assert_eq!(accept(f.device(), l, 3), got(socket));
            let c = f.device().cell(socket).expect("cell");
            assert!(c.is_held_by(3));
            assert_eq!(c.claimed_by(9), Some(3));
        }
        assert_eq!(accept(f.device(), l, 3), Accepted::WouldBlock);
    }

    #[test]
    fn what_a_killed_thread_claimed_stays_its_own() {
        let f = Fixture::new();
        let l = f.socket().cell;
        listener_with(&f, &[5, 6]);
        let first = f.device().cell(5).expect("cell");
        assert!(first.claim(9, 2));
        assert_eq!(accept(f.device(), l, 3), got(6));
        assert_eq!(first.claimed_by(9), Some(2));
        assert!(first.is_unheld(), "the engine finds it claimed by a dead row and unheld");
    }

    #[test]
    fn a_connection_that_ended_in_the_queue_is_skipped() {
        let f = Fixture::new();
        let l = f.socket().cell;
        listener_with(&f, &[5, 6]);
        f.device().cell(5).expect("cell").reset(10);
        assert_eq!(accept(f.device(), l, 3), got(6));
        assert!(f.device().cell(5).expect("cell").is_unheld());
        assert_eq!(f.device().cell(5).expect("cell").claimed_by(10), None);
    }
}
