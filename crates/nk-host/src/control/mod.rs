//! What the control thread decides, apart from how it is done: no I/O, no clock, nothing of a configuration.
//!
//! Each is driven by the daemon ([`crate::server`]), with processes, descriptors and messages, and by the simulation
//! (`nk-models`, `played`), with a host in memory, injected faults and a seed.
//!
//! | module | what |
//! |---|---|
//! | [`members`] | who is in a guest, who may be, and when it ends |
//! | [`attach`] | processes that join it, and what their ends free |
//! | [`adoption`] | what goes on when another daemon takes over |
//! | [`place`] | on which NSMs a guest is |
//! | [`restarts`] | when NSM processes and the keeper are started again |
//! | [`moves`] | a move from one to another, and what the death of an NSM means for who is there |
//! | [`in_time`] | how long the present NSM is waited for |
//! | [`reload`] | what the configuration, read again, changes |
//! | [`spread`] | which of several NSMs a guest's next sockets go to |

pub mod adoption;
pub mod attach;
pub mod in_time;
pub mod members;
pub mod moves;
pub mod place;
pub mod reload;
pub mod restarts;
pub mod spread;
