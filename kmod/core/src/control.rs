//! The operations that change what a socket is: one C function for each. Results as in [`crate::calls`].

use core::ffi::c_int;

use nk_device::cell::{
    GF_CONNECT_CALLED, GF_SHUT_RD, GF_SHUT_WR, SF_BOUND, SF_CONNECTED, SF_CONNECTING, SF_DEAD,
    SF_LISTENING,
};
use nk_device::nqe::pack_option;
use nk_device::row::Missed;
use nk_device::sync::Ordering;
use nk_device::{Addr, Op};
use nk_guestlib::accept::{Accepted, accept};
use nk_guestlib::connect::{self, ConnectState};
use nk_guestlib::errno::{EALREADY, ECONNABORTED, EINVAL, EISCONN, ENOPROTOOPT, ENOTCONN};
use nk_guestlib::options::{self, Policy};

use crate::calls::{EBADF, WAIT_GRANT, WAIT_SOCKET, find};
use crate::guest::{self, ENGINE_GONE, guest, nqe};
use crate::{QSET, ROW};

/// An address as C hands it over; `struct nk_addr`.
#[repr(C)]
pub struct ShellAddr {
    family: u16,
    port: u16,
    scope: u16,
    reserved: u16,
    ip: [u8; 16],
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
pub unsafe extern "C" fn nk_core_connect(handle: u64, to: *const ShellAddr, ticket: u8) -> c_int {
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

/// After a disconnect that succeeded: the socket is as new.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_disconnected(handle: u64) {
    if let Some((_, s)) = find(handle) {
        let bits = GF_CONNECT_CALLED | GF_SHUT_RD | GF_SHUT_WR;
        s.cell.guest_state.fetch_and(!bits, Ordering::SeqCst);
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

/// How the connection attempt stands: 0 (told once, EISCONN after that), [`WAIT_SOCKET`], or its errno (told once, too; then the
/// socket is free again).
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_connected(handle: u64) -> i64 {
    let Some((_, s)) = find(handle) else { return -i64::from(EBADF) };
    match connect::state(s.cell) {
        ConnectState::Connected => {
            let told = s.cell.guest_state.fetch_and(!GF_CONNECT_CALLED, Ordering::SeqCst);
            if told & GF_CONNECT_CALLED != 0 { 0 } else { -i64::from(EISCONN) }
        }
        ConnectState::InProgress => WAIT_SOCKET,
        ConnectState::Idle => -i64::from(ECONNABORTED),
        ConnectState::Listening => -i64::from(EISCONN),
        ConnectState::Failed(e) => {
            s.cell.guest_state.fetch_and(!GF_CONNECT_CALLED, Ordering::SeqCst);
            -i64::from(e)
        }
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
    let state = s.cell.state.load(Ordering::Acquire);
    if state & SF_DEAD != 0 || state & (SF_CONNECTED | SF_CONNECTING | SF_LISTENING) == 0 {
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
        true if state & (SF_CONNECTED | SF_DEAD) != SF_CONNECTED => return -ENOTCONN,
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

/// What setsockopt is to do with an option: 0 keep it here, 1 tell the stack, 2 tell it and wait, or a negative errno (which is
/// counted, so that the operator sees what programs miss).
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_option(level: c_int, name: c_int) -> c_int {
    let refuse = |errno: i32| {
        if let Some(row) = guest().and_then(guest::Guest::row) {
            let detail = u64::from(level as u16) << 16 | u64::from(name as u16);
            row.count_missed(Missed::SetSockOpt, detail);
        }
        -errno
    };
    match options::lookup(level, name).map(|o| o.policy) {
        Some(Policy::Local) => 0,
        Some(Policy::Forward) => 1,
        Some(Policy::ForwardSync) => 2,
        Some(Policy::ReadOnly(e) | Policy::Off(e) | Policy::Refuse(e)) => refuse(e),
        None => refuse(ENOPROTOOPT),
    }
}

/// Tells the stack an option's value, of at most 16 bytes in the words `low` and `high`; ticket 0 asks for no reply.
#[unsafe(no_mangle)]
pub extern "C" fn nk_core_set_option(
    handle: u64,
    level: u8,
    name: u16,
    length: u8,
    low: u64,
    high: u64,
    ticket: u8,
) -> c_int {
    let Some((g, _)) = find(handle) else { return -EBADF };
    let mut n = nqe(Op::SetSockOpt, handle);
    n.size = pack_option(level, name, length);
    (n.op_data, n.data, n.ticket) = (low, high, ticket);
    if g.push_job(&n) { 0 } else { -ENGINE_GONE }
}

fn with_address(op: Op, handle: u64, a: &ShellAddr) -> nk_device::Nqe {
    let mut n = nqe(op, handle);
    let addr = Addr { family: a.family, port: a.port, scope: a.scope, ip: a.ip };
    (n.size, n.op_data, n.data) = addr.to_words();
    n
}
