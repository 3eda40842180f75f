//! A guest on several NSMs at once, for more than one core's worth of work: it is moved from one to the next ([`crate::Engine::move_guest`]) when the
//! present one has its share of connections. The engine counts them and says so; whoever moves the guest decides how much a share is.

use crate::engine::{Engine, Parts};
use crate::guest::{Guest, Share, Socket, State};
use crate::out::Out;
use crate::{ControlError, GuestId, Notify, NsmId};

impl Guest {
    /// Into how many more sockets the present NSM may accept.
    pub(crate) fn share_left(&self) -> u32 {
        self.share.as_ref().map_or(u32::MAX, |s| s.most.saturating_sub(s.connections))
    }

    /// Connections that an NSM has, or is finishing.
    fn connections_on(&self, nsm: NsmId) -> u32 {
        let on = |s: &&Socket| {
            s.nsm == nsm && s.connection && matches!(s.state(), State::Open | State::Closing)
        };
        self.sockets.iter().filter(on).count() as u32
    }

    /// A socket of the present NSM's becomes a connection.
    pub(crate) fn share_connection(&mut self, id: u32) {
        let is_its = self.socket(id).is_some_and(|s| s.nsm == self.nsm && s.state() == State::Open);
        if let Some(share) = self.share.as_mut().filter(|_| is_its) {
            share.connections += 1;
        }
    }

    /// The present NSM is another, or sockets became its.
    pub(crate) fn count_share(&mut self) {
        let connections = self.share.is_some().then(|| self.connections_on(self.nsm));
        if let (Some(share), Some(connections)) = (&mut self.share, connections) {
            share.connections = connections;
        }
    }
}

impl Parts<'_> {
    /// Says, once, that the present NSM has its share.
    pub(crate) fn tell_full(&mut self, out: &mut Out<'_>) {
        if let Some(share) = &mut self.guest.share
            && share.most > 0
            && share.connections >= share.most
            && !share.is_told
        {
            share.is_told = true;
            out.notify.nsm_full(self.guest.id);
        }
    }
}

#[allow(clippy::missing_errors_doc, reason = "ControlError's variants say it")]
impl Engine {
    /// How many of the guest's connections each of its NSMs has, the present one last.
    #[must_use]
    pub fn connections_by_nsm(&self, guest: GuestId) -> Vec<(NsmId, u32)> {
        let Some(g) = self.guest(guest) else { return Vec::new() };
        g.all_nsms().into_iter().map(|n| (n, g.connections_on(n))).collect()
    }

    /// Once the guest's present NSM has so many of its connections, it accepts no more, and [`Notify::nsm_full`] says so: another share, or another
    /// NSM, goes on. 0: it accepts none, for the time of a move, and nothing is told. `None`: it may have all.
    pub fn set_share(
        &mut self,
        guest: GuestId,
        most: Option<u32>,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        self.control(guest, notify, |p, out| {
            p.guest.share = most.map(|most| Share { most, connections: 0, is_told: false });
            p.guest.count_share();
            p.guest.top_up_nsm(p.nsm);
            p.tell_full(out);
        })
    }
}
