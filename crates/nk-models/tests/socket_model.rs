//! GuestLib's sockets against a small model of what Linux does: any order of the service's events and the program's calls, with few
//! chunks and a small ring, gives the same bytes, errors, ends and event masks.
#![cfg(not(loom))]

use core::ptr::NonNull;
use std::collections::VecDeque;

use nk_device::cell::{GF_SHUT_RD, GF_SHUT_WR, SF_CONNECTED, SF_DEAD, SF_EOF};
use nk_device::stream::{Span, publish_single, read_slot};
use nk_device::sync::Ordering;
use nk_device::{CHUNK_SIZE, Cell, Layout, STREAM_SLOTS};
use nk_guestlib::readiness::{
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, WRITABLE_SLOTS, readiness,
};
use nk_guestlib::recv::{Received, Sink, available, recv};
use nk_guestlib::send::{Chunks, SendError, Source, queued, send};
use nk_guestlib::{Fault, Socket};
use nk_models::played::region::Region;
use proptest::prelude::*;

const RX_CHUNKS: u32 = 64;
const TX_CHUNKS: u32 = 40;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// The service delivers bytes at an offset in a chunk.
    Deliver { offset: u32, len: u32 },
    /// The peer's FIN.
    Fin,
    /// A reset with this errno.
    Reset(i32),
    /// recv, with MSG_PEEK or without.
    Recv { len: usize, peek: bool },
    /// send.
    Send(usize),
    /// The service takes descriptors.
    Take(u32),
    /// The host leases so many of the free chunks again.
    Lease(usize),
    /// shutdown(SHUT_RD).
    ShutRd,
    /// shutdown(SHUT_WR).
    ShutWr,
    /// getsockopt(SO_ERROR).
    SoError,
}

fn step() -> impl Strategy<Value = Step> {
    let size = CHUNK_SIZE as u32;
    prop_oneof![
        6 => (0..size, 1..=size).prop_map(move |(offset, len)| Step::Deliver {
            offset,
            len: len.min(size - offset)
        }),
        6 => (1usize..40_000, any::<bool>()).prop_map(|(len, peek)| Step::Recv { len, peek }),
        6 => (1usize..300_000).prop_map(Step::Send),
        5 => (0u32..20).prop_map(Step::Take),
        5 => (0usize..24).prop_map(Step::Lease),
        1 => Just(Step::Fin),
        1 => prop_oneof![Just(104), Just(110), Just(32)].prop_map(Step::Reset),
        1 => Just(Step::ShutRd),
        1 => Just(Step::ShutWr),
        2 => Just(Step::SoError),
    ]
}

/// What Linux keeps of a connected socket.
#[derive(Debug, Default)]
struct Linux {
    received: VecDeque<u8>,
    fin: bool,
    error: i32,
    reset: bool,
    shut_rd: bool,
    shut_wr: bool,
}

#[derive(Debug, PartialEq)]
enum Read {
    Bytes(Vec<u8>),
    End,
    Again,
    Errno(i32),
}

impl Linux {
    /// tcp_recvmsg_locked.
    fn recv(&mut self, len: usize, peek: bool) -> Read {
        if !self.received.is_empty() {
            let n = len.min(self.received.len());
            let bytes = self.received.iter().take(n).copied().collect();
            if !peek {
                self.received.drain(..n);
            }
            return Read::Bytes(bytes);
        }
        if self.fin {
            return Read::End;
        }
        match core::mem::take(&mut self.error) {
            0 if self.shut_rd || self.reset => Read::End,
            0 => Read::Again,
            e => Read::Errno(e),
        }
    }
    /// tcp_sendmsg_locked, up to the first byte; `None`: bytes may be taken.
    fn send(&mut self) -> Option<SendError> {
        match core::mem::take(&mut self.error) {
            0 if self.shut_wr || self.reset => Some(SendError::Pipe),
            0 => None,
            libc::EPIPE => Some(SendError::Pipe),
            e => Some(SendError::Errno(e)),
        }
    }
    /// tcp_poll.
    fn poll(&self, writable: bool) -> u32 {
        let mut mask = 0;
        let rd = self.fin || self.reset || self.shut_rd;
        let wr = self.shut_wr || self.reset;
        if rd && wr {
            mask |= EPOLLHUP;
        }
        if rd {
            mask |= EPOLLIN | EPOLLRDHUP;
        }
        if !self.received.is_empty() {
            mask |= EPOLLIN;
        }
        if wr || writable {
            mask |= EPOLLOUT;
        }
        if self.error != 0 {
            mask |= EPOLLERR;
        }
        mask
    }
}

struct Leased(VecDeque<u32>);
impl Chunks for Leased {
    fn take(&mut self) -> Option<u32> {
        self.0.pop_front()
    }
    fn put_back(&mut self, chunk: u32) {
        self.0.push_front(chunk);
    }
}

struct From<'a>(&'a [u8]);
impl Source for From<'_> {
    fn copy(&mut self, at: usize, to: NonNull<u8>, len: usize) -> Result<(), Fault> {
        let part = self.0.get(at..at + len).ok_or(Fault)?;
        // SAFETY: the core gives a place within a chunk of the mapped device with room for len bytes.
        unsafe { core::ptr::copy_nonoverlapping(part.as_ptr(), to.as_ptr(), len) };
        Ok(())
    }
}

struct To(Vec<u8>);
impl Sink for To {
    fn copy(&mut self, at: usize, from: NonNull<u8>, len: usize) -> Result<(), Fault> {
        let part = self.0.get_mut(at..at + len).ok_or(Fault)?;
        // SAFETY: the core gives a place within a chunk of the mapped device with len bytes.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), part.as_mut_ptr(), len) };
        Ok(())
    }
}

/// The service's side, and everything that both sides said.
struct Played<'a> {
    region: &'a Region,
    rx_tail: u32,
    tx_head: u32,
    errors: u64,
    served: u32,
    next_rx: u8,
    next_tx: u8,
    leased: Leased,
    spent: Vec<u32>,
    sent: VecDeque<u8>,
    linux: Linux,
}

impl Played<'_> {
    fn cell(&self) -> &Cell {
        self.region.device.cell(0).expect("cell")
    }
    fn socket(&self) -> Socket<'_> {
        Socket { device: &self.region.device, cell: self.cell() }
    }
    fn room(&self) -> usize {
        let used = self.cell().tx_tail.load(Ordering::Relaxed).wrapping_sub(self.tx_head);
        STREAM_SLOTS - used as usize
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Deliver { offset, len } => self.deliver(offset, len),
            Step::Fin if !self.linux.reset => {
                self.linux.fin = true;
                self.cell().state.fetch_or(SF_EOF, Ordering::SeqCst);
            }
            Step::Reset(errno) if !self.linux.reset => {
                (self.linux.reset, self.linux.error) = (true, errno);
                self.errors += 1;
                self.cell().error.store(self.errors << 32 | errno as u64, Ordering::SeqCst);
                self.cell().state.fetch_or(SF_DEAD, Ordering::SeqCst);
            }
            Step::Fin | Step::Reset(_) => {}
            Step::Recv { len, peek } => {
                let mut to = To(vec![0; len]);
                let got = match recv(&self.socket(), &mut to, len, peek) {
                    Received::Bytes { count, .. } => {
                        to.0.truncate(count);
                        Read::Bytes(to.0)
                    }
                    Received::Eof => Read::End,
                    Received::WouldBlock => Read::Again,
                    Received::Errno(e) => Read::Errno(e),
                };
                assert_eq!(got, self.linux.recv(len, peek));
            }
            Step::Send(len) => self.send(len),
            Step::Take(count) => self.take(count),
            Step::Lease(count) => {
                let n = count.min(self.spent.len());
                self.leased.0.extend(self.spent.drain(..n));
            }
            Step::ShutRd => {
                self.linux.shut_rd = true;
                self.cell().guest_state.fetch_or(GF_SHUT_RD, Ordering::SeqCst);
            }
            Step::ShutWr => {
                self.linux.shut_wr = true;
                self.cell().guest_state.fetch_or(GF_SHUT_WR, Ordering::SeqCst);
            }
            Step::SoError => {
                let theirs = core::mem::take(&mut self.linux.error);
                assert_eq!(self.cell().take_error(), theirs);
            }
        }
        let can_send = !self.leased.0.is_empty();
        let writable = can_send && self.room() >= WRITABLE_SLOTS as usize;
        let ours = readiness(self.cell(), can_send)
            & (EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDHUP);
        assert_eq!(ours, self.linux.poll(writable), "{:?}", self.linux);
        assert_eq!(available(self.cell()), self.linux.received.len());
        assert_eq!(queued(&self.socket()), self.sent.len());
    }

    fn deliver(&mut self, offset: u32, len: u32) {
        if self.linux.fin || self.linux.reset {
            return;
        }
        // A chunk is used again only after a whole lap of twice the ring.
        let chunk = self.rx_tail % RX_CHUNKS;
        let bytes: Vec<u8> = (0..len).map(|i| self.next_rx.wrapping_add(i as u8)).collect();
        let cell = self.region.device.cell(0).expect("cell");
        let head = cell.position().index;
        let span = Span { chunk, offset, len }.to_payload();
        if self.rx_tail.wrapping_sub(head) < STREAM_SLOTS as u32 {
            let to = self.region.device.chunk(chunk).expect("chunk");
            // SAFETY: offset + len is within the chunk, by the strategy.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    bytes.as_ptr(),
                    to.as_ptr().add(offset as usize),
                    bytes.len(),
                );
            };
            publish_single(&cell.rx_tail, &cell.rx_slots, &mut self.rx_tail, head, span)
                .expect("room");
            self.next_rx = self.next_rx.wrapping_mul(31).wrapping_add(7);
            self.linux.received.extend(bytes);
        }
    }

    fn send(&mut self, len: usize) {
        let bytes: Vec<u8> = (0..len).map(|i| self.next_tx.wrapping_add((i / 3) as u8)).collect();
        let fits = self.room().min(self.leased.0.len()) * CHUNK_SIZE;
        let room = self.room();
        let mut chunks = Leased(core::mem::take(&mut self.leased.0));
        let got = send(&self.socket(), &mut chunks, &mut From(&bytes), len);
        self.leased = chunks;
        let refused = self.linux.send();
        match (got, refused) {
            (Err(e), Some(theirs)) => assert_eq!(e, theirs),
            (Err(e), None) => {
                assert_eq!(fits, 0);
                let why = if room == 0 { SendError::WouldBlock } else { SendError::NoChunks };
                assert_eq!(e, why);
            }
            (Ok(sent), None) => {
                assert_eq!(sent.bytes, len.min(fits));
                self.sent.extend(&bytes[..sent.bytes]);
                self.next_tx = self.next_tx.wrapping_mul(29).wrapping_add(11);
            }
            (Ok(_), Some(theirs)) => panic!("sent, where Linux says {theirs:?}"),
        }
    }

    fn take(&mut self, count: u32) {
        let cell = self.region.device.cell(0).expect("cell");
        let wanted = cell.tx_want.load(Ordering::Relaxed) != self.served;
        for _ in 0..count {
            if self.tx_head == cell.tx_tail.load(Ordering::Relaxed) {
                break;
            }
            let span = read_slot(&cell.tx_slots, self.tx_head)
                .and_then(Span::from_payload)
                .expect("a span");
            let from = self.region.device.chunk(span.chunk).expect("chunk").as_ptr();
            for i in 0..span.len as usize {
                // SAFETY: Span::from_payload keeps it within the chunk.
                let b = unsafe { from.add(span.offset as usize + i).read() };
                assert_eq!(Some(b), self.sent.pop_front());
            }
            self.spent.push(span.chunk);
            self.tx_head = self.tx_head.wrapping_add(1);
        }
        let told = cell.consume_tx(self.tx_head, SF_CONNECTED, &mut self.served);
        assert_eq!(told, wanted && self.room() >= WRITABLE_SLOTS as usize);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn a_socket_does_what_linux_does(steps in prop::collection::vec(step(), 1..120)) {
        let layout =
            Layout { rows: 0, qsets: 1, cells: 1, chunks: RX_CHUNKS + TX_CHUNKS };
        let region = Region::new(layout, 1);
        let cell = region.device.cell(0).expect("cell");
        cell.reset(1);
        cell.state.store(SF_CONNECTED, Ordering::SeqCst);
        let mut played = Played {
            region: &region,
            rx_tail: 0,
            tx_head: 0,
            errors: 0,
            served: 0,
            next_rx: 3,
            next_tx: 5,
            leased: Leased((RX_CHUNKS..RX_CHUNKS + TX_CHUNKS).collect()),
            spent: Vec::new(),
            sent: VecDeque::new(),
            linux: Linux::default(),
        };
        for s in &steps {
            played.step(s);
        }
    }
}
