//! Pushing NQEs, ringing the engine, and synchronous calls.
//!
//! Jobs and sends of a process go over its primary queue set. Completions carry the ticket of the call they answer: whoever waits drains
//! the ring under a short lock (signals blocked) into a table of tickets, so calls of several threads, and of a signal
//! handler above one of them, are outstanding at the same time.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nk_device::header::{ENGINE_GONE, ENGINE_UP};
use nk_device::nqe::{FLAG_AGAIN, FLAG_ERROR, TICKET_MAX};
use nk_device::ring::Consumer;
use nk_device::{Nqe, Op};

use crate::hangup;
use crate::process::Process;
use crate::sys::{self, SignalsBlocked};

const TICKETS: usize = TICKET_MAX as usize + 1;
/// A sleeper looks at the engine's state this often, in case it missed the end of the engine.
const SLICE_US: u64 = 1_000_000;

const FREE: u32 = 0;
const WAITING: u32 = 1;
const DONE: u32 = 2;
/// The caller left before the reply came; whoever drains it frees the ticket.
const ABANDONED: u32 = 3;

struct Ticket {
    state: AtomicU32,
    words: [AtomicU64; 4],
}

impl Ticket {
    const fn new() -> Ticket {
        Ticket { state: AtomicU32::new(FREE), words: [const { AtomicU64::new(0) }; 4] }
    }

    fn take(&self) -> bool {
        self.state.compare_exchange(FREE, WAITING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Hands the answer over; or frees the ticket, if its caller left.
    fn deliver(&self, answer: &Nqe) {
        for (to, from) in self.words.iter().zip(answer.to_words()) {
            to.store(from, Ordering::Relaxed);
        }
        if self.state.compare_exchange(WAITING, DONE, Ordering::AcqRel, Ordering::Acquire)
            == Err(ABANDONED)
        {
            self.state.store(FREE, Ordering::Release);
        }
    }

    fn is_done(&self) -> bool {
        self.state.load(Ordering::Acquire) == DONE
    }

    /// The caller leaves without an answer, which may come yet and must find no other call. `false`: it came.
    fn abandon(&self) -> bool {
        self.state.compare_exchange(WAITING, ABANDONED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The answer; the ticket is free after this.
    fn answer(&self) -> Nqe {
        let mut words = [0u64; 4];
        for (to, from) in words.iter_mut().zip(&self.words) {
            *to = from.load(Ordering::Relaxed);
        }
        self.state.store(FREE, Ordering::Release);
        Nqe::from_words(words)
    }
}

static TICKET: [Ticket; TICKETS] = [const { Ticket::new() }; TICKETS];
/// 0 free, 1 taken, 2 taken and somebody waits.
static DRAIN_LOCK: AtomicU32 = AtomicU32::new(0);
static NEXT_TICKET: AtomicU32 = AtomicU32::new(0);
static DRAIN_HEAD: AtomicU32 = AtomicU32::new(0);
/// The device's epoch at the last drain.
static DRAIN_EPOCH: AtomicU32 = AtomicU32::new(0);
/// Serialises calls whose reply may use the queue set's one reply area.
static REPLY_LOCK: AtomicU32 = AtomicU32::new(0);

/// In a forked child, or after a new attach: no call is under way, the rings are new.
pub(crate) fn reset(epoch: u32) {
    for t in &TICKET {
        t.state.store(FREE, Ordering::Relaxed);
    }
    DRAIN_HEAD.store(0, Ordering::Relaxed);
    DRAIN_EPOCH.store(epoch, Ordering::Relaxed);
    DRAIN_LOCK.store(0, Ordering::Release);
    REPLY_LOCK.store(0, Ordering::Release);
}

/// A futex lock of this process. Only taken with signals blocked.
pub(crate) fn lock(word: &AtomicU32) {
    if word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        return;
    }
    while word.swap(2, Ordering::Acquire) != 0 {
        let _ = sys::futex_wait(word, 2, None);
    }
}

/// Undoes [`lock`].
pub(crate) fn unlock(word: &AtomicU32) {
    if word.swap(0, Ordering::Release) == 2 {
        sys::futex_wake(word, 1);
    }
}

/// Tells the engine that something was pushed on the queue set's job or send ring.
pub fn ring_engine(p: &Process, qset: u16) {
    if p.device().header().ring_bell(qset) {
        sys::ring_eventfd(p.engine_fd());
    }
}

#[derive(Clone, Copy)]
enum Way {
    Job,
    Send,
}

fn push(p: &Process, way: Way, nqe: &Nqe) -> bool {
    let number = p.qset();
    let Some(q) = p.device().qset(number) else { return false };
    let nqe = Nqe { qset: number, ..*nqe };
    let mut waited_us = 20;
    loop {
        let pushed = match way {
            Way::Job => q.job().push(&nqe),
            Way::Send => q.send().push(&nqe),
        };
        if pushed.is_ok() {
            ring_engine(p, number);
            return true;
        }
        // The engine is a whole ring behind. It always drains, so this ends; if it died, the next one does, if there will be one.
        ring_engine(p, number);
        hangup::look_now_and_then(p);
        if hangup::engine_state(p.device()) == ENGINE_GONE {
            return false;
        }
        sys::sleep_us(waited_us);
        waited_us = (waited_us * 2).min(5_000);
    }
}

/// Pushes a control operation and rings. `false` only when no engine will ever take it.
pub fn push_job(p: &Process, nqe: &Nqe) -> bool {
    push(p, Way::Job, nqe)
}

/// Pushes a data operation and rings. `false` only when no engine will ever take it.
pub fn push_send(p: &Process, nqe: &Nqe) -> bool {
    push(p, Way::Send, nqe)
}

/// Moves what is on the completion ring into the ticket table.
fn drain(p: &Process) {
    let Some(q) = p.device().qset(p.qset()) else { return };
    let _signals = SignalsBlocked::new();
    lock(&DRAIN_LOCK);
    let epoch = p.device().header().epoch.load(Ordering::Acquire);
    if DRAIN_EPOCH.swap(epoch, Ordering::Relaxed) != epoch {
        // Another engine answers only what is asked of it, and nobody asks again for a caller that left.
        for t in &TICKET {
            let _ = t.state.compare_exchange(ABANDONED, FREE, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
    let ring = q.completion();
    let head = DRAIN_HEAD.load(Ordering::Relaxed);
    let mut consumer = Consumer::at(head);
    let mut n = 0u32;
    while let Some(e) = consumer.pop(&ring) {
        n = n.wrapping_add(1);
        let Some(t) = TICKET.get(usize::from(e.ticket)) else { continue };
        t.deliver(&e);
    }
    if n != 0 {
        consumer.commit(&ring);
        DRAIN_HEAD.store(head.wrapping_add(n), Ordering::Relaxed);
    }
    unlock(&DRAIN_LOCK);
}

/// In turn, so that a late answer to a call that was asked twice meets no other call. `None`: no engine will answer any more, nor free
/// the tickets of those that left.
fn take_ticket(p: &Process) -> Option<(u8, &'static Ticket)> {
    let first = NEXT_TICKET.fetch_add(1, Ordering::Relaxed) as usize;
    while hangup::engine_state(p.device()) != ENGINE_GONE {
        for n in 0..TICKETS - 1 {
            let i = 1 + (first + n) % (TICKETS - 1);
            let Some(t) = TICKET.get(i) else { continue };
            if t.take() {
                return Some((i as u8, t));
            }
        }
        // 63 calls under way: others will finish.
        sys::sleep_us(200);
    }
    None
}

/// One control operation and its reply.
///
/// `interruptible`: a signal ends the wait (the operation goes on; its reply is dropped).
///
/// # Errors
/// The errno of the reply; EINTR; ENETDOWN when the engine is gone for good. A call that was under way when the engine died
/// is asked again of the next one.
pub fn call(p: &Process, nqe: Nqe, interruptible: bool) -> Result<Nqe, i32> {
    let saved = sys::errno();
    let r = call_inner(p, nqe, interruptible);
    sys::set_errno(saved);
    r
}

fn call_inner(p: &Process, nqe: Nqe, interruptible: bool) -> Result<Nqe, i32> {
    let header = p.device().header();
    let Some(q) = p.device().qset(p.qset()) else { return Err(libc::ENETDOWN) };
    let (number, ticket) = take_ticket(p).ok_or(libc::ENETDOWN)?;
    let nqe = Nqe { ticket: number, ..nqe };
    let slice = sys::timespec_us(SLICE_US);
    let mut asked_in = None;
    loop {
        let wake = q.completion_wake.load(Ordering::Acquire);
        let state = hangup::engine_state(p.device());
        let epoch = header.epoch.load(Ordering::Acquire);
        drain(p);
        if ticket.is_done() {
            break;
        }
        if state == ENGINE_GONE {
            if ticket.abandon() {
                return Err(libc::ENETDOWN);
            }
            break;
        }
        if state == ENGINE_UP && asked_in != Some(epoch) {
            let flags = if asked_in.is_some() { FLAG_AGAIN } else { 0 };
            asked_in = Some(epoch);
            if !push_job(p, &Nqe { flags, ..nqe }) {
                continue;
            }
        }
        let waited = sys::futex_wait(&q.completion_wake, wake, Some(&slice));
        if waited == Err(libc::ETIMEDOUT) {
            hangup::look(p);
        }
        if waited == Err(libc::EINTR) && interruptible {
            if ticket.abandon() {
                return Err(libc::EINTR);
            }
            break;
        }
    }
    let reply = ticket.answer();
    let status = reply.op_data as i64;
    if reply.flags & FLAG_ERROR != 0 || (nqe.op != Op::GetSockOpt as u8 && status < 0) {
        let e = i32::try_from(status.unsigned_abs()).unwrap_or(libc::EIO);
        return Err(if e == 0 { libc::EIO } else { e });
    }
    Ok(reply)
}

/// [`call`] for operations whose reply may be in the queue set's reply area: `use_reply` runs before another such call.
///
/// # Errors
/// As [`call`].
pub fn call_with_reply<T>(
    p: &Process,
    nqe: Nqe,
    use_reply: impl FnOnce(&Nqe) -> T,
) -> Result<T, i32> {
    let _signals = SignalsBlocked::new();
    lock(&REPLY_LOCK);
    let r = call(p, nqe, false).map(|reply| use_reply(&reply));
    unlock(&REPLY_LOCK);
    r
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_meets_no_other_call() {
        let t = Ticket::new();
        let answer = |n: u64| Nqe { op_data: n, ..Nqe::new(Op::Reply, 1, 1) };
        assert!(t.take() && t.abandon());
        assert!(!t.take(), "the answer of the call that was left may come yet");
        t.deliver(&answer(1));
        assert!(!t.is_done() && t.take(), "it came, and told nobody");
        t.deliver(&answer(2));
        assert!(t.is_done() && !t.abandon(), "what came is not lost");
        assert_eq!(t.answer().op_data, 2);
        assert!(t.take());
    }
}
