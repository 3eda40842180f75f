//! Datagrams on a socket's descriptor rings: one descriptor is one datagram, or, from the guest, several short ones.
//!
//! The descriptor names the first chunk, which begins with a header of [`HEADER_BYTES`] and goes on with the datagram's first bytes; what does not
//! fit there lies in further chunks, named by the header. So a datagram of any size is published by the one CAS of its descriptor. One that fits behind
//! those of a descriptor that the service has not taken may be appended there, header and all, from a multiple of [`ALIGN`] on: by one CAS, too.
//!
//! Whoever reads copies a header once ([`Device::header_of`]), checks it against the descriptor ([`Header::split`]) and uses the copy.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::stream::Span;
use crate::{Addr, CHUNK_SIZE, Device};

/// Bytes of the header at the start of a datagram's first chunk.
pub const HEADER_BYTES: usize = WORDS * 8;
/// A header begins at a multiple of this in its chunk.
pub const ALIGN: usize = 64;
/// Bytes of a datagram that its first chunk takes.
pub const FIRST_BYTES: usize = CHUNK_SIZE - HEADER_BYTES;
/// Further chunks that a datagram can have.
pub const MORE_MAX: usize = 2;
/// The longest datagram: what the length of an IPv6 packet leaves for UDP's payload. Over IPv4 the stack refuses the last 20 of these bytes.
pub const DATAGRAM_MAX: usize = 65_527;

const WORDS: usize = 16;
const _: () = assert!(FIRST_BYTES + MORE_MAX * CHUNK_SIZE >= DATAGRAM_MAX);

/// `flags`: `peer` says where it goes to or came from. Without it a datagram goes to the socket's peer.
pub const DF_PEER: u32 = 1;
/// `flags`, sending: a [`crate::Op::Report`] follows for it; how it fails is told there and nowhere else.
pub const DF_REPORT: u32 = 1 << 1;
/// `flags`, sending: MSG_DONTROUTE.
pub const DF_DONTROUTE: u32 = 1 << 2;
/// `flags`: `ip`, `source` and `interface` are those of an IP_PKTINFO.
pub const DF_PKTINFO: u32 = 1 << 3;
/// `flags`: `ip` and `interface` are those of an IPV6_PKTINFO.
pub const DF_PKTINFO6: u32 = 1 << 4;
/// `flags`: `tos` is there (IP_TOS).
pub const DF_TOS: u32 = 1 << 5;
/// `flags`: `class` is there (IPV6_TCLASS).
pub const DF_CLASS: u32 = 1 << 6;
/// `flags`: `ttl` is there (IP_TTL).
pub const DF_TTL: u32 = 1 << 7;
/// `flags`: `hops` is there (IPV6_HOPLIMIT).
pub const DF_HOPS: u32 = 1 << 8;
/// `flags`, receiving: `time` is there (SO_TIMESTAMP and SO_TIMESTAMPNS).
pub const DF_TIME: u32 = 1 << 9;

/// What is known of a datagram besides its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the datagram.
    pub len: u32,
    /// Bits [`DF_PEER`] and so on.
    pub flags: u32,
    /// The other end, with [`DF_PEER`].
    pub peer: Addr,
    /// The address in the packet (receiving: its destination; sending over IPv6: its source).
    pub ip: [u8; 16],
    /// IPv4: `ipi_spec_dst`, the local address.
    pub source: [u8; 4],
    /// Index of the interface.
    pub interface: u32,
    /// IPv4's type of service.
    pub tos: u8,
    /// IPv6's traffic class.
    pub class: u8,
    /// IPv4's time to live.
    pub ttl: u8,
    /// IPv6's hop limit.
    pub hops: u8,
    /// Receiving: datagrams that the stack dropped on this socket so far (SO_RXQ_OVFL).
    pub dropped: u32,
    /// Receiving: when it came, seconds and nanoseconds of the clock of the day.
    pub time: (u64, u32),
    /// Further chunks, as many as `len` needs.
    pub more: [u32; MORE_MAX],
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b))
}

impl Header {
    /// How many further chunks a datagram of so many bytes has; `None` when there is none so long.
    #[must_use]
    pub fn more_for(len: usize) -> Option<usize> {
        (len <= DATAGRAM_MAX).then_some(len.saturating_sub(FIRST_BYTES).div_ceil(CHUNK_SIZE))
    }

    /// The descriptor of a datagram of `len` bytes whose first chunk this is.
    #[must_use]
    pub fn span_for(chunk: u32, len: usize) -> Span {
        Span { chunk, offset: 0, len: (HEADER_BYTES + len.min(FIRST_BYTES)) as u32 }
    }

    /// The further chunks, and the span of the datagrams behind this one, when the header is one that goes with the span at whose start it is. The
    /// chunks' indices are the caller's to check. A datagram that has any is alone.
    #[must_use]
    pub fn split(&self, span: Span) -> Option<(&[u32], Option<Span>)> {
        let len = self.len as usize;
        let more = self.more.get(..Header::more_for(len)?)?;
        let own = Header::span_for(span.chunk, len).len;
        if own == span.len {
            return Some((more, None));
        }
        let next = own.next_multiple_of(ALIGN as u32);
        if !more.is_empty() {
            return None;
        }
        let left = span.len.checked_sub(next).filter(|left| *left >= HEADER_BYTES as u32)?;
        Some((more, Some(Span { offset: span.offset + next, len: left, ..span })))
    }

    /// Where bytes lie: calls `f(chunk, first byte within it, bytes, bytes before them)` for each part, until it gives `false`. `first`: the span at
    /// whose start the header is.
    pub fn for_each_part(&self, first: Span, mut f: impl FnMut(u32, usize, usize, usize) -> bool) {
        let len = (self.len as usize).min(DATAGRAM_MAX);
        let n = len.min(FIRST_BYTES);
        if !f(first.chunk, first.offset as usize + HEADER_BYTES, n, 0) {
            return;
        }
        let mut at = n;
        for chunk in self.more {
            let n = (len - at).min(CHUNK_SIZE);
            if n == 0 || !f(chunk, 0, n, at) {
                return;
            }
            at += n;
        }
    }

    /// The words of the header.
    #[must_use]
    pub fn to_words(&self) -> [u64; WORDS] {
        let [peer, lo, hi] = self.peer.pack();
        let [ip_lo, ip_hi] = [word(&self.ip[..8]), word(&self.ip[8..])];
        let [m0, m1] = self.more.map(u64::from);
        [
            u64::from(self.len) | u64::from(self.flags) << 32,
            peer,
            lo,
            hi,
            ip_lo,
            ip_hi,
            word(&self.source) | u64::from(self.interface) << 32,
            word(&[self.tos, self.class, self.ttl, self.hops]) | u64::from(self.dropped) << 32,
            self.time.0,
            self.time.1.into(),
            m0 | m1 << 32,
            0,
            0,
            0,
            0,
            0,
        ]
    }

    /// Undoes [`Header::to_words`]. Any words give some header.
    #[must_use]
    pub fn from_words(w: [u64; WORDS]) -> Header {
        let [w0, peer, lo, hi, ip_lo, ip_hi, w6, w7, seconds, nanoseconds, more, ..] = w;
        let mut ip = [0; 16];
        for (to, from) in
            ip.iter_mut().zip(ip_lo.to_le_bytes().into_iter().chain(ip_hi.to_le_bytes()))
        {
            *to = from;
        }
        let [s0, s1, s2, s3, ..] = w6.to_le_bytes();
        let [tos, class, ttl, hops, ..] = w7.to_le_bytes();
        Header {
            len: w0 as u32,
            flags: (w0 >> 32) as u32,
            peer: Addr::unpack([peer, lo, hi]),
            ip,
            source: [s0, s1, s2, s3],
            interface: (w6 >> 32) as u32,
            tos,
            class,
            ttl,
            hops,
            dropped: (w7 >> 32) as u32,
            time: (seconds, nanoseconds as u32),
            more: [more as u32, (more >> 32) as u32],
        }
    }
}

impl Device {
    fn header_words(&self, span: Span) -> Option<&[AtomicU64; WORDS]> {
        let offset = span.offset as usize;
        let at = self.chunk_at(span.chunk, offset, HEADER_BYTES)?;
        // SAFETY: HEADER_BYTES from there on are within a chunk, and so within the mapping; chunks are aligned to pages, and the offset is checked;
        // atomics, so that any bytes are valid and concurrent writers are sound.
        offset.is_multiple_of(ALIGN).then(|| unsafe { at.cast::<[AtomicU64; WORDS]>().as_ref() })
    }

    /// A copy of the header at the start of a span; `None` where there cannot be one.
    #[must_use]
    pub fn header_of(&self, span: Span) -> Option<Header> {
        let mut words = [0; WORDS];
        for (to, from) in words.iter_mut().zip(self.header_words(span)?) {
            *to = from.load(Ordering::Relaxed);
        }
        Some(Header::from_words(words))
    }

    /// The headers of a descriptor's datagrams, each copied once, up to one that is not right.
    pub fn headers_of(&self, span: Span) -> impl Iterator<Item = Header> + use<'_> {
        let mut left = Some(span);
        core::iter::from_fn(move || {
            let at = left?;
            let header = self.header_of(at)?;
            left = header.split(at)?.1;
            Some(header)
        })
    }

    /// Copies bytes from the start of a chunk that the other side may write meanwhile.
    pub fn copy_from_chunk(&self, chunk: u32, to: &mut [u8]) {
        if let Some(from) = self.chunk(chunk) {
            let n = to.len().min(CHUNK_SIZE);
            // SAFETY: a chunk has CHUNK_SIZE bytes within the mapping; a raw copy, whatever is found there.
            unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), n) };
        }
    }

    /// Writes a header at the start of a span that nobody else uses; the descriptor is published after it.
    pub fn put_header(&self, span: Span, header: &Header) {
        if let Some(words) = self.header_words(span) {
            for (to, from) in words.iter().zip(header.to_words()) {
                to.store(from, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn words_survive_both_ways(w in any::<[u64; WORDS]>()) {
            let h = Header::from_words(w);
            prop_assert_eq!(Header::from_words(h.to_words()), h);
        }

        #[test]
        fn no_header_reaches_past_its_span(w in any::<[u64; WORDS]>(), short in 0usize..3, p in any::<u64>()) {
            let mut h = Header::from_words(w);
            h.len %= [u32::MAX, 70_000, 3_000][short];
            let span = match Span::from_payload(p) {
                Some(s) if short != 1 => s,
                _ => Header::span_for(3, h.len as usize % (1 << 20)),
            };
            let end = span.offset + span.len;
            let mut sum = 0;
            if let Some((more, left)) = h.split(span) {
                let mut chunks = Vec::new();
                let mut first_end = 0;
                h.for_each_part(span, |chunk, first, n, before| {
                    assert!(first + n <= CHUNK_SIZE);
                    assert_eq!(before, sum);
                    if before == 0 {
                        first_end = (first + n) as u32;
                    }
                    sum += n;
                    chunks.push(chunk);
                    true
                });
                prop_assert_eq!(sum, h.len as usize);
                prop_assert_eq!(&chunks[1..], more);
                prop_assert!(sum <= DATAGRAM_MAX);
                prop_assert!(first_end <= end);
                if let Some(left) = left {
                    prop_assert!(more.is_empty());
                    prop_assert!(left.offset >= first_end && left.offset + left.len == end);
                    prop_assert_eq!(left.chunk, span.chunk);
                } else {
                    prop_assert_eq!(first_end, end);
                }
            }
        }
    }

    #[test]
    fn lengths_and_their_chunks() {
        for (len, more) in [(0, 0), (1, 0), (32_640, 0), (32_641, 1), (65_409, 2), (65_527, 2)] {
            assert_eq!(Header::more_for(len), Some(more), "{len}");
            let h = Header { len: len as u32, ..Header::default() };
            let span = Header::span_for(7, len);
            assert_eq!(Span::from_payload(span.to_payload()), Some(span));
            assert_eq!(h.split(span).map(|(m, left)| (m.len(), left)), Some((more, None)));
            assert_eq!(h.split(Span { len: span.len + 1, ..span }), None);
            assert_eq!(h.split(Span { len: span.len - 1, ..span }), None);
        }
        assert_eq!(Header::more_for(65_528), None);
        let long = Header { len: 65_528, ..Header::default() };
        assert_eq!(long.split(Header::span_for(7, 65_528)), None);
    }

    #[test]
    fn what_stands_behind_a_datagram() {
        let h = Header { len: 40, ..Header::default() };
        let span = |offset, len| Span { chunk: 7, offset, len };
        for (len, left) in [(168, Some(None)), (192, None), (319, None)] {
            assert_eq!(h.split(span(64, len)).map(|(_, left)| left), left, "{len}");
        }
        let behind = |len| h.split(span(64, len)).and_then(|(_, left)| left);
        assert_eq!(behind(320), Some(span(256, 128)));
        assert_eq!(behind(400), Some(span(256, 208)));
        // One that is long is alone, whatever the span says.
        let long = Header { len: FIRST_BYTES as u32 + 1, ..h };
        assert!(long.split(span(0, CHUNK_SIZE as u32)).is_some());
        assert_eq!(long.split(span(0, CHUNK_SIZE as u32 + 200)), None);
    }
}
