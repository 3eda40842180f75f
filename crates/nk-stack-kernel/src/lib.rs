//! The kernel-stack NSM: Linux's TCP and UDP behind the [`nk_servicelib::Stack`] trait, over one edge-triggered epoll.
//!
//! | module | what |
//! |---|---|
//! | `stack` | [`KernelStack`] |
//! | `sys` | the syscalls, each with its errno |
//! | `datagram` | datagrams with their addresses and control messages |
//! | `ring` | many sends with one system call: io_uring |
//! | `address` | `sockaddr_storage` to and from [`nk_device::Addr`] |
//!
//! Sockets come from a [`Broker`], so that an NSM process needs no right to enter a network namespace; each listener is offered to
//! a [`ListenerKeeper`], so that it outlives the NSM.

mod address;
mod congestion;
mod datagram;
mod ring;
mod stack;
mod sys;

use std::os::fd::{BorrowedFd, OwnedFd};

use nk_device::Addr;
use nk_servicelib::{Errno, Key, Kind, SetOption};

pub use stack::KernelStack;

/// Opens sockets in network namespaces, because the NSM itself may not enter them.
pub trait Broker: core::fmt::Debug {
    /// A non-blocking, close-on-exec socket (TCP or UDP) of the address family in the namespace.
    ///
    /// # Errors
    /// The errno of socket(2), or what kept the broker from asking.
    fn open(&mut self, namespace: u64, family: u16, kind: Kind) -> Result<OwnedFd, Errno>;
}

/// Is offered what outlives the NSM: each listener, and the options of datagram sockets.
pub trait ListenerKeeper: core::fmt::Debug {
    /// A listener came to be (or changed its backlog). The descriptor is borrowed: duplicate it.
    fn keep(&mut self, key: Key, fd: BorrowedFd<'_>, local: &Addr, backlog: u32);
    /// The listener was closed by its guest.
    fn forget(&mut self, key: Key);
    /// A datagram socket has this option from now on: the next NSM is to set it again.
    fn keep_option(&mut self, key: Key, option: &SetOption);
    /// The datagram socket was closed.
    fn forget_options(&mut self, key: Key);
}

/// A broker that opens sockets in the namespace of the calling thread, whatever is asked for: for tests, and for a daemon whose
/// only guests use its own namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnNamespace;

impl Broker for OwnNamespace {
    fn open(&mut self, _namespace: u64, family: u16, kind: Kind) -> Result<OwnedFd, Errno> {
        sys::socket(family, kind)
    }
}
