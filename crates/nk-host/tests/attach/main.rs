//! The attach server against played processes: real sockets, real regions, no GuestLib.

mod hostile;

use std::ffi::{CStr, CString};
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nk_attach::{Fds, Kind, Message};
use nk_device::row::ROW_EXECING;
use nk_device::{Device, Layout, Nqe, Op};
use nk_host::config::Config;
use nk_host::guest::Region;
use nk_host::keeper::{CLASS_GUEST, CLASS_PROCESS, CLASS_QSET, CLASS_TOTALS, Entry, Keeper};
use nk_host::server::{Server, Setup};
use nk_host::sys;

const LIMIT: Duration = Duration::from_secs(20);

/// A private daemon in a thread: it ends by itself when its guest is gone.
struct Host {
    path: PathBuf,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Host {
    fn start(config: Config) -> Host {
        Host::start_with(config, None)
    }

    fn start_with(config: Config, keeper: Option<Keeper>) -> Host {
        Host::adopting(config, keeper, Vec::new())
    }

    fn adopting(config: Config, keeper: Option<Keeper>, entries: Vec<Entry>) -> Host {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("nk-attach-{}-{n}", std::process::id()));
        let listener = sys::listen_at(&path, 0o600).expect("listen");
        let setup = Setup {
            listener,
            config,
            private: true,
            keeper,
            entries,
            // One that ends without answering anybody.
            resolver: c"/bin/false",
        };
        let mut server = Server::new(setup).expect("server");
        let thread = Some(std::thread::spawn(move || server.run()));
        Host { path, thread }
    }

    fn connect(&self) -> OwnedFd {
        let fd = sys::connect(&self.path).expect("connect");
        sys::set_receive_timeout(&fd, 10).expect("time-out");
        fd
    }

    /// Waits until the server has ended by itself.
    fn ended(mut self) {
        let thread = self.thread.take().expect("thread");
        wait("the private daemon's end", || thread.is_finished());
        thread.join().expect("no panic").expect("a clean end");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn ask(socket: &OwnedFd, m: &Message, fds: &[RawFd]) -> (Message, Fds) {
    nk_attach::send(socket.as_raw_fd(), m, fds).expect("send");
    let (reply, fds, _) = nk_attach::recv(socket.as_raw_fd(), false).expect("reply");
    assert_eq!(reply.kind, m.kind);
    (reply, fds)
}

fn message(kind: Kind, a: u64, b: u64, c: u64) -> Message {
    let mut m = Message::new(kind);
    (m.a, m.b, m.c) = (a, b, c);
    m
}

/// A guest, and this test process as its first process.
struct Played {
    host: Host,
    token: (u64, u64),
    creator: OwnedFd,
}

impl Played {
    fn create() -> Played {
        Played::create_with(Config::default())
    }

    fn create_with(config: Config) -> Played {
        Played::create_on(Host::start(config))
    }

    fn create_on(host: Host) -> Played {
        let creator = host.connect();
        let netns = OwnedFd::from(std::fs::File::open("/proc/self/ns/net").expect("netns"));
        let m = Message::new(Kind::CreateGuest).with_text("played");
        let (reply, _) = ask(&creator, &m, &[netns.as_raw_fd()]);
        assert_eq!(reply.status, 0, "{:?}", reply.text());
        Played { host, token: (reply.b, reply.c), creator }
    }

    fn attach(&self) -> Result<Attached, (i32, String)> {
        let control = self.host.connect();
        let bell = sys::eventfd().expect("eventfd");
        let m = message(Kind::Attach, 0, self.token.0, self.token.1);
        let (r, mut fds) = ask(&control, &m, &[bell.as_raw_fd()]);
        if r.status != 0 {
            return Err((r.status, r.text().unwrap_or("").to_owned()));
        }
        let memfd = sys::take(&mut fds, 0).expect("memfd");
        let engine = sys::take(&mut fds, 1).expect("engine's eventfd");
        let region = Region::map(memfd, Layout::GUEST).expect("map");
        assert_eq!(r.c as usize, region.len());
        let (row, qset, kept) = (r.a as u16, r.b as u16, r.d == 1);
        Ok(Attached { control, bell, engine, region, row, qset, kept })
    }
}

struct Attached {
    control: OwnedFd,
    bell: OwnedFd,
    engine: OwnedFd,
    region: Region,
    row: u16,
    qset: u16,
    kept: bool,
}

impl Attached {
    fn device(&self) -> Device {
        self.region.device
    }
    fn row_in_use(&self, row: u16) -> bool {
        self.device().row(row).expect("row").in_use.load(Ordering::SeqCst) != 0
    }
    fn qset_in_use(&self, qset: u16) -> bool {
        self.device().qset(qset).expect("queue set").in_use.load(Ordering::SeqCst) != 0
    }

    /// Announces a fork; returns the child's row and the near end of its control socket.
    fn fork(&self) -> (u16, u16, OwnedFd) {
        let (near, far) = sys::seqpacket_pair().expect("pair");
        let bell = sys::eventfd().expect("eventfd");
        let m = Message::new(Kind::Fork);
        let (r, _) = ask(&self.control, &m, &[bell.as_raw_fd(), far.as_raw_fd()]);
        assert_eq!(r.status, 0, "{:?}", r.text());
        (r.a as u16, r.b as u16, near)
    }

    /// Makes a socket as GuestLib does: a granted id, this row's holder bit, the job.
    fn socket(&self) -> (u32, u16) {
        let d = self.device();
        let row = d.row(self.row).expect("row");
        let mut id = None;
        wait("an id to be granted", || {
            id = row.id_grants.pop();
            id.is_some()
        });
        let id = id.expect("id");
        let cell = d.cell(id).expect("cell");
        let generation = cell.generation.load(Ordering::SeqCst) as u16;
        cell.hold(self.row);
        cell.kind.store(2 | 1 << 16, Ordering::SeqCst);
        let mut nqe = Nqe::new(Op::Socket, id, generation);
        nqe.op_data = 2 | 1 << 16;
        d.qset(self.qset).expect("queue set").job().push(&nqe).expect("room");
        if d.header().ring_bell(self.qset) {
            sys::ring(&self.engine);
        }
        (id, generation)
    }

    fn generation(&self, id: u32) -> u16 {
        self.device().cell(id).expect("cell").generation.load(Ordering::SeqCst) as u16
    }
}

#[test]
fn a_process_attaches_and_a_private_daemon_ends_after_it() {
    let g = Played::create();
    let p = g.attach().expect("attach");
    assert!(!p.kept && p.row_in_use(p.row) && p.qset_in_use(p.qset));
    let pid = p.device().row(p.row).expect("row").pid.load(Ordering::SeqCst);
    assert_eq!(pid, std::process::id());
    assert_eq!(g.attach().err().map(|e| e.0), Some(libc::EEXIST));
    drop(p);
    let Played { host, creator, .. } = g;
    drop(creator);
    host.ended();
}

/// As where a daemon died before it answered: the next one knows the process by its connection.
#[test]
fn who_asks_again_on_its_connection_is_told_what_it_has() {
    let g = Played::create();
    let p = g.attach().expect("attach");
    let m = message(Kind::Attach, 0, g.token.0, g.token.1);
    let (r, mut fds) = ask(&p.control, &m, &[p.bell.as_raw_fd()]);
    assert_eq!((r.status, r.a, r.b), (0, p.row.into(), p.qset.into()), "{:?}", r.text());
    assert_eq!(r.c as usize, p.region.len());
    assert!([0, 1].into_iter().all(|i| sys::take(&mut fds, i).is_some()));
    // Another connection of the same process is none of its.
    assert_eq!(g.attach().err().map(|e| e.0), Some(libc::EEXIST));
}

#[test]
fn a_resolver_that_dies_ends_the_questions_and_is_not_started_without_rest() {
    let g = Played::create();
    let p = g.attach().expect("attach");
    let begun = Instant::now();
    let (mut given, mut refused) = (0u32, 0u32);
    while begun.elapsed() < Duration::from_millis(1500) {
        let (r, mut fds) = ask(&p.control, &Message::new(Kind::Names), &[]);
        match r.status {
            0 => {
                given += 1;
                let near = sys::take(&mut fds, 0).expect("a connection");
                sys::set_receive_timeout(&near, 10).expect("time-out");
                let read = rustix::io::read(&near, &mut [0u8; 1]);
                assert!(read == Ok(0) || sys::has_ended(&near), "the connection did not end");
            }
            libc::EAGAIN => refused += 1,
            e => panic!("errno {e}"),
        }
    }
    assert!((2..=20).contains(&given) && refused > 0, "{given} given, {refused} refused");
    drop(p);
    let Played { host, creator, .. } = g;
    drop(creator);
    host.ended();
}

#[test]
fn a_guest_without_names_is_told_so() {
    let mut config = Config::default();
    config.guest.entry("played".into()).or_default().names = Some(false);
    let g = Played::create_with(config);
    let p = g.attach().expect("attach");
    let (r, fds) = ask(&p.control, &Message::new(Kind::Names), &[]);
    assert_eq!((r.status, fds.len()), (libc::EPERM, 0));
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let g = Played::create();
    let status = |m: &Message, fds: &[RawFd]| ask(&g.host.connect(), m, fds).0.status;
    let bell = sys::eventfd().expect("eventfd");
    let null = OwnedFd::from(std::fs::File::open("/dev/null").expect("null"));
    let attach = message(Kind::Attach, 0, g.token.0, g.token.1);
    let wrong = message(Kind::Attach, 0, g.token.0, g.token.1 ^ 1);
    assert_eq!(status(&wrong, &[bell.as_raw_fd()]), libc::ENOENT);
    assert_eq!(status(&attach, &[]), libc::EINVAL);
    assert_eq!(status(&attach, &[null.as_raw_fd()]), libc::EINVAL);
    assert_eq!(status(&Message::new(Kind::Fork), &[]), libc::EINVAL);
    let same_name = Message::new(Kind::CreateGuest).with_text("a/b");
    assert_eq!(status(&same_name, &[null.as_raw_fd()]), libc::EINVAL);
    let no_netns = Message::new(Kind::CreateGuest).with_text("other");
    assert_eq!(status(&no_netns, &[null.as_raw_fd()]), libc::EINVAL);
    assert_eq!(status(&Message::new(Kind::Query).with_text("what"), &[]), libc::EINVAL);
    assert_eq!(status(&Message::new(Kind::Query).with_text("why 1"), &[]), libc::ESRCH);
}

#[test]
fn forked_children_come_and_go_with_their_control_socket() {
    let g = Played::create();
    let p = g.attach().expect("attach");
    let (row, qset, near) = p.fork();
    assert!(row != p.row && p.row_in_use(row) && p.qset_in_use(qset));
    nk_attach::send(near.as_raw_fd(), &Message::new(Kind::Hello), &[]).expect("hello");
    let device = p.device();
    let pid = &device.row(row).expect("row").pid;
    wait("the child's pid", || pid.load(Ordering::SeqCst) == std::process::id());
    drop(near);
    wait("the child's end", || !p.row_in_use(row) && !p.qset_in_use(qset));
    // One that fails, and one whose parent says so.
    let (row, _, near) = p.fork();
    drop(near);
    wait("the embryo's end", || !p.row_in_use(row));
    let (row, _, _near) = p.fork();
    let failed = message(Kind::ForkFailed, row.into(), 0, 0);
    nk_attach::send(p.control.as_raw_fd(), &failed, &[]).expect("send");
    wait("the failed fork's end", || !p.row_in_use(row));
    assert!(p.row_in_use(p.row));
}

#[test]
fn an_exec_keeps_the_row_and_a_silent_one_loses_it() {
    let g = Played::create();
    let p = g.attach().expect("attach");
    let (id, generation) = p.socket();
    p.device().row(p.row).expect("row").phase.store(ROW_EXECING, Ordering::SeqCst);
    let Attached { control, region, row, .. } = p;
    drop(control);
    std::thread::sleep(Duration::from_millis(100));
    let p = g.attach().expect("attach after exec");
    assert!(p.kept);
    assert_eq!(p.row, row);
    assert_eq!(p.generation(id), generation, "the socket lives on");
    p.device().row(p.row).expect("row").phase.store(0, Ordering::SeqCst);
    drop(p.control);
    let gone = region.device.cell(id).expect("cell");
    wait("the socket's end", || gone.generation.load(Ordering::SeqCst) as u16 != generation);
    let p = g.attach().expect("attach as another");
    assert!(!p.kept);
}

#[test]
fn queue_sets_come_and_go() {
    let g = Played::create();
    let p = g.attach().expect("attach");
    let (r, _) = ask(&p.control, &Message::new(Kind::AddQset), &[p.bell.as_raw_fd()]);
    assert_eq!(r.status, 0);
    let qset = r.a as u16;
    assert!(qset != p.qset && p.qset_in_use(qset));
    let primary = message(Kind::DropQset, p.qset.into(), 0, 0);
    nk_attach::send(p.control.as_raw_fd(), &primary, &[]).expect("send");
    let drop_it = message(Kind::DropQset, qset.into(), 0, 0);
    nk_attach::send(p.control.as_raw_fd(), &drop_it, &[]).expect("send");
    wait("the queue set's end", || !p.qset_in_use(qset));
    assert!(p.qset_in_use(p.qset), "the primary one stays");
}

#[test]
fn a_hold_outlives_the_holder_and_ends_with_the_pair() {
    let g = Played::create();
    let p = g.attach().expect("attach");
    let (id, generation) = p.socket();
    let (near, far) = sys::seqpacket_pair().expect("pair");
    let hold = message(Kind::Hold, id.into(), generation.into(), 0);
    // The job is served before or after the request: both orders are GuestLib's to see.
    let mut status = libc::EBADF;
    wait("the hold", || {
        status = ask(&p.control, &hold, &[far.as_raw_fd()]).0.status;
        status != libc::EBADF
    });
    assert_eq!(status, 0);
    drop(far);
    assert!(p.device().cell(id).expect("cell").is_held_by(0));
    let stale = message(Kind::Hold, id.into(), u64::from(generation) + 1, 0);
    let (_other, end) = sys::seqpacket_pair().expect("pair");
    assert_eq!(ask(&p.control, &stale, &[end.as_raw_fd()]).0.status, libc::EBADF);
    // The process gives its own up; the held socket stays until the pair is gone.
    assert!(!p.device().cell(id).expect("cell").release(p.row));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(p.generation(id), generation);
    drop(near);
    wait("the socket's end", || p.generation(id) != generation);
}

#[test]
fn messages_of_another_kind_or_version_end_the_connection_only() {
    let g = Played::create();
    let p = g.attach().expect("attach");
    let odd = g.host.connect();
    rustix::io::write(&odd, b"hello").expect("send");
    let (r, _, _) = nk_attach::recv(odd.as_raw_fd(), false).expect("a reason");
    assert_eq!(r.status, libc::EPROTO);
    assert!(nk_attach::recv(odd.as_raw_fd(), false).is_err());
    // Any kind with any words and any descriptors, from a stranger and from a process.
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let null = OwnedFd::from(std::fs::File::open("/dev/null").expect("null"));
    for _ in 0..2000 {
        let mut m = message(Kind::Query, next(), next(), next());
        (m.kind, m.d, m.text_len) = ((next() % 20) as u32, next(), next() as u32);
        let all = [null.as_raw_fd(), p.bell.as_raw_fd(), p.engine.as_raw_fd()];
        let fds = &all[..(next() % 4) as usize];
        let stranger = g.host.connect();
        let _ = nk_attach::send(stranger.as_raw_fd(), &m, fds);
        if m.kind == Kind::Fork as u32 || m.kind == Kind::AddQset as u32 {
            let _ = nk_attach::send(p.control.as_raw_fd(), &m, fds);
            let _ = nk_attach::recv(p.control.as_raw_fd(), false);
        }
    }
    assert!(p.row_in_use(p.row));
    let (r, mut fds) = ask(&g.host.connect(), &Message::new(Kind::Query).with_text("guests"), &[]);
    assert_eq!(r.status, 0);
    let mut text = String::new();
    let file = sys::take(&mut fds, 0).expect("memfd");
    io::Read::read_to_string(&mut std::fs::File::from(file), &mut text).expect("read");
    let answer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(answer[0]["name"], "played");
    assert_eq!(answer[0]["processes"][0]["pid"], std::process::id());
}

/// A keeper that has nothing: its connection with the daemon that asked it.
fn keep_nothing(listener: &OwnedFd) -> OwnedFd {
    sys::set_blocking(listener).expect("blocking");
    let daemon = sys::accept(listener).expect("a daemon");
    sys::set_blocking(&daemon).expect("blocking");
    nk_attach::recv(daemon.as_raw_fd(), false).expect("it asks what there is");
    nk_attach::send(daemon.as_raw_fd(), &Message::new(Kind::Kept), &[]).expect("nothing");
    daemon
}

/// A VM's guest ends with its daemon: a keeper that had its connection would keep that open, and itself alive.
#[test]
fn of_a_vm_the_keeper_is_told_nothing() {
    let path = std::env::temp_dir().join(format!("nk-vm-keeper-{}", std::process::id()));
    let listener = sys::listen_at(&path, 0o600).expect("listen");
    let told = std::thread::spawn(move || {
        let daemon = keep_nothing(&listener);
        let next = || nk_attach::recv(daemon.as_raw_fd(), false).ok();
        let keeps = std::iter::from_fn(next).filter(|(m, ..)| m.kind == Kind::Keep as u32);
        keeps.map(|(m, ..)| m.a).collect::<Vec<_>>()
    });
    let (keeper, _) = Keeper::find(&path).expect("it serves").expect("it is there");
    let host = Host::start_with(Config::default(), Some(keeper));
    let vm = host.connect();
    let netns = OwnedFd::from(std::fs::File::open("/proc/self/ns/net").expect("netns"));
    let bell = sys::eventfd().expect("eventfd");
    let mut m = Message::new(Kind::CreateGuest).with_text("vm");
    m.a = nk_attach::CREATE_VM;
    let (r, fds) = ask(&vm, &m, &[netns.as_raw_fd(), bell.as_raw_fd()]);
    assert_eq!((r.status, fds.len()), (0, 2), "{:?}", r.text());
    drop(vm);
    host.ended();
    let told = told.join().expect("served");
    assert!(told.contains(&CLASS_TOTALS), "it was told nothing at all");
    let of_guests = [CLASS_GUEST, CLASS_PROCESS, CLASS_QSET];
    assert!(!told.iter().any(|class| of_guests.contains(class)), "{told:?}");
    let _ = std::fs::remove_file(&path);
}

/// The keeper ends, and the next one takes its time to start: who asks the daemon for something has it meanwhile.
#[test]
fn a_keeper_that_starts_slowly_holds_up_nobody() {
    let dir = std::env::temp_dir().join(format!("nk-slow-keeper-{}", std::process::id()));
    std::fs::create_dir(&dir).expect("a directory");
    let (path, begun, over) = (dir.join("socket"), dir.join("begun"), dir.join("over"));
    let program = dir.join("slow");
    // It has the socket on which it is waited for, and ends without a word.
    let script = format!("#!/bin/sh\n: > {}\nsleep 2\n: > {}\n", begun.display(), over.display());
    std::fs::write(&program, script).expect("a script");
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("executable");
    let program: &'static CStr =
        Box::leak(CString::new(program.as_os_str().as_bytes()).expect("a path").into_boxed_c_str());
    // A keeper that has nothing, and ends when it is told to.
    let listener = sys::listen_at(&path, 0o600).expect("listen");
    let first = std::thread::spawn(move || keep_nothing(&listener));
    let (keeper, entries) = Keeper::find(&path).expect("it serves").expect("it is there");
    assert!(entries.is_empty());
    let host = Host::start_with(Config::default(), Some(keeper.started_by(program)));
    let played = Played::create_on(host);
    drop(first.join().expect("served"));
    wait("the next keeper", || begun.exists());
    let asked = Instant::now();
    let attached = played.attach().expect("attached");
    assert!(!over.exists(), "the next keeper had ended: {:?}", asked.elapsed());
    // And it is tried again.
    wait("the end of the next keeper", || over.exists());
    std::fs::remove_file(&begun).expect("it had begun");
    wait("the one after", || begun.exists());
    drop((attached, played.creator));
    played.host.ended();
    // The last one ends by itself.
    let _ = std::fs::remove_dir_all(&dir);
}
