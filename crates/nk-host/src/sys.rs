//! The syscalls that the host's side needs, as small safe functions. Where rustix has the call it is used, and there is nothing unsafe
//! here.
//!
//! | module | what |
//! |---|---|
//! | `descriptor` | flags, copies, what a descriptor is |
//! | `epoll` | waiting for many |
//! | `memory` | memory that is shared: memfds and mappings |
//! | `process` | processes, threads, signals; what they may use |
//! | `socket` | Unix sockets, and who is at the other end |
//! | `wake` | eventfds and futexes |

mod descriptor;
mod epoll;
mod memory;
pub(crate) mod process;
mod socket;
mod wake;

use std::io;

pub use descriptor::{identity, is_netns, set_blocking, set_nonblocking, take};
pub use epoll::Epoll;
pub use memory::{Mapping, len, memfd_with, one_heap, region};
pub(crate) use process::{
    Stay, cores_online, cpu, end_child, kill, kill_child, no_new_privileges, pin, reap,
    set_capabilities,
};
pub use process::{
    drain_signals, group, has_ended, name_thread, pidfd, raise_fd_limit, random, signals,
};
pub use socket::{
    accept, connect, connect_within, is_hung_up, listen_at, pass_credentials, peer_credentials,
    peer_groups, remove_socket, seqpacket_pair, set_receive_timeout, try_connect,
};
pub(crate) use socket::{peek_at_start, set_send_timeout};
pub use wake::{drain, eventfd, futex_wake, futex_wake_all, is_eventfd, ring};

pub(crate) fn check(r: libc::c_int) -> io::Result<libc::c_int> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}
