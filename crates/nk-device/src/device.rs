//! A mapped device: geometry and bounds-checked access.

use core::ptr::NonNull;

use crate::header::{self, Header};
use crate::sync::Ordering;
use crate::{CHUNK_SIZE, Cell, Qset, ROWS_MAX, Row};

/// How many of each the region holds; offsets follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Rows, at most [`ROWS_MAX`].
    pub rows: u32,
    /// Queue sets, at most [`header::QSETS_MAX`].
    pub qsets: u32,
    /// Cells (sockets).
    pub cells: u32,
    /// Chunks.
    pub chunks: u32,
}

/// The header of a region does not describe a device that this build understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// Not a device.
    Magic,
    /// Another layout version (given).
    Version(u32),
    /// Counts out of range, or the region is too small for them.
    Geometry,
}

impl Layout {
    /// The default for a guest: 512 processes, 32 Ki sockets, 256 MiB of chunks (all sparse: untouched pages cost nothing).
    pub const GUEST: Layout = Layout { rows: 512, qsets: 1024, cells: 32 * 1024, chunks: 8192 };
    /// For a VM: one row.
    pub const VM: Layout = Layout { rows: 1, qsets: 8, cells: 8 * 1024, chunks: 2048 };
    /// For an NSM: queue sets only.
    pub const NSM: Layout = Layout { rows: 0, qsets: 16, cells: 0, chunks: 0 };

    pub(crate) fn rows_at(self) -> usize {
        size_of::<Header>()
    }
    pub(crate) fn qsets_at(self) -> usize {
        self.rows_at() + self.rows as usize * size_of::<Row>()
    }
    pub(crate) fn cells_at(self) -> usize {
        self.qsets_at() + self.qsets as usize * size_of::<Qset>()
    }
    fn chunks_at(self) -> usize {
        (self.cells_at() + self.cells as usize * size_of::<Cell>()).next_multiple_of(4096)
    }

    /// Bytes of the region: a power of two, as ivshmem's BAR wants.
    #[must_use]
    pub fn region_len(self) -> usize {
        (self.chunks_at() + self.chunks as usize * CHUNK_SIZE).next_power_of_two()
    }

    /// Checks the counts.
    ///
    /// # Errors
    /// [`LayoutError::Geometry`].
    pub fn check(self) -> Result<Layout, LayoutError> {
        let ok = self.rows as usize <= ROWS_MAX
            && self.qsets as usize <= header::QSETS_MAX
            && self.qsets > 0
            && self.cells <= 1 << 20
            && self.chunks < 1 << 20;
        if ok { Ok(self) } else { Err(LayoutError::Geometry) }
    }
}

/// A mapped region. Copies refer to the same memory; whoever made the mapping keeps it alive.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: all access goes through atomics, or raw copies into chunks that never form references; the memory is shared between
// processes anyway, so threads add nothing.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// A device over memory whose header says its layout.
    ///
    /// # Errors
    /// [`LayoutError`] when the header is not understood or the region is too small.
    ///
    /// # Safety
    /// `base` is page-aligned and maps `len` readable and writable bytes for as long as any copy of the value is used. Others
    /// may write the same memory at any time.
    pub unsafe fn open(base: NonNull<u8>, len: usize) -> Result<Device, LayoutError> {
        if len < size_of::<Header>() {
            return Err(LayoutError::Geometry);
        }
        // SAFETY: base is aligned and maps at least a header, whose fields are all atomics.
        let h = unsafe { base.cast::<Header>().as_ref() };
        if h.magic.load(Ordering::Acquire) != header::MAGIC {
            return Err(LayoutError::Magic);
        }
        let version = h.version.load(Ordering::Relaxed);
        if version != header::VERSION {
            return Err(LayoutError::Version(version));
        }
        // Read once; used from this copy for ever after, whatever others write there.
        let layout = Layout {
            rows: h.rows.load(Ordering::Relaxed),
            qsets: h.qsets.load(Ordering::Relaxed),
            cells: h.cells.load(Ordering::Relaxed),
            chunks: h.chunks.load(Ordering::Relaxed),
        }
        .check()?;
        // SAFETY: the caller's promise.
        unsafe { Device::with_layout(base, len, layout) }
    }

    /// A device over memory with a layout that the caller knows (the host, for a region it made: it never believes the header).
    ///
    /// # Errors
    /// [`LayoutError::Geometry`] when the region is too small.
    ///
    /// # Safety
    /// As [`Device::open`].
    pub unsafe fn with_layout(
        base: NonNull<u8>,
        len: usize,
        layout: Layout,
    ) -> Result<Device, LayoutError> {
        if layout.check()?.region_len() > len {
            return Err(LayoutError::Geometry);
        }
        Ok(Device { base, layout })
    }

    /// Writes the header of a fresh, zeroed region.
    pub fn format(&self, guest: u16) {
        let h = self.header();
        h.version.store(header::VERSION, Ordering::Relaxed);
        h.features.store(header::FEATURES, Ordering::Relaxed);
        h.rows.store(self.layout.rows, Ordering::Relaxed);
        h.qsets.store(self.layout.qsets, Ordering::Relaxed);
        h.cells.store(self.layout.cells, Ordering::Relaxed);
        h.chunks.store(self.layout.chunks, Ordering::Relaxed);
        h.guest.store(u32::from(guest), Ordering::Relaxed);
        h.engine_state.store(header::ENGINE_UP, Ordering::Relaxed);
        h.epoch.store(1, Ordering::Relaxed);
        h.magic.store(header::MAGIC, Ordering::Release);
    }

    /// The geometry.
    #[inline]
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Start of the mapping.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    #[inline]
    fn at<T>(&self, start: usize, index: u32, count: u32) -> Option<&T> {
        if index >= count {
            return None;
        }
        // SAFETY: index < count and the layout was checked to fit the mapping; T consists of atomics only, so any bytes are
        // valid and concurrent writers are sound; offsets are multiples of T's alignment (page or 64 bytes).
        Some(unsafe { self.base.add(start + index as usize * size_of::<T>()).cast::<T>().as_ref() })
    }

    /// The header.
    #[inline]
    #[must_use]
    pub fn header(&self) -> &Header {
        // SAFETY: every layout starts with a header; atomics only.
        unsafe { self.base.cast::<Header>().as_ref() }
    }
    /// A row.
    #[inline]
    #[must_use]
    pub fn row(&self, row: u16) -> Option<&Row> {
        self.at(self.layout.rows_at(), u32::from(row), self.layout.rows)
    }
    /// A queue set.
    #[inline]
    #[must_use]
    pub fn qset(&self, qset: u16) -> Option<&Qset> {
        self.at(self.layout.qsets_at(), u32::from(qset), self.layout.qsets)
    }
    /// A cell.
    #[inline]
    #[must_use]
    pub fn cell(&self, socket: u32) -> Option<&Cell> {
        self.at(self.layout.cells_at(), socket, self.layout.cells)
    }
    /// Start of a chunk: [`CHUNK_SIZE`] bytes that anybody may write at any time. Copy with raw pointers only.
    #[inline]
    #[must_use]
    pub fn chunk(&self, chunk: u32) -> Option<NonNull<u8>> {
        if chunk >= self.layout.chunks {
            return None;
        }
        // SAFETY: within the mapping by the checked layout.
        Some(unsafe { self.base.add(self.layout.chunks_at() + chunk as usize * CHUNK_SIZE) })
    }

    /// Where `len` bytes at `offset` of a chunk lie.
    #[inline]
    #[must_use]
    pub fn chunk_at(&self, chunk: u32, offset: usize, len: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(len)? > CHUNK_SIZE {
            return None;
        }
        // SAFETY: the offset is within the chunk, which is within the mapping.
        self.chunk(chunk).map(|c| unsafe { c.add(offset) })
    }
}
