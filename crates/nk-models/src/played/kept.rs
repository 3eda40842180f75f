//! Single cases of what a service tells the next engine of sockets that it did not make: of those the engine owns the ports, too.

use nk_device::Addr;
use nk_device::kept::{KS_BOUND, KS_V6ONLY, KeptSocket};
use nk_device::nqe::{Op, pack_option};
use nk_device::sync::Ordering;
use nk_engine::{KeptGuest, NsmId};
use nk_host::control::moves;
use nk_servicelib::Key;

use super::simulation::Simulation;
use super::stack::MemoryStack;
use super::world::World;

/// What the service of an NSM tells of a guest's sockets, by their ports.
fn told(sim: &mut Simulation, nsm: usize, guest: u16) -> Vec<(u16, KeptSocket)> {
    let words = sim.w.services[nsm].keep(sim.devices[nsm], 1);
    let all = KeptGuest::parse(&words).expect("complete");
    let its = all.into_iter().find(|(id, _)| id.0 == guest).expect("it knows the guest").1;
    its.sockets.into_iter().map(|s| (s.local.port, s)).collect()
}

#[test]
fn what_was_moved_is_bound_as_it_was() {
    let mut sim = Simulation::new(1);
    let (id, g) = (sim.tenants[0].id, sim.tenants[0].processes[0].clone());
    let [listener, stream, datagram, unbound] =
        [g.open(), g.open(), g.open_datagram(), g.open()].map(|id| id.expect("an id"));
    for (socket, port) in [(listener, 80), (stream, 81), (datagram, 90)] {
        g.address(Op::Bind, socket, port);
    }
    g.job(Op::Listen, listener, |n| n.op_data = 8);
    let six = g.open_kind(10 | 1 << 16).expect("an id");
    g.job(Op::SetSockOpt, six, |n| (n.size, n.op_data) = (pack_option(41, 26, 4), 1));
    let (size, lo, hi) = Addr::v6([0; 16], 82, 0).to_words();
    g.job(Op::Bind, six, |n| (n.size, n.op_data, n.data) = (size, lo, hi));
    sim.w.settle();
    moves::move_guest(&mut sim, id, NsmId(1)).expect("moved");
    sim.w.settle();
    let told = told(&mut sim, 1, id.0);
    for port in [80, 81, 82, 90] {
        let Some((_, s)) = told.iter().find(|(p, _)| *p == port) else { panic!("port {port}") };
        assert!(s.is(KS_BOUND), "port {port}: {s:?}");
        assert_eq!(s.is(KS_V6ONLY), port == 82, "port {port}: {s:?}");
    }
    let (_, s) = told.iter().find(|(_, s)| s.socket == unbound).expect("it was moved, too");
    assert!(!s.is(KS_BOUND), "{s:?}");
}

#[test]
fn a_listener_that_the_keeper_had_is_bound() {
    let mut sim = Simulation::new(1);
    let (id, g) = (sim.tenants[0].id, sim.tenants[0].processes[0].clone());
    let pool = World::pool(&sim.tenants[0].region, id);
    sim.w.services[1].add_guest(pool);
    let socket = g.open().expect("an id");
    let generation = g.device.cell(socket).expect("a cell").generation.load(Ordering::Relaxed);
    let key = Key { guest: id.0, socket, generation: generation as u16 };
    let fd = MemoryStack::kept_descriptor(&Addr::v4([127, 0, 0, 1], 80));
    sim.w.services[1].adopt_listener(key, fd, 8).expect("adopted");
    let told = told(&mut sim, 1, id.0);
    assert!(told.iter().any(|(port, s)| *port == 80 && s.is(KS_BOUND)), "{told:?}");
}
