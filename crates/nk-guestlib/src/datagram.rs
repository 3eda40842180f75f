//! Datagrams: whole ones, onto the tx ring and from the rx ring. What the stack finds out about one that was queued it tells as the socket's
//! pending error, or, for one that is asked for ([`nk_device::datagram::DF_REPORT`]), by [`nk_device::Op::Report`].

use nk_device::addr::{AF_INET, V4_MAPPED};
use nk_device::cell::SF_RX_STALLED;
use nk_device::datagram::{
    ALIGN, DATAGRAM_MAX, DF_PEER, DF_REPORT, HEADER_BYTES, Header, MORE_MAX,
};
use nk_device::header::FEATURE_PACK;
use nk_device::stream::{Position, Span, read_slot};
use nk_device::sync::Ordering;
use nk_device::{Addr, Cell};

use crate::errno::{EDESTADDRREQ, EFAULT, EINVAL, EMSGSIZE, ENETDOWN, EPIPE};
use crate::recv::{Sink, was_taken_back};
use crate::send::{Chunks, SendError, Source, append, has_feature, queued_spans};
use crate::{Fault, MAX_QUEUED, Socket, View};

/// What UDP's length field can say at all.
const UDP_LENGTH_MAX: usize = 0xffff;
/// The longest datagram over IPv4.
const V4_MAX: usize = 65_507;
/// Bytes on the ring, headers included, up to which datagrams are appended to others: a native socket's send buffer, as Linux makes it. What is
/// more takes a descriptor each, of which a ring has few.
const PACKED_MAX: usize = 212_992;

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

/// Writes a datagram, its first part to `place`, the rest to the chunks that the header names.
fn write(
    socket: &Socket<'_>,
    source: &mut impl Source,
    place: Span,
    header: &Header,
) -> Result<(), Fault> {
    let mut fault = false;
    header.for_each_part(place, |chunk, at, n, before| {
        let to = socket.device.chunk_at(chunk, at, n);
        fault = n > 0 && to.is_none_or(|to| source.copy(before, to, n).is_err());
        !fault
    });
    if fault {
        return Err(Fault);
    }
    socket.device.put_header(place, header);
    Ok(())
}

/// Appends a datagram to the last descriptor, if that can be; to which. One that somebody waits to be told of has a descriptor to itself.
fn pack(
    socket: &Socket<'_>,
    chunks: &mut impl Chunks,
    source: &mut impl Source,
    header: &Header,
) -> Result<Option<u32>, Fault> {
    if header.flags & DF_REPORT != 0 || !has_feature(socket, FEATURE_PACK) {
        return Ok(None);
    }
    let Some(open) = socket.cell.tx().open(ALIGN, HEADER_BYTES + header.len as usize) else {
        return Ok(None);
    };
    let first = socket.device.header_of(open.span);
    let is_alone = first.is_none_or(|h| h.flags & DF_REPORT != 0);
    let waiting: usize = queued_spans(socket.cell).map(|s| s.len as usize).sum();
    if is_alone || waiting + open.place.len as usize > PACKED_MAX {
        return Ok(None);
    }
    let packed = append(socket, chunks, &open, || write(socket, source, open.place, header))?;
    Ok(packed.then_some(open.index))
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
    header.len = len as u32;
    match pack(socket, chunks, source, &header) {
        Ok(Some(index)) => return Ok(Queued { index, kick: cell.needs_kick() }),
        Ok(None) => {}
        Err(Fault) => return Err(SendError::Errno(EFAULT)),
    }
    if cell.tx().room() == 0 {
        cell.want_tx();
        if cell.tx().room() == 0 {
            return Err(SendError::WouldBlock);
        }
    }
    let Some(taken) = Taken::take(chunks, more + 1) else { return Err(SendError::NoChunks) };
    let [first, rest @ ..] = taken.chunks;
    header.more = rest;
    let span = Header::span_for(first, len);
    if write(socket, source, span, &header).is_err() {
        taken.put_back(chunks);
        return Err(SendError::Errno(EFAULT));
    }
    match cell.tx().publish(span.to_payload()) {
        Ok(index) => {
            let reports = header.flags & DF_REPORT != 0;
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
        let (count, fault) = copy_out(socket, sink, span, &header, len);
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
    let header = socket.device.header_of(span)?;
    // The service gives each its own descriptor.
    let (_, None) = header.split(span)? else { return None };
    Some((span, header))
}

fn copy_out(
    socket: &Socket<'_>,
    sink: &mut impl Sink,
    first: Span,
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
    let headers = queued_spans(socket.cell).flat_map(|s| socket.device.headers_of(s));
    headers.map(|h| h.len as usize).sum()
}

/// How many chunks a datagram of so many bytes needs; of one that is too long, as many as the longest.
#[must_use]
pub fn chunks_for(len: usize) -> usize {
    1 + Header::more_for(len).unwrap_or(MORE_MAX)
}

#[cfg(test)]
mod tests;
