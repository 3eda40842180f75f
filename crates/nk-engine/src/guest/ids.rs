//! The life of a guest's socket ids: taken, granted ahead of need, made sockets of, counted, given back.

use nk_device::Op;
use nk_device::cell::IN_USE;
use nk_device::grant::GRANT_SLOTS;
use nk_device::sync::Ordering;

use super::{Guest, Socket, State};
use crate::nsm::Nsm;

/// Ids granted to a row ahead of need.
const ROW_IDS: u32 = 32;
/// Ids granted to the NSM of a guest that listens.
const NSM_IDS: u32 = 64;
/// Freed ids that wait before any is used again: whoever is late with an old id then meets a wrong generation.
const ROTATION: usize = 64;

impl Guest {
    /// Takes a free id: its cell is zeroed and has the next generation. `None` at the limit.
    fn take_id(&mut self) -> Option<u32> {
        let cells = self.device.layout().cells;
        if self.ids_used >= self.limits.sockets_max.min(cells) {
            return None;
        }
        let fresh = self.sockets.len() as u32;
        let id = if self.ids_free.len() >= ROTATION || fresh >= cells {
            self.ids_free.pop_front()?
        } else {
            self.sockets.push(Socket::new(0));
            self.open_generations.push(0);
            fresh
        };
        let s = self.sockets.get_mut(id as usize)?;
        let generation = s.generation.checked_add(1).unwrap_or(1);
        *s = Socket::new(generation);
        let cell = self.device.cell(id)?;
        cell.reset(generation);
        cell.in_use.store(IN_USE, Ordering::SeqCst);
        self.ids_used += 1;
        Some(id)
    }

    /// Gives an id back. Its cell says so at once, so that whoever still names it meets a wrong generation.
    pub(crate) fn free_id(&mut self, id: u32) {
        let Some(s) = self.sockets.get_mut(id as usize) else { return };
        if s.state == State::Free {
            return;
        }
        if matches!(s.state, State::Open | State::Dead | State::Closing) {
            self.open = self.open.saturating_sub(1);
        }
        if s.connection {
            self.connections_open = self.connections_open.saturating_sub(1);
        }
        if s.listener.is_some() {
            self.listeners = self.listeners.saturating_sub(1);
        }
        let generation = s.generation;
        self.set_state(id, State::Free);
        if let Some(s) = self.sockets.get_mut(id as usize) {
            *s = Socket::new(generation);
        }
        self.ids_used = self.ids_used.saturating_sub(1);
        if let Some(cell) = self.device.cell(id) {
            cell.reset(generation.checked_add(1).unwrap_or(1));
        }
        self.ids_free.push_back(id);
    }

    /// The bytes that a socket's cell tells of are counted as those of one that is gone: nobody else will tell.
    pub(crate) fn count_cell(&self, id: u32) {
        let Some(cell) = self.device.cell(id) else { return };
        let c = &self.counters.engine;
        for (word, sum) in [(&cell.tx_bytes, &c.bytes_sent), (&cell.rx_bytes, &c.bytes_received)] {
            // The sum first: a kill between the two counts twice rather than not at all, and no counter ever falls.
            sum.add(word.load(Ordering::Relaxed));
            word.store(0, Ordering::Relaxed);
        }
    }

    /// A granted id becomes a socket.
    pub(crate) fn open_id(&mut self, id: u32, connection: bool) {
        let Some(s) = self.sockets.get_mut(id as usize) else { return };
        match s.state {
            State::GrantedRow => {
                let row = usize::from(s.row);
                if let Some(r) = self.rows.get_mut(row) {
                    r.granted = r.granted.saturating_sub(1);
                }
            }
            State::GrantedNsm => self.nsm_granted = self.nsm_granted.saturating_sub(1),
            _ => return,
        }
        s.connection = connection;
        self.set_state(id, State::Open);
        self.open += 1;
        if connection {
            self.connections_open += 1;
            self.count_connection(id);
        }
    }

    /// A socket is a connection that nobody has counted. The sum first, as above.
    pub(crate) fn count_connection(&self, id: u32) {
        self.counters.engine.connections_total.add(1);
        self.counters.engine.counted.set(id);
    }

    /// An id goes to a row or an NSM: what becomes of it is yet to be counted.
    fn grant(&mut self, id: u32, state: State) {
        self.counters.engine.counted.clear(id);
        self.set_state(id, state);
    }

    /// Enters an id that another engine had handed out; ids come in order.
    pub(crate) fn insert_adopted(&mut self, id: u32, s: Socket, state: State) {
        if id as usize != self.sockets.len() {
            return;
        }
        let s = Socket { nsm: self.nsm, ..s };
        match state {
            State::Free => self.ids_free.push_back(id),
            State::GrantedRow => {
                if let Some(r) = self.rows.get_mut(usize::from(s.row)) {
                    r.granted += 1;
                }
            }
            State::GrantedNsm => self.nsm_granted += 1,
            State::Open | State::Dead | State::Closing => self.open += 1,
        }
        self.ids_used += u32::from(state != State::Free);
        self.listeners += u32::from(s.listener.is_some());
        self.connections_open += u64::from(s.connection);
        self.sockets.push(s);
        self.open_generations.push(0);
        self.set_state(id, state);
    }

    /// Tops up the ids granted to a row; how many were added.
    pub(crate) fn top_up_row(&mut self, row: u16) -> u32 {
        let device = self.device;
        let Some(shared) = device.row(row) else { return 0 };
        let mut added = 0;
        while self.rows.get(usize::from(row)).is_some_and(|r| r.in_use && r.granted < ROW_IDS) {
            let Some(id) = self.take_id() else {
                if !self.starved.contains(&row) {
                    self.starved.push(row);
                }
                break;
            };
            self.grant(id, State::GrantedRow);
            let Some(r) = self.rows.get_mut(usize::from(row)) else { break };
            let index = r.grant_tail;
            if let Some(s) = self.sockets.get_mut(id as usize) {
                s.row = row;
                s.grant_index = index;
            }
            if !shared.id_grants.push(&mut r.grant_tail, id) {
                // No room by the guest's head: nonsense, or ids that were popped and never used.
                self.free_id(id);
                break;
            }
            r.granted += 1;
            added += 1;
        }
        added
    }

    /// Tops up the ids granted to the NSM of a guest that listens.
    pub(crate) fn top_up_nsm(&mut self, nsm: &mut Nsm) {
        let most = self.limiter.accepts(NSM_IDS);
        let is_held = self.listeners > 0 && self.nsm_granted == 0 && most == 0;
        self.counters.engine.accepts_held.add((is_held && !self.limiter.accepts_held).into());
        self.limiter.accepts_held = is_held;
        let most = most.min(self.share_left());
        if self.listeners == 0 || !nsm.up || self.is_paused || self.nsm_granted > most / 2 {
            return;
        }
        while self.nsm_granted < most {
            let Some(id) = self.take_id() else { return };
            self.grant(id, State::GrantedNsm);
            let Some(s) = self.socket_mut(id) else { return };
            s.nsm = nsm.id;
            let generation = s.generation;
            self.nsm_granted += 1;
            nsm.push(&self.nqe(Op::GrantId, id, generation));
        }
    }

    /// Ids that the row's process popped from its ring and never used; only those popped already when `head` was read.
    pub(crate) fn popped_unused(&self, row: u16, head: u32) -> Vec<u32> {
        self.sockets
            .iter()
            .enumerate()
            .filter(|(_, s)| s.state == State::GrantedRow && s.row == row)
            .filter(|(_, s)| {
                let ahead = head.wrapping_sub(s.grant_index);
                ahead != 0 && ahead <= GRANT_SLOTS as u32 * 2
            })
            .map(|(id, _)| id as u32)
            .collect()
    }
}
