//! The operations that move bytes or look: one C function for each. Results are 0 or more, a negative errno, or one of the `WAIT_*` codes below
//! `-MAX_ERRNO`, which tell the shell what to wait for.

use core::ffi::{c_int, c_void};
use core::ptr::NonNull;

use nk_device::Op;
use nk_device::sync::Ordering;
use nk_guestlib::errno::EINVAL;
use nk_guestlib::readiness::{EPOLLOUT, readiness};
use nk_guestlib::recv::{Discard, Received};
use nk_guestlib::send::SendError;
use nk_guestlib::{recv, send};

use crate::guest::{self, Incoming, Leased, guest, nqe};
use crate::shell::Message;

/// Wait until the socket changes.
pub(crate) const WAIT_SOCKET: i64 = -5000;
/// Wait until the host granted more ids or chunks.
pub(crate) const WAIT_GRANT: i64 = -5001;
pub(crate) const EBADF: i32 = 9;

/// What the interrupt thread is to do; `struct nk_incoming`.
#[repr(C)]
pub struct ShellIncoming {
    /// 1 a reply, 2 a socket changed, 3 grants came, 4 every socket may have changed.
    kind: u32,
    /// The ticket of a reply, the id of a socket.
    id: u32,
    /// The value of a reply.
    value: i64,
}

/// Opens the device that is mapped at `base`.
///
/// # Safety
/// `base` maps `len` bytes until [`nk_core_close`]; before and after, no other function here runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nk_core_open(base: *mut u8, len: usize) -> c_int {
    let Some(base) = NonNull::new(base) else { return -EINVAL };
    // SAFETY: the caller's promise.
    match unsafe { guest::open(base, len) } {
        Ok(()) => 0,
        Err(e) => -e,
    }
}

/// Forgets the device.
///
/// # Safety
/// No other function here runs, and none is called before the next open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nk_core_close() {
    // SAFETY: the caller's promise.
    unsafe { guest::close() }
}

/// How many sockets the device has: ids are below this.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_sockets() -> u32 {
    guest().map_or(0, |g| g.device().layout().cells)
}

/// Sends up to `len` bytes of the message: how many were taken, a negative errno, or a wait code.
///
/// # Safety
/// `message` is one that `nk_shell_copy_from` accepts, for the time of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nk_core_send(handle: u64, message: *mut c_void, len: usize) -> i64 {
    let Some((g, s)) = find(handle) else { return -i64::from(EBADF) };
    match send::send(&s, &mut Leased(g), &mut Message(message), len) {
        Ok(sent) => {
            // A push that fails says that the engine is gone, and the next call will say so too.
            if sent.kick {
                g.push_send(&nqe(Op::Send, handle));
            }
            sent.bytes as i64
        }
        Err(SendError::WouldBlock | SendError::Connecting) => WAIT_SOCKET,
        Err(SendError::NoChunks) => {
            g.refill();
            WAIT_GRANT
        }
        Err(SendError::Pipe) => -i64::from(nk_guestlib::errno::EPIPE),
        Err(SendError::Errno(e)) => -i64::from(e),
    }
}

/// Receives up to `len` bytes into the message, or drops them when it is null: how many, 0 at the end, a negative errno, or
/// [`WAIT_SOCKET`].
///
/// # Safety
/// `message` is null or one that `nk_shell_copy_to` accepts, for the time of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nk_core_recv(
    handle: u64,
    message: *mut c_void,
    len: usize,
    peek: bool,
) -> i64 {
    let Some((g, s)) = find(handle) else { return -i64::from(EBADF) };
    let got = if message.is_null() {
        recv::recv(&s, &mut Discard, len, peek)
    } else {
        recv::recv(&s, &mut Message(message), len, peek)
    };
    match got {
        Received::Bytes { count, rx_room } => {
            if rx_room {
                g.push_job(&nqe(Op::RxRoom, handle));
            }
            count as i64
        }
        Received::Eof => 0,
        Received::WouldBlock => WAIT_SOCKET,
        Received::Errno(e) => -i64::from(e),
    }
}

/// The socket's event mask. With `want_out`, one that is not writable gets an event when it is.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_poll(handle: u64, want_out: bool) -> u32 {
    let Some((g, s)) = find(handle) else { return 0 };
    let mask = readiness(s.cell, g.has_chunks());
    if mask & EPOLLOUT != 0 || !want_out {
        return mask;
    }
    if !g.has_chunks() {
        g.refill();
    }
    s.cell.want_tx();
    readiness(s.cell, g.has_chunks())
}

/// Bytes that can be received.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_available(handle: u64) -> usize {
    find(handle).map_or(0, |(_, s)| recv::available(s.cell))
}

/// Bytes that wait to be sent.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_queued(handle: u64) -> usize {
    find(handle).map_or(0, |(_, s)| send::queued(&s))
}

/// The pending error without taking it, 0 when there is none.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_error(handle: u64) -> c_int {
    find(handle).and_then(|(_, s)| s.cell.pending_error()).map_or(0, |(_, errno)| errno)
}

/// Takes the pending error.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_take_error(handle: u64) -> c_int {
    find(handle).map_or(0, |(_, s)| s.cell.take_error())
}

/// Sets SO_RCVLOWAT.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_set_lowat(handle: u64, bytes: u32) {
    if let Some((_, s)) = find(handle) {
        s.cell.rcv_lowat.store(bytes, Ordering::Relaxed);
    }
}

/// The next thing that the host told, `false` when there is none.
///
/// # Safety
/// `to` is writable; one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nk_core_next(to: *mut ShellIncoming) -> bool {
    let Some(g) = guest() else { return false };
    // SAFETY: the caller's promise.
    let found = match unsafe { g.next() } {
        None => return false,
        Some(Incoming::Overflow) => ShellIncoming { kind: 4, id: 0, value: 0 },
        Some(Incoming::Reply(n)) => {
            ShellIncoming { kind: 1, id: u32::from(n.ticket), value: n.op_data as i64 }
        }
        Some(Incoming::Event(n)) if n.op == Op::Granted as u8 => {
            ShellIncoming { kind: 3, id: 0, value: 0 }
        }
        Some(Incoming::Event(n)) => ShellIncoming { kind: 2, id: n.socket, value: 0 },
    };
    // SAFETY: the caller's promise; the shell's own memory.
    unsafe { to.write(found) };
    true
}

/// The socket of a handle that is still its own.
pub(crate) fn find(handle: u64) -> Option<(&'static guest::Guest, nk_guestlib::Socket<'static>)> {
    let g = guest()?;
    Some((g, g.socket(handle)?))
}
