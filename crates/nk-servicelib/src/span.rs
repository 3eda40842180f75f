//! Where payload lies in a guest's chunks: the only place that makes [`RawSpan`]s.

use nk_device::Device;
use nk_device::stream::Span;

use crate::RawSpan;

/// The bytes of a descriptor. `None` when the chunk is outside the device.
pub(crate) fn span(device: &Device, s: Span) -> Option<RawSpan> {
    if (s.offset + s.len) as usize > nk_device::CHUNK_SIZE {
        return None;
    }
    let base = device.chunk(s.chunk)?;
    // SAFETY: offset + len is within the chunk (checked above, on a private copy), the chunk within the mapping, which lives until
    // the guest is removed. The guest can change the bytes, never where they are; nothing forms a reference to them.
    Some(unsafe { RawSpan::new(base.add(s.offset as usize), s.len as usize) })
}
