//! The resolver: a process that answers one guest's questions about names, in the network namespace of that guest's sockets.
//!
//! The daemon starts it at a guest's first question and hands it connections to the guest's processes; what is asked and answered
//! on them the daemon never sees. It calls the C library's own functions, so nsswitch.conf, hosts and resolv.conf are the host's
//! (see `confine` for those of a named namespace), and ends when nobody has asked for a while.
//!
//! | module | what |
//! |---|---|
//! | `confine` | into the namespace, and out of every privilege |
//! | `serve` | connections, worker threads, limits |
//! | `lookup` | a question to the C library, its answer to a packet |

mod confine;
mod interfaces;
mod lookup;
pub mod serve;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nk_attach::Kind;

use crate::sys::{self, Mapping};

/// Bytes of the counters.
const COUNTERS_LEN: usize = 4096;

/// What a resolver counts, in memory that it shares with the daemon: information, and nothing rests on it.
#[derive(Debug)]
pub struct Counters {
    /// The memory, to be handed to a resolver.
    pub memfd: OwnedFd,
    mapping: Mapping,
}

/// One of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Questions that got an answer other than "try again".
    Answered,
    /// Questions that ended with "try again": a name server did not answer, or it said so.
    TryAgain,
    /// Connections refused because too many were waiting.
    Busy,
    /// Connections on which no question came.
    Malformed,
}

impl Counters {
    /// Fresh ones.
    ///
    /// # Errors
    /// Those of memfd_create and mmap.
    pub fn new() -> io::Result<Counters> {
        Counters::map(sys::region("nk-names", COUNTERS_LEN)?)
    }

    /// Those that exist.
    ///
    /// # Errors
    /// Those of mmap.
    pub fn map(memfd: OwnedFd) -> io::Result<Counters> {
        let mapping = Mapping::new(&memfd, COUNTERS_LEN)?;
        Ok(Counters { memfd, mapping })
    }

    fn cell(&self, c: Counter) -> &AtomicU64 {
        // SAFETY: the mapping is page-aligned, has room for all counters, and lives as long as `self`; both sides use atomics.
        unsafe { self.mapping.base().cast::<AtomicU64>().add(c as usize).as_ref() }
    }

    /// Its value.
    #[must_use]
    pub fn read(&self, c: Counter) -> u64 {
        self.cell(c).load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, c: Counter) {
        self.cell(c).fetch_add(1, Ordering::Relaxed);
    }
}

/// `nk resolver`: answers until the daemon closes its end, or nobody has asked for a while.
///
/// # Errors
/// When the namespace cannot be entered, a privilege cannot be given up, or a lookup hangs.
pub fn run() -> io::Result<()> {
    sys::name_thread(c"nk-resolver");
    let control = crate::spawn::passed()?;
    let odd = || io::Error::other("the daemon's first message is none that a resolver knows");
    let (m, mut fds, _) = nk_attach::recv(control.as_raw_fd(), false).map_err(|_| odd())?;
    let (Some(netns), Some(memfd)) = (sys::take(&mut fds, 0), sys::take(&mut fds, 1)) else {
        return Err(odd());
    };
    if Kind::from_u32(m.kind) != Some(Kind::Names) {
        return Err(odd());
    }
    let counters = Arc::new(Counters::map(memfd)?);
    confine::enter(&netns, m.a as u16)?;
    drop(netns);
    serve::serve(&control, &counters)
}

#[cfg(test)]
mod tests;
