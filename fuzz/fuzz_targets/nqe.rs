//! Any four words: parsing never fails, and what the element says goes back into the same words.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nk_device::nqe::{Nqe, Op, unpack_option};
use nk_device::stream::{AcceptedSocket, Position, Span};
use nk_device::{Addr, CHUNK_SIZE};

fuzz_target!(|words: [u64; 4]| {
    let e = Nqe::from_words(words);
    let back = e.to_words();
    assert_eq!(back[0], words[0] & !(1 << 8));
    assert_eq!(back[1..], words[1..]);
    if let Some(op) = Op::from_u8(e.op) {
        assert_eq!(op as u8, e.op);
    }
    let _ = unpack_option(e.size);
    let a = Addr::from_words(e.qset, e.size, e.op_data, e.data);
    let (size, lo, hi) = a.to_words();
    assert_eq!(Addr::from_words(a.family, size, lo, hi), a);
    if let Some(s) = Span::from_payload(words[2]) {
        assert!(s.len > 0 && (s.offset + s.len) as usize <= CHUNK_SIZE);
        assert_eq!(Span::from_payload(s.to_payload()), Some(s));
    }
    let accepted = AcceptedSocket::from_payload(words[2]);
    assert_eq!(AcceptedSocket::from_payload(accepted.to_payload()), accepted);
    assert_eq!(Position::from_word(words[3]).to_word(), words[3]);
});
