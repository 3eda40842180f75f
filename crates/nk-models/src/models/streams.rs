//! Descriptor rings: several publishers, one of them killed; several readers.

use core::ptr::NonNull;

use loom::sync::Arc;
use loom::thread;
use nk_device::cell::SF_CONNECTED;
use nk_device::model::ModelDevice;
use nk_device::stream::{Span, Taken, publish_single, read_slot, take_slot};
use nk_device::sync::{AtomicU32, Ordering};
use nk_guestlib::Fault;
use nk_guestlib::recv::{Received, recv};
use nk_guestlib::send::{Source, send};

use crate::harness::{
    Collect, OneByte, RowChunk, RxWriter, check, device, device_with_rows, fill, peek, socket,
};

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

/// A process sends a byte while a first one is on the ring, and the service takes what is there and uses its chunk for something else: every byte
/// that was sent is taken once, and nobody writes into a chunk that the service has given to others.
pub fn appended_bytes_are_taken_once() {
    append_and_take(true);
}

/// The same with a service that does not look at the rows before it uses a chunk again: it must fail.
pub fn reuse_without_looking() {
    append_and_take(false);
}

fn append_and_take(looks: bool) {
    check(3, move || {
        let d = device_with_rows(1);
        let sender = appender(&d, 0, b'a');
        let (mut seen, mut reused) = (Vec::new(), Vec::new());
        let head = take_spans(&d, 0, |taken, span| {
            seen.extend(peek(&d, span));
            let row = d.device().row(0).expect("row");
            if !(looks && taken.appending && row.appended_chunk() == Some(span.chunk)) {
                fill(&d, span.chunk, b"ZZZ");
                reused.push(span.chunk);
            }
        });
        sender.join().expect("join");
        take_spans(&d, head, |_, span| seen.extend(peek(&d, span)));
        assert_eq!(seen, b"xa");
        for chunk in reused {
            let span = Span { chunk, offset: 0, len: 3 };
            assert!(chunk != 0 || peek(&d, span) == b"ZZZ", "somebody wrote into it");
        }
    });
}

/// Two processes send a byte each while a first byte is on the ring: neither writes over the other's.
pub fn two_append() {
    check(2, || {
        let d = device_with_rows(2);
        let senders = [appender(&d, 0, b'a'), appender(&d, 1, b'b')];
        for s in senders {
            s.join().expect("join");
        }
        let mut seen = Vec::new();
        take_spans(&d, 0, |_, span| seen.extend(peek(&d, span)));
        seen.sort_unstable();
        assert_eq!(seen, b"abx");
    });
}

/// A message of one byte, whose sender may be stopped just before it copies: loom stops threads only where they touch one of its words.
struct Stopped<'a>(&'a ModelDevice, u8);

impl Source for Stopped<'_> {
    fn copy(&mut self, at: usize, to: NonNull<u8>, len: usize) -> Result<(), Fault> {
        let _ = read_slot(&self.0.cell(0).tx_slots, 0);
        OneByte(self.1).copy(at, to, len)
    }
}

/// A process with a chunk of its own that sends a byte. On the ring is `x` already, in chunk 0, if this is the first one.
fn appender(d: &Arc<ModelDevice>, row: u16, byte: u8) -> thread::JoinHandle<()> {
    if row == 0 {
        d.cell(0).state.store(SF_CONNECTED, Ordering::Relaxed);
        fill(d, 0, b"x");
        let first = Span { chunk: 0, offset: 0, len: 1 };
        d.cell(0).tx().publish(first.to_payload()).expect("room");
    }
    let d = Arc::clone(d);
    thread::spawn(move || {
        let mut chunks = RowChunk::new(&d, row, u32::from(row) + 1);
        send(&socket(&d), &mut chunks, &mut Stopped(&d, byte), 1).expect("room");
    })
}

/// What is published from `head` on, with its spans; where that ends.
fn take_spans(d: &ModelDevice, mut head: u32, mut each: impl FnMut(Taken, Span)) -> u32 {
    let cell = d.cell(0);
    while head != cell.tx_tail.load(Ordering::Acquire) {
        let taken = take_slot(&cell.tx_slots, head).expect("published");
        each(taken, Span::from_payload(taken.payload).expect("span"));
        head += 1;
        cell.tx_head.store(head, Ordering::Release);
    }
    head
}
