//! A guest on several NSMs at once (`nsm = ["a", "b"]`): each gets a share of its sockets, then the guest moves on to the one that has fewest.
//! So its connections are served by as many cores as it has NSMs, while each has one NSM for its life.

use std::time::{Duration, Instant};

use nk_engine::NsmId;

/// A share, at least.
const STEP: u32 = 8;
/// Moves at once: a program's first connections come together.
const BURST: u32 = 32;
/// After them, one in this time: a move holds the guest up for a few milliseconds.
const EVERY: Duration = Duration::from_millis(250);
/// So many sockets carried along count as a move more.
const CARRIED: usize = 32;

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
