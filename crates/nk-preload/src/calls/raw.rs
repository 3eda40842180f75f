//! syscall(2), the function: a fork by number is a fork all the same, and datagrams sent by number (libuv 1.44: dig, node) go where the
//! function would send them. Whatever else is called by number goes to the kernel as it is, also for this library, whose own system
//! calls come here.
//!
//! A child of a real raw fork attaches by itself with its first call ([`crate::process::process`]), but by then its parent may
//! have closed what only the child was to keep.

use libc::{c_int, c_long, c_uint, pid_t};

use super::messages::{recvmmsg, sendmmsg};
use crate::fdtable::{self, Entry};
use crate::fork::fork_as_guest;
use crate::process::process;
use crate::sys;

/// With one of these the child shares what a guest's process has of its own.
const SHARES: u64 = (libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_THREAD) as u64;
/// `clone_args` up to the first field that came later.
const CLONE_ARGS_SIZE: usize = 64;

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

/// Whether the call makes a process with memory and descriptors of its own that goes on where this one is.
fn is_fork(number: c_long, a: [usize; 6]) -> bool {
    match number {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork => true,
        libc::SYS_clone => a[0] as u64 & SHARES == 0 && a[1] == 0,
        libc::SYS_clone3 if a[0] != 0 && a[1] >= CLONE_ARGS_SIZE => {
            let args = a[0] as *const u64;
            // SAFETY: the program says that so many bytes are there.
            let (flags, stack) = unsafe { (args.read_unaligned(), args.add(5).read_unaligned()) };
            flags & SHARES == 0 && stack == 0
        }
        _ => false,
    }
}

/// -1 and errno for what the kernel calls an error.
fn result(r: isize) -> c_long {
    if (-4095..0).contains(&r) { sys::fail(-r as c_int).into() } else { r as c_long }
}

/// syscall(2).
///
/// # Safety
/// As syscall(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let arguments = [a, b, c, d, e, f];
    // SAFETY: the caller's promise.
    let native = || result(unsafe { kernel(number, arguments) });
    if is_fork(number, arguments)
        && let Some(p) = process()
    {
        return fork_as_guest(p, || native() as pid_t).into();
    }
    // The calls of ours that end here concern other descriptors, so this does not come back.
    if matches!(number, libc::SYS_sendmmsg | libc::SYS_recvmmsg)
        && matches!(fdtable::get(a as c_int), Entry::Socket { .. })
    {
        let (fd, messages, count, flags) = (a as c_int, b as *mut _, c as c_uint, d as c_int);
        // SAFETY: the caller's promise.
        let n = unsafe {
            match number {
                libc::SYS_sendmmsg => sendmmsg(fd, messages, count, flags),
                _ => recvmmsg(fd, messages, count, flags, e as *mut _),
            }
        };
        return n.into();
    }
    native()
}
