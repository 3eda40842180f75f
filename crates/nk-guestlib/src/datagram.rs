//! Datagrams: whole ones, onto the tx ring and from the rx ring. What the stack finds out about one that was queued it tells as the socket's
//! pending error, or, for one that is asked for ([`nk_device::datagram::DF_REPORT`]), by [`nk_device::Op::Report`].

use nk_device::addr::{AF_INET, V4_MAPPED};
use nk_device::cell::SF_RX_STALLED;
use nk_device::datagram::{DATAGRAM_MAX, DF_PEER, Header, MORE_MAX};
use nk_device::stream::{Position, Span, read_slot};
use nk_device::sync::Ordering;
use nk_device::{Addr, Cell};

use crate::errno::{EDESTADDRREQ, EFAULT, EINVAL, EMSGSIZE, ENETDOWN, EPIPE};
use crate::recv::{Sink, was_taken_back};
use crate::send::{Chunks, SendError, Source, queued_spans};
use crate::{MAX_QUEUED, Socket, View};

/// What UDP's length field can say at all.
const UDP_LENGTH_MAX: usize = 0xffff;
/// The longest datagram over IPv4.
const V4_MAX: usize = 65_507;

/// A datagram on the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Where, for [`nk_device::Op::Report`].
    pub index: u32,
    /// Push [`nk_device::Op::Send`] and ring the engine (never for one with DF_REPORT: the report does it).
    pub kick: bool,
}

fn is_v4(a: &Addr) -> bool {
    a.family == AF_INET || a.ip.starts_with(&V4_MAPPED)
}

/// What Linux's `udp_sendmsg` refuses before anything is sent and GuestLib can know. The socket's pending error is among it.
///
/// # Errors
/// Why nothing can be sent.
pub fn check(cell: &Cell, header: &Header, len: usize) -> Result<(), SendError> {
    let v = View::of(cell);
    // Linux's IPv4 looks at the length first, its IPv6 at the destination.
    if len > UDP_LENGTH_MAX && cell.kind.load(Ordering::Relaxed) as u16 == AF_INET {
        return Err(SendError::Errno(EMSGSIZE));
    }
    let to = if header.flags & DF_PEER != 0 {
        header.peer
    } else if v.connected() {
        cell.peer.load()
    } else {
        return Err(SendError::Errno(EDESTADDRREQ));
    };
    if to.port == 0 {
        return Err(SendError::Errno(EINVAL));
    }
    if len > if is_v4(&to) { V4_MAX } else { DATAGRAM_MAX } {
        return Err(SendError::Errno(EMSGSIZE));
    }
    match cell.take_error() {
        0 => {}
        e => return Err(SendError::Errno(e)),
    }
    if v.dead() {
        return Err(SendError::Errno(ENETDOWN));
    }
    if v.shut_wr() {
        return Err(SendError::Errno(EPIPE));
    }
    Ok(())
}

/// Chunks that were taken and go back unless they are published.
struct Taken {
    chunks: [u32; MORE_MAX + 1],
    n: usize,
}

impl Taken {
    fn take(from: &mut impl Chunks, wanted: usize) -> Option<Taken> {
        let mut t = Taken { chunks: [0; MORE_MAX + 1], n: 0 };
        for slot in t.chunks.iter_mut().take(wanted) {
            match from.take() {
                Some(chunk) => *slot = chunk,
                None => {
                    t.put_back(from);
                    return None;
                }
            }
            t.n += 1;
        }
        Some(t)
    }
    fn put_back(&self, to: &mut impl Chunks) {
        for chunk in self.chunks.iter().take(self.n) {
            to.put_back(*chunk);
        }
    }
}

/// Queues a datagram of `len` bytes; `header` says all that is known of it but its length and its chunks.
///
/// # Errors
/// [`SendError`]: nothing was queued. [`SendError::NoChunks`] may want as many as [`nk_device::datagram::MORE_MAX`] + 1.
pub fn send(
    socket: &Socket<'_>,
    chunks: &mut impl Chunks,
    source: &mut impl Source,
    len: usize,
    mut header: Header,
) -> Result<Queued, SendError> {
    let cell = socket.cell;
    check(cell, &header, len)?;
    let Some(more) = Header::more_for(len) else { return Err(SendError::Errno(EMSGSIZE)) };
    if cell.tx().room() == 0 {
        cell.want_tx();
        if cell.tx().room() == 0 {
            return Err(SendError::WouldBlock);
        }
    }
    let Some(taken) = Taken::take(chunks, more + 1) else { return Err(SendError::NoChunks) };
    let [first, rest @ ..] = taken.chunks;
    header.len = len as u32;
    header.more = rest;
    let mut fault = false;
    header.for_each_part(first, |chunk, at, n, before| {
        let to = socket.device.chunk_at(chunk, at, n);
        fault = n > 0 && to.is_none_or(|to| source.copy(before, to, n).is_err());
        !fault
    });
    if fault {
        taken.put_back(chunks);
        return Err(SendError::Errno(EFAULT));
    }
    socket.device.put_header(first, &header);
    match cell.tx().publish(Header::span_for(first, len).to_payload()) {
        Ok(index) => {
            let reports = header.flags & nk_device::datagram::DF_REPORT != 0;
            Ok(Queued { index, kick: !reports && cell.needs_kick() })
        }
        Err(_) => {
            // Another thread took the last slot.
            taken.put_back(chunks);
            cell.want_tx();
            Err(SendError::WouldBlock)
        }
    }
}

/// What a receive gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A datagram.
    Datagram {
        /// What is known of it; its length may be more than `count`.
        header: Header,
        /// Bytes copied.
        count: usize,
        /// Push [`nk_device::Op::RxRoom`]: the service waits for room.
        rx_room: bool,
    },
    /// None yet: wait on `rx_wake` or return EAGAIN.
    WouldBlock,
    /// None, and shutdown was called: a call that would block gives 0.
    Shut,
    /// An errno.
    Errno(i32),
}

/// Receives the next datagram, `len` bytes of it at most; with `peek` it stays.
pub fn recv(socket: &Socket<'_>, sink: &mut impl Sink, len: usize, peek: bool) -> Received {
    let cell = socket.cell;
    match cell.take_error() {
        0 => {}
        e => return Received::Errno(e),
    }
    loop {
        let v = View::of(cell);
        let word = cell.rx_pos.load(Ordering::Acquire);
        let at = Position::from_word(word);
        let tail = cell.rx_tail.load(Ordering::Acquire);
        let next = match tail.wrapping_sub(at.index) {
            1..=MAX_QUEUED => next_at(socket, at.index),
            _ => None,
        };
        let Some((span, header)) = next else {
            if cell.rx_pos.load(Ordering::Acquire) != word {
                continue;
            }
            return match v {
                _ if v.dead() => Received::Errno(ENETDOWN),
                _ if v.local_shut_rd() => Received::Shut,
                _ => Received::WouldBlock,
            };
        };
        let (count, fault) = copy_out(socket, sink, span.chunk, &header, len);
        if fault {
            return Received::Errno(EFAULT);
        }
        if peek {
            if cell.rx_pos.load(Ordering::Acquire) != word || was_taken_back(cell, at.index) {
                continue;
            }
            return Received::Datagram { header, count, rx_room: false };
        }
        let end = Position { index: at.index.wrapping_add(1), offset: 0 };
        if cell
            .rx_pos
            .compare_exchange(word, end.to_word(), Ordering::SeqCst, Ordering::Relaxed)
            .is_err()
        {
            // Another reader took it, and what was copied may be torn; the next try overwrites it.
            continue;
        }
        if was_taken_back(cell, at.index) {
            continue;
        }
        let stalled = cell.state.load(Ordering::SeqCst) & SF_RX_STALLED != 0;
        let left = tail.wrapping_sub(end.index);
        return Received::Datagram { header, count, rx_room: stalled && left <= MAX_QUEUED / 2 };
    }
}

/// The datagram at an index. `None`: this reader is stale, or the host broke the ring.
fn next_at(socket: &Socket<'_>, index: u32) -> Option<(Span, Header)> {
    let span = read_slot(&socket.cell.rx_slots, index).and_then(Span::from_payload)?;
    let header = socket.device.header_of(span.chunk)?;
    header.chunks_of(span)?;
    Some((span, header))
}

fn copy_out(
    socket: &Socket<'_>,
    sink: &mut impl Sink,
    first: u32,
    header: &Header,
    len: usize,
) -> (usize, bool) {
    let (mut count, mut fault) = (0, false);
    header.for_each_part(first, |chunk, at, n, before| {
        let n = n.min(len - before.min(len));
        if n == 0 {
            return false;
        }
        let from = socket.device.chunk_at(chunk, at, n);
        fault = from.is_none_or(|from| sink.copy(before, from, n).is_err());
        count += n;
        !fault
    });
    (count, fault)
}

/// Bytes of the next datagram (FIONREAD), 0 when there is none.
#[must_use]
pub fn available(socket: &Socket<'_>) -> usize {
    loop {
        let word = socket.cell.rx_pos.load(Ordering::Acquire);
        let index = Position::from_word(word).index;
        let tail = socket.cell.rx_tail.load(Ordering::Acquire);
        let n = match tail.wrapping_sub(index) {
            1..=MAX_QUEUED => next_at(socket, index).map_or(0, |(_, h)| h.len as usize),
            _ => 0,
        };
        if socket.cell.rx_pos.load(Ordering::Acquire) == word {
            return n;
        }
    }
}

/// Bytes of datagrams that the stack has not taken.
#[must_use]
pub fn queued(socket: &Socket<'_>) -> usize {
    let headers = queued_spans(socket.cell).filter_map(|s| socket.device.header_of(s.chunk));
    headers.map(|h| (h.len as usize).min(DATAGRAM_MAX)).sum()
}

/// How many chunks a datagram of so many bytes needs; of one that is too long, as many as the longest.
#[must_use]
pub fn chunks_for(len: usize) -> usize {
    1 + Header::more_for(len).unwrap_or(MORE_MAX)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::testing::Fixture;
    use nk_device::cell::*;
    use nk_device::datagram::FIRST_BYTES;

    fn to(port: u16) -> Header {
        Header { flags: DF_PEER, peer: Addr::v4([127, 0, 0, 1], port), ..Header::default() }
    }

    #[test]
    fn what_linux_refuses_before_it_sends() {
        let f = Fixture::new_datagram();
        let c = f.socket().cell;
        let errno = |h: &Header, len| match check(c, h, len) {
            Err(SendError::Errno(e)) => e,
            Ok(()) => 0,
            other => panic!("{other:?}"),
        };
        assert_eq!(errno(&Header::default(), 1), EDESTADDRREQ);
        assert_eq!(errno(&Header::default(), 65_536), EMSGSIZE);
        assert_eq!(errno(&to(0), 1), EINVAL);
        assert_eq!(errno(&to(9), 65_507), 0);
        assert_eq!(errno(&to(9), 65_508), EMSGSIZE);
        c.error.store(1 << 32 | 111, Ordering::Relaxed);
        assert_eq!(errno(&to(9), 1), 111);
        assert_eq!(errno(&to(9), 1), 0);
        c.guest_state.store(GF_SHUT_WR, Ordering::Relaxed);
        assert_eq!(errno(&to(9), 1), EPIPE);
    }

    #[test]
    fn a_datagram_of_any_size_is_one_descriptor() {
        let f = Fixture::new_datagram();
        for len in [0, 1, FIRST_BYTES, FIRST_BYTES + 1, 65_507] {
            let bytes: std::vec::Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
            let before = f.socket().cell.tx_tail.load(Ordering::Relaxed);
            let sent = f.send_datagram(&bytes, to(9)).expect("sent");
            assert_eq!(sent.index, before);
            let slot = read_slot(&f.socket().cell.tx_slots, before).expect("slot");
            let span = Span::from_payload(slot).expect("span");
            let h = f.device().header_of(span.chunk).expect("header");
            assert_eq!((h.len as usize, h.peer), (len, to(9).peer));
            // What was sent comes back.
            f.push_rx(slot);
            assert_eq!(available(&f.socket()), len);
            for peek in [true, false] {
                let (got, back) = f.recv_datagram(70_000, peek);
                assert!(matches!(got, Received::Datagram { count, .. } if count == len), "{got:?}");
                assert_eq!(back, bytes);
            }
        }
        assert_eq!(queued(&f.socket()), 1 + 2 * FIRST_BYTES + 1 + 65_507);
        assert_eq!(f.recv_datagram(10, false).0, Received::WouldBlock);
    }

    #[test]
    fn what_does_not_fit_is_cut_and_gone() {
        let f = Fixture::new_datagram();
        f.send_datagram(b"a long one", to(9)).expect("sent");
        let slot = read_slot(&f.socket().cell.tx_slots, 0).expect("slot");
        f.push_rx(slot);
        let (got, bytes) = f.recv_datagram(3, false);
        assert_eq!(bytes, b"a l");
        assert!(matches!(got, Received::Datagram { header, count: 3, .. } if header.len == 10));
        assert_eq!(f.recv_datagram(3, false).0, Received::WouldBlock);
        f.socket().cell.guest_state.store(GF_SHUT_RD, Ordering::Relaxed);
        assert_eq!(f.recv_datagram(3, false).0, Received::Shut);
    }

    #[test]
    fn all_chunks_or_none() {
        let f = Fixture::new_datagram();
        let mut kept = std::vec::Vec::new();
        while let Some(c) = f.take_chunk() {
            kept.push(c);
        }
        for c in kept.drain(..2) {
            f.give_chunk(c);
        }
        assert_eq!(f.send_datagram(&[0; 65_507], to(9)), Err(SendError::NoChunks));
        assert!(f.send_datagram(&[0; 40_000], to(9)).is_ok(), "both are there again");
    }

    #[test]
    fn a_header_that_lies_is_nothing_to_read() {
        let f = Fixture::new_datagram();
        f.send_datagram(b"x", to(9)).expect("sent");
        let slot = read_slot(&f.socket().cell.tx_slots, 0).expect("slot");
        let chunk = Span::from_payload(slot).expect("span").chunk;
        f.device().put_header(chunk, &Header { len: 60_000, more: [u32::MAX; 2], ..to(9) });
        f.push_rx(slot);
        assert_eq!(f.recv_datagram(10, false).0, Received::WouldBlock);
    }
}
