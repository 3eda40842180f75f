//! A device whose words are loom's, for the models: the layout of a real one, built in place on the heap.

extern crate std;

use core::ptr::NonNull;
use std::alloc::{Layout as Memory, alloc_zeroed, dealloc};

use crate::header::Header;
use crate::sync::AtomicU64;
use crate::{Cell, Device, Layout, Ledger, Qset, Row};

/// Owns the memory of a device. Make one inside the model: loom's words belong to one run of it.
#[derive(Debug)]
pub struct ModelDevice {
    device: Device,
    memory: Memory,
}

impl ModelDevice {
    /// A formatted device.
    ///
    /// # Panics
    /// When the layout is out of range or memory runs out.
    #[must_use]
    pub fn new(layout: Layout) -> ModelDevice {
        let memory = Memory::from_size_align(layout.region_len(), 4096).expect("layout");
        // SAFETY: the size is not 0; the memory is page-aligned and freed in drop, after the last use of the device.
        let device = unsafe {
            let base = NonNull::new(alloc_zeroed(memory)).expect("memory");
            Device::with_layout(base, memory.size(), layout).expect("device")
        };
        let base = device.base();
        // SAFETY: offsets and counts are those that Device itself uses, within the memory just made; nobody else has it yet.
        unsafe {
            base.cast::<Header>().write(Header::default());
            fill::<Row>(base, layout.rows_at(), layout.rows);
            fill::<Qset>(base, layout.qsets_at(), layout.qsets);
            fill::<Cell>(base, layout.cells_at(), layout.cells);
        }
        device.format(1);
        ModelDevice { device, memory }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }
    /// A cell that the layout has.
    ///
    /// # Panics
    /// When it has not.
    #[must_use]
    pub fn cell(&self, socket: u32) -> &Cell {
        self.device.cell(socket).expect("cell")
    }
    /// A queue set that the layout has.
    ///
    /// # Panics
    /// When it has not.
    #[must_use]
    pub fn qset(&self, qset: u16) -> &Qset {
        self.device.qset(qset).expect("queue set")
    }
}

impl Drop for ModelDevice {
    fn drop(&mut self) {
        // SAFETY: made by alloc_zeroed with the same layout. The words of loom have no destructor of their own.
        unsafe { dealloc(self.device.base().as_ptr(), self.memory) };
    }
}

/// Owns the memory of a ledger, in the same way.
#[derive(Debug)]
pub struct ModelLedger {
    ledger: Ledger,
    base: NonNull<u8>,
    memory: Memory,
}

// SAFETY: all access to the memory goes through the ledger's atomics.
unsafe impl Send for ModelLedger {}
// SAFETY: as above.
unsafe impl Sync for ModelLedger {}

impl ModelLedger {
    /// An empty ledger.
    ///
    /// # Panics
    /// When memory runs out.
    #[must_use]
    pub fn new(layout: Layout) -> ModelLedger {
        let len = Ledger::bytes(layout);
        let memory = Memory::from_size_align(len, 4096).expect("layout");
        // SAFETY: the size is not 0; the memory is page-aligned and freed in drop, after the last use of the ledger; it is words of one
        // kind, which nobody else has yet.
        let (base, ledger) = unsafe {
            let base = NonNull::new(alloc_zeroed(memory)).expect("memory");
            fill::<AtomicU64>(base, 0, (len / size_of::<AtomicU64>()) as u32);
            (base, Ledger::new(base, len, layout, 0).expect("fits"))
        };
        ModelLedger { ledger, base, memory }
    }

    /// The ledger.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.ledger
    }
}

impl Drop for ModelLedger {
    fn drop(&mut self) {
        // SAFETY: made by alloc_zeroed with the same layout. The words of loom have no destructor of their own.
        unsafe { dealloc(self.base.as_ptr(), self.memory) };
    }
}

/// # Safety
/// `count` values of T fit from `base + start`, suitably aligned, and nobody else uses that memory.
unsafe fn fill<T: Default>(base: NonNull<u8>, start: usize, count: u32) {
    for i in 0..count as usize {
        // SAFETY: the caller's promise.
        unsafe { base.add(start + i * size_of::<T>()).cast::<T>().write(T::default()) };
    }
}
