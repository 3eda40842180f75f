//! Names for what a guest's processes counted as not redirected.

use nk_device::row::{ExecRefused, Missed, NoAnswer};
use serde_json::Value;

use crate::ask::harmless;

fn family(n: u64) -> String {
    let name = match n as i32 {
        libc::AF_INET => "AF_INET",
        libc::AF_INET6 => "AF_INET6",
        libc::AF_PACKET => "AF_PACKET",
        libc::AF_NETLINK => "AF_NETLINK",
        libc::AF_VSOCK => "AF_VSOCK",
        _ => return format!("family {n}"),
    };
    name.into()
}

fn socket(detail: u64) -> String {
    let kind = match (detail >> 16) as u16 as i32 & 0xf {
        libc::SOCK_STREAM => "SOCK_STREAM".to_owned(),
        libc::SOCK_DGRAM => "SOCK_DGRAM".to_owned(),
        libc::SOCK_RAW => "SOCK_RAW".to_owned(),
        n => format!("type {n}"),
    };
    let protocol = match detail >> 32 {
        0 => "0".to_owned(),
        6 => "IPPROTO_TCP".to_owned(),
        17 => "IPPROTO_UDP".to_owned(),
        132 => "IPPROTO_SCTP".to_owned(),
        262 => "IPPROTO_MPTCP".to_owned(),
        n => n.to_string(),
    };
    format!("socket({}, {kind}, {protocol})", family(detail & 0xffff))
}

macro_rules! names {
    ($value:expr; $($name:ident),* $(,)?) => {
        match $value {
            $(v if v == libc::$name as i64 => Some(stringify!($name)),)*
            _ => None,
        }
    };
}

fn option(detail: u64) -> String {
    let (level, name) = ((detail >> 16) as i64, (detail & 0xffff) as i64);
    let named = match level as i32 {
        libc::SOL_SOCKET => {
            names!(name; SO_REUSEADDR, SO_TYPE, SO_ERROR, SO_BROADCAST, SO_SNDBUF, SO_RCVBUF, SO_KEEPALIVE,
            SO_OOBINLINE, SO_PRIORITY, SO_LINGER, SO_REUSEPORT, SO_PASSCRED, SO_PEERCRED, SO_RCVLOWAT, SO_SNDLOWAT, SO_RCVTIMEO,
            SO_SNDTIMEO, SO_BINDTODEVICE, SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_TIMESTAMP, SO_ACCEPTCONN, SO_SNDBUFFORCE,
            SO_RCVBUFFORCE, SO_MARK, SO_PROTOCOL, SO_DOMAIN, SO_RXQ_OVFL, SO_PEEK_OFF, SO_BUSY_POLL, SO_INCOMING_CPU,
            SO_ATTACH_BPF, SO_ZEROCOPY, SO_TXTIME, SO_COOKIE, SO_INCOMING_NAPI_ID, SO_MAX_PACING_RATE, SO_TIMESTAMPNS,
            SO_TIMESTAMPING, SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF)
        }
        libc::IPPROTO_TCP => {
            names!(name; TCP_NODELAY, TCP_MAXSEG, TCP_CORK, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_SYNCNT,
            TCP_LINGER2, TCP_DEFER_ACCEPT, TCP_WINDOW_CLAMP, TCP_INFO, TCP_QUICKACK, TCP_CONGESTION, TCP_MD5SIG,
            TCP_THIN_LINEAR_TIMEOUTS, TCP_THIN_DUPACK, TCP_USER_TIMEOUT, TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ,
            TCP_REPAIR_OPTIONS, TCP_FASTOPEN, TCP_TIMESTAMP, TCP_NOTSENT_LOWAT, TCP_CC_INFO, TCP_SAVE_SYN, TCP_SAVED_SYN,
            TCP_REPAIR_WINDOW, TCP_FASTOPEN_CONNECT, TCP_ULP, TCP_MD5SIG_EXT, TCP_FASTOPEN_KEY, TCP_FASTOPEN_NO_COOKIE,
            TCP_ZEROCOPY_RECEIVE, TCP_INQ)
        }
        libc::IPPROTO_IP => {
            names!(name; IP_TOS, IP_TTL, IP_HDRINCL, IP_OPTIONS, IP_RECVOPTS, IP_PKTINFO, IP_MTU_DISCOVER, IP_RECVERR,
            IP_RECVTTL, IP_RECVTOS, IP_MTU, IP_FREEBIND, IP_TRANSPARENT, IP_MULTICAST_TTL, IP_MULTICAST_LOOP,
            IP_ADD_MEMBERSHIP, IP_BIND_ADDRESS_NO_PORT)
        }
        libc::IPPROTO_IPV6 => {
            names!(name; IPV6_V6ONLY, IPV6_UNICAST_HOPS, IPV6_MULTICAST_HOPS, IPV6_RECVPKTINFO, IPV6_TCLASS,
            IPV6_RECVTCLASS, IPV6_MTU_DISCOVER, IPV6_RECVERR, IPV6_MTU)
        }
        _ => None,
    };
    named.map_or_else(|| format!("level {level}, option {name}"), ToOwned::to_owned)
}

fn call(number: u64) -> String {
    let n = number as i64;
    let named = names!(n; SYS_socket, SYS_connect, SYS_accept, SYS_accept4, SYS_bind, SYS_listen, SYS_sendto, SYS_recvfrom,
        SYS_sendmsg, SYS_recvmsg, SYS_sendmmsg, SYS_recvmmsg, SYS_shutdown, SYS_getsockname, SYS_getpeername, SYS_setsockopt,
        SYS_getsockopt, SYS_sendfile, SYS_splice, SYS_tee, SYS_vmsplice, SYS_copy_file_range, SYS_io_uring_setup, SYS_io_submit,
        SYS_epoll_ctl, SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_poll, SYS_ppoll, SYS_select, SYS_pselect6,
        SYS_clone, SYS_clone3, SYS_execve, SYS_execveat, SYS_dup, SYS_dup3, SYS_fcntl, SYS_ioctl, SYS_preadv, SYS_pwritev,
        SYS_preadv2, SYS_pwritev2, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_lseek, SYS_mmap, SYS_fsync,
        SYS_pidfd_getfd, SYS_fork, SYS_vfork);
    named
        .and_then(|s| s.strip_prefix("SYS_"))
        .map_or_else(|| format!("system call {n}"), |s| format!("{s}()"))
}

fn flag(value: u64) -> String {
    let v = value as i64;
    names!(v; MSG_OOB, MSG_PEEK, MSG_DONTROUTE, MSG_CTRUNC, MSG_TRUNC, MSG_DONTWAIT, MSG_EOR, MSG_WAITALL, MSG_CONFIRM,
        MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_MORE, MSG_WAITFORONE, MSG_FASTOPEN, MSG_ZEROCOPY)
    .map_or_else(|| format!("flag {value:#x}"), ToOwned::to_owned)
}

fn refused(reason: u64) -> String {
    let all = [
        (ExecRefused::Static, "statically linked"),
        (ExecRefused::Setuid, "set-uid, set-gid or with file capabilities"),
        (ExecRefused::ForeignMachine, "built for another machine"),
        (ExecRefused::ForeignLibc, "of another C library"),
    ];
    let name = all.iter().find(|(r, _)| *r as u64 == reason).map_or("reason unknown", |(_, n)| n);
    format!("a program that is {name}")
}

fn no_answer(reason: u64) -> &'static str {
    let all = [
        (NoAnswer::Busy, "too many questions at once"),
        (NoAnswer::Forbidden, "the configuration gives this guest no names"),
        (NoAnswer::Late, "no answer in time"),
        (NoAnswer::Ended, "the resolver ended over it"),
        (NoAnswer::Malformed, "an answer that could not be read"),
        (NoAnswer::NoDaemon, "no daemon serves"),
        (NoAnswer::Resources, "the process lacks descriptors or memory"),
        (NoAnswer::TooLong, "longer than any name"),
    ];
    all.iter().find(|(r, _)| *r as u64 == reason).map_or("reason unknown", |(_, n)| n)
}

/// What one entry of the table says.
fn describe(kind: u64, detail: u64) -> (&'static str, String) {
    let is = |k: Missed| kind == k as u64;
    if is(Missed::Socket) {
        ("socket not served", socket(detail))
    } else if is(Missed::SetSockOpt) {
        ("setsockopt refused", option(detail))
    } else if is(Missed::GetSockOpt) {
        ("getsockopt refused", option(detail))
    } else if is(Missed::Ioctl) {
        ("ioctl refused", format!("{detail:#x}"))
    } else if is(Missed::Call) {
        ("call not served", call(detail))
    } else if is(Missed::MsgFlag) {
        ("message flag refused", flag(detail))
    } else if is(Missed::Exec) {
        ("exec refused", refused(detail))
    } else if is(Missed::ControlMessage) {
        ("control message refused", format!("level {}, type {}", detail >> 16, detail & 0xffff))
    } else if is(Missed::Name) {
        ("name not answered", no_answer(detail).to_owned())
    } else {
        ("unknown", format!("{kind}:{detail:#x}"))
    }
}

/// Prints a daemon's answer for people.
pub(super) fn print(v: &Value) {
    let number = |v: &Value, k: &str| v.get(k).and_then(Value::as_u64).unwrap_or(0);
    let missed = v.get("missed").and_then(Value::as_array).cloned().unwrap_or_default();
    let guest = harmless(v.get("guest").and_then(Value::as_str).unwrap_or("-"));
    let pid = number(v, "pid");
    if missed.is_empty() {
        println!("guest {guest} (process {pid} and others): everything was redirected");
        return;
    }
    println!("guest {guest} (process {pid} and others): not redirected");
    let rows: Vec<Vec<String>> = missed
        .iter()
        .map(|m| {
            let (what, which) = describe(number(m, "kind"), number(m, "detail"));
            vec![number(m, "count").to_string(), what.to_owned(), which]
        })
        .collect();
    super::table(&["COUNT", "WHAT", "WHICH"], &[0], &rows);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_names() {
        let d = |k: Missed, v: u64| describe(k as u64, v).1;
        assert_eq!(
            d(Missed::Socket, 2 | 2 << 16 | 17 << 32),
            "socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP)"
        );
        assert_eq!(d(Missed::SetSockOpt, 1 << 16 | 36), "SO_MARK");
        assert_eq!(d(Missed::SetSockOpt, 6 << 16 | 31), "TCP_ULP");
        assert_eq!(d(Missed::GetSockOpt, 77 << 16 | 5), "level 77, option 5");
        assert_eq!(d(Missed::Call, libc::SYS_io_uring_setup as u64), "io_uring_setup()");
        assert_eq!(d(Missed::MsgFlag, libc::MSG_OOB as u64), "MSG_OOB");
        assert_eq!(
            d(Missed::Exec, ExecRefused::Static as u64),
            "a program that is statically linked"
        );
    }
}
