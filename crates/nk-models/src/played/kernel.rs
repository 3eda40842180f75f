//! What the kernel knows in the simulation, whichever part dies: who lives, which connections are open, and what is in their queues.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;

use nk_attach::Message;
use nk_device::Addr;
use nk_host::keeper::entries::Entries;
use nk_host::keeper::link::Wire;
use nk_host::keeper::state::State;
use std::cell::RefCell;
use std::rc::Rc;

/// A descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fd {
    /// Memory, doorbells, namespaces: nothing happens to them.
    Still,
    /// The daemon's end of a process's connection.
    Control(u32),
    Pidfd(i32),
    /// The daemon's end of a pair that travels.
    FarEnd(u32),
    /// A listener.
    Listener(Addr),
}

/// What a process says without waiting for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// By this child.
    Hello(i32),
    ForkFailed(u16),
    DropQset(u16),
}

/// A connection between a process and the daemon.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// Who has the other end.
    owner: i32,
    /// What it said, and nobody has read.
    pub(super) queue: VecDeque<Said>,
    /// The process closed its end, or ended.
    pub(super) is_closed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Kernel {
    last: u32,
    living: HashSet<i32>,
    pub(super) connections: HashMap<u32, Connection>,
    /// Pairs that travel.
    pub(super) pairs: HashSet<u32>,
}

impl Kernel {
    /// A number that nothing has.
    pub(super) fn number(&mut self) -> u32 {
        self.last += 1;
        self.last
    }
    pub(super) fn start(&mut self) -> i32 {
        let pid = self.number() as i32;
        self.living.insert(pid);
        pid
    }
    /// Its ends of connections are closed with it.
    pub(super) fn end(&mut self, pid: i32) {
        self.living.remove(&pid);
        let its = self.connections.values_mut().filter(|c| c.owner == pid);
        its.for_each(|c| c.is_closed = true);
    }
    pub(super) fn lives(&self, pid: i32) -> bool {
        self.living.contains(&pid)
    }
    pub(super) fn connect(&mut self, owner: i32) -> u32 {
        let number = self.number();
        self.connections.insert(number, Connection { owner, ..Connection::default() });
        number
    }
    /// The child has it, and not its parent any more.
    pub(super) fn hand_down(&mut self, connection: u32, child: i32) {
        if let Some(c) = self.connections.get_mut(&connection) {
            c.owner = child;
        }
    }
    pub(super) fn pair(&mut self) -> u32 {
        let number = self.number();
        self.pairs.insert(number);
        number
    }
    /// The process's end is closed.
    pub(super) fn close(&mut self, connection: u32) {
        if let Some(c) = self.connections.get_mut(&connection) {
            c.is_closed = true;
        }
    }
    pub(super) fn say(&mut self, connection: u32, what: Said) {
        if let Some(c) = self.connections.get_mut(&connection) {
            c.queue.push_back(what);
        }
    }
    /// Whether who watches for a process's end by a descriptor sees it.
    pub(super) fn is_end(&self, fd: &Fd) -> bool {
        match fd {
            Fd::Pidfd(pid) => !self.lives(*pid),
            Fd::Control(c) => self.connections.get(c).is_none_or(|c| c.is_closed),
            Fd::FarEnd(pair) => !self.pairs.contains(pair),
            Fd::Still | Fd::Listener(_) => false,
        }
    }
    /// Whether there is something to be read or seen at a descriptor.
    pub(super) fn is_ready(&self, fd: &Fd) -> bool {
        let is_said = |c: &u32| self.connections.get(c).is_some_and(|c| !c.queue.is_empty());
        self.is_end(fd) || matches!(fd, Fd::Control(c) if is_said(c))
    }
}

/// A keeper; `None`: it has ended.
#[derive(Clone, Debug)]
pub(super) struct Keeper(pub(super) Rc<RefCell<Option<State<Fd>>>>);

impl Keeper {
    /// One that the daemon has just started, and that has answered.
    pub(super) fn start() -> Keeper {
        let mut state = State::new(false);
        assert!(state.connected(), "it is the first");
        Keeper(Rc::new(RefCell::new(Some(state))))
    }
    pub(super) fn lives(&self) -> bool {
        self.0.borrow().is_some()
    }
    pub(super) fn end(&self) {
        *self.0.borrow_mut() = None;
    }
    /// Looks at what it has.
    pub(super) fn has<R>(&self, look: impl FnOnce(&Entries<Fd>) -> R) -> R {
        look(self.0.borrow().as_ref().expect("it lives").entries())
    }
}

impl Wire for Keeper {
    type Fd = Fd;
    type Raw<'a> = Fd;

    fn raw(fd: &Fd) -> Fd {
        *fd
    }
    fn duplicate(raw: Fd) -> io::Result<Fd> {
        Ok(raw)
    }
    fn send(&self, m: &Message, fds: &[Fd]) -> Result<(), i32> {
        match &mut *self.0.borrow_mut() {
            Some(state) => {
                assert!(!state.message(*m, fds.to_vec()), "nobody asks for all in between");
                Ok(())
            }
            None => Err(libc::EPIPE),
        }
    }
}
