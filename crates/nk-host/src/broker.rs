//! The broker: opens sockets in guests' network namespaces, so that no NSM has to enter one.
//!
//! In the daemon's own namespace it calls socket(2). For any other namespace it keeps a helper thread that has entered it
//! and hands sockets over, a few made ahead. Threads share the descriptor table, so handing over is passing a number.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nk_device::addr::{AF_INET, AF_INET6};
use nk_servicelib::{Errno, Kind};
use nk_stack_kernel::OwnNamespace;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys;

/// TCP sockets made ahead per namespace and address family.
const AHEAD: usize = 16;
/// UDP sockets: fewer programs open many.
const AHEAD_DATAGRAM: usize = 4;
/// The helper is woken when fewer than one part in this many is left, so that it makes them in batches.
const LOW: usize = 4;
/// Families and kinds.
const SORTS: [(u16, Kind); 4] = [
    (AF_INET, Kind::Stream),
    (AF_INET6, Kind::Stream),
    (AF_INET, Kind::Datagram),
    (AF_INET6, Kind::Datagram),
];

fn ahead(kind: Kind) -> usize {
    match kind {
        Kind::Stream => AHEAD,
        Kind::Datagram => AHEAD_DATAGRAM,
    }
}

/// A shared handle: the control thread registers namespaces, the stack opens sockets.
#[derive(Clone, Debug, Default)]
pub struct Broker(Arc<Mutex<HashMap<u64, Namespace>>>);

#[derive(Debug)]
enum Namespace {
    Own { users: usize },
    Other { users: usize, helper: Arc<Helper> },
}

#[derive(Debug)]
struct Helper {
    state: Mutex<State>,
    /// The helper waits here for something to do.
    work: Condvar,
    /// The stack waits here for a socket.
    ready: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// In the order of [`SORTS`].
    sockets: [Vec<OwnedFd>; SORTS.len()],
    /// How the last attempt failed; the helper tries again when asked again.
    failed: [Option<i32>; SORTS.len()],
    wanted: [bool; SORTS.len()],
    end: bool,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In the namespace of the calling thread.
fn open_socket(family: u16, kind: Kind) -> Result<OwnedFd, Errno> {
    nk_stack_kernel::Broker::open(&mut OwnNamespace, 0, family, kind)
}

/// The key of a namespace, by which guests, engine and stack name it.
///
/// # Errors
/// Those of fstat.
pub fn key_of(netns: &OwnedFd) -> io::Result<u64> {
    Ok(sys::identity(netns)?.1)
}

impl Broker {
    /// One without namespaces.
    #[must_use]
    pub fn new() -> Broker {
        Broker::default()
    }

    /// Makes a namespace usable and returns its key. Each call wants a [`Broker::release`].
    ///
    /// # Errors
    /// EPERM when this process may not enter it.
    pub fn register(&self, netns: &OwnedFd) -> io::Result<u64> {
        let key = key_of(netns)?;
        let mut map = lock(&self.0);
        if let Some(Namespace::Own { users } | Namespace::Other { users, .. }) = map.get_mut(&key) {
            *users += 1;
            return Ok(key);
        }
        let own = OwnedFd::from(std::fs::File::open("/proc/self/ns/net")?);
        let entry = if sys::identity(own)? == sys::identity(netns)? {
            Namespace::Own { users: 1 }
        } else {
            Namespace::Other { users: 1, helper: start(netns.try_clone()?)? }
        };
        map.insert(key, entry);
        Ok(key)
    }

    /// One user of a namespace less; the last one ends its helper.
    pub fn release(&self, key: u64) {
        let mut map = lock(&self.0);
        let last = match map.get_mut(&key) {
            Some(Namespace::Own { users } | Namespace::Other { users, .. }) => {
                *users = users.saturating_sub(1);
                *users == 0
            }
            None => false,
        };
        if last && let Some(Namespace::Other { helper, .. }) = map.remove(&key) {
            lock(&helper.state).end = true;
            helper.work.notify_one();
        }
    }

    /// Opens a non-blocking socket in a namespace.
    ///
    /// # Errors
    /// The errno of socket(2); ENONET for a namespace that is not registered.
    pub fn open(&self, key: u64, family: u16, kind: Kind) -> Result<OwnedFd, Errno> {
        let Some(index) = SORTS.iter().position(|s| *s == (family, kind)) else {
            return Err(Errno(libc::EAFNOSUPPORT));
        };
        let helper = match lock(&self.0).get(&key) {
            None => return Err(Errno(libc::ENONET)),
            Some(Namespace::Own { .. }) => return open_socket(family, kind),
            Some(Namespace::Other { helper, .. }) => helper.clone(),
        };
        let mut state = lock(&helper.state);
        loop {
            let sockets = state.sockets.get_mut(index).ok_or(Errno(libc::EAFNOSUPPORT))?;
            let taken = sockets.pop();
            if sockets.len() < ahead(kind) / LOW
                && let Some(w) = state.wanted.get_mut(index)
                && !mem::replace(w, true)
            {
                helper.work.notify_one();
            }
            if let Some(fd) = taken {
                return Ok(fd);
            }
            if let Some(e) = state.failed.get_mut(index).and_then(Option::take) {
                return Err(Errno(e));
            }
            if state.end {
                return Err(Errno(libc::ENONET));
            }
            state = helper.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl nk_stack_kernel::Broker for Broker {
    fn open(&mut self, namespace: u64, family: u16, kind: Kind) -> Result<OwnedFd, Errno> {
        Broker::open(self, namespace, family, kind)
    }
}

/// Starts a helper thread and waits until it has entered the namespace.
fn start(netns: OwnedFd) -> io::Result<Arc<Helper>> {
    let helper = Arc::new(Helper {
        state: Mutex::new(State::default()),
        work: Condvar::new(),
        ready: Condvar::new(),
    });
    let (entered, has_entered) = std::sync::mpsc::sync_channel(1);
    let mine = helper.clone();
    std::thread::Builder::new().name("nk-broker".into()).stack_size(128 * 1024).spawn(
        move || {
            // This thread alone moves.
            let r = move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network));
            let failed = r.is_err();
            let _ = entered.send(r.map_err(io::Error::from));
            if !failed {
                drop(netns);
                serve(&mine);
            }
        },
    )?;
    has_entered.recv().map_err(io::Error::other)??;
    Ok(helper)
}

fn serve(helper: &Helper) {
    let mut state = lock(&helper.state);
    while !state.end {
        let wanted = state.wanted.iter().zip(SORTS).enumerate().find(|(_, (wanted, _))| **wanted);
        let Some((index, (_, (family, kind)))) = wanted else {
            state = helper.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let have = state.sockets.get(index).map_or(0, Vec::len);
        drop(state);
        let mut made = Vec::new();
        let mut failed = None;
        for _ in have..ahead(kind) {
            match open_socket(family, kind) {
                Ok(fd) => made.push(fd),
                Err(e) => {
                    failed = Some(e.0);
                    break;
                }
            }
        }
        state = lock(&helper.state);
        let nothing = made.is_empty();
        if let Some(s) = state.sockets.get_mut(index) {
            s.append(&mut made);
        }
        if let Some(f) = state.failed.get_mut(index) {
            // A failure is told only to somebody who got nothing at all.
            *f = failed.filter(|_| nothing && have == 0);
        }
        if let Some(w) = state.wanted.get_mut(index) {
            *w = false;
        }
        helper.ready.notify_all();
    }
}
