//! What the host leased to this process: chunks to send with, and ids for new sockets. What is taken and not used goes
//! into a few private slots, to be used first next time.

use core::sync::atomic::{AtomicU64, Ordering};

use nk_device::{Cell, Nqe, Op, STREAM_SLOTS};
use nk_guestlib::send::Chunks;

use crate::process::Process;
use crate::{hangup, rings, sys, wait};

const SLOTS: usize = 32;
/// Numbers that are kept, each with the epoch in which it was leased: epoch << 32 | number + 1; 0 is free.
type Kept = [AtomicU64; SLOTS];
static CHUNKS: Kept = [const { AtomicU64::new(0) }; SLOTS];
static IDS: Kept = [const { AtomicU64::new(0) }; SLOTS];

/// In a forked child: what was leased to the parent stays with it.
pub(crate) fn reset() {
    for s in CHUNKS.iter().chain(&IDS) {
        s.store(0, Ordering::Relaxed);
    }
}

fn is_of(word: u64, epoch: u32) -> bool {
    word != 0 && (word >> 32) as u32 == epoch
}

/// One that was leased in this epoch. What is older is dropped: whoever leased it is dead, and its successor leases it to others.
fn take_kept(slots: &Kept, epoch: u32) -> Option<u32> {
    for s in slots {
        if s.load(Ordering::Relaxed) != 0 {
            let word = s.swap(0, Ordering::AcqRel);
            if is_of(word, epoch) {
                return Some(word as u32 - 1);
            }
        }
    }
    None
}

/// Keeps a number; when all slots are full it stays leased until the process ends.
fn keep(slots: &Kept, epoch: u32, number: u32) {
    let word = u64::from(epoch) << 32 | u64::from(number + 1);
    for s in slots {
        if s.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            return;
        }
    }
}

fn lease_epoch(p: &Process) -> u32 {
    p.row().map_or(0, |r| r.lease_epoch.load(Ordering::SeqCst))
}

/// The process's chunks, as the core takes them.
#[derive(Debug)]
pub struct ProcessChunks<'a> {
    process: &'a Process,
    /// When it began: what it took since and puts back is of this epoch, or of none that still counts.
    epoch: u32,
}

impl ProcessChunks<'_> {
    /// Those of a process.
    #[must_use]
    pub fn new(process: &Process) -> ProcessChunks<'_> {
        ProcessChunks { process, epoch: lease_epoch(process) }
    }
}

impl Chunks for ProcessChunks<'_> {
    #[inline]
    fn take(&mut self) -> Option<u32> {
        take_kept(&CHUNKS, self.epoch).or_else(|| self.process.row()?.chunk_grants.pop())
    }

    fn put_back(&mut self, chunk: u32) {
        keep(&CHUNKS, self.epoch, chunk);
    }

    fn begin_append(&mut self, chunk: u32) -> bool {
        self.process.row().is_some_and(|r| r.begin_append(chunk))
    }

    fn end_append(&mut self) {
        if let Some(r) = self.process.row() {
            r.end_append();
        }
    }
}

fn kept_chunks(p: &Process) -> u32 {
    let epoch = lease_epoch(p);
    CHUNKS.iter().filter(|s| is_of(s.load(Ordering::Relaxed), epoch)).count() as u32
}

/// Whether there is a chunk to send with: the `can_send` of [`nk_guestlib::readiness::readiness`].
#[must_use]
pub fn can_send(p: &Process) -> bool {
    p.row().is_some_and(|r| r.chunk_grants.available() != 0) || kept_chunks(p) != 0
}

/// Asks for grants; [`Op::Granted`] on the primary queue set and the row's `grant_wake` tell when they came.
pub fn ask(p: &Process) {
    if let Some(row) = p.row() {
        row.want.store(1, Ordering::SeqCst);
        rings::push_job(p, &Nqe::new(Op::Refill, 0, 0));
    }
}

/// Sleeps until grants came or a signal, unless so many are there already.
///
/// # Errors
/// EINTR, EAGAIN after `timeout_us` (0: no limit), or ENETDOWN when nobody grants any more.
pub(crate) fn wait_for_chunks(p: &Process, count: u32, timeout_us: u64) -> Result<(), i32> {
    let Some(row) = p.row() else { return Err(libc::ENOBUFS) };
    let seen = row.grant_wake.load(Ordering::SeqCst);
    ask(p);
    if row.chunk_grants.available() + kept_chunks(p) >= count {
        return Ok(());
    }
    hangup::look_now_and_then(p);
    if wait::is_gone(p) {
        return Err(libc::ENETDOWN);
    }
    let limit = sys::timespec_us(timeout_us);
    let r = sys::futex_wait(&row.grant_wake, seen, (timeout_us != 0).then_some(&limit));
    r.map_err(|e| if e == libc::EINTR { libc::EINTR } else { libc::EAGAIN })
}

/// How long a caller that would not wait otherwise waits for chunks: for the first of a process that was just made, and for more.
const FIRST_US: u64 = 100_000;
const MORE_US: u64 = 20_000;

/// Natively the first bytes on a socket always have room, whatever others hold. So a caller that does not block, on a socket of which nothing waits
/// to be sent, gets this short wait where its process has no chunk, and not EAGAIN. `until_us`: when its patience ends, 0 before the first wait.
/// `true`: there are some now.
pub(crate) fn wait_briefly(p: &Process, cell: &Cell, count: u32, until_us: &mut u64) -> bool {
    let Some(row) = p.row() else { return false };
    if (cell.tx().room() as usize) < STREAM_SLOTS {
        return false;
    }
    if *until_us == 0 {
        let is_new = row.chunk_grants.tail.load(Ordering::Acquire) == 0;
        *until_us = sys::now_us() + if is_new { FIRST_US } else { MORE_US };
    }
    // Ids for sockets wake it too, and signals do.
    while let Some(left_us) = until_us.checked_sub(sys::now_us()).filter(|left| *left > 0) {
        if wait_for_chunks(p, count, left_us) == Err(libc::ENETDOWN) {
            return false;
        }
        if row.chunk_grants.available() + kept_chunks(p) >= count {
            return true;
        }
    }
    false
}

/// How long socket() waits for a host that does not answer.
const ID_WAIT_US: u64 = 5_000_000;
/// And after the host took the request, before it says that there is no id.
const ID_ANSWER_US: u64 = 20_000;

/// Under which engine ids are granted now.
pub(crate) fn engine_epoch(p: &Process) -> u32 {
    p.device().header().epoch.load(Ordering::SeqCst)
}

/// An id for a new socket.
///
/// # Errors
/// ENFILE when the guest has no more, ENETDOWN without an engine.
pub(crate) fn take_id(p: &Process) -> Result<u32, i32> {
    let row = p.row().ok_or(libc::ENETDOWN)?;
    let granted = || row.id_grants.tail.load(Ordering::SeqCst);
    let mut deadline = 0;
    let mut asked: Option<(u32, u32)> = None;
    loop {
        if let Some(id) = take_kept(&IDS, engine_epoch(p)).or_else(|| row.id_grants.pop()) {
            return Ok(id);
        }
        wait::for_engine(p)?;
        let now = sys::now_us();
        let q = p.device().qset(p.qset()).ok_or(libc::ENETDOWN)?;
        let (asked_at, before) = *asked.get_or_insert_with(|| {
            let before = granted();
            ask(p);
            deadline = now + ID_WAIT_US;
            (q.job_tail.load(Ordering::SeqCst), before)
        });
        if q.job_head.load(Ordering::SeqCst).wrapping_sub(asked_at) as i32 >= 0 {
            if granted() != before {
                // There were some, and other threads were faster.
                asked = None;
                continue;
            }
            deadline = deadline.min(now + ID_ANSWER_US);
        }
        if now >= deadline {
            return Err(libc::ENFILE);
        }
        let seen = row.grant_wake.load(Ordering::SeqCst);
        if row.id_grants.available() == 0 {
            let _ = sys::futex_wait(&row.grant_wake, seen, Some(&sys::timespec_us(200)));
        }
    }
}

/// Gives back an id that was not used; `epoch`: [`engine_epoch`] before it was taken.
pub(crate) fn put_back_id(epoch: u32, id: u32) {
    keep(&IDS, epoch, id);
}
