//! The names of the C library that this library answers. Each looks the descriptor up and either serves it or makes the
//! system call; nothing else happens on the way to somebody else's descriptor.

pub mod accept;
pub mod address;
pub mod clone;
pub mod control;
mod control_messages;
mod datagrams;
pub mod descriptors;
pub mod environment;
pub mod exec;
pub mod files;
pub mod fortified;
pub mod hosts;
pub mod interfaces;
pub mod limits;
pub mod many;
pub mod messages;
pub mod names;
pub mod options;
pub mod print;
pub mod raw;
pub mod records;
pub mod rights;
pub mod socket;
pub mod spawn;
pub mod stat;
pub mod transfer;

use libc::c_int;

use crate::fdtable::{self, Entry};
use crate::io::Open;
use crate::sys;

/// Makes a system call with these arguments.
macro_rules! native {
    ($number:expr $(, $a:expr)* $(,)?) => {
        // SAFETY: the program's own arguments, passed on unchanged: the kernel checks them.
        unsafe { sys::system_call!($number $(, $a)*) }
    };
}
pub(crate) use native;

/// What a call on a descriptor is about.
pub(crate) enum Target {
    /// Somebody else's: make the system call.
    Native,
    /// A socket of ours.
    Socket(Open),
    /// One of our internal descriptors, or a socket that is there no more: this errno.
    Error(c_int),
}

/// Looks a descriptor up.
#[inline]
pub(crate) fn target(fd: c_int) -> Target {
    match fdtable::get(fd) {
        Entry::None | Entry::Epoll { .. } => Target::Native,
        Entry::Socket { id, generation } => match Open::find(id, generation) {
            Some(s) => Target::Socket(s),
            None => Target::Error(libc::ENOTCONN),
        },
        Entry::Internal => Target::Error(libc::EBADF),
    }
}

/// A result as the C library's callers want it.
pub(crate) fn size_result(r: Result<usize, c_int>) -> isize {
    match r {
        Ok(n) => n as isize,
        Err(e) => sys::fail_size(e),
    }
}

/// A result without a value.
pub(crate) fn int_result(r: Result<(), c_int>) -> c_int {
    match r {
        Ok(()) => 0,
        Err(e) => sys::fail(e),
    }
}
