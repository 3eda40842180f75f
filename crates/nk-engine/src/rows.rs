//! Rows and queue sets of a guest: taken, adopted and given back; what is pushed on a queue set, and its doorbell.

use nk_device::grant::GRANT_SLOTS;
use nk_device::qset::{JOB_SLOTS, SEND_SLOTS};
use nk_device::ring::{Consumer, Producer};
use nk_device::sync::{Ordering, fence};
use nk_device::{Nqe, Op};

use crate::guest::{Guest, QueueSet, Row};
use crate::nsm::Nsm;
use crate::out::Out;
use crate::{ControlError, NewRow};

/// Positions wrap: one that was read long ago must not come to look like one that is still to be read.
fn within_reach(rung_for: u32, tail: u32) -> u32 {
    const REACH: u32 = 1 << 30;
    if tail.wrapping_sub(rung_for) > REACH { tail.wrapping_sub(REACH) } else { rung_for }
}

impl Guest {
    /// Whether any process is left (or the VM).
    pub(crate) fn has_rows(&self) -> bool {
        self.rows.iter().any(|r| r.in_use)
    }

    pub(crate) fn is_live(&self, row: u16) -> bool {
        self.rows.get(usize::from(row)).is_some_and(|r| r.in_use)
    }

    fn set_live(&mut self, row: u16, live: bool) {
        if let Some(w) = self.live.get_mut(usize::from(row) / 64) {
            let bit = 1u64 << (row % 64);
            if live {
                *w |= bit;
            } else {
                *w &= !bit;
            }
        }
    }

    /// Makes row `wanted`, or any free one.
    pub(crate) fn add_row(
        &mut self,
        nsm: &mut Nsm,
        wanted: Option<u16>,
        pid: u32,
    ) -> Result<NewRow, ControlError> {
        let processes = self.rows.iter().skip(1).filter(|r| r.in_use).count();
        if wanted.is_none() && processes >= self.limits.rows_max as usize {
            return Err(ControlError::Row);
        }
        let row = match wanted {
            Some(row) => row,
            None => self.rows_free.pop_front().ok_or(ControlError::Row)?,
        };
        let qset = match self.take_qset(row) {
            Ok(q) => q,
            Err(e) => {
                if wanted.is_none() {
                    self.rows_free.push_front(row);
                }
                return Err(e);
            }
        };
        let device = self.device;
        let shared = device.row(row).ok_or(ControlError::Row)?;
        shared.reset();
        shared.pid.store(pid, Ordering::Relaxed);
        shared.qset.store(u32::from(qset), Ordering::Relaxed);
        let r = self.rows.get_mut(usize::from(row)).ok_or(ControlError::Row)?;
        *r = Row { in_use: true, pid, qset, ..Row::default() };
        self.set_live(row, true);
        shared.in_use.store(1, Ordering::SeqCst);
        self.top_up_row(row);
        nsm.push(&Nqe { qset, op_data: u64::from(row), ..self.nqe(Op::RowLive, 0, 0) });
        Ok(NewRow { row, qset })
    }

    /// Takes the row over from another engine, as its process left it.
    pub(crate) fn adopt_row(&mut self, row: u16, pid: u32, qsets: &[u16]) -> bool {
        let device = self.device;
        let (Some(shared), Some(&qset)) = (device.row(row), qsets.first()) else { return false };
        let Some(r) = self.rows.get_mut(usize::from(row)) else { return false };
        if r.in_use || (row == 0 && !self.vm) {
            return false;
        }
        *r = Row { in_use: true, pid, qset, ..Row::default() };
        let tail = shared.id_grants.tail.load(Ordering::Acquire);
        r.grant_tail = tail;
        if tail.wrapping_sub(shared.id_grants.head.load(Ordering::Acquire)) > GRANT_SLOTS as u32 {
            shared.id_grants.tail.store(0, Ordering::SeqCst);
            shared.id_grants.head.store(0, Ordering::SeqCst);
            r.grant_tail = 0;
        }
        self.rows_free.retain(|f| *f != row);
        self.set_live(row, true);
        shared.in_use.store(1, Ordering::SeqCst);
        shared.pid.store(pid, Ordering::Relaxed);
        shared.qset.store(u32::from(qset), Ordering::Relaxed);
        for &q in qsets {
            let Some(qs) = device.qset(q) else { continue };
            let Some(state) = self.qset_slot(q).filter(|s| !s.in_use) else { continue };
            let job = Consumer::at(qs.job_head.load(Ordering::Acquire));
            let mut there = job;
            let stale_jobs = (0..JOB_SLOTS).take_while(|_| there.pop(&qs.job()).is_some()).count();
            // The rings go on: an element lies there once, and who pushes at this moment needs no care.
            *state = QueueSet {
                in_use: true,
                row,
                job,
                send: Consumer::at(qs.send_head.load(Ordering::Acquire)),
                completion: Producer::resume(&qs.completion()),
                receive: Producer::resume(&qs.receive()),
                rung_for: qs.receive_head.load(Ordering::Acquire),
                stale_jobs: stale_jobs as u32,
                ..QueueSet::default()
            };
            self.bell_words = self.bell_words.max(usize::from(q) / 64 + 1);
            self.qsets_free.retain(|f| *f != q);
            qs.in_use.store(1, Ordering::SeqCst);
            // Whatever was lost with the old rings: look at everything again.
            qs.overflow.fetch_add(1, Ordering::SeqCst);
        }
        true
    }

    /// Drops what stands on an adopted queue set's job and send rings: it was asked of a service that is dead too.
    pub(crate) fn drop_stale(&mut self, q: u16) {
        let device = self.device;
        let (Some(s), Some(qs)) = (self.qsets.get_mut(usize::from(q)), device.qset(q)) else {
            return;
        };
        s.stale_jobs = 0;
        for _ in 0..JOB_SLOTS {
            if s.job.pop(&qs.job()).is_none() {
                break;
            }
        }
        for _ in 0..SEND_SLOTS {
            if s.send.pop(&qs.send()).is_none() {
                break;
            }
        }
        s.job.commit(&qs.job());
        s.send.commit(&qs.send());
    }

    /// Where what is known of a queue set goes. The table is as long as the guest has need of: most have few.
    fn qset_slot(&mut self, q: u16) -> Option<&mut QueueSet> {
        let at = usize::from(q);
        if q < self.qsets_max && self.qsets.len() <= at {
            self.qsets.resize_with(at + 1, QueueSet::default);
        }
        self.qsets.get_mut(at)
    }

    pub(crate) fn take_qset(&mut self, row: u16) -> Result<u16, ControlError> {
        let q = if self.vm && row == 0 && !self.qsets.first().is_some_and(|q| q.in_use) {
            0
        } else {
            self.qsets_free.pop_front().ok_or(ControlError::Qset)?
        };
        let device = self.device;
        let shared = device.qset(q).ok_or(ControlError::Qset)?;
        let state = self.qset_slot(q).ok_or(ControlError::Qset)?;
        *state = QueueSet { in_use: true, row, ..QueueSet::default() };
        self.bell_words = self.bell_words.max(usize::from(q) / 64 + 1);
        shared.reset();
        shared.in_use.store(1, Ordering::SeqCst);
        Ok(q)
    }

    /// Frees a queue set. Watches for it are the caller's to clear.
    pub(crate) fn free_qset(&mut self, q: u16) {
        let Some(state) = self.qsets.get_mut(usize::from(q)) else { return };
        if !state.in_use {
            return;
        }
        *state = QueueSet::default();
        self.active.retain(|a| *a != q);
        self.waiting.retain(|(a, _)| *a != q);
        self.old_calls.retain(|c| c.qset != q);
        if let Some(shared) = self.device.qset(q) {
            shared.in_use.store(0, Ordering::SeqCst);
        }
        self.qsets_free.push_back(q);
    }

    /// Frees a row; its queue sets, ids and holder bits are done with.
    pub(crate) fn free_row(&mut self, row: u16) {
        self.set_live(row, false);
        self.starved.retain(|r| *r != row);
        if let Some(r) = self.rows.get_mut(usize::from(row)) {
            *r = Row::default();
        }
        if let Some(shared) = self.device.row(row) {
            shared.in_use.store(0, Ordering::SeqCst);
        }
        // The oldest free row is used first: the NSM has long heard of the death of its last process then.
        self.rows_free.push_back(row);
    }

    pub(crate) fn qsets_of(&self, row: u16) -> Vec<u16> {
        self.qsets
            .iter()
            .enumerate()
            .filter(|(_, q)| q.in_use && q.row == row)
            .map(|(i, _)| i as u16)
            .collect()
    }

    // ---- to the guest ----

    /// Puts an event on a receive ring; a full one is told by its overflow count.
    pub(crate) fn push_event(&mut self, q: u16, nqe: &Nqe) {
        let device = self.device;
        let (Some(state), Some(shared)) = (self.qsets.get_mut(usize::from(q)), device.qset(q))
        else {
            return;
        };
        if state.receive.push(&shared.receive(), &Nqe { qset: q, ..*nqe }).is_ok() {
            state.rung_for = within_reach(state.rung_for, state.receive.tail());
            self.counters.engine.to_guest.add(nqe.op, 1);
        } else {
            self.counters.engine.overflows.add(1);
            shared.overflow.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Whether the queue set sleeps and was not rung in this poll, nor for this sleep; a SeqCst fence must lie between the push and this.
    pub(crate) fn wants_bell(&self, q: u16, out: &Out<'_>) -> bool {
        let state = self.qsets.get(usize::from(q)).filter(|s| s.in_use && s.rung_in != out.round);
        state
            .zip(self.device.qset(q))
            .is_some_and(|(s, shared)| shared.wants_doorbell(s.rung_sleep))
    }

    /// Whether the queue set was rung and has not yet read what it was rung for: it is on its way, or its process is stopped. Either
    /// way it will read what is pushed now. For a fence as with [`Guest::wants_bell`].
    pub(crate) fn is_roused(&self, q: u16) -> bool {
        let state = self.qsets.get(usize::from(q));
        state.zip(self.device.qset(q)).is_some_and(|(s, shared)| {
            let head = shared.receive_head.load(Ordering::SeqCst);
            (s.rung_for.wrapping_sub(head) as i32) > 0
        })
    }

    /// Rings the doorbell (at the end of the poll).
    pub(crate) fn ring(&mut self, q: u16, out: &mut Out<'_>) {
        if let Some(s) = self.qsets.get_mut(usize::from(q)) {
            s.rung_in = out.round;
            s.rung_for = s.receive.tail();
            // Of a sleep that begins here too: the doorbell is still to be rung.
            s.rung_sleep = self.device.qset(q).map_or(0, |q| q.sleeping.load(Ordering::SeqCst));
            out.bells.push((self.id, q));
        }
    }

    /// Answers a synchronous call.
    pub(crate) fn reply(&mut self, q: u16, nqe: &Nqe, out: &mut Out<'_>) {
        let device = self.device;
        let (Some(state), Some(shared)) = (self.qsets.get_mut(usize::from(q)), device.qset(q))
        else {
            return;
        };
        if !state.in_use {
            return;
        }
        state.calls &= !(1u64 << (nqe.ticket & 63));
        self.old_calls.retain(|c| (c.qset, c.ticket) != (q, nqe.ticket));
        if state.completion.push(&shared.completion(), &Nqe { qset: q, ..*nqe }).is_ok() {
            self.counters.engine.to_guest.add(nqe.op, 1);
        } else {
            self.counters.engine.overflows.add(1);
        }
        shared.completion_wake.fetch_add(1, Ordering::SeqCst);
        out.notify.futex_wake(&shared.completion_wake, u32::MAX);
        fence(Ordering::SeqCst);
        if self.wants_bell(q, out) {
            self.ring(q, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::within_reach;

    #[test]
    fn a_bell_of_long_ago_is_no_bell_on_its_way() {
        let (rung_for, mut tail) = (7, 7u32);
        let mut kept = rung_for;
        // Far more events than a position can tell, each read at once.
        for _ in 0..64 {
            tail = tail.wrapping_add(1 << 27);
            kept = within_reach(kept, tail);
            assert!(kept.wrapping_sub(tail) as i32 <= 0, "{kept} looks unread at {tail}");
        }
        assert_eq!(within_reach(tail, tail.wrapping_add(9)), tail);
    }
}
