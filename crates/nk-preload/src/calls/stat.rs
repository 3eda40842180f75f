//! fstat: two sockets are two files, also while their stand-ins are one ([`crate::standin`]), and one socket is one file, also where it
//! was passed to another process and has another stand-in there.

use libc::{c_int, stat};

use super::native;
use crate::fdtable::{self, Entry};
use crate::sys;

/// In the numbers of sockets: the kernel counts its files from 1.
const NUMBER_OF_SOCKET: u64 = 1 << 48;

fn of_descriptor(fd: c_int, to: *mut stat) -> c_int {
    let r = native!(libc::SYS_fstat, fd, to) as c_int;
    if let (0, Entry::Socket { id, generation }) = (r, fdtable::get(fd)) {
        let number = NUMBER_OF_SOCKET | u64::from(generation) << 32 | u64::from(id);
        // SAFETY: the kernel has just written there.
        unsafe { (*to).st_ino = number };
    }
    r
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
