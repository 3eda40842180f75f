//! GuestLib's core: what a BSD socket does, over the cells and rings of the NK device.
//!
//! Transitions only: nothing here blocks, locks, allocates, reads a clock or touches user memory. The shells (the process
//! shell `libnetkernel.so` and the kernel module) supply waiting and copying, and carry out the effects that are returned.
//!
//! | module | what |
//! |---|---|
//! | [`readiness`] | the event mask that Linux's `tcp_poll` would give |
//! | [`send`] | user bytes into chunks and onto the tx ring |
//! | [`recv`] | from the rx ring into user bytes |
//! | [`datagram`] | whole datagrams onto the tx ring and from the rx ring |
//! | [`accept`] | popping accepted sockets |
//! | [`connect`] | the states of connect |
//! | [`options`] | the table of socket options: served here, forwarded, refused |
//! | [`errno`] | Linux's numbers |
//!
//! Lock-free throughout: any call may be interrupted, by a signal handler that makes the same call or by SIGKILL, at any point.
#![no_std]
#![cfg_attr(not(test), forbid(unsafe_code))]

pub mod accept;
pub mod connect;
pub mod datagram;
pub mod options;
pub mod readiness;
pub mod recv;
pub mod send;

pub use nk_device::errno;

use nk_device::cell::{
    GF_CONNECT_CALLED, GF_SHUT_RD, GF_SHUT_WR, SF_CONNECTED, SF_CONNECTING, SF_DEAD, SF_EOF,
    SF_FAILED, SF_LISTENING, SF_TX_BRAKED,
};
use nk_device::sync::Ordering;
use nk_device::{Cell, Device};

/// Descriptors that a ring can have.
pub(crate) const MAX_QUEUED: u32 = nk_device::STREAM_SLOTS as u32;

/// A socket to work on: its cell, and the device that its chunks are in.
#[derive(Clone, Copy, Debug)]
pub struct Socket<'a> {
    /// The device.
    pub device: &'a Device,
    /// The cell.
    pub cell: &'a Cell,
}

/// The user's memory could not be read or written (EFAULT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// Both sides' state bits, read once for one decision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    state: u32,
    guest: u32,
}

impl View {
    pub(crate) fn of(cell: &Cell) -> View {
        View {
            state: cell.state.load(Ordering::Acquire),
            guest: cell.guest_state.load(Ordering::Acquire),
        }
    }
    pub(crate) fn listening(self) -> bool {
        self.state & SF_LISTENING != 0
    }
    /// A connect is under way: from the call on, before the service has seen it.
    pub(crate) fn connecting(self) -> bool {
        self.state & (SF_CONNECTED | SF_DEAD | SF_FAILED) == 0
            && (self.state & SF_CONNECTING != 0 || self.guest & GF_CONNECT_CALLED != 0)
    }
    pub(crate) fn connected(self) -> bool {
        self.state & SF_CONNECTED != 0
    }
    /// Gone in both directions. A connect that failed and whose failure connect() itself has told leaves a fresh socket (Linux
    /// disconnects it then).
    pub(crate) fn dead(self) -> bool {
        self.state & SF_DEAD != 0 && !self.is_fresh_again()
    }
    fn is_fresh_again(self) -> bool {
        self.state & (SF_FAILED | SF_CONNECTED) == SF_FAILED && self.guest & GF_CONNECT_CALLED == 0
    }
    /// The peer's FIN was seen.
    pub(crate) fn peer_finished(self) -> bool {
        self.state & SF_EOF != 0
    }
    /// Linux's `RCV_SHUTDOWN`.
    pub(crate) fn shut_rd(self) -> bool {
        self.state & SF_EOF != 0 || self.dead() || self.guest & GF_SHUT_RD != 0
    }
    /// Linux's `SEND_SHUTDOWN`.
    pub(crate) fn shut_wr(self) -> bool {
        self.dead() || self.guest & GF_SHUT_WR != 0
    }
    /// The pool is short, and this socket is to leave what is left of it to others.
    pub(crate) fn braked(self) -> bool {
        self.state & SF_TX_BRAKED != 0
    }
    pub(crate) fn local_shut_rd(self) -> bool {
        self.guest & GF_SHUT_RD != 0
    }
}

#[cfg(test)]
pub(crate) mod testing;
