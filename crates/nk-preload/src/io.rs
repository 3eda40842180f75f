//! Moving bytes: the program's buffers against the core's spans, and the blocking rules of send and recv.

use core::sync::atomic::Ordering;

use libc::c_int;
use nk_device::row::Missed;
use nk_device::{Cell, Nqe, Op, STREAM_SLOTS};
use nk_guestlib::recv::{Discard, Received, Sink};
use nk_guestlib::send::{SendError, Source};
use nk_guestlib::{Socket, recv, send};

use crate::grants::{self, ProcessChunks};
use crate::process::Process;
use crate::wait::{self, On};
use crate::{rings, sys};

mod buffers;

pub(crate) use buffers::{Buffers, Resume};

/// Linux moves at most this much in one call.
pub(crate) const IO_MAX: usize = 0x7fff_f000;

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
    let (mut done, mut until_us) = (0, 0);
    let result = loop {
        match send_once(s, source, len, &mut done, &mut until_us, flags) {
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

#[inline]
fn send_once(
    s: &Open,
    source: &mut (impl Source + Resume),
    len: usize,
    done: &mut usize,
    until_us: &mut u64,
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
            if grants::wait_briefly(s.p, s.cell, 1, until_us) {
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
