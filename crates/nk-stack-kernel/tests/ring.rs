//! Sends that go together by io_uring end as they do one by one.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use nk_servicelib::{Errno, RawSpan, Sending, Stack};
use nk_stack_kernel::{KernelStack, OwnNamespace};

/// More than go to the kernel at once.
const PAIRS: usize = 150;
/// The pair whose peer reset the connection.
const RESET: usize = 70;
/// The one whose peer does not read.
const FULL: usize = 71;
/// The one whose sending side is shut.
const SHUT: usize = 72;

struct Pairs {
    stack: KernelStack,
    sockets: Vec<OwnedFd>,
    peers: Vec<TcpStream>,
}

fn pairs(ring: bool) -> Pairs {
    let mut stack = KernelStack::new(Box::new(OwnNamespace), None).expect("stack");
    if ring {
        stack
            .use_io_uring()
            .expect("this test needs io_uring (Linux 5.18, kernel.io_uring_disabled = 0)");
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let (mut sockets, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let ours = TcpStream::connect(address).expect("connect");
        ours.set_nonblocking(true).expect("mode");
        let (theirs, _) = listener.accept().expect("accept");
        theirs.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        sockets.push(OwnedFd::from(ours));
        peers.push(theirs);
    }
    Pairs { stack, sockets, peers }
}

/// A span of memory that stays.
fn leak(bytes: Vec<u8>) -> RawSpan {
    let bytes = Vec::leak(bytes);
    let base = NonNull::new(bytes.as_mut_ptr()).expect("not null");
    // SAFETY: leaked, so mapped for good, and the reference is gone after this line.
    unsafe { RawSpan::new(base, bytes.len()) }
}

/// What pair `i` sends: one span, or three.
fn payload(i: usize) -> Vec<Vec<u8>> {
    let part = |n: usize| (0..n).map(|b| (b * 7 + i) as u8).collect();
    if i.is_multiple_of(2) { vec![part(200 + i)] } else { vec![part(1), part(3000), part(i)] }
}

fn results(p: &mut Pairs) -> Vec<Result<usize, Errno>> {
    let spans: Vec<Vec<RawSpan>> =
        (0..PAIRS).map(|i| payload(i).into_iter().map(leak).collect()).collect();
    let mut sends: Vec<_> = p
        .sockets
        .iter()
        .zip(&spans)
        .map(|(socket, spans)| Sending { socket, spans, result: Err(Errno(0)) })
        .collect();
    p.stack.send_all(&mut sends);
    sends.iter().map(|s| s.result).collect()
}

fn spoil(p: &mut Pairs) {
    // Unread bytes make a close a reset.
    assert_eq!(p.stack.send(&p.sockets[RESET], &[leak(vec![1; 10])]), Ok(10));
    let other = p.peers[0].try_clone().expect("dup");
    let peer = std::mem::replace(&mut p.peers[RESET], other);
    let mut byte = [0];
    while peer.peek(&mut byte).is_err() {}
    drop(peer);
    let deadline = Instant::now() + Duration::from_secs(10);
    while p.stack.peer(&p.sockets[RESET]).is_ok() {
        assert!(Instant::now() < deadline, "no reset came");
    }
    let lots = leak(vec![3; 1 << 20]);
    let mut full = 0;
    // What is on its way makes room once more.
    while full < 3 {
        assert!(Instant::now() < deadline, "the socket never fills");
        if p.stack.send(&p.sockets[FULL], &[lots]) == Err(Errno(libc::EAGAIN)) {
            full += 1;
            std::thread::sleep(Duration::from_millis(50));
        } else {
            full = 0;
        }
    }
    p.stack.shutdown(&p.sockets[SHUT], nk_servicelib::How::Write).expect("shutdown");
}

#[test]
fn each_send_ends_as_it_would_alone() {
    let [mut ring, mut plain] = [true, false].map(pairs);
    for p in [&mut ring, &mut plain] {
        spoil(p);
    }
    let (by_ring, one_by_one) = (results(&mut ring), results(&mut plain));
    assert_eq!(by_ring, one_by_one);
    assert_eq!(by_ring[RESET], Err(Errno(libc::ECONNRESET)));
    assert_eq!(by_ring[FULL], Err(Errno(libc::EAGAIN)));
    assert_eq!(by_ring[SHUT], Err(Errno(libc::EPIPE)));
    for i in (0..PAIRS).filter(|i| ![RESET, FULL, SHUT].contains(i)) {
        let sent = payload(i).concat();
        assert_eq!(by_ring[i], Ok(sent.len()));
        let mut got = vec![0; sent.len()];
        ring.peers[i].read_exact(&mut got).expect("read");
        assert_eq!(got, sent);
    }
}
