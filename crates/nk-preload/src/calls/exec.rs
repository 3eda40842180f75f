//! exec in all its forms: the file is checked, the environment carries what the next image needs, the row says that the
//! process is not dead.

use core::ffi::CStr;
use core::ptr::null;
use core::sync::atomic::Ordering;

use libc::{c_char, c_int};
use nk_attach::env;
use nk_device::row::{ExecRefused, Missed, ROW_EXECING, ROW_LIVE};
use nk_elfcheck::Verdict;

use super::native;
use crate::attach::{LIBRARY, SOCKET, TOKEN, value_of};
use crate::process::{Process, process};
use crate::sys::{self, Memory};

type Strings = *const *const c_char;

unsafe extern "C" {
    #[link_name = "__environ"]
    static ENVIRON: Strings;
}

/// The environment now.
pub(crate) fn environment() -> Strings {
    // SAFETY: glibc's variable; a program that changes it in another thread at the same time breaks exec natively, too.
    unsafe { ENVIRON }
}

fn refuse(p: &Process, path: &CStr, why: ExecRefused) -> c_int {
    p.count_missed(Missed::Exec, why as u64);
    sys::complain(&[
        b"netkernel: not running ",
        path.to_bytes(),
        b": ",
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

/// An environment with our variables, in memory of its own; the program's where it had them all.
#[derive(Debug)]
pub(crate) struct Environment {
    memory: Option<Memory>,
    given: Strings,
}

impl Environment {
    /// The array to pass on.
    pub(crate) fn as_ptr(&self) -> Strings {
        self.memory.as_ref().map_or(self.given, |m| m.as_ptr().cast())
    }

    /// Completes the program's environment.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn complete(given: Strings) -> Result<Environment, c_int> {
        let mut count = 0;
        let mut has = [false; 4];
        let mut preload: &[u8] = &[];
        let library = LIBRARY.get();
        for_each(given, |entry| {
            count += 1;
            let text = entry.to_bytes();
            for (h, (name, value)) in has.iter_mut().zip(ours()) {
                *h |= value_of(text, name) == Some(value);
            }
            if let Some(v) = value_of(text, PRELOAD) {
                preload = v;
                has[3] = v.split(|b| *b == b':' || *b == b' ').any(|l| l == library);
            }
        });
        if has.iter().all(|h| *h) {
            return Ok(Environment { memory: None, given });
        }
        let [(_, socket), (_, token), _] = ours();
        let text = 64 + socket.len() + token.len() + 2 * library.len() + preload.len();
        let pointers = (count + 5) * size_of::<*const c_char>();
        let memory = Memory::new(pointers + text).ok_or(libc::ENOMEM)?;
        let mut out = Writer {
            next: memory.as_ptr().cast::<*const c_char>(),
            text: memory.as_ptr().wrapping_add(pointers),
        };
        for_each(given, |entry| {
            let t = entry.to_bytes();
            let replaced = ours().iter().any(|(n, _)| value_of(t, n).is_some())
                || value_of(t, PRELOAD).is_some();
            if !replaced {
                out.pointer(entry.as_ptr());
            }
        });
        for (name, value) in ours() {
            out.entry(&[name.as_bytes(), b"=", value]);
        }
        let colon: &[u8] = if preload.is_empty() { b"" } else { b":" };
        if has[3] {
            out.entry(&[PRELOAD.as_bytes(), b"=", preload]);
        } else {
            out.entry(&[PRELOAD.as_bytes(), b"=", library, colon, preload]);
        }
        out.pointer(null());
        Ok(Environment { memory: Some(memory), given })
    }
}

const PRELOAD: &str = "LD_PRELOAD";

/// Puts our variables back into the program's own environment where it dropped them: for C library functions that start a
/// program with it and take no other.
pub(crate) fn restore_environment() {
    let Ok(completed) = Environment::complete(environment()) else { return };
    if completed.memory.is_none() {
        return;
    }
    for_each(completed.as_ptr(), |entry| {
        let t = entry.to_bytes();
        let is_ours =
            ours().iter().any(|(n, _)| value_of(t, n).is_some()) || value_of(t, PRELOAD).is_some();
        let Some(at) = t.iter().position(|b| *b == b'=') else { return };
        let mut name = [0u8; 16];
        if is_ours && let (Some(to), Some(from)) = (name.get_mut(..at), t.get(..at)) {
            to.copy_from_slice(from);
            // SAFETY: both are C strings (the name's array is longer than any of ours, and zeroed); setenv copies them.
            unsafe { libc::setenv(name.as_ptr().cast(), entry.as_ptr().add(at + 1), 1) };
        }
    });
}

fn ours() -> [(&'static str, &'static [u8]); 3] {
    [(env::SOCKET, SOCKET.get()), (env::TOKEN, TOKEN.get()), (env::LIBRARY, LIBRARY.get())]
}

struct Writer {
    next: *mut *const c_char,
    text: *mut u8,
}

impl Writer {
    fn pointer(&mut self, p: *const c_char) {
        // SAFETY: `complete` counted the pointers before it made the memory.
        unsafe { self.next.write(p) };
        self.next = self.next.wrapping_add(1);
    }

    fn entry(&mut self, parts: &[&[u8]]) {
        self.pointer(self.text.cast());
        for p in parts {
            // SAFETY: `complete` counted the bytes before it made the memory.
            unsafe { core::ptr::copy_nonoverlapping(p.as_ptr(), self.text, p.len()) };
            self.text = self.text.wrapping_add(p.len());
        }
        // The memory is zeroed: the string ends here.
        self.text = self.text.wrapping_add(1);
    }
}

/// Calls `f` for each string of a null-terminated array (none when it is null).
pub(crate) fn for_each<'a>(strings: Strings, mut f: impl FnMut(&'a CStr)) {
    let mut at = strings;
    // SAFETY: the program's own array, as exec takes it.
    unsafe {
        while !at.is_null() && !(*at).is_null() {
            f(CStr::from_ptr(*at));
            at = at.add(1);
        }
    }
}

/// Runs a native exec with the row marked; comes back when it failed.
fn marked(p: &Process, envp: Strings, exec: impl FnOnce(Strings) -> c_int) -> c_int {
    let environment = match Environment::complete(envp) {
        Ok(e) => e,
        Err(e) => return sys::fail(e),
    };
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

const PATH_MAX: usize = 4096;

/// Where a name is searched for: PATH, or what glibc takes without one.
fn search_path() -> &'static [u8] {
    let mut found: &[u8] = b"/bin:/usr/bin";
    for_each(environment(), |e| {
        if let Some(v) = value_of(e.to_bytes(), "PATH") {
            found = v;
        }
    });
    found
}

/// Calls `f` with each path that a name may mean, until it gives something. Without a slash in the name: the directories of PATH.
pub(crate) fn for_each_candidate<T>(
    name: &CStr,
    mut f: impl FnMut(&CStr) -> Option<T>,
) -> Option<T> {
    let text = name.to_bytes();
    if text.contains(&b'/') {
        return f(name);
    }
    let mut buffer = [0u8; PATH_MAX];
    for directory in search_path().split(|b| *b == b':') {
        let len = directory.len() + 1 + text.len();
        if len >= PATH_MAX {
            continue;
        }
        // An empty entry is the working directory.
        let parts: [&[u8]; 3] =
            if directory.is_empty() { [text, b"", b""] } else { [directory, b"/", text] };
        let mut at = 0;
        for p in parts {
            if let Some(to) = buffer.get_mut(at..at + p.len()) {
                to.copy_from_slice(p);
                at += p.len();
            }
        }
        if let Some(end) = buffer.get_mut(at) {
            *end = 0;
        }
        let path = buffer.get(..=at).and_then(|b| CStr::from_bytes_with_nul(b).ok());
        if let Some(path) = path
            && let Some(t) = f(path)
        {
            return Some(t);
        }
    }
    None
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
    // SAFETY (argument): arguments are in the registers first, then on the stack, up to a null pointer and one more for execle.
    let argument = |i: usize| unsafe {
        if i < ARGUMENT_REGISTERS { *registers.add(i) } else { *stack.add(i - ARGUMENT_REGISTERS) }
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

    fn completed(given: &[&str]) -> Vec<String> {
        SOCKET.set(b"/run/s");
        TOKEN.set(b"00ff");
        LIBRARY.set(b"/lib/n.so");
        let strings: Vec<CString> =
            given.iter().map(|s| CString::new(*s).expect("string")).collect();
        let mut pointers: Vec<*const c_char> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(null());
        let e = Environment::complete(pointers.as_ptr()).expect("memory");
        let mut out = Vec::new();
        for_each(e.as_ptr(), |s| out.push(s.to_str().expect("text").to_owned()));
        out.sort();
        out
    }

    #[test]
    fn what_a_program_dropped_from_its_environment_comes_back() {
        let all =
            ["LD_PRELOAD=/lib/n.so", "NK_LIBRARY=/lib/n.so", "NK_SOCKET=/run/s", "NK_TOKEN=00ff"];
        assert_eq!(completed(&[]), all);
        assert_eq!(completed(&all), all);
        assert_eq!(completed(&["NK_TOKEN=forged"]), all);
        let with = completed(&["A=1", "LD_PRELOAD=/x.so /y.so"]);
        assert_eq!(with[..2], ["A=1", "LD_PRELOAD=/lib/n.so:/x.so /y.so"]);
        let kept = completed(&["LD_PRELOAD=/x.so:/lib/n.so", "NK_LIBRARY=/lib/n.so"]);
        assert_eq!(kept[0], "LD_PRELOAD=/x.so:/lib/n.so");
        assert_eq!(kept.len(), 4);
    }

    #[test]
    fn names_are_searched_in_path_and_paths_are_not() {
        let mut seen = Vec::new();
        for_each_candidate::<()>(c"prog", |p| {
            seen.push(p.to_str().expect("text").to_owned());
            None
        });
        assert!(seen.len() > 1 && seen.iter().all(|p| p.ends_with("/prog") || p == "prog"));
        assert_eq!(for_each_candidate(c"./x", |p| Some(p.to_owned())), Some(c"./x".to_owned()));
    }

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
                let child = libc::syscall(libc::SYS_fork);
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
                libc::syscall(libc::SYS_close, pipe[1]);
                let mut b = [0u8; 256];
                let n = libc::syscall(libc::SYS_read, pipe[0], b.as_mut_ptr(), 256usize);
                libc::syscall(libc::SYS_close, pipe[0]);
                libc::waitpid(child as i32, std::ptr::null_mut(), 0);
                let text = std::str::from_utf8(&b[..n.max(0) as usize]).expect("text");
                text.replace(&format!(",{},", to.to_str().expect("number")), ",N,")
            }
        };
        assert_eq!(run(0), "a,N,b,b,b,b,,");
        assert_eq!(run(1), "a,N,b,of-the-list,");
    }
}
