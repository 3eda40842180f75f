//! Any packet as a question and as an answer: parsing never fails, and what is a question goes back into the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nk_attach::names::{
    ADDRESS_MAX, Address, Host, Interface, Outcome, QUESTION_MAX, Question, address_len,
};

fuzz_target!(|packet: &[u8]| {
    if let Some(question) = Question::parse(packet) {
        let mut out = [0; QUESTION_MAX];
        let len = question.write(&mut out).expect("as long as it was");
        assert_eq!(&out[..len], packet);
    }
    if let Some((_, mut r)) = Outcome::parse(packet) {
        let mut as_addresses = r;
        while let Some(a) = Address::parse(&mut as_addresses) {
            assert!((2..=ADDRESS_MAX).contains(&a.address.len()));
        }
        let mut as_interfaces = r;
        while let Some(i) = Interface::parse(&mut as_interfaces) {
            assert!(i.addresses.iter().flatten().all(|a| (2..=ADDRESS_MAX).contains(&a.len())));
        }
        if let Some(Some(h)) = Host::parse(r) {
            assert_eq!(h.aliases.iter().count(), h.aliases.len());
            assert!(h.addresses.iter().all(|a| Some(a.len()) == address_len(h.family)));
            assert!(h.addresses.iter().count() == h.addresses.len() && h.addresses.len() > 0);
        }
        if let Some(n) = r.count(4) {
            assert!(n * 4 <= packet.len());
            for _ in 0..n {
                if r.bytes().is_none() {
                    break;
                }
            }
        }
    }
});
