//! One command to an NSM process and its answer. It may be any program's, and the control thread waits: for a bounded time, with bounded memory.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nk_attach::{Message, RecvError};
use rustix::net::sockopt::{Timeout, socket_timeout};

use crate::nsm::note;
use crate::sys;

/// Reports that may come before an answer. One that gives a guest away reports each of its sockets, and what waits there to be read.
const NOTES_MAX: usize = 1 << 18;

/// Whether it lives, and did not answer what was sent to it.
pub(super) fn is_silent(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::TimedOut
}

pub(super) fn gone() -> io::Error {
    io::Error::other("the NSM process is gone")
}

/// Sends a command to an NSM process and waits for its answer, as long as its socket waits for a message; returns it and what the NSM reported
/// meanwhile. Answers to other commands, which a dead daemon gave, are dropped.
pub(in crate::server) fn exchange(
    control: &OwnedFd,
    m: &Message,
    fds: &[i32],
    is_answer: impl Fn(&Message) -> bool,
) -> io::Result<(Message, Vec<Note>)> {
    let raw = control.as_raw_fd();
    let (begun, most) = (Instant::now(), socket_timeout(control, Timeout::Recv)?);
    nk_attach::try_send(raw, m, fds).map_err(|e| match e {
        // It has answered before it read, again and again: there is no room left.
        libc::EAGAIN => io::ErrorKind::TimedOut.into(),
        e => io::Error::from_raw_os_error(e),
    })?;
    let mut notes = Vec::new();
    loop {
        // One that reports without end, and answers nothing, is silent too.
        if notes.len() > NOTES_MAX || most.is_some_and(|most| begun.elapsed() > most) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (reply, mut fds, _) = nk_attach::recv(raw, false).map_err(|e| match e {
            RecvError::Closed | RecvError::Os(libc::ECONNRESET) => gone(),
            // Nothing, or nothing that it could mean.
            RecvError::Os(_) | RecvError::Malformed => io::ErrorKind::TimedOut.into(),
        })?;
        if is_answer(&reply) {
            return Ok((reply, notes));
        }
        if reply.a >= note::LISTENER {
            notes.push((reply, sys::take(&mut fds, 0)));
        }
    }
}

/// What an NSM process reported unasked, with its descriptor.
pub(in crate::server) type Note = (Message, Option<OwnedFd>);

#[cfg(test)]
mod tests {
    use super::*;
    use nk_attach::Kind;
    use rustix::net::sockopt::set_socket_timeout;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const SOON: Duration = Duration::from_millis(5);
    const LATE: Duration = Duration::from_secs(1000);

    /// How an NSM answers whose process is played by the end of the connection, and that may take so long.
    fn asked(most: Duration, nsm: impl FnOnce(OwnedFd) -> Option<OwnedFd>) -> io::Error {
        let (ours, its) = sys::seqpacket_pair().expect("pair");
        set_socket_timeout(&ours, Timeout::Recv, Some(most)).expect("a time-out");
        let kept = nsm(its);
        let ask = || exchange(&ours, &Message::new(Kind::Nsm), &[], |m| m.a < note::LISTENER).err();
        let e = (0..1_000_000).find_map(|_| ask()).expect("it answers for ever");
        drop(kept);
        e
    }

    /// As [`asked`], of one that says the same without end.
    fn says(most: Duration, what: u64) -> io::Error {
        let (sender, over) = channel();
        let nsm = move |its: OwnedFd| {
            let mut m = Message::new(Kind::Nsm);
            m.a = what;
            std::thread::spawn(move || while nk_attach::send(its.as_raw_fd(), &m, &[]).is_ok() {});
            None
        };
        std::thread::spawn(move || sender.send(asked(most, nsm)));
        over.recv_timeout(Duration::from_secs(60)).expect("it is waited for")
    }

    #[test]
    fn who_reports_without_end_does_not_answer() {
        let e = says(SOON, note::LISTENER_GONE);
        assert!(is_silent(&e), "{e}");
        // Nor is it remembered, however long it may take.
        let e = says(LATE, note::LISTENER_GONE);
        assert!(is_silent(&e), "{e}");
    }

    #[test]
    fn who_answers_and_does_not_read_is_not_waited_for() {
        let e = says(LATE, 1);
        assert!(is_silent(&e), "{e}");
    }

    #[test]
    fn who_is_dead_is_told_from_who_does_not_answer() {
        assert!(is_silent(&asked(SOON, Some)));
        assert!(!is_silent(&asked(SOON, |its| {
            drop(its);
            None
        })));
        // It dies with the question before it.
        let (ours, its) = sys::seqpacket_pair().expect("pair");
        let dies = std::thread::spawn(move || {
            nk_attach::recv(its.as_raw_fd(), false).expect("the question");
        });
        let e = exchange(&ours, &Message::new(Kind::Nsm), &[], |_| true).expect_err("no answer");
        assert!(!is_silent(&e), "{e}");
        dies.join().expect("its end");
    }
}
