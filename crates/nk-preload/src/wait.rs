//! Blocking: futex waits on a cell's words, with the kernel's own rules for signals.
//!
//! A sleeper announces itself, fences, looks again and only then sleeps on the value it read before that look; the other side
//! changes the state, bumps the word, fences and looks for sleepers. So one of the two always sees the other.

use libc::c_int;
use nk_device::header::{ENGINE_AWAY, ENGINE_GONE, ENGINE_UP};

use crate::process::Process;
use crate::{fdtable, gate, hangup, standin, sys};

/// Which of a cell's words a call waits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    /// Data, EOF, errors, accepted sockets.
    Rx,
    /// Room, errors, the end of a connect.
    Tx,
}

/// Why a wait ended without the thing waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// A signal handler ran and does not restart the call.
    Interrupted,
    /// The time is up.
    TimedOut,
    /// Another thread closed the descriptor before the call slept.
    Closed,
}

impl Ended {
    pub(crate) fn errno(self) -> c_int {
        match self {
            Ended::Interrupted => libc::EINTR,
            Ended::TimedOut => libc::EAGAIN,
            Ended::Closed => libc::EBADF,
        }
    }
}

/// A socket that a blocked call uses stays alive when another thread closes its last descriptor, as natively the file would.
struct Pinned<'a> {
    p: &'a Process,
    id: u32,
    generation: u16,
}

impl<'a> Pinned<'a> {
    /// `None`: it was closed meanwhile.
    fn new(p: &'a Process, id: u32, generation: u16) -> Option<Pinned<'a>> {
        let _changing = gate::enter();
        fdtable::pin(id).then_some(Pinned { p, id, generation })
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let saved = sys::errno();
        let _changing = gate::enter();
        if fdtable::unpin(self.id) {
            standin::let_go(self.p, self.id, self.generation);
        }
        sys::set_errno(saved);
    }
}

/// Runs `attempt` until it gives something, sleeping in between. `timeout_us` 0: no limit.
pub(crate) fn until<T>(
    p: &Process,
    id: u32,
    generation: u16,
    on: On,
    timeout_us: u64,
    mut attempt: impl FnMut() -> Option<T>,
) -> Result<T, Ended> {
    let Some(cell) = p.cell(id) else { return Err(Ended::TimedOut) };
    let Some(_pinned) = Pinned::new(p, id, generation) else { return Err(Ended::Closed) };
    let deadline = if timeout_us == 0 { 0 } else { sys::now_us() + timeout_us };
    let word = match on {
        On::Rx => &cell.rx_wake,
        On::Tx => &cell.tx_wake,
    };
    loop {
        hangup::look_now_and_then(p);
        let seen = match on {
            On::Rx => cell.begin_rx_sleep(),
            On::Tx => cell.begin_tx_sleep(),
        };
        let found = attempt();
        let waited = if found.is_some() {
            Ok(())
        } else if deadline == 0 {
            cancellable(|| sys::futex_wait(word, seen, None))
        } else {
            match deadline.saturating_sub(sys::now_us()) {
                0 => Err(libc::ETIMEDOUT),
                left => cancellable(|| sys::futex_wait(word, seen, Some(&sys::timespec_us(left)))),
            }
        };
        match on {
            On::Rx => cell.end_rx_sleep(),
            On::Tx => cell.end_tx_sleep(),
        }
        if let Some(done) = found {
            return Ok(done);
        }
        if let Err(e) = waited {
            // What came meanwhile wins over the signal, as natively.
            if let Some(done) = attempt() {
                return Ok(done);
            }
            return Err(if e == libc::EINTR { Ended::Interrupted } else { Ended::TimedOut });
        }
    }
}

/// A blocking call is a cancellation point: while it sleeps, pthread_cancel ends the thread at once, as in glibc's own calls. The
/// thread's pin on the socket stays until the process ends.
fn cancellable<T>(sleep: impl FnOnce() -> T) -> T {
    type SetCancelType = unsafe extern "C" fn(c_int, *mut c_int) -> c_int;
    const ASYNCHRONOUS: c_int = 1;
    let function = crate::next::SETCANCELTYPE.known();
    if function.is_null() {
        return sleep();
    }
    // SAFETY: the C library's function of that name and signature.
    let set = unsafe { core::mem::transmute::<*mut libc::c_void, SetCancelType>(function) };
    let mut old = 0;
    // SAFETY: writes a local.
    unsafe { set(ASYNCHRONOUS, &raw mut old) };
    let r = sleep();
    let mut ignored = 0;
    // SAFETY: as above.
    unsafe { set(old, &raw mut ignored) };
    r
}

/// Whether the stack lives, served by an engine or waiting for the next one. A connection that finds nothing to do is lost when it
/// does not.
pub(crate) fn stack_lives(p: &Process) -> bool {
    matches!(hangup::engine_state(p.device()), ENGINE_UP | ENGINE_AWAY)
}

/// Whether no engine serves, and none will.
pub(crate) fn is_gone(p: &Process) -> bool {
    hangup::engine_state(p.device()) == ENGINE_GONE
}

/// Before a server is told, once more, that no engine serves any more. Its sockets are ready for that, and who takes the error for a passing
/// trouble asks again at once and writes a line each time, for ever.
pub(crate) fn pause_without_engine() {
    sys::sleep_us(100_000);
}

/// Waits until an engine serves.
///
/// # Errors
/// ENETDOWN when none will.
pub(crate) fn for_engine(p: &Process) -> Result<(), c_int> {
    loop {
        hangup::look_now_and_then(p);
        match hangup::engine_state(p.device()) {
            ENGINE_UP => return Ok(()),
            ENGINE_GONE => return Err(libc::ENETDOWN),
            _ => sys::sleep_us(10_000),
        }
    }
}
