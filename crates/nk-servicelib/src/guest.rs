//! One guest as the service knows it: its sockets, its pool, what it has received.

use std::collections::{HashMap, VecDeque};

use nk_device::counters::HeldCounters;
use nk_device::{Device, SharedCounters};

use crate::leases::Row;
use crate::limits::{Gate, GuestLimits};
use crate::pool::Pool;
use crate::socket::Socket;
use crate::turns::Turns;
use crate::{GuestPool, GuestStats, Key, SetOption};

#[derive(Debug)]
pub(crate) struct Guest<T> {
    pub(crate) id: u16,
    pub(crate) device: Device,
    pub(crate) namespace: u64,
    pub(crate) pool: Pool,
    pub(crate) rows: Vec<Row>,
    /// It leases chunks to the guest's rows. Of several services that the guest has one does.
    pub(crate) leases: bool,
    /// Of the rows that were there before this service it was told of some, and not yet of all.
    pub(crate) awaits_rows: bool,
    pub(crate) sockets: Vec<Option<Box<Socket<T>>>>,
    /// Ids for accepted sockets.
    pub(crate) ids: VecDeque<(u32, u16)>,
    /// Listeners that wait for ids.
    pub(crate) id_starved: Vec<Key>,
    /// It is on the service's list of those that got chunks back.
    pub(crate) in_recovery: bool,
    /// Rows that wait for chunks.
    pub(crate) wanting: Vec<u16>,
    /// The pool is short, and sockets that hold some of it send nothing more.
    pub(crate) braking: bool,
    /// Sockets that could not send what they had published, and may have published more.
    pub(crate) blocked: VecDeque<Key>,
    /// Sockets that were braked since the brake is on.
    pub(crate) braked: VecDeque<Key>,
    /// The blocked ones are to be looked at.
    pub(crate) look_due: bool,
    /// Sockets that wait for chunks to receive into.
    pub(crate) pool_starved: Vec<Key>,
    /// When late chunks were last looked at, and whether a timer will.
    pub(crate) settled_ms: u64,
    pub(crate) settles: bool,
    /// Sockets with received chunks that may have been read.
    reap: VecDeque<u32>,
    /// Bytes out and in.
    pub(crate) out: Gate,
    pub(crate) input: Gate,
    pub(crate) turns: Turns,
    /// By [`Key::to_word`]: what datagram sockets that are still to be renewed had been set to.
    pub(crate) kept_options: HashMap<u64, Vec<SetOption>>,
    pub(crate) counters: SharedCounters,
}

impl<T> Guest<T> {
    pub(crate) fn new(p: GuestPool) -> Guest<T> {
        let layout = p.device.layout();
        let pool = p.pool.start.min(layout.chunks)..p.pool.end.min(layout.chunks);
        Guest {
            id: p.guest,
            device: p.device,
            namespace: p.namespace,
            pool: Pool::new(pool, p.ledger),
            rows: vec![Row::default(); layout.rows as usize],
            leases: true,
            awaits_rows: false,
            sockets: Vec::new(),
            ids: VecDeque::new(),
            id_starved: Vec::new(),
            in_recovery: false,
            wanting: Vec::new(),
            braking: false,
            blocked: VecDeque::new(),
            braked: VecDeque::new(),
            look_due: false,
            pool_starved: Vec::new(),
            settled_ms: 0,
            settles: false,
            reap: VecDeque::new(),
            out: Gate::default(),
            input: Gate::default(),
            turns: Turns::default(),
            kept_options: HashMap::new(),
            counters: p.counters,
        }
    }

    pub(crate) fn snapshot(&self) -> GuestStats {
        let c = &self.counters.service;
        let ms = |held: &HeldCounters| held.ns.get() / 1_000_000;
        let mut s = GuestStats {
            bytes_sent: c.bytes_sent.get(),
            bytes_received: c.bytes_received.get(),
            violations: c.violations.get(),
            accept_failures: c.accept_failures.get(),
            datagrams_refused: c.datagrams_refused.get(),
            datagrams_dropped: c.datagrams_dropped.get(),
            out_held: c.out.times.get(),
            out_held_ms: ms(&c.out),
            in_held: c.input.times.get(),
            in_held_ms: ms(&c.input),
            ..GuestStats::default()
        };
        for socket in self.sockets.iter().flatten() {
            s.sockets += 1;
            s.orphans += u64::from(socket.closing);
        }
        s.chunks_free = u64::from(self.pool.available());
        [s.chunks_leased, s.chunks_tx, s.chunks_rx] = self.pool.counts().map(u64::from);
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

    /// The guest's rate lets nothing be sent now: the socket has a turn when it does.
    pub(crate) fn wait_out(&mut self, key: Key, s: &mut Socket<T>) {
        s.waits_out = true;
        self.out.wait(key, &self.counters.service.out);
    }

    /// The guest's rate lets nothing be received now: the socket is read when it does.
    pub(crate) fn wait_in(&mut self, key: Key, s: &mut Socket<T>) {
        s.waits_in = true;
        self.input.wait(key, &self.counters.service.input);
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
