//! One request to a daemon, and its answer; and which daemons there are to ask.
//!
//! A daemon that was killed leaves its socket to its keeper: who connects then waits for the next daemon, and is told that after a moment. What a
//! private daemon says is any user's word: root asks these too, so an answer is bounded, and its words reach no terminal as they are.

use std::cell::Cell;
use std::fmt;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

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
/// So long daemons of other users are asked, all together: any user can have as many as he likes, which are silent.
const OTHERS_TIME: Duration = Duration::from_secs(3);
/// Bytes that are read of their answers, all together. A few bytes of JSON take a hundred in memory.
const OTHERS_BYTES: u64 = 16 << 20;
/// Rows of such an answer: each is a line of many words.
const OTHERS_ROWS: usize = 1 << 14;

/// Which daemon.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Engine {
    /// Attach socket of the only daemon to ask [default: that at /run/netkernel/nk.sock and one's own private ones; as root, for questions, those of
    /// all users]
    #[arg(long, value_name = "SOCKET")]
    engine: Option<PathBuf>,
}

impl Engine {
    /// The daemon that is named, else all that there may be: one's own first, whose answers no other user's can hide.
    fn reachable(&self, whose: Whose) -> Vec<Asked> {
        let own = |socket| Asked { socket, others: None };
        if let Some(p) = &self.engine {
            return vec![own(p.clone())];
        }
        let mut all = vec![PathBuf::from(DEFAULT_SOCKET)];
        all.extend(private::sockets());
        let mut others = Vec::new();
        if whose == Whose::All && rustix::process::geteuid().is_root() {
            others = private::sockets_of_all_users();
            others.retain(|socket| !all.contains(socket));
        }
        let bounds =
            Rc::new(Others { until: Instant::now() + OTHERS_TIME, bytes: Cell::new(OTHERS_BYTES) });
        let others =
            others.into_iter().map(|socket| Asked { socket, others: Some(Rc::clone(&bounds)) });
        all.into_iter().map(own).chain(others).collect()
    }

    /// Asks each, until one has an answer: that one's. `None`: they all say that it is not theirs (ESRCH).
    ///
    /// # Errors
    /// Where one refuses, or where none has an answer and one does not speak, or not with this user.
    pub(crate) fn first<T>(
        &self,
        whose: Whose,
        ask: impl Fn(&Asked) -> Result<T, NoAnswer>,
    ) -> Result<Option<T>, Failure> {
        let mut silent = None;
        for asked in self.reachable(whose) {
            match ask(&asked) {
                Ok(answer) => return Ok(Some(answer)),
                Err(NoAnswer::Refused(libc::ESRCH, _)) => {}
                Err(NoAnswer::Nobody(_)) if self.engine.is_none() => {}
                Err(e @ NoAnswer::Refused(errno, _))
                    if errno != libc::EPERM && asked.others.is_none() =>
                {
                    return Err(e.at(&asked.socket));
                }
                Err(e) => silent = silent.or(Some(e.at(&asked.socket))),
            }
        }
        silent.map_or(Ok(None), Err)
    }

    /// The answers of all, each with the socket of who gave it, and why there is none of those that do not answer.
    pub(crate) fn all<T>(
        &self,
        ask: impl Fn(&Asked) -> Result<T, NoAnswer>,
    ) -> (Vec<(PathBuf, T)>, Result<(), Failure>) {
        let (mut answers, mut whole) = (Vec::new(), Ok(()));
        for asked in self.reachable(Whose::All) {
            match ask(&asked) {
                Ok(answer) => answers.push((asked.socket, answer)),
                // There need not be a daemon on the default socket, and a private one may have just ended.
                Err(NoAnswer::Nobody(_)) if self.engine.is_none() => {}
                Err(e) => whole = Err(e.at(&asked.socket)),
            }
        }
        (answers, whole)
    }
}

/// Whose daemons are asked where none is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The host's, and one's own private ones. An order goes to no other: who takes it would be believed to have carried it out.
    Own,
    /// As root those of all users as well.
    All,
}

/// A daemon that is asked.
#[derive(Debug)]
pub(crate) struct Asked {
    socket: PathBuf,
    /// It is another user's.
    others: Option<Rc<Others>>,
}

/// What is left for daemons of other users.
#[derive(Debug)]
struct Others {
    until: Instant,
    bytes: Cell<u64>,
}

impl Asked {
    /// Sends a request that has no descriptors, and gets what comes with the answer.
    pub(crate) fn request(&self, kind: Kind, text: &str) -> Result<Fds, NoAnswer> {
        match &self.others {
            Some(o) if Instant::now() >= o.until => {
                Err(NoAnswer::Failed("no time was left for daemons of other users".to_owned()))
            }
            Some(_) => request_within(&self.socket, 1, kind, text),
            None => request(&self.socket, kind, text),
        }
    }

    /// The answer to a question.
    pub(crate) fn question(&self, question: &str) -> Result<Value, NoAnswer> {
        let failed = |e: &dyn fmt::Display| NoAnswer::Failed(format!("an odd answer: {e}"));
        let mut fds = self.request(Kind::Query, question)?;
        let memfd = sys::take(&mut fds, 0).ok_or_else(|| failed(&"nothing"))?;
        let max = self.others.as_ref().map_or(ANSWER_MAX, |o| o.bytes.get());
        let text = read(memfd, max).map_err(|e| failed(&e))?;
        if let Some(o) = &self.others {
            o.bytes.set(max - text.len() as u64);
        }
        serde_json::from_str(&text).map_err(|e| failed(&e))
    }

    /// The answer that is a list.
    pub(crate) fn list(&self, what: &str) -> Result<Vec<Value>, NoAnswer> {
        match self.question(what)? {
            Value::Array(rows) if self.others.is_none() || rows.len() <= OTHERS_ROWS => Ok(rows),
            _ => Err(NoAnswer::Failed("an odd answer: no list, or too long a one".to_owned())),
        }
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
    request_within(socket, MOMENTS_MAX, kind, text)
}

fn request_within(socket: &Path, moments: u32, kind: Kind, text: &str) -> Result<Fds, NoAnswer> {
    let mut asker = Asker::new(socket, Some(moments));
    let connection = asker.connect()?;
    Ok(asker.ask(&connection, &Message::new(kind).with_text(text), &[])?.1)
}

/// Nothing but a memfd has seals: a pipe, a device or a file of who knows what file system could be read for ever.
fn read(memfd: OwnedFd, max: u64) -> std::io::Result<String> {
    rustix::fs::fcntl_get_seals(&memfd)?;
    let mut text = String::new();
    std::fs::File::from(memfd).take(max).read_to_string(&mut text)?;
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
        assert!(read(zeros, 9).is_err());
        let memfd = sys::memfd_with(b"[1]").expect("a memfd");
        assert_eq!(read(memfd, 9).expect("read"), "[1]");
    }

    #[test]
    fn words_do_nothing_to_a_terminal() {
        assert_eq!(harmless("a\x1b[2Jb\u{9b}c ü"), "a?[2Jb?c ü");
    }
}
