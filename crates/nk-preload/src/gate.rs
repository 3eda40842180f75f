//! The fork gate: fork must see descriptors, counts and holder bits agree, so it waits until no call is changing them.
//!
//! Readers come first: a signal handler that interrupts a reader and closes a descriptor never waits for a fork that waits for the
//! interrupted reader. A fork from a handler that interrupted a reader cannot wait for that reader at all, so it waits for
//! a bounded time.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::process::Process;
use crate::sys::{self, SignalsBlocked};

const FORKING: u32 = 1 << 31;
/// How long a fork waits for calls under way: far longer than any of them takes.
const WAIT_MAX_US: u64 = 100_000;

static GATE: AtomicU32 = AtomicU32::new(0);
/// The thread that forks: its atfork handlers pass.
static FORKER: AtomicU64 = AtomicU64::new(0);

/// Held while a call changes descriptors. Never held while a call blocks.
#[derive(Debug)]
pub struct Changing(());

/// Enters; waits while a fork is under way.
#[must_use]
pub fn enter() -> Changing {
    loop {
        let g = GATE.fetch_add(1, Ordering::AcqRel);
        if g & FORKING == 0 || FORKER.load(Ordering::Acquire) == sys::thread_pointer() {
            return Changing(());
        }
        leave();
        let g = GATE.load(Ordering::Acquire);
        if g & FORKING != 0 {
            let slice = sys::timespec_us(1000);
            let _ = sys::futex_wait(&GATE, g, Some(&slice));
        }
    }
}

fn leave() {
    // Never below zero: a forked child starts at 0 while a frame interrupted before the fork may still leave.
    let _ = GATE.fetch_update(Ordering::AcqRel, Ordering::Acquire, |g| {
        if g & !FORKING == 0 { None } else { Some(g - 1) }
    });
}

impl Drop for Changing {
    fn drop(&mut self) {
        leave();
    }
}

/// Closes the gate for a fork (signals are blocked by the caller).
pub fn close() {
    let deadline = sys::now_us() + WAIT_MAX_US;
    loop {
        let g = GATE.load(Ordering::Acquire);
        let late = sys::now_us() > deadline;
        if (g == 0 || (late && g & FORKING == 0))
            && GATE.compare_exchange(g, g | FORKING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            FORKER.store(sys::thread_pointer(), Ordering::Release);
            return;
        }
        // SAFETY: takes nothing.
        unsafe { sys::system_call!(libc::SYS_sched_yield) };
    }
}

/// Opens it again in the parent.
pub fn open() {
    FORKER.store(0, Ordering::Release);
    GATE.fetch_and(!FORKING, Ordering::AcqRel);
    sys::futex_wake(&GATE, i32::MAX);
}

/// Runs something during which no other thread changes descriptors: what looks at the table and then puts a file onto a number would else
/// put it onto a number that another thread closed, or opened again, in between. It must not block.
pub(crate) fn alone<R>(p: &Process, change: impl FnOnce() -> R) -> R {
    if FORKER.load(Ordering::Acquire) == sys::thread_pointer() {
        return change();
    }
    if !p.is_caller() {
        // A child that shares this memory changes its own descriptors only, and if it is killed here nobody opens the gate.
        let _changing = enter();
        return change();
    }
    let signals = SignalsBlocked::new();
    close();
    let r = change();
    open();
    drop(signals);
    r
}

/// In the child nobody else is there.
pub fn reset() {
    FORKER.store(0, Ordering::Release);
    GATE.store(0, Ordering::Release);
}
