//! A `hostent` in the place that a program gives for it.

use core::mem::size_of;
use core::ptr::null_mut;

use libc::{c_char, c_int, hostent};
use nk_attach::names::{Host, List, Reader, address_len};

/// A program's place for a result.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) host: *mut hostent,
    pub(super) buffer: *mut c_char,
    pub(super) len: usize,
}

/// Hands out pieces of the buffer.
struct Room {
    at: *mut u8,
    left: usize,
}

impl Room {
    fn take(&mut self, n: usize) -> Result<*mut u8, c_int> {
        if n > self.left {
            return Err(libc::ERANGE);
        }
        let at = self.at;
        self.at = self.at.wrapping_add(n);
        self.left -= n;
        Ok(at)
    }

    /// A list of pointers with room for the null at its end.
    fn list(&mut self, n: usize) -> Result<*mut *mut c_char, c_int> {
        Ok(self.take((n + 1) * size_of::<*mut c_char>())?.cast())
    }

    /// The bytes, with so many zeros behind.
    fn bytes(&mut self, b: &[u8], zeros: usize) -> Result<*mut c_char, c_int> {
        let to = self.take(b.len() + zeros)?;
        // SAFETY: `take` gave that much of the program's buffer.
        unsafe {
            core::ptr::copy_nonoverlapping(b.as_ptr(), to, b.len());
            core::ptr::write_bytes(to.add(b.len()), 0, zeros);
        }
        Ok(to.cast())
    }

    /// Fills a list, each element with so many zeros behind.
    ///
    /// # Safety
    /// `to` is one of [`Room::list`] for so many.
    unsafe fn elements(
        &mut self,
        to: *mut *mut c_char,
        list: &List<'_>,
        zeros: usize,
    ) -> Result<(), c_int> {
        for (i, b) in list.iter().enumerate() {
            let at = self.bytes(b, zeros)?;
            // SAFETY: the caller's promise.
            unsafe { to.add(i).write(at) };
        }
        // SAFETY: as above: the null at its end.
        unsafe { to.add(list.len()).write(null_mut()) };
        Ok(())
    }
}

/// Fills the place from an answer. `Ok(false)`: there is no such host.
///
/// # Safety
/// The place is as the _r functions want it.
pub(super) unsafe fn fill(r: Reader<'_>, place: Place) -> Result<bool, c_int> {
    let Some(host) = Host::parse(r).ok_or(libc::EAGAIN)? else { return Ok(false) };
    let skip = place.buffer.align_offset(size_of::<*mut c_char>());
    let left = place.len.checked_sub(skip).ok_or(libc::ERANGE)?;
    let mut room = Room { at: place.buffer.wrapping_add(skip).cast(), left };
    // Lists first: what follows them needs no alignment.
    let h_aliases = room.list(host.aliases.len())?;
    let h_addr_list = room.list(host.addresses.len())?;
    // SAFETY: each list has a place for each of its elements, and one more.
    unsafe {
        room.elements(h_addr_list, &host.addresses, 0)?;
        room.elements(h_aliases, &host.aliases, 1)?;
    }
    let h_name = room.bytes(host.name, 1)?;
    let h_length = address_len(host.family).unwrap_or(0) as c_int;
    // SAFETY: the program's place for the result.
    unsafe {
        let h_addrtype = host.family;
        place.host.write(hostent { h_name, h_aliases, h_addrtype, h_length, h_addr_list });
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
