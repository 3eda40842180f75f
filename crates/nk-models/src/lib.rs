//! How the lock-free algorithms of `nk-device` and `nk-guestlib` are shown to be right: loom runs the shipped code under every
//! interleaving and every value that the memory model lets a load see.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p nk-models --target-dir target/loom
//! ```
//! | module | what |
//! |---|---|
//! | `models::rings` | NQE rings: publish, wrap, full, two producers; grants |
//! | `models::streams` | descriptor rings: helping, wrap, a killed publisher; two readers |
//! | `models::sockets` | who holds a socket, accept, teardown during a send, watchers, errors |
//! | `models::wakeups` | every pair of "look again before sleeping" and "wake whoever sleeps" |
//!
//! A model that cannot fail shows nothing: `tests/mutations.rs` runs them with all fences, or all orderings, taken out of the code
//! under test, and wants each to fail. Without `--cfg loom` the crate is the property tests in `tests/`.

#[cfg(not(loom))]
pub mod attach;
#[cfg(loom)]
pub mod harness;
#[cfg(loom)]
pub mod models;
#[cfg(not(loom))]
pub mod played;
