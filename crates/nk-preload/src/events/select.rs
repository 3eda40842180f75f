//! select and pselect over poll, as the kernel does it.

use libc::{c_int, c_short, pollfd};

use super::native::{Limit, Mask};
use super::{poll, slots};
use crate::fdtable::{self, Entry};
use crate::process::{Process, process};
use crate::sys;

const IN: c_short = libc::POLLRDNORM | libc::POLLRDBAND | libc::POLLIN;
const OUT: c_short = libc::POLLWRBAND | libc::POLLWRNORM | libc::POLLOUT;
const EX: c_short = libc::POLLPRI;
const IN_SEEN: c_short = IN | libc::POLLHUP | libc::POLLERR;
const OUT_SEEN: c_short = OUT | libc::POLLERR;

/// Descriptors up to which the list is kept on the stack.
const SMALL: usize = 64;

/// The three sets as the caller gave them: arrays of words, as many as `n` bits need. May be null.
#[derive(Clone, Copy)]
pub(super) struct Sets {
    pub(super) n: c_int,
    pub(super) read: *mut u64,
    pub(super) write: *mut u64,
    pub(super) except: *mut u64,
}

impl Sets {
    fn words(self) -> usize {
        usize::try_from(self.n).unwrap_or(0).div_ceil(64)
    }

    /// A word of a set, with only bits below n.
    fn word(self, set: *mut u64, w: usize) -> u64 {
        if set.is_null() || w >= self.words() {
            return 0;
        }
        let bits = usize::try_from(self.n).unwrap_or(0) - w * 64;
        let valid = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        // SAFETY: the caller of select gave sets of at least n bits.
        unsafe { set.add(w).read_unaligned() & valid }
    }

    /// Calls `f` with each descriptor and what is wanted of it, until it gives false.
    fn for_each(self, mut f: impl FnMut(c_int, c_short) -> bool) {
        for w in 0..self.words() {
            let r = self.word(self.read, w);
            let o = self.word(self.write, w);
            let x = self.word(self.except, w);
            let mut any = r | o | x;
            while any != 0 {
                let b = any.trailing_zeros();
                any &= any - 1;
                let has = |word: u64, events: c_short| if word >> b & 1 != 0 { events } else { 0 };
                if !f((w * 64) as c_int + b as c_int, has(r, IN) | has(o, OUT) | has(x, EX)) {
                    return;
                }
            }
        }
    }

    fn clear(self) {
        for set in [self.read, self.write, self.except] {
            for w in 0..self.words() {
                if !set.is_null() {
                    // SAFETY: as in `word`. The kernel too writes whole words.
                    unsafe { set.add(w).write_unaligned(0) };
                }
            }
        }
    }

    fn put(set: *mut u64, fd: c_int) -> c_int {
        if set.is_null() || fd < 0 {
            return 0;
        }
        let (w, b) = (fd as usize / 64, fd as u32 % 64);
        // SAFETY: the bit was set in this set before, so it is within it.
        unsafe {
            let at = set.add(w);
            at.write_unaligned(at.read_unaligned() | 1 << b);
        }
        1
    }
}

/// # Safety
/// The sets have at least n bits each; `mask` is null or valid.
pub(super) unsafe fn select(sets: Sets, limit: &mut Limit, mask: Mask) -> c_int {
    let mut count = 0usize;
    let mut ours = false;
    if process().is_some() {
        sets.for_each(|fd, _| {
            count += 1;
            ours |= !matches!(fdtable::get(fd), Entry::None);
            true
        });
    }
    match process() {
        Some(p) if ours => {
            // SAFETY: the caller's promise.
            match unsafe { over_poll(p, sets, count, *limit, mask) } {
                Ok(n) => n,
                Err(e) => sys::fail(e),
            }
        }
        // SAFETY: the caller's promise.
        _ => unsafe { native(sets, limit, mask) },
    }
}

/// # Safety
/// As [`select`].
unsafe fn native(sets: Sets, limit: &mut Limit, mask: Mask) -> c_int {
    let mut left = limit.left();
    let t = left.as_mut().map_or(core::ptr::null_mut(), |t| &raw mut *t);
    let sized_mask = [mask as usize, 8];
    // SAFETY: the caller's sets; the time and the mask's description are locals.
    unsafe {
        sys::system_call!(
            libc::SYS_pselect6,
            sets.n,
            sets.read,
            sets.write,
            sets.except,
            t,
            sized_mask.as_ptr(),
        ) as c_int
    }
}

/// # Safety
/// As [`select`].
unsafe fn over_poll(
    p: &Process,
    sets: Sets,
    count: usize,
    limit: Limit,
    mask: Mask,
) -> Result<c_int, c_int> {
    if sets.n < 0 {
        return Err(libc::EINVAL);
    }
    let mut small = [const { pollfd { fd: -1, events: 0, revents: 0 } }; SMALL];
    let (list, mut slot) = if count <= SMALL {
        (small.as_mut_ptr(), None)
    } else {
        let mut t = slots::take(p)?;
        // All that poll will want of the same buffer, so that it does not move.
        let list = t.buffer(count * 40 + 64)?.cast::<pollfd>();
        (list, Some(t))
    };
    let mut len = 0;
    sets.for_each(|fd, events| {
        if len == count {
            return false;
        }
        // SAFETY: len < count, the places of the list.
        unsafe { list.add(len).write(pollfd { fd, events, revents: 0 }) };
        len += 1;
        true
    });
    // SAFETY: `len` pollfds; the mask is the caller's.
    let r = unsafe { poll::poll_with(p, &mut slot, list, len, limit, mask) };
    if r < 0 {
        return Err(sys::errno());
    }
    let mut bits = 0;
    let bad = (0..len)
        // SAFETY: i < len.
        .any(|i| unsafe { (*list.add(i)).revents } & libc::POLLNVAL != 0);
    if bad {
        return Err(libc::EBADF);
    }
    sets.clear();
    for i in 0..len {
        // SAFETY: i < len.
        let f = unsafe { list.add(i).read() };
        if f.events & IN == IN && f.revents & IN_SEEN != 0 {
            bits += Sets::put(sets.read, f.fd);
        }
        if f.events & OUT == OUT && f.revents & OUT_SEEN != 0 {
            bits += Sets::put(sets.write, f.fd);
        }
        if f.events & EX != 0 && f.revents & EX != 0 {
            bits += Sets::put(sets.except, f.fd);
        }
    }
    Ok(bits)
}
