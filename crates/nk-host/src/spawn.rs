//! Starting this program again as another process: detached from terminal, session and descriptors, or as a child.

use std::ffi::{CStr, c_char};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// This program.
pub const THIS: &CStr = c"/proc/self/exe";
/// The descriptor that the started process gets.
const PASSED_FD: RawFd = 3;

/// The descriptor with which this process was started, once.
///
/// # Errors
/// EBADF where it was started without, or has taken it.
pub fn passed() -> io::Result<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    // SAFETY: plain numbers.
    let is_open = unsafe { libc::fcntl(PASSED_FD, libc::F_GETFD) } >= 0;
    if !is_open || TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it was opened for this process before its program began, and is taken here alone, and once.
    Ok(unsafe { OwnedFd::from_raw_fd(PASSED_FD) })
}

/// In the child: stdio as said, `passed` at 3, nothing else open. Only system calls.
///
/// # Safety
/// Runs between fork and exec; `argv` is a null-terminated array of C strings.
unsafe fn become_program(
    program: &CStr,
    passed: RawFd,
    argv: *const *const c_char,
    log: Option<&CStr>,
) -> ! {
    // SAFETY: system calls on data that the caller made before the fork.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        // A copy out of the way of the numbers to be filled.
        let kept = libc::fcntl(passed, libc::F_DUPFD, 10);
        libc::dup2(null, 0);
        if let Some(log) = log {
            let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT;
            let out = libc::open(log.as_ptr(), flags, 0o600);
            let out = if out >= 0 { out } else { null };
            libc::dup2(out, 1);
            libc::dup2(out, 2);
        } else {
            libc::dup2(null, 1);
        }
        libc::dup2(kept, PASSED_FD);
        libc::syscall(libc::SYS_close_range, PASSED_FD + 1, u32::MAX, 0);
        libc::chdir(c"/".as_ptr());
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::execv(program.as_ptr(), argv);
        libc::_exit(127)
    }
}

/// fork, setsid, fork, exec of a program. stderr goes to `log`, or stays this process's where `log` is `None`. The caller may have threads.
///
/// # Errors
/// Those of fork.
pub fn detached(
    program: &CStr,
    passed: RawFd,
    argv: &[*const c_char],
    log: Option<&CStr>,
) -> io::Result<()> {
    // SAFETY: between fork and exec only system calls on data made before, which is sound with other threads. The second fork
    // is one, too: the library's own is not for the child of a process with threads.
    unsafe {
        let child = libc::fork();
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        if child == 0 {
            libc::setsid();
            if libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0usize, 0usize, 0usize, 0usize) != 0 {
                libc::_exit(0);
            }
            become_program(program, passed, argv.as_ptr(), log);
        }
        // Where SIGCHLD is ignored there is nothing to wait for.
        while libc::waitpid(child, std::ptr::null_mut(), 0) < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
    Ok(())
}

/// A child, which with `dies_along` is killed when this process ends. Returns its pid; the caller waits for it. The caller may have
/// threads.
///
/// # Errors
/// Those of fork.
pub fn child(
    program: &CStr,
    passed: RawFd,
    argv: &[*const c_char],
    dies_along: bool,
) -> io::Result<i32> {
    // SAFETY: between fork and exec only system calls on data made before, which is sound with other threads.
    unsafe {
        let parent = libc::getpid();
        let child = libc::fork();
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        if child == 0 {
            if dies_along {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid() != parent {
                    libc::_exit(1);
                }
            }
            become_program(program, passed, argv.as_ptr(), None);
        }
        Ok(child)
    }
}
