//! Socket addresses as the kernel has them.

use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use nk_device::Addr;
use nk_device::addr::{AF_INET, AF_INET6};
use nk_servicelib::Errno;
use rustix::net::SocketAddrAny;

use crate::sys::errno;

/// What a call takes.
pub(crate) fn to_kernel(a: &Addr) -> Result<SocketAddr, Errno> {
    let [b0, b1, b2, b3, ..] = a.ip;
    match a.family {
        AF_INET => Ok(SocketAddrV4::new(Ipv4Addr::new(b0, b1, b2, b3), a.port).into()),
        AF_INET6 => Ok(SocketAddrV6::new(Ipv6Addr::from(a.ip), a.port, 0, a.scope.into()).into()),
        _ => Err(Errno(libc::EAFNOSUPPORT)),
    }
}

/// What a call gave.
pub(crate) fn from_kernel(a: SocketAddrAny) -> Result<Addr, Errno> {
    Ok(match SocketAddr::try_from(a).map_err(errno)? {
        SocketAddr::V4(a) => Addr::v4(a.ip().octets(), a.port()),
        SocketAddr::V6(a) => Addr::v6(a.ip().octets(), a.port(), a.scope_id() as u16),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        let mut ip = [7u8; 16];
        ip[0] = 0xfe;
        for a in [Addr::v4([127, 1, 2, 3], 8080), Addr::v6(ip, 443, 3)] {
            let back = to_kernel(&a).and_then(|a| from_kernel(a.into()));
            assert_eq!(back, Ok(a));
        }
        assert!(to_kernel(&Addr::default()).is_err());
    }
}
