//! A host with nothing real below it: CoreEngine and ServiceLib over a stack in memory, a hostile guest and an honest one.
//!
//! [`hostile::run`] takes any bytes as the hostile guest's acts, also in the middle of a poll (whenever the host calls the stack
//! or a doorbell, the next scribble falls). Whatever it did: the host neither panics nor touches memory outside the device,
//! every chunk is accounted for, and the honest guest's bytes arrive.
//!
//! [`simulation::run`] draws everything from a seed: ordinary guests, and a host whose parts die. `engine` has single cases of what the
//! engine does, `lost` of what becomes of chunks that connections of a dead NSM carry, `kept` of what a service tells of sockets that it
//! took over, `control` of what ends in the middle of what the control thread does, `spread` of a guest on several NSMs for good,
//! `reports` of calls that wait to be told what became of a datagram, `packed` of several datagrams in a descriptor, `attaching` of processes whose daemon ends while they ask.

mod acts;
mod adoption;
#[cfg(test)]
mod attaching;
#[cfg(test)]
mod control;
mod daemon;
mod datagrams;
mod deaths;
mod end;
#[cfg(test)]
mod engine;
pub mod faults;
mod guests;
pub mod hostile;
#[cfg(test)]
mod kept;
mod kernel;
#[cfg(test)]
mod lost;
mod moves;
#[cfg(test)]
mod packed;
mod processes;
pub mod region;
mod reload;
#[cfg(test)]
mod reports;
mod shell;
pub mod simulation;
#[cfg(test)]
mod spread;
pub mod stack;
mod succession;
mod tenant;
mod world;
