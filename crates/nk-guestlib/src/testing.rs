//! A device on the heap and a service that is played by the test.

extern crate std;

use core::cell::RefCell;
use core::ptr::NonNull;
use std::alloc::{Layout as Memory, alloc_zeroed, dealloc};
use std::vec::Vec;

use nk_device::datagram::Header;
use nk_device::stream::{Span, publish_single};
use nk_device::{Device, Layout};

use crate::datagram::{self, Queued};
use crate::recv::{Received, Sink, recv};
use crate::send::{Chunks, SendError, Sent, Source, send};
use crate::{Fault, Socket};

const LAYOUT: Layout = Layout { rows: 4, qsets: 2, cells: 16, chunks: 128 };

pub(crate) struct Fixture {
    base: NonNull<u8>,
    device: Device,
    free: RefCell<Vec<u32>>,
    rx_tail: RefCell<u32>,
}

impl Fixture {
    pub(crate) fn new() -> Fixture {
        let memory = Memory::from_size_align(LAYOUT.region_len(), 4096).expect("layout");
        Fixture::over(memory)
    }

    #[allow(unsafe_code, reason = "the one place of this crate's tests that makes a mapping")]
    fn over(memory: Memory) -> Fixture {
        // SAFETY: the size is not 0; the memory is zeroed, page-aligned and freed in drop, after the last use of device.
        let (base, device) = unsafe {
            let base = NonNull::new(alloc_zeroed(memory)).expect("memory");
            (base, Device::with_layout(base, memory.size(), LAYOUT).expect("device"))
        };
        device.format(1);
        Fixture { base, device, free: RefCell::new((64..128).collect()), rx_tail: RefCell::new(0) }
    }

    pub(crate) fn new_datagram() -> Fixture {
        let f = Fixture::new();
        let kind = u32::from(nk_device::cell::SOCK_DGRAM) << 16 | 2;
        f.socket().cell.kind.store(kind, nk_device::sync::Ordering::Relaxed);
        f
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }
    pub(crate) fn socket(&self) -> Socket<'_> {
        Socket { device: &self.device, cell: self.device.cell(1).expect("cell") }
    }
    pub(crate) fn take_chunk(&self) -> Option<u32> {
        self.free.borrow_mut().pop()
    }
    pub(crate) fn give_chunk(&self, chunk: u32) {
        self.free.borrow_mut().push(chunk);
    }
    pub(crate) fn push_rx(&self, payload: u64) {
        let cell = self.socket().cell;
        let mut tail = self.rx_tail.borrow_mut();
        publish_single(&cell.rx_tail, &cell.rx_slots, &mut tail, cell.position().index, payload)
            .expect("room");
    }

    #[allow(unsafe_code, reason = "plays the service: writes a chunk of its own heap memory")]
    pub(crate) fn receive(&self, bytes: &[u8]) {
        let chunk = *self.rx_tail.borrow() % 64;
        let to = self.device.chunk(chunk).expect("chunk");
        // SAFETY: the chunk is within the fixture's memory and larger than the tests' messages.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        self.push_rx(Span { chunk, offset: 0, len: bytes.len() as u32 }.to_payload());
    }

    pub(crate) fn send_datagram(&self, bytes: &[u8], h: Header) -> Result<Queued, SendError> {
        datagram::send(&self.socket(), &mut Pool(self), &mut From(bytes), bytes.len(), h)
    }

    /// Sends what cannot be read.
    pub(crate) fn send_from_nowhere(&self, len: usize, h: Header) -> Result<Queued, SendError> {
        datagram::send(&self.socket(), &mut Pool(self), &mut From(&[]), len, h)
    }

    pub(crate) fn recv_datagram(&self, len: usize, peek: bool) -> (datagram::Received, Vec<u8>) {
        let mut to = To(std::vec![0; len]);
        let got = datagram::recv(&self.socket(), &mut to, len, peek);
        if let datagram::Received::Datagram { count, .. } = got {
            to.0.truncate(count);
        }
        (got, to.0)
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> Result<Sent, SendError> {
        send(&self.socket(), &mut Pool(self), &mut From(bytes), bytes.len())
    }

    pub(crate) fn recv(&self, len: usize, peek: bool) -> (Received, Vec<u8>) {
        let mut to = To(std::vec![0; len]);
        let got = recv(&self.socket(), &mut to, len, peek);
        if let Received::Bytes { count, .. } = got {
            to.0.truncate(count);
        }
        (got, to.0)
    }
}

struct From<'a>(&'a [u8]);
impl Source for From<'_> {
    #[allow(unsafe_code, reason = "plays the shell's copy")]
    fn copy(&mut self, at: usize, to: NonNull<u8>, len: usize) -> Result<(), Fault> {
        let part = self.0.get(at..at + len).ok_or(Fault)?;
        // SAFETY: the core gives a place within a chunk with room for len bytes.
        unsafe { core::ptr::copy_nonoverlapping(part.as_ptr(), to.as_ptr(), len) };
        Ok(())
    }
}

struct To(Vec<u8>);
impl Sink for To {
    #[allow(unsafe_code, reason = "plays the shell's copy")]
    fn copy(&mut self, at: usize, from: NonNull<u8>, len: usize) -> Result<(), Fault> {
        let part = self.0.get_mut(at..at + len).ok_or(Fault)?;
        // SAFETY: the core gives a place within a chunk with len bytes.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), part.as_mut_ptr(), len) };
        Ok(())
    }
}

struct Pool<'a>(&'a Fixture);
impl Chunks for Pool<'_> {
    fn take(&mut self) -> Option<u32> {
        self.0.take_chunk()
    }
    fn put_back(&mut self, chunk: u32) {
        self.0.free.borrow_mut().push(chunk);
    }
    fn begin_append(&mut self, chunk: u32) -> bool {
        self.0.device.row(1).is_some_and(|r| r.begin_append(chunk))
    }
    fn end_append(&mut self) {
        if let Some(r) = self.0.device.row(1) {
            r.end_append();
        }
    }
}

impl Drop for Fixture {
    #[allow(unsafe_code, reason = "frees what over() made")]
    fn drop(&mut self) {
        if let Ok(memory) = Memory::from_size_align(LAYOUT.region_len(), 4096) {
            // SAFETY: made by alloc_zeroed with the same layout.
            unsafe { dealloc(self.base.as_ptr(), memory) };
        }
    }
}
