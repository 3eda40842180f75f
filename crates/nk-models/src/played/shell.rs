//! A guest without a shell of its own: GuestLib's core over rows and rings, used directly.

use core::ptr::NonNull;
use std::cell::RefCell;
use std::rc::Rc;

use nk_device::datagram::{DATAGRAM_MAX, Header};
use nk_device::nqe::{Nqe, Op};
use nk_device::stream::AcceptedSocket;
use nk_device::sync::Ordering;
use nk_device::{Addr, Device};
use nk_guestlib::accept::{Accepted, accept};
use nk_guestlib::datagram;
use nk_guestlib::recv::{Received, Sink, recv};
use nk_guestlib::send::{Chunks, Source, send};
use nk_guestlib::{Fault, Socket};

/// A guest without a shell: rows and rings, used directly.
#[derive(Clone, Debug)]
pub(super) struct Shell {
    pub(super) device: Device,
    pub(super) row: u16,
    pub(super) qset: u16,
    /// Its process, and that one's connection to the daemon, where there are such.
    pub(super) pid: i32,
    pub(super) control: u32,
    /// Chunks that were taken and not used.
    pub(super) spare: Rc<RefCell<Vec<u32>>>,
}

struct RowChunks<'a>(&'a Shell);
impl Chunks for RowChunks<'_> {
    fn take(&mut self) -> Option<u32> {
        let spare = self.0.spare.borrow_mut().pop();
        spare.or_else(|| self.0.device.row(self.0.row)?.chunk_grants.pop())
    }
    fn put_back(&mut self, chunk: u32) {
        self.0.spare.borrow_mut().push(chunk);
    }
    fn begin_append(&mut self, chunk: u32) -> bool {
        self.0.device.row(self.0.row).is_some_and(|r| r.begin_append(chunk))
    }
    fn end_append(&mut self) {
        if let Some(r) = self.0.device.row(self.0.row) {
            r.end_append();
        }
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

/// A datagram's number, then what no other has there.
struct Numbered(usize);
const NUMBER_BYTES: usize = 8;
fn numbered(number: usize, at: usize) -> u8 {
    match (number as u64).to_le_bytes().get(at) {
        Some(b) => *b,
        None => byte(number * 1_000_003 + at),
    }
}
impl Source for Numbered {
    fn copy(&mut self, at: usize, to: NonNull<u8>, len: usize) -> Result<(), Fault> {
        for i in 0..len {
            // SAFETY: as in Pattern.
            unsafe { to.as_ptr().add(i).write_volatile(numbered(self.0, at + i)) };
        }
        Ok(())
    }
}

/// What was received.
#[derive(Default)]
struct Bytes(Vec<u8>);
impl Sink for Bytes {
    fn copy(&mut self, at: usize, from: NonNull<u8>, len: usize) -> Result<(), Fault> {
        // From there on anew: another reader was faster with what was copied so far.
        self.0.truncate(at);
        // SAFETY: as in Check.
        self.0.extend((0..len).map(|i| unsafe { from.as_ptr().add(i).read_volatile() }));
        Ok(())
    }
}

pub(super) fn byte(n: usize) -> u8 {
    (n.wrapping_mul(2_654_435_761) >> 13) as u8
}

impl Shell {
    pub(super) fn new(device: Device, row: u16, qset: u16) -> Shell {
        Shell { device, row, qset, pid: 0, control: 0, spare: Rc::default() }
    }
    pub(super) fn socket(&self, id: u32) -> Option<Socket<'_>> {
        Some(Socket { device: &self.device, cell: self.device.cell(id)? })
    }
    pub(super) fn push(&self, nqe: &Nqe, send: bool) {
        let Some(q) = self.device.qset(self.qset) else { return };
        let _ = if send { q.send().push(nqe) } else { q.job().push(nqe) };
        let _ = self.device.header().ring_bell(self.qset);
    }
    pub(super) fn job(&self, op: Op, id: u32, fill: impl FnOnce(&mut Nqe)) {
        let Some(c) = self.device.cell(id) else { return };
        let mut nqe = Nqe::new(op, id, c.generation.load(Ordering::Relaxed) as u16);
        fill(&mut nqe);
        self.push(&nqe, op == Op::Send);
    }
    pub(super) fn open(&self) -> Option<u32> {
        self.open_kind(2 | 1 << 16)
    }
    /// A thread that sleeps for ever, as far as others can see.
    pub(super) fn sleep_on(&self, id: u32) {
        if let Some(c) = self.device.cell(id) {
            let _ = c.begin_rx_sleep();
        }
    }
    pub(super) fn open_datagram(&self) -> Option<u32> {
        self.open_kind(2 | 2 << 16)
    }
    pub(super) fn open_kind(&self, kind: u32) -> Option<u32> {
        let id = self.device.row(self.row)?.id_grants.pop()?;
        let c = self.device.cell(id)?;
        c.kind.store(kind, Ordering::Relaxed);
        c.hold(self.row);
        self.job(Op::Socket, id, |n| n.op_data = kind.into());
        Some(id)
    }
    /// Sends a datagram, if there is room; its index.
    pub(super) fn send_datagram(
        &self,
        id: u32,
        from: usize,
        len: usize,
        header: Header,
    ) -> Option<u32> {
        self.send_datagram_of(id, &mut Pattern(from), len, header)
    }
    /// Sends one that says its number.
    pub(super) fn post(&self, id: u32, number: usize, len: usize, header: Header) -> Option<u32> {
        self.send_datagram_of(id, &mut Numbered(number), len, header)
    }
    fn send_datagram_of(
        &self,
        id: u32,
        source: &mut impl Source,
        len: usize,
        header: Header,
    ) -> Option<u32> {
        let s = self.socket(id)?;
        let mut chunks = RowChunks(self);
        match datagram::send(&s, &mut chunks, source, len, header) {
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
    pub(super) fn recv_datagram(
        &self,
        id: u32,
        from: usize,
        len: usize,
        strict: bool,
    ) -> Option<usize> {
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
    /// Receives one that says its number: that, and how many bytes came, each of which is right.
    pub(super) fn fetch(&self, id: u32) -> Option<(Header, usize, usize)> {
        let s = self.socket(id)?;
        let mut bytes = Bytes::default();
        let datagram::Received::Datagram { header, rx_room, .. } =
            datagram::recv(&s, &mut bytes, DATAGRAM_MAX, false)
        else {
            return None;
        };
        if rx_room {
            self.job(Op::RxRoom, id, |_| ());
        }
        let (number, rest) = bytes.0.split_first_chunk().expect("a number");
        let number = u64::from_le_bytes(*number) as usize;
        let first = NUMBER_BYTES;
        let wrong = (first..).zip(rest).find(|(at, b)| **b != numbered(number, *at));
        assert_eq!(wrong, None, "datagram {number}");
        Some((header, number, bytes.0.len()))
    }
    pub(super) fn address(&self, op: Op, id: u32, port: u16) {
        let (size, lo, hi) = Addr::v4([127, 0, 0, 1], port).to_words();
        self.job(op, id, |n| (n.size, n.op_data, n.data) = (size, lo, hi));
    }
    pub(super) fn send(&self, id: u32, from: usize, len: usize) -> usize {
        let Some(s) = self.socket(id) else { return 0 };
        let mut chunks = RowChunks(self);
        let sent = send(&s, &mut chunks, &mut Pattern(from), len);
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
    pub(super) fn recv(&self, id: u32, from: usize, len: usize, strict: bool) -> usize {
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
    pub(super) fn accept(&self, id: u32) -> Option<AcceptedSocket> {
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
    pub(super) fn close(&self, id: u32) {
        if self.device.cell(id).is_some_and(|c| c.release(self.row)) {
            self.job(Op::Close, id, |_| ());
        }
    }
}
