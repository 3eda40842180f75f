//! The daemon's connection to a keeper's process, which may be stopped, or slower than all bearing: control thread and poll thread wait for it for
//! a bounded time, and then it is ended, as one that took nothing can no more be told from what it has.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nk_attach::Message;
use rustix::net::Shutdown;

use super::link::Wire;
use crate::sys;

/// How long a keeper may take to make room for a message.
pub(super) const TAKES_MAX: Duration = Duration::from_secs(1);

/// A connection to a keeper.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    /// The keeper's pidfd.
    process: Option<OwnedFd>,
}

impl Connection {
    /// `pid`: the keeper's, as far as it is known.
    pub(super) fn new(
        socket: OwnedFd,
        pid: Option<i32>,
        takes_max: Duration,
    ) -> io::Result<Connection> {
        sys::set_send_timeout(&socket, takes_max)?;
        Ok(Connection { socket, process: pid.and_then(|pid| sys::pidfd(pid).ok()) })
    }

    /// Ends the keeper. One that cannot end now, since it is frozen, is heard no more and waited for no more.
    fn end(&self) {
        tracing::error!("the keeper takes nothing: it is ended");
        if let Some(process) = &self.process {
            sys::kill(process);
        }
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Wire for Connection {
    type Fd = OwnedFd;
    type Raw<'a> = BorrowedFd<'a>;

    fn raw(fd: &OwnedFd) -> BorrowedFd<'_> {
        OwnedFd::raw(fd)
    }
    fn duplicate(raw: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        <OwnedFd as Wire>::duplicate(raw)
    }
    fn send(&self, m: &Message, fds: &[BorrowedFd<'_>]) -> Result<(), i32> {
        let sent = self.socket.send(m, fds);
        if sent == Err(libc::EAGAIN) {
            self.end();
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nk_attach::Kind;

    #[test]
    fn a_keeper_that_takes_nothing_is_ended() {
        let (socket, its) = sys::seqpacket_pair().expect("pair");
        let mut stopped = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = stopped.id() as i32;
        let connection =
            Connection::new(socket, Some(pid), Duration::from_millis(10)).expect("a connection");
        let m = Message::new(Kind::Keep);
        let failed = (0..100_000).find_map(|_| connection.send(&m, &[]).err());
        assert_eq!(failed, Some(libc::EAGAIN), "before it was full");
        assert_eq!(connection.send(&m, &[]), Err(libc::EPIPE), "nobody waits for it again");
        assert!(sys::is_hung_up(&connection), "as it looks when it has ended");
        assert!(!stopped.wait().expect("its end").success());
        drop(its);
    }
}
