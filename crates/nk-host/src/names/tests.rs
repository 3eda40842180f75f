use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nk_attach::names::{ANSWER_MAX, Address, BUSY, Outcome, QUESTION_MAX, Question};
use nk_attach::{Kind, Message};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{Counter, Counters, lookup, serve};
use crate::sys;

const LOCALHOST: Question<'_> = Question::Addresses {
    node: Some(b"localhost"),
    service: Some(b"80"),
    hints: [0, libc::AF_INET, libc::SOCK_STREAM, 0],
};

/// A resolver in a thread of this process.
struct Played {
    control: OwnedFd,
    counters: Arc<Counters>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Played {
    fn start() -> Played {
        let (control, theirs) = sys::seqpacket_pair().expect("pair");
        let counters = Arc::new(Counters::new().expect("counters"));
        let counts = counters.clone();
        let thread = std::thread::spawn(move || serve::serve(&theirs, &counts));
        Played { control, counters, thread }
    }

    /// A connection, as the daemon makes one.
    fn connect(&self) -> OwnedFd {
        let (near, far) = sys::seqpacket_pair().expect("pair");
        let m = Message::new(Kind::Names);
        nk_attach::send(self.control.as_raw_fd(), &m, &[far.as_raw_fd()]).expect("send");
        sys::set_receive_timeout(&near, 10).expect("time-out");
        near
    }

    fn end(self) {
        drop(self.control);
        self.thread.join().expect("no panic").expect("a clean end");
    }
}

fn send(to: &OwnedFd, packet: &[u8]) {
    let _ = rustix::net::send(to, packet, SendFlags::NOSIGNAL);
}

/// Empty: the connection was closed.
fn receive(from: &OwnedFd) -> Vec<u8> {
    let mut packet = vec![0; ANSWER_MAX];
    let mut take = || rustix::net::recv(from, &mut packet[..], RecvFlags::empty());
    let taken = match take() {
        // Closed with our question unread: told once, and what was sent before comes after.
        Err(Errno::CONNRESET) => take(),
        taken => taken,
    };
    let (len, _) = taken.expect("an answer, or the end");
    packet.truncate(len);
    packet
}

fn ask(connection: &OwnedFd, q: &Question<'_>) -> Vec<u8> {
    let mut packet = [0; QUESTION_MAX];
    let len = q.write(&mut packet).expect("fits");
    send(connection, &packet[..len]);
    receive(connection)
}

fn is_localhost(packet: &[u8]) -> bool {
    let (o, mut r) = Outcome::parse(packet).expect("an answer");
    let address = [2u8, 0, 0, 80, 127, 0, 0, 1];
    o.code == 0
        && r.bytes() == Some(None)
        && r.count(20).is_some_and(|n| n > 0)
        && Address::parse(&mut r).is_some_and(|a| a.address[..8] == address)
}

#[test]
fn questions_are_answered_and_counted() {
    let p = Played::start();
    for _ in 0..20 {
        assert!(is_localhost(&ask(&p.connect(), &LOCALHOST)));
    }
    let name = Question::Name {
        address: &[2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        flags: libc::NI_NUMERICHOST | libc::NI_NUMERICSERV,
        wanted: [true, true],
    };
    let packet = ask(&p.connect(), &name);
    let (o, mut r) = Outcome::parse(&packet).expect("an answer");
    assert_eq!(
        (o.code, r.bytes(), r.bytes()),
        (0, Some(Some(&b"127.0.0.1"[..])), Some(Some(&b"80"[..])))
    );
    let host = Question::HostByName { name: b"localhost", family: libc::AF_INET };
    let packet = ask(&p.connect(), &host);
    let (o, mut r) = Outcome::parse(&packet).expect("an answer");
    assert_eq!((o.code, r.word(), r.int()), (0, Some(1), Some(libc::AF_INET)));
    assert_eq!(p.counters.read(Counter::Answered), 22);
    p.end();
}

#[test]
fn what_is_no_question_ends_the_connection_and_nothing_else() {
    let p = Played::start();
    let mut good = [0; QUESTION_MAX];
    let len = LOCALHOST.write(&mut good).expect("fits");
    let mut odd = good[..len].to_vec();
    odd[4] = 77;
    let long = vec![7u8; QUESTION_MAX * 2];
    for packet in [&good[..len - 1], &odd, &long, &[][..], &[0; 4]] {
        let c = p.connect();
        send(&c, packet);
        assert!(receive(&c).is_empty());
    }
    // One that closes at once, and one that goes away without waiting for its answer.
    drop(p.connect());
    let c = p.connect();
    send(&c, &good[..len]);
    drop(c);
    assert!(is_localhost(&ask(&p.connect(), &LOCALHOST)));
    assert!(p.counters.read(Counter::Malformed) >= 5);
    p.end();
}

#[test]
fn a_flood_is_told_so_and_passes() {
    let p = Played::start();
    // Connections without a question keep the workers; the queue fills up behind them.
    let silent: Vec<OwnedFd> =
        (0..serve::WORKERS_MAX + serve::QUEUE_MAX).map(|_| p.connect()).collect();
    let begun = Instant::now();
    let packet = ask(&p.connect(), &LOCALHOST);
    let (o, _) = Outcome::parse(&packet).expect("an answer");
    assert_eq!(o.code, BUSY);
    assert!(begun.elapsed() < Duration::from_secs(1), "it was not told at once");
    assert_eq!(p.counters.read(Counter::Busy), 1);
    drop(silent);
    let end = Instant::now() + Duration::from_secs(20);
    while !is_localhost(&ask(&p.connect(), &LOCALHOST)) {
        assert!(Instant::now() < end, "never served again");
    }
    p.end();
}

#[test]
fn an_answer_that_does_not_fit_is_an_error() {
    let mut small = [0; 40];
    let (len, again) = lookup::answer(&LOCALHOST, &mut small);
    let (o, r) = Outcome::parse(&small[..len]).expect("an answer");
    assert_eq!((o.code, r.is_at_end(), again), (libc::EAI_MEMORY, true, false));
    let host = Question::HostByName { name: b"localhost", family: 0 };
    let (len, _) = lookup::answer(&host, &mut small);
    assert_eq!(Outcome::parse(&small[..len]).map(|(o, _)| o.code), Some(libc::ENOMEM));
}

#[test]
fn counters_that_are_too_short_are_not_mapped() {
    let short = sys::region("short", 0).expect("memfd");
    assert_eq!(Counters::map(short).err().and_then(|e| e.raw_os_error()), Some(libc::EINVAL));
}
