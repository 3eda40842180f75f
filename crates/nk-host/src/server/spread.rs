//! Guests on several NSMs at once: [`crate::control::spread`], carried out.

use std::io;
use std::time::Instant;

use nk_engine::{GuestId, NsmId};

use super::Server;
use super::nsm::Nsm;
use crate::config::GuestConfig;
use crate::control::spread::{self, Host, Spread};
use crate::guest::Guest;

impl Server {
    pub(super) fn spread(&mut self, id: GuestId) -> io::Result<()> {
        spread::spread(self, id, Instant::now())
    }

    /// Looks at the guests whose time it is; when the next one's is.
    pub(super) fn spread_timer(&mut self, now: Instant) -> io::Result<Option<Instant>> {
        let at = |g: &Guest| Some((g.id, g.spread?.again()?));
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

    /// The NSMs that a configuration names, of those that there are.
    pub(super) fn named(&self, rules: &GuestConfig) -> Vec<NsmId> {
        let names = rules.nsm.as_ref().map_or(&[][..], |n| n.get_ref().names());
        names.iter().filter_map(|n| self.nsm_named(n)).collect()
    }
}

impl Host for Server {
    fn listed(&self, guest: GuestId) -> Vec<NsmId> {
        let g = self.guests.get(&guest.0);
        g.map(|g| self.named(&self.config.guest(&g.name))).unwrap_or_default()
    }
    fn rests(&self, nsm: NsmId) -> bool {
        self.nsm(nsm).is_some_and(Nsm::rests)
    }
    fn spread(&mut self, guest: GuestId) -> Option<&mut Option<Spread>> {
        self.guests.get_mut(&guest.0).map(|g| &mut g.spread)
    }
}
