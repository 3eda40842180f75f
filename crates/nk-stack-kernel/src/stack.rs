//! [`KernelStack`]: the calls of the trait, one syscall or two each.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nk_device::Addr;
use nk_device::datagram::Header;
use nk_servicelib::{
    Connect, Datagram, Errno, How, Key, Kind, RawSpan, Sending, SetOption, Stack, StackEvent,
};
use rustix::event::epoll::EventFlags;
use rustix::net::{Shutdown, sockopt};

use crate::congestion::Congestion;
use crate::ring::Ring;
use crate::{Broker, ListenerKeeper, datagram, sys};

const EVENTS: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);
/// The upper half of a waker's word: a socket's has its generation there, and 0 is none.
const WAKER: u64 = 0;
/// Events fetched at once.
const BATCH: usize = 256;
const SO_PRIORITY_MAX: i32 = 6;

/// Linux's TCP and UDP.
pub struct KernelStack {
    epoll: OwnedFd,
    broker: Box<dyn Broker + Send>,
    keeper: Option<Box<dyn ListenerKeeper + Send>>,
    ring: Option<Ring>,
    batch: Box<[libc::epoll_event; BATCH]>,
    woken: Vec<u32>,
    congestion: Congestion,
}

impl core::fmt::Debug for KernelStack {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("KernelStack").field("epoll", &self.epoll).finish_non_exhaustive()
    }
}

impl KernelStack {
    /// A stack whose sockets come from `broker`.
    ///
    /// # Errors
    /// The errno of epoll_create1.
    pub fn new(
        broker: Box<dyn Broker + Send>,
        keeper: Option<Box<dyn ListenerKeeper + Send>>,
    ) -> Result<KernelStack, Errno> {
        Ok(KernelStack {
            epoll: sys::epoll()?,
            broker,
            keeper,
            ring: None,
            batch: Box::new([libc::epoll_event { events: 0, u64: 0 }; BATCH]),
            woken: Vec::new(),
            congestion: Congestion::new(),
        })
    }

    /// From now on sends that come together go with one system call, by io_uring. Readiness stays with epoll.
    ///
    /// # Errors
    /// Why io_uring cannot be used: ENOSYS, EPERM where it is forbidden, ENOMEM, EINVAL or EOPNOTSUPP for a kernel before 5.18.
    pub fn use_io_uring(&mut self) -> Result<(), Errno> {
        self.ring = Some(Ring::new()?);
        Ok(())
    }

    /// The epoll descriptor: readable when [`Stack::poll`] has something.
    #[must_use]
    pub fn epoll_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// The NSM has rights that the guest has not: these values need them.
    fn check_value(&self, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        if (level, name) == (libc::SOL_SOCKET, libc::SO_PRIORITY) {
            let v = value.first_chunk::<4>().map_or(0, |b| i32::from_ne_bytes(*b));
            if !(0..=SO_PRIORITY_MAX).contains(&v) {
                return Err(Errno(libc::EPERM));
            }
        }
        if (level, name) == (libc::IPPROTO_TCP, libc::TCP_CONGESTION) {
            let name = value.split(|b| *b == 0).next().unwrap_or_default();
            self.congestion.check(name)?;
        }
        Ok(())
    }
}

impl Stack for KernelStack {
    type Socket = OwnedFd;

    fn open(&mut self, namespace: u64, family: u16, kind: Kind) -> Result<OwnedFd, Errno> {
        let socket = self.broker.open(namespace, family, kind)?;
        if kind == Kind::Datagram {
            // What the kernel drops comes with the datagrams after it, to be counted.
            sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &1i32.to_ne_bytes())?;
        }
        Ok(socket)
    }

    fn adopt(&mut self, _namespace: u64, fd: OwnedFd) -> Result<OwnedFd, Errno> {
        match sockopt::socket_acceptconn(&fd).map_err(sys::errno)? {
            true => Ok(fd),
            false => Err(Errno(libc::EINVAL)),
        }
    }

    fn give(&mut self, socket: OwnedFd) -> Result<OwnedFd, OwnedFd> {
        // Registered it would go on to be told here, wherever the descriptor is. One that was never watched is not registered.
        sys::epoll_remove(&self.epoll, socket.as_fd());
        Ok(socket)
    }

    fn take(&mut self, fd: OwnedFd) -> Result<OwnedFd, Errno> {
        Ok(fd)
    }

    fn note_option(&mut self, key: Key, option: &SetOption) {
        if let Some(k) = &mut self.keeper {
            k.keep_option(key, option);
        }
    }

    fn forget_options(&mut self, key: Key) {
        if let Some(k) = &mut self.keeper {
            k.forget_options(key);
        }
    }

    fn bind(&mut self, socket: &OwnedFd, addr: &Addr) -> Result<(), Errno> {
        sys::bind(socket, addr)
    }

    fn listen(
        &mut self,
        socket: &OwnedFd,
        backlog: u32,
        guest_backlog: u32,
        key: Key,
    ) -> Result<(), Errno> {
        sys::listen(socket, backlog)?;
        if let Some(k) = &mut self.keeper
            && let Ok(local) = sys::local(socket)
        {
            k.keep(key, socket.as_fd(), &local, guest_backlog);
        }
        Ok(())
    }

    fn set_backlog(&mut self, socket: &OwnedFd, backlog: u32) {
        let _ = sys::listen(socket, backlog);
    }

    fn connect(&mut self, socket: &OwnedFd, addr: &Addr) -> Result<Connect, Errno> {
        match sys::connect(socket, addr) {
            Ok(()) => Ok(Connect::Done),
            Err(Errno(libc::EINPROGRESS | libc::EINTR)) => Ok(Connect::InProgress),
            Err(e) => Err(e),
        }
    }

    fn connect_result(&mut self, socket: &OwnedFd) -> Option<Result<(), Errno>> {
        match sockopt::socket_error(socket) {
            Ok(Ok(())) => {}
            Ok(Err(e)) | Err(e) => {
                // As a failed blocking connect leaves it: unconnected, ready for another.
                let _ = self.disconnect(socket);
                return Some(Err(sys::errno(e)));
            }
        }
        match sys::peer(socket) {
            Ok(_) => Some(Ok(())),
            // Connected and gone again (state CLOSE after a reset that SO_ERROR of an earlier look took), or still under way.
            Err(_) => match tcp_state(socket) {
                Some(TCP_SYN_SENT | TCP_SYN_RECV) => None,
                _ => Some(Err(Errno(libc::ECONNRESET))),
            },
        }
    }

    fn disconnect(&mut self, socket: &OwnedFd) -> Result<(), Errno> {
        sys::disconnect(socket)
    }

    fn shutdown(&mut self, socket: &OwnedFd, how: How) -> Result<(), Errno> {
        let how = match how {
            How::Read => Shutdown::Read,
            How::Write => Shutdown::Write,
            How::Both => Shutdown::Both,
        };
        sys::shutdown(socket, how)
    }

    fn close(&mut self, socket: OwnedFd, abort: bool, listener: Option<Key>) {
        if abort {
            let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
        }
        if let (Some(key), Some(k)) = (listener, &mut self.keeper) {
            k.forget(key);
            // A duplicate elsewhere would keep the registration, and events under this key, alive.
            sys::epoll_remove(&self.epoll, socket.as_fd());
            // The keeper's duplicate goes a little later; the guest's close ends listening now.
            let _ = sys::shutdown(&socket, Shutdown::Both);
        }
    }

    fn set_option(
        &mut self,
        socket: &OwnedFd,
        level: i32,
        name: i32,
        value: &[u8],
    ) -> Result<(), Errno> {
        self.check_value(level, name, value)?;
        sys::set_option(socket, level, name, value)
    }

    fn get_option(
        &mut self,
        socket: &OwnedFd,
        level: i32,
        name: i32,
        out: &mut [u8],
    ) -> Result<usize, Errno> {
        sys::get_option(socket, level, name, out)
    }

    fn local(&self, socket: &OwnedFd) -> Result<Addr, Errno> {
        sys::local(socket)
    }

    fn peer(&self, socket: &OwnedFd) -> Result<Addr, Errno> {
        sys::peer(socket)
    }

    fn send(&mut self, socket: &OwnedFd, spans: &[RawSpan]) -> Result<usize, Errno> {
        sys::send(socket, spans)
    }

    fn send_all(&mut self, sends: &mut [Sending<'_, OwnedFd>]) {
        // One alone is cheaper by itself.
        if sends.len() > 1
            && let Some(ring) = &mut self.ring
        {
            if !ring.send_all(sends) {
                self.ring = None;
            }
            return;
        }
        for s in sends {
            s.result = sys::send(s.socket, s.spans);
        }
    }

    fn recv(&mut self, socket: &OwnedFd, spans: &[RawSpan]) -> Result<usize, Errno> {
        sys::recv(socket, spans)
    }

    fn send_datagram(
        &mut self,
        socket: &OwnedFd,
        header: &Header,
        spans: &[RawSpan],
    ) -> Result<(), Errno> {
        datagram::send(socket, header, spans)
    }

    fn recv_datagrams(&mut self, socket: &OwnedFd, into: &mut [Datagram]) -> Result<usize, Errno> {
        datagram::recv(socket, into)
    }

    fn accept(&mut self, socket: &OwnedFd) -> Result<(OwnedFd, Addr), Errno> {
        sys::accept(socket)
    }

    fn take_error(&mut self, socket: &OwnedFd) -> i32 {
        let taken = sockopt::socket_error(socket).unwrap_or(Ok(()));
        taken.map_or_else(rustix::io::Errno::raw_os_error, |()| 0)
    }

    fn unread(&self, socket: &OwnedFd) -> usize {
        sys::queue_len(socket, libc::FIONREAD)
    }

    fn unacknowledged(&self, socket: &OwnedFd) -> usize {
        sys::queue_len(socket, libc::TIOCOUTQ)
    }

    fn watch(&mut self, socket: &OwnedFd, key: Key) -> Result<(), Errno> {
        let fd = socket.as_fd();
        match sys::epoll_add(&self.epoll, fd, EVENTS, key.to_word()) {
            // Watched already: arm again, so that what is ready is told (again).
            Err(Errno(libc::EEXIST)) => sys::epoll_change(&self.epoll, fd, EVENTS, key.to_word()),
            r => r,
        }
    }

    fn poll(&mut self, wait_ms: i32, events: &mut Vec<StackEvent>) {
        let n = sys::epoll_wait(&self.epoll, &mut self.batch[..], wait_ms);
        for e in self.batch.iter().take(n) {
            let (bits, word) = (e.events, e.u64);
            if word >> 32 == WAKER {
                self.woken.push(word as u32);
                continue;
            }
            let has = |mask: i32| bits & mask as u32 != 0;
            events.push(StackEvent {
                key: Key::from_word(word),
                readable: has(libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
                writable: has(libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR),
                hangup: has(libc::EPOLLRDHUP | libc::EPOLLHUP),
                error: has(libc::EPOLLERR),
            });
        }
    }

    fn add_waker(&mut self, fd: BorrowedFd<'_>, word: u32) -> Result<(), Errno> {
        let events = EventFlags::IN | EventFlags::ET;
        sys::epoll_add(&self.epoll, fd, events, WAKER << 32 | u64::from(word))
    }

    fn woken(&mut self) -> std::vec::Drain<'_, u32> {
        self.woken.drain(..)
    }

    fn remove_waker(&mut self, fd: BorrowedFd<'_>) {
        sys::epoll_remove(&self.epoll, fd);
    }
}

const TCP_SYN_SENT: u8 = 2;
const TCP_SYN_RECV: u8 = 3;

/// `tcpi_state`, the first byte of TCP_INFO.
fn tcp_state(fd: &OwnedFd) -> Option<u8> {
    let mut out = [0u8; 8];
    sys::get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut out).ok()?;
    out.first().copied()
}
