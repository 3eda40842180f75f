//! The configuration read again (SIGHUP), and the hand-over to another daemon (`nk daemon --replace`).

use std::io;

use nk_device::Layout;
use nk_device::header::ENGINE_GONE;
use nk_engine::{GuestId, NsmId};
use sd_notify::NotifyState;

use super::nsm::Nsm;
use super::{Reply, Server};
use crate::config::{Config, NsmConfig, Placement};
use crate::control::reload::{self, Present, Wanted};
use crate::control::spread;
use crate::guest::Region;
use crate::keeper::CLASS_TOTALS;
use crate::keeper::process::wake_guest;
use crate::limits::GuestLimits;
use crate::nsm::{NsmTotals, PROTOCOL, kernel_stack};

/// What two daemons must have in common for one to take over from the other, as a word of an order.
#[must_use]
pub fn common_version() -> String {
    format!("{}.{}.{PROTOCOL}", nk_attach::PROTOCOL, nk_device::header::VERSION)
}

impl Server {
    /// Tells the service manager, where it started this daemon, how it fares. A private daemon has inherited its address from the guest.
    pub(super) fn tell_manager(&self, state: &[NotifyState<'_>]) {
        if self.private {
            return;
        }
        if let Err(e) = sd_notify::notify(state) {
            tracing::warn!(error = %e, "the service manager was not told");
        }
    }

    /// Ends for good: NSMs end, guests' calls give errors from now on, the networks that were made are taken away.
    pub(super) fn end(&mut self) {
        tracing::info!("ends, and all that it started with it");
        self.tell_manager(&[NotifyState::Stopping]);
        for at in 0..self.nsms.len() {
            let child = self.nsms.get_mut(at).and_then(|n| n.child.take());
            if let Some(c) = child {
                self.forget_child(&c);
            }
        }
        if let Some(k) = &self.keeper {
            k.end();
        }
        self.tell_guests();
        // They are in the networks.
        self.guests.values().for_each(|g| super::names::end_resolver_now(&g.names));
        for (guest, namespace) in &self.networks {
            match crate::netns::remove(namespace, guest) {
                Ok(true) => tracing::info!(guest, namespace, "network removed"),
                Ok(false) => tracing::warn!(
                    guest,
                    namespace,
                    "a network stays: processes are in its namespace"
                ),
                Err(e) => tracing::error!(guest, error = %e, "a network cannot be removed"),
            }
        }
        self.is_done = true;
    }

    /// No engine will follow. The keeper says so as well when this daemon has ended; one that has just died, or is being replaced, does not.
    fn tell_guests(&mut self) {
        self.guests.values().for_each(|g| wake_guest(&g.region, ENGINE_GONE));
        if let Err(e) = self.ask(|s| s.notify.ring_all()) {
            tracing::error!(error = %e, "guests that wait for events are not told of the end");
        }
        self.poll.stop();
    }

    /// Another daemon is ready to take over: this one ends when the answer is sent.
    pub(super) fn order_hand_over(&mut self, version: Option<&str>, to: i32) -> Reply {
        let ours = common_version();
        if version != Some(&*ours) {
            let why = format!(
                "the daemon that serves is of version {ours}, this one of {}: guests and NSMs cannot go on; end it, and start this one",
                version.unwrap_or("none")
            );
            return Reply::refused(libc::EPROTO, &why);
        }
        if self.keeper.is_none() || self.keeper_is_away || self.keeper_life.due().is_some() {
            return Reply::refused(libc::EAGAIN, "its keeper is being replaced; try again");
        }
        tracing::info!(pid = to, "another daemon takes over");
        // A service manager would take this one's end for the service's.
        self.tell_manager(&[NotifyState::MainPid(to.unsigned_abs())]);
        self.is_done = true;
        Reply::ok(0, 0, 0, 0)
    }

    /// Reads the configuration again. A wrong one, or one that cannot be had now, changes nothing.
    pub(super) fn reload(&mut self) {
        let now = NotifyState::monotonic_usec_now().ok();
        let state: Vec<_> = [NotifyState::Reloading].into_iter().chain(now).collect();
        self.tell_manager(&state);
        self.read_again();
        self.tell_manager(&[NotifyState::Ready]);
    }

    fn read_again(&mut self) {
        let Some(file) = self.config.file.clone() else { return };
        let read = Config::read(&file).map_err(io::Error::other);
        let done = read.and_then(|new| reload::reload(self, new).map_err(io::Error::other));
        match done {
            Ok(()) => {
                tracing::info!(file = %file.display(), "configuration read again; the socket stays as it was made");
            }
            Err(e) => {
                tracing::error!(error = %e, "the configuration is wrong: nothing is changed");
            }
        }
    }

    fn follow(&mut self, id: GuestId, old: &Config) {
        let Some(g) = self.guests.get(&id.0) else { return };
        let (guest, had) = (g.name.clone(), old.guest.get(&g.name));
        let had = had.map(|rules| self.named(rules)).unwrap_or_default();
        match spread::follow(self, id, &had) {
            Ok(None) => {}
            Ok(Some(_)) => tracing::info!(guest, "moved to an NSM that its configuration names"),
            Err(why) => tracing::error!(
                guest,
                ?why,
                "it stays on an NSM that its configuration does not name: nk guest move takes it there"
            ),
        }
    }

    fn add_nsm(&mut self, name: &str, config: &NsmConfig) -> io::Result<NsmId> {
        let is_free = |id: &u8| !self.nsms.iter().any(|n| n.id.0 == *id);
        let id = (0..=u8::MAX).find(is_free).map(NsmId);
        let id = id.ok_or_else(|| io::Error::other("too many NSMs"))?;
        let region = Region::new("nsm", Layout::NSM, 0)?;
        let totals = NsmTotals::new()?;
        let device = region.device;
        self.ask(move |s| s.engine.add_nsm(id, device).map_err(io::Error::other))??;
        self.nsms.push(Nsm::new(id, name.to_owned(), config.clone(), region, totals));
        self.note_totals(id);
        match self.start_nsm(id) {
            Ok(()) => Ok(id),
            Err(e) => {
                self.remove_nsm(id)?;
                Err(e)
            }
        }
    }

    /// Ends an NSM that serves nobody.
    fn remove_nsm(&mut self, id: NsmId) -> io::Result<()> {
        let bell = self.nsm_mut(id).and_then(|n| n.engine_bell.take());
        if let Some(c) = self.nsm_mut(id).and_then(|n| n.child.take()) {
            self.forget_child(&c);
        }
        self.ask(move |s| {
            s.notify.set_nsm(id, None);
            if let Some(bell) = bell {
                s.remove_waker(&bell);
            }
            s.engine.remove_nsm(id).map_err(io::Error::other)
        })??;
        if let Some(k) = &self.keeper {
            k.drop_entry(CLASS_TOTALS, id.0.into());
        }
        let removed: Vec<Nsm> = self.nsms.extract_if(.., |n| n.id == id).collect();
        for n in removed {
            tracing::info!(nsm = n.name, "NSM removed");
        }
        Ok(())
    }
}

impl reload::Host for Server {
    type Config = Config;

    fn present(&self) -> Vec<Present> {
        let present = |n: &Nsm| {
            let its = self.guests.values().filter(|g| g.place.is_on(n.id));
            let guests = its.map(|g| g.name.clone()).collect();
            Present { id: n.id, name: n.name.clone(), is_inline: n.is_inline(), guests }
        };
        self.nsms.iter().map(present).collect()
    }
    fn wanted(&self, new: &Config) -> Vec<Wanted> {
        let wanted = |(name, n): (String, NsmConfig)| Wanted {
            name,
            is_inline: n.placement == Placement::Inline,
        };
        new.nsms().into_iter().map(wanted).collect()
    }
    fn check(&mut self, new: &Config, nsm: NsmId) -> io::Result<()> {
        let Some(n) = self.nsm(nsm) else { return Ok(()) };
        match new.nsms().iter().find(|(name, _)| *name == n.name) {
            // Its next start would fail, again and again.
            Some((_, config)) if config.io != n.config.io => {
                kernel_stack(Box::new(self.broker.clone()), None, config.io).map(drop)
            }
            _ => Ok(()),
        }
    }
    fn start(&mut self, new: &Config, name: &str) -> io::Result<NsmId> {
        let config = new.nsms().into_iter().find(|(n, _)| n == name);
        let (_, config) = config.ok_or_else(|| io::Error::other("there is no such NSM"))?;
        self.add_nsm(name, &config)
    }
    fn stop(&mut self, nsm: NsmId) -> io::Result<()> {
        self.remove_nsm(nsm)
    }
    fn put_in_force(&mut self, mut new: Config) -> Config {
        let wanted = new.nsms();
        for n in &mut self.nsms {
            if let Some((_, config)) = wanted.iter().find(|(name, _)| *name == n.name) {
                if (n.config.io, n.config.core_numbers()) != (config.io, config.core_numbers()) {
                    tracing::warn!(
                        nsm = n.name,
                        "io and cores are in force from its next start on"
                    );
                }
                n.config = config.clone();
            }
        }
        // The rest is as the daemon was started.
        std::mem::swap(&mut self.config.guest, &mut new.guest);
        std::mem::swap(&mut self.config.nsm, &mut new.nsm);
        std::mem::swap(&mut self.config.namespace, &mut new.namespace);
        self.set_up_networks();
        new
    }
    fn limits(&self) -> Vec<(GuestId, GuestLimits)> {
        self.guests.values().map(|g| (g.id, g.limits)).collect()
    }
    fn said(&self, of: Option<&Config>, guest: GuestId) -> GuestLimits {
        let config = of.unwrap_or(&self.config);
        let said = |g: &crate::guest::Guest| config.guest(&g.name).limits(g.members.uid);
        self.guests.get(&guest.0).map(said).unwrap_or_default()
    }
    fn change(&mut self, old: &Config, guest: GuestId, limits: GuestLimits) {
        self.follow(guest, old);
        let changed = self.limit(guest, limits).and_then(|()| self.set_listen(guest));
        if let Err(e) = changed.and_then(|()| self.spread(guest)) {
            tracing::error!(id = guest.0, error = %e, "a guest's limits could not be changed");
        }
    }
}
