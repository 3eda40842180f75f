//! A lock of this process that a signal handler never waits for, and that its holder never sleeps under.
//!
//! The owner is known, so a fork from a signal handler that interrupted the holder does not wait for itself. Handlers use
//! [`Lock::try_lock`] only.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::sys;

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;
/// Looks before a waiter sleeps: critical sections last well under a microsecond.
const SPINS: u32 = 64;

/// A futex lock.
#[derive(Debug)]
pub(super) struct Lock {
    word: AtomicU32,
    owner: AtomicU64,
}

/// A number that names the calling thread among the living threads of this process, and stays the same in the child of a fork.
fn me() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        let pointer: u64;
        // SAFETY: the ABI keeps the thread control block's own address in its first word, at fs:0.
        unsafe {
            core::arch::asm!("mov {}, fs:0", out(reg) pointer,
                options(nostack, preserves_flags, readonly));
        }
        pointer
    }
    #[cfg(target_arch = "aarch64")]
    {
        let pointer: u64;
        // SAFETY: reads the thread pointer register.
        unsafe {
            core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer,
                options(nostack, preserves_flags, nomem));
        }
        pointer
    }
}

impl Lock {
    /// A free one.
    pub(super) const fn new() -> Lock {
        Lock { word: AtomicU32::new(FREE), owner: AtomicU64::new(0) }
    }

    /// Whether the calling thread, or the frame that its signal handler interrupted, holds it.
    pub(super) fn is_mine(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == me()
    }

    /// In a forked child: nobody holds it.
    pub(super) fn reset(&self) {
        self.owner.store(0, Ordering::Relaxed);
        self.word.store(FREE, Ordering::SeqCst);
    }

    /// Takes the lock if it is free.
    pub(super) fn try_lock(&self) -> bool {
        let taken =
            self.word.compare_exchange(FREE, HELD, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        if taken {
            self.owner.store(me(), Ordering::Relaxed);
        }
        taken
    }

    /// Takes the lock, waiting as long as it takes.
    pub(super) fn lock(&self) {
        for _ in 0..SPINS {
            if self.try_lock() {
                return;
            }
            core::hint::spin_loop();
        }
        while self.word.swap(CONTENDED, Ordering::SeqCst) != FREE {
            let saved = sys::errno();
            let _ = sys::futex_wait(&self.word, CONTENDED, None);
            sys::set_errno(saved);
        }
        self.owner.store(me(), Ordering::Relaxed);
    }

    /// Gives it back.
    pub(super) fn unlock(&self) {
        self.owner.store(0, Ordering::Relaxed);
        if self.word.swap(FREE, Ordering::SeqCst) == CONTENDED {
            sys::futex_wake(&self.word, 1);
        }
    }

    /// Takes the lock for a fork. `false` when the calling thread holds it already: the fork comes from a handler that interrupted
    /// the holder, which goes on in both processes.
    pub(super) fn lock_for_fork(&self) -> bool {
        if self.is_mine() {
            return false;
        }
        self.lock();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excludes_and_knows_its_owner() {
        let l = Lock::new();
        l.lock();
        assert!(!l.try_lock());
        assert!(!l.lock_for_fork(), "own thread");
        l.unlock();
        assert!(l.lock_for_fork());
        l.unlock();
        let n = AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..20_000 {
                        l.lock();
                        let v = n.load(Ordering::Relaxed);
                        n.store(v + 1, Ordering::Relaxed);
                        l.unlock();
                    }
                });
            }
        });
        assert_eq!(n.load(Ordering::Relaxed), 80_000);
    }
}
