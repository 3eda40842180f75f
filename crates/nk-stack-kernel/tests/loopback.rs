//! A guest against plain sockets of the host, over the whole path.

#![allow(unreachable_pub, reason = "the shared module serves several tests")]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use common::{Host, assert_quiet};
use nk_device::cell::{SF_CONNECTED, SF_DEAD, SF_EOF, SF_FAILED};
use nk_device::sync::Ordering;
use nk_device::{Addr, CHUNK_SIZE, Nqe, Op, STREAM_SLOTS};
use nk_engine::{GuestId, Limits};

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn accepts_echoes_and_closes() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    peer.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    peer.write_all(b"hello").expect("write");
    let c = p.accept(&mut host, listener);
    let cell = p.cell(c);
    assert_eq!(cell.local.load().port, port);
    assert_eq!(cell.peer.load().port, peer.local_addr().expect("addr").port());
    assert_eq!(p.recv(&mut host, c, 100), Ok(b"hello".to_vec()));
    p.send(&mut host, c, b"world");
    host.polls(3);
    let mut buf = [0; 5];
    peer.read_exact(&mut buf).expect("read");
    assert_eq!(&buf, b"world");
    // The peer finishes; the guest still sends, then closes.
    peer.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(p.recv(&mut host, c, 100), Ok(Vec::new()));
    assert_eq!(p.state(c) & (SF_EOF | SF_DEAD), SF_EOF);
    p.send(&mut host, c, b"late");
    p.close(c);
    host.polls(5);
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).expect("read");
    assert_eq!(rest, b"late");
    p.close(listener);
    assert_quiet(&mut host, 1);
    assert!(host.log.idle.contains(&GuestId(1)));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the port is closed");
    let s = host.engine.stats(None);
    assert_eq!((s.bytes_sent, s.bytes_received), (9, 5));
    assert_eq!((s.connections_total, s.connections_open), (1, 0));
    assert_eq!((s.violations, s.stale), (0, 0));
}

#[test]
fn large_transfers_arrive_whole_both_ways() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = server.local_addr().expect("addr").port();
    let data = pattern(6 << 20);
    let back = data.clone();
    let echo = std::thread::spawn(move || {
        let (mut s, _) = server.accept().expect("accept");
        let mut got = vec![0; back.len()];
        s.read_exact(&mut got).expect("read");
        assert!(got == back, "bytes arrived changed");
        s.write_all(&got).expect("write");
    });
    let c = p.connected(&mut host, port);
    p.send(&mut host, c, &data);
    let mut got = Vec::new();
    while got.len() < data.len() {
        let part = p.recv(&mut host, c, 100_000).expect("recv");
        assert!(!part.is_empty(), "ended after {}", got.len());
        got.extend_from_slice(&part);
    }
    assert!(got == data, "bytes came back changed");
    echo.join().expect("echo");
    assert_eq!(p.recv(&mut host, c, 10), Ok(Vec::new()));
    p.close(c);
    assert_quiet(&mut host, 1);
}

#[test]
fn connect_fails_and_succeeds_on_the_same_socket() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = server.local_addr().expect("addr").port();
    let free = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("addr").port();
    let id = p.socket(2);
    let refused = p.connect(&mut host, id, &Addr::v4([127, 0, 0, 1], free));
    assert_eq!(refused, Err(libc::ECONNREFUSED));
    assert_eq!(p.state(id) & (SF_FAILED | SF_DEAD | SF_CONNECTED), SF_FAILED | SF_DEAD);
    p.connect(&mut host, id, &Addr::v4([127, 0, 0, 1], port)).expect("second connect");
    let (mut s, _) = server.accept().expect("accept");
    p.send(&mut host, id, b"x");
    host.polls(2);
    let mut b = [0];
    s.read_exact(&mut b).expect("read");
    p.close(id);
    drop(s);
    assert_quiet(&mut host, 1);
}

#[test]
fn unread_bytes_at_close_reset_the_peer_and_a_reset_reaches_the_guest() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    peer.write_all(b"unread").expect("write");
    let c = p.accept(&mut host, listener);
    host.until("bytes", |_| (p.cell(c).rx_tail.load(Ordering::SeqCst) == 1).then_some(()));
    p.close(c);
    host.polls(3);
    let e = peer.read(&mut [0; 10]).expect_err("a reset");
    assert_eq!(e.raw_os_error(), Some(libc::ECONNRESET));
    // The other way.
    let peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let c = p.accept(&mut host, listener);
    p.send(&mut host, c, b"never read");
    host.polls(3);
    drop(peer);
    assert_eq!(p.recv(&mut host, c, 10), Err(libc::ECONNRESET));
    assert_eq!(p.recv(&mut host, c, 10), Ok(Vec::new()), "told once");
    assert_ne!(p.state(c) & SF_DEAD, 0);
    p.close(c);
    p.close(listener);
    assert_quiet(&mut host, 1);
}

#[test]
fn close_sends_what_was_queued_and_linger_zero_does_not() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let c = p.accept(&mut host, listener);
    // As much as fits without the peer reading, then close at once.
    let data = pattern(STREAM_SLOTS * CHUNK_SIZE);
    let mut sent = 0;
    for _ in 0..200 {
        match p.try_send(c, &data) {
            Ok(n) => sent += n,
            Err(_) => host.polls(1),
        }
    }
    p.close(c);
    host.polls(3);
    let reader = std::thread::spawn(move || {
        let mut n = 0;
        let mut buf = vec![0; 1 << 16];
        loop {
            match peer.read(&mut buf).expect("read") {
                0 => return n,
                k => n += k,
            }
        }
    });
    host.until("end of the orphan", |h| (h.engine.guest_sockets(GuestId(1)) == 1).then_some(()));
    assert_eq!(reader.join().expect("reader"), sent);
    let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let c = p.accept(&mut host, listener);
    p.cell(c).linger.store(1, Ordering::SeqCst);
    p.close(c);
    host.polls(3);
    let e = peer.read(&mut [0; 10]).expect_err("a reset");
    assert_eq!(e.raw_os_error(), Some(libc::ECONNRESET));
    p.close(listener);
    assert_quiet(&mut host, 1);
}

#[test]
fn shutdown_write_ends_the_stream_after_what_was_queued() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let c = p.connected(&mut host, server.local_addr().expect("addr").port());
    let (mut s, _) = server.accept().expect("accept");
    let data = pattern(100_000);
    p.send(&mut host, c, &data);
    p.shutdown_wr(c);
    host.polls(3);
    let mut got = Vec::new();
    s.read_to_end(&mut got).expect("read");
    assert!(got == data);
    s.write_all(b"answer").expect("write");
    assert_eq!(p.recv(&mut host, c, 100), Ok(b"answer".to_vec()));
    drop(s);
    assert_eq!(p.recv(&mut host, c, 100), Ok(Vec::new()));
    assert_ne!(p.state(c) & SF_DEAD, 0, "both directions are over");
    p.close(c);
    assert_quiet(&mut host, 1);
}

#[test]
fn a_slow_reader_stalls_and_goes_on() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    let data = pattern(8 << 20);
    let sent = data.clone();
    let writer = std::thread::spawn(move || {
        let mut s = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        s.write_all(&sent).expect("write");
    });
    let c = p.accept(&mut host, listener);
    host.until("full ring", |_| (p.state(c) & nk_device::cell::SF_RX_STALLED != 0).then_some(()));
    let mut got = Vec::new();
    while got.len() < data.len() {
        got.extend(p.recv(&mut host, c, 30_000).expect("recv"));
    }
    assert!(got == data);
    writer.join().expect("writer");
    p.close(c);
    p.close(listener);
    assert_quiet(&mut host, 1);
}

#[test]
fn options_are_forwarded_refused_or_unknown() {
    use nk_device::nqe::pack_option;
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let id = p.socket(2);
    let mut option = |op, level: u8, name: u16, length, value: u64| {
        let mut nqe = Nqe::new(op, id.socket, id.generation);
        nqe.size = pack_option(level, name, length);
        nqe.op_data = value;
        p.call(&mut host, nqe).map(|r| (r.size, r.op_data))
    };
    assert_eq!(option(Op::GetSockOpt, 6, 1, 4, 0), Ok((4, 0)));
    assert!(option(Op::SetSockOpt, 6, 1, 4, 1).is_ok());
    assert_eq!(option(Op::GetSockOpt, 6, 1, 4, 0), Ok((4, 1)));
    assert_eq!(option(Op::SetSockOpt, 1, 36, 4, 7), Err(libc::EPERM), "SO_MARK");
    assert_eq!(option(Op::SetSockOpt, 1, 999, 4, 7), Err(libc::ENOPROTOOPT));
    assert_eq!(option(Op::SetSockOpt, 6, 31, 4, 7), Err(libc::ENOPROTOOPT), "TCP_ULP");
    let ghost = u64::from_le_bytes(*b"nosuchcc");
    assert_eq!(option(Op::SetSockOpt, 6, 13, 8, ghost), Err(libc::ENOENT));
    let info = option(Op::GetSockOpt, 6, 11, 255, 0).expect("TCP_INFO");
    assert!(info.0 > 100, "{info:?}");
    p.close(id);
    assert_quiet(&mut host, 1);
}
