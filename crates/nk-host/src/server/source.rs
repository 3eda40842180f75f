//! What the control thread waits for, and who is at the other end.

use std::os::fd::OwnedFd;

use nk_engine::{GuestId, NsmId};

use super::{Server, Token, nsm};

/// What a descriptor in the epoll is.
#[derive(Debug)]
pub(crate) enum Source {
    /// The attach socket.
    Listener(OwnedFd),
    /// The poll thread has something to tell.
    Bell,
    /// A connection.
    Connection { fd: OwnedFd, role: Role },
    /// A process of a guest.
    Pidfd { fd: OwnedFd, guest: GuestId, row: u16 },
    /// The process that made a guest.
    CreatorPidfd { fd: OwnedFd, guest: GuestId },
    /// The far end of a stand-in pair.
    Hold { fd: OwnedFd, guest: GuestId },
    /// The keeper closed its connection.
    Keeper,
    /// The configuration is to be read again.
    Hangup(OwnedFd),
    /// All is to end.
    Quit(OwnedFd),
    /// An NSM process: its control socket or its end.
    Nsm(NsmId, nsm::Part),
    /// A guest's resolver.
    Resolver { fd: OwnedFd, pid: i32, guest: GuestId },
}

impl Source {
    /// Its descriptor, where that is nobody else's.
    pub(super) fn fd(&self) -> Option<&OwnedFd> {
        match self {
            Source::Connection { fd, .. }
            | Source::Pidfd { fd, .. }
            | Source::CreatorPidfd { fd, .. }
            | Source::Hold { fd, .. }
            | Source::Resolver { fd, .. }
            | Source::Hangup(fd)
            | Source::Quit(fd)
            | Source::Listener(fd) => Some(fd),
            Source::Bell | Source::Keeper | Source::Nsm(..) => None,
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Not said yet, or somebody who asks.
    Stranger,
    /// `nk run`, before its exec.
    Creator(GuestId),
    /// A process.
    Process(GuestId, u16),
}

impl Server {
    /// Takes a source out of the epoll and closes it.
    pub(crate) fn drop_source(&mut self, token: Token) {
        let Some(source) = self.sources.remove(token) else { return };
        if let Source::Connection { role: Role::Stranger, .. } = &source {
            self.strangers.retain(|s| s.0 != token);
        }
        if let Some(fd) = source.fd() {
            self.epoll.remove(fd);
        }
    }

    pub(super) fn set_role(&mut self, token: Token, new: Role) {
        if let Some(Source::Connection { role, .. }) = self.sources.get_mut(token) {
            if *role == Role::Stranger && new != Role::Stranger {
                self.strangers.retain(|s| s.0 != token);
            }
            *role = new;
        }
    }
}
