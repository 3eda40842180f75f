//! The engine's producing end of a ring whose other end may be hostile: the tail is private, the peer's head is read once, so a
//! push is bounded whatever the peer writes.

use nk_device::Nqe;
use nk_device::qset::SharedRing;
use nk_device::sync::Ordering;

const PHASE: u64 = 1 << 8;

/// The one producer of a ring.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Producer {
    tail: u32,
}

impl Producer {
    /// Pushes an element; `false` when there is no room, or the consumer's index is nonsense.
    pub(crate) fn push(&mut self, ring: &SharedRing<'_>, nqe: &Nqe) -> bool {
        if !self.has_room(ring) {
            return false;
        }
        let capacity = (ring.slots.len() / 4) as u32;
        let base = (self.tail & capacity.wrapping_sub(1)) as usize * 4;
        let Some([s0, s1, s2, s3]) = ring.slots.get(base..base + 4) else { return false };
        let phase = if (self.tail / capacity) & 1 == 0 { PHASE } else { 0 };
        let [w0, w1, w2, w3] = nqe.to_words();
        s1.store(w1, Ordering::Relaxed);
        s2.store(w2, Ordering::Relaxed);
        s3.store(w3, Ordering::Relaxed);
        s0.store(w0 | phase, Ordering::Release);
        self.tail = self.tail.wrapping_add(1);
        ring.tail.store(self.tail, Ordering::Relaxed);
        true
    }

    /// Whether a push would succeed.
    pub(crate) fn has_room(&self, ring: &SharedRing<'_>) -> bool {
        let capacity = (ring.slots.len() / 4) as u32;
        self.tail.wrapping_sub(ring.head.load(Ordering::Acquire)) < capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nk_device::Op;
    use nk_device::ring::Consumer;
    use nk_device::sync::{AtomicU32, AtomicU64};

    #[test]
    fn its_elements_are_the_consumers_in_order_over_many_laps() {
        let (tail, head) = (AtomicU32::new(0), AtomicU32::new(0));
        let slots: Vec<AtomicU64> = (0..16).map(|_| AtomicU64::new(0)).collect();
        let ring = SharedRing { tail: &tail, head: &head, slots: &slots };
        let (mut p, mut c) = (Producer::default(), Consumer::default());
        let (mut sent, mut got) = (0, 0);
        for _ in 0..20 {
            while p.push(&ring, &Nqe::new(Op::Event, sent, 1)) {
                sent += 1;
            }
            assert_eq!(sent - got, 4);
            while let Some(e) = c.pop(&ring) {
                assert_eq!(e.socket, got);
                got += 1;
            }
            c.commit(&ring);
        }
        head.store(1 << 30, Ordering::Relaxed);
        assert!(!p.push(&ring, &Nqe::new(Op::Event, 0, 1)), "a nonsense head reads as full");
    }
}
