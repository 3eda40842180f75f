//! Sockets that outlived a service, whether its NSM died or the engine did: what their cells say from then on, and how the next service is
//! told of them.

use nk_device::cell::{
    SF_CONNECTED, SF_CONNECTING, SF_DEAD, SF_EOF, SF_FAILED, SF_LISTENING, SF_RX_STALLED,
    SF_TX_BRAKED,
};
use nk_device::errno::ECONNRESET;
use nk_device::nqe::{ROW_ADOPTED, ROWS_TOLD, SOCKET_RENEWED};
use nk_device::sync::Ordering;
use nk_device::{Addr, Cell, Nqe, Op};

use crate::deliver::ALL;
use crate::engine::Parts;
use crate::guest::State;
use crate::out::Out;

/// Takes back what was received and not read; whether there was any. The next service leases the chunks to somebody else. The engine
/// writes the service's field here: there is no service any more.
pub(crate) fn drop_unread(cell: &Cell) -> bool {
    let at = cell.position().index;
    cell.rx_tail.swap(at, Ordering::SeqCst) != at
}

/// No service knows any more to whom the chunks were leased that the tx ring names. They may be leased to somebody else by now.
pub(crate) fn drop_published(cell: &Cell) {
    cell.tx_head.store(cell.tx_tail.load(Ordering::SeqCst), Ordering::SeqCst);
}

/// Marks a connection as reset. The engine writes the service's fields here: there is no service any more.
/// `is_owed`: a service will take back what its ring names; else that is nobody's any more.
pub(crate) fn reset_cell(cell: &Cell, is_owed: bool) {
    if !is_owed {
        drop_published(cell);
    }
    let seq = (cell.error.load(Ordering::Relaxed) >> 32).wrapping_add(1) & 0xffff_ffff;
    cell.error.store(seq.max(1) << 32 | ECONNRESET as u64, Ordering::SeqCst);
    let state = cell.state.load(Ordering::Relaxed);
    let failed = if state & SF_CONNECTED == 0 { SF_FAILED } else { 0 };
    // An end of the stream that comes after bytes which are lost is no end of it.
    let end = if drop_unread(cell) { SF_EOF } else { 0 };
    let gone = SF_CONNECTING | SF_RX_STALLED | SF_TX_BRAKED | SF_LISTENING | end;
    cell.state.store((state & !gone) | SF_DEAD | failed, Ordering::SeqCst);
    cell.rx_wake.fetch_add(1, Ordering::SeqCst);
    cell.tx_wake.fetch_add(1, Ordering::SeqCst);
}

/// What tells a service of a socket that outlived another: `nqe` makes it. A datagram socket keeps the address that the stack once
/// chose for it, and its peer.
pub(crate) fn renewal(mut nqe: Nqe, local: Option<Addr>, peer: Option<Addr>) -> [Option<Nqe>; 3] {
    nqe.data |= SOCKET_RENEWED;
    let with = |op: Op, a: Addr| {
        let (size, op_data, data) = a.to_words();
        Nqe { op: op as u8, size, op_data, data, ..nqe }
    };
    [Some(nqe), local.map(|a| with(Op::Bind, a)), peer.map(|a| with(Op::Connect, a))]
}

impl Parts<'_> {
    /// Tells a new service of the rows that there are.
    pub(crate) fn announce_rows(&mut self) {
        let rows = self.guest.rows.iter().enumerate().filter(|(_, r)| r.in_use);
        let rows: Vec<u64> = rows.map(|(row, _)| row as u64).collect();
        for (row, follow) in rows.iter().zip((0..rows.len() as u64).rev()) {
            let mut nqe = self.guest.nqe(Op::RowLive, 0, 0);
            nqe.op_data = *row;
            nqe.data = ROW_ADOPTED | follow << 32;
            self.nsm.push(&nqe);
        }
        if self.guest.is_split() {
            self.row_job(0, ROWS_TOLD);
        }
    }

    /// The stack lost a socket for good.
    pub(crate) fn bury(&mut self, id: u32, out: &mut Out<'_>) {
        self.lose_queued(id, out);
        // One that lives ends the socket by itself.
        let lives = self.nsm_of(id).up;
        let device = self.guest.device;
        let Some(cell) = device.cell(id) else { return };
        if let Some(a) = self.guest.socket_mut(id).and_then(|s| s.local.take()) {
            self.ports.release(self.guest.space(id), self.guest.id, id, a.port);
        }
        let g = &mut *self.guest;
        g.set_state(id, State::Dead);
        let Some(s) = g.sockets.get_mut(id as usize) else { return };
        if s.listener.take().is_some() {
            g.listeners = g.listeners.saturating_sub(1);
        }
        let (generation, is_owed) = (s.generation, s.is_owed || lives);
        reset_cell(cell, is_owed);
        self.deliver(id, generation, ALL, false, out);
    }
}
