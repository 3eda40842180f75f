//! A socket's cell, which both sides see.
//!
//! Cache lines are grouped by writer. Life of a cell: FREE (the engine's, zeroed) → granted to a row or to the NSM → in use → every
//! holder gone → [`crate::Op::Close`] → the stack is done ([`crate::Op::Closed`]) → FREE with the next generation.

mod audience;

use crate::addr::AddrCell;
use crate::stream::{Position, Publisher};
use crate::sync::{AtomicU32, AtomicU64, Ordering, Pad32, Pad64, fence};
use crate::{HOLDER_WORDS, STREAM_SLOTS, WATCH_SLOTS};

/// `state`: the stack knows a local address.
pub const SF_BOUND: u32 = 1;
/// `state`: listening; the rx ring carries [`crate::stream::AcceptedSocket`]s.
pub const SF_LISTENING: u32 = 1 << 1;
/// `state`: a connect is under way.
pub const SF_CONNECTING: u32 = 1 << 2;
/// `state`: connected (stays set after EOF or reset).
pub const SF_CONNECTED: u32 = 1 << 3;
/// `state`: the peer sent FIN; what is in the rx ring is the last.
pub const SF_EOF: u32 = 1 << 4;
/// `state`: the connection is gone in both directions: reset, timed out, failed, or both FINs exchanged.
pub const SF_DEAD: u32 = 1 << 5;
/// `state`: the stack has something to deliver and waits for room: send [`crate::Op::RxRoom`] after consuming.
pub const SF_RX_STALLED: u32 = 1 << 6;
/// `state`: a connect failed and nothing replaced it (poll reports HUP).
pub const SF_FAILED: u32 = 1 << 7;
/// `state`: the pool is short, and this stream holds its part of it on the tx ring: it sends nothing more until this goes.
pub const SF_TX_BRAKED: u32 = 1 << 8;

/// `guest_state`: shutdown(SHUT_RD) was called.
pub const GF_SHUT_RD: u32 = 1;
/// `guest_state`: shutdown(SHUT_WR) was called.
pub const GF_SHUT_WR: u32 = 1 << 1;
/// `guest_state`: connect was called (until disconnect).
pub const GF_CONNECT_CALLED: u32 = 1 << 3;
/// `guest_state`: SO_RXQ_OVFL is set.
pub const GF_RXQ_OVFL: u32 = 1 << 4;
/// `guest_state`: path MTU discovery was chosen: longer datagrams may be refused where shorter ones are not.
pub const GF_MTU_DISCOVER: u32 = 1 << 5;
/// `guest_state`: SO_TIMESTAMP is set.
pub const GF_TIMESTAMP: u32 = 1 << 6;
/// `guest_state`: SO_TIMESTAMPNS is set.
pub const GF_TIMESTAMPNS: u32 = 1 << 7;

/// In `in_use`: the id is in use.
pub const IN_USE: u32 = 1;
/// In `in_use`: the engine has taken a connect off a ring, nobody waits for an answer to it, and no NSM has been given it: the guest's
/// rate holds it back, or there is no room. An engine that comes next ends it.
pub const CONNECT_HELD: u32 = 1 << 1;

/// `kind`: the type of a stream socket, Linux's number.
pub const SOCK_STREAM: u16 = 1;
/// `kind`: the type of a datagram socket, Linux's number.
pub const SOCK_DGRAM: u16 = 2;

/// In [`Cell::claim`]: the host took an accepted socket out of the queue of a listener that is going.
pub const CLAIMED_BY_HOST: u16 = u16::MAX - 1;

/// A watch entry: queue set + 1 in the low 16 bits (0: free), flags above.
pub const WATCH_QSET_MASK: u32 = 0xffff;
/// Watch flag: EPOLLEXCLUSIVE.
pub const WATCH_EXCLUSIVE: u32 = 1 << 16;

/// One socket. Fields are grouped by their one writer.
#[repr(C, align(64))]
#[derive(Debug)]
#[cfg_attr(loom, derive(Default))]
pub struct Cell {
    // ---- guest: who holds, who watches ----
    /// Bit per row; set by the holder's process, cleared by it or, when it died, by the engine.
    pub holders: [AtomicU64; HOLDER_WORDS],
    /// Watching queue sets; entries are claimed and freed by CAS. Cleared by the engine when a queue set goes.
    pub watch: [AtomicU32; WATCH_SLOTS],
    /// More watchers than entries: every queue set of the guest is told.
    pub watch_overflow: AtomicU32,
    // ---- guest: streams ----
    /// Consumer position in the rx ring, [`Position`].
    pub rx_pos: AtomicU64,
    /// Next tx index.
    pub tx_tail: AtomicU32,
    /// The `tx_seq` for which a SEND NQE was pushed.
    pub tx_kick: AtomicU32,
    /// Bumped after each holder bit that was set.
    pub holder_epoch: AtomicU32,
    /// Bits [`GF_SHUT_RD`] and so on.
    pub guest_state: AtomicU32,
    /// Threads that sleep on `rx_wake` (a hint; a killed thread leaves it high, which costs a futile wake-up only).
    pub rx_sleepers: AtomicU32,
    /// Threads that sleep on `tx_wake`.
    pub tx_sleepers: AtomicU32,
    /// The error sequence last reported by SO_ERROR or a failed call.
    pub err_ack: AtomicU32,
    /// SO_RCVLOWAT, 0 = 1.
    pub rcv_lowat: AtomicU32,
    /// Family | type << 16.
    pub kind: AtomicU32,
    /// O_NONBLOCK of the shared file description, mirrored from the stand-in.
    pub nonblock: AtomicU32,
    /// SO_RCVTIMEO in µs, 0 = none.
    pub rcv_timeout_us: AtomicU64,
    // ---- guest: more options that only GuestLib reads ----
    /// SO_SNDTIMEO in µs, 0 = none.
    pub snd_timeout_us: AtomicU64,
    /// SO_LINGER: 0 off, else seconds + 1.
    pub linger: AtomicU32,
    /// Counts the times that somebody found no room to send, see [`Cell::want_tx`].
    pub tx_want: AtomicU32,
    /// Who took this socket from its listener's ring: generation << 16 | row + 1, see [`Cell::claim`].
    pub accepted: AtomicU32,
    guest_pad: [Pad32; 13],
    // ---- service: what every send and recv reads ----
    /// Bits [`SF_BOUND`] and so on.
    pub state: AtomicU32,
    /// Next rx index.
    pub rx_tail: AtomicU32,
    /// Tx indices below this are consumed.
    pub tx_head: AtomicU32,
    /// Even: the service does not look at the tx ring and wants a SEND NQE; odd: it will look again.
    pub tx_seq: AtomicU32,
    /// Futex word, bumped with every change for readers (data, EOF, error, accepted, connected).
    pub rx_wake: AtomicU32,
    /// Futex word, bumped with every change for writers (room, error, connected).
    pub tx_wake: AtomicU32,
    /// Pending error: sequence << 32 | errno.
    pub error: AtomicU64,
    /// Bytes that the stack took from the tx ring (wraps).
    pub tx_bytes: AtomicU64,
    /// Bytes that the stack put on the rx ring (wraps).
    pub rx_bytes: AtomicU64,
    /// Datagrams that the stack refused after their send had returned (wraps): a change says that no destination is known to be
    /// good any more.
    pub tx_refused: AtomicU32,
    service_pad: [Pad32; 3],
    // ---- service: addresses ----
    /// Local address, valid with [`SF_BOUND`].
    pub local: AddrCell,
    /// Peer address, valid with [`SF_CONNECTED`].
    pub peer: AddrCell,
    // ---- engine: written when the id gets another life, beside the service's words that are written about as rarely ----
    /// Generation of this id, bumped on each reuse; 0 is never in use.
    pub generation: AtomicU32,
    /// [`IN_USE`] while the id is in use, and [`CONNECT_HELD`].
    pub in_use: AtomicU32,
    engine_pad: Pad64,
    // ---- rings ----
    /// Guest-written descriptors to send.
    pub tx_slots: [AtomicU64; STREAM_SLOTS],
    /// Service-written descriptors received, or accepted sockets.
    pub rx_slots: [AtomicU64; STREAM_SLOTS],
}

#[cfg(not(loom))]
const _: () = {
    assert!(core::mem::size_of::<Cell>() == 1408);
    // What the guest writes shares no cache line with what the host writes.
    assert!(core::mem::offset_of!(Cell, state) % 64 == 0);
    assert!(core::mem::offset_of!(Cell, tx_slots) % 64 == 0);
};

impl Cell {
    /// Whether it is a datagram socket, as its maker said.
    #[must_use]
    pub fn is_datagram(&self) -> bool {
        (self.kind.load(Ordering::Relaxed) >> 16) as u16 == SOCK_DGRAM
    }

    /// The tx ring as its publishers see it.
    #[must_use]
    pub fn tx(&self) -> Publisher<'_, AtomicU32, AtomicU64> {
        Publisher { tail: &self.tx_tail, head: &self.tx_head, slots: &self.tx_slots }
    }

    /// Where readers are.
    #[must_use]
    pub fn position(&self) -> Position {
        Position::from_word(self.rx_pos.load(Ordering::Acquire))
    }

    /// Guest: the row holds the socket from now on. The order matters: bit, then epoch.
    pub fn hold(&self, row: u16) {
        if let Some(w) = self.holders.get(usize::from(row) / 64) {
            w.fetch_or(1 << (row % 64), Ordering::SeqCst);
            self.holder_epoch.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Guest (or the engine for a dead row): the row holds the socket no more. `true` when nobody does.
    pub fn release(&self, row: u16) -> bool {
        if let Some(w) = self.holders.get(usize::from(row) / 64) {
            w.fetch_and(!(1u64 << (row % 64)), Ordering::SeqCst);
        }
        // SeqCst all through: of two last holders that each clear their bit and then look, one sees both gone.
        self.is_unheld()
    }

    /// Whether the row holds the socket.
    #[must_use]
    pub fn is_held_by(&self, row: u16) -> bool {
        self.holders
            .get(usize::from(row) / 64)
            .is_some_and(|w| w.load(Ordering::SeqCst) & (1 << (row % 64)) != 0)
    }

    /// Whether nobody holds the socket. A holder that hands over sets the new bit, then the epoch, then clears its own, so an
    /// unchanged epoch around the look proves that no bit moved behind it. Bounded: a guest that never stops changing
    /// the epoch reads as held.
    #[must_use]
    pub fn is_unheld(&self) -> bool {
        for _ in 0..64 {
            let epoch = self.holder_epoch.load(Ordering::SeqCst);
            if self.holders.iter().any(|w| w.load(Ordering::SeqCst) != 0) {
                return false;
            }
            if self.holder_epoch.load(Ordering::SeqCst) == epoch {
                return true;
            }
        }
        false
    }

    /// Guest: after publishing on the tx ring, whether a SEND NQE must be pushed.
    #[must_use]
    pub fn needs_kick(&self) -> bool {
        fence(Ordering::SeqCst);
        let seq = self.tx_seq.load(Ordering::SeqCst);
        // tx_kick starts at 0 like tx_seq, so "kicked for seq" is stored as seq + 1.
        seq & 1 == 0
            && self.tx_kick.swap(seq.wrapping_add(1), Ordering::SeqCst) != seq.wrapping_add(1)
    }

    /// Guest: the tx ring had no room (or too little to count as writable): asks for an event. Look at the room again after
    /// this, then wait. A count and not a flag: nobody can take back what another thread asked for.
    pub fn want_tx(&self) {
        self.tx_want.fetch_add(1, Ordering::SeqCst);
        // The service reads the count after it moved tx_head.
        fence(Ordering::SeqCst);
    }

    /// Service: moves `tx_head`. `true` when a sender asked for room since the last event (`served` remembers, 0 at first) and
    /// there is enough to count as writable: announce it. `state` is its own copy of the state bits.
    pub fn consume_tx(&self, head: u32, state: u32, served: &mut u32) -> bool {
        self.tx_head.store(head, Ordering::Release);
        state & SF_TX_BRAKED == 0 && self.is_wanted(served)
    }

    /// Service: the socket may send again. `true` as for [`Cell::consume_tx`].
    pub fn release_brake(&self, state: u32, served: &mut u32) -> bool {
        self.state.store(state & !SF_TX_BRAKED, Ordering::SeqCst);
        self.is_wanted(served)
    }

    /// A sender asks for room, then looks again at the ring and the state; the service changes one of them, then looks here.
    fn is_wanted(&self, served: &mut u32) -> bool {
        fence(Ordering::SeqCst);
        let want = self.tx_want.load(Ordering::SeqCst);
        if want == *served || self.tx().room() < crate::stream::WRITABLE_SLOTS {
            return false;
        }
        *served = want;
        true
    }

    /// Service: looks at the tx ring no more until a SEND NQE comes for `seq` (even; it never goes back). `true` when
    /// something beyond `head` was published meanwhile: look again, under an odd `tx_seq`.
    #[must_use]
    pub fn idle_tx(&self, seq: u32, head: u32) -> bool {
        self.tx_seq.store(seq, Ordering::SeqCst);
        // A sender publishes, fences, then reads tx_seq.
        fence(Ordering::SeqCst);
        self.tx_tail.load(Ordering::SeqCst) != head
    }

    /// Service: has more than the rx ring takes, and waits for [`crate::Op::RxRoom`]. `state` is its own copy of the state bits.
    /// Returns where readers are now: with room after all, go on.
    #[must_use]
    pub fn stall_rx(&self, state: u32) -> Position {
        self.state.store(state | SF_RX_STALLED, Ordering::SeqCst);
        // A reader moves rx_pos, fences, then reads the state.
        fence(Ordering::SeqCst);
        self.position()
    }

    /// Takes this accepted socket out of its listener's queue for a row, once: `false` when it was taken, or lives no more. The
    /// claim is in the socket and not in the ring, so a thread that comes late can neither repeat it nor touch another life of the
    /// id. A row that dies between its claim and [`Cell::hold`] is found by [`Cell::claimed_by`].
    pub fn claim(&self, generation: u16, row: u16) -> bool {
        let free = u32::from(generation) << 16;
        self.accepted
            .compare_exchange(
                free,
                free | (u32::from(row) + 1),
                Ordering::SeqCst,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    /// Who claimed the socket in this life. `None`: nobody yet, it waits in its listener's queue (or never was in one).
    #[must_use]
    pub fn claimed_by(&self, generation: u16) -> Option<u16> {
        let w = self.accepted.load(Ordering::SeqCst);
        (w >> 16 == u32::from(generation)).then_some(w as u16).and_then(|r| r.checked_sub(1))
    }

    /// The pending error (sequence, errno), if it was not yet reported.
    #[must_use]
    pub fn pending_error(&self) -> Option<(u32, i32)> {
        let e = self.error.load(Ordering::Acquire);
        let seq = (e >> 32) as u32;
        (seq != 0 && seq != self.err_ack.load(Ordering::Acquire)).then_some((seq, e as u32 as i32))
    }

    /// Guest: takes the pending error, so that it is reported once. 0 when there is none.
    pub fn take_error(&self) -> i32 {
        loop {
            let ack = self.err_ack.load(Ordering::Acquire);
            let e = self.error.load(Ordering::Acquire);
            let seq = (e >> 32) as u32;
            if seq == 0 || seq == ack {
                return 0;
            }
            // Not a swap: a thread that was stopped here must not acknowledge an older error over a newer one.
            if self.err_ack.compare_exchange(ack, seq, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                return e as u32 as i32;
            }
        }
    }

    /// Engine: zeroes a cell that nobody uses, and gives it the next generation.
    pub fn reset(&self, generation: u16) {
        self.in_use.store(0, Ordering::SeqCst);
        for w in &self.holders {
            w.store(0, Ordering::Relaxed);
        }
        for w in &self.watch {
            w.store(0, Ordering::Relaxed);
        }
        for w in [
            &self.watch_overflow,
            &self.tx_tail,
            &self.tx_kick,
            &self.guest_state,
            &self.rx_sleepers,
            &self.tx_sleepers,
            &self.err_ack,
            &self.rcv_lowat,
            &self.kind,
            &self.nonblock,
            &self.linger,
            &self.tx_want,
            &self.state,
            &self.rx_tail,
            &self.tx_head,
            &self.tx_seq,
            &self.tx_refused,
        ] {
            w.store(0, Ordering::Relaxed);
        }
        // The wake words keep counting, so that a sleeper of the id's last life cannot miss its end.
        self.rx_wake.fetch_add(1, Ordering::SeqCst);
        self.tx_wake.fetch_add(1, Ordering::SeqCst);
        for w in [
            &self.rx_pos,
            &self.rcv_timeout_us,
            &self.snd_timeout_us,
            &self.error,
            &self.tx_bytes,
            &self.rx_bytes,
        ] {
            w.store(0, Ordering::Relaxed);
        }
        let none = crate::Addr::default();
        self.local.store(&none);
        self.peer.store(&none);
        for s in self.tx_slots.iter().chain(&self.rx_slots) {
            s.store(0, Ordering::Relaxed);
        }
        self.accepted.store(u32::from(generation) << 16, Ordering::SeqCst);
        self.generation.store(u32::from(generation), Ordering::SeqCst);
    }
}
