//! Guests on several NSMs at once: [`crate::control::spread`], carried out.

use std::io;
use std::time::{Duration, Instant};

use nk_engine::{GuestId, NsmId};

use super::Server;
use super::nsm::Nsm;
use crate::control::moves::{flee, move_guest};
use crate::control::spread::{Moves, choose, meanwhile, refuge};

/// When a move that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// A guest that is spread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    moves: Moves,
    /// When to look again without being told to.
    again: Option<Instant>,
}

impl Server {
    /// Sees to it that the guest's next connections go to that of its NSMs which has the fewest: when it comes to be, when its share is full, when it was
    /// moved, when its NSM rests after deaths, when the configuration changed.
    pub(super) fn spread(&mut self, id: GuestId) -> io::Result<()> {
        let Some(g) = self.guests.get(&id.0) else { return Ok(()) };
        let (present, was_spread) = (g.place.nsm(), g.spread.is_some());
        let over: Vec<NsmId> = match self.config.guest(&g.name).nsm {
            Some(nsms) => nsms.get_ref().names().iter().filter_map(|n| self.nsm_named(n)).collect(),
            None => Vec::new(),
        };
        if over.len() < 2 {
            if was_spread && let Some(g) = self.guests.get_mut(&id.0) {
                g.spread = None;
                self.set_share(id, None)?;
            }
            return Ok(());
        }
        let now = Instant::now();
        let up: Vec<NsmId> =
            over.iter().copied().filter(|n| self.nsm(*n).is_some_and(Nsm::is_up)).collect();
        let connections = self.ask(move |s| s.engine.connections_by_nsm(id))?;
        if over.contains(&present)
            && self.nsm(present).is_some_and(Nsm::rests)
            && let Some(to) = refuge(&up, &connections)
        {
            match flee(self, id, to) {
                Ok(Some(_)) => {
                    let name = |n| self.nsm(n).map_or("", |n| n.name.as_str());
                    let guest = self.guests.get(&id.0).map_or("", |g| g.name.as_str());
                    let (from, to) = (name(present), name(to));
                    tracing::info!(guest, from, to, "its NSM rests: the guest goes on at another");
                    return self.spread(id);
                }
                Ok(None) => {}
                Err(why) => tracing::warn!(guest = id.0, ?why, "it waits for its NSM, which rests"),
            }
        }
        let choice = choose(present, &up, &connections);
        let has = connections.iter().find(|(n, _)| *n == present).map_or(0, |(_, n)| *n);
        let Some(g) = self.guests.get_mut(&id.0) else { return Ok(()) };
        let spread = g.spread.get_or_insert(Spread { moves: Moves::new(now), again: None });
        // A move that failed took its time: not at once again.
        if spread.again.is_some_and(|t| now < t) {
            return self.set_share(id, Some(meanwhile(has)));
        }
        spread.again = None;
        let (most, again) = match choice {
            None if !over.contains(&present) => (None, None),
            // Those that are being started again serve by then.
            None => (Some(meanwhile(has)), (up.len() < over.len()).then(|| now + AGAIN)),
            Some(c) if c.nsm == present => (Some(c.most), None),
            Some(_) if !spread.moves.take(now) => (Some(meanwhile(has)), None),
            Some(c) => {
                // The next one is not to accept as many as the last one might have.
                self.set_share(id, Some(0))?;
                match move_guest(self, id, c.nsm) {
                    Ok(moved) => {
                        let spread = self.guests.get_mut(&id.0).and_then(|g| g.spread.as_mut());
                        if let (Some(spread), Some(moved)) = (spread, moved) {
                            spread.moves.carried(moved.sockets);
                        }
                        (Some(c.most), None)
                    }
                    Err(why) => {
                        tracing::debug!(guest = id.0, ?why, "not moved on to its next NSM");
                        (Some(meanwhile(has)), Some(now + AGAIN))
                    }
                }
            }
        };
        if let Some(spread) = self.guests.get_mut(&id.0).and_then(|g| g.spread.as_mut()) {
            spread.again = again;
        }
        self.set_share(id, most)
    }

    fn set_share(&mut self, id: GuestId, most: Option<u32>) -> io::Result<()> {
        let set = move |s: &mut crate::poll::PollState| s.engine.set_share(id, most, &mut s.notify);
        if let Err(e) = self.ask(set)? {
            tracing::debug!(guest = id.0, error = %e, "it has no share");
        }
        Ok(())
    }

    /// Looks at the guests whose time it is; when the next one's is.
    pub(super) fn spread_timer(&mut self, now: Instant) -> io::Result<Option<Instant>> {
        let at = |g: &crate::guest::Guest| Some((g.id, g.spread?.again?));
        let due: Vec<GuestId> = self
            .guests
            .values()
            .filter_map(at)
            .filter(|(_, t)| *t <= now)
            .map(|(id, _)| id)
            .collect();
        for id in due {
            self.spread(id)?;
        }
        Ok(self.guests.values().filter_map(at).map(|(_, t)| t).min())
    }
}
