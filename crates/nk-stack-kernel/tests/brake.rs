//! Peers that do not read: what a guest's sockets hold for them leaves the rest of the pool to its other sockets.

#![allow(unreachable_pub, reason = "the shared module serves several tests")]

mod common;

use std::io::Read;
use std::net::{TcpListener, TcpStream};

use common::{Host, Id, Process, Region, assert_quiet};
use nk_device::cell::SF_TX_BRAKED;
use nk_device::{Nqe, Op, STREAM_SLOTS};
use nk_engine::Limits;
use nk_guestlib::send::SendError;
use nk_servicelib::GuestStats;

/// A ring and more.
static MUCH: [u8; 4 << 20] = [7; 4 << 20];

struct World {
    host: Host,
    listener: TcpListener,
    region: Region,
    p: Process,
}

impl World {
    fn new() -> World {
        let mut host = Host::new();
        let region = host.add_guest(1, 0, Limits::default());
        let p = host.process(1, region.device);
        host.polls(2);
        World { host, listener: TcpListener::bind("127.0.0.1:0").expect("bind"), region, p }
    }

    fn connect(&mut self) -> (Id, TcpStream) {
        let port = self.listener.local_addr().expect("addr").port();
        let id = self.p.connected(&mut self.host, port);
        (id, self.listener.accept().expect("accept").0)
    }

    /// Sends until neither kernel nor ring takes more; how often that was for want of a chunk to the end.
    fn fill(&mut self, id: Id) -> SendError {
        let mut refused = 0;
        loop {
            match self.p.try_send(id, &MUCH) {
                Ok(_) => refused = 0,
                Err(_) if refused < 50 => refused += 1,
                Err(e) => return e,
            }
            self.host.polls(2);
        }
    }

    fn is_braked(&self, id: Id) -> bool {
        self.p.state(id) & SF_TX_BRAKED != 0
    }

    fn stats(&self) -> GuestStats {
        self.host.service.stats(1).expect("guest")
    }

    fn end(mut self, ids: Vec<Id>) {
        for id in ids {
            // Their peers are gone.
            self.p.close(id);
        }
        self.host.polls(10);
        assert_quiet(&mut self.host, 1);
        drop(self.region);
    }
}

/// Reads all that comes, while the guest is served, until the socket is as wanted.
fn read_until(w: &mut World, peer: &mut TcpStream, mut is_there: impl FnMut(&World) -> bool) {
    peer.set_nonblocking(true).expect("nonblocking");
    let mut buf = vec![0; 1 << 20];
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !is_there(w) {
        let _ = peer.read(&mut buf);
        w.host.polls(2);
        assert!(std::time::Instant::now() < end, "{:?}", w.stats());
    }
}

#[test]
fn those_that_hold_some_leave_the_rest_to_others() {
    let mut w = World::new();
    let (mut ids, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let (id, peer) = w.connect();
        assert_eq!(w.fill(id), SendError::WouldBlock, "{:?}", w.stats());
        ids.push(id);
        peers.push(peer);
    }
    assert_eq!(w.p.cell(ids[0]).tx().room(), 0, "a whole ring, as long as there is enough");
    assert!(ids.iter().all(|id| w.is_braked(*id)));
    let held = |id: &Id| STREAM_SLOTS as u32 - w.p.cell(*id).tx().room();
    let few: Vec<u32> = ids[3..].iter().map(held).collect();
    assert!(few.iter().all(|n| *n <= 8), "{few:?}");
    // A process that was made now, and one that had all its chunks before.
    let mut other = w.host.process(1, w.region.device);
    let (fresh, _peer) = w.connect();
    assert_eq!(w.p.try_send(fresh, b"at once"), Ok(7));
    w.host.polls(2);
    let port = w.listener.local_addr().expect("addr").port();
    let another = other.connected(&mut w.host, port);
    assert_eq!(other.try_send(another, b"at once"), Ok(7));
    w.host.polls(2);
    other.close(another);
    drop(peers);
    ids.push(fresh);
    w.end(ids);
}

#[test]
fn who_is_braked_is_told_when_it_may_go_on() {
    let mut w = World::new();
    let (first, mut first_peer) = w.connect();
    let (second, second_peer) = w.connect();
    let (third, mut third_peer) = w.connect();
    w.fill(first);
    w.fill(second);
    assert_eq!(w.fill(third), SendError::WouldBlock);
    assert!(w.is_braked(third));
    w.p.cell(third).watch(w.p.qset, 0);
    w.p.events();
    // Its own peer reads.
    read_until(&mut w, &mut third_peer, |w| !w.is_braked(third));
    assert!(w.stats().chunks_tx >= 96, "the pool is as short as before");
    let told = |p: &mut Process| {
        let events = p.events();
        events.iter().any(|e| e.socket == third.socket && e.op == Op::Event as u8)
    };
    w.host.polls(2);
    assert!(told(&mut w.p));
    assert_eq!(w.fill(third), SendError::WouldBlock);
    assert!(w.is_braked(third));
    w.p.events();
    // Another's peer reads.
    read_until(&mut w, &mut first_peer, |w| !w.is_braked(third));
    w.host.polls(2);
    assert!(told(&mut w.p));
    assert!(w.p.try_send(third, &MUCH).is_ok_and(|n| n > 0));
    drop((first_peer, second_peer, third_peer));
    w.end(vec![first, second, third]);
}

#[test]
fn what_is_over_is_braked_no_more() {
    let mut w = World::new();
    let (first, first_peer) = w.connect();
    let (second, second_peer) = w.connect();
    let (third, third_peer) = w.connect();
    for id in [first, second, third] {
        w.fill(id);
    }
    assert!(w.is_braked(third));
    let disconnect = Nqe::new(Op::Disconnect, third.socket, third.generation);
    w.p.call(&mut w.host, disconnect).expect("disconnect");
    w.host.polls(2);
    assert!(!w.is_braked(third));
    drop((first_peer, second_peer, third_peer));
    w.end(vec![first, second, third]);
}
