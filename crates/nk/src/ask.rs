//! One request to a daemon, and its answer; and which daemons there are to ask.
//!
//! A daemon that was killed leaves its socket to its keeper: who connects then waits for the next daemon, and is told that after a moment. What a
//! private daemon says is any user's word: root asks these too, so an answer is bounded, and its words reach no terminal as they are.

use std::fmt;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nk_attach::{Fds, Kind, Message, RecvError};
use nk_host::config::DEFAULT_SOCKET;
use nk_host::{private, sys};
use serde_json::Value;

use crate::Failure;

/// After so long without an answer it is said that there is none.
const MOMENT: Duration = Duration::from_secs(1);
/// How many moments a daemon may take to answer a question or an order.
const MOMENTS_MAX: u32 = 5;
/// Bytes of an answer that are read.
const ANSWER_MAX: u64 = 256 << 20;

/// Which daemon.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Engine {
    /// Attach socket of the only daemon to ask [default: that at /run/netkernel/nk.sock and all private ones; as root those of all users]
    #[arg(long, value_name = "SOCKET")]
    engine: Option<PathBuf>,
}

impl Engine {
    /// The daemon that is named, else all that there may be.
    fn reachable(&self) -> Vec<PathBuf> {
        if let Some(p) = &self.engine {
            return vec![p.clone()];
        }
        let mut all = vec![PathBuf::from(DEFAULT_SOCKET)];
        all.extend(private::sockets());
        if rustix::process::geteuid().is_root() {
            all.extend(private::sockets_of_all_users());
        }
        all.sort();
        all.dedup();
        all
    }

    /// Asks each, until one has an answer: that one's. `None`: they all say that it is not theirs (ESRCH).
    ///
    /// # Errors
    /// Where one refuses, or where none has an answer and one does not speak, or not with this user.
    pub(crate) fn first<T>(
        &self,
        ask: impl Fn(&Path) -> Result<T, NoAnswer>,
    ) -> Result<Option<T>, Failure> {
        let mut silent = None;
        for socket in self.reachable() {
            match ask(&socket) {
                Ok(answer) => return Ok(Some(answer)),
                Err(NoAnswer::Refused(libc::ESRCH, _)) => {}
                Err(NoAnswer::Nobody(_)) if self.engine.is_none() => {}
                Err(e @ (NoAnswer::Ended | NoAnswer::Failed(_) | NoAnswer::Nobody(_)))
                | Err(e @ NoAnswer::Refused(libc::EPERM, _)) => silent = Some(e.at(&socket)),
                Err(e @ NoAnswer::Refused(..)) => return Err(e.at(&socket)),
            }
        }
        silent.map_or(Ok(None), Err)
    }

    /// The answers of all, each with the socket of who gave it, and why there is none of those that do not answer.
    pub(crate) fn all<T>(
        &self,
        ask: impl Fn(&Path) -> Result<T, NoAnswer>,
    ) -> (Vec<(PathBuf, T)>, Result<(), Failure>) {
        let (mut answers, mut whole) = (Vec::new(), Ok(()));
        for socket in self.reachable() {
            match ask(&socket) {
                Ok(answer) => answers.push((socket, answer)),
                // There need not be a daemon on the default socket, and a private one may have just ended.
                Err(NoAnswer::Nobody(_)) if self.engine.is_none() => {}
                Err(e) => whole = Err(e.at(&socket)),
            }
        }
        (answers, whole)
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// Nobody serves there.
    Nobody(String),
    /// Who serves there closed the connection, or was killed.
    Ended,
    /// The answer is no: the errno, and why.
    Refused(i32, String),
    /// It did not come, or is none.
    Failed(String),
}

impl NoAnswer {
    fn os(e: i32) -> NoAnswer {
        let why = std::io::Error::from_raw_os_error(e).to_string();
        match e {
            libc::ENOENT | libc::ECONNREFUSED => NoAnswer::Nobody(why),
            libc::EPIPE | libc::ECONNRESET => NoAnswer::Ended,
            _ => NoAnswer::Failed(why),
        }
    }

    pub(crate) fn at(&self, socket: &Path) -> Failure {
        let socket = socket.display();
        Failure::new(
            1,
            match self {
                NoAnswer::Refused(..) => format!("{socket}: {self}"),
                _ => format!("no daemon answers at {socket}: {self}"),
            },
        )
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoAnswer::Ended => f.write_str("it ended"),
            NoAnswer::Nobody(why) | NoAnswer::Refused(_, why) | NoAnswer::Failed(why) => {
                f.write_str(why)
            }
        }
    }
}

/// Who asks a daemon, and waits.
#[derive(Debug)]
pub(crate) struct Asker {
    socket: PathBuf,
    /// As long as it takes, for `None`.
    moments_max: Option<u32>,
    passed: u32,
}

impl Asker {
    pub(crate) fn new(socket: &Path, moments_max: Option<u32>) -> Asker {
        Asker { socket: socket.to_owned(), moments_max, passed: 0 }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The daemon's socket has room for who asks unless a thousand wait there.
    pub(crate) fn connect(&mut self) -> Result<OwnedFd, NoAnswer> {
        loop {
            match sys::connect_within(&self.socket, MOMENT) {
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => self.passes()?,
                Err(e) => return Err(NoAnswer::os(e.raw_os_error().unwrap_or(libc::EIO))),
                Ok(fd) => return Ok(fd),
            }
        }
    }

    pub(crate) fn ask(
        &mut self,
        connection: &OwnedFd,
        m: &Message,
        fds: &[RawFd],
    ) -> Result<(Message, Fds), NoAnswer> {
        sys::set_receive_timeout(connection, MOMENT.as_secs())
            .map_err(|e| NoAnswer::Failed(e.to_string()))?;
        nk_attach::send(connection.as_raw_fd(), m, fds).map_err(NoAnswer::os)?;
        let (reply, fds, _) = loop {
            match nk_attach::recv(connection.as_raw_fd(), false) {
                Err(RecvError::Os(libc::EAGAIN)) => self.passes()?,
                Err(RecvError::Os(e)) => return Err(NoAnswer::os(e)),
                Err(RecvError::Closed) => return Err(NoAnswer::Ended),
                Err(RecvError::Malformed) => {
                    return Err(NoAnswer::Failed("it is of another version".to_owned()));
                }
                Ok(answer) => break answer,
            }
        };
        match reply.status {
            0 => Ok((reply, fds)),
            errno => {
                let why = reply.text().filter(|t| !t.is_empty()).map(harmless);
                let os = || std::io::Error::from_raw_os_error(errno).to_string();
                Err(NoAnswer::Refused(errno, why.unwrap_or_else(os)))
            }
        }
    }

    /// A moment has passed without an answer.
    fn passes(&mut self) -> Result<(), NoAnswer> {
        self.passed += 1;
        if self.passed == 1 {
            eprintln!(
                "nk: the daemon at {} does not answer: it hangs, or was killed and is to be started again; waiting",
                self.socket.display()
            );
        }
        match self.moments_max {
            Some(max) if self.passed >= max => {
                Err(NoAnswer::Failed(format!("none in {} s", u64::from(max) * MOMENT.as_secs())))
            }
            _ => Ok(()),
        }
    }
}

/// Sends one request that has no descriptors, and gets what comes with the answer.
pub(crate) fn request(socket: &Path, kind: Kind, text: &str) -> Result<Fds, NoAnswer> {
    let mut asker = Asker::new(socket, Some(MOMENTS_MAX));
    let connection = asker.connect()?;
    Ok(asker.ask(&connection, &Message::new(kind).with_text(text), &[])?.1)
}

/// One daemon's answer to a question.
pub(crate) fn question(socket: &Path, question: &str) -> Result<Value, NoAnswer> {
    let failed = |e: &dyn fmt::Display| NoAnswer::Failed(format!("an odd answer: {e}"));
    let mut fds = request(socket, Kind::Query, question)?;
    let memfd = sys::take(&mut fds, 0).ok_or_else(|| failed(&"nothing"))?;
    let text = read(memfd).map_err(|e| failed(&e))?;
    serde_json::from_str(&text).map_err(|e| failed(&e))
}

/// One daemon's answer that is a list.
pub(crate) fn list(socket: &Path, what: &str) -> Result<Vec<Value>, NoAnswer> {
    match question(socket, what)? {
        Value::Array(rows) => Ok(rows),
        _ => Err(NoAnswer::Failed("an odd answer: no list".to_owned())),
    }
}

/// Nothing but a memfd has seals: a pipe, a device or a file of who knows what file system could be read for ever.
fn read(memfd: OwnedFd) -> std::io::Result<String> {
    rustix::fs::fcntl_get_seals(&memfd)?;
    let mut text = String::new();
    std::fs::File::from(memfd).take(ANSWER_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Words that may be anybody's, for a terminal.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_memfd_is_read() {
        let zeros = std::fs::File::open("/dev/zero").expect("zeros").into();
        assert!(read(zeros).is_err());
        let memfd = sys::memfd_with(b"[1]").expect("a memfd");
        assert_eq!(read(memfd).expect("read"), "[1]");
    }

    #[test]
    fn words_do_nothing_to_a_terminal() {
        assert_eq!(harmless("a\x1b[2Jb\u{9b}c ü"), "a?[2Jb?c ü");
    }
}
