//! The configuration of the simulation: read again in the middle of things, sometimes a wrong one, by the daemon's own code
//! ([`nk_host::control::reload`]). The next daemon reads it, too.

use std::collections::BTreeMap;
use std::io;

use nk_engine::{GuestId, NsmId};
use nk_host::control::moves::Host as _;
use nk_host::control::reload::{self, Host, Present, Refused, Wanted};
use nk_host::control::spread;
use nk_host::keeper::CLASS_NSM;
use nk_host::limits::GuestLimits;

use super::daemon::nsm_named;
use super::simulation::{NSMS, Simulation, State};

/// What stands in the file. NSMs are called by their numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Config {
    pub(super) nsms: [bool; NSMS],
    /// By guest: one that is not named has the defaults.
    guests: BTreeMap<u16, Said>,
}

/// What it says of a guest.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    limits: GuestLimits,
    /// On which NSMs it is to be: on several at once, on one, or on any.
    nsms: Vec<usize>,
}

impl Config {
    /// All NSMs, and nothing of any guest.
    pub(super) fn new() -> Config {
        Config { nsms: [true; NSMS], ..Config::default() }
    }
    pub(super) fn has(&self, nsm: usize) -> bool {
        self.nsms.get(nsm).is_some_and(|has| *has)
    }
    pub(super) fn has_named(&self, nsm: &str) -> bool {
        self.has(nsm_named(nsm).0.into())
    }
    /// The NSMs that it names for a guest, of those that there are.
    pub(super) fn listed(&self, guest: GuestId) -> Vec<NsmId> {
        let all = self.guests.get(&guest.0).map_or(&[][..], |s| &s.nsms);
        all.iter().filter(|nsm| self.has(**nsm)).map(|nsm| NsmId(*nsm as u8)).collect()
    }
    pub(super) fn list(&mut self, guest: GuestId, nsms: Vec<usize>) {
        self.guests.entry(guest.0).or_default().nsms = nsms;
    }
}

/// What a reload may change, and one that is refused must not: which NSMs there are, and of each guest its limits, whether it is spread, and
/// where it is.
type Looks = ([bool; NSMS], Vec<(GuestId, GuestLimits, bool, Vec<NsmId>)>);

impl Simulation {
    /// Somebody writes another configuration, which the daemon reads.
    pub(super) fn reload(&mut self) {
        let new = self.draw_config();
        self.file = new.clone();
        let mut refused = false;
        self.act(|s| {
            let before = s.looks();
            let said = s.config.clone();
            let goes = |nsm: &usize| said.has(*nsm) && !new.has(*nsm);
            let is_wrong = (0..NSMS).filter(goes).any(|nsm| s.serves_guests(nsm));
            match reload::reload(s, new.clone()) {
                Ok(()) => {
                    assert!(!is_wrong, "an NSM was taken away from its guests");
                    s.assert_in_force(&said, &before);
                    s.see(if before.0 == s.looks().0 { "reload" } else { "reload of NSMs" });
                }
                Err(why) => {
                    assert!(is_wrong || matches!(why, Refused::Cannot(..)), "{why}");
                    assert_eq!(s.looks(), before, "{why}");
                    assert_eq!(s.config, said, "{why}");
                    s.see("reload refused");
                    refused = true;
                }
            }
            Ok::<(), io::Error>(())
        });
        if refused && self.random.below(3) != 0 {
            // Else the next daemon reads it.
            self.file = self.config.clone();
        }
    }

    /// Mostly something that can be had.
    fn draw_config(&mut self) -> Config {
        let mut new = self.config.clone();
        let nsm = self.random.below(NSMS);
        match self.random.below(9) {
            0 => new.nsms[nsm] ^= true,
            // Those that serve nobody go, and come again together.
            1 => new.nsms = std::array::from_fn(|n| n == nsm || self.serves_guests(n)),
            2 => new.nsms = [true; NSMS],
            _ => {}
        }
        if !new.nsms.contains(&true) {
            new.nsms[nsm] = true;
        }
        for at in 0..self.tenants.len() {
            let id = self.tenants[at].id;
            match self.random.below(6) {
                0 => drop(new.guests.remove(&id.0)),
                1 => {
                    let limits = self.some_limits();
                    new.guests.entry(id.0).or_default().limits = limits;
                }
                2 => {
                    let (first, many) = (self.random.below(NSMS), self.random.below(NSMS + 1));
                    new.list(id, (0..many).map(|n| (first + n) % NSMS).collect());
                }
                _ => {}
            }
        }
        new
    }

    fn serves_guests(&self, nsm: usize) -> bool {
        self.tenants.iter().any(|t| t.place.is_on(NsmId(nsm as u8)))
    }

    fn looks(&self) -> Looks {
        let is_there = std::array::from_fn(|nsm| self.states[nsm] != State::Absent);
        let guests = self.tenants.iter();
        (is_there, guests.map(|t| (t.id, t.limits, t.spread.is_some(), t.place.all())).collect())
    }

    /// Everything that it says is so, and what somebody ordered of a guest of which it says what it said before.
    fn assert_in_force(&self, said: &Config, before: &Looks) {
        let now = self.looks();
        assert_eq!(now.0, self.config.nsms);
        for ((id, limits, is_spread, _), (_, had, ..)) in now.1.iter().zip(&before.1) {
            let of = |c: &Config| c.guests.get(&id.0).cloned().unwrap_or_default().limits;
            let (then, says) = (of(said), of(&self.config));
            let wanted = if then == says { *had } else { says };
            let several = self.config.listed(*id).len() > 1;
            assert_eq!((*limits, *is_spread), (wanted, several), "guest {}", id.0);
        }
    }
}

impl Host for Simulation {
    type Config = Config;

    fn present(&self) -> Vec<Present> {
        let there = (0..NSMS).filter(|nsm| self.states[*nsm] != State::Absent);
        let present = |nsm: usize| {
            let id = NsmId(nsm as u8);
            let its = self.tenants.iter().filter(|t| t.place.is_on(id));
            let guests = its.map(|t| t.id.0.to_string()).collect();
            Present { id, name: nsm.to_string(), is_inline: false, guests }
        };
        there.map(present).collect()
    }
    fn wanted(&self, new: &Config) -> Vec<Wanted> {
        let all = (0..NSMS).filter(|nsm| new.has(*nsm));
        all.map(|nsm| Wanted { name: nsm.to_string(), is_inline: false }).collect()
    }
    fn check(&mut self, _: &Config, _: NsmId) -> io::Result<()> {
        if self.random.below(12) == 0 { Err(io::Error::other("not so")) } else { Ok(()) }
    }
    fn start(&mut self, _: &Config, name: &str) -> io::Result<NsmId> {
        let nsm: usize = name.parse().expect("a number");
        let id = NsmId(nsm as u8);
        self.begin_service(nsm);
        let device = self.devices[nsm];
        self.engine(move |e, _| e.add_nsm(id, device))?.map_err(io::Error::other)?;
        if self.random.below(4) == 0 {
            self.stop(id)?;
            return Err(io::Error::other("it cannot be started"));
        }
        self.states[nsm] = State::Up;
        self.lives[nsm] = Simulation::first_life(self.now());
        self.nsm_serves(nsm);
        Ok(id)
    }
    fn stop(&mut self, nsm: NsmId) -> io::Result<()> {
        let at = usize::from(nsm.0);
        self.nsm_ends(at);
        self.states[at] = State::Absent;
        self.daemon.listeners[at].clear();
        let pid = std::mem::take(&mut self.daemon.nsms[at]);
        self.drop_entry(CLASS_NSM, pid as u64);
        self.engine(move |e, _| e.remove_nsm(nsm))?.map_err(io::Error::other)
    }
    fn put_in_force(&mut self, new: Config) -> Config {
        std::mem::replace(&mut self.config, new)
    }
    fn limits(&self) -> Vec<(GuestId, GuestLimits)> {
        self.tenants.iter().map(|t| (t.id, t.limits)).collect()
    }
    fn said(&self, of: Option<&Config>, guest: GuestId) -> GuestLimits {
        let config = of.unwrap_or(&self.config);
        config.guests.get(&guest.0).map(|s| s.limits).unwrap_or_default()
    }
    /// As `Server::change`, and `Server::follow`.
    fn change(&mut self, old: &Config, guest: GuestId, limits: GuestLimits) {
        let Some(at) = self.at(guest) else { return };
        // Of those that there are now.
        let had: Vec<NsmId> =
            old.listed(guest).into_iter().filter(|n| self.config.has(n.0.into())).collect();
        if let Ok(Some(_)) = spread::follow(self, guest, &had) {
            self.see("a guest followed its list");
        }
        self.tenants[at].limits = limits;
        self.set_limits(at).expect("nothing is refused");
        self.spread(guest).expect("nothing is refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_second_of_two_cannot_start_the_first_does_not_stay() {
        let mut refused = 0;
        for seed in 0..60 {
            let mut sim = Simulation::new(seed);
            sim.is_over = true;
            let one = Config { nsms: [true, false, false], ..Config::default() };
            if reload::reload(&mut sim, one).is_err() {
                continue;
            }
            let before = sim.looks();
            if reload::reload(&mut sim, Config::new()).is_err() {
                refused += 1;
                assert_eq!(sim.looks(), before, "seed {seed}");
            }
        }
        assert!(refused > 10, "{refused}");
    }
}
