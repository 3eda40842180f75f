//! The hostile guest, the honest guest, and what must hold for the host between them.

use core::ptr::NonNull;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use nk_device::datagram::{DATAGRAM_MAX, DF_PEER, DF_REPORT, Header};
use nk_device::nqe::{Nqe, Op};
use nk_device::stream::{AcceptedSocket, Span};
use nk_device::sync::{AtomicU32, Ordering};
use nk_device::{Addr, Device, Layout};
use nk_engine::{Engine, GuestId, GuestSetup, Limits, NewRow, Notify, NsmId};
use nk_guestlib::accept::{Accepted, accept};
use nk_guestlib::datagram;
use nk_guestlib::recv::{Received, Sink, recv};
use nk_guestlib::send::{Chunks, Source, send};
use nk_guestlib::{Fault, Socket};
use nk_servicelib::{GuestPool, Key, Service};

use super::region::Region;
use super::stack::MemoryStack;

const LAYOUT: Layout = Layout { rows: 4, qsets: 6, cells: 200, chunks: 200 };
const HOSTILE: GuestId = GuestId(1);
const HONEST: GuestId = GuestId(2);
const NSM: NsmId = NsmId(0);
/// Acts of one run at most.
const ACTS_MAX: usize = 400;
/// NQEs and events of one poll at most, whatever a guest does.
const WORK_MAX: u32 = 20_000;

/// Reads acts from bytes; zeros when they are used up.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn u8(&mut self) -> u8 {
        match self.0.split_first() {
            Some((b, rest)) => {
                self.0 = rest;
                *b
            }
            None => 0,
        }
    }
    fn u16(&mut self) -> u16 {
        u16::from(self.u8()) | u16::from(self.u8()) << 8
    }
    fn u64(&mut self) -> u64 {
        (0..4).fold(0, |w, _| w << 16 | u64::from(self.u16()))
    }
    /// Values that break things are few; any word is rarely one of them.
    fn value(&mut self, old: u64) -> u64 {
        match self.u8() % 8 {
            0 => self.u64(),
            1 => u64::MAX,
            2 => 0,
            3 => old.wrapping_add(1),
            4 => old.wrapping_sub(1),
            5 => old ^ 1 << (self.u8() % 64),
            6 => u64::from(self.u16()),
            _ => u64::from(self.u8()) << 32 | u64::from(self.u8()),
        }
    }
}

/// Counts wake-ups, and lets the hostile guest act at each.
struct Bells {
    meanwhile: Rc<RefCell<dyn FnMut()>>,
}

impl Notify for Bells {
    fn doorbell(&mut self, _: GuestId, _: u16) {
        self.meanwhile.borrow_mut()();
    }
    fn futex_wake(&mut self, _: &AtomicU32, _: u32) {
        self.meanwhile.borrow_mut()();
    }
    fn nsm_doorbell(&mut self, _: NsmId) {}
}

/// A guest without a shell: rows and rings, used directly.
#[derive(Clone, Copy, Debug)]
struct Shell {
    device: Device,
    row: u16,
    qset: u16,
}

struct RowChunks<'a>(&'a Shell, Option<u32>);
impl Chunks for RowChunks<'_> {
    fn take(&mut self) -> Option<u32> {
        self.1.take().or_else(|| self.0.device.row(self.0.row)?.chunk_grants.pop())
    }
    fn put_back(&mut self, chunk: u32) {
        self.1 = Some(chunk);
    }
}

struct Pattern(usize);
impl Source for Pattern {
    fn copy(&mut self, at: usize, to: NonNull<u8>, len: usize) -> Result<(), Fault> {
        for i in 0..len {
            // SAFETY: the core gives a place within a chunk of the mapped device with room for len bytes.
            unsafe { to.as_ptr().add(i).write_volatile(byte(self.0 + at + i)) };
        }
        Ok(())
    }
}

struct Check {
    next: usize,
    strict: bool,
}
impl Sink for Check {
    fn copy(&mut self, at: usize, from: NonNull<u8>, len: usize) -> Result<(), Fault> {
        for i in 0..len {
            // SAFETY: the core gives a place within a chunk of the mapped device with len bytes.
            let b = unsafe { from.as_ptr().add(i).read_volatile() };
            let n = self.next + at + i;
            assert!(!self.strict || b == byte(n), "byte {n} of the honest guest");
        }
        Ok(())
    }
}

fn byte(n: usize) -> u8 {
    (n.wrapping_mul(2_654_435_761) >> 13) as u8
}

impl Shell {
    fn socket(&self, id: u32) -> Option<Socket<'_>> {
        Some(Socket { device: &self.device, cell: self.device.cell(id)? })
    }
    fn push(&self, nqe: &Nqe, send: bool) {
        let Some(q) = self.device.qset(self.qset) else { return };
        let _ = if send { q.send().push(nqe) } else { q.job().push(nqe) };
        let _ = self.device.header().ring_bell(self.qset);
    }
    fn job(&self, op: Op, id: u32, fill: impl FnOnce(&mut Nqe)) {
        let Some(c) = self.device.cell(id) else { return };
        let mut nqe = Nqe::new(op, id, c.generation.load(Ordering::Relaxed) as u16);
        fill(&mut nqe);
        self.push(&nqe, op == Op::Send);
    }
    fn open(&self) -> Option<u32> {
        self.open_kind(2 | 1 << 16)
    }
    fn open_datagram(&self) -> Option<u32> {
        self.open_kind(2 | 2 << 16)
    }
    fn open_kind(&self, kind: u32) -> Option<u32> {
        let id = self.device.row(self.row)?.id_grants.pop()?;
        let c = self.device.cell(id)?;
        c.kind.store(kind, Ordering::Relaxed);
        c.hold(self.row);
        self.job(Op::Socket, id, |n| n.op_data = kind.into());
        Some(id)
    }
    /// Sends a datagram, if there is room; its index.
    fn send_datagram(&self, id: u32, from: usize, len: usize, header: Header) -> Option<u32> {
        let s = self.socket(id)?;
        let mut chunks = RowChunks(self, None);
        match datagram::send(&s, &mut chunks, &mut Pattern(from), len, header) {
            Ok(queued) => {
                if queued.kick {
                    self.job(Op::Send, id, |_| ());
                }
                Some(queued.index)
            }
            Err(_) => {
                self.job(Op::Refill, id, |_| ());
                None
            }
        }
    }
    /// Receives one; its length.
    fn recv_datagram(&self, id: u32, from: usize, len: usize, strict: bool) -> Option<usize> {
        let s = self.socket(id)?;
        match datagram::recv(&s, &mut Check { next: from, strict }, len, false) {
            datagram::Received::Datagram { header, rx_room, .. } => {
                if rx_room {
                    self.job(Op::RxRoom, id, |_| ());
                }
                Some(header.len as usize)
            }
            _ => None,
        }
    }
    fn address(&self, op: Op, id: u32, port: u16) {
        let (size, lo, hi) = Addr::v4([127, 0, 0, 1], port).to_words();
        self.job(op, id, |n| (n.size, n.op_data, n.data) = (size, lo, hi));
    }
    fn send(&self, id: u32, from: usize, len: usize) -> usize {
        let Some(s) = self.socket(id) else { return 0 };
        let mut chunks = RowChunks(self, None);
        let sent = send(&s, &mut chunks, &mut Pattern(from), len);
        // One that was put back is dropped here: the lease map knows it.
        match sent {
            Ok(sent) => {
                if sent.kick {
                    self.job(Op::Send, id, |_| ());
                }
                sent.bytes
            }
            Err(_) => {
                self.job(Op::Refill, id, |_| ());
                0
            }
        }
    }
    fn recv(&self, id: u32, from: usize, len: usize, strict: bool) -> usize {
        let Some(s) = self.socket(id) else { return 0 };
        match recv(&s, &mut Check { next: from, strict }, len, false) {
            Received::Bytes { count, rx_room } => {
                if rx_room {
                    self.job(Op::RxRoom, id, |_| ());
                }
                count
            }
            _ => 0,
        }
    }
    fn accept(&self, id: u32) -> Option<AcceptedSocket> {
        let l = self.device.cell(id)?;
        match accept(&self.device, l, self.row) {
            Accepted::Socket { socket, rx_room } => {
                if rx_room {
                    self.job(Op::RxRoom, id, |_| ());
                }
                Some(socket)
            }
            _ => None,
        }
    }
    fn close(&self, id: u32) {
        if self.device.cell(id).is_some_and(|c| c.release(self.row)) {
            self.job(Op::Close, id, |_| ());
        }
    }
}

struct World {
    engine: Engine,
    service: Service<MemoryStack>,
    bells: Bells,
    now_ms: u64,
}

impl World {
    fn add_guest(&mut self, region: &Region, id: GuestId) -> Shell {
        self.service.add_guest(GuestPool {
            guest: id.0,
            device: region.device,
            namespace: u64::from(id.0),
            pool: 0..LAYOUT.chunks,
        });
        self.engine
            .add_guest(GuestSetup {
                id,
                device: region.device,
                namespace: u64::from(id.0),
                nsm: NSM,
                limits: Limits::default(),
                vm: false,
            })
            .expect("guest");
        let NewRow { row, qset } = self.engine.add_row(id, 100).expect("row");
        Shell { device: region.device, row, qset }
    }
    fn poll_engine(&mut self) {
        let r = self.engine.poll(self.now_ms * 1_000_000, 256, &mut self.bells);
        assert!(r.worked < WORK_MAX, "{} in one poll", r.worked);
    }
    fn poll_service(&mut self) {
        let r = self.service.poll(self.now_ms * 1_000_000, 0, &mut || {});
        assert!(r.worked < WORK_MAX, "{} in one poll", r.worked);
    }
    fn settle(&mut self) {
        for _ in 0..6 {
            self.poll_engine();
            self.poll_service();
        }
    }
    fn assert_chunks(&self, id: GuestId) {
        let s = self.service.stats(id.0).expect("guest");
        let sum = s.chunks_free + s.chunks_leased + s.chunks_tx + s.chunks_rx;
        assert_eq!(sum, u64::from(LAYOUT.chunks), "{s:?}");
    }
}

/// Runs the hostile guest's acts, then the honest guest's transfer.
///
/// # Panics
/// When the host does what it must not.
pub fn run(data: &[u8]) {
    let hostile = Region::new(LAYOUT, HOSTILE.0);
    let honest = Region::new(LAYOUT, HONEST.0);
    let nsm = Region::new(Layout::NSM, 0);
    let hostile = Rc::new(hostile);
    let armed: Rc<RefCell<VecDeque<(usize, u64)>>> = Rc::default();
    let meanwhile: Rc<RefCell<dyn FnMut()>> = {
        let (hostile, armed) = (Rc::clone(&hostile), Rc::clone(&armed));
        Rc::new(RefCell::new(move || {
            if let Some((word, value)) = armed.borrow_mut().pop_front() {
                hostile.scribble(word, value);
            }
        }))
    };
    let mut engine = Engine::new();
    engine.add_nsm(NSM, nsm.device).expect("nsm");
    let stack = MemoryStack::new(Some(Rc::clone(&meanwhile)));
    let service = Service::new(stack, nsm.device);
    let mut w = World { engine, service, bells: Bells { meanwhile }, now_ms: 1 };
    let mut shells = vec![w.add_guest(&hostile, HOSTILE)];
    let good = w.add_guest(&honest, HONEST);
    w.settle();
    let mut bytes = Bytes(data);
    for _ in 0..ACTS_MAX {
        if bytes.0.is_empty() {
            break;
        }
        act(&mut w, &mut bytes, &hostile, &armed, &mut shells);
    }
    w.settle();
    w.assert_chunks(HOSTILE);
    w.assert_chunks(HONEST);
    armed.borrow_mut().clear();
    w.service.stack_mut().faults.next.clear();
    transfer(&mut w, good, 40_000);
    datagrams(&mut w, good);
    w.service.remove_guest(HOSTILE.0);
    w.engine.remove_guest(HOSTILE).expect("known");
    transfer(&mut w, good, 5_000);
    datagrams(&mut w, good);
    w.assert_chunks(HONEST);
}

/// The word of the device that an act aims at: any, but mostly those that the host reads.
fn aim(bytes: &mut Bytes<'_>, device: &Device) -> usize {
    let base = device.base().as_ptr() as usize;
    let word = |at: usize| (at - base) / 8;
    let n = usize::from(bytes.u8());
    match bytes.u8() % 6 {
        0 => n,
        1 => {
            device.row((n % 4) as u16).map_or(0, |r| word(core::ptr::from_ref(r) as usize))
                + usize::from(bytes.u16()) % 512
        }
        2 => {
            device.qset((n % 6) as u16).map_or(0, |q| word(core::ptr::from_ref(q) as usize))
                + usize::from(bytes.u8()) % 24
        }
        3 => {
            device.qset((n % 6) as u16).map_or(0, |q| word(core::ptr::from_ref(q) as usize))
                + usize::from(bytes.u16())
        }
        4 => {
            device.cell((n % 24) as u32).map_or(0, |c| word(core::ptr::from_ref(c) as usize))
                + usize::from(bytes.u8()) % 128
        }
        _ => usize::from(bytes.u16()) << 8 | n,
    }
}

fn act(
    w: &mut World,
    bytes: &mut Bytes<'_>,
    hostile: &Region,
    armed: &RefCell<VecDeque<(usize, u64)>>,
    shells: &mut Vec<Shell>,
) {
    let which = bytes.u8();
    let shell = shells[usize::from(which >> 5) % shells.len()];
    let id = u32::from(bytes.u8()) % 24;
    match which % 28 {
        0 | 1 => {
            let word = aim(bytes, &hostile.device);
            hostile.scribble(word, bytes.value(hostile.peek(word)));
        }
        2 => {
            for _ in 0..bytes.u8() % 8 {
                let word = aim(bytes, &hostile.device);
                armed.borrow_mut().push_back((word, bytes.value(hostile.peek(word))));
            }
        }
        3 => {
            let words = [bytes.u64(), bytes.u64(), bytes.u64(), bytes.u64()];
            shell.push(&Nqe::from_words(words), bytes.u8() & 1 != 0);
        }
        4 | 5 => {
            let op = Op::from_u8(bytes.u8() % 14).unwrap_or(Op::Close);
            let (ticket, size, data) = (bytes.u8() % 64, bytes.u16(), bytes.value(0));
            shell.job(op, id, |n| {
                (n.ticket, n.size, n.op_data, n.data) = (ticket, u32::from(size), data, data >> 7);
            });
        }
        6 | 7 => w.poll_engine(),
        8 | 9 => w.poll_service(),
        10 => {
            let _ = shell.open();
        }
        11 => shell.address(Op::Bind, id, 80 + u16::from(bytes.u8() % 3)),
        12 => shell.job(Op::Listen, id, |n| n.op_data = 4),
        13 => shell.address(Op::Connect, id, 80 + u16::from(bytes.u8() % 3)),
        14 => {
            let _ = shell.accept(id);
        }
        15 => {
            let _ = shell.send(id, 0, usize::from(bytes.u16()));
        }
        16 => {
            let _ = shell.recv(id, 0, usize::from(bytes.u16()), false);
        }
        17 => shell.close(id),
        18 => {
            if let Some(s) = shell.socket(id) {
                let (chunk, offset, len) = (bytes.u8(), bytes.u16(), bytes.u16());
                let span = Span { chunk: chunk.into(), offset: offset.into(), len: len.into() };
                let _ = s.cell.tx().publish(span.to_payload());
                shell.job(Op::Send, id, |_| ());
            }
        }
        19 => match bytes.u8() % 3 {
            0 => {
                if let Ok(NewRow { row, qset }) = w.engine.add_row(HOSTILE, 7) {
                    shells.push(Shell { row, qset, ..shell });
                }
            }
            1 if shells.len() > 1 => {
                shells.retain(|s| s.row != shell.row);
                if shells.is_empty() {
                    shells.push(shell);
                } else {
                    let _ = w.engine.row_dead(HOSTILE, shell.row, &mut w.bells);
                }
            }
            _ => {
                if let Ok(qset) = w.engine.row_exec_kept(HOSTILE, shell.row, &mut w.bells) {
                    for s in shells.iter_mut().filter(|s| s.row == shell.row) {
                        s.qset = qset;
                    }
                }
            }
        },
        20 => {
            if bytes.u8() & 1 == 0 {
                if let Ok(qset) = w.engine.add_qset(HOSTILE, shell.row) {
                    shells.push(Shell { qset, ..shell });
                }
            } else {
                let q = u16::from(bytes.u8());
                if shells.iter().filter(|s| s.row == shell.row).count() > 1
                    && w.engine.drop_qset(HOSTILE, shell.row, q, &mut w.bells).is_ok()
                {
                    shells.retain(|s| s.qset != q);
                }
            }
        }
        21 => {
            let generation = bytes.u16();
            let generation = if generation & 1 == 0 {
                hostile.device.cell(id).map_or(0, |c| c.generation.load(Ordering::Relaxed) as u16)
            } else {
                generation
            };
            if bytes.u8() & 1 == 0 {
                let _ = w.engine.hold(HOSTILE, id, generation, &mut w.bells);
            } else {
                let _ = w.engine.unhold(HOSTILE, id, generation, &mut w.bells);
            }
        }
        22 => w.now_ms += u64::from(bytes.u16()),
        23 => {
            let _ = shell.open_datagram();
        }
        24 => {
            let header = hostile_header(bytes);
            let len = usize::from(bytes.u16());
            if let Some(index) = shell.send_datagram(id, 0, len, header) {
                shell.job(Op::Report, id, |n| (n.ticket, n.op_data) = (9, index.into()));
            }
        }
        25 => {
            // A header that lies, in a chunk that may be leased or not.
            if let Some(s) = shell.socket(id) {
                let leased = hostile.device.row(shell.row).and_then(|r| r.chunk_grants.pop());
                let chunk = leased.unwrap_or(u32::from(bytes.u8()));
                let header = hostile_header(bytes);
                hostile.device.put_header(chunk, &header);
                let span = Header::span_for(chunk, header.len as usize);
                let cut = Span { len: span.len.wrapping_add(u32::from(bytes.u8() % 2)), ..span };
                let _ = s.cell.tx().publish(cut.to_payload());
                shell.job(Op::Send, id, |_| ());
            }
        }
        26 => {
            let _ = shell.recv_datagram(id, 0, usize::from(bytes.u16()), false);
        }
        _ => {
            let stack = w.service.stack_mut();
            match bytes.u8() % 3 {
                0 => {
                    let errno = [0, libc::EAGAIN, libc::ENOMEM, libc::EPIPE, libc::ECONNRESET];
                    stack.faults.next.push_back(errno[usize::from(bytes.u8()) % errno.len()]);
                }
                1 => stack.reset(usize::from(bytes.u8())),
                _ => {
                    let key =
                        Key { guest: HOSTILE.0, socket: id, generation: u16::from(bytes.u8()) };
                    stack.tell(key, bytes.u8());
                }
            }
        }
    }
}

/// A header as a hostile guest might write it.
fn hostile_header(bytes: &mut Bytes<'_>) -> Header {
    let flags = u32::from(bytes.u8()) | DF_PEER | if bytes.u8() & 1 == 0 { DF_REPORT } else { 0 };
    let chunk = |bytes: &mut Bytes<'_>| {
        let old = bytes.u8();
        bytes.value(old.into()) as u32
    };
    Header {
        len: u32::from(bytes.u16()) + u32::from(bytes.u8() % 3),
        flags,
        peer: Addr::v4([127, 0, 0, 1], 80 + u16::from(bytes.u8() % 3)),
        more: [chunk(bytes), chunk(bytes), u32::from(bytes.u8()), chunk(bytes)],
        ..Header::default()
    }
}

/// The honest guest sends itself datagrams of all sizes.
fn datagrams(w: &mut World, g: Shell) {
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
        assert!(sent, "datagram {n}: {:?}", w.service.stats(HONEST.0));
        let got = (0..20).find_map(|_| {
            w.settle();
            g.recv_datagram(b, n, DATAGRAM_MAX, true)
        });
        assert_eq!(got, Some(len), "datagram {n} of the honest guest");
    }
    for id in [a, b] {
        g.close(id);
    }
    for _ in 0..10 {
        w.now_ms += 20;
        w.settle();
    }
}

/// The honest guest connects to itself, moves bytes, closes.
fn transfer(w: &mut World, g: Shell, total: usize) {
    let listener = g.open().expect("an id for a listener");
    g.address(Op::Bind, listener, 80);
    g.job(Op::Listen, listener, |n| n.op_data = 8);
    w.settle();
    let client = g.open().expect("an id for a client");
    g.address(Op::Connect, client, 80);
    let mut server = None;
    for _ in 0..50 {
        w.settle();
        server = server.or_else(|| g.accept(listener));
    }
    let state =
        |id| g.device.cell(id).map(|c| (c.state.load(Ordering::Relaxed), c.pending_error()));
    let Some(server) = server else {
        panic!(
            "the honest guest's connection: listener {:?}, client {:?}, {:?} {:?}",
            state(listener),
            state(client),
            w.service.stats(HONEST.0),
            w.service.stack_mut(),
        )
    };
    let server = server.socket;
    let (mut sent, mut got) = (0, 0);
    for _ in 0..2000 {
        sent += g.send(client, sent, (total - sent).min(20_000));
        w.poll_engine();
        w.poll_service();
        got += g.recv(server, got, 10_000, true);
        if got == total {
            break;
        }
    }
    assert_eq!((sent, got), (total, total), "the honest guest's transfer");
    for id in [client, server, listener] {
        g.close(id);
    }
    for _ in 0..10 {
        w.now_ms += 20;
        w.settle();
    }
}
