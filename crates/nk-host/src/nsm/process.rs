//! The process of an NSM: one thread that serves, one that talks with the daemon and sees when it dies.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use nk_attach::{Fds, Kind, Message};
use nk_device::header::ENGINE_GONE;
use nk_device::patience::Patience;
use nk_device::{Addr, Counters, Layout, SharedCounters};
use nk_servicelib::{Errno, GuestPool, Key, MovedAt, MovedSocket, Service, SetOption, Stack};
use nk_stack_kernel::{KernelStack, ListenerKeeper};

use super::broker::{RemoteBroker, Way};
use super::{
    PROTOCOL, command, format_stats, kernel_stack, note, unread_from_text, unread_to_texts,
};
use crate::config::Io;
use crate::guest::{Region, SharedLedger, layout};
use crate::keeper::process::wake_guest;
use crate::keeper::{option_to_text, options_from_text};
use crate::pace::{Pace, now_ns, wait_ms};
use crate::sys;

/// How often a thread that waits for the other's answer looks whether the daemon that asked still lives.
const LOOK: Duration = Duration::from_millis(100);
/// How long the guests' being told may take at the end.
const END_MAX: Duration = Duration::from_secs(10);

/// Tells the daemon of listeners.
#[derive(Debug)]
struct Notes(Arc<OwnedFd>);

impl ListenerKeeper for Notes {
    fn keep(&mut self, key: Key, fd: BorrowedFd<'_>, local: &Addr, backlog: u32) {
        let mut m = Message::new(Kind::Nsm).with_text(&crate::keeper::format_addr(local));
        (m.a, m.b, m.c) = (note::LISTENER, key.to_word(), backlog.into());
        let _ = nk_attach::send(self.0.as_raw_fd(), &m, &[fd.as_raw_fd()]);
    }
    fn forget(&mut self, key: Key) {
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (note::LISTENER_GONE, key.to_word());
        let _ = nk_attach::send(self.0.as_raw_fd(), &m, &[]);
    }
    fn keep_option(&mut self, key: Key, option: &SetOption) {
        let mut m = Message::new(Kind::Nsm).with_text(&option_to_text(option));
        (m.a, m.b) = (note::OPTION, key.to_word());
        let _ = nk_attach::send(self.0.as_raw_fd(), &m, &[]);
    }
    fn forget_options(&mut self, key: Key) {
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (note::OPTIONS_GONE, key.to_word());
        let _ = nk_attach::send(self.0.as_raw_fd(), &m, &[]);
    }
}

type Command = (Message, Fds, mpsc::SyncSender<Message>);

fn os(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// The ledger that comes with a command whose text says which number this NSM has there.
fn shared_ledger(m: &Message, memfd: OwnedFd, layout: Layout) -> io::Result<SharedLedger> {
    let number = m.text().and_then(|t| t.parse().ok()).ok_or_else(|| os(libc::EINVAL))?;
    SharedLedger::map(memfd, layout, number)
}

/// The options that come with [`command::OPTIONS`].
fn read_options(memfd: OwnedFd, len: u64) -> Option<Vec<(Key, Vec<SetOption>)>> {
    let mut text = vec![0; usize::try_from(len).ok()?];
    std::fs::File::from(memfd).read_exact_at(&mut text, 0).ok()?;
    options_from_text(std::str::from_utf8(&text).ok()?)
}

/// The NSM's poll thread.
struct Worker {
    service: Service<KernelStack>,
    /// The NSM's own device, mapped for as long as the service uses it.
    own: Region,
    /// Guests' regions, mapped for as long as the service knows the guest.
    regions: HashMap<u16, Region>,
    /// What is counted of them, there as long.
    counters: HashMap<u16, Box<Counters>>,
    /// Of guests that other NSMs serve too: how the pool is shared. Mapped for as long as the service looks at it.
    ledgers: HashMap<u16, SharedLedger>,
    /// By key: what sockets that will be adopted have received.
    unread: HashMap<u64, Vec<Vec<u32>>>,
    /// To tell of sockets that are given away.
    control: Arc<OwnedFd>,
    commands: Receiver<Command>,
    engine_bell: Arc<OwnedFd>,
}

/// The thread that talks with the daemon.
struct Talk {
    control: Arc<OwnedFd>,
    way: Way,
    worker: mpsc::Sender<Command>,
    command_bell: OwnedFd,
    /// For how long it goes on without a daemon.
    grace: Duration,
    /// Since when there is none.
    alone_since: Option<Instant>,
}

/// `nk nsm`: serves until the daemon closes the control socket, or for the time of grace after the daemon's death: the keeper has
/// the daemon's end as well, and passes it to the next one.
///
/// # Errors
/// When what the daemon sent is not what an NSM needs.
pub fn run() -> io::Result<()> {
    sys::raise_fd_limit();
    let control = Arc::new(sys::own(crate::spawn::PASSED_FD));
    let raw = control.as_raw_fd();
    let odd = || io::Error::other("this is started by the daemon, not by hand");
    let (start, mut fds, _) = nk_attach::recv(raw, false).map_err(|_| odd())?;
    let mut take = |i| fds.take(i).map(sys::own).ok_or_else(odd);
    let parts = [take(0)?, take(1)?, take(2)?];
    let way = Way::new(take(3)?);
    if start.a != command::START {
        return Err(odd());
    }
    let mut word = Message::new(Kind::Nsm);
    word.a = command::START;
    let begun = begin(&start, parts, &way, &control);
    if let Err(e) = &begun {
        word = word.with_text(&e.to_string());
        word.status = e.raw_os_error().unwrap_or(libc::EIO);
    }
    nk_attach::send(raw, &word, &[]).map_err(io::Error::from_raw_os_error)?;
    let (worker, command_bell) = begun?;
    let grace = Duration::from_secs(start.c);
    let mut talk = Talk { control, way, worker, command_bell, grace, alone_since: None };
    while talk.step().is_some() {}
    talk.tell_guests();
    // The worker may be in the middle of something: the process ends as a whole.
    std::process::exit(0)
}

impl Talk {
    /// Waits for what comes next and does it; `None`: it is time to end.
    fn step(&mut self) -> Option<()> {
        let left = match self.alone_since {
            Some(since) => Some(self.grace.checked_sub(since.elapsed())?),
            None => None,
        };
        let broker = self.way.socket();
        let mut fds = [
            libc::pollfd { fd: self.control.as_raw_fd(), events: libc::POLLIN, revents: 0 },
            // Only its end is of interest. A negative number is skipped by the kernel.
            libc::pollfd {
                fd: broker.as_ref().map_or(-1, |b| b.as_raw_fd()),
                events: 0,
                revents: 0,
            },
        ];
        let timeout = left.map_or(-1, |t| i32::try_from(t.as_millis() + 1).unwrap_or(i32::MAX));
        // SAFETY: two entries of ours.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout) };
        let [control, end] = fds.map(|f| f.revents != 0);
        if end && let Some(b) = &broker {
            self.way.lose(b);
            self.is_alone();
        }
        if control { self.message() } else { Some(()) }
    }

    /// Whoever held the other end of the control socket is gone. Where that were daemon and keeper together, nobody else can tell the
    /// guests. A daemon that ends for good, or with its last guest, has told them.
    fn tell_guests(&self) {
        let (reply, answer) = mpsc::sync_channel(1);
        let mut m = Message::new(Kind::Nsm);
        m.a = command::END;
        if sys::is_hung_up(self.control.as_raw_fd())
            && self.worker.send((m, Fds::none(), reply)).is_ok()
        {
            sys::ring(self.command_bell.as_raw_fd());
            let _ = answer.recv_timeout(END_MAX);
        }
    }

    fn is_alone(&mut self) {
        self.alone_since.get_or_insert_with(Instant::now);
    }

    /// Takes one message of the daemon's.
    fn message(&mut self) -> Option<()> {
        let (m, mut fds, _) = nk_attach::recv(self.control.as_raw_fd(), false).ok()?;
        if m.a == command::ADOPT {
            if m.b != PROTOCOL {
                return None;
            }
            // Before the worker is asked: it may be waiting for the last daemon's broker.
            self.way.change(fds.take(3).map(sys::own)?);
            self.grace = Duration::from_secs(m.d);
            self.alone_since = None;
        }
        let (reply, answer) = mpsc::sync_channel(1);
        self.worker.send((m, fds, reply)).ok()?;
        sys::ring(self.command_bell.as_raw_fd());
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(answer) => {
                    return nk_attach::send(self.control.as_raw_fd(), &answer, &[]).ok();
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                // The next daemon's first word may be what the worker waits for.
                Err(RecvTimeoutError::Timeout) if self.has_lost_daemon() => return Some(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn has_lost_daemon(&mut self) -> bool {
        let Some(b) = self.way.socket() else {
            self.is_alone();
            return true;
        };
        let mut end = libc::pollfd { fd: b.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one entry of ours.
        unsafe { libc::poll(&raw mut end, 1, 0) };
        if end.revents != 0 {
            self.way.lose(&b);
            self.is_alone();
        }
        end.revents != 0
    }
}

/// Starts the poll thread; returns the way to give it commands.
fn begin(
    start: &Message,
    [memfd, bell, engine_bell]: [OwnedFd; 3],
    way: &Way,
    control: &Arc<OwnedFd>,
) -> io::Result<(mpsc::Sender<Command>, OwnedFd)> {
    let cores = start.text().unwrap_or("").split(',').filter(|w| !w.is_empty()).map(str::parse);
    // Before there are other threads: they inherit this, and what they may not do.
    sys::pin(&cores.collect::<Result<Vec<usize>, _>>().map_err(io::Error::other)?)?;
    let region = Region::map(memfd, Layout::NSM)?;
    let notes = Notes(control.clone());
    let how = Io::from_word(start.b);
    let mut stack = kernel_stack(Box::new(RemoteBroker(way.clone())), Some(Box::new(notes)), how)?;
    let errno = |e: Errno| os(e.0);
    stack.add_waker(bell.as_fd(), 0).map_err(errno)?;
    let command_bell = sys::eventfd()?;
    stack.add_waker(command_bell.as_fd(), 0).map_err(errno)?;
    super::confine::give_up_privileges()?;
    let (sender, commands) = mpsc::channel();
    let service = Service::new(stack, region.device);
    let mut worker = Worker {
        service,
        own: region,
        regions: HashMap::new(),
        counters: HashMap::new(),
        ledgers: HashMap::new(),
        unread: HashMap::new(),
        control: control.clone(),
        commands,
        engine_bell: Arc::new(engine_bell),
    };
    std::thread::Builder::new().name("nk-nsm".into()).spawn(move || worker.run())?;
    super::confine::refuse_calls()?;
    Ok((sender, command_bell))
}

impl Worker {
    fn run(&mut self) {
        let patience = Patience::new();
        let mut pace = Pace::new(&patience);
        loop {
            let engine_bell = self.engine_bell.clone();
            let mut ring = || {
                sys::ring(engine_bell.as_raw_fd());
            };
            let r = self.service.poll(now_ns(), 0, &mut ring);
            let mut busy = r.worked > 0 || r.pending;
            // After the stack's look at its epoll, as in the daemon's poll thread.
            loop {
                match self.commands.try_recv() {
                    Ok((m, mut fds, reply)) => {
                        let mut answer = Message::new(Kind::Nsm);
                        answer.a = m.a;
                        answer.status = if m.a == command::ADOPT {
                            let done = self.adopt(&m, &mut fds, &mut answer);
                            done.map_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO), |()| 0)
                        } else {
                            let fds = [fds.take(0), fds.take(1)];
                            self.command(&m, fds.map(|fd| fd.map(sys::own)), &mut answer)
                        };
                        let _ = reply.send(answer);
                        busy = true;
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            pace.rest(busy, || {
                if self.service.prepare_sleep() {
                    self.service.poll(now_ns(), wait_ms(r.due_ns), &mut ring);
                }
                self.service.finish_sleep();
            });
        }
    }

    /// Another daemon takes over.
    fn adopt(&mut self, m: &Message, fds: &mut Fds, answer: &mut Message) -> io::Result<()> {
        let mut take = || {
            let fd = (0..nk_attach::FDS_MAX).find_map(|i| fds.take(i)).map(sys::own);
            fd.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
        };
        let (memfd, bell, engine_bell, table) = (take()?, take()?, take()?, take()?);
        let region = Region::map(memfd, Layout::NSM)?;
        let stack = self.service.stack_mut();
        stack.add_waker(bell.as_fd(), 0).map_err(|e| io::Error::from_raw_os_error(e.0))?;
        let words = self.service.keep(region.device, now_ns());
        // Guests that it does not go on with.
        self.regions.retain(|guest, _| self.service.stats(*guest).is_some());
        self.counters.retain(|guest, _| self.service.stats(*guest).is_some());
        self.ledgers.retain(|guest, _| self.service.stats(*guest).is_some());
        self.own = region;
        self.engine_bell = Arc::new(engine_bell);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        std::fs::File::from(table).write_all(&bytes)?;
        (answer.c, answer.d) = (m.c, bytes.len() as u64);
        Ok(())
    }

    fn settle(&mut self) -> bool {
        let bell = self.engine_bell.as_raw_fd();
        self.service.settle(now_ns(), &mut || {
            sys::ring(bell);
        })
    }

    fn add_guest(
        &mut self,
        m: &Message,
        memfd: OwnedFd,
        ledger: Option<OwnedFd>,
    ) -> io::Result<()> {
        let guest = m.b as u16;
        let region = Region::map(memfd, layout(m.d))?;
        let device = region.device;
        let ledger = ledger.map(|fd| shared_ledger(m, fd, device.layout())).transpose()?;
        let counters = NonNull::from(&**self.counters.entry(guest).or_default()).cast();
        // SAFETY: the box stays until after the service has forgotten the guest, and is changed by atomics alone.
        let counters = unsafe { SharedCounters::new(counters) };
        let counters = counters.map_err(|_| os(libc::EINVAL))?;
        self.service.add_guest(GuestPool {
            guest,
            device,
            namespace: m.c,
            pool: 0..device.layout().chunks,
            ledger: ledger.as_ref().map(|l| l.ledger),
            counters,
        });
        self.regions.insert(guest, region);
        match ledger {
            Some(ledger) => self.ledgers.insert(guest, ledger),
            None => self.ledgers.remove(&guest),
        };
        Ok(())
    }

    /// The guest's new sockets are another NSM's from now on.
    fn leave(&mut self, m: &Message, memfd: OwnedFd) -> io::Result<()> {
        let guest = m.b as u16;
        let region = self.regions.get(&guest).ok_or_else(|| os(libc::ENOENT))?;
        let layout = region.device.layout();
        if !self.settle() {
            return Err(os(libc::EAGAIN));
        }
        let ledger = match self.ledgers.remove(&guest) {
            Some(ledger) => ledger,
            None => shared_ledger(m, memfd, layout)?,
        };
        let moved = self.service.leave(guest, ledger.ledger, m.c as u8);
        self.ledgers.insert(guest, ledger);
        for socket in moved {
            for text in unread_to_texts(&socket.unread) {
                let mut told = Message::new(Kind::Nsm).with_text(&text);
                (told.a, told.b) = (note::UNREAD, socket.key.to_word());
                nk_attach::send(self.control.as_raw_fd(), &told, &[]).map_err(os)?;
            }
            let mut told = Message::new(Kind::Nsm).with_text(&socket.at.to_text());
            (told.a, told.b) = (note::MOVED, socket.key.to_word());
            nk_attach::send(self.control.as_raw_fd(), &told, &[socket.fd.as_raw_fd()])
                .map_err(os)?;
        }
        Ok(())
    }

    /// Does what the daemon asks; returns an errno or 0.
    fn command(&mut self, m: &Message, fds: [Option<OwnedFd>; 2], answer: &mut Message) -> i32 {
        let guest = m.b as u16;
        let [fd, more] = fds;
        match (m.a, fd) {
            (command::ADD_GUEST, Some(memfd)) => {
                let done = self.add_guest(m, memfd, more);
                done.map_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO), |()| 0)
            }
            (command::LEAVE, Some(memfd)) => {
                let done = self.leave(m, memfd);
                done.map_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO), |()| 0)
            }
            (command::ENTER, _) => {
                self.service.enter(guest);
                0
            }
            (command::ADOPT_MOVED, Some(fd)) => {
                let Some(at) = m.text().and_then(MovedAt::from_text) else { return libc::EINVAL };
                let unread = self.unread.remove(&m.b).unwrap_or_default();
                let socket = MovedSocket { key: Key::from_word(m.b), fd, unread, at };
                self.service.adopt_moved(socket).map_or_else(|e| e.0, |()| 0)
            }
            (command::UNREAD, _) => match m.text().and_then(unread_from_text) {
                Some(mut more) => {
                    self.unread.entry(m.b).or_default().append(&mut more);
                    0
                }
                None => libc::EINVAL,
            },
            (command::OPTIONS, Some(memfd)) => match read_options(memfd, m.d) {
                Some(all) => {
                    self.service.renew_options(guest);
                    for (key, options) in all {
                        options.into_iter().for_each(|o| self.service.renew_option(key, o));
                    }
                    0
                }
                None => libc::EINVAL,
            },
            (command::END, _) => {
                self.regions.values().for_each(|r| wake_guest(r, ENGINE_GONE));
                0
            }
            (command::ALONE, _) => {
                // What it was told about sockets of the NSMs that are gone is about shared chunks.
                self.settle();
                self.service.be_alone(guest);
                self.ledgers.remove(&guest);
                0
            }
            (command::REMOVE_GUEST, _) => {
                self.service.remove_guest(guest);
                self.regions.remove(&guest);
                self.counters.remove(&guest);
                self.ledgers.remove(&guest);
                0
            }
            (command::ADOPT_LISTENER, Some(fd)) => {
                match self.service.adopt_listener(Key::from_word(m.b), fd, m.c as u32) {
                    Ok(()) => 0,
                    Err(e) => e.0,
                }
            }
            (command::LIMITS, _) => {
                match m.text().and_then(crate::limits::GuestLimits::from_text) {
                    Some(l) => {
                        self.service.set_limits(guest, &l.service());
                        0
                    }
                    None => libc::EINVAL,
                }
            }
            (command::STATS, _) => match self.service.stats(guest) {
                Some(s) => {
                    *answer = answer.with_text(&format_stats(&s));
                    0
                }
                None => libc::ENOENT,
            },
            _ => libc::EINVAL,
        }
    }
}
