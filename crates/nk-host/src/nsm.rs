//! The kernel-stack NSM: inline in the poll thread.

use std::io;

use nk_stack_kernel::{KernelStack, ListenerKeeper};

use crate::broker::Broker;

/// The kernel stack over a broker; listeners are offered to the keeper where there is one.
///
/// # Errors
/// Those of epoll_create1.
pub fn kernel_stack(
    broker: Broker,
    keeper: Option<Box<dyn ListenerKeeper + Send>>,
) -> io::Result<KernelStack> {
    KernelStack::new(Box::new(broker), keeper).map_err(|e| io::Error::from_raw_os_error(e.0))
}
