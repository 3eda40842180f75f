//! A bound on how long a guest can hold up the thread that rings its doorbells.
//!
//! A doorbell is an eventfd that the guest has too, with the same open file description: it can clear O_NONBLOCK and fill the counter,
//! and a write then sleeps. While its thread is busy, a timer interrupts such a write (EINTR) after a period at most; the
//! caller rings none of that guest any more. When the thread was idle for a whole period the timer stops itself, so idle costs nothing.

use std::cell::Cell;
use std::io;
use std::sync::Once;
use std::time::Duration;

thread_local! {
    /// The timer of this thread, with its period, and whether it runs.
    static TIMER: Cell<Option<(usize, Duration)>> = const { Cell::new(None) };
    static RUNS: Cell<bool> = const { Cell::new(false) };
    /// Something was rung since the last tick.
    static RUNG: Cell<bool> = const { Cell::new(false) };
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

fn set(timer: usize, period: Duration) {
    let t = libc::timespec {
        tv_sec: period.as_secs() as libc::time_t,
        tv_nsec: period.subsec_nanos().into(),
    };
    let spec = libc::itimerspec { it_interval: t, it_value: t };
    // SAFETY: a timer of ours; reads a local. timer_settime is async-signal-safe.
    unsafe {
        libc::timer_settime(timer as libc::timer_t, 0, &raw const spec, std::ptr::null_mut())
    };
}

/// Runs on the thread whose timer it is, between two of its instructions or inside a blocked call, which then gives EINTR.
extern "C" fn tick(_signal: libc::c_int) {
    if !RUNG.replace(false)
        && let Some((timer, _)) = TIMER.get()
    {
        RUNS.set(false);
        set(timer, Duration::ZERO);
    }
}

/// Makes the timer of the calling thread, if it has none.
///
/// # Errors
/// Those of sigaction and timer_create.
pub fn install(period: Duration) -> io::Result<()> {
    if TIMER.get().is_some() {
        return Ok(());
    }
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: plain data; the handler only touches this thread's cells and a timer. No SA_RESTART: a blocked write must end.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = tick as *const () as usize;
            libc::sigaction(signal(), &raw const action, std::ptr::null_mut());
        }
    });
    // SAFETY: plain data; the kernel fills the timer's id.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer: libc::timer_t = std::ptr::null_mut();
        if libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) != 0 {
            return Err(io::Error::last_os_error());
        }
        TIMER.set(Some((timer as usize, period)));
    }
    Ok(())
}

/// Before a doorbell is rung: from now on a tick comes within a period.
#[inline]
pub fn watch() {
    RUNG.set(true);
    // A tick between the two lines finds RUNG set and leaves the timer running.
    if !RUNS.get()
        && let Some((timer, period)) = TIMER.get()
    {
        RUNS.set(true);
        set(timer, period);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sys;

    #[test]
    fn a_doorbell_that_blocks_is_given_up() {
        std::thread::spawn(|| {
            install(Duration::from_millis(100)).expect("timer");
            let fd = sys::eventfd().expect("eventfd");
            sys::set_blocking(&fd).expect("fcntl");
            assert_eq!(rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()), Ok(8));
            let start = Instant::now();
            watch();
            assert!(!sys::ring(&fd), "it blocked");
            assert!(start.elapsed() < Duration::from_secs(3));
            // Somebody else who rings on this thread: another timer would leave this one running for ever.
            let timer = TIMER.get();
            install(Duration::from_millis(100)).expect("timer");
            assert_eq!(TIMER.get(), timer);
            // An idle thread's timer has stopped after two more periods.
            std::thread::sleep(Duration::from_secs(1));
            assert!(!RUNS.get());
        })
        .join()
        .expect("thread");
    }
}
