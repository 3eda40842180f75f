//! sendfile and splice: between files or pipes and sockets, through the chunks of the pool.

use core::ptr::NonNull;

use libc::{c_int, c_uint, loff_t, off_t, pollfd};
use nk_guestlib::Fault;
use nk_guestlib::send::Source;

use nk_device::row::Missed;

use super::{Target, native, size_result, target};
use crate::fdtable::{self, Entry};
use crate::io::{Buffers, IO_MAX, Open, Resume, recv_stream, send_stream};
use crate::sys;

/// A file that the kernel reads straight into chunks.
struct File {
    fd: c_int,
    start: off_t,
    done: usize,
}

impl Source for File {
    fn copy(&mut self, at: usize, to: NonNull<u8>, len: usize) -> Result<(), Fault> {
        let mut got = 0;
        while got < len {
            let offset = self.start + (self.done + at + got) as off_t;
            // SAFETY: the core gives room for `len` bytes in a chunk.
            let n = unsafe {
                sys::system_call!(
                    libc::SYS_pread64,
                    self.fd,
                    to.as_ptr().add(got),
                    len - got,
                    offset
                )
            };
            match usize::try_from(n) {
                Ok(0) => return Err(Fault),
                Ok(n) => got += n,
                Err(_) if sys::errno() == libc::EINTR => {}
                Err(_) => return Err(Fault),
            }
        }
        Ok(())
    }
}

impl Resume for File {
    fn resume_after(&mut self, done: usize) {
        self.done = done;
    }
}

fn do_sendfile(s: &Open, input: c_int, offset: *mut off_t, count: usize) -> Result<usize, c_int> {
    if fdtable::get(input) != Entry::None {
        return Err(libc::EINVAL);
    }
    // SAFETY: plain data, filled by the kernel.
    let st = unsafe {
        let mut st: libc::stat = core::mem::zeroed();
        if sys::system_call!(libc::SYS_fstat, input, &raw mut st) < 0 {
            return Err(sys::errno());
        }
        st
    };
    if !matches!(st.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFBLK) {
        return Err(libc::EINVAL);
    }
    let start = if offset.is_null() {
        native!(libc::SYS_lseek, input, 0, libc::SEEK_CUR)
    } else {
        // SAFETY: the program's pointer to an offset.
        unsafe { offset.read_unaligned() }
    };
    if start < 0 {
        return Err(if offset.is_null() { sys::errno() } else { libc::EINVAL });
    }
    let end = if st.st_mode & libc::S_IFMT == libc::S_IFREG {
        st.st_size
    } else {
        native!(libc::SYS_lseek, input, 0, libc::SEEK_END)
    };
    let left = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    let len = count.min(left).min(IO_MAX);
    let r = if len == 0 {
        Ok(0)
    } else {
        send_stream(s, &mut File { fd: input, start, done: 0 }, len, 0)
    };
    let moved = *r.as_ref().unwrap_or(&0) as off_t;
    if offset.is_null() {
        if end != st.st_size || moved != 0 {
            native!(libc::SYS_lseek, input, start + moved, libc::SEEK_SET);
        }
    } else {
        // SAFETY: as above.
        unsafe { offset.write_unaligned(start + moved) };
    }
    match r {
        // The file became shorter, or could not be read.
        Err(libc::EFAULT) => Err(libc::EIO),
        r => r,
    }
}

/// sendfile(2).
///
/// # Safety
/// As sendfile(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile(
    out: c_int,
    input: c_int,
    offset: *mut off_t,
    count: usize,
) -> isize {
    match target(out) {
        Target::Socket(s) if s.is_datagram() => not_for_datagrams(&s, libc::SYS_sendfile),
        Target::Socket(s) => size_result(do_sendfile(&s, input, offset, count)),
        Target::Native if matches!(fdtable::get(input), Entry::Socket { .. }) => {
            sys::fail_size(libc::EINVAL)
        }
        Target::Native => native!(libc::SYS_sendfile, out, input, offset, count) as isize,
        Target::Error(e) => sys::fail_size(e),
    }
}

/// sendfile64(2): the same on 64-bit machines.
///
/// # Safety
/// As sendfile(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile64(
    out: c_int,
    input: c_int,
    offset: *mut off_t,
    count: usize,
) -> isize {
    // SAFETY: the caller's promise.
    unsafe { sendfile(out, input, offset, count) }
}

/// A pipe with at least as many bytes as will be asked for.
struct Pipe(c_int);

impl Source for Pipe {
    fn copy(&mut self, _at: usize, to: NonNull<u8>, len: usize) -> Result<(), Fault> {
        let mut got = 0;
        while got < len {
            // SAFETY: the core gives room for `len` bytes in a chunk.
            let n = unsafe {
                sys::system_call!(libc::SYS_read, self.0, to.as_ptr().add(got), len - got)
            };
            match usize::try_from(n) {
                Ok(0) => return Err(Fault),
                Ok(n) => got += n,
                Err(_) if sys::errno() == libc::EINTR => {}
                Err(_) => return Err(Fault),
            }
        }
        Ok(())
    }
}

impl Resume for Pipe {
    fn resume_after(&mut self, _done: usize) {}
}

/// Waits for a pipe. `false` when it is not ready and must not be waited for.
fn wait_pipe(fd: c_int, events: i16, flags: c_uint) -> Result<bool, c_int> {
    let dont_wait = flags & libc::SPLICE_F_NONBLOCK != 0
        || sys::fcntl(fd, libc::F_GETFL, 0) & libc::O_NONBLOCK != 0;
    let mut p = pollfd { fd, events, revents: 0 };
    let now = sys::timespec_us(0);
    let limit = if dont_wait { &raw const now } else { core::ptr::null() };
    // SAFETY: one pollfd, a timespec or null, no mask.
    let r =
        unsafe { sys::system_call!(libc::SYS_ppoll, &raw mut p, 1usize, limit, 0usize, 8usize) };
    match r {
        0 => Ok(false),
        r if r > 0 => Ok(true),
        _ => Err(sys::errno()),
    }
}

fn bytes_in(pipe: c_int) -> usize {
    let mut n: c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let r = unsafe { sys::system_call!(libc::SYS_ioctl, pipe, libc::FIONREAD, &raw mut n) };
    if r < 0 { 0 } else { usize::try_from(n).unwrap_or(0) }
}

fn is_pipe(fd: c_int) -> bool {
    // SAFETY: plain data, filled by the kernel.
    unsafe {
        let mut st: libc::stat = core::mem::zeroed();
        sys::system_call!(libc::SYS_fstat, fd, &raw mut st) == 0
            && st.st_mode & libc::S_IFMT == libc::S_IFIFO
    }
}

fn pipe_to_socket(pipe: c_int, s: &Open, len: usize, flags: c_uint) -> Result<usize, c_int> {
    if !wait_pipe(pipe, libc::POLLIN, flags)? {
        return Err(libc::EAGAIN);
    }
    let n = bytes_in(pipe).min(len).min(IO_MAX);
    if n == 0 {
        return Ok(0);
    }
    let dont_wait = if flags & libc::SPLICE_F_NONBLOCK != 0 { libc::MSG_DONTWAIT } else { 0 };
    send_stream(s, &mut Pipe(pipe), n, dont_wait)
}

/// Bytes moved in one call: what a pipe takes without waiting once poll says that it is writable is at least this.
const STEP: usize = libc::PIPE_BUF;

fn socket_to_pipe(s: &Open, pipe: c_int, len: usize, flags: c_uint) -> Result<usize, c_int> {
    let mut step = [0u8; STEP];
    let mut done = 0;
    while done < len {
        let dont_wait = done > 0 || flags & libc::SPLICE_F_NONBLOCK != 0;
        let flag = if dont_wait { libc::MSG_DONTWAIT } else { 0 };
        // Looked at first and taken away after they are in the pipe: nothing is lost when the pipe is full.
        let n = match recv_into(s, &mut step, len - done, flag | libc::MSG_PEEK) {
            Ok(0) => break,
            Ok(n) => n,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        };
        match wait_pipe(pipe, libc::POLLOUT, if done > 0 { libc::SPLICE_F_NONBLOCK } else { flags })
        {
            Ok(true) => {}
            Ok(false) if done > 0 => break,
            Ok(false) => return Err(libc::EAGAIN),
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
        let w = native!(libc::SYS_write, pipe, step.as_ptr(), n);
        let Ok(w) = usize::try_from(w) else {
            if done > 0 {
                break;
            }
            return Err(sys::errno());
        };
        recv_into(s, &mut step, w, libc::MSG_DONTWAIT | libc::MSG_TRUNC)?;
        done += w;
    }
    Ok(done)
}

fn recv_into(s: &Open, buffer: &mut [u8; STEP], len: usize, flags: c_int) -> Result<usize, c_int> {
    let len = len.min(STEP);
    let v = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: len };
    // SAFETY: one iovec over a local buffer of at least `len` bytes.
    recv_stream(s, &mut unsafe { Buffers::new(&raw const v, 1) }, len, flags)
}

/// Linux makes a datagram of each piece of the file or pipe; nobody is known to want that.
fn not_for_datagrams(s: &Open, call: i64) -> isize {
    s.p.count_missed(Missed::Call, call as u64);
    sys::fail_size(libc::EINVAL)
}

/// splice(2).
///
/// # Safety
/// As splice(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn splice(
    input: c_int,
    input_offset: *mut loff_t,
    out: c_int,
    out_offset: *mut loff_t,
    len: usize,
    flags: c_uint,
) -> isize {
    let (from, to) = (target(input), target(out));
    match (from, to) {
        (Target::Native, Target::Native) => {
            native!(libc::SYS_splice, input, input_offset, out, out_offset, len, flags) as isize
        }
        (Target::Error(e), _) | (_, Target::Error(e)) => sys::fail_size(e),
        (Target::Socket(_), Target::Socket(_)) => sys::fail_size(libc::EINVAL),
        (Target::Socket(s), _) | (_, Target::Socket(s)) if s.is_datagram() => {
            not_for_datagrams(&s, libc::SYS_splice)
        }
        // A pipe has no offset (ESPIPE), a socket cannot be written at one (EINVAL).
        (Target::Socket(_), _) if !out_offset.is_null() => sys::fail_size(libc::ESPIPE),
        (_, Target::Socket(_)) if !input_offset.is_null() => sys::fail_size(libc::ESPIPE),
        _ if !input_offset.is_null() || !out_offset.is_null() => sys::fail_size(libc::EINVAL),
        (Target::Socket(s), Target::Native) => {
            if len == 0 {
                return 0;
            }
            if !is_pipe(out) {
                return sys::fail_size(libc::EINVAL);
            }
            size_result(socket_to_pipe(&s, out, len, flags))
        }
        (Target::Native, Target::Socket(s)) => {
            if len == 0 {
                return 0;
            }
            if !is_pipe(input) {
                return sys::fail_size(libc::EINVAL);
            }
            size_result(pipe_to_socket(input, &s, len, flags))
        }
    }
}
