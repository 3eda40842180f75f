//! Socket addresses as the kernel has them.

use core::mem::{size_of, zeroed};

use nk_device::Addr;
use nk_device::addr::{AF_INET, AF_INET6};
use nk_servicelib::Errno;

/// An address in the kernel's form, with its length.
#[derive(Clone, Copy)]
pub(crate) struct SockAddr {
    pub(crate) storage: libc::sockaddr_storage,
    pub(crate) len: libc::socklen_t,
}

impl SockAddr {
    /// Room for any address.
    pub(crate) fn empty() -> SockAddr {
        // SAFETY: sockaddr_storage is plain data, valid when zeroed.
        let storage = unsafe { zeroed() };
        SockAddr { storage, len: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    /// AF_UNSPEC, which disconnects.
    pub(crate) fn unspecified() -> SockAddr {
        SockAddr { len: size_of::<libc::sockaddr>() as libc::socklen_t, ..SockAddr::empty() }
    }

    pub(crate) fn from_addr(a: &Addr) -> Result<SockAddr, Errno> {
        let mut out = SockAddr::empty();
        let [b0, b1, b2, b3, ..] = a.ip;
        match a.family {
            AF_INET => {
                let sin = libc::sockaddr_in {
                    sin_family: AF_INET,
                    sin_port: a.port.to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([b0, b1, b2, b3]) },
                    sin_zero: [0; 8],
                };
                out.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
                // SAFETY: sockaddr_storage is larger than and aligned for every sockaddr; both are our own memory.
                unsafe { (&raw mut out.storage).cast::<libc::sockaddr_in>().write(sin) };
            }
            AF_INET6 => {
                let sin6 = libc::sockaddr_in6 {
                    sin6_family: AF_INET6,
                    sin6_port: a.port.to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: a.ip },
                    sin6_scope_id: u32::from(a.scope),
                };
                out.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
                // SAFETY: as above.
                unsafe { (&raw mut out.storage).cast::<libc::sockaddr_in6>().write(sin6) };
            }
            _ => return Err(Errno(libc::EAFNOSUPPORT)),
        }
        Ok(out)
    }

    pub(crate) fn to_addr(self) -> Result<Addr, Errno> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says sockaddr_in, which sockaddr_storage has room and alignment for; our own memory.
                let sin = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in>().read() };
                Ok(Addr::v4(sin.sin_addr.s_addr.to_ne_bytes(), u16::from_be(sin.sin_port)))
            }
            libc::AF_INET6 => {
                // SAFETY: as above for sockaddr_in6.
                let sin6 = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in6>().read() };
                Ok(Addr::v6(
                    sin6.sin6_addr.s6_addr,
                    u16::from_be(sin6.sin6_port),
                    sin6.sin6_scope_id as u16,
                ))
            }
            _ => Err(Errno(libc::EAFNOSUPPORT)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        let mut ip = [7u8; 16];
        ip[0] = 0xfe;
        for a in [Addr::v4([127, 1, 2, 3], 8080), Addr::v6(ip, 443, 3)] {
            let back = SockAddr::from_addr(&a).and_then(SockAddr::to_addr);
            assert_eq!(back, Ok(a));
        }
        assert!(SockAddr::from_addr(&Addr::default()).is_err());
    }
}
