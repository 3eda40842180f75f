//! fstat: two sockets are two files, also while their stand-ins are one ([`crate::standin`]).

use libc::{c_int, stat};

use super::native;
use crate::{standin, sys};

fn of_descriptor(fd: c_int, to: *mut stat) -> c_int {
    // Without one of its own it tells the anchor's numbers: better than an errno that fstat does not have.
    let _ = standin::settle(fd);
    native!(libc::SYS_fstat, fd, to) as c_int
}

/// fstat(2).
#[unsafe(no_mangle)]
pub extern "C" fn fstat(fd: c_int, to: *mut stat) -> c_int {
    of_descriptor(fd, to)
}

/// fstat64: the same on 64-bit machines.
#[unsafe(no_mangle)]
pub extern "C" fn fstat64(fd: c_int, to: *mut stat) -> c_int {
    of_descriptor(fd, to)
}

/// What fstat(2) was in programs built with a glibc before 2.33.
#[unsafe(no_mangle)]
pub extern "C" fn __fxstat(_version: c_int, fd: c_int, to: *mut stat) -> c_int {
    of_descriptor(fd, to)
}

/// The same on 64-bit machines.
#[unsafe(no_mangle)]
pub extern "C" fn __fxstat64(_version: c_int, fd: c_int, to: *mut stat) -> c_int {
    of_descriptor(fd, to)
}
