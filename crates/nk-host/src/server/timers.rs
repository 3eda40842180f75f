//! What happens because time passes. Nothing does while no guest is starting or ending.

use std::io;
use std::time::Instant;

use rustix::event::epoll::EventFlags;

use super::{STARTUP_GRACE, Server, Source};
use crate::control::members::{Command, Life};

impl Server {
    /// Does what is due, and says how long to wait for the next thing, -1 for ever. `None`: the daemon has done its work.
    pub(super) fn timers(&mut self) -> io::Result<Option<i32>> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let mut at = |t: Instant| next = Some(next.map_or(t, |n| n.min(t)));
        if let Some(t) = self.accept_rests_until {
            if t <= now {
                self.accept_rests_until = None;
                if let Some(Source::Listener(fd)) = self.sources.get(self.listener) {
                    self.epoll.change(fd, EventFlags::IN, self.listener.word())?;
                }
            } else {
                at(t);
            }
        }
        let mut ended = Vec::new();
        for g in self.guests.values_mut() {
            match g.members.command(now) {
                Command::Settled => {}
                Command::Awaited(t) => at(t),
                Command::Silent { pid } => tracing::warn!(
                    guest = g.name,
                    pid,
                    "libnetkernel.so did not load into this program: it has no network"
                ),
            }
            match g.members.life(now) {
                Life::Lives => {}
                Life::Lingers(t) => at(t),
                Life::Over => ended.push(g.id),
                Life::Drains(t) if !g.members.is_to_be_asked_for() => at(t),
                Life::Drains(t) => {
                    let id = g.id;
                    let left = self.poll.call(move |s| s.engine.guest_sockets(id));
                    match left.map_err(io::Error::other)? {
                        0 => ended.push(id),
                        _ => at(t),
                    }
                }
            }
        }
        for id in ended {
            self.remove_guest(id)?;
        }
        let timers = [self.nsm_timer(now)?, self.keeper_timer(now), self.spread_timer(now)?];
        for t in timers.into_iter().flatten() {
            next = Some(next.map_or(t, |n| n.min(t)));
        }
        if self.private && self.guests.is_empty() {
            let grace = self.started + STARTUP_GRACE;
            if self.had_guest || grace <= now {
                return Ok(None);
            }
            next = Some(next.map_or(grace, |n| n.min(grace)));
        }
        Ok(Some(match next {
            None => -1,
            Some(t) => {
                let ms = t.saturating_duration_since(now).as_millis() + 1;
                i32::try_from(ms).unwrap_or(i32::MAX)
            }
        }))
    }
}
