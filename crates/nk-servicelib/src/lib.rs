//! ServiceLib (paper §4.3): turns NQEs into calls of a [`Stack`] and its events into NQEs, once for all stacks.
//!
//! Inline in the daemon or in an NSM process of its own, it is the same code over the same NSM device.

mod brake;
mod close;
mod datagram;
mod gather;
mod guest;
mod jobs;
mod kept;
mod leases;
mod limits;
mod listener;
mod moves;
mod pool;
mod port;
mod rx;
mod service;
mod socket;
mod span;
mod stack;
mod turns;
mod tx;

use core::ops::Range;
use nk_device::{Device, Ledger, SharedCounters};

pub use limits::GuestLimits;
pub use moves::{MovedAt, MovedSocket};
pub use service::Service;
pub use stack::{
    Connect, Datagram, Errno, How, Key, Kind, RawSpan, Sending, SetOption, Stack, StackEvent,
};

/// A guest to serve.
#[derive(Clone, Debug)]
pub struct GuestPool {
    /// Its number, as the engine has it.
    pub guest: u16,
    /// Its device, made with [`Device::with_layout`]; mapped until [`Service::remove_guest`].
    pub device: Device,
    /// The key by which the stack opens its sockets.
    pub namespace: u64,
    /// The chunks that this service may hand out.
    pub pool: Range<u32>,
    /// Where other services share them.
    pub ledger: Option<Ledger>,
    /// Where it is counted what the guest does: what stands there goes on.
    pub counters: SharedCounters,
}

/// What a poll did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollResult {
    /// NQEs and stack events handled.
    pub worked: u32,
    /// Something is left to do now: poll again without waiting.
    pub pending: bool,
    /// When to poll next if nothing happens, on the clock of `now_ns`.
    pub due_ns: Option<u64>,
}

impl GuestStats {
    /// Together with what another service counted of the same guest, whose chunks they share.
    #[must_use]
    pub fn with(self, more: &GuestStats) -> GuestStats {
        GuestStats {
            sockets: self.sockets + more.sockets,
            orphans: self.orphans + more.orphans,
            bytes_sent: self.bytes_sent.wrapping_add(more.bytes_sent),
            bytes_received: self.bytes_received.wrapping_add(more.bytes_received),
            violations: self.violations + more.violations,
            accept_failures: self.accept_failures + more.accept_failures,
            datagrams_refused: self.datagrams_refused + more.datagrams_refused,
            datagrams_dropped: self.datagrams_dropped + more.datagrams_dropped,
            out_held: self.out_held + more.out_held,
            out_held_ms: self.out_held_ms + more.out_held_ms,
            in_held: self.in_held + more.in_held,
            in_held_ms: self.in_held_ms + more.in_held_ms,
            ..self
        }
    }
}

/// Counters of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestStats {
    /// Sockets open on the stack, with orphans.
    pub sockets: u64,
    /// Closed by the guest, with bytes still to send.
    pub orphans: u64,
    /// Chunks of the pool that are free.
    pub chunks_free: u64,
    /// Chunks leased to rows.
    pub chunks_leased: u64,
    /// Chunks with bytes to send.
    pub chunks_tx: u64,
    /// Chunks with bytes received.
    pub chunks_rx: u64,
    /// Bytes that the stack took.
    pub bytes_sent: u64,
    /// Bytes that the stack gave.
    pub bytes_received: u64,
    /// Descriptors that broke the protocol; each reset its socket.
    pub violations: u64,
    /// Accepts that failed for want of descriptors or memory.
    pub accept_failures: u64,
    /// Datagrams that the stack refused after their send had returned.
    pub datagrams_refused: u64,
    /// Datagrams that the stack dropped because nobody read (as seen with those that came later).
    pub datagrams_dropped: u64,
    /// Times that a socket had to wait for the guest's rate of sending.
    pub out_held: u64,
    /// Milliseconds during which some socket did.
    pub out_held_ms: u64,
    /// Times that a socket was not read because of the guest's rate of receiving.
    pub in_held: u64,
    /// Milliseconds during which some socket was not.
    pub in_held_ms: u64,
}
