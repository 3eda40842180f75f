//! Socket addresses as they cross the device.

use crate::sync::{AtomicU64, Ordering};

/// `AF_INET` of Linux.
pub const AF_INET: u16 = 2;
/// `AF_INET6` of Linux.
pub const AF_INET6: u16 = 10;

/// What an IPv6 address begins with that is an IPv4 one.
pub const V4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// An IPv4 or IPv6 address with port. Family 0 is "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addr {
    /// [`AF_INET`], [`AF_INET6`] or 0.
    pub family: u16,
    /// Port, host order.
    pub port: u16,
    /// IPv6 scope id (interface index), at most 65535.
    pub scope: u16,
    /// Address bytes in network order; IPv4 uses the first four.
    pub ip: [u8; 16],
}

impl Addr {
    /// IPv4.
    #[must_use]
    pub fn v4(ip: [u8; 4], port: u16) -> Addr {
        let mut a = Addr { family: AF_INET, port, ..Addr::default() };
        a.ip[..4].copy_from_slice(&ip);
        a
    }

    /// IPv6.
    #[must_use]
    pub fn v6(ip: [u8; 16], port: u16, scope: u16) -> Addr {
        Addr { family: AF_INET6, port, scope, ip }
    }

    /// The three words that an NQE carries: `size` (port | scope << 16), `op_data` and `data` (the address). The family is
    /// told by the fourth value, packed by the caller where the operation needs it.
    #[must_use]
    pub fn to_words(self) -> (u32, u64, u64) {
        let mut lo = [0u8; 8];
        let mut hi = [0u8; 8];
        lo.copy_from_slice(&self.ip[..8]);
        hi.copy_from_slice(&self.ip[8..]);
        (
            u32::from(self.port) | u32::from(self.scope) << 16,
            u64::from_le_bytes(lo),
            u64::from_le_bytes(hi),
        )
    }

    /// Undoes [`Addr::to_words`] for an address of `family`; IPv4 drops what it does not use.
    #[must_use]
    pub fn from_words(family: u16, size: u32, lo: u64, hi: u64) -> Addr {
        let mut ip = [0u8; 16];
        ip[..8].copy_from_slice(&lo.to_le_bytes());
        ip[8..].copy_from_slice(&hi.to_le_bytes());
        let mut scope = (size >> 16) as u16;
        if family == AF_INET {
            ip[4..].fill(0);
            scope = 0;
        }
        Addr { family, port: size as u16, scope, ip }
    }
}

impl Addr {
    /// The whole address, with its family, as words.
    #[must_use]
    pub fn pack(self) -> [u64; 3] {
        let (size, lo, hi) = self.to_words();
        [u64::from(self.family) | u64::from(size) << 16, lo, hi]
    }

    /// Undoes [`Addr::pack`].
    #[must_use]
    pub fn unpack([head, lo, hi]: [u64; 3]) -> Addr {
        Addr::from_words(head as u16, (head >> 16) as u32, lo, hi)
    }
}

/// An address in shared memory: one writer, who stores it before the flag that says it is there.
#[derive(Debug)]
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
pub struct AddrCell {
    words: [AtomicU64; 3],
}

impl AddrCell {
    /// Stores the address.
    pub fn store(&self, a: &Addr) {
        for (to, from) in self.words.iter().zip(a.pack()) {
            to.store(from, Ordering::Relaxed);
        }
    }

    /// Loads the address.
    #[must_use]
    pub fn load(&self) -> Addr {
        Addr::unpack(self.words.each_ref().map(|w| w.load(Ordering::Relaxed)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive() {
        let mut ip = [0u8; 16];
        for (i, b) in ip.iter_mut().enumerate() {
            *b = i as u8 + 1;
        }
        for a in [Addr::v4([127, 0, 0, 1], 80), Addr::v6(ip, 65535, 9)] {
            let (size, lo, hi) = a.to_words();
            assert_eq!(Addr::from_words(a.family, size, lo, hi), a);
            let c = AddrCell { words: [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)] };
            c.store(&a);
            assert_eq!(c.load(), a);
        }
    }
}
