//! The event mask of a socket, as Linux's `tcp_poll` and `datagram_poll` compute it.

use nk_device::Cell;
use nk_device::sync::Ordering;

use crate::{View, recv};

pub use nk_device::nqe::{EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP};

/// Normal data readable.
pub const EPOLLRDNORM: u32 = 0x040;
/// Normal data writable.
pub const EPOLLWRNORM: u32 = 0x100;
/// Priority data writable; Linux says so of datagram sockets.
pub const EPOLLWRBAND: u32 = 0x200;
pub use nk_device::stream::WRITABLE_SLOTS;

/// The mask of a socket now. `can_send`: the process has chunks to send with ([`nk_device::Row::chunk_grants`]); without one
/// a socket is not writable, whatever its ring says.
#[must_use]
pub fn readiness(cell: &Cell, can_send: bool) -> u32 {
    let v = View::of(cell);
    let mut mask = 0;
    if cell.pending_error().is_some() {
        mask |= EPOLLERR;
    }
    if cell.is_datagram() {
        return mask | datagram(cell, v, can_send);
    }
    if v.listening() {
        if v.local_shut_rd() || v.dead() {
            return mask | EPOLLIN | EPOLLRDNORM | EPOLLRDHUP | EPOLLHUP | EPOLLOUT | EPOLLWRNORM;
        }
        if !recv::is_empty(cell) {
            mask |= EPOLLIN | EPOLLRDNORM;
        }
        return mask;
    }
    let closed = v.dead() || !(v.connected() || v.connecting());
    if (v.shut_rd() && v.shut_wr()) || closed {
        mask |= EPOLLHUP;
    }
    if v.shut_rd() {
        mask |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
    }
    if v.connecting() {
        return mask;
    }
    let lowat = cell.rcv_lowat.load(Ordering::Relaxed).max(1) as usize;
    if mask & EPOLLIN == 0 && recv::has_at_least(cell, lowat) {
        mask |= EPOLLIN | EPOLLRDNORM;
    }
    let has_room = || can_send && !v.braked() && cell.tx().room() >= WRITABLE_SLOTS;
    if v.shut_wr() || closed || has_room() {
        mask |= EPOLLOUT | EPOLLWRNORM;
    }
    mask
}

/// What holds besides when the host is gone for good: each call ends at once, with an error once what came before is read.
#[must_use]
pub fn without_host(cell: &Cell) -> u32 {
    let ended = EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM;
    if cell.is_datagram() {
        return ended | EPOLLWRBAND | EPOLLERR;
    }
    let ended = ended | EPOLLRDHUP | EPOLLHUP;
    // As a listener's own end, which is no error of it.
    if View::of(cell).listening() { ended } else { ended | EPOLLERR }
}

fn datagram(cell: &Cell, v: View, can_send: bool) -> u32 {
    let mut mask = 0;
    if v.shut_rd() {
        mask |= EPOLLRDHUP | EPOLLIN | EPOLLRDNORM;
    }
    if v.shut_rd() && v.shut_wr() {
        mask |= EPOLLHUP;
    }
    if !recv::is_empty(cell) {
        mask |= EPOLLIN | EPOLLRDNORM;
    }
    if can_send && cell.tx().room() >= WRITABLE_SLOTS {
        mask |= EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND;
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;
    use nk_device::cell::*;

    #[test]
    fn masks_are_those_of_linux() {
        let f = Fixture::new();
        let c = f.socket().cell;
        let normal_in = EPOLLIN | EPOLLRDNORM;
        let normal_out = EPOLLOUT | EPOLLWRNORM;
        // Fresh: TCP_CLOSE.
        assert_eq!(readiness(c, true), normal_out | EPOLLHUP);
        // From the call of connect on, before the service has seen it.
        c.guest_state.store(GF_CONNECT_CALLED, Ordering::Relaxed);
        assert_eq!(readiness(c, true), 0);
        c.guest_state.store(0, Ordering::Relaxed);
        c.state.store(SF_CONNECTING, Ordering::Relaxed);
        assert_eq!(readiness(c, true), 0);
        c.state.store(SF_CONNECTED, Ordering::Relaxed);
        assert_eq!(readiness(c, true), normal_out);
        assert_eq!(readiness(c, false), 0);
        c.state.store(SF_CONNECTED | SF_TX_BRAKED, Ordering::Relaxed);
        assert_eq!(readiness(c, true), 0);
        c.state.store(SF_CONNECTED | SF_TX_BRAKED | SF_DEAD, Ordering::Relaxed);
        assert_ne!(readiness(c, true) & EPOLLOUT, 0);
        c.state.store(SF_CONNECTED, Ordering::Relaxed);
        f.receive(b"x");
        assert_eq!(readiness(c, true), normal_in | normal_out);
        c.state.store(SF_CONNECTED | SF_EOF, Ordering::Relaxed);
        assert_eq!(readiness(c, true), normal_in | normal_out | EPOLLRDHUP);
        c.guest_state.store(GF_SHUT_WR, Ordering::Relaxed);
        assert_eq!(readiness(c, true), normal_in | normal_out | EPOLLRDHUP | EPOLLHUP);
        // Reset.
        c.guest_state.store(0, Ordering::Relaxed);
        c.state.store(SF_CONNECTED | SF_DEAD, Ordering::Relaxed);
        c.error.store(1 << 32 | 104, Ordering::Relaxed);
        let all = normal_in | normal_out | EPOLLRDHUP | EPOLLHUP;
        assert_eq!(readiness(c, true), all | EPOLLERR);
        assert_eq!(c.take_error(), 104);
        assert_eq!(c.take_error(), 0);
        assert_eq!(readiness(c, true), all);
    }

    #[test]
    fn without_a_host_each_call_ends() {
        let f = Fixture::new();
        let c = f.socket().cell;
        let ended = EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM | EPOLLRDHUP | EPOLLHUP;
        for (state, error) in
            [(SF_CONNECTED, EPOLLERR), (SF_CONNECTING, EPOLLERR), (SF_LISTENING, 0)]
        {
            c.state.store(state, Ordering::Relaxed);
            assert_eq!(without_host(c), ended | error);
        }
    }
}
