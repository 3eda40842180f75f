//! The attach server of the daemon under messages that no honest process sends: wrong kinds, sizes, counts and types of
//! descriptors, forged words, connections closed at any time.
//!
//! [`run`] takes any bytes as the acts. One server lives in this process; after the acts an honest process must still be
//! served.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nk_attach::{Kind, Message};
use nk_host::config::Config;
use nk_host::server::{Server, Setup};
use nk_host::sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;

const CONNECTIONS: usize = 4;
const ACTS_MAX: usize = 64;

struct Daemon {
    path: PathBuf,
    /// What `path` goes through.
    _socket: File,
    /// Descriptors of each type that a guest could pass.
    bait: Vec<OwnedFd>,
}

fn daemon() -> &'static Daemon {
    static DAEMON: OnceLock<Daemon> = OnceLock::new();
    DAEMON.get_or_init(|| {
        let name = std::env::temp_dir().join(format!("nk-attach-fuzz-{}", std::process::id()));
        let listener = sys::listen_at(&name, 0o600).expect("listen");
        // A fuzzer's process ends without a last step: nothing is to be left of it, so the name goes at once.
        let socket = File::options().read(true).custom_flags(libc::O_PATH).open(&name);
        let socket = socket.expect("the socket");
        std::fs::remove_file(&name).expect("remove");
        let path = PathBuf::from(format!("/proc/self/fd/{}", socket.as_raw_fd()));
        let setup = Setup {
            listener,
            config: Config::default(),
            private: false,
            keeper: None,
            entries: Vec::new(),
            // One that dies at once: started again and again, at a bounded rate.
            resolver: c"/bin/false",
        };
        let mut server = Server::new(setup).expect("server");
        std::thread::spawn(move || {
            let ended = server.run();
            // Nothing that a client sends may end a daemon that serves others.
            eprintln!("the attach server ended: {ended:?}");
            std::process::abort();
        });
        let mut bait = vec![
            sys::eventfd().expect("eventfd"),
            File::open("/proc/self/ns/net").expect("netns").into(),
            File::open("/dev/null").expect("null").into(),
            File::open("/").expect("directory").into(),
            File::open("/proc/self/ns/pid").expect("pidns").into(),
        ];
        let (a, b) = std::os::unix::net::UnixStream::pair().expect("pair");
        bait.extend([OwnedFd::from(a), OwnedFd::from(b)]);
        bait.push(std::net::TcpListener::bind("127.0.0.1:0").expect("tcp").into());
        Daemon { path, _socket: socket, bait }
    })
}

impl Daemon {
    fn connect(&self) -> Option<OwnedFd> {
        sys::connect(&self.path).ok()
    }
}

struct Bytes<'a>(&'a [u8]);
impl Bytes<'_> {
    fn u8(&mut self) -> u8 {
        let Some((b, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *b
    }
    fn u64(&mut self) -> u64 {
        (0..8).fold(0, |w, _| w << 8 | u64::from(self.u8()))
    }
    /// A word: small, any, or one that an answer gave.
    fn word(&mut self, known: &[u64]) -> u64 {
        match self.u8() % 4 {
            0 => u64::from(self.u8()),
            1 => self.u64(),
            _ => known.get(usize::from(self.u8()) % known.len().max(1)).copied().unwrap_or(0),
        }
    }
}

/// Runs the acts, and once in a while asks whether an honest process is served.
///
/// # Panics
/// When it is not.
pub fn run(data: &[u8]) {
    let d = daemon();
    let mut connections: [Option<OwnedFd>; CONNECTIONS] = Default::default();
    let mut known = vec![0, 1];
    let mut token = (0, 0);
    let mut bytes = Bytes(data);
    for _ in 0..ACTS_MAX {
        if bytes.0.is_empty() {
            break;
        }
        let act = bytes.u8();
        let slot = &mut connections[usize::from(act >> 6)];
        if slot.is_none() {
            *slot = d.connect();
        }
        let Some(connection) = slot else { continue };
        let fd = connection.as_raw_fd();
        match act & 0x3f {
            0..=3 => *slot = None,
            4..=7 => {
                let len = usize::from(bytes.u8()) * 2;
                let junk = vec![bytes.u8(); len];
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                let _ = rustix::net::send(connection, &junk, flags);
            }
            _ => {
                let m = message(&mut bytes, &known, token);
                let bait = bytes.u8();
                let count = usize::from(bait & 7) % (nk_attach::FDS_MAX + 1);
                let fds: Vec<RawFd> = (0..count)
                    .map(|i| d.bait[(usize::from(bait >> 3) + i) % d.bait.len()].as_raw_fd())
                    .collect();
                // A full socket would block: what does not fit is not sent.
                let mut p = [PollFd::new(connection, PollFlags::OUT)];
                let now = Timespec::default();
                if poll(&mut p, Some(&now)) == Ok(1) && p[0].revents() == PollFlags::OUT {
                    let _ = nk_attach::send(fd, &m, &fds);
                }
                if bytes.u8() & 1 == 0 {
                    let end = Instant::now() + Duration::from_millis(20);
                    while Instant::now() < end {
                        match nk_attach::recv(fd, true) {
                            Ok((r, _, _)) => {
                                if r.kind == Kind::CreateGuest as u32 && r.status == 0 {
                                    token = (r.b, r.c);
                                }
                                known.extend([r.a, r.b, r.c]);
                                break;
                            }
                            Err(nk_attach::RecvError::Os(_)) => std::thread::yield_now(),
                            Err(_) => break,
                        }
                    }
                }
            }
        }
    }
    drop(connections);
    honest(d);
}

fn message(bytes: &mut Bytes<'_>, known: &[u64], token: (u64, u64)) -> Message {
    let mut m = Message::new(Kind::Query);
    m.kind = u32::from(bytes.u8() % 24);
    m.a = bytes.word(known);
    (m.b, m.c) = if bytes.u8() & 1 == 0 { token } else { (bytes.word(known), bytes.word(known)) };
    m.d = bytes.word(known);
    m.status = i32::from(bytes.u8());
    m.text_len = if bytes.u8() & 7 == 0 { u32::MAX } else { u32::from(bytes.u8()) };
    let texts: [&[u8]; 6] = [b"guests", b"flows", b"why 1", b"stats", b"\xff\xfe", b"a/../b"];
    let text = texts[usize::from(bytes.u8()) % texts.len()];
    m.text[..text.len()].copy_from_slice(text);
    if bytes.u8() & 15 == 0 {
        m.protocol = bytes.u64() as u32;
    }
    m
}

fn honest(d: &Daemon) {
    let end = Instant::now() + Duration::from_secs(20);
    let mut last = String::new();
    while Instant::now() < end {
        let Some(fd) = d.connect() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        sys::set_receive_timeout(&fd, 10).expect("time-out");
        let m = Message::new(Kind::Query).with_text("guests");
        if nk_attach::send(fd.as_raw_fd(), &m, &[]).is_ok() {
            match nk_attach::recv(fd.as_raw_fd(), false) {
                Ok((r, fds, _)) if r.status == 0 && fds.len() == 1 => return,
                other => last = format!("{other:?}"),
            }
        }
        // Refused for a moment by a limit that the acts used up; not for good.
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("an honest process is not served: {last}");
}
