//! Queue sets that sleep: how often one is rung, and what the engine knows of who was rung.

use nk_device::qset::{Qset, RINGS_ALWAYS};
use nk_device::ring::Producer;

use super::*;

/// A process that watches a socket.
struct Watcher {
    case: Case,
    g: Shell,
    id: u32,
    events: Producer,
    rung: Rc<RefCell<u32>>,
}

impl Watcher {
    fn new() -> Watcher {
        let mut case = Case::new();
        let g = case.process();
        let id = g.open().expect("an id");
        case.poll();
        case.take(0, 100);
        case.guest.device.cell(id).expect("a cell").watch(g.qset, 0);
        let rung = Rc::new(RefCell::new(0));
        let counts = Rc::clone(&rung);
        case.bells = Bells::new(Rc::new(RefCell::new(move || *counts.borrow_mut() += 1)));
        Watcher { case, g, id, events: Producer::default(), rung }
    }
    fn qset(&self) -> &Qset {
        self.g.device.qset(self.g.qset).expect("a queue set")
    }
    /// The NSM tells of the socket, and the engine polls.
    fn event(&mut self) {
        let cell = self.case.guest.device.cell(self.id).expect("a cell");
        let generation = cell.generation.load(Ordering::Relaxed) as u16;
        let mut event = Nqe::new(Op::Event, self.id, generation);
        event.guest = GUEST.0;
        let ring = self.case.nsms[0].device.qset(0).expect("an NSM's queue set").receive();
        self.events.push(&ring, &event).expect("room");
        self.case.poll();
    }
    /// How often this sleep is rung for in three events.
    fn rings(&mut self, sleep: u32) -> u32 {
        self.qset().sleeping.store(sleep, Ordering::SeqCst);
        *self.rung.borrow_mut() = 0;
        (0..3).for_each(|_| self.event());
        *self.rung.borrow()
    }
}

#[test]
fn a_sleep_is_rung_once_and_one_of_several_each_time() {
    let mut w = Watcher::new();
    assert_eq!(w.rings(0), 0, "awake");
    assert_eq!(w.rings(2), 1);
    assert_eq!(w.rings(2), 0, "the same sleep");
    assert_eq!(w.rings(3), 1, "another");
    assert_eq!(w.rings(RINGS_ALWAYS), 3, "who wakes is not known");
    assert_eq!(w.rings(RINGS_ALWAYS), 3);
}

#[test]
fn who_was_rung_is_awaited_until_it_reads() {
    let mut w = Watcher::new();
    let device = w.g.device;
    let q = device.qset(w.g.qset).expect("a queue set");
    w.event();
    assert_eq!(w.case.engine.awaited_on(), None, "it does not sleep");
    q.sleeping.store(2, Ordering::SeqCst);
    w.event();
    assert_eq!(w.case.engine.awaited_on(), None, "it has not said where");
    q.sleeps_on.store(5 + 1, Ordering::Relaxed);
    assert_eq!(w.case.engine.awaited_on(), Some(5));
    q.receive_head.store(2, Ordering::SeqCst);
    assert_eq!(w.case.engine.awaited_on(), None, "it has read");
    q.sleeping.store(3, Ordering::SeqCst);
    w.event();
    assert_eq!(w.case.engine.awaited_on(), Some(5));
    // With another guest awake nobody follows what this one says.
    let (region, other) = (Region::new(LAYOUT, 2), GuestId(2));
    w.case.engine.add_guest(World::setup(&region, other)).expect("guest");
    w.case.poll();
    assert_eq!(w.case.engine.awaited_on(), None);
}
