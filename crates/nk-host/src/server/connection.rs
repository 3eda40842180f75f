//! Connections to the attach socket: accepted, read in turns, and each message given to what serves it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nk_attach::{Credentials, Fds, Kind, Message, RecvError};
use rustix::event::epoll::EventFlags;

use super::{Reply, Role, Server, Source, Token};
use crate::control::attach;
use crate::sys;

/// Connections that have not said what they are.
const STRANGERS_MAX: usize = 512;
/// Messages taken from one connection before the others have their turn.
const MESSAGES_PER_TURN: usize = 16;
/// How long accept rests when descriptors ran out.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// Which connection makes room for another: of the user that has most, the oldest. Who has something to say has said it long before so many others
/// came. Were the next one refused, or any user's closed, silent ones would keep all others out.
fn makes_room(strangers: &VecDeque<(Token, u32)>) -> Option<(Token, u32)> {
    let mut counts = HashMap::new();
    strangers.iter().for_each(|(_, uid)| *counts.entry(*uid).or_insert(0) += 1);
    let most = counts.values().max()?;
    strangers.iter().find(|(_, uid)| counts.get(uid) == Some(most)).copied()
}

impl Server {
    pub(super) fn accept(&mut self) {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(Source::Listener(listener)) = self.sources.get(self.listener) else { return };
            let fd = match sys::accept(listener) {
                Ok(fd) => fd,
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN | libc::ECONNABORTED | libc::EINTR) => return,
                    _ => {
                        // The listener stays readable: look away for a while instead of spinning.
                        tracing::error!(error = %e, "cannot accept on the attach socket; raise LimitNOFILE if it is that");
                        let _ =
                            self.epoll.change(listener, EventFlags::empty(), self.listener.word());
                        self.accept_rests_until = Some(Instant::now() + ACCEPT_REST);
                        return;
                    }
                },
            };
            if sys::pass_credentials(&fd).is_err() {
                continue;
            }
            if self.strangers.len() >= STRANGERS_MAX
                && let Some((oldest, uid)) = makes_room(&self.strangers)
            {
                tracing::warn!(uid, "too many connections that say nothing: the oldest is closed");
                self.drop_source(oldest);
            }
            let uid = sys::peer_credentials(fd.as_raw_fd()).map_or(u32::MAX, |c| c.uid);
            let stranger = Source::Connection { fd, role: Role::Stranger };
            match self.watch(stranger, EventFlags::IN) {
                Ok(token) => self.strangers.push_back((token, uid)),
                Err(e) => tracing::error!(error = %e, "cannot watch a connection"),
            }
        }
    }

    /// Handles what came on a connection, until it is empty, closed or has had its turn.
    pub(super) fn messages(&mut self, token: Token) -> io::Result<()> {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(Source::Connection { fd, role }) = self.sources.get(token) else {
                return Ok(());
            };
            let (raw, role) = (fd.as_raw_fd(), *role);
            // A child says hello once: should this daemon die before the keeper knows, the next one hears it.
            let is_embryo =
                matches!(role, Role::Process(g, row) if attach::is_embryo(self, g, row));
            let received = match is_embryo {
                true => {
                    // The guest has the socket, too, and may have said that a peek is to skip something: it would find nothing for ever.
                    sys::peek_at_start(raw);
                    nk_attach::peek(raw)
                }
                false => nk_attach::recv(raw, true),
            };
            match received {
                // No request, but an answer of a daemon's: a guest gave the two ends of one connection as those of two.
                Ok((message, ..)) if message.status != 0 => {
                    return self.connection_closed(token);
                }
                Ok((message, fds, credentials)) => {
                    self.message(token, raw, role, &message, fds, credentials)?;
                    if is_embryo && self.sources.get(token).is_some() {
                        let _ = nk_attach::recv(raw, true);
                    }
                }
                Err(RecvError::Os(libc::EAGAIN)) => return Ok(()),
                Err(RecvError::Malformed) => {
                    tracing::warn!(
                        ?role,
                        "a message of another protocol version; the connection is closed"
                    );
                    let mut m = Message::new(Kind::Query)
                        .with_text("nk and libnetkernel.so are of another version than the daemon");
                    m.status = libc::EPROTO;
                    let _ = nk_attach::try_send(raw, &m, &[]);
                    return self.connection_closed(token);
                }
                Err(RecvError::Closed | RecvError::Os(_)) => return self.connection_closed(token),
            }
        }
        Ok(())
    }

    fn message(
        &mut self,
        token: Token,
        raw: i32,
        role: Role,
        message: &Message,
        fds: Fds,
        credentials: Option<Credentials>,
    ) -> io::Result<()> {
        // A message sent between our accept and our asking for credentials has none. Whoever connected also asks; only a
        // forked child's socket was made by another process, and its hello comes long after.
        let credentials = credentials.filter(|c| c.pid > 0).or_else(|| match role {
            Role::Stranger | Role::Creator(_) => sys::peer_credentials(raw),
            Role::Process(..) => None,
        });
        let Some(kind) = Kind::from_u32(message.kind) else {
            return self.connection_closed(token);
        };
        let reply = match (kind, role) {
            (Kind::CreateGuest, Role::Stranger) => {
                Some(self.create_guest(token, message, fds, credentials)?)
            }
            (Kind::Attach, Role::Stranger | Role::Creator(_)) => {
                Some(self.attach(token, message, fds, credentials)?)
            }
            (Kind::Attach, Role::Process(g, row)) if row != 0 => {
                Some(self.attach_again(token, g, row, fds)?)
            }
            (Kind::Order, Role::Stranger) => Some(self.order(message, credentials)?),
            (Kind::Query, Role::Stranger) => Some(self.query(message, credentials)?),
            (Kind::Fork, Role::Process(g, row)) if row != 0 => Some(self.fork(g, row, fds)?),
            (Kind::Hello, Role::Process(g, row)) => {
                self.hello(g, row, credentials)?;
                None
            }
            (Kind::ForkFailed, Role::Process(g, row)) => {
                attach::fork_failed(self, g, row, message.a)?;
                None
            }
            (Kind::AddQset, Role::Process(g, row)) => Some(self.add_qset(g, row, fds)?),
            (Kind::DropQset, Role::Process(g, row)) => {
                attach::drop_qset(self, g, row, message.a)?;
                None
            }
            (Kind::Hold, Role::Process(g, _)) => Some(self.hold(g, message, fds)?),
            (Kind::Settle, Role::Process(g, row))
                if row != 0 && fds.is_empty() && message.a == nk_attach::SETTLE_ASKS =>
            {
                Some(Reply::ok(attach::settle(self, g)?.into(), 0, 0, 0))
            }
            (Kind::Names, Role::Process(g, row)) if row != 0 && fds.is_empty() => {
                Some(self.names(g))
            }
            _ => Some(Reply::refused(libc::EINVAL, "not a request that this connection may make")),
        };
        // Who asked may have been found to have ended meanwhile, and its descriptor's number be another's.
        let Some(raw) = self.fd(Some(token)).map(AsRawFd::as_raw_fd) else { return Ok(()) };
        if let Some(r) = reply {
            let mut m = *r.message;
            (m.kind, m.serial) = (message.kind, message.serial);
            let fds: Vec<i32> = r.fds.iter().map(AsRawFd::as_raw_fd).collect();
            if let Err(e) = nk_attach::try_send(raw, &m, &fds) {
                tracing::debug!(errno = e, "a reply could not be sent");
                return self.connection_closed(token);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Slab;
    use super::*;

    #[test]
    fn who_has_most_silent_connections_makes_room() {
        let mut slab = Slab::new();
        let uids = [1, 2, 3, 2, 1, 2];
        let all: VecDeque<(Token, u32)> =
            uids.into_iter().map(|uid| (slab.insert(uid), uid)).collect();
        assert_eq!(makes_room(&all), Some(all[1]), "the oldest of the one that has three");
        let first: VecDeque<(Token, u32)> = all.iter().take(3).copied().collect();
        assert_eq!(makes_room(&first), Some(all[0]));
        assert_eq!(makes_room(&VecDeque::new()), None);
    }
}
