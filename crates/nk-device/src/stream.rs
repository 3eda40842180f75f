//! The descriptor rings of a socket: payload chunks in each direction, and accepted sockets on a listener.
//!
//! Both ends are lock-free, so that a process killed, forked or interrupted at any instruction leaves nothing to repair:
//! - publish: CAS the slot from its last lap's word to the new one, then CAS the tail; any other producer helps a stopped one.
//! - append: while the service has not taken the last descriptor, more bytes go behind its own into the same chunk ([`Publisher::begin`]), so that
//!   many small writes, or datagrams, need few descriptors and few chunks;
//! - consume: read position (index and offset in one word), copy, CAS the position. Whoever loses copies again; the peer reuses
//!   a chunk only once the position is past it, so what a loser read may be torn but is never used.

use crate::sync::{AtomicU64, Ordering, Word32, Word64};
use crate::{CHUNK_SIZE, STREAM_SLOTS};

/// Free tx descriptors from which a socket counts as writable; half of the ring, so that a writer that was refused is
/// woken for more than one more write (Linux waits for a third of the send buffer).
pub const WRITABLE_SLOTS: u32 = (STREAM_SLOTS as u32).div_ceil(2);

const PAYLOAD_BITS: u32 = 56;
const PAYLOAD_MASK: u64 = (1 << PAYLOAD_BITS) - 1;
/// On a tx slot, the guest's: somebody writes into the chunk behind the span.
const APPENDING: u64 = 1 << 53;
/// On a tx slot, the service's: it has its copy of the descriptor, which grows no more.
const TAKEN: u64 = 1 << 54;
const SPAN_MASK: u64 = APPENDING - 1;

fn lap(index: u32) -> u64 {
    u64::from(((index / STREAM_SLOTS as u32).wrapping_add(1)) & 0xff) << PAYLOAD_BITS
}

/// A span of payload in a chunk of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Index of the chunk.
    pub chunk: u32,
    /// First byte within the chunk.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

impl Span {
    /// Packs the span into a descriptor's payload bits: chunk 22, offset 15, length 16.
    #[must_use]
    pub fn to_payload(self) -> u64 {
        u64::from(self.chunk & 0x3f_ffff)
            | u64::from(self.offset & 0x7fff) << 22
            | u64::from(self.len & 0xffff) << 37
    }

    /// Parses and checks a payload: within one chunk and not empty. The chunk index is the caller's to check.
    #[must_use]
    pub fn from_payload(p: u64) -> Option<Span> {
        let s = Span {
            chunk: (p & 0x3f_ffff) as u32,
            offset: ((p >> 22) & 0x7fff) as u32,
            len: ((p >> 37) & 0xffff) as u32,
        };
        (s.len > 0 && (s.offset + s.len) as usize <= CHUNK_SIZE).then_some(s)
    }
}

/// An accepted socket, as a listener's ring carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedSocket {
    /// Socket id.
    pub socket: u32,
    /// Its generation.
    pub generation: u16,
}

impl AcceptedSocket {
    /// Packs into payload bits.
    #[must_use]
    pub fn to_payload(self) -> u64 {
        u64::from(self.socket) | u64::from(self.generation) << 32
    }
    /// Parses; any bits give some socket, which the caller checks.
    #[must_use]
    pub fn from_payload(p: u64) -> AcceptedSocket {
        AcceptedSocket { socket: p as u32, generation: (p >> 32) as u16 }
    }
}

/// The tx side as the guest sees it: it writes `tail` and `slots`, the service writes `head`.
#[derive(Debug)]
pub struct Publisher<'a, A32, A64> {
    /// Next index to publish.
    pub tail: &'a A32,
    /// Indices below this were consumed by the peer.
    pub head: &'a A32,
    /// [`STREAM_SLOTS`] descriptors.
    pub slots: &'a [A64],
}

/// No slot is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFull;

impl<A32: Word32, A64: Word64> Publisher<'_, A32, A64> {
    /// Free slots now (0 when the peer's index is nonsense).
    pub fn room(&self) -> u32 {
        let used =
            self.tail.load(Ordering::Acquire).wrapping_sub(self.head.load(Ordering::Acquire));
        (STREAM_SLOTS as u32).saturating_sub(used)
    }

    /// Publishes one payload; at which index.
    ///
    /// # Errors
    /// [`RingFull`]; nothing was published.
    pub fn publish(&self, payload: u64) -> Result<u32, RingFull> {
        loop {
            let tail = self.tail.load(Ordering::Acquire);
            let head = self.head.load(Ordering::Acquire);
            if tail.wrapping_sub(head) >= STREAM_SLOTS as u32 {
                // A stale tail looks full or beyond: only a tail that has not moved says so.
                if self.tail.load(Ordering::Acquire) == tail {
                    return Err(RingFull);
                }
                continue;
            }
            let Some(slot) = self.slots.get(tail as usize % STREAM_SLOTS) else {
                return Err(RingFull);
            };
            let seen = slot.load(Ordering::Acquire);
            let want = lap(tail);
            let mine = if seen & !PAYLOAD_MASK == want {
                // Somebody filled this slot and was stopped before the tail moved: help.
                false
            } else {
                if self.tail.load(Ordering::Acquire) != tail {
                    continue;
                }
                let new = want | (payload & PAYLOAD_MASK);
                slot.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            };
            let _ = self.tail.compare_exchange(
                tail,
                tail.wrapping_add(1),
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if mine {
                return Ok(tail);
            }
        }
    }
}

/// A published descriptor that may grow.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// Where it stands.
    pub index: u32,
    word: u64,
    /// What it says so far.
    pub span: Span,
    /// Where what is appended goes, behind that.
    pub place: Span,
}

impl<A32: Word32, A64: Word64> Publisher<'_, A32, A64> {
    /// The last published descriptor, if `len` bytes more have room in its chunk from a multiple of `align` on, the service has not taken it, and
    /// nobody else appends to it.
    #[inline]
    pub fn open(&self, align: usize, len: usize) -> Option<Open> {
        let tail = self.tail.load(Ordering::Acquire);
        if tail == self.head.load(Ordering::Acquire) {
            return None;
        }
        let index = tail.wrapping_sub(1);
        let word = self.slots.get(index as usize % STREAM_SLOTS)?.load(Ordering::Acquire);
        if word & !SPAN_MASK != lap(index) {
            return None;
        }
        let span = Span::from_payload(word)?;
        let first = ((span.offset + span.len) as usize).next_multiple_of(align);
        let place = Span { offset: first as u32, len: len as u32, ..span };
        (len <= CHUNK_SIZE.saturating_sub(first)).then_some(Open { index, word, span, place })
    }

    fn change(&self, at: u32, from: u64, to: u64) -> bool {
        self.slots.get(at as usize % STREAM_SLOTS).is_some_and(|slot| {
            slot.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// Claims the place behind what the descriptor says. `true`: copy there, then [`Publisher::commit`] or [`Publisher::abandon`]. The
    /// service may take the descriptor at any time, without what is being copied. Before this the appender has said on its row that it
    /// writes into that chunk, and it unsays that after the copy: until then the service leases the chunk to nobody.
    #[must_use]
    pub fn begin(&self, open: &Open) -> bool {
        self.change(open.index, open.word, open.word | APPENDING)
    }

    /// Adds the place to the descriptor. `false`: the service took it without that.
    #[must_use]
    pub fn commit(&self, open: &Open) -> bool {
        let end = open.place.offset + open.place.len;
        let span = Span { len: end - open.span.offset, ..open.span };
        self.change(open.index, open.word | APPENDING, lap(open.index) | span.to_payload())
    }

    /// Leaves the descriptor as it was.
    pub fn abandon(&self, open: &Open) {
        let _ = self.change(open.index, open.word | APPENDING, open.word);
    }

    /// Finishes a descriptor whose publisher was stopped before the tail moved. For the host, before it takes back the chunks of a
    /// dead process: what the next publisher would find must not be leased again. `true` when there was one.
    pub fn help(&self) -> bool {
        let tail = self.tail.load(Ordering::Acquire);
        let Some(slot) = self.slots.get(tail as usize % STREAM_SLOTS) else { return false };
        slot.load(Ordering::Acquire) & !PAYLOAD_MASK == lap(tail)
            && self
                .tail
                .compare_exchange(tail, tail.wrapping_add(1), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }
}

/// Publishes from the one producer of a ring that a single thread owns (the host's side): `tail` is its private copy.
///
/// # Errors
/// [`RingFull`]: the consumer's index (a hint, clamped by the caller) leaves no room.
pub fn publish_single<A32: Word32, A64: Word64>(
    tail: &A32,
    slots: &[A64],
    private_tail: &mut u32,
    head_checked: u32,
    payload: u64,
) -> Result<(), RingFull> {
    let t = *private_tail;
    if t.wrapping_sub(head_checked) >= STREAM_SLOTS as u32 {
        return Err(RingFull);
    }
    let slot = slots.get(t as usize % STREAM_SLOTS).ok_or(RingFull)?;
    slot.store(lap(t) | (payload & PAYLOAD_MASK), Ordering::Release);
    *private_tail = t.wrapping_add(1);
    tail.store(*private_tail, Ordering::Release);
    Ok(())
}

/// Reads the payload at `index` for a consumer that knows `index < tail`; `None` when the slot is of another lap (the
/// producer broke the protocol, or the reader is stale).
pub fn read_slot<A64: Word64>(slots: &[A64], index: u32) -> Option<u64> {
    let w = slots.get(index as usize % STREAM_SLOTS)?.load(Ordering::Acquire);
    (w & !PAYLOAD_MASK == lap(index)).then_some(w & PAYLOAD_MASK)
}

/// A descriptor that the service took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its payload; bytes are appended to it no more.
    pub payload: u64,
    /// Somebody may still write into the chunk, behind the span: the chunk is nobody else's until no row says so.
    pub appending: bool,
    /// It was taken before, by this service or by one that is dead.
    pub again: bool,
}

/// Takes the descriptor at `index` < `tail` of a tx ring: whoever appends to it from now on fails. `None` as for [`read_slot`].
pub fn take_slot<A64: Word64>(slots: &[A64], index: u32) -> Option<Taken> {
    let w = slots.get(index as usize % STREAM_SLOTS)?.fetch_or(TAKEN, Ordering::AcqRel);
    let (appending, again) = (w & APPENDING != 0, w & TAKEN != 0);
    let taken = Taken { payload: w & SPAN_MASK, appending, again };
    (w & !PAYLOAD_MASK == lap(index)).then_some(taken)
}

/// Whether a service took the descriptor at `index`.
pub fn is_taken<A64: Word64>(slots: &[A64], index: u32) -> bool {
    let slot = slots.get(index as usize % STREAM_SLOTS);
    slot.is_some_and(|s| s.load(Ordering::Acquire) & TAKEN != 0)
}

/// Undoes [`take_slot`]: another service is to take the descriptor, or (`left`) what this one has not sent of it. Nobody else changes a slot that is
/// taken. Somebody who is appending to it may go on where all of it is left, and otherwise fails, and leaves his mark for who takes it next.
pub fn untake_slot(slots: &[AtomicU64], index: u32, left: Option<Span>) {
    if let Some(slot) = slots.get(index as usize % STREAM_SLOTS) {
        let word = slot.load(Ordering::Acquire);
        let span = left.map_or(word & SPAN_MASK, Span::to_payload);
        slot.store(word & !(SPAN_MASK | TAKEN) | span, Ordering::Release);
    }
}

/// A consumer's position: descriptor index and bytes already taken of that descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Position {
    /// Descriptor index.
    pub index: u32,
    /// Bytes of it already consumed.
    pub offset: u32,
}

impl Position {
    /// From the shared word.
    #[must_use]
    pub fn from_word(w: u64) -> Position {
        Position { index: (w >> 32) as u32, offset: w as u32 }
    }
    /// To the shared word.
    #[must_use]
    pub fn to_word(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.offset)
    }
    /// The last descriptor of which bytes were consumed.
    #[must_use]
    pub fn last(self) -> u32 {
        if self.offset > 0 { self.index } else { self.index.wrapping_sub(1) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use super::*;
    use core::sync::atomic::{AtomicU32, AtomicU64};
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn spans_survive(chunk in 0u32..(1 << 22), offset in 0u32..CHUNK_SIZE as u32, len in 1u32..=CHUNK_SIZE as u32) {
            let s = Span { chunk, offset, len };
            let back = Span::from_payload(s.to_payload());
            if (offset + len) as usize <= CHUNK_SIZE {
                prop_assert_eq!(back, Some(s));
            } else {
                prop_assert_eq!(back, None);
            }
        }

        #[test]
        fn no_payload_reaches_past_a_chunk(p in any::<u64>()) {
            if let Some(s) = Span::from_payload(p) {
                prop_assert!(s.len > 0 && (s.offset + s.len) as usize <= CHUNK_SIZE);
            }
        }
    }

    #[test]
    fn concurrent_publishers_lose_and_double_nothing() {
        let tail = AtomicU32::new(0);
        let head = AtomicU32::new(0);
        let slots: Vec<AtomicU64> = (0..STREAM_SLOTS).map(|_| AtomicU64::new(0)).collect();
        let per = if cfg!(miri) { 40 } else { 20_000u64 };
        let mut seen = Vec::new();
        std::thread::scope(|s| {
            for t in 0..3u64 {
                let p = Publisher { tail: &tail, head: &head, slots: &slots };
                s.spawn(move || {
                    for i in 0..per {
                        while p.publish(t * per + i).is_err() {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let mut h = 0u32;
            while seen.len() < per as usize * 3 {
                if tail.load(Ordering::Acquire) == h {
                    std::thread::yield_now();
                    continue;
                }
                seen.push(read_slot(&slots, h).expect("lap"));
                h = h.wrapping_add(1);
                head.store(h, Ordering::Release);
            }
        });
        seen.sort_unstable();
        assert!(seen.iter().enumerate().all(|(i, v)| i as u64 == *v));
    }
}
