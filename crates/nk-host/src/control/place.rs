//! Where a guest is: the NSM that has its new sockets, those that it was moved from and has not left yet, and what all of them share.

use nk_engine::NsmId;

/// Where a guest is. `L` is the ledger by which several NSMs share its chunks.
#[derive(Debug)]
pub struct Place<L> {
    nsm: NsmId,
    old: Vec<NsmId>,
    ledger: Option<L>,
}

/// What is to be done when an NSM has nothing of a guest any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Others have still a part in its chunks.
    Several,
    /// This one is alone: it is told so, and the ledger is looked at no more.
    Alone(NsmId),
}

impl<L> Place<L> {
    /// On one NSM.
    #[must_use]
    pub fn new(nsm: NsmId) -> Place<L> {
        Place { nsm, old: Vec::new(), ledger: None }
    }

    /// The NSM that serves it.
    #[must_use]
    pub fn nsm(&self) -> NsmId {
        self.nsm
    }

    /// NSMs from which it was moved, as long as they have sockets of its.
    #[must_use]
    pub fn old(&self) -> &[NsmId] {
        &self.old
    }

    /// All NSMs that have sockets of its, the present one first.
    #[must_use]
    pub fn all(&self) -> Vec<NsmId> {
        [self.nsm].into_iter().chain(self.old.iter().copied()).collect()
    }

    /// Whether an NSM has sockets of its, or may.
    #[must_use]
    pub fn is_on(&self, nsm: NsmId) -> bool {
        self.nsm == nsm || self.was_on(nsm)
    }

    /// Whether it was moved from that NSM, which may have sockets of its.
    #[must_use]
    pub fn was_on(&self, nsm: NsmId) -> bool {
        self.old.contains(&nsm)
    }

    /// What all of these share its chunks by, while there are several.
    #[must_use]
    pub fn ledger(&self) -> Option<&L> {
        self.ledger.as_ref()
    }

    /// From now on it has a ledger: another NSM is about to have a part in it.
    pub(super) fn share(&mut self, ledger: L) {
        self.ledger = Some(ledger);
    }

    /// Its new sockets are another NSM's.
    pub(super) fn moved(&mut self, to: NsmId) {
        let from = std::mem::replace(&mut self.nsm, to);
        self.old.retain(|n| *n != to && *n != from);
        self.old.push(from);
    }

    /// An NSM has nothing of it any more: its sockets there have ended, or it died.
    pub(super) fn left(&mut self, nsm: NsmId) -> Left {
        self.old.retain(|n| *n != nsm);
        if self.old.is_empty() && self.nsm != nsm { Left::Alone(self.nsm) } else { Left::Several }
    }

    /// Nobody looks at its ledger, unless several NSMs do.
    pub(super) fn forget_ledger(&mut self) {
        if self.old.is_empty() {
            self.ledger = None;
        }
    }
}
