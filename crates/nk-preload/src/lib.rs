//! `libnetkernel.so`: GuestLib's process shell.
//!
//! It is loaded by `LD_PRELOAD` into unmodified programs and answers their socket calls by the names of the C library.
//! The core ([`nk_guestlib`]) decides; this crate supplies what a shell must: descriptors, blocking, signals, fork and exec.
//!
//! It runs inside foreign programs, also in their signal handlers and between fork and exec. Therefore `no_std`: no
//! allocator, no standard I/O, no thread-local storage, no panics, no locks held while a signal can be delivered. Memory comes from mmap
//! at attach time ([`sys::map_private`]).
//!
//! | module | what |
//! |---|---|
//! | [`sys`] | raw system calls past our own names, errno, futex |
//! | [`process`] | this process as the device knows it: row, queue set, control socket |
//! | [`fdtable`] | descriptor → socket, and how many descriptors this process has for each socket |
//! | [`rings`] | pushing NQEs, ringing the engine, synchronous calls |
//! | `borrowers` | children that share this memory and have descriptors of their own |
//! | `owned` | a lock whose holder may be one of those, and be killed |
//! | [`gate`] | keeps fork apart from calls that change descriptors |
//! | `hangup` | whether nobody serves this process any more |
//! | `names` | asking the guest's resolver |
//! | [`events`] | epoll, poll and select |
#![cfg_attr(not(test), no_std)]

pub mod attach;
mod borrowers;
pub mod calls;
pub mod control;
mod datagram;
pub mod events;
pub mod fdtable;
pub mod fork;
pub mod gate;
pub mod grants;
mod hangup;
mod io;
mod names;
mod next;
mod owned;
pub mod process;
pub mod rings;
pub mod standin;
pub mod sys;
#[cfg(test)]
mod testing;
mod wait;

/// A broken invariant ends the process as abort() does: nothing is printed from inside a foreign program.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: abort takes nothing and does not return.
    unsafe { libc::abort() }
}
