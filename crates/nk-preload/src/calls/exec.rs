//! exec in all its forms: the file is checked, the environment carries what the next image needs, the row says that the
//! process is not dead.

use core::ffi::CStr;
use core::sync::atomic::Ordering;

use libc::{c_char, c_int};
use nk_device::row::{ExecRefused, Missed, ROW_EXECING, ROW_LIVE};
use nk_elfcheck::Verdict;

use super::environment::{Environment, environment, for_each, for_each_candidate};
use super::native;
use crate::process::{Process, process};
use crate::sys::{self, Memory};
use crate::{borrowers, standin};

pub(crate) type Strings = *const *const c_char;

fn refuse(p: &Process, path: &CStr, why: ExecRefused) -> c_int {
    p.count_missed(Missed::Exec, why as u64);
    sys::complain(&[
        b"netkernel: not running ",
        path.to_bytes(),
        b": ",
        nk_elfcheck::subject(path).as_bytes(),
        nk_elfcheck::explain(why).as_bytes(),
        b"\n",
    ]);
    libc::EACCES
}

/// Whether the file may be run.
///
/// # Errors
/// EACCES when GuestLib cannot load into it. A file that cannot be run at all passes: exec says why.
pub(crate) fn check(p: &Process, path: &CStr) -> Result<(), c_int> {
    match nk_elfcheck::check_path(path) {
        Ok(Verdict::Refused(why)) => Err(refuse(p, path, why)),
        // May be run but not read: the usual mode of set-uid programs.
        Ok(Verdict::Unreadable) => Err(refuse(p, path, ExecRefused::Setuid)),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Runs a native exec with the row marked; comes back when it failed.
fn marked(p: &Process, envp: Strings, exec: impl FnOnce(Strings) -> c_int) -> c_int {
    let environment = match Environment::complete(envp) {
        Ok(e) => e,
        Err(e) => return sys::fail(e),
    };
    if !p.is_caller() {
        // The row is its parent's.
        return match borrowers::lend_inheritable(p) {
            Ok(()) => exec(environment.as_ptr()),
            Err(e) => sys::fail(e),
        };
    }
    if let Err(e) = standin::settle_inheritable(p) {
        return sys::fail(e);
    }
    let Some(row) = p.row() else { return sys::fail(libc::ENETDOWN) };
    row.phase.store(ROW_EXECING, Ordering::SeqCst);
    let r = exec(environment.as_ptr());
    row.phase.store(ROW_LIVE, Ordering::SeqCst);
    // The memory goes without touching errno.
    let e = sys::errno();
    drop(environment);
    sys::set_errno(e);
    r
}

/// # Safety
/// As execve(2).
unsafe fn exec_path(path: *const c_char, argv: Strings, envp: Strings) -> c_int {
    let run = |envp: Strings| native!(libc::SYS_execve, path, argv, envp) as c_int;
    let Some(p) = process() else { return run(envp) };
    if path.is_null() {
        return sys::fail(libc::EFAULT);
    }
    // SAFETY: the program's C string.
    if let Err(e) = check(p, unsafe { CStr::from_ptr(path) }) {
        return sys::fail(e);
    }
    marked(p, envp, run)
}

/// execve(2).
///
/// # Safety
/// As execve(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { exec_path(path, argv, envp) }
}

/// execv(3).
///
/// # Safety
/// As execv(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execv(path: *const c_char, argv: Strings) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { exec_path(path, argv, environment()) }
}

/// fexecve(3).
///
/// # Safety
/// As fexecve(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fexecve(fd: c_int, argv: Strings, envp: Strings) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { execveat(fd, c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH) }
}

/// execveat(2).
///
/// # Safety
/// As execveat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execveat(
    directory: c_int,
    path: *const c_char,
    argv: Strings,
    envp: Strings,
    flags: c_int,
) -> c_int {
    let run =
        |envp: Strings| native!(libc::SYS_execveat, directory, path, argv, envp, flags) as c_int;
    let Some(p) = process() else { return run(envp) };
    if path.is_null() {
        return sys::fail(libc::EFAULT);
    }
    // SAFETY: the program's C string.
    let name = unsafe { CStr::from_ptr(path) };
    let verdict = if name.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
        nk_elfcheck::check_fd(directory, None)
    } else if directory == libc::AT_FDCWD || name.to_bytes().starts_with(b"/") {
        nk_elfcheck::check_path(name)
    } else {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let fd = native!(libc::SYS_openat, directory, path, flags) as c_int;
        if fd < 0 {
            return run(envp);
        }
        let v = nk_elfcheck::check_fd(fd, Some(name));
        sys::close(fd);
        v
    };
    let verdict = match verdict {
        Ok(Verdict::Script(i)) => nk_elfcheck::check_path(i.path()),
        v => v,
    };
    match verdict {
        Ok(Verdict::Refused(why)) => sys::fail(refuse(p, name, why)),
        Ok(Verdict::Unreadable) => sys::fail(refuse(p, name, ExecRefused::Setuid)),
        _ => marked(p, envp, run),
    }
}

/// A file that the kernel does not know is a script for the shell.
///
/// # Safety
/// As execve(2).
unsafe fn exec_by_shell(path: &CStr, argv: Strings, envp: Strings) -> c_int {
    let mut count = 0;
    for_each(argv, |_| count += 1);
    let Some(memory) = Memory::new((count + 3) * size_of::<*const c_char>()) else {
        return sys::fail(libc::ENOMEM);
    };
    let list = memory.as_ptr().cast::<*const c_char>();
    // SAFETY: room for the shell, the script, the arguments after the first, and the end (zeroed memory).
    unsafe {
        list.write(c"/bin/sh".as_ptr());
        list.add(1).write(path.as_ptr());
        for i in 1..count {
            list.add(i + 1).write(*argv.add(i));
        }
        exec_path(c"/bin/sh".as_ptr(), list.cast_const(), envp)
    }
}

/// execvpe(3).
///
/// # Safety
/// As execvpe(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvpe(name: *const c_char, argv: Strings, envp: Strings) -> c_int {
    if name.is_null() {
        return sys::fail(libc::EFAULT);
    }
    // SAFETY: the program's C string.
    let name = unsafe { CStr::from_ptr(name) };
    if name.is_empty() {
        return sys::fail(libc::ENOENT);
    }
    let mut denied = false;
    let last = for_each_candidate(name, |path| {
        // SAFETY: the caller's promise.
        let r = unsafe { exec_path(path.as_ptr(), argv, envp) };
        match sys::errno() {
            libc::ENOEXEC => {
                // SAFETY: the caller's promise.
                Some(unsafe { exec_by_shell(path, argv, envp) })
            }
            libc::EACCES => {
                denied = true;
                None
            }
            libc::ENOENT | libc::ESTALE | libc::ENOTDIR | libc::ENODEV | libc::ETIMEDOUT => None,
            _ => Some(r),
        }
    });
    if last.is_none() && denied {
        sys::set_errno(libc::EACCES);
    }
    -1
}

/// execvp(3).
///
/// # Safety
/// As execvp(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvp(name: *const c_char, argv: Strings) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { execvpe(name, argv, environment()) }
}

// execl, execlp and execle take their arguments one by one. These entries lay the argument registers out in memory
// and pass them, with the arguments that came on the stack, to `exec_list`.
macro_rules! list_entry {
    ($name:ident, $kind:literal) => {
        /// Of the exec family, with its arguments in a list.
        ///
        /// # Safety
        /// As the C function, whose signature is variadic; only C callers pass it right.
        #[cfg(target_arch = "x86_64")]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                "sub rsp, 56",
                "mov [rsp], rdi",
                "mov [rsp + 8], rsi",
                "mov [rsp + 16], rdx",
                "mov [rsp + 24], rcx",
                "mov [rsp + 32], r8",
                "mov [rsp + 40], r9",
                "mov edi, {kind}",
                "mov rsi, rsp",
                "lea rdx, [rsp + 64]",
                "call {list}",
                "add rsp, 56",
                "ret",
                kind = const $kind,
                list = sym exec_list,
            )
        }

        /// Of the exec family, with its arguments in a list.
        ///
        /// # Safety
        /// As the C function, whose signature is variadic; only C callers pass it right.
        #[cfg(target_arch = "aarch64")]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                "stp x29, x30, [sp, -80]!",
                "stp x0, x1, [sp, 16]",
                "stp x2, x3, [sp, 32]",
                "stp x4, x5, [sp, 48]",
                "stp x6, x7, [sp, 64]",
                "mov w0, {kind}",
                "add x1, sp, 16",
                "add x2, sp, 80",
                "bl {list}",
                "ldp x29, x30, [sp], 80",
                "ret",
                kind = const $kind,
                list = sym exec_list,
            )
        }
    };
}
list_entry!(execl, 0);
list_entry!(execlp, 1);
list_entry!(execle, 2);

#[cfg(target_arch = "x86_64")]
const ARGUMENT_REGISTERS: usize = 6;
#[cfg(target_arch = "aarch64")]
const ARGUMENT_REGISTERS: usize = 8;

/// `kind`: 0 execl, 1 execlp, 2 execle.
///
/// # Safety
/// Called by the entries above only, with what a caller of these functions passed.
unsafe extern "C" fn exec_list(kind: c_int, registers: Strings, stack: Strings) -> c_int {
    let argument = |i: usize| {
        let at = if i < ARGUMENT_REGISTERS {
            registers.wrapping_add(i)
        } else {
            stack.wrapping_add(i - ARGUMENT_REGISTERS)
        };
        // SAFETY: arguments are in the registers first, then on the stack, up to a null pointer and one more for execle.
        unsafe { *at }
    };
    let mut count = 1;
    while !argument(count).is_null() {
        count += 1;
    }
    // Arguments 1..count are argv; the null at `count` ends it.
    let Some(memory) = Memory::new((count + 1) * size_of::<*const c_char>()) else {
        return sys::fail(libc::ENOMEM);
    };
    let list = memory.as_ptr().cast::<*const c_char>();
    for i in 1..count {
        // SAFETY: room for count + 1 pointers.
        unsafe { list.add(i - 1).write(argument(i)) };
    }
    let envp: Strings = if kind == 2 { argument(count + 1).cast() } else { environment() };
    // SAFETY: as execve(2), by the caller of the variadic function.
    let r = unsafe {
        if kind == 1 {
            execvpe(argument(0), list.cast_const(), envp)
        } else {
            exec_path(argument(0), list.cast_const(), envp)
        }
    };
    let e = sys::errno();
    drop(memory);
    sys::set_errno(e);
    r
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    #[test]
    fn lists_become_arrays() {
        unsafe extern "C" {
            fn execl(path: *const c_char, arg: *const c_char, ...) -> c_int;
            fn execle(path: *const c_char, arg: *const c_char, ...) -> c_int;
        }
        let run = |variant: u32| {
            let mut pipe = [0; 2];
            let end = std::ptr::null::<c_char>();
            let envp = [c"E=of-the-list".as_ptr(), end];
            let script = c"printf %s, \"$0\" \"$@\" \"$E\" >&$1".as_ptr();
            // SAFETY: the child only makes system calls before it execs.
            unsafe {
                assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
                let to = CString::new(pipe[1].to_string()).expect("number");
                let child = sys::system_call!(libc::SYS_fork);
                if child == 0 {
                    let sh = c"/bin/sh".as_ptr();
                    let (c, a, b) = (c"-c".as_ptr(), c"a".as_ptr(), c"b".as_ptr());
                    if variant == 0 {
                        execl(sh, sh, c, script, a, to.as_ptr(), b, b, b, b, end);
                    } else {
                        execle(sh, sh, c, script, a, to.as_ptr(), b, end, envp.as_ptr());
                    }
                    libc::_exit(1);
                }
                sys::system_call!(libc::SYS_close, pipe[1]);
                let mut b = [0u8; 256];
                let n = sys::system_call!(libc::SYS_read, pipe[0], b.as_mut_ptr(), 256usize);
                sys::system_call!(libc::SYS_close, pipe[0]);
                libc::waitpid(child as i32, std::ptr::null_mut(), 0);
                let text = std::str::from_utf8(&b[..n.max(0) as usize]).expect("text");
                text.replace(&format!(",{},", to.to_str().expect("number")), ",N,")
            }
        };
        assert_eq!(run(0), "a,N,b,b,b,b,,");
        assert_eq!(run(1), "a,N,b,of-the-list,");
    }
}
