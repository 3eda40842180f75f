//! User bytes into chunks of the pool and onto the tx ring.

use core::ptr::NonNull;

use nk_device::header::FEATURE_APPEND;
use nk_device::stream::{Open, Span, read_slot};
use nk_device::sync::Ordering;
use nk_device::{CHUNK_SIZE, Cell};

use crate::errno::{EFAULT, EPIPE};
use crate::{Fault, MAX_QUEUED, Socket, View};

/// Where the bytes come from: an iovec of the program, faulting copies in a kernel.
pub trait Source {
    /// Copies `len` bytes, starting `at` bytes into what is to be sent, to `to` in a chunk.
    ///
    /// # Errors
    /// [`Fault`] when the user's memory cannot be read.
    fn copy(&mut self, at: usize, to: NonNull<u8>, len: usize) -> Result<(), Fault>;
}

/// Where chunks for sending come from: the row's grants, with one put-back slot private to the process.
pub trait Chunks {
    /// Takes a leased chunk.
    fn take(&mut self) -> Option<u32>;
    /// Gives back a chunk that was not published.
    fn put_back(&mut self, chunk: u32);
    /// Says on the row that this process writes into a published chunk ([`nk_device::row::Row::begin_append`]). `false`: it does not, and nothing
    /// is appended; a shell without a row to say it on leaves it at that.
    fn begin_append(&mut self, _chunk: u32) -> bool {
        false
    }
    /// After the copy.
    fn end_append(&mut self) {}
}

/// Why a send moved nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// No room on the ring, or the socket is to leave the pool to others: wait on `tx_wake` or return EAGAIN. [`nk_device::Cell::want_tx`] was
    /// called, so an event will come.
    WouldBlock,
    /// No chunk: ask for some ([`nk_device::Op::Refill`]), wait on the row's `grant_wake` or return EAGAIN.
    NoChunks,
    /// Not yet connected: wait on `tx_wake` or return EAGAIN.
    Connecting,
    /// EPIPE; the shell raises SIGPIPE unless MSG_NOSIGNAL.
    Pipe,
    /// An errno.
    Errno(i32),
}

/// Bytes taken, and whether a SEND NQE must be pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Bytes taken from the source.
    pub bytes: usize,
    /// Push [`nk_device::Op::Send`] and ring the engine.
    pub kick: bool,
}

/// The checks that Linux makes before it takes a byte (`tcp_sendmsg_locked`).
///
/// # Errors
/// Why nothing can be sent now or at all.
pub fn check(socket: &Socket<'_>) -> Result<(), SendError> {
    checked(socket).map(|_| ())
}

fn checked(socket: &Socket<'_>) -> Result<View, SendError> {
    let v = View::of(socket.cell);
    if v.connecting() && !v.shut_wr() && socket.cell.pending_error().is_none() {
        return Err(SendError::Connecting);
    }
    match socket.cell.take_error() {
        0 => {}
        EPIPE => return Err(SendError::Pipe),
        e => return Err(SendError::Errno(e)),
    }
    if v.shut_wr() || !v.connected() || v.listening() {
        return Err(SendError::Pipe);
    }
    Ok(v)
}

/// Whether the host serves what a bit of the header's `features` says.
pub(crate) fn has_feature(socket: &Socket<'_>, feature: u32) -> bool {
    socket.device.header().features.load(Ordering::Relaxed) & feature != 0
}

/// Adds to the last descriptor what `write` copies to [`Open::place`]: `false` where that cannot be.
pub(crate) fn append(
    socket: &Socket<'_>,
    chunks: &mut impl Chunks,
    open: &Open,
    write: impl FnOnce() -> Result<(), Fault>,
) -> Result<bool, Fault> {
    let tx = socket.cell.tx();
    if !chunks.begin_append(open.span.chunk) {
        return Ok(false);
    }
    let appended = if !tx.begin(open) {
        Ok(false)
    } else if let Err(fault) = write() {
        tx.abandon(open);
        Err(fault)
    } else {
        Ok(tx.commit(open))
    };
    chunks.end_append();
    appended
}

/// Appends `len` bytes, of which `done` were sent before, to the last descriptor: `false` where that cannot be.
fn append_bytes(
    socket: &Socket<'_>,
    chunks: &mut impl Chunks,
    source: &mut impl Source,
    done: usize,
    len: usize,
) -> Result<bool, Fault> {
    let Some(open) = socket.cell.tx().open(1, len) else { return Ok(false) };
    let Span { chunk, offset, .. } = open.place;
    let Some(to) = socket.device.chunk_at(chunk, offset as usize, len) else { return Ok(false) };
    append(socket, chunks, &open, || source.copy(done, to, len))
}

/// Sends up to `len` bytes; fewer when room or chunks run out after the first.
///
/// # Errors
/// [`SendError`] when no byte was taken (a fault after some bytes counts those).
pub fn send(
    socket: &Socket<'_>,
    chunks: &mut impl Chunks,
    source: &mut impl Source,
    len: usize,
) -> Result<Sent, SendError> {
    let cell = socket.cell;
    if checked(socket)?.braked() {
        cell.want_tx();
        if View::of(cell).braked() {
            return Err(SendError::WouldBlock);
        }
    }
    let mut done = 0;
    let mut stop = None;
    let appends = has_feature(socket, FEATURE_APPEND);
    while done < len {
        if appends && len - done < CHUNK_SIZE {
            match append_bytes(socket, chunks, source, done, len - done) {
                Ok(false) => {}
                Ok(true) => {
                    done = len;
                    break;
                }
                Err(Fault) => {
                    stop = Some(SendError::Errno(EFAULT));
                    break;
                }
            }
        }
        if cell.tx().room() == 0 {
            cell.want_tx();
            if cell.tx().room() == 0 {
                stop = Some(SendError::WouldBlock);
                break;
            }
        }
        let Some(chunk) = chunks.take() else {
            stop = Some(SendError::NoChunks);
            break;
        };
        let n = (len - done).min(CHUNK_SIZE);
        let Some(to) = socket.device.chunk(chunk) else {
            // A host that leases a chunk outside the pool is broken; drop the number, keep the socket.
            continue;
        };
        if source.copy(done, to, n).is_err() {
            chunks.put_back(chunk);
            stop = Some(SendError::Errno(EFAULT));
            break;
        }
        let span = Span { chunk, offset: 0, len: n as u32 };
        if cell.tx().publish(span.to_payload()).is_err() {
            // Another thread took the last slot.
            chunks.put_back(chunk);
            continue;
        }
        done += n;
    }
    if done == 0
        && let Some(why) = stop
    {
        return Err(why);
    }
    Ok(Sent { bytes: done, kick: done > 0 && cell.needs_kick() })
}

/// Bytes on the tx ring that the stack has not taken (SIOCOUTQ's part on this side).
#[must_use]
pub fn queued(socket: &Socket<'_>) -> usize {
    queued_spans(socket.cell).map(|s| s.len as usize).sum()
}

/// What stands on the tx ring; nothing where the service's index is nonsense.
pub(crate) fn queued_spans(cell: &Cell) -> impl Iterator<Item = Span> {
    let tail = cell.tx_tail.load(Ordering::Acquire);
    let head = cell.tx_head.load(Ordering::Acquire);
    let n = tail.wrapping_sub(head);
    let n = if n > MAX_QUEUED { 0 } else { n };
    let slots = (0..n).filter_map(move |i| read_slot(&cell.tx_slots, head.wrapping_add(i)));
    slots.filter_map(Span::from_payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use crate::testing::Fixture;
    use nk_device::STREAM_SLOTS;
    use nk_device::cell::*;
    use nk_device::stream::take_slot;
    use std::vec::Vec;

    #[test]
    fn takes_what_fits_and_kicks_once() {
        let f = Fixture::new();
        let s = f.socket();
        assert_eq!(f.send(b"x"), Err(SendError::Pipe), "never connected");
        s.cell.state.store(SF_CONNECTING, Ordering::Relaxed);
        assert_eq!(f.send(b"x"), Err(SendError::Connecting));
        s.cell.state.store(SF_CONNECTED, Ordering::Relaxed);
        assert_eq!(f.send(b"hello"), Ok(Sent { bytes: 5, kick: true }));
        assert_eq!(f.send(b"again"), Ok(Sent { bytes: 5, kick: false }));
        assert_eq!(queued(&s), 10);
        s.cell.tx_seq.store(2, Ordering::Relaxed);
        assert_eq!(f.send(b"more"), Ok(Sent { bytes: 4, kick: true }));
        let rest = STREAM_SLOTS - 1;
        assert_eq!(s.cell.tx().room() as usize, rest, "one descriptor has it all");
        let big = std::vec![7u8; (rest + 8) * CHUNK_SIZE];
        assert_eq!(f.send(&big), Ok(Sent { bytes: rest * CHUNK_SIZE, kick: false }));
        assert_eq!(f.send(b"x"), Err(SendError::WouldBlock));
        assert_eq!(s.cell.tx_want.load(Ordering::Relaxed), 2, "once by each call");
        s.cell.guest_state.fetch_or(GF_SHUT_WR, Ordering::Relaxed);
        assert_eq!(f.send(b"x"), Err(SendError::Pipe));
    }

    #[test]
    fn an_error_is_told_once_then_epipe() {
        let f = Fixture::new();
        let s = f.socket();
        s.cell.state.store(SF_CONNECTED | SF_DEAD, Ordering::Relaxed);
        s.cell.error.store(1 << 32 | 104, Ordering::Relaxed);
        assert_eq!(f.send(b"x"), Err(SendError::Errno(104)));
        assert_eq!(f.send(b"x"), Err(SendError::Pipe));
    }

    fn spans(f: &Fixture) -> Vec<Span> {
        let tx = f.socket().cell.tx_tail.load(Ordering::Relaxed);
        let slots = &f.socket().cell.tx_slots;
        let span = |i| Span::from_payload(nk_device::stream::read_slot(slots, i).expect("slot"));
        (0..tx).map(|i| span(i).expect("span")).collect()
    }

    #[test]
    fn small_writes_share_a_chunk_until_it_is_taken() {
        let f = Fixture::new();
        let cell = f.socket().cell;
        cell.state.store(SF_CONNECTED, Ordering::Relaxed);
        for _ in 0..3 {
            f.send(&[1; CHUNK_SIZE / 2 - 100]).expect("room");
        }
        let (lens, chunks): (Vec<u32>, Vec<u32>) =
            spans(&f).iter().map(|s| (s.len, s.chunk)).unzip();
        let part = CHUNK_SIZE as u32 / 2 - 100;
        assert_eq!(lens, [2 * part, part], "what does not fit as a whole gets a chunk of its own");
        assert_ne!(chunks[0], chunks[1]);
        let taken = take_slot(&cell.tx_slots, 1).expect("slot");
        assert_eq!(Span::from_payload(taken.payload), Some(spans(&f)[1]));
        assert!(!taken.appending);
        f.send(b"x").expect("room");
        assert_eq!(spans(&f).len(), 3, "the service has its copy of the second");
        // All consumed: nothing to append to, and the slots' old words are not taken for new ones.
        cell.tx_head.store(3, Ordering::Relaxed);
        f.send(b"y").expect("room");
        assert_eq!(spans(&f).len(), 4);
        // A row that is in the middle of another append.
        assert!(f.device().row(1).expect("row").begin_append(9));
        f.send(b"z").expect("room");
        assert_eq!(spans(&f).len(), 5);
        f.device().row(1).expect("row").end_append();
        // A host that does not say that it takes descriptors.
        f.device().header().features.store(0, Ordering::Relaxed);
        f.send(b"z").expect("room");
        assert_eq!(spans(&f).len(), 6);
    }

    #[test]
    fn a_descriptor_taken_in_the_middle_of_an_append_does_not_grow() {
        let f = Fixture::new();
        let cell = f.socket().cell;
        cell.state.store(SF_CONNECTED, Ordering::Relaxed);
        f.send(b"abc").expect("room");
        let open = cell.tx().open(1, 2).expect("room behind it");
        assert!(cell.tx().begin(&open));
        assert!(cell.tx().open(1, 2).is_none(), "one appends");
        let taken = take_slot(&cell.tx_slots, 0).expect("slot");
        assert_eq!((Span::from_payload(taken.payload), taken.appending), (Some(open.span), true));
        assert!(!cell.tx().commit(&open), "it is taken");
        assert!(cell.tx().open(1, 2).is_none());
    }

    #[test]
    fn a_braked_socket_asks_to_be_told() {
        let f = Fixture::new();
        let cell = f.socket().cell;
        cell.state.store(SF_CONNECTED | SF_TX_BRAKED, Ordering::Relaxed);
        assert_eq!(f.send(b"x"), Err(SendError::WouldBlock));
        assert_eq!(cell.tx_want.load(Ordering::Relaxed), 1);
        let mut served = 0;
        assert!(!cell.consume_tx(0, SF_CONNECTED | SF_TX_BRAKED, &mut served), "not yet");
        assert!(cell.release_brake(SF_CONNECTED | SF_TX_BRAKED, &mut served));
        assert_eq!(f.send(b"x"), Ok(Sent { bytes: 1, kick: true }));
        cell.state.store(SF_CONNECTED | SF_TX_BRAKED | SF_DEAD, Ordering::Relaxed);
        assert_eq!(f.send(b"x"), Err(SendError::Pipe), "an end is told first");
    }

    #[test]
    fn no_chunks_is_not_would_block() {
        let f = Fixture::new();
        f.socket().cell.state.store(SF_CONNECTED, Ordering::Relaxed);
        while f.take_chunk().is_some() {}
        assert_eq!(f.send(b"x"), Err(SendError::NoChunks));
    }
}
