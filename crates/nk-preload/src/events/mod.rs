//! epoll, poll and select over NetKernel sockets and everything else.

use crate::process::Process;

/// A process starts or was forked off: what belongs to the parent's queue sets is not ours.
pub(crate) fn reset_after_fork(_p: &Process) {}
