//! A guest in a test: a device, and a thread that plays daemon, engine and stack for it. Connections loop back within the device.
//!
//! The test binary defines the C library's names as the library does, so tests use `std::net`: it goes through them.

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use nk_attach::{Kind, Message};
use nk_device::cell::*;
use nk_device::nqe::{FLAG_ERROR, unpack_option};
use nk_device::ring::{Consumer, Producer};
use nk_device::stream::{AcceptedSocket, Span, publish_single, take_slot};
use nk_device::{Addr, Cell, Device, Layout, Nqe, Op, Qset};

use crate::process::{self, Identity, Process};
use crate::{fdtable, rings, sys};

const LAYOUT: Layout = Layout { rows: 4, qsets: 64, cells: 1024, chunks: 1024 };
const ROW: u16 = 1;
const GENERATION: u16 = 7;

/// The process, made a guest's by the first test that asks.
pub(crate) fn guest() -> &'static Process {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let len = LAYOUT.region_len();
        let base = NonNull::new(sys::map_private(len).cast::<u8>()).expect("memory");
        // SAFETY: fresh zeroed memory of that length, never unmapped.
        let device = unsafe { Device::with_layout(base, len, LAYOUT) }.expect("device");
        device.format(1);
        let [ours, theirs] = sys::seqpacket_pair().expect("pair");
        let id = Identity {
            row: ROW,
            qset: 0,
            control_fd: sys::move_up(ours),
            doorbell_fd: sys::move_up(sys::eventfd().expect("eventfd")),
        };
        let engine_fd = sys::move_up(sys::eventfd().expect("eventfd"));
        let mut host = Host::new(device, sys::move_up(theirs), id.doorbell_fd);
        host.top_up();
        assert!(process::begin(device, engine_fd, id));
        assert!(fdtable::init(LAYOUT.cells));
        rings::reset(1);
        crate::attach::protect(process::current().expect("process"));
        std::thread::spawn(move || {
            loop {
                if !host.poll() {
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        });
    });
    process::process().expect("attached")
}

/// After a push: whether somebody sleeps, rung or not.
fn wants_doorbell(qset: &Qset) -> bool {
    fence(Ordering::SeqCst);
    qset.wants_doorbell(0)
}

#[derive(Default)]
struct End {
    peer: Option<u32>,
    rx_tail: u32,
    state: u32,
    error_seq: u32,
    shut: bool,
    closed: bool,
}

struct Queues {
    job: Consumer,
    send: Consumer,
    completion: Producer,
    receive: Producer,
    doorbell: i32,
}

struct Host {
    device: Device,
    control: i32,
    queues: HashMap<u16, Queues>,
    ends: HashMap<u32, End>,
    ports: HashMap<u16, u32>,
    next_id: u32,
    next_port: u16,
    id_tail: u32,
    chunk_tail: u32,
    next_chunk: u32,
    next_rx_chunk: u32,
}

impl Host {
    fn new(device: Device, control: i32, doorbell: i32) -> Host {
        let mut queues = HashMap::new();
        queues.insert(0, Queues::new(doorbell));
        Host {
            device,
            control,
            queues,
            ends: HashMap::new(),
            ports: HashMap::new(),
            next_id: 1,
            next_port: 40_000,
            id_tail: 0,
            chunk_tail: 0,
            next_chunk: 0,
            next_rx_chunk: 0,
        }
    }

    fn cell(&self, id: u32) -> &'static Cell {
        let c: *const Cell = self.device.cell(id).expect("cell");
        // SAFETY: the device's memory is never unmapped.
        unsafe { &*c }
    }

    fn new_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        assert!(self.next_id < 900, "tests use few sockets");
        self.cell(id).reset(GENERATION);
        self.ends.insert(id, End::default());
        id
    }

    fn top_up(&mut self) {
        let d = self.device;
        let row = d.row(ROW).expect("row");
        while row.id_grants.available() < 8 {
            let id = self.new_id();
            assert!(row.id_grants.push(&mut self.id_tail, id));
        }
        // Chunks in rotation: far more than what the tests have in flight.
        while row.chunk_grants.available() < 60 {
            assert!(row.chunk_grants.push(&mut self.chunk_tail, self.next_chunk % 512));
            self.next_chunk += 1;
        }
        row.grant_wake.fetch_add(1, Ordering::SeqCst);
        sys::futex_wake(&row.grant_wake, i32::MAX);
        if row.want.load(Ordering::SeqCst) != 0 {
            let shared = d.qset(0).expect("qset");
            let s = self.queues.get_mut(&0).expect("primary");
            // Nobody takes these unless somebody polls, so the ring may be full.
            let _ = s.receive.push(&shared.receive(), &Nqe::new(Op::Granted, 0, 0));
            if wants_doorbell(shared) {
                sys::ring_eventfd(s.doorbell);
            }
        }
    }

    fn poll(&mut self) -> bool {
        let mut busy = false;
        while let Ok((m, mut fds, _)) = nk_attach::recv(self.control, true) {
            busy = true;
            let mut reply = Message::new(Kind::from_u32(m.kind).expect("kind"));
            reply.serial = m.serial;
            if m.kind == Kind::AddQset as u32 {
                let q = self.queues.len() as u16;
                self.queues.insert(q, Queues::new(sys::move_up(fds.take(0).expect("doorbell"))));
                reply.a = q.into();
            }
            if m.kind != Kind::DropQset as u32 {
                nk_attach::send(self.control, &reply, &[]).expect("reply");
            }
        }
        let numbers: Vec<u16> = self.queues.keys().copied().collect();
        for n in numbers {
            let d = self.device;
            let q = d.qset(n).expect("qset");
            while let Some(e) = self.queues.get_mut(&n).and_then(|s| s.job.pop(&q.job())) {
                self.queues[&n].job.commit(&q.job());
                busy = true;
                self.job(n, &e);
            }
            while self.queues.get_mut(&n).and_then(|s| s.send.pop(&q.send())).is_some() {
                self.queues[&n].send.commit(&q.send());
                busy = true;
            }
        }
        let ids: Vec<u32> = self.ends.keys().copied().collect();
        for id in ids {
            busy |= self.carry(id);
        }
        if busy {
            self.top_up();
        }
        busy
    }

    fn reply(&mut self, qset: u16, e: &Nqe, status: i64, size: u32) {
        if e.ticket == 0 {
            return;
        }
        let d = self.device;
        let q = d.qset(qset).expect("qset");
        let mut r = Nqe::new(Op::Reply, e.socket, e.generation);
        r.ticket = e.ticket;
        r.op_data = status as u64;
        r.size = size;
        r.flags = if status < 0 { FLAG_ERROR } else { 0 };
        let s = self.queues.get_mut(&qset).expect("queues");
        s.completion.push(&q.completion(), &r).expect("room");
        q.completion_wake.fetch_add(1, Ordering::SeqCst);
        sys::futex_wake(&q.completion_wake, i32::MAX);
    }

    fn job(&mut self, qset: u16, e: &Nqe) {
        let id = e.socket;
        let Some(op) = Op::from_u8(e.op) else { panic!("op {}", e.op) };
        match op {
            Op::Bind => {
                let mut a = Addr::from_words(2, e.size, e.op_data, e.data);
                if self.ports.contains_key(&a.port) {
                    return self.reply(qset, e, -i64::from(libc::EADDRINUSE), 0);
                }
                if a.port == 0 {
                    self.next_port += 1;
                    a.port = self.next_port;
                }
                self.cell(id).local.store(&a);
                self.change(id, SF_BOUND, 0);
                self.reply(qset, e, 0, 0);
            }
            Op::Listen => {
                self.ports.insert(self.cell(id).local.load().port, id);
                self.change(id, SF_LISTENING, 0);
                self.reply(qset, e, 0, 0);
            }
            Op::Connect => {
                self.connect(id, Addr::from_words(2, e.size, e.op_data, e.data));
                self.reply(qset, e, -i64::from(libc::EINPROGRESS), 0);
            }
            Op::Shutdown => self.ends.get_mut(&id).expect("end").shut |= e.op_data != 0,
            Op::Close => {
                let end = self.ends.get_mut(&id).expect("end");
                assert!(!end.closed, "closed twice");
                end.closed = true;
                end.shut = true;
                let port = self.cell(id).local.load().port;
                if self.ports.get(&port) == Some(&id) {
                    self.ports.remove(&port);
                }
            }
            Op::GetSockOpt => match unpack_option(e.size) {
                (6, 11, _) => {
                    let d = self.device;
                    for (i, w) in d.qset(qset).expect("qset").reply.iter().enumerate() {
                        w.store(i as u64, Ordering::SeqCst);
                    }
                    self.reply(qset, e, 0, 104);
                }
                (6, 2, _) => self.reply(qset, e, -i64::from(libc::EINVAL), 0),
                _ => self.reply(qset, e, 7, 4),
            },
            Op::SetSockOpt | Op::Drain => self.reply(qset, e, 0, 0),
            Op::Disconnect => {
                self.change(id, 0, SF_CONNECTED | SF_DEAD | SF_EOF | SF_FAILED);
                self.reply(qset, e, 0, 0);
            }
            _ => {}
        }
    }

    fn connect(&mut self, id: u32, to: Addr) {
        let Some(&listener) = self.ports.get(&to.port) else {
            let end = self.ends.get_mut(&id).expect("end");
            end.error_seq += 1;
            let error = u64::from(end.error_seq) << 32 | libc::ECONNREFUSED as u64;
            self.cell(id).error.store(error, Ordering::SeqCst);
            return self.change(id, SF_DEAD | SF_FAILED, 0);
        };
        let accepted = self.new_id();
        self.next_port += 1;
        let from = Addr::v4([127, 0, 0, 1], self.next_port);
        for (a, b, local, peer) in [(id, accepted, from, to), (accepted, id, to, from)] {
            self.cell(a).local.store(&local);
            self.cell(a).peer.store(&peer);
            self.ends.get_mut(&a).expect("end").peer = Some(b);
        }
        let payload = AcceptedSocket { socket: accepted, generation: GENERATION }.to_payload();
        self.publish(listener, payload);
        self.change(accepted, SF_BOUND | SF_CONNECTED, 0);
        self.change(id, SF_BOUND | SF_CONNECTED, SF_DEAD | SF_FAILED);
    }

    fn publish(&mut self, id: u32, payload: u64) {
        let c = self.cell(id);
        let end = self.ends.get_mut(&id).expect("end");
        publish_single(&c.rx_tail, &c.rx_slots, &mut end.rx_tail, c.position().index, payload)
            .expect("room");
        self.change(id, 0, 0);
    }

    fn change(&mut self, id: u32, set: u32, clear: u32) {
        let c = self.cell(id);
        let end = self.ends.get_mut(&id).expect("end");
        end.state = (end.state & !clear) | set;
        c.state.store(end.state, Ordering::SeqCst);
        if !(c.announce_rx() | c.announce_tx()) {
            return;
        }
        sys::futex_wake(&c.rx_wake, i32::MAX);
        sys::futex_wake(&c.tx_wake, i32::MAX);
        for w in &c.watch {
            let q = (w.load(Ordering::SeqCst) & WATCH_QSET_MASK).wrapping_sub(1) as u16;
            let d = self.device;
            if let Some(s) = self.queues.get_mut(&q)
                && let Some(shared) = d.qset(q)
            {
                s.receive
                    .push(&shared.receive(), &Nqe::new(Op::Event, id, GENERATION))
                    .expect("room");
                if wants_doorbell(shared) {
                    sys::ring_eventfd(s.doorbell);
                }
            }
        }
    }

    /// Moves what one socket sent to its peer.
    fn carry(&mut self, id: u32) -> bool {
        let Some(peer) = self.ends[&id].peer else { return false };
        let c = self.cell(id);
        let other = self.cell(peer);
        let mut busy = false;
        let mut head = c.tx_head.load(Ordering::SeqCst);
        while head != c.tx_tail.load(Ordering::SeqCst) {
            let used = self.ends[&peer].rx_tail.wrapping_sub(other.position().index);
            if used as usize >= nk_device::STREAM_SLOTS {
                break;
            }
            let taken = take_slot(&c.tx_slots, head).expect("slot");
            let span = Span::from_payload(taken.payload).expect("span");
            let to = 512 + self.next_rx_chunk % 512;
            self.next_rx_chunk += 1;
            // SAFETY: both are chunks, and the span is within one.
            unsafe {
                let from = self.device.chunk(span.chunk).expect("chunk").as_ptr();
                core::ptr::copy_nonoverlapping(
                    from.add(span.offset as usize),
                    self.device.chunk(to).expect("chunk").as_ptr(),
                    span.len as usize,
                );
            }
            self.publish(peer, Span { chunk: to, offset: 0, len: span.len }.to_payload());
            head = head.wrapping_add(1);
            c.tx_head.store(head, Ordering::SeqCst);
            self.change(id, 0, 0);
            busy = true;
        }
        if self.ends[&id].shut
            && self.ends[&peer].state & SF_EOF == 0
            && head == c.tx_tail.load(Ordering::SeqCst)
        {
            self.change(peer, SF_EOF, 0);
            busy = true;
        }
        busy
    }
}

impl Queues {
    fn new(doorbell: i32) -> Queues {
        Queues {
            job: Consumer::default(),
            send: Consumer::default(),
            completion: Producer::default(),
            receive: Producer::default(),
            doorbell,
        }
    }
}

mod flows;
