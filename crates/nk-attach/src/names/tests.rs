use super::packet::FORMAT;
use super::*;
use proptest::prelude::*;

fn string() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(1u8.., 0..300)
}

proptest! {
    #[test]
    fn questions_survive(
        kind in 0..8, n in any::<[i32; 4]>(), flag in any::<[bool; 2]>(), a in string(),
        b in proptest::option::of(string()), raw in proptest::collection::vec(any::<u8>(), 0..=ADDRESS_MAX),
    ) {
        let q = match kind {
            0 => Question::Addresses { node: b.as_deref(), service: Some(&a), hints: n },
            1 => Question::Name { address: &raw, flags: n[0], wanted: flag },
            2 => Question::HostByName { name: &a, family: n[0] },
            3 => Question::HostByAddress { address: &raw, family: n[0] },
            4 => Question::Message { message: &raw, options: n[3] as u32 },
            5 => Question::Interfaces,
            6 => Question::InterfaceRequest { family: n[0], request: SIOCGIFCONF, ifreq: &[n[1] as u8; IFREQ] },
            _ => Question::Records { name: &a, class_and_type: [n[0], n[1]], search: flag[0], options: n[2] as u32 },
        };
        let mut out = [0; QUESTION_MAX];
        let len = q.write(&mut out).expect("fits");
        prop_assert_eq!(Question::parse(&out[..len]), Some(q));
        // Neither less nor more is a question.
        prop_assert_eq!(Question::parse(&out[..len - 1]), None);
        prop_assert_eq!(Question::parse(&out[..len + 1]), None);
        // What does not fit is not cut.
        prop_assert_eq!(q.write(&mut out[..len - 1]), None);
    }

    #[test]
    fn answers_survive(
        code in any::<i32>(), all in proptest::collection::vec((any::<[i32; 4]>(), proptest::collection::vec(any::<u8>(), 2..=28)), 0..40),
    ) {
        let head = Outcome { code, errno: code ^ 1, h_errno: 3 };
        let mut out = vec![0; ANSWER_MAX];
        let mut w = head.write(&mut out);
        w.bytes(None);
        w.word(all.len() as u32);
        for (words, address) in &all {
            Address { words: *words, address }.write(&mut w);
        }
        let len = w.finish().expect("fits");
        let (got, mut r) = Outcome::parse(&out[..len]).expect("head");
        prop_assert_eq!(got, head);
        prop_assert_eq!(r.bytes(), Some(None));
        prop_assert_eq!(r.count(20), Some(all.len()));
        for (words, address) in &all {
            prop_assert_eq!(Address::parse(&mut r), Some(Address { words: *words, address }));
        }
        prop_assert!(r.is_at_end());
    }

    #[test]
    fn interfaces_survive(
        all in proptest::collection::vec((
            proptest::collection::vec(1u8.., 1..16), any::<u32>(),
            proptest::option::of(proptest::collection::vec(any::<u8>(), 2..=28)), proptest::option::of(any::<u8>()),
        ), 0..40),
    ) {
        let mut out = vec![0; ANSWER_MAX];
        let mut w = Outcome::default().write(&mut out);
        let data: Vec<[u8; LINK_STATS]> = (0..=255).map(|b| [b; LINK_STATS]).collect();
        let made: Vec<Interface<'_>> = all
            .iter()
            .map(|(name, flags, a, d)| Interface {
                name,
                flags: *flags,
                addresses: [a.as_deref(), None, a.as_deref()],
                data: d.map(|d| &data[usize::from(d)][..]),
            })
            .collect();
        for i in &made {
            i.write(&mut w);
        }
        let len = w.finish().expect("fits");
        let (_, mut r) = Outcome::parse(&out[..len]).expect("head");
        for i in &made {
            prop_assert_eq!(Interface::parse(&mut r), Some(*i));
        }
        prop_assert!(r.is_at_end());
    }

    #[test]
    fn anything_is_read_without_harm(b in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u32..10) {
        let mut packet = FORMAT.to_ne_bytes().to_vec();
        packet.extend(kind.to_ne_bytes());
        packet.extend(&b);
        if let Some(q) = Question::parse(&packet) {
            let mut out = [0; QUESTION_MAX];
            let len = q.write(&mut out).expect("as long as it was");
            prop_assert_eq!(&out[..len], &packet[..]);
        }
        if let Some((_, mut r)) = Outcome::parse(&packet) {
            let mut again = r;
            while Address::parse(&mut r).is_some() {}
            while Interface::parse(&mut again).is_some() {}
        }
    }
}

#[test]
fn a_count_promises_no_more_than_there_is() {
    let mut out = [0; 64];
    let mut w = Outcome::default().write(&mut out);
    w.word(1 << 30);
    w.word(7);
    let len = w.finish().expect("fits");
    let (_, mut r) = Outcome::parse(&out[..len]).expect("head");
    assert_eq!(r.count(20), None);
}

#[test]
fn a_string_with_a_null_byte_is_no_question() {
    let mut out = [0; QUESTION_MAX];
    let q = Question::HostByName { name: b"a\0b", family: 0 };
    let len = q.write(&mut out).expect("fits");
    assert_eq!(Question::parse(&out[..len]), None);
}

#[test]
fn only_requests_that_read_are_questions() {
    const SIOCSIFADDR: u32 = 0x8916;
    const SIOCETHTOOL: u32 = 0x8946;
    let mut out = [0; QUESTION_MAX];
    for (request, ifreq) in [(SIOCSIFADDR, IFREQ), (SIOCETHTOOL, IFREQ), (SIOCGIFCONF, IFREQ - 1)] {
        let q = Question::InterfaceRequest { family: 2, request, ifreq: &[0; IFREQ][..ifreq] };
        let len = q.write(&mut out).expect("fits");
        assert_eq!(Question::parse(&out[..len]), None);
    }
}
