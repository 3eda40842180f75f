//! Single cases of what the control thread does when something ends in the middle of it.

use nk_device::datagram::{DF_PEER, Header};
use nk_device::nqe::ROW_ADOPTED;
use nk_device::nqe::{Nqe, Op};
use nk_device::ring::Producer;
use nk_device::{Addr, CHUNK_SIZE, Layout};
use nk_engine::NsmId;
use nk_host::control::moves::{self, Host};
use nk_host::control::place::Place;
use nk_host::keeper::CLASS_LISTENER;
use nk_host::limits::GuestLimits;

use super::deaths::Victim;
use super::lost::take_all;
use super::region::Region;
use super::shell::Shell;
use super::simulation::{LAYOUT, NSMS, Simulation, State};
use super::world::{NSM, transfer};

/// The first NSM died, and its successor is told of the guests; the engine does not know it yet.
fn successor_starts() -> Simulation {
    let mut sim = Simulation::new(1);
    sim.is_over = true;
    sim.spawn(0);
    sim.w.settle();
    // What they take they never sent: it is nobody's when the NSM dies.
    for p in &sim.tenants[0].processes {
        while p.device.row(p.row).expect("a row").chunk_grants.pop().is_some() {}
    }
    sim.nsm_ends(0);
    sim.nsm_died(0);
    sim.states[0] = State::Up;
    sim.nsm_serves(0);
    for at in 0..sim.tenants.len() {
        let id = sim.tenants[at].id;
        sim.add(NSM, id).expect("nothing is refused");
    }
    sim
}

/// The daemon dies, and another takes over: each process is served.
fn is_served_by_the_next(sim: &mut Simulation) {
    sim.next_daemon();
    // What somebody may have said meanwhile.
    sim.tenants[0].limits = GuestLimits::default();
    sim.set_limits(0).expect("nothing is refused");
    let id = sim.tenants[0].id;
    sim.w.assert_chunks(id, LAYOUT.chunks);
    for shell in sim.tenants[0].processes.clone() {
        transfer(&mut sim.w, &shell, id, 200_000);
    }
}

#[test]
fn an_nsm_that_was_told_of_no_process_begins_anew() {
    is_served_by_the_next(&mut successor_starts());
}

#[test]
fn an_nsm_that_was_told_of_some_processes_begins_anew() {
    let mut sim = successor_starts();
    // The engine wrote no further.
    let region = Region::new(Layout::NSM, 0);
    let mut nqe = Nqe::new(Op::RowLive, 0, 0);
    (nqe.guest, nqe.data) = (sim.tenants[0].id.0, ROW_ADOPTED | 1 << 32);
    let q = region.device.qset(0).expect("an NSM's queue set");
    let stack = super::stack::MemoryStack::on(sim.net.clone(), 0, None);
    sim.w.services[0] = nk_servicelib::Service::new(stack, region.device);
    for at in 0..sim.tenants.len() {
        let id = sim.tenants[at].id;
        sim.add(NSM, id).expect("nothing is refused");
    }
    Producer::default().push(&q.job(), &nqe).expect("room");
    sim.nsms.push(region);
    is_served_by_the_next(&mut sim);
}

/// The daemon dies when the guest is wholly on the next NSM, and before the keeper knows.
#[test]
fn a_guest_that_was_on_its_way_is_on_one_nsm_at_the_next_daemon() {
    for seed in 0..20 {
        let mut sim = Simulation::new(seed);
        sim.is_over = true;
        let (id, g) = (sim.tenants[0].id, sim.tenants[0].processes[0].clone());
        moves::move_guest(&mut sim, id, NsmId(1)).expect("moved");
        let place = std::mem::replace(&mut sim.tenants[0].place, Place::new(NSM));
        sim.note_guest(0);
        sim.tenants[0].place = place;
        sim.w.settle();
        let listener = sim.w.listen(&g, 80);
        let client = sim.w.connect(&g, 80);
        g.accept(listener).expect("a connection");
        // What the next NSM would take, and lease again.
        while g.send(client, 0, 16_000) > 0 {}
        sim.next_daemon();
        sim.w.settle();
        take_all(&mut sim, &g);
        sim.w.assert_chunks(id, LAYOUT.chunks);
        let has: Vec<bool> = sim.w.services.iter().map(|s| s.stats(id.0).is_some()).collect();
        assert_eq!(has, [true, false, false]);
    }
}

/// A socket that has sent itself a datagram, which has come.
fn unread_datagram(sim: &mut Simulation, g: &Shell) -> u32 {
    let datagram = g.open_datagram().expect("an id");
    g.address(Op::Bind, datagram, 90);
    sim.w.settle();
    let peer = Addr::v4([127, 0, 0, 1], 90);
    let header = Header { flags: DF_PEER, peer, ..Header::default() };
    g.send_datagram(datagram, 0, CHUNK_SIZE, header).expect("room");
    sim.w.settle();
    datagram
}

/// An unread datagram goes from the second NSM back to the first, which had never left, and something ends at each moment of that. The
/// connection that keeps the first is accepted, or waits for it, while its listener goes along, and sometimes is lost.
#[test]
fn what_is_on_its_way_is_nobodys_for_good() {
    for (victim, accepts) in [Victim::Daemon, Victim::Nsm(0), Victim::Nsm(1)]
        .into_iter()
        .flat_map(|v| [(v, true), (v, false)])
    {
        for (moment, seed) in (0..24).flat_map(|m| (0..8).map(move |seed| (m, seed))) {
            let mut sim = Simulation::new(seed);
            sim.is_over = true;
            let (id, g) = (sim.tenants[0].id, sim.tenants[0].processes[0].clone());
            let listener = sim.w.listen(&g, 80);
            let client = sim.w.connect(&g, 80);
            let server = accepts.then(|| g.accept(listener).expect("a connection").socket);
            moves::move_guest(&mut sim, id, NsmId(1)).expect("moved");
            sim.w.settle();
            let datagram = unread_datagram(&mut sim, &g);
            assert!(sim.w.services[1].stats(id.0).expect("known").chunks_rx > 1, "it has come");
            sim.ends_in = Some((moment, victim));
            sim.act(|s| {
                let _ = moves::move_guest(s, id, NSM);
                Ok::<(), ()>(())
            });
            for nsm in 0..NSMS {
                if sim.states[nsm] == State::Dead {
                    sim.nsm_died(nsm);
                    sim.nsm_returns(nsm);
                }
            }
            sim.w.settle();
            g.close(datagram);
            sim.drain();
            // What was on its way when its giver died is nobody's, though who was to have it goes on with the client.
            let s = sim.w.stats(id);
            assert_eq!(s.chunks_rx, 0, "{victim:?} at moment {moment}, accepted: {accepts}: {s:?}");
            for socket in [Some(client), server, Some(listener)].into_iter().flatten() {
                g.close(socket);
            }
            sim.drain();
            sim.drain();
            let s = sim.w.stats(id);
            let left = (s.sockets, s.chunks_rx);
            assert_eq!(
                left,
                (0, 0),
                "{victim:?} at moment {moment}, accepted: {accepts}, {seed}: {s:?}"
            );
        }
    }
}

/// The next NSM cannot take a listener, for which a connection waits that stays where it is.
#[test]
fn what_waits_for_a_listener_that_is_lost_ends() {
    let mut sim = Simulation::new(1);
    let (id, g) = (sim.tenants[0].id, sim.tenants[0].processes[0].clone());
    let listener = sim.w.listen(&g, 80);
    let client = sim.w.connect(&g, 80);
    moves::move_guest(&mut sim, id, NsmId(1)).expect("moved");
    let generation = sim.tenants[0].generation(listener) as u16;
    let w = &mut sim.w;
    w.engine.listener_lost(id, listener, generation, &mut w.bells).expect("it listened");
    w.settle();
    for socket in [client, listener] {
        g.close(socket);
    }
    sim.is_over = true;
    sim.drain();
    assert_eq!(sim.w.engine.guest_sockets(id), 0);
}

/// The next NSM cannot watch what it is given: it has nothing of it, and keeps nothing.
#[test]
fn what_cannot_be_watched_is_closed() {
    let mut sim = Simulation::new(1);
    sim.is_over = true;
    let (id, g) = (sim.tenants[0].id, sim.tenants[0].processes[0].clone());
    let listener = sim.w.listen(&g, 80);
    let datagram = unread_datagram(&mut sim, &g);
    assert_eq!(sim.net.borrow().open_sockets(), 2);
    sim.net.borrow_mut().faults.watches_nothing = true;
    moves::move_guest(&mut sim, id, NsmId(1)).expect("moved");
    sim.w.settle();
    let open = sim.net.borrow().open_sockets();
    (0..NSMS).for_each(|nsm| sim.take_notes(nsm));
    let kept = sim.keeper.has(|entries| entries.of(CLASS_LISTENER).count());
    assert_eq!((open, kept), (0, 0));
    sim.net.borrow_mut().faults.watches_nothing = false;
    for socket in [listener, datagram] {
        g.close(socket);
    }
    sim.drain();
    sim.w.assert_chunks(id, LAYOUT.chunks);
    assert_eq!(sim.w.engine.guest_sockets(id), 0);
    // Who comes next is served.
    transfer(&mut sim.w, &g, id, 200_000);
}

/// Peers that do not read are connected by the NSM that the guest was moved from: what its process has published there, and nobody took, does not keep it
/// from sending by the next one.
#[test]
fn who_was_moved_away_from_slow_peers_still_sends() {
    let mut sim = Simulation::new(1);
    sim.is_over = true;
    let (id, g) = (sim.tenants[0].id, sim.tenants[0].processes[0].clone());
    sim.w.listen(&g, 80);
    let slow: Vec<u32> = (0..8).map(|_| sim.w.connect(&g, 80)).collect();
    moves::move_guest(&mut sim, id, NsmId(1)).expect("moved");
    sim.w.settle();
    for _ in 0..200 {
        for client in &slow {
            g.send(*client, 0, 8 * CHUNK_SIZE);
        }
        sim.w.settle();
    }
    let s = sim.w.services[1].stats(id.0).expect("it is there");
    assert!(s.chunks_tx > 100, "they stand full: {s:?}");
    sim.w.listen(&g, 81);
    let fresh = sim.w.connect(&g, 81);
    let sent = (0..4).any(|_| {
        let sent = g.send(fresh, 0, 100);
        sim.w.settle();
        sent == 100
    });
    assert!(sent, "{:?}", sim.w.services[1].stats(id.0));
}
