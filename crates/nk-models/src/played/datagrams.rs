//! The datagram sockets of the simulation. What arrives was sent to this port, is whole, comes from whom it says, and once; it may be lost.
//! The sockets themselves live as long as somebody holds them, whoever dies: at the end each takes what it is sent.

use nk_device::cell::{SF_BOUND, SF_CONNECTED};
use nk_device::datagram::{DATAGRAM_MAX, DF_PEER, Header};
use nk_device::nqe::Op;
use nk_device::{Addr, CHUNK_SIZE};

use super::simulation::Simulation;
use super::tenant::{Open, Part, Tenant};

const FIRST_PORT: u16 = 90;
const PORTS: usize = 4;
/// The longest over IPv4.
const LEN_MAX: usize = DATAGRAM_MAX - 20;

/// A datagram that a guest sent.
#[derive(Debug)]
pub(super) struct Posted {
    from: u16,
    to: u16,
    len: usize,
    has_come: bool,
}

/// Whom a connected socket of this port is connected to: always the same, so that it is known after whatever death.
fn peer_of(port: u16) -> u16 {
    FIRST_PORT + (port - FIRST_PORT + 1) % PORTS as u16
}

impl Tenant {
    /// Whether a socket has the address that it asked for.
    fn is_bound(&self, o: &Open) -> bool {
        let cell = self.region.device.cell(o.id).filter(|_| self.state(o.id) & SF_BOUND != 0);
        cell.is_some_and(|c| c.local.load().port == o.port)
    }
}

impl Simulation {
    /// Makes one with an address, and sometimes a peer.
    pub(super) fn bind_datagram(&mut self, at: usize) {
        let port = FIRST_PORT + self.random.below(PORTS) as u16;
        let Some(shell) = self.some_process(at) else { return };
        let is_its = |o: &Open| o.part == Part::Datagram && o.port == port;
        if self.tenants[at].open.iter().any(is_its) || !self.has_room(at) {
            return;
        }
        let Some(id) = shell.open_datagram() else { return };
        shell.sleep_on(id);
        shell.address(Op::Bind, id, port);
        if self.random.below(2) == 0 {
            shell.address(Op::Connect, id, peer_of(port));
        }
        self.enter_open(at, &shell, id, Part::Datagram, port);
    }

    pub(super) fn send_datagram(&mut self, at: usize) {
        let Some(o) = self.tenants[at].pick(&mut self.random, Part::Datagram) else { return };
        let len = match self.random.below(4) {
            0 => LEN_MAX - self.random.below(3),
            1 => CHUNK_SIZE - self.random.below(300),
            _ => 8 + self.random.below(1500),
        };
        let to = FIRST_PORT + self.random.below(PORTS) as u16;
        let to = (self.random.below(3) != 0).then_some(to);
        self.post(at, &o, len, to);
    }

    /// Sends one, `to` a port or to the socket's peer; its number.
    fn post(&mut self, at: usize, o: &Open, len: usize, to: Option<u16>) -> Option<usize> {
        let t = &mut self.tenants[at];
        // GuestLib's bind and connect are asked until they are answered. Here one may be lost with a daemon.
        if !t.is_bound(o) || (to.is_none() && t.state(o.id) & SF_CONNECTED == 0) {
            return None;
        }
        t.bound.insert((o.id, o.generation));
        let header = to.map_or_else(Header::default, |port| {
            let peer = Addr::v4([127, 0, 0, 1], port);
            Header { flags: DF_PEER, peer, ..Header::default() }
        });
        let n = t.posted.len();
        t.shell(o.row).post(o.id, n, len, header)?;
        let to = to.unwrap_or_else(|| peer_of(o.port));
        t.posted.push(Posted { from: o.port, to, len, has_come: false });
        Some(n)
    }

    pub(super) fn receive_datagram(&mut self, at: usize) {
        if let Some(o) = self.tenants[at].pick(&mut self.random, Part::Datagram) {
            self.fetch(at, &o);
        }
    }

    /// Receives one, if there is any.
    fn fetch(&mut self, at: usize, o: &Open) -> bool {
        let t = &mut self.tenants[at];
        let Some((header, n, len)) = t.shell(o.row).fetch(o.id) else { return false };
        let Some(p) = t.posted.get_mut(n) else { panic!("datagram {n} was never sent") };
        assert_eq!((header.len as usize, len), (p.len, p.len), "datagram {n} is not whole");
        assert_eq!((header.peer.port, o.port), (p.from, p.to), "datagram {n}: {p:?}");
        assert!(!core::mem::replace(&mut p.has_come, true), "datagram {n} came twice");
        true
    }

    /// Nothing fails any more, and other sockets have no chunks: each is sent something, and gets it.
    pub(super) fn datagrams_come(&mut self, at: usize) {
        let t = &self.tenants[at];
        let is_its = |o: &&Open| o.part == Part::Datagram && t.generation(o.id) == o.generation;
        let all: Vec<Open> = t.open.iter().filter(is_its).copied().collect();
        self.poll_for_long();
        for o in &all {
            while self.fetch(at, o) {
                self.poll();
            }
        }
        for o in &all {
            let t = &self.tenants[at];
            if !t.is_bound(o) {
                assert!(!t.bound.contains(&(o.id, o.generation)), "{o:?} lost its address");
                continue;
            }
            let sent = (0..20).find_map(|_| {
                let n = self.post(at, o, CHUNK_SIZE + CHUNK_SIZE / 2, Some(o.port));
                self.poll_for_long();
                n
            });
            let Some(n) = sent else { panic!("nothing can be sent on {o:?}") };
            while self.fetch(at, o) {}
            assert!(self.tenants[at].posted[n].has_come, "datagram {n} to {o:?}");
        }
    }

    fn poll_for_long(&mut self) {
        for _ in 0..20 {
            self.w.now_ms += 5;
            self.poll();
        }
    }
}
