//! What the engine tells about itself: counters, and the list of sockets.

use nk_device::HOLDER_WORDS;
use nk_device::sync::Ordering;

use crate::engine::Engine;
use crate::guest::{Guest, State};
use crate::{Flow, GuestId, Stats};

impl Guest {
    fn snapshot(&self) -> Stats {
        let c = &self.counters.engine;
        let mut s = Stats {
            from_guest: Box::new(c.from_guest.get()),
            to_guest: Box::new(c.to_guest.get()),
            bytes_sent: c.bytes_sent.get(),
            bytes_received: c.bytes_received.get(),
            connections_open: self.connections_open,
            connections_total: c.connections_total.get(),
            violations: c.violations.get(),
            stale: c.stale.get(),
            quarantined: c.quarantined.get(),
            overflows: c.overflows.get(),
            ports_refused: c.ports_refused.get(),
            listens_refused: c.listens_refused.get(),
            nqes_held: c.nqes_held.get(),
            connects_held: c.connects_held.get(),
            accepts_held: c.accepts_held.get(),
            ..Stats::default()
        };
        for (id, socket) in self.sockets.iter().enumerate() {
            match socket.state() {
                State::Free => {}
                State::GrantedRow | State::GrantedNsm => s.ids_granted += 1,
                State::Open | State::Dead | State::Closing => {
                    s.sockets += 1;
                    if let Some(c) = self.cell(id as u32) {
                        let add = |sum: &mut u64, w: u64| *sum = sum.wrapping_add(w);
                        add(&mut s.bytes_sent, c.tx_bytes.load(Ordering::Relaxed));
                        add(&mut s.bytes_received, c.rx_bytes.load(Ordering::Relaxed));
                    }
                }
            }
        }
        s.rows = self.rows.iter().filter(|r| r.in_use).count() as u64;
        s.qsets = self.qsets.iter().filter(|q| q.in_use).count() as u64;
        s
    }

    fn flow(&self, id: u32) -> Option<Flow> {
        let s = self.socket(id)?;
        if !matches!(s.state(), State::Open | State::Dead | State::Closing) {
            return None;
        }
        let c = self.cell(id)?;
        let mut holders = Vec::new();
        for word in 0..HOLDER_WORDS {
            let mut bits = c.holders.get(word)?.load(Ordering::Relaxed);
            while bits != 0 {
                let row = word as u16 * 64 + bits.trailing_zeros() as u16;
                bits &= bits - 1;
                let pid = self.rows.get(usize::from(row)).map_or(0, |r| r.pid);
                holders.push((row, pid));
            }
        }
        Some(Flow {
            guest: self.id,
            socket: id,
            generation: s.generation,
            nsm: s.nsm,
            state: c.state.load(Ordering::Relaxed),
            local: c.local.load(),
            peer: c.peer.load(),
            datagram: s.datagram,
            closing: s.state() == State::Closing,
            queued: self.is_queued(id),
            holders,
            bytes: (c.tx_bytes.load(Ordering::Relaxed), c.rx_bytes.load(Ordering::Relaxed)),
        })
    }
}

impl Stats {
    fn add(&mut self, o: &Stats) {
        for (to, from) in self.from_guest.iter_mut().zip(o.from_guest.iter()) {
            *to += from;
        }
        for (to, from) in self.to_guest.iter_mut().zip(o.to_guest.iter()) {
            *to += from;
        }
        self.bytes_sent = self.bytes_sent.wrapping_add(o.bytes_sent);
        self.bytes_received = self.bytes_received.wrapping_add(o.bytes_received);
        for (to, from) in [
            (&mut self.connections_open, o.connections_open),
            (&mut self.connections_total, o.connections_total),
            (&mut self.sockets, o.sockets),
            (&mut self.ids_granted, o.ids_granted),
            (&mut self.rows, o.rows),
            (&mut self.qsets, o.qsets),
            (&mut self.violations, o.violations),
            (&mut self.stale, o.stale),
            (&mut self.quarantined, o.quarantined),
            (&mut self.ports_refused, o.ports_refused),
            (&mut self.overflows, o.overflows),
            (&mut self.listens_refused, o.listens_refused),
            (&mut self.nqes_held, o.nqes_held),
            (&mut self.connects_held, o.connects_held),
            (&mut self.accepts_held, o.accepts_held),
        ] {
            *to += from;
        }
    }
}

impl Engine {
    fn listed(&self, guest: Option<GuestId>) -> impl Iterator<Item = &Guest> {
        self.order
            .iter()
            .filter(move |id| guest.is_none_or(|g| g == **id))
            .filter_map(|id| self.guest(*id))
    }

    /// Counters of one guest, or of all that are there.
    #[must_use]
    pub fn stats(&self, guest: Option<GuestId>) -> Stats {
        let mut sum = Stats::default();
        for g in self.listed(guest) {
            sum.add(&g.snapshot());
        }
        sum
    }

    /// The sockets in use of one guest, or of all.
    #[must_use]
    pub fn flows(&self, guest: Option<GuestId>) -> Vec<Flow> {
        self.listed(guest)
            .flat_map(|g| (0..g.sockets.len() as u32).filter_map(|id| g.flow(id)))
            .collect()
    }
}
