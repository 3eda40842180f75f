//! Rates of a guest, by a clock that the test moves: what is over them waits, nothing is lost, and the guest need not ask again.

#![allow(unreachable_pub, reason = "the shared module serves several tests")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::{Host, Id, Process, assert_quiet};
use nk_device::bucket::Rate;
use nk_device::cell::{SF_CONNECTED, SF_EOF};
use nk_device::sync::Ordering;
use nk_device::{Addr, Nqe, Op};
use nk_engine::{GuestId, Limits};
use nk_guestlib::recv::Received;
use nk_servicelib::GuestLimits;

const GUEST: GuestId = GuestId(1);

fn host(limits: Limits, bytes: GuestLimits) -> (Host, common::Region, Process) {
    let mut host = Host::new();
    host.at_ms = Some(1);
    let region = host.add_guest(1, 0, limits);
    host.service.set_limits(1, &bytes);
    let p = host.process(1, region.device);
    host.polls(2);
    (host, region, p)
}

/// Polls for a while of the clock on the wall, while the guest's stands still.
fn settle(host: &mut Host) {
    for _ in 0..200 {
        host.poll();
        std::thread::sleep(Duration::from_micros(50));
    }
}

fn pass_ms(host: &mut Host, ms: u64) {
    host.skip_ms += ms;
    settle(host);
}

fn due_ms(host: &mut Host) -> Option<u64> {
    let now = host.now_ms() * 1_000_000;
    let (e, s) = (
        host.engine.poll(now, 1024, &mut host.log).due_ns,
        host.service.poll(now, Some(0), &mut || {}).due_ns,
    );
    e.into_iter().chain(s).min().map(|ns| ns.div_ceil(1_000_000))
}

fn drain(peer: &mut TcpStream) -> usize {
    peer.set_nonblocking(true).expect("nonblocking");
    let (mut n, mut buf) = (0, vec![0; 1 << 16]);
    loop {
        match peer.read(&mut buf) {
            Ok(0) => return n,
            Ok(k) => n += k,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return n,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn bytes_out_wait_for_the_rate_and_need_no_second_kick() {
    let out = Some(Rate { per_s: 1_000_000, burst: 20_000 });
    let (mut host, _region, mut p) =
        host(Limits::default(), GuestLimits { out, ..GuestLimits::default() });
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let c = p.connected(&mut host, server.local_addr().expect("addr").port());
    let (mut peer, _) = server.accept().expect("accept");
    let data = vec![7u8; 100_000];
    assert_eq!(p.try_send(c, &data), Ok(data.len()), "send does not wait");
    settle(&mut host);
    assert_eq!(drain(&mut peer), 20_000, "the burst");
    let due = due_ms(&mut host).expect("a time");
    assert_eq!(due, host.now_ms() + 2, "2000 bytes are a lot at this rate");
    pass_ms(&mut host, 1);
    assert_eq!(drain(&mut peer), 0, "1000 bytes are not worth a call");
    pass_ms(&mut host, 9);
    assert_eq!(drain(&mut peer), 10_000);
    // A close does not lose what waits.
    p.close(c);
    pass_ms(&mut host, 20);
    assert_eq!(drain(&mut peer), 20_000);
    for _ in 0..60 {
        pass_ms(&mut host, 1);
    }
    assert_eq!(drain(&mut peer), 50_000);
    assert_quiet(&mut host, 1);
    assert_eq!(due_ms(&mut host), None, "no timer runs when nothing waits");
    let s = host.service.stats(1).expect("guest");
    assert!(s.out_held > 0 && s.out_held_ms == 80, "{s:?}");
}

#[test]
fn a_limit_that_goes_lets_all_go() {
    let out = Some(Rate { per_s: 1_000, burst: 1_000 });
    let (mut host, _region, mut p) =
        host(Limits::default(), GuestLimits { out, ..GuestLimits::default() });
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let c = p.connected(&mut host, server.local_addr().expect("addr").port());
    let (mut peer, _) = server.accept().expect("accept");
    assert_eq!(p.try_send(c, &[1; 50_000]), Ok(50_000));
    settle(&mut host);
    assert_eq!(drain(&mut peer), 1_000);
    host.service.set_limits(1, &GuestLimits::default());
    settle(&mut host);
    assert_eq!(drain(&mut peer), 49_000);
    p.close(c);
    assert_quiet(&mut host, 1);
}

#[test]
fn bytes_in_are_left_with_the_stack() {
    let input = Some(Rate { per_s: 1_000_000, burst: 30_000 });
    let (mut host, _region, mut p) =
        host(Limits::default(), GuestLimits { input, ..GuestLimits::default() });
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let c = p.connected(&mut host, server.local_addr().expect("addr").port());
    let (mut peer, _) = server.accept().expect("accept");
    peer.write_all(&[9; 100_000]).expect("write");
    drop(peer);
    let mut got = 0;
    let mut take = |host: &mut Host, p: &mut Process| {
        settle(host);
        let before = got;
        while let (Received::Bytes { count, .. }, _) = p.try_recv(c, 1 << 20) {
            got += count;
        }
        got - before
    };
    assert_eq!(take(&mut host, &mut p), 30_000, "the burst");
    host.skip_ms += 10;
    assert_eq!(take(&mut host, &mut p), 10_000);
    assert_eq!(p.state(c) & SF_EOF, 0);
    // More time than a burst brings no more than a burst.
    host.skip_ms += 1_000;
    assert_eq!(take(&mut host, &mut p), 30_000);
    host.skip_ms += 30;
    assert_eq!(take(&mut host, &mut p), 30_000);
    host.skip_ms += 2;
    assert_eq!(take(&mut host, &mut p), 0);
    assert_ne!(p.state(c) & SF_EOF, 0, "the end comes after the bytes");
    let s = host.service.stats(1).expect("guest");
    assert!(s.in_held >= 4 && s.bytes_received == 100_000, "{s:?}");
    p.close(c);
    assert_quiet(&mut host, 1);
}

#[test]
fn datagrams_out_wait_whole() {
    let out = Some(Rate { per_s: 100_000, burst: 2_000 });
    let (mut host, region, mut p) =
        host(Limits::default(), GuestLimits { out, ..GuestLimits::default() });
    let server = UdpSocket::bind("127.0.0.1:0").expect("bind");
    server.set_nonblocking(true).expect("nonblocking");
    let to = Addr::v4([127, 0, 0, 1], server.local_addr().expect("addr").port());
    let row = region.device.row(p.row).expect("row");
    let socket = row.id_grants.pop().expect("an id");
    let cell = region.device.cell(socket).expect("cell");
    let id = Id { socket, generation: cell.generation.load(Ordering::Acquire) as u16 };
    cell.kind.store(2 | 2 << 16, Ordering::Relaxed);
    cell.hold(p.row);
    let mut nqe = Nqe::new(Op::Socket, id.socket, id.generation);
    nqe.op_data = 2 | 2 << 16;
    p.push(nqe);
    for _ in 0..4 {
        let chunk = row.chunk_grants.pop().expect("a chunk");
        let header = nk_device::datagram::Header {
            len: 900,
            flags: nk_device::datagram::DF_PEER,
            peer: to,
            ..nk_device::datagram::Header::default()
        };
        let span = nk_device::datagram::Header::span_for(chunk, 900);
        region.device.put_header(span, &header);
        cell.tx().publish(span.to_payload()).expect("room");
    }
    p.push(Nqe::new(Op::Send, id.socket, id.generation));
    let count = |host: &mut Host| {
        settle(host);
        let mut buf = [0; 2000];
        let mut n = 0;
        while server.recv(&mut buf).is_ok_and(|len| len == 900) {
            n += 1;
        }
        n
    };
    assert_eq!(count(&mut host), 2, "the burst has two whole ones");
    host.skip_ms += 6;
    assert_eq!(count(&mut host), 0);
    host.skip_ms += 9;
    assert_eq!(count(&mut host), 1);
    host.skip_ms += 30;
    assert_eq!(count(&mut host), 1);
    p.close(id);
    assert_quiet(&mut host, 1);
}

/// As long as the ring names them: another service of the guest looks there.
#[test]
fn what_a_bad_datagram_names_is_free_only_when_it_is_off_the_ring() {
    use nk_device::datagram::{DF_PEER, FIRST_BYTES, Header};
    let out = Some(Rate { per_s: 1_000, burst: 900 });
    let (mut host, region, mut p) =
        host(Limits::default(), GuestLimits { out, ..GuestLimits::default() });
    let server = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let peer = Addr::v4([127, 0, 0, 1], server.local_addr().expect("addr").port());
    let id = p.datagram(2);
    let row = region.device.row(p.row).expect("row");
    let publish = |len: usize, more: &[u32]| {
        let chunk = row.chunk_grants.pop().expect("a chunk");
        let mut h = Header { len: len as u32, flags: DF_PEER, peer, ..Header::default() };
        h.more[..more.len()].copy_from_slice(more);
        let span = Header::span_for(chunk, len);
        region.device.put_header(span, &h);
        p.cell(id).tx().publish(span.to_payload()).expect("room");
        chunk
    };
    // One goes, one is held back, and behind it is one whose third chunk nobody was leased.
    publish(900, &[]);
    publish(900, &[]);
    let leased = row.chunk_grants.pop().expect("a chunk");
    publish(FIRST_BYTES + nk_device::CHUNK_SIZE + 1, &[leased, region.device.layout().chunks - 1]);
    let before = host.service.stats(1).expect("guest").chunks_free;
    p.push(Nqe::new(Op::Send, id.socket, id.generation));
    settle(&mut host);
    let stats = host.service.stats(1).expect("guest");
    assert_eq!((stats.chunks_tx, stats.violations), (3, 1), "{stats:?}");
    host.skip_ms += 1_000;
    settle(&mut host);
    let stats = host.service.stats(1).expect("guest");
    assert_eq!((stats.chunks_tx, stats.violations), (0, 1), "{stats:?}");
    assert!(stats.chunks_free + stats.chunks_leased >= before, "{stats:?}");
    p.close(id);
    assert_quiet(&mut host, 1);
}

#[test]
fn elements_wait_on_their_ring() {
    let nqes = Some(Rate { per_s: 1_000, burst: 10 });
    let (mut host, region, p) = host(Limits { nqes, ..Limits::default() }, GuestLimits::default());
    settle(&mut host);
    let taken = |host: &Host| host.engine.stats(Some(GUEST)).from_guest.iter().sum::<u64>();
    let before = taken(&host);
    for _ in 0..40 {
        // Of no socket: a violation each, and each an element all the same.
        p.push(Nqe::new(Op::Refill, 0, 0));
    }
    settle(&mut host);
    assert_eq!(taken(&host) - before, 10);
    assert!(host.engine.prepare_sleep(), "what waits for its time is no reason to stay awake");
    assert_eq!(
        region.device.header().engine_sleeping.load(Ordering::SeqCst),
        0,
        "no bell is asked for"
    );
    host.engine.finish_sleep();
    assert_eq!(due_ms(&mut host), Some(host.now_ms() + 1));
    pass_ms(&mut host, 5);
    assert_eq!(taken(&host) - before, 15);
    host.engine.set_limits(GUEST, Limits::default()).expect("guest");
    settle(&mut host);
    assert_eq!(taken(&host) - before, 40);
    assert_eq!(due_ms(&mut host), None);
    assert!(host.engine.stats(Some(GUEST)).nqes_held >= 1);
}

#[test]
fn what_is_costly_is_few_before_the_nsm_and_by_turns() {
    let (mut host, _region, mut p) = host(Limits::default(), GuestLimits::default());
    let other = host.add_guest(2, 0, Limits::default());
    let mut q = host.process(2, other.device);
    settle(&mut host);
    let nsm = host.nsm.device;
    let ahead = || {
        let q = nsm.qset(0).expect("qset");
        let [tail, head] = [&q.job_tail, &q.job_head].map(|w| w.load(Ordering::SeqCst));
        tail.wrapping_sub(head)
    };
    let sockets = |host: &Host, guest: u16| {
        host.engine.stats(Some(GuestId(guest))).from_guest[Op::Socket as usize]
    };
    let many: Vec<Id> = (0..24).map(|_| p.socket(2)).collect();
    let one = q.socket(2);
    for _ in 0..3 {
        host.engine.poll(0, 1024, &mut host.log);
        assert_eq!(ahead(), 8, "the rest waits on its ring");
    }
    assert_eq!(sockets(&host, 2), 1, "who asks for little does not wait for who asks for much");
    assert!(host.engine.prepare_sleep(), "what waits for the NSM is no reason to stay awake");
    let asked = nsm.header().engine_sleeping.load(Ordering::SeqCst);
    assert_eq!(asked, 2, "the NSM is to say when it has taken some");
    let mut rang = false;
    host.service.poll(0, Some(0), &mut || rang = true);
    assert!(rang);
    host.engine.finish_sleep();
    host.until("sockets", |host| (sockets(host, 1) == 24).then_some(()));
    many.iter().for_each(|id| p.close(*id));
    q.close(one);
    assert_quiet(&mut host, 1);
    assert_quiet(&mut host, 2);
}

#[test]
fn connects_wait_and_keep_their_order() {
    let connections = Some(Rate { per_s: 100, burst: 2 });
    let (mut host, _region, mut p) =
        host(Limits { connections, ..Limits::default() }, GuestLimits::default());
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    server.set_nonblocking(true).expect("nonblocking");
    let to = Addr::v4([127, 0, 0, 1], server.local_addr().expect("addr").port());
    let ids: Vec<Id> = (0..5).map(|_| p.socket(2)).collect();
    for id in &ids {
        p.push(Process::with_addr(Op::Connect, *id, &to));
    }
    settle(&mut host);
    let connected =
        |p: &Process| ids.iter().map(|id| p.state(*id) & SF_CONNECTED != 0).collect::<Vec<_>>();
    assert_eq!(connected(&p), [true, true, false, false, false]);
    // A second connect of one that waits, a shutdown that comes after it, and a close of another.
    let again = p.call(&mut host, Process::with_addr(Op::Connect, ids[2], &to));
    assert_eq!(again.err(), Some(libc::EALREADY));
    p.shutdown_wr(ids[2]);
    p.close(ids[3]);
    settle(&mut host);
    pass_ms(&mut host, 10);
    assert_eq!(connected(&p), [true, true, true, false, false]);
    pass_ms(&mut host, 10);
    assert_eq!(connected(&p), [true, true, true, false, true]);
    let peers: Vec<TcpStream> = std::iter::from_fn(|| server.accept().ok().map(|a| a.0)).collect();
    assert_eq!(peers.len(), 4);
    assert_eq!(due_ms(&mut host), None);
    let s = host.engine.stats(Some(GUEST));
    assert_eq!(s.connects_held, 3);
    ids.iter().enumerate().filter(|(i, _)| *i != 3).for_each(|(_, id)| p.close(*id));
    assert_quiet(&mut host, 1);
}

#[test]
fn accepts_wait_for_the_rate() {
    let connections = Some(Rate { per_s: 100, burst: 3 });
    let (mut host, _region, mut p) =
        host(Limits { connections, ..Limits::default() }, GuestLimits::default());
    let (listener, port) = p.listener(&mut host, 64);
    settle(&mut host);
    assert_eq!(due_ms(&mut host), None, "a listener to whom nobody comes needs no timer");
    let peers: Vec<TcpStream> =
        (0..8).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("connect")).collect();
    settle(&mut host);
    let mut got = Vec::new();
    let mut take = |host: &mut Host, p: &mut Process| {
        settle(host);
        let before = got.len();
        got.extend(std::iter::from_fn(|| p.try_accept(listener)));
        got.len() - before
    };
    assert_eq!(take(&mut host, &mut p), 3);
    host.skip_ms += 10;
    assert_eq!(take(&mut host, &mut p), 1);
    for _ in 0..2 {
        host.skip_ms += 20;
        assert_eq!(take(&mut host, &mut p), 2);
    }
    host.skip_ms += 1_000;
    assert_eq!(take(&mut host, &mut p), 0);
    assert_eq!(due_ms(&mut host), None);
    assert!(host.engine.stats(Some(GUEST)).accepts_held >= 1);
    drop(peers);
    got.iter().for_each(|id| p.close(*id));
    p.close(listener);
    assert_quiet(&mut host, 1);
}

#[test]
fn counts_follow_at_run_time() {
    let (mut host, region, mut p) = host(Limits::default(), GuestLimits::default());
    host.engine.set_limits(GUEST, Limits { rows_max: 1, ..Limits::default() }).expect("guest");
    assert!(host.engine.add_row(GUEST, 1).is_err(), "one process is all");
    host.engine.set_limits(GUEST, Limits { rows_max: 2, ..Limits::default() }).expect("guest");
    host.engine.add_row(GUEST, 1).expect("two are allowed");
    host.service.set_limits(1, &GuestLimits { chunks_max: 8, ..GuestLimits::default() });
    let row = region.device.row(p.row).expect("row");
    let mut chunks = 0;
    for _ in 0..300 {
        while row.chunk_grants.pop().is_some() {
            chunks += 1;
        }
        p.push(Nqe::new(Op::Refill, 0, 0));
        host.polls(2);
    }
    let s = host.service.stats(1).expect("guest");
    assert!(chunks >= 8, "{chunks}");
    assert!(s.chunks_leased > 8, "what was leased before is not taken back: {s:?}");
    assert_eq!(s.chunks_free, 0, "and no more is given: {s:?}");
    let _ = p.events();
}
