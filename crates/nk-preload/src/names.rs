//! Asking the guest's resolver about a name: a connection from the daemon, one packet there, one packet back.
//!
//! The C library's own resolver makes its sockets past its PLT, so in a guest it would speak into the empty namespace. The wait for the
//! answer is an ordinary poll with signals open: handlers run, and as with the C library the call goes on after them.

use libc::c_int;
use nk_attach::names::{ANSWER_MAX, BUSY, Outcome, QUESTION_MAX, Question, Reader};
use nk_attach::{Kind, Message};
use nk_device::header::{ENGINE_GONE, ENGINE_UP};
use nk_device::row::{Missed, NoAnswer};

use crate::process::Process;
use crate::sys::{self, Memory};
use crate::{control, hangup};

/// How long an answer may take. Name servers that do not answer take the C library half a minute, with several servers more.
const ANSWER_MAX_US: u64 = 120_000_000;
/// How long the daemon may take to make a connection: it may have to be started again.
const CONNECT_MAX_US: u64 = 10_000_000;
/// Questions are asked again when the resolver or the daemon was killed over them, but not for ever.
const TRIES: u32 = 3;
const RETRY_US: u64 = 120_000;

/// Memory for an answer. Only what is used of it is ever there.
#[derive(Debug)]
pub(crate) struct Answer {
    memory: Memory,
    len: usize,
}

impl Answer {
    fn new() -> Option<Answer> {
        Memory::new(ANSWER_MAX).map(|memory| Answer { memory, len: 0 })
    }

    fn packet(&self) -> &[u8] {
        // SAFETY: our own memory, zeroed or written by the kernel, at least `len` bytes long, and nobody writes it any more.
        unsafe { core::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }

    /// Its head, and what follows.
    pub(crate) fn parse(&self) -> Option<(Outcome, Reader<'_>)> {
        Outcome::parse(self.packet())
    }
}

/// A connection to the resolver, closed on drop.
struct Connection(c_int);

impl Drop for Connection {
    fn drop(&mut self) {
        let saved = sys::errno();
        sys::close(self.0);
        sys::set_errno(saved);
    }
}

/// Asks. errno is preserved.
///
/// # Errors
/// Why there is no answer; counted.
pub(crate) fn ask(p: &Process, question: &Question<'_>) -> Result<Answer, NoAnswer> {
    let saved = sys::errno();
    let r = try_ask(p, question);
    if let Err(why) = r {
        p.count_missed(Missed::Name, why as u64);
    }
    sys::set_errno(saved);
    r
}

fn try_ask(p: &Process, question: &Question<'_>) -> Result<Answer, NoAnswer> {
    let mut packet = [0u8; QUESTION_MAX];
    let len = question.write(&mut packet).ok_or(NoAnswer::TooLong)?;
    let packet = packet.get(..len).unwrap_or_default();
    let mut answer = Answer::new().ok_or(NoAnswer::Resources)?;
    let deadline = sys::now_us() + ANSWER_MAX_US;
    let mut why = NoAnswer::Ended;
    for again in 0..TRIES {
        if again != 0 {
            sys::sleep_us(RETRY_US);
        }
        match connect(p) {
            Ok(connection) => match exchange(&connection, packet, &mut answer, deadline)? {
                // Its head says so; what follows is for the caller to read.
                Some(o) if o.code == BUSY => why = NoAnswer::Busy,
                Some(_) => return Ok(answer),
                None => why = NoAnswer::Ended,
            },
            Err(NoAnswer::Busy) => why = NoAnswer::Busy,
            Err(e) => return Err(e),
        }
    }
    Err(why)
}

fn connect(p: &Process) -> Result<Connection, NoAnswer> {
    let deadline = sys::now_us() + CONNECT_MAX_US;
    // Before the lock of the control socket, so that those who wait for a daemon wait together.
    loop {
        hangup::look_now_and_then(p);
        match hangup::engine_state(p.device()) {
            ENGINE_UP => break,
            ENGINE_GONE => return Err(NoAnswer::NoDaemon),
            _ if sys::now_us() >= deadline => return Err(NoAnswer::Late),
            _ => sys::sleep_us(10_000),
        }
    }
    match control::request_until(p, &Message::new(Kind::Names), &[], deadline) {
        // No descriptor came: there is no number left for it.
        Ok((_, mut fds)) => fds.take(0).map(Connection).ok_or(NoAnswer::Resources),
        Err(libc::EAGAIN) => Err(NoAnswer::Busy),
        Err(libc::EPERM) => Err(NoAnswer::Forbidden),
        Err(libc::ETIMEDOUT) => Err(NoAnswer::Late),
        Err(_) => Err(NoAnswer::NoDaemon),
    }
}

/// `None`: the connection ended without an answer.
fn exchange(
    connection: &Connection,
    packet: &[u8],
    answer: &mut Answer,
    deadline: u64,
) -> Result<Option<Outcome>, NoAnswer> {
    let fd = connection.0;
    // A resolver that is too busy has answered and closed its end already: then this fails, and its answer is there.
    // SAFETY: reads the packet.
    unsafe {
        sys::system_call!(
            libc::SYS_sendto,
            fd,
            packet.as_ptr(),
            packet.len(),
            libc::MSG_NOSIGNAL,
            0usize,
            0usize,
        )
    };
    loop {
        let now = sys::now_us();
        if now >= deadline {
            return Err(NoAnswer::Late);
        }
        let left_ms = ((deadline - now) / 1000 + 1) as u32;
        // False also when a signal's handler ran.
        if !sys::wait_readable(fd, left_ms) {
            continue;
        }
        // SAFETY: at most ANSWER_MAX bytes, which the memory has.
        let n = unsafe {
            let to = answer.memory.as_ptr();
            let flags = libc::MSG_DONTWAIT;
            sys::system_call!(libc::SYS_recvfrom, fd, to, ANSWER_MAX, flags, 0usize, 0usize)
        };
        match usize::try_from(n) {
            Ok(0) => return Ok(None),
            Ok(n) => {
                answer.len = n;
                let head = answer.parse().map(|(o, _)| o);
                return head.map(Some).ok_or(NoAnswer::Malformed);
            }
            // Reset: the other end was closed with our question unread. It is told once, and what was sent before comes after.
            Err(_) if matches!(sys::errno(), libc::EAGAIN | libc::EINTR | libc::ECONNRESET) => {}
            Err(_) => return Ok(None),
        }
    }
}
