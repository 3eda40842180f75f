//! Memory that is shared: memfds and mappings.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};

/// A region that can neither shrink nor grow.
///
/// # Errors
/// Those of memfd_create, ftruncate and fcntl.
pub fn region(name: &str, len: usize) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create(name.replace('\0', ""), flags)?;
    ftruncate(&fd, len as u64)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Bytes of a memfd.
///
/// # Errors
/// Those of fstat.
pub fn len(memfd: impl AsFd) -> io::Result<usize> {
    Ok(usize::try_from(fstat(memfd)?.st_size).unwrap_or(0))
}

/// A memfd with these bytes, at its start.
///
/// # Errors
/// Those of memfd_create and write.
pub fn memfd_with(bytes: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    let mut file = std::fs::File::from(memfd_create(c"nk-reply", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// A shared mapping of a whole region, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is memory shared between processes; all access is by atomics and raw copies.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd`, which has so many: a touch of what it lacks would be a SIGBUS.
    ///
    /// # Errors
    /// Those of mmap; EINVAL when it has fewer.
    pub fn new(fd: &(impl AsFd + AsRawFd), len: usize) -> io::Result<Mapping> {
        if self::len(fd)? < len {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let p = unsafe {
            libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(p.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Mapping { base, len })
    }
    /// Its first byte.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }
    /// Its length.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }
    /// Never: mmap refuses length 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; whoever made a Device over it keeps this value alive.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// All threads of this process have one heap. glibc gives others to threads and, to give memory of those back, opens a file in /proc, which a
/// process that may open none is killed for.
pub fn one_heap() {
    // SAFETY: a setting of glibc's; before there are other threads.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
