extern crate std;
use super::*;
use crate::testing::Fixture;
use nk_device::STREAM_SLOTS;
use nk_device::cell::*;
use nk_device::datagram::FIRST_BYTES;
use nk_device::stream::take_slot;

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
        if before > 0 {
            let _ = take_slot(&f.socket().cell.tx_slots, before - 1);
        }
        let sent = f.send_datagram(&bytes, to(9)).expect("sent");
        assert_eq!(sent.index, before);
        let slot = read_slot(&f.socket().cell.tx_slots, before).expect("slot");
        let span = Span::from_payload(slot).expect("span");
        let h = f.device().header_of(span).expect("header");
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
    let span = Span::from_payload(slot).expect("span");
    f.device().put_header(span, &Header { len: 60_000, more: [u32::MAX; 2], ..to(9) });
    f.push_rx(slot);
    assert_eq!(f.recv_datagram(10, false).0, Received::WouldBlock);
}

fn used(f: &Fixture) -> usize {
    STREAM_SLOTS - f.socket().cell.tx().room() as usize
}

fn packed(f: &Fixture, index: u32) -> std::vec::Vec<u32> {
    let slot = read_slot(&f.socket().cell.tx_slots, index).expect("slot");
    let span = Span::from_payload(slot).expect("span");
    f.device().headers_of(span).map(|h| h.len).collect()
}

#[test]
fn short_ones_share_a_descriptor_until_it_is_taken() {
    let f = Fixture::new_datagram();
    let slots = &f.socket().cell.tx_slots;
    for len in [40, 0, 64, 1000] {
        let kick = f.send_datagram(&[len as u8; 1000][..len], to(9)).expect("sent").kick;
        assert_eq!(kick, len == 40, "once");
    }
    assert_eq!(packed(&f, 0), [40, 0, 64, 1000]);
    assert_eq!((used(&f), queued(&f.socket())), (1, 1104));
    // What does not fit as a whole has a descriptor of its own, and so has what the service does not wait for.
    f.send_datagram(&[7; 32_000], to(9)).expect("sent");
    assert_eq!((used(&f), packed(&f, 1)), (2, std::vec![32_000]));
    f.send_datagram(b"x", to(9)).expect("sent");
    assert_eq!(packed(&f, 1), [32_000, 1]);
    let _ = take_slot(slots, 1);
    f.send_datagram(b"y", to(9)).expect("sent");
    assert_eq!((used(&f), packed(&f, 2)), (3, std::vec![1]));
    // Whoever waits to be told has its own, to which nothing is appended.
    f.send_datagram(b"z", Header { flags: DF_PEER | DF_REPORT, ..to(9) }).expect("sent");
    f.send_datagram(b"z", to(9)).expect("sent");
    assert_eq!(used(&f), 5);
    // A host that does not say that it takes several.
    f.device().header().features.store(1, Ordering::Relaxed);
    f.send_datagram(b"z", to(9)).expect("sent");
    assert_eq!(used(&f), 6);
}

#[test]
fn what_waits_has_an_end() {
    let f = Fixture::new_datagram();
    let mut n = 0;
    while f.send_datagram(&[1; 40], to(9)).is_ok() {
        n += 1;
    }
    let packed = PACKED_MAX / 192;
    assert!((packed..packed + STREAM_SLOTS).contains(&n), "{n}");
    assert_eq!(f.send_datagram(&[1; 40], to(9)), Err(SendError::WouldBlock));
    assert_eq!(queued(&f.socket()), n * 40);
}

#[test]
fn a_fault_in_the_middle_leaves_what_was_there() {
    let f = Fixture::new_datagram();
    f.send_datagram(b"abc", to(9)).expect("sent");
    assert_eq!(f.send_from_nowhere(5, to(9)), Err(SendError::Errno(EFAULT)));
    f.send_datagram(b"de", to(9)).expect("sent");
    assert_eq!(packed(&f, 0), [3, 2]);
}
