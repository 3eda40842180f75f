//! Raw system calls, errno and futex. Everything here bypasses the names that this library itself defines, syscall(2) among them.

use core::ptr::null;
use core::sync::atomic::AtomicU32;

use libc::{c_int, c_long, c_void, timespec};

// A library without std names the C library itself, so that its symbols carry their versions.
#[link(name = "c")]
unsafe extern "C" {}

mod descriptors;

pub use descriptors::{
    close, drain_eventfd, eventfd, fcntl, is_hung_up, move_internal, move_up, ring_eventfd,
    seqpacket_pair, unread_by_peer, wait_readable,
};

/// The calling thread's errno.
#[must_use]
pub fn errno() -> c_int {
    // SAFETY: the location is valid for the calling thread.
    unsafe { *libc::__errno_location() }
}

/// Sets the calling thread's errno.
pub fn set_errno(e: c_int) {
    // SAFETY: as in `errno`.
    unsafe { *libc::__errno_location() = e }
}

/// Sets errno and returns -1, as a failing call does.
#[must_use]
pub fn fail(e: c_int) -> c_int {
    set_errno(e);
    -1
}

/// [`fail`] for calls that return `ssize_t`.
#[must_use]
pub fn fail_size(e: c_int) -> isize {
    set_errno(e);
    -1
}

/// A system call; the kernel's own result.
///
/// # Safety
/// As the call itself.
#[cfg(target_arch = "x86_64")]
unsafe fn kernel(number: c_long, a: [usize; 6]) -> isize {
    let result;
    // SAFETY: the caller's promise; the kernel changes rcx, r11 and the result.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a[0], in("rsi") a[1],
            in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _,
            options(nostack));
    }
    result
}

/// See above.
///
/// # Safety
/// As the call itself.
#[cfg(target_arch = "aarch64")]
unsafe fn kernel(number: c_long, a: [usize; 6]) -> isize {
    let result;
    // SAFETY: the caller's promise; the kernel changes x0 only.
    unsafe {
        core::arch::asm!("svc 0", in("x8") number, inlateout("x0") a[0] => result, in("x1") a[1], in("x2") a[2],
            in("x3") a[3], in("x4") a[4], in("x5") a[5], options(nostack));
    }
    result
}

/// One system call by number; -1 and errno on failure.
///
/// # Safety
/// As the call itself: pointers must be what it expects.
#[inline]
pub unsafe fn call(number: c_long, a: [usize; 6]) -> c_long {
    // SAFETY: the caller's promise.
    match unsafe { kernel(number, a) } {
        e @ -4095..0 => fail_size(-e as c_int) as c_long,
        r => r as c_long,
    }
}

/// As many words as a system call takes.
#[inline]
pub const fn words<const N: usize>(given: [usize; N]) -> [usize; 6] {
    let mut all = [0; 6];
    let mut i = 0;
    while i < N {
        all[i] = given[i];
        i += 1;
    }
    all
}

/// [`call`] with arguments as they come.
macro_rules! system_call {
    ($number:expr $(, $a:expr)* $(,)?) => {
        $crate::sys::call($number, $crate::sys::words([$($a as usize),*]))
    };
}
pub(crate) use system_call;

/// Waits until the word, shared between processes, is no longer `value` and somebody wakes it. Ok: woken, or the value differed.
///
/// Without a timeout the kernel restarts the wait after a handler with SA_RESTART and gives EINTR otherwise, as a native
/// blocking call does.
///
/// # Errors
/// EINTR or ETIMEDOUT.
pub fn futex_wait(word: &AtomicU32, value: u32, timeout: Option<&timespec>) -> Result<(), c_int> {
    let t = timeout.map_or(null(), |t| &raw const *t);
    // SAFETY: the word is valid for the call; the timeout is null or valid.
    let r = unsafe { system_call!(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, t) };
    if r == 0 {
        return Ok(());
    }
    match errno() {
        libc::EAGAIN => Ok(()),
        e => Err(e),
    }
}

/// Wakes up to `count` waiters of a shared word.
pub fn futex_wake(word: &AtomicU32, count: i32) {
    let saved = errno();
    // SAFETY: the word is only used as an address.
    unsafe { system_call!(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
    set_errno(saved);
}

/// Private zeroed memory that costs nothing until touched; null when there is none.
#[must_use]
pub fn map_private(len: usize) -> *mut c_void {
    // SAFETY: an anonymous mapping touches no existing memory.
    let p = unsafe {
        system_call!(
            libc::SYS_mmap,
            0usize,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1i32,
            0usize,
        )
    };
    if p == -1 { core::ptr::null_mut() } else { p as *mut c_void }
}

/// Monotonic time in µs.
#[must_use]
pub fn now_us() -> u64 {
    now_ns() / 1000
}

/// CLOCK_MONOTONIC in ns.
#[must_use]
pub fn now_ns() -> u64 {
    let mut t = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes a local; clock_gettime is not one of our names and needs no lock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The CPU on which this thread runs.
#[must_use]
pub fn cpu() -> u32 {
    // SAFETY: takes nothing; the C library reads memory, or the vDSO does.
    unsafe { libc::sched_getcpu() }.max(0) as u32
}

/// CLOCK_MONOTONIC as of the last tick, in ms: reads memory only.
#[must_use]
pub fn coarse_ms() -> u64 {
    let mut t = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as in `now_ns`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut t) };
    t.tv_sec as u64 * 1000 + t.tv_nsec as u64 / 1_000_000
}

/// µs as a timespec.
#[must_use]
pub fn timespec_us(us: u64) -> timespec {
    timespec { tv_sec: (us / 1_000_000) as i64, tv_nsec: (us % 1_000_000 * 1000) as i64 }
}

/// The thread's id.
#[must_use]
pub fn gettid() -> c_int {
    // SAFETY: takes nothing.
    unsafe { system_call!(libc::SYS_gettid) as c_int }
}

/// A number that names the calling thread among those of this process and stays the same in the child of its fork.
#[must_use]
pub fn thread_pointer() -> u64 {
    let pointer: u64;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the ABI keeps the thread control block's own address in its first word, at fs:0.
    unsafe {
        core::arch::asm!("mov {}, fs:0", out(reg) pointer,
            options(nostack, preserves_flags, readonly));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: reads the thread pointer register.
    unsafe {
        core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer,
            options(nostack, preserves_flags, nomem));
    }
    pointer
}

/// The process's id, past any cache.
#[must_use]
pub fn getpid() -> c_int {
    // SAFETY: takes nothing.
    unsafe { system_call!(libc::SYS_getpid) as c_int }
}

/// All signals blocked in this thread until dropped. Kernel-sized mask: also the ones glibc keeps for itself.
#[derive(Debug)]
pub struct SignalsBlocked {
    old: u64,
}

impl SignalsBlocked {
    /// Blocks them.
    #[must_use]
    pub fn new() -> SignalsBlocked {
        let all = u64::MAX;
        let mut old = 0u64;
        // SAFETY: both masks are 8 bytes, as said in the last argument.
        unsafe {
            system_call!(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const all,
                &raw mut old,
                8usize,
            );
        }
        SignalsBlocked { old }
    }

    /// For a child, which unblocks them for itself.
    #[must_use]
    pub(crate) fn copy(&self) -> SignalsBlocked {
        SignalsBlocked { old: self.old }
    }
}

impl Default for SignalsBlocked {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        let saved = errno();
        // SAFETY: restores the mask read before; 8 bytes.
        unsafe {
            system_call!(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const self.old,
                0usize,
                8usize,
            );
        }
        set_errno(saved);
    }
}

/// Sleeps; a signal ends it early. errno is preserved.
pub fn sleep_us(us: u64) {
    let t = timespec_us(us);
    let saved = errno();
    // SAFETY: reads a local.
    unsafe { system_call!(libc::SYS_nanosleep, &raw const t, 0usize) };
    set_errno(saved);
}

/// Writes text to standard error, past any buffer. For the last words before `exit_now` only.
pub fn complain(parts: &[&[u8]]) {
    for p in parts {
        // SAFETY: reads the slice.
        unsafe { system_call!(libc::SYS_write, 2, p.as_ptr(), p.len()) };
    }
}

/// Ends the process at once.
pub fn exit_now(status: c_int) -> ! {
    // SAFETY: takes nothing by pointer; does not return.
    unsafe { libc::_exit(status) }
}

/// A private mapping, unmapped on drop: memory for calls that must not use the program's allocator.
#[derive(Debug)]
pub struct Memory {
    at: *mut u8,
    len: usize,
}

impl Memory {
    /// Zeroed memory.
    #[must_use]
    pub fn new(len: usize) -> Option<Memory> {
        let at = map_private(len).cast::<u8>();
        (!at.is_null()).then_some(Memory { at, len })
    }

    /// Its start.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.at
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { system_call!(libc::SYS_munmap, self.at, self.len) };
    }
}
