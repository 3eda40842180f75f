//! A ring of NQEs with one consumer, and one producer or several threads of one process.
//!
//! Slots carry a phase bit (bit 8 of word 0), flipped each lap, so the consumer never reads the producers' tail: an element is
//! there when its phase is right. Producers reserve a slot by CAS on `tail`, which also makes the push safe in a signal
//! handler that interrupted another push. The consumer publishes `head` when it likes ([`Consumer::commit`]).

use crate::nqe::{Nqe, PackedNqe};
use crate::sync::{Ordering, Word32, Word64};

const PHASE: u64 = 1 << 8;

/// The shared words of a ring: `capacity` (a power of two) slots of four words.
#[derive(Debug)]
pub struct Ring<'a, A32, A64> {
    /// Next slot to reserve; written by producers.
    pub tail: &'a A32,
    /// Slots below this are free again; written by the consumer.
    pub head: &'a A32,
    /// `4 * capacity` words.
    pub slots: &'a [A64],
}

impl<A32, A64> Clone for Ring<'_, A32, A64> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A32, A64> Copy for Ring<'_, A32, A64> {}

/// The ring has no free slot. The element was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[inline]
fn phase(index: u32, capacity: u32) -> u64 {
    // Which lap, odd or even: the capacity is a power of two.
    if index & capacity == 0 { PHASE } else { 0 }
}

impl<'a, A32: Word32, A64: Word64> Ring<'a, A32, A64> {
    #[inline]
    fn capacity(&self) -> u32 {
        (self.slots.len() / 4) as u32
    }

    #[inline]
    fn slot(&self, index: u32) -> Option<&'a [A64]> {
        let base = (index & (self.capacity().wrapping_sub(1))) as usize * 4;
        self.slots.get(base..base + 4)
    }

    /// Whether the consumer is a whole ring behind.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let tail = self.tail.load(Ordering::Relaxed);
        tail.wrapping_sub(self.head.load(Ordering::Acquire)) >= self.capacity()
    }

    /// Pushes one element; safe for several threads at once and in signal handlers. For guests: it believes the shared `tail`,
    /// which the host must not ([`Producer`]).
    ///
    /// # Errors
    /// [`Full`] when the consumer is a whole ring behind (or its index is nonsense).
    #[inline]
    pub fn push(&self, nqe: &Nqe) -> Result<(), Full> {
        let capacity = self.capacity();
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            let head = self.head.load(Ordering::Acquire);
            if tail.wrapping_sub(head) >= capacity {
                let again = self.tail.load(Ordering::Relaxed);
                if again == tail {
                    return Err(Full);
                }
                tail = again;
                continue;
            }
            match self.tail.compare_exchange(
                tail,
                tail.wrapping_add(1),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(found) => tail = found,
            }
        }
        self.write(tail, &nqe.into());
        Ok(())
    }

    #[inline]
    fn write(&self, index: u32, nqe: &PackedNqe) {
        let [w0, w1, w2, w3] = nqe.0;
        if let Some([s0, s1, s2, s3]) = self.slot(index) {
            s1.store(w1, Ordering::Relaxed);
            s2.store(w2, Ordering::Relaxed);
            s3.store(w3, Ordering::Relaxed);
            s0.store(w0 & !PHASE | phase(index, self.capacity()), Ordering::Release);
        }
    }
}

/// The private end of a ring's only producer, for the host: what a guest writes to `tail` means nothing to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Producer {
    tail: u32,
    /// `head` when last looked: the line is the consumer's, and is not fetched while the ring has room by this.
    head: u32,
}

impl Producer {
    /// A producer that goes on at `tail` (0 on a fresh ring).
    #[must_use]
    pub fn at(tail: u32) -> Producer {
        // Half round the index space: no room until the consumer's index is read.
        Producer { tail, head: tail.wrapping_sub(1 << 31) }
    }

    /// A producer that goes on where another one died. What that one wrote and did not count any more is there for the consumer, who
    /// may have taken it by now.
    #[must_use]
    pub fn resume<A32: Word32, A64: Word64>(ring: &Ring<'_, A32, A64>) -> Producer {
        let mut tail = ring.tail.load(Ordering::Acquire);
        for _ in 0..ring.capacity() {
            if !Consumer::at(tail).is_ready(ring) {
                break;
            }
            tail = tail.wrapping_add(1);
        }
        Producer::at(tail)
    }

    /// How far it pushed.
    #[must_use]
    pub fn tail(&self) -> u32 {
        self.tail
    }

    /// Pushes one element.
    ///
    /// # Errors
    /// [`Full`] when the consumer is a whole ring behind (or its index is nonsense).
    #[inline]
    pub fn push<A32: Word32, A64: Word64>(
        &mut self,
        ring: &Ring<'_, A32, A64>,
        nqe: &Nqe,
    ) -> Result<(), Full> {
        if self.room(ring, 1) == 0 {
            return Err(Full);
        }
        self.put(ring, &nqe.into());
        self.publish(ring);
        Ok(())
    }

    /// Free slots, so far as `wanted` makes a look at the consumer's index necessary; 0 when that is nonsense.
    #[inline]
    pub fn room<A32: Word32, A64: Word64>(
        &mut self,
        ring: &Ring<'_, A32, A64>,
        wanted: u32,
    ) -> u32 {
        let capacity = ring.capacity();
        let free = |head: u32| capacity.saturating_sub(self.tail.wrapping_sub(head));
        let known = free(self.head);
        if known >= wanted {
            return known;
        }
        let head = ring.head.load(Ordering::Acquire);
        let free = free(head);
        // A head that is nonsense is not kept: it could pass for a good one when the tail has moved on.
        if free > 0 {
            self.head = head;
        }
        free
    }

    /// Has the next `count` slots' lines fetched for writing: they are in the consumer's cache, and stores that miss go one after
    /// the other.
    #[inline]
    pub fn fetch<A32: Word32, A64: Word64>(&self, ring: &Ring<'_, A32, A64>, count: u32) {
        for ahead in (0..count).step_by(2) {
            if let Some([first, ..]) = ring.slot(self.tail.wrapping_add(ahead)) {
                crate::sync::prefetch_for_write(first);
            }
        }
    }

    /// Writes one element, which the consumer may see at once, into a slot that [`Producer::room`] found free.
    #[inline]
    pub fn put<A32: Word32, A64: Word64>(&mut self, ring: &Ring<'_, A32, A64>, nqe: &PackedNqe) {
        ring.write(self.tail, nqe);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Writes `tail`, after one or several [`Producer::put`]. Only for who looks from outside: consumers go by the phase bit.
    #[inline]
    pub fn publish<A32: Word32, A64: Word64>(&self, ring: &Ring<'_, A32, A64>) {
        ring.tail.store(self.tail, Ordering::Release);
    }
}

/// The consumer's private end: it alone knows how far it read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consumer {
    head: u32,
}

impl Consumer {
    /// A consumer that goes on where `head` says (0 on a fresh ring).
    #[must_use]
    pub const fn at(head: u32) -> Consumer {
        Consumer { head }
    }

    /// Takes the next element, if one was published.
    #[inline]
    pub fn pop<A32: Word32, A64: Word64>(&mut self, ring: &Ring<'_, A32, A64>) -> Option<Nqe> {
        self.pop_packed(ring).map(|nqe| nqe.unpack())
    }

    /// Takes the next element, if one was published, and parses nothing.
    #[inline]
    pub fn pop_packed<A32: Word32, A64: Word64>(
        &mut self,
        ring: &Ring<'_, A32, A64>,
    ) -> Option<PackedNqe> {
        let [s0, s1, s2, s3] = ring.slot(self.head)? else { return None };
        let w0 = s0.load(Ordering::Acquire);
        if w0 & PHASE != phase(self.head, ring.capacity()) {
            return None;
        }
        let words = [
            w0,
            s1.load(Ordering::Relaxed),
            s2.load(Ordering::Relaxed),
            s3.load(Ordering::Relaxed),
        ];
        self.head = self.head.wrapping_add(1);
        Some(PackedNqe(words))
    }

    /// Whether the next element is there.
    #[inline]
    pub fn is_ready<A32: Word32, A64: Word64>(&self, ring: &Ring<'_, A32, A64>) -> bool {
        ring.slot(self.head).and_then(|s| s.first()).is_some_and(|s0| {
            s0.load(Ordering::Acquire) & PHASE == phase(self.head, ring.capacity())
        })
    }

    /// Gives the slots read so far back to the producers.
    #[inline]
    pub fn commit<A32: Word32, A64: Word64>(&self, ring: &Ring<'_, A32, A64>) {
        ring.head.store(self.head, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use super::*;
    use crate::nqe::Op;
    use core::sync::atomic::{AtomicU32, AtomicU64};
    use std::vec::Vec;

    struct Owned {
        tail: AtomicU32,
        head: AtomicU32,
        slots: Vec<AtomicU64>,
    }
    impl Owned {
        fn new(capacity: usize) -> Owned {
            Owned {
                tail: AtomicU32::new(0),
                head: AtomicU32::new(0),
                slots: (0..capacity * 4).map(|_| AtomicU64::new(0)).collect(),
            }
        }
        fn ring(&self) -> Ring<'_, AtomicU32, AtomicU64> {
            Ring { tail: &self.tail, head: &self.head, slots: &self.slots }
        }
    }

    #[test]
    fn fills_wraps_and_keeps_order() {
        let o = Owned::new(4);
        let mut c = Consumer::default();
        let mut next_in = 0u32;
        let mut next_out = 0u32;
        for round in 0..50 {
            while o.ring().push(&Nqe::new(Op::Send, next_in, 0)).is_ok() {
                next_in += 1;
            }
            assert_eq!(next_in - next_out, 4, "full after {round}");
            for _ in 0..=(round % 4) {
                assert_eq!(c.pop(&o.ring()).map(|e| e.socket), Some(next_out));
                next_out += 1;
            }
            c.commit(&o.ring());
        }
    }

    #[test]
    fn a_producer_does_not_believe_the_shared_tail() {
        let o = Owned::new(4);
        let (mut p, mut c) = (Producer::default(), Consumer::default());
        for i in 0..20 {
            o.tail.store(i * 7919, Ordering::Relaxed);
            assert_eq!(p.push(&o.ring(), &Nqe::new(Op::Event, i, 0)), Ok(()));
            assert_eq!(c.pop(&o.ring()).map(|e| e.socket), Some(i));
            c.commit(&o.ring());
        }
        for _ in 0..4 {
            assert_eq!(p.push(&o.ring(), &Nqe::new(Op::Event, 0, 0)), Ok(()));
        }
        assert_eq!(p.push(&o.ring(), &Nqe::new(Op::Event, 0, 0)), Err(Full));
    }

    #[test]
    fn who_goes_on_for_a_dead_producer_writes_nothing_over() {
        let o = Owned::new(4);
        let mut c = Consumer::default();
        let mut p = Producer::resume(&o.ring());
        for i in 0..30u32 {
            // Killed between the element and the count, or not.
            p.put(&o.ring(), &(&Nqe::new(Op::Event, i, 0)).into());
            if i % 3 != 0 {
                p.publish(&o.ring());
            }
            p = Producer::resume(&o.ring());
            assert_eq!(p.tail(), i + 1);
            if i % 2 == 1 {
                assert_eq!(c.pop(&o.ring()).map(|e| e.socket), Some(i - 1));
                assert_eq!(c.pop(&o.ring()).map(|e| e.socket), Some(i));
                c.commit(&o.ring());
            }
        }
    }

    #[test]
    fn a_nonsense_head_reads_as_full() {
        let o = Owned::new(4);
        o.head.store(77, Ordering::Relaxed);
        assert_eq!(o.ring().push(&Nqe::new(Op::Send, 1, 0)), Err(Full));
    }

    #[test]
    fn many_producers_lose_nothing() {
        let o = Owned::new(8);
        let per = if cfg!(miri) { 20 } else { 2000u32 };
        std::thread::scope(|s| {
            for t in 0..3u32 {
                let ring = o.ring();
                s.spawn(move || {
                    for i in 0..per {
                        while ring.push(&Nqe::new(Op::Send, t * per + i, 0)).is_err() {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let mut c = Consumer::default();
            let mut last = [None::<u32>; 3];
            let mut n = 0;
            while n < per * 3 {
                match c.pop(&o.ring()) {
                    Some(e) => {
                        let t = (e.socket / per) as usize;
                        assert!(last[t].is_none_or(|l| l < e.socket));
                        last[t] = Some(e.socket);
                        n += 1;
                        c.commit(&o.ring());
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
    }
}
