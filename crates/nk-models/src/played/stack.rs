//! A stack in memory: listeners by port and namespace, connections as pairs of byte queues, datagram sockets with an inbox each.

mod datagrams;
mod net;

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use nk_device::Addr;
use nk_device::datagram::Header;
use nk_servicelib::{Connect, Datagram, Errno, How, Key, Kind, RawSpan, Stack, StackEvent};
use rustix::fs::{MemfdFlags, memfd_create};

use net::Sock;
pub use net::{Faults, Net};

/// Bytes that one direction of a connection holds.
const BUFFER: usize = 48 * 1024;

const V6ONLY: (i32, i32) = (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);

/// Called at each call of the stack: the moment for a hostile guest to change what is being read.
pub type Meanwhile = Rc<RefCell<dyn FnMut()>>;

/// A stack.
pub struct MemoryStack {
    /// Shared with other stacks.
    pub net: Rc<RefCell<Net>>,
    number: u8,
    /// What it told of its listeners, and nobody has heard.
    pub notes: Vec<Note>,
    meanwhile: Option<Meanwhile>,
    /// Always empty: nobody waits for this stack.
    woken: Vec<u32>,
}

impl core::fmt::Debug for MemoryStack {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("MemoryStack").field("net", &self.net).finish_non_exhaustive()
    }
}

/// What an NSM tells of a listener: where it listens, with its backlog, or that it does no more.
pub type Note = (Key, Option<(Addr, u32)>);

/// Whose a socket is while its descriptor is between two stacks.
pub(super) const NOBODY: u8 = u8::MAX;

/// A descriptor with this written into it.
fn descriptor(bytes: &[u8]) -> OwnedFd {
    let fd = memfd_create(c"socket", MemfdFlags::CLOEXEC).expect("memfd_create");
    let file = File::from(fd);
    file.write_all_at(bytes, 0).expect("a few bytes");
    file.into()
}

impl MemoryStack {
    /// A stack by itself.
    #[must_use]
    pub fn new(meanwhile: Option<Meanwhile>) -> MemoryStack {
        MemoryStack::on(Rc::default(), 0, meanwhile)
    }

    /// One of several.
    #[must_use]
    pub fn on(net: Rc<RefCell<Net>>, number: u8, meanwhile: Option<Meanwhile>) -> MemoryStack {
        MemoryStack { net, number, notes: Vec::new(), meanwhile, woken: Vec::new() }
    }

    /// What a keeper would have of a listener: a descriptor that says where it listened.
    ///
    /// # Panics
    /// When there is no descriptor or memory left.
    #[must_use]
    pub fn kept_descriptor(addr: &Addr) -> OwnedFd {
        descriptor(&addr.port.to_le_bytes())
    }

    /// Tells an event of a socket, whether it is true or not.
    pub fn tell(&mut self, key: Key, bits: u8) {
        let event = StackEvent {
            key,
            readable: bits & 1 != 0,
            writable: bits & 2 != 0,
            hangup: bits & 4 != 0,
            error: bits & 8 != 0,
        };
        self.net.borrow_mut().events.push((self.number, event));
    }

    fn meanwhile(&self) {
        if let Some(m) = &self.meanwhile {
            m.borrow_mut()();
        }
    }
}

impl Stack for MemoryStack {
    type Socket = usize;

    fn open(&mut self, namespace: u64, family: u16, kind: Kind) -> Result<usize, Errno> {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        if family != nk_device::addr::AF_INET && family != nk_device::addr::AF_INET6 {
            return Err(Errno(libc::EAFNOSUPPORT));
        }
        Ok(net.add(Sock {
            stack: self.number,
            namespace,
            local: Addr { family, ..Addr::default() },
            datagram: kind == Kind::Datagram,
            ..Sock::default()
        }))
    }
    fn bind(&mut self, socket: &usize, addr: &Addr) -> Result<(), Errno> {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        let port = if addr.port == 0 { net.free_port() } else { addr.port };
        let namespace = net.at(socket).namespace;
        let taken = net
            .socks
            .iter()
            .flatten()
            .any(|s| s.namespace == namespace && s.local.port == port && s.listening.is_some());
        if taken {
            return Err(Errno(libc::EADDRINUSE));
        }
        net.at(socket).local = Addr { port, ..*addr };
        Ok(())
    }
    fn adopt(&mut self, namespace: u64, fd: OwnedFd) -> Result<usize, Errno> {
        let mut port = [0; 2];
        File::from(fd).read_exact_at(&mut port, 0).expect("a kept listener");
        let local = Addr::v4([127, 0, 0, 1], u16::from_le_bytes(port));
        let sock = Sock { stack: self.number, namespace, local, ..Sock::default() };
        Ok(self.net.borrow_mut().add(sock))
    }
    fn listen(&mut self, socket: &usize, backlog: u32, _: u32, key: Key) -> Result<(), Errno> {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        let port = net.free_port();
        let s = net.at(socket);
        if s.connected {
            return Err(Errno(libc::EINVAL));
        }
        if s.local.port == 0 {
            s.local.port = port;
        }
        s.listening = Some((backlog as usize).clamp(1, 128));
        let local = s.local;
        self.notes.push((key, Some((local, backlog))));
        Ok(())
    }
    fn connect(&mut self, socket: &usize, addr: &Addr) -> Result<Connect, Errno> {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        let port = net.free_port();
        let s = net.at(socket);
        if s.connected || s.listening.is_some() {
            return Err(Errno(libc::EISCONN));
        }
        if s.local.port == 0 {
            s.local.port = port;
        }
        if s.datagram {
            s.remote = *addr;
            return Ok(Connect::Done);
        }
        let (namespace, local) = (s.namespace, s.local);
        let listener = net.socks.iter().position(|l| {
            l.as_ref().is_some_and(|l| {
                let room = l.listening.is_some_and(|backlog| l.queue.len() < backlog);
                l.namespace == namespace && l.local.port == addr.port && room
            })
        });
        let Some(listener) = listener else { return Err(Errno(libc::ECONNREFUSED)) };
        let stack = net.at(&listener).stack;
        let far = net.add(Sock {
            stack,
            namespace,
            local: *addr,
            remote: local,
            peer: Some(*socket),
            connected: true,
            ..Sock::default()
        });
        let s = net.at(socket);
        (s.peer, s.connected, s.remote) = (Some(far), true, *addr);
        net.at(&listener).queue.push_back(far);
        net.event(listener, |e| e.readable = true);
        Ok(Connect::Done)
    }
    fn connect_result(&mut self, socket: &usize) -> Option<Result<(), Errno>> {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        let s = net.at(socket);
        Some(if s.connected { Ok(()) } else { Err(Errno(libc::ECONNREFUSED)) })
    }
    fn disconnect(&mut self, socket: &usize) -> Result<(), Errno> {
        self.shutdown(socket, How::Both)?;
        let mut net = self.net.borrow_mut();
        let s = net.at(socket);
        (s.connected, s.peer) = (false, None);
        Ok(())
    }
    fn shutdown(&mut self, socket: &usize, how: How) -> Result<(), Errno> {
        self.meanwhile();
        self.net.borrow_mut().shutdown(socket, how);
        Ok(())
    }
    fn close(&mut self, socket: usize, abort: bool, listener: Option<Key>) {
        self.meanwhile();
        if let Some(key) = listener {
            self.notes.push((key, None));
        }
        self.net.borrow_mut().close(socket, abort);
    }
    fn give(&mut self, socket: usize) -> Result<OwnedFd, usize> {
        let mut net = self.net.borrow_mut();
        if let Some(key) = net.at(&socket).key.take() {
            net.events.retain(|(_, e)| e.key != key);
        }
        net.set_stack(socket, NOBODY);
        Ok(descriptor(&(socket as u64).to_le_bytes()))
    }
    fn take(&mut self, fd: OwnedFd) -> Result<usize, Errno> {
        let mut word = [0; 8];
        File::from(fd).read_exact_at(&mut word, 0).expect("a socket that was given");
        let socket = u64::from_le_bytes(word) as usize;
        let mut net = self.net.borrow_mut();
        assert_eq!(net.at(&socket).stack, NOBODY, "a socket that was not given");
        net.set_stack(socket, self.number);
        Ok(socket)
    }
    fn set_option(
        &mut self,
        socket: &usize,
        level: i32,
        name: i32,
        value: &[u8],
    ) -> Result<(), Errno> {
        self.meanwhile();
        if (level, name) == V6ONLY {
            self.net.borrow_mut().at(socket).v6only = value.iter().any(|b| *b != 0);
            return Ok(());
        }
        if level == 6 { Ok(()) } else { Err(Errno(libc::ENOPROTOOPT)) }
    }
    fn get_option(
        &mut self,
        socket: &usize,
        level: i32,
        name: i32,
        out: &mut [u8],
    ) -> Result<usize, Errno> {
        self.meanwhile();
        if (level, name) == V6ONLY {
            out.fill(self.net.borrow_mut().at(socket).v6only.into());
            return Ok(out.len());
        }
        out.fill(7);
        if level == 6 { Ok(out.len()) } else { Err(Errno(libc::ENOPROTOOPT)) }
    }
    fn local(&self, socket: &usize) -> Result<Addr, Errno> {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        Ok(net.at(socket).local)
    }
    fn peer(&self, socket: &usize) -> Result<Addr, Errno> {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        Ok(net.at(socket).remote)
    }
    fn send(&mut self, socket: &usize, spans: &[RawSpan]) -> Result<usize, Errno> {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        net.fault(*socket)?;
        let s = net.at(socket);
        if !s.connected {
            return Err(Errno(libc::EPIPE));
        }
        let Some(peer) = s.peer else { return Err(Errno(libc::EPIPE)) };
        let mut sent = 0;
        let Some(Some(p)) = net.socks.get_mut(peer) else { return Err(Errno(libc::EPIPE)) };
        for span in spans {
            let n = span.len().min(BUFFER - p.bytes.len());
            for i in 0..n {
                // SAFETY: ServiceLib promises that the span is mapped; a hostile guest may change the bytes, not the mapping.
                p.bytes.push_back(unsafe { span.as_ptr().add(i).read_volatile() });
            }
            sent += n;
        }
        if sent == 0 {
            return Err(Errno(libc::EAGAIN));
        }
        net.event(peer, |e| e.readable = true);
        Ok(sent)
    }
    fn recv(&mut self, socket: &usize, spans: &[RawSpan]) -> Result<usize, Errno> {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        net.fault(*socket)?;
        let s = net.at(socket);
        let peer = s.peer;
        let mut got = 0;
        for span in spans {
            for i in 0..span.len() {
                let Some(b) = s.bytes.pop_front() else { break };
                // SAFETY: as in send.
                unsafe { span.as_ptr().add(i).write_volatile(b) };
                got += 1;
            }
        }
        if got == 0 {
            return match core::mem::take(&mut s.error) {
                0 if s.eof => Ok(0),
                0 => Err(Errno(libc::EAGAIN)),
                e => Err(Errno(e)),
            };
        }
        if let Some(peer) = peer {
            net.event(peer, |e| e.writable = true);
        }
        Ok(got)
    }
    fn send_datagram(
        &mut self,
        socket: &usize,
        header: &Header,
        spans: &[RawSpan],
    ) -> Result<(), Errno> {
        self.meanwhile();
        self.net.borrow_mut().send_datagram(socket, header, spans)
    }
    fn recv_datagrams(&mut self, socket: &usize, into: &mut [Datagram]) -> Result<usize, Errno> {
        self.meanwhile();
        self.net.borrow_mut().recv_datagrams(socket, into)
    }
    fn accept(&mut self, socket: &usize) -> Result<(usize, Addr), Errno> {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        let Some(far) = net.at(socket).queue.pop_front() else { return Err(Errno(libc::EAGAIN)) };
        let remote = net.at(&far).remote;
        Ok((far, remote))
    }
    fn take_error(&mut self, socket: &usize) -> i32 {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        core::mem::take(&mut net.at(socket).error)
    }
    fn unread(&self, socket: &usize) -> usize {
        self.net.borrow_mut().at(socket).bytes.len()
    }
    fn unacknowledged(&self, _: &usize) -> usize {
        0
    }
    fn watch(&mut self, socket: &usize, key: Key) -> Result<(), Errno> {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        if net.faults.watches_nothing {
            return Err(Errno(libc::ENOSPC));
        }
        let s = net.at(socket);
        s.key = Some(key);
        let (readable, writable) = (
            !s.bytes.is_empty() || !s.inbox.is_empty() || !s.queue.is_empty() || s.eof,
            s.connected,
        );
        net.event(*socket, |e| (e.readable, e.writable) = (readable, writable));
        Ok(())
    }
    fn poll(&mut self, _: i32, events: &mut Vec<StackEvent>) {
        self.meanwhile();
        let mut net = self.net.borrow_mut();
        let (mine, others) = net.events.drain(..).partition(|(stack, _)| *stack == self.number);
        net.events = others;
        let mine: Vec<(u8, StackEvent)> = mine;
        events.extend(mine.into_iter().map(|(_, e)| e));
    }
    fn woken(&mut self) -> std::vec::Drain<'_, u32> {
        self.woken.drain(..)
    }
    fn add_waker(&mut self, _: BorrowedFd<'_>, _: u32) -> Result<(), Errno> {
        Ok(())
    }
    fn remove_waker(&mut self, _: BorrowedFd<'_>) {}
}
