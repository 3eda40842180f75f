//! What an NSM has sent and received in all: memory of the daemon's and of the NSM's process, that the keeper has too.

use std::io;
use std::os::fd::OwnedFd;

use nk_device::{SharedTotals, Totals};

use crate::sys::{self, Mapping};

/// An NSM's totals, mapped for as long as the value lives.
#[derive(Debug)]
pub struct NsmTotals {
    /// The memfd.
    pub memfd: OwnedFd,
    /// The totals in it.
    pub shared: SharedTotals,
    _mapping: Mapping,
}

impl NsmTotals {
    /// Fresh ones.
    ///
    /// # Errors
    /// Those of memfd_create and mmap.
    pub fn new() -> io::Result<NsmTotals> {
        NsmTotals::map(sys::region("nk-nsm-totals", size_of::<Totals>())?)
    }

    /// Those that were counted before, or by another process.
    ///
    /// # Errors
    /// Those of mmap; EINVAL when it is too short.
    pub fn map(memfd: OwnedFd) -> io::Result<NsmTotals> {
        let mapping = Mapping::new(&memfd, size_of::<Totals>())?;
        // SAFETY: the mapping is page-aligned, as long as it must be, and lives as long as the value; the memfd is sealed.
        let shared = unsafe { SharedTotals::over(mapping.base()) };
        Ok(NsmTotals { memfd, shared, _mapping: mapping })
    }
}
