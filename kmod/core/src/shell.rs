//! What the kernel shell supplies.

use core::ffi::c_void;
use core::ptr::NonNull;

use nk_guestlib::Fault;
use nk_guestlib::recv::Sink;
use nk_guestlib::send::Source;

unsafe extern "C" {
    fn nk_device_ring();
    fn nk_shell_pause();
    fn nk_shell_panicked(line: u32) -> !;
    fn nk_shell_copy_from(msg: *mut c_void, at: usize, to: *mut u8, len: usize) -> bool;
    fn nk_shell_copy_to(msg: *mut c_void, at: usize, from: *const u8, len: usize) -> bool;
}

/// Rings CoreEngine's doorbell.
pub(crate) fn ring() {
    // SAFETY: a register write, from any context, while the device is open; and calls come only while it is.
    unsafe { nk_device_ring() }
}

/// Lets others run for a moment; the calls that use it are made where sleeping is allowed.
pub(crate) fn pause() {
    // SAFETY: no preconditions but process context.
    unsafe { nk_shell_pause() }
}

pub(crate) fn panicked(line: u32) -> ! {
    // SAFETY: does not return; no preconditions.
    unsafe { nk_shell_panicked(line) }
}

/// A message of the shell: a `struct msghdr` with an iterator over user memory.
pub(crate) struct Message(pub(crate) *mut c_void);

impl Source for Message {
    fn copy(&mut self, at: usize, to: NonNull<u8>, len: usize) -> Result<(), Fault> {
        // SAFETY: the message lives as long as the call that it came with; `to` has room for `len` bytes of a chunk (the core
        // asks for no more than a chunk's size). The host may read the chunk meanwhile, which only C's copy sees.
        if unsafe { nk_shell_copy_from(self.0, at, to.as_ptr(), len) } {
            Ok(())
        } else {
            Err(Fault)
        }
    }
}

impl Sink for Message {
    fn copy(&mut self, at: usize, from: NonNull<u8>, len: usize) -> Result<(), Fault> {
        // SAFETY: as above; `from` has `len` bytes within a chunk (the core checked the span). The host may change them
        // meanwhile: the copy takes what it finds, and a kernel copies to user memory byte for byte without looking.
        if unsafe { nk_shell_copy_to(self.0, at, from.as_ptr(), len) } {
            Ok(())
        } else {
            Err(Fault)
        }
    }
}
