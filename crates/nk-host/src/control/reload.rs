//! The configuration, read again: NSMs come and go and guests' limits change, or, where anything of it cannot be had now, nothing changes.

use std::io;

use nk_engine::{GuestId, NsmId};

use crate::limits::GuestLimits;

/// An NSM that there is.
#[derive(Clone, Debug)]
pub struct Present {
    /// Its number.
    pub id: NsmId,
    /// Its name in the configuration.
    pub name: String,
    /// Whether it has no process of its own.
    pub is_inline: bool,
    /// Guests that are on it, also those that were moved from it and have something there.
    pub guests: Vec<String>,
}

/// An NSM that there is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its name in the configuration.
    pub name: String,
    /// Whether it is to have no process of its own.
    pub is_inline: bool,
}

/// Why a configuration is not put in force.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It ends or begins with the daemon.
    #[error(
        "nsm.{0}: an inline NSM comes and goes with its daemon, and none changes its placement: use `nk daemon --replace`"
    )]
    WithDaemon(String),
    /// One that is to go has guests.
    #[error("nsm.{nsm}: it serves {}: move them first (nk guest move)", guests.join(", "))]
    Serves {
        /// The NSM.
        nsm: String,
        /// The guests.
        guests: Vec<String>,
    },
    /// One cannot be as it is to be.
    #[error("nsm.{0}: {1}")]
    Cannot(String, io::Error),
    /// One that is to go cannot be ended.
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// Who carries it out.
#[allow(clippy::missing_errors_doc, reason = "Refused and reload say it")]
pub trait Host {
    /// What is read.
    type Config;

    /// The NSMs that there are.
    fn present(&self) -> Vec<Present>;
    /// Those that there are to be.
    fn wanted(&self, new: &Self::Config) -> Vec<Wanted>;
    /// Whether one that stays can be as it is to be.
    fn check(&mut self, new: &Self::Config, nsm: NsmId) -> io::Result<()>;
    /// Starts an NSM. An error: there is nothing of it.
    fn start(&mut self, new: &Self::Config, name: &str) -> io::Result<NsmId>;
    /// Ends one that serves nobody.
    fn stop(&mut self, nsm: NsmId) -> io::Result<()>;
    /// From now on this is in force; returns what was.
    fn put_in_force(&mut self, new: Self::Config) -> Self::Config;
    /// The guests that there are, with the limits that they have.
    fn limits(&self) -> Vec<(GuestId, GuestLimits)>;
    /// What a configuration, or without one the one in force, says of a guest's limits.
    fn said(&self, of: Option<&Self::Config>, guest: GuestId) -> GuestLimits;
    /// A guest gets limits, and all the rest that the one in force says of it. `old`: the one before.
    fn change(&mut self, old: &Self::Config, guest: GuestId, limits: GuestLimits);
}

/// Puts a configuration in force.
///
/// # Errors
/// Why it is not: nothing has changed. Except for [`Refused::Host`], which says that the engine is gone.
pub fn reload<H: Host>(h: &mut H, new: H::Config) -> Result<(), Refused> {
    let wanted = h.wanted(&new);
    let present = h.present();
    let (gone, fresh) = compare(&present, &wanted)?;
    for n in present.iter().filter(|n| !gone.contains(&n.id)) {
        h.check(&new, n.id).map_err(|e| Refused::Cannot(n.name.clone(), e))?;
    }
    let mut started = Vec::new();
    for name in fresh {
        match h.start(&new, &name) {
            Ok(id) => started.push(id),
            Err(e) => {
                started.into_iter().try_for_each(|id| h.stop(id))?;
                return Err(Refused::Cannot(name, e));
            }
        }
    }
    gone.into_iter().try_for_each(|id| h.stop(id))?;
    let old = h.put_in_force(new);
    for (guest, has) in h.limits() {
        let (said, says) = (h.said(Some(&old), guest), h.said(None, guest));
        // What `nk guest limit` changed stays, unless what the file says of that guest is changed.
        h.change(&old, guest, if said == says { has } else { says });
    }
    Ok(())
}

/// Which NSMs go, and which are new.
fn compare(present: &[Present], wanted: &[Wanted]) -> Result<(Vec<NsmId>, Vec<String>), Refused> {
    let mut gone = Vec::new();
    for n in present {
        match wanted.iter().find(|w| w.name == n.name) {
            Some(w) if w.is_inline == n.is_inline => {}
            None if !n.is_inline && n.guests.is_empty() => gone.push(n.id),
            None if !n.is_inline => {
                return Err(Refused::Serves { nsm: n.name.clone(), guests: n.guests.clone() });
            }
            _ => return Err(Refused::WithDaemon(n.name.clone())),
        }
    }
    let is_new = |w: &&Wanted| !present.iter().any(|n| n.name == w.name);
    let fresh: Vec<&Wanted> = wanted.iter().filter(is_new).collect();
    if let Some(w) = fresh.iter().find(|w| w.is_inline) {
        return Err(Refused::WithDaemon(w.name.clone()));
    }
    Ok((gone, fresh.into_iter().map(|w| w.name.clone()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(id: u8, name: &str, is_inline: bool, guests: &[&str]) -> Present {
        let guests = guests.iter().map(|g| (*g).to_owned()).collect();
        Present { id: NsmId(id), name: name.to_owned(), is_inline, guests }
    }
    fn wanted(all: &[(&str, bool)]) -> Vec<Wanted> {
        let one = |(name, is_inline): &(&str, bool)| Wanted {
            name: (*name).to_owned(),
            is_inline: *is_inline,
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn what_comes_and_goes_and_what_cannot() {
        let is = [
            present(0, "a", true, &["g"]),
            present(1, "b", false, &[]),
            present(2, "c", false, &["g"]),
        ];
        let (gone, fresh) =
            compare(&is, &wanted(&[("a", true), ("c", false), ("d", false)])).expect("it can");
        assert_eq!((gone, fresh), (vec![NsmId(1)], vec!["d".to_owned()]));
        let refused = |all: &[(&str, bool)]| compare(&is, &wanted(all)).expect_err("it cannot");
        assert!(matches!(refused(&[("a", true)]), Refused::Serves { nsm, .. } if nsm == "c"));
        let with_daemon = [
            vec![("c", false)],
            vec![("a", false), ("c", false)],
            vec![("a", true), ("c", true)],
            vec![("a", true), ("c", false), ("d", true)],
        ];
        for all in with_daemon {
            assert!(matches!(refused(&all), Refused::WithDaemon(_)), "{all:?}");
        }
    }
}
