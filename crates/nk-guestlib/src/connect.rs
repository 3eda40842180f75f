//! The states of connect, as a caller of connect() sees them.

use nk_device::Cell;
use nk_device::cell::GF_CONNECT_CALLED;
use nk_device::sync::Ordering;

use crate::View;
use crate::errno::{EALREADY, ECONNABORTED, EISCONN};

/// What a call of connect() finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectState {
    /// Free to connect: push [`nk_device::Op::Connect`].
    Idle,
    /// Under way: EALREADY when non-blocking, else wait on `tx_wake` and look again.
    InProgress,
    /// Connected. The first connect() that sees it returns 0, later ones EISCONN.
    Connected,
    /// Failed with this errno; connect() returns it once.
    Failed(i32),
    /// A listener: EISCONN natively.
    Listening,
}

/// Looks at the connection attempt. A failed attempt's error is taken, so it is reported once; after that the socket is idle.
pub fn state(cell: &Cell) -> ConnectState {
    let v = View::of(cell);
    if v.listening() {
        return ConnectState::Listening;
    }
    if v.connected() {
        return ConnectState::Connected;
    }
    if v.dead() {
        return match cell.take_error() {
            0 if cell.guest_state.load(Ordering::Acquire) & GF_CONNECT_CALLED != 0 => {
                ConnectState::Failed(ECONNABORTED)
            }
            0 => ConnectState::Idle,
            e => ConnectState::Failed(e),
        };
    }
    if v.connecting() || cell.guest_state.load(Ordering::Acquire) & GF_CONNECT_CALLED != 0 {
        return ConnectState::InProgress;
    }
    ConnectState::Idle
}

/// The errno of a second connect() while the first is under way.
pub const AGAIN: i32 = EALREADY;
/// The errno of connect() on a connected socket.
pub const TWICE: i32 = EISCONN;
