//! posix_spawn, popen and daemon.
//!
//! A spawned child is a fresh exec: it attaches by itself and finds its descriptors by their tags. Until then the daemon holds
//! the sockets that it may get, for the parent may close them at once.

use core::ffi::CStr;
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use libc::{c_char, c_int, c_void, pid_t};

use super::descriptors::{close, dup2};
use super::environment::{Environment, for_each_candidate, restore_environment};
use super::exec::{Strings, check};
use super::rights::hold;
use crate::fdtable::{self, Entry};
use crate::process::{Process, process};
use crate::{fork, next, standin, sys};

type Spawn = unsafe extern "C" fn(
    *mut pid_t,
    *const c_char,
    *const c_void,
    *const c_void,
    Strings,
    Strings,
) -> c_int;
type AddDup2 = unsafe extern "C" fn(*mut c_void, c_int, c_int) -> c_int;
type Popen = unsafe extern "C" fn(*const c_char, *const c_char) -> *mut c_void;

/// The daemon holds what an exec of a child would inherit.
fn hold_inheritable(p: &Process) {
    fdtable::for_each_socket(|fd, id, generation| {
        if sys::fcntl(fd, libc::F_GETFD, 0) & libc::FD_CLOEXEC == 0 {
            let _ = hold(p, id, generation);
        }
    });
    // Where the daemon could not be asked, the child finds them all the same.
    let _ = standin::settle_inheritable(p);
}

/// Descriptors that file actions name: what stands there when they are used counts, not what stood there when they were made.
const NAMED_MAX: usize = 64;
static NAMED: [AtomicI32; NAMED_MAX] = [const { AtomicI32::new(-1) }; NAMED_MAX];
/// More than that were named.
static ANY: AtomicBool = AtomicBool::new(false);

fn name_descriptor(fd: c_int) {
    for place in &NAMED {
        match place.compare_exchange(-1, fd, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return,
            Err(named) if named == fd => return,
            Err(_) => {}
        }
    }
    ANY.store(true, Ordering::Release);
}

/// The daemon holds what file actions may give to a child.
fn hold_named(p: &Process) {
    let hold_one = |fd: c_int| {
        if let Entry::Socket { id, generation } = fdtable::get(fd) {
            let _ = hold(p, id, generation);
            let _ = standin::settle(fd);
        }
    };
    if ANY.load(Ordering::Acquire) {
        fdtable::for_each_socket(|fd, _, _| hold_one(fd));
    } else {
        NAMED.iter().for_each(|named| hold_one(named.load(Ordering::Acquire)));
    }
}

#[allow(clippy::too_many_arguments, reason = "posix_spawn has six of its own")]
fn spawn(
    real: *mut c_void,
    search: bool,
    pid: *mut pid_t,
    path: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    argv: Strings,
    envp: Strings,
) -> c_int {
    if real.is_null() {
        return libc::ENOSYS;
    }
    // SAFETY: the C library's function of that name and signature.
    let real: Spawn = unsafe { core::mem::transmute(real) };
    // SAFETY: the program's own arguments.
    let run = |envp: Strings| unsafe { real(pid, path, actions, attributes, argv, envp) };
    let Some(p) = process() else { return run(envp) };
    if path.is_null() {
        return libc::EFAULT;
    }
    // SAFETY: the program's C string.
    let name = unsafe { CStr::from_ptr(path) };
    let checked = if search {
        for_each_candidate(name, |c| nk_elfcheck::check_path(c).is_ok().then(|| check(p, c)))
            .unwrap_or(Ok(()))
    } else {
        check(p, name)
    };
    if let Err(e) = checked {
        return e;
    }
    let environment = match Environment::complete(envp) {
        Ok(e) => e,
        Err(e) => return e,
    };
    hold_inheritable(p);
    if !actions.is_null() {
        hold_named(p);
    }
    run(environment.as_ptr())
}

/// posix_spawn(3).
///
/// # Safety
/// As posix_spawn(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawn(
    pid: *mut pid_t,
    path: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    argv: Strings,
    envp: Strings,
) -> c_int {
    spawn(next::POSIX_SPAWN.get(), false, pid, path, actions, attributes, argv, envp)
}

/// posix_spawnp(3).
///
/// # Safety
/// As posix_spawnp(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawnp(
    pid: *mut pid_t,
    file: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    argv: Strings,
    envp: Strings,
) -> c_int {
    spawn(next::POSIX_SPAWNP.get(), true, pid, file, actions, attributes, argv, envp)
}

/// posix_spawn_file_actions_adddup2(3): the child will get this socket.
///
/// # Safety
/// As posix_spawn_file_actions_adddup2(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawn_file_actions_adddup2(
    actions: *mut c_void,
    fd: c_int,
    new: c_int,
) -> c_int {
    if let Entry::Socket { id, generation } = fdtable::get(fd)
        && let Some(p) = process()
        && let Err(e) = hold(p, id, generation)
    {
        return e;
    }
    name_descriptor(fd);
    let real = next::ADDDUP2.get();
    if real.is_null() {
        return libc::ENOSYS;
    }
    // SAFETY: the C library's function of that name and signature, with the program's arguments.
    unsafe { core::mem::transmute::<*mut c_void, AddDup2>(real)(actions, fd, new) }
}

/// popen(3): goes on while its child runs, so what the child inherits is held.
///
/// # Safety
/// As popen(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn popen(command: *const c_char, mode: *const c_char) -> *mut c_void {
    if let Some(p) = process() {
        hold_inheritable(p);
        restore_environment();
    }
    let real = next::POPEN.get();
    if real.is_null() {
        sys::set_errno(libc::ENOSYS);
        return core::ptr::null_mut();
    }
    // SAFETY: the C library's function of that name and signature, with the program's arguments.
    unsafe { core::mem::transmute::<*mut c_void, Popen>(real)(command, mode) }
}

/// system(3).
///
/// # Safety
/// As system(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn system(command: *const c_char) -> c_int {
    type System = unsafe extern "C" fn(*const c_char) -> c_int;
    if let Some(p) = process() {
        hold_inheritable(p);
        restore_environment();
    }
    let real = next::SYSTEM.get();
    if real.is_null() {
        return sys::fail(libc::ENOSYS);
    }
    // SAFETY: the C library's function of that name and signature, with the program's argument.
    unsafe { core::mem::transmute::<*mut c_void, System>(real)(command) }
}

/// daemon(3): glibc's own forks past our fork.
#[unsafe(no_mangle)]
pub extern "C" fn daemon(no_chdir: c_int, no_close: c_int) -> c_int {
    match fork::fork() {
        -1 => return -1,
        0 => {}
        _ => sys::exit_now(0),
    }
    // SAFETY: takes nothing.
    if unsafe { libc::setsid() } < 0 {
        return -1;
    }
    if no_chdir == 0 {
        // SAFETY: a literal path.
        let _ = unsafe { libc::chdir(c"/".as_ptr()) };
    }
    if no_close == 0 {
        // SAFETY: a literal path.
        let fd = unsafe {
            sys::system_call!(libc::SYS_openat, libc::AT_FDCWD, c"/dev/null".as_ptr(), libc::O_RDWR)
                as c_int
        };
        if fd < 0 {
            return -1;
        }
        for to in 0..=2 {
            dup2(fd, to);
        }
        if fd > 2 {
            close(fd);
        }
    }
    0
}
