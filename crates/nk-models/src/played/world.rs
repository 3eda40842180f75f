//! CoreEngine, ServiceLib and the stack in memory, polled by hand; and what an honest guest does to show that it is served.

use std::cell::RefCell;
use std::rc::Rc;

use nk_device::datagram::{DATAGRAM_MAX, DF_PEER, Header};
use nk_device::nqe::Op;
use nk_device::sync::{AtomicU32, Ordering};
use nk_device::{Addr, CHUNK_SIZE};
use nk_engine::{Engine, GuestId, GuestSetup, Limits, NewRow, Notify, NsmId};
use nk_servicelib::{GuestPool, GuestStats, Service};

use super::region::Region;
use super::shell::Shell;
use super::stack::MemoryStack;

pub(super) const NSM: NsmId = NsmId(0);
/// NQEs and events of one poll at most, whatever a guest does.
const WORK_MAX: u32 = 20_000;

/// Counts wake-ups, and lets the hostile guest act at each.
pub(super) struct Bells {
    pub(super) meanwhile: Rc<RefCell<dyn FnMut()>>,
    /// Guests that have nothing on an NSM any more from which they were moved.
    pub(super) left: Vec<(GuestId, NsmId)>,
    /// Guests whose present NSM has its share of their sockets.
    pub(super) full: Vec<GuestId>,
}

impl Bells {
    pub(super) fn new(meanwhile: Rc<RefCell<dyn FnMut()>>) -> Bells {
        Bells { meanwhile, left: Vec::new(), full: Vec::new() }
    }
}

impl Notify for Bells {
    fn doorbell(&mut self, _: GuestId, _: u16) {
        self.meanwhile.borrow_mut()();
    }
    fn futex_wake(&mut self, _: &AtomicU32, _: u32) {
        self.meanwhile.borrow_mut()();
    }
    fn nsm_doorbell(&mut self, _: NsmId) {}
    fn nsm_left(&mut self, guest: GuestId, nsm: NsmId) {
        self.left.push((guest, nsm));
    }
    fn nsm_full(&mut self, guest: GuestId) {
        self.full.push(guest);
    }
}

pub(super) struct World {
    pub(super) engine: Engine,
    /// By the number of their NSM.
    pub(super) services: Vec<Service<MemoryStack>>,
    pub(super) bells: Bells,
    pub(super) now_ms: u64,
}

impl World {
    pub(super) fn add_guest(&mut self, region: &Region, id: GuestId) -> Shell {
        self.services[0].add_guest(World::pool(region, id));
        self.engine.add_guest(World::setup(region, id)).expect("guest");
        let NewRow { row, qset } = self.engine.add_row(id, 100).expect("row");
        Shell::new(region.device, row, qset)
    }
    pub(super) fn pool(region: &Region, id: GuestId) -> GuestPool {
        let (device, namespace) = (region.device, u64::from(id.0));
        let (pool, counters) = (0..device.layout().chunks, region.counters);
        GuestPool { guest: id.0, device, namespace, pool, ledger: None, counters }
    }
    pub(super) fn setup(region: &Region, id: GuestId) -> GuestSetup {
        let (device, namespace) = (region.device, u64::from(id.0));
        let (limits, counters) = (Limits::default(), region.counters);
        GuestSetup { id, device, namespace, nsm: NSM, limits, vm: false, counters }
    }
    pub(super) fn poll_engine(&mut self) {
        let r = self.engine.poll(self.now_ms * 1_000_000, 256, &mut self.bells);
        assert!(r.worked < WORK_MAX, "{} in one poll", r.worked);
    }
    pub(super) fn poll_service(&mut self) {
        for nsm in 0..self.services.len() {
            self.poll_one(nsm);
        }
    }
    pub(super) fn poll_one(&mut self, nsm: usize) {
        let r = self.services[nsm].poll(self.now_ms * 1_000_000, Some(0), &mut || {});
        assert!(r.worked < WORK_MAX, "{} in one poll", r.worked);
    }
    pub(super) fn settle(&mut self) {
        for _ in 0..6 {
            self.poll_engine();
            self.poll_service();
        }
    }
    /// A listener of the guest.
    pub(super) fn listen(&mut self, g: &Shell, port: u16) -> u32 {
        let listener = g.open().expect("an id for a listener");
        g.address(Op::Bind, listener, port);
        g.job(Op::Listen, listener, |n| n.op_data = 8);
        self.settle();
        listener
    }
    /// The guest connects to its own listener, which accepts in its time.
    pub(super) fn connect(&mut self, g: &Shell, port: u16) -> u32 {
        let client = g.open().expect("an id for a client");
        g.address(Op::Connect, client, port);
        self.settle();
        client
    }
    /// What some service has of the guest.
    pub(super) fn stats(&self, id: GuestId) -> GuestStats {
        self.services.iter().find_map(|s| s.stats(id.0)).expect("guest")
    }
    pub(super) fn assert_chunks(&self, id: GuestId, chunks: u32) {
        let s = self.stats(id);
        let sum = s.chunks_free + s.chunks_leased + s.chunks_tx + s.chunks_rx;
        assert_eq!(sum, u64::from(chunks), "{s:?}");
    }
}

/// The honest guest sends itself datagrams of all sizes.
pub(super) fn datagrams(w: &mut World, g: &Shell, id: GuestId) {
    let (Some(a), Some(b)) = (g.open_datagram(), g.open_datagram()) else {
        panic!("ids for two sockets")
    };
    g.address(Op::Bind, b, 90);
    w.settle();
    let to = Header { flags: DF_PEER, peer: Addr::v4([127, 0, 0, 1], 90), ..Header::default() };
    for n in 0..12 {
        let len = n * n * 450 % 65_508;
        let sent = (0..20).any(|_| {
            let sent = g.send_datagram(a, n, len, to).is_some();
            w.settle();
            sent
        });
        assert!(sent, "datagram {n}: {:?}", w.stats(id));
        let got = (0..20).find_map(|_| {
            w.settle();
            g.recv_datagram(b, n, DATAGRAM_MAX, true)
        });
        assert_eq!(got, Some(len), "datagram {n} of the honest guest");
    }
    for socket in [a, b] {
        g.close(socket);
    }
    for _ in 0..10 {
        w.now_ms += 20;
        w.settle();
    }
}

/// The honest guest connects to itself, moves bytes, closes.
pub(super) fn transfer(w: &mut World, g: &Shell, id: GuestId, total: usize) {
    let listener = w.listen(g, 80);
    let client = w.connect(g, 80);
    let mut server = None;
    for _ in 0..50 {
        w.settle();
        server = server.or_else(|| g.accept(listener));
    }
    let state = |socket| {
        g.device.cell(socket).map(|c| (c.state.load(Ordering::Relaxed), c.pending_error()))
    };
    let Some(server) = server else {
        panic!(
            "the honest guest's connection: listener {:?}, client {:?}, {:?} {:?}",
            state(listener),
            state(client),
            w.stats(id),
            w.services[0].stack_mut(),
        )
    };
    let server = server.socket;
    let (mut sent, mut got) = (0, 0);
    for _ in 0..2000 {
        sent += g.send(client, sent, (total - sent).min(CHUNK_SIZE + 4_000));
        w.poll_engine();
        w.poll_service();
        got += g.recv(server, got, 10_000, true);
        if got == total {
            break;
        }
    }
    assert_eq!((sent, got), (total, total), "the honest guest's transfer");
    for socket in [client, server, listener] {
        g.close(socket);
    }
    for _ in 0..10 {
        w.now_ms += 20;
        w.settle();
    }
}
