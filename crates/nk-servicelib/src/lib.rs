//! ServiceLib (paper §4.3): turns NQEs into calls of a [`Stack`] and its events into NQEs, once for all stacks.
//!
//! Inline in the daemon or in an NSM process of its own, it is the same code over the same NSM device.

mod stack;

use core::ops::Range;
use nk_device::Device;
use std::os::fd::OwnedFd;

pub use stack::{Connect, Errno, How, Key, RawSpan, Stack, StackEvent};

/// A guest to serve.
#[derive(Clone, Debug)]
pub struct GuestPool {
    /// Its number, as the engine has it.
    pub guest: u16,
    /// Its device, made with [`Device::with_layout`]; mapped until [`Service::remove_guest`].
    pub device: Device,
    /// The key by which the stack opens its sockets.
    pub namespace: u64,
    /// The chunks that this service may hand out (all of the device's, for a guest with one NSM).
    pub pool: Range<u32>,
}

/// What a poll did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollResult {
    /// NQEs and stack events handled.
    pub worked: u32,
    /// Something is left to do now: poll again without waiting.
    pub pending: bool,
    /// When the next timer is due, on the clock of `now_ms`.
    pub timer_ms: Option<u64>,
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
}

/// ServiceLib over one stack and one NSM device.
#[derive(Debug)]
pub struct Service<S: Stack> {
    stack: S,
}

#[allow(unused_variables)]
impl<S: Stack> Service<S> {
    /// A service over the NSM's own device (the one given to `Engine::add_nsm`, after that call).
    pub fn new(stack: S, device: Device) -> Service<S> {
        Service { stack }
    }
    /// Serves a guest. Call before the engine is told of it.
    pub fn add_guest(&mut self, pool: GuestPool) {}
    /// Forgets a guest: its sockets are aborted, its memory is not touched again.
    pub fn remove_guest(&mut self, guest: u16) {}
    /// Takes over a listener that the keeper kept, for a socket that the engine adopted.
    ///
    /// # Errors
    /// The stack's errno, or ENOENT for a guest that is not known.
    pub fn adopt_listener(&mut self, key: Key, fd: OwnedFd, backlog: u32) -> Result<(), Errno> {
        Ok(())
    }
    /// Handles NQEs, then stack events, waiting for these at most `wait_ms` (-1: for ever; only after
    /// [`Service::prepare_sleep`] or, inline, `Engine::prepare_sleep`). `engine_doorbell` is called when the engine sleeps and must wake (never
    /// when one thread polls both).
    pub fn poll(
        &mut self,
        now_ms: u64,
        wait_ms: i32,
        engine_doorbell: &mut dyn FnMut(),
    ) -> PollResult {
        PollResult::default()
    }
    /// Separate NSM: before waiting, asks the engine for the doorbell and looks again. `true`: wait. Call
    /// [`Service::finish_sleep`] in both cases.
    pub fn prepare_sleep(&mut self) -> bool {
        true
    }
    /// After the wait.
    pub fn finish_sleep(&mut self) {}
    /// Counters of a guest.
    #[must_use]
    pub fn stats(&self, guest: u16) -> Option<GuestStats> {
        None
    }
    /// The stack.
    pub fn stack_mut(&mut self) -> &mut S {
        &mut self.stack
    }
}
