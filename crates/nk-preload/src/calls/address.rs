//! `sockaddr` in and out.

use core::mem::size_of;

use libc::{c_int, sockaddr, sockaddr_in, sockaddr_in6, socklen_t};
use nk_device::Addr;
use nk_device::addr::{AF_INET, AF_INET6};

/// What a program passed as an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// An address of the socket's family.
    Addr(Addr),
    /// An IPv4 address, where [`read_peer`] takes one for IPv6: in its mapped form.
    V4Mapped(Addr),
    /// `AF_UNSPEC`.
    Unspecified {
        /// As an IPv4 address it is 0.0.0.0 (bind accepts that).
        port_of_any: Option<u16>,
    },
}

/// Reads an address for a socket of `family`.
///
/// # Errors
/// EFAULT, EINVAL or EAFNOSUPPORT, as Linux's TCP gives.
pub(crate) fn read(addr: *const sockaddr, len: socklen_t, family: u16) -> Result<Given, c_int> {
    if addr.is_null() {
        return Err(libc::EFAULT);
    }
    if (len as usize) < size_of::<libc::sa_family_t>() {
        return Err(libc::EINVAL);
    }
    // SAFETY: the program says that `len` bytes are there.
    let given = unsafe { addr.cast::<libc::sa_family_t>().read_unaligned() };
    if given == libc::AF_UNSPEC as u16 {
        let mut port_of_any = None;
        if len as usize >= size_of::<sockaddr_in>() {
            // SAFETY: as above.
            let a = unsafe { addr.cast::<sockaddr_in>().read_unaligned() };
            if a.sin_addr.s_addr == 0 {
                port_of_any = Some(u16::from_be(a.sin_port));
            }
        }
        return Ok(Given::Unspecified { port_of_any });
    }
    if family == AF_INET6 {
        // SIN6_LEN_RFC2133: without the scope id.
        if (len as usize) < 24 {
            return Err(libc::EINVAL);
        }
        if given != AF_INET6 {
            return Err(libc::EAFNOSUPPORT);
        }
        // SAFETY: sockaddr_in6 is plain data; 24 bytes are there, the rest only if `len` says so.
        let a = unsafe {
            let mut a: sockaddr_in6 = core::mem::zeroed();
            core::ptr::copy_nonoverlapping(
                addr.cast::<u8>(),
                (&raw mut a).cast::<u8>(),
                (len as usize).min(size_of::<sockaddr_in6>()),
            );
            a
        };
        let scope = u16::try_from(a.sin6_scope_id).map_err(|_| libc::ENODEV)?;
        return Ok(Given::Addr(Addr::v6(a.sin6_addr.s6_addr, u16::from_be(a.sin6_port), scope)));
    }
    if (len as usize) < size_of::<sockaddr_in>() {
        return Err(libc::EINVAL);
    }
    if given != AF_INET {
        return Err(libc::EAFNOSUPPORT);
    }
    // SAFETY: sockaddr_in fits in `len`.
    let a = unsafe { addr.cast::<sockaddr_in>().read_unaligned() };
    Ok(Given::Addr(Addr::v4(a.sin_addr.s_addr.to_ne_bytes(), u16::from_be(a.sin_port))))
}

/// Reads where a datagram of a socket of `family` goes; `None`: to its peer.
///
/// # Errors
/// As Linux's `udp_sendmsg` and `udpv6_sendmsg` give them.
pub(crate) fn read_destination(
    addr: *const sockaddr,
    len: socklen_t,
    family: u16,
) -> Result<Option<Addr>, c_int> {
    if addr.is_null() {
        return Ok(None);
    }
    if len as usize > size_of::<libc::sockaddr_storage>()
        || (len as usize) < size_of::<libc::sa_family_t>()
    {
        return Err(libc::EINVAL);
    }
    // SAFETY: the program says that `len` bytes are there.
    let given = unsafe { addr.cast::<libc::sa_family_t>().read_unaligned() };
    if family == AF_INET6 {
        return match given {
            AF_INET6 => match read(addr, len, family)? {
                Given::Addr(a) | Given::V4Mapped(a) => Ok(Some(a)),
                Given::Unspecified { .. } => Ok(None),
            },
            AF_INET => read_v4(addr, len).map(|a| Some(mapped(&a))),
            0 => Ok(None),
            _ => Err(libc::EINVAL),
        };
    }
    let a = read_v4(addr, len)?;
    if given == AF_INET || given == libc::AF_UNSPEC as u16 {
        Ok(Some(a))
    } else {
        Err(libc::EAFNOSUPPORT)
    }
}

fn read_v4(addr: *const sockaddr, len: socklen_t) -> Result<Addr, c_int> {
    if (len as usize) < size_of::<sockaddr_in>() {
        return Err(libc::EINVAL);
    }
    // SAFETY: the program says that `len` bytes are there, and sockaddr_in fits.
    let a = unsafe { addr.cast::<sockaddr_in>().read_unaligned() };
    Ok(Addr::v4(a.sin_addr.s_addr.to_ne_bytes(), u16::from_be(a.sin_port)))
}

/// An IPv4 address as an IPv6 socket has it.
fn mapped(a: &Addr) -> Addr {
    let [b0, b1, b2, b3, ..] = a.ip;
    Addr::v6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, b0, b1, b2, b3], a.port, 0)
}

/// Reads what a datagram socket of `family` is connected to: one over IPv6 takes IPv4 addresses as well.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_peer(
    addr: *const sockaddr,
    len: socklen_t,
    family: u16,
) -> Result<Given, c_int> {
    if !addr.is_null() && family == AF_INET6 && len as usize >= size_of::<libc::sa_family_t>() {
        // SAFETY: as above.
        let given = unsafe { addr.cast::<libc::sa_family_t>().read_unaligned() };
        if given == AF_INET {
            return read_v4(addr, len).map(|a| Given::V4Mapped(mapped(&a)));
        }
    }
    read(addr, len, family)
}

/// Writes an address as the kernel does: cut at the room given, `*len` = its full length.
///
/// # Errors
/// EFAULT or EINVAL.
pub(crate) fn write(a: &Addr, to: *mut sockaddr, len: *mut socklen_t) -> Result<(), c_int> {
    if to.is_null() || len.is_null() {
        return Err(libc::EFAULT);
    }
    // SAFETY: the program's pointer to its length.
    let room = unsafe { len.read_unaligned() };
    if room as i32 >= 0 {
        // SAFETY: plain data, filled below.
        let (mut v4, mut v6): (sockaddr_in, sockaddr_in6) =
            unsafe { (core::mem::zeroed(), core::mem::zeroed()) };
        let (from, full) = if a.family == AF_INET6 {
            v6.sin6_family = AF_INET6;
            v6.sin6_port = a.port.to_be();
            v6.sin6_scope_id = a.scope.into();
            v6.sin6_addr.s6_addr = a.ip;
            ((&raw const v6).cast::<u8>(), size_of::<sockaddr_in6>())
        } else {
            let [b0, b1, b2, b3, ..] = a.ip;
            v4.sin_family = AF_INET;
            v4.sin_port = a.port.to_be();
            v4.sin_addr.s_addr = u32::from_ne_bytes([b0, b1, b2, b3]);
            ((&raw const v4).cast::<u8>(), size_of::<sockaddr_in>())
        };
        // SAFETY: at most `room` bytes of the program's buffer and `full` bytes of a local.
        unsafe {
            core::ptr::copy_nonoverlapping(from, to.cast::<u8>(), full.min(room as usize));
            len.write_unaligned(full as socklen_t);
        }
        return Ok(());
    }
    Err(libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_both_ways_and_are_cut() {
        for a in [Addr::v4([127, 0, 0, 1], 8080), Addr::v6([9; 16], 1, 3)] {
            // SAFETY: plain data.
            let mut b: libc::sockaddr_storage = unsafe { core::mem::zeroed() };
            let mut len = size_of::<libc::sockaddr_storage>() as socklen_t;
            let at = (&raw mut b).cast::<sockaddr>();
            assert_eq!(write(&a, at, &raw mut len), Ok(()));
            assert_eq!(read(at, len, a.family), Ok(Given::Addr(a)));
            assert!(read(at, len - 8, a.family).is_err());
            let full = len;
            len = 2;
            assert_eq!(write(&a, at, &raw mut len), Ok(()));
            assert_eq!(len, full);
        }
        assert_eq!(read(core::ptr::null(), 16, AF_INET), Err(libc::EFAULT));
        let unspec = [0u8; 16];
        assert_eq!(
            read(unspec.as_ptr().cast(), 16, AF_INET),
            Ok(Given::Unspecified { port_of_any: Some(0) })
        );
        assert_eq!(read(unspec.as_ptr().cast(), 1, AF_INET), Err(libc::EINVAL));
    }
}
