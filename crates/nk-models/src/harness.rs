//! What the models share: bounds, the kernel's part (futex, eventfd), and chunks.

use core::ptr::NonNull;

use loom::sync::{Arc, Condvar, Mutex};
use nk_device::model::ModelDevice;
use nk_device::stream::Span;
use nk_device::sync::{AtomicU32, Ordering};
use nk_device::{Layout, stream};
use nk_guestlib::recv::Sink;
use nk_guestlib::send::{Chunks, Source};
use nk_guestlib::{Fault, Socket};

/// Runs a model. `preemptions`: at how many points a thread is stopped against its will, at most; 3 find nearly everything
/// that more would.
pub fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(model);
}

/// A small device: three cells, a queue set, four chunks.
#[must_use]
pub fn device() -> Arc<ModelDevice> {
    Arc::new(ModelDevice::new(Layout { rows: 0, qsets: 1, cells: 3, chunks: 4 }))
}

/// The same, with processes.
#[must_use]
pub fn device_with_rows(rows: u32) -> Arc<ModelDevice> {
    Arc::new(ModelDevice::new(Layout { rows, qsets: 1, cells: 1, chunks: 4 }))
}

/// Socket 0 of the device.
#[must_use]
pub fn socket(d: &ModelDevice) -> Socket<'_> {
    Socket { device: d.device(), cell: d.cell(0) }
}

/// An eventfd: a write is remembered until a wait takes it. A lost wake-up is a deadlock, which loom reports.
#[derive(Debug)]
pub struct Doorbell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Default for Doorbell {
    fn default() -> Doorbell {
        Doorbell { rung: Mutex::new(false), changed: Condvar::new() }
    }
}

impl Doorbell {
    /// write.
    pub fn ring(&self) {
        *self.rung.lock().expect("lock") = true;
        self.changed.notify_all();
    }
    /// poll and read.
    pub fn wait(&self) {
        let mut rung = self.rung.lock().expect("lock");
        while !*rung {
            rung = self.changed.wait(rung).expect("lock");
        }
        *rung = false;
    }
}

/// A futex: the comparison and the going to sleep are one step for a waker.
#[derive(Debug)]
pub struct Futex {
    bucket: Mutex<()>,
    woken: Condvar,
}

impl Default for Futex {
    fn default() -> Futex {
        Futex { bucket: Mutex::new(()), woken: Condvar::new() }
    }
}

impl Futex {
    /// FUTEX_WAIT.
    pub fn wait(&self, word: &AtomicU32, value: u32) {
        let bucket = self.bucket.lock().expect("lock");
        if word.load(Ordering::SeqCst) == value {
            drop(self.woken.wait(bucket).expect("lock"));
        }
    }
    /// FUTEX_WAKE, all.
    pub fn wake(&self) {
        let _bucket = self.bucket.lock().expect("lock");
        self.woken.notify_all();
    }
}

/// The service's side of a cell's rx ring.
#[derive(Debug, Default)]
pub struct RxWriter {
    tail: u32,
}

impl RxWriter {
    /// Puts `bytes` into a chunk and publishes it. `false` when the ring is full.
    pub fn receive(&mut self, d: &ModelDevice, chunk: u32, bytes: &[u8]) -> bool {
        let cell = d.cell(0);
        fill(d, chunk, bytes);
        let span = Span { chunk, offset: 0, len: bytes.len() as u32 };
        let head = cell.position().index;
        stream::publish_single(
            &cell.rx_tail,
            &cell.rx_slots,
            &mut self.tail,
            head,
            span.to_payload(),
        )
        .is_ok()
    }
    /// Next index.
    #[must_use]
    pub fn tail(&self) -> u32 {
        self.tail
    }
}

/// Writes the first bytes of a chunk.
///
/// # Panics
/// When the device has no such chunk.
pub fn fill(d: &ModelDevice, chunk: u32, bytes: &[u8]) {
    let to = d.device().chunk(chunk).expect("chunk");
    // SAFETY: the chunk is larger than any model's message. loom runs its threads one at a time, so nobody else writes now.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
}

/// What a span has.
///
/// # Panics
/// When the device has no such chunk.
#[must_use]
pub fn peek(d: &ModelDevice, span: Span) -> Vec<u8> {
    let from = d.device().chunk_at(span.chunk, span.offset as usize, span.len as usize);
    let from = from.expect("chunk").as_ptr();
    // SAFETY: `chunk_at` keeps it within the chunk; one thread at a time, as in `fill`.
    (0..span.len as usize).map(|i| unsafe { from.add(i).read() }).collect()
}

/// Collects what is received.
#[derive(Debug, Default)]
pub struct Collect(pub [u8; 8]);

impl Sink for Collect {
    fn copy(&mut self, at: usize, from: NonNull<u8>, len: usize) -> Result<(), Fault> {
        let to = self.0.get_mut(at..at + len).ok_or(Fault)?;
        // SAFETY: the core gives a place within a chunk; as in `fill`, one thread at a time.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), len) };
        Ok(())
    }
}

/// A message of one byte.
#[derive(Clone, Copy, Debug)]
pub struct OneByte(pub u8);

impl Source for OneByte {
    fn copy(&mut self, _at: usize, to: NonNull<u8>, _len: usize) -> Result<(), Fault> {
        // SAFETY: the core gives a place within a chunk; as in `fill`, one thread at a time.
        unsafe { to.as_ptr().write(self.0) };
        Ok(())
    }
}

/// The chunks of one sender.
#[derive(Debug)]
pub struct OneChunk(pub Option<u32>);

impl Chunks for OneChunk {
    fn take(&mut self) -> Option<u32> {
        self.0.take()
    }
    fn put_back(&mut self, chunk: u32) {
        self.0 = Some(chunk);
    }
}

/// The chunk of a process's one sender, with its row.
#[derive(Debug)]
pub struct RowChunk<'a> {
    device: &'a ModelDevice,
    row: u16,
    chunk: OneChunk,
}

impl RowChunk<'_> {
    /// Of that row.
    #[must_use]
    pub fn new(device: &ModelDevice, row: u16, chunk: u32) -> RowChunk<'_> {
        RowChunk { device, row, chunk: OneChunk(Some(chunk)) }
    }
}

impl Chunks for RowChunk<'_> {
    fn take(&mut self) -> Option<u32> {
        self.chunk.take()
    }
    fn put_back(&mut self, chunk: u32) {
        self.chunk.put_back(chunk);
    }
    fn begin_append(&mut self, chunk: u32) -> bool {
        self.device.device().row(self.row).is_some_and(|r| r.begin_append(chunk))
    }
    fn end_append(&mut self) {
        if let Some(r) = self.device.device().row(self.row) {
            r.end_append();
        }
    }
}
