//! The attach protocol: fixed-size messages with descriptors over a `SOCK_SEQPACKET` Unix socket.
//!
//! It is small, allocates nothing and uses raw syscalls, because GuestLib speaks it inside programs, also around fork and exec.
//! One message per packet; a request is answered by one message of the same kind, with `status` 0 or an errno.
//!
//! | kind | from → to | words and text | descriptors |
//! |---|---|---|---|
//! | [`Kind::CreateGuest`] | nk → daemon | a = flags; text = name, or empty | network namespace of its sockets |
//! | reply | | a = guest id, b, c = token; on failure text = why | |
//! | [`Kind::CreateGuest`] with [`CREATE_VM`] | VM starter → daemon | a = flags; text = name | network namespace, doorbell eventfd of queue set 0 |
//! | reply | | a = guest id, c = region length; the guest lives as long as this connection | device memfd, engine's eventfd |
//! | [`Kind::Attach`] | process → daemon | b, c = token | doorbell eventfd of the primary queue set |
//! | reply; asked again on the same connection, as before | | a = row, b = queue set, c = region length, d = 1 if the row was kept over exec, or may have been | device memfd, engine's eventfd |
//! | [`Kind::Fork`] | process → daemon | | child's doorbell eventfd, far end of the child's control socket |
//! | reply | | a = child's row, b = its queue set | |
//! | [`Kind::Hello`] | forked child → daemon | (credentials tell the pid); no reply | |
//! | [`Kind::ForkFailed`] | process → daemon | a = row that will have no process; no reply | |
//! | [`Kind::AddQset`] | process → daemon | | doorbell eventfd |
//! | reply | | a = queue set | |
//! | [`Kind::DropQset`] | process → daemon | a = queue set; no reply | |
//! | [`Kind::Hold`] | process → daemon | a = socket id, b = generation | far end of the stand-in pair |
//! | reply | | | |
//! | [`Kind::Settle`] | process → daemon | a = [`SETTLE_ASKS`]; what ended before this is to be over: whoever has reaped a process may take its ports | |
//! | reply | | a = 1 while sockets that ended processes had wait to be closed | |
//! | [`Kind::Names`] | process → daemon | a question about a name is to be asked | |
//! | reply | | | a connection to the guest's resolver, see [`names`] |
//! | [`Kind::Names`] | daemon → resolver | first: a = guest id | first: network namespace, counters; then: the other end of the connection, each |
//! | [`Kind::Query`] | nk → daemon | text = question | |
//! | reply | | a = length; on failure text = why | memfd with JSON |
//! | [`Kind::Order`] | nk → daemon | text = order: `limit GUEST KEY=N…` | |
//! | reply | | on failure text = why | |
//! | [`Kind::Socket`] | NSM process → broker | a = namespace key, b = family | |
//! | reply | | | the socket |
//! | [`Kind::Keep`] | daemon → keeper | a = class, b = key, c, d = words; text = more | what is to be kept; no reply |
//! | [`Kind::Drop`] | daemon → keeper | a = class, b = key; no reply | |
//! | [`Kind::Kept`] | daemon → keeper | | |
//! | reply | | as in Keep, one per entry; the last has class 0 | as in Keep |
//! | [`Kind::Nsm`] | daemon → NSM process | a = command, b = guest id, c, d = words | as the command says |
//!
//! The connection on which a process attached (or the socketpair made for a forked child) stays open: its end is the process's end.
#![cfg_attr(not(test), no_std)]
#![deny(missing_docs)]

pub mod env;
pub mod names;
mod socket;

pub use socket::{Credentials, Fds, RecvError, close_raw, connect, peek, recv, send, try_send};

/// Descriptors in one message, at most.
pub const FDS_MAX: usize = 8;
/// Bytes of text in a message.
pub const TEXT_MAX: usize = 216;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Make a guest.
    CreateGuest = 1,
    /// A process joins its guest.
    Attach = 2,
    /// A process is about to fork.
    Fork = 3,
    /// A forked child is there.
    Hello = 4,
    /// The fork failed.
    ForkFailed = 5,
    /// One more queue set.
    AddQset = 6,
    /// One queue set less.
    DropQset = 7,
    /// Hold a socket until the stand-in pair's last end is closed.
    Hold = 8,
    /// What is there: `guests`, `flows`, `why PID`, `stats`.
    Query = 9,
    /// Open a socket in a guest's namespace.
    Socket = 10,
    /// Keep an entry (it replaces one of the same class and key).
    Keep = 11,
    /// Keep an entry no more.
    Drop = 12,
    /// Give back every entry.
    Kept = 13,
    /// Control of an NSM process.
    Nsm = 14,
    /// A connection to the guest's resolver.
    Names = 15,
    /// The operator changes something.
    Order = 16,
    /// Processes that have ended are to be over.
    Settle = 17,
}

impl Kind {
    /// Parses a kind.
    #[must_use]
    pub fn from_u32(v: u32) -> Option<Kind> {
        Some(match v {
            1 => Kind::CreateGuest,
            2 => Kind::Attach,
            3 => Kind::Fork,
            4 => Kind::Hello,
            5 => Kind::ForkFailed,
            6 => Kind::AddQset,
            7 => Kind::DropQset,
            8 => Kind::Hold,
            9 => Kind::Query,
            10 => Kind::Socket,
            11 => Kind::Keep,
            12 => Kind::Drop,
            13 => Kind::Kept,
            14 => Kind::Nsm,
            15 => Kind::Names,
            16 => Kind::Order,
            17 => Kind::Settle,
            _ => return None,
        })
    }
}

/// Flag of [`Kind::CreateGuest`]: the guest is private to its creator and the daemon ends with it.
pub const CREATE_PRIVATE: u64 = 1;
/// Flag of [`Kind::CreateGuest`]: the guest stays in the caller's network namespace (`--share-net`).
pub const CREATE_SHARE_NET: u64 = 2;
/// Flag of [`Kind::CreateGuest`]: a VM guest: row 0 and queue set 0 are live from the start, no process attaches.
pub const CREATE_VM: u64 = 4;
/// Flag of [`Kind::CreateGuest`]: the network namespace was named (`--net`), and is not just the caller's own.
pub const CREATE_NET: u64 = 8;

/// [`Kind::Settle`]: the first word of the request. No reply has it, so that none passes as a request.
pub const SETTLE_ASKS: u64 = 2;

/// Protocol version; a peer of another version is refused.
pub const PROTOCOL: u32 = 3;

/// One message.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// A [`Kind`].
    pub kind: u32,
    /// In a reply: 0 or an errno.
    pub status: i32,
    /// Bytes used of `text`.
    pub text_len: u32,
    /// Which of a process's requests it is; the reply repeats it. A request that was asked of two daemons may be answered twice, and the second
    /// answer is none to the next request.
    pub serial: u64,
    /// First word.
    pub a: u64,
    /// Second word.
    pub b: u64,
    /// Third word.
    pub c: u64,
    /// Fourth word.
    pub d: u64,
    /// Name, question or error text, UTF-8.
    pub text: [u8; TEXT_MAX],
}

impl Message {
    /// An empty message of a kind.
    #[must_use]
    pub fn new(kind: Kind) -> Message {
        Message {
            protocol: PROTOCOL,
            kind: kind as u32,
            status: 0,
            text_len: 0,
            serial: 0,
            a: 0,
            b: 0,
            c: 0,
            d: 0,
            text: [0; TEXT_MAX],
        }
    }

    /// With text, cut at [`TEXT_MAX`] bytes.
    #[must_use]
    pub fn with_text(mut self, text: &str) -> Message {
        let mut n = text.len().min(TEXT_MAX);
        while !text.is_char_boundary(n) {
            n -= 1;
        }
        self.text[..n].copy_from_slice(&text.as_bytes()[..n]);
        self.text_len = n as u32;
        self
    }

    /// The text, if it is UTF-8.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        let n = (self.text_len as usize).min(TEXT_MAX);
        core::str::from_utf8(&self.text[..n]).ok()
    }
}
