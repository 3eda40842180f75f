//! The syscalls that the host's side needs, as small safe functions.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

pub use crate::epoll::Epoll;

pub(crate) fn check(r: libc::c_int) -> io::Result<libc::c_int> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

/// Takes a descriptor that a syscall or a message gave.
///
/// The caller vouches that nobody else owns it.
#[must_use]
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass descriptors that they have just received and hand over.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A region that can neither shrink nor grow.
///
/// # Errors
/// Those of memfd_create, ftruncate and fcntl.
pub fn region(name: &str, len: usize) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(name.replace('\0', "")).unwrap_or_default();
    // SAFETY: a C string and flags; the result is checked.
    let fd = check(unsafe {
        libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    })?;
    let fd = own(fd);
    // SAFETY: plain numbers.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), len as i64) })?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: plain numbers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(fd)
}

/// Bytes of a memfd.
///
/// # Errors
/// Those of fstat.
pub fn len(memfd: &impl AsRawFd) -> io::Result<usize> {
    // SAFETY: stat is plain data that the call fills.
    let size = unsafe {
        let mut st: libc::stat = zeroed();
        check(libc::fstat(memfd.as_raw_fd(), &raw mut st))?;
        st.st_size
    };
    Ok(usize::try_from(size).unwrap_or(0))
}

/// Whether all other ends of a socket are closed.
#[must_use]
pub fn is_hung_up(fd: RawFd) -> bool {
    let mut p = libc::pollfd { fd, events: 0, revents: 0 };
    // SAFETY: one entry of ours.
    unsafe { libc::poll(&raw mut p, 1, 0) };
    p.revents & libc::POLLHUP != 0
}

/// A memfd with these bytes, at its start.
///
/// # Errors
/// Those of memfd_create and write.
pub fn memfd_with(bytes: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    // SAFETY: a C string and a flag; the result is checked.
    let fd = own(check(unsafe { libc::memfd_create(c"nk-reply".as_ptr(), libc::MFD_CLOEXEC) })?);
    let mut file = std::fs::File::from(fd);
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
    pub fn new(fd: &impl AsRawFd, len: usize) -> io::Result<Mapping> {
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

/// A non-blocking eventfd.
///
/// # Errors
/// Those of eventfd.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    Ok(own(check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?))
}

/// The supplementary groups of a connection's other end, as they were when it connected.
#[must_use]
pub fn peer_groups(fd: RawFd) -> Vec<u32> {
    const SO_PEERGROUPS: i32 = 59;
    let mut groups = vec![0u32; 1024];
    let mut len = (groups.len() * size_of::<u32>()) as u32;
    // SAFETY: the buffer has the length that is told, and the kernel says how much of it it filled.
    let r = unsafe {
        let to = groups.as_mut_ptr().cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, SO_PEERGROUPS, to, &raw mut len)
    };
    groups.truncate(if r == 0 { len as usize / size_of::<u32>() } else { 0 });
    groups
}

/// A group's number, by name or number.
#[must_use]
pub fn group(name: &str) -> Option<u32> {
    if let Ok(gid) = name.parse() {
        return Some(gid);
    }
    let name = std::ffi::CString::new(name).ok()?;
    let mut buffer = vec![0u8; 1 << 16];
    // SAFETY: plain data that the call fills.
    let mut entry: libc::group = unsafe { zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: a name that ends, an entry, a buffer of that length, and where to say whether it was found: all ours.
    unsafe {
        let at = buffer.as_mut_ptr().cast();
        libc::getgrnam_r(name.as_ptr(), &raw mut entry, at, buffer.len(), &raw mut found);
    }
    (!found.is_null()).then_some(entry.gr_gid)
}

/// A descriptor that is readable when the signal came. The signal is blocked in this thread from now on, and in those that it starts.
///
/// # Errors
/// Those of signalfd.
pub fn signals(signal: i32) -> io::Result<OwnedFd> {
    // SAFETY: a set of our own.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        Ok(own(check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?))
    }
}

/// Empties such a descriptor.
pub fn drain_signals(fd: RawFd) {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    // SAFETY: the buffer has the size of one record.
    while unsafe { libc::read(fd, info.as_mut_ptr().cast(), info.len()) } > 0 {}
}

/// Rings an eventfd. `false` when the write was interrupted: it would have blocked, see [`crate::watchdog`]. Other errors are the
/// loss of whoever handed over the descriptor.
pub fn ring(fd: RawFd) -> bool {
    let one = 1u64;
    // SAFETY: writes eight bytes of ours.
    let n = unsafe { libc::write(fd, (&raw const one).cast(), 8) };
    n >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted
}

/// Empties an eventfd.
pub fn drain(fd: RawFd) {
    let mut n = 0u64;
    // SAFETY: reads at most eight bytes into our word.
    unsafe { libc::read(fd, (&raw mut n).cast(), 8) };
}

/// Whether the descriptor is an eventfd: writing to what a guest names must have no other effect.
#[must_use]
pub fn is_eventfd(fd: RawFd) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{fd}"))
        .is_ok_and(|p| p.as_os_str().to_string_lossy().starts_with("anon_inode:[eventfd"))
}

/// Sets O_NONBLOCK.
///
/// # Errors
/// Those of fcntl.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: plain numbers.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK))?;
    }
    Ok(())
}

/// Clears O_NONBLOCK.
///
/// # Errors
/// Those of fcntl.
pub fn set_blocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: plain numbers.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        check(libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_NONBLOCK))?;
    }
    Ok(())
}

/// Clears FD_CLOEXEC.
///
/// # Errors
/// Those of fcntl.
pub fn set_inheritable(fd: RawFd) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
    Ok(())
}

/// Another descriptor, close-on-exec, for what this one is.
///
/// # Errors
/// Those of fcntl.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    Ok(own(check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })?))
}

/// A descriptor that becomes readable when the process has ended.
///
/// # Errors
/// Those of pidfd_open.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32)?;
    Ok(own(fd))
}

/// Whether the process of the pidfd has ended.
#[must_use]
pub fn has_ended(pidfd: RawFd) -> bool {
    let mut p = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry of ours, no waiting.
    unsafe { libc::poll(&raw mut p, 1, 0) > 0 }
}

/// Wakes everybody who sleeps on the word, also in other processes.
pub fn futex_wake_all(word: &AtomicU32) {
    // SAFETY: the word is alive; FUTEX_WAKE does not write memory.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Wakes one sleeper of the word. Returns how many were woken.
pub fn futex_wake(word: &AtomicU32, count: i32) -> i64 {
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) }
}

/// An SEQPACKET pair.
///
/// # Errors
/// Those of socketpair.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut p = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, p.as_mut_ptr()) })?;
    Ok((own(p[0]), own(p[1])))
}

/// A listening SEQPACKET socket at a path (which must be free).
///
/// # Errors
/// Those of socket, bind and listen; ENAMETOOLONG.
pub fn listen_at(path: &std::path::Path, mode: u32) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: plain data.
    let mut addr: libc::sockaddr_un = unsafe { zeroed() };
    if bytes.len() >= addr.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    addr.sun_family = libc::AF_UNIX as u16;
    for (to, from) in addr.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain syscalls on our own data; results are checked. The mode is set on the socket before bind, so
    // that the path never exists with a wider one.
    unsafe {
        let fd = own(check(libc::socket(libc::AF_UNIX, kind, 0))?);
        check(libc::fchmod(fd.as_raw_fd(), mode))?;
        let len = size_of::<libc::sockaddr_un>() as u32;
        check(libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len))?;
        let c = std::ffi::CString::new(bytes).unwrap_or_default();
        // bind applied the umask.
        check(libc::chmod(c.as_ptr(), mode))?;
        check(libc::listen(fd.as_raw_fd(), 1024))?;
        Ok(fd)
    }
}

/// Asks for the sender's credentials with every message.
///
/// # Errors
/// Those of setsockopt.
pub fn pass_credentials(fd: RawFd) -> io::Result<()> {
    let on = 1i32;
    // SAFETY: four bytes of ours.
    check(unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_PASSCRED, (&raw const on).cast(), 4)
    })?;
    Ok(())
}

/// Who connected a Unix socket: its credentials at that time.
#[must_use]
pub fn peer_credentials(fd: RawFd) -> Option<nk_attach::Credentials> {
    let mut c = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as u32;
    // SAFETY: a ucred of ours and its length.
    let r = unsafe {
        let p = (&raw mut c).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, p, &raw mut len)
    };
    (r == 0 && c.pid > 0).then_some(nk_attach::Credentials { pid: c.pid, uid: c.uid, gid: c.gid })
}

/// Lets a receive fail with EAGAIN after so many seconds.
///
/// # Errors
/// Those of setsockopt.
pub fn set_receive_timeout(fd: RawFd, seconds: i64) -> io::Result<()> {
    let t = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    let len = size_of::<libc::timeval>() as u32;
    // SAFETY: a timeval of ours and its length.
    check(unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const t).cast(), len)
    })?;
    Ok(())
}

/// Accepts a connection.
///
/// # Errors
/// Those of accept4.
pub fn accept(listener: RawFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no address is asked for.
    let fd = check(unsafe {
        libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags)
    })?;
    Ok(own(fd))
}

/// (device, inode): two descriptors of one namespace have the same.
///
/// # Errors
/// Those of fstat.
pub fn identity(fd: RawFd) -> io::Result<(u64, u64)> {
    // SAFETY: stat is plain data that the call fills.
    unsafe {
        let mut st: libc::stat = zeroed();
        check(libc::fstat(fd, &raw mut st))?;
        Ok((st.st_dev, st.st_ino))
    }
}

/// Whether the descriptor is a network namespace.
#[must_use]
pub fn is_netns(fd: RawFd) -> bool {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument; on other files it fails with ENOTTY.
    unsafe { libc::ioctl(fd, NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}

/// Raises RLIMIT_NOFILE to the hard limit and returns it.
pub fn raise_fd_limit() -> u64 {
    // SAFETY: rlimit is plain data of ours.
    unsafe {
        let mut r: libc::rlimit = zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut r) != 0 {
            return 1024;
        }
        r.rlim_cur = r.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const r);
        r.rlim_cur
    }
}

/// 128 random bits.
///
/// # Errors
/// Those of getrandom.
pub fn random() -> io::Result<(u64, u64)> {
    let mut b = [0u64; 2];
    // SAFETY: sixteen bytes of ours.
    let n = unsafe { libc::getrandom(b.as_mut_ptr().cast(), 16, 0) };
    if n == 16 { Ok((b[0], b[1])) } else { Err(io::Error::last_os_error()) }
}

/// A pipe-like timer: readable once after so many milliseconds.
///
/// # Errors
/// Those of timerfd_create and timerfd_settime.
pub fn set_timer(fd: RawFd, ms: u64) -> io::Result<()> {
    // SAFETY: itimerspec is plain data of ours.
    unsafe {
        let mut t: libc::itimerspec = zeroed();
        t.it_value.tv_sec = (ms / 1000) as i64;
        t.it_value.tv_nsec = (ms % 1000) as i64 * 1_000_000;
        check(libc::timerfd_settime(fd, 0, &raw const t, std::ptr::null_mut()))?;
    }
    Ok(())
}

/// A timerfd, not armed.
///
/// # Errors
/// Those of timerfd_create.
pub fn timerfd() -> io::Result<OwnedFd> {
    let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
    // SAFETY: plain numbers.
    Ok(own(check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?))
}

/// Names the calling thread, as ps and top show it.
pub fn name_thread(name: &std::ffi::CStr) {
    // SAFETY: a C string; the kernel copies at most 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// The CPUs that are online, as far as the kernel says.
pub(crate) fn cores_online() -> Vec<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let parse = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    };
    let cores: Vec<usize> = text.trim().split(',').filter_map(parse).flatten().collect();
    if cores.is_empty() {
        return (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    }
    cores
}

/// Lets the calling thread, and those that it makes, run on these CPUs only; on all where none is named.
///
/// # Errors
/// EINVAL where it may run on none of them.
pub(crate) fn pin(cores: &[usize]) -> io::Result<()> {
    if cores.is_empty() {
        return Ok(());
    }
    // SAFETY: cpu_set_t is plain data, a bitmap of ours; CPU_SET leaves numbers beyond it alone.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        for core in cores.iter().filter(|c| **c < 8 * size_of::<libc::cpu_set_t>()) {
            libc::CPU_SET(*core, &mut set);
        }
        check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set))?;
    }
    Ok(())
}

/// The calling thread, and those that it makes, have these capabilities and no others.
///
/// # Errors
/// EPERM where one of them is not there.
pub(crate) fn set_capabilities(mask: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let (low, high) = (mask as u32, (mask >> 32) as u32);
    // Effective, permitted, inheritable: the low halves of all three, then the high ones.
    let sets = [low, low, 0, high, high, 0];
    // SAFETY: a header and two data structs of three words each, as version 3 wants.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) as i32 })?;
    Ok(())
}
