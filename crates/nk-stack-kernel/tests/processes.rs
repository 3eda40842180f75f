//! Several processes of a guest, several guests, deaths.

#![allow(unreachable_pub, reason = "the shared module serves several tests")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use common::{Host, NSM, Process, assert_quiet};
use nk_device::cell::{SF_DEAD, SF_LISTENING};
use nk_device::stream::Span;
use nk_device::sync::Ordering;
use nk_device::{Addr, Layout, Nqe, Op};
use nk_engine::{AdoptedListener, AdoptedRow, Adoption, ControlError, Engine, GuestId, Limits};
use nk_servicelib::Service;
use nk_stack_kernel::{KernelStack, OwnNamespace};

const G: GuestId = GuestId(1);

fn reset_seen(s: &mut TcpStream) -> bool {
    s.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    matches!(s.read(&mut [0; 8]), Err(e) if e.raw_os_error() == Some(libc::ECONNRESET))
}

#[test]
fn a_killed_process_leaves_nothing_and_shared_sockets_live_on() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    // A worker that shares the listener.
    let mut w = host.process(1, region.device);
    w.cell(listener).hold(w.row);
    let mut mine = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let c = w.accept(&mut host, listener);
    w.send(&mut host, c, b"hi");
    // Two more wait; the worker claimed one and was killed before it held it.
    let mut claimed = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    host.polls(5);
    let ring = nk_device::stream::read_slot(&p.cell(listener).rx_slots, 1).expect("queued");
    let q = nk_device::stream::AcceptedSocket::from_payload(ring);
    assert!(region.device.cell(q.socket).expect("cell").claim(q.generation, w.row));
    // It also took chunks, and filled a slot that it did not publish.
    let chunk = region.device.row(w.row).expect("row").chunk_grants.pop().expect("chunk");
    region.device.row(w.row).expect("row").chunk_grants.pop().expect("chunk");
    let fd_shared = p.connected(&mut host, port);
    let served = p.accept(&mut host, listener);
    let cell = p.cell(fd_shared);
    cell.hold(w.row);
    let span = Span { chunk, offset: 0, len: 3 }.to_payload();
    cell.tx_slots[0].store(1 << 56 | span, Ordering::SeqCst);
    host.engine.row_dead(G, w.row, &mut host.log).expect("dead");
    host.polls(5);
    let mut two = [0; 2];
    mine.read_exact(&mut two).expect("read");
    assert_eq!(mine.read(&mut two).expect("fin"), 0, "a killed process closes");
    assert_eq!(claimed.read(&mut two).expect("fin"), 0, "also what it had just claimed");
    // The stopped publication was finished, with the chunk that only it names.
    assert_eq!(p.recv(&mut host, served, 10).expect("recv").len(), 3);
    // The listener goes on in the other process.
    let mut again = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let c = p.accept(&mut host, listener);
    again.write_all(b"x").expect("write");
    assert_eq!(p.recv(&mut host, c, 10), Ok(b"x".to_vec()));
    host.engine.row_dead(G, p.row, &mut host.log).expect("dead");
    assert_quiet(&mut host, 1);
    let s = host.service.stats(1).expect("guest");
    assert_eq!((s.chunks_leased, s.chunks_free), (0, 256), "every lease came back");
    assert!(host.engine.stats(None).ids_granted <= 64, "the NSM's own are left");
}

#[test]
fn queued_connections_end_with_their_listener() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    let mut peers: Vec<_> =
        (0..3).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("connect")).collect();
    host.until("accepted", |h| (h.engine.guest_sockets(G) == 4).then_some(()));
    let kept = p.accept(&mut host, listener);
    p.close(listener);
    host.polls(5);
    assert!(reset_seen(&mut peers[1]) && reset_seen(&mut peers[2]));
    peers[0].write_all(b"still").expect("write");
    assert_eq!(p.recv(&mut host, kept, 10), Ok(b"still".to_vec()));
    p.close(kept);
    assert_quiet(&mut host, 1);
}

#[test]
fn the_backlog_bounds_what_is_accepted_ahead() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 4);
    let _peers: Vec<_> =
        (0..5).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("connect")).collect();
    host.polls(20);
    assert_eq!(host.engine.guest_sockets(G), 1 + 4);
    let mut got = Vec::new();
    for _ in 0..5 {
        got.push(p.accept(&mut host, listener));
    }
    assert!(p.try_accept(listener).is_none());
    for c in got {
        p.close(c);
    }
    p.close(listener);
    assert_quiet(&mut host, 1);
}

/// Sets an option of SOL_SOCKET to 1: SO_REUSEADDR is 2, SO_REUSEPORT 15.
fn switch_on(p: &mut Process, host: &mut Host, id: common::Id, name: u16) {
    let mut nqe = Nqe::new(Op::SetSockOpt, id.socket, id.generation);
    nqe.size = nk_device::nqe::pack_option(1, name, 4);
    nqe.op_data = 1;
    p.call(host, nqe).expect("setsockopt");
}

#[test]
fn one_guest_does_not_get_anothers_port() {
    let mut host = Host::new();
    let a = host.add_guest(1, 7, Limits::default());
    let b = host.add_guest(2, 7, Limits::default());
    let mut pa = host.process(1, a.device);
    let mut pb = host.process(2, b.device);
    let reuse = |p: &mut Process, host: &mut Host, id| switch_on(p, host, id, 15);
    let first = pa.socket(2);
    reuse(&mut pa, &mut host, first);
    let at = pa.bind(&mut host, first, &Addr::v4([127, 0, 0, 1], 0)).expect("bind");
    let second = pa.socket(2);
    reuse(&mut pa, &mut host, second);
    pa.bind(&mut host, second, &at).expect("REUSEPORT holds within a guest");
    let thief = pb.socket(2);
    reuse(&mut pb, &mut host, thief);
    assert_eq!(pb.bind(&mut host, thief, &at), Err(libc::EADDRINUSE));
    assert_eq!(pb.bind(&mut host, thief, &Addr::v4([0; 4], at.port)), Err(libc::EADDRINUSE));
    pa.close(first);
    pa.close(second);
    assert_quiet(&mut host, 1);
    pb.bind(&mut host, thief, &at).expect("free again");
    pb.close(thief);
    assert_quiet(&mut host, 2);
}

/// The kernel chooses one of the ports for a datagram socket, and lets sockets with SO_REUSEADDR share it.
#[test]
fn one_guest_is_not_given_anothers_port() {
    // SAFETY: a namespace for this thread alone; the harness opens its sockets from it.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "run as root");
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    std::fs::write(range, "40000 40000").expect("one port");
    let mut host = Host::new();
    let a = host.add_guest(1, 7, Limits::default());
    let b = host.add_guest(2, 7, Limits::default());
    let mut pa = host.process(1, a.device);
    let mut pb = host.process(2, b.device);
    let reuse = |p: &mut Process, host: &mut Host, id| switch_on(p, host, id, 2);
    let owner = pa.datagram(2);
    reuse(&mut pa, &mut host, owner);
    let at = pa.bind(&mut host, owner, &Addr::v4([0; 4], 0)).expect("bind");
    assert_eq!(at.port, 40000);
    let thief = pb.datagram(2);
    reuse(&mut pb, &mut host, thief);
    assert_eq!(pb.bind(&mut host, thief, &Addr::v4([0; 4], 0)), Err(libc::EADDRINUSE));
    pb.close(thief);
    assert_quiet(&mut host, 2);
    pa.close(owner);
    assert_quiet(&mut host, 1);
    let next = pb.datagram(2);
    assert_eq!(pb.bind(&mut host, next, &Addr::v4([0; 4], 0)).expect("free again"), at);
    pb.close(next);
    assert_quiet(&mut host, 2);
}

#[test]
fn ids_run_out_and_come_back() {
    let mut host = Host::new();
    let limits = Limits { sockets_max: 40, ..Limits::default() };
    let region = host.add_guest(1, 0, limits);
    let mut p = host.process(1, region.device);
    let mut ids = Vec::new();
    for _ in 0..40 {
        ids.push(p.socket(2));
        host.polls(1);
    }
    assert_eq!(region.device.row(p.row).expect("row").id_grants.available(), 0);
    let wake = region.device.row(p.row).expect("row").grant_wake.load(Ordering::SeqCst);
    p.push(Nqe::new(Op::Refill, 0, 0));
    host.polls(2);
    let after = region.device.row(p.row).expect("row").grant_wake.load(Ordering::SeqCst);
    assert_ne!(wake, after, "who waits learns that there is none");
    p.close(ids.pop().expect("one"));
    host.polls(4);
    ids.push(p.socket(2));
    for id in ids {
        p.close(id);
    }
    assert_quiet(&mut host, 1);
}

#[test]
fn an_exclusive_watcher_is_rung_in_turn_and_others_always() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    let qsets: Vec<u16> = (0..3).map(|_| host.engine.add_qset(G, p.row).expect("qset")).collect();
    let flags = nk_device::cell::WATCH_EXCLUSIVE;
    for (i, q) in qsets.iter().enumerate() {
        p.cell(listener).watch(*q, if i < 2 { flags } else { 0 });
        region.device.qset(*q).expect("qset").sleeping.store(1, Ordering::SeqCst);
    }
    let mut rung = Vec::new();
    let mut peers = Vec::new();
    for _ in 0..4 {
        host.log.doorbells.clear();
        peers.push(TcpStream::connect(("127.0.0.1", port)).expect("connect"));
        host.until("doorbell", |h| (!h.log.doorbells.is_empty()).then_some(()));
        let bells: Vec<u16> = host.log.doorbells.iter().map(|(_, q)| *q).collect();
        assert!(bells.contains(&qsets[2]), "{bells:?}");
        let exclusive: Vec<u16> = bells.into_iter().filter(|q| *q != qsets[2]).collect();
        assert_eq!(exclusive.len(), 1, "one of the exclusive ones");
        for q in &exclusive {
            // It comes and reads, and sleeps again.
            let shared = region.device.qset(*q).expect("qset");
            let tail = shared.receive_tail.load(Ordering::SeqCst);
            shared.receive_head.store(tail, Ordering::SeqCst);
        }
        rung.extend(exclusive);
    }
    assert_eq!(rung, [qsets[0], qsets[1], qsets[0], qsets[1]]);
    // Dropping a queue set removes its watches.
    host.engine.drop_qset(G, p.row, qsets[0], &mut host.log).expect("drop");
    let watched = |q: u16| {
        p.cell(listener).watch.iter().any(|w| {
            w.load(Ordering::SeqCst) & nk_device::cell::WATCH_QSET_MASK == u32::from(q) + 1
        })
    };
    assert!(!watched(qsets[0]) && watched(qsets[1]));
    host.engine.row_dead(G, p.row, &mut host.log).expect("dead");
    assert_quiet(&mut host, 1);
}

#[test]
fn exec_keeps_sockets_and_returns_what_the_old_image_had() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    let row = region.device.row(p.row).expect("row");
    for _ in 0..5 {
        row.chunk_grants.pop().expect("chunk");
        row.id_grants.pop().expect("id");
    }
    let before = host.service.stats(1).expect("guest").chunks_leased;
    let qset = host.engine.row_exec_kept(G, p.row, &mut host.log).expect("exec");
    assert_ne!(qset, p.qset);
    host.polls(2);
    assert_eq!(host.service.stats(1).expect("guest").chunks_leased, before - 5);
    let mut p = Process::new(region.device, p.row, qset);
    let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let c = p.accept(&mut host, listener);
    p.send(&mut host, c, b"new image");
    host.polls(2);
    let mut got = [0; 9];
    peer.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"new image");
    host.engine.row_dead(G, p.row, &mut host.log).expect("dead");
    assert_eq!(host.engine.row_dead(G, p.row, &mut host.log), Err(ControlError::Row));
    assert_quiet(&mut host, 1);
    assert_eq!(host.service.stats(1).expect("guest").chunks_leased, 0);
}

#[test]
fn the_hosts_own_hold_keeps_a_socket() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, _) = p.listener(&mut host, 16);
    host.engine.hold(G, listener.socket, listener.generation, &mut host.log).expect("hold");
    p.close(listener);
    host.polls(3);
    assert_eq!(host.engine.guest_sockets(G), 1);
    let g = listener.generation;
    host.engine.unhold(G, listener.socket, g, &mut host.log).expect("unhold");
    assert_quiet(&mut host, 1);
    let gone = host.engine.hold(G, listener.socket, g, &mut host.log);
    assert_eq!(gone, Err(ControlError::Socket));
}

fn new_service(host: &Host) -> Service<KernelStack> {
    let stack = KernelStack::new(Box::new(OwnNamespace), None).expect("stack");
    Service::new(stack, host.nsm.device)
}

#[test]
fn after_the_nsms_death_connections_are_reset_and_listeners_come_back() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    let kept = kept_listener(&host, port);
    let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let c = p.accept(&mut host, listener);
    let idle = p.socket(2);
    host.polls(2);
    host.engine.nsm_dead(NSM, &mut host.log).expect("dead");
    // The old service goes with all its descriptors; the keeper's stays.
    host.service = new_service(&host);
    assert_eq!(p.recv(&mut host, c, 10), Err(libc::ECONNRESET));
    assert_ne!(p.state(c) & SF_DEAD, 0);
    let _ = peer.read(&mut [0; 8]);
    let device = host.nsm.device;
    device.format(0);
    let listeners = host.engine.nsm_back(NSM, device).expect("back");
    host.service = new_service(&host);
    host.service.add_guest(Host::pool(&region, 1, 0));
    assert_eq!(listeners.len(), 1);
    let (g, l) = listeners[0];
    assert_eq!(
        (g, l.socket, l.generation, l.backlog),
        (G, listener.socket, listener.generation, 16)
    );
    let key = nk_servicelib::Key { guest: 1, socket: l.socket, generation: l.generation };
    host.service.adopt_listener(key, kept, l.backlog).expect("adopt");
    let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let c2 = p.accept(&mut host, listener);
    peer.write_all(b"again").expect("write");
    assert_eq!(p.recv(&mut host, c2, 10), Ok(b"again".to_vec()));
    // A socket that was only made lives on too.
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let to = Addr::v4([127, 0, 0, 1], server.local_addr().expect("addr").port());
    p.connect(&mut host, idle, &to).expect("connect");
    for id in [c, c2, idle, listener] {
        p.close(id);
    }
    assert_quiet(&mut host, 1);
}

/// What a keeper would have: a duplicate of the listener's descriptor.
fn kept_listener(_host: &Host, port: u16) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    for fd in 3..512 {
        // SAFETY: only asks about, and duplicates, a descriptor of this process; the duplicate is ours.
        unsafe {
            let d = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3);
            if d < 0 {
                continue;
            }
            let l = TcpListener::from_raw_fd(d);
            let listens = {
                let mut on = 0i32;
                let mut len = 4;
                libc::getsockopt(
                    d,
                    libc::SOL_SOCKET,
                    libc::SO_ACCEPTCONN,
                    (&raw mut on).cast(),
                    &raw mut len,
                ) == 0
                    && on == 1
            };
            if listens && l.local_addr().is_ok_and(|a| a.port() == port) {
                return l.into();
            }
        }
    }
    panic!("no listener on {port}");
}

#[test]
fn another_engine_adopts_a_guest() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    let kept = kept_listener(&host, port);
    let peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let c = p.accept(&mut host, listener);
    let _queued = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let fresh = p.socket(2);
    host.polls(5);
    let local = p.cell(listener).local.load();
    let epoch = region.device.header().epoch.load(Ordering::SeqCst);
    // The daemon dies: engine and service are gone, the device and the keeper's descriptors stay.
    host.nsm = common::Region::new(Layout::NSM, 0);
    host.engine = Engine::new();
    host.engine.add_nsm(NSM, host.nsm.device).expect("nsm");
    host.service = new_service(&host);
    drop(peer);
    host.service.add_guest(Host::pool(&region, 1, 0));
    let adoption = Adoption {
        rows: vec![AdoptedRow { row: p.row, pid: 1, qsets: vec![p.qset] }],
        listeners: vec![AdoptedListener {
            socket: listener.socket,
            generation: listener.generation,
            local,
            backlog: 16,
        }],
        holds: Vec::new(),
        kept: None,
    };
    let setup = Host::setup(&region, 1, 0, Limits::default());
    host.engine.adopt_guest(setup, &adoption, &mut host.log).expect("adopt");
    assert_eq!(region.device.header().epoch.load(Ordering::SeqCst), epoch + 1);
    let key =
        nk_servicelib::Key { guest: 1, socket: listener.socket, generation: listener.generation };
    host.service.adopt_listener(key, kept, 16).expect("adopt");
    assert_eq!(p.recv(&mut host, c, 10), Err(libc::ECONNRESET));
    assert_ne!(p.state(listener) & SF_LISTENING, 0);
    let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let c2 = p.accept(&mut host, listener);
    peer.write_all(b"new").expect("write");
    assert_eq!(p.recv(&mut host, c2, 10), Ok(b"new".to_vec()));
    p.send(&mut host, c2, b"answer");
    host.polls(3);
    let mut got = [0; 6];
    peer.read_exact(&mut got).expect("read");
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let to = Addr::v4([127, 0, 0, 1], server.local_addr().expect("addr").port());
    p.connect(&mut host, fresh, &to).expect("connect");
    // New sockets get ids that nobody has.
    let more = p.socket(2);
    assert!(![listener.socket, c.socket, c2.socket, fresh.socket].contains(&more.socket));
    for id in [c, c2, fresh, more, listener] {
        p.close(id);
    }
    assert_quiet(&mut host, 1);
    host.engine.row_dead(G, p.row, &mut host.log).expect("dead");
    host.polls(2);
    assert_eq!(host.service.stats(1).expect("guest").chunks_leased, 0);
}

#[test]
fn a_guest_that_was_idle_for_long_dozes_until_it_rings() {
    let mut host = Host::new();
    let idle = host.add_guest(1, 0, Limits::default());
    let busy = host.add_guest(2, 0, Limits::default());
    let mut pi = host.process(1, idle.device);
    let mut pb = host.process(2, busy.device);
    let listener = pi.socket(2);
    pi.bind(&mut host, listener, &Addr::v4([127, 0, 0, 1], 0)).expect("bind");
    let at = pi.listen(&mut host, listener, 4).expect("listen");
    let asleep = |r: &common::Region| r.device.header().engine_sleeping.load(Ordering::SeqCst) != 0;
    for _ in 0..600 {
        // What is always busy: an element in each poll.
        let id = pb.socket(2);
        pb.close(id);
        host.poll();
        host.engine.doze();
    }
    assert!(asleep(&idle) && !asleep(&busy));
    // What comes for it reaches it all the same.
    let c = pb.connected(&mut host, at.port);
    let accepted = host.until("the connection", |_| pi.try_accept(listener));
    assert!(asleep(&idle), "nothing of its own was done for it");
    // Its own elements are not looked for before it rings.
    pi.close(accepted);
    host.polls(5);
    assert_ne!(host.engine.guest_sockets(GuestId(1)), 1);
    host.engine.rouse(GuestId(1));
    assert!(!asleep(&idle));
    host.until("the close", |h| (h.engine.guest_sockets(GuestId(1)) == 1).then_some(()));
    pb.close(c);
    // A sleep of the engine does not end its doze either; another's does not last.
    for _ in 0..300 {
        let id = pb.socket(2);
        pb.close(id);
        host.poll();
    }
    let _ = host.engine.prepare_sleep();
    assert!(asleep(&idle) && asleep(&busy));
    host.engine.finish_sleep();
    assert!(asleep(&idle) && !asleep(&busy));
    host.engine.rouse(GuestId(1));
    pi.close(listener);
    assert_quiet(&mut host, 1);
    assert_quiet(&mut host, 2);
}

/// Its bell comes between a poll and the look before the sleep, while its header says that the engine is awake: nobody writes the eventfd.
#[test]
fn who_rang_just_before_a_sleep_does_not_doze() {
    let mut host = Host::new();
    let idle = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, idle.device);
    host.polls(600);
    let before = host.engine.guest_sockets(GuestId(1));
    let id = p.socket(2);
    assert!(!host.engine.prepare_sleep(), "there is work");
    host.engine.finish_sleep();
    host.polls(3);
    assert_eq!(host.engine.guest_sockets(GuestId(1)), before + 1);
    p.close(id);
    host.polls(3);
    assert_quiet(&mut host, 1);
}
