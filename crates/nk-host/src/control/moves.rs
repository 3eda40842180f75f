//! A guest moves (`nk guest move`): its new connections and its listeners go to another NSM at once, its connections end where they are. And
//! what the death of an NSM means for the guests that are on it.
//!
//! The engine takes nothing from the guest while it is moved, a few milliseconds: the present NSM handles what it was told, gives away
//! what is no connection, and leases nothing to the guest any more; then the next one is told of the guest's processes. From the first
//! move until the last connection on an old NSM has ended, all share the guest's chunks by a ledger.
//!
//! **Who does not answer.** An NSM may die at any moment, and the control thread learn of it later. So whatever an NSM is told comes back as
//! done also if it is dead or being ended: [`nsm_died`] and [`nsm_back`] put right what depends on it. Only the present NSM's giving away
//! ([`Host::leave`]) must be known to have been done. An error of anything else is a refusal, of which nothing is left behind.

use std::io;

use nk_engine::{AdoptedListener, Engine, GuestId, Notify, NsmId};
use nk_servicelib::{Key, MovedSocket};

use super::place::{Left, Place};

/// Who carries it out.
#[allow(clippy::missing_errors_doc, reason = "the module says what an error means")]
pub trait Host {
    /// By what NSMs share a guest's chunks.
    type Ledger;

    /// The guests that there are.
    fn guests(&self) -> Vec<GuestId>;
    /// Where a guest is, if there is such a one.
    fn place(&mut self, guest: GuestId) -> Option<&mut Place<Self::Ledger>>;
    /// Whether an NSM serves, as far as is known.
    fn is_up(&self, nsm: NsmId) -> bool;
    /// Asks the engine.
    fn engine<R: Send + 'static>(
        &mut self,
        ask: impl FnOnce(&mut Engine, &mut dyn Notify) -> R + Send + 'static,
    ) -> io::Result<R>;

    /// A ledger in which every chunk is free.
    fn new_ledger(&mut self, guest: GuestId) -> io::Result<Self::Ledger>;
    /// What is said in the ledger of an NSM that is gone is said no more.
    fn clear_ledger(&mut self, guest: GuestId, nsm: NsmId);

    /// Tells an NSM of a guest, with its ledger if it has one.
    fn add(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()>;
    /// Tells an NSM of a guest's end there.
    fn remove(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()>;
    /// An NSM does what it was told, and gives away what of the guest is no connection. An error: it did not, or it is
    /// not known, and then it is dead or being ended.
    fn leave(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<Vec<MovedSocket>>;
    /// An NSM has a guest's new sockets from now on.
    fn enter(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()>;
    /// Gives an NSM a socket that another gave away; what of it is kept goes along. `false`: it cannot take it.
    fn give(&mut self, from: NsmId, to: NsmId, moved: MovedSocket) -> io::Result<bool>;
    /// Gives an NSM the listener that was kept of one that died, or of which nothing else is known. `false`: there is none, or it
    /// cannot take it.
    fn give_kept(&mut self, from: NsmId, to: NsmId, key: Key, backlog: u32) -> io::Result<bool>;
    /// Tells an NSM that no other has a part in a guest's chunks any more.
    fn alone(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()>;
    /// Tells an NSM which options a guest's datagram sockets are to have when they are made again there.
    fn give_options(&mut self, nsm: NsmId, guest: GuestId) -> io::Result<()>;
    /// Keeps no options of sockets that are no more.
    fn drop_stale_options(&mut self, guest: GuestId) -> io::Result<()>;
    /// Tells each NSM of a guest its part of the limits.
    fn limit(&mut self, guest: GuestId) -> io::Result<()>;
    /// What another daemon must know of a guest has changed.
    fn note(&mut self, guest: GuestId);
}

/// Why a guest stays where it is.
#[derive(Debug)]
pub enum Stays {
    /// This NSM is being restarted.
    Restarting(NsmId),
    /// The present one could not give it away, or something else failed.
    Failed(io::Error),
}

impl From<io::Error> for Stays {
    fn from(e: io::Error) -> Stays {
        Stays::Failed(e)
    }
}

/// A move that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// From this one.
    pub from: NsmId,
    /// So many sockets changed over.
    pub sockets: usize,
}

/// Moves a guest; `None`: it is there.
///
/// # Errors
/// [`Stays`] says why it stays, wholly, where it is.
pub fn move_guest<H: Host>(h: &mut H, guest: GuestId, to: NsmId) -> Result<Option<Moved>, Stays> {
    let Some((from, joins)) = h.place(guest).map(|p| (p.nsm(), !p.was_on(to))) else {
        return Ok(None);
    };
    if from == to {
        return Ok(None);
    }
    if let Some(nsm) = [from, to].into_iter().find(|n| !h.is_up(*n)) {
        return Err(Stays::Restarting(nsm));
    }
    if h.place(guest).is_some_and(|p| p.ledger().is_none()) {
        let ledger = h.new_ledger(guest)?;
        if let Some(p) = h.place(guest) {
            p.share(ledger);
        }
    }
    let added = if joins { h.add(to, guest) } else { Ok(()) };
    let given = added.and_then(|()| {
        engine(h, move |e, _| e.pause_guest(guest))?;
        h.leave(from, guest)
    });
    let given = match given {
        Ok(given) => given,
        Err(why) => {
            engine(h, move |e, _| e.resume_guest(guest))?;
            if joins {
                h.remove(to, guest)?;
            }
            if let Some(p) = h.place(guest) {
                p.forget_ledger();
            }
            return Err(why.into());
        }
    };
    // From here on nothing goes back: should the next NSM die now, its successor is told of everything as always.
    let sockets = given.len();
    let done = go_over(h, guest, to, given);
    engine(h, move |e, _| e.resume_guest(guest))?;
    done?;
    h.limit(guest)?;
    Ok(Some(Moved { from, sockets }))
}

/// The next NSM has the guest's new sockets, and what the present one gave away.
fn go_over<H: Host>(
    h: &mut H,
    guest: GuestId,
    to: NsmId,
    given: Vec<MovedSocket>,
) -> io::Result<()> {
    let Some(from) = h.place(guest).map(|p| p.nsm()) else { return Ok(()) };
    h.enter(to, guest)?;
    let keys: Vec<(u32, u16)> = given.iter().map(|m| (m.key.socket, m.key.generation)).collect();
    engine(h, move |e, notify| e.move_guest(guest, to, &keys, notify))?;
    if let Some(p) = h.place(guest) {
        p.moved(to);
    }
    h.note(guest);
    for moved in given {
        let key = moved.key;
        if !h.give(from, to, moved)? {
            lost(h, key)?;
        }
    }
    Ok(())
}

/// A guest's present NSM is dead, and rests before it is started again: another one that serves takes its place for the guest, and has what was no
/// connection from what is kept, as a successor would. `None`: the present one serves.
///
/// # Errors
/// [`Stays`] says why it stays and waits.
pub fn flee<H: Host>(h: &mut H, guest: GuestId, to: NsmId) -> Result<Option<Moved>, Stays> {
    let Some((from, joins)) = h.place(guest).map(|p| (p.nsm(), !p.was_on(to))) else {
        return Ok(None);
    };
    if h.is_up(from) {
        return Ok(None);
    }
    if !h.is_up(to) {
        return Err(Stays::Restarting(to));
    }
    let is_shared = h.place(guest).is_some_and(|p| p.ledger().is_some());
    h.drop_stale_options(guest)?;
    if joins {
        h.add(to, guest)?;
    }
    let fled = h
        .give_options(to, guest)
        .and_then(|()| if is_shared { h.enter(to, guest) } else { Ok(()) })
        .and_then(|()| engine(h, move |e, notify| e.flee_nsm(guest, to, notify)));
    let listeners = match fled {
        Ok(listeners) => listeners,
        Err(e) => {
            if joins {
                h.remove(to, guest)?;
            }
            return Err(e.into());
        }
    };
    if let Some(p) = h.place(guest) {
        p.moved(to);
    }
    h.note(guest);
    let sockets = listeners.len();
    for (guest, l) in listeners {
        give_kept(h, from, to, guest, &l)?;
    }
    h.remove(from, guest)?;
    if is_shared {
        gone(h, guest, from)?;
    } else {
        h.place(guest).map(|p| p.left(from));
        h.limit(guest)?;
    }
    Ok(Some(Moved { from, sockets }))
}

fn engine<H: Host, R: Send + 'static, E: std::error::Error + Send + Sync + 'static>(
    h: &mut H,
    ask: impl FnOnce(&mut Engine, &mut dyn Notify) -> Result<R, E> + Send + 'static,
) -> io::Result<R> {
    h.engine(ask)?.map_err(io::Error::other)
}

/// A socket that no NSM could take is closed.
///
/// # Errors
/// Those of the host.
pub fn lost<H: Host>(h: &mut H, key: Key) -> io::Result<()> {
    tracing::error!(?key, "a socket could not be given to an NSM: it is closed");
    h.engine(move |e, notify| {
        // It may have been closed meanwhile.
        let _ = e.listener_lost(GuestId(key.guest), key.socket, key.generation, notify);
    })
}

/// The engine says that an NSM from which a guest was moved has none of its sockets any more.
///
/// # Errors
/// Those of the host.
pub fn nsm_left<H: Host>(h: &mut H, guest: GuestId, nsm: NsmId) -> io::Result<()> {
    if !h.place(guest).is_some_and(|p| p.was_on(nsm)) {
        return Ok(());
    }
    // It may have got one meanwhile: then it is said again.
    if !h.engine(move |e, notify| e.leave_nsm(guest, nsm, notify))?.unwrap_or(false) {
        return Ok(());
    }
    h.remove(nsm, guest)?;
    gone(h, guest, nsm)
}

/// An NSM has nothing of a guest any more, because nothing is left or because it died.
fn gone<H: Host>(h: &mut H, guest: GuestId, nsm: NsmId) -> io::Result<()> {
    h.clear_ledger(guest, nsm);
    let Some(left) = h.place(guest).map(|p| p.left(nsm)) else { return Ok(()) };
    if let Left::Alone(present) = left {
        h.alone(present, guest)?;
        if let Some(p) = h.place(guest) {
            p.forget_ledger();
        }
    }
    h.limit(guest)
}

/// An NSM died, and nothing of it is left.
///
/// # Errors
/// Those of the host.
pub fn nsm_died<H: Host>(h: &mut H, nsm: NsmId) -> io::Result<()> {
    // What it had of a guest that was moved from it is renewed at once, where the guest is.
    for guest in h.guests() {
        let present = h.place(guest).filter(|p| p.was_on(nsm)).map(|p| p.nsm());
        if let Some(present) = present {
            h.give_options(present, guest)?;
        }
    }
    let listeners = engine(h, move |e, notify| e.nsm_dead(nsm, notify))?;
    for (guest, l) in listeners {
        if let Some(present) = h.place(guest).map(|p| p.nsm()) {
            give_kept(h, nsm, present, guest, &l)?;
        }
    }
    for guest in h.guests() {
        if h.place(guest).is_some_and(|p| p.was_on(nsm)) {
            // Its successor has nothing to do with the guest.
            h.remove(nsm, guest)?;
        }
        if h.place(guest).is_some_and(|p| p.ledger().is_some() && p.is_on(nsm)) {
            gone(h, guest, nsm)?;
        }
    }
    Ok(())
}

/// A dead NSM's successor can serve: it is told of the guests that are its, and given their listeners.
///
/// # Errors
/// Those of the host.
pub fn nsm_back<H: Host>(h: &mut H, nsm: NsmId, device: nk_device::Device) -> io::Result<()> {
    for guest in h.guests() {
        if h.place(guest).is_some_and(|p| p.nsm() == nsm) {
            h.drop_stale_options(guest)?;
            h.add(nsm, guest)?;
        }
    }
    let listeners = engine(h, move |e, _| e.nsm_back(nsm, device))?;
    for (guest, l) in listeners {
        give_kept(h, nsm, nsm, guest, &l)?;
    }
    Ok(())
}

fn give_kept<H: Host>(
    h: &mut H,
    from: NsmId,
    to: NsmId,
    guest: GuestId,
    l: &AdoptedListener,
) -> io::Result<()> {
    let key = Key { guest: guest.0, socket: l.socket, generation: l.generation };
    if h.give_kept(from, to, key, l.backlog)? { Ok(()) } else { lost(h, key) }
}

#[cfg(test)]
mod tests;
