//! Single cases of a guest's share on its present NSM.

use nk_engine::{GuestId, NsmId};
use nk_host::control::moves;

use super::shell::Shell;
use super::simulation::Simulation;
use super::world::datagrams;

/// A guest that listens, and has not accepted anything.
struct Case {
    sim: Simulation,
    id: GuestId,
    shell: Shell,
    listener: u32,
}

impl Case {
    /// `most`: its share before it listens.
    fn new(most: Option<u32>) -> Case {
        let mut sim = Simulation::new(1);
        sim.is_over = true;
        let (id, shell) = (sim.tenants[0].id, sim.tenants[0].processes[0].clone());
        sim.w.engine.set_share(id, most, &mut sim.w.bells).expect("known");
        let listener = sim.w.listen(&shell, 80);
        Case { sim, id, shell, listener }
    }
    fn share(&mut self, most: u32) {
        let w = &mut self.sim.w;
        w.engine.set_share(self.id, Some(most), &mut w.bells).expect("known");
        w.settle();
    }
    fn connect(&mut self) {
        self.sim.w.connect(&self.shell, 80);
    }
    /// How many stand on the listener's ring.
    fn accepted(&self) -> usize {
        std::iter::from_fn(|| self.shell.accept(self.listener)).count()
    }
    fn told(&mut self) -> Vec<GuestId> {
        std::mem::take(&mut self.sim.w.bells.full)
    }
}

#[test]
fn a_full_share_is_told_once_and_the_next_connection_waits() {
    let mut case = Case::new(Some(1));
    // For what it connects to an id was granted before.
    case.connect();
    assert_eq!((case.told(), case.accepted()), (vec![case.id], 1));
    case.connect();
    assert_eq!((case.told(), case.accepted()), (vec![], 0));
    case.share(6);
    assert_eq!((case.told(), case.accepted()), (vec![], 1), "it waits no more");
    case.connect();
    assert_eq!((case.told(), case.accepted()), (vec![case.id], 1));
}

#[test]
fn what_waits_goes_to_the_next_nsm() {
    let mut case = Case::new(Some(1));
    case.connect();
    case.connect();
    assert_eq!((case.told(), case.accepted()), (vec![case.id], 1));
    case.share(0);
    moves::move_guest(&mut case.sim, case.id, NsmId(1)).expect("moved");
    case.sim.w.settle();
    assert_eq!((case.told(), case.accepted()), (vec![], 0), "for the time of a move it has none");
    case.share(9);
    assert_eq!((case.told(), case.accepted()), (vec![], 1));
    let by_nsm = case.sim.w.engine.sockets_by_nsm(case.id);
    assert_eq!(by_nsm, [(NsmId(0), 3), (NsmId(1), 2)], "the listener and what waited");
}

#[test]
fn without_a_share_it_has_all() {
    let mut case = Case::new(None);
    (0..8).for_each(|_| case.connect());
    assert_eq!((case.told(), case.accepted()), (vec![], 8));
}

impl Case {
    fn dies(&mut self, nsm: usize) {
        self.sim.nsm_ends(nsm);
        self.sim.nsm_died(nsm);
    }
    /// It is on NSM `to` from now on, which has so many of its sockets.
    fn flees(&mut self, to: u8, sockets: u32) {
        moves::flee(&mut self.sim, self.id, NsmId(to)).expect("fled").expect("it was elsewhere");
        self.sim.w.settle();
        assert_eq!(self.sim.tenants[0].place.nsm(), NsmId(to));
        let by_nsm = self.sim.w.engine.sockets_by_nsm(self.id);
        assert_eq!(by_nsm.last(), Some(&(NsmId(to), sockets)), "{by_nsm:?}");
    }
    fn is_served(&mut self) {
        self.connect();
        assert_eq!(self.accepted(), 1);
        datagrams(&mut self.sim.w, &self.shell, self.id);
    }
}

#[test]
fn who_does_not_wait_for_a_dead_nsm_listens_at_another() {
    let mut case = Case::new(None);
    case.connect();
    assert_eq!(case.accepted(), 1);
    case.dies(0);
    case.flees(1, 1);
    assert!(case.sim.tenants[0].place.ledger().is_none(), "it is there alone");
    case.is_served();
    case.sim.nsm_returns(0);
    case.is_served();
    assert_eq!(case.sim.tenants[0].place.all(), [NsmId(1)]);
}

#[test]
fn who_has_connections_on_the_other_keeps_them() {
    let mut case = Case::new(None);
    let client = case.sim.w.connect(&case.shell, 80);
    let server = case.shell.accept(case.listener).expect("a connection").socket;
    moves::move_guest(&mut case.sim, case.id, NsmId(1)).expect("moved");
    case.sim.w.settle();
    case.dies(1);
    // The listener, and the connection's both ends.
    case.flees(0, 3);
    assert!(case.sim.tenants[0].place.ledger().is_none(), "it is there alone");
    assert_eq!(case.shell.send(client, 0, 5000), 5000);
    case.sim.w.settle();
    assert_eq!(case.shell.recv(server, 0, 10_000, true), 5000);
    case.is_served();
}
