//! fdopen on a socket: a stream of the C library whose reads and writes come back here.

use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use libc::{c_char, c_int, c_void};

use super::descriptors::close;
use super::messages::{read, write};
use crate::fdtable::{self, Entry};
use crate::{next, sys};

#[repr(C)]
struct CookieFunctions {
    read: Option<unsafe extern "C" fn(*mut c_void, *mut c_char, usize) -> isize>,
    write: Option<unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> isize>,
    seek: Option<unsafe extern "C" fn(*mut c_void, *mut i64, c_int) -> c_int>,
    close: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
}

unsafe extern "C" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, io: CookieFunctions) -> *mut c_void;
}

/// Streams of ours: address of the stream, and the descriptor, for fileno. A stream beyond these has no number, as any other
/// made by fopencookie.
const STREAMS: usize = 256;
static STREAM: [AtomicUsize; STREAMS] = [const { AtomicUsize::new(0) }; STREAMS];
static STREAM_FD: [AtomicI32; STREAMS] = [const { AtomicI32::new(-1) }; STREAMS];

fn remember(stream: *mut c_void, fd: c_int) {
    for (s, f) in STREAM.iter().zip(&STREAM_FD) {
        if s.compare_exchange(0, stream as usize, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            f.store(fd, Ordering::Release);
            return;
        }
    }
}

fn forget(fd: c_int) {
    for (s, f) in STREAM.iter().zip(&STREAM_FD) {
        if f.compare_exchange(fd, -1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            s.store(0, Ordering::Release);
        }
    }
}

fn number_of(stream: *mut c_void) -> Option<c_int> {
    let found = STREAM
        .iter()
        .zip(&STREAM_FD)
        .find(|(s, _)| !stream.is_null() && s.load(Ordering::Acquire) == stream as usize);
    found.map(|(_, f)| f.load(Ordering::Acquire)).filter(|fd| *fd >= 0)
}

fn native_fileno(next: &next::Next, stream: *mut c_void) -> c_int {
    type Fileno = unsafe extern "C" fn(*mut c_void) -> c_int;
    let real = next.get();
    if real.is_null() {
        return sys::fail(libc::EBADF);
    }
    // SAFETY: the C library's function of that name and signature, with the program's stream.
    unsafe { core::mem::transmute::<*mut c_void, Fileno>(real)(stream) }
}

/// fileno(3).
///
/// # Safety
/// As fileno(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fileno(stream: *mut c_void) -> c_int {
    number_of(stream).unwrap_or_else(|| native_fileno(&next::FILENO, stream))
}

/// fileno_unlocked(3).
///
/// # Safety
/// As fileno(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fileno_unlocked(stream: *mut c_void) -> c_int {
    number_of(stream).unwrap_or_else(|| native_fileno(&next::FILENO_UNLOCKED, stream))
}

// The cookie is the descriptor's number.
unsafe extern "C" fn cookie_read(cookie: *mut c_void, to: *mut c_char, len: usize) -> isize {
    // SAFETY: the C library's own buffer.
    unsafe { read(cookie as usize as c_int, to.cast(), len) }
}
unsafe extern "C" fn cookie_write(cookie: *mut c_void, from: *const c_char, len: usize) -> isize {
    // SAFETY: the C library's own buffer.
    let n = unsafe { write(cookie as usize as c_int, from.cast(), len) };
    // A cookie's write reports errors as 0.
    n.max(0)
}
unsafe extern "C" fn cookie_close(cookie: *mut c_void) -> c_int {
    forget(cookie as usize as c_int);
    close(cookie as usize as c_int)
}

/// fdopen(3).
///
/// # Safety
/// As fdopen(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdopen(fd: c_int, mode: *const c_char) -> *mut c_void {
    if let Entry::Socket { .. } = fdtable::get(fd) {
        if mode.is_null() {
            sys::set_errno(libc::EINVAL);
            return core::ptr::null_mut();
        }
        // SAFETY: the program's C string.
        if unsafe { CStr::from_ptr(mode) }.to_bytes().contains(&b'e') {
            sys::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC as usize);
        }
        let io = CookieFunctions {
            read: Some(cookie_read),
            write: Some(cookie_write),
            seek: None,
            close: Some(cookie_close),
        };
        // SAFETY: the functions above take such a cookie.
        let stream = unsafe { fopencookie(fd as usize as *mut c_void, mode, io) };
        if !stream.is_null() {
            remember(stream, fd);
        }
        return stream;
    }
    type Fdopen = unsafe extern "C" fn(c_int, *const c_char) -> *mut c_void;
    let real = next::FDOPEN.get();
    if real.is_null() {
        sys::set_errno(libc::ENOSYS);
        return core::ptr::null_mut();
    }
    // SAFETY: the C library's function of that name and signature, with the program's arguments.
    unsafe { core::mem::transmute::<*mut c_void, Fdopen>(real)(fd, mode) }
}

unsafe extern "C" {
    static mut stdin: *mut c_void;
    static mut stdout: *mut c_void;
    static mut stderr: *mut c_void;
    fn setvbuf(stream: *mut c_void, buffer: *mut c_char, mode: c_int, size: usize) -> c_int;
}

/// A program that starts with a socket as its standard input or output (as inetd starts them): the C library's streams would
/// read and write the stand-in.
pub(crate) fn replace_standard_streams() {
    const UNBUFFERED: c_int = 2;
    // SAFETY: runs in the constructor, before the program uses these; the variables are the C library's own.
    unsafe {
        for (fd, stream, mode) in
            [(0, &raw mut stdin, c"r"), (1, &raw mut stdout, c"w"), (2, &raw mut stderr, c"w")]
        {
            if matches!(fdtable::get(fd), Entry::Socket { .. }) {
                let ours = fdopen(fd, mode.as_ptr());
                if ours.is_null() {
                    continue;
                }
                if fd == 2 {
                    setvbuf(ours, core::ptr::null_mut(), UNBUFFERED, 0);
                }
                *stream = ours;
            }
        }
    }
}
