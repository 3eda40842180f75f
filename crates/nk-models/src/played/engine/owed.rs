//! What the rings of lost connections name, where one NSM after the other dies.

use super::*;

/// The present NSM takes back what a dead one's connections carry. When it dies too, the next one knows of no lease: whatever it leases
/// must not be named by those rings any more.
#[test]
fn who_flees_to_an_nsm_that_knows_of_no_lease_leaves_nothing_on_its_rings() {
    let mut case = Case::new();
    let g = case.process();
    let id = g.open().expect("an id");
    connect(&g, id);
    case.poll();
    case.take(0, 100);
    let device = case.guest.device;
    let cell = device.cell(id).expect("a cell");
    case.split();
    cell.tx_tail.store(1, Ordering::SeqCst);
    case.engine.nsm_dead(NSM, &mut case.bells).expect("known");
    assert_eq!(cell.tx_head.load(Ordering::SeqCst), 0, "the present NSM takes it back");
    case.engine.nsm_dead(NsmId(1), &mut case.bells).expect("known");
    case.nsms[0] = Region::new(Layout::NSM, 0);
    case.engine.nsm_back(NSM, case.nsms[0].device).expect("known");
    case.engine.flee_nsm(GUEST, NSM, &mut case.bells).expect("it serves");
    assert_eq!(cell.tx_head.load(Ordering::SeqCst), 1, "nobody does");
    g.close(id);
    case.poll();
    assert_eq!(case.engine.guest_sockets(GUEST), 0);
}
