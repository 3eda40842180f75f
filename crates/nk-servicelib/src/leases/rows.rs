//! Rows come and go: what a process was leased stays its own under another service, and comes back when it is dead.

use std::collections::BTreeSet;

use nk_device::cell::SF_DEAD;
use nk_device::grant::GRANT_SLOTS;
use nk_device::stream::{Span, is_taken, read_slot};
use nk_device::sync::Ordering;
use nk_device::{Op, STREAM_SLOTS};

use super::Row;
use crate::guest::Guest;
use crate::pool::{Lease, Owner};
use crate::port::Port;

impl<T> Guest<T> {
    /// A row has a process. `follow`: it lived before under another service, and so many more of these are told of next. None is leased
    /// anything new before all are known: what stands on the grants of one must not be leased to another.
    pub(crate) fn row_live(&mut self, row: u16, follow: Option<u32>, port: &mut Port) {
        let device = self.device;
        let (Some(r), Some(shared)) = (self.rows.get_mut(usize::from(row)), device.row(row)) else {
            return;
        };
        let life = shared.generation.load(Ordering::Acquire) as u8;
        *r = Row { live: true, life, ..Row::default() };
        let Some(follow) = follow else {
            shared.chunk_grants.tail.store(0, Ordering::SeqCst);
            if let Some(ledger) = self.pool.ledger() {
                ledger.set_leased(row, 0);
                ledger.set_target(row, 0);
            }
            return self.top_up(row, false, port);
        };
        self.awaits_rows = follow > 0;
        if self.pool.ledger().is_some() {
            self.keep_leases(row, shared);
        } else {
            self.adopt_leases(row, shared);
        }
        if follow > 0 {
            return;
        }
        for row in 0..self.rows.len() as u16 {
            if !self.rows.get(usize::from(row)).is_some_and(|r| r.live) {
                continue;
            }
            self.top_up(row, false, port);
            if let Some(shared) = device.row(row) {
                // Whoever waited for chunks of the last service looks again.
                shared.grant_wake.fetch_add(1, Ordering::SeqCst);
                self.tell_of_row(Op::Granted, row, port);
            }
        }
    }

    /// What another service leased to a row, by the ledger: it is leased to it still. One that died may have leased what it did not
    /// put on the ring any more.
    fn keep_leases(&mut self, row: u16, shared: &nk_device::Row) {
        let ring = &shared.chunk_grants;
        let tail = ring.tail.load(Ordering::Acquire);
        let head = ring.head.load(Ordering::Acquire);
        let is_odd = tail.wrapping_sub(head) > GRANT_SLOTS as u32;
        if is_odd {
            ring.tail.store(0, Ordering::SeqCst);
            ring.head.store(0, Ordering::SeqCst);
        }
        let Some(r) = self.rows.get_mut(usize::from(row)) else { return };
        r.grant_tail = if is_odd { 0 } else { tail };
        let (mut kept, life) = (0, r.life);
        let its: Vec<(u32, Lease)> =
            self.pool.leases_of(row).filter(|(_, l)| l.life == life).collect();
        for (chunk, lease) in its {
            if !is_odd && lease.index.wrapping_sub(tail) < GRANT_SLOTS as u32 {
                self.pool.free(chunk);
            } else {
                kept += 1;
            }
        }
        self.set_leased(row, kept);
    }

    /// What stands on a row's grants, another service leased to it.
    fn adopt_leases(&mut self, row: u16, shared: &nk_device::Row) {
        let Some(r) = self.rows.get_mut(usize::from(row)) else { return };
        // Before the ring is read: what is popped from here on is either seen there, or kept under the old number.
        shared.lease_epoch.fetch_add(1, Ordering::SeqCst);
        let ring = &shared.chunk_grants;
        let tail = ring.tail.load(Ordering::Acquire);
        let head = ring.head.load(Ordering::Acquire);
        if tail.wrapping_sub(head) > GRANT_SLOTS as u32 {
            ring.tail.store(0, Ordering::SeqCst);
            ring.head.store(0, Ordering::SeqCst);
            return;
        }
        r.grant_tail = tail;
        let mut index = head;
        while index != tail {
            let slot = ring.slots.get(index as usize % GRANT_SLOTS);
            let chunk = slot.map_or(u32::MAX, |s| s.load(Ordering::Relaxed));
            if self.pool.adopt_lease(chunk, Lease { row, life: r.life, index }) {
                r.leased += 1;
            }
            index = index.wrapping_add(1);
        }
    }

    /// A process is dead, or (`popped_below`) another image runs in it: what it had and did not send comes back, except what a ring
    /// names already: a killed publisher may have filled a slot that a later one will publish.
    /// `sockets`: as far as there are any, this service's or another's.
    pub(crate) fn row_dead(&mut self, row: u16, popped_below: Option<u32>, sockets: u32) {
        let is_lost = |index: u32| {
            popped_below.is_none_or(|head| {
                let ahead = head.wrapping_sub(index);
                ahead != 0 && ahead < u32::MAX / 2
            })
        };
        let its = self.pool.leases_of(row).filter(|(_, lease)| is_lost(lease.index));
        let lost: BTreeSet<u32> = its.map(|(chunk, _)| chunk).collect();
        match (popped_below, self.rows.get_mut(usize::from(row))) {
            (None, Some(r)) => {
                *r = Row::default();
                self.set_leased(row, 0);
            }
            _ => self.add_leased(row, -(lost.len() as i32)),
        }
        self.wanting.retain(|w| *w != row);
        self.take_lost(&lost, sockets);
    }

    /// Every row was told of: what the ledger says to be leased to others is of processes whose end the last service did not live to
    /// hear of.
    pub(crate) fn rows_told(&mut self, sockets: u32) {
        let lives = |l: &Lease| {
            self.rows.get(usize::from(l.row)).is_some_and(|r| r.live && r.life == l.life)
        };
        let lost: BTreeSet<u32> =
            self.pool.leases().filter(|(_, l)| !lives(l)).map(|(chunk, _)| chunk).collect();
        self.take_lost(&lost, sockets);
    }

    fn take_lost(&mut self, lost: &BTreeSet<u32>, sockets: u32) {
        if lost.is_empty() {
            return;
        }
        let device = self.device;
        let is_shared = self.pool.ledger().is_some();
        let known = self.sockets.len() as u32;
        for id in 0..known.max(sockets) {
            let Some(cell) = device.cell(id) else { break };
            // Of another service's socket the cell says from where on it looks; what it has taken meanwhile is leased no more. One whose
            // service died is this one's to close, and what its ring names to be taken back then (`free_published`).
            let is_dead = cell.state.load(Ordering::Acquire) & SF_DEAD != 0;
            let (is_datagram, mut index, is_lost) =
                match self.sockets.get(id as usize).and_then(Option::as_ref) {
                    Some(s) => (s.datagram.is_some(), s.tx_next, false),
                    None if is_shared || is_dead => {
                        (cell.is_datagram(), cell.tx_head.load(Ordering::Acquire), is_dead)
                    }
                    None => continue,
                };
            // A slot that was filled and not published is published now, so that the next publisher finds nothing of the dead.
            let _ = cell.tx().help();
            let tail = cell.tx_tail.load(Ordering::Acquire);
            for _ in 0..=STREAM_SLOTS {
                let slots = &cell.tx_slots;
                // What the dead service took was free with its end: these are leases of later.
                let payload =
                    read_slot(slots, index).filter(|_| !(is_lost && is_taken(slots, index)));
                if let Some(span) = payload.and_then(Span::from_payload) {
                    if lost.contains(&span.chunk) {
                        self.pool.orphan(span.chunk);
                    }
                    let header = device.header_of(span).filter(|_| is_datagram);
                    let more = header.as_ref().and_then(|h| h.split(span));
                    for chunk in more.into_iter().flat_map(|(more, _)| more) {
                        if lost.contains(chunk) {
                            self.pool.orphan(*chunk);
                        }
                    }
                }
                if index == tail {
                    break;
                }
                index = index.wrapping_add(1);
            }
        }
        for chunk in lost {
            if matches!(self.pool.owner(*chunk), Some(Owner::Row(_))) {
                self.pool.free(*chunk);
            }
        }
    }

    /// Rows that have a process.
    pub(crate) fn live_rows(&self) -> impl Iterator<Item = u16> {
        (0u16..).zip(&self.rows).filter(|(_, r)| r.live).map(|(row, _)| row)
    }
}
