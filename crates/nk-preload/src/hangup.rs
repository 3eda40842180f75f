//! Daemon and keeper dead in one moment: nobody is left who could say so, but this process's control socket has no other end any more.
//!
//! Whoever sleeps in poll, select or epoll_wait has the control socket among what he waits on: its end wakes him. The first who sees
//! it wakes this process's sleepers in futexes ([`look`]). Whoever is about to sleep on a futex looks himself, if it is a while
//! since somebody did ([`look_now_and_then`]). From then on the device's engine is gone to this process, whatever the header says:
//! others of the guest may be served yet, if it was only this one that the daemon let go.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use nk_device::Device;
use nk_device::header::ENGINE_GONE;

use crate::process::Process;
use crate::{fdtable, sys};

static HUNG_UP: AtomicBool = AtomicBool::new(false);
/// When somebody last looked, by the coarse clock.
static LOOKED_MS: AtomicU64 = AtomicU64::new(0);
const LOOK_EVERY_MS: u64 = 100;

/// Another process, or another control socket.
pub(crate) fn reset() {
    HUNG_UP.store(false, Ordering::SeqCst);
}

/// Whether it was seen already.
pub(crate) fn is_known() -> bool {
    HUNG_UP.load(Ordering::SeqCst)
}

/// `engine_state` of the header, as it is for this process.
pub(crate) fn engine_state(device: &Device) -> u32 {
    if is_known() { ENGINE_GONE } else { device.header().engine_state.load(Ordering::Acquire) }
}

/// Looks at the control socket. `true`: nobody serves this process any more, and its sleepers know.
pub(crate) fn look(p: &Process) -> bool {
    if is_known() {
        return true;
    }
    let saved = sys::errno();
    let hung_up = loop {
        let fd = p.control_fd();
        let hung_up = sys::is_hung_up(fd);
        // The number may be another file's by now: the program wanted it, and ours was moved.
        if p.control_fd() == fd {
            break hung_up;
        }
    };
    if hung_up && !HUNG_UP.swap(true, Ordering::SeqCst) {
        wake_sleepers(p);
    }
    sys::set_errno(saved);
    hung_up
}

/// [`look`], unless somebody of this process did just now.
pub(crate) fn look_now_and_then(p: &Process) {
    let now = sys::coarse_ms();
    let last = LOOKED_MS.load(Ordering::Relaxed);
    if now.wrapping_sub(last) >= LOOK_EVERY_MS {
        LOOKED_MS.store(now, Ordering::Relaxed);
        look(p);
    }
}

/// A sleeper reads its word, then looks at the state, then sleeps on what it read: so it sees one of the two.
fn wake_sleepers(p: &Process) {
    fence(Ordering::SeqCst);
    let wake = |w: &nk_device::sync::AtomicU32| {
        w.fetch_add(1, Ordering::SeqCst);
        sys::futex_wake(w, i32::MAX);
    };
    if let Some(row) = p.row() {
        wake(&row.grant_wake);
    }
    if let Some(q) = p.device().qset(p.qset()) {
        wake(&q.completion_wake);
    }
    fdtable::for_each_socket(|_, id, _| {
        if let Some(cell) = p.cell(id) {
            wake(&cell.rx_wake);
            wake(&cell.tx_wake);
        }
    });
}
