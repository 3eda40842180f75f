//! Every sleeper against its waker. A lost wake-up is a deadlock here, and loom reports those.

use loom::sync::Arc;
use loom::thread;
use nk_device::cell::{SF_CONNECTED, SF_EOF, SF_TX_BRAKED};
use nk_device::model::ModelDevice;
use nk_device::nqe::{Nqe, Op};
use nk_device::qset::next_sleep;
use nk_device::ring::{Consumer, Producer};
use nk_device::stream::read_slot;
use nk_device::sync::{Ordering, fence};
use nk_guestlib::recv::{Received, recv};
use nk_guestlib::send::{SendError, send};

use crate::harness::{
    Collect, Doorbell, Futex, OneByte, OneChunk, RxWriter, check, device, socket,
};

/// (a) The engine goes to sleep while two threads push and ring.
pub fn engine_sleep_and_bell() {
    check(2, || {
        let d = device();
        let bell = Arc::new(Doorbell::default());
        let spawn = |n: u32| {
            let (d, bell) = (Arc::clone(&d), Arc::clone(&bell));
            thread::spawn(move || {
                d.qset(0).send().push(&Nqe::new(Op::Send, n, 0)).expect("room");
                if d.device().header().ring_bell(0) {
                    bell.ring();
                }
            })
        };
        let threads = [spawn(1), spawn(2)];
        let (mut consumer, mut seen) = (Consumer::default(), 0);
        while seen < 2 {
            if d.device().header().prepare_sleep(1) {
                bell.wait();
            }
            d.device().header().finish_sleep();
            if d.device().header().take_bells(0) != 0 {
                while consumer.pop(&d.qset(0).send()).is_some() {
                    seen += 1;
                }
            }
        }
        for t in threads {
            t.join().expect("join");
        }
    });
}

/// (b) The service goes idle on a socket while two threads send on it.
pub fn idle_service_and_sender() {
    check(2, || {
        let d = device();
        let kicked = Arc::new(Doorbell::default());
        let spawn = |payload| {
            let (d, kicked) = (Arc::clone(&d), Arc::clone(&kicked));
            thread::spawn(move || {
                d.cell(0).tx().publish(payload).expect("room");
                if d.cell(0).needs_kick() {
                    kicked.ring();
                }
            })
        };
        let threads = [spawn(1), spawn(2)];
        let cell = d.cell(0);
        let (mut head, mut seq) = (0u32, 0u32);
        while head < 2 {
            kicked.wait();
            loop {
                seq += 1;
                cell.tx_seq.store(seq, Ordering::SeqCst);
                while head != cell.tx_tail.load(Ordering::Acquire) {
                    assert!(read_slot(&cell.tx_slots, head).is_some());
                    head += 1;
                    cell.tx_head.store(head, Ordering::Release);
                }
                seq += 1;
                if !cell.idle_tx(seq, head) {
                    break;
                }
            }
        }
        for t in threads {
            t.join().expect("join");
        }
    });
}

/// (c) A blocked recv against data, then the end of the stream.
pub fn blocked_reader_and_service() {
    check(2, || {
        let d = device();
        let futex = Arc::new(Futex::default());
        d.cell(0).state.store(SF_CONNECTED, Ordering::Relaxed);
        let reader = {
            let (d, futex) = (Arc::clone(&d), Arc::clone(&futex));
            thread::spawn(move || {
                let mut got = 0;
                loop {
                    let word = d.cell(0).begin_rx_sleep();
                    match recv(&socket(&d), &mut Collect::default(), 8, false) {
                        Received::Bytes { count, .. } => got += count,
                        Received::Eof => break,
                        Received::WouldBlock => futex.wait(&d.cell(0).rx_wake, word),
                        Received::Errno(e) => panic!("errno {e}"),
                    }
                    d.cell(0).end_rx_sleep();
                }
                assert_eq!(got, 1);
            })
        };
        assert!(RxWriter::default().receive(&d, 0, b"a"));
        if d.cell(0).announce_rx() {
            futex.wake();
        }
        d.cell(0).state.store(SF_CONNECTED | SF_EOF, Ordering::Release);
        if d.cell(0).announce_rx() {
            futex.wake();
        }
        reader.join().expect("join");
    });
}

/// (d) A thread goes to sleep in epoll_wait while the engine pushes two events. It is rung once for a sleep.
pub fn polling_guest_and_engine() {
    check(3, || {
        let d = device();
        let doorbell = Arc::new(Doorbell::default());
        let guest = {
            let (d, doorbell) = (Arc::clone(&d), Arc::clone(&doorbell));
            thread::spawn(move || {
                let (mut consumer, mut seen, mut sleep) = (Consumer::default(), 0, 0);
                while seen < 2 {
                    sleep = next_sleep(sleep);
                    if d.qset(0).prepare_sleep(sleep, &consumer) {
                        doorbell.wait();
                    }
                    d.qset(0).finish_sleep();
                    while consumer.pop(&d.qset(0).receive()).is_some() {
                        seen += 1;
                    }
                }
            })
        };
        let (mut producer, mut rung) = (Producer::default(), 0);
        for n in 0..2 {
            producer.push(&d.qset(0).receive(), &Nqe::new(Op::Event, n, 0)).expect("room");
            fence(Ordering::SeqCst);
            if d.qset(0).wants_doorbell(rung) {
                rung = d.qset(0).sleeping.load(Ordering::SeqCst);
                doorbell.ring();
            }
        }
        guest.join().expect("join");
    });
}

/// (d') A queue set starts to watch a socket and looks at it, while the service changes it and looks for watchers.
pub fn new_watcher_and_change() {
    check(3, || {
        let d = device();
        d.cell(0).state.store(SF_CONNECTED, Ordering::Relaxed);
        let guest = {
            let d = Arc::clone(&d);
            thread::spawn(move || {
                d.cell(0).watch(0, 0);
                !nk_guestlib::recv::is_empty(d.cell(0))
            })
        };
        assert!(RxWriter::default().receive(&d, 0, b"a"));
        let told = d.cell(0).announce_rx();
        assert!(guest.join().expect("join") || told, "neither saw the other");
    });
}

/// Sends a byte in this chunk, sleeping while there is no room.
fn send_one(d: &ModelDevice, futex: &Futex, chunk: u32) {
    let mut chunks = OneChunk(Some(chunk));
    loop {
        let word = d.cell(0).begin_tx_sleep();
        let sent = send(&socket(d), &mut chunks, &mut OneByte(b'x'), 1);
        match sent {
            Ok(s) => assert_eq!(s.bytes, 1),
            Err(SendError::WouldBlock) => futex.wait(&d.cell(0).tx_wake, word),
            Err(e) => panic!("{e:?}"),
        }
        d.cell(0).end_tx_sleep();
        if sent.is_ok() {
            return;
        }
    }
}

/// (e) Two threads send into a full ring while the service makes room one descriptor at a time: both get through, though one finds room
/// while the other waits.
pub fn blocked_senders_and_room() {
    check(1, || {
        let d = device();
        let futex = Arc::new(Futex::default());
        let cell = d.cell(0);
        cell.state.store(SF_CONNECTED, Ordering::Relaxed);
        cell.tx().publish(1).expect("room");
        cell.tx().publish(2).expect("room");
        let spawn = |chunk| {
            let (d, futex) = (Arc::clone(&d), Arc::clone(&futex));
            thread::spawn(move || send_one(&d, &futex, chunk))
        };
        let threads = [spawn(0), spawn(1)];
        let mut served = 0;
        for head in 1..=4u32 {
            while cell.tx_tail.load(Ordering::Acquire) < head {
                thread::yield_now();
            }
            if cell.consume_tx(head, SF_CONNECTED, &mut served) && cell.announce_tx() {
                futex.wake();
            }
        }
        for t in threads {
            t.join().expect("join");
        }
    });
}

/// (e') A sender finds its socket braked, while the service takes what is on the ring and then lets it send again.
pub fn braked_sender_and_service() {
    check(3, || {
        let d = device();
        let futex = Arc::new(Futex::default());
        let cell = d.cell(0);
        cell.state.store(SF_CONNECTED | SF_TX_BRAKED, Ordering::Relaxed);
        cell.tx().publish(1).expect("room");
        let sender = {
            let (d, futex) = (Arc::clone(&d), Arc::clone(&futex));
            thread::spawn(move || send_one(&d, &futex, 0))
        };
        let (state, mut served) = (SF_CONNECTED | SF_TX_BRAKED, 0);
        assert!(!cell.consume_tx(1, state, &mut served), "it may not send yet");
        if cell.release_brake(state, &mut served) && cell.announce_tx() {
            futex.wake();
        }
        sender.join().expect("join");
    });
}

/// (f) The service has three chunks for a ring of two and waits for the reader, who drains it all.
pub fn stalled_service_and_reader() {
    check(2, || {
        let d = device();
        let room = Arc::new(Doorbell::default());
        let cell = d.cell(0);
        cell.state.store(SF_CONNECTED, Ordering::Relaxed);
        let reader = {
            let (d, room) = (Arc::clone(&d), Arc::clone(&room));
            thread::spawn(move || {
                let mut got = 0;
                while got < 3 {
                    match recv(&socket(&d), &mut Collect::default(), 1, false) {
                        Received::Bytes { count, rx_room } => {
                            got += count;
                            if rx_room {
                                room.ring();
                            }
                        }
                        Received::WouldBlock => thread::yield_now(),
                        other => panic!("{other:?}"),
                    }
                }
            })
        };
        let mut rx = RxWriter::default();
        for chunk in 0..3 {
            while !rx.receive(&d, chunk, b"a") {
                let at = cell.stall_rx(SF_CONNECTED);
                if rx.tail().wrapping_sub(at.index) >= nk_device::STREAM_SLOTS as u32 {
                    room.wait();
                }
                cell.state.store(SF_CONNECTED, Ordering::SeqCst);
            }
        }
        reader.join().expect("join");
    });
}
