//! NQE rings and grants.

use loom::sync::Arc;
use loom::thread;
use nk_device::grant::GrantRing;
use nk_device::nqe::{Nqe, Op};
use nk_device::ring::{Consumer, Producer};

use crate::harness::{check, device};

/// An element whose words all say the same, so that a torn one shows.
fn element(n: u32) -> Nqe {
    Nqe { size: n, op_data: u64::from(n), data: u64::from(n), ..Nqe::new(Op::Send, n, n as u16) }
}

fn assert_whole(e: &Nqe) {
    assert_eq!(*e, element(e.socket), "torn");
}

/// Two threads of a process push three elements over a ring of two slots while the engine pops: what was taken arrives, whole, once,
/// and each thread's in order; what was refused as full does not.
pub fn two_producers_wrap_and_full() {
    check(3, || {
        let d = device();
        let spawn = |elements: &'static [u32]| {
            let d = Arc::clone(&d);
            thread::spawn(move || {
                let job = d.qset(0).job();
                elements.iter().copied().filter(|n| job.push(&element(*n)).is_ok()).collect()
            })
        };
        let threads = [spawn(&[1, 2]), spawn(&[11])];
        let mut consumer = Consumer::default();
        let mut seen = Vec::new();
        let mut pop = || {
            if let Some(e) = consumer.pop(&d.qset(0).job()) {
                assert_whole(&e);
                seen.push(e.socket);
                consumer.commit(&d.qset(0).job());
            }
        };
        pop();
        let taken: Vec<Vec<u32>> = threads.map(|t| t.join().expect("join")).into();
        for _ in 0..3 {
            pop();
        }
        let (first, second): (Vec<u32>, Vec<u32>) = seen.iter().partition(|n| **n < 10);
        assert_eq!([first, second], taken[..], "{seen:?}");
        assert!(seen.len() >= 2, "a ring of two slots takes two");
    });
}

/// The engine pushes four events over two slots while the guest pops: whole, in order, none twice.
pub fn host_producer_wraps() {
    check(3, || {
        let d = device();
        let guest = {
            let d = Arc::clone(&d);
            thread::spawn(move || {
                let mut consumer = Consumer::default();
                let mut seen = Vec::new();
                for _ in 0..3 {
                    if let Some(e) = consumer.pop(&d.qset(0).receive()) {
                        assert_whole(&e);
                        seen.push(e.socket);
                        consumer.commit(&d.qset(0).receive());
                    }
                }
                (consumer, seen)
            })
        };
        let mut producer = Producer::default();
        let taken: Vec<u32> =
            (1..=4).filter(|n| producer.push(&d.qset(0).receive(), &element(*n)).is_ok()).collect();
        let (mut consumer, mut seen) = guest.join().expect("join");
        while let Some(e) = consumer.pop(&d.qset(0).receive()) {
            assert_whole(&e);
            seen.push(e.socket);
        }
        assert_eq!(seen, taken);
        assert!(seen.len() >= 2, "a ring of two slots takes two");
    });
}

/// The host leases three chunks through a grant ring of two slots; two threads pop: each goes to one.
pub fn grants_go_to_one() {
    check(3, || {
        let g = Arc::new(GrantRing::default());
        let mut tail = 0;
        assert!(g.push(&mut tail, 7) && g.push(&mut tail, 8) && !g.push(&mut tail, 9));
        let spawn = || {
            let g = Arc::clone(&g);
            thread::spawn(move || [g.pop(), g.pop()])
        };
        let threads = [spawn(), spawn()];
        let mut pushed = 2;
        if g.push(&mut tail, 9) {
            pushed = 3;
        }
        let mut seen = Vec::new();
        for t in threads {
            seen.extend(t.join().expect("join").into_iter().flatten());
        }
        while let Some(chunk) = g.pop() {
            seen.push(chunk);
        }
        seen.sort_unstable();
        assert_eq!(seen, [7, 8, 9][..pushed]);
    });
}
