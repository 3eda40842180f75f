//! A guest on several NSMs at once, for more than one core's worth of work: it is moved from one to the next ([`crate::Engine::move_guest`]) when the
//! present one has its share of sockets. The engine counts them and says so; whoever moves the guest decides how much a share is.

use crate::engine::{Engine, Parts};
use crate::guest::{Guest, Share};
use crate::out::Out;
use crate::{ControlError, GuestId, Notify};

impl Guest {
    /// Into how many more sockets the present NSM may accept.
    pub(crate) fn share_left(&self) -> u32 {
        self.share.as_ref().map_or(u32::MAX, |s| s.most.saturating_sub(s.sockets))
    }

    /// The present NSM is another, or sockets became its.
    pub(crate) fn count_share(&mut self) {
        let sockets = self.share.is_some().then(|| self.sockets_on(self.nsm));
        if let (Some(share), Some(sockets)) = (&mut self.share, sockets) {
            share.sockets = sockets;
        }
    }
}

impl Parts<'_> {
    /// Says, once, that the present NSM has its share.
    pub(crate) fn tell_full(&mut self, out: &mut Out<'_>) {
        if let Some(share) = &mut self.guest.share
            && share.most > 0
            && share.sockets >= share.most
            && !share.is_told
        {
            share.is_told = true;
            out.notify.nsm_full(self.guest.id);
        }
    }
}

#[allow(clippy::missing_errors_doc, reason = "ControlError's variants say it")]
impl Engine {
    /// Once the guest's present NSM has so many of its sockets, it accepts no more, and [`Notify::nsm_full`] says so: another share, or another
    /// NSM, goes on. 0: it accepts none, for the time of a move, and nothing is told. `None`: it may have all.
    pub fn set_share(
        &mut self,
        guest: GuestId,
        most: Option<u32>,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        self.control(guest, notify, |p, out| {
            p.guest.share = most.map(|most| Share { most, sockets: 0, is_told: false });
            p.guest.count_share();
            p.guest.top_up_nsm(p.nsm);
            p.tell_full(out);
        })
    }
}
