//! Installing a filter of system calls.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule};

/// Whom a filter binds, with the threads that they make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// The calling thread.
    ThisThread,
    /// All threads there are.
    AllThreads,
}

/// What the rules name gets `matched`, the rest `other`.
pub(crate) fn install(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    matched: SeccompAction,
    other: SeccompAction,
    whom: For,
) -> io::Result<()> {
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, other, matched, arch).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    match whom {
        For::ThisThread => seccompiler::apply_filter(&program),
        For::AllThreads => seccompiler::apply_filter_all_threads(&program),
    }
    .map_err(io::Error::other)
}
