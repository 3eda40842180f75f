//! Chunks that two services share ([`nk_device::Ledger`]), which may be in two processes.

use loom::sync::Arc;
use loom::thread;
use nk_device::Layout;
use nk_device::ledger::{Lease, Owner};
use nk_device::model::{ModelDevice, ModelLedger};
use nk_device::stream::{Span, read_slot};
use nk_device::sync::Ordering;

use crate::harness::{check, device};

const LEASE: Lease = Lease { row: 0, life: 1, index: 7 };

fn ledger() -> Arc<ModelLedger> {
    Arc::new(ModelLedger::new(Layout { rows: 1, qsets: 1, cells: 1, chunks: 2 }))
}

/// Both take what they find free: nobody has what the other has, and all is counted.
pub fn each_takes_its_own() {
    check(3, || {
        let l = ledger();
        let take = |l: &ModelLedger, service: u8| {
            let own = l.ledger().of_service(service);
            (0..2).find(|chunk| own.change(*chunk, Owner::Free, Owner::Rx)).expect("one each")
        };
        let other = {
            let l = Arc::clone(&l);
            thread::spawn(move || take(&l, 2))
        };
        let one = take(&l, 1);
        let two = other.join().expect("join");
        assert_ne!(one, two);
        let own = l.ledger().of_service(1);
        assert_eq!((own.owner(one), own.owner(two)), (Some(Owner::Rx), Some(Owner::Other)));
        assert_eq!(own.counts(), [0, 0, 2]);
    });
}

/// A chunk that a ring names is taken to be sent by the service that has the socket, while the one that leased it hears that the process is
/// dead: it is sent once, and free at the end.
pub fn a_send_and_the_death_of_its_process() {
    check(3, || {
        let l = ledger();
        assert!(l.ledger().change(0, Owner::Free, Owner::Row(LEASE)));
        let leases = {
            let l = Arc::clone(&l);
            thread::spawn(move || {
                let own = l.ledger().of_service(2);
                if let Some(o @ Owner::Row(_)) = own.owner(0) {
                    own.change(0, o, Owner::Orphan);
                }
            })
        };
        let own = l.ledger().of_service(1);
        let takes = (0..3).filter_map(|_| own.owner(0)).find(|owner| {
            matches!(owner, Owner::Row(_) | Owner::Orphan) && own.change(0, *owner, Owner::Tx)
        });
        assert!(takes.is_some(), "what was sent is sent");
        assert!(own.change(0, Owner::Tx, Owner::Free));
        leases.join().expect("join");
        assert_eq!((own.owner(0), own.counts()), (Some(Owner::Free), [0; 3]));
    });
}

/// One service has sent a chunk and gives it back; the other leases it at once, hears that the process died, and looks for it on the
/// first one's ring.
fn sent_and_leased_again(give_back: fn(&ModelDevice, &ModelLedger)) {
    check(3, move || {
        let (d, l) = (device(), ledger());
        let span = Span { chunk: 0, offset: 0, len: 5 };
        d.cell(0).tx().publish(span.to_payload()).expect("room");
        assert!(l.ledger().of_service(1).change(0, Owner::Free, Owner::Tx));
        let sends = {
            let (d, l) = (Arc::clone(&d), Arc::clone(&l));
            thread::spawn(move || give_back(&d, &l))
        };
        if l.ledger().of_service(2).change(0, Owner::Free, Owner::Row(LEASE)) {
            let cell = d.cell(0);
            let head = cell.tx_head.load(Ordering::Acquire);
            let tail = cell.tx_tail.load(Ordering::Acquire);
            let named = (head..tail).filter_map(|at| read_slot(&cell.tx_slots, at)).count();
            assert_eq!(named, 0, "it would be kept out, and nobody would take it from there");
        }
        sends.join().expect("join");
    });
}

/// As the service does it: a ring that was read names nothing that is leased again.
pub fn what_was_sent_is_named_no_more() {
    sent_and_leased_again(|d, l| {
        d.cell(0).tx_head.store(1, Ordering::SeqCst);
        assert!(l.ledger().of_service(1).change(0, Owner::Tx, Owner::Free));
    });
}

/// Wrong: the chunk is free while the ring still names it.
pub fn freed_before_the_head_moves() {
    sent_and_leased_again(|d, l| {
        assert!(l.ledger().of_service(1).change(0, Owner::Tx, Owner::Free));
        d.cell(0).tx_head.store(1, Ordering::SeqCst);
    });
}
