//! One host and its guests in one process: engine, service and kernel stack are the real ones, the guest's side is played with
//! GuestLib's core over the same devices.
#![allow(dead_code, reason = "each test uses a part")]

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use nk_device::cell::{SF_BOUND, SF_CONNECTED};
use nk_device::nqe::FLAG_ERROR;
use nk_device::ring::Consumer;
use nk_device::stream::AcceptedSocket;
use nk_device::sync::{AtomicU32, Ordering};
use nk_device::{Addr, Cell, Counters, Device, Layout, Nqe, Op, SharedCounters};
use nk_engine::{Engine, GuestId, GuestSetup, Limits, Notify, NsmId};
use nk_guestlib::accept::{Accepted, accept};
use nk_guestlib::recv::{Received, Sink, recv};
use nk_guestlib::send::{Chunks, SendError, Source, send};
use nk_guestlib::{Fault, Socket};
use nk_servicelib::{GuestPool, Service};
use nk_stack_kernel::{KernelStack, OwnNamespace};

pub const LAYOUT: Layout = Layout { rows: 16, qsets: 32, cells: 512, chunks: 256 };
pub const NSM: NsmId = NsmId(0);

/// An anonymous shared mapping with a device in it.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    pub device: Device,
    pub counters: SharedCounters,
    _counters: Box<Counters>,
}

impl Region {
    pub fn new(layout: Layout, guest: u16) -> Region {
        let len = layout.region_len();
        // SAFETY: a fresh anonymous mapping of len bytes, page-aligned and zeroed, unmapped in drop.
        unsafe {
            let p = libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            );
            assert_ne!(p, libc::MAP_FAILED);
            let base = NonNull::new(p.cast()).expect("mapping");
            let device = Device::with_layout(base, len, layout).expect("layout");
            device.format(guest);
            let memory = Box::<Counters>::default();
            let counters = SharedCounters::new(NonNull::from(&*memory).cast()).expect("fresh");
            Region { base, len, device, counters, _counters: memory }
        }
    }
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in new; the harness drops regions after what uses them.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

// SAFETY: all access is by atomics and raw copies, see Device.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

#[derive(Debug, Default)]
pub struct Log {
    pub doorbells: Vec<(GuestId, u16)>,
    pub futex_wakes: Vec<(usize, u32)>,
    pub idle: Vec<GuestId>,
}

impl Notify for Log {
    fn doorbell(&mut self, guest: GuestId, qset: u16) {
        self.doorbells.push((guest, qset));
    }
    fn futex_wake(&mut self, word: &AtomicU32, count: u32) {
        self.futex_wakes.push((std::ptr::from_ref(word) as usize, count));
    }
    fn nsm_doorbell(&mut self, _nsm: NsmId) {}
    fn guest_idle(&mut self, guest: GuestId) {
        self.idle.push(guest);
    }
}

pub struct Host {
    pub engine: Engine,
    pub service: Service<KernelStack>,
    pub log: Log,
    pub nsm: Region,
    pub start: Instant,
    pub skip_ms: u64,
    /// The time, where a test says it itself.
    pub at_ms: Option<u64>,
}

impl Host {
    pub fn new() -> Host {
        let nsm = Region::new(Layout::NSM, 0);
        let mut engine = Engine::new();
        engine.add_nsm(NSM, nsm.device).expect("nsm");
        let mut stack = KernelStack::new(Box::new(OwnNamespace), None).expect("stack");
        // As the daemon does it; what has a stack of its own among these tests does without.
        let _ = stack.use_io_uring();
        let service = Service::new(stack, nsm.device);
        Host {
            engine,
            service,
            log: Log::default(),
            nsm,
            start: Instant::now(),
            skip_ms: 0,
            at_ms: None,
        }
    }

    pub fn add_guest(&mut self, id: u16, namespace: u64, limits: Limits) -> Region {
        let region = Region::new(LAYOUT, id);
        self.add_guest_over(&region, id, namespace, limits);
        region
    }

    pub fn setup(region: &Region, id: u16, namespace: u64, limits: Limits) -> GuestSetup {
        GuestSetup {
            id: GuestId(id),
            device: region.device,
            namespace,
            nsm: NSM,
            limits,
            vm: false,
            counters: region.counters,
        }
    }

    pub fn add_guest_over(&mut self, region: &Region, id: u16, namespace: u64, limits: Limits) {
        self.service.add_guest(Host::pool(region, id, namespace));
        self.engine.add_guest(Host::setup(region, id, namespace, limits)).expect("guest");
    }

    pub fn pool(region: &Region, id: u16, namespace: u64) -> GuestPool {
        GuestPool {
            guest: id,
            device: region.device,
            namespace,
            pool: 0..region.device.layout().chunks,
            ledger: None,
            counters: region.counters,
        }
    }

    pub fn now_ms(&self) -> u64 {
        self.at_ms.unwrap_or(self.start.elapsed().as_millis() as u64) + self.skip_ms
    }

    /// What the poll thread does in one round.
    pub fn poll(&mut self) {
        let now_ns = self.now_ms() * 1_000_000;
        self.engine.poll(now_ns, 1024, &mut self.log);
        self.service.poll(now_ns, Some(0), &mut || {});
        self.engine.poll(now_ns, 1024, &mut self.log);
    }

    pub fn polls(&mut self, n: usize) {
        for _ in 0..n {
            self.poll();
        }
    }

    /// Polls until the condition gives something.
    #[track_caller]
    pub fn until<R>(&mut self, what: &str, mut f: impl FnMut(&mut Host) -> Option<R>) -> R {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            self.poll();
            if let Some(r) = f(self) {
                return r;
            }
            assert!(Instant::now() < end, "no {what} within 10 s");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub fn process(&mut self, guest: u16, device: Device) -> Process {
        let r = self.engine.add_row(GuestId(guest), 4000).expect("row");
        Process::new(device, r.row, r.qset)
    }
}

/// One process of a guest.
pub struct Process {
    pub device: Device,
    pub row: u16,
    pub qset: u16,
    pub completion: Consumer,
    pub receive: Consumer,
    ticket: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    pub socket: u32,
    pub generation: u16,
}

impl Process {
    pub fn new(device: Device, row: u16, qset: u16) -> Process {
        Process {
            device,
            row,
            qset,
            completion: Consumer::default(),
            receive: Consumer::default(),
            ticket: 0,
        }
    }
    pub fn q(&self) -> &nk_device::Qset {
        self.device.qset(self.qset).expect("qset")
    }
    pub fn cell(&self, id: Id) -> &Cell {
        self.device.cell(id.socket).expect("cell")
    }
    pub fn state(&self, id: Id) -> u32 {
        self.cell(id).state.load(Ordering::SeqCst)
    }
    pub fn push(&self, nqe: Nqe) {
        if nqe.op == Op::Send as u8 {
            self.q().send().push(&nqe).expect("room");
        } else {
            self.q().job().push(&nqe).expect("room");
        }
        let _ = self.device.header().ring_bell(self.qset);
    }
    pub fn socket(&mut self, family: u16) -> Id {
        self.socket_of(family, 1)
    }
    pub fn datagram(&mut self, family: u16) -> Id {
        self.socket_of(family, 2)
    }
    fn socket_of(&mut self, family: u16, kind: u32) -> Id {
        let row = self.device.row(self.row).expect("row");
        let socket = row.id_grants.pop().expect("an id");
        let cell = self.device.cell(socket).expect("cell");
        let generation = cell.generation.load(Ordering::Acquire) as u16;
        let id = Id { socket, generation };
        let kind = u32::from(family) | kind << 16;
        cell.kind.store(kind, Ordering::Relaxed);
        cell.hold(self.row);
        let mut nqe = Nqe::new(Op::Socket, socket, generation);
        nqe.op_data = u64::from(kind);
        self.push(nqe);
        id
    }
    /// A synchronous call: 0 or an errno.
    pub fn call(&mut self, host: &mut Host, mut nqe: Nqe) -> Result<Nqe, i32> {
        self.ticket = self.ticket % 63 + 1;
        nqe.ticket = self.ticket;
        self.push(nqe);
        let r = host.until("reply", |_| {
            let q = self.device.qset(self.qset).expect("qset");
            let e = self.completion.pop(&q.completion());
            self.completion.commit(&q.completion());
            e
        });
        assert_eq!(r.ticket, self.ticket);
        if r.flags & FLAG_ERROR != 0 { Err(-(r.op_data as i64) as i32) } else { Ok(r) }
    }
    pub fn with_addr(op: Op, id: Id, a: &Addr) -> Nqe {
        let mut nqe = Nqe::new(op, id.socket, id.generation);
        (nqe.size, nqe.op_data, nqe.data) = a.to_words();
        nqe
    }
    pub fn bind(&mut self, host: &mut Host, id: Id, a: &Addr) -> Result<Addr, i32> {
        self.call(host, Process::with_addr(Op::Bind, id, a))?;
        assert_ne!(self.state(id) & SF_BOUND, 0);
        Ok(self.cell(id).local.load())
    }
    pub fn listen(&mut self, host: &mut Host, id: Id, backlog: u32) -> Result<Addr, i32> {
        let mut nqe = Nqe::new(Op::Listen, id.socket, id.generation);
        nqe.op_data = u64::from(backlog);
        self.call(host, nqe)?;
        Ok(self.cell(id).local.load())
    }
    pub fn listener(&mut self, host: &mut Host, backlog: u32) -> (Id, u16) {
        let id = self.socket(2);
        self.bind(host, id, &Addr::v4([127, 0, 0, 1], 0)).expect("bind");
        let a = self.listen(host, id, backlog).expect("listen");
        assert_ne!(a.port, 0);
        (id, a.port)
    }
    pub fn connect(&mut self, host: &mut Host, id: Id, a: &Addr) -> Result<(), i32> {
        match self.call(host, Process::with_addr(Op::Connect, id, a)) {
            Err(libc::EINPROGRESS) => {}
            other => panic!("{other:?}"),
        }
        host.until("connect", |_| {
            let e = self.cell(id).take_error();
            if e != 0 {
                return Some(Err(e));
            }
            (self.state(id) & SF_CONNECTED != 0).then_some(Ok(()))
        })
    }
    pub fn connected(&mut self, host: &mut Host, port: u16) -> Id {
        let id = self.socket(2);
        self.connect(host, id, &Addr::v4([127, 0, 0, 1], port)).expect("connect");
        id
    }
    pub fn try_accept(&mut self, listener: Id) -> Option<Id> {
        match accept(&self.device, self.cell(listener), self.row) {
            Accepted::Socket { socket: AcceptedSocket { socket, generation }, rx_room } => {
                if rx_room {
                    self.push(Nqe::new(Op::RxRoom, listener.socket, listener.generation));
                }
                Some(Id { socket, generation })
            }
            Accepted::WouldBlock => None,
            Accepted::Errno(e) => panic!("accept: {e}"),
        }
    }
    pub fn accept(&mut self, host: &mut Host, listener: Id) -> Id {
        host.until("connection", |_| self.try_accept(listener))
    }
    pub fn try_send(&mut self, id: Id, bytes: &[u8]) -> Result<usize, SendError> {
        let device = self.device;
        let socket = Socket { device: &device, cell: device.cell(id.socket).expect("cell") };
        let mut chunks = Grants { device, row: self.row, back: None };
        let r = send(&socket, &mut chunks, &mut From(bytes), bytes.len());
        assert!(chunks.back.is_none(), "the tests never leave a chunk over");
        match r {
            Ok(s) => {
                if s.kick {
                    self.push(Nqe::new(Op::Send, id.socket, id.generation));
                }
                Ok(s.bytes)
            }
            Err(SendError::NoChunks) => {
                self.push(Nqe::new(Op::Refill, 0, 0));
                Err(SendError::NoChunks)
            }
            Err(e) => Err(e),
        }
    }
    pub fn send(&mut self, host: &mut Host, id: Id, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = host.until("room", |_| match self.try_send(id, bytes) {
                Ok(n) => Some(n),
                Err(SendError::WouldBlock | SendError::NoChunks) => None,
                Err(e) => panic!("send: {e:?}"),
            });
            bytes = &bytes[n..];
        }
    }
    pub fn try_recv(&mut self, id: Id, len: usize) -> (Received, Vec<u8>) {
        let device = self.device;
        let socket = Socket { device: &device, cell: device.cell(id.socket).expect("cell") };
        let mut to = To(vec![0; len]);
        let got = recv(&socket, &mut to, len, false);
        if let Received::Bytes { count, rx_room } = got {
            to.0.truncate(count);
            if rx_room {
                self.push(Nqe::new(Op::RxRoom, id.socket, id.generation));
            }
        } else {
            to.0.clear();
        }
        (got, to.0)
    }
    /// Up to `len` bytes; empty at the end of the stream.
    pub fn recv(&mut self, host: &mut Host, id: Id, len: usize) -> Result<Vec<u8>, i32> {
        host.until("bytes", |_| match self.try_recv(id, len) {
            (Received::Bytes { .. }, v) => Some(Ok(v)),
            (Received::Eof, _) => Some(Ok(Vec::new())),
            (Received::WouldBlock, _) => None,
            (Received::Errno(e), _) => Some(Err(e)),
        })
    }
    pub fn shutdown_wr(&mut self, id: Id) {
        self.cell(id).guest_state.fetch_or(nk_device::cell::GF_SHUT_WR, Ordering::SeqCst);
        let mut nqe = Nqe::new(Op::Shutdown, id.socket, id.generation);
        nqe.op_data = 1;
        self.push(nqe);
    }
    pub fn close(&mut self, id: Id) {
        if self.cell(id).release(self.row) {
            self.push(Nqe::new(Op::Close, id.socket, id.generation));
        }
    }
    pub fn events(&mut self) -> Vec<Nqe> {
        let q = self.device.qset(self.qset).expect("qset");
        let mut out = Vec::new();
        while let Some(e) = self.receive.pop(&q.receive()) {
            out.push(e);
        }
        self.receive.commit(&q.receive());
        out
    }
}

struct Grants {
    device: Device,
    row: u16,
    back: Option<u32>,
}
impl Chunks for Grants {
    fn take(&mut self) -> Option<u32> {
        self.back.take().or_else(|| self.device.row(self.row)?.chunk_grants.pop())
    }
    fn put_back(&mut self, chunk: u32) {
        self.back = Some(chunk);
    }
    fn begin_append(&mut self, chunk: u32) -> bool {
        self.device.row(self.row).is_some_and(|r| r.begin_append(chunk))
    }
    fn end_append(&mut self) {
        if let Some(r) = self.device.row(self.row) {
            r.end_append();
        }
    }
}

struct From<'a>(&'a [u8]);
impl Source for From<'_> {
    fn copy(&mut self, at: usize, to: NonNull<u8>, len: usize) -> Result<(), Fault> {
        let part = self.0.get(at..at + len).ok_or(Fault)?;
        // SAFETY: the core gives a place within a chunk with room for len bytes.
        unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), to.as_ptr(), len) };
        Ok(())
    }
}

struct To(Vec<u8>);
impl Sink for To {
    fn copy(&mut self, at: usize, from: NonNull<u8>, len: usize) -> Result<(), Fault> {
        let part = self.0.get_mut(at..at + len).ok_or(Fault)?;
        // SAFETY: the core gives a place within a chunk with len bytes.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), part.as_mut_ptr(), len) };
        Ok(())
    }
}

/// Everything is back where it was: no socket, no chunk but leases.
#[track_caller]
pub fn assert_quiet(host: &mut Host, guest: u16) {
    host.until("quiet", |h| (h.engine.guest_sockets(GuestId(guest)) == 0).then_some(()));
    let s = host.service.stats(guest).expect("guest");
    assert_eq!((s.sockets, s.chunks_tx, s.chunks_rx), (0, 0, 0), "{s:?}");
    assert_eq!(s.chunks_free + s.chunks_leased, 256, "{s:?}");
}
