//! An epoll instance that another process may share: made before fork, or passed here.
//!
//! Natively both processes wait on one kernel object. Here the doorbells of both would be members of it, and each would take the other's
//! edges. So with its first use for NetKernel sockets, this process gets a kernel epoll of its own with the same kernel
//! members, put over the same descriptors; and so it does when it finds the other's mark in what it shares, after which it gives that edge
//! back. What the kernel's epoll holds is read from /proc, which also says which file was meant, so that a number that was closed and used
//! again is not taken for it.

use core::sync::atomic::{AtomicI32, Ordering};

use libc::{c_int, c_void};

use super::instance::{is_mark, mark_of};
use super::{EPOLLET, EPOLLIN, native};
use crate::fdtable::{self, Entry};
use crate::{gate, sys};

/// An eventfd (plus one) that is a member of each kernel epoll that this process has left to others. It stays open as long as
/// the process or until its exec, so an edge given back is lost only if that comes before its owner has run.
static FAREWELL: AtomicI32 = AtomicI32::new(0);

/// One member as /proc/self/fdinfo names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Member {
    fd: c_int,
    events: u32,
    data: u64,
    inode: u64,
}

/// Parses `tfd: 5 events: 19 data: 5 pos:0 ino:1f45 sdev:b`.
fn parse(line: &[u8]) -> Option<Member> {
    let mut m = Member::default();
    let mut words = line.split(|b| *b == b' ' || *b == b'\t').filter(|w| !w.is_empty());
    if words.next()? != b"tfd:" {
        return None;
    }
    m.fd = c_int::try_from(number(words.next()?, 10)?).ok()?;
    let mut has_inode = false;
    while let Some(word) = words.next() {
        match word {
            b"events:" => m.events = number(words.next()?, 16)? as u32,
            b"data:" => m.data = number(words.next()?, 16)?,
            w => {
                if let Some(inode) = w.strip_prefix(b"ino:") {
                    m.inode = number(inode, 16)?;
                    has_inode = true;
                }
            }
        }
    }
    has_inode.then_some(m)
}

fn number(digits: &[u8], base: u32) -> Option<u64> {
    let mut n = 0u64;
    for d in digits {
        let d = char::from(*d).to_digit(base)?;
        n = n.checked_mul(u64::from(base))?.checked_add(u64::from(d))?;
    }
    (!digits.is_empty()).then_some(n)
}

/// `/proc/self/fdinfo/N` as a C string.
fn path(fd: c_int) -> [u8; 40] {
    let mut out = [0u8; 40];
    let mut digits = [0u8; 10];
    let mut n = fd.unsigned_abs();
    let mut len = 0;
    for d in &mut digits {
        *d = b'0' + (n % 10) as u8;
        n /= 10;
        len += 1;
        if n == 0 {
            break;
        }
    }
    let name = b"/proc/self/fdinfo/".iter().chain(digits.iter().take(len).rev());
    for (to, from) in out.iter_mut().zip(name) {
        *to = *from;
    }
    out
}

fn inode_of(fd: c_int) -> Option<u64> {
    let mut st = core::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills a stat on success.
    unsafe {
        (sys::system_call!(libc::SYS_fstat, fd, st.as_mut_ptr()) == 0)
            .then(|| st.assume_init().st_ino)
    }
}

/// Reads the members of a kernel epoll.
fn for_each_member(epfd: c_int, mut f: impl FnMut(Member)) -> Result<(), c_int> {
    let name = path(epfd);
    // SAFETY: a terminated path; no other memory.
    let info = unsafe {
        sys::system_call!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            name.as_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        ) as c_int
    };
    if info < 0 {
        return Err(sys::errno());
    }
    let mut buffer = [0u8; 1024];
    let mut line = [0u8; 256];
    let mut used = 0;
    loop {
        // SAFETY: the kernel writes within the buffer.
        let n = unsafe {
            sys::system_call!(
                libc::SYS_read,
                info,
                buffer.as_mut_ptr().cast::<c_void>(),
                buffer.len()
            )
        };
        let Ok(n) = usize::try_from(n) else {
            let e = sys::errno();
            sys::close(info);
            return Err(e);
        };
        if n == 0 {
            break;
        }
        for b in buffer.iter().take(n) {
            if *b != b'\n' {
                if let Some(to) = line.get_mut(used) {
                    *to = *b;
                    used += 1;
                }
                continue;
            }
            if let Some(m) = line.get(..used).and_then(parse) {
                f(m);
            }
            used = 0;
        }
    }
    sys::close(info);
    Ok(())
}

/// The eventfd that gives edges back.
pub(super) fn farewell(_gate: &gate::Changing) -> Result<c_int, c_int> {
    let known = FAREWELL.load(Ordering::Acquire) - 1;
    if known >= 0 {
        return Ok(known);
    }
    let fd = sys::move_up(sys::eventfd()?);
    match FAREWELL.compare_exchange(0, fd + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            fdtable::swap(fd, Entry::Internal);
            Ok(fd)
        }
        // Another thread's.
        Err(first) => {
            sys::close(fd);
            Ok(first - 1)
        }
    }
}

/// Wakes somebody in each kernel epoll that was left.
pub(super) fn give_back() {
    let fd = FAREWELL.load(Ordering::Acquire) - 1;
    if fd >= 0 {
        sys::ring_eventfd(fd);
    }
}

/// It has another number now.
pub(super) fn farewell_moved(from: c_int, to: c_int) {
    let _ = FAREWELL.compare_exchange(from + 1, to + 1, Ordering::AcqRel, Ordering::Relaxed);
}

/// A kernel epoll that was left, and the one in its place.
#[derive(Debug)]
pub(super) struct Left {
    old: c_int,
    new: c_int,
    index: u32,
}

impl Left {
    /// Calls all who wait there, again and again, until this is called with `false`. An edge tells one of them alone, always the last to have
    /// come, and another process's takes it for its own and comes back. In the new one is who came to wait meanwhile.
    pub(super) fn call_all(&self, on: bool) {
        let farewell = FAREWELL.load(Ordering::Acquire) - 1;
        let mark = mark_of(self.index);
        let (how, event) = match on {
            true => (libc::EPOLL_CTL_ADD, (EPOLLIN, mark)),
            false => (libc::EPOLL_CTL_DEL, (EPOLLIN | EPOLLET, mark)),
        };
        let _ = native::epoll_ctl(self.old, libc::EPOLL_CTL_MOD, farewell, Some(event));
        let _ = native::epoll_ctl(self.new, how, farewell, Some(event));
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        for ep in [self.old, self.new] {
            fdtable::swap(ep, Entry::None);
            sys::close(ep);
        }
    }
}

/// Puts a private kernel epoll with the same members, but for marks, over every descriptor of the instance. The one left gets `farewell`, by
/// which those who still wait in it are woken ([`give_back`]). The caller holds the gate and the instance's lock.
///
/// # Errors
/// The errno of what failed; nothing changed.
pub(super) fn copy_kernel_epoll(
    epfd: c_int,
    index: u32,
    farewell: Option<c_int>,
) -> Result<Option<Left>, c_int> {
    let copy = native::epoll_create1(libc::EPOLL_CLOEXEC);
    if copy < 0 {
        return Err(sys::errno());
    }
    let mut failed = None;
    let read = for_each_member(epfd, |m| {
        if is_mark(m.data) || m.fd == copy || inode_of(m.fd) != Some(m.inode) {
            return;
        }
        match native::epoll_ctl(copy, libc::EPOLL_CTL_ADD, m.fd, Some((m.events, m.data))) {
            Ok(()) | Err(libc::EEXIST | libc::EBADF | libc::EPERM) => {}
            Err(e) => failed = Some(e),
        }
    });
    if let Some(e) = read.err().or(failed) {
        sys::close(copy);
        return Err(e);
    }
    if let Some(fd) = farewell {
        let event = (EPOLLIN | EPOLLET, mark_of(index));
        match native::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, fd, Some(event)) {
            Ok(()) | Err(libc::EEXIST) => {}
            Err(e) => {
                sys::close(copy);
                return Err(e);
            }
        }
    }
    let old = farewell.map_or(-1, |_| sys::fcntl(epfd, libc::F_DUPFD_CLOEXEC, 0));
    for fd in 0..fdtable::top() {
        if fd != epfd && fdtable::get(fd) == (Entry::Epoll { index }) {
            put_over(copy, fd);
        }
    }
    put_over(copy, epfd);
    if old < 0 {
        sys::close(copy);
        return Ok(None);
    }
    let [old, new] = [old, copy].map(|fd| {
        let fd = sys::move_up(fd);
        fdtable::swap(fd, Entry::Internal);
        fd
    });
    Ok(Some(Left { old, new, index }))
}

fn put_over(copy: c_int, fd: c_int) {
    // SAFETY: no memory is involved; both descriptors are open and differ.
    unsafe {
        let flags = sys::system_call!(libc::SYS_fcntl, fd, libc::F_GETFD) as c_int;
        let cloexec = if flags & libc::FD_CLOEXEC != 0 { libc::O_CLOEXEC } else { 0 };
        sys::system_call!(libc::SYS_dup3, copy, fd, cloexec);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_from_the_kernel() {
        let ep = native::epoll_create1(libc::EPOLL_CLOEXEC);
        let ev = sys::eventfd().expect("eventfd");
        let data = 0xdead_beef_0000_0005;
        native::epoll_ctl(ep, libc::EPOLL_CTL_ADD, ev, Some((0x8000_0001, data))).expect("add");
        let mut found = Vec::new();
        for_each_member(ep, |m| found.push(m)).expect("read");
        assert_eq!(found.len(), 1);
        let m = found[0];
        assert_eq!((m.fd, m.data, Some(m.inode)), (ev, data, inode_of(ev)));
        assert_eq!(m.events & 0x8000_0001, 0x8000_0001);
        sys::close(ev);
        sys::close(ep);
        assert_eq!(parse(b"flags:\t02"), None);
        assert_eq!(parse(b"tfd: x events: 1 data: 1 ino:1"), None);
    }
}
