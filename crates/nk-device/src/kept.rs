//! What a service that outlived its engine tells the next one, as words: its sockets, granted ids and rows.
//!
//! It crosses from the NSM's process to the daemon in a memfd of their own that no guest ever sees.

use crate::Addr;

/// The socket listens.
pub const KS_LISTENING: u16 = 1;
/// It is a connection, or was to become one.
pub const KS_CONNECTION: u16 = 2;
/// UDP's.
pub const KS_DATAGRAM: u16 = 4;
/// The engine gave it back: `Closed` follows.
pub const KS_CLOSING: u16 = 8;
/// The address is claimed in the guest's name: it was bound, or listens.
pub const KS_BOUND: u16 = 16;
/// IPv6 alone.
pub const KS_V6ONLY: u16 = 32;
/// A shutdown for writing has been heard.
pub const KS_SHUT_WR: u16 = 64;

/// A socket that the service has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptSocket {
    /// Socket id.
    pub socket: u32,
    /// Its generation.
    pub generation: u16,
    /// `KS_*`.
    pub flags: u16,
    /// The backlog of a listener.
    pub backlog: u32,
    /// As the stack says, with the family.
    pub local: Addr,
    /// Where a datagram socket is connected to.
    pub peer: Addr,
}

/// Words of a [`KeptSocket`].
pub const KEPT_WORDS: usize = 8;

impl KeptSocket {
    /// Whether a flag is set.
    #[must_use]
    pub fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// As words.
    #[must_use]
    pub fn to_words(&self) -> [u64; KEPT_WORDS] {
        let [l0, l1, l2] = self.local.pack();
        let [p0, p1, p2] = self.peer.pack();
        let ids = u64::from(self.generation) << 32 | u64::from(self.flags) << 48;
        [u64::from(self.socket) | ids, self.backlog.into(), l0, l1, l2, p0, p1, p2]
    }

    /// Undoes [`KeptSocket::to_words`]. Any words give some socket, which the engine checks.
    #[must_use]
    pub fn from_words(words: [u64; KEPT_WORDS]) -> KeptSocket {
        let [ids, backlog, l0, l1, l2, p0, p1, p2] = words;
        KeptSocket {
            socket: ids as u32,
            generation: (ids >> 32) as u16,
            flags: (ids >> 48) as u16,
            backlog: backlog as u32,
            local: Addr::unpack([l0, l1, l2]),
            peer: Addr::unpack([p0, p1, p2]),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn kept_sockets_survive(ids in any::<(u32, u16, u16, u32)>(), ip in any::<[u8; 16]>(), ports in any::<(u16, u16)>()) {
            let (socket, generation, flags, backlog) = ids;
            let (local, peer) = (Addr::v6(ip, ports.0, 3), Addr::v4([1, 2, 3, 4], ports.1));
            let k = KeptSocket { socket, generation, flags, backlog, local, peer };
            prop_assert_eq!(KeptSocket::from_words(k.to_words()), k);
        }
    }
}
