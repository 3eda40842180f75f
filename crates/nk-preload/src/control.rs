//! Requests on the process's control socket: the few that need descriptors passed.

use core::sync::atomic::{AtomicU64, Ordering};

use nk_attach::{Fds, Message, RecvError};
use nk_device::header::{ENGINE_GONE, ENGINE_UP};

use crate::hangup;
use crate::owned::OwnedLock;
use crate::process::Process;
use crate::sys::{self, SignalsBlocked};

static LOCK: OwnedLock = OwnedLock::new();
/// Of the last request.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// In a forked child: nobody holds it.
pub(crate) fn reset() {
    LOCK.reset();
}

/// A request and its reply, with descriptors both ways. The descriptors in `fds` stay the caller's.
///
/// # Errors
/// The reply's status; ENETDOWN when the daemon is gone for good.
pub fn request(p: &Process, message: &Message, fds: &[i32]) -> Result<(Message, Fds), i32> {
    request_until(p, message, fds, u64::MAX)
}

/// [`request`] that gives up at a time of [`sys::now_us`], with ETIMEDOUT: for calls that must end although no daemon serves.
///
/// # Errors
/// As [`request`].
pub fn request_until(
    p: &Process,
    message: &Message,
    fds: &[i32],
    deadline_us: u64,
) -> Result<(Message, Fds), i32> {
    let _signals = SignalsBlocked::new();
    let saved = sys::errno();
    LOCK.lock();
    let r = exchange(p, message, fds, deadline_us);
    LOCK.unlock();
    sys::set_errno(saved);
    match r {
        Ok((m, _)) if m.status != 0 => Err(m.status),
        r => r,
    }
}

fn exchange(
    p: &Process,
    message: &Message,
    fds: &[i32],
    deadline_us: u64,
) -> Result<(Message, Fds), i32> {
    let socket = p.control_fd();
    let message = &Message { serial: SERIAL.fetch_add(1, Ordering::Relaxed) + 1, ..*message };
    let header = p.device().header();
    let mut asked_in = None;
    loop {
        if hangup::engine_state(p.device()) == ENGINE_GONE {
            return Err(libc::ENETDOWN);
        }
        let epoch = header.epoch.load(Ordering::Acquire);
        // Asked again only when another daemon serves, the request is not on its way to it, and the last one, which took it along, did not answer
        // before its end.
        let lost = asked_in.is_some_and(|e| e != epoch)
            && header.engine_state.load(Ordering::Acquire) == ENGINE_UP
            && sys::unread_by_peer(socket) == 0
            && !sys::wait_readable(socket, 0);
        if asked_in.is_none() || lost {
            asked_in = Some(epoch);
            nk_attach::send(socket, message, fds).map_err(|_| no_daemon(p))?;
        }
        if !sys::wait_readable(socket, 1000) {
            if sys::now_us() >= deadline_us {
                return Err(libc::ETIMEDOUT);
            }
            continue;
        }
        match nk_attach::recv(socket, true) {
            Ok((m, f, _)) if (m.kind, m.serial) == (message.kind, message.serial) => {
                return Ok((m, f));
            }
            // The second answer to a request before this one, which was asked of two daemons.
            Ok(_) | Err(RecvError::Os(libc::EAGAIN)) => {}
            Err(_) => return Err(no_daemon(p)),
        }
    }
}

/// The control socket does not work any more: the sleepers of this process are to know too.
fn no_daemon(p: &Process) -> i32 {
    hangup::look(p);
    libc::ENETDOWN
}

/// A message without a reply. A daemon that is gone misses nothing by it.
pub fn tell(p: &Process, message: &Message) {
    let _signals = SignalsBlocked::new();
    let saved = sys::errno();
    let _ = nk_attach::send(p.control_fd(), message, &[]);
    sys::set_errno(saved);
}
