//! Where payload lies in a guest's chunks: the only place that makes [`RawSpan`]s.

use nk_device::Device;
use nk_device::stream::Span;

use crate::RawSpan;

/// The bytes of a descriptor. `None` when they are not within a chunk of the device.
pub(crate) fn span(device: &Device, s: Span) -> Option<RawSpan> {
    let (offset, len) = (s.offset as usize, s.len as usize);
    let base = device.chunk_at(s.chunk, offset, len)?;
    // SAFETY: the bytes are within a chunk, by a private copy of the descriptor, and so within the mapping, which lives until the guest is
    // removed. The guest can change the bytes, never where they are; nothing forms a reference to them.
    Some(unsafe { RawSpan::new(base, len) })
}
