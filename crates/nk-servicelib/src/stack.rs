//! What a network stack must offer. One crate per stack implements it; it sees nothing of devices, NQEs or guests.

use core::ptr::NonNull;
use std::os::fd::{BorrowedFd, OwnedFd};

use nk_device::Addr;
use nk_device::datagram::{Header, MORE_MAX};

/// A Linux errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// Names a socket in the stack's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The guest.
    pub guest: u16,
    /// Its socket id.
    pub socket: u32,
    /// The id's generation.
    pub generation: u16,
}

impl Key {
    /// As one word.
    #[must_use]
    pub fn to_word(self) -> u64 {
        u64::from(self.guest) << 48 | u64::from(self.generation) << 32 | u64::from(self.socket)
    }
    /// Undoes [`Key::to_word`].
    #[must_use]
    pub fn from_word(w: u64) -> Key {
        Key { guest: (w >> 48) as u16, generation: (w >> 32) as u16, socket: w as u32 }
    }
}

/// A socket option as a guest set it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetOption {
    /// Level.
    pub level: i32,
    /// Number.
    pub name: i32,
    /// Value.
    pub value: Vec<u8>,
}

/// Bytes of a device's chunk that a stack reads or fills. The guest may change them at any time, so only the kernel, a device
/// or raw copies may touch them; it has the layout of `struct iovec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RawSpan {
    base: *mut u8,
    len: usize,
}

impl RawSpan {
    /// No bytes.
    pub const EMPTY: RawSpan = RawSpan { base: core::ptr::null_mut(), len: 0 };

    /// A span.
    ///
    /// # Safety
    /// `len` bytes from `base` are mapped, readable and writable for as long as the span is used, and no Rust reference to
    /// them exists.
    #[must_use]
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> RawSpan {
        RawSpan { base: base.as_ptr(), len }
    }
    /// Its first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base
    }
    /// Its length.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether it has no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What became possible on a socket. Edges: told once per change, and ServiceLib goes on until the stack says EAGAIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackEvent {
    /// The socket.
    pub key: Key,
    /// Reading (or accepting) may give something.
    pub readable: bool,
    /// Writing may take something; a connect may have ended.
    pub writable: bool,
    /// The peer finished, or the connection is gone: read until the end.
    pub hangup: bool,
    /// There is an error to fetch.
    pub error: bool,
}

/// How a connect began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// It is established already.
    Done,
    /// An event will tell.
    InProgress,
}

/// Which directions [`Stack::shutdown`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Both.
    Both,
}

/// What a socket carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A byte stream (TCP).
    Stream,
    /// Datagrams (UDP).
    Datagram,
}

/// A datagram to receive: room for one, and then what came.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// Where its bytes go: room for the longest one.
    pub spans: [RawSpan; MORE_MAX + 1],
    /// What is known of it. Chunks are ServiceLib's business: a stack leaves `more` alone.
    pub header: Header,
}

/// One of several sends, for [`Stack::send_all`].
#[derive(Debug)]
pub struct Sending<'a, T> {
    /// Where to.
    pub socket: &'a T,
    /// What.
    pub spans: &'a [RawSpan],
    /// What [`Stack::send`] would have returned: the stack's to set.
    pub result: Result<usize, Errno>,
}

/// A network stack. No call blocks, except [`Stack::poll`] for the time it is given.
pub trait Stack {
    /// A socket of the stack; dropping one closes it.
    type Socket: core::fmt::Debug;

    /// Opens a socket of an address family in a namespace.
    fn open(&mut self, namespace: u64, family: u16, kind: Kind) -> Result<Self::Socket, Errno>;
    /// Takes over a listener that another NSM opened.
    fn adopt(&mut self, _namespace: u64, _fd: OwnedFd) -> Result<Self::Socket, Errno> {
        Err(Errno(libc::EOPNOTSUPP))
    }
    /// Gives a socket away, to be taken by another NSM ([`Stack::take`]); back, where that cannot be done. It is neither closed nor
    /// forgotten by who keeps it.
    ///
    /// # Errors
    /// The socket itself.
    fn give(&mut self, socket: Self::Socket) -> Result<OwnedFd, Self::Socket> {
        Err(socket)
    }
    /// Takes a socket that another NSM gave away.
    fn take(&mut self, _fd: OwnedFd) -> Result<Self::Socket, Errno> {
        Err(Errno(libc::EOPNOTSUPP))
    }
    /// A datagram socket has this option from now on: for who keeps it over the NSM's death.
    fn note_option(&mut self, _key: Key, _option: &SetOption) {}
    /// The datagram socket was closed.
    fn forget_options(&mut self, _key: Key) {}
    /// Binds.
    fn bind(&mut self, socket: &Self::Socket, addr: &Addr) -> Result<(), Errno>;
    /// Listens with the given kernel backlog. `key` names the listener for who keeps it over the NSM's death.
    fn listen(
        &mut self,
        socket: &Self::Socket,
        backlog: u32,
        guest_backlog: u32,
        key: Key,
    ) -> Result<(), Errno>;
    /// Changes how many connections a listener lets wait on the stack's side.
    fn set_backlog(&mut self, _socket: &Self::Socket, _backlog: u32) {}
    /// Starts to connect.
    fn connect(&mut self, socket: &Self::Socket, addr: &Addr) -> Result<Connect, Errno>;
    /// How a connect ended: `None` while it is under way. After an error the socket is unconnected again.
    fn connect_result(&mut self, socket: &Self::Socket) -> Option<Result<(), Errno>>;
    /// Makes the socket unconnected (connect with AF_UNSPEC).
    fn disconnect(&mut self, socket: &Self::Socket) -> Result<(), Errno>;
    /// Ends directions of a connection, or stops listening.
    fn shutdown(&mut self, socket: &Self::Socket, how: How) -> Result<(), Errno>;
    /// Closes; with `abort` the peer gets a reset. `listener` is the key given to [`Stack::listen`], if it listened.
    fn close(&mut self, socket: Self::Socket, abort: bool, listener: Option<Key>);
    /// Sets an option (which ServiceLib found allowed).
    fn set_option(
        &mut self,
        socket: &Self::Socket,
        level: i32,
        name: i32,
        value: &[u8],
    ) -> Result<(), Errno>;
    /// Reads an option into `out`; returns its length.
    fn get_option(
        &mut self,
        socket: &Self::Socket,
        level: i32,
        name: i32,
        out: &mut [u8],
    ) -> Result<usize, Errno>;
    /// Local address.
    fn local(&self, socket: &Self::Socket) -> Result<Addr, Errno>;
    /// Peer address.
    fn peer(&self, socket: &Self::Socket) -> Result<Addr, Errno>;
    /// Sends from spans; EAGAIN when nothing fits. A short count means that an event follows when there is room.
    fn send(&mut self, socket: &Self::Socket, spans: &[RawSpan]) -> Result<usize, Errno>;
    /// Sends on several sockets: as [`Stack::send`] for each, and like it done with the spans when it returns.
    fn send_all(&mut self, sends: &mut [Sending<'_, Self::Socket>]) {
        for s in sends {
            s.result = self.send(s.socket, s.spans);
        }
    }
    /// Receives into spans; 0 at the end of the stream, EAGAIN when there is nothing. A short count means that nothing more is
    /// there now, except an end or an error that an event told.
    fn recv(&mut self, socket: &Self::Socket, spans: &[RawSpan]) -> Result<usize, Errno>;
    /// Sends one datagram from spans, to `header.peer` or else the peer; EAGAIN when there is no room, and an event follows when there
    /// is. Any other error says that this datagram was not sent, for a reason of its own or because of an error that the socket had pending.
    fn send_datagram(
        &mut self,
        _socket: &Self::Socket,
        _header: &Header,
        _spans: &[RawSpan],
    ) -> Result<(), Errno> {
        Err(Errno(libc::EOPNOTSUPP))
    }
    /// Receives datagrams, at most as many as there is room for; EAGAIN when there is none. An error may be one that the socket had
    /// pending: more may follow it.
    fn recv_datagrams(
        &mut self,
        _socket: &Self::Socket,
        _into: &mut [Datagram],
    ) -> Result<usize, Errno> {
        Err(Errno(libc::EOPNOTSUPP))
    }
    /// Accepts a connection: the socket and its peer.
    fn accept(&mut self, socket: &Self::Socket) -> Result<(Self::Socket, Addr), Errno>;
    /// Takes the pending error (SO_ERROR), 0 when there is none.
    fn take_error(&mut self, socket: &Self::Socket) -> i32;
    /// Bytes received and not read.
    fn unread(&self, socket: &Self::Socket) -> usize;
    /// Bytes sent and not acknowledged.
    fn unacknowledged(&self, socket: &Self::Socket) -> usize;
    /// Events for this socket go to `key` from now on; what is ready already is told too.
    fn watch(&mut self, socket: &Self::Socket, key: Key) -> Result<(), Errno>;
    /// Waits at most `wait_ms` (-1: for ever) and appends events.
    fn poll(&mut self, wait_ms: i32, events: &mut Vec<StackEvent>);
    /// A descriptor that ends a waiting [`Stack::poll`] each time it becomes readable (an eventfd that is written); `word` is then
    /// among [`Stack::woken`]. It is never read. The caller keeps it open until [`Stack::remove_waker`].
    fn add_waker(&mut self, fd: BorrowedFd<'_>, word: u32) -> Result<(), Errno>;
    /// Takes the words of the wakers that the polls so far have seen.
    fn woken(&mut self) -> std::vec::Drain<'_, u32>;
    /// Undoes [`Stack::add_waker`].
    fn remove_waker(&mut self, fd: BorrowedFd<'_>);
}
