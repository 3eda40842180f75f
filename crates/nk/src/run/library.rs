//! Finding libnetkernel.so, and trying whether it loads before anything depends on it.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nk_attach::env;

use super::STATUS_NK;
use crate::Failure;

const NAME: &str = "libnetkernel.so";

/// `$NK_LIBRARY`, else next to this program, in `../lib` or `../lib/netkernel`.
pub(super) fn find() -> Result<PathBuf, Failure> {
    let fail = |text: String| Failure::new(STATUS_NK, text);
    let found = if let Some(p) = std::env::var_os(env::LIBRARY).filter(|p| !p.is_empty()) {
        let p = PathBuf::from(p);
        std::fs::canonicalize(&p).map_err(|e| fail(format!("NK_LIBRARY={}: {e}", p.display())))?
    } else {
        let exe = std::env::current_exe().map_err(|e| fail(format!("cannot find myself: {e}")))?;
        let dir = exe.parent().unwrap_or(Path::new("/")).to_owned();
        let places = [
            dir.join(NAME),
            dir.join("../lib").join(NAME),
            dir.join("../lib/netkernel").join(NAME),
        ];
        places.iter().find_map(|p| std::fs::canonicalize(p).ok()).ok_or_else(|| {
            let dir = dir.display();
            fail(format!("{NAME} is neither in {dir} nor in {dir}/../lib; install it there, or set NK_LIBRARY"))
        })?
    };
    // The loader splits LD_PRELOAD at these.
    if found.as_os_str().as_bytes().iter().any(|b| *b == b' ' || *b == b':') {
        let text = format!(
            "{}: LD_PRELOAD cannot name a path with a blank or a colon; move it",
            found.display()
        );
        return Err(fail(text));
    }
    Ok(found)
}

/// Loads the library in a child: the loader itself only warns when it cannot, and the program would run without it.
pub(super) fn check(library: &Path) -> Result<(), Failure> {
    let fail = |why: &str| {
        let text = format!(
            "{} does not load: {why}; build or install it for this system",
            library.display()
        );
        Failure::new(STATUS_NK, text)
    };
    let path = CString::new(library.as_os_str().as_bytes()).map_err(|_| fail("a NUL byte"))?;
    let mut pipe = [0; 2];
    // SAFETY: this process has one thread. The child only loads the library (whose constructor does nothing without
    // NK_TOKEN, which is taken away first), writes to the pipe and ends.
    unsafe {
        if libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(fail("no pipe"));
        }
        let child = libc::fork();
        if child == 0 {
            libc::unsetenv(c"NK_TOKEN".as_ptr());
            libc::unsetenv(c"NK_SOCKET".as_ptr());
            if libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL).is_null() {
                let why = libc::dlerror();
                if !why.is_null() {
                    let why = CStr::from_ptr(why);
                    libc::write(pipe[1], why.as_ptr().cast(), why.to_bytes().len());
                }
                libc::_exit(1);
            }
            libc::_exit(0);
        }
        libc::close(pipe[1]);
        let mut why = [0u8; 512];
        let n = libc::read(pipe[0], why.as_mut_ptr().cast(), why.len()).max(0) as usize;
        libc::close(pipe[0]);
        let mut status = 0;
        let waited = libc::waitpid(child, &raw mut status, 0);
        // waitpid fails where SIGCHLD is ignored; then the pipe alone says it.
        let good = if waited == child {
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
        } else {
            child > 0 && n == 0
        };
        if good {
            return Ok(());
        }
        Err(fail(std::str::from_utf8(why.get(..n).unwrap_or(&[])).unwrap_or("it crashed")))
    }
}
