//! The models. Each is one function, so that `tests/loom.rs` runs it as it is and `tests/mutations.rs` with weakened code.

pub mod rings;
pub mod shared;
pub mod sockets;
pub mod streams;
pub mod wakeups;
