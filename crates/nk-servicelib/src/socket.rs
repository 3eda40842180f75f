//! One socket as the service knows it. All positions and states are private copies; the cell is only written.

use std::collections::VecDeque;

use nk_device::cell::{
    SF_CONNECTED, SF_CONNECTING, SF_DEAD, SF_EOF, SF_LISTENING, SF_RX_STALLED, SF_TX_BRAKED,
};
use nk_device::stream::{Position, Span};
use nk_device::sync::Ordering;
use nk_device::{Addr, Cell};

use crate::datagram::Datagrams;

/// A listener's part.
#[derive(Debug)]
pub(crate) struct Listener {
    /// What the guest gave to listen.
    pub(crate) backlog: u32,
    /// What the stack has of it now; the rest is for accepted sockets on the ring.
    pub(crate) behind: u32,
    /// Accepting failed for want of something: wait this long.
    pub(crate) pause_ms: u64,
    /// Until then.
    pub(crate) paused_until_ms: u64,
}

/// How long accepting rests at first when something is wanting.
pub(crate) const PAUSE_MS_MIN: u64 = 10;

impl Listener {
    pub(crate) fn new(backlog: u32) -> Listener {
        let behind = crate::listener::behind(backlog, 0);
        Listener { backlog, behind, pause_ms: PAUSE_MS_MIN, paused_until_ms: 0 }
    }
}

/// A synchronous wait for everything to be acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    pub(crate) qset: u16,
    pub(crate) ticket: u8,
    pub(crate) until_ms: u64,
}

#[derive(Debug)]
pub(crate) struct Socket<T> {
    pub(crate) generation: u16,
    pub(crate) family: u16,
    /// `None` when opening it failed with `open_error`.
    pub(crate) handle: Option<T>,
    pub(crate) open_error: i32,
    /// The engine holds its address for the guest.
    pub(crate) is_claimed: bool,
    /// It was made one for IPv6 alone before it had an address.
    pub(crate) is_v6only: bool,
    state: u32,
    error_seq: u32,
    // ---- to the stack ----
    pub(crate) tx_seq: u32,
    pub(crate) tx_head: u32,
    /// Descriptors below this were copied to `tx`.
    pub(crate) tx_next: u32,
    pub(crate) tx: VecDeque<Span>,
    pub(crate) tx_bytes: u64,
    /// See [`Cell::consume_tx`].
    pub(crate) tx_served: u32,
    pub(crate) writable: bool,
    /// Nothing sent is of use any more: descriptors are only taken back.
    pub(crate) tx_broken: bool,
    /// It is among those whose bytes go with the next [`crate::Service::send_gathered`].
    pub(crate) sending: bool,
    /// What its guest's turns were charged for that.
    pub(crate) charged: u64,
    /// It is among its guest's blocked ones, and among those that were braked.
    pub(crate) in_blocked: bool,
    pub(crate) in_braked: bool,
    /// It waits for its guest's rate of sending.
    pub(crate) waits_out: bool,
    /// It waits for its guest's rate of receiving.
    pub(crate) waits_in: bool,
    pub(crate) shut_wr_wanted: bool,
    pub(crate) shut_wr: bool,
    // ---- from the stack ----
    pub(crate) rx_tail: u32,
    /// Descriptors below this were freed.
    pub(crate) rx_freed: u32,
    pub(crate) rx: VecDeque<u32>,
    pub(crate) rx_bytes: u64,
    /// Chunks to offer next.
    pub(crate) rx_want: usize,
    pub(crate) readable: bool,
    pub(crate) hangup: bool,
    pub(crate) in_reap: bool,
    // ---- life ----
    pub(crate) running: bool,
    pub(crate) closing: bool,
    /// Closed in a way that resets: for bytes that nobody read, or by SO_LINGER.
    pub(crate) resets: bool,
    /// Closed, and the stack did not take all that was left.
    pub(crate) orphaned: bool,
    pub(crate) drain: Option<Drain>,
    pub(crate) listener: Option<Box<Listener>>,
    /// A datagram socket's part.
    pub(crate) datagram: Option<Box<Datagrams>>,
}

impl<T> Socket<T> {
    pub(crate) fn new(generation: u16, family: u16) -> Socket<T> {
        Socket {
            generation,
            family,
            handle: None,
            open_error: 0,
            is_claimed: false,
            is_v6only: false,
            state: 0,
            error_seq: 0,
            tx_seq: 0,
            tx_head: 0,
            tx_next: 0,
            tx: VecDeque::new(),
            tx_bytes: 0,
            tx_served: 0,
            writable: false,
            tx_broken: false,
            sending: false,
            charged: 0,
            in_blocked: false,
            in_braked: false,
            waits_out: false,
            waits_in: false,
            shut_wr_wanted: false,
            shut_wr: false,
            rx_tail: 0,
            rx_freed: 0,
            rx: VecDeque::new(),
            rx_bytes: 0,
            rx_want: 1,
            readable: false,
            hangup: false,
            in_reap: false,
            running: false,
            closing: false,
            resets: false,
            orphaned: false,
            drain: None,
            listener: None,
            datagram: None,
        }
    }

    pub(crate) fn has(&self, bits: u32) -> bool {
        self.state & bits != 0
    }

    pub(crate) fn state(&self) -> u32 {
        self.state
    }

    /// The number of the last error that was posted.
    pub(crate) fn error_seq(&self) -> u32 {
        self.error_seq
    }

    /// What its cell says already.
    pub(crate) fn set_known(&mut self, state: u32, error_seq: u32) {
        (self.state, self.error_seq) = (state, error_seq);
    }

    /// Changes the state and tells the guest.
    pub(crate) fn change(&mut self, cell: &Cell, set: u32, clear: u32) {
        self.state = (self.state & !clear) | set;
        cell.state.store(self.state, Ordering::SeqCst);
    }

    /// Asks the guest to tell when it has read or accepted something; where its readers are behind that.
    pub(crate) fn stall(&mut self, cell: &Cell) -> Position {
        self.state |= SF_RX_STALLED;
        cell.stall_rx(self.state)
    }

    /// Whatever the guest's tail says, everything counts as taken.
    pub(crate) fn pass_published(&mut self, cell: &Cell) {
        self.tx_next = cell.tx_tail.load(Ordering::Acquire);
        self.tx_head = self.tx_next;
        cell.tx_head.store(self.tx_head, Ordering::SeqCst);
    }

    /// Lets it send again; whether somebody waits for that.
    pub(crate) fn release_brake(&mut self, cell: &Cell) -> bool {
        let braked = self.state;
        self.state &= !SF_TX_BRAKED;
        cell.release_brake(braked, &mut self.tx_served)
    }

    /// A connection whose bytes still flow from the stack.
    pub(crate) fn can_receive(&self) -> bool {
        self.has(SF_CONNECTED) && !self.has(SF_EOF | SF_DEAD)
    }

    pub(crate) fn is_listening(&self) -> bool {
        self.has(SF_LISTENING)
    }

    pub(crate) fn is_connecting(&self) -> bool {
        self.has(SF_CONNECTING)
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.has(SF_RX_STALLED)
    }

    /// Posts an error for the guest to take once.
    pub(crate) fn post_error(&mut self, cell: &Cell, errno: i32) {
        if errno == 0 {
            return;
        }
        self.error_seq = self.error_seq.wrapping_add(1).max(1);
        let word = u64::from(self.error_seq) << 32 | u64::from(errno as u32);
        cell.error.store(word, Ordering::SeqCst);
    }

    pub(crate) fn set_local(&mut self, cell: &Cell, addr: &Addr) {
        cell.local.store(addr);
    }

    /// Whether everything that the guest queued is with the stack.
    pub(crate) fn is_drained(&self, cell: &Cell) -> bool {
        self.tx.is_empty()
            && (self.tx_broken || cell.tx_tail.load(Ordering::Acquire) == self.tx_next)
    }
}
