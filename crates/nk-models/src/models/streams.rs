//! Descriptor rings: several publishers, one of them killed; several readers.

use loom::sync::Arc;
use loom::thread;
use nk_device::cell::SF_CONNECTED;
use nk_device::model::ModelDevice;
use nk_device::stream::{publish_single, read_slot};
use nk_device::sync::{AtomicU32, Ordering};
use nk_guestlib::recv::{Received, recv};

use crate::harness::{Collect, RxWriter, check, device, fill, socket};

/// The service's look at the tx ring: everything up to the tail, consumed.
fn take(d: &ModelDevice, head: &mut u32, seen: &mut Vec<u64>) {
    let cell = d.cell(0);
    let tail = cell.tx_tail.load(Ordering::Acquire);
    while *head != tail {
        seen.push(read_slot(&cell.tx_slots, *head).expect("published slots are of this lap"));
        *head += 1;
        cell.tx_head.store(*head, Ordering::Release);
    }
}

/// Two threads publish three payloads over two slots and help each other, while the service consumes: what was taken is there once,
/// what was refused as full is not.
pub fn publishers_help_and_wrap() {
    check(2, || {
        let d = device();
        let spawn = |payloads: &'static [u64]| {
            let d = Arc::clone(&d);
            thread::spawn(move || {
                let tx = d.cell(0).tx();
                payloads.iter().copied().filter(|p| tx.publish(*p).is_ok()).collect::<Vec<u64>>()
            })
        };
        let threads = [spawn(&[1, 2]), spawn(&[11])];
        let (mut head, mut seen) = (0, Vec::new());
        take(&d, &mut head, &mut seen);
        let mut taken = threads.map(|t| t.join().expect("join")).concat();
        take(&d, &mut head, &mut seen);
        assert!(seen.len() >= 2, "a ring of two slots takes two");
        seen.sort_unstable();
        taken.sort_unstable();
        assert_eq!(seen, taken);
    });
}

/// A process was killed between filling a slot and moving the tail. Another process publishes while the host finishes what the dead one
/// left: both payloads are there once, the dead one's first.
pub fn a_killed_publisher_is_finished() {
    check(3, || {
        let d = device();
        let cell = d.cell(0);
        // The first half of a publish: the slot and nothing else.
        publish_single(&AtomicU32::new(0), &cell.tx_slots, &mut 0, 0, 5).expect("room");
        let other = {
            let d = Arc::clone(&d);
            thread::spawn(move || d.cell(0).tx().publish(6).expect("room"))
        };
        let helped = cell.tx().help();
        // From here on the host may lease the dead one's free chunks again: 5 is in the ring.
        assert!(cell.tx_tail.load(Ordering::Acquire) >= 1, "helped: {helped}");
        other.join().expect("join");
        let (mut head, mut seen) = (0, Vec::new());
        take(&d, &mut head, &mut seen);
        assert_eq!(seen, [5, 6]);
        assert!(!cell.tx().help());
    });
}

/// Two readers of one stream (fork without a lock between them) while the service reuses each chunk once the position is past it:
/// every byte goes to one reader, and none gets a byte of a reused chunk.
pub fn two_readers_and_reuse() {
    check(3, || {
        let d = device();
        let cell = d.cell(0);
        cell.state.store(SF_CONNECTED, Ordering::Relaxed);
        let mut rx = RxWriter::default();
        assert!(rx.receive(&d, 0, b"ab") && rx.receive(&d, 1, b"cd"));
        let spawn = || {
            let d = Arc::clone(&d);
            thread::spawn(move || {
                let mut sink = Collect::default();
                match recv(&socket(&d), &mut sink, 3, false) {
                    Received::Bytes { count, .. } => sink.0[..count].to_vec(),
                    Received::WouldBlock => Vec::new(),
                    other => panic!("{other:?}"),
                }
            })
        };
        let readers = [spawn(), spawn()];
        if cell.position().index >= 1 {
            fill(&d, 0, b"XX");
            if rx.receive(&d, 0, b"ef") && cell.position().index >= 2 {
                fill(&d, 1, b"YY");
            }
        }
        let mut got = readers.map(|r| r.join().expect("join"));
        got.sort();
        let all = got.concat();
        assert!(b"abcdef".starts_with(&all[..]), "{got:?}");
        assert!(all.len() >= 4, "{got:?}");
    });
}
