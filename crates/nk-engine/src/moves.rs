//! A guest moves from one NSM to another: what is new goes to the next at once, and what is connected stays where it is.

use nk_device::Nqe;
use nk_device::errno::ECONNRESET;

use crate::engine::{Engine, Parts};
use crate::guest::{Guest, OldCall, OldNsm, State};
use crate::out::Out;
use crate::{ControlError, GuestId, Notify, NsmId};

impl Guest {
    /// Whether several NSMs have sockets of its.
    #[inline]
    pub(crate) fn is_split(&self) -> bool {
        !self.old.is_empty()
    }

    /// Whether it was moved from that NSM, which may still have sockets of its.
    pub(crate) fn is_old(&self, nsm: NsmId) -> bool {
        self.old.iter().any(|o| o.id == nsm)
    }

    pub(crate) fn is_served_by(&self, nsm: NsmId) -> bool {
        self.nsm == nsm || self.is_old(nsm)
    }

    /// Its NSMs, the present one last.
    pub(crate) fn all_nsms(&self) -> Vec<NsmId> {
        self.old.iter().map(|o| o.id).chain([self.nsm]).collect()
    }

    /// Whose answer a call awaits.
    pub(crate) fn note_call(&mut self, q: u16, ticket: u8, nsm: NsmId) {
        let Some(s) = self.qsets.get_mut(usize::from(q)) else { return };
        s.calls |= 1u64 << (ticket & 63);
        if nsm != self.nsm {
            self.old_calls.push(OldCall { qset: q, ticket, nsm });
        }
    }

    /// Tickets of the queue set that the NSM has to answer.
    pub(crate) fn calls_to(&self, nsm: NsmId, q: u16) -> Vec<u8> {
        let calls = self.qsets.get(usize::from(q)).map_or(0, |s| s.calls);
        let whose = |ticket: u8| {
            let old = self.old_calls.iter().find(|c| (c.qset, c.ticket) == (q, ticket));
            old.map_or(self.nsm, |c| c.nsm)
        };
        (1..64u8).filter(|t| calls & (1u64 << t) != 0 && whose(*t) == nsm).collect()
    }

    /// Sockets that an NSM has, or is finishing.
    fn sockets_on(&self, nsm: NsmId) -> u32 {
        let on = |s: &&crate::guest::Socket| {
            s.nsm == nsm && matches!(s.state(), State::Open | State::Closing)
        };
        self.sockets.iter().filter(on).count() as u32
    }
}

impl Parts<'_> {
    /// Says which NSMs have none of the guest's sockets left.
    pub(crate) fn tell_left(&mut self, out: &mut Out<'_>) {
        for o in self.guest.old.iter_mut().filter(|o| o.sockets == 0 && !o.is_told) {
            o.is_told = true;
            out.notify.nsm_left(self.guest.id, o.id);
        }
    }

    /// The present NSM has nothing to accept into any more.
    fn ungrant(&mut self) {
        for id in 0..self.guest.sockets.len() as u32 {
            let Some(s) = self.guest.socket(id) else { break };
            if s.state() == State::GrantedNsm {
                self.guest.free_id(id);
            }
        }
        self.guest.nsm_granted = 0;
    }

    /// Answers the calls that this NSM will not.
    pub(crate) fn end_calls_to(&mut self, nsm: NsmId, out: &mut Out<'_>) {
        for q in 0..self.guest.qsets.len() as u16 {
            for ticket in self.guest.calls_to(nsm, q) {
                let nqe = Nqe { ticket, ..Nqe::default() };
                self.refuse(q, &nqe, ECONNRESET, out);
            }
        }
    }

    /// What was asked of the present NSM is its to answer also when another has its place.
    fn keep_calls(&mut self) {
        let nsm = self.guest.nsm;
        for q in 0..self.guest.qsets.len() as u16 {
            for ticket in self.guest.calls_to(nsm, q) {
                self.guest.old_calls.push(OldCall { qset: q, ticket, nsm });
            }
        }
    }
}

#[allow(clippy::missing_errors_doc, reason = "ControlError's variants say it")]
impl Engine {
    /// Takes nothing from the guest until [`Engine::resume_guest`]: what its NSM was told so far is all that it will be told.
    pub fn pause_guest(&mut self, guest: GuestId) -> Result<(), ControlError> {
        let p = self.parts(guest)?;
        p.guest.is_paused = true;
        // What is to be closed must not be given away.
        p.nsm.give_closes_of(guest);
        Ok(())
    }

    /// Whether everything that was taken from guests for this NSM is on its rings.
    #[must_use]
    pub fn is_told(&mut self, nsm: NsmId) -> bool {
        self.nsm_mut(nsm).is_some_and(|n| !n.is_congested())
    }

    /// Goes on with a guest.
    pub fn resume_guest(&mut self, guest: GuestId) -> Result<(), ControlError> {
        self.rouse(guest);
        let p = self.parts(guest)?;
        p.guest.is_paused = false;
        p.guest.top_up_nsm(p.nsm);
        Ok(())
    }

    /// A paused guest's new connections and listeners are another NSM's from now on, which ServiceLib there knows already. The last
    /// one has done all that it was told, leases nothing to the guest any more (`Service::leave`), and gave away the sockets `moved`.
    pub fn move_guest(
        &mut self,
        guest: GuestId,
        to: NsmId,
        moved: &[(u32, u16)],
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        self.nsm_mut(to).ok_or(ControlError::Nsm)?;
        self.control(guest, notify, |p, _| {
            p.ungrant();
            p.keep_calls();
            let from = p.guest.nsm;
            for (id, generation) in moved {
                if let Some(s) = p.guest.socket_mut(*id)
                    && s.generation == *generation
                    && s.nsm == from
                {
                    s.nsm = to;
                }
            }
            p.guest.old.retain(|o| o.id != to);
            p.guest.old_calls.retain(|c| c.nsm != to);
            let sockets = p.guest.sockets_on(from);
            p.guest.old.push(OldNsm { id: from, sockets, is_told: false });
            p.guest.nsm = to;
            p.guest.count_share();
        })?;
        self.control(guest, notify, |p, out| {
            p.announce_rows();
            p.tell_left(out);
        })
    }

    /// How many of the guest's sockets each of its NSMs has, the present one last.
    #[must_use]
    pub fn sockets_by_nsm(&self, guest: GuestId) -> Vec<(NsmId, u32)> {
        let Some(g) = self.guest(guest) else { return Vec::new() };
        g.all_nsms().into_iter().map(|n| (n, g.sockets_on(n))).collect()
    }

    /// An NSM from which the guest was moved, and which has none of its sockets left, is heard no more. `false`: it has some.
    pub fn leave_nsm(
        &mut self,
        guest: GuestId,
        nsm: NsmId,
        notify: &mut dyn Notify,
    ) -> Result<bool, ControlError> {
        self.control(guest, notify, |p, out| {
            if !p.guest.old.iter().any(|o| o.id == nsm && o.sockets == 0) {
                return false;
            }
            p.end_calls_to(nsm, out);
            p.guest.old.retain(|o| o.id != nsm);
            p.guest.await_no_nsm();
            if !p.guest.is_split() && !p.nsm.up {
                p.forget_owed(out);
            }
            true
        })
    }
}
