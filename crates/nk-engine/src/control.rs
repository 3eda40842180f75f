//! Control entry points: guests, rows, queue sets, holds.

use nk_device::Device;
use nk_device::nqe::ROW_EXECED;
use nk_device::row::{ROW_EXECING, ROW_LIVE};
use nk_device::sync::Ordering;

use crate::engine::Engine;
use crate::guest::{Guest, State};
use crate::nsm::Nsm;
use crate::{ControlError, GuestId, GuestSetup, NewRow, Notify, NsmId};

impl Engine {
    /// Adds an NSM. `device` is the NSM's own (layout [`nk_device::Layout::NSM`], formatted); its queue set 0 is reset.
    pub fn add_nsm(&mut self, id: NsmId, device: Device) -> Result<(), ControlError> {
        if self.nsm_mut(id).is_some() {
            return Err(ControlError::Nsm);
        }
        self.nsms.push(Nsm::new(id, device));
        Ok(())
    }

    /// Adds a guest with a fresh, formatted device.
    pub fn add_guest(&mut self, setup: GuestSetup) -> Result<(), ControlError> {
        let id = setup.id;
        self.insert_guest(&setup)?;
        if setup.vm {
            let p = self.parts(id)?;
            p.guest.add_row(p.nsm, Some(0), 0)?;
        }
        Ok(())
    }

    pub(crate) fn insert_guest(&mut self, setup: &GuestSetup) -> Result<(), ControlError> {
        if self.nsm_mut(setup.nsm).is_none() {
            return Err(ControlError::Nsm);
        }
        let at = usize::from(setup.id.0);
        if self.guests.len() <= at {
            self.guests.resize_with(at + 1, || None);
        }
        let slot = self.guests.get_mut(at).ok_or(ControlError::Guest)?;
        if slot.is_some() {
            return Err(ControlError::Guest);
        }
        // Another engine may have left it asleep.
        setup.device.header().finish_sleep();
        *slot = Some(Box::new(Guest::new(setup, self.round)));
        self.order.push(setup.id);
        self.awake.push(setup.id);
        Ok(())
    }

    /// Forgets a guest at once. Its sockets on the NSM are the host's to end (`Service::remove_guest`). To let what it sent
    /// last drain, wait for [`Notify::guest_idle`] (or [`Engine::guest_sockets`] 0) after its last row died.
    pub fn remove_guest(&mut self, id: GuestId) -> Result<(), ControlError> {
        let slot = self.guests.get_mut(usize::from(id.0)).ok_or(ControlError::Guest)?;
        slot.take().ok_or(ControlError::Guest)?;
        self.order.retain(|g| *g != id);
        self.awake.retain(|g| *g != id);
        self.ports.release_guest(id);
        self.nsms.iter_mut().for_each(|n| n.forget_closes_of(id));
        Ok(())
    }

    /// Sockets in use by a guest, with those that the NSM is finishing.
    #[must_use]
    pub fn guest_sockets(&self, id: GuestId) -> u32 {
        self.guest(id).map_or(0, |g| g.open)
    }

    /// Whether sockets that nobody holds any more wait for the guest's present NSM to have room for the closes.
    #[must_use]
    pub fn has_closes(&self, id: GuestId) -> bool {
        let nsm = self.guest(id).map(|g| g.nsm);
        self.nsms.iter().any(|n| Some(n.id) == nsm && n.has_closes_of(id))
    }

    /// Makes a row for a process, with its primary queue set.
    pub fn add_row(&mut self, guest: GuestId, pid: u32) -> Result<NewRow, ControlError> {
        let p = self.parts(guest)?;
        p.guest.add_row(p.nsm, None, pid)
    }

    /// Says which process a row belongs to (a forked child that said hello).
    pub fn set_row_pid(&mut self, guest: GuestId, row: u16, pid: u32) -> Result<(), ControlError> {
        let p = self.parts(guest)?;
        let r = p.guest.rows.get_mut(usize::from(row)).ok_or(ControlError::Row)?;
        if !r.in_use {
            return Err(ControlError::Row);
        }
        r.pid = pid;
        if let Some(shared) = p.guest.device.row(row) {
            shared.pid.store(pid, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Changes how many NQEs are taken from each of the guest's queue sets in one turn ([`crate::Limits::nqes_per_turn_max`]).
    pub fn set_turn(&mut self, guest: GuestId, nqes_max: u32) -> Result<(), ControlError> {
        self.parts(guest)?.guest.limits.nqes_per_turn_max = nqes_max;
        Ok(())
    }

    /// Whether the row's process said that it is about to exec (`row.phase`, a hint of the guest's).
    #[must_use]
    pub fn is_row_execing(&self, guest: GuestId, row: u16) -> bool {
        self.guest(guest)
            .filter(|g| g.is_live(row))
            .and_then(|g| g.device.row(row))
            .is_some_and(|r| r.phase.load(Ordering::SeqCst) == ROW_EXECING)
    }

    /// The process of a row is dead: its holder bits are cleared, sockets with none left are closed, its queue sets dropped, what
    /// was leased to it taken back.
    pub fn row_dead(
        &mut self,
        guest: GuestId,
        row: u16,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        self.control(guest, notify, |p, out| {
            if !p.guest.is_live(row) {
                return Err(ControlError::Row);
            }
            let qsets = p.drop_qsets_of(row, out);
            p.clear_row(row, &qsets, true, out);
            p.reclaim_ids(row, None);
            p.guest.free_row(row);
            p.row_job(row, 0);
            if !p.guest.has_rows() {
                p.close_abandoned(out);
            }
            Ok(())
        })?
    }

    /// The process of a row exec'ed and attached again: holder bits stay, all old queue sets go, what the old image had taken and
    /// not used comes back. Returns the new primary queue set. Call before the attach reply is sent.
    pub fn row_exec_kept(
        &mut self,
        guest: GuestId,
        row: u16,
        notify: &mut dyn Notify,
    ) -> Result<u16, ControlError> {
        self.control(guest, notify, |p, out| {
            if !p.guest.is_live(row) {
                return Err(ControlError::Row);
            }
            let device = p.guest.device;
            let shared = device.row(row).ok_or(ControlError::Row)?;
            let qsets = p.drop_qsets_of(row, out);
            let q = p.guest.take_qset(row)?;
            if let Some(r) = p.guest.rows.get_mut(usize::from(row)) {
                r.qset = q;
            }
            p.clear_row(row, &qsets, false, out);
            p.reclaim_ids(row, Some(shared.id_grants.head.load(Ordering::Acquire)));
            shared.qset.store(u32::from(q), Ordering::Relaxed);
            shared.phase.store(ROW_LIVE, Ordering::SeqCst);
            p.row_job(
                row,
                ROW_EXECED | u64::from(shared.chunk_grants.head.load(Ordering::Acquire)),
            );
            p.guest.top_up_row(row);
            Ok(q)
        })?
    }

    /// One more queue set for a row.
    pub fn add_qset(&mut self, guest: GuestId, row: u16) -> Result<u16, ControlError> {
        let p = self.parts(guest)?;
        if !p.guest.is_live(row) {
            return Err(ControlError::Row);
        }
        p.guest.take_qset(row)
    }

    /// A queue set of the row goes (not the primary one). What is on its job and send rings is served first.
    pub fn drop_qset(
        &mut self,
        guest: GuestId,
        row: u16,
        qset: u16,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        self.control(guest, notify, |p, out| {
            let is_its =
                p.guest.qsets.get(usize::from(qset)).is_some_and(|q| q.in_use && q.row == row);
            let is_primary = p.guest.rows.get(usize::from(row)).is_some_and(|r| r.qset == qset);
            if !is_its || is_primary {
                return Err(ControlError::Qset);
            }
            p.drop_qset(qset, out);
            p.clear_row(row, &[qset], false, out);
            Ok(())
        })?
    }

    /// The host holds a socket itself (row 0's bit), while its stand-in is in flight.
    pub fn hold(
        &mut self,
        guest: GuestId,
        socket: u32,
        generation: u16,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        self.control(guest, notify, |p, _| {
            let s = p.guest.socket(socket).ok_or(ControlError::Socket)?;
            if s.generation != generation
                || !matches!(s.state(), State::Open | State::Dead | State::GrantedRow)
            {
                return Err(ControlError::Socket);
            }
            p.guest.cell(socket).ok_or(ControlError::Socket)?.hold(0);
            if let Some(s) = p.guest.socket_mut(socket) {
                s.host_holds += 1;
            }
            Ok(())
        })?
    }

    /// Undoes one [`Engine::hold`]; closes the socket when that was the last and nobody else holds it.
    pub fn unhold(
        &mut self,
        guest: GuestId,
        socket: u32,
        generation: u16,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        self.control(guest, notify, |p, out| {
            let s = p.guest.socket(socket).ok_or(ControlError::Socket)?;
            if s.generation != generation {
                return Err(ControlError::Socket);
            }
            if let Some(s) = p.guest.socket_mut(socket) {
                s.host_holds = s.host_holds.saturating_sub(1);
                // It may travel in several messages at a time.
                if s.host_holds != 0 {
                    return Ok(());
                }
            }
            let unheld = p.guest.cell(socket).ok_or(ControlError::Socket)?.release(0);
            if !p.guest.has_rows() {
                p.close_abandoned(out);
            } else if unheld {
                p.close_if_unheld(socket, out);
            }
            Ok(())
        })?
    }
}
