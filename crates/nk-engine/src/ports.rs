//! Which guest owns a port, of TCP or of UDP, in which namespace.
//!
//! The stack opens all guests' sockets under one user, so its own rules for SO_REUSEPORT and SO_REUSEADDR would let one guest take
//! part of another's port. They hold within a guest only; between guests a port and address are owned by whoever bound it.

use std::collections::HashMap;

use nk_device::Addr;
use nk_device::addr::{AF_INET6, V4_MAPPED};

use crate::{GuestId, Listen};

/// One bound address of one socket.
#[derive(Clone, Copy, Debug)]
struct Claim {
    socket: u32,
    addr: Covered,
}

/// What a bound address covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Covered {
    /// All IPv4 addresses.
    AnyV4,
    /// All IPv6 addresses, and no IPv4 one.
    AnyV6,
    /// All addresses of both families.
    Any,
    /// One address (IPv4 in its mapped form).
    One([u8; 16]),
}

impl Covered {
    fn of(a: &Addr, v6only: bool) -> Covered {
        if a.family == AF_INET6 {
            if a.ip == [0; 16] {
                return if v6only { Covered::AnyV6 } else { Covered::Any };
            }
            return if a.ip.starts_with(&V4_MAPPED) && a.ip.ends_with(&[0; 4]) {
                Covered::AnyV4
            } else {
                Covered::One(a.ip)
            };
        }
        let [b0, b1, b2, b3, ..] = a.ip;
        if [b0, b1, b2, b3] == [0; 4] {
            return Covered::AnyV4;
        }
        let mut ip = [0; 16];
        for (to, from) in ip.iter_mut().zip(V4_MAPPED.iter().chain(&[b0, b1, b2, b3])) {
            *to = *from;
        }
        Covered::One(ip)
    }

    fn overlaps(self, other: Covered) -> bool {
        use Covered::{Any, AnyV4, AnyV6, One};
        let is_v4 = |ip: [u8; 16]| ip.starts_with(&V4_MAPPED);
        match (self, other) {
            (Any, _) | (_, Any) => true,
            (AnyV4, AnyV4) | (AnyV6, AnyV6) => true,
            (AnyV4, AnyV6) | (AnyV6, AnyV4) => false,
            (AnyV4, One(ip)) | (One(ip), AnyV4) => is_v4(ip),
            (AnyV6, One(ip)) | (One(ip), AnyV6) => !is_v4(ip),
            (One(a), One(b)) => a == b,
        }
    }

    fn contains(self, other: Covered) -> bool {
        use Covered::{Any, AnyV4, AnyV6, One};
        match (self, other) {
            (Any, _) | (AnyV4, AnyV4) | (AnyV6, AnyV6) => true,
            (AnyV4 | AnyV6, One(_)) => self.overlaps(other),
            (One(a), One(b)) => a == b,
            _ => false,
        }
    }
}

impl Listen {
    /// Whether a socket with this address is within what is allowed.
    pub(crate) fn allows(&self, addr: &Addr, v6only: bool) -> bool {
        self.ports.contains(&addr.port)
            && Covered::of(&self.addr, false).contains(Covered::of(addr, v6only))
    }
}

/// Where ports are counted: each namespace has those of TCP and those of UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Space {
    pub(crate) namespace: u64,
    pub(crate) datagram: bool,
}

/// A guest's claims on a port.
type Its = (GuestId, Vec<Claim>);

/// All claims.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    /// By guest: what one looks for among its own costs nothing more where another has thousands.
    claims: HashMap<(Space, u16), Vec<Its>>,
}

impl Ports {
    /// Claims an address for a socket; `false` when another guest owns it. Port 0 claims nothing.
    pub(crate) fn claim(
        &mut self,
        space: Space,
        guest: GuestId,
        socket: u32,
        addr: &Addr,
        v6only: bool,
    ) -> bool {
        if addr.port == 0 {
            return true;
        }
        let covered = Covered::of(addr, v6only);
        let at = self.claims.entry((space, addr.port)).or_default();
        let overlaps = |c: &Claim| c.addr.overlaps(covered);
        if at.iter().any(|(g, its)| *g != guest && its.iter().any(overlaps)) {
            return false;
        }
        let claim = Claim { socket, addr: covered };
        match at.iter_mut().find(|(g, _)| *g == guest) {
            Some((_, own)) => {
                if !own.iter().any(|c| c.socket == socket && c.addr == covered) {
                    own.push(claim);
                }
            }
            None => at.push((guest, vec![claim])),
        }
        true
    }

    /// A guest's sockets that are bound to a port, on whatever address.
    pub(crate) fn bound(
        &self,
        space: Space,
        guest: GuestId,
        port: u16,
    ) -> impl Iterator<Item = u32> {
        let at = self.claims.get(&(space, port));
        let own = at.and_then(|at| at.iter().find(|(g, _)| *g == guest));
        own.map_or(&[][..], |(_, own)| own).iter().map(|c| c.socket)
    }

    /// Gives up a socket's claim on a port.
    pub(crate) fn release(&mut self, space: Space, guest: GuestId, socket: u32, port: u16) {
        if let Some(at) = self.claims.get_mut(&(space, port)) {
            if let Some((_, own)) = at.iter_mut().find(|(g, _)| *g == guest) {
                own.retain(|c| c.socket != socket);
            }
            at.retain(|(_, its)| !its.is_empty());
            if at.is_empty() {
                self.claims.remove(&(space, port));
            }
        }
    }

    /// Gives up all claims of a guest.
    pub(crate) fn release_guest(&mut self, guest: GuestId) {
        self.claims.retain(|_, at| {
            at.retain(|(g, _)| *g != guest);
            !at.is_empty()
        });
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_allows_what_is_within_it() {
        let v4 = |a: [u8; 4], p| Addr::v4(a, p);
        let one = Listen { addr: v4([10, 0, 0, 2], 0), ports: 80..=80 };
        assert!(one.allows(&v4([10, 0, 0, 2], 80), false));
        assert!(!one.allows(&v4([10, 0, 0, 2], 81), false));
        assert!(!one.allows(&v4([10, 0, 0, 3], 80), false));
        assert!(!one.allows(&v4([0; 4], 80), false), "all addresses are more than one");
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2];
        assert!(one.allows(&Addr::v6(mapped, 80, 0), false));
        let all4 = Listen { addr: v4([0; 4], 0), ports: 1024..=u16::MAX };
        assert!(all4.allows(&v4([0; 4], 1024), false) && all4.allows(&v4([1; 4], 65535), false));
        assert!(!all4.allows(&v4([0; 4], 1023), false));
        assert!(!all4.allows(&Addr::v6([0; 16], 2000, 0), false), "that is IPv6, too");
        assert!(!all4.allows(&Addr::v6([1; 16], 2000, 0), false));
        let all = Listen { addr: Addr::v6([0; 16], 0, 0), ports: 0..=u16::MAX };
        for addr in [v4([0; 4], 0), v4([9; 4], 9), Addr::v6([0; 16], 1, 0), Addr::v6([1; 16], 1, 0)]
        {
            assert!(all.allows(&addr, false) && all.allows(&addr, true));
        }
    }

    const A: GuestId = GuestId(1);
    const B: GuestId = GuestId(2);

    #[test]
    fn a_port_is_one_guests_where_addresses_overlap() {
        let mut p = Ports::default();
        let tcp = Space { namespace: 7, datagram: false };
        let any4 = Addr::v4([0; 4], 80);
        let lo4 = Addr::v4([127, 0, 0, 1], 80);
        let any6 = Addr::v6([0; 16], 80, 0);
        assert!(p.claim(tcp, A, 1, &lo4, false));
        assert!(p.claim(tcp, A, 2, &any4, false), "REUSEPORT within a guest is the stack's matter");
        assert!(!p.claim(tcp, B, 1, &any4, false));
        assert!(!p.claim(tcp, B, 1, &lo4, false));
        assert!(!p.claim(tcp, B, 1, &any6, false));
        assert!(p.claim(tcp, B, 1, &any6, true), "V6ONLY covers no IPv4");
        assert!(p.claim(Space { namespace: 8, ..tcp }, B, 2, &any4, false), "another namespace");
        let udp = Space { datagram: true, ..tcp };
        assert!(p.claim(udp, B, 4, &any4, false), "UDP's ports are others");
        assert!(!p.claim(udp, A, 4, &lo4, false));
        p.release(tcp, A, 1, 80);
        assert!(!p.claim(tcp, B, 3, &lo4, false), "the wildcard still covers it");
        p.release(tcp, A, 2, 80);
        assert!(p.claim(tcp, B, 3, &lo4, false));
        p.release_guest(B);
        assert!(p.is_empty());
    }

    #[test]
    fn who_looks_for_its_own_passes_no_others() {
        let mut p = Ports::default();
        let tcp = Space { namespace: 7, datagram: false };
        for (guest, host) in [(A, 1), (B, 2)] {
            for socket in 0..u32::from(guest.0) * 5 {
                let at = Addr::v4([127, 0, 0, host], 80);
                assert!(p.claim(tcp, guest, socket, &at, false));
                assert!(p.claim(tcp, guest, socket, &at, false), "once more is the same");
            }
        }
        for (guest, own) in [(A, 5), (B, 10), (GuestId(3), 0)] {
            let bound = p.bound(tcp, guest, 80);
            assert_eq!(bound.size_hint(), (own, Some(own)));
            assert!(bound.eq(0..own as u32));
        }
    }
}
