//! Limits while guests run: told to who keeps them, changed by order, and read again with the configuration.

use std::io;

use nk_attach::{Credentials, Message};
use nk_engine::GuestId;

use super::create::is_operator;
use super::{Reply, Server};
use crate::limits::{Change, GuestLimits};

impl Server {
    /// Tells the guest's NSM, inline or not, its part.
    pub(super) fn limit_bytes(&mut self, id: GuestId) -> io::Result<()> {
        let Some(g) = self.guests.get(&id.0) else { return Ok(()) };
        let part = g.limits.divided(g.place.all().len()).service();
        self.ask(move |s| {
            if let Some(service) = &mut s.service {
                service.set_limits(id.0, &part);
            }
        })?;
        self.nsm_limits(id)
    }

    /// Tells the engine where the guest may listen.
    pub(super) fn set_listen(&mut self, id: GuestId) -> io::Result<()> {
        let Some(g) = self.guests.get(&id.0) else { return Ok(()) };
        let policy = self.config.guest(&g.name).listen();
        self.ask(move |s| s.engine.set_listen(id, policy).map_err(io::Error::other))?
    }

    /// Changes a running guest's limits.
    pub(super) fn limit(&mut self, id: GuestId, limits: GuestLimits) -> io::Result<()> {
        let Some(g) = self.guests.get_mut(&id.0) else { return Ok(()) };
        if g.limits == limits {
            return Ok(());
        }
        g.limits = limits;
        tracing::info!(guest = g.name, limits = %limits.to_json(), "limits changed");
        self.ask(move |s| s.engine.set_limits(id, limits.engine()).map_err(io::Error::other))??;
        self.limit_bytes(id)?;
        self.note_guest(id);
        Ok(())
    }

    /// What root or the daemon's user orders.
    pub(super) fn order(
        &mut self,
        message: &Message,
        credentials: Option<Credentials>,
    ) -> io::Result<Reply> {
        if !credentials.is_some_and(is_operator) {
            return Ok(Reply::refused(
                libc::EPERM,
                "only root and the daemon's user may change this",
            ));
        }
        let mut words = message.text().unwrap_or("").split_ascii_whitespace();
        match words.next() {
            Some("limit") => self.order_limit(words.next().unwrap_or(""), words),
            Some("move") => {
                let (guest, nsm) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
                self.order_move(guest, nsm)
            }
            Some("hand-over") => {
                Ok(self.order_hand_over(words.next(), credentials.map_or(0, |c| c.pid)))
            }
            _ => Ok(Reply::refused(
                libc::EINVAL,
                "the orders are: limit GUEST KEY=N..., move GUEST NSM, hand-over",
            )),
        }
    }

    fn order_limit<'a>(
        &mut self,
        name: &str,
        changes: impl Iterator<Item = &'a str>,
    ) -> io::Result<Reply> {
        let Some((id, mut limits)) =
            self.guests.values().find(|g| g.name == name).map(|g| (g.id, g.limits))
        else {
            return Ok(Reply::refused(libc::ESRCH, &format!("there is no guest {name:?} here")));
        };
        for c in changes {
            match c.parse::<Change>() {
                Ok(c) => limits.change(c),
                Err(why) => return Ok(Reply::refused(libc::EINVAL, &why)),
            }
        }
        match self.limit(id, limits) {
            Ok(()) => Ok(Reply::ok(0, 0, 0, 0)),
            Err(e) => Ok(Reply::failed("cannot change the limits", &e)),
        }
    }
}
