//! The kernel-stack NSM: made for the poll thread, or run as the process `nk nsm`.
//!
//! The process has three connections: its NSM device with an eventfd each way, a control socket on which the daemon tells of
//! guests and it tells of listeners, and a socket to the broker. It never enters a namespace and never sees another guest's
//! region than those it was given.

mod confine;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nk_attach::{Fds, Kind, Message};
use nk_device::patience::Patience;
use nk_device::{Addr, Layout};
use nk_servicelib::{self as servicelib, Errno, GuestPool, GuestStats, Key, Service, Stack};
use nk_stack_kernel::{KernelStack, ListenerKeeper};

use crate::broker::Broker;
use crate::config::Io;
use crate::guest::{Region, layout};
use crate::poll::{now_ns, wait_ms};
use crate::sys;

/// Commands of the daemon: word a of a [`Kind::Nsm`] message. Each is answered with the same word and a status.
pub mod command {
    /// b = how it calls the kernel, text = CPUs; the NSM's device, its doorbell, the engine's doorbell, the broker's socket.
    pub const START: u64 = 1;
    /// b = guest, c = namespace, d = flags of its making; its memfd.
    pub const ADD_GUEST: u64 = 2;
    /// b = guest.
    pub const REMOVE_GUEST: u64 = 3;
    /// b = key, c = backlog; the socket.
    pub const ADOPT_LISTENER: u64 = 4;
    /// b = guest; answered with the counters as text.
    pub const STATS: u64 = 5;
    /// b = guest, text = its limits.
    pub const LIMITS: u64 = 6;
}

/// What the NSM reports unasked.
pub mod note {
    /// b = key, c = backlog, text = address; the socket.
    pub const LISTENER: u64 = 100;
    /// b = key.
    pub const LISTENER_GONE: u64 = 101;
}

/// The kernel stack over a broker; listeners are offered to the keeper where there is one.
///
/// # Errors
/// Those of epoll_create1; where io_uring is a must, those that keep it from being used.
pub fn kernel_stack(
    broker: Box<dyn nk_stack_kernel::Broker + Send>,
    keeper: Option<Box<dyn ListenerKeeper + Send>>,
    how: Io,
) -> io::Result<KernelStack> {
    let os = |e: Errno| io::Error::from_raw_os_error(e.0);
    let mut stack = KernelStack::new(broker, keeper).map_err(os)?;
    match (how, if how == Io::Epoll { Ok(()) } else { stack.use_io_uring().map_err(os) }) {
        (_, Ok(())) => {}
        (Io::Auto, Err(e)) => tracing::info!("io_uring cannot be used, epoll is: {e}"),
        (_, Err(e)) => {
            return Err(io::Error::new(e.kind(), format!("io = \"io_uring\": {e}")));
        }
    }
    Ok(stack)
}

/// In a request to the broker: c of a datagram socket.
const DATAGRAM: u64 = 1;

/// In which namespaces an NSM process may have sockets opened: those of the guests that it serves.
#[derive(Clone, Debug, Default)]
pub struct Leave(Arc<Mutex<HashMap<u16, u64>>>);

impl Leave {
    fn map(&self) -> MutexGuard<'_, HashMap<u16, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// It serves this guest, whose namespace that is.
    pub fn give(&self, guest: u16, namespace: u64) {
        self.map().insert(guest, namespace);
    }
    /// It serves this guest no more.
    pub fn take(&self, guest: u16) {
        self.map().remove(&guest);
    }
    fn has(&self, namespace: u64) -> bool {
        self.map().values().any(|n| *n == namespace)
    }
}

/// Answers an NSM process's requests for sockets until it closes its end.
///
/// # Errors
/// Those of making a thread.
pub fn serve_broker(broker: Broker, leave: Leave, socket: OwnedFd) -> io::Result<()> {
    std::thread::Builder::new().name("nk-broker".into()).stack_size(128 * 1024).spawn(
        move || {
            let raw = socket.as_raw_fd();
            while let Ok((m, _, _)) = nk_attach::recv(raw, false) {
                let mut reply = Message::new(Kind::Socket);
                let kind = match m.c {
                    DATAGRAM => servicelib::Kind::Datagram,
                    _ => servicelib::Kind::Stream,
                };
                let opened = if leave.has(m.a) {
                    broker.open(m.a, m.b as u16, kind)
                } else {
                    Err(Errno(libc::EACCES))
                };
                let fds: Vec<RawFd> = opened.as_ref().map(AsRawFd::as_raw_fd).into_iter().collect();
                reply.status = opened.as_ref().err().map_or(0, |e| e.0);
                if nk_attach::send(raw, &reply, &fds).is_err() {
                    return;
                }
            }
        },
    )?;
    Ok(())
}

/// The broker as an NSM process reaches it.
#[derive(Debug)]
struct RemoteBroker(OwnedFd);

impl nk_stack_kernel::Broker for RemoteBroker {
    fn open(
        &mut self,
        namespace: u64,
        family: u16,
        kind: servicelib::Kind,
    ) -> Result<OwnedFd, Errno> {
        let mut m = Message::new(Kind::Socket);
        (m.a, m.b) = (namespace, family.into());
        m.c = if kind == servicelib::Kind::Datagram { DATAGRAM } else { 0 };
        let raw = self.0.as_raw_fd();
        nk_attach::send(raw, &m, &[]).map_err(Errno)?;
        let (reply, mut fds, _) = nk_attach::recv(raw, false).map_err(|_| Errno(libc::ENETDOWN))?;
        match (reply.status, fds.take(0)) {
            (0, Some(fd)) => Ok(sys::own(fd)),
            (0, None) => Err(Errno(libc::EMFILE)),
            (e, _) => Err(Errno(e)),
        }
    }
}

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
}

/// Counters as text, in the order of [`GuestStats`]' fields.
#[must_use]
pub fn format_stats(s: &GuestStats) -> String {
    [
        s.sockets,
        s.orphans,
        s.chunks_free,
        s.chunks_leased,
        s.chunks_tx,
        s.chunks_rx,
        s.bytes_sent,
        s.bytes_received,
        s.violations,
        s.accept_failures,
        s.datagrams_refused,
        s.datagrams_dropped,
        s.out_held,
        s.out_held_ms,
        s.in_held,
        s.in_held_ms,
    ]
    .map(|n| format!("{n:x}"))
    .join(" ")
}

/// Undoes [`format_stats`].
#[must_use]
pub fn parse_stats(text: &str) -> Option<GuestStats> {
    let n: Vec<u64> =
        text.split(' ').map(|w| u64::from_str_radix(w, 16).ok()).collect::<Option<_>>()?;
    let [
        sockets,
        orphans,
        chunks_free,
        chunks_leased,
        chunks_tx,
        chunks_rx,
        bytes_sent,
        bytes_received,
        violations,
        accept_failures,
        datagrams_refused,
        datagrams_dropped,
        out_held,
        out_held_ms,
        in_held,
        in_held_ms,
    ] = *<&[u64; 16]>::try_from(n.as_slice()).ok()?;
    Some(GuestStats {
        sockets,
        orphans,
        chunks_free,
        chunks_leased,
        chunks_tx,
        chunks_rx,
        bytes_sent,
        bytes_received,
        violations,
        accept_failures,
        datagrams_refused,
        datagrams_dropped,
        out_held,
        out_held_ms,
        in_held,
        in_held_ms,
    })
}

type Command = (Message, Option<OwnedFd>, mpsc::SyncSender<Message>);

/// The NSM's poll thread.
struct Worker {
    service: Service<KernelStack>,
    /// The NSM's own device, mapped for as long as the service is there.
    _own: Region,
    /// Guests' regions, mapped for as long as the service knows the guest.
    regions: HashMap<u16, Region>,
    commands: Receiver<Command>,
    engine_bell: OwnedFd,
}

/// `nk nsm`: serves until the daemon closes the control socket.
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
    let parts = [take(0)?, take(1)?, take(2)?, take(3)?];
    if start.a != command::START {
        return Err(odd());
    }
    let mut word = Message::new(Kind::Nsm);
    word.a = command::START;
    let begun = begin(&start, parts, &control);
    if let Err(e) = &begun {
        word = word.with_text(&e.to_string());
        word.status = e.raw_os_error().unwrap_or(libc::EIO);
    }
    nk_attach::send(raw, &word, &[]).map_err(io::Error::from_raw_os_error)?;
    let (sender, command_bell) = begun?;
    // The daemon's end closes when it dies; then this process has nothing to do any more.
    while let Ok((m, mut fds, _)) = nk_attach::recv(raw, false) {
        let (reply, answer) = mpsc::sync_channel(1);
        if sender.send((m, first(&mut fds), reply)).is_err() {
            break;
        }
        sys::ring(command_bell.as_raw_fd());
        let Ok(answer) = answer.recv() else { break };
        if nk_attach::send(raw, &answer, &[]).is_err() {
            break;
        }
    }
    // The worker may be in the middle of something: the process ends as a whole.
    std::process::exit(0)
}

/// Confines this process as an NSM's is, and does one thing that an NSM must not do: for tests, to see that it is stopped.
///
/// # Errors
/// When it is not, or cannot be confined.
pub fn probe(what: &str) -> io::Result<()> {
    confine::probe(what)
}

/// Starts the poll thread; returns the way to give it commands.
fn begin(
    start: &Message,
    [memfd, bell, engine_bell, broker]: [OwnedFd; 4],
    control: &Arc<OwnedFd>,
) -> io::Result<(mpsc::Sender<Command>, OwnedFd)> {
    let cores = start.text().unwrap_or("").split(',').filter(|w| !w.is_empty()).map(str::parse);
    // Before there are other threads: they inherit this, and what they may not do.
    sys::pin(&cores.collect::<Result<Vec<usize>, _>>().map_err(io::Error::other)?)?;
    let region = Region::map(memfd, Layout::NSM)?;
    let notes = Notes(control.clone());
    let how = Io::from_word(start.b);
    let mut stack = kernel_stack(Box::new(RemoteBroker(broker)), Some(Box::new(notes)), how)?;
    let os = |e: Errno| io::Error::from_raw_os_error(e.0);
    use std::os::fd::AsFd;
    stack.add_waker(bell.as_fd(), 0).map_err(os)?;
    let command_bell = sys::eventfd()?;
    stack.add_waker(command_bell.as_fd(), 0).map_err(os)?;
    confine::give_up_privileges()?;
    let (sender, commands) = mpsc::channel();
    let service = Service::new(stack, region.device);
    let mut worker =
        Worker { service, _own: region, regions: HashMap::new(), commands, engine_bell };
    std::thread::Builder::new().name("nk-nsm".into()).spawn(move || worker.run())?;
    confine::refuse_calls()?;
    Ok((sender, command_bell))
}

fn first(fds: &mut Fds) -> Option<OwnedFd> {
    fds.take(0).map(sys::own)
}

impl Worker {
    fn run(&mut self) {
        let patience = Patience::new();
        let mut wait = patience.wait();
        loop {
            let engine_bell = self.engine_bell.as_raw_fd();
            let mut ring = || {
                sys::ring(engine_bell);
            };
            let r = self.service.poll(now_ns(), 0, &mut ring);
            let mut busy = r.worked > 0 || r.pending;
            // After the stack's look at its epoll, as in the daemon's poll thread.
            loop {
                match self.commands.try_recv() {
                    Ok((m, fd, reply)) => {
                        let mut answer = Message::new(Kind::Nsm);
                        answer.a = m.a;
                        answer.status = self.command(&m, fd, &mut answer);
                        let _ = reply.send(answer);
                        busy = true;
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if busy {
                wait.found();
                wait = patience.wait();
                continue;
            }
            if sys::yields(&mut wait) {
                continue;
            }
            if self.service.prepare_sleep() {
                self.service.poll(now_ns(), wait_ms(r.due_ns), &mut ring);
            }
            self.service.finish_sleep();
            wait = patience.wait();
        }
    }

    /// Does what the daemon asks; returns an errno or 0.
    fn command(&mut self, m: &Message, fd: Option<OwnedFd>, answer: &mut Message) -> i32 {
        let guest = m.b as u16;
        match (m.a, fd) {
            (command::ADD_GUEST, Some(memfd)) => {
                let region = match Region::map(memfd, layout(m.d)) {
                    Ok(r) => r,
                    Err(e) => return e.raw_os_error().unwrap_or(libc::EIO),
                };
                let device = region.device;
                self.service.add_guest(GuestPool {
                    guest,
                    device,
                    namespace: m.c,
                    pool: 0..device.layout().chunks,
                });
                self.regions.insert(guest, region);
                0
            }
            (command::REMOVE_GUEST, _) => {
                self.service.remove_guest(guest);
                self.regions.remove(&guest);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_survive() {
        let s = GuestStats {
            sockets: 1,
            orphans: 2,
            chunks_free: 3,
            chunks_leased: 4,
            chunks_tx: 5,
            chunks_rx: 6,
            bytes_sent: u64::MAX,
            bytes_received: 8,
            violations: 9,
            accept_failures: 10,
            datagrams_refused: 11,
            datagrams_dropped: 12,
            out_held: 13,
            out_held_ms: 14,
            in_held: 15,
            in_held_ms: 16,
        };
        assert_eq!(parse_stats(&format_stats(&s)), Some(s));
        assert!(format_stats(&s).len() <= nk_attach::TEXT_MAX);
        assert_eq!(parse_stats("1 2"), None);
    }
}
