//! The differential runner: one C program per behaviour, run natively and as a guest, and the two event
//! traces compared.
//!
//! A case is one file in `conformance/cases`; [`case`] finds and reads them, [`mod@compile`] builds them,
//! [`process`] runs one program with a bound on its time, [`suite`] runs every combination of native and
//! guest that a case has, and [`diff`] shows where two traces part. What a guest is, is a command prefix
//! (`nk run --`), so VMs and other stacks run the same cases. [`ports`] are of one run alone, so several runs do each other no harm.
#![forbid(unsafe_code)]

pub mod case;
pub mod compile;
pub mod diff;
pub mod ports;
pub mod process;
pub mod suite;

pub use case::{Case, Shape, discover};
pub use compile::compile;
pub use suite::{Failure, Modes, Options, Outcome, run_suite};
