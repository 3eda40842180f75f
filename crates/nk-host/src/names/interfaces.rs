//! What interfaces there are in the namespace of the guest's sockets: getifaddrs, and the ioctls that read about one (netdevice(7)).

use std::ffi::{CStr, c_int};
use std::os::fd::AsRawFd;
use std::ptr::null_mut;

use libc::{ifaddrs, sockaddr};
use nk_attach::names::{IFREQ, Interface, LINK_STATS, Outcome, SIOCGIFCONF};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Addresses that SIOCGIFCONF tells, at most: what an answer holds.
const CONF_MAX: usize = nk_attach::names::ANSWER_MAX / IFREQ - 1;

/// getifaddrs. `None`: no packet holds it.
pub(super) fn all(out: &mut [u8]) -> Option<usize> {
    let mut list: *mut ifaddrs = null_mut();
    // SAFETY: a place of ours.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return refused(last_errno(), out);
    }
    let mut w = Outcome::default().write(out);
    // SAFETY: the list is as getifaddrs made it, and freed after its last use.
    unsafe {
        let entries: Vec<&ifaddrs> =
            std::iter::successors(list.as_ref(), |i| i.ifa_next.cast_const().as_ref()).collect();
        w.word(entries.len() as u32);
        for i in entries {
            let addresses = [i.ifa_addr, i.ifa_netmask, i.ifa_ifu].map(|a| socket_address(a));
            let name = CStr::from_ptr(i.ifa_name).to_bytes();
            let is_link =
                i.ifa_addr.as_ref().is_some_and(|a| c_int::from(a.sa_family) == libc::AF_PACKET);
            let data = (is_link && !i.ifa_data.is_null())
                // glibc gives a link what the kernel told: `struct rtnl_link_stats`.
                .then(|| std::slice::from_raw_parts(i.ifa_data.cast::<u8>(), LINK_STATS));
            Interface { name, flags: i.ifa_flags, addresses, data }.write(&mut w);
        }
        libc::freeifaddrs(list);
    }
    w.finish()
}

/// # Safety
/// Null, or a socket address of getifaddrs that outlives the result.
unsafe fn socket_address<'a>(a: *const sockaddr) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise; the family says how long it is.
    unsafe {
        let len = match c_int::from(a.as_ref()?.sa_family) {
            libc::AF_INET => size_of::<libc::sockaddr_in>(),
            libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
            libc::AF_PACKET => size_of::<libc::sockaddr_ll>(),
            _ => return None,
        };
        Some(std::slice::from_raw_parts(a.cast::<u8>(), len))
    }
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn refused(errno: i32, out: &mut [u8]) -> Option<usize> {
    Outcome { code: -1, errno, h_errno: 0 }.write(out).finish()
}

/// The ioctl, on a socket of that family. `None`: no packet holds the answer.
pub(super) fn request(family: i32, request: u32, ifreq: &[u8], out: &mut [u8]) -> Option<usize> {
    let Ok(family) = u16::try_from(family) else { return refused(libc::EAFNOSUPPORT, out) };
    let family = AddressFamily::from_raw(family);
    let socket = match socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None) {
        Ok(socket) => socket,
        Err(e) => return refused(e.raw_os_error(), out),
    };
    #[repr(align(8))]
    struct Aligned([u8; IFREQ]);
    let mut place = Aligned([0; IFREQ]);
    place.0.copy_from_slice(ifreq.get(..IFREQ)?);
    let mut many = Vec::new();
    let mut answer: &[u8] = &[];
    // SAFETY: a request of the kind that fills in one `struct ifreq`, or a `struct ifconf` with a buffer of the length that it says.
    let code = unsafe {
        let request = libc::Ioctl::from(request);
        if request == libc::Ioctl::from(SIOCGIFCONF) {
            many.resize(CONF_MAX * IFREQ, 0u8);
            let mut conf = libc::ifconf {
                ifc_len: many.len() as c_int,
                ifc_ifcu: libc::__c_anonymous_ifc_ifcu { ifcu_buf: many.as_mut_ptr().cast() },
            };
            let code = libc::ioctl(socket.as_raw_fd(), request, &raw mut conf);
            answer = many.get(..usize::try_from(conf.ifc_len).ok()?)?;
            code
        } else {
            let code = libc::ioctl(socket.as_raw_fd(), request, &raw mut place);
            answer = if code == 0 { &place.0 } else { answer };
            code
        }
    };
    if code != 0 {
        return refused(last_errno(), out);
    }
    let mut w = Outcome::default().write(out);
    w.bytes(Some(answer));
    w.finish()
}
