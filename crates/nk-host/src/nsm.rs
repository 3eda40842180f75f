//! The kernel-stack NSM: made for the poll thread, or run as the process `nk nsm`.
//!
//! The process has three connections: its NSM device with an eventfd each way, a control socket on which the daemon tells of
//! guests and it tells of listeners, and a socket to the broker. It never enters a namespace and never sees another guest's
//! region than those it was given. It outlives its daemon for some time, so that the next one can go on with it.

mod broker;
mod confine;
mod process;
mod totals;

pub use broker::{Leave, serve_broker};
pub use process::run;
pub use totals::NsmTotals;

use std::io;

use nk_servicelib::{Errno, GuestStats};
use nk_stack_kernel::{KernelStack, ListenerKeeper};

use crate::config::Io;

/// Commands of the daemon: word a of a [`nk_attach::Kind::Nsm`] message. Each is answered with the same word and a status.
pub mod command {
    /// b = how it calls the kernel, c = seconds for which it outlives its daemon, text = CPUs; the NSM's device, its doorbell, the
    /// engine's doorbell, the broker's socket, what it counts in ([`super::NsmTotals`]).
    pub const START: u64 = 1;
    /// b = guest, c = namespace, d = flags of its making; its memfd. Where other NSMs have a part in its chunks also the ledger,
    /// with text = this NSM's number there.
    pub const ADD_GUEST: u64 = 2;
    /// b = guest.
    pub const REMOVE_GUEST: u64 = 3;
    /// b = key, c = backlog; the socket.
    pub const ADOPT_LISTENER: u64 = 4;
    /// b = guest; answered with the counters as text.
    pub const STATS: u64 = 5;
    /// b = guest, text = its limits.
    pub const LIMITS: u64 = 6;
    /// Another daemon takes over. b = [`super::PROTOCOL`], c = a number of this daemon's, d = seconds as in [`START`]; a device that
    /// nobody has used, and doorbells and socket as in [`START`], and a memfd. Answered with c, and d = bytes of the memfd: what the service has
    /// (`nk_engine::KeptGuest::parse`).
    pub const ADOPT: u64 = 7;
    /// b = guest, text = this NSM's number in the ledger; the ledger. Another NSM has the guest's new sockets from now on. What is given away is told first ([`super::note::MOVED`]). EAGAIN: not now.
    pub const LEAVE: u64 = 8;
    /// b = guest: this NSM has the guest's new sockets from now on.
    pub const ENTER: u64 = 9;
    /// b = key, text = how it was left; the socket, which another NSM gave away. Before it, for what it has received: [`UNREAD`].
    pub const ADOPT_MOVED: u64 = 10;
    /// b = guest: no other NSM has a part in its chunks any more.
    pub const ALONE: u64 = 11;
    /// b = key, text = chunks of some datagrams that wait to be read ([`super::unread_to_texts`]).
    pub const UNREAD: u64 = 12;
    /// b = guest, d = bytes of the memfd: the options that datagram sockets which another NSM had are to have again, of all of them
    /// (`keeper::options_to_text`).
    pub const OPTIONS: u64 = 13;
    /// Never sent: what the process's own threads say to each other when daemon and keeper are gone.
    pub const END: u64 = 14;
}

/// What daemon and NSM process say to each other, on the control socket and over the device. A daemon goes on only with a process that
/// speaks as it does.
pub const PROTOCOL: u64 = 7;

/// What the NSM reports unasked.
pub mod note {
    /// b = key, c = backlog, text = address; the socket.
    pub const LISTENER: u64 = 100;
    /// b = key.
    pub const LISTENER_GONE: u64 = 101;
    /// b = key, text = how it is left; the socket: it is given away.
    pub const MOVED: u64 = 102;
    /// b = key, text = chunks of some datagrams that wait to be read; the socket's [`MOVED`] follows.
    pub const UNREAD: u64 = 103;
    /// b = key of a datagram socket, text = an option that it has from now on.
    pub const OPTION: u64 = 104;
    /// b = key of a datagram socket that was closed.
    pub const OPTIONS_GONE: u64 = 105;
}

/// The kernel stack over a broker; listeners are offered to the keeper where there is one.
///
/// # Errors
/// Those of epoll_create1; where io_uring is a must, those that keep it from being used.
pub fn kernel_stack(
    broker: Box<dyn nk_stack_kernel::Broker + Send>,
    keeper: Option<Box<dyn ListenerKeeper + Send>>,
    how: Io,
) -> io::Result<KernelStack> {
    let os = |e: Errno| io::Error::from_raw_os_error(e.0);
    let mut stack = KernelStack::new(broker, keeper).map_err(os)?;
    match (how, if how == Io::Epoll { Ok(()) } else { stack.use_io_uring().map_err(os) }) {
        (_, Ok(())) => {}
        (Io::Auto, Err(e)) => tracing::info!("io_uring cannot be used, epoll is: {e}"),
        (_, Err(e)) => {
            return Err(io::Error::new(e.kind(), format!("io = \"io_uring\": {e}")));
        }
    }
    Ok(stack)
}

/// Chunks of datagrams as texts that fit into a message each.
#[must_use]
pub fn unread_to_texts(unread: &[Vec<u32>]) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for chunks in unread {
        let word = chunks.iter().map(|c| format!("{c:x}")).collect::<Vec<_>>().join(",");
        match texts.last_mut() {
            Some(t) if t.len() + 1 + word.len() <= nk_attach::TEXT_MAX => {
                t.push(' ');
                t.push_str(&word);
            }
            _ => texts.push(word),
        }
    }
    texts
}

/// Undoes one of [`unread_to_texts`].
#[must_use]
pub fn unread_from_text(text: &str) -> Option<Vec<Vec<u32>>> {
    let chunks = |word: &str| word.split(',').map(|c| u32::from_str_radix(c, 16).ok()).collect();
    text.split(' ').map(chunks).collect()
}

/// Counters as text, in the order of [`GuestStats`]' fields.
#[must_use]
pub fn format_stats(s: &GuestStats) -> String {
    [
        s.sockets,
        s.orphans,
        s.chunks_free,
        s.chunks_leased,
        s.chunks_tx,
        s.chunks_rx,
        s.bytes_sent,
        s.bytes_received,
        s.violations,
        s.accept_failures,
        s.datagrams_refused,
        s.datagrams_dropped,
        s.out_held,
        s.out_held_ms,
        s.in_held,
        s.in_held_ms,
    ]
    .map(|n| format!("{n:x}"))
    .join(" ")
}

/// Undoes [`format_stats`].
#[must_use]
pub fn parse_stats(text: &str) -> Option<GuestStats> {
    let n: Vec<u64> =
        text.split(' ').map(|w| u64::from_str_radix(w, 16).ok()).collect::<Option<_>>()?;
    let [
        sockets,
        orphans,
        chunks_free,
        chunks_leased,
        chunks_tx,
        chunks_rx,
        bytes_sent,
        bytes_received,
        violations,
        accept_failures,
        datagrams_refused,
        datagrams_dropped,
        out_held,
        out_held_ms,
        in_held,
        in_held_ms,
    ] = *<&[u64; 16]>::try_from(n.as_slice()).ok()?;
    Some(GuestStats {
        sockets,
        orphans,
        chunks_free,
        chunks_leased,
        chunks_tx,
        chunks_rx,
        bytes_sent,
        bytes_received,
        violations,
        accept_failures,
        datagrams_refused,
        datagrams_dropped,
        out_held,
        out_held_ms,
        in_held,
        in_held_ms,
    })
}

/// Confines this process as an NSM's is, and does one thing that an NSM must not do: for tests, to see that it is stopped.
///
/// # Errors
/// When it is not, or cannot be confined.
pub fn probe(what: &str) -> io::Result<()> {
    confine::probe(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_datagrams_survive() {
        let unread: Vec<Vec<u32>> =
            (0..32).map(|n| (0..=n % 4).map(|c| n << 16 | c).collect()).collect();
        let texts = unread_to_texts(&unread);
        assert!(texts.len() > 1 && texts.iter().all(|t| t.len() <= nk_attach::TEXT_MAX));
        let back: Vec<Vec<u32>> =
            texts.iter().flat_map(|t| unread_from_text(t).expect("right")).collect();
        assert_eq!(back, unread);
        assert_eq!((unread_to_texts(&[]).len(), unread_from_text("x")), (0, None));
    }

    #[test]
    fn counters_survive() {
        let s = GuestStats {
            sockets: 1,
            orphans: 2,
            chunks_free: 3,
            chunks_leased: 4,
            chunks_tx: 5,
            chunks_rx: 6,
            bytes_sent: u64::MAX,
            bytes_received: 8,
            violations: 9,
            accept_failures: 10,
            datagrams_refused: 11,
            datagrams_dropped: 12,
            out_held: 13,
            out_held_ms: 14,
            in_held: 15,
            in_held_ms: 16,
        };
        assert_eq!(parse_stats(&format_stats(&s)), Some(s));
        assert!(format_stats(&s).len() <= nk_attach::TEXT_MAX);
        assert_eq!(parse_stats("1 2"), None);
    }
}
