//! Every socket option NetKernel knows, and what happens to it. What is not in the table is ENOPROTOOPT, and counted.
//!
//! Both GuestLib shells use it; ServiceLib uses it as its allow-list, because the NSM has rights that a guest has not.

use crate::errno::{EACCES, EADDRNOTAVAIL, EFAULT, EINVAL, ENOENT, ENOPROTOOPT, EOPNOTSUPP, EPERM};

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
    /// A switch that is off and stays off, as it is natively until somebody sets it: getting it says 0, setting it to 0
    /// changes nothing, and setting it to anything else gives the errno.
    Off(i32),
    /// Refused: setting it gives the errno, getting it ENOPROTOOPT.
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
    o(SOL_SOCKET, 1, "SO_DEBUG", Policy::Off(EACCES)),
    o(SOL_SOCKET, 2, "SO_REUSEADDR", Policy::Forward),
    o(SOL_SOCKET, 3, "SO_TYPE", Policy::Local),
    o(SOL_SOCKET, 4, "SO_ERROR", Policy::Local),
    o(SOL_SOCKET, 5, "SO_DONTROUTE", Policy::Forward),
    o(SOL_SOCKET, 6, "SO_BROADCAST", Policy::Forward),
    o(SOL_SOCKET, 7, "SO_SNDBUF", Policy::Forward),
    o(SOL_SOCKET, 8, "SO_RCVBUF", Policy::Forward),
    o(SOL_SOCKET, 9, "SO_KEEPALIVE", Policy::Forward),
    o(SOL_SOCKET, 10, "SO_OOBINLINE", Policy::Forward),
    o(SOL_SOCKET, 11, "SO_NO_CHECK", Policy::Off(ENOPROTOOPT)),
    o(SOL_SOCKET, 12, "SO_PRIORITY", Policy::ForwardSync),
    o(SOL_SOCKET, 13, "SO_LINGER", Policy::Local),
    o(SOL_SOCKET, 14, "SO_BSDCOMPAT", Policy::Forward),
    o(SOL_SOCKET, 15, "SO_REUSEPORT", Policy::Forward),
    o(SOL_SOCKET, 17, "SO_PEERCRED", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_SOCKET, 18, "SO_RCVLOWAT", Policy::Local),
    o(SOL_SOCKET, 19, "SO_SNDLOWAT", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_SOCKET, 20, "SO_RCVTIMEO", Policy::Local),
    o(SOL_SOCKET, 21, "SO_SNDTIMEO", Policy::Local),
    o(SOL_SOCKET, 25, "SO_BINDTODEVICE", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 26, "SO_ATTACH_FILTER", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 27, "SO_DETACH_FILTER", Policy::Refuse(ENOENT)),
    o(SOL_SOCKET, 29, "SO_TIMESTAMP", Policy::Local),
    o(SOL_SOCKET, 30, "SO_ACCEPTCONN", Policy::Local),
    o(SOL_SOCKET, 32, "SO_SNDBUFFORCE", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 33, "SO_RCVBUFFORCE", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 35, "SO_TIMESTAMPNS", Policy::ForwardSync),
    o(SOL_SOCKET, 36, "SO_MARK", Policy::Off(EPERM)),
    o(SOL_SOCKET, 38, "SO_PROTOCOL", Policy::Local),
    o(SOL_SOCKET, 39, "SO_DOMAIN", Policy::Local),
    o(SOL_SOCKET, 40, "SO_RXQ_OVFL", Policy::Local),
    o(SOL_SOCKET, 41, "SO_WIFI_STATUS", Policy::Off(ENOPROTOOPT)),
    o(SOL_SOCKET, 43, "SO_NOFCS", Policy::Off(ENOPROTOOPT)),
    o(SOL_SOCKET, 44, "SO_LOCK_FILTER", Policy::Off(EPERM)),
    o(SOL_SOCKET, 45, "SO_SELECT_ERR_QUEUE", Policy::Off(ENOPROTOOPT)),
    o(SOL_SOCKET, 46, "SO_BUSY_POLL", Policy::Off(EPERM)),
    o(SOL_SOCKET, 47, "SO_MAX_PACING_RATE", Policy::ForwardSync),
    o(SOL_SOCKET, 49, "SO_INCOMING_CPU", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_SOCKET, 50, "SO_ATTACH_BPF", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 51, "SO_ATTACH_REUSEPORT_CBPF", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 52, "SO_ATTACH_REUSEPORT_EBPF", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 55, "SO_MEMINFO", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_SOCKET, 56, "SO_INCOMING_NAPI_ID", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_SOCKET, 57, "SO_COOKIE", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_SOCKET, 59, "SO_PEERGROUPS", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_SOCKET, 60, "SO_ZEROCOPY", Policy::Off(EOPNOTSUPP)),
    o(SOL_SOCKET, 62, "SO_BINDTOIFINDEX", Policy::Off(EPERM)),
    o(SOL_SOCKET, 63, "SO_TIMESTAMP_NEW", Policy::Off(ENOPROTOOPT)),
    o(SOL_SOCKET, 64, "SO_TIMESTAMPNS_NEW", Policy::Off(ENOPROTOOPT)),
    o(SOL_SOCKET, 66, "SO_RCVTIMEO_NEW", Policy::Local),
    o(SOL_SOCKET, 67, "SO_SNDTIMEO_NEW", Policy::Local),
    o(SOL_SOCKET, 69, "SO_PREFER_BUSY_POLL", Policy::Off(EPERM)),
    o(SOL_SOCKET, 70, "SO_BUSY_POLL_BUDGET", Policy::Refuse(EPERM)),
    o(SOL_SOCKET, 72, "SO_BUF_LOCK", Policy::ForwardSync),
    o(SOL_SOCKET, 73, "SO_RESERVE_MEM", Policy::Off(EOPNOTSUPP)),
    o(SOL_SOCKET, 74, "SO_TXREHASH", Policy::ForwardSync),
    o(SOL_SOCKET, 75, "SO_RCVMARK", Policy::Off(ENOPROTOOPT)),
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
    o(SOL_TCP, 16, "TCP_THIN_LINEAR_TIMEOUTS", Policy::ForwardSync),
    o(SOL_TCP, 17, "TCP_THIN_DUPACK", Policy::ForwardSync),
    o(SOL_TCP, 18, "TCP_USER_TIMEOUT", Policy::ForwardSync),
    o(SOL_TCP, 19, "TCP_REPAIR", Policy::Off(EPERM)),
    o(SOL_TCP, 20, "TCP_REPAIR_QUEUE", Policy::Refuse(EPERM)),
    o(SOL_TCP, 21, "TCP_QUEUE_SEQ", Policy::Refuse(EPERM)),
    o(SOL_TCP, 22, "TCP_REPAIR_OPTIONS", Policy::Refuse(EPERM)),
    o(SOL_TCP, 23, "TCP_FASTOPEN", Policy::Off(EOPNOTSUPP)),
    o(SOL_TCP, 24, "TCP_TIMESTAMP", Policy::ReadOnly(EPERM)),
    o(SOL_TCP, 25, "TCP_NOTSENT_LOWAT", Policy::Forward),
    o(SOL_TCP, 26, "TCP_CC_INFO", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_TCP, 27, "TCP_SAVE_SYN", Policy::ForwardSync),
    o(SOL_TCP, 28, "TCP_SAVED_SYN", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_TCP, 29, "TCP_REPAIR_WINDOW", Policy::Refuse(EPERM)),
    o(SOL_TCP, 30, "TCP_FASTOPEN_CONNECT", Policy::Off(EOPNOTSUPP)),
    o(SOL_TCP, 31, "TCP_ULP", Policy::Refuse(ENOPROTOOPT)),
    o(SOL_TCP, 32, "TCP_MD5SIG_EXT", Policy::Refuse(EPERM)),
    o(SOL_TCP, 33, "TCP_FASTOPEN_KEY", Policy::Refuse(EOPNOTSUPP)),
    o(SOL_TCP, 34, "TCP_FASTOPEN_NO_COOKIE", Policy::Off(EOPNOTSUPP)),
    o(SOL_TCP, 36, "TCP_INQ", Policy::Off(ENOPROTOOPT)),
    o(SOL_TCP, 37, "TCP_TX_DELAY", Policy::Off(ENOPROTOOPT)),
    o(SOL_UDP, 1, "UDP_CORK", Policy::Off(ENOPROTOOPT)),
    o(SOL_UDP, 100, "UDP_ENCAP", Policy::Off(ENOPROTOOPT)),
    o(SOL_UDP, 101, "UDP_NO_CHECK6_TX", Policy::Off(ENOPROTOOPT)),
    o(SOL_UDP, 102, "UDP_NO_CHECK6_RX", Policy::Off(ENOPROTOOPT)),
    o(SOL_UDP, 103, "UDP_SEGMENT", Policy::Off(ENOPROTOOPT)),
    o(SOL_UDP, 104, "UDP_GRO", Policy::Off(ENOPROTOOPT)),
    o(SOL_IP, 1, "IP_TOS", Policy::ForwardSync),
    o(SOL_IP, 2, "IP_TTL", Policy::ForwardSync),
    o(SOL_IP, 3, "IP_HDRINCL", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_IP, 5, "IP_ROUTER_ALERT", Policy::Off(EINVAL)),
    o(SOL_IP, 6, "IP_RECVOPTS", Policy::Off(ENOPROTOOPT)),
    o(SOL_IP, 7, "IP_RETOPTS", Policy::Off(ENOPROTOOPT)),
    o(SOL_IP, 8, "IP_PKTINFO", Policy::ForwardSync),
    o(SOL_IP, 10, "IP_MTU_DISCOVER", Policy::ForwardSync),
    o(SOL_IP, 11, "IP_RECVERR", Policy::Off(ENOPROTOOPT)),
    o(SOL_IP, 12, "IP_RECVTTL", Policy::ForwardSync),
    o(SOL_IP, 13, "IP_RECVTOS", Policy::ForwardSync),
    o(SOL_IP, 14, "IP_MTU", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_IP, 15, "IP_FREEBIND", Policy::Off(EPERM)),
    o(SOL_IP, 16, "IP_IPSEC_POLICY", Policy::Refuse(EPERM)),
    o(SOL_IP, 17, "IP_XFRM_POLICY", Policy::Refuse(EPERM)),
    o(SOL_IP, 18, "IP_PASSSEC", Policy::Off(ENOPROTOOPT)),
    o(SOL_IP, 19, "IP_TRANSPARENT", Policy::Off(EPERM)),
    o(SOL_IP, 20, "IP_ORIGDSTADDR", Policy::Off(ENOPROTOOPT)),
    o(SOL_IP, 21, "IP_MINTTL", Policy::ForwardSync),
    o(SOL_IP, 22, "IP_NODEFRAG", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_IP, 23, "IP_CHECKSUM", Policy::Off(ENOPROTOOPT)),
    o(SOL_IP, 24, "IP_BIND_ADDRESS_NO_PORT", Policy::ForwardSync),
    o(SOL_IP, 25, "IP_RECVFRAGSIZE", Policy::Off(EINVAL)),
    o(SOL_IP, 26, "IP_RECVERR_RFC4884", Policy::Off(ENOPROTOOPT)),
    o(SOL_IP, 32, "IP_MULTICAST_IF", Policy::ForwardSync),
    o(SOL_IP, 33, "IP_MULTICAST_TTL", Policy::ForwardSync),
    o(SOL_IP, 34, "IP_MULTICAST_LOOP", Policy::ForwardSync),
    o(SOL_IP, 35, "IP_ADD_MEMBERSHIP", Policy::ForwardSync),
    o(SOL_IP, 36, "IP_DROP_MEMBERSHIP", Policy::ForwardSync),
    o(SOL_IP, 39, "IP_ADD_SOURCE_MEMBERSHIP", Policy::ForwardSync),
    o(SOL_IP, 40, "IP_DROP_SOURCE_MEMBERSHIP", Policy::ForwardSync),
    o(SOL_IP, 42, "MCAST_JOIN_GROUP", Policy::ForwardSync),
    o(SOL_IP, 45, "MCAST_LEAVE_GROUP", Policy::ForwardSync),
    o(SOL_IP, 49, "IP_MULTICAST_ALL", Policy::ForwardSync),
    o(SOL_IP, 50, "IP_UNICAST_IF", Policy::Off(EADDRNOTAVAIL)),
    o(SOL_IP, 51, "IP_LOCAL_PORT_RANGE", Policy::ForwardSync),
    o(SOL_IP, 52, "IP_PROTOCOL", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_IPV6, 2, "IPV6_2292PKTINFO", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 3, "IPV6_2292HOPOPTS", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 4, "IPV6_2292DSTOPTS", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 5, "IPV6_2292RTHDR", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 8, "IPV6_2292HOPLIMIT", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 11, "IPV6_FLOWINFO", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 16, "IPV6_UNICAST_HOPS", Policy::ForwardSync),
    o(SOL_IPV6, 17, "IPV6_MULTICAST_IF", Policy::ForwardSync),
    o(SOL_IPV6, 18, "IPV6_MULTICAST_HOPS", Policy::ForwardSync),
    o(SOL_IPV6, 19, "IPV6_MULTICAST_LOOP", Policy::ForwardSync),
    o(SOL_IPV6, 20, "IPV6_ADD_MEMBERSHIP", Policy::ForwardSync),
    o(SOL_IPV6, 21, "IPV6_DROP_MEMBERSHIP", Policy::ForwardSync),
    o(SOL_IPV6, 22, "IPV6_ROUTER_ALERT", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 23, "IPV6_MTU_DISCOVER", Policy::ForwardSync),
    o(SOL_IPV6, 24, "IPV6_MTU", Policy::ForwardSync),
    o(SOL_IPV6, 25, "IPV6_RECVERR", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 26, "IPV6_V6ONLY", Policy::ForwardSync),
    o(SOL_IPV6, 29, "IPV6_MULTICAST_ALL", Policy::ForwardSync),
    o(SOL_IPV6, 30, "IPV6_ROUTER_ALERT_ISOLATE", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 31, "IPV6_RECVERR_RFC4884", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 33, "IPV6_FLOWINFO_SEND", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 34, "IPV6_IPSEC_POLICY", Policy::Refuse(EPERM)),
    o(SOL_IPV6, 35, "IPV6_XFRM_POLICY", Policy::Refuse(EPERM)),
    o(SOL_IPV6, 42, "MCAST_JOIN_GROUP", Policy::ForwardSync),
    o(SOL_IPV6, 45, "MCAST_LEAVE_GROUP", Policy::ForwardSync),
    o(SOL_IPV6, 49, "IPV6_RECVPKTINFO", Policy::ForwardSync),
    o(SOL_IPV6, 51, "IPV6_RECVHOPLIMIT", Policy::ForwardSync),
    o(SOL_IPV6, 53, "IPV6_RECVHOPOPTS", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 56, "IPV6_RECVRTHDR", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 58, "IPV6_RECVDSTOPTS", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 60, "IPV6_RECVPATHMTU", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 61, "IPV6_PATHMTU", Policy::ReadOnly(ENOPROTOOPT)),
    o(SOL_IPV6, 62, "IPV6_DONTFRAG", Policy::ForwardSync),
    o(SOL_IPV6, 66, "IPV6_RECVTCLASS", Policy::ForwardSync),
    o(SOL_IPV6, 67, "IPV6_TCLASS", Policy::ForwardSync),
    o(SOL_IPV6, 70, "IPV6_AUTOFLOWLABEL", Policy::ForwardSync),
    o(SOL_IPV6, 72, "IPV6_ADDR_PREFERENCES", Policy::ForwardSync),
    o(SOL_IPV6, 73, "IPV6_MINHOPCOUNT", Policy::ForwardSync),
    o(SOL_IPV6, 74, "IPV6_ORIGDSTADDR", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 75, "IPV6_TRANSPARENT", Policy::Off(EPERM)),
    o(SOL_IPV6, 76, "IPV6_UNICAST_IF", Policy::Off(EADDRNOTAVAIL)),
    o(SOL_IPV6, 77, "IPV6_RECVFRAGSIZE", Policy::Off(ENOPROTOOPT)),
    o(SOL_IPV6, 78, "IPV6_FREEBIND", Policy::Off(EPERM)),
];

/// Looks an option up.
#[must_use]
pub fn lookup(level: i32, name: i32) -> Option<&'static SocketOption> {
    OPTIONS.iter().find(|o| o.level == level && o.name == name)
}

const SO_BINDTODEVICE: i32 = 25;
const TCP_CONGESTION: i32 = 13;
const TCP_ULP: i32 = 31;
const TCP_FASTOPEN_KEY: i32 = 33;

/// What Linux looks at before it looks at the option: how long the value is, and whether there is one. The levels of IP look at
/// the option first.
///
/// # Errors
/// Linux's.
pub fn check_value(level: i32, name: i32, length: usize, null: bool) -> Result<(), i32> {
    let length_min = match (level, name) {
        (SOL_SOCKET, SO_BINDTODEVICE) => return Ok(()),
        (SOL_TCP, TCP_CONGESTION | TCP_ULP | TCP_FASTOPEN_KEY) => 1,
        (SOL_SOCKET | SOL_TCP | SOL_UDP, _) => 4,
        _ => return Ok(()),
    };
    if length < length_min {
        return Err(EINVAL);
    }
    if null { Err(EFAULT) } else { Ok(()) }
}

/// The same for an option that is known, of any level.
///
/// # Errors
/// Linux's.
pub fn check_known(level: i32, length: usize, null: bool) -> Result<(), i32> {
    match level {
        // A null pointer is a 0 there.
        SOL_IPV6 if null => Ok(()),
        _ if null && length > 0 => Err(EFAULT),
        _ => Ok(()),
    }
}

/// Whether that length is too short for a switch: IPv4 takes one byte.
#[must_use]
pub fn too_short_for_switch(level: i32, length: usize) -> bool {
    length < if level == SOL_IP { 1 } else { 4 }
}

/// What kind of socket an option is asked of.
#[derive(Clone, Copy, Debug)]
pub struct SocketKind {
    /// IPv4 and not IPv6.
    pub ipv4: bool,
    /// UDP and not TCP.
    pub datagram: bool,
}

impl SocketKind {
    /// Whether such sockets have options of that level.
    #[must_use]
    pub fn has_level(self, level: i32) -> bool {
        match level {
            SOL_SOCKET | SOL_IP => true,
            SOL_TCP => !self.datagram,
            SOL_UDP => self.datagram,
            SOL_IPV6 => !self.ipv4,
            _ => false,
        }
    }

    /// What getting an option gives that there is not: on IPv4, a level that there is not has an errno of its own.
    #[must_use]
    pub fn unknown_get(self, level: i32) -> i32 {
        if self.ipv4 && !self.has_level(level) { EOPNOTSUPP } else { ENOPROTOOPT }
    }
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
            let refused = matches!(found.policy, Policy::Refuse(EPERM) | Policy::Off(EPERM));
            assert!(refused, "{label}: {:?}", found.policy);
        }
    }
}
