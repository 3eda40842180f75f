use super::*;
use proptest::prelude::*;

fn lease(row: u16, index: u32) -> Lease {
    Lease { row, life: 0, index }
}

#[test]
fn a_chunk_is_sent_once_per_lease() {
    let mut p = Pool::new(10..18, None);
    let c = p.lease(lease(3, 0)).expect("chunk");
    assert_eq!(p.begin_tx(c), Some(Some(3)));
    assert_eq!(p.begin_tx(c), None, "twice");
    assert_eq!(p.begin_tx(9), None, "below the pool");
    assert_eq!(p.begin_tx(18), None, "above the pool");
    let r = p.take_rx(0).expect("chunk");
    assert_eq!(p.begin_tx(r), None, "not leased");
    p.free(c);
    assert_eq!(p.begin_tx(c), None, "free");
    p.free(r);
    assert_eq!((p.available(), p.counts()), (8, [0; 3]));
}

#[test]
fn neither_side_takes_all() {
    let mut p = Pool::new(0..64, None);
    let mut leased = 0;
    while p.lease(lease(1, leased)).is_some() {
        leased += 1;
    }
    assert_eq!(leased, 48);
    assert!(p.take_rx(0).is_some());
    let mut p = Pool::new(0..64, None);
    let mut taken = 0;
    while p.take_rx(taken).is_some() {
        taken += 1;
    }
    assert_eq!(taken, 32, "a socket with many stops at half");
    assert!(p.take_rx(0).is_some(), "one with none goes on");
    assert!(p.lease(lease(1, 0)).is_some());
}

#[test]
fn it_is_short_from_a_half_sent_until_an_eighth_less() {
    let mut p = Pool::new(0..64, None);
    let chunks: Vec<u32> = (0..48).filter_map(|i| p.lease(lease(1, i))).collect();
    assert!(!p.is_short(false), "what is leased can be taken back");
    let sent = |p: &mut Pool, n: usize| chunks[..n].iter().all(|c| p.begin_tx(*c).is_some());
    assert!(sent(&mut p, 31) && !p.is_short(false));
    assert_eq!(p.begin_tx(chunks[31]), Some(Some(1)));
    assert!(p.is_short(false));
    assert_eq!(p.tx_share(), 1, "nothing is left to be leased");
    chunks[32..].iter().for_each(|c| p.free(*c));
    assert_eq!((p.tx_share(), p.is_short(true)), (4, true));
    chunks[..7].iter().for_each(|c| p.free(*c));
    assert!(!p.is_short(false) && p.is_short(true));
    chunks[7..9].iter().for_each(|c| p.free(*c));
    assert!(!p.is_short(true));
    // What is received counts where little is left.
    let mut p = Pool::new(0..64, None);
    assert_eq!((0..18).filter_map(|i| p.lease(lease(1, i))).count(), 18);
    assert_eq!((0..39).filter_map(|_| p.take_rx(0)).count(), 39);
    assert!(p.is_short(false));
}

#[test]
fn what_somebody_may_write_into_comes_back_later() {
    let mut p = Pool::new(0..8, None);
    let c = p.lease(lease(1, 0)).expect("chunk");
    assert_eq!(p.begin_tx(c), Some(Some(1)));
    p.share(c);
    p.free(c);
    assert_eq!((p.owner(c), p.counts()), (Some(Owner::Late), [0, 1, 0]));
    assert_eq!(p.begin_tx(c), None, "nobody's to send");
    p.settle(|_| true);
    assert_eq!(p.owner(c), Some(Owner::Late));
    p.settle(|_| false);
    assert_eq!((p.owner(c), p.counts(), p.has_late()), (Some(Owner::Free), [0; 3], false));
}

proptest! {
    #[test]
    fn counts_agree_whatever_is_done(steps in proptest::collection::vec((0u8..8, 0u32..40), 1..400)) {
        let mut p = Pool::new(4..36, None);
        for (what, chunk) in steps {
            match what {
                0 => { p.lease(lease(1, chunk)); }
                1 => { p.take_rx(chunk as usize % 6); }
                2 => { p.begin_tx(chunk); }
                3 => p.orphan(chunk),
                4 => { p.adopt_lease(chunk, lease(2, 0)); }
                5 => p.share(chunk),
                6 => p.settle(|c| c % 2 == chunk % 2),
                _ => p.free(chunk),
            }
            let count = |f: fn(&Owner) -> bool| (4..36).filter(|c| p.owner(*c).is_some_and(|o| f(&o))).count() as u32;
            let leased = count(|o| matches!(o, Owner::Row(..) | Owner::Orphan));
            let tx = count(|o| matches!(o, Owner::Tx | Owner::Shared | Owner::Late));
            let rx = count(|o| *o == Owner::Rx);
            prop_assert_eq!([leased, tx, rx], p.counts());
        }
    }
}
