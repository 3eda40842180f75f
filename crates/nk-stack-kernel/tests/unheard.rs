//! What a process does with a socket that it found in the device before the engine came to what the NSM said of it.

#![allow(unreachable_pub, reason = "the shared module serves several tests")]

mod common;

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Host, Id, Process, assert_quiet};
use nk_device::sync::AtomicU32;
use nk_device::{Nqe, Op};
use nk_engine::{GuestId, Limits, Notify, NsmId};

const G: GuestId = GuestId(1);

/// Connects, and accepts from the ring while the engine has not yet come to what the service said of the connection.
fn accept_unheard(host: &mut Host, p: &mut Process, listener: Id, port: u16) -> (TcpStream, Id) {
    let peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let now_ms = host.now_ms();
        host.service.poll(now_ms * 1_000_000, Some(0), &mut || {});
        if let Some(c) = p.try_accept(listener) {
            return (peer, c);
        }
        assert!(Instant::now() < end, "no connection within 10 s");
    }
}

#[test]
fn what_the_service_said_last_is_heard_before_a_request() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    let (mut peer, c) = accept_unheard(&mut host, &mut p, listener, port);
    host.engine.hold(G, c.socket, c.generation, &mut host.log).expect("hold");
    p.close(c);
    host.polls(3);
    p.cell(c).hold(p.row);
    host.engine.unhold(G, c.socket, c.generation, &mut host.log).expect("unhold");
    p.send(&mut host, c, b"held");
    host.polls(3);
    let mut got = [0; 4];
    peer.read_exact(&mut got).expect("read");
    p.close(c);
    // The same for the death of who accepted.
    let w = host.process(1, region.device);
    p.cell(listener).hold(w.row);
    let mut w = Process::new(region.device, w.row, w.qset);
    let (mut peer, _) = accept_unheard(&mut host, &mut w, listener, port);
    host.engine.row_dead(G, w.row, &mut host.log).expect("dead");
    host.polls(5);
    assert_eq!(peer.read(&mut got).expect("fin"), 0, "a killed process closes at once");
    p.close(listener);
    assert_quiet(&mut host, 1);
}

/// Lets the service and the guest act in the middle of a poll of the engine, as an NSM in a process of its own does.
struct Meanwhile<'a> {
    act: Option<Box<dyn FnMut() + 'a>>,
}

impl Notify for Meanwhile<'_> {
    fn doorbell(&mut self, _: GuestId, _: u16) {}
    fn nsm_doorbell(&mut self, _: NsmId) {}
    fn futex_wake(&mut self, _: &AtomicU32, _: u32) {
        if let Some(mut act) = self.act.take() {
            act();
        }
    }
}

#[test]
fn a_connection_is_used_in_the_poll_in_which_it_came() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    // Another guest, of which the service speaks before it comes to the one in question.
    let other = host.add_guest(2, 0, Limits::default());
    let mut o = host.process(2, other.device);
    let (other_listener, other_port) = o.listener(&mut host, 16);
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    host.polls(3);
    // Refused by the engine at once, after it has heard the NSM out: the service acts then.
    let mut refused = Nqe::new(Op::Connect, listener.socket, listener.generation.wrapping_sub(1));
    refused.ticket = 1;
    p.push(refused);
    let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let mut other_peer = TcpStream::connect(("127.0.0.1", other_port)).expect("connect");
    let mut connection = None;
    {
        let (service, now_ms) = (&mut host.service, host.start.elapsed().as_millis() as u64);
        let mut notify = Meanwhile {
            act: Some(Box::new(|| {
                let end = Instant::now() + Duration::from_secs(10);
                while connection.is_none() {
                    service.poll(now_ms * 1_000_000, Some(0), &mut || {});
                    connection = p.try_accept(listener);
                    assert!(Instant::now() < end, "no connection within 10 s");
                }
                let c = connection.expect("accepted");
                // The stack's first word on the new connection, at which the service looks whether there is something to send.
                for _ in 0..5 {
                    service.poll(now_ms * 1_000_000, Some(0), &mut || {});
                }
                p.try_send(c, b"at once").expect("send");
            })),
        };
        host.engine.poll(0, 1024, &mut notify);
        assert!(notify.act.is_none(), "the call was not refused");
    }
    host.polls(3);
    let mut got = [0; 7];
    peer.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    peer.read_exact(&mut got).expect("what was sent at once");
    let c = o.accept(&mut host, other_listener);
    o.send(&mut host, c, b"another");
    host.polls(3);
    other_peer.read_exact(&mut got).expect("the other guest's");
    assert_eq!(&got, b"another");
}
