//! One C function per operation on a socket. Results are 0 or more, a negative errno, or one of the `WAIT_*` codes below
//! `-MAX_ERRNO`, which tell the shell what to wait for.

use core::ffi::{c_int, c_void};
use core::ptr::NonNull;

use nk_device::cell::{
    GF_CONNECT_CALLED, GF_SHUT_RD, GF_SHUT_WR, SF_BOUND, SF_CONNECTED,
};
use nk_device::sync::Ordering;
use nk_device::{Addr, Op};
use nk_guestlib::accept::{Accepted, accept};
use nk_guestlib::connect::ConnectState;
use nk_guestlib::errno::{EALREADY, EINVAL, EISCONN, ENOTCONN};
use nk_guestlib::readiness::{EPOLLOUT, readiness};
use nk_guestlib::recv::{Discard, Received};
use nk_guestlib::send::SendError;
use nk_guestlib::{connect, recv, send};

use crate::guest::{self, ENGINE_GONE, Incoming, Leased, guest, nqe};
use crate::shell::Message;
use crate::{QSET, ROW};

/// Wait until the socket changes.
const WAIT_SOCKET: i64 = -5000;
/// Wait until the host granted more ids or chunks.
const WAIT_GRANT: i64 = -5001;
const EBADF: i32 = 9;

/// An address as C hands it over; `struct nk_addr`.
#[repr(C)]
pub struct ShellAddr {
    family: u16,
    port: u16,
    scope: u16,
    reserved: u16,
    ip: [u8; 16],
}

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

/// A new socket: its handle, or [`WAIT_GRANT`].
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_socket(family: u16, kind: u16, protocol: u16) -> i64 {
    let Some(g) = guest() else { return -i64::from(ENGINE_GONE) };
    let Some((handle, cell)) = guest::take_socket(g) else {
        g.refill();
        return WAIT_GRANT;
    };
    cell.kind.store(u32::from(family) | u32::from(kind) << 16, Ordering::Release);
    let mut n = nqe(Op::Socket, handle);
    n.op_data = u64::from(family) | u64::from(kind) << 16 | u64::from(protocol) << 32;
    if g.push_job(&n) { handle as i64 } else { -i64::from(ENGINE_GONE) }
}

/// The VM holds the socket no more. `linger`: seconds + 1 of SO_LINGER, 0 when it is off.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_release(handle: u64, linger: u32) {
    let Some((g, s)) = find(handle) else { return };
    s.cell.linger.store(linger, Ordering::Release);
    s.cell.unwatch(QSET);
    if s.cell.release(ROW) {
        g.push_job(&nqe(Op::Close, handle));
    }
}

/// Starts to connect: 0 when the stack was asked (its reply comes with the ticket: -EINPROGRESS or why it cannot), else what
/// connect() returns at once. [`nk_core_connected`] tells the rest.
///
/// # Safety
/// `to` points to a valid address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nk_core_connect(
    handle: u64,
    to: *const ShellAddr,
    ticket: u8,
) -> c_int {
    let Some((g, s)) = find(handle) else { return -EBADF };
    match connect::state(s.cell) {
        ConnectState::Idle => {}
        ConnectState::InProgress => return -EALREADY,
        ConnectState::Connected | ConnectState::Listening => return -EISCONN,
        ConnectState::Failed(e) => {
            s.cell.guest_state.fetch_and(!GF_CONNECT_CALLED, Ordering::SeqCst);
            return -e;
        }
    }
    if s.cell.guest_state.fetch_or(GF_CONNECT_CALLED, Ordering::SeqCst) & GF_CONNECT_CALLED != 0 {
        return -EALREADY;
    }
    // SAFETY: the caller's promise; the shell's own memory.
    let to = unsafe { &*to };
    let mut n = with_address(Op::Connect, handle, to);
    n.ticket = ticket;
    if g.push_job(&n) {
        return 0;
    }
    s.cell.guest_state.fetch_and(!GF_CONNECT_CALLED, Ordering::SeqCst);
    -ENGINE_GONE
}

/// The stack refused to start a connect: the socket is as before it.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_connect_refused(handle: u64) {
    if let Some((_, s)) = find(handle) {
        s.cell.guest_state.fetch_and(!GF_CONNECT_CALLED, Ordering::SeqCst);
    }
}

/// Asks the stack to dissolve the association (connect with AF_UNSPEC); the reply comes with the ticket.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_disconnect(handle: u64, ticket: u8) -> c_int {
    let Some((g, _)) = find(handle) else { return -EBADF };
    let mut n = nqe(Op::Disconnect, handle);
    n.ticket = ticket;
    if g.push_job(&n) { 0 } else { -ENGINE_GONE }
}

/// How the connection attempt stands: 0 connected, [`WAIT_SOCKET`], or its errno (told once; the socket is free again).
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_connected(handle: u64) -> i64 {
    let Some((_, s)) = find(handle) else { return -i64::from(EBADF) };
    match connect::state(s.cell) {
        ConnectState::Connected => 0,
        ConnectState::InProgress => WAIT_SOCKET,
        ConnectState::Idle | ConnectState::Listening => -i64::from(EINVAL),
        ConnectState::Failed(e) => {
            s.cell.guest_state.fetch_and(!GF_CONNECT_CALLED, Ordering::SeqCst);
            -i64::from(e)
        }
    }
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

/// shutdown(): `how` as in the system call.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_shutdown(handle: u64, how: u32) -> c_int {
    let Some((g, s)) = find(handle) else { return -EBADF };
    let bits = match how {
        0 => GF_SHUT_RD,
        1 => GF_SHUT_WR,
        2 => GF_SHUT_RD | GF_SHUT_WR,
        _ => return -EINVAL,
    };
    if s.cell.state.load(Ordering::Acquire) & SF_CONNECTED == 0 {
        return -ENOTCONN;
    }
    s.cell.guest_state.fetch_or(bits, Ordering::SeqCst);
    let mut n = nqe(Op::Shutdown, handle);
    n.op_data = u64::from(how);
    if g.push_job(&n) { 0 } else { -ENGINE_GONE }
}

/// The local or the peer's address; family 0 when the socket has none.
///
/// # Safety
/// `to` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nk_core_address(handle: u64, peer: bool, to: *mut ShellAddr) -> c_int {
    let Some((_, s)) = find(handle) else { return -EBADF };
    let state = s.cell.state.load(Ordering::Acquire);
    let a = match peer {
        true if state & SF_CONNECTED == 0 => return -ENOTCONN,
        true => s.cell.peer.load(),
        false if state & SF_BOUND == 0 => Addr::default(),
        false => s.cell.local.load(),
    };
    let a = ShellAddr { family: a.family, port: a.port, scope: a.scope, reserved: 0, ip: a.ip };
    // SAFETY: the caller's promise; the shell's own memory.
    unsafe { to.write(a) };
    0
}

/// Asks the stack to bind; the reply comes with the ticket.
///
/// # Safety
/// `to` points to a valid address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nk_core_bind(handle: u64, to: *const ShellAddr, ticket: u8) -> c_int {
    let Some((g, _)) = find(handle) else { return -EBADF };
    // SAFETY: the caller's promise; the shell's own memory.
    let mut n = with_address(Op::Bind, handle, unsafe { &*to });
    n.ticket = ticket;
    if g.push_job(&n) { 0 } else { -ENGINE_GONE }
}

/// Asks the stack to listen; the reply comes with the ticket.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_listen(handle: u64, backlog: u32, ticket: u8) -> c_int {
    let Some((g, _)) = find(handle) else { return -EBADF };
    let mut n = nqe(Op::Listen, handle);
    n.op_data = u64::from(backlog);
    n.ticket = ticket;
    if g.push_job(&n) { 0 } else { -ENGINE_GONE }
}

/// An accepted socket's handle, a negative errno or [`WAIT_SOCKET`].
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_accept(handle: u64) -> i64 {
    let Some((g, s)) = find(handle) else { return -i64::from(EBADF) };
    match accept(g.device(), s.cell, ROW) {
        Accepted::Socket { socket, rx_room } => {
            if rx_room {
                g.push_job(&nqe(Op::RxRoom, handle));
            }
            if let Some(c) = g.device().cell(socket.socket) {
                c.watch(QSET, 0);
            }
            (u64::from(socket.socket) | u64::from(socket.generation) << 32) as i64
        }
        Accepted::WouldBlock => WAIT_SOCKET,
        Accepted::Errno(e) => -i64::from(e),
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

fn find(handle: u64) -> Option<(&'static guest::Guest, nk_guestlib::Socket<'static>)> {
    let g = guest()?;
    Some((g, g.socket(handle)?))
}

fn with_address(op: Op, handle: u64, a: &ShellAddr) -> nk_device::Nqe {
    let mut n = nqe(op, handle);
    let addr = Addr { family: a.family, port: a.port, scope: a.scope, ip: a.ip };
    (n.size, n.op_data, n.data) = addr.to_words();
    n
}
