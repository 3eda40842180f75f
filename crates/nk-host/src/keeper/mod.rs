//! The keeper: a tiny process that holds what must outlive the daemon, and tells guests when the daemon died.
//!
//! It knows entries only: a class, a key, some words and descriptors. The daemon puts an entry before it answers the request
//! that made it necessary, and a new daemon takes all of them back. The daemon remembers them too, and when the keeper ends it
//! starts another with the same. This module is the daemon's end; [`process`] is the keeper.
//!
//! | module | what |
//! |---|---|
//! | [`entries`] | what is kept |
//! | [`book`] | how what the daemon knows stands there |
//! | [`link`] | what the daemon tells a keeper, and the next one |
//! | `connection` | the way to its process |
//! | [`state`] | what the keeper makes of what it is told, and of deaths |
//! | [`process`] | the keeper's process: descriptors around that |
//!
//! The simulation (`nk-models`, `played`) runs the first four.

pub mod book;
mod connection;
pub mod entries;
pub mod link;
mod listeners;
mod options;
pub mod process;
pub mod state;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nk_attach::{Kind, Message};

use crate::sys;
use connection::{Connection, TAKES_MAX};
use entries::Entries;
use link::{Link, complete};
pub use listeners::ListenerNotes;
pub(crate) use listeners::{format_addr, parse_addr};
use nk_servicelib::{Key, SetOption};
pub(crate) use options::{option_from_text, option_to_text, options_from_text, options_to_text};

/// The attach socket.
pub const CLASS_ATTACH: u64 = 1;
/// A guest: key = its id; c, d = token; text = uid, flags, limits, name; memfd, engine's eventfd, namespace, counters,
/// and, if it ever asked for a name, the resolver's counters.
pub const CLASS_GUEST: u64 = 2;
/// A process: key = guest << 16 | row; c = pid, d = what it has; control connection, pidfd. A forked child that has not said hello has
/// no pidfd.
pub const CLASS_PROCESS: u64 = 3;
/// In a process's entry: its control connection is among the descriptors.
pub(crate) const HAS_CONTROL: u64 = 1;
/// In a process's entry: its pidfd is the last descriptor.
pub(crate) const HAS_PIDFD: u64 = 2;
/// A queue set: key = guest << 32 | row << 16 | number; c = 1 for a primary one; its doorbell.
pub const CLASS_QSET: u64 = 4;
/// A hold: key = guest << 48 | serial; c = socket, d = generation; far end.
pub const CLASS_HOLD: u64 = 5;
/// A listener: key = [`nk_servicelib::Key::to_word`]; c = backlog; text = address; the socket.
pub const CLASS_LISTENER: u64 = 6;

/// An NSM process: key = its pid; c, d = what the daemon counted of it, and how it speaks; text = its name; the daemon's end of its
/// control socket, its pidfd.
pub const CLASS_NSM: u64 = 7;

/// What an NSM has sent and received in all: key = its number; text = its name; the memfd ([`crate::nsm::NsmTotals`]).
pub const CLASS_TOTALS: u64 = 8;

/// Options of a datagram socket, one of some classes from here on: key as a listener's; text = some of them.
const CLASS_OPTIONS: u64 = 16;

/// Word a of a [`Kind::Kept`] that asks for nothing: the keeper has been told everything, and acts on this daemon's death from now on.
const KEPT_COMPLETE: u64 = 1;
/// As above: no other daemon is to follow.
const KEPT_END: u64 = 2;
/// How long a keeper that closes connections without a word may take to end.
const ENDING_MAX: Duration = Duration::from_secs(1);
/// How long a keeper may take to answer. One that is stopped never does.
const ANSWER_MAX_S: u64 = 10;
/// Entries that the next keeper is told before somebody else may have the lock.
const TURN: usize = 64;
/// Between two turns of telling the next keeper: who waits to keep something has the lock by then.
const BREATH: Duration = Duration::from_micros(50);

/// What is kept.
#[derive(Debug)]
pub struct Entry<D = OwnedFd> {
    /// One of the `CLASS_` constants.
    pub class: u64,
    /// Unique within its class.
    pub key: u64,
    /// A word.
    pub c: u64,
    /// A word.
    pub d: u64,
    /// Text.
    pub text: String,
    /// Descriptors.
    pub fds: Vec<D>,
}

impl<D> Entry<D> {
    /// As it is told.
    #[must_use]
    pub fn new(m: &Message, fds: Vec<D>) -> Entry<D> {
        let text = m.text().unwrap_or("").to_owned();
        Entry { class: m.a, key: m.b, c: m.c, d: m.d, text, fds }
    }
}

/// The path of the keeper's socket beside an attach socket.
#[must_use]
pub fn socket_path(attach: &Path) -> PathBuf {
    let mut p = attach.as_os_str().to_owned();
    p.push(".keeper");
    p.into()
}

/// The daemon's end: the connection to its keeper, and a copy of what that one keeps. Shared by the control thread and the poll
/// thread: a message is one system call.
#[derive(Clone, Debug)]
pub struct Keeper(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Of the keeper's socket.
    path: PathBuf,
    private: Option<PathBuf>,
    program: &'static CStr,
    link: Mutex<Link<Connection>>,
}

impl Keeper {
    /// Connects to the keeper that a dead daemon left; `None` when there is none.
    ///
    /// # Errors
    /// EADDRINUSE when a living daemon has it; what it did not do where it does not answer.
    pub fn find(path: &Path) -> io::Result<Option<(Keeper, Vec<Entry>)>> {
        Keeper::find_in(path, ANSWER_MAX_S)
    }

    fn find_in(path: &Path, answer_max_s: u64) -> io::Result<Option<(Keeper, Vec<Entry>)>> {
        let end = Instant::now() + ENDING_MAX;
        loop {
            let Ok(socket) = sys::connect(path) else { return Ok(None) };
            sys::set_receive_timeout(&socket, answer_max_s)?;
            let mut copies = Entries::default();
            match take_back(&socket, &mut copies) {
                Ok((entries, pid)) => {
                    let connection = Connection::new(socket, pid, TAKES_MAX)?;
                    return Ok(Some((Keeper::new(path, None, connection, copies), entries)));
                }
                // It had nothing to keep and was about to end when this came: its path goes in a moment.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Starts a keeper. With `private`, guests are told that no other daemon will come, and the directory is removed.
    ///
    /// # Errors
    /// When its socket or the process cannot be made.
    pub fn start(path: &Path, private: Option<&Path>) -> io::Result<Keeper> {
        let connection = start_process(crate::spawn::THIS, path, private)?;
        complete(&connection)?;
        Ok(Keeper::new(path, private, connection, Entries::default()))
    }

    /// Starts another in place of one that ended, and gives it everything.
    ///
    /// # Errors
    /// When its socket or the process cannot be made, or it ends at once.
    pub fn restart(&self) -> io::Result<()> {
        let Shared { path, private, program, .. } = &*self.0;
        self.give_all(start_process(program, path, private.as_deref())?)
    }

    /// Gives the next keeper everything, some at a time: the poll thread may have something to keep meanwhile.
    fn give_all(&self, next: Connection) -> io::Result<()> {
        self.link().begin(next);
        while !self.link().give_some(TURN)? {
            std::thread::sleep(BREATH);
        }
        Ok(())
    }

    fn new(
        path: &Path,
        private: Option<&Path>,
        connection: Connection,
        entries: Entries<OwnedFd>,
    ) -> Keeper {
        let link = Mutex::new(Link::new(connection, entries));
        let private = private.map(Path::to_owned);
        let program = crate::spawn::THIS;
        Keeper(Arc::new(Shared { path: path.to_owned(), private, program, link }))
    }

    /// The next ones are this program's `keeper`, not this one's: for tests.
    #[must_use]
    pub fn started_by(mut self, program: &'static CStr) -> Keeper {
        if let Some(shared) = Arc::get_mut(&mut self.0) {
            shared.program = program;
        }
        self
    }

    fn link(&self) -> MutexGuard<'_, Link<Connection>> {
        self.0.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the connection to the present keeper.
    pub fn with_connection<R>(&self, act: impl FnOnce(BorrowedFd<'_>) -> R) -> R {
        act(self.link().connection.as_fd())
    }

    /// Keeps an entry ([`book`] makes it).
    pub fn keep(&self, entry: Message, fds: &[BorrowedFd<'_>]) {
        self.link().keep(entry, fds);
    }

    /// Keeps an entry no more.
    pub fn drop_entry(&self, class: u64, key: u64) {
        self.link().drop_entry(class, key);
    }

    /// When this daemon ends none is to follow: the keeper tells the guests, and ends.
    pub fn end(&self) {
        self.link().end();
    }

    /// Keeps an option of a datagram socket. [`Keeper::tell_options`] follows: guests set options as often as they like, and the keeper is
    /// told once of many.
    pub fn keep_option(&self, key: Key, option: &SetOption) {
        let mut link = self.link();
        if !link.options.has(key, option) {
            link.options.set(key, option);
        }
    }

    /// Keeps the options of a datagram socket no more. [`Keeper::tell_options`] follows.
    pub fn forget_options(&self, key: Key) {
        self.link().options.forget(key);
    }

    /// Tells the keeper how options are now, as far as that changed.
    pub fn tell_options(&self) {
        let mut link = self.link();
        for (key, texts) in link.options.take_changed() {
            for (part, class) in (CLASS_OPTIONS..CLASS_OPTIONS + options::PARTS).enumerate() {
                let known = link.entries.text(class, key);
                match texts.get(part) {
                    Some(text) if known == Some(text) => {}
                    Some(text) => {
                        link.keep(book::entry(class, key, (0, 0), text), &[]);
                    }
                    None if known.is_some() => link.drop_entry(class, key),
                    None => break,
                }
            }
        }
    }

    /// The options of a guest's datagram sockets.
    #[must_use]
    pub fn options_of(&self, guest: u16) -> Vec<(Key, Vec<SetOption>)> {
        self.link().options.of_guest(guest)
    }
}

/// Tells a second daemon that the first lives. Closed without a word it would look as if the keeper were ending.
fn refuse_second(daemon: RawFd) {
    let mut m = Message::new(Kind::Kept);
    m.status = libc::EADDRINUSE;
    let _ = nk_attach::try_send(daemon, &m, &[]);
}

/// Takes everything back from a keeper, and copies of it; also its pid.
fn take_back(
    keeper: &impl AsFd,
    copies: &mut Entries<OwnedFd>,
) -> io::Result<(Vec<Entry>, Option<i32>)> {
    let os = io::Error::from_raw_os_error;
    let fd = keeper.as_fd().as_raw_fd();
    sys::pass_credentials(keeper)?;
    match nk_attach::send(fd, &Message::new(Kind::Kept), &[]) {
        // One that has a daemon says so and closes, perhaps before it is asked.
        Ok(()) | Err(libc::EPIPE | libc::ECONNRESET) => {}
        Err(e) => return Err(os(e)),
    }
    let mut entries = Vec::new();
    let mut was_reset = false;
    loop {
        let (m, mut fds, who) = match nk_attach::recv(fd, false) {
            // It closed without having read the question; what it said before is there.
            Err(nk_attach::RecvError::Os(libc::ECONNRESET)) if !was_reset => {
                was_reset = true;
                continue;
            }
            r => r,
        }
        .map_err(|e| match e {
            nk_attach::RecvError::Closed | nk_attach::RecvError::Os(libc::ECONNRESET) => {
                io::ErrorKind::UnexpectedEof.into()
            }
            nk_attach::RecvError::Os(libc::EAGAIN) => io::Error::new(
                io::ErrorKind::TimedOut,
                "the keeper does not answer; is it stopped?",
            ),
            other => io::Error::other(format!("{other:?}")),
        })?;
        if m.status != 0 {
            return Err(os(m.status));
        }
        if m.a == 0 {
            return Ok((entries, who.map(|c| c.pid)));
        }
        // Who took the rest for all would end what it stands for, in the keeper as well.
        if fds.is_cut() {
            return Err(os(libc::EMFILE));
        }
        let fds: Vec<OwnedFd> =
            (0..nk_attach::FDS_MAX).map_while(|i| sys::take(&mut fds, i)).collect();
        copies.keep(m, fds.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?);
        entries.push(Entry::new(&m, fds));
    }
}

/// Starts the process and returns the connection to it, once it has answered.
fn start_process(program: &CStr, path: &Path, private: Option<&Path>) -> io::Result<Connection> {
    let _ = sys::remove_socket(path);
    let listener = sys::listen_at(path, 0o600)?;
    spawn(program, &listener, path, private)?;
    let socket = sys::connect(path)?;
    // From here on it is the keeper's alone: where that one cannot start, the connection breaks.
    drop(listener);
    sys::set_receive_timeout(&socket, ANSWER_MAX_S)?;
    let (_, pid) = take_back(&socket, &mut Entries::default())?;
    Connection::new(socket, pid, TAKES_MAX)
}

/// fork, setsid, fork, exec `nk keeper`.
fn spawn(
    program: &CStr,
    listener: &OwnedFd,
    path: &Path,
    private: Option<&Path>,
) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let dir = private.map(|d| CString::new(d.as_os_str().as_bytes())).transpose()?;
    let mut argv = vec![c"nk".as_ptr(), c"keeper".as_ptr(), path.as_ptr()];
    if let Some(d) = &dir {
        argv.push(d.as_ptr());
    }
    argv.push(std::ptr::null());
    // Not our stderr: whoever waits for its end must not wait for the keeper.
    crate::spawn::detached(program, listener.as_raw_fd(), &argv, Some(c"/dev/null"))
}

#[cfg(test)]
mod tests;
