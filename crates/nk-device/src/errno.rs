//! Linux errno values, as cells and replies carry them and GuestLib returns them (the numbers are the same on x86-64 and aarch64).

/// Operation not permitted.
pub const EPERM: i32 = 1;
/// No such file or directory (an unknown congestion control).
pub const ENOENT: i32 = 2;
/// Bad file descriptor: no such socket.
pub const EBADF: i32 = 9;
/// Try again.
pub const EAGAIN: i32 = 11;
/// Permission denied.
pub const EACCES: i32 = 13;
/// Bad address.
pub const EFAULT: i32 = 14;
/// Invalid argument.
pub const EINVAL: i32 = 22;
/// Broken pipe.
pub const EPIPE: i32 = 32;
/// Protocol option not available.
pub const ENOPROTOOPT: i32 = 92;
/// Operation not supported.
pub const EOPNOTSUPP: i32 = 95;
/// The address is in use.
pub const EADDRINUSE: i32 = 98;
/// No such address here.
pub const EADDRNOTAVAIL: i32 = 99;
/// Connection reset by peer.
pub const ECONNRESET: i32 = 104;
/// Already connected.
pub const EISCONN: i32 = 106;
/// The network is down: the stack is gone, or gave the socket up.
pub const ENETDOWN: i32 = 100;
/// Destination address required.
pub const EDESTADDRREQ: i32 = 89;
/// Message too long.
pub const EMSGSIZE: i32 = 90;
/// Not connected.
pub const ENOTCONN: i32 = 107;
/// A connect is under way.
pub const EALREADY: i32 = 114;
/// Connect goes on in the background.
pub const EINPROGRESS: i32 = 115;
/// The connect was given up.
pub const ECONNABORTED: i32 = 103;
