//! How often a queue set that sleeps is rung.

use nk_device::qset::RINGS_ALWAYS;
use nk_device::ring::Producer;

use super::*;

#[test]
fn a_sleep_is_rung_once_and_one_of_several_each_time() {
    let mut case = Case::new();
    let g = case.process();
    let id = g.open().expect("an id");
    case.poll();
    case.take(0, 100);
    let device = case.guest.device;
    let cell = device.cell(id).expect("a cell");
    cell.watch(g.qset, 0);
    let rung = Rc::new(RefCell::new(0));
    let counts = Rc::clone(&rung);
    case.bells = Bells::new(Rc::new(RefCell::new(move || *counts.borrow_mut() += 1)));
    let nsm = case.nsms[0].device;
    let mut events = Producer::default();
    let mut sleeps = |case: &mut Case, sleep: u32| {
        device.qset(g.qset).expect("a queue set").sleeping.store(sleep, Ordering::SeqCst);
        *rung.borrow_mut() = 0;
        for _ in 0..3 {
            let generation = cell.generation.load(Ordering::Relaxed) as u16;
            let mut event = Nqe::new(Op::Event, id, generation);
            event.guest = GUEST.0;
            let ring = nsm.qset(0).expect("an NSM's queue set").receive();
            events.push(&ring, &event).expect("room");
            case.poll();
        }
        *rung.borrow()
    };
    assert_eq!(sleeps(&mut case, 0), 0, "awake");
    assert_eq!(sleeps(&mut case, 2), 1);
    assert_eq!(sleeps(&mut case, 2), 0, "the same sleep");
    assert_eq!(sleeps(&mut case, 3), 1, "another");
    assert_eq!(sleeps(&mut case, RINGS_ALWAYS), 3, "who wakes is not known");
    assert_eq!(sleeps(&mut case, RINGS_ALWAYS), 3);
}
