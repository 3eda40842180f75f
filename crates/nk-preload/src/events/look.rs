//! One look at sockets: the event mask of each, and what has to be arranged so that the next change is told.

use core::sync::atomic::Ordering;

use nk_device::{Cell, Device};
use nk_guestlib::readiness::{readiness, without_host};

use crate::process::Process;

use super::{EPOLLERR, EPOLLHUP, EPOLLOUT, EPOLLWRBAND, EPOLLWRNORM};

/// Interest bits that ask for room to write.
pub(super) const OUT_BITS: u32 = EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND;
/// Bits that are always of interest.
pub(super) const ALWAYS: u32 = EPOLLERR | EPOLLHUP;

/// What holds for all sockets of one look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// The device.
    pub(super) device: Device,
    /// This process has chunks to send with.
    pub(super) can_send: bool,
    /// Nobody serves it any more: every socket has an error to tell.
    pub(super) is_gone: bool,
}

/// What a look at one socket found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Bits of interest that hold now.
    pub(super) mask: u32,
    /// Room to write is wanted and only chunks are missing.
    pub(super) starved: bool,
}

impl Look {
    /// As things are now.
    pub(super) fn new(p: &Process) -> Look {
        let can_send = crate::grants::can_send(p);
        Look { device: *p.device(), can_send, is_gone: crate::wait::is_gone(p) }
    }

    /// The cell, if the id still means this socket.
    pub(super) fn cell(&self, socket: u32, generation: u16) -> Option<&Cell> {
        self.device
            .cell(socket)
            .filter(|c| c.generation.load(Ordering::Acquire) == u32::from(generation))
    }

    /// What of `interest` holds now. When room to write is wanted and there is none, the service is asked to tell.
    pub(super) fn mask(&self, cell: &Cell, interest: u32) -> Seen {
        let wanted = interest | ALWAYS;
        let mut mask = readiness(cell, self.can_send);
        let mut starved = false;
        if self.is_gone {
            mask |= without_host(cell);
        } else if interest & OUT_BITS != 0 && mask & OUT_BITS == 0 {
            // The service moves tx_head, fences and reads the count: the second look is behind want_tx's own fence.
            cell.want_tx();
            mask = readiness(cell, self.can_send);
            starved = !self.can_send && mask & OUT_BITS == 0;
        }
        Seen { mask: mask & wanted, starved }
    }
}
