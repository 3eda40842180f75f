//! Every socket option NetKernel knows, and what happens to it. What is not in the table is ENOPROTOOPT, and counted.
//!
//! Both GuestLib shells use it; ServiceLib uses it as its allow-list, because the NSM has rights that a guest has not.

use crate::errno::{ENOPROTOOPT, EOPNOTSUPP, EPERM};

/// `SOL_SOCKET`.
pub const SOL_SOCKET: i32 = 1;
/// `IPPROTO_IP`.
pub const SOL_IP: i32 = 0;
/// `IPPROTO_TCP`.
pub const SOL_TCP: i32 = 6;
/// `IPPROTO_UDP`.
pub const SOL_UDP: i32 = 17;
/// `IPPROTO_IPV6`.
pub const SOL_IPV6: i32 = 41;

/// What happens to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// GuestLib answers it itself: `SO_TYPE`, `SO_RCVTIMEO`, `SO_LINGER`, ... (the shells' `match` has each of them).
    Local,
    /// Forwarded; setting it cannot fail for any int, so the caller does not wait.
    Forward,
    /// Forwarded; the caller waits for the stack's answer.
    ForwardSync,
    /// Read only: getting is forwarded, setting gives the errno.
    ReadOnly(i32),
    /// Refused in both directions.
    Refuse(i32),
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct SocketOption {
    /// Level.
    pub level: i32,
    /// Number.
    pub name: i32,
    /// Its name in the headers.
    pub label: &'static str,
    /// What happens to it.
    pub policy: Policy,
}

const fn o(level: i32, name: i32, label: &'static str, policy: Policy) -> SocketOption {
    SocketOption { level, name, label, policy }
}

/// The table.
pub const OPTIONS: &[SocketOption] = &[
    o(SOL_SOCKET, 2, "SO_REUSEADDR", Policy::Forward),
    o(SOL_SOCKET, 3, "SO_TYPE", Policy::Local),
    o(SOL_SOCKET, 4, "SO_ERROR", Policy::Local),
    o(SOL_SOCKET, 5, "SO_DONTROUTE", Policy::Forward),
    o(SOL_SOCKET, 6, "SO_BROADCAST", Policy::Forward),
    o(SOL_SOCKET, 7, "SO_SNDBUF", Policy::Forward),
    o(SOL_SOCKET, 8, "SO_RCVBUF", Policy::Forward),
    o(SOL_SOCKET, 9, "SO_KEEPALIVE", Policy::Forward),
    o(SOL_SOCKET, 10, "SO_OOBINLINE", Policy::Forward),
    o(SOL_SOCKET, 11, "SO_NO_CHECK", Policy::Refuse(ENOPROTOOPT)),
    o(SOL_SOCKET, 12, "SO_PRIORITY", Policy::ForwardSync),
    o(SOL_SOCKET, 13, "SO_LINGER", Policy::Local),
    o(SOL_SOCKET, 15, "SO_REUSEPORT", Policy::Forward),
    o(SOL_SOCKET, 17, "SO_PEERCRED", Policy::Refuse(ENOPROTOOPT)),
    o(SOL_SOCKET, 18, "SO_RCVLOWAT", Policy::Local),
    o(SOL_SOCKET, 20, "SO_RCVTIMEO", Policy::Local),
    o(SOL_SOCKET, 21, "SO_SNDTIMEO", Policy::Local),
    o(SOL_SOCKET, 25, "SO_BINDTODEVICE", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 26, "SO_ATTACH_FILTER", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 29, "SO_TIMESTAMP", Policy::Local),
    o(SOL_SOCKET, 30, "SO_ACCEPTCONN", Policy::Local),
    o(SOL_SOCKET, 32, "SO_SNDBUFFORCE", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 33, "SO_RCVBUFFORCE", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 35, "SO_TIMESTAMPNS", Policy::ForwardSync),
    o(SOL_SOCKET, 36, "SO_MARK", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 38, "SO_PROTOCOL", Policy::Local),
    o(SOL_SOCKET, 39, "SO_DOMAIN", Policy::Local),
    o(SOL_SOCKET, 40, "SO_RXQ_OVFL", Policy::Local),
    o(SOL_SOCKET, 46, "SO_BUSY_POLL", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 47, "SO_MAX_PACING_RATE", Policy::ForwardSync),
    o(SOL_SOCKET, 49, "SO_INCOMING_CPU", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_SOCKET, 50, "SO_ATTACH_BPF", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 57, "SO_COOKIE", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_SOCKET, 60, "SO_ZEROCOPY", Policy::Refuse(EOPNOTSUPP)),
    o(SOL_TCP, 1, "TCP_NODELAY", Policy::Forward),
    o(SOL_TCP, 2, "TCP_MAXSEG", Policy::ForwardSync),
    o(SOL_TCP, 3, "TCP_CORK", Policy::Forward),
    o(SOL_TCP, 4, "TCP_KEEPIDLE", Policy::ForwardSync),
    o(SOL_TCP, 5, "TCP_KEEPINTVL", Policy::ForwardSync),
    o(SOL_TCP, 6, "TCP_KEEPCNT", Policy::ForwardSync),
    o(SOL_TCP, 7, "TCP_SYNCNT", Policy::ForwardSync),
    o(SOL_TCP, 8, "TCP_LINGER2", Policy::ForwardSync),
    o(SOL_TCP, 9, "TCP_DEFER_ACCEPT", Policy::ForwardSync),
    o(SOL_TCP, 10, "TCP_WINDOW_CLAMP", Policy::ForwardSync),
    o(SOL_TCP, 11, "TCP_INFO", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_TCP, 12, "TCP_QUICKACK", Policy::Forward),
    o(SOL_TCP, 13, "TCP_CONGESTION", Policy::ForwardSync),
    o(SOL_TCP, 14, "TCP_MD5SIG", Policy::Refuse(EPERM)),
    o(SOL_TCP, 18, "TCP_USER_TIMEOUT", Policy::ForwardSync),
    o(SOL_TCP, 19, "TCP_REPAIR", Policy::Refuse(EPERM)),
    o(SOL_TCP, 23, "TCP_FASTOPEN", Policy::Refuse(EOPNOTSUPP)),
    o(SOL_TCP, 25, "TCP_NOTSENT_LOWAT", Policy::Forward),
    o(SOL_TCP, 30, "TCP_FASTOPEN_CONNECT", Policy::Refuse(EOPNOTSUPP)),
    o(SOL_TCP, 31, "TCP_ULP", Policy::Refuse(ENOPROTOOPT)),
    o(SOL_TCP, 36, "TCP_INQ", Policy::Refuse(ENOPROTOOPT)),
    o(SOL_IP, 1, "IP_TOS", Policy::ForwardSync),
    o(SOL_IP, 2, "IP_TTL", Policy::ForwardSync),
    o(SOL_IP, 8, "IP_PKTINFO", Policy::ForwardSync),
    o(SOL_IP, 10, "IP_MTU_DISCOVER", Policy::ForwardSync),
    o(SOL_IP, 11, "IP_RECVERR", Policy::Refuse(ENOPROTOOPT)),
    o(SOL_IP, 12, "IP_RECVTTL", Policy::ForwardSync),
    o(SOL_IP, 13, "IP_RECVTOS", Policy::ForwardSync),
    o(SOL_IP, 14, "IP_MTU", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_IP, 15, "IP_FREEBIND", Policy::Refuse(EPERM)),
    o(SOL_IP, 19, "IP_TRANSPARENT", Policy::Refuse(EPERM)),
    o(SOL_IP, 24, "IP_BIND_ADDRESS_NO_PORT", Policy::ForwardSync),
    o(SOL_IP, 32, "IP_MULTICAST_IF", Policy::ForwardSync),
    o(SOL_IP, 33, "IP_MULTICAST_TTL", Policy::ForwardSync),
    o(SOL_IP, 34, "IP_MULTICAST_LOOP", Policy::ForwardSync),
    o(SOL_IP, 35, "IP_ADD_MEMBERSHIP", Policy::ForwardSync),
    o(SOL_IP, 36, "IP_DROP_MEMBERSHIP", Policy::ForwardSync),
    o(SOL_IP, 39, "IP_ADD_SOURCE_MEMBERSHIP", Policy::ForwardSync),
    o(SOL_IP, 40, "IP_DROP_SOURCE_MEMBERSHIP", Policy::ForwardSync),
    o(SOL_IP, 49, "IP_MULTICAST_ALL", Policy::ForwardSync),
    o(SOL_UDP, 1, "UDP_CORK", Policy::Refuse(ENOPROTOOPT)),
    o(SOL_UDP, 100, "UDP_ENCAP", Policy::Refuse(ENOPROTOOPT)),
    o(SOL_UDP, 103, "UDP_SEGMENT", Policy::Refuse(ENOPROTOOPT)),
    o(SOL_UDP, 104, "UDP_GRO", Policy::Refuse(ENOPROTOOPT)),
    o(SOL_IPV6, 16, "IPV6_UNICAST_HOPS", Policy::ForwardSync),
    o(SOL_IPV6, 17, "IPV6_MULTICAST_IF", Policy::ForwardSync),
    o(SOL_IPV6, 18, "IPV6_MULTICAST_HOPS", Policy::ForwardSync),
    o(SOL_IPV6, 19, "IPV6_MULTICAST_LOOP", Policy::ForwardSync),
    o(SOL_IPV6, 20, "IPV6_ADD_MEMBERSHIP", Policy::ForwardSync),
    o(SOL_IPV6, 21, "IPV6_DROP_MEMBERSHIP", Policy::ForwardSync),
    o(SOL_IPV6, 23, "IPV6_MTU_DISCOVER", Policy::ForwardSync),
    o(SOL_IPV6, 24, "IPV6_MTU", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_IPV6, 25, "IPV6_RECVERR", Policy::Refuse(ENOPROTOOPT)),
    o(SOL_IPV6, 26, "IPV6_V6ONLY", Policy::ForwardSync),
    o(SOL_IPV6, 29, "IPV6_MULTICAST_ALL", Policy::ForwardSync),
    o(SOL_IPV6, 49, "IPV6_RECVPKTINFO", Policy::ForwardSync),
    o(SOL_IPV6, 51, "IPV6_RECVHOPLIMIT", Policy::ForwardSync),
    o(SOL_IPV6, 62, "IPV6_DONTFRAG", Policy::ForwardSync),
    o(SOL_IPV6, 66, "IPV6_RECVTCLASS", Policy::ForwardSync),
    o(SOL_IPV6, 67, "IPV6_TCLASS", Policy::ForwardSync),
    o(SOL_IPV6, 75, "IPV6_TRANSPARENT", Policy::Refuse(EPERM)),
];

/// Looks an option up.
#[must_use]
pub fn lookup(level: i32, name: i32) -> Option<&'static SocketOption> {
    OPTIONS.iter().find(|o| o.level == level && o.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_stands_twice() {
        for (i, a) in OPTIONS.iter().enumerate() {
            let same = OPTIONS.iter().skip(i + 1).any(|b| a.level == b.level && a.name == b.name);
            assert!(!same, "{}", a.label);
        }
    }

    #[test]
    fn what_only_an_administrator_may_is_refused() {
        for label in
            ["SO_MARK", "SO_BINDTODEVICE", "IP_TRANSPARENT", "TCP_REPAIR", "SO_RCVBUFFORCE"]
        {
            let found = OPTIONS.iter().find(|o| o.label == label).expect(label);
            assert_eq!(found.policy, Policy::Refuse(EPERM), "{label}");
        }
    }
}
