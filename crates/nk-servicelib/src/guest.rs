//! One guest as the service knows it: its sockets, its pool, what is leased to its rows.

use std::collections::{HashSet, VecDeque};

use nk_device::grant::GRANT_SLOTS;
use nk_device::stream::{Span, read_slot};
use nk_device::sync::{Ordering, fence};
use nk_device::{Device, Nqe, Op, STREAM_SLOTS};

use crate::limits::{Gate, GuestLimits};
use crate::pool::{Owner, Pool};
use crate::port::Port;
use crate::socket::Socket;
use crate::turns::Turns;
use crate::{GuestPool, GuestStats, Key};

/// Chunks leased to a row ahead of need, at first and at most: a process that uses most of them between two looks gets twice as many. Few where few are
/// enough: each is a page at least, once it was used.
const FIRST_CHUNKS: u32 = 16;
const ROW_CHUNKS: u32 = 128;

/// A row: one process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Row {
    live: bool,
    grant_tail: u32,
    /// Chunks that it has and did not send.
    leased: u32,
    /// Chunks that it is to have; 0 before the first look.
    target: u32,
}

#[derive(Debug)]
pub(crate) struct Guest<T> {
    pub(crate) id: u16,
    pub(crate) device: Device,
    pub(crate) namespace: u64,
    pub(crate) pool: Pool,
    rows: Vec<Row>,
    pub(crate) sockets: Vec<Option<Box<Socket<T>>>>,
    /// Ids for accepted sockets.
    pub(crate) ids: VecDeque<(u32, u16)>,
    /// Listeners that wait for ids.
    pub(crate) id_starved: Vec<Key>,
    /// It is on the service's list of those that got chunks back.
    pub(crate) in_recovery: bool,
    /// Rows that wait for chunks.
    wanting: Vec<u16>,
    /// Sockets that wait for chunks to receive into.
    pub(crate) pool_starved: Vec<Key>,
    /// When late chunks were last looked at, and whether a timer will.
    settled_ms: u64,
    pub(crate) settles: bool,
    /// Sockets with received chunks that may have been read.
    reap: VecDeque<u32>,
    /// Bytes out and in.
    pub(crate) out: Gate,
    pub(crate) input: Gate,
    pub(crate) turns: Turns,
    pub(crate) stats: GuestStats,
}

impl<T> Guest<T> {
    pub(crate) fn new(p: GuestPool) -> Guest<T> {
        let layout = p.device.layout();
        let pool = p.pool.start.min(layout.chunks)..p.pool.end.min(layout.chunks);
        Guest {
            id: p.guest,
            device: p.device,
            namespace: p.namespace,
            pool: Pool::new(pool),
            rows: vec![Row::default(); layout.rows as usize],
            sockets: Vec::new(),
            ids: VecDeque::new(),
            id_starved: Vec::new(),
            in_recovery: false,
            wanting: Vec::new(),
            pool_starved: Vec::new(),
            settled_ms: 0,
            settles: false,
            reap: VecDeque::new(),
            out: Gate::default(),
            input: Gate::default(),
            turns: Turns::default(),
            stats: GuestStats::default(),
        }
    }

    pub(crate) fn snapshot(&self) -> GuestStats {
        let mut s = self.stats;
        for socket in self.sockets.iter().flatten() {
            s.sockets += 1;
            s.orphans += u64::from(socket.closing);
        }
        s.chunks_free = u64::from(self.pool.available());
        s.chunks_leased = u64::from(self.pool.leased);
        s.chunks_tx = u64::from(self.pool.tx);
        s.chunks_rx = u64::from(self.pool.rx);
        (s.out_held, s.out_held_ms) = (self.out.held, self.out.held_ms());
        (s.in_held, s.in_held_ms) = (self.input.held, self.input.held_ms());
        s
    }

    pub(crate) fn set_limits(&mut self, limits: &GuestLimits) {
        self.out.set(limits.out);
        self.input.set(limits.input);
        self.pool.set_limit(limits.chunks_max);
        self.turns.weight = limits.weight.max(1);
    }

    /// Takes a socket out of the table while it is worked on.
    pub(crate) fn take(&mut self, key: Key) -> Option<Box<Socket<T>>> {
        let slot = self.sockets.get_mut(key.socket as usize)?;
        if slot.as_ref().is_none_or(|s| s.generation != key.generation) {
            return None;
        }
        slot.take()
    }

    pub(crate) fn put(&mut self, id: u32, socket: Box<Socket<T>>) {
        let at = id as usize;
        if id >= self.device.layout().cells {
            return;
        }
        if self.sockets.len() <= at {
            self.sockets.resize_with(at + 1, || None);
        }
        if let Some(slot) = self.sockets.get_mut(at) {
            *slot = Some(socket);
        }
    }

    // ---- chunks for sending ----

    /// A row has a process. `follow`: it lived before under another service, and so many more of these are told of next. None is leased
    /// anything new before all are known: what stands on the grants of one must not be leased to another.
    pub(crate) fn row_live(&mut self, row: u16, follow: Option<u32>, port: &mut Port) {
        let device = self.device;
        let (Some(r), Some(shared)) = (self.rows.get_mut(usize::from(row)), device.row(row)) else {
            return;
        };
        *r = Row { live: true, ..Row::default() };
        let Some(follow) = follow else {
            shared.chunk_grants.tail.store(0, Ordering::SeqCst);
            return self.top_up(row, false, port);
        };
        self.adopt_leases(row, shared);
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
                self.tell_granted(row, port);
            }
        }
    }

    /// Rows that have a process.
    pub(crate) fn live_rows(&self) -> impl Iterator<Item = u16> {
        self.rows.iter().zip(0..).filter(|(r, _)| r.live).map(|(_, row)| row)
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
            if self.pool.adopt_lease(chunk, row, index) {
                r.leased += 1;
            }
            index = index.wrapping_add(1);
        }
    }

    /// What a row may have: less when the pool is short, so that all get some.
    fn share(&self) -> u32 {
        let total = self.pool.total();
        match self.pool.leasable() {
            n if n > total / 4 => ROW_CHUNKS,
            n if n > total / 8 => ROW_CHUNKS / 2,
            n if n > total / 32 => 4,
            _ => 2,
        }
    }

    /// Tops up a row's chunks when it has used half. `asked`: its process ran out and waits.
    pub(crate) fn top_up(&mut self, row: u16, asked: bool, port: &mut Port) {
        let device = self.device;
        if asked && self.pool.leasable() == 0 {
            self.take_back(row);
        }
        let share = self.share();
        let (Some(r), Some(shared)) = (self.rows.get_mut(usize::from(row)), device.row(row)) else {
            return;
        };
        r.target = match r.target {
            0 => FIRST_CHUNKS,
            n if r.leased <= n / 4 => (n * 2).min(ROW_CHUNKS),
            n => n,
        };
        let share = share.min(r.target);
        if !r.live || (!asked && r.leased > share / 2) {
            return;
        }
        let mut added = 0;
        // What was popped and not sent yet is still leased: a process with many threads in send may ask beyond its share.
        let empty = asked && shared.chunk_grants.available() == 0;
        let target = if empty { (r.leased + 2).max(share).min(ROW_CHUNKS * 2) } else { share };
        while r.leased < target {
            let Some(chunk) = self.pool.lease(row, r.grant_tail) else { break };
            if !shared.chunk_grants.push(&mut r.grant_tail, chunk) {
                self.pool.free(chunk);
                break;
            }
            r.leased += 1;
            added += 1;
        }
        if added == 0 {
            if asked && empty && !self.wanting.contains(&row) {
                self.wanting.push(row);
            }
            return;
        }
        shared.grant_wake.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if asked || shared.want.load(Ordering::SeqCst) != 0 {
            self.tell_granted(row, port);
        }
    }

    /// Chunks for a row that has none, from the row that has most: processes that were leased theirs when there were enough may
    /// not send for hours.
    fn take_back(&mut self, wanting: u16) {
        let rows = self.rows.iter().enumerate();
        let others = rows.filter(|(i, r)| r.live && r.leased > 2 && *i != usize::from(wanting));
        let mut others: Vec<(u32, usize)> = others.map(|(i, r)| (r.leased, i)).collect();
        others.sort_unstable();
        let device = self.device;
        for (leased, at) in others.into_iter().rev() {
            let (Some(r), Some(shared)) = (self.rows.get_mut(at), device.row(at as u16)) else {
                continue;
            };
            let before = r.leased;
            for _ in 0..leased / 2 {
                let Some(chunk) = shared.chunk_grants.take_back(r.grant_tail) else { break };
                if matches!(self.pool.owner(chunk), Some(Owner::Row(owner, _)) if usize::from(owner) == at)
                {
                    self.pool.free(chunk);
                    r.leased = r.leased.saturating_sub(1);
                }
            }
            if r.leased < before {
                return;
            }
        }
    }

    fn tell_granted(&self, row: u16, port: &mut Port) {
        let mut nqe = Nqe::new(Op::Granted, 0, 0);
        nqe.guest = self.id;
        nqe.op_data = u64::from(row);
        port.push(&nqe);
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
            Some(Owner::Row(row, _)) => Some(row),
            _ => None,
        }
    }

    /// A row sent a chunk of its lease.
    pub(crate) fn spent(&mut self, row: u16) {
        if let Some(r) = self.rows.get_mut(usize::from(row)) {
            r.leased = r.leased.saturating_sub(1);
        }
    }

    /// A process is dead, or (`popped_below`) another image runs in it: what it had and did not send comes back, except what a ring
    /// names already: a killed publisher may have filled a slot that a later one will publish.
    pub(crate) fn row_dead(&mut self, row: u16, popped_below: Option<u32>) {
        let lost: HashSet<u32> = self
            .pool
            .leases_of(row)
            .filter(|(_, index)| {
                popped_below.is_none_or(|head| {
                    let ahead = head.wrapping_sub(*index);
                    ahead != 0 && ahead < u32::MAX / 2
                })
            })
            .map(|(chunk, _)| chunk)
            .collect();
        if let Some(r) = self.rows.get_mut(usize::from(row)) {
            match popped_below {
                None => *r = Row::default(),
                Some(_) => r.leased = r.leased.saturating_sub(lost.len() as u32),
            }
        }
        self.wanting.retain(|w| *w != row);
        if lost.is_empty() {
            return;
        }
        let device = self.device;
        for (id, socket) in self.sockets.iter().enumerate() {
            let (Some(socket), Some(cell)) = (socket, device.cell(id as u32)) else { continue };
            // A slot that was filled and not published is published now, so that the next publisher finds nothing of the dead.
            let _ = cell.tx().help();
            let tail = cell.tx_tail.load(Ordering::Acquire);
            let mut index = socket.tx_next;
            for _ in 0..=STREAM_SLOTS {
                if let Some(span) = read_slot(&cell.tx_slots, index).and_then(Span::from_payload) {
                    if lost.contains(&span.chunk) {
                        self.pool.orphan(span.chunk, row);
                    }
                    let header = socket.datagram.as_ref().and(device.header_of(span.chunk));
                    for chunk in header.iter().filter_map(|h| h.chunks_of(span)).flatten() {
                        if lost.contains(chunk) {
                            self.pool.orphan(*chunk, row);
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
            if matches!(self.pool.owner(chunk), Some(Owner::Row(..))) {
                self.pool.free(chunk);
            }
        }
    }

    /// Chunks that were sent while somebody wrote into them come back once no process says that it still does. Looks at every row, so not
    /// more than once in a millisecond.
    pub(crate) fn settle(&mut self, now_ms: u64) {
        if self.pool.has_late() && core::mem::replace(&mut self.settled_ms, now_ms) != now_ms {
            let rows = self.rows.iter().enumerate().filter(|(_, r)| r.live);
            let written: HashSet<u32> =
                rows.filter_map(|(i, _)| self.device.row(i as u16)?.appended_chunk()).collect();
            self.pool.settle(|chunk| written.contains(&chunk));
        }
    }

    // ---- received chunks ----

    /// Frees what was read of a socket: as far as the guest's position says, which is checked against what is there.
    pub(crate) fn free_read(&mut self, id: u32, socket: &mut Socket<T>) {
        let Some(cell) = self.device.cell(id) else { return };
        let read = cell.position().index.wrapping_sub(socket.rx_freed);
        if read as usize > socket.rx.len() {
            // Nonsense: the guest keeps itself from reading on.
            return;
        }
        for _ in 0..read {
            if let Some(chunk) = socket.rx.pop_front() {
                self.pool.free(chunk);
            }
            if let Some(d) = &mut socket.datagram {
                for chunk in d.take_more(socket.rx_freed) {
                    self.pool.free(chunk);
                }
            }
            socket.rx_freed = socket.rx_freed.wrapping_add(1);
        }
    }

    /// The socket has received chunks: look at it now and then.
    pub(crate) fn enter_reap(&mut self, id: u32, socket: &mut Socket<T>) {
        if !socket.in_reap {
            socket.in_reap = true;
            self.reap.push_back(id);
        }
    }

    /// Looks at a few sockets with received chunks, oldest first.
    pub(crate) fn reap(&mut self, count: usize) {
        for _ in 0..count.min(self.reap.len()) {
            let Some(id) = self.reap.pop_front() else { return };
            let Some(slot) = self.sockets.get_mut(id as usize) else { continue };
            // The one being worked on frees its own.
            let Some(mut socket) = slot.take() else {
                self.reap.push_back(id);
                continue;
            };
            if socket.in_reap && !socket.closing {
                self.free_read(id, &mut socket);
                if socket.rx.is_empty() {
                    socket.in_reap = false;
                } else {
                    self.reap.push_back(id);
                }
            }
            self.put(id, socket);
        }
    }

    /// Forgets a socket that is closed.
    pub(crate) fn leave_reap(&mut self, id: u32, socket: &Socket<T>) {
        if socket.in_reap {
            self.reap.retain(|r| *r != id);
        }
    }

    /// Sockets with received chunks, without the one that is worked on.
    pub(crate) fn holders_of_rx(&self) -> Vec<Key> {
        let key = |id: &u32| {
            let socket = self.sockets.get(*id as usize)?.as_ref()?;
            Some(Key { guest: self.id, socket: *id, generation: socket.generation })
        };
        self.reap.iter().filter_map(key).collect()
    }
}
