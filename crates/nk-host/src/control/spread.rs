//! A guest on several NSMs at once (`nsm = ["a", "b"]`): each gets a share of its sockets, then the guest moves on to the one that has fewest.
//! So its connections are served by as many cores as it has NSMs, while each has one NSM for its life.

use std::io;
use std::time::{Duration, Instant};

use nk_engine::{GuestId, NsmId};

use super::moves::{self, Moved, Stays, flee, move_guest};

/// A share, at least.
const STEP: u32 = 8;
/// Moves at once: a program's first connections come together.
const BURST: u32 = 32;
/// After them, one in this time: a move holds the guest up for a few milliseconds.
const EVERY: Duration = Duration::from_millis(250);
/// So many sockets carried along count as a move more.
const CARRIED: usize = 32;
/// When a move that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Who carries it out.
pub trait Host: moves::Host {
    /// The NSMs that the configuration names for a guest, of those that there are, in its order.
    fn listed(&self, guest: GuestId) -> Vec<NsmId>;
    /// Whether an NSM died again and again, and is not started at once.
    fn rests(&self, nsm: NsmId) -> bool;
    /// What is known of a guest that is spread.
    fn spread(&mut self, guest: GuestId) -> Option<&mut Option<Spread>>;
}

/// A guest that is spread.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    moves: Moves,
    /// When to look again without being told to.
    again: Option<Instant>,
}

impl Spread {
    /// When to look at it again without being told to.
    #[must_use]
    pub fn again(&self) -> Option<Instant> {
        self.again
    }
}

/// Sees to it that the guest's next connections go to that of its NSMs which has the fewest: when it comes to be, when its share is full, when it
/// was moved, when its NSM rests after deaths, when the configuration changed.
///
/// # Errors
/// Those of the host.
pub fn spread<H: Host>(h: &mut H, guest: GuestId, now: Instant) -> io::Result<()> {
    let Some(mut present) = h.place(guest).map(|p| p.nsm()) else { return Ok(()) };
    let over = h.listed(guest);
    if over.len() < 2 {
        let was_spread = h.spread(guest).is_some_and(|s| s.take().is_some());
        return if was_spread { set_share(h, guest, None) } else { Ok(()) };
    }
    let up = |h: &H| -> Vec<NsmId> { over.iter().copied().filter(|n| h.is_up(*n)).collect() };
    let mut connections = h.engine(move |e, _| e.connections_by_nsm(guest))?;
    if over.contains(&present)
        && h.rests(present)
        && let Some(to) = refuge(&up(h), &connections)
    {
        match flee(h, guest, to) {
            Ok(Some(Moved { from, .. })) => {
                tracing::info!(
                    guest = guest.0,
                    from = from.0,
                    to = to.0,
                    "its NSM rests: the guest goes on at another"
                );
                present = to;
                connections = h.engine(move |e, _| e.connections_by_nsm(guest))?;
            }
            Ok(None) => {}
            Err(why) => tracing::warn!(guest = guest.0, ?why, "it waits for its NSM, which rests"),
        }
    }
    let up = up(h);
    let choice = choose(present, &up, &connections);
    let has = connections.iter().find(|(n, _)| *n == present).map_or(0, |(_, n)| *n);
    let Some(spread) = h.spread(guest) else { return Ok(()) };
    let spread = spread.get_or_insert(Spread { moves: Moves::new(now), again: None });
    // A move that failed took its time: not at once again.
    if spread.again.is_some_and(|t| now < t) {
        return set_share(h, guest, Some(meanwhile(has)));
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
            set_share(h, guest, Some(0))?;
            match move_guest(h, guest, c.nsm) {
                Ok(moved) => {
                    let spread = h.spread(guest).and_then(Option::as_mut);
                    if let (Some(spread), Some(moved)) = (spread, moved) {
                        spread.moves.carried(moved.sockets);
                    }
                    (Some(c.most), None)
                }
                Err(why) => {
                    tracing::debug!(guest = guest.0, ?why, "not moved on to its next NSM");
                    (Some(meanwhile(has)), Some(now + AGAIN))
                }
            }
        }
    };
    if let Some(spread) = h.spread(guest).and_then(Option::as_mut) {
        spread.again = again;
    }
    set_share(h, guest, most)
}

fn set_share<H: Host>(h: &mut H, guest: GuestId, most: Option<u32>) -> io::Result<()> {
    if let Err(e) = h.engine(move |e, notify| e.set_share(guest, most, notify))? {
        tracing::debug!(guest = guest.0, error = %e, "it has no share");
    }
    Ok(())
}

/// What the configuration says of a guest's NSMs named the one on which it is, and does so no more: it moves to the first that it names and that
/// serves; where it was. Who is on another by an order stays. `had`: the NSMs that it named before.
///
/// # Errors
/// [`Stays`] says why it stays on one that is not named.
pub fn follow<H: Host>(h: &mut H, guest: GuestId, had: &[NsmId]) -> Result<Option<Moved>, Stays> {
    let Some(present) = h.place(guest).map(|p| p.nsm()) else { return Ok(None) };
    let listed = h.listed(guest);
    if !had.contains(&present) || listed.contains(&present) {
        return Ok(None);
    }
    let Some(to) = listed.into_iter().find(|n| h.is_up(*n)) else { return Ok(None) };
    // One that is down cannot give the guest away: it goes without what that had.
    if h.is_up(present) { move_guest(h, guest, to) } else { flee(h, guest, to) }
}

/// Where the guest's new sockets go, and how many that NSM is to have then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The NSM.
    pub nsm: NsmId,
    /// Its share.
    pub most: u32,
}

/// What is next for a guest. `over`: the NSMs that may have it and serve now; `sockets`: what each NSM has of it. `None`: where it is it stays,
/// since there is nothing to choose, or somebody moved it elsewhere.
#[must_use]
pub fn choose(present: NsmId, over: &[NsmId], sockets: &[(NsmId, u32)]) -> Option<Choice> {
    let of = |nsm: NsmId| sockets.iter().find(|(n, _)| *n == nsm).map_or(0, |(_, s)| *s);
    if over.len() < 2 || !over.contains(&present) {
        return None;
    }
    let others = |nsm: NsmId| over.iter().filter(move |n| **n != nsm).map(|n| of(*n));
    // What an NSM may have more than the one that has least. The more sockets there are, the less it matters where a few go: moves get rarer.
    let step = |nsm: NsmId| STEP.max(others(nsm).sum::<u32>() / (2 * over.len() as u32));
    let most = |nsm: NsmId| others(nsm).min().map_or(u32::MAX, |least| least + step(nsm));
    // The one after the present first, so that equals take turns.
    let at = over.iter().position(|n| *n == present).unwrap_or(0);
    let in_turn = over.iter().cycle().skip(at + 1).take(over.len()).copied();
    let nsm = match of(present) < most(present) {
        true => present,
        false => in_turn.min_by_key(|n| of(*n))?,
    };
    Some(Choice { nsm, most: most(nsm) })
}

/// Where a guest goes whose present NSM rests after deaths: to that with the fewest of its connections. `up`: the NSMs that may have it and serve now.
#[must_use]
pub fn refuge(up: &[NsmId], sockets: &[(NsmId, u32)]) -> Option<NsmId> {
    let of = |nsm: NsmId| sockets.iter().find(|(n, _)| *n == nsm).map_or(0, |(_, s)| *s);
    up.iter().copied().min_by_key(|n| of(*n))
}

/// What the present NSM gets, of which it has so many, where a guest cannot be moved on just now: a few more, and then somebody looks again. Of
/// many sockets more at a time: to look means to count them.
#[must_use]
pub fn meanwhile(sockets: u32) -> u32 {
    sockets + (2 * STEP).max(sockets / 8)
}

/// How often a guest may be moved on.
#[derive(Clone, Copy, Debug)]
pub struct Moves {
    left: u32,
    /// Since when more have been owed to it.
    since: Instant,
}

impl Moves {
    /// All at once.
    #[must_use]
    pub fn new(now: Instant) -> Moves {
        Moves { left: BURST, since: now }
    }

    /// Takes one; `false`: none is left.
    pub fn take(&mut self, now: Instant) -> bool {
        let owed = now.saturating_duration_since(self.since).as_nanos() / EVERY.as_nanos();
        let owed = u32::try_from(owed).unwrap_or(u32::MAX).min(BURST);
        if owed > 0 {
            self.left = (self.left + owed).min(BURST);
            self.since = if self.left == BURST { now } else { self.since + EVERY * owed };
        }
        let is_left = self.left > 0;
        self.left -= u32::from(is_left);
        is_left
    }

    /// The last one carried so many sockets over, one by one: a guest that has many waits longer for its next.
    pub fn carried(&mut self, sockets: usize) {
        let more = u32::try_from(sockets / CARRIED).unwrap_or(u32::MAX);
        let paid = more.min(self.left);
        self.left -= paid;
        self.since += EVERY * (more - paid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NsmId = NsmId(0);
    const B: NsmId = NsmId(1);
    const C: NsmId = NsmId(2);

    #[test]
    fn shares_are_filled_in_turn() {
        let mut sockets = [(A, 0), (B, 0), (C, 0)];
        let (mut present, mut moves) = (A, 0);
        for _ in 0..40 {
            let choice = choose(present, &[A, B, C], &sockets).unwrap();
            let its = sockets.iter_mut().find(|(n, _)| *n == choice.nsm).unwrap();
            assert!(choice.most > its.1, "{choice:?} is full already");
            moves += u32::from(choice.nsm != present);
            present = choice.nsm;
            its.1 = choice.most;
        }
        let (least, most) = (sockets.iter().map(|s| s.1).min(), sockets.iter().map(|s| s.1).max());
        assert!(
            moves > 35 && f64::from(most.unwrap()) < 1.6 * f64::from(least.unwrap()),
            "{moves} moves, {sockets:?}"
        );
    }

    #[test]
    fn who_came_back_empty_catches_up_at_once() {
        let choice = choose(A, &[A, B], &[(A, 100), (B, 0)]).unwrap();
        assert_eq!(choice, Choice { nsm: B, most: 125 });
        // On the way there it is not asked again whether it is the right one.
        assert_eq!(choose(B, &[A, B], &[(A, 100), (B, 60)]).unwrap().nsm, B);
    }

    #[test]
    fn a_few_more_are_no_reason_to_move() {
        assert_eq!(choose(A, &[A, B], &[(A, 7), (B, 0)]), Some(Choice { nsm: A, most: 8 }));
        assert_eq!(choose(A, &[A, B], &[(A, 8), (B, 0)]).unwrap().nsm, B);
        assert_eq!(choose(A, &[A, B], &[(A, 1100), (B, 1000)]).unwrap().nsm, A);
    }

    #[test]
    fn nothing_to_choose() {
        assert_eq!(choose(A, &[A], &[(A, 100)]), None);
        assert_eq!(choose(C, &[A, B], &[(C, 100)]), None, "it was moved elsewhere by hand");
        assert_eq!(choose(A, &[], &[]), None);
    }

    #[test]
    fn who_flees_goes_where_it_has_least() {
        assert_eq!(refuge(&[A, B, C], &[(A, 4), (B, 3), (C, 9)]), Some(B));
        assert_eq!(refuge(&[A, C], &[(A, 4)]), Some(C));
        assert_eq!(refuge(&[], &[(A, 4)]), None);
    }

    #[test]
    fn who_carries_much_moves_rarely() {
        let begun = Instant::now();
        let mut moves = Moves::new(begun);
        let sockets = CARRIED * (BURST as usize + 3);
        assert!(moves.take(begun));
        moves.carried(sockets);
        assert!(!moves.take(begun + EVERY * 4), "all at once, and four owed");
        assert!(moves.take(begun + EVERY * 5));
        moves.carried(CARRIED - 1);
        assert!(moves.take(begun + EVERY * 6));
    }

    #[test]
    fn who_cannot_be_moved_is_looked_at_ever_more_rarely() {
        let looks = std::iter::successors(Some(0), |n| Some(meanwhile(*n)));
        assert!(looks.take_while(|n| *n < 32_768).count() < 60);
    }

    #[test]
    fn moves_are_paced() {
        let begun = Instant::now();
        let mut moves = Moves::new(begun);
        assert!((0..BURST).all(|_| moves.take(begun)));
        assert!(!moves.take(begun));
        let later = begun + EVERY + EVERY / 2;
        assert_eq!((moves.take(later), moves.take(later)), (true, false));
        assert!(moves.take(begun + EVERY * 2), "half of it was owed");
        let much_later = begun + EVERY * 10_000;
        assert_eq!((0..BURST + 9).filter(|_| moves.take(much_later)).count(), BURST as usize);
    }
}
