//! What connects meet in the moment in which a listener's last holder closes.

use super::*;
use crate::played::simulation::Simulation;

/// Both are pushed before the engine looks, and it reads the queue set of the process that connects first.
#[test]
fn who_connects_after_another_process_closed_is_refused() {
    let mut sim = Simulation::new(1);
    sim.is_over = true;
    let first = sim.tenants[0].processes[0].clone();
    sim.spawn(0);
    sim.w.settle();
    let second = sim.tenants[0].processes.last().expect("a free row").clone();
    let (left, stays) = (sim.w.listen(&second, 80), sim.w.listen(&second, 81));
    let [refused, served] = [80, 81].map(|port| {
        let client = first.open().expect("an id");
        first.address(Op::Connect, client, port);
        client
    });
    second.close(left);
    sim.w.settle();
    let error = |id| first.device.cell(id).expect("a cell").take_error();
    assert_eq!((error(refused), error(served)), (libc::ECONNREFUSED, 0));
    assert!(second.accept(stays).is_some());
}
