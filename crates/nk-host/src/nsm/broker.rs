//! Sockets for an NSM process: it asks, the daemon's broker opens them in a guest's namespace.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nk_attach::{Kind, Message};
use nk_servicelib::{self as servicelib, Errno};

use crate::broker::Broker;
use crate::sys;

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
    /// Whether it serves a guest there.
    #[must_use]
    pub fn has(&self, namespace: u64) -> bool {
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

/// The way to the broker, which changes when another daemon takes over. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Way(Arc<(Mutex<Option<Arc<OwnedFd>>>, Condvar)>);

impl Way {
    pub(super) fn new(socket: OwnedFd) -> Way {
        Way(Arc::new((Mutex::new(Some(Arc::new(socket))), Condvar::new())))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the broker is now; `None` while there is none.
    pub(super) fn socket(&self) -> Option<Arc<OwnedFd>> {
        self.lock().clone()
    }

    /// Another broker from now on. Who waits for the last one's answer asks this one.
    pub(super) fn change(&self, socket: OwnedFd) {
        if let Some(old) = self.lock().replace(Arc::new(socket)) {
            // Ends a receive that another thread may be in.
            let _ = rustix::net::shutdown(&*old, rustix::net::Shutdown::Both);
        }
        self.0.1.notify_all();
    }

    /// That broker is gone.
    pub(super) fn lose(&self, which: &Arc<OwnedFd>) {
        let mut present = self.lock();
        if present.as_ref().is_some_and(|p| Arc::ptr_eq(p, which)) {
            *present = None;
        }
    }

    /// Waits until there is one.
    fn wait(&self) -> Arc<OwnedFd> {
        let mut present = self.lock();
        loop {
            if let Some(socket) = &*present {
                return socket.clone();
            }
            present = self.0.1.wait(present).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The broker as an NSM process reaches it.
#[derive(Debug)]
pub(super) struct RemoteBroker(pub(super) Way);

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
        loop {
            let socket = self.0.wait();
            let raw = socket.as_raw_fd();
            let asked = nk_attach::send(raw, &m, &[]).ok();
            let Some((reply, mut fds, _)) = asked.and_then(|()| nk_attach::recv(raw, false).ok())
            else {
                // The daemon died: the next one is asked.
                self.0.lose(&socket);
                continue;
            };
            return match (reply.status, sys::take(&mut fds, 0)) {
                (0, Some(fd)) => Ok(fd),
                (0, None) => Err(Errno(libc::EMFILE)),
                (e, _) => Err(Errno(e)),
            };
        }
    }
}
