//! Sending and receiving messages with descriptors, by raw syscalls: inside a guest the libc names are GuestLib's own.

use core::mem::{size_of, zeroed};

use crate::{FDS_MAX, Message, PROTOCOL};

/// Who sent a message (needs `SO_PASSCRED` on the receiving socket).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id in the receiver's pid namespace.
    pub pid: i32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Descriptors that came with a message. The receiver owns them; what it does not take is closed on drop.
#[derive(Debug)]
pub struct Fds {
    fds: [i32; FDS_MAX],
    len: usize,
    is_cut: bool,
}

impl Fds {
    /// None.
    #[must_use]
    pub fn none() -> Fds {
        Fds { fds: [-1; FDS_MAX], len: 0, is_cut: false }
    }
    /// How many came.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether none came.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Whether more were sent than came: too many, or the receiver had no number left for them.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }
    /// Takes descriptor `i`: it is the caller's to close. `None` when there was none or it was taken.
    pub fn take(&mut self, i: usize) -> Option<i32> {
        let slot = self.fds.get_mut(i)?;
        let fd = core::mem::replace(slot, -1);
        (fd >= 0).then_some(fd)
    }
}

impl Drop for Fds {
    fn drop(&mut self) {
        for fd in self.fds {
            if fd >= 0 {
                close_raw(fd);
            }
        }
    }
}

/// Closes a descriptor by syscall, past any interposed `close`.
pub fn close_raw(fd: i32) {
    // SAFETY: close has no memory effects; a wrong number gives EBADF.
    unsafe { libc::syscall(libc::SYS_close, fd) };
}

fn errno() -> i32 {
    // SAFETY: errno's location is valid for the calling thread.
    unsafe { *libc::__errno_location() }
}

/// Connects to the attach socket at `path`. Returns a CLOEXEC descriptor.
///
/// # Errors
/// The errno; ENAMETOOLONG when the path does not fit.
pub fn connect(path: &[u8]) -> Result<i32, i32> {
    // SAFETY: sockaddr_un is plain data.
    let mut addr: libc::sockaddr_un = unsafe { zeroed() };
    if path.len() >= addr.sun_path.len() {
        return Err(libc::ENAMETOOLONG);
    }
    addr.sun_family = libc::AF_UNIX as u16;
    for (to, from) in addr.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    // SAFETY: plain syscalls on our own data; results are checked.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_socket,
            libc::AF_UNIX,
            libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
            0,
        ) as i32;
        if fd < 0 {
            return Err(errno());
        }
        let r =
            libc::syscall(libc::SYS_connect, fd, &raw const addr, size_of::<libc::sockaddr_un>());
        if r < 0 {
            let e = errno();
            close_raw(fd);
            return Err(e);
        }
        Ok(fd)
    }
}

/// Where whoever shares the socket asked for it, each message comes with a pidfd of its sender.
const SCM_PIDFD: i32 = 4;

#[repr(C, align(8))]
struct ControlBuffer([u8; 128]);

/// Sends one message with at most [`FDS_MAX`] descriptors (they stay the caller's). Retries on EINTR.
///
/// # Errors
/// The errno of sendmsg; EINVAL for too many descriptors.
pub fn send(socket: i32, message: &Message, fds: &[i32]) -> Result<(), i32> {
    send_flags(socket, message, fds, 0)
}

/// [`send`] that never waits, whatever the socket's flags are: the other end may have changed them.
///
/// # Errors
/// As [`send`]; EAGAIN when the peer reads nothing.
pub fn try_send(socket: i32, message: &Message, fds: &[i32]) -> Result<(), i32> {
    send_flags(socket, message, fds, libc::MSG_DONTWAIT)
}

fn send_flags(socket: i32, message: &Message, fds: &[i32], flags: i32) -> Result<(), i32> {
    if fds.len() > FDS_MAX {
        return Err(libc::EINVAL);
    }
    let mut iov = libc::iovec {
        iov_base: (&raw const *message).cast_mut().cast(),
        iov_len: size_of::<Message>(),
    };
    let mut control = ControlBuffer([0; 128]);
    // SAFETY: msghdr is plain data; the control buffer is aligned and large enough for one header and FDS_MAX numbers.
    unsafe {
        let mut msg: libc::msghdr = zeroed();
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        if !fds.is_empty() {
            let bytes = size_of_val(fds) as u32;
            msg.msg_control = (&raw mut control).cast();
            msg.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
            let c = libc::CMSG_FIRSTHDR(&raw const msg);
            (*c).cmsg_level = libc::SOL_SOCKET;
            (*c).cmsg_type = libc::SCM_RIGHTS;
            (*c).cmsg_len = libc::CMSG_LEN(bytes) as usize;
            core::ptr::copy_nonoverlapping(
                fds.as_ptr().cast::<u8>(),
                libc::CMSG_DATA(c),
                bytes as usize,
            );
        }
        loop {
            let flags = flags | libc::MSG_NOSIGNAL;
            let r = libc::syscall(libc::SYS_sendmsg, socket, &raw const msg, flags);
            if r >= 0 {
                return Ok(());
            }
            let e = errno();
            if e != libc::EINTR {
                return Err(e);
            }
        }
    }
}

/// Why no message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvError {
    /// The other end is closed.
    Closed,
    /// What came is no message of this protocol version.
    Malformed,
    /// recvmsg failed with this errno (EAGAIN with `nonblocking`).
    Os(i32),
}

/// Receives one message. Received descriptors are CLOEXEC. Retries on EINTR.
///
/// # Errors
/// See [`RecvError`]; descriptors of a malformed message are closed.
pub fn recv(
    socket: i32,
    nonblocking: bool,
) -> Result<(Message, Fds, Option<Credentials>), RecvError> {
    recv_flags(socket, if nonblocking { libc::MSG_DONTWAIT } else { 0 })
}

/// [`recv`] that leaves the message where it is, and never waits. Its descriptors are others of the same.
///
/// # Errors
/// As [`recv`].
pub fn peek(socket: i32) -> Result<(Message, Fds, Option<Credentials>), RecvError> {
    recv_flags(socket, libc::MSG_DONTWAIT | libc::MSG_PEEK)
}

fn recv_flags(socket: i32, flags: i32) -> Result<(Message, Fds, Option<Credentials>), RecvError> {
    let mut message = Message::new(crate::Kind::Query);
    let mut iov =
        libc::iovec { iov_base: (&raw mut message).cast(), iov_len: size_of::<Message>() };
    let mut control = ControlBuffer([0; 128]);
    let mut fds = Fds::none();
    let mut credentials = None;
    // SAFETY: plain data and buffers of our own; the kernel fills them within the given lengths; control messages are walked
    // with libc's macros and read unaligned.
    let (n, is_longer) = unsafe {
        let mut msg: libc::msghdr = zeroed();
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = (&raw mut control).cast();
        msg.msg_controllen = 128;
        let flags = flags | libc::MSG_CMSG_CLOEXEC;
        let n = loop {
            let r = libc::syscall(libc::SYS_recvmsg, socket, &raw mut msg, flags);
            if r >= 0 {
                break r as usize;
            }
            let e = errno();
            if e != libc::EINTR {
                return Err(RecvError::Os(e));
            }
        };
        fds.is_cut = msg.msg_flags & libc::MSG_CTRUNC != 0;
        let mut c = libc::CMSG_FIRSTHDR(&raw const msg);
        while !c.is_null() {
            let data = libc::CMSG_DATA(c);
            let bytes = (*c).cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
            if (*c).cmsg_level == libc::SOL_SOCKET && (*c).cmsg_type == libc::SCM_RIGHTS {
                for i in 0..bytes / 4 {
                    let fd = data.cast::<i32>().add(i).read_unaligned();
                    match fds.fds.get_mut(fds.len) {
                        Some(slot) => {
                            *slot = fd;
                            fds.len += 1;
                        }
                        None => close_raw(fd),
                    }
                }
            } else if (*c).cmsg_level == libc::SOL_SOCKET
                && (*c).cmsg_type == libc::SCM_CREDENTIALS
                && bytes >= size_of::<libc::ucred>()
            {
                let u = data.cast::<libc::ucred>().read_unaligned();
                credentials = Some(Credentials { pid: u.pid, uid: u.uid, gid: u.gid });
            } else if (*c).cmsg_level == libc::SOL_SOCKET
                && (*c).cmsg_type == SCM_PIDFD
                && bytes >= size_of::<i32>()
            {
                // A guest has the other descriptors of a socket that it gave away, and would fill the receiver's table.
                close_raw(data.cast::<i32>().read_unaligned());
            }
            c = libc::CMSG_NXTHDR(&raw const msg, c);
        }
        (n, msg.msg_flags & libc::MSG_TRUNC != 0)
    };
    if n == 0 {
        return Err(RecvError::Closed);
    }
    if n != size_of::<Message>() || is_longer || message.protocol != PROTOCOL {
        return Err(RecvError::Malformed);
    }
    Ok((message, fds, credentials))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    fn pair() -> [i32; 2] {
        let mut p = [0; 2];
        // SAFETY: p has room for two descriptors.
        let r = unsafe {
            libc::socketpair(
                libc::AF_UNIX,
                libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
                0,
                p.as_mut_ptr(),
            )
        };
        assert_eq!(r, 0);
        p
    }

    #[test]
    fn messages_and_descriptors_cross() {
        let p = pair();
        let q = pair();
        let m = Message::new(Kind::CreateGuest).with_text("web");
        send(p[0], &m, &q).expect("send");
        let (got, mut fds, _) = recv(p[1], false).expect("recv");
        assert_eq!((got.kind, got.text()), (Kind::CreateGuest as u32, Some("web")));
        assert_eq!(fds.len(), 2);
        assert!(matches!(peek(p[1]), Err(RecvError::Os(libc::EAGAIN))));
        send(p[0], &m, &q).expect("send");
        assert_eq!(peek(p[1]).expect("it is there").1.len(), 2);
        assert_eq!(recv(p[1], true).expect("it is still there").1.len(), 2);
        let f = fds.take(0).expect("first");
        assert!(fds.take(0).is_none());
        close_raw(f);
        for fd in p.into_iter().chain(q) {
            close_raw(fd);
        }
    }

    #[test]
    fn who_shares_the_socket_makes_nobody_receive_what_stays_open() {
        const SO_PASSPIDFD: i32 = 76;
        let p = pair();
        let on = 1i32;
        // SAFETY: the kernel reads a number.
        let set = unsafe {
            let (from, len) = ((&raw const on).cast(), size_of::<i32>() as u32);
            libc::setsockopt(p[1], libc::SOL_SOCKET, SO_PASSPIDFD, from, len)
        };
        assert!(
            set == 0 || errno() == libc::ENOPROTOOPT,
            "a kernel before 6.5 knows no such thing"
        );
        send(p[0], &Message::new(Kind::Hello), &p).expect("send");
        assert_eq!(peek(p[1]).expect("peek").1.len(), 2);
        assert_eq!(recv(p[1], true).expect("recv").1.len(), 2);
        let open = std::fs::read_dir("/proc/self/fd").expect("fd").flatten();
        let names = open.filter_map(|f| std::fs::read_link(f.path()).ok());
        assert_eq!(names.filter(|n| n.to_string_lossy().contains("pidfd")).count(), 0);
        p.into_iter().for_each(close_raw);
    }

    #[test]
    fn a_longer_message_is_none() {
        let p = pair();
        let mut bytes = [0u8; size_of::<Message>() + 1];
        bytes[..4].copy_from_slice(&PROTOCOL.to_ne_bytes());
        for (len, is_one) in [(bytes.len(), false), (bytes.len() - 1, true)] {
            // SAFETY: sends so many bytes of an array of ours.
            unsafe { libc::send(p[0], bytes.as_ptr().cast(), len, 0) };
            assert_eq!(recv(p[1], true).is_ok(), is_one, "{len} bytes");
        }
        p.into_iter().for_each(close_raw);
    }

    #[test]
    fn a_closed_or_foreign_peer_is_told() {
        let p = pair();
        // SAFETY: sends three bytes of a literal.
        unsafe { libc::send(p[0], b"abc".as_ptr().cast(), 3, 0) };
        assert_eq!(recv(p[1], false).map(|_| ()), Err(RecvError::Malformed));
        close_raw(p[0]);
        assert_eq!(recv(p[1], false).map(|_| ()), Err(RecvError::Closed));
        close_raw(p[1]);
    }
}
