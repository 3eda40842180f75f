//! What ordinary guests do in the simulation, apart from datagrams.

use nk_device::cell::{GF_CONNECT_CALLED, SF_CONNECTED, SF_DEAD};
use nk_device::nqe::Op;
use nk_device::sync::Ordering;

use super::shell::Shell;
use super::simulation::Simulation;
use super::tenant::{Open, Part};

const SOCKETS_MAX: usize = 24;

/// Which connection's bytes, and which way: its client's port, which no other has in the same run.
pub(super) type Way = (u16, bool);

impl Simulation {
    pub(super) fn enter_open(&mut self, at: usize, by: &Shell, id: u32, part: Part, port: u16) {
        let (row, life) = (by.row, self.life);
        let t = &mut self.tenants[at];
        let generation = t.generation(id);
        t.open.push(Open { id, generation, row, part, port, life });
    }

    pub(super) fn has_room(&self, at: usize) -> bool {
        self.tenants[at].open.len() < SOCKETS_MAX
    }

    pub(super) fn listen(&mut self, at: usize) {
        let port = 80 + self.random.below(3) as u16;
        let Some(shell) = self.some_process(at) else { return };
        let is_taken =
            self.tenants[at].open.iter().any(|o| o.part == Part::Listener && o.port == port);
        if is_taken || !self.has_room(at) {
            return;
        }
        let Some(id) = shell.open() else { return };
        shell.address(Op::Bind, id, port);
        shell.job(Op::Listen, id, |n| n.op_data = 8);
        self.enter_open(at, &shell, id, Part::Listener, port);
    }

    pub(super) fn connect(&mut self, at: usize) {
        let Some(shell) = self.some_process(at) else { return };
        if !self.has_room(at) {
            return;
        }
        let Some(id) = shell.open() else { return };
        // Somebody sleeps there: each event is a wake-up, at which the engine may die.
        shell.sleep_on(id);
        let port = 80 + self.random.below(3) as u16;
        if let Some(cell) = shell.device.cell(id) {
            // As GuestLib: without its service the connect is lost with the engine.
            cell.guest_state.fetch_or(GF_CONNECT_CALLED, Ordering::AcqRel);
        }
        shell.address(Op::Connect, id, port);
        self.enter_open(at, &shell, id, Part::Client, 0);
    }

    pub(super) fn accept(&mut self, at: usize) {
        let Some(l) = self.tenants[at].pick(&mut self.random, Part::Listener) else { return };
        let shell = self.tenants[at].shell(l.row);
        let Some(accepted) = shell.accept(l.id) else { return };
        let id = accepted.socket;
        let port = shell.device.cell(id).map_or(0, |c| c.peer.load().port);
        self.enter_open(at, &shell, id, Part::Server, port);
    }

    /// A connected socket with its port; a client's is known once it is connected.
    fn connected(&mut self, at: usize) -> Option<Open> {
        let part = if self.random.below(2) == 0 { Part::Client } else { Part::Server };
        let t = self.tenants.get_mut(at)?;
        let mut o = t.pick(&mut self.random, part)?;
        if o.port == 0 {
            let state = t.state(o.id);
            if o.life != self.life || state & SF_CONNECTED == 0 || state & SF_DEAD != 0 {
                return None;
            }
            o.port = t.region.device.cell(o.id)?.local.load().port;
            for all in t.open.iter_mut().filter(|s| (s.id, s.generation) == (o.id, o.generation)) {
                all.port = o.port;
            }
        }
        Some(o)
    }

    pub(super) fn send(&mut self, at: usize) {
        let Some(o) = self.connected(at) else { return };
        let len = 1 + self.random.below(9000);
        let t = &mut self.tenants[at];
        let shell = t.shell(o.row);
        let flow = t.flows.entry((o.port, o.part == Part::Client)).or_default();
        flow.0 += shell.send(o.id, base(&o, o.part == Part::Client) + flow.0, len);
    }

    pub(super) fn receive(&mut self, at: usize) {
        let Some(o) = self.connected(at) else { return };
        let len = 1 + self.random.below(9000);
        self.receive_on(at, o, len);
    }

    pub(super) fn receive_on(&mut self, at: usize, o: Open, len: usize) {
        let t = &mut self.tenants[at];
        let shell = t.shell(o.row);
        // From the other side.
        let from_client = o.part == Part::Server;
        let flow = t.flows.entry((o.port, from_client)).or_default();
        flow.1 += shell.recv(o.id, base(&o, from_client) + flow.1, len, true);
        assert!(flow.1 <= flow.0, "{} bytes came of {}", flow.1, flow.0);
    }

    pub(super) fn close(&mut self, at: usize) {
        let t = &mut self.tenants[at];
        let n = self.random.below(t.open.len());
        if n < t.open.len() {
            let o = t.open.swap_remove(n);
            t.close(&o);
        }
    }
}

/// No two connections, and no two ways of one, carry the same bytes at the same place.
fn base(o: &Open, from_client: bool) -> usize {
    (usize::from(o.port) * 2 + usize::from(from_client)) * 1_000_003
}
