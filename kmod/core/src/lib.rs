//! The GuestLib core as `netkernel.ko` calls it: C functions over `nk-device` and `nk-guestlib`.
//!
//! The kernel shell (the C files beside this folder) supplies locks, waiting and the faulting copies; here is what a call means.
//! A VM is one guest with one row, [`ROW`], and one queue set, [`QSET`], both live before the VM starts.
//!
//! | module | what |
//! |---|---|
//! | [`guest`] | the device, the rings' private ends, pushing NQEs |
//! | [`calls`] | C functions that move bytes or look |
//! | [`control`] | C functions that change what a socket is |
//! | [`shell`] | what the kernel supplies |
//!
//! Every value that C hands in is a handle made here (`id | generation << 32`) or a pointer of the shell's own; a stale
//! handle finds no cell and gives EBADF.
#![no_std]

mod calls;
mod control;
mod guest;
mod shell;

/// The row of a VM's kernel.
const ROW: u16 = 0;
/// The queue set of a VM's kernel.
const QSET: u16 = 0;

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    shell::panicked(info.location().map_or(0, core::panic::Location::line))
}
