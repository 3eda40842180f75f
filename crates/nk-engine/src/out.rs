//! What a poll has to tell, gathered so that each sleeper is rung once.

use crate::{GuestId, Notify};

/// The surroundings, and doorbells that are due at the end of the poll.
pub(crate) struct Out<'a> {
    pub(crate) notify: &'a mut dyn Notify,
    pub(crate) bells: Vec<(GuestId, u16)>,
    /// Number of this poll.
    pub(crate) round: u64,
}

impl Out<'_> {
    /// Rings what is due; returns the list for its memory.
    pub(crate) fn flush(mut self) -> Vec<(GuestId, u16)> {
        for (guest, qset) in self.bells.drain(..) {
            self.notify.doorbell(guest, qset);
        }
        self.bells
    }
}
