//! What is leased to a guest's rows: chunks for sending, ahead of need. Of several services that a guest has one leases. `rows`: what becomes of
//! that when a process comes and goes.

mod rows;

use std::collections::HashSet;

use nk_device::sync::{Ordering, fence};
use nk_device::{Ledger, Nqe, Op};

use crate::guest::Guest;
use crate::pool::{Lease, Owner};
use crate::port::Port;

/// Chunks leased to a row ahead of need, at first and at most: a process that has taken most of them off its ring when it is given more gets twice as
/// many, since it runs out of them while the service looks at what it sent. Few where few are enough: each is a page at least, once it was used.
const FIRST_CHUNKS: u32 = 16;
const ROW_CHUNKS: u32 = 128;
/// And while sockets are braked: what a row has beyond that comes back, or those that hold nothing yet would take all that is left at once.
const BRAKED_CHUNKS: u32 = 4;

/// A row: one process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Row {
    live: bool,
    /// Which process: its leases are none of the one before it.
    life: u8,
    grant_tail: u32,
    /// Chunks that it has and did not send; where there is a ledger, that says it.
    leased: u32,
    /// Chunks that it is to have; 0 before the first look.
    target: u32,
    /// The service that leases was told that it has few.
    is_low_told: bool,
}

impl<T> Guest<T> {
    // ---- one service, or several ----

    /// Another service leases to the guest's rows from now on, and accepts its connections.
    pub(crate) fn leave(&mut self, ledger: Ledger) {
        if self.pool.ledger().is_none() {
            self.pool.begin_ledger(ledger);
            for (row, r) in (0u16..).zip(&self.rows) {
                ledger.set_leased(row, r.leased);
                ledger.set_target(row, r.target);
            }
        }
        self.leases = false;
        self.forget_rows();
    }

    /// This one leases to the guest's rows: it will be told of each.
    pub(crate) fn enter(&mut self) {
        self.leases = true;
        self.forget_rows();
    }

    fn forget_rows(&mut self) {
        self.rows.fill(Row::default());
        self.awaits_rows = false;
        self.wanting.clear();
        self.ids.clear();
        self.id_starved.clear();
    }

    /// No other service has anything of the guest any more.
    pub(crate) fn be_alone(&mut self) {
        let Some(ledger) = self.pool.ledger() else { return };
        for (row, r) in (0u16..).zip(&mut self.rows) {
            (r.leased, r.target) = (ledger.leased(row), ledger.target(row));
        }
        let written = self.written();
        let held: HashSet<u32> = self.sockets.iter().flatten().flat_map(|s| s.received()).collect();
        self.pool.end_ledger(|chunk| written.contains(&chunk), |chunk| held.contains(&chunk));
    }

    /// Chunks that a row has and did not send.
    fn leased(&self, row: u16) -> u32 {
        match self.pool.ledger() {
            Some(ledger) => ledger.leased(row),
            None => self.rows.get(usize::from(row)).map_or(0, |r| r.leased),
        }
    }

    fn set_leased(&mut self, row: u16, n: u32) {
        if let Some(ledger) = self.pool.ledger() {
            ledger.set_leased(row, n);
        } else if let Some(r) = self.rows.get_mut(usize::from(row)) {
            r.leased = n;
        }
    }

    fn add_leased(&mut self, row: u16, n: i32) {
        if let Some(ledger) = self.pool.ledger() {
            ledger.add_leased(row, n);
        } else if let Some(r) = self.rows.get_mut(usize::from(row)) {
            r.leased = r.leased.saturating_add_signed(n);
        }
    }

    /// How many chunks a row is to have: more, for who leases, when few are left on its ring.
    fn target(&mut self, row: u16) -> u32 {
        let (ledger, leased) = (self.pool.ledger(), self.leased(row));
        let device = self.device;
        let Some(r) = self.rows.get_mut(usize::from(row)) else { return 0 };
        let before = ledger.map_or(r.target, |l| l.target(row));
        // A line that the guest writes: read only where something may come of it.
        let has_few = |n: u32| {
            leased <= n / 2 && device.row(row).is_some_and(|s| s.chunk_grants.available() <= n / 4)
        };
        let target = match before {
            0 => FIRST_CHUNKS,
            n if n < ROW_CHUNKS && has_few(n) => (n * 2).min(ROW_CHUNKS),
            n => n.min(ROW_CHUNKS),
        };
        if !self.leases {
            return before.clamp(FIRST_CHUNKS, ROW_CHUNKS);
        }
        r.target = target;
        if let Some(ledger) = ledger {
            ledger.set_target(row, target);
        }
        target
    }

    // ---- leasing ----

    /// What a row may have: less when the pool is short, so that all get some.
    fn share(&self) -> u32 {
        let total = self.pool.total();
        let most = (total / 8).clamp(BRAKED_CHUNKS, ROW_CHUNKS);
        match self.pool.leasable() {
            n if n <= total / 32 => 2,
            n if n <= total / 8 || self.braking => BRAKED_CHUNKS,
            n if n <= total / 4 => most / 2,
            _ => most,
        }
    }

    /// Tops up a row's chunks when it has used half. `asked`: its process ran out and waits.
    pub(crate) fn top_up(&mut self, row: u16, asked: bool, port: &mut Port) {
        let device = self.device;
        self.look_due |= !self.braking && self.pool.is_short(false);
        if !self.leases {
            return self.tell_if_low(row, port);
        }
        if asked && self.pool.leasable() == 0 {
            self.take_back(row);
        }
        let share = self.share().min(self.target(row));
        let mut leased = self.leased(row);
        let (Some(r), Some(shared)) = (self.rows.get_mut(usize::from(row)), device.row(row)) else {
            return;
        };
        if !r.live || (!asked && leased > share / 2) {
            return;
        }
        let mut added = 0;
        // What was popped and not sent yet is still leased: a process with many threads in send may ask beyond its share.
        let empty = asked && shared.chunk_grants.available() == 0;
        self.look_due |= empty && leased >= share;
        let target = if empty { (leased + 2).max(share).min(ROW_CHUNKS * 2) } else { share };
        while leased < target {
            let lease = Lease { row, life: r.life, index: r.grant_tail };
            let Some(chunk) = self.pool.lease(lease) else { break };
            if !shared.chunk_grants.push(&mut r.grant_tail, chunk) {
                self.pool.free(chunk);
                break;
            }
            leased += 1;
            added += 1;
        }
        self.add_leased(row, added);
        if added == 0 {
            if asked && empty && !self.wanting.contains(&row) {
                self.wanting.push(row);
            }
            return;
        }
        self.wanting.retain(|w| *w != row);
        shared.grant_wake.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if asked || shared.want.load(Ordering::SeqCst) != 0 {
            self.tell_of_row(Op::Granted, row, port);
        }
    }

    /// Another service leases: it hears of a row once, when the row has used half.
    fn tell_if_low(&mut self, row: u16, port: &mut Port) {
        let share = self.share().min(self.target(row));
        let is_low = self.leased(row) <= share / 2;
        let Some(r) = self.rows.get_mut(usize::from(row)) else { return };
        let was_told = core::mem::replace(&mut r.is_low_told, is_low);
        if is_low && !was_told {
            self.tell_of_row(Op::LowChunks, row, port);
        }
    }

    /// Chunks for a row that has none, from the row that has most: processes that were leased theirs when there were enough may
    /// not send for hours.
    fn take_back(&mut self, wanting: u16) {
        let rows = (0u16..).zip(&self.rows).filter(|(i, r)| r.live && *i != wanting);
        let rows = rows.map(|(i, _)| (self.leased(i), i)).filter(|(leased, _)| *leased > 2);
        let mut others: Vec<(u32, u16)> = rows.collect();
        others.sort_unstable();
        for (leased, at) in others.into_iter().rev() {
            if self.take_from(at, leased / 2) > 0 {
                return;
            }
        }
    }

    /// Takes so many chunks off a row's grants, or as many as are there.
    fn take_from(&mut self, row: u16, count: u32) -> i32 {
        let device = self.device;
        let (Some(r), Some(shared)) = (self.rows.get(usize::from(row)), device.row(row)) else {
            return 0;
        };
        let (tail, mut taken) = (r.grant_tail, 0);
        for _ in 0..count {
            let Some(chunk) = shared.chunk_grants.take_back(tail) else { break };
            if matches!(self.pool.owner(chunk), Some(Owner::Row(lease)) if lease.row == row) {
                self.pool.free(chunk);
                taken += 1;
            }
        }
        self.add_leased(row, -taken);
        taken
    }

    /// Sockets are braked from now on: rows keep few chunks.
    pub(crate) fn take_back_all(&mut self) {
        if !self.leases {
            return;
        }
        let rows: Vec<u16> = self.live_rows().collect();
        for row in rows {
            self.take_from(row, self.leased(row).saturating_sub(BRAKED_CHUNKS));
        }
    }

    fn tell_of_row(&self, op: Op, row: u16, port: &mut Port) {
        port.push(&Nqe { guest: self.id, op_data: u64::from(row), ..Nqe::new(op, 0, 0) });
    }

    /// Rows that wait, after chunks were freed.
    pub(crate) fn serve_wanting(&mut self, port: &mut Port) {
        for row in core::mem::take(&mut self.wanting) {
            self.top_up(row, true, port);
        }
    }

    /// The row that a chunk is leased to.
    pub(crate) fn row_of(&self, chunk: u32) -> Option<u16> {
        match self.pool.owner(chunk) {
            Some(Owner::Row(lease)) => Some(lease.row),
            _ => None,
        }
    }

    /// Takes a chunk that a descriptor of the guest's names ([`crate::pool::Pool::begin_tx`]): the row that had it has one less.
    pub(crate) fn begin_tx(&mut self, chunk: u32) -> Option<Option<u16>> {
        let row = self.pool.begin_tx(chunk)?;
        if let Some(row) = row {
            self.add_leased(row, -1);
        }
        Some(row)
    }

    // ---- chunks that somebody may still write into ----

    /// Chunks into which processes say that they write. A service that leases knows which live; another asks the engine's words.
    fn written(&self) -> HashSet<u32> {
        let lives = |row: u16, shared: &nk_device::Row| match self.rows.get(usize::from(row)) {
            Some(r) if self.leases => r.live,
            _ => shared.in_use.load(Ordering::SeqCst) != 0,
        };
        let rows = (0..self.rows.len() as u16).filter_map(|row| {
            self.device.row(row).filter(|shared| lives(row, shared))?.appended_chunk()
        });
        rows.collect()
    }

    /// Chunks that were sent while somebody wrote into them come back once no process says that it still does. Looks at every row, so not
    /// more than once in a millisecond.
    pub(crate) fn settle(&mut self, now_ms: u64) {
        if self.pool.has_late() && core::mem::replace(&mut self.settled_ms, now_ms) != now_ms {
            let written = self.written();
            self.pool.settle(|chunk| written.contains(&chunk));
        }
    }
}
