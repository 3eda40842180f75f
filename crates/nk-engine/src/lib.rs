//! CoreEngine (paper §4.4): the trusted switch between guests and NSMs.
//!
//! A value that is polled: it does no I/O, reads no clock and starts no thread. It owns what a guest must not be able to
//! forge: which ids are in use and by whom, which generation they have, who owns a port, limits and counts.
//!
//! | module | what |
//! |---|---|
//! | `api` | what the host gives and gets |
//! | `engine` | the tables, the poll, and going to sleep |
//! | `turns`, `costly` | what is taken off a guest's rings, and when |
//! | `switch` | from guests to the NSM, with every check |
//! | `deliver` | from the NSM to guests: who is told and who is woken |
//! | `control` | the host's requests: guests, rows, queue sets, holds |
//! | `end` | the end of rows, queue sets and sockets |
//! | `dead_nsm` | after the death of an NSM |
//! | `adopt` | after the death of another engine |
//! | `kept` | after the death of another engine alone: the service lives on |
//! | `outlived` | sockets that outlived a service: their cells, and what the next one is told |
//! | `report` | counters and the list of sockets |
//! | `guest`, `guest::ids` | what is known of a guest; the life of its socket ids |
//! | `rows` | its rows and queue sets |
//! | `limits` | rates, and turns by weight |
//! | `moves`, `spread` | from one NSM to another, and on several at once |
//! | `nsm`, `ports`, `out` | an NSM's device, port ownership, wake-ups due |
//!
//! Nothing a guest writes makes it panic or work without bound: elements are copied once, ids and generations are checked against
//! private tables, ring positions are private, and each queue set has its turn.
#![forbid(unsafe_code)]

mod adopt;
mod api;
mod control;
mod costly;
mod dead_nsm;
mod deliver;
mod end;
mod engine;
mod guest;
mod kept;
mod limits;
mod moves;
mod nsm;
mod out;
mod outlived;
mod ports;
mod report;
mod rows;
mod spread;
mod switch;
mod turns;

pub use api::*;
pub use engine::Engine;
