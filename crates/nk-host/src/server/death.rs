//! Ends: of connections, processes, holds and guests.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use nk_attach::{Fds, Message};
use nk_engine::GuestId;

use super::attach::is_unix_socket;
use super::{Reply, Role, Server, Source, Token};
use crate::sys;

/// Holds per guest.
const HOLDS_MAX: usize = 4096;

impl Server {
    /// A connection was closed by its other end (or broke the protocol).
    pub(super) fn connection_closed(&mut self, token: Token) -> io::Result<()> {
        let role = match self.sources.get(token) {
            Some(Source::Connection { role, .. }) => *role,
            _ => return Ok(()),
        };
        self.drop_source(token);
        match role {
            Role::Stranger => Ok(()),
            Role::Creator(id) => {
                if let Some(c) = self.guests.get_mut(&id.0).and_then(|g| g.creator.as_mut()) {
                    c.execed = Some(Instant::now());
                }
                Ok(())
            }
            Role::Process(id, row) => {
                let Some(g) = self.guests.get_mut(&id.0) else { return Ok(()) };
                let execing = g.is_execing(row);
                let Some(p) = g.processes.get_mut(&row) else { return Ok(()) };
                if p.control != Some(token) {
                    return Ok(());
                }
                p.control = None;
                // An exec: the new image attaches, or the pidfd tells that there is none.
                if execing && p.pidfd.is_some() {
                    self.note_process(id, row);
                    return Ok(());
                }
                self.row_died(id, row, "its control socket closed")
            }
        }
    }

    /// A row's process is gone.
    pub(super) fn row_died(&mut self, id: GuestId, row: u16, why: &str) -> io::Result<()> {
        let Some(g) = self.guests.get_mut(&id.0) else { return Ok(()) };
        let Some(p) = g.processes.remove(&row) else { return Ok(()) };
        tracing::debug!(guest = g.name, pid = p.pid, row, why, "process gone");
        g.keep_missed(row);
        for t in [p.control, p.pidfd].into_iter().flatten() {
            self.drop_source(t);
        }
        self.ask(move |s| {
            if let Err(e) = s.engine.row_dead(id, row, &mut s.notify) {
                tracing::error!(row, error = %e, "the engine did not know a row");
            }
            for q in p.qsets {
                s.notify.set_doorbell(id, q, None);
            }
        })?;
        self.note_process_gone(id, row);
        self.mark_if_deserted(id);
        Ok(())
    }

    /// `nk run` ended without ever attaching.
    pub(super) fn creator_ended(&mut self, id: GuestId) {
        let creator = self.guests.get_mut(&id.0).and_then(|g| g.creator.take());
        if let Some(t) = creator.and_then(|c| c.pidfd) {
            self.drop_source(t);
        }
        self.mark_if_deserted(id);
    }

    /// Every socket of a guest is done.
    pub(super) fn guest_is_idle(&mut self, id: GuestId) -> io::Result<()> {
        let due = self.guests.get(&id.0).is_some_and(|g| {
            g.is_deserted() && g.empty_since.is_some_and(|t| t.elapsed() >= super::LINGER)
        });
        if due { self.remove_guest(id) } else { Ok(()) }
    }

    /// A socket's stand-in is about to travel: hold the socket until the travelling pair's last end is closed.
    pub(super) fn hold(
        &mut self,
        id: GuestId,
        message: &Message,
        mut fds: Fds,
    ) -> io::Result<Reply> {
        let Some(far) = fds.take(0).map(sys::own).filter(is_unix_socket) else {
            let why = "the far end of the stand-in pair must come with this request";
            return Ok(Reply::refused(libc::EINVAL, why));
        };
        let (Ok(socket), Ok(generation)) = (u32::try_from(message.a), u16::try_from(message.b))
        else {
            return Ok(Reply::refused(libc::EINVAL, "no such socket"));
        };
        if self.guests.get(&id.0).is_none_or(|g| g.holds.len() >= HOLDS_MAX) {
            return Ok(Reply::refused(libc::EAGAIN, "too many sockets are in flight"));
        }
        if let Err(e) = self.ask(move |s| s.engine.hold(id, socket, generation, &mut s.notify))? {
            return Ok(Reply::refused(libc::EBADF, &e.to_string()));
        }
        let raw = far.as_raw_fd();
        let token = self.sources.insert(Source::Hold { fd: far, guest: id });
        if let Some(g) = self.guests.get_mut(&id.0) {
            g.holds.insert(token, (socket, generation));
        }
        // No events asked for: EPOLLHUP comes unasked.
        if let Err(e) = self.epoll.add(raw, 0, token.word()) {
            self.hold_ended(id, token)?;
            return Ok(Reply::failed("cannot watch the stand-in pair", &e));
        }
        self.note_hold(id, token, socket, generation);
        Ok(Reply::ok(0, 0, 0, 0))
    }

    /// The last end of a travelling pair is closed.
    pub(super) fn hold_ended(&mut self, id: GuestId, token: Token) -> io::Result<()> {
        self.drop_source(token);
        self.note_hold_gone(id, token);
        let held = self.guests.get_mut(&id.0).and_then(|g| g.holds.remove(&token));
        let Some((socket, generation)) = held else { return Ok(()) };
        self.ask(move |s| {
            if let Err(e) = s.engine.unhold(id, socket, generation, &mut s.notify) {
                tracing::debug!(socket, error = %e, "a hold had ended before");
            }
        })
    }
}
