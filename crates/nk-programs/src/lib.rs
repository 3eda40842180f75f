//! Real programs from Debian's packages, unmodified, run as guests of NetKernel and natively, and safety tests
//! that watch what is left behind.
//!
//! | module | what |
//! |---|---|
//! | [`world`] | one test's surroundings: a temporary directory, a daemon of its own, how guests are started |
//! | [`process`] | a started program: a process group, output in files, a bound on its time |
//! | [`procfs`] | what the kernel says about processes, their descriptors and their CPU time |
//! | [`isolation`] | no guest process holds a socket of the host, and no packet crossed the guest's namespace |
//! | [`leaks`] | what must be the same before and after: processes, the daemon's descriptors, shared memory |
//! | [`nginx`], [`redis`] | configured and started in the test's own directory |
//! | [`load`] | wrk and ab, and what they report |
//! | [`generator`] | loads that Debian has no program for, behind `nk-load` |
//! | [`suite`] | the list of tests, and running them |
//! | [`cases`], [`tenants`], [`safety`] | the tests themselves |
#![forbid(unsafe_code)]

pub mod cases;
pub mod generator;
pub mod isolation;
pub mod leaks;
pub mod load;
mod moves;
pub mod nginx;
mod nsms;
pub mod process;
pub mod procfs;
pub mod redis;
pub mod safety;
mod spread;
pub mod suite;
pub mod tenants;
pub mod world;

pub use world::{Mode, Side, World};
