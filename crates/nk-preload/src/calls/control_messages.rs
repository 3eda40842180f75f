//! Control messages of datagrams: what a program sends with one, and what it is told of one that came.

use core::mem::{size_of, zeroed};

use libc::{c_int, cmsghdr, msghdr};
use nk_device::addr::AF_INET6;
use nk_device::cell::{GF_RXQ_OVFL, GF_TIMESTAMP, GF_TIMESTAMPNS};
use nk_device::datagram::{
    DF_CLASS, DF_HOPS, DF_PKTINFO, DF_PKTINFO6, DF_TIME, DF_TOS, DF_TTL, Header,
};
use nk_device::row::Missed;
use nk_guestlib::options::{SOL_IP, SOL_IPV6, SOL_SOCKET, SOL_UDP};

use super::socket::family;
use crate::io::Open;

/// A value that must have its type's length at least.
fn value<T: Copy>(data: *const u8, len: usize) -> Result<T, c_int> {
    if len < size_of::<T>() {
        return Err(libc::EINVAL);
    }
    // SAFETY: the program says that `len` bytes are there; T is plain data.
    Ok(unsafe { data.cast::<T>().read_unaligned() })
}

/// An int within 0..=255 (-1: the default, as if it were not there).
fn small(data: *const u8, len: usize) -> Result<Option<u8>, c_int> {
    match value::<c_int>(data, len)? {
        -1 => Ok(None),
        n => u8::try_from(n).map(Some).map_err(|_| libc::EINVAL),
    }
}

/// What the control messages of a send ask for, in a header.
///
/// # Errors
/// EINVAL for what Linux does not know, EPERM for what the guest may not.
pub(super) fn read(s: &Open, m: &msghdr) -> Result<Header, c_int> {
    let mut h = Header::default();
    if m.msg_control.is_null() || m.msg_controllen < size_of::<cmsghdr>() {
        return Ok(h);
    }
    // SAFETY: libc's macros stay within the control buffer that the program gave.
    let mut c: *const cmsghdr = unsafe { libc::CMSG_FIRSTHDR(m) };
    while !c.is_null() {
        // SAFETY: as above.
        let (level, kind, len, data) =
            unsafe { ((*c).cmsg_level, (*c).cmsg_type, (*c).cmsg_len, libc::CMSG_DATA(c)) };
        let end = m.msg_control as usize + m.msg_controllen;
        if len < size_of::<cmsghdr>() || len > end - c as usize {
            return Err(libc::EINVAL);
        }
        // SAFETY: arithmetic only.
        let len = len - unsafe { libc::CMSG_LEN(0) } as usize;
        if let Err(e) = read_one(s, &mut h, level, kind, data, len) {
            let detail = (level as u64 & 0xffff) << 16 | (kind as u64 & 0xffff);
            s.p.count_missed(Missed::ControlMessage, detail);
            return Err(e);
        }
        // SAFETY: as above.
        c = unsafe { libc::CMSG_NXTHDR(m, c) };
    }
    Ok(h)
}

fn read_one(
    s: &Open,
    h: &mut Header,
    level: c_int,
    kind: c_int,
    data: *const u8,
    len: usize,
) -> Result<(), c_int> {
    match (level, kind) {
        (SOL_IP, libc::IP_PKTINFO) => {
            let info: libc::in_pktinfo = value(data, len)?;
            h.flags |= DF_PKTINFO;
            h.interface = info.ipi_ifindex as u32;
            h.source = info.ipi_spec_dst.s_addr.to_ne_bytes();
        }
        (SOL_IP, libc::IP_TTL) => match value::<c_int>(data, len)? {
            n @ 1..=255 => (h.flags, h.ttl) = (h.flags | DF_TTL, n as u8),
            _ => return Err(libc::EINVAL),
        },
        (SOL_IP, libc::IP_TOS) => {
            let tos = if len == 1 {
                value::<u8>(data, len)?
            } else {
                u8::try_from(value::<c_int>(data, len)?).map_err(|_| libc::EINVAL)?
            };
            (h.flags, h.tos) = (h.flags | DF_TOS, tos);
        }
        // Each family's own level; the other's is not looked at, except that IPv6 may carry IPv4.
        (SOL_IPV6, _) if family(s.cell) != AF_INET6 => {}
        (SOL_IPV6, libc::IPV6_PKTINFO) => {
            let info: libc::in6_pktinfo = value(data, len)?;
            h.flags |= DF_PKTINFO6;
            h.interface = info.ipi6_ifindex;
            h.ip = info.ipi6_addr.s6_addr;
        }
        (SOL_IPV6, libc::IPV6_HOPLIMIT) => {
            if let Some(hops) = small(data, len)? {
                (h.flags, h.hops) = (h.flags | DF_HOPS, hops);
            }
        }
        (SOL_IPV6, libc::IPV6_TCLASS) => {
            if let Some(class) = small(data, len)? {
                (h.flags, h.class) = (h.flags | DF_CLASS, class);
            }
        }
        (SOL_SOCKET, libc::SO_MARK) => return Err(libc::EPERM),
        (SOL_IP | SOL_IPV6 | SOL_SOCKET | SOL_UDP, _) => return Err(libc::EINVAL),
        // Linux does not look at other levels.
        _ => {}
    }
    Ok(())
}

/// Control messages to a program, as the kernel's `put_cmsg` places and cuts them.
struct Writer<'a> {
    m: &'a mut msghdr,
    used: usize,
}

impl Writer<'_> {
    fn push<T: Copy>(&mut self, level: c_int, kind: c_int, value: T) {
        // SAFETY: arithmetic only.
        let (space, len) = unsafe {
            let n = size_of::<T>() as u32;
            (libc::CMSG_SPACE(n) as usize, libc::CMSG_LEN(n) as usize)
        };
        let room = self.m.msg_controllen.saturating_sub(self.used);
        if self.m.msg_control.is_null() || room < size_of::<cmsghdr>() {
            self.m.msg_flags |= libc::MSG_CTRUNC;
            return;
        }
        if room < len {
            self.m.msg_flags |= libc::MSG_CTRUNC;
        }
        // SAFETY: plain data.
        let mut head: cmsghdr = unsafe { zeroed() };
        head.cmsg_len = len.min(room);
        head.cmsg_level = level;
        head.cmsg_type = kind;
        let at = self.m.msg_control.cast::<u8>().wrapping_add(self.used);
        // SAFETY: `room` bytes of the program's buffer are left, and no more are written.
        unsafe {
            at.cast::<cmsghdr>().write_unaligned(head);
            let first = libc::CMSG_LEN(0) as usize;
            let n = size_of::<T>().min(room.saturating_sub(first));
            core::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), at.add(first), n);
        }
        self.used += space.min(room);
    }
}

/// Tells what is known of a datagram, and of that what the program asked for; `asked` are the cell's `guest_state` bits.
pub(super) fn write(h: &Header, asked: u32, m: &mut msghdr) {
    let has = |flag: u32| h.flags & flag != 0;
    let mut w = Writer { m, used: 0 };
    if has(DF_TIME) && asked & GF_TIMESTAMPNS != 0 {
        let t = libc::timespec { tv_sec: h.time.0 as i64, tv_nsec: h.time.1.into() };
        w.push(SOL_SOCKET, libc::SCM_TIMESTAMPNS, t);
    } else if has(DF_TIME) && asked & GF_TIMESTAMP != 0 {
        let t = libc::timeval { tv_sec: h.time.0 as i64, tv_usec: i64::from(h.time.1) / 1000 };
        w.push(SOL_SOCKET, libc::SCM_TIMESTAMP, t);
    }
    if h.dropped != 0 && asked & GF_RXQ_OVFL != 0 {
        w.push(SOL_SOCKET, libc::SO_RXQ_OVFL, h.dropped);
    }
    if has(DF_PKTINFO6) {
        let addr = libc::in6_addr { s6_addr: h.ip };
        let info = libc::in6_pktinfo { ipi6_addr: addr, ipi6_ifindex: h.interface };
        w.push(SOL_IPV6, libc::IPV6_PKTINFO, info);
    }
    if has(DF_PKTINFO) {
        let [a, b, c, d, ..] = h.ip;
        // SAFETY: plain data.
        let mut info: libc::in_pktinfo = unsafe { zeroed() };
        info.ipi_ifindex = h.interface as c_int;
        info.ipi_spec_dst.s_addr = u32::from_ne_bytes(h.source);
        info.ipi_addr.s_addr = u32::from_ne_bytes([a, b, c, d]);
        w.push(SOL_IP, libc::IP_PKTINFO, info);
    }
    if has(DF_TTL) {
        w.push(SOL_IP, libc::IP_TTL, c_int::from(h.ttl));
    }
    if has(DF_TOS) {
        w.push(SOL_IP, libc::IP_TOS, h.tos);
    }
    if has(DF_HOPS) {
        w.push(SOL_IPV6, libc::IPV6_HOPLIMIT, c_int::from(h.hops));
    }
    if has(DF_CLASS) {
        w.push(SOL_IPV6, libc::IPV6_TCLASS, c_int::from(h.class));
    }
    w.m.msg_controllen = w.used;
}
