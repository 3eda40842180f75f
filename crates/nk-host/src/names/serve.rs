//! A resolver's connections: each carries one question and one answer. Worker threads, made as they are needed, take them in
//! turn; what is more than they and the queue hold is told so at once.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nk_attach::names::{ANSWER_MAX, BUSY, Outcome, QUESTION_MAX, Question};
use nk_attach::{Kind, RecvError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags};

use super::{Counter, Counters, lookup};
use crate::sys;

/// Lookups at once. They wait for name servers most of the time.
pub(super) const WORKERS_MAX: usize = 32;
/// Connections that wait for a worker.
pub(super) const QUEUE_MAX: usize = 256;
/// How long a connection may take until its question is there: the guest sends it at once.
const TALK_MAX: Timespec = seconds(2);
/// A lookup that takes longer hangs, and whoever asked has given up. The process ends; the next question starts another.
const LOOKUP_MAX: Duration = Duration::from_secs(300);
/// How long nobody asks before the process ends.
const IDLE_MAX: Timespec = seconds(15);
/// How often it looks for lookups that hang, while there are lookups.
const LOOK_EVERY: Timespec = seconds(10);
const STACK_SIZE: usize = 1 << 20;

const fn seconds(n: i64) -> Timespec {
    Timespec { tv_sec: n, tv_nsec: 0 }
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<OwnedFd>,
    idle_workers: usize,
    /// By worker: since when it has been at its question.
    busy_since: Vec<Option<Instant>>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

fn lock(s: &Shared) -> MutexGuard<'_, State> {
    s.state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.busy_since.iter().all(Option::is_none)
    }
}

/// Serves until the other end of `control` is closed, or nobody has asked for a while.
///
/// # Errors
/// A lookup hangs; or a message is none that a resolver knows.
pub fn serve(control: &OwnedFd, counters: &Arc<Counters>) -> io::Result<()> {
    let shared = Arc::new(Shared::default());
    let result = take(control, &shared, counters);
    lock(&shared).ended = true;
    shared.work.notify_all();
    result
}

fn take(control: &OwnedFd, shared: &Arc<Shared>, counters: &Arc<Counters>) -> io::Result<()> {
    loop {
        let was_idle = lock(shared).is_idle();
        let is_asked = wait(control, if was_idle { IDLE_MAX } else { LOOK_EVERY });
        let state = lock(shared);
        if state.busy_since.iter().flatten().any(|t| t.elapsed() > LOOKUP_MAX) {
            return Err(io::Error::other("a lookup hangs"));
        }
        if !is_asked {
            if was_idle && state.is_idle() {
                return Ok(());
            }
            continue;
        }
        drop(state);
        match nk_attach::recv(control.as_raw_fd(), true) {
            Ok((m, mut fds, _)) if Kind::from_u32(m.kind) == Some(Kind::Names) => {
                if let Some(fd) = sys::take(&mut fds, 0) {
                    submit(fd, shared, counters);
                }
            }
            Ok(_) => return Err(io::Error::other("an odd message from the daemon")),
            Err(RecvError::Os(libc::EAGAIN)) => {}
            Err(RecvError::Closed) => return Ok(()),
            Err(e) => return Err(io::Error::other(format!("the daemon's connection: {e:?}"))),
        }
    }
}

/// Waits until the descriptor is readable or closed; `false` when the time is up.
fn wait(fd: &OwnedFd, limit: Timespec) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&limit)) != Ok(0)
}

fn submit(connection: OwnedFd, shared: &Arc<Shared>, counters: &Arc<Counters>) {
    let mut state = lock(shared);
    let new = if state.idle_workers > state.queue.len() {
        None
    } else if state.busy_since.len() < WORKERS_MAX {
        state.busy_since.push(None);
        Some(state.busy_since.len() - 1)
    } else if state.queue.len() < QUEUE_MAX {
        None
    } else {
        drop(state);
        return refuse(&connection, counters);
    };
    state.queue.push_back(connection);
    shared.work.notify_one();
    drop(state);
    if let Some(number) = new {
        let (mine, counts) = (shared.clone(), counters.clone());
        let made = std::thread::Builder::new()
            .name("nk-lookup".into())
            .stack_size(STACK_SIZE)
            .spawn(move || work(number, &mine, &counts));
        if made.is_err() {
            let mut state = lock(shared);
            // Its slot was the last one.
            state.busy_since.pop();
            if state.busy_since.is_empty() {
                // Nobody would ever come for it.
                let all: Vec<OwnedFd> = state.queue.drain(..).collect();
                drop(state);
                for connection in all {
                    refuse(&connection, counters);
                }
            }
        }
    }
}

fn refuse(connection: &OwnedFd, counters: &Counters) {
    counters.count(Counter::Busy);
    let mut out = [0; 64];
    if let Some(len) = (Outcome { code: BUSY, ..Outcome::default() }).write(&mut out).finish() {
        send(connection, out.get(..len).unwrap_or_default());
    }
}

fn work(number: usize, shared: &Shared, counters: &Counters) {
    let mut answer = vec![0; ANSWER_MAX];
    loop {
        let mut state = lock(shared);
        if let Some(b) = state.busy_since.get_mut(number) {
            *b = None;
        }
        let connection = loop {
            if state.ended {
                return;
            }
            if let Some(c) = state.queue.pop_front() {
                break c;
            }
            state.idle_workers += 1;
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle_workers -= 1;
        };
        if let Some(b) = state.busy_since.get_mut(number) {
            *b = Some(Instant::now());
        }
        drop(state);
        if talk(&connection, &mut answer, counters).is_none() {
            counters.count(Counter::Malformed);
        }
    }
}

/// One question and its answer. `None`: there was no question.
fn talk(connection: &OwnedFd, answer: &mut [u8], counters: &Counters) -> Option<()> {
    let mut asked = [PollFd::new(connection, PollFlags::IN)];
    // The guest cannot make either wait longer.
    if poll(&mut asked, Some(&TALK_MAX)) != Ok(1) {
        return None;
    }
    let mut packet = [0u8; QUESTION_MAX + 1];
    let received = rustix::net::recv(connection, &mut packet[..], RecvFlags::DONTWAIT);
    if asked.iter().any(|p| p.revents().contains(PollFlags::HUP)) {
        // Whoever asked did not wait for its turn.
        return Some(());
    }
    let (len, _) = received.ok()?;
    let question = Question::parse(packet.get(..len)?)?;
    let (len, again) = lookup::answer(&question, answer);
    counters.count(if again { Counter::TryAgain } else { Counter::Answered });
    send(connection, answer.get(..len)?);
    Some(())
}

/// A guest that does not want its answer, or is gone, does without.
fn send(connection: &OwnedFd, packet: &[u8]) {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let _ = rustix::net::send(connection, packet, flags);
}

#[cfg(test)]
mod tests {
    use super::*;
    use nk_attach::Message;

    #[test]
    fn a_lookup_that_hangs_is_seen_while_others_ask() {
        let (control, theirs) = sys::seqpacket_pair().expect("pair");
        let shared = Arc::new(Shared::default());
        let counters = Arc::new(Counters::new().expect("memory"));
        lock(&shared).busy_since.push(Instant::now().checked_sub(2 * LOOKUP_MAX));
        nk_attach::send(control.as_raw_fd(), &Message::new(Kind::Names), &[]).expect("send");
        drop(control);
        assert!(take(&theirs, &shared, &counters).is_err(), "it was not looked for");
    }
}
