//! Who means harm, and steps that fail: the daemon goes on, and nothing stays behind.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nk_attach::{Kind, Message};
use nk_device::Layout;
use nk_engine::GuestId;
use nk_host::config::Config;
use nk_host::guest::{GuestCounters, Region};
use nk_host::keeper::Entry;
use nk_host::keeper::book::{self, Said};
use nk_host::limits::GuestLimits;
use nk_host::sys;
use rustix::event::epoll;

use super::{Attached, Host, Played, ask, message, wait};

/// A guest has the sockets of its processes, too, and may have given both ends of one pair away as the far ends of two children's. What comes out
/// of one end is an answer to what went into the other, and no request.
#[test]
fn a_daemon_does_not_talk_with_itself() {
    let g = Played::create();
    let p = g.attach().expect("attach");
    let says = [
        (Message::new(Kind::Fork), None),
        (message(Kind::Attach, 0, g.token.0, g.token.1), Some(&p.bell)),
        (Message::new(Kind::Names), None),
        (message(Kind::Settle, nk_attach::SETTLE_ASKS, 0, 0), None),
    ];
    for (m, with) in says {
        let (one, other) = sys::seqpacket_pair().expect("pair");
        let with: Vec<RawFd> = with.into_iter().map(AsRawFd::as_raw_fd).collect();
        nk_attach::send(one.as_raw_fd(), &m, &with).expect("send");
        let rows = [one, other].map(|far| {
            let fork = Message::new(Kind::Fork);
            let (r, _) = ask(&p.control, &fork, &[p.bell.as_raw_fd(), far.as_raw_fd()]);
            assert_eq!(r.status, 0, "{:?}", r.text());
            r.a as u16
        });
        wait("the end of a talk", || !rows.iter().any(|row| p.row_in_use(*row)));
    }
    assert!(p.row_in_use(p.row));
}

/// It has the far end as well, and says that who peeks skips more than there is.
#[test]
fn a_childs_hello_is_heard_wherever_a_peek_is_to_begin() {
    let g = Played::create();
    let p = g.attach().expect("attach");
    let (near, far) = sys::seqpacket_pair().expect("pair");
    let skip = 1i32 << 20;
    // SAFETY: the kernel reads a number.
    let set = unsafe {
        let (from, len) = ((&raw const skip).cast(), size_of::<i32>() as u32);
        libc::setsockopt(far.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, from, len)
    };
    assert_eq!(set, 0);
    let fork = Message::new(Kind::Fork);
    let (r, _) = ask(&p.control, &fork, &[p.bell.as_raw_fd(), far.as_raw_fd()]);
    assert_eq!(r.status, 0, "{:?}", r.text());
    nk_attach::send(near.as_raw_fd(), &Message::new(Kind::Hello), &[]).expect("hello");
    let device = p.device();
    let pid = &device.row(r.a as u16).expect("row").pid;
    wait("the child's pid", || pid.load(Ordering::SeqCst) == std::process::id());
}

/// How much the epolls of this process watch for guests with these numbers.
fn watched_for(guests: &[u64]) -> usize {
    let all = std::fs::read_dir("/proc/self/fdinfo").expect("fdinfo").flatten();
    let lines = all.filter_map(|f| std::fs::read_to_string(f.path()).ok());
    let is_theirs = |line: &&str| {
        let mut words = line.strip_prefix("tfd:").unwrap_or("").split_whitespace().skip(4);
        let data = words.next().and_then(|w| u64::from_str_radix(w, 16).ok());
        data.is_some_and(|d| guests.contains(&d))
    };
    lines.map(|text| text.lines().filter(is_theirs).count()).sum()
}

#[test]
fn a_guest_that_has_ended_wakes_nobody() {
    let mut g = Played::create();
    let mut kept = Vec::new();
    // Beyond the numbers of other tests' guests.
    for _ in 0..12 {
        let Attached { control, engine, region, row, .. } = g.attach().expect("attach");
        kept.push(engine);
        drop(control);
        let row = region.device.row(row).expect("row");
        wait("the end of a process", || row.in_use.load(Ordering::SeqCst) == 0);
        g = Played::create_on(g.host);
    }
    let _p = g.attach().expect("attach");
    assert!(watched_for(&[13]) > 0, "the one that lives is not found");
    assert_eq!(watched_for(&[8, 9, 10, 11, 12]), 0);
}

/// What a guest is made of for the next daemon, one of whose steps fails: nothing of it stays behind.
#[test]
fn of_a_guest_that_is_not_adopted_nothing_is_left() {
    let (netns, inode) = std::thread::spawn(|| {
        // SAFETY: this thread alone changes its namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "as root");
        let fd = OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").expect("netns"));
        let inode = sys::identity(&fd).expect("it is open").1;
        (fd, inode)
    })
    .join()
    .expect("a namespace");
    let limits = GuestLimits::default();
    let said = Said { uid: 0, flags: 0, limits, nsm: "kernel".into(), name: "old".into() };
    let region = Region::new("old", Layout::GUEST, 500).expect("region");
    let counters = GuestCounters::new("old").expect("counters");
    let (near, far) = sys::seqpacket_pair().expect("pair");
    // The kernel refuses to watch what is nested so deep.
    let new = || epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let mut nested = vec![new()];
    while let (Some(inner), outer) = (nested.last(), new()) {
        let data = epoll::EventData::new_u64(0);
        match epoll::add(&outer, inner, data, epoll::EventFlags::IN) {
            Ok(()) => nested.push(outer),
            Err(_) => break,
        }
    }
    let last = nested.last().expect("one").try_clone().expect("a copy");
    let id = GuestId(500);
    let guest = vec![
        region.memfd.try_clone().expect("a copy"),
        sys::eventfd().expect("eventfd"),
        netns,
        counters.memfd.try_clone().expect("a copy"),
    ];
    let process = vec![far, last];
    let entries = vec![
        Entry::new(&book::guest(id, (1, 2), &said), guest),
        Entry::new(&book::process(id, 1, 9, true, true), process),
        Entry::new(&book::qset(id, 1, 1, true), vec![sys::eventfd().expect("eventfd")]),
    ];
    let _host = Host::adopting(Config::default(), None, entries);
    assert!(sys::is_hung_up(&near), "its process is not told");
    let is_there = |task: &std::fs::DirEntry| {
        let file = std::fs::File::open(task.path().join("ns/net")).ok();
        file.and_then(|f| sys::identity(&f).ok()).is_some_and(|i| i.1 == inode)
    };
    wait("the namespace's end", || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("tasks").flatten();
        !tasks.into_iter().any(|t| is_there(&t))
    });
}

#[test]
fn who_says_nothing_keeps_nobody_out() {
    sys::raise_fd_limit();
    let g = Played::create();
    let silent: Vec<OwnedFd> = (0..600).map(|_| g.host.connect()).collect();
    let p = g.attach().expect("attach");
    assert!(p.row_in_use(p.row));
    assert!(silent.iter().any(|s| !sys::is_hung_up(s)), "they may be silent");
}

/// Runs in a process of its own: it leaves ever fewer descriptors for daemon and guest, from none to enough.
#[test]
fn a_daemon_without_descriptors_refuses_and_serves() {
    const ALONE: &str = "NK_ATTACH_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "hostile::a_daemon_without_descriptors_refuses_and_serves";
        let mut alone = std::process::Command::new(std::env::current_exe().expect("this"));
        let ended = alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1").status();
        assert!(ended.expect("a process").success());
        return;
    }
    let g = Played::create();
    let _p = g.attach().expect("attach");
    let netns = OwnedFd::from(std::fs::File::open("/proc/self/ns/net").expect("netns"));
    let bell = sys::eventfd().expect("eventfd");
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: Some(128), maximum: Some(128) },
    )
    .expect("a limit");
    let mut made = 0;
    for free in 0..24 {
        let stranger = g.host.connect();
        // It is the daemon's, too, once it has answered.
        let (r, _) = ask(&stranger, &Message::new(Kind::Query).with_text("what"), &[]);
        assert_eq!(r.status, libc::EINVAL);
        let asks = g.host.connect();
        let (r, _) = ask(&asks, &Message::new(Kind::Query).with_text("what"), &[]);
        assert_eq!(r.status, libc::EINVAL);
        let mut all: Vec<OwnedFd> = std::iter::from_fn(|| netns.try_clone().ok()).collect();
        all.truncate(all.len() - free);
        let mut m = Message::new(Kind::CreateGuest).with_text(&format!("vm-{free}"));
        m.a = nk_attach::CREATE_VM;
        let (r, _) = ask(&stranger, &m, &[netns.as_raw_fd(), bell.as_raw_fd()]);
        made += u32::from(r.status == 0);
        let (of, _) = ask(&asks, &Message::new(Kind::Query).with_text("guests"), &[]);
        assert!([0, libc::EMFILE].contains(&of.status), "with {free}: {:?}", of.text());
        // Its connection was all that it lived by; and its end needs none either.
        drop(stranger);
        std::thread::sleep(Duration::from_millis(20));
        drop(all);
        assert!(!g.host.thread.as_ref().expect("it runs").is_finished(), "with {free}: {r:?}");
    }
    assert!((1..24).contains(&made), "{made} of 24 were made");
}
