//! Datagrams in the kernel's form: addresses and control messages to and from [`Header`].

use core::mem::{MaybeUninit, size_of, zeroed};
use std::os::fd::{AsRawFd, OwnedFd};

use nk_device::datagram::{
    DF_CLASS, DF_DONTROUTE, DF_HOPS, DF_PEER, DF_PKTINFO, DF_PKTINFO6, DF_TIME, DF_TOS, DF_TTL,
    Header,
};
use nk_servicelib::{Datagram, Errno, RawSpan};
use rustix::net::SocketAddrAny;
use rustix::net::addr::SocketAddrStorage;

use crate::address::{from_kernel, to_kernel};
use crate::sys::retry;

/// Datagrams that one call asks for at most.
const BATCH: usize = 8;

/// Room for every control message that is known here.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 256]);

impl Control {
    const EMPTY: Control = Control([0; 256]);
}

/// Control messages to send.
struct Writer<'a> {
    control: &'a mut Control,
    len: usize,
}

impl Writer<'_> {
    fn push<T: Copy>(&mut self, level: i32, kind: i32, value: T) {
        // SAFETY: arithmetic only.
        let (space, len) = unsafe {
            (
                libc::CMSG_SPACE(size_of::<T>() as u32) as usize,
                libc::CMSG_LEN(size_of::<T>() as u32),
            )
        };
        let Some(room) = self.control.0.get_mut(self.len..self.len + space) else { return };
        let at = room.as_mut_ptr().cast::<libc::cmsghdr>();
        // SAFETY: the buffer is aligned for cmsghdr, each message takes a multiple of that alignment, and `space` bytes are there.
        unsafe {
            (*at).cmsg_len = len as _;
            (*at).cmsg_level = level;
            (*at).cmsg_type = kind;
            libc::CMSG_DATA(at).cast::<T>().write_unaligned(value);
        }
        self.len += space;
    }
}

fn write_control(h: &Header, control: &mut Control) -> usize {
    let has = |flag: u32| h.flags & flag != 0;
    let mut w = Writer { control, len: 0 };
    if has(DF_PKTINFO) {
        // SAFETY: plain data.
        let mut info: libc::in_pktinfo = unsafe { zeroed() };
        info.ipi_ifindex = h.interface as i32;
        info.ipi_spec_dst.s_addr = u32::from_ne_bytes(h.source);
        w.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
    }
    if has(DF_PKTINFO6) {
        let addr = libc::in6_addr { s6_addr: h.ip };
        let info = libc::in6_pktinfo { ipi6_addr: addr, ipi6_ifindex: h.interface };
        w.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
    }
    for (flag, level, kind, value) in [
        (DF_TOS, libc::IPPROTO_IP, libc::IP_TOS, h.tos),
        (DF_TTL, libc::IPPROTO_IP, libc::IP_TTL, h.ttl),
        (DF_CLASS, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, h.class),
        (DF_HOPS, libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, h.hops),
    ] {
        if has(flag) {
            w.push(level, kind, i32::from(value));
        }
    }
    w.len
}

/// Sends one.
pub(crate) fn send(fd: &OwnedFd, h: &Header, spans: &[RawSpan]) -> Result<(), Errno> {
    let mut to = match h.flags & DF_PEER {
        0 => None,
        _ => Some(SocketAddrAny::from(to_kernel(&h.peer)?)),
    };
    let mut control = Control::EMPTY;
    let control_len = write_control(h, &mut control);
    let route = if h.flags & DF_DONTROUTE != 0 { libc::MSG_DONTROUTE } else { 0 };
    // SAFETY: RawSpan has the layout of iovec and its maker vouches for the memory, which only the kernel reads; address and control
    // messages are our own and outlive the call.
    unsafe {
        let mut m: libc::msghdr = zeroed();
        if let Some(to) = &mut to {
            m.msg_name = to.as_mut_ptr().cast();
            m.msg_namelen = to.addr_len();
        }
        m.msg_iov = spans.as_ptr().cast_mut().cast();
        m.msg_iovlen = spans.len();
        if control_len > 0 {
            m.msg_control = control.0.as_mut_ptr().cast();
            m.msg_controllen = control_len as _;
        }
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | route;
        retry(|| libc::sendmsg(fd.as_raw_fd(), &raw const m, flags)).map(|_| ())
    }
}

/// What the control messages of a received datagram say.
///
/// # Safety
/// `m`'s control buffer is the caller's, filled by the kernel.
unsafe fn read_control(m: &libc::msghdr, h: &mut Header) {
    // SAFETY: libc's macros stay within msg_control and msg_controllen; values are read unaligned and only as long as the kernel
    // always makes them.
    unsafe {
        let mut c = libc::CMSG_FIRSTHDR(m);
        while !c.is_null() {
            let data = libc::CMSG_DATA(c);
            let int = || data.cast::<i32>().read_unaligned();
            match ((*c).cmsg_level, (*c).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    h.flags |= DF_PKTINFO;
                    h.interface = info.ipi_ifindex as u32;
                    h.source = info.ipi_spec_dst.s_addr.to_ne_bytes();
                    if h.flags & DF_PKTINFO6 == 0 {
                        h.ip = [0; 16];
                        for (to, from) in h.ip.iter_mut().zip(info.ipi_addr.s_addr.to_ne_bytes()) {
                            *to = from;
                        }
                    }
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    h.flags |= DF_PKTINFO6;
                    h.interface = info.ipi6_ifindex;
                    h.ip = info.ipi6_addr.s6_addr;
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => {
                    (h.flags, h.tos) = (h.flags | DF_TOS, data.read());
                }
                (libc::IPPROTO_IP, libc::IP_TTL) => {
                    (h.flags, h.ttl) = (h.flags | DF_TTL, int() as u8);
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    (h.flags, h.class) = (h.flags | DF_CLASS, int() as u8);
                }
                (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    (h.flags, h.hops) = (h.flags | DF_HOPS, int() as u8);
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => h.dropped = int() as u32,
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                    let t = data.cast::<libc::timespec>().read_unaligned();
                    h.flags |= DF_TIME;
                    h.time = (t.tv_sec as u64, t.tv_nsec as u32);
                }
                _ => {}
            }
            c = libc::CMSG_NXTHDR(m, c);
        }
    }
}

/// Receives as many as are there, up to the room given.
pub(crate) fn recv(fd: &OwnedFd, into: &mut [Datagram]) -> Result<usize, Errno> {
    let n = into.len().min(BATCH);
    let mut names = [const { MaybeUninit::<SocketAddrStorage>::uninit() }; BATCH];
    let mut controls = [Control::EMPTY; BATCH];
    // SAFETY: plain data, valid when zeroed.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
    for (((m, d), name), control) in
        messages.iter_mut().zip(into.iter_mut()).zip(&mut names).zip(&mut controls)
    {
        m.msg_hdr.msg_name = name.as_mut_ptr().cast();
        m.msg_hdr.msg_namelen = size_of::<SocketAddrStorage>() as _;
        m.msg_hdr.msg_iov = d.spans.as_mut_ptr().cast();
        m.msg_hdr.msg_iovlen = d.spans.len();
        m.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
        m.msg_hdr.msg_controllen = size_of::<Control>() as _;
    }
    // SAFETY: RawSpan has the layout of iovec and its maker vouches for the memory, which only the kernel writes; names and control
    // buffers are our own and outlive the call.
    let got = retry(|| unsafe {
        let flags = libc::MSG_DONTWAIT;
        let no_time = core::ptr::null_mut();
        libc::recvmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), n as u32, flags, no_time) as isize
    })?;
    for ((m, d), name) in messages.iter().zip(into.iter_mut()).zip(&names).take(got) {
        d.header = Header { len: m.msg_len, ..Header::default() };
        let len = m.msg_hdr.msg_namelen;
        // SAFETY: where the kernel says a length it wrote an address of that length.
        let peer = (len > 0).then(|| unsafe { SocketAddrAny::read(name.as_ptr(), len) });
        if let Some(Ok(peer)) = peer.map(from_kernel) {
            d.header.peer = peer;
            d.header.flags = DF_PEER;
        }
        // SAFETY: the control buffer set above.
        unsafe { read_control(&m.msg_hdr, &mut d.header) };
    }
    Ok(got)
}
