//! What is tried for a bounded time: a guest waits meanwhile, and whoever asks the control thread.

use std::io;

/// For so long the present NSM may have too much to do to give a guest away.
pub const LEAVES_MAX_NS: u64 = 100_000_000;

/// Tries, one after another, that end together.
#[derive(Debug)]
pub struct InTime<N, R> {
    now_ns: N,
    rest: R,
    until_ns: u64,
}

impl<N: Fn() -> u64, R: FnMut()> InTime<N, R> {
    /// From now on, so long. `now_ns` is any clock that does not go back; `rest` is what is done between two tries.
    pub fn new(now_ns: N, rest: R, most_ns: u64) -> InTime<N, R> {
        let until_ns = now_ns().saturating_add(most_ns);
        InTime { now_ns, rest, until_ns }
    }

    /// Tries until something is there.
    ///
    /// # Errors
    /// The try's; EAGAIN when the time is up.
    pub fn get<T>(&mut self, mut attempt: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
        loop {
            if let Some(got) = attempt()? {
                return Ok(got);
            }
            if (self.now_ns)() >= self.until_ns {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
            (self.rest)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const MS: u64 = 1_000_000;

    /// How many tries there are, each of which takes a time, before the time is up or one of them has it.
    fn tries(took_ms: u64, has_it: u32) -> (u32, Result<u32, Option<i32>>) {
        let (now_ns, tries) = (Cell::new(7 * MS), Cell::new(0));
        let pass = |ms: u64| now_ns.set(now_ns.get() + ms * MS);
        let mut time = InTime::new(|| now_ns.get(), || pass(1), LEAVES_MAX_NS);
        let got = time.get(|| {
            tries.set(tries.get() + 1);
            pass(took_ms);
            Ok((tries.get() == has_it).then(|| tries.get()))
        });
        (tries.get(), got.map_err(|e| e.raw_os_error()))
    }

    #[test]
    fn a_move_is_given_up_when_its_time_is_up() {
        let up = Err(Some(libc::EAGAIN));
        assert_eq!(tries(0, u32::MAX), (101, up));
        assert_eq!(tries(9, u32::MAX), (11, up), "a try that takes long is one of few");
        assert_eq!(tries(1000, u32::MAX), (1, up));
        assert_eq!(tries(0, 60), (60, Ok(60)));
        assert_eq!(tries(1000, 1), (1, Ok(1)), "what is done is done");
    }

    #[test]
    fn what_is_tried_one_after_another_ends_together() {
        let now_ns = Cell::new(0);
        let mut time = InTime::new(|| now_ns.get(), || now_ns.set(now_ns.get() + MS), 10 * MS);
        let mut left = 8;
        let mut first = || {
            left -= 1;
            Ok((left == 0).then_some(()))
        };
        time.get(&mut first).expect("in time");
        let mut tries = 0;
        let second: io::Result<()> = time.get(|| {
            tries += 1;
            Ok(None)
        });
        assert_eq!((tries, second.map_err(|e| e.raw_os_error())), (4, Err(Some(libc::EAGAIN))));
        let failed: io::Result<()> = time.get(|| Err(io::Error::other("it died")));
        assert_eq!(failed.expect_err("the try's").raw_os_error(), None);
    }
}
