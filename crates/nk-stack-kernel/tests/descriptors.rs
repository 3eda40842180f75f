//! No descriptors left: accepting stops without spinning, and goes on. A test binary of its own, because the limit is the process's.
#![allow(unreachable_pub, reason = "the shared module serves several tests")]

mod common;

use std::net::TcpStream;
use std::os::fd::AsRawFd;

use common::{Host, assert_quiet};
use nk_engine::{GuestId, Limits};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn limit(soft: Option<u64>) -> u64 {
    let before = getrlimit(Resource::Nofile);
    if let Some(soft) = soft {
        let limit = Rlimit { current: Some(soft), maximum: before.maximum };
        setrlimit(Resource::Nofile, limit).expect("setrlimit");
    }
    before.current.expect("a limit")
}

#[test]
fn accepting_pauses_and_recovers() {
    let mut host = Host::new();
    let region = host.add_guest(1, 0, Limits::default());
    let mut p = host.process(1, region.device);
    let (listener, port) = p.listener(&mut host, 16);
    let _peers: Vec<_> =
        (0..5).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("connect")).collect();
    // The lowest free number: with it as the limit, none is left.
    let free = std::fs::File::open("/dev/null").expect("file").as_raw_fd();
    let before = limit(Some(free as u64));
    for _ in 0..500 {
        host.poll();
    }
    assert!(p.try_accept(listener).is_none());
    let failures = host.service.stats(1).expect("guest").accept_failures;
    assert!((1..100).contains(&failures), "{failures} attempts in 500 polls");
    let due =
        host.service.poll(host.now_ms() * 1_000_000, Some(0), &mut || {}).due_ns.expect("a timer")
            / 1_000_000;
    assert!(due <= host.now_ms() + 500);
    // A socket of the guest's own says why, too.
    let id = p.socket(2);
    let refused = p.bind(&mut host, id, &nk_device::Addr::v4([127, 0, 0, 1], 0));
    assert_eq!(refused, Err(libc::EMFILE));
    p.close(id);
    limit(Some(before));
    host.skip_ms += 1000;
    for _ in 0..5 {
        let c = p.accept(&mut host, listener);
        p.close(c);
    }
    p.close(listener);
    assert_quiet(&mut host, 1);
    assert_eq!(host.engine.guest_sockets(GuestId(1)), 0);
}
