//! Single cases of chunks that the rings of lost connections name: the guest was moved, and the NSM that had the connections died.

use std::collections::HashSet;

use nk_device::nqe::Op;
use nk_device::stream::{Span, is_taken, read_slot};
use nk_device::sync::Ordering;
use nk_engine::{GuestId, NsmId};
use nk_host::control::moves;

use super::shell::Shell;
use super::simulation::Simulation;
use super::world::datagrams;

/// A guest on two NSMs, with a connection on the first that two processes have, and one that waits to be accepted.
struct Case {
    sim: Simulation,
    id: GuestId,
    parent: Shell,
    child: Shell,
    client: u32,
    listener: u32,
}

impl Case {
    /// `fills`: more is sent before the guest is moved than the stack takes.
    fn new(fills: bool) -> Case {
        let mut sim = Simulation::new(1);
        sim.is_over = true;
        let (id, parent) = (sim.tenants[0].id, sim.tenants[0].processes[0].clone());
        let child = process(&mut sim);
        let listener = sim.w.listen(&parent, 80);
        let client = sim.w.connect(&parent, 80);
        parent.accept(listener).expect("a connection");
        sim.w.connect(&parent, 80);
        parent.device.cell(client).expect("a cell").hold(child.row);
        // Until the stack takes no more, and the ring is full.
        let mut refused = if fills { 0 } else { 10 };
        while refused < 10 {
            refused += usize::from(parent.send(client, 0, 16_000) == 0);
            sim.w.settle();
        }
        moves::move_guest(&mut sim, id, NsmId(1)).expect("moved");
        assert_eq!(sim.tenants[0].place.nsm(), NsmId(1));
        sim.w.settle();
        Case { sim, id, parent, child, client, listener }
    }

    /// What the connection's ring names from where the service was, and of that what the service has taken.
    fn named(&self) -> [HashSet<u32>; 2] {
        let cell = self.parent.device.cell(self.client).expect("a cell");
        let (head, tail) =
            (cell.tx_head.load(Ordering::Relaxed), cell.tx_tail.load(Ordering::Relaxed));
        let span = |n| Span::from_payload(read_slot(&cell.tx_slots, n)?).map(|s| s.chunk);
        let all: HashSet<u32> = (head..tail).filter_map(span).collect();
        let taken = (head..tail).filter(|n| is_taken(&cell.tx_slots, *n)).filter_map(span);
        [all.clone(), taken.collect()]
    }

    fn dies(&mut self, g: &Shell) {
        self.sim.dies(g.pid);
        self.sim.hear_all();
        self.sim.w.settle();
    }

    /// No chunk is out but what stands on the grants of these.
    fn assert_leased_to(&self, shells: &[&Shell]) {
        let s = self.sim.w.stats(self.id);
        let row = |g: &&Shell| g.device.row(g.row).expect("a row").chunk_grants.available();
        let granted: u32 = shells.iter().map(row).sum();
        assert_eq!((s.chunks_leased, s.chunks_tx, s.chunks_rx), (granted.into(), 0, 0), "{s:?}");
    }

    fn nsm_dies(&mut self, nsm: usize) {
        self.sim.nsm_ends(nsm);
        self.sim.nsm_died(nsm);
    }

    fn close(&mut self) {
        for g in [&self.parent, &self.child] {
            g.close(self.client);
        }
        self.sim.w.settle();
    }
}

fn process(sim: &mut Simulation) -> Shell {
    sim.spawn(0);
    sim.w.settle();
    sim.tenants[0].processes.last().expect("a free row").clone()
}

/// All that a process gets.
pub(super) fn take_all(sim: &mut Simulation, g: &Shell) -> HashSet<u32> {
    let grants = &g.device.row(g.row).expect("a row").chunk_grants;
    let mut all = HashSet::new();
    loop {
        let before = all.len();
        while let Some(chunk) = grants.pop() {
            assert!(all.insert(chunk), "chunk {chunk} is leased twice");
        }
        if all.len() == before {
            return all;
        }
        g.job(Op::Refill, 0, |_| ());
        sim.w.settle();
    }
}

#[test]
fn what_a_dead_process_sent_on_a_lost_connection_is_leased_to_nobody() {
    let mut case = Case::new(false);
    assert_eq!(case.child.send(case.client, 0, 100), 100);
    let [named, _] = case.named();
    assert_eq!(named.len(), 1);
    case.nsm_dies(0);
    assert!(case.sim.tenants[0].place.ledger().is_none(), "the other has the chunks for itself");
    let child = case.child.clone();
    case.dies(&child);
    let next = process(&mut case.sim);
    let taken = take_all(&mut case.sim, &next);
    assert!(taken.is_disjoint(&named), "{named:?} stands on a ring that is still to be freed");
    case.close();
    // The next waits for more.
    assert_eq!(take_all(&mut case.sim, &next).len(), 1, "it came back");
}

#[test]
fn what_a_dead_service_had_taken_is_free_once() {
    let mut case = Case::new(true);
    let [_, named] = case.named();
    assert!(!named.is_empty(), "the stack took all");
    case.nsm_dies(0);
    case.sim.w.assert_chunks(case.id, super::simulation::LAYOUT.chunks);
    // Chunks that were never used go first: the second gets what was.
    let first = process(&mut case.sim);
    take_all(&mut case.sim, &first);
    case.dies(&first);
    let next = process(&mut case.sim);
    let taken = take_all(&mut case.sim, &next);
    assert!(!taken.is_disjoint(&named), "{named:?} were free");
    case.close();
    // It sends with these first.
    next.spare.borrow_mut().extend(taken.difference(&named).chain(taken.intersection(&named)));
    datagrams(&mut case.sim.w, &next, case.id);
    assert_eq!(case.sim.w.stats(case.id).violations, 0);
}

/// Who sent died before, and what it sent stands on the ring until its last holder closes; which dies with the engine.
#[test]
fn what_a_dead_process_sent_on_a_lost_connection_comes_back_from_who_died_with_the_engine() {
    let mut case = Case::new(false);
    assert_eq!(case.child.send(case.client, 0, 100), 100);
    let [named, _] = case.named();
    assert_eq!(named.len(), 1);
    case.nsm_dies(0);
    let child = case.child.clone();
    case.dies(&child);
    case.sim.nsm_returns(0);
    assert_eq!(case.named()[0], named, "it is still to be freed");
    // Of those that there were the next engine is told of this one alone.
    let stays = process(&mut case.sim);
    case.sim.dies(case.parent.pid);
    case.sim.daemon_dies();
    case.sim.w.settle();
    case.dies(&stays);
    let s = case.sim.w.stats(case.id);
    assert_eq!((s.chunks_leased, s.chunks_tx, s.chunks_rx), (0, 0, 0), "{s:?}");
    assert_eq!(case.sim.w.engine.guest_sockets(case.id), 0);
}

/// The daemon dies while the guest is on two NSMs: the one that it left forgets it, and who sent there last dies, too.
#[test]
fn what_a_process_that_died_with_the_engine_sent_to_an_nsm_that_forgot_it_is_leased_to_nobody() {
    let mut case = Case::new(false);
    // What is sent from here on the NSM does not hear of.
    case.sim.w.engine.pause_guest(case.id).expect("known");
    assert_eq!(case.child.send(case.client, 0, 100), 100);
    let [named, _] = case.named();
    assert_eq!(named.len(), 1);
    case.sim.dies(case.child.pid);
    case.sim.daemon_dies();
    case.sim.w.settle();
    // Chunks that were never used go first: the second gets what was.
    for _ in 0..2 {
        let next = process(&mut case.sim);
        let taken = take_all(&mut case.sim, &next);
        assert!(taken.is_disjoint(&named), "{named:?} stands on a ring that is still to be freed");
        case.dies(&next);
    }
    case.parent.close(case.client);
    case.sim.w.settle();
    case.assert_leased_to(&[&case.parent]);
}

/// As above, and who holds the connection last is the one that dies.
#[test]
fn what_was_sent_to_an_nsm_that_forgot_it_comes_back_when_nobody_holds_the_connection() {
    let mut case = Case::new(false);
    case.sim.w.engine.pause_guest(case.id).expect("known");
    assert_eq!(case.parent.send(case.client, 0, 100), 100);
    assert_eq!(case.named()[0].len(), 1);
    case.parent.close(case.client);
    case.sim.dies(case.child.pid);
    case.sim.daemon_dies();
    let accepted = case.parent.accept(case.listener);
    assert_eq!(accepted, None, "what waited there is not to be used any more");
    case.sim.w.settle();
    case.assert_leased_to(&[&case.parent]);
}

/// The guest's present NSM is dead when the last holder of one of its connections dies, and the next one is to know of it.
#[test]
fn what_was_sent_to_the_present_nsm_comes_back_when_the_last_holder_dies_before_the_next_one_is_there()
 {
    let mut case = Case::new(false);
    let connection = case.sim.w.connect(&case.parent, 80);
    case.parent.device.cell(connection).expect("a cell").hold(case.child.row);
    // What is sent from here on the NSM does not hear of.
    case.sim.w.engine.pause_guest(case.id).expect("known");
    assert_eq!(case.parent.send(connection, 0, 100), 100);
    case.parent.close(connection);
    case.nsm_dies(1);
    assert!(case.sim.tenants[0].place.ledger().is_some(), "it is on another, too");
    let child = case.child.clone();
    case.dies(&child);
    case.sim.w.engine.resume_guest(case.id).expect("known");
    case.sim.nsm_returns(1);
    case.sim.w.settle();
    case.assert_leased_to(&[&case.parent]);
}
