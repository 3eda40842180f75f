//! clone(2), the function, and forkpty: children that are made neither by fork nor by number.
//!
//! One with memory of its own is a process of the guest from the first, as fork's. One that shares its parent's memory and is no thread is a
//! borrower (`crate::borrowers`).

use libc::{c_char, c_int, c_void, pid_t};

use super::descriptors::close;
use super::rights::hold;
use crate::fork::{finish_in_child, fork, fork_as_guest};
use crate::process::process;
use crate::sys::{self, SignalsBlocked};
use crate::{borrowers, fdtable, next};

type Function = unsafe extern "C" fn(*mut c_void) -> c_int;
type Clone = unsafe extern "C" fn(
    Function,
    *mut c_void,
    c_int,
    *mut c_void,
    *mut pid_t,
    *mut c_void,
    *mut pid_t,
) -> c_int;

/// What a child begins with. It lies on the child's own stack, as its parent's may be another's by then.
struct Start {
    function: Function,
    argument: *mut c_void,
    flags: c_int,
    /// In the child of a fork: what its parent blocked for the time of it.
    signals: Option<SignalsBlocked>,
}

unsafe extern "C" fn start(start: *mut c_void) -> c_int {
    // SAFETY: as `clone` put it there; read once.
    let Start { function, argument, flags, signals } = unsafe { start.cast::<Start>().read() };
    if flags & libc::CLONE_VM != 0 {
        borrowers::begin(flags & libc::CLONE_FILES != 0);
    } else {
        finish_in_child();
    }
    drop(signals);
    // SAFETY: the program's function and argument.
    unsafe { function(argument) }
}

/// clone(2). Variadic in C; on the machines served, a caller passes the optional arguments where fixed ones would be.
///
/// # Safety
/// As clone(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clone(
    function: Option<Function>,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
    parent_tid: *mut pid_t,
    tls: *mut c_void,
    child_tid: *mut pid_t,
) -> c_int {
    // SAFETY: the C library's function of that name and signature.
    let Some(real) = (unsafe { next::CLONE.function::<Clone>() }) else {
        return sys::fail(libc::ENOSYS);
    };
    let Some(function) = function.filter(|_| !stack.is_null()) else {
        return sys::fail(libc::EINVAL);
    };
    let shares_memory = flags & libc::CLONE_VM != 0;
    let is_thread = flags & libc::CLONE_THREAD != 0;
    let shares_table = !shares_memory && flags & libc::CLONE_FILES != 0;
    let Some(p) = process().filter(|_| !is_thread && !shares_table) else {
        // SAFETY: the caller's promise.
        return unsafe { real(function, stack, flags, argument, parent_tid, tls, child_tid) };
    };
    let place = (stack as usize).wrapping_sub(size_of::<Start>()) & !15;
    let place = place as *mut Start;
    let run = |flags, signals| {
        // SAFETY: the top of the new stack, which is the program's memory and nobody's yet; else as the caller promises.
        unsafe {
            place.write(Start { function, argument, flags, signals });
            real(start, place.cast(), flags, place.cast(), parent_tid, tls, child_tid)
        }
    };
    if shares_memory {
        if flags & libc::CLONE_VFORK == 0 {
            // The parent goes on, and may close at once what the child is to give away.
            fdtable::for_each_socket(|_, id, generation| {
                let _ = hold(p, id, generation);
            });
        }
        fdtable::add_borrower();
        let pid = run(flags, None);
        if pid < 0 || flags & libc::CLONE_VFORK != 0 {
            fdtable::drop_borrower();
        }
        return pid;
    }
    let signals = SignalsBlocked::new();
    fork_as_guest(p, || run(flags & !libc::CLONE_VFORK, Some(signals.copy())))
}

/// forkpty(3): glibc's own forks past our fork.
///
/// # Safety
/// As forkpty(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forkpty(
    terminal: *mut c_int,
    name: *mut c_char,
    settings: *const c_void,
    size: *const c_void,
) -> pid_t {
    type OpenPty = unsafe extern "C" fn(
        *mut c_int,
        *mut c_int,
        *mut c_char,
        *const c_void,
        *const c_void,
    ) -> c_int;
    type LoginTty = unsafe extern "C" fn(c_int) -> c_int;
    // SAFETY: the functions of that name and signature (of libutil before glibc 2.34).
    let found =
        unsafe { (next::OPENPTY.function::<OpenPty>(), next::LOGIN_TTY.function::<LoginTty>()) };
    let (Some(openpty), Some(login_tty)) = found else { return sys::fail(libc::ENOSYS) };
    let (mut near, mut far) = (-1, -1);
    // SAFETY: the program's arguments.
    if unsafe { openpty(&raw mut near, &raw mut far, name, settings, size) } < 0 {
        return -1;
    }
    let pid = fork();
    match pid {
        -1 => {
            let why = sys::errno();
            close(near);
            close(far);
            return sys::fail(why);
        }
        0 => {
            close(near);
            // SAFETY: a descriptor of our own.
            if unsafe { login_tty(far) } != 0 {
                sys::exit_now(1);
            }
        }
        _ => {
            // SAFETY: the program's place.
            unsafe { terminal.write(near) };
            close(far);
        }
    }
    pid
}
