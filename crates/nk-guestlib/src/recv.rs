//! From the rx ring into user bytes.

use core::ptr::NonNull;

use nk_device::Cell;
use nk_device::cell::SF_RX_STALLED;
use nk_device::stream::{Position, Span, read_slot};
use nk_device::sync::{Ordering, fence};

use crate::errno::{EFAULT, ENOTCONN};
use crate::{Fault, MAX_QUEUED, Socket, View};

/// Where the bytes go.
pub trait Sink {
    /// Copies `len` bytes from a chunk to `at` bytes into the user's buffers. The same place may be written again when another
    /// reader won the race for the bytes.
    ///
    /// # Errors
    /// [`Fault`] when the user's memory cannot be written.
    fn copy(&mut self, at: usize, from: NonNull<u8>, len: usize) -> Result<(), Fault>;
}

/// A sink that drops what it gets (`MSG_TRUNC` on a stream).
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl Sink for Discard {
    fn copy(&mut self, _at: usize, _from: NonNull<u8>, _len: usize) -> Result<(), Fault> {
        Ok(())
    }
}

/// What a receive gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes, at least one (or none for a request of no bytes while some are there).
    Bytes {
        /// How many.
        count: usize,
        /// Push [`nk_device::Op::RxRoom`]: the service waits for room.
        rx_room: bool,
    },
    /// End of the stream.
    Eof,
    /// Nothing yet: wait on `rx_wake` or return EAGAIN.
    WouldBlock,
    /// An errno.
    Errno(i32),
}

/// Receives up to `len` bytes; with `peek` they stay.
pub fn recv(socket: &Socket<'_>, sink: &mut impl Sink, len: usize, peek: bool) -> Received {
    let cell = socket.cell;
    if View::of(cell).listening() {
        return Received::Errno(ENOTCONN);
    }
    loop {
        // State before ring: the service fills the ring before it says EOF, so an empty ring after EOF is the end.
        let v = View::of(cell);
        let word = cell.rx_pos.load(Ordering::Acquire);
        let start = Position::from_word(word);
        let tail = cell.rx_tail.load(Ordering::Acquire);
        if start.index == tail || tail.wrapping_sub(start.index) > MAX_QUEUED {
            if cell.rx_pos.load(Ordering::Acquire) != word {
                continue;
            }
            return match nothing(cell, v) {
                // The tail was read after the state, but the state may have changed with it.
                Received::WouldBlock if View::of(cell).state != v.state => continue,
                other => other,
            };
        }
        let (end, count, fault) = copy_out(socket, sink, start, tail, len);
        if count == 0 && fault {
            return Received::Errno(EFAULT);
        }
        if count == 0 && len > 0 {
            // A slot of another lap: this reader was overtaken, or the host broke the ring; never an end of stream.
            if cell.rx_pos.load(Ordering::Acquire) != word {
                continue;
            }
            return Received::WouldBlock;
        }
        if peek || count == 0 {
            if cell.rx_pos.load(Ordering::Acquire) != word || was_taken_back(cell, end.last()) {
                continue;
            }
            return Received::Bytes { count, rx_room: false };
        }
        if cell
            .rx_pos
            .compare_exchange(word, end.to_word(), Ordering::SeqCst, Ordering::Relaxed)
            .is_err()
        {
            // Another reader took these bytes; what was copied is overwritten by the next try.
            continue;
        }
        if was_taken_back(cell, end.last()) {
            continue;
        }
        let stalled = cell.state.load(Ordering::SeqCst) & SF_RX_STALLED != 0;
        let left = tail.wrapping_sub(end.index);
        return Received::Bytes { count, rx_room: stalled && left <= MAX_QUEUED / 2 };
    }
}

/// Whether the slot `last`, which was read, is on the ring no more: the service died, and the next one may have leased its chunk to
/// somebody else before it was copied.
pub(crate) fn was_taken_back(cell: &Cell, last: u32) -> bool {
    // What was copied, then where the ring ends: the engine moves the end before another service begins.
    fence(Ordering::SeqCst);
    (cell.rx_tail.load(Ordering::SeqCst).wrapping_sub(last) as i32) <= 0
}

/// The order of Linux's `tcp_recvmsg_locked` when the queue is empty.
fn nothing(cell: &Cell, v: View) -> Received {
    if v.peer_finished() {
        return Received::Eof;
    }
    match cell.take_error() {
        0 => {}
        e => return Received::Errno(e),
    }
    if v.shut_rd() {
        return Received::Eof;
    }
    if !v.connected() && !v.connecting() {
        return Received::Errno(ENOTCONN);
    }
    Received::WouldBlock
}

/// Copies from `start` up to `len` bytes or `tail`; gives the position after them.
fn copy_out(
    socket: &Socket<'_>,
    sink: &mut impl Sink,
    start: Position,
    tail: u32,
    len: usize,
) -> (Position, usize, bool) {
    let mut at = start;
    let mut count = 0;
    while count < len && at.index != tail {
        let span = read_slot(&socket.cell.rx_slots, at.index).and_then(Span::from_payload);
        // A slot of another lap: this reader is stale and its CAS will fail, or the host is broken.
        let Some(span) = span else { break };
        if at.offset >= span.len {
            at = Position { index: at.index.wrapping_add(1), offset: 0 };
            continue;
        }
        let n = ((span.len - at.offset) as usize).min(len - count);
        let first = (span.offset + at.offset) as usize;
        let Some(from) = socket.device.chunk_at(span.chunk, first, n) else { break };
        if sink.copy(count, from, n).is_err() {
            return (at, count, true);
        }
        count += n;
        at.offset += n as u32;
        if at.offset == span.len {
            at = Position { index: at.index.wrapping_add(1), offset: 0 };
        }
    }
    (at, count, false)
}

/// Whether the rx ring has nothing.
#[must_use]
pub fn is_empty(cell: &Cell) -> bool {
    cell.position().index == cell.rx_tail.load(Ordering::Acquire)
}

/// Whether at least `bytes` can be received.
#[must_use]
pub fn has_at_least(cell: &Cell, bytes: usize) -> bool {
    if bytes <= 1 {
        return !is_empty(cell);
    }
    let queued = cell.rx_tail.load(Ordering::Acquire).wrapping_sub(cell.position().index);
    // Readable even below SO_RCVLOWAT: a full ring, and one whose service waits for this reader. Neither grows.
    let stalled = cell.state.load(Ordering::Acquire) & SF_RX_STALLED != 0;
    available(cell) >= bytes || queued >= MAX_QUEUED || (stalled && queued > 0)
}

/// Bytes that can be received now (FIONREAD).
#[must_use]
pub fn available(cell: &Cell) -> usize {
    loop {
        let word = cell.rx_pos.load(Ordering::Acquire);
        let start = Position::from_word(word);
        let tail = cell.rx_tail.load(Ordering::Acquire);
        let mut sum = 0usize;
        let mut index = start.index;
        while index != tail && tail.wrapping_sub(index) <= MAX_QUEUED {
            if let Some(s) = read_slot(&cell.rx_slots, index).and_then(Span::from_payload) {
                sum += s.len as usize;
            }
            index = index.wrapping_add(1);
        }
        if cell.rx_pos.load(Ordering::Acquire) == word {
            return sum.saturating_sub(start.offset as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;
    use nk_device::STREAM_SLOTS;
    use nk_device::cell::*;

    fn bytes(count: usize) -> Received {
        Received::Bytes { count, rx_room: false }
    }

    #[test]
    fn partial_peek_and_order() {
        let f = Fixture::new();
        let s = f.socket();
        assert_eq!(f.recv(9, false).0, Received::Errno(ENOTCONN));
        s.cell.state.store(SF_CONNECTED, Ordering::Relaxed);
        assert_eq!(f.recv(9, false).0, Received::WouldBlock);
        f.receive(b"hello ");
        f.receive(b"world");
        assert_eq!(available(s.cell), 11);
        assert_eq!(f.recv(8, true), (bytes(8), b"hello wo".to_vec()));
        assert_eq!(f.recv(3, false), (bytes(3), b"hel".to_vec()));
        assert_eq!(available(s.cell), 8);
        s.cell.state.fetch_or(SF_EOF, Ordering::Relaxed);
        assert_eq!(f.recv(100, false), (bytes(8), b"lo world".to_vec()));
        assert_eq!(f.recv(100, false).0, Received::Eof);
    }

    #[test]
    fn data_comes_before_the_error_and_eof_after_it() {
        let f = Fixture::new();
        let s = f.socket();
        s.cell.state.store(SF_CONNECTED, Ordering::Relaxed);
        f.receive(b"last");
        s.cell.error.store(1 << 32 | 104, Ordering::Relaxed);
        s.cell.state.fetch_or(SF_DEAD, Ordering::Relaxed);
        assert_eq!(f.recv(10, false).0, bytes(4));
        assert_eq!(f.recv(10, false).0, Received::Errno(104));
        assert_eq!(f.recv(10, false).0, Received::Eof);
    }

    #[test]
    fn low_water_does_not_wait_for_a_service_that_waits_for_the_reader() {
        let f = Fixture::new();
        let s = f.socket();
        s.cell.state.store(SF_CONNECTED, Ordering::Relaxed);
        for _ in 0..STREAM_SLOTS {
            f.receive(b"ab");
        }
        assert!(has_at_least(s.cell, 1000), "full");
        s.cell.state.fetch_or(SF_RX_STALLED, Ordering::Relaxed);
        assert_eq!(f.recv(2, false).0, bytes(2), "not enough taken for RxRoom");
        assert!(has_at_least(s.cell, 1000), "stalled: it will not grow");
        s.cell.state.store(SF_CONNECTED, Ordering::Relaxed);
        assert!(!has_at_least(s.cell, 1000), "not stalled: more may come");
    }

    #[test]
    fn a_stalled_service_is_told_when_half_is_free() {
        let f = Fixture::new();
        let s = f.socket();
        s.cell.state.store(SF_CONNECTED | SF_RX_STALLED, Ordering::Relaxed);
        for _ in 0..STREAM_SLOTS {
            f.receive(b"ab");
        }
        assert_eq!(f.recv(2, false).0, bytes(2));
        assert_eq!(
            f.recv(STREAM_SLOTS, false).0,
            Received::Bytes { count: STREAM_SLOTS, rx_room: true }
        );
    }
}
