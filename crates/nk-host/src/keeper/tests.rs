use super::*;

impl Keeper {
    /// One that is played by who has the other end, where it reads what it is told.
    pub(crate) fn played() -> (Keeper, OwnedFd) {
        let (connection, its) = sys::seqpacket_pair().expect("pair");
        let connection = Connection::new(connection, None, TAKES_MAX).expect("a connection");
        (Keeper::new(Path::new("/"), None, connection, Entries::default()), its)
    }
}

/// Sends a message with more descriptors than there is room for, as where the receiver has no numbers left.
pub(super) fn send_cut(socket: &OwnedFd, m: &Message) {
    let many = [socket.as_fd(); 40];
    let mut room = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut room);
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&many)));
    let mut bytes = [m.protocol, m.kind, 0, 0, 0, 0].map(u32::to_ne_bytes).concat();
    bytes.extend([m.a, m.b].map(u64::to_ne_bytes).concat());
    bytes.resize(size_of::<Message>(), 0);
    let flags = rustix::net::SendFlags::empty();
    let sent = rustix::net::sendmsg(socket, &[io::IoSlice::new(&bytes)], &mut control, flags);
    sent.expect("a message");
}

#[test]
fn who_cannot_take_every_descriptor_takes_over_nothing() {
    let (daemon, keeper) = sys::seqpacket_pair().expect("pair");
    let mut m = Message::new(Kind::Keep);
    m.a = CLASS_QSET;
    nk_attach::send(keeper.as_raw_fd(), &m, &[keeper.as_raw_fd()]).expect("an entry");
    send_cut(&keeper, &m);
    nk_attach::send(keeper.as_raw_fd(), &Message::new(Kind::Kept), &[]).expect("all");
    let taken = take_back(&daemon, &mut Entries::default()).map(|(entries, _)| entries.len());
    assert_eq!(taken.expect_err("not all of it").raw_os_error(), Some(libc::EMFILE));
}

#[test]
fn a_keeper_that_ends_is_told_from_one_that_has_a_daemon() {
    let path = std::env::temp_dir().join(format!("nk-keeper-test-{}", std::process::id()));
    let listener = sys::listen_at(&path, 0o600).expect("listen");
    let ends = {
        let path = path.clone();
        std::thread::spawn(move || {
            // As its process does it: whoever connected meanwhile is not accepted any more.
            std::thread::sleep(Duration::from_millis(50));
            std::fs::remove_file(path).expect("its path");
            std::thread::sleep(Duration::from_millis(50));
            drop(listener);
        })
    };
    assert!(Keeper::find(&path).expect("no daemon").is_none());
    ends.join().expect("ended");
    let listener = sys::listen_at(&path, 0o600).expect("listen");
    let serves = std::thread::spawn(move || {
        // The listener does not block, and nobody may have connected yet.
        let accepted = (0..5_000).find_map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            sys::accept(&listener).ok()
        });
        let second = accepted.expect("a connection");
        // It has asked by now, and is not read.
        std::thread::sleep(Duration::from_millis(50));
        refuse_second(second.as_raw_fd());
    });
    let begun = Instant::now();
    let found = Keeper::find(&path).map(|f| f.map(|_| ()));
    assert_eq!(found.expect_err("it has a daemon").raw_os_error(), Some(libc::EADDRINUSE));
    assert!(begun.elapsed() < ENDING_MAX);
    serves.join().expect("served");
    let _ = std::fs::remove_file(&path);
}

#[test]
fn a_keeper_that_is_stopped_is_not_waited_for() {
    let path = std::env::temp_dir().join(format!("nk-keeper-stopped-{}", std::process::id()));
    let _listener = sys::listen_at(&path, 0o600).expect("listen");
    let (sender, over) = std::sync::mpsc::channel();
    let its = path.clone();
    std::thread::spawn(move || sender.send(Keeper::find_in(&its, 1).map(|f| f.is_some())));
    let found = over.recv_timeout(Duration::from_secs(60)).expect("it is waited for");
    assert_eq!(found.expect_err("no answer").kind(), io::ErrorKind::TimedOut);
    let _ = std::fs::remove_file(&path);
}
