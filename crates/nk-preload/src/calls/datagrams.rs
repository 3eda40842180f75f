//! What send and recv do on a datagram socket: names and control messages around [`crate::datagram`].

use core::sync::atomic::Ordering;

use libc::{c_int, iovec, msghdr, sockaddr, socklen_t};
use nk_device::addr::AF_INET;
use nk_device::datagram::{DF_PEER, Header};

use super::socket::family;
use super::{address, control_messages};
use crate::datagram::{self, Got};
use crate::io::{Buffers, Open};

/// `len` bytes of the iovecs to where `addr` says.
pub(super) fn send(
    s: &Open,
    iov: (*const iovec, usize),
    len: usize,
    flags: c_int,
    mut header: Header,
    to: (*const sockaddr, socklen_t),
) -> Result<usize, c_int> {
    if len > 0xffff && family(s.cell) == AF_INET {
        return Err(libc::EMSGSIZE);
    }
    if let Some(peer) = address::read_destination(to.0, to.1, family(s.cell))? {
        header.peer = peer;
        header.flags |= DF_PEER;
    }
    // SAFETY: the caller counted the iovecs, which outlive the call.
    datagram::send(s, &mut unsafe { Buffers::new(iov.0, iov.1) }, len, header, flags)
}

/// sendmsg.
pub(super) fn send_message(s: &Open, m: &msghdr, len: usize, flags: c_int) -> Result<usize, c_int> {
    let name = if m.msg_namelen == 0 { core::ptr::null() } else { m.msg_name.cast_const().cast() };
    if m.msg_namelen as i32 <= -1 {
        return Err(libc::EINVAL);
    }
    let header = control_messages::read(s, m)?;
    send(s, (m.msg_iov, m.msg_iovlen), len, flags, header, (name, m.msg_namelen))
}

/// One datagram into the iovecs.
pub(super) fn recv(
    s: &Open,
    iov: (*const iovec, usize),
    len: usize,
    flags: c_int,
) -> Result<Option<Got>, c_int> {
    // SAFETY: the caller counted the iovecs, which outlive the call.
    datagram::recv(s, &mut unsafe { Buffers::new(iov.0, iov.1) }, len, flags)
}

/// What recv returns.
pub(super) fn result(got: Option<Got>, flags: c_int) -> usize {
    got.map_or(0, |g| g.result(flags))
}

/// Writes where a datagram came from.
pub(super) fn write_peer(
    got: Option<Got>,
    addr: *mut sockaddr,
    len: *mut socklen_t,
) -> Result<(), c_int> {
    match got {
        Some(got) if got.header.flags & DF_PEER != 0 => address::write(&got.header.peer, addr, len),
        _ => {
            if !len.is_null() {
                // SAFETY: the program's pointer to a length, not null.
                unsafe { len.write_unaligned(0) };
            }
            Ok(())
        }
    }
}

/// recvmsg; `message` is the program's header, `m` a copy of it.
pub(super) fn recv_message(
    s: &Open,
    message: *mut msghdr,
    m: &msghdr,
    len: usize,
    flags: c_int,
) -> Result<usize, c_int> {
    let got = recv(s, (m.msg_iov, m.msg_iovlen), len, flags)?;
    let mut out = *m;
    out.msg_flags = if got.is_some_and(|g| g.is_cut()) { libc::MSG_TRUNC } else { 0 };
    match got {
        Some(got) => {
            let asked = s.cell.guest_state.load(Ordering::Relaxed);
            control_messages::write(&got.header, asked, &mut out);
        }
        None => out.msg_controllen = 0,
    }
    let mut name_len = m.msg_namelen;
    if !m.msg_name.is_null() {
        write_peer(got, m.msg_name.cast(), &raw mut name_len)?;
    }
    // SAFETY: the program's message header.
    unsafe {
        (*message).msg_namelen = name_len;
        (*message).msg_controllen = out.msg_controllen;
        (*message).msg_flags = out.msg_flags;
    }
    Ok(result(got, flags))
}
