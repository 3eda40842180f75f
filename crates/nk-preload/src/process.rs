//! This process as the device knows it: mapping, row, primary queue set, control socket.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering};

use libc::c_int;
use nk_device::row::Missed;
use nk_device::{Cell, Device, Row};

use crate::sys;

struct DeviceSlot(UnsafeCell<MaybeUninit<Device>>);
// SAFETY: written once by `Process::set_device`, before WAS_ATTACHED lets anybody read it.
unsafe impl Sync for DeviceSlot {}

static DEVICE: DeviceSlot = DeviceSlot(UnsafeCell::new(MaybeUninit::uninit()));

/// The attached process. There is one, in static memory; what a fork changes is atomic.
#[derive(Debug)]
pub struct Process {
    pid: AtomicI32,
    row: AtomicU32,
    qset: AtomicU32,
    control_fd: AtomicI32,
    engine_fd: AtomicI32,
    doorbell_fd: AtomicI32,
}

static PROCESS: Process = Process {
    pid: AtomicI32::new(0),
    row: AtomicU32::new(0),
    qset: AtomicU32::new(0),
    control_fd: AtomicI32::new(-1),
    engine_fd: AtomicI32::new(-1),
    doorbell_fd: AtomicI32::new(-1),
};

const LIVE: u32 = 0x4e4b_4c56;
static NEVER: AtomicU32 = AtomicU32::new(0);
/// [`LIVE`] in a page that the kernel wipes in every forked child: a child of a raw clone finds 0 there.
static MARK: AtomicPtr<AtomicU32> = AtomicPtr::new((&raw const NEVER).cast_mut());
static WAS_ATTACHED: AtomicBool = AtomicBool::new(false);

/// This process, if it is a guest's. Two loads when it is.
#[inline]
#[must_use]
pub fn process() -> Option<&'static Process> {
    // SAFETY: MARK always points to a static or to a page that is never unmapped.
    let mark = unsafe { &*MARK.load(Ordering::Relaxed) };
    if mark.load(Ordering::Acquire) == LIVE { Some(&PROCESS) } else { slow() }
}

#[cold]
fn slow() -> Option<&'static Process> {
    let p = current()?;
    // A child of our own fork that runs its atfork handlers, or a child of a raw clone or fork system call.
    if !crate::fork::finish_in_child() {
        crate::attach::again();
    }
    Some(p)
}

/// [`process`] without the look for a raw fork.
#[must_use]
pub fn current() -> Option<&'static Process> {
    WAS_ATTACHED.load(Ordering::Acquire).then_some(&PROCESS)
}

/// What an attach or a fork gives a process.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Its row.
    pub row: u16,
    /// Its primary queue set.
    pub qset: u16,
    /// Its control socket; open as long as the process is there.
    pub control_fd: c_int,
    /// Its doorbell: what the engine writes when a queue set of it sleeps.
    pub doorbell_fd: c_int,
}

impl Process {
    /// The mapped device.
    #[inline]
    #[must_use]
    pub fn device(&self) -> &'static Device {
        // SAFETY: nobody has a `Process` before `set_device` ran, and the slot is not written again.
        unsafe { (*DEVICE.0.get()).assume_init_ref() }
    }

    /// Whether the caller is this process, and not a child that shares its memory until it execs ([`crate::borrowers`]).
    #[must_use]
    pub(crate) fn is_caller(&self) -> bool {
        self.pid.load(Ordering::Acquire) == sys::getpid()
    }

    /// Our row's number.
    #[inline]
    #[must_use]
    pub fn row_number(&self) -> u16 {
        self.row.load(Ordering::Acquire) as u16
    }

    /// Our row.
    #[inline]
    #[must_use]
    pub fn row(&self) -> Option<&'static Row> {
        self.device().row(self.row_number())
    }

    /// A socket's cell.
    #[inline]
    #[must_use]
    pub fn cell(&self, id: u32) -> Option<&'static Cell> {
        self.device().cell(id)
    }

    /// Our primary queue set's number.
    #[inline]
    #[must_use]
    pub fn qset(&self) -> u16 {
        self.qset.load(Ordering::Acquire) as u16
    }

    /// The control socket.
    #[must_use]
    pub fn control_fd(&self) -> c_int {
        self.control_fd.load(Ordering::Acquire)
    }

    /// The engine's doorbell.
    #[must_use]
    pub fn engine_fd(&self) -> c_int {
        self.engine_fd.load(Ordering::Acquire)
    }

    /// Our doorbell: what the engine writes when the primary queue set sleeps.
    #[must_use]
    pub fn doorbell_fd(&self) -> c_int {
        self.doorbell_fd.load(Ordering::Acquire)
    }

    /// One of our descriptors has another number now.
    pub(crate) fn moved(&self, from: c_int, to: c_int) {
        for fd in [&self.control_fd, &self.engine_fd, &self.doorbell_fd] {
            let _ = fd.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Counts something that is not served, for `nk why`.
    pub fn count_missed(&self, kind: Missed, detail: u64) {
        if let Some(row) = self.row() {
            row.count_missed(kind, detail);
        }
    }
}

/// Counts something that is not served, for `nk why`.
pub fn count_missed(kind: Missed, detail: u64) {
    if let Some(p) = current() {
        p.count_missed(kind, detail);
    }
}

/// Makes this process a guest's. `false` when there is no memory for the mark.
pub(crate) fn begin(device: Device, engine_fd: c_int, id: Identity) -> bool {
    // SAFETY: called once, by the constructor or the first attach, before WAS_ATTACHED is set.
    unsafe { (*DEVICE.0.get()).write(device) };
    let page = sys::map_private(4096);
    if page.is_null() {
        return false;
    }
    // SAFETY: our own fresh page.
    unsafe { sys::system_call!(libc::SYS_madvise, page, 4096usize, libc::MADV_WIPEONFORK) };
    PROCESS.engine_fd.store(engine_fd, Ordering::Release);
    MARK.store(page.cast(), Ordering::Release);
    become_identity(id);
    true
}

/// This process has another identity: after a fork, in the child.
pub(crate) fn become_identity(id: Identity) {
    crate::hangup::reset();
    crate::borrowers::reset();
    PROCESS.pid.store(sys::getpid(), Ordering::Release);
    PROCESS.row.store(u32::from(id.row), Ordering::Release);
    PROCESS.qset.store(u32::from(id.qset), Ordering::Release);
    PROCESS.control_fd.store(id.control_fd, Ordering::Release);
    PROCESS.doorbell_fd.store(id.doorbell_fd, Ordering::Release);
    WAS_ATTACHED.store(true, Ordering::Release);
    // SAFETY: as in `process`.
    unsafe { &*MARK.load(Ordering::Relaxed) }.store(LIVE, Ordering::Release);
}

/// Another engine doorbell (attach of a raw-forked child).
pub(crate) fn set_engine_fd(fd: c_int) {
    PROCESS.engine_fd.store(fd, Ordering::Release);
}
