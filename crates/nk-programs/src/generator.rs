//! Loads of our own, behind the program `nk-load`.
//!
//! | module | what |
//! |---|---|
//! | `http` | open and closed HTTP loads |
//! | `answer` | whether an HTTP answer is whole |
//! | [`pingpong`] | round trips on one connection |
//! | [`stream`] | writes of one length on one connection |

mod answer;
mod http;
pub mod pingpong;
pub mod stream;

pub use http::{Generator, Load, Outcome};
