//! getsockopt and setsockopt: the core's table says what happens to each.

use core::mem::size_of;
use core::sync::atomic::Ordering;

use libc::{c_int, c_void, linger, socklen_t, timeval};
use nk_device::cell::{GF_MTU_DISCOVER, GF_RXQ_OVFL, GF_TIMESTAMP, GF_TIMESTAMPNS};
use nk_device::nqe::pack_option;
use nk_device::row::Missed;
use nk_device::{Nqe, Op};
use nk_guestlib::options::{
    Policy, SOL_IP, SOL_IPV6, SOL_SOCKET, SocketKind, check_known, check_value, lookup,
    too_short_for_switch,
};
use nk_guestlib::send::Chunks;

use super::messages::is_listening;
use super::socket::{family, protocol};
use super::{Target, int_result, native, target};
use crate::grants::{self, ProcessChunks};
use crate::io::Open;
use crate::{rings, sys, wait};

/// Bytes that fit into an NQE.
const INLINE_MAX: usize = 16;
/// How often a value that goes in a chunk is said.
const TRIES: u32 = 3;
/// Longer values go in a chunk, up to what the element's length says; the longest known here is a group_req of 136 bytes.
const CHUNK_MAX: usize = 255;
/// Options after which a datagram may be refused for its length.
const MTU_DISCOVERY: [(c_int, c_int); 3] = [
    (SOL_IP, libc::IP_MTU_DISCOVER),
    (SOL_IPV6, libc::IPV6_MTU_DISCOVER),
    (SOL_IPV6, libc::IPV6_DONTFRAG),
];
/// Linux refuses longer ones of those that we forward.
const LINGER_SECONDS_MAX: u32 = i32::MAX as u32 / 1000;
/// The same as the old ones, where a time has 64 bits.
const SO_RCVTIMEO_NEW: c_int = 66;
const SO_SNDTIMEO_NEW: c_int = 67;

pub(super) fn kind(s: &Open) -> SocketKind {
    SocketKind { ipv4: c_int::from(family(s.cell)) == libc::AF_INET, datagram: s.is_datagram() }
}

fn missed(s: &Open, kind: Missed, level: c_int, name: c_int) {
    s.p.count_missed(kind, (level as u64 & 0xffff) << 16 | (name as u64 & 0xffff));
}

fn read_value<T: Copy>(value: *const c_void, len: socklen_t) -> Result<T, c_int> {
    if value.is_null() {
        return Err(libc::EFAULT);
    }
    if (len as usize) < size_of::<T>() {
        return Err(libc::EINVAL);
    }
    // SAFETY: the program says that `len` bytes are there; T is plain data.
    Ok(unsafe { value.cast::<T>().read_unaligned() })
}

fn timeout_us(value: *const c_void, len: socklen_t) -> Result<u64, c_int> {
    let t: timeval = read_value(value, len)?;
    if !(0..1_000_000).contains(&t.tv_usec) {
        return Err(libc::EDOM);
    }
    if t.tv_sec < 0 {
        // Linux: an immediate timeout. 0 would be none.
        return Ok(1);
    }
    Ok((t.tv_sec as u64).saturating_mul(1_000_000).saturating_add(t.tv_usec as u64))
}

fn set_flag(s: &Open, bit: u32, on: bool) {
    if on {
        s.cell.guest_state.fetch_or(bit, Ordering::SeqCst);
    } else {
        s.cell.guest_state.fetch_and(!bit, Ordering::SeqCst);
    }
}

/// The stack always tells in nanoseconds; which of the two the program gets is known here. The last one set wins.
fn set_timestamps(s: &Open, name: c_int, on: bool) -> Result<(), c_int> {
    if !s.is_datagram() {
        if !on {
            return Ok(());
        }
        missed(s, Missed::SetSockOpt, SOL_SOCKET, name);
        return Err(libc::ENOPROTOOPT);
    }
    let nanoseconds = name == libc::SO_TIMESTAMPNS;
    set_flag(s, GF_TIMESTAMP, on && !nanoseconds);
    set_flag(s, GF_TIMESTAMPNS, on && nanoseconds);
    let mut nqe = Nqe::new(Op::SetSockOpt, s.id, s.generation);
    nqe.size = pack_option(SOL_SOCKET as u8, libc::SO_TIMESTAMPNS as u16, 4);
    nqe.op_data = u64::from(on);
    rings::call(s.p, nqe, false).map(|_| ())
}

fn set_local(s: &Open, name: c_int, value: *const c_void, len: socklen_t) -> Result<(), c_int> {
    match name {
        libc::SO_RCVTIMEO | SO_RCVTIMEO_NEW => {
            s.cell.rcv_timeout_us.store(timeout_us(value, len)?, Ordering::Relaxed);
        }
        libc::SO_SNDTIMEO | SO_SNDTIMEO_NEW => {
            s.cell.snd_timeout_us.store(timeout_us(value, len)?, Ordering::Relaxed);
        }
        libc::SO_LINGER => {
            let l: linger = read_value(value, len)?;
            let seconds = (l.l_linger as u32).min(LINGER_SECONDS_MAX);
            s.cell.linger.store(if l.l_onoff == 0 { 0 } else { seconds + 1 }, Ordering::Relaxed);
        }
        libc::SO_RCVLOWAT => {
            let n: c_int = read_value(value, len)?;
            let n = if n < 0 { c_int::MAX } else { n.max(1) };
            s.cell.rcv_lowat.store(n as u32, Ordering::Relaxed);
        }
        libc::SO_RXQ_OVFL => set_flag(s, GF_RXQ_OVFL, read_value::<c_int>(value, len)? != 0),
        // SO_TYPE, SO_ERROR, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN.
        _ => return Err(libc::ENOPROTOOPT),
    }
    Ok(())
}

/// The value's first bytes; zeros for a null pointer, where [`check_value`] lets one pass.
fn words_of(value: *const c_void, len: usize) -> (u64, u64) {
    let mut bytes = [0u8; INLINE_MAX];
    if value.is_null() {
        return (0, 0);
    }
    // SAFETY: the program says that `len` bytes are there; at most 16 are copied into a local of 16.
    unsafe {
        core::ptr::copy_nonoverlapping(value.cast::<u8>(), bytes.as_mut_ptr(), len.min(INLINE_MAX));
    }
    let all = u128::from_le_bytes(bytes);
    (all as u64, (all >> 64) as u64)
}

/// Puts a value into a leased chunk, which is the service's from then on.
fn in_a_chunk(s: &Open, value: *const c_void, len: usize) -> Result<u32, c_int> {
    let chunk = loop {
        match ProcessChunks::new(s.p).take() {
            Some(chunk) => break chunk,
            None => grants::wait_for_chunks(s.p, 1, 0)?,
        }
    };
    let Some(to) = s.p.device().chunk(chunk) else { return Err(libc::ENOBUFS) };
    // SAFETY: the program says that `len` bytes are there, fewer than a chunk has.
    unsafe { core::ptr::copy_nonoverlapping(value.cast::<u8>(), to.as_ptr(), len) };
    Ok(chunk)
}

/// Whether IPV6_V6ONLY is set.
pub(super) fn is_v6only(s: &Open) -> Result<bool, c_int> {
    let mut nqe = Nqe::new(Op::GetSockOpt, s.id, s.generation);
    nqe.size = pack_option(SOL_IPV6 as u8, libc::IPV6_V6ONLY as u16, 4);
    rings::call(s.p, nqe, false).map(|reply| reply.op_data as u32 != 0)
}

fn set(
    s: &Open,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> Result<(), c_int> {
    if (len as i32) < 0 {
        return Err(libc::EINVAL);
    }
    let kind = kind(s);
    if kind.has_level(level) {
        check_value(level, name, len as usize, value.is_null())?;
    }
    let Some(option) = lookup(level, name).filter(|_| kind.has_level(level)) else {
        missed(s, Missed::SetSockOpt, level, name);
        return Err(libc::ENOPROTOOPT);
    };
    if !matches!(option.policy, Policy::ReadOnly(_) | Policy::Refuse(_)) {
        check_known(level, len as usize, value.is_null())?;
    }
    if level == SOL_SOCKET && matches!(name, libc::SO_TIMESTAMP | libc::SO_TIMESTAMPNS) {
        return set_timestamps(s, name, read_value::<c_int>(value, len)? != 0);
    }
    if MTU_DISCOVERY.contains(&(level, name)) {
        set_flag(s, GF_MTU_DISCOVER, true);
    }
    let is_answered = match option.policy {
        Policy::Local => return set_local(s, name, value, len),
        Policy::ReadOnly(e) => return Err(e),
        Policy::Off(_) if !value.is_null() && too_short_for_switch(level, len as usize) => {
            return Err(libc::EINVAL);
        }
        Policy::Off(_) if words_of(value, len as usize).0 as u32 == 0 => return Ok(()),
        Policy::Off(e) | Policy::Refuse(e) => {
            missed(s, Missed::SetSockOpt, level, name);
            return Err(e);
        }
        Policy::Forward => false,
        Policy::ForwardSync => true,
    };
    // Every option that is forwarded is an int, an u64, a name or a structure.
    let mut nqe = Nqe::new(Op::SetSockOpt, s.id, s.generation);
    let length = (len as usize).min(if is_answered { CHUNK_MAX } else { INLINE_MAX });
    nqe.size = pack_option(level as u8, name as u16, length as u8);
    if length > INLINE_MAX {
        // A service that started meanwhile has taken the chunk back unread: the next one has it again.
        for _ in 0..TRIES {
            nqe.op_data = in_a_chunk(s, value, length)?.into();
            match rings::call(s.p, nqe, false) {
                Err(libc::ENETDOWN) if !wait::is_gone(s.p) => {}
                r => return r.map(|_| ()),
            }
        }
        return Err(libc::ENETDOWN);
    }
    (nqe.op_data, nqe.data) = words_of(value, length);
    if is_answered {
        rings::call(s.p, nqe, false).map(|_| ())
    } else {
        rings::push_job(s.p, &nqe);
        Ok(())
    }
}

/// setsockopt(2).
///
/// # Safety
/// As setsockopt(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    match target(fd) {
        Target::Socket(s) => int_result(set(&s, level, name, value, len)),
        Target::Native => native!(libc::SYS_setsockopt, fd, level, name, value, len) as c_int,
        Target::Error(e) => sys::fail(e),
    }
}

fn write_value(
    from: *const u8,
    size: usize,
    value: *mut c_void,
    len: *mut socklen_t,
) -> Result<(), c_int> {
    // SAFETY: the program's pointer to a length (checked by the caller).
    let room = unsafe { len.read_unaligned() } as usize;
    let n = size.min(room);
    if value.is_null() && n > 0 {
        return Err(libc::EFAULT);
    }
    // SAFETY: `n` bytes of ours into the program's buffer of at least as many.
    unsafe {
        core::ptr::copy_nonoverlapping(from, value.cast::<u8>(), n);
        len.write_unaligned(n as socklen_t);
    }
    Ok(())
}

fn write_plain<T: Copy>(v: T, value: *mut c_void, len: *mut socklen_t) -> Result<(), c_int> {
    write_value((&raw const v).cast::<u8>(), size_of::<T>(), value, len)
}

fn get_local(s: &Open, name: c_int, value: *mut c_void, len: *mut socklen_t) -> Result<(), c_int> {
    let time =
        |us: u64| timeval { tv_sec: (us / 1_000_000) as i64, tv_usec: (us % 1_000_000) as i64 };
    match name {
        libc::SO_RCVTIMEO | SO_RCVTIMEO_NEW => {
            write_plain(time(s.cell.rcv_timeout_us.load(Ordering::Relaxed)), value, len)
        }
        libc::SO_SNDTIMEO | SO_SNDTIMEO_NEW => {
            write_plain(time(s.cell.snd_timeout_us.load(Ordering::Relaxed)), value, len)
        }
        libc::SO_LINGER => {
            let l = s.cell.linger.load(Ordering::Relaxed);
            let l = linger { l_onoff: c_int::from(l != 0), l_linger: l.saturating_sub(1) as c_int };
            write_plain(l, value, len)
        }
        _ => {
            let flag =
                |bit: u32| c_int::from(s.cell.guest_state.load(Ordering::Relaxed) & bit != 0);
            let v: c_int = match name {
                libc::SO_TYPE => ((s.cell.kind.load(Ordering::Relaxed) >> 16) & 0xf) as c_int,
                // A connect under way has no other place to tell that it will never end.
                libc::SO_ERROR if wait::is_gone(s.p) && !is_listening(s) => libc::ENETDOWN,
                libc::SO_ERROR => s.cell.take_error(),
                libc::SO_ACCEPTCONN => c_int::from(is_listening(s)),
                libc::SO_PROTOCOL => protocol(s.cell),
                libc::SO_RXQ_OVFL => flag(GF_RXQ_OVFL),
                libc::SO_TIMESTAMP => flag(GF_TIMESTAMP),
                libc::SO_TIMESTAMPNS => flag(GF_TIMESTAMPNS),
                libc::SO_DOMAIN => family(s.cell).into(),
                libc::SO_RCVLOWAT => s.cell.rcv_lowat.load(Ordering::Relaxed).max(1) as c_int,
                _ => return Err(libc::ENOPROTOOPT),
            };
            write_plain(v, value, len)
        }
    }
}

fn get(
    s: &Open,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> Result<(), c_int> {
    if len.is_null() {
        return Err(libc::EFAULT);
    }
    // SAFETY: the program's pointer to a length.
    let room = unsafe { len.read_unaligned() };
    if (room as i32) < 0 {
        return Err(libc::EINVAL);
    }
    let kind = kind(s);
    let Some(option) = lookup(level, name).filter(|_| kind.has_level(level)) else {
        missed(s, Missed::GetSockOpt, level, name);
        return Err(kind.unknown_get(level));
    };
    match option.policy {
        Policy::Off(_) => return write_plain(0 as c_int, value, len),
        Policy::Local if option.level == SOL_SOCKET => return get_local(s, name, value, len),
        Policy::ForwardSync if (level, name) == (SOL_SOCKET, libc::SO_TIMESTAMPNS) => {
            return get_local(s, name, value, len);
        }
        // Bound to none, and Linux says so by an empty name.
        Policy::Refuse(_) if (level, name) == (SOL_SOCKET, libc::SO_BINDTODEVICE) => {
            return write_value([].as_ptr(), 0, value, len);
        }
        Policy::Local | Policy::Refuse(_) => {
            missed(s, Missed::GetSockOpt, level, name);
            return Err(libc::ENOPROTOOPT);
        }
        Policy::Forward | Policy::ForwardSync | Policy::ReadOnly(_) => {}
    }
    let mut nqe = Nqe::new(Op::GetSockOpt, s.id, s.generation);
    nqe.size = pack_option(level as u8, name as u16, room.min(255) as u8);
    rings::call_with_reply(s.p, nqe, |reply| {
        let size = reply.size as usize;
        if size <= INLINE_MAX {
            let bytes = (u128::from(reply.op_data) | u128::from(reply.data) << 64).to_le_bytes();
            return write_value(bytes.as_ptr(), size, value, len);
        }
        let mut bytes = [0u8; nk_device::qset::REPLY_BYTES];
        let Some(q) = s.p.device().qset(s.p.qset()) else { return Err(libc::ENETDOWN) };
        for (to, from) in bytes.chunks_exact_mut(8).zip(&q.reply) {
            to.copy_from_slice(&from.load(Ordering::Acquire).to_le_bytes());
        }
        write_value(bytes.as_ptr(), size.min(bytes.len()), value, len)
    })?
}

/// getsockopt(2).
///
/// # Safety
/// As getsockopt(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    match target(fd) {
        Target::Socket(s) => int_result(get(&s, level, name, value, len)),
        Target::Native => native!(libc::SYS_getsockopt, fd, level, name, value, len) as c_int,
        Target::Error(e) => sys::fail(e),
    }
}
