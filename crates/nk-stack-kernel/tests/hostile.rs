//! Guests that write anything anywhere, exhaustion, churn, and an NSM on a thread of its own.
#![allow(unreachable_pub, reason = "the shared module serves several tests")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering as StdOrdering};
use std::time::{Duration, Instant};

use common::{Host, NSM, Process, Region, assert_quiet};
use nk_device::sync::Ordering;
use nk_device::{Addr, Layout, Nqe, Op};
use nk_engine::{Engine, GuestId, Limits};
use nk_servicelib::{GuestLimits, Service, Stack};
use nk_stack_kernel::{KernelStack, OwnNamespace};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};

/// xorshift64*: a printed seed replays the run.
struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A word as an attacker would choose it: often small, often a ring position off by a little, sometimes anything.
fn nasty(r: &mut Random, seen: u64) -> u64 {
    match r.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => seen.wrapping_add(r.below(5)).wrapping_sub(2),
        3 => seen ^ (1 << r.below(64)),
        4 => r.below(64) << 32 | r.below(300),
        5 => r.below(256) << 56 | r.below(1 << 40),
        6 => (Op::Socket as u64 + r.below(12)) | r.below(2) << 8 | r.below(40) << 48,
        _ => r.next(),
    }
}

fn scribble(region: &Region, r: &mut Random, writes: u32) {
    let words = region.len() as u64 / 8;
    for _ in 0..writes {
        // Mostly where it hurts: the first rows, queue sets and cells.
        let at = if r.below(4) == 0 { r.below(words) } else { r.below(words / 2) };
        // SAFETY: within the mapping, aligned; everybody accesses this memory by atomics.
        let w = unsafe { region.base().cast::<AtomicU64>().add(at as usize).as_ref() };
        w.store(nasty(r, w.load(StdOrdering::Relaxed)), StdOrdering::Relaxed);
    }
}

#[test]
fn a_guest_that_scribbles_harms_only_itself() {
    let seed = std::env::var("NK_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |d| d.as_nanos() as u64)
    });
    println!("NK_SEED={seed}");
    let mut r = Random(seed | 1);
    let mut host = Host::new();
    let good = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, good.device);
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = server.local_addr().expect("addr").port();
    let data: Vec<u8> =
        (0..4_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let want = data.clone();
    let reader = std::thread::spawn(move || {
        let (mut s, _) = server.accept().expect("accept");
        let mut got = Vec::new();
        s.read_to_end(&mut got).expect("read");
        assert!(got == want, "the other guest's bytes are whole");
    });
    let c = p.connected(&mut host, port);
    let mut sent = 0;
    for round in 0..60u16 {
        // A hostile guest of this round: a few real sockets and connections, then noise.
        let id = 2 + round % 3;
        let bad = host.add_guest(id, 0, Limits::default());
        let mut b = host.process(id, bad.device);
        let (listener, bad_port) = b.listener(&mut host, 8);
        let _peers: Vec<_> = (0..3).map(|_| TcpStream::connect(("127.0.0.1", bad_port))).collect();
        let x = b.accept(&mut host, listener);
        let _ = b.try_send(x, &[7; 50_000]);
        for _ in 0..40 {
            scribble(&bad, &mut r, 2000);
            let q = r.below(8) as u16;
            let _ = bad.device.header().ring_bell(q);
            let _ = bad.device.header().ring_bell(b.qset);
            // Well-formed elements too, with wild ids.
            if let Some(qs) = bad.device.qset(b.qset) {
                let mut nqe = Nqe::from_words([r.next(), r.next(), r.next(), r.next()]);
                nqe.op = 1 + r.below(33) as u8;
                nqe.socket = r.below(40) as u32;
                nqe.generation = r.below(3) as u16;
                let _ = qs.job().push(&nqe);
            }
            host.poll();
            while sent < data.len() {
                match p.try_send(c, &data[sent..]) {
                    Ok(n) => sent += n,
                    Err(_) => break,
                }
            }
        }
        host.engine.row_dead(GuestId(id), b.row, &mut host.log).expect("row");
        host.polls(3);
        let _ = (host.engine.stats(None), host.engine.flows(None));
        let s = host.service.stats(id).expect("guest");
        assert_eq!(s.chunks_free + s.chunks_leased + s.chunks_tx + s.chunks_rx, 256, "{s:?}");
        host.engine.remove_guest(GuestId(id)).expect("remove");
        host.service.remove_guest(id);
    }
    p.send(&mut host, c, &data[sent..]);
    p.close(c);
    host.until("end", |_| reader.is_finished().then_some(()));
    reader.join().expect("reader");
    assert_quiet(&mut host, 1);
    assert_eq!(host.engine.stats(Some(GuestId(1))).violations, 0);
}

#[test]
fn a_guest_that_scribbles_from_another_thread_stops_nobody() {
    let mut host = Host::new();
    let good = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, good.device);
    let (listener, port) = p.listener(&mut host, 64);
    let bad = Arc::new(host.add_guest(2, 0, Limits::default()));
    let mut b = host.process(2, bad.device);
    let (_l, _) = b.listener(&mut host, 8);
    let stop = Arc::new(AtomicBool::new(false));
    let noise = {
        let (bad, stop) = (bad.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut r = Random(0x5eed);
            while !stop.load(StdOrdering::Relaxed) {
                scribble(&bad, &mut r, 500);
                for q in 0..8 {
                    let _ = bad.device.header().ring_bell(q);
                }
            }
        })
    };
    let end = Instant::now() + Duration::from_secs(2);
    let mut served = 0;
    while Instant::now() < end {
        let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        let c = p.accept(&mut host, listener);
        p.send(&mut host, c, b"pong");
        p.close(c);
        host.polls(3);
        let mut got = Vec::new();
        peer.read_to_end(&mut got).expect("read");
        assert_eq!(got, b"pong");
        served += 1;
    }
    stop.store(true, StdOrdering::Relaxed);
    noise.join().expect("noise");
    assert!(served > 20, "only {served} connections in 2 s");
    host.engine.remove_guest(GuestId(2)).expect("remove");
    host.service.remove_guest(2);
    p.close(listener);
    assert_quiet(&mut host, 1);
}

#[test]
fn a_descriptor_that_is_not_the_guests_resets_the_socket() {
    use nk_device::stream::Span;
    // Chunk never leased; twice on the ring; past the pool; another lap.
    for case in 0..4 {
        let mut host = Host::new();
        let region = host.add_guest(1, 0, Limits::default());
        let mut p = host.process(1, region.device);
        let (listener, port) = p.listener(&mut host, 4);
        let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        let c = p.accept(&mut host, listener);
        let grants = &region.device.row(p.row).expect("row").chunk_grants;
        let chunk = grants.pop().expect("chunk");
        let payload = |chunk| Span { chunk, offset: 0, len: 100 }.to_payload();
        let cell = p.cell(c);
        match case {
            0 => {
                cell.tx().publish(payload(200)).expect("room");
            }
            1 => {
                cell.tx().publish(payload(chunk)).expect("room");
                cell.tx().publish(payload(chunk)).expect("room");
            }
            2 => {
                cell.tx().publish(payload(9999)).expect("room");
            }
            _ => cell.tx_tail.store(3, Ordering::SeqCst),
        }
        p.push(Nqe::new(Op::Send, c.socket, c.generation));
        host.polls(4);
        assert_eq!(cell.take_error(), libc::ECONNRESET, "case {case}");
        assert_eq!(host.service.stats(1).expect("guest").violations, 1, "case {case}");
        peer.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        let mut buf = [0; 200];
        let ended = (0..3).any(|_| peer.read(&mut buf).is_err());
        assert!(ended, "case {case}: the peer is reset");
        // The listener, and other sockets, go on.
        p.close(c);
        let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        let c = p.accept(&mut host, listener);
        p.send(&mut host, c, b"ok");
        host.polls(2);
        peer.read_exact(&mut buf[..2]).expect("read");
        host.engine.row_dead(GuestId(1), p.row, &mut host.log).expect("dead");
        assert_quiet(&mut host, 1);
        assert_eq!(host.service.stats(1).expect("guest").chunks_leased, 0, "case {case}");
    }
}

#[test]
fn a_pool_that_is_used_up_degrades_and_recovers() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 64);
    // Many connections whose bytes nobody reads take all chunks that receiving may have.
    let payload = vec![5u8; 1 << 20];
    let writers: Vec<_> = (0..12)
        .map(|_| {
            let payload = payload.clone();
            std::thread::spawn(move || {
                let mut s = TcpStream::connect(("127.0.0.1", port)).expect("connect");
                s.write_all(&payload).expect("write");
            })
        })
        .collect();
    let mut got: Vec<_> = (0..12).map(|_| (p.accept(&mut host, listener), 0usize)).collect();
    host.polls(200);
    let s = host.service.stats(1).expect("guest");
    assert!(s.chunks_rx > 100 && s.chunks_rx <= 160, "{s:?}");
    // Sending still works for another connection.
    let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let c = p.accept(&mut host, listener);
    p.send(&mut host, c, &[1; 100_000]);
    let mut all = vec![0; 100_000];
    let reader = std::thread::spawn(move || {
        peer.read_exact(&mut all).expect("read");
        peer
    });
    host.until("reader", |_| reader.is_finished().then_some(()));
    let _peer = reader.join().expect("reader");
    // Reading on gets everything through.
    let end = Instant::now() + Duration::from_secs(20);
    while got.iter().any(|(_, n)| *n < payload.len()) {
        assert!(Instant::now() < end, "stuck: {:?}", host.service.stats(1));
        host.poll();
        for (id, n) in &mut got {
            if let (nk_guestlib::recv::Received::Bytes { count, .. }, _) = p.try_recv(*id, 40_000) {
                *n += count;
            }
        }
    }
    for w in writers {
        w.join().expect("writer");
    }
    for (id, _) in got {
        p.close(id);
    }
    p.close(c);
    p.close(listener);
    assert_quiet(&mut host, 1);
}

/// Each process was leased chunks at its start, and all but the last sends nothing.
#[test]
fn processes_that_do_not_send_give_their_chunks_to_one_that_does() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let idle: Vec<_> = (0..14).map(|_| host.process(1, region.device)).collect();
    host.polls(3);
    // Three quarters of the pool are for sending: no more than is leased already.
    let leased = host.service.stats(1).expect("guest").chunks_leased as u32;
    let chunks_max = leased / 3 * 4;
    host.service.set_limits(1, &GuestLimits { chunks_max, ..GuestLimits::default() });
    let mut last = host.process(1, region.device);
    host.polls(3);
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let c = last.connected(&mut host, listener.local_addr().expect("address").port());
    let (mut peer, _) = listener.accept().expect("accept");
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; 3 << 20];
        peer.read_exact(&mut all).expect("read");
        all
    });
    last.send(&mut host, c, &vec![7; 3 << 20]);
    host.until("reader", |_| reader.is_finished().then_some(()));
    assert!(reader.join().expect("reader").iter().all(|b| *b == 7));
    // And whoever gave has some again when it asks.
    for mut p in idle {
        let c = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
            let c = p.connected(&mut host, listener.local_addr().expect("address").port());
            p.send(&mut host, c, b"still there");
            let (mut peer, _) = listener.accept().expect("accept");
            host.polls(5);
            let mut got = [0; 11];
            peer.read_exact(&mut got).expect("read");
            c
        };
        p.close(c);
    }
    last.close(c);
    host.service.set_limits(1, &GuestLimits::default());
    assert_quiet(&mut host, 1);
}

#[test]
fn connections_come_and_go_without_growth() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 64);
    let fds = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let mut first = None;
    for round in 0..2000 {
        let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        peer.write_all(b"ping").expect("write");
        let c = p.accept(&mut host, listener);
        assert_eq!(p.recv(&mut host, c, 10), Ok(b"ping".to_vec()));
        p.send(&mut host, c, b"pong");
        p.close(c);
        host.polls(2);
        let mut got = Vec::new();
        peer.read_to_end(&mut got).expect("read");
        assert_eq!(got, b"pong");
        if round == 200 {
            first = Some(host.engine.stats(None).ids_granted);
        }
    }
    let ids = host.engine.stats(None).ids_granted;
    assert!(ids.abs_diff(first.expect("round 200")) <= 64);
    assert_eq!(host.engine.guest_sockets(GuestId(1)), 1);
    // Other tests of this process open descriptors too: a leak of one per connection shows.
    assert!(fds() < 1000, "{} descriptors", fds());
    p.close(listener);
    assert_quiet(&mut host, 1);
}

fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd")
}

fn ring(fd: &OwnedFd) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

/// The NSM as a process of its own would run it: a device between, both sides sleeping whenever they can.
#[test]
fn a_separate_nsm_sleeps_and_wakes() {
    struct Bells {
        nsm: Arc<OwnedFd>,
    }
    impl nk_engine::Notify for Bells {
        fn doorbell(&mut self, _: GuestId, _: u16) {}
        fn futex_wake(&mut self, _: &nk_device::sync::AtomicU32, _: u32) {}
        fn nsm_doorbell(&mut self, _: nk_engine::NsmId) {
            ring(&self.nsm);
        }
    }
    // Never unmapped: when the test fails, the threads still run.
    let device = std::mem::ManuallyDrop::new(Region::new(Layout::NSM, 0));
    let guest = std::mem::ManuallyDrop::new(Region::new(common::LAYOUT, 1));
    let (to_nsm, to_engine) = (Arc::new(eventfd()), Arc::new(eventfd()));
    let mut engine = Engine::new();
    engine.add_nsm(NSM, device.device).expect("nsm");
    let stop = Arc::new(AtomicBool::new(false));
    let stack = KernelStack::new(Box::new(OwnNamespace), None).expect("stack");
    let mut service = Service::new(stack, device.device);
    service.stack_mut().add_waker(to_nsm.as_fd(), 0).expect("waker");
    service.add_guest(Host::pool(&guest, 1, 0));
    engine.add_guest(Host::setup(&guest, 1, 0, Limits::default())).expect("guest");
    let row = engine.add_row(GuestId(1), 1).expect("row");
    let start = Instant::now();
    let nsm_thread = {
        let (stop, to_engine) = (stop.clone(), to_engine.clone());
        std::thread::spawn(move || {
            let mut sleeps = 0u32;
            while !stop.load(StdOrdering::Relaxed) {
                let now = || start.elapsed().as_millis() as u64;
                let mut bell = || ring(&to_engine);
                let r = service.poll(now() * 1_000_000, Some(0), &mut bell);
                if !r.pending && r.worked == 0 {
                    if service.prepare_sleep() {
                        sleeps += 1;
                        service.poll(now() * 1_000_000, Some(3000), &mut bell);
                    }
                    service.finish_sleep();
                }
            }
            sleeps
        })
    };
    let engine_thread = {
        let (stop, to_nsm, to_engine) = (stop.clone(), to_nsm.clone(), to_engine.clone());
        std::thread::spawn(move || {
            let mut notify = Bells { nsm: to_nsm };
            while !stop.load(StdOrdering::Relaxed) {
                let r = engine.poll(0, 1024, &mut notify);
                if r.worked == 0 && !r.pending {
                    if engine.prepare_sleep() {
                        let mut rung = [PollFd::new(&*to_engine, PollFlags::IN)];
                        let _ = poll(&mut rung, Some(&Timespec { tv_sec: 3, tv_nsec: 0 }));
                        let _ = rustix::io::read(&*to_engine, &mut [0; 8]);
                    }
                    engine.finish_sleep();
                }
            }
            engine
        })
    };
    // The guest, with its own doorbell rule.
    let mut p = Process::new(guest.device, row.row, row.qset);
    let kick = |p: &Process| {
        if p.device.header().ring_bell(p.qset) {
            ring(&to_engine);
        }
    };
    let wait = |p: &mut Process, what: &str, f: &mut dyn FnMut(&mut Process) -> bool| {
        let end = Instant::now() + Duration::from_secs(2);
        while !f(p) {
            assert!(Instant::now() < end, "no {what}: a wake-up was lost");
            std::thread::sleep(Duration::from_micros(100));
        }
    };
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let to = Addr::v4([127, 0, 0, 1], server.local_addr().expect("addr").port());
    for i in 0..200u32 {
        wait(&mut p, "id", &mut |p| p.device.row(p.row).expect("row").id_grants.available() > 0);
        let id = p.socket(2);
        p.push(Process::with_addr(Op::Connect, id, &to));
        kick(&p);
        wait(&mut p, "connection", &mut |p| p.state(id) & nk_device::cell::SF_CONNECTED != 0);
        let (mut s, _) = server.accept().expect("accept");
        if i % 8 == 0 {
            // Long enough for both to be asleep.
            std::thread::sleep(Duration::from_millis(2));
        }
        s.write_all(b"ping").expect("write");
        let mut got = Vec::new();
        wait(&mut p, "bytes", &mut |p| {
            got.extend(p.try_recv(id, 10).1);
            got == b"ping"
        });
        let mut sent = false;
        wait(&mut p, "chunk", &mut |p| {
            sent = sent || p.try_send(id, b"pong").is_ok();
            kick(p);
            sent
        });
        let mut b = [0; 4];
        s.read_exact(&mut b).expect("read");
        assert_eq!(&b, b"pong");
        p.close(id);
        kick(&p);
        assert_eq!(s.read(&mut b).expect("fin"), 0);
    }
    stop.store(true, StdOrdering::Relaxed);
    ring(&to_engine);
    ring(&to_nsm);
    let engine = engine_thread.join().expect("engine");
    let sleeps = nsm_thread.join().expect("nsm");
    assert!(sleeps > 100, "it slept {sleeps} times only");
    assert_eq!(engine.stats(None).connections_total, 200);
}
