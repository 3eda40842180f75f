//! The device header: version, geometry, engine state and doorbells.

use crate::sync::{AtomicU32, AtomicU64, Ordering, Pad32, fence};

/// "NETKERNL" as bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"NETKERNL");
/// Layout version of this crate.
pub const VERSION: u32 = 3;
/// `features`: the service takes tx descriptors with [`crate::stream::take_slot`], so that a guest may append to those not yet taken.
pub const FEATURE_APPEND: u32 = 1;
/// `features`: a tx descriptor may have several datagrams, so that a guest may append one to a descriptor of others.
pub const FEATURE_PACK: u32 = 1 << 1;
/// What this crate's host serves.
pub const FEATURES: u32 = FEATURE_APPEND | FEATURE_PACK;
/// [`Header::engine_sleeping`] of an NSM's device while the engine waits for room on its rings: ring after popping.
pub const WANTS_ROOM: u32 = 2;
/// Queue sets that the doorbell bitmap can name.
pub const QSETS_MAX: usize = if cfg!(loom) { 64 } else { 1024 };

/// `engine_state`: the engine serves the device.
pub const ENGINE_UP: u32 = 1;
/// `engine_state`: the engine died; connections are gone, listeners wait for the next one.
pub const ENGINE_DOWN: u32 = 2;
/// `engine_state`: the engine has ended and none will follow.
pub const ENGINE_GONE: u32 = 3;
/// `engine_state`: the engine died and the stack lives on in a process of its own: connections wait for the next engine, and so does
/// whatever is asked.
pub const ENGINE_AWAY: u32 = 4;

/// First page of a device.
#[repr(C, align(4096))]
#[derive(Debug)]
#[cfg_attr(loom, derive(Default))]
pub struct Header {
    // ---- engine, before anybody else maps the region ----
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// [`FEATURES`] of the host.
    pub features: AtomicU32,
    /// Rows.
    pub rows: AtomicU32,
    /// Queue sets.
    pub qsets: AtomicU32,
    /// Cells.
    pub cells: AtomicU32,
    /// Chunks.
    pub chunks: AtomicU32,
    /// Guest id (information only).
    pub guest: AtomicU32,
    pad0: [Pad32; 5],
    // ---- engine ----
    /// [`ENGINE_UP`] and so on. Written by the keeper when the engine died.
    pub engine_state: AtomicU32,
    /// Bumped each time another engine adopts the device: rings go on where they are, calls under way are to be asked again.
    pub epoch: AtomicU32,
    /// 1 while the engine sleeps and wants the doorbell; [`WANTS_ROOM`].
    pub engine_sleeping: AtomicU32,
    pad1: [Pad32; 15],
    // ---- guest ----
    /// Bit per queue set with something on its job or send ring; set by the guest, taken by the engine.
    pub bell: [AtomicU64; QSETS_MAX / 64],
}

impl Header {
    /// Guest: something was pushed on the queue set's job or send ring. `true` when the engine's doorbell must be rung.
    #[inline]
    #[must_use]
    pub fn ring_bell(&self, qset: u16) -> bool {
        let Some(w) = self.bell.get(usize::from(qset) / 64) else { return false };
        let bit = 1u64 << (qset % 64);
        w.fetch_or(bit, Ordering::SeqCst);
        // Rung even when the bit was set already: the one who set it may have been killed before its doorbell.
        fence(Ordering::SeqCst);
        self.engine_sleeping.load(Ordering::SeqCst) != 0
    }

    /// Engine: asks for the doorbell. `true`: nothing was rung meanwhile in the first `words` of the bitmap, sleep until the doorbell;
    /// whatever it says, [`Header::finish_sleep`] follows.
    #[must_use]
    pub fn prepare_sleep(&self, words: usize) -> bool {
        self.engine_sleeping.store(1, Ordering::SeqCst);
        // A guest sets its bell, fences, then reads engine_sleeping.
        fence(Ordering::SeqCst);
        !self.has_bells(words)
    }
    /// Engine: awake again.
    pub fn finish_sleep(&self) {
        self.engine_sleeping.store(0, Ordering::SeqCst);
    }

    /// Engine: takes all set bits of one word.
    #[inline]
    #[must_use]
    pub fn take_bells(&self, word: usize) -> u64 {
        match self.bell.get(word) {
            Some(w) if w.load(Ordering::Relaxed) != 0 => w.swap(0, Ordering::SeqCst),
            _ => 0,
        }
    }

    /// Engine: whether any bit is set in the first `words` (within [`Header::prepare_sleep`]).
    #[must_use]
    pub fn has_bells(&self, words: usize) -> bool {
        self.bell.iter().take(words).any(|w| w.load(Ordering::SeqCst) != 0)
    }
}
