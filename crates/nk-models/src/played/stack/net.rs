//! What all stacks in memory are on: the sockets, whoever has them, and what is to go wrong.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nk_device::Addr;
use nk_servicelib::{Errno, How, Key, StackEvent};

#[derive(Debug, Default)]
pub(super) struct Sock {
    /// The number of the stack that has it.
    pub(super) stack: u8,
    pub(super) namespace: u64,
    pub(super) local: Addr,
    pub(super) remote: Addr,
    pub(super) listening: Option<usize>,
    pub(super) queue: VecDeque<usize>,
    pub(super) peer: Option<usize>,
    pub(super) connected: bool,
    pub(super) bytes: VecDeque<u8>,
    pub(super) datagram: bool,
    pub(super) v6only: bool,
    pub(super) inbox: VecDeque<(Addr, Vec<u8>)>,
    pub(super) eof: bool,
    pub(super) error: i32,
    pub(super) key: Option<Key>,
}

/// What the test can do to the stack.
#[derive(Debug, Default)]
pub struct Faults {
    /// Errnos for the next sends and receives, 0 for none.
    pub next: VecDeque<i32>,
    /// Nothing more is watched.
    pub watches_nothing: bool,
}

/// What all stacks of a host are on: the sockets, whoever has them.
#[derive(Debug)]
pub struct Net {
    pub(super) socks: Vec<Option<Sock>>,
    /// For which stack, and what.
    pub(super) events: Vec<(u8, StackEvent)>,
    /// What goes wrong next.
    pub faults: Faults,
    next_port: u16,
}

impl Default for Net {
    fn default() -> Net {
        let (socks, events, faults) = (Vec::new(), Vec::new(), Faults::default());
        Net { socks, events, faults, next_port: 40_000 }
    }
}

impl Net {
    /// Sockets open.
    #[must_use]
    pub fn open_sockets(&self) -> usize {
        self.socks.iter().flatten().count()
    }

    /// Resets some connection.
    pub fn reset(&mut self, n: usize) {
        let at = n % self.socks.len().max(1);
        if let Some(Some(s)) = self.socks.get_mut(at)
            && s.connected
        {
            (s.error, s.eof, s.connected) = (libc::ECONNRESET, true, false);
            self.event(at, |e| (e.readable, e.hangup, e.error) = (true, true, true));
        }
    }

    /// A stack is dead: what it had is closed, as the kernel does it for a process.
    pub fn end_stack(&mut self, number: u8) {
        // Listeners first: who waits to be accepted goes with them.
        for are_listeners in [true, false] {
            for at in 0..self.socks.len() {
                let is_its = |s: &Sock| s.stack == number && s.queue.is_empty() != are_listeners;
                if self.socks[at].as_ref().is_some_and(is_its) {
                    self.close(at, true);
                }
            }
        }
        self.events.retain(|(stack, _)| *stack != number);
    }

    /// A socket that was given and that nobody took.
    ///
    /// # Panics
    /// When the descriptor is none of a socket.
    pub fn end_given(&mut self, fd: &OwnedFd) {
        let mut word = [0; 8];
        let file = File::from(fd.try_clone().expect("a descriptor"));
        file.read_exact_at(&mut word, 0).expect("a socket that was given");
        self.close(u64::from_le_bytes(word) as usize, true);
    }

    pub(super) fn event(&mut self, at: usize, f: impl FnOnce(&mut StackEvent)) {
        let sock = self.socks.get(at).and_then(Option::as_ref);
        if let Some((stack, key)) = sock.and_then(|s| Some((s.stack, s.key?))) {
            let mut e =
                StackEvent { key, readable: false, writable: false, hangup: false, error: false };
            f(&mut e);
            self.events.push((stack, e));
        }
    }

    pub(super) fn add(&mut self, s: Sock) -> usize {
        match self.socks.iter().position(Option::is_none) {
            Some(free) => {
                self.socks[free] = Some(s);
                free
            }
            None => {
                self.socks.push(Some(s));
                self.socks.len() - 1
            }
        }
    }

    pub(super) fn at(&mut self, socket: &usize) -> &mut Sock {
        self.socks[*socket].as_mut().expect("ServiceLib uses a socket it closed")
    }

    pub(super) fn free_port(&mut self) -> u16 {
        self.next_port = self.next_port.wrapping_add(1).max(40_000);
        self.next_port
    }

    /// The next thing that goes wrong. Who was told to wait is told when that is over, as by a kernel.
    pub(super) fn fault(&mut self, at: usize) -> Result<(), Errno> {
        match self.faults.next.pop_front() {
            None | Some(0) => Ok(()),
            Some(e) => {
                if e == libc::EAGAIN {
                    self.event(at, |e| (e.readable, e.writable) = (true, true));
                }
                Err(Errno(e))
            }
        }
    }

    /// What a listener has not accepted goes with it.
    pub(super) fn set_stack(&mut self, socket: usize, number: u8) {
        let s = self.at(&socket);
        s.stack = number;
        let queue = s.queue.clone();
        for queued in queue {
            self.set_stack(queued, number);
        }
    }

    pub(super) fn shutdown(&mut self, socket: &usize, how: How) {
        let s = self.at(socket);
        let peer = s.peer;
        if how != How::Write {
            s.listening = None;
            s.eof = true;
        }
        if how != How::Read
            && let Some(peer) = peer
            && let Some(Some(p)) = self.socks.get_mut(peer)
        {
            p.eof = true;
            self.event(peer, |e| (e.readable, e.hangup) = (true, true));
        }
    }

    pub(super) fn close(&mut self, socket: usize, abort: bool) {
        let Some(s) = self.socks.get_mut(socket).and_then(Option::take) else {
            panic!("ServiceLib closed a socket twice")
        };
        for queued in s.queue {
            self.close(queued, true);
        }
        if let Some(peer) = s.peer
            && let Some(Some(p)) = self.socks.get_mut(peer)
        {
            p.peer = None;
            p.eof = true;
            if abort || !s.bytes.is_empty() {
                p.error = libc::ECONNRESET;
            }
            self.event(peer, |e| (e.readable, e.hangup, e.error) = (true, true, abort));
        }
    }
}
