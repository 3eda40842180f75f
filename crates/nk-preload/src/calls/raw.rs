//! syscall(2), the function: a fork by number is a fork all the same, so is what changes descriptors (libuv closes by number), and
//! datagrams sent by number (libuv 1.44: dig, node) go where the function would send them. Whatever else is called by number goes to
//! the kernel as it is. This library's own system calls do not come here ([`sys::call`]).
//!
//! A child of a real raw fork attaches by itself with its first call ([`crate::process::process`]), but by then its parent may
//! have closed what only the child was to keep.

use libc::{c_int, c_long, c_uint, pid_t};

use super::control::fcntl;
use super::descriptors::{close, close_range, dup, dup2, dup3};
use super::many::{recvmmsg, sendmmsg};
use crate::fdtable::{self, Entry};
use crate::fork::fork_as_guest;
use crate::process::process;
use crate::{standin, sys};

/// With one of these the child shares what a guest's process has of its own.
const SHARES: u64 = (libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_THREAD) as u64;
/// vfork's, which is served as fork ([`crate::fork`]).
const VFORKS: u64 = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
/// `clone_args` up to the first field that came later.
const CLONE_ARGS_SIZE: usize = 64;
/// `clone_args` in words, with room for what may come.
type CloneArgs = [u64; 16];

fn without_vfork(flags: u64) -> u64 {
    if flags & libc::CLONE_VFORK as u64 == 0 { flags } else { flags & !VFORKS }
}

/// The call that makes a process with memory and descriptors of its own that goes on where this one is, if that is what is asked for.
/// `place`: what clone3 is given lies there.
fn as_fork(number: c_long, a: [usize; 6], place: &mut CloneArgs) -> Option<(c_long, [usize; 6])> {
    match number {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork | libc::SYS_vfork => Some((libc::SYS_fork, a)),
        libc::SYS_clone => {
            let flags = without_vfork(a[0] as u64);
            (flags & SHARES == 0 && a[1] == 0)
                .then_some((number, [flags as usize, a[1], a[2], a[3], a[4], a[5]]))
        }
        libc::SYS_clone3
            if a[0] != 0 && (CLONE_ARGS_SIZE..=size_of::<CloneArgs>()).contains(&a[1]) =>
        {
            // SAFETY: the program says that so many bytes are there, and no more fit here.
            unsafe {
                let bytes = place.as_mut_ptr().cast::<u8>();
                bytes.copy_from_nonoverlapping(a[0] as *const u8, a[1]);
            }
            let [flags, _, _, _, _, stack, ..] = place;
            *flags = without_vfork(*flags);
            (*flags & SHARES == 0 && *stack == 0)
                .then_some((number, [place.as_ptr() as usize, a[1], a[2], a[3], a[4], a[5]]))
        }
        _ => None,
    }
}

/// What changes which descriptors there are, where one of ours is concerned: the table has to follow.
fn change_descriptors(number: c_long, a: [usize; 6]) -> Option<c_int> {
    let (old, new) = (a[0] as c_int, a[1] as c_int);
    let known = |fd| fdtable::get(fd) != Entry::None;
    let concerns_us = match number {
        libc::SYS_close | libc::SYS_dup | libc::SYS_fcntl => known(old),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_dup2 => known(old) || known(new),
        libc::SYS_dup3 => known(old) || known(new),
        libc::SYS_close_range => fdtable::top() != 0,
        _ => false,
    };
    if !concerns_us {
        return None;
    }
    Some(match number {
        libc::SYS_close => close(old),
        libc::SYS_dup => dup(old),
        libc::SYS_dup3 => dup3(old, new, a[2] as c_int),
        libc::SYS_close_range => close_range(a[0] as c_uint, a[1] as c_uint, a[2] as c_int),
        libc::SYS_fcntl => fcntl(old, new, a[2]),
        _ => dup2(old, new),
    })
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
    let native = || unsafe { sys::call(number, arguments) };
    let mut place = CloneArgs::default();
    if let Some((number, arguments)) = as_fork(number, arguments, &mut place)
        && let Some(p) = process()
    {
        // SAFETY: the caller's promise.
        return fork_as_guest(p, || unsafe { sys::call(number, arguments) } as pid_t).into();
    }
    if matches!(number, libc::SYS_execve | libc::SYS_execveat)
        && let Some(p) = process()
        && let Err(e) = standin::settle_inheritable(p)
    {
        return sys::fail(e).into();
    }
    if let Some(r) = change_descriptors(number, arguments) {
        return r.into();
    }
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
