//! The keeper's own process: one thread, one poll loop, no guest ever talks to it.
//!
//! When the daemon's connection closes, it writes `engine_state` in every guest's header. Where the guest's NSM was the daemon's own, or
//! ends before another daemon comes, the guest's connections are lost: whoever sleeps there is woken. It ends when there is no daemon
//! and no guest's process left.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nk_attach::{Fds, Kind, Message, RecvError};
use nk_device::header::{ENGINE_AWAY, ENGINE_DOWN, ENGINE_GONE};
use nk_device::sync::{Ordering, fence};
use nk_device::{Cell, Qset, Row};
use rustix::fs::SeekFrom;

use super::entries::Entries;
use super::{
    CLASS_GUEST, CLASS_NSM, CLASS_PROCESS, CLASS_QSET, HAS_PIDFD, KEPT_COMPLETE, KEPT_END, nsm_of,
};
use crate::guest::{Region, layout};
use crate::{sys, watchdog};

/// How long the daemon that started this keeper may take to connect.
const FIRST_MAX_MS: i32 = 5_000;

#[derive(Debug)]
struct State {
    entries: Entries,
    daemon: Option<OwnedFd>,
    /// The daemon has told everything. One that gives up before is not dead: it starts another keeper.
    is_complete: bool,
    private: Option<PathBuf>,
    /// No daemon will follow this one.
    is_last: bool,
}

/// Runs until there is nothing left to keep.
///
/// # Errors
/// When its socket fails.
pub fn run(path: PathBuf, private: Option<PathBuf>) -> io::Result<()> {
    sys::name_thread(c"nk-keeper");
    sys::raise_fd_limit();
    serve(&sys::own(crate::spawn::PASSED_FD), path, private);
    Ok(())
}

fn serve(listener: &OwnedFd, path: PathBuf, private: Option<PathBuf>) {
    let mut s = State {
        entries: Entries::default(),
        daemon: None,
        is_complete: false,
        is_last: private.is_some(),
        private,
    };
    // The daemon that started this one connects at once.
    let mut served = false;
    loop {
        let waiting = match &s.daemon {
            None if served && !s.has_process() => break,
            Some(_) => Vec::new(),
            None => s.ends(CLASS_PROCESS).chain(s.ends(CLASS_NSM)).collect(),
        };
        let daemon = s.daemon.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let poll = |(fd, events)| libc::pollfd { fd, events, revents: 0 };
        let own = [listener.as_raw_fd(), daemon].map(|fd| (fd, libc::POLLIN));
        let mut fds: Vec<libc::pollfd> =
            own.into_iter().chain(waiting.iter().map(|w| w.2)).map(poll).collect();
        // SAFETY: as many entries of ours as the length says; a negative number is skipped by the kernel.
        let n = unsafe {
            let wait_ms = if served { -1 } else { FIRST_MAX_MS };
            libc::poll(fds.as_mut_ptr(), fds.len() as u64, wait_ms)
        };
        if n < 0 {
            continue;
        }
        if n == 0 {
            // The daemon that started this one died before it connected.
            break;
        }
        let ready = |i: usize| fds.get(i).is_some_and(|f| f.revents != 0);
        for (i, (class, key, _)) in waiting.iter().enumerate() {
            if ready(i + 2) {
                s.ended(*class, *key);
            }
        }
        if ready(1) {
            s.messages();
            if s.daemon.is_none() && (s.is_last || !s.is_complete) {
                break;
            }
        }
        if ready(0)
            && let Ok(fd) = sys::accept(listener)
        {
            if s.daemon.is_none() {
                served = true;
                s.daemon = Some(fd);
            } else {
                super::refuse_second(fd.as_raw_fd());
            }
        }
    }
    // With it goes the attach socket, which the next daemon must not find served when the path is gone.
    drop(s.entries);
    // The path of one that was given up may be the next one's by now.
    if s.is_complete {
        let _ = std::fs::remove_file(path);
        if let Some(dir) = s.private {
            crate::private::remove(&dir);
        }
    }
}

impl State {
    fn has_process(&self) -> bool {
        self.entries.of(CLASS_PROCESS).next().is_some()
    }

    /// Class, key, and the descriptor that tells of a process's end, with the events that do: its pidfd, which comes last, is readable
    /// then. Of a child that has not said hello there is its control socket alone, which is readable when it has, and hung up at its end.
    fn ends(&self, class: u64) -> impl Iterator<Item = (u64, u64, (RawFd, i16))> {
        let entries = self.entries.of(class);
        entries.filter_map(move |(k, e)| {
            let has_pidfd = class == CLASS_NSM || e.message.d & HAS_PIDFD != 0;
            let events = if has_pidfd { libc::POLLIN } else { 0 };
            Some((class, k, (e.fds.last()?.as_raw_fd(), events)))
        })
    }

    /// A process ended while there was no daemon.
    fn ended(&mut self, class: u64, key: u64) {
        let name =
            self.entries.of(class).find(|(k, _)| *k == key).and_then(|(_, e)| {
                e.message.text().filter(|_| class == CLASS_NSM).map(str::to_owned)
            });
        self.entries.drop_entry(class, key);
        if let Some(name) = name {
            self.mark(|nsm| (nsm == name).then_some(ENGINE_DOWN));
        }
    }

    fn messages(&mut self) {
        while let Some(fd) = self.daemon.as_ref().map(AsRawFd::as_raw_fd) {
            match nk_attach::recv(fd, true) {
                Ok((m, fds, _)) => self.message(fd, m, fds),
                Err(RecvError::Os(libc::EAGAIN)) => return,
                Err(_) => {
                    self.daemon = None;
                    if self.is_complete {
                        self.mark_dead();
                    }
                }
            }
        }
    }

    fn message(&mut self, daemon: RawFd, m: Message, mut fds: Fds) {
        match Kind::from_u32(m.kind) {
            Some(Kind::Keep) => {
                let fds =
                    (0..nk_attach::FDS_MAX).map_while(|i| fds.take(i)).map(sys::own).collect();
                self.entries.keep(m, fds);
            }
            Some(Kind::Drop) => self.entries.drop_entry(m.a, m.b),
            Some(Kind::Kept) if m.a == KEPT_COMPLETE => self.is_complete = true,
            Some(Kind::Kept) if m.a == KEPT_END => self.is_last = true,
            Some(Kind::Kept) => {
                let _ = self.daemon.as_ref().map(sys::set_blocking);
                let _ = self.entries.send(daemon);
                let _ = nk_attach::send(daemon, &Message::new(Kind::Kept), &[]);
            }
            _ => {}
        }
    }

    /// The daemon is dead.
    fn mark_dead(&self) {
        let living: Vec<&str> = self
            .entries
            .of(CLASS_NSM)
            .filter(|(_, e)| e.fds.last().is_some_and(|p| !sys::has_ended(p)))
            .filter_map(|(_, e)| e.message.text())
            .collect();
        self.mark(|nsm| {
            Some(match living.contains(&nsm) {
                _ if self.is_last => ENGINE_GONE,
                true => ENGINE_AWAY,
                false => ENGINE_DOWN,
            })
        });
    }

    /// Writes a state for the guests of each NSM for which there is one.
    fn mark(&self, state: impl Fn(&str) -> Option<u32>) {
        if let Err(e) = watchdog::install() {
            eprintln!("nk keeper: no timer: a hostile guest's doorbell may block it: {e}");
        }
        let mut lost = Vec::new();
        for (id, e) in self.entries.of(CLASS_GUEST) {
            let text = e.message.text().unwrap_or("");
            let Some(state) = state(nsm_of(text)) else { continue };
            let Some(memfd) = e.fds.first().and_then(|f| f.try_clone().ok()) else { continue };
            // Text: uid, flags, ...
            let flags = text.split(' ').nth(1).and_then(|w| w.parse().ok()).unwrap_or(0);
            match Region::map(memfd, layout(flags)) {
                Ok(r) if state == ENGINE_AWAY => {
                    r.device.header().engine_state.store(state, Ordering::SeqCst);
                }
                Ok(r) => {
                    wake_guest(&r, state);
                    lost.push(id);
                }
                Err(e) => eprintln!("nk keeper: cannot map a guest's region: {e}"),
            }
        }
        for (_, e) in self.entries.of(CLASS_QSET).filter(|(k, _)| lost.contains(&(k >> 32))) {
            if let Some(bell) = e.fds.first() {
                watchdog::watch();
                // One that blocks is a hostile guest's: the next.
                let _ = sys::ring(bell);
            }
        }
    }
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
    use crate::keeper::{HAS_CONTROL, Keeper, complete};
    use nk_device::Layout;
    use std::os::unix::ffi::OsStrExt;
    use std::time::Duration;

    /// The daemon dies between a fork and the child's hello.
    #[test]
    fn a_child_that_says_hello_while_there_is_no_daemon_has_not_ended() {
        let path = std::env::temp_dir().join(format!("nk-keeper-child-{}", std::process::id()));
        let listener = sys::listen_at(&path, 0o600).expect("listen");
        let serves = {
            let path = path.clone();
            std::thread::spawn(move || serve(&listener, path, None))
        };
        let daemon = sys::own(nk_attach::connect(path.as_os_str().as_bytes()).expect("connect"));
        let (child, far) = sys::seqpacket_pair().expect("pair");
        let mut m = Message::new(Kind::Keep);
        (m.a, m.b, m.d) = (CLASS_PROCESS, 1 << 16 | 2, HAS_CONTROL);
        nk_attach::send(daemon.as_raw_fd(), &m, &[far.as_raw_fd()]).expect("keep");
        complete(&daemon).expect("complete");
        drop((daemon, far));
        nk_attach::send(child.as_raw_fd(), &Message::new(Kind::Hello), &[]).expect("hello");
        std::thread::sleep(Duration::from_millis(100));
        assert!(!sys::is_hung_up(&child), "its control socket was closed");
        let (next, entries) = Keeper::find(&path).expect("it serves").expect("it has something");
        let [entry] = &entries[..] else { panic!("{entries:?}") };
        let (hello, ..) = nk_attach::recv(entry.fds[0].as_raw_fd(), true).expect("hello");
        assert_eq!(hello.kind, Kind::Hello as u32);
        // One that ends without a daemon does end, and with it the keeper.
        drop((next, entries, child));
        serves.join().expect("no panic");
        assert!(!path.exists());
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
