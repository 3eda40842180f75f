//! The end of rows, queue sets and sockets: whoever is told, what goes back, what nobody holds.

use nk_device::cell::{CLAIMED_BY_HOST, SF_RX_STALLED, WATCH_QSET_MASK};
use nk_device::header::QSETS_MAX;
use nk_device::nqe::OWED;
use nk_device::qset::{JOB_SLOTS, SEND_SLOTS};
use nk_device::sync::Ordering;
use nk_device::{Cell, Op};

use crate::engine::Parts;
use crate::guest::{NONE, State};
use crate::out::Out;
use crate::ports::Space;

/// Polls between two looks at a socket that nobody seems to hold, before it counts as lost.
const SUSPICION: u64 = 4096;

/// Of the sockets that share a port, what one connect looks at.
const LISTENERS_LOOKED_AT: usize = 64;

/// When an NSM is told to close a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closes {
    Now,
    /// As it takes what is costly ([`crate::costly`]): nobody waits for it.
    InTime,
}

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
impl Parts<'_> {
    pub(crate) fn row_job(&mut self, row: u16, data: u64) {
        let mut nqe = self.guest.nqe(Op::RowDead, 0, 0);
        nqe.op_data = u64::from(row);
        nqe.data = data;
        // As far as there are sockets: the rings of those that other NSMs have may name what was leased to the row.
        nqe.size = self.guest.sockets.len() as u32;
        self.nsm.push(&nqe);
    }

    /// Serves what is on a queue set's rings, a ring's length at most, and frees it.
    pub(crate) fn drop_qset(&mut self, q: u16, out: &mut Out<'_>) {
        // Room for what comes: a ring's worth goes into the backlog at worst.
        for _ in 0..JOB_SLOTS + SEND_SLOTS {
            self.nsm.flush();
            if !self.serve_dying(q, out) {
                break;
            }
        }
        self.guest.free_qset(q);
    }

    pub(crate) fn drop_qsets_of(&mut self, row: u16, out: &mut Out<'_>) -> Vec<u16> {
        let qsets = self.guest.qsets_of(row);
        for q in &qsets {
            self.drop_qset(*q, out);
        }
        qsets
    }

    /// One pass over all sockets for a row whose queue sets went: their watches go; with `dead` also its holder bits, and what it
    /// had begun is taken up by others. What it may have promised and not done (a kick, room) is done for it.
    pub(crate) fn clear_row(&mut self, row: u16, qsets: &[u16], dead: bool, out: &mut Out<'_>) {
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
                if !self.guest.is_queued(id) {
                    self.close(id, false, Closes::InTime, out);
                }
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
        let mut nqe = self.guest.nqe(op, id, generation);
        nqe.op_data = u64::from(row);
        self.nsm_of(id).push(&nqe);
    }

    /// Ids that a dead process was granted come back; with `popped_below` only what an exec'ed image had popped. One that
    /// somebody holds already is a socket whose making was cut short.
    pub(crate) fn reclaim_ids(&mut self, row: u16, popped_below: Option<u32>) {
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
    pub(crate) fn close_abandoned(&mut self, out: &mut Out<'_>) {
        for id in 0..self.guest.sockets.len() as u32 {
            let Some(s) = self.guest.socket(id) else { break };
            if s.host_holds == 0 && matches!(s.state(), State::Open | State::Dead) {
                self.close(id, false, Closes::InTime, out);
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

    /// Before somebody connects to a port: closes the guest's listeners there that nobody holds any more. Whose close has returned may have
    /// told so to who connects, and the two are on queue sets of which the later may be read first.
    pub(crate) fn close_unheld_listeners(&mut self, port: u16, out: &mut Out<'_>) {
        let g = &*self.guest;
        let is_left = |id: &u32| {
            g.socket(*id).is_some_and(|s| s.listener.is_some())
                && g.cell(*id).is_some_and(Cell::is_unheld)
        };
        let space = Space { namespace: g.namespace, datagram: false };
        let bound = self.ports.bound(space, g.id, port).take(LISTENERS_LOOKED_AT);
        let left: Vec<u32> = bound.filter(is_left).collect();
        for id in left {
            self.close_if_unheld(id, out);
        }
    }

    /// Hands a socket to the NSM to end (with a reset, if `abort`); a listener's queued sockets go with it.
    pub(crate) fn close_now(&mut self, id: u32, abort: bool, out: &mut Out<'_>) {
        self.close(id, abort, Closes::Now, out);
    }

    fn close(&mut self, id: u32, abort: bool, when: Closes, out: &mut Out<'_>) {
        let present = self.guest.nsm;
        let Some(s) = self.guest.socket_mut(id) else { return };
        let is_owed = s.is_owed;
        let on_stack = s.state() == State::Open || is_owed;
        if is_owed {
            s.nsm = present;
        }
        let generation = s.generation;
        s.parent = NONE;
        let is_listener = s.listener.is_some();
        if is_listener {
            self.end_queued(id, when, out);
        }
        if on_stack && self.nsm_of(id).up {
            self.guest.set_state(id, State::Closing);
            let mut nqe = self.guest.nqe(Op::Close, id, generation);
            nqe.op_data = u64::from(abort);
            nqe.data = if is_owed { OWED } else { 0 };
            match when {
                // Its port is to be free, and who connects there refused.
                _ if is_listener => self.nsm_of(id).push(&nqe),
                Closes::Now => self.nsm_of(id).push(&nqe),
                Closes::InTime => self.nsm_of(id).close_in_time(&nqe),
            }
        } else if is_owed && self.guest.is_split() {
            // The present NSM is dead, and others know the leases: the next one is told (`end_closing`), or, if these leave before it
            // comes, nobody (`forget_owed`).
            self.guest.set_state(id, State::Closing);
        } else {
            self.forget(id, out);
        }
    }

    /// Nobody accepts what waits on a listener's ring any more: the NSMs that have it end it with a reset.
    fn end_queued(&mut self, listener: u32, when: Closes, out: &mut Out<'_>) {
        self.guest.sweep_queue(listener);
        let queued = self
            .guest
            .socket_mut(listener)
            .and_then(|s| s.listener.as_mut())
            .map(|l| core::mem::take(&mut l.queued))
            .unwrap_or_default();
        for (child, _) in queued {
            // Its id may be another's by now.
            let Some(c) = self.guest.socket_mut(child).filter(|c| c.parent == listener) else {
                continue;
            };
            c.parent = NONE;
            let (generation, lives) =
                (c.generation, matches!(c.state(), State::Open | State::Dead));
            // Whoever claims first has it: the host, to end it, or a process that is in accept just now.
            let ours = self.guest.cell(child).is_some_and(|c| c.claim(generation, CLAIMED_BY_HOST));
            if ours && lives {
                self.close(child, true, when, out);
            }
        }
    }

    /// As [`Parts::end_queued`], of a listener that is, or was, an NSM's that died.
    pub(crate) fn lose_queued(&mut self, listener: u32, out: &mut Out<'_>) {
        self.end_queued(listener, Closes::InTime, out);
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
            // Who claimed it and lives may be between the claim and the hold, for as long as it is stopped there.
            let is_live = |row: u16| {
                live.get(usize::from(row) / 64).is_some_and(|w| w & (1 << (row % 64)) != 0)
            };
            if !cell.is_unheld() || cell.claimed_by(s.generation).is_some_and(is_live) {
                s.suspect_since = 0;
            } else if s.suspect_since == 0 {
                s.suspect_since = out.round;
            } else if out.round.wrapping_sub(s.suspect_since) > SUSPICION {
                self.close_if_unheld(id, out);
            }
        }
    }
}
