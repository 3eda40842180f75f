//! The host's side of NetKernel: everything around CoreEngine that does I/O.
//!
//! | module | what |
//! |---|---|
//! | [`server`] | the control thread: attach socket, processes, their life and death |
//! | [`poll`] | the poll thread: CoreEngine and the inline NSM |
//! | `pace` | when a polling thread looks again, lets others run, or sleeps |
//! | [`notify`] | doorbells and futex wake-ups |
//! | [`broker`] | sockets in guests' network namespaces |
//! | [`nsm`] | the kernel-stack NSM, inline or as a process |
//! | [`names`] | the resolver: answers a guest's questions about names |
//! | [`netns`] | network namespaces made for guests |
//! | [`keeper`] | what survives the daemon |
//! | [`private`] | daemons that `nk run` starts for itself |
//! | [`config`] | the configuration file |
//! | [`control`] | what the control thread decides, without I/O |
//! | [`limits`] | what a guest may use |
//! | [`guest`] | a guest's region and processes |
//! | [`spawn`] | this program again, as another process |
//! | [`sys`] | syscalls |
#![warn(missing_docs)]

mod beside;
pub mod broker;
pub mod config;
pub mod control;
pub mod guest;
pub mod keeper;
pub mod limits;
pub mod names;
pub mod netns;
pub mod notify;
pub mod nsm;
mod pace;
pub mod poll;
pub mod private;
mod seccomp;
pub mod server;
pub mod spawn;
pub mod sys;
pub mod watchdog;
