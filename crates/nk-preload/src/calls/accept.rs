//! accept and accept4.

use core::sync::atomic::Ordering;

use libc::{c_int, sockaddr, socklen_t};
use nk_device::cell::{GF_SHUT_RD, SF_DEAD, SF_LISTENING};
use nk_device::stream::AcceptedSocket;
use nk_device::{Cell, Op};
use nk_guestlib::accept::{Accepted, accept as core_accept};

use super::socket::FLAGS;
use super::{Target, address, native, target};
use crate::io::Open;
use crate::wait::{self, Ended, On};
use crate::{gate, standin, sys};

/// Pops one accepted socket for this row.
fn pop(s: &Open) -> Option<Result<AcceptedSocket, c_int>> {
    match core_accept(s.p.device(), s.cell, s.p.row_number()) {
        Accepted::Socket { socket, rx_room } => {
            if rx_room {
                s.push(Op::RxRoom);
            }
            Some(Ok(socket))
        }
        Accepted::WouldBlock => None,
        Accepted::Errno(e) => Some(Err(e)),
    }
}

/// One accept that does not block. The descriptor comes first: without one the connection stays in the queue for others.
fn accept_now(s: &Open, flags: c_int) -> Option<Result<(c_int, AcceptedSocket), c_int>> {
    let listening = s.cell.state.load(Ordering::Acquire) & (SF_LISTENING | SF_DEAD) == SF_LISTENING;
    if listening
        && s.cell.guest_state.load(Ordering::Acquire) & GF_SHUT_RD == 0
        && nk_guestlib::recv::is_empty(s.cell)
    {
        // As after the listener's own end: nothing will come, and whoever takes it for a passing trouble would ask for ever.
        return wait::is_gone(s.p).then(|| {
            wait::pause_without_engine();
            Err(libc::EINVAL)
        });
    }
    let _changing = gate::enter();
    let fd = match standin::share(flags) {
        Ok(fd) => fd,
        Err(e) => return Some(Err(e)),
    };
    let popped = pop(s);
    let Some(Ok(a)) = popped else {
        sys::close(fd);
        return popped.map(|r| r.map(|a| (fd, a)));
    };
    let Some(cell) = s.p.cell(a.socket) else {
        sys::close(fd);
        return Some(Err(libc::ECONNABORTED));
    };
    cell.kind.store(s.cell.kind.load(Ordering::Relaxed), Ordering::Relaxed);
    cell.nonblock.store(u32::from(flags & libc::SOCK_NONBLOCK != 0), Ordering::Relaxed);
    inherit(s.cell, cell);
    // The row's bit is set since the pop; entering it counts it.
    standin::enter_shared(s.p, fd, a.socket, a.generation);
    Some(Ok((fd, a)))
}

/// What Linux copies from a listener to the sockets accepted from it, of the options that live in the cell.
fn inherit(from: &Cell, to: &Cell) {
    to.rcv_lowat.store(from.rcv_lowat.load(Ordering::Relaxed), Ordering::Relaxed);
    to.linger.store(from.linger.load(Ordering::Relaxed), Ordering::Relaxed);
    to.rcv_timeout_us.store(from.rcv_timeout_us.load(Ordering::Relaxed), Ordering::Relaxed);
    to.snd_timeout_us.store(from.snd_timeout_us.load(Ordering::Relaxed), Ordering::Relaxed);
}

fn do_accept(
    s: &Open,
    addr: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> Result<c_int, c_int> {
    if flags & !FLAGS != 0 {
        return Err(libc::EINVAL);
    }
    if s.is_datagram() {
        standin::find_number()?;
        return Err(libc::EOPNOTSUPP);
    }
    let r = match accept_now(s, flags) {
        Some(r) => r?,
        None => {
            standin::find_number()?;
            if s.is_nonblocking(0) {
                return Err(libc::EAGAIN);
            }
            let timeout_us = s.cell.rcv_timeout_us.load(Ordering::Relaxed);
            wait::until(s.p, s.id, s.generation, On::Rx, timeout_us, || accept_now(s, flags))
                .map_err(Ended::errno)??
        }
    };
    let (fd, a) = r;
    super::files::follow(fd);
    if !addr.is_null()
        && let Some(cell) = s.p.cell(a.socket)
        && let Err(e) = address::write(&cell.peer.load(), addr, len)
    {
        super::descriptors::close(fd);
        return Err(e);
    }
    Ok(fd)
}

/// accept4(2).
///
/// # Safety
/// As accept4(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept4(
    fd: c_int,
    addr: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    match target(fd) {
        Target::Socket(s) => {
            let saved = sys::errno();
            match do_accept(&s, addr, len, flags) {
                Ok(fd) => {
                    sys::set_errno(saved);
                    fd
                }
                Err(e) => sys::fail(e),
            }
        }
        Target::Native => native!(libc::SYS_accept4, fd, addr, len, flags) as c_int,
        Target::Error(e) => sys::fail(e),
    }
}

/// accept(2).
///
/// # Safety
/// As accept(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { accept4(fd, addr, len, 0) }
}
