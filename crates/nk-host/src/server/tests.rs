//! A daemon whose steps are made one by one.

use super::*;
use crate::sys;
use nk_attach::{Credentials, Kind, Message};
use nk_engine::GuestId;
use std::os::fd::AsRawFd;

pub(super) fn pid() -> i32 {
    std::process::id() as i32
}

/// A daemon with an inline NSM, and its keeper's end, where the test plays that one.
pub(super) fn played() -> (Server, OwnedFd) {
    let (keeper, its) = Keeper::played();
    let name = format!("nk-played-{}-{}", pid(), its.as_raw_fd());
    let path = std::env::temp_dir().join(name);
    let setup = Setup {
        listener: sys::listen_at(&path, 0o600).expect("listen"),
        config: Config::default(),
        private: true,
        keeper: Some(keeper),
        entries: Vec::new(),
        resolver: c"/bin/false",
    };
    let server = Server::new(setup).expect("a server");
    let _ = std::fs::remove_file(path);
    (server, its)
}

/// Somebody wants a guest made in this process's namespace.
pub(super) fn create(server: &mut Server, name: &str, who: Credentials) -> Result<GuestId, i32> {
    let (fd, creator) = sys::seqpacket_pair().expect("pair");
    let netns = std::fs::File::open("/proc/self/ns/net").expect("netns");
    let m = Message::new(Kind::CreateGuest).with_text(name);
    nk_attach::send(creator.as_raw_fd(), &m, &[netns.as_raw_fd()]).expect("send");
    let (m, fds, _) = nk_attach::recv(fd.as_raw_fd(), true).expect("it came");
    let stranger = Source::Connection { fd, role: Role::Stranger };
    let token = server.watch(stranger, EventFlags::IN).expect("watched");
    let made = server.create_guest(token, &m, fds, Some(who)).expect("it goes on").message;
    if made.status == 0 { Ok(GuestId(made.a as u16)) } else { Err(made.status) }
}

#[test]
fn a_keeper_that_cannot_be_watched_ends_no_daemon_and_is_watched_later() {
    let (mut server, its) = played();
    // The kernel has no room: it is watched already.
    server.next_keeper(true);
    let due = server.keeper_life.due().expect("it is tried again");
    let k = server.keeper.clone().expect("a keeper");
    k.with_connection(|fd| server.epoll.remove(fd));
    assert_eq!(server.keeper_timer(due), None, "it is watched");
    drop(its);
    let mut events = Vec::new();
    server.epoll.wait(&mut events, 10_000).expect("wait");
    for (word, flags) in events {
        server.event(Token::from_word(word), flags).expect("it goes on");
    }
    assert!(server.keeper_is_away, "its end was not seen");
}

#[test]
fn no_user_takes_all_guests() {
    sys::raise_fd_limit();
    let (mut server, its) = played();
    std::thread::spawn(move || while nk_attach::recv(its.as_raw_fd(), false).is_ok() {});
    let who = |uid| Credentials { pid: pid(), uid, gid: uid };
    let mut make = |n: usize, uid| create(&mut server, &format!("g{n}"), who(uid));
    let made = (0..GUESTS_MAX).take_while(|n| make(*n, 7001).is_ok()).count();
    assert_eq!(made, GUESTS_MAX / 4);
    assert_eq!(make(GUESTS_MAX, 7001), Err(libc::EAGAIN));
    make(GUESTS_MAX, 7002).expect("another user's");
    make(GUESTS_MAX + 1, 0).expect("root's");
}
