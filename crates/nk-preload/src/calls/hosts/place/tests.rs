use super::*;
use crate::calls::names::bytes;
use nk_attach::names::Outcome;

fn packet(name: &[u8], aliases: &[&[u8]], addresses: &[&[u8]], more: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 8192];
    let mut w = Outcome::default().write(&mut out);
    Host::write(&mut w, libc::AF_INET, Some(name), aliases, addresses);
    let len = w.finish().expect("fits");
    out.truncate(len);
    out.extend(more);
    out
}

fn filled(packet: &[u8], buffer: &mut [u8]) -> Result<hostent, c_int> {
    // SAFETY: plain data.
    let mut host: hostent = unsafe { core::mem::zeroed() };
    let place =
        Place { host: &raw mut host, buffer: buffer.as_mut_ptr().cast(), len: buffer.len() };
    let r = Outcome::parse(packet).expect("head").1;
    // SAFETY: a place of ours.
    unsafe { fill(r, place) }.map(|found| {
        assert!(found);
        host
    })
}

#[test]
fn every_size_fits_or_is_told() {
    let p = packet(b"a.example", &[b"b", b"c.example"], &[&[127, 0, 0, 1], &[127, 0, 0, 2]], &[]);
    let mut fitted = 0;
    for len in 0..200 {
        // Behind the buffer nothing is written.
        let mut memory = [0xa5u8; 240];
        match filled(&p, &mut memory[1..=len]) {
            Err(e) => assert_eq!(e, libc::ERANGE),
            // SAFETY: the lists that `fill` made.
            Ok(h) => unsafe {
                fitted += 1;
                assert_eq!(bytes(h.h_name), Some(&b"a.example"[..]));
                assert_eq!(bytes(*h.h_aliases.add(1)), Some(&b"c.example"[..]));
                assert!((*h.h_aliases.add(2)).is_null() && (*h.h_addr_list.add(2)).is_null());
                let second = core::slice::from_raw_parts((*h.h_addr_list.add(1)).cast::<u8>(), 4);
                assert_eq!((second, h.h_length), (&[127u8, 0, 0, 2][..], 4));
            },
        }
        assert!(memory[len + 1..].iter().all(|b| *b == 0xa5) && memory[0] == 0xa5);
    }
    assert!(fitted > 50, "{fitted}");
}

#[test]
fn an_answer_that_lies_is_none() {
    let good: &[u8] = &[127, 0, 0, 1];
    let mut buffer = [0u8; 1000];
    let mut lies = |p: Vec<u8>| assert_eq!(filled(&p, &mut buffer).err(), Some(libc::EAGAIN));
    lies(packet(b"a", &[], &[], &[]));
    lies(packet(b"a", &[], &[&good[..3]], &[]));
    lies(packet(b"a", &[], &[good], &[0]));
    let whole = packet(b"a", &[b"b"], &[good], &[]);
    for len in 16..whole.len() {
        lies(whole[..len].to_vec());
    }
}
