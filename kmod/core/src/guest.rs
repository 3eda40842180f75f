//! The device as the VM's kernel uses it: cells by handle, NQEs out and in, leased chunks.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use nk_device::cell::Cell;
use nk_device::device::LayoutError;
use nk_device::header::ENGINE_UP;
use nk_device::ring::Consumer;
use nk_device::sync::{AtomicU32, Ordering, fence};
use nk_device::{Device, Nqe, Op, Qset, Row};
use nk_guestlib::Socket;
use nk_guestlib::errno::EINVAL;
use nk_guestlib::send::Chunks;

use crate::{QSET, ROW, shell};

/// How often a push onto a full ring is tried, with a pause of about a millisecond between.
const PUSH_TRIES: u32 = 10_000;
/// Chunks that were taken and not used: one for each thread that may be in that place at once, more are not expected.
const SPARE_CHUNKS: usize = 64;
const NO_CHUNK: u32 = u32::MAX;

/// The private ends of the rings towards the guest; touched by the interrupt thread alone.
#[derive(Default)]
struct Inbox {
    completion: Consumer,
    receive: Consumer,
    overflow: u32,
}

pub(crate) struct Guest {
    device: Device,
    inbox: UnsafeCell<Inbox>,
    spare_epoch: AtomicU32,
    spare: [AtomicU32; SPARE_CHUNKS],
}

/// What the interrupt thread found.
pub(crate) enum Incoming {
    Reply(Nqe),
    Event(Nqe),
    /// Events were lost: every socket may have changed.
    Overflow,
}

struct Slot(UnsafeCell<Option<Guest>>);
// SAFETY: written by open and close alone, which the shell calls before the first and after the last other call.
unsafe impl Sync for Slot {}
static GUEST: Slot = Slot(UnsafeCell::new(None));

/// The open device; `None` only when the shell broke its order.
pub(crate) fn guest() -> Option<&'static Guest> {
    // SAFETY: nobody writes between open and close, see Slot.
    unsafe { (*GUEST.0.get()).as_ref() }
}

/// # Safety
/// `base` maps `len` bytes until [`close`]; no other call of this crate is under way.
pub(crate) unsafe fn open(base: NonNull<u8>, len: usize) -> Result<(), i32> {
    // SAFETY: the caller's promise.
    let device = unsafe { Device::open(base, len) }.map_err(|e| match e {
        LayoutError::Magic | LayoutError::Version(_) | LayoutError::Geometry => EINVAL,
    })?;
    let (Some(_), Some(qset)) = (device.row(ROW), device.qset(QSET)) else { return Err(EINVAL) };
    // A module loaded again goes on where the one before it stopped.
    let inbox = Inbox {
        completion: Consumer::at(qset.completion_head.load(Ordering::Acquire)),
        receive: Consumer::at(qset.receive_head.load(Ordering::Acquire)),
        overflow: qset.overflow.load(Ordering::Acquire),
    };
    // A kernel never polls these rings: it always wants the interrupt.
    qset.sleeping.store(1, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    let spare = [const { AtomicU32::new(NO_CHUNK) }; SPARE_CHUNKS];
    // SAFETY: the caller's promise.
    unsafe { *GUEST.0.get() = Some(Guest { device, inbox: UnsafeCell::new(inbox), spare_epoch: AtomicU32::new(0), spare }) };
    Ok(())
}

/// # Safety
/// No other call of this crate is under way, and none comes before the next [`open`].
pub(crate) unsafe fn close() {
    if let Some(qset) = guest().and_then(Guest::qset) {
        qset.sleeping.store(0, Ordering::SeqCst);
    }
    // SAFETY: the caller's promise.
    unsafe { *GUEST.0.get() = None };
}

impl Guest {
    /// The device.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The socket of a handle, if its generation still is.
    pub(crate) fn socket(&self, handle: u64) -> Option<Socket<'_>> {
        let cell = self.device.cell(handle as u32)?;
        let live = u64::from(cell.generation.load(Ordering::Acquire)) == handle >> 32;
        live.then_some(Socket { device: &self.device, cell })
    }

    pub(crate) fn row(&self) -> Option<&Row> {
        self.device.row(ROW)
    }
    pub(crate) fn qset(&self) -> Option<&Qset> {
        self.device.qset(QSET)
    }

    /// Pushes a job NQE and rings. `false`: the engine is gone or does not take NQEs.
    pub(crate) fn push_job(&self, nqe: &Nqe) -> bool {
        self.push(nqe, |q| q.job())
    }
    /// Pushes a send NQE and rings.
    pub(crate) fn push_send(&self, nqe: &Nqe) -> bool {
        self.push(nqe, |q| q.send())
    }

    fn push<'a>(
        &'a self,
        nqe: &Nqe,
        ring: impl Fn(&'a Qset) -> nk_device::qset::SharedRing<'a>,
    ) -> bool {
        let Some(qset) = self.qset() else { return false };
        for _ in 0..PUSH_TRIES {
            if ring(qset).push(nqe).is_ok() {
                self.ring_bell();
                return true;
            }
            if self.device.header().engine_state.load(Ordering::Acquire) != ENGINE_UP {
                return false;
            }
            self.ring_bell();
            shell::pause();
        }
        false
    }

    fn ring_bell(&self) {
        if self.device.header().ring_bell(QSET) {
            shell::ring();
        }
    }

    /// Asks for more ids and chunks; an event [`Op::Granted`] tells when they came.
    pub(crate) fn refill(&self) {
        if let Some(row) = self.row() {
            row.want.store(1, Ordering::SeqCst);
        }
        let mut nqe = Nqe::new(Op::Refill, 0, 0);
        nqe.qset = QSET;
        self.push_job(&nqe);
    }

    /// Takes the next NQE from the host.
    ///
    /// # Safety
    /// One thread at a time.
    pub(crate) unsafe fn next(&self) -> Option<Incoming> {
        let qset = self.qset()?;
        // SAFETY: the caller is the only thread here.
        let inbox = unsafe { &mut *self.inbox.get() };
        if let Some(n) = inbox.completion.pop(&qset.completion()) {
            inbox.completion.commit(&qset.completion());
            return Some(Incoming::Reply(n));
        }
        if let Some(n) = inbox.receive.pop(&qset.receive()) {
            inbox.receive.commit(&qset.receive());
            return Some(Incoming::Event(n));
        }
        let overflow = qset.overflow.load(Ordering::Acquire);
        if overflow != inbox.overflow {
            inbox.overflow = overflow;
            return Some(Incoming::Overflow);
        }
        None
    }

    /// Whether a sender would find a chunk.
    pub(crate) fn has_chunks(&self) -> bool {
        self.row().is_some_and(|r| r.chunk_grants.available() > 0)
            || self.spare.iter().any(|s| s.load(Ordering::Relaxed) != NO_CHUNK)
    }
}

/// Chunks out of the row's grants and the spares.
pub(crate) struct Leased<'a>(pub(crate) &'a Guest);

impl Chunks for Leased<'_> {
    fn take(&mut self) -> Option<u32> {
        // Those of a service that died are leased to nobody any more.
        let epoch = self.0.row()?.lease_epoch.load(Ordering::SeqCst);
        if self.0.spare_epoch.swap(epoch, Ordering::AcqRel) != epoch {
            self.0.spare.iter().for_each(|s| s.store(NO_CHUNK, Ordering::Release));
        }
        let spare = self.0.spare.iter().find_map(|s| match s.load(Ordering::Relaxed) {
            NO_CHUNK => None,
            _ => Some(s.swap(NO_CHUNK, Ordering::AcqRel)).filter(|c| *c != NO_CHUNK),
        });
        spare.or_else(|| self.0.row()?.chunk_grants.pop())
    }

    fn put_back(&mut self, chunk: u32) {
        for s in &self.0.spare {
            if s.compare_exchange(NO_CHUNK, chunk, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    fn begin_append(&mut self, chunk: u32) -> bool {
        self.0.row().is_some_and(|r| r.begin_append(chunk))
    }

    fn end_append(&mut self) {
        if let Some(r) = self.0.row() {
            r.end_append();
        }
    }
}

/// The errno of a push that failed, ENETDOWN: the engine is gone.
pub(crate) const ENGINE_GONE: i32 = 100;

/// The NQE of an operation on a socket.
pub(crate) fn nqe(op: Op, handle: u64) -> Nqe {
    let mut n = Nqe::new(op, handle as u32, (handle >> 32) as u16);
    n.qset = QSET;
    n
}

/// A fresh id of the row's grants, held by the VM and watched by its queue set; `None` when the grants are used up.
pub(crate) fn take_socket(guest: &Guest) -> Option<(u64, &Cell)> {
    let id = guest.row()?.id_grants.pop()?;
    let cell = guest.device.cell(id)?;
    let generation = cell.generation.load(Ordering::Acquire) & 0xffff;
    cell.hold(ROW);
    cell.watch(QSET, 0);
    Some((u64::from(id) | u64::from(generation) << 32, cell))
}
