//! Boots a stock Debian kernel without a NIC under QEMU, loads `netkernel.ko` into it, and checks what programs in it get.
//!
//! | module | what |
//! |---|---|
//! | [`packages`] | what the machine must have; the guest's kernel |
//! | [`module`] | builds the module, the core for a bare target, the test programs |
//! | [`cpio`] | the guest's root file system |
//! | [`ivshmem`] | the host's end of the NK device in QEMU |
//! | [`qemu`] | the VM and its console |
//! | [`echo`] | the plain programs on the host: echo server, client, a port that refuses |
//! | [`daemon`] | the daemon, and the VM guest it makes |
//! | [`scenario`] | what is tested |

use std::path::PathBuf;
use std::time::Duration;

pub mod cpio;
pub mod daemon;
pub mod echo;
pub mod ivshmem;
pub mod module;
pub mod packages;
pub mod qemu;
pub mod scenario;

mod command;

pub use module::build_core_none;
pub use scenario::{Prepared, Report, VmDevice, check, prepare, run};

/// Why the VM test did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Packages are lacking and cannot be installed.
    #[error("the VM test needs these Debian 12 packages: {packages}; {reason}")]
    Packages {
        /// Names, as for apt-get install.
        packages: String,
        /// Why they were not installed.
        reason: String,
    },
    /// A tool failed.
    #[error("{command} failed: {said}")]
    Command {
        /// The command.
        command: String,
        /// The end of what it printed.
        said: String,
    },
    /// The guest did not power off in time.
    #[error("the VM was killed after {after:?}; its console said:\n{console}")]
    TimedOut {
        /// The limit.
        after: Duration,
        /// All that it printed.
        console: String,
    },
    /// The guest ran, and something was wrong.
    #[error("{what}; the VM's console said:\n{console}")]
    Failed {
        /// What was wrong.
        what: String,
        /// All that the guest printed.
        console: String,
    },
    /// A file or socket of the host.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Where the sources are, and where to build.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The repository's root.
    pub root: PathBuf,
    /// A folder for what is built; kept between runs.
    pub out: PathBuf,
}

impl Default for Paths {
    /// This repository, and its target folder.
    fn default() -> Paths {
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let root = root.canonicalize().unwrap_or(root);
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
        Paths { out: target.join("vmtest"), root }
    }
}
