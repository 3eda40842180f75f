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

/// Whether a process has this memory no more: it has ended, also if nobody has waited for it yet, or another one has its pid by now. No
/// descriptor is needed to ask. One that cannot be asked about lives.
fn has_ended(pid: pid_t) -> bool {
    const KCMP_VM: i32 = 1;
    // SAFETY: no memory is involved.
    match unsafe { sys::system_call!(libc::SYS_kcmp, sys::getpid(), pid, KCMP_VM, 0, 0) } {
        0 => return false,
        1.. => return true,
        _ if sys::errno() == libc::ESRCH => return true,
        // Not permitted, or no part of this kernel.
        _ => {}
    }
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
    fn who_has_a_dead_holders_pid_holds_nothing() {
        let mut other =
            Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        let lock = OwnedLock(AtomicU32::new(other.id()));
        lock.lock();
        lock.unlock();
        drop(other.stdin.take());
        other.wait().expect("wait");
    }

    #[test]
    fn a_dead_holder_is_found_without_a_descriptor_left() {
        let mut dead = Command::new("true").spawn().expect("true");
        let pid = dead.id() as pid_t;
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !has_ended(pid) {
            assert!(std::time::Instant::now() < end, "it lives");
        }
        // SAFETY: the child makes system calls only.
        let asker = unsafe { libc::fork() };
        if asker == 0 {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: reads a local, then ends the child.
            unsafe {
                libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none);
                libc::_exit(i32::from(!has_ended(pid)));
            }
        }
        let mut status = -1;
        // SAFETY: writes a local.
        assert_eq!(unsafe { libc::waitpid(asker, &raw mut status, 0) }, asker);
        assert_eq!(status, 0);
        dead.wait().expect("wait");
    }

    extern "C" fn until_closed(end: *mut libc::c_void) -> i32 {
        // SAFETY: reads into a byte of its own.
        unsafe { libc::read(end as i32, [0u8].as_mut_ptr().cast(), 1) as i32 }
    }

    #[test]
    fn a_live_holder_is_waited_for() {
        let mut pipe = [-1; 2];
        let mut stack = vec![0u8; 1 << 16];
        // SAFETY: the child shares this memory and runs on a stack of its own, which stays until it has ended.
        let live = unsafe {
            assert_eq!(libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC), 0);
            let top = stack.as_mut_ptr().add(stack.len() & !15).cast();
            libc::clone(until_closed, top, libc::CLONE_VM | libc::CLONE_FILES, pipe[0] as *mut _)
        };
        assert!(live > 0);
        let lock = Arc::new(OwnedLock(AtomicU32::new(live as u32)));
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
        assert!(!has_ended(live));
        assert!(threads.iter().all(|t| !t.is_finished()));
        lock.unlock();
        for t in threads {
            t.join().expect("thread");
        }
        assert_eq!(lock.0.load(Ordering::Relaxed), 0);
        // SAFETY: the pipe's ends; the child ends with the last of what is written.
        unsafe {
            libc::write(pipe[1], [0u8].as_ptr().cast(), 1);
            assert_eq!(libc::waitpid(live, core::ptr::null_mut(), libc::__WALL), live);
            libc::close(pipe[0]);
            libc::close(pipe[1]);
        }
    }
}
