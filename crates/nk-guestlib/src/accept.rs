//! Popping accepted sockets from a listener's ring.

use nk_device::cell::SF_RX_STALLED;
use nk_device::stream::{AcceptedSocket, Position, read_slot};
use nk_device::sync::Ordering;
use nk_device::{Cell, Device, STREAM_SLOTS};

use crate::View;
use crate::errno::EINVAL;

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
/// Two steps, so that a kill between them leaves no socket without an owner: the position is first marked as claimed (its offset
/// becomes row + 1), then the row's holder bit is set, then the position moves on. Whoever meets a claim completes it for
/// the claimer, also a signal handler that interrupted it. The engine completes the claims of a dead row.
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
        let queued = tail.wrapping_sub(at.index);
        let payload = match queued {
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
        if let Some(claimer) = claimer(at) {
            complete(device, listener, at, socket, claimer);
            continue;
        }
        let claimed = Position { index: at.index, offset: u32::from(row) + 1 };
        if listener
            .rx_pos
            .compare_exchange(word, claimed.to_word(), Ordering::SeqCst, Ordering::Relaxed)
            .is_err()
        {
            continue;
        }
        complete(device, listener, claimed, socket, row);
        if live_cell(device, socket).is_none() {
            // The connection ended in the queue and its id lives on: skip it.
            continue;
        }
        let rx_room = listener.state.load(Ordering::SeqCst) & SF_RX_STALLED != 0;
        return Accepted::Socket { socket, rx_room };
    }
}

const MAX_QUEUED: u32 = STREAM_SLOTS as u32;

/// The row that has claimed the socket at this position of a listener's ring.
#[must_use]
pub fn claimer(at: Position) -> Option<u16> {
    (at.offset != 0).then(|| (at.offset - 1) as u16)
}

fn live_cell(device: &Device, socket: AcceptedSocket) -> Option<&Cell> {
    device
        .cell(socket.socket)
        .filter(|c| c.generation.load(Ordering::Acquire) == u32::from(socket.generation))
}

fn complete(device: &Device, listener: &Cell, at: Position, socket: AcceptedSocket, row: u16) {
    if let Some(c) = live_cell(device, socket) {
        c.hold(row);
    }
    let next = Position { index: at.index.wrapping_add(1), offset: 0 };
    let _ = listener.rx_pos.compare_exchange(
        at.to_word(),
        next.to_word(),
        Ordering::SeqCst,
        Ordering::Relaxed,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;
    use nk_device::cell::SF_LISTENING;

    #[test]
    fn pops_in_order_and_holds() {
        let f = Fixture::new();
        let l = f.socket().cell;
        assert_eq!(accept(f.device(), l, 3), Accepted::Errno(EINVAL));
        l.state.store(SF_LISTENING, Ordering::Relaxed);
        assert_eq!(accept(f.device(), l, 3), Accepted::WouldBlock);
        for socket in [5, 6] {
            f.device().cell(socket).expect("cell").generation.store(9, Ordering::Relaxed);
            f.push_rx(AcceptedSocket { socket, generation: 9 }.to_payload());
        }
        for socket in [5, 6] {
            let got = accept(f.device(), l, 3);
            let socket = AcceptedSocket { socket, generation: 9 };
            assert_eq!(got, Accepted::Socket { socket, rx_room: false });
            assert!(f.device().cell(socket.socket).expect("cell").is_held_by(3));
        }
        assert_eq!(accept(f.device(), l, 3), Accepted::WouldBlock);
    }

    #[test]
    fn a_claim_left_by_a_killed_thread_is_completed_for_it() {
        let f = Fixture::new();
        let l = f.socket().cell;
        l.state.store(SF_LISTENING, Ordering::Relaxed);
        for socket in [5, 6] {
            f.device().cell(socket).expect("cell").generation.store(9, Ordering::Relaxed);
            f.push_rx(AcceptedSocket { socket, generation: 9 }.to_payload());
        }
        l.rx_pos.store(Position { index: 0, offset: 2 + 1 }.to_word(), Ordering::Relaxed);
        let got = accept(f.device(), l, 3);
        let socket = AcceptedSocket { socket: 6, generation: 9 };
        assert_eq!(got, Accepted::Socket { socket, rx_room: false });
        assert!(f.device().cell(5).expect("cell").is_held_by(2));
        assert!(!f.device().cell(5).expect("cell").is_held_by(3));
    }
}
