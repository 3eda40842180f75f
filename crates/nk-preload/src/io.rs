//! Moving bytes: the program's buffers against the core's spans, and the blocking rules of send and recv.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use libc::{c_int, iovec};
use nk_device::row::Missed;
use nk_device::{Cell, Nqe, Op, STREAM_SLOTS};
use nk_guestlib::recv::{Discard, Received, Sink};
use nk_guestlib::send::{SendError, Source};
use nk_guestlib::{Fault, Socket, recv, send};

use crate::grants::{self, ProcessChunks};
use crate::process::Process;
use crate::wait::{self, On};
use crate::{rings, sys};

/// Linux moves at most this much in one call.
pub(crate) const IO_MAX: usize = 0x7fff_f000;

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

    fn skip_to(&mut self, done: usize) {
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

/// A descriptor's socket, looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open {
    pub(crate) p: &'static Process,
    pub(crate) cell: &'static Cell,
    pub(crate) id: u32,
    pub(crate) generation: u16,
}

impl Open {
    pub(crate) fn find(id: u32, generation: u16) -> Option<Open> {
        let p = crate::process::process()?;
        Some(Open { p, cell: p.cell(id)?, id, generation })
    }

    pub(crate) fn socket(&self) -> Socket<'static> {
        Socket { device: self.p.device(), cell: self.cell }
    }

    pub(crate) fn is_datagram(&self) -> bool {
        self.cell.is_datagram()
    }

    pub(crate) fn push(&self, op: Op) {
        rings::push_job(self.p, &Nqe::new(op, self.id, self.generation));
    }

    pub(crate) fn is_nonblocking(&self, flags: c_int) -> bool {
        flags & libc::MSG_DONTWAIT != 0 || self.cell.nonblock.load(Ordering::Relaxed) != 0
    }

    /// The host gave the id to another socket: ours ended with an engine that is gone.
    pub(crate) fn is_stale(&self) -> bool {
        self.cell.generation.load(Ordering::Acquire) != u32::from(self.generation)
    }
}

/// Raises SIGPIPE in this thread, as a native send does.
fn raise_sigpipe() {
    // SAFETY: no memory is involved.
    unsafe { sys::system_call!(libc::SYS_tgkill, sys::getpid(), sys::gettid(), libc::SIGPIPE) };
}

/// What a slow path does next.
enum Step {
    Done(usize),
    Failed(c_int),
    Again,
}

/// send(2) and relatives: `len` bytes of `source`.
pub(crate) fn send_stream(
    s: &Open,
    source: &mut (impl Source + Resume),
    len: usize,
    flags: c_int,
) -> Result<usize, c_int> {
    if flags & libc::MSG_OOB != 0 {
        s.p.count_missed(Missed::MsgFlag, libc::MSG_OOB as u64);
        return Err(libc::EOPNOTSUPP);
    }
    if flags & libc::MSG_FASTOPEN != 0 {
        s.p.count_missed(Missed::MsgFlag, libc::MSG_FASTOPEN as u64);
        return Err(libc::EOPNOTSUPP);
    }
    let len = len.min(IO_MAX);
    let mut done = 0;
    let result = loop {
        match send_once(s, source, len, &mut done, flags) {
            Step::Done(n) => break Ok(n),
            Step::Failed(e) => break Err(e),
            Step::Again => {}
        }
    };
    match result {
        Err(_) if done > 0 => Ok(done),
        Err(libc::EPIPE) => {
            if flags & libc::MSG_NOSIGNAL == 0 {
                raise_sigpipe();
            }
            Err(libc::EPIPE)
        }
        other => other,
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

#[inline]
fn send_once(
    s: &Open,
    source: &mut (impl Source + Resume),
    len: usize,
    done: &mut usize,
    flags: c_int,
) -> Step {
    let mut try_send = |done: usize| {
        source.resume_after(done);
        let r = send::send(&s.socket(), &mut ProcessChunks::new(s.p), source, len - done);
        if let Ok(sent) = r
            && sent.kick
        {
            rings::push_send(s.p, &Nqe::new(Op::Send, s.id, s.generation));
        }
        r
    };
    let why = match try_send(*done) {
        Ok(sent) => {
            *done += sent.bytes;
            if *done >= len {
                return Step::Done(*done);
            }
            if s.is_nonblocking(flags) {
                if !grants::can_send(s.p) {
                    grants::ask(s.p);
                    crate::events::note_shortage();
                }
                return Step::Done(*done);
            }
            return Step::Again;
        }
        Err(e) => e,
    };
    match why {
        SendError::Pipe => return Step::Failed(libc::EPIPE),
        SendError::Errno(e) => return Step::Failed(e),
        SendError::WouldBlock | SendError::NoChunks | SendError::Connecting => {}
    }
    if !wait::stack_lives(s.p) {
        return Step::Failed(libc::ECONNRESET);
    }
    if s.is_nonblocking(flags) {
        if why == SendError::NoChunks {
            if grants::wait_for_first(s.p) {
                return Step::Again;
            }
            crate::events::note_shortage();
            grants::ask(s.p);
        }
        return Step::Failed(libc::EAGAIN);
    }
    let timeout_us = s.cell.snd_timeout_us.load(Ordering::Relaxed);
    if why == SendError::NoChunks {
        return match grants::wait_for_chunks(s.p, 1, timeout_us) {
            Ok(()) => Step::Again,
            Err(e) => Step::Failed(e),
        };
    }
    let start = *done;
    let r = wait::until(s.p, s.id, s.generation, On::Tx, timeout_us, || {
        if !wait::stack_lives(s.p) {
            return Some(Err(SendError::Errno(libc::ECONNRESET)));
        }
        match try_send(start) {
            Err(SendError::WouldBlock | SendError::Connecting) => None,
            other => Some(other),
        }
    });
    match r {
        Ok(Ok(sent)) => {
            *done += sent.bytes;
            if *done >= len { Step::Done(*done) } else { Step::Again }
        }
        // The next round finds it again, outside the wait.
        Ok(Err(SendError::NoChunks)) => Step::Again,
        Ok(Err(SendError::Errno(e))) => Step::Failed(e),
        Ok(Err(_)) => Step::Failed(libc::EPIPE),
        Err(ended) => Step::Failed(ended.errno()),
    }
}

/// One attempt to receive, with the NQE that it may ask for.
fn receive(s: &Open, sink: &mut impl Sink, len: usize, peek: bool) -> Received {
    let r = recv::recv(&s.socket(), sink, len, peek);
    if let Received::Bytes { rx_room: true, .. } = r {
        s.push(Op::RxRoom);
    }
    r
}

/// recv(2) and relatives.
pub(crate) fn recv_stream(
    s: &Open,
    buffers: &mut Buffers,
    len: usize,
    flags: c_int,
) -> Result<usize, c_int> {
    if flags & libc::MSG_OOB != 0 {
        s.p.count_missed(Missed::MsgFlag, libc::MSG_OOB as u64);
        return Err(libc::EINVAL);
    }
    if flags & libc::MSG_ERRQUEUE != 0 {
        return Err(libc::EAGAIN);
    }
    let len = len.min(IO_MAX);
    let discard = flags & libc::MSG_TRUNC != 0;
    let peek = flags & libc::MSG_PEEK != 0;
    let lowat = s.cell.rcv_lowat.load(Ordering::Relaxed).max(1) as usize;
    let target = if flags & libc::MSG_WAITALL != 0 { len } else { len.min(lowat) };
    let mut done = 0;
    let mut attempt = |done: usize| {
        if done > 0 && recv::is_empty(s.cell) && s.cell.pending_error().is_some() {
            // The error stays for the next call.
            return Received::Eof;
        }
        if discard {
            return receive(s, &mut Discard, len - done, peek);
        }
        buffers.skip_to(done);
        receive(s, buffers, len - done, peek)
    };
    loop {
        match attempt(done) {
            Received::Bytes { count, .. } if peek => {
                // Peeking starts from the first byte each time.
                if count >= target || s.is_nonblocking(flags) {
                    return Ok(count);
                }
                return peek_more(s, target, || attempt(0)).or(Ok(count));
            }
            Received::Bytes { count, .. } => {
                done += count;
                if done >= target {
                    return Ok(done);
                }
            }
            Received::Eof => return Ok(done),
            Received::Errno(e) => return if done > 0 { Ok(done) } else { Err(e) },
            Received::WouldBlock => {
                if s.is_stale() || !wait::stack_lives(s.p) {
                    return if done > 0 { Ok(done) } else { Err(libc::ECONNRESET) };
                }
                if s.is_nonblocking(flags) {
                    return if done > 0 { Ok(done) } else { Err(libc::EAGAIN) };
                }
                let timeout_us = s.cell.rcv_timeout_us.load(Ordering::Relaxed);
                let woken = wait::until(s.p, s.id, s.generation, On::Rx, timeout_us, || {
                    if !wait::stack_lives(s.p) {
                        return Some(Received::Errno(libc::ECONNRESET));
                    }
                    match attempt(done) {
                        Received::WouldBlock => None,
                        other => Some(other),
                    }
                });
                match woken {
                    Ok(Received::Bytes { count, .. }) if peek => return Ok(count),
                    Ok(Received::Bytes { count, .. }) => {
                        done += count;
                        if done >= target {
                            return Ok(done);
                        }
                    }
                    Ok(Received::Errno(e)) => return if done > 0 { Ok(done) } else { Err(e) },
                    Ok(_) => return Ok(done),
                    Err(ended) => return if done > 0 { Ok(done) } else { Err(ended.errno()) },
                }
            }
        }
    }
}

/// MSG_PEEK with MSG_WAITALL: waits until enough is there, or nothing more will come.
fn peek_more(
    s: &Open,
    target: usize,
    mut attempt: impl FnMut() -> Received,
) -> Result<usize, c_int> {
    let timeout_us = s.cell.rcv_timeout_us.load(Ordering::Relaxed);
    let r = wait::until(s.p, s.id, s.generation, On::Rx, timeout_us, || match attempt() {
        Received::Bytes { count, .. } => {
            let over = nk_guestlib::readiness::readiness(s.cell, true)
                & (nk_guestlib::readiness::EPOLLRDHUP | nk_guestlib::readiness::EPOLLERR)
                != 0;
            let position = s.cell.position();
            let used = s.cell.rx_tail.load(Ordering::Acquire).wrapping_sub(position.index);
            // A full ring cannot grow under a peek.
            let over = over || !wait::stack_lives(s.p);
            (count >= target || over || used as usize >= STREAM_SLOTS).then_some(count)
        }
        Received::WouldBlock if wait::stack_lives(s.p) => None,
        _ => Some(0),
    });
    r.map_err(wait::Ended::errno)
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
