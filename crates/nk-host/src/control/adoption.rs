//! What goes on when another daemon takes over, by what the keeper has and what NSM processes that lived on tell.

use std::collections::BTreeMap;
use std::io;

use nk_engine::{Adoption, GuestId, KeptGuest, NsmId};
use nk_servicelib::Key;

use super::attach;
use super::members::Process;
use super::moves::{self, lost};
use crate::keeper::book::{OfGuest, OfHold, OfListener, OfProcess};

/// Who carries it out.
#[allow(clippy::missing_errors_doc, reason = "those of the host, of which no guest goes on")]
pub trait Host: moves::Host + attach::Host {
    /// The engine goes on with a guest that its NSM knows.
    fn adopt_guest(&mut self, guest: GuestId, adoption: Adoption) -> io::Result<()>;
    /// Tells the engine where a guest may listen.
    fn set_listen(&mut self, guest: GuestId) -> io::Result<()>;
    /// A listener is its NSM's still: its descriptor is for the next one.
    fn remember_listener(&mut self, nsm: NsmId, listener: OfListener<Self::Fd>);
    /// Gives an NSM a listener. `false`: it cannot take it.
    fn give_listener(&mut self, nsm: NsmId, listener: OfListener<Self::Fd>) -> io::Result<bool>;
    /// A listener is kept no more.
    fn forget_listener(&mut self, key: Key);
}

/// What NSM processes tell of guests, sorted.
#[derive(Debug)]
struct Told<K> {
    /// Of guests that are where it is told: they go on there.
    goes_on: BTreeMap<GuestId, K>,
    /// Of guests that are not there, as far as the keeper knows: they ended with the last daemon, or were on their way.
    foreign: Vec<(NsmId, GuestId)>,
}

fn sort<K>(
    told: impl IntoIterator<Item = (NsmId, GuestId, K)>,
    mut place: impl FnMut(GuestId) -> Option<NsmId>,
) -> Told<K> {
    let mut sorted = Told { goes_on: BTreeMap::new(), foreign: Vec::new() };
    for (nsm, guest, kept) in told {
        if place(guest) == Some(nsm) {
            sorted.goes_on.insert(guest, kept);
        } else {
            sorted.foreign.push((nsm, guest));
        }
    }
    sorted
}

/// All guests that the keeper has, each on one NSM, go on, with what their NSMs tell of them if these lived on; `enter` gives one to the
/// engine.
///
/// # Errors
/// Those of the host.
pub fn go_on<H: moves::Host, K>(
    h: &mut H,
    told: impl IntoIterator<Item = (NsmId, GuestId, K)>,
    mut enter: impl FnMut(&mut H, GuestId, Option<K>) -> io::Result<()>,
) -> io::Result<()> {
    let mut told = sort(told, |guest| h.place(guest).map(|p| p.nsm()));
    // Before a guest goes on: two NSMs would lease the same chunks, and write on the same rings.
    for (nsm, guest) in told.foreign {
        h.remove(nsm, guest)?;
    }
    for guest in h.guests() {
        enter(h, guest, told.goes_on.remove(&guest))?;
    }
    Ok(())
}

/// A guest of which the control thread knows again, and the engine not yet.
#[derive(Debug)]
pub struct Prepared<F> {
    /// Which.
    pub guest: GuestId,
    adoption: Adoption,
    /// Doorbells of queue sets.
    pub bells: Vec<(u16, F)>,
    /// Listeners.
    pub listeners: Vec<OfListener<F>>,
    /// Rows whose process ended meanwhile.
    dead: Vec<u16>,
}

/// Watches again who is in a guest, which has its place already. `stays`: it is where the keeper has it. Else the configuration has no such NSM any
/// more: the keeper is told, or it would go by an NSM that does not live when it says what the guest has lost.
///
/// # Errors
/// Those of the host.
pub fn prepare<H: Host>(
    h: &mut H,
    kept: OfGuest<H::Fd>,
    stays: bool,
) -> io::Result<Prepared<H::Fd>> {
    let adoption = kept.adoption();
    let OfGuest { id: guest, processes, dead, holds, listeners, .. } = kept;
    dead.iter().for_each(|row| h.keep_counted(guest, *row));
    let mut bells = Vec::new();
    for OfProcess { row, pid, control, pidfd, qsets } in processes {
        let numbers = qsets.iter().map(|q| q.0).collect();
        bells.extend(qsets);
        let control = control.map(|fd| h.watch_control(fd, guest, row)).transpose()?;
        // At once: where a step fails, it is by who is in the guest that all which is watched is found, and let go of.
        if let Some(m) = h.members(guest) {
            let p = Process { pid, control, pidfd: None, qsets: numbers, parent: None };
            m.processes.insert(row, p);
        }
        let pidfd = pidfd.map(|fd| h.watch_pidfd(fd, guest, row)).transpose()?;
        if let Some(p) = h.members(guest).and_then(|m| m.processes.get_mut(&row)) {
            p.pidfd = pidfd;
        }
    }
    for OfHold { fd, hold } in holds {
        let token = h.watch_hold(fd, guest)?;
        if let Some(m) = h.members(guest) {
            m.adopt_hold(token, hold);
        }
    }
    let now = h.now();
    if let Some(m) = h.members(guest) {
        m.mark_if_deserted(now);
    }
    if !stays {
        h.note(guest);
    }
    Ok(Prepared { guest, adoption, bells, listeners, dead })
}

/// A prepared guest goes on. `kept`: what its NSM says, where that lives on.
///
/// # Errors
/// Those of the host.
pub fn enter<H: Host>(h: &mut H, p: Prepared<H::Fd>, kept: Option<KeptGuest>) -> io::Result<()> {
    let Prepared { guest, mut adoption, listeners, dead, .. } = p;
    let Some(nsm) = h.place(guest).map(|p| p.nsm()) else { return Ok(()) };
    // Listeners that are where they were; an NSM that was just started may lack some, if the last daemon died before it gave them all.
    let (there, lacking): (Vec<_>, Vec<_>) = listeners
        .into_iter()
        .partition(|l| kept.as_ref().is_some_and(|k| k.listens(l.key.socket, l.key.generation)));
    if kept.is_some() {
        adoption.listeners.retain(|l| !there.iter().any(|t| t.key.socket == l.socket));
        // What it left on others ended with the last daemon.
        h.alone(nsm, guest)?;
        h.limit(guest)?;
        // Of sockets that it was not yet told of.
        h.give_options(nsm, guest)?;
    } else {
        h.add(nsm, guest)?;
    }
    adoption.kept = kept;
    h.adopt_guest(guest, adoption)?;
    h.limit(guest)?;
    h.set_listen(guest)?;
    h.drop_stale_options(guest)?;
    for l in there {
        if is_listener(h, l.key)? {
            h.remember_listener(nsm, l);
        } else {
            h.forget_listener(l.key);
        }
    }
    // One that it cannot take is lost, and one that nobody has any more ends here.
    for l in lacking {
        let key = l.key;
        if !is_listener(h, key)? {
            h.forget_listener(key);
        } else if !h.give_listener(nsm, l)? {
            lost(h, key)?;
        }
    }
    dead.into_iter().for_each(|row| h.note_process_gone(guest, row));
    Ok(())
}

fn is_listener<H: moves::Host>(h: &mut H, key: Key) -> io::Result<bool> {
    h.engine(move |e, _| e.is_listener(GuestId(key.guest), key.socket, key.generation))
}

/// Why an NSM process that the keeper has cannot go on. It is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Nothing of it is left.
    #[error("it has ended")]
    Ended,
    /// The configuration has none of its name, or that one is inline.
    #[error("the configuration has no such NSM with a process")]
    Unknown,
    /// It and this daemon would not understand each other.
    #[error("it is of another version: it speaks {its}, this daemon {ours}")]
    Version {
        /// The process's.
        its: u64,
        /// The daemon's.
        ours: u64,
    },
    /// Of several that the keeper has, since a daemon died between one's death and its successor's start, one goes on.
    #[error("another process is this NSM already")]
    Double,
}

/// Whether an NSM process goes on. `named`: of the NSM of its name that is to be a process, whether it has one already.
///
/// # Errors
/// Why it does not.
pub fn nsm_goes_on(has_ended: bool, named: Option<bool>, its: u64, ours: u64) -> Result<(), Unfit> {
    match named {
        _ if has_ended => Err(Unfit::Ended),
        None => Err(Unfit::Unknown),
        Some(_) if its != ours => Err(Unfit::Version { its, ours }),
        Some(true) => Err(Unfit::Double),
        Some(false) => Ok(()),
    }
}

/// Whether a process of a guest goes on: somebody can tell of its end, it has not ended, and it has a queue set. `has_ended`: of one that
/// has a pidfd.
#[must_use]
pub fn process_goes_on(has_control: bool, has_ended: Option<bool>, qsets: usize) -> bool {
    let is_watched = has_control || has_ended.is_some();
    is_watched && has_ended != Some(true) && qsets > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_guest_elsewhere_is_foreign() {
        let (a, b) = (NsmId(0), NsmId(1));
        let (stayed, moved, ended) = (GuestId(1), GuestId(2), GuestId(3));
        let told = [(a, stayed, 'x'), (a, moved, 'x'), (b, moved, 'y'), (b, ended, 'x')];
        let place = |g| [(stayed, a), (moved, b)].iter().find(|p| p.0 == g).map(|p| p.1);
        let sorted = sort(told, place);
        assert_eq!(sorted.goes_on, BTreeMap::from([(stayed, 'x'), (moved, 'y')]));
        assert_eq!(sorted.foreign, [(a, moved), (b, ended)]);
    }

    #[test]
    fn an_nsm_process_goes_on_if_it_lives_is_named_and_speaks_as_the_daemon() {
        assert_eq!(nsm_goes_on(false, Some(false), 3, 3), Ok(()));
        assert_eq!(nsm_goes_on(true, Some(false), 3, 3), Err(Unfit::Ended));
        assert_eq!(nsm_goes_on(false, None, 3, 3), Err(Unfit::Unknown));
        let other = Unfit::Version { its: 2, ours: 3 };
        assert_eq!(nsm_goes_on(false, Some(false), 2, 3), Err(other));
        assert_eq!(nsm_goes_on(false, Some(true), 3, 3), Err(Unfit::Double));
    }

    #[test]
    fn a_process_goes_on_if_its_end_would_be_seen() {
        assert!(process_goes_on(true, Some(false), 1));
        // In the middle of an exec.
        assert!(process_goes_on(false, Some(false), 1));
        // A child that has not said hello.
        assert!(process_goes_on(true, None, 1));
        assert!(!process_goes_on(true, Some(true), 1));
        assert!(!process_goes_on(false, None, 1));
        assert!(!process_goes_on(true, Some(false), 0));
    }
}
