//! The keeper's own process: one thread, one poll loop, no guest ever talks to it. What it makes of what it hears is [`super::state`]'s.
//!
//! When the daemon's connection closes, it writes `engine_state` in every guest's header. Where the guest's NSM was the daemon's own, or
//! ends before another daemon comes, the guest's connections are lost: whoever sleeps there is woken. It ends when there is no daemon
//! and no guest's process left.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nk_attach::{Fds, Kind, Message, RecvError};
use nk_device::header::ENGINE_AWAY;
use nk_device::sync::{Ordering, fence};
use nk_device::{Cell, Qset, Row};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::SeekFrom;

use super::book::flags_and_nsm;
use super::link::Wire;
use super::state::{End, Mark, State};
use crate::guest::{Region, layout};
use crate::{sys, watchdog};

/// How long the daemon that started this keeper may take to connect.
const FIRST_MAX: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// How long a hostile guest's doorbell may hold it up. The next daemon waits, and there may be as many such guests as there are guests.
const BELL_MAX: Duration = Duration::from_millis(5);

/// Runs until there is nothing left to keep.
///
/// # Errors
/// When its socket fails.
pub fn run(path: PathBuf, private: Option<PathBuf>) -> io::Result<()> {
    sys::name_thread(c"nk-keeper");
    sys::raise_fd_limit();
    serve(&crate::spawn::passed()?, path, private);
    Ok(())
}

fn serve(listener: &OwnedFd, path: PathBuf, private: Option<PathBuf>) {
    let mut s = State::new(private.is_some());
    let mut daemon: Option<OwnedFd> = None;
    while !s.is_over() {
        let watched = s.watched();
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(watched.iter().map(|(_, end)| poll_fd(end)));
        fds.extend(daemon.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, if s.served() { None } else { Some(&FIRST_MAX) }) {
            // The daemon that started this one died before it connected.
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => continue,
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let is_called = fds.first().is_some_and(is_ready);
        let is_told = daemon.is_some() && fds.last().is_some_and(is_ready);
        let ends = watched.iter().zip(fds.iter().skip(1));
        let ended: Vec<_> = ends.filter(|(_, fd)| is_ready(fd)).map(|((who, _), _)| *who).collect();
        for who in ended {
            let marks = s.ended(who);
            mark(&s, &marks);
        }
        if is_told {
            messages(&mut s, &mut daemon);
        }
        if is_called
            && !s.is_over()
            && let Ok(fd) = sys::accept(listener)
        {
            if s.connected() {
                daemon = Some(fd);
            } else {
                super::refuse_second(fd.as_raw_fd());
            }
        }
    }
    let is_complete = s.is_complete();
    // With it goes the attach socket, which the next daemon must not find served when the path is gone.
    drop(s);
    // The path of one that was given up may be the next one's by now.
    if is_complete {
        let _ = std::fs::remove_file(path);
        if let Some(dir) = private {
            crate::private::remove(&dir);
        }
    }
}

/// What to poll for.
fn poll_fd<'a>(end: &End<'a, OwnedFd>) -> PollFd<'a> {
    match end {
        End::Pidfd(fd) => PollFd::new(*fd, PollFlags::IN),
        End::Control(fd) => PollFd::new(*fd, PollFlags::empty()),
    }
}

fn messages(s: &mut State<OwnedFd>, daemon: &mut Option<OwnedFd>) {
    while let Some(fd) = daemon.as_ref() {
        match nk_attach::recv(fd.as_raw_fd(), true) {
            Ok((m, fds, _)) if fds.is_cut() => s.message_without(m),
            Ok((m, fds, _)) => {
                if s.message(m, owned(fds)) {
                    let _ = sys::set_blocking(fd);
                    tell_all(s, fd);
                }
            }
            Err(RecvError::Os(libc::EAGAIN)) => return,
            Err(_) => {
                *daemon = None;
                let marks = s.daemon_ended(|pidfd| sys::has_ended(pidfd));
                mark(s, &marks);
            }
        }
    }
}

/// Tells a daemon of everything, and that this was all; or why it was not.
fn tell_all(s: &State<OwnedFd>, daemon: &OwnedFd) {
    let mut m = Message::new(Kind::Kept);
    let told = s.entries().after(None).try_for_each(|(_, e)| e.send(daemon));
    m.status = told.err().unwrap_or(0);
    let _ = daemon.send(&m, &[]);
}

fn owned(mut fds: Fds) -> Vec<OwnedFd> {
    (0..nk_attach::FDS_MAX).map_while(|i| sys::take(&mut fds, i)).collect()
}

/// Writes into guests' headers, and wakes whoever is to see it.
fn mark(s: &State<OwnedFd>, marks: &[Mark]) {
    if marks.is_empty() {
        return;
    }
    if let Err(e) = watchdog::install(BELL_MAX) {
        eprintln!("nk keeper: no timer: a hostile guest's doorbell may block it: {e}");
    }
    let mut lost = Vec::new();
    for Mark { guest, state } in marks {
        let Some(e) = s.guest(*guest) else { continue };
        let Some(memfd) = e.fds.first().and_then(|f| f.try_clone().ok()) else { continue };
        let (flags, _) = flags_and_nsm(e.message.text().unwrap_or(""));
        match Region::map(memfd, layout(flags)) {
            Ok(r) if *state == ENGINE_AWAY => {
                r.device.header().engine_state.store(*state, Ordering::SeqCst);
            }
            Ok(r) => {
                wake_guest(&r, *state);
                lost.push(*guest);
            }
            Err(e) => eprintln!("nk keeper: cannot map a guest's region: {e}"),
        }
    }
    for guest in lost {
        ring_all(s.bells(guest));
    }
}

/// Rings a guest's doorbells, and how many. One that blocks is a hostile guest's, which has hundreds, and the next daemon waits: no other of its.
fn ring_all<'a>(mut bells: impl Iterator<Item = &'a OwnedFd>) -> usize {
    let mut rung = 0;
    let blocks = |bell: &OwnedFd| {
        watchdog::watch();
        !sys::ring(bell)
    };
    while bells.next().is_some_and(|bell| !blocks(bell)) {
        rung += 1;
    }
    rung
}

/// Says so in the header, then wakes every sleeper there can be: a woken one looks at the header again.
pub(crate) fn wake_guest(region: &Region, state: u32) {
    let d = region.device;
    d.header().engine_state.store(state, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    let bump = |w: &nk_device::sync::AtomicU32| {
        w.fetch_add(1, Ordering::SeqCst);
        sys::futex_wake_all(w);
    };
    let layout = d.layout();
    for i in present::<Row, _>(region, d.row(0), layout.rows) {
        if let Some(r) = d.row(i as u16) {
            bump(&r.grant_wake);
        }
    }
    for i in present::<Qset, _>(region, d.qset(0), layout.qsets) {
        if let Some(q) = d.qset(i as u16) {
            bump(&q.completion_wake);
        }
    }
    for i in present::<Cell, _>(region, d.cell(0), layout.cells) {
        if let Some(c) = d.cell(i) {
            bump(&c.rx_wake);
            bump(&c.tx_wake);
        }
    }
}

/// Indices of the elements of an array in the region that lie wholly on pages which exist: touching the others would make pages. One that was
/// ever used lies so, since it was zeroed whole before.
fn present<T, P>(region: &Region, first: Option<&P>, count: u32) -> Vec<u32> {
    let Some(first) = first else { return Vec::new() };
    let start = std::ptr::from_ref(first) as usize - region.device.base().as_ptr() as usize;
    let size = size_of::<T>();
    let end = start + size * count as usize;
    // Moves the offset of a memfd that nobody reads by its offset.
    let to = |at| rustix::fs::seek(&region.memfd, at).ok().and_then(|at| usize::try_from(at).ok());
    let mut found = Vec::new();
    let mut at = start;
    while let Some(data) = to(SeekFrom::Data(at as u64)).filter(|d| *d < end) {
        let hole = to(SeekFrom::Hole(data as u64)).unwrap_or(end).min(end);
        let from = (data.max(start) - start).div_ceil(size);
        let to = (hole - start) / size;
        found.extend(from as u32..(to as u32).min(count));
        if hole <= at {
            break;
        }
        at = hole;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::entries::Entries;
    use crate::keeper::link::complete;
    use crate::keeper::{CLASS_GUEST, CLASS_PROCESS, CLASS_QSET, HAS_CONTROL, Keeper, take_back};
    use nk_device::Layout;
    use nk_device::header::ENGINE_DOWN;
    use std::os::fd::AsFd;

    /// The daemon dies between a fork and the child's hello.
    #[test]
    fn a_child_that_says_hello_while_there_is_no_daemon_has_not_ended() {
        let path = std::env::temp_dir().join(format!("nk-keeper-child-{}", std::process::id()));
        let listener = sys::listen_at(&path, 0o600).expect("listen");
        let serves = {
            let path = path.clone();
            std::thread::spawn(move || serve(&listener, path, None))
        };
        let daemon = sys::connect(&path).expect("connect");
        let (child, far) = sys::seqpacket_pair().expect("pair");
        let mut m = Message::new(Kind::Keep);
        (m.a, m.b) = (CLASS_GUEST, 1);
        nk_attach::send(daemon.as_raw_fd(), &m, &[]).expect("keep");
        (m.a, m.b, m.d) = (CLASS_PROCESS, 1 << 16 | 2, HAS_CONTROL);
        nk_attach::send(daemon.as_raw_fd(), &m, &[far.as_raw_fd()]).expect("keep");
        complete(&daemon).expect("complete");
        drop((daemon, far));
        nk_attach::send(child.as_raw_fd(), &Message::new(Kind::Hello), &[]).expect("hello");
        std::thread::sleep(Duration::from_millis(100));
        assert!(!sys::is_hung_up(&child), "its control socket was closed");
        let (next, entries) = Keeper::find(&path).expect("it serves").expect("it has something");
        let [_, entry] = &entries[..] else { panic!("{entries:?}") };
        let (hello, ..) = nk_attach::recv(entry.fds[0].as_raw_fd(), true).expect("hello");
        assert_eq!(hello.kind, Kind::Hello as u32);
        // One that ends without a daemon does end, and with it the keeper.
        drop((next, entries, child));
        serves.join().expect("no panic");
        assert!(!path.exists());
    }

    #[test]
    fn who_cannot_be_told_of_an_entry_is_not_told_that_this_was_all() {
        let (daemon, keeper) = sys::seqpacket_pair().expect("pair");
        let mut s = State::new(false);
        let mut m = Message::new(Kind::Keep);
        for (class, fds) in [(CLASS_PROCESS, 1), (CLASS_QSET, nk_attach::FDS_MAX + 1)] {
            m.a = class;
            let fds = (0..fds).map(|_| keeper.try_clone().expect("a copy")).collect();
            s.message(m, fds);
        }
        tell_all(&s, &keeper);
        let told = take_back(&daemon, &mut Entries::default());
        assert_eq!(told.expect_err("one is lacking").raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn what_comes_without_all_its_descriptors_is_not_kept() {
        let (daemon, keeper) = sys::seqpacket_pair().expect("pair");
        let mut s = State::new(false);
        s.connected();
        let entry = |class, key| {
            let mut m = Message::new(Kind::Keep);
            (m.a, m.b) = (class, key);
            m
        };
        for class in [CLASS_GUEST, CLASS_QSET] {
            daemon.send(&entry(class, 1), &[daemon.as_fd()]).expect("an entry");
        }
        for (class, key) in [(CLASS_GUEST, 1), (CLASS_GUEST, 2), (CLASS_QSET, 1), (CLASS_QSET, 2)] {
            crate::keeper::tests::send_cut(&daemon, &entry(class, key));
        }
        messages(&mut s, &mut Some(keeper));
        let kept: Vec<_> = s.entries().after(None).map(|(at, e)| (at, e.fds.len())).collect();
        // The guest's are the same as before; another doorbell would have been rung for the new one.
        assert_eq!(kept, [((CLASS_GUEST, 1), 1)]);
    }

    #[test]
    fn a_guest_whose_doorbell_blocks_is_not_waited_for_again() {
        std::thread::spawn(|| {
            watchdog::install(BELL_MAX).expect("timer");
            let bells: Vec<OwnedFd> = (0..5).map(|_| sys::eventfd().expect("eventfd")).collect();
            assert_eq!(ring_all(bells.iter()), 5);
            for bell in &bells[1..] {
                sys::set_blocking(bell).expect("fcntl");
                assert_eq!(rustix::io::write(bell, &(u64::MAX - 2).to_ne_bytes()), Ok(8));
            }
            assert_eq!(ring_all(bells.iter()), 1);
        })
        .join()
        .expect("thread");
    }

    #[test]
    fn only_pages_that_exist_are_walked() {
        let r = Region::new("test", Layout::GUEST, 1).expect("region");
        let cells = |r: &Region| present::<Cell, _>(r, r.device.cell(0), r.device.layout().cells);
        assert!(cells(&r).len() <= 4, "{:?}", cells(&r));
        for i in [5u32, 20_000, 32 * 1024 - 1] {
            let cell = r.device.cell(i).expect("cell");
            cell.reset(1);
            cell.in_use.store(1, Ordering::Relaxed);
        }
        let found = cells(&r);
        assert!([5, 20_000, 32 * 1024 - 1].iter().all(|i| found.contains(i)), "{found:?}");
        assert!(found.len() <= 16, "{found:?}");
        assert!(found.windows(2).all(|w| w[0] < w[1]));
        wake_guest(&r, ENGINE_DOWN);
        assert_eq!(r.device.header().engine_state.load(Ordering::Relaxed), ENGINE_DOWN);
        // Once by the reset.
        assert_eq!(r.device.cell(20_000).expect("cell").rx_wake.load(Ordering::Relaxed), 2);
        assert_eq!(cells(&r), found);
    }
}
