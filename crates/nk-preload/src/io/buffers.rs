//! The program's buffers, as the core copies from and to them.

use core::ptr::NonNull;

use libc::iovec;
use nk_guestlib::Fault;
use nk_guestlib::recv::Sink;
use nk_guestlib::send::Source;

/// The program's buffers. Copies are plain: a bad pointer faults, as it does in any library.
#[derive(Debug)]
pub(crate) struct Buffers {
    iov: *const iovec,
    count: usize,
    /// Bytes of the whole that come before what the core calls 0.
    skip: usize,
    /// Where the last copy ended: index of the buffer and bytes before it.
    index: usize,
    before: usize,
}

impl Buffers {
    /// # Safety
    /// `iov` points to `count` readable iovecs for the value's life.
    pub(crate) unsafe fn new(iov: *const iovec, count: usize) -> Buffers {
        Buffers { iov, count, skip: 0, index: 0, before: 0 }
    }

    pub(super) fn skip_to(&mut self, done: usize) {
        self.skip = done;
    }

    /// Calls `f(user pointer, offset, length)` for the pieces of `len` bytes at `at`.
    fn pieces(&mut self, at: usize, len: usize, mut f: impl FnMut(*mut u8, usize, usize)) {
        let mut at = at + self.skip;
        let mut done = 0;
        if at < self.before {
            self.index = 0;
            self.before = 0;
        }
        while done < len && self.index < self.count {
            // SAFETY: index < count; see `new`.
            let v = unsafe { self.iov.add(self.index).read() };
            let inside = at - self.before;
            if inside >= v.iov_len {
                self.before += v.iov_len;
                self.index += 1;
                continue;
            }
            let n = (v.iov_len - inside).min(len - done);
            f(v.iov_base.cast::<u8>().wrapping_add(inside), done, n);
            done += n;
            at += n;
        }
    }
}

impl Source for Buffers {
    fn copy(&mut self, at: usize, to: NonNull<u8>, len: usize) -> Result<(), Fault> {
        self.pieces(at, len, |user, offset, n| {
            // SAFETY: the core gives room for `len` bytes in a chunk; the program vouches for its buffer.
            unsafe { core::ptr::copy_nonoverlapping(user, to.as_ptr().add(offset), n) };
        });
        Ok(())
    }
}

impl Sink for Buffers {
    fn copy(&mut self, at: usize, from: NonNull<u8>, len: usize) -> Result<(), Fault> {
        self.pieces(at, len, |user, offset, n| {
            // SAFETY: the core gives `len` bytes in a chunk; the program vouches for its buffer.
            unsafe { core::ptr::copy_nonoverlapping(from.as_ptr().add(offset), user, n) };
        });
        Ok(())
    }
}

/// A source that can go on after bytes that were taken earlier.
pub(crate) trait Resume {
    fn resume_after(&mut self, done: usize);
}

impl Resume for Buffers {
    fn resume_after(&mut self, done: usize) {
        self.skip_to(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_walked_in_pieces_and_again_from_the_start() {
        let mut parts = [vec![0u8; 3], vec![], vec![0u8; 5], vec![0u8; 100]];
        let iov: Vec<iovec> = parts
            .iter_mut()
            .map(|p| iovec { iov_base: p.as_mut_ptr().cast(), iov_len: p.len() })
            .collect();
        let data: Vec<u8> = (1..=50).collect();
        // SAFETY: the vectors outlive it.
        let mut b = unsafe { Buffers::new(iov.as_ptr(), iov.len()) };
        let from = |at: usize| NonNull::new(data.as_ptr().cast_mut().wrapping_add(at)).expect("at");
        assert!(Sink::copy(&mut b, 0, from(0), 2).is_ok());
        assert!(Sink::copy(&mut b, 2, from(2), 4).is_ok());
        b.skip_to(6);
        assert!(Sink::copy(&mut b, 0, from(6), 10).is_ok());
        // A reader that lost a race writes the same place again.
        assert!(Sink::copy(&mut b, 0, from(6), 10).is_ok());
        b.skip_to(1);
        let mut out = [0u8; 12];
        let to = NonNull::new(out.as_mut_ptr()).expect("out");
        assert!(Source::copy(&mut b, 0, to, 12).is_ok());
        assert_eq!(out[..], data[1..13]);
        let all: Vec<u8> = parts.concat();
        assert_eq!((&all[..16], all[16]), (&data[..16], 0));
    }
}
