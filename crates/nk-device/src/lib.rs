//! The NK device (paper §4.1): one shared-memory region per guest, and one per NSM.
//!
//! This crate is the layout and the lock-free algorithms over it; nothing else. It is `no_std`, allocates nothing,
//! and is used unchanged by the process shell, the kernel module, CoreEngine and ServiceLib.
//!
//! | module | what |
//! |---|---|
//! | [`nqe`] | NetKernel queue element, 32 bytes |
//! | [`ring`] | ring of NQEs: many producers of one process or one, one consumer |
//! | [`stream`] | descriptor rings of a socket: lock-free publish, lock-free consume |
//! | [`datagram`] | a datagram's header, and the chunks that it lies in |
//! | [`grant`] | what the host leases to a process: chunks and socket ids |
//! | [`cell`] | one socket as both sides see it |
//! | [`row`] | one guest process |
//! | [`qset`] | one queue set |
//! | [`addr`] | socket addresses |
//! | [`errno`] | Linux's numbers |
//! | [`bucket`] | token buckets, by which rates are kept |
//! | [`header`] | version, geometry, doorbells |
//! | [`kept`] | what a service that outlived its engine tells the next one |
//! | [`counters`] | what is counted of a guest: memory of the host's alone, which outlives who counts |
//! | [`ledger`] | which chunk is whose, where several services share a pool: memory of the host's alone |
//! | [`patience`] | the waiting policy: when to look again rather than sleep |
//! | [`device`] | a mapped region: bounds-checked access to all of these |
//!
//! Every field has one writer while a socket, row or queue set is in use: `guest`, `service` (ServiceLib in the NSM) or
//! `engine` (CoreEngine). While it is free, it belongs to the engine, which zeroes it before handing it out. What
//! the guest writes is a hint to the host: read once, checked, and used from the copy.
//!
//! Under `--cfg loom` the geometry shrinks (two descriptors a socket), so that models see every wrap.
#![no_std]

pub mod addr;
pub mod bucket;
pub mod cell;
pub mod counters;
pub mod datagram;
pub mod device;
pub mod errno;
pub mod grant;
pub mod header;
pub mod kept;
pub mod ledger;
#[cfg(loom)]
pub mod model;
pub mod nqe;
pub mod patience;
pub mod qset;
pub mod ring;
pub mod row;
pub mod stream;
pub mod sync;

pub use addr::{Addr, AddrCell};
pub use cell::Cell;
pub use counters::{Counters, SharedCounters, SharedTotals, Totals};
pub use device::{Device, Layout};
pub use ledger::Ledger;
pub use nqe::{Nqe, Op};
pub use qset::Qset;
pub use row::Row;

/// Bytes of a chunk of the pool.
pub const CHUNK_SIZE: usize = 32 * 1024;
/// Descriptors in each direction of a socket.
pub const STREAM_SLOTS: usize = if cfg!(loom) { 2 } else { 64 };
/// Rows (processes) that a guest can have. Row 0 is the engine's own hold row, or a VM's kernel.
pub const ROWS_MAX: usize = if cfg!(loom) { 128 } else { 512 };
/// Words of the holders bitmap.
pub const HOLDER_WORDS: usize = ROWS_MAX / 64;
/// Watchers named in one cell; more than these set [`Cell::watch_overflow`].
pub const WATCH_SLOTS: usize = if cfg!(loom) { 2 } else { 15 };
