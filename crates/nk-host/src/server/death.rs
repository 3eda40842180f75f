//! Ends: of connections, creators and guests. What those of processes and holds mean, [`crate::control::attach`] says.

use std::io;
use std::time::Instant;

use nk_engine::GuestId;

use super::{Role, Server, Source, Token};
use crate::control::attach;
use crate::control::members::Life;

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
                let members = self.guests.get_mut(&id.0).map(|g| &mut g.members);
                if let Some(c) = members.and_then(|m| m.creator.as_mut()) {
                    c.execed = Some(Instant::now());
                }
                Ok(())
            }
            Role::Process(id, row) => attach::closed(self, token, id, row),
        }
    }

    /// `nk run` ended without ever attaching.
    pub(super) fn creator_ended(&mut self, id: GuestId) {
        let Some(g) = self.guests.get_mut(&id.0) else { return };
        let creator = g.members.creator.take();
        g.members.mark_if_deserted(Instant::now());
        if let Some(t) = creator.and_then(|c| c.pidfd) {
            self.drop_source(t);
        }
    }

    /// Every socket of a guest is done.
    pub(super) fn guest_is_idle(&mut self, id: GuestId) -> io::Result<()> {
        let life = self.guests.get(&id.0).map(|g| g.members.life(Instant::now()));
        match life {
            Some(Life::Drains(_) | Life::Over) => self.remove_guest(id),
            _ => Ok(()),
        }
    }
}
