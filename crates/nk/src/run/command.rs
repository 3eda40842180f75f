//! Finding the command as a shell does, and refusing what GuestLib cannot load into.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use nk_elfcheck::{ExecRefused, Verdict};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::Failure;

/// Found, but it cannot be run.
const STATUS_CANNOT: i32 = 126;
/// Not found.
const STATUS_NOT_FOUND: i32 = 127;

/// The program's path, looked at.
pub(super) fn find(name: &OsStr) -> Result<CString, Failure> {
    let path = search(name)?;
    let shown = path.to_string_lossy();
    match nk_elfcheck::check_path(&path) {
        Ok(Verdict::Loads | Verdict::NotBinary | Verdict::Script(_)) => Ok(path),
        Ok(Verdict::Unreadable) => Err(Failure::new(
            STATUS_CANNOT,
            format!(
                "{shown}: cannot be read, so nobody can tell whether libnetkernel.so would load; make it readable"
            ),
        )),
        Ok(Verdict::Refused(reason)) => Err(refused(&path, reason)),
        Err(e) => {
            let status = if e == libc::ENOENT { STATUS_NOT_FOUND } else { STATUS_CANNOT };
            let e = std::io::Error::from_raw_os_error(e);
            Err(Failure::new(status, format!("{shown}: {e}")))
        }
    }
}

fn refused(path: &CStr, reason: ExecRefused) -> Failure {
    let text = format!(
        "{}: cannot run as a guest: {}{}",
        path.to_string_lossy(),
        nk_elfcheck::subject(path),
        nk_elfcheck::explain(reason)
    );
    Failure::new(STATUS_CANNOT, text)
}

fn is_executable(path: &CStr) -> bool {
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

fn search(name: &OsStr) -> Result<CString, Failure> {
    let not_found = |text: String| Failure::new(STATUS_NOT_FOUND, text);
    let shown = name.to_string_lossy();
    let c = |bytes: Vec<u8>| {
        CString::new(bytes).map_err(|_| not_found(format!("{shown}: a NUL byte in a name")))
    };
    if name.is_empty() {
        return Err(not_found("the command's name is empty".into()));
    }
    if name.as_bytes().contains(&b'/') {
        let path = c(name.as_bytes().to_vec())?;
        return match std::fs::metadata(name) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(not_found(format!("{shown}: {e}")))
            }
            Ok(m) if m.is_dir() => {
                Err(Failure::new(STATUS_CANNOT, format!("{shown}: is a directory")))
            }
            Ok(_) if !is_executable(&path) => {
                Err(Failure::new(STATUS_CANNOT, format!("{shown}: not executable")))
            }
            _ => Ok(path),
        };
    }
    let dirs = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let mut seen = false;
    for dir in dirs.as_bytes().split(|b| *b == b':') {
        // An empty entry is the working directory.
        let dir = if dir.is_empty() { b"." } else { dir };
        let path = c([dir, b"/", name.as_bytes()].concat())?;
        let is_file =
            std::fs::metadata(OsStr::from_bytes(path.as_bytes())).is_ok_and(|m| m.is_file());
        if is_file && is_executable(&path) {
            return Ok(path);
        }
        seen |= is_file;
    }
    if seen {
        return Err(Failure::new(
            STATUS_CANNOT,
            format!("{shown}: found in PATH, but not executable"),
        ));
    }
    Err(not_found(format!("{shown}: command not found")))
}

/// What shells and execvp do with a file that is neither ELF nor starts with `#!`. Returns only on failure.
pub(super) fn as_shell_script(
    program: &CStr,
    argv: &[CString],
    envp: &[CString],
) -> std::io::Error {
    let mut args = vec![c"/bin/sh".as_ptr(), program.as_ptr()];
    args.extend(argv.iter().skip(1).map(|a| a.as_ptr()));
    args.push(std::ptr::null());
    let mut vars: Vec<_> = envp.iter().map(|v| v.as_ptr()).collect();
    vars.push(std::ptr::null());
    // SAFETY: null-terminated arrays of C strings that live until the call returns.
    unsafe { libc::execve(c"/bin/sh".as_ptr(), args.as_ptr(), vars.as_ptr()) };
    std::io::Error::last_os_error()
}
