//! Who holds a socket, who accepts it, and what is left when it goes.

use loom::sync::Arc;
use loom::thread;
use nk_device::Cell;
use nk_device::cell::SF_LISTENING;
use nk_device::model::ModelDevice;
use nk_device::stream::{AcceptedSocket, publish_single};
use nk_device::sync::{AtomicU32, Ordering};
use nk_guestlib::accept::{Accepted, accept};

use crate::harness::{check, device};

/// Rows in two words of the bitmap.
const PARENT: u16 = 1;
const CHILD: u16 = 65;
const GRANDCHILD: u16 = 2;

/// A holder hands over (fork: the child's bit, then the epoch), then drops; the child does the same with its own child. Whoever sees
/// the socket unheld must be right, and the last one must see it.
pub fn handover_is_never_seen_as_unheld() {
    check(3, || {
        let d = device();
        let alive = Arc::new(AtomicU32::new(1));
        d.cell(0).hold(PARENT);
        // `alive` is what is true: relaxed, so that it orders nothing; by read-modify-write, so that it is never stale. A holder
        // counts itself out before it clears its bit.
        let drop_hold = |d: &ModelDevice, alive: &AtomicU32, row| {
            alive.fetch_sub(1, Ordering::Relaxed);
            let unheld = d.cell(0).release(row);
            assert!(!unheld || alive.fetch_add(0, Ordering::Relaxed) == 0, "closed under a holder");
            unheld
        };
        let fork = |d: &ModelDevice, alive: &AtomicU32, row| {
            alive.fetch_add(1, Ordering::Relaxed);
            d.cell(0).hold(row);
        };
        fork(&d, &alive, CHILD);
        let child = {
            let (d, alive) = (Arc::clone(&d), Arc::clone(&alive));
            thread::spawn(move || {
                fork(&d, &alive, GRANDCHILD);
                let a = drop_hold(&d, &alive, CHILD);
                let b = drop_hold(&d, &alive, GRANDCHILD);
                a || b
            })
        };
        let engine = {
            let (d, alive) = (Arc::clone(&d), Arc::clone(&alive));
            thread::spawn(move || {
                let unheld = d.cell(0).is_unheld();
                let alive = alive.fetch_add(0, Ordering::Relaxed);
                assert!(!unheld || alive == 0, "closed under a holder");
            })
        };
        let mine = drop_hold(&d, &alive, PARENT);
        let childs = child.join().expect("join");
        engine.join().expect("join");
        assert!(mine || childs, "nobody closed it");
    });
}

/// Two last holders in different words drop at once: one of them sees it.
pub fn one_of_two_last_holders_closes() {
    check(3, || {
        let d = device();
        d.cell(0).hold(PARENT);
        d.cell(0).hold(CHILD);
        let other = {
            let d = Arc::clone(&d);
            thread::spawn(move || d.cell(0).release(CHILD))
        };
        let mine = d.cell(0).release(PARENT);
        assert!(mine | other.join().expect("join"), "nobody closed it");
    });
}

/// Teardown during a send: one holder publishes and drops, another drops at the same time. Whoever closes sees what was sent.
pub fn the_closer_sees_what_was_sent() {
    check(3, || {
        let d = device();
        d.cell(0).hold(PARENT);
        d.cell(0).hold(CHILD);
        let close = |c: &Cell, row| {
            if c.release(row) {
                assert_eq!(c.tx_tail.load(Ordering::Acquire), 1, "FIN before the data");
            }
        };
        let sender = {
            let d = Arc::clone(&d);
            thread::spawn(move || {
                d.cell(0).tx().publish(9).expect("room");
                close(d.cell(0), CHILD);
            })
        };
        close(d.cell(0), PARENT);
        sender.join().expect("join");
    });
}

fn queue(d: &ModelDevice, listener: u32, sockets: &[u32]) {
    let l = d.cell(listener);
    l.state.store(SF_LISTENING, Ordering::Relaxed);
    let mut tail = 0;
    for &socket in sockets {
        d.cell(socket).reset(1);
        let payload = AcceptedSocket { socket, generation: 1 }.to_payload();
        publish_single(&l.rx_tail, &l.rx_slots, &mut tail, 0, payload).expect("room");
    }
}

/// Accepts until a socket comes or the queue is empty; then closes the socket at once, and the id begins its next life.
fn accept_and_close(d: &ModelDevice, row: u16) -> Option<u32> {
    match accept(d.device(), d.cell(0), row) {
        Accepted::Socket { socket, .. } => {
            let c = d.cell(socket.socket);
            assert!(c.is_held_by(row), "not mine");
            assert!(c.release(row), "somebody else holds what I accepted");
            c.reset(2);
            Some(socket.socket)
        }
        Accepted::WouldBlock => None,
        Accepted::Errno(e) => panic!("errno {e}"),
    }
}

/// Two processes accept from one listener and close at once, so that a slow one meets the next life of the id: each connection goes
/// to one of them, and no bit is left behind in either life.
pub fn each_connection_is_accepted_once() {
    check(3, || {
        let d = device();
        queue(&d, 0, &[1, 2]);
        let spawn = |row| {
            let d = Arc::clone(&d);
            thread::spawn(move || accept_and_close(&d, row))
        };
        let threads = [spawn(PARENT), spawn(CHILD)];
        let mut got = threads.map(|t| t.join().expect("join"));
        got.sort_unstable();
        assert_eq!(got, [Some(1), Some(2)]);
        for socket in [1, 2] {
            assert!(d.cell(socket).is_unheld(), "a late helper left a bit in the next life");
            assert_eq!(d.cell(socket).claimed_by(2), None);
        }
    });
}

/// One acceptor is killed right after its claim. The other gets the second connection, and the engine finds the first claimed by a dead
/// row and unheld.
pub fn a_killed_acceptor_loses_nothing() {
    check(3, || {
        let d = device();
        queue(&d, 0, &[1, 2]);
        let killed = {
            let d = Arc::clone(&d);
            thread::spawn(move || d.cell(1).claim(1, CHILD))
        };
        let got = accept_and_close(&d, PARENT);
        let claimed = killed.join().expect("join");
        match got {
            Some(1) => assert!(!claimed, "twice"),
            Some(2) => {
                assert!(claimed, "skipped");
                assert_eq!(d.cell(1).claimed_by(1), Some(CHILD));
                assert!(d.cell(1).is_unheld());
            }
            other => panic!("{other:?}"),
        }
    });
}

/// The host closes a listener's queue while a process accepts from it: one of them gets the connection.
pub fn a_closing_listener_and_an_acceptor() {
    check(3, || {
        let d = device();
        queue(&d, 0, &[1]);
        let acceptor = {
            let d = Arc::clone(&d);
            thread::spawn(move || accept_and_close(&d, CHILD).is_some())
        };
        let host = d.cell(1).claim(1, nk_device::cell::CLAIMED_BY_HOST);
        assert!(host ^ acceptor.join().expect("join"));
    });
}

/// A queue set's watch is changed by one thread and removed by another while a second queue set starts to watch: the second is not lost.
pub fn a_watch_is_not_overwritten() {
    check(3, || {
        let d = device();
        d.cell(0).watch(5, 0);
        let remover = {
            let d = Arc::clone(&d);
            thread::spawn(move || {
                d.cell(0).unwatch(5);
                d.cell(0).watch(7, 0);
            })
        };
        d.cell(0).watch(5, nk_device::cell::WATCH_EXCLUSIVE);
        remover.join().expect("join");
        let seven = d.cell(0).watch.iter().any(|e| e.load(Ordering::SeqCst) & 0xffff == 7 + 1);
        assert!(seven, "the other queue set's watch is gone");
    });
}

/// A second error comes while two threads take the first: every error is told at most once, the last exactly once.
pub fn errors_are_told_once() {
    check(3, || {
        let d = device();
        d.cell(0).error.store(1 << 32 | 111, Ordering::Release);
        let taker = {
            let d = Arc::clone(&d);
            thread::spawn(move || d.cell(0).take_error())
        };
        let service = {
            let d = Arc::clone(&d);
            thread::spawn(move || d.cell(0).error.store(2 << 32 | 104, Ordering::Release))
        };
        let mine = d.cell(0).take_error();
        service.join().expect("join");
        let told = [mine, taker.join().expect("join"), d.cell(0).take_error()];
        assert_eq!(told.iter().filter(|e| **e == 104).count(), 1, "{told:?}");
        assert!(told.iter().filter(|e| **e == 111).count() <= 1, "{told:?}");
    });
}
