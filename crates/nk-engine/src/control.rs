//! Control entry points: guests, rows, queue sets, holds; and the end of sockets.

use nk_device::cell::{CLAIMED_BY_HOST, SF_RX_STALLED, WATCH_QSET_MASK};
use nk_device::header::QSETS_MAX;
use nk_device::qset::{JOB_SLOTS, SEND_SLOTS};
use nk_device::row::{ROW_EXECING, ROW_LIVE};
use nk_device::sync::Ordering;
use nk_device::{Cell, Device, Nqe, Op};

use crate::engine::{Engine, Parts};
use crate::guest::{Guest, NONE, State};
use crate::nsm::Nsm;
use crate::out::Out;
use crate::{ControlError, GuestId, GuestSetup, NewRow, Notify, NsmId};

/// Polls between two looks at a socket that nobody seems to hold, before it counts as lost.
const SUSPICION: u64 = 4096;
/// Flag in `data` of [`Op::RowDead`]: the row lives on in a new image; the low half is the head of its chunk grants then.
pub const ROW_EXECED: u64 = 1 << 32;

/// A set of queue sets.
struct QsetSet([u64; QSETS_MAX / 64]);

impl QsetSet {
    fn of(qsets: &[u16]) -> QsetSet {
        let mut s = QsetSet([0; QSETS_MAX / 64]);
        for q in qsets {
            if let Some(w) = s.0.get_mut(usize::from(*q) / 64) {
                *w |= 1 << (q % 64);
            }
        }
        s
    }
    fn contains(&self, q: u32) -> bool {
        self.0.get(q as usize / 64).is_some_and(|w| w & (1 << (q % 64)) != 0)
    }
    /// Removes the watches of these queue sets from a cell; `true` when there was one.
    fn clear(&self, cell: &Cell) -> bool {
        let mut found = false;
        for w in &cell.watch {
            let v = w.load(Ordering::Relaxed);
            let q = v & WATCH_QSET_MASK;
            if q != 0 && self.contains(q - 1) {
                // A failed exchange means that the entry changed hands: then it is somebody else's.
                let _ = w.compare_exchange(v, 0, Ordering::SeqCst, Ordering::Relaxed);
                found = true;
            }
        }
        found
    }
}

#[allow(clippy::missing_errors_doc, reason = "ControlError's variants say it")]
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
        *slot = Some(Box::new(Guest::new(setup)));
        self.order.push(setup.id);
        Ok(())
    }

    /// Forgets a guest at once. Its sockets on the NSM are the host's to end (`Service::remove_guest`). To let what it sent
    /// last drain, wait for [`Notify::guest_idle`] (or [`Engine::guest_sockets`] 0) after its last row died.
    pub fn remove_guest(&mut self, id: GuestId) -> Result<(), ControlError> {
        let slot = self.guests.get_mut(usize::from(id.0)).ok_or(ControlError::Guest)?;
        slot.take().ok_or(ControlError::Guest)?;
        self.order.retain(|g| *g != id);
        self.ports.release_guest(id);
        Ok(())
    }

    /// Sockets in use by a guest, with those that the NSM is finishing.
    #[must_use]
    pub fn guest_sockets(&self, id: GuestId) -> u32 {
        self.guest(id).map_or(0, |g| g.open)
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
    ) -> Result<(), ControlError> {
        let p = self.parts(guest)?;
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
    }

    /// Undoes [`Engine::hold`]; closes the socket when that was the last.
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

impl Parts<'_> {
    fn row_job(&mut self, row: u16, data: u64) {
        let mut nqe = Nqe::new(Op::RowDead, 0, 0);
        nqe.guest = self.guest.id.0;
        nqe.op_data = u64::from(row);
        nqe.data = data;
        self.nsm.push(&nqe);
    }

    /// Serves what is on a queue set's rings, a ring's length at most, and frees it.
    fn drop_qset(&mut self, q: u16, out: &mut Out<'_>) {
        // Room for what comes: a ring's worth goes into the backlog at worst.
        for _ in 0..JOB_SLOTS + SEND_SLOTS {
            self.nsm.flush();
            if !self.serve_dying(q, out) {
                break;
            }
        }
        self.guest.free_qset(q);
    }

    fn drop_qsets_of(&mut self, row: u16, out: &mut Out<'_>) -> Vec<u16> {
        let qsets = self.guest.qsets_of(row);
        for q in &qsets {
            self.drop_qset(*q, out);
        }
        qsets
    }

    /// One pass over all sockets for a row whose queue sets went: their watches go; with `dead` also its holder bits, and what it
    /// had begun is taken up by others. What it may have promised and not done (a kick, room) is done for it.
    fn clear_row(&mut self, row: u16, qsets: &[u16], dead: bool, out: &mut Out<'_>) {
        let device = self.guest.device;
        let gone = QsetSet::of(qsets);
        for id in 0..self.guest.sockets.len() as u32 {
            let (Some(s), Some(cell)) = (self.guest.socket(id), device.cell(id)) else { break };
            if matches!(s.state(), State::Free | State::Closing) {
                continue;
            }
            let generation = s.generation;
            let (listens, open) = (s.listener.is_some(), s.state() == State::Open);
            let watched = gone.clear(cell);
            let held = cell.is_held_by(row);
            if dead && held {
                cell.release(row);
            }
            // It may have died between its claim of an accepted socket and its hold.
            let claimed = dead && !held && cell.claimed_by(generation) == Some(row);
            if !held && !watched && !claimed {
                continue;
            }
            if dead
                && (held || claimed)
                && matches!(s.state(), State::Open | State::Dead)
                && cell.is_unheld()
            {
                self.close_if_unheld(id, out);
                continue;
            }
            if !open {
                continue;
            }
            if listens {
                self.guest.sweep_queue(id);
                let waiting = self
                    .guest
                    .socket(id)
                    .and_then(|s| s.listener.as_ref())
                    .is_some_and(|l| !l.queued.is_empty());
                if waiting {
                    self.deliver(id, generation, 0, false, out);
                }
            } else if held {
                self.push_for(Op::Send, id, generation, row);
                if cell.state.load(Ordering::Relaxed) & SF_RX_STALLED != 0 {
                    self.push_for(Op::RxRoom, id, generation, row);
                }
            }
        }
    }

    fn push_for(&mut self, op: Op, id: u32, generation: u16, row: u16) {
        let mut nqe = Nqe::new(op, id, generation);
        nqe.guest = self.guest.id.0;
        nqe.op_data = u64::from(row);
        self.nsm.push(&nqe);
    }

    /// Ids that a dead process was granted come back; with `popped_below` only what an exec'ed image had popped. One that
    /// somebody holds already is a socket whose making was cut short.
    fn reclaim_ids(&mut self, row: u16, popped_below: Option<u32>) {
        let ids = match popped_below {
            Some(head) => self.guest.popped_unused(row, head),
            None => self
                .guest
                .sockets
                .iter()
                .enumerate()
                .filter(|(_, s)| s.state() == State::GrantedRow && s.row == row)
                .map(|(id, _)| id as u32)
                .collect(),
        };
        for id in ids {
            let Some(cell) = self.guest.cell(id) else { continue };
            if cell.is_unheld() {
                self.drop_granted(id);
            } else {
                let kind = u64::from(cell.kind.load(Ordering::Relaxed));
                self.make_socket(id, kind);
            }
        }
    }

    /// The last process is gone: what the host does not hold itself is closed, whatever the cells' bitmaps say. They are the
    /// guest's to write, and must not keep a dead guest's sockets and ports for ever.
    fn close_abandoned(&mut self, out: &mut Out<'_>) {
        for id in 0..self.guest.sockets.len() as u32 {
            let Some(s) = self.guest.socket(id) else { break };
            if s.host_holds == 0 && matches!(s.state(), State::Open | State::Dead) {
                self.close_now(id, false, out);
            }
        }
    }

    /// Closes a socket if the engine's own look finds that nobody holds it, and it does not wait to be accepted.
    pub(crate) fn close_if_unheld(&mut self, id: u32, out: &mut Out<'_>) {
        let Some(s) = self.guest.socket(id) else { return };
        if !matches!(s.state(), State::Open | State::Dead) || self.guest.is_queued(id) {
            return;
        }
        if self.guest.cell(id).is_some_and(Cell::is_unheld) {
            self.close_now(id, false, out);
        }
    }

    /// Hands a socket to the NSM to end (with a reset, if `abort`); a listener's queued sockets go with it.
    pub(crate) fn close_now(&mut self, id: u32, abort: bool, out: &mut Out<'_>) {
        let guest = self.guest.id.0;
        let Some(s) = self.guest.socket_mut(id) else { return };
        let on_stack = s.state() == State::Open;
        let generation = s.generation;
        s.parent = NONE;
        let is_listener = s.listener.is_some();
        if is_listener {
            self.guest.sweep_queue(id);
            let queued = self
                .guest
                .socket_mut(id)
                .and_then(|s| s.listener.as_mut())
                .map(|l| core::mem::take(&mut l.queued))
                .unwrap_or_default();
            for (child, _) in queued {
                let Some(generation) = self.guest.socket(child).map(|c| c.generation) else {
                    continue;
                };
                // Whoever claims first has it: the host, to end it, or a process that is in accept just now.
                let ours =
                    self.guest.cell(child).is_some_and(|c| c.claim(generation, CLAIMED_BY_HOST));
                if let Some(c) = self.guest.socket_mut(child)
                    && c.parent == id
                {
                    c.parent = NONE;
                    if ours && matches!(c.state(), State::Open | State::Dead) {
                        self.close_now(child, true, out);
                    }
                }
            }
        }
        if on_stack && self.nsm.up {
            self.guest.set_state(id, State::Closing);
            let mut nqe = Nqe::new(Op::Close, id, generation);
            nqe.guest = guest;
            nqe.op_data = u64::from(abort);
            self.nsm.push(&nqe);
        } else {
            self.forget(id, out);
        }
    }

    /// A few sockets each time: clears holder bits of rows that are not live (a late helper of a dead process can leave one), and
    /// closes what nobody has held for long (its close was lost with the process that should have told).
    pub(crate) fn sweep(&mut self, count: usize, out: &mut Out<'_>) {
        let device = self.guest.device;
        for _ in 0..count {
            let n = self.guest.sockets.len();
            if n == 0 {
                return;
            }
            self.guest.sweep_at = (self.guest.sweep_at + 1) % n;
            let id = self.guest.sweep_at as u32;
            let Some(cell) = device.cell(id) else { return };
            let live = self.guest.live;
            let queued = self.guest.is_queued(id);
            let Some(s) = self.guest.socket_mut(id) else { return };
            if !matches!(s.state(), State::Open | State::Dead) || queued {
                s.suspect_since = 0;
                continue;
            }
            for (w, live) in cell.holders.iter().zip(live) {
                if w.load(Ordering::Relaxed) & !live != 0 {
                    w.fetch_and(live, Ordering::SeqCst);
                }
            }
            if !cell.is_unheld() {
                s.suspect_since = 0;
            } else if s.suspect_since == 0 {
                s.suspect_since = out.round;
            } else if out.round.wrapping_sub(s.suspect_since) > SUSPICION {
                self.close_if_unheld(id, out);
            }
        }
    }
}
