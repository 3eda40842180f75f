//! `nk bench`: what the parts of NetKernel can do by themselves. Programs against native ones are `cargo xtask bench`.
//!
//! | module | what |
//! |---|---|
//! | [`switch`] | NQEs per second of CoreEngine on one core, as in the paper's table |
//! | `spread` | median, least and greatest |
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod spread;
pub mod switch;
