//! epoll, poll and select over NetKernel sockets and everything else.
//!
//! An epoll instance is a kernel epoll, and, once it has a socket, private state in user space: its interest, a queue of what may be
//! ready, and a queue set whose doorbell (an eventfd) is a member of the kernel epoll, as is the process's control socket, for its end. Kernel descriptors are the kernel's
//! business; stand-ins never enter it (they would report HUP). Reporting costs no system call for sockets; sleeping is
//! the kernel's own epoll_pwait, so masks, EINTR and time limits are natively exact.
//!
//! | module | what |
//! |---|---|
//! | `exports` | the names of the C library |
//! | `ctl`, `wait` | epoll_ctl, epoll_wait |
//! | `interest` | entries and the ready queue: plain data, no system calls |
//! | `instance` | instances, their life, their lock, fork |
//! | `inherit`, `leave` | an epoll that another process shares, and what hangs together with it |
//! | `nested` | an epoll inside an epoll or poll |
//! | `poll`, `select`, `slots` | poll and select, and the queue sets they sleep on |
//! | `door` | a queue set: receive ring, sleep word, doorbell |
//! | `grants` | waiting for chunks |
//! | `look` | one look at a socket |
//! | `native`, `lock` | system calls and time limits; the lock |
//!
//! # No wake-up is lost
//! Each pair below stores one thing, fences (SeqCst) and loads what the other stores, so at least one sees the other:
//! 1. watch against change: ADD, MOD and poll store the cell's watch entry, fence, look at the socket; the service changes the
//!    socket, fences, looks for watchers. Either the look sees the change, or an event NQE comes.
//! 2. sleep against push: a sleeper stores `sleeping`, fences, looks at its receive ring (poll: at all its sockets); the engine
//!    pushes, fences, reads `sleeping`. Either the sleeper does not sleep, or its doorbell rings. The engine never clears
//!    the word. Sleepers of one instance change it under the lock; those of the primary queue set count, and whoever
//!    clears it looks at the count again and, if somebody came meanwhile, sets it and rings.
//! 3. ring against sleep: the doorbell is edge-triggered in the kernel epoll and never read there, so a ring between the look and
//!    epoll_pwait stays on the kernel's list and epoll_pwait returns at once.
//! 4. one doorbell, many threads: the kernel wakes one. Whoever takes the mark takes all news off the ring, reports
//!    what it can, and rings again when something is left and another thread sleeps (`pass_on`); so does ADD or MOD
//!    of a ready socket. A mark taken on the way (asking the kernel for its members' events) is treated alike.
//! 5. full ring: the engine bumps `overflow` before it reads `sleeping`; a sleeper looks at it after it stored `sleeping`. A change of
//!    it, of the device's epoch or of the engine's state queues every entry.
//! 6. first socket against waiters: `serve` stores that the instance serves, then counts threads in the kernel; those count themselves,
//!    then look. `serve` rings once; a thread that was in the kernel finds the mark and goes on as one that knows.
//! 7. room to write: a look that finds none bumps the cell's `tx_want`, fences, looks again; the service moves `tx_head`,
//!    fences, reads `tx_want`. Chunks: see `grants`.
//! 8. close against everything: the last close of a socket pushes its id on a lock-free list and tries the lock; if it is taken, its
//!    holder finds the list on its way out, because it frees the lock before it looks and the closer pushes before it tries.
//! 9. one kernel epoll, many processes: who finds the mark of another process leaves that epoll for a copy of its own, and gives the edge back
//!    (`inherit`). Who goes to wait in a shared one counts, fences and looks whether it was left; who leaves it says so, fences and looks at the
//!    count (`leave`). After a fork in a handler the child never writes the word of its parent's sleep.
//!
//! # Edges
//! An edge-triggered entry remembers the cell's wake words from just before its last look. The service changes the socket,
//! then bumps the word, then sends the event; so an event whose word is the remembered one tells what was already seen,
//! and is no edge. An edge is never lost, since the words are read before the socket is.

mod ctl;
mod door;
pub mod exports;
mod grants;
mod inherit;
mod instance;
mod interest;
mod leave;
mod lock;
mod look;
mod native;
mod nested;
mod poll;
mod select;
mod slots;
#[cfg(test)]
mod tests;
mod wait;

pub use grants::note_shortage;
pub use instance::{closed as close_epoll, duplicated as dup_epoll, internal_moved};

use crate::process::Process;

pub(crate) const EPOLLIN: u32 = libc::EPOLLIN as u32;
pub(crate) const EPOLLOUT: u32 = libc::EPOLLOUT as u32;
pub(crate) const EPOLLERR: u32 = libc::EPOLLERR as u32;
pub(crate) const EPOLLHUP: u32 = libc::EPOLLHUP as u32;
pub(crate) const EPOLLWRNORM: u32 = libc::EPOLLWRNORM as u32;
pub(crate) const EPOLLWRBAND: u32 = libc::EPOLLWRBAND as u32;
pub(crate) const EPOLLEXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;
pub(crate) const EPOLLWAKEUP: u32 = libc::EPOLLWAKEUP as u32;
pub(crate) const EPOLLONESHOT: u32 = libc::EPOLLONESHOT as u32;
pub(crate) const EPOLLET: u32 = libc::EPOLLET as u32;

/// The last descriptor of this process for the socket is gone: its interest goes with it. Before the holder bit is cleared. Safe in signal
/// handlers; never waits.
pub fn socket_gone(p: &Process, id: u32) {
    instance::socket_gone(p, id);
}

/// Before the native fork, with the gate closed and signals blocked.
pub fn before_fork() {
    instance::before_fork();
}

/// After it, in the parent (also when it failed).
pub fn after_fork() {
    instance::after_fork();
}

/// After it, in the child; also after an attach.
pub fn reset_after_fork(_p: &Process) {
    grants::reset();
    slots::reset_after_fork();
    instance::reset_after_fork();
}
