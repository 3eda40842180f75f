//! getrlimit, setrlimit and prlimit: a limit on the address space is one on the program's own. The mapped device comes on top of
//! it, or a program that limits itself (vsftpd), and everything after `ulimit -v`, could not be a guest's.

use core::mem::MaybeUninit;

use libc::{RLIM_INFINITY, c_int, c_uint, pid_t, rlimit};

use super::native;
use crate::process::process;
use crate::sys;

/// Bytes of address space that are not the program's.
fn ours() -> u64 {
    process().map_or(0, |p| p.device().layout().region_len() as u64)
}

fn to_kernel(value: u64) -> u64 {
    if value == RLIM_INFINITY { value } else { value.saturating_add(ours()) }
}

/// A limit that was set outside knows nothing of the device, and may be lower.
fn to_program(value: u64) -> u64 {
    if value == RLIM_INFINITY { value } else { value.saturating_sub(ours()) }
}

/// # Safety
/// `new` and `old` are null or valid, as for prlimit(2).
unsafe fn address_space(pid: pid_t, new: *const rlimit, old: *mut rlimit) -> c_int {
    let mut before = MaybeUninit::<rlimit>::uninit();
    if native!(libc::SYS_prlimit64, pid, libc::RLIMIT_AS, 0usize, before.as_mut_ptr()) < 0 {
        return -1;
    }
    // SAFETY: the kernel filled it.
    let before = unsafe { before.assume_init() };
    if !new.is_null() {
        // SAFETY: the caller's promise.
        let wanted = unsafe { new.read() };
        let mut set =
            rlimit { rlim_cur: to_kernel(wanted.rlim_cur), rlim_max: to_kernel(wanted.rlim_max) };
        // What is no raise to the program is none to the kernel.
        if wanted.rlim_max <= before.rlim_max {
            set.rlim_max = set.rlim_max.min(before.rlim_max);
            set.rlim_cur = set.rlim_cur.min(set.rlim_max);
        }
        if native!(libc::SYS_prlimit64, pid, libc::RLIMIT_AS, &raw const set, 0usize) < 0 {
            return -1;
        }
    }
    if !old.is_null() {
        let shown =
            rlimit { rlim_cur: to_program(before.rlim_cur), rlim_max: to_program(before.rlim_max) };
        // SAFETY: the caller's promise.
        unsafe { old.write(shown) };
    }
    0
}

/// prlimit(2).
///
/// # Safety
/// As prlimit(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prlimit(
    pid: pid_t,
    resource: c_uint,
    new: *const rlimit,
    old: *mut rlimit,
) -> c_int {
    if resource == libc::RLIMIT_AS && process().is_some() && (pid == 0 || pid == sys::getpid()) {
        // SAFETY: the caller's promise.
        return unsafe { address_space(pid, new, old) };
    }
    native!(libc::SYS_prlimit64, pid, resource, new, old) as c_int
}

/// prlimit64: on 64-bit machines the same.
///
/// # Safety
/// As prlimit(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prlimit64(
    pid: pid_t,
    resource: c_uint,
    new: *const rlimit,
    old: *mut rlimit,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { prlimit(pid, resource, new, old) }
}

/// setrlimit(2).
///
/// # Safety
/// As setrlimit(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setrlimit(resource: c_uint, new: *const rlimit) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { prlimit(0, resource, new, core::ptr::null_mut()) }
}

/// setrlimit64: on 64-bit machines the same.
///
/// # Safety
/// As setrlimit(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setrlimit64(resource: c_uint, new: *const rlimit) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { setrlimit(resource, new) }
}

/// getrlimit(2).
///
/// # Safety
/// As getrlimit(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrlimit(resource: c_uint, old: *mut rlimit) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { prlimit(0, resource, core::ptr::null(), old) }
}

/// getrlimit64: on 64-bit machines the same.
///
/// # Safety
/// As getrlimit(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrlimit64(resource: c_uint, old: *mut rlimit) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { getrlimit(resource, old) }
}
