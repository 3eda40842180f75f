//! A lock that knows its holder. A child that shares this memory ([`crate::borrowers`]) may be killed while it holds one, and nobody would
//! ever unlock it: so whoever waits for another process looks now and then whether that lives.

use core::sync::atomic::{AtomicU32, Ordering};

use libc::pid_t;

use crate::sys;

/// Somebody sleeps.
const AWAITED: u32 = 1 << 31;
/// Between two looks.
const LOOK_US: u64 = 50_000;

/// Free when zero, else the process that holds it. Only taken with signals blocked.
#[derive(Debug)]
pub(crate) struct OwnedLock(AtomicU32);

impl OwnedLock {
    pub(crate) const fn new() -> OwnedLock {
        OwnedLock(AtomicU32::new(0))
    }

    /// In a forked child: nobody holds it.
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }

    pub(crate) fn lock(&self) {
        let me = sys::getpid() as u32;
        let mut mine = me;
        let change = |from: u32, to: u32| {
            self.0.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed)
        };
        while let Err(seen) = change(0, mine) {
            let awaited = seen | AWAITED;
            if seen == 0 || (seen != awaited && change(seen, awaited).is_err()) {
                continue;
            }
            // Others may sleep, too.
            mine = me | AWAITED;
            let holder = seen & !AWAITED;
            let look = sys::timespec_us(LOOK_US);
            let timeout = (holder != me).then_some(&look);
            let woken = sys::futex_wait(&self.0, awaited, timeout);
            if woken == Err(libc::ETIMEDOUT)
                && has_ended(holder as pid_t)
                && change(awaited, mine).is_ok()
            {
                return;
            }
        }
    }

    pub(crate) fn unlock(&self) {
        if self.0.swap(0, Ordering::Release) & AWAITED != 0 {
            sys::futex_wake(&self.0, 1);
        }
    }
}

/// Whether a process has ended, also one that nobody has waited for. One that cannot be asked about lives.
fn has_ended(pid: pid_t) -> bool {
    // SAFETY: no memory is involved.
    let fd = unsafe { sys::system_call!(libc::SYS_pidfd_open, pid, 0) as i32 };
    if fd < 0 {
        return sys::errno() == libc::ESRCH;
    }
    let ended = sys::wait_readable(fd, 0);
    sys::close(fd);
    ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::Arc;

    #[test]
    fn a_dead_holder_holds_nothing() {
        let mut dead = Command::new("true").spawn().expect("true");
        let lock = OwnedLock(AtomicU32::new(dead.id()));
        lock.lock();
        assert_eq!(lock.0.load(Ordering::Relaxed) & !AWAITED, std::process::id());
        lock.unlock();
        dead.wait().expect("wait");
        lock.0.store(dead.id(), Ordering::Relaxed);
        lock.lock();
        lock.unlock();
    }

    #[test]
    fn a_live_holder_is_waited_for() {
        let mut live =
            Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        let lock = Arc::new(OwnedLock(AtomicU32::new(live.id())));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let lock = Arc::clone(&lock);
                std::thread::spawn(move || {
                    lock.lock();
                    lock.unlock();
                })
            })
            .collect();
        while lock.0.load(Ordering::Relaxed) & AWAITED == 0 {
            std::thread::yield_now();
        }
        assert!(!has_ended(live.id() as pid_t));
        assert!(threads.iter().all(|t| !t.is_finished()));
        lock.unlock();
        for t in threads {
            t.join().expect("thread");
        }
        assert_eq!(lock.0.load(Ordering::Relaxed), 0);
        drop(live.stdin.take());
        live.wait().expect("wait");
    }
}
