//! fdopen on a socket, and a socket as standard input or output: a stream of the C library whose reads and writes come back here.

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

/// The place's stream is being made.
const COMING: usize = 1;

/// A place for a stream on the descriptor: its index.
fn take_place(fd: c_int) -> Option<usize> {
    let take = |s: &AtomicUsize| {
        s.compare_exchange(0, COMING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    let at = STREAM.iter().position(take)?;
    STREAM_FD.get(at)?.store(fd, Ordering::Release);
    Some(at)
}

/// What is in the place now; 0 gives it back.
fn set_place(at: Option<usize>, stream: usize) {
    if let Some(s) = at.and_then(|at| STREAM.get(at)) {
        s.store(stream, Ordering::Release);
    }
}

fn number_of(stream: *mut c_void) -> Option<c_int> {
    if let Some(fd) = standard(stream) {
        return Some(fd);
    }
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

/// Of a cookie, which is the descriptor's number: it is the stream that stands in the place of stdin, stdout or stderr.
const STANDARD: usize = 1 << 32;
/// From here, of any other cookie: one more than the stream's place, or 0.
const PLACE_SHIFT: u32 = 33;

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
    let fd = cookie as usize as c_int;
    if cookie as usize & STANDARD == 0 {
        set_place((cookie as usize >> PLACE_SHIFT).checked_sub(1), 0);
    } else {
        forget_standard(fd);
    }
    close(fd)
}

/// # Safety
/// A C string.
unsafe fn open(cookie: usize, mode: *const c_char) -> *mut c_void {
    let io = CookieFunctions {
        read: Some(cookie_read),
        write: Some(cookie_write),
        seek: None,
        close: Some(cookie_close),
    };
    // SAFETY: the functions take such a cookie; the caller's promise.
    unsafe { fopencookie(cookie as *mut c_void, mode, io) }
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
        let place = take_place(fd);
        let cookie = fd as usize | place.map_or(0, |at| (at + 1) << PLACE_SHIFT);
        // SAFETY: the program's C string.
        let stream = unsafe { open(cookie, mode) };
        set_place(place, stream as usize);
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
    fn fwrite(from: *const c_void, size: usize, n: usize, stream: *mut c_void) -> usize;
    fn __fpending(stream: *mut c_void) -> usize;
    fn __fpurge(stream: *mut c_void);
    fn fflush(stream: *mut c_void) -> c_int;
    fn fclose(stream: *mut c_void) -> c_int;
    fn fopen(path: *const c_char, mode: *const c_char) -> *mut c_void;
}

const FULLY_BUFFERED: c_int = 0;
const LINE_BUFFERED: c_int = 1;
const UNBUFFERED: c_int = 2;

/// The C library's stream for each of the first three descriptors while ours stands in its place, and ours. They are made before
/// the program runs: dup2 and close, which change what stands there, may be called where memory must not be asked for.
static NATIVE: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
static OURS: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// The descriptor for which this stream of ours stands in the C library's place.
fn standard(stream: *mut c_void) -> Option<c_int> {
    let at = OURS.iter().position(|o| o.load(Ordering::Acquire) == stream as usize)?;
    (!stream.is_null()).then_some(at as c_int)
}

/// What the program's variable for that descriptor says.
fn variable(fd: c_int) -> *mut *mut c_void {
    match fd {
        0 => &raw mut stdin,
        1 => &raw mut stdout,
        _ => &raw mut stderr,
    }
}

/// How a stream buffers, of what setvbuf takes: by the flags in glibc's FILE (`_IO_UNBUFFERED`, `_IO_LINE_BUF`).
///
/// # Safety
/// A stream of the C library.
unsafe fn buffering(stream: *mut c_void) -> c_int {
    // SAFETY: the flags are the FILE's first word (bits/types/struct_FILE.h).
    match unsafe { stream.cast::<c_int>().read() } {
        flags if flags & 0x2 != 0 => UNBUFFERED,
        flags if flags & 0x200 != 0 => LINE_BUFFERED,
        _ => FULLY_BUFFERED,
    }
}

/// What the program said of one stream's buffer holds for the other.
///
/// # Safety
/// Both are streams of the C library.
unsafe fn buffer_alike(from: *mut c_void, to: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe {
        let wanted = buffering(from);
        if wanted != buffering(to) {
            setvbuf(to, core::ptr::null_mut(), wanted, 0);
        }
    }
}

/// What the program wrote to `from` and has not flushed belongs to whatever the descriptor is now, so it goes to `to`.
///
/// # Safety
/// Both are streams of the C library that are open for writing.
unsafe fn carry(from: *mut c_void, to: *mut c_void) {
    /// Where glibc's FILE has `_IO_write_base` and after it `_IO_write_ptr` (bits/types/struct_FILE.h: a flag word and three
    /// pointers come before).
    const WRITE_BASE: usize = 32;
    // SAFETY: as the caller vouches; what is pending stands between the two, except in a stream of wide characters.
    unsafe {
        let pending = __fpending(from);
        let [base, end] = from.cast::<u8>().add(WRITE_BASE).cast::<[usize; 2]>().read();
        if pending > 0 && end.wrapping_sub(base) == pending {
            fwrite(base as *const c_void, 1, pending, to);
            __fpurge(from);
        }
    }
}

/// After descriptor `fd` has become something else: where it is one of the first three, the C library's stream for it reads and
/// writes past the table of calls, so a socket there gets a stream of ours (inetd's children, bash's `/dev/tcp`), and what
/// is no socket any more its own again. A stream that the program put into the variable itself is left alone.
pub(crate) fn follow(fd: c_int) {
    if !(0..=2).contains(&fd) {
        return;
    }
    let saved = sys::errno();
    follow_one_of_three(fd);
    sys::set_errno(saved);
}

fn follow_one_of_three(fd: c_int) {
    let (native, ours) = (&NATIVE[fd as usize], &OURS[fd as usize]);
    let is_socket = matches!(fdtable::get(fd), Entry::Socket { .. });
    let variable = variable(fd);
    // SAFETY: the C library's own variables, which the program reads as it does; both streams stay open until the program closes
    // them (`forget_standard` notes that of ours).
    unsafe {
        let now = *variable;
        let of_ours = ours.load(Ordering::Acquire);
        if now.is_null() || (now as usize == of_ours) == is_socket {
            return;
        }
        if !is_socket {
            let native = native.load(Ordering::Acquire) as *mut c_void;
            buffer_alike(now, native);
            if fd != 0 {
                carry(now, native);
            }
            *variable = native;
            return;
        }
        if native_fileno(&next::FILENO, now) != fd {
            return;
        }
        let stream = of_ours as *mut c_void;
        if stream.is_null() {
            // The program closed it.
            return;
        }
        buffer_alike(now, stream);
        native.store(now as usize, Ordering::Release);
        if fd != 0 {
            carry(now, stream);
        }
        *variable = stream;
    }
}

/// Before the program runs: makes the streams, and puts them there where it starts with a socket as its standard input or output
/// (as inetd starts them).
pub(crate) fn follow_standard() {
    for (fd, ours) in OURS.iter().enumerate() {
        let mode = if fd == 0 { c"r" } else { c"w" };
        // SAFETY: a literal.
        ours.store(unsafe { open(fd | STANDARD, mode.as_ptr()) } as usize, Ordering::Release);
        follow(fd as c_int);
    }
}

fn reopen(
    next: &next::Next,
    path: *const c_char,
    mode: *const c_char,
    stream: *mut c_void,
) -> *mut c_void {
    type Reopen = unsafe extern "C" fn(*const c_char, *const c_char, *mut c_void) -> *mut c_void;
    // SAFETY: the C library's function of that name.
    let Some(real) = (unsafe { next.function::<Reopen>() }) else {
        sys::set_errno(libc::ENOSYS);
        return core::ptr::null_mut();
    };
    let stream = match (standard(stream), number_of(stream)) {
        // SAFETY: a stream of ours.
        (_, Some(_)) if path.is_null() => unsafe {
            fflush(stream);
            return stream;
        },
        // SAFETY: a stream of ours, kept for the next time; the C library's own takes the place, without the descriptor.
        (Some(fd), _) => unsafe {
            fflush(stream);
            close(fd);
            *variable(fd)
        },
        // SAFETY: a stream of ours that the program gives up. The C library cannot open a file on one that fopencookie made.
        (None, Some(_)) => unsafe {
            fclose(stream);
            return fopen(path, mode);
        },
        (None, None) => stream,
    };
    // SAFETY: the program's arguments, and a stream of the C library's own.
    unsafe { real(path, mode, stream) }
}

/// freopen(3).
///
/// # Safety
/// As freopen(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn freopen(
    path: *const c_char,
    mode: *const c_char,
    stream: *mut c_void,
) -> *mut c_void {
    reopen(&next::FREOPEN, path, mode, stream)
}

/// freopen64: the same on 64-bit machines.
///
/// # Safety
/// As freopen(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn freopen64(
    path: *const c_char,
    mode: *const c_char,
    stream: *mut c_void,
) -> *mut c_void {
    reopen(&next::FREOPEN64, path, mode, stream)
}

/// The program closes a stream of ours that stands for standard input or output: the variable gets the C library's own again,
/// since it must not refer to what is freed.
fn forget_standard(fd: c_int) {
    let stream = OURS[fd as usize].swap(0, Ordering::AcqRel);
    let variable = variable(fd);
    // SAFETY: as in `follow`.
    unsafe {
        if stream != 0 && *variable as usize == stream {
            *variable = NATIVE[fd as usize].load(Ordering::Acquire) as *mut c_void;
        }
    }
}
