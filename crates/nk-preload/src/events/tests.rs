//! epoll, poll and select over the played host: the parts that need a queue set and a doorbell.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use libc::{c_int, epoll_event};

use super::exports::{epoll_create1, epoll_ctl, epoll_wait, poll, select};
use super::{EPOLLET, EPOLLIN, EPOLLONESHOT, EPOLLOUT};
use crate::testing::guest;

const ADD: c_int = libc::EPOLL_CTL_ADD;
const DEL: c_int = libc::EPOLL_CTL_DEL;
const MOD: c_int = libc::EPOLL_CTL_MOD;
/// Far longer than anything that happens takes.
const LONG_MS: c_int = 5000;

fn pair() -> (TcpStream, TcpStream) {
    guest();
    let l = TcpListener::bind("127.0.0.1:0").expect("bind");
    let c = TcpStream::connect(l.local_addr().expect("address")).expect("connect");
    (c, l.accept().expect("accept").0)
}

struct Epoll(c_int);

impl Epoll {
    fn new() -> Epoll {
        guest();
        let fd = epoll_create1(libc::EPOLL_CLOEXEC);
        assert!(fd >= 0);
        Epoll(fd)
    }
    fn ctl(&self, op: c_int, fd: &impl AsRawFd, events: u32, data: u64) -> c_int {
        let mut e = epoll_event { events, u64: data };
        // SAFETY: a local event.
        unsafe { epoll_ctl(self.0, op, fd.as_raw_fd(), &raw mut e) }
    }
    fn add(&self, fd: &impl AsRawFd, events: u32, data: u64) {
        assert_eq!(self.ctl(ADD, fd, events, data), 0);
    }
    fn wait(&self, max: c_int, ms: c_int) -> Vec<(u64, u32)> {
        let mut e = [epoll_event { events: 0, u64: 0 }; 16];
        // SAFETY: room for 16, and max is below.
        let n = unsafe { epoll_wait(self.0, e.as_mut_ptr(), max, ms) };
        assert!(n >= 0, "{}", std::io::Error::last_os_error());
        let mut got: Vec<_> =
            e.iter().take(n as usize).map(|e| ({ e.u64 }, { e.events })).collect();
        got.sort_unstable();
        got
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> c_int {
        self.0
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        crate::calls::descriptors::close(self.0);
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut p = [0; 2];
    // SAFETY: two new descriptors.
    unsafe {
        assert_eq!(libc::pipe2(p.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK), 0);
        (OwnedFd::from_raw_fd(p[0]), OwnedFd::from_raw_fd(p[1]))
    }
}

fn write1(fd: &impl AsRawFd) {
    // SAFETY: one byte of a literal.
    assert_eq!(unsafe { libc::write(fd.as_raw_fd(), b"x".as_ptr().cast(), 1) }, 1);
}

fn read1(fd: &impl AsRawFd) {
    let mut b = 0u8;
    // SAFETY: one byte of a local.
    assert_eq!(unsafe { libc::read(fd.as_raw_fd(), (&raw mut b).cast(), 1) }, 1);
}

/// Writes to a non-blocking socket: when there is no room, or no chunk, poll says when there is.
fn write_all(mut s: &TcpStream, mut b: &[u8]) {
    while !b.is_empty() {
        match s.write(b) {
            Ok(n) => b = &b[n..],
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EAGAIN));
                let mut p = libc::pollfd { fd: s.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
                // SAFETY: one local pollfd.
                assert_eq!(unsafe { poll(&raw mut p, 1, LONG_MS) }, 1);
            }
        }
    }
}

#[test]
fn sockets_and_pipes_in_one_epoll() {
    let (mut c, s) = pair();
    let (r, w) = pipe();
    let ep = Epoll::new();
    ep.add(&r, EPOLLIN, 1);
    ep.add(&s, EPOLLIN, 2);
    assert_eq!(ep.wait(16, 20), []);
    write1(&w);
    assert_eq!(ep.wait(16, LONG_MS), [(1, EPOLLIN)]);
    c.write_all(b"y").expect("write");
    while ep.wait(16, LONG_MS).len() < 2 {}
    let mut seen = [0; 3];
    for _ in 0..10 {
        seen[ep.wait(1, LONG_MS)[0].0 as usize] += 1;
    }
    assert_eq!(seen, [0, 5, 5], "one slot, both in turn");
    read1(&r);
    read1(&s);
    assert_eq!(ep.wait(16, 20), []);
    assert_eq!(ep.ctl(ADD, &s, EPOLLIN, 2), -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EEXIST));
    assert_eq!(ep.ctl(DEL, &s, 0, 0), 0);
    assert_eq!(ep.ctl(MOD, &s, EPOLLIN, 0), -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn a_sleeper_is_woken_by_data_by_a_first_socket_and_by_mod() {
    let ep = Epoll::new();
    let (r, _w) = pipe();
    ep.add(&r, EPOLLIN, 1);
    let (mut c, s) = pair();
    std::thread::scope(|scope| {
        // Plain so far: the sleeper is in the kernel when the first socket comes.
        let t = scope.spawn(|| ep.wait(16, LONG_MS));
        std::thread::sleep(Duration::from_millis(30));
        ep.add(&s, EPOLLOUT, 2);
        assert_eq!(t.join().expect("join"), [(2, EPOLLOUT)]);
        assert_eq!(ep.ctl(MOD, &s, EPOLLIN, 3), 0);
        let t = scope.spawn(|| ep.wait(16, LONG_MS));
        std::thread::sleep(Duration::from_millis(30));
        c.write_all(b"x").expect("write");
        assert_eq!(t.join().expect("join"), [(3, EPOLLIN)]);
        read1(&s);
        let t = scope.spawn(|| ep.wait(16, LONG_MS));
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(ep.ctl(MOD, &s, EPOLLOUT | EPOLLET, 4), 0);
        assert_eq!(t.join().expect("join"), [(4, EPOLLOUT)]);
    });
}

#[test]
fn what_one_sleeper_leaves_wakes_another() {
    let ep = Epoll::new();
    let pairs: Vec<_> = (0..4).map(|_| pair()).collect();
    for (i, (_, s)) in pairs.iter().enumerate() {
        ep.add(s, EPOLLIN | EPOLLONESHOT, i as u64);
    }
    std::thread::scope(|scope| {
        let sleepers: Vec<_> = (0..4).map(|_| scope.spawn(|| ep.wait(1, LONG_MS))).collect();
        std::thread::sleep(Duration::from_millis(50));
        for (c, _) in &pairs {
            (&*c).write_all(b"x").expect("write");
        }
        let mut got: Vec<_> =
            sleepers.into_iter().flat_map(|t| t.join().expect("join")).map(|e| e.0).collect();
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 3]);
    });
}

#[test]
fn threads_share_an_instance_and_lose_nothing() {
    const MESSAGES: u32 = 3000;
    let ep = Epoll::new();
    let pairs: Vec<_> = (0..3).map(|_| pair()).collect();
    for (i, (_, s)) in pairs.iter().enumerate() {
        s.set_nonblocking(true).expect("nonblock");
        ep.add(s, EPOLLIN | EPOLLET | EPOLLONESHOT, i as u64);
    }
    let echoed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while echoed.load(Ordering::SeqCst) < MESSAGES * 3 {
                    for (i, _) in ep.wait(2, 200) {
                        let mut s = &pairs[i as usize].1;
                        let mut b = [0u8; 64];
                        while let Ok(n) = s.read(&mut b) {
                            write_all(s, &b[..n]);
                            echoed.fetch_add(n as u32, Ordering::SeqCst);
                        }
                        assert_eq!(ep.ctl(MOD, s, EPOLLIN | EPOLLET | EPOLLONESHOT, i), 0);
                    }
                }
            });
        }
        for (c, _) in &pairs {
            scope.spawn(move || {
                let mut c = c;
                c.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
                let mut b = [0u8; 1];
                for _ in 0..MESSAGES {
                    c.write_all(b"m").expect("write");
                    c.read_exact(&mut b).expect("an echo, not a lost wake-up");
                }
            });
        }
    });
}

#[test]
fn closing_a_socket_ends_its_interest() {
    let ep = Epoll::new();
    let (mut c, s) = pair();
    let twin = s.try_clone().expect("dup");
    ep.add(&s, EPOLLIN, 1);
    c.write_all(b"x").expect("write");
    assert_eq!(ep.wait(16, LONG_MS), [(1, EPOLLIN)]);
    drop(s);
    assert_eq!(ep.wait(16, LONG_MS), [(1, EPOLLIN)], "a duplicate is open");
    drop(twin);
    assert_eq!(ep.wait(16, 20), []);
    // 100 more through the same instance: nothing piles up, nothing of old ones is seen.
    for i in 0..20 {
        let (mut c, s) = pair();
        ep.add(&s, EPOLLIN, i);
        c.write_all(b"x").expect("write");
        assert_eq!(ep.wait(16, LONG_MS), [(i, EPOLLIN)]);
    }
    assert_eq!(ep.wait(16, 20), []);
}

#[test]
fn an_epoll_in_an_epoll_and_in_poll() {
    let (inner, outer) = (Epoll::new(), Epoll::new());
    let (mut c, s) = pair();
    inner.add(&s, EPOLLIN, 1);
    outer.add(&inner, EPOLLIN, 2);
    let mut p = libc::pollfd { fd: inner.0, events: libc::POLLIN, revents: 0 };
    // SAFETY: one local pollfd, here and below.
    let mut polled = |ms| unsafe { poll(&raw mut p, 1, ms) };
    assert_eq!(outer.wait(16, 20), []);
    assert_eq!(polled(20), 0);
    std::thread::scope(|scope| {
        let t = scope.spawn(|| outer.wait(16, LONG_MS));
        std::thread::sleep(Duration::from_millis(30));
        c.write_all(b"x").expect("write");
        assert_eq!(t.join().expect("join"), [(2, EPOLLIN)]);
    });
    assert_eq!(polled(LONG_MS), 1);
    assert_eq!(outer.wait(16, 0), [(2, EPOLLIN)], "level-triggered");
    assert_eq!(inner.wait(16, 0), [(1, EPOLLIN)]);
    assert_eq!(outer.wait(16, 0), [(2, EPOLLIN)]);
    read1(&s);
    assert_eq!(outer.wait(16, 20), [], "read past the epoll");
    assert_eq!(polled(0), 0);
    // Ready before the outer one waits: no sleep, and no turning round either.
    c.write_all(b"z").expect("write");
    assert_eq!(inner.wait(16, LONG_MS), [(1, EPOLLIN)]);
    assert_eq!(outer.wait(16, LONG_MS), [(2, EPOLLIN)]);
    read1(&s);
    let t = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        c.write_all(b"y").expect("write");
        c
    });
    assert_eq!(polled(LONG_MS), 1);
    assert_eq!(inner.wait(16, 0), [(1, EPOLLIN)]);
    assert_eq!(outer.ctl(DEL, &inner, 0, 0), 0);
    assert_eq!(outer.wait(16, 20), []);
    drop(t);
}

#[test]
fn poll_waits_for_sockets_and_others_at_once() {
    let (mut c, s) = pair();
    let (r, w) = pipe();
    let mut p = [
        libc::pollfd { fd: s.as_raw_fd(), events: libc::POLLIN, revents: 77 },
        libc::pollfd { fd: -1, events: libc::POLLIN, revents: 77 },
        libc::pollfd { fd: r.as_raw_fd(), events: libc::POLLIN, revents: 77 },
        libc::pollfd { fd: c.as_raw_fd(), events: libc::POLLOUT, revents: 77 },
    ];
    // SAFETY: at most as many pollfds as the array has.
    let mut polled = |n, ms| {
        // SAFETY: the array has n elements.
        let r = unsafe { poll(p.as_mut_ptr(), n, ms) };
        (r, p.map(|p| p.revents))
    };
    assert_eq!(polled(4, LONG_MS), (1, [0, 0, 0, libc::POLLOUT]));
    let begun = Instant::now();
    assert_eq!(polled(3, 50).0, 0);
    assert!(begun.elapsed() >= Duration::from_millis(50));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            c.write_all(b"x").expect("write");
        });
        let (n, [sock, ..]) = polled(3, LONG_MS);
        assert_eq!((n, sock), (1, libc::POLLIN));
        read1(&s);
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            write1(&w);
        });
        assert_eq!(polled(3, LONG_MS), (1, [0, 0, libc::POLLIN, libc::POLLOUT]));
    });
    assert!(begun.elapsed() < Duration::from_millis(LONG_MS as u64));
}

#[test]
fn poll_of_many_uses_the_slot_s_memory() {
    let (mut c, s) = pair();
    let (r, _w) = pipe();
    let mut p: Vec<_> = (0..300)
        .map(|i| libc::pollfd {
            fd: if i % 3 == 0 { s.as_raw_fd() } else { r.as_raw_fd() },
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // SAFETY: 300 pollfds.
    assert_eq!(unsafe { poll(p.as_mut_ptr(), 300, 20) }, 0);
    c.write_all(b"x").expect("write");
    loop {
        // SAFETY: as above.
        let n = unsafe { poll(p.as_mut_ptr(), 300, LONG_MS) };
        if n == 100 {
            break;
        }
        assert!(n > 0);
    }
    assert!(p.iter().enumerate().all(|(i, p)| (p.revents != 0) == (i % 3 == 0)));
}

#[test]
fn select_on_sockets_beyond_a_thousand() {
    let (mut c, s) = pair();
    // SAFETY: duplicates a descriptor of this test.
    let high = unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        assert!(limit.rlim_cur > 1500 || limit.rlim_max > 1500);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        OwnedFd::from_raw_fd(libc::fcntl(s.as_raw_fd(), libc::F_DUPFD, 1400))
    };
    let n = high.as_raw_fd() + 1;
    assert!(n > 1400);
    let mut read = [0u64; 64];
    let (word, bit) = (high.as_raw_fd() as usize / 64, high.as_raw_fd() % 64);
    let mut look = |ms: i64| {
        let mut t = libc::timeval { tv_sec: 0, tv_usec: ms * 1000 };
        read[word] |= 1 << bit;
        let none = std::ptr::null_mut();
        // SAFETY: 4096 bits, and n is below.
        let r = unsafe { select(n, read.as_mut_ptr().cast(), none, none, &raw mut t) };
        (r, read[word] >> bit & 1, t.tv_usec)
    };
    assert_eq!(look(20), (0, 0, 0));
    c.write_all(b"x").expect("write");
    let (r, bit, left) = look(900);
    assert_eq!((r, bit), (1, 1));
    assert!(left > 0);
}
