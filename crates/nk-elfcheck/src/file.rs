//! Reading a file by raw syscalls: inside a guest the libc names are GuestLib's own.

use core::ffi::CStr;
use core::mem::zeroed;

/// A file to look at; closed on drop when it was opened here.
pub(crate) struct File {
    fd: i32,
    owned: bool,
}

impl Drop for File {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: closes a descriptor that this value opened.
            unsafe { libc::syscall(libc::SYS_close, self.fd) };
        }
    }
}

fn check(result: i64) -> Result<i64, i32> {
    if result >= 0 {
        return Ok(result);
    }
    // SAFETY: errno's location is valid for the calling thread.
    Err(unsafe { *libc::__errno_location() })
}

/// Whether the caller may execute the file, by its effective ids.
pub(crate) fn is_executable(path: &CStr) -> bool {
    const SYS_FACCESSAT2: i64 = 439;
    // SAFETY: a C string and plain numbers. Kernels before 5.8 answer ENOSYS, which reads as "no".
    let r = unsafe {
        libc::syscall(SYS_FACCESSAT2, libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS)
    };
    r == 0
}

impl File {
    pub(crate) fn borrowed(fd: i32) -> File {
        File { fd, owned: false }
    }

    pub(crate) fn open(path: &CStr) -> Result<File, i32> {
        // O_NONBLOCK: a FIFO must not stop us.
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
        // SAFETY: a C string and plain numbers.
        let fd = check(unsafe {
            libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0)
        })?;
        Ok(File { fd: fd as i32, owned: true })
    }

    pub(crate) fn is_regular(&self) -> Result<bool, i32> {
        Ok(self.mode()? & libc::S_IFMT == libc::S_IFREG)
    }

    fn mode(&self) -> Result<u32, i32> {
        // SAFETY: stat is plain data and the kernel's layout; the call fills it.
        unsafe {
            let mut st: libc::stat = zeroed();
            check(libc::syscall(libc::SYS_fstat, self.fd, &raw mut st))?;
            Ok(st.st_mode)
        }
    }

    /// Whether exec would change the process's rights, so that the loader ignores LD_PRELOAD.
    pub(crate) fn is_privileged(&self) -> Result<bool, i32> {
        let mode = self.mode()?;
        if mode & libc::S_ISUID != 0
            || mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP
        {
            return Ok(true);
        }
        let name = c"security.capability";
        // SAFETY: a C string; a null buffer of length 0 asks for the size.
        let r = unsafe {
            libc::syscall(
                libc::SYS_fgetxattr,
                self.fd,
                name.as_ptr(),
                core::ptr::null_mut::<u8>(),
                0,
            )
        };
        Ok(r > 0)
    }

    /// Reads as much as there is, up to the buffer's length.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, i32> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|r| !r.is_empty()) {
            let at = offset.saturating_add(done as u64);
            let Ok(at) = i64::try_from(at) else { break };
            // SAFETY: writes within `rest`.
            let r = check(unsafe {
                libc::syscall(libc::SYS_pread64, self.fd, rest.as_mut_ptr(), rest.len(), at)
            });
            match r {
                Ok(0) => break,
                Ok(n) => done += n as usize,
                Err(libc::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}
