//! Datagrams: the blocking rules of send and recv, and which destinations are known to be good.
//!
//! A send returns before the stack has seen the datagram, so what the stack finds wrong with it would come too late. The first datagram to
//! a destination therefore waits for the stack's word (ENETUNREACH, EACCES and the like, and the port that the stack chose); those that follow,
//! and answers to whoever sent something, do not. What the stack refuses later makes all destinations of the socket unknown again.

use core::sync::atomic::{AtomicU64, Ordering};

use libc::c_int;
use nk_device::addr::AF_INET;
use nk_device::cell::{GF_MTU_DISCOVER, GF_SHUT_WR, SF_BOUND};
use nk_device::datagram::{DF_DONTROUTE, DF_PEER, DF_REPORT, Header};
use nk_device::row::Missed;
use nk_device::{Nqe, Op};
use nk_guestlib::datagram::{self, Received};
use nk_guestlib::recv::Sink;
use nk_guestlib::send::{SendError, Source};

use crate::grants::{self, ProcessChunks};
use crate::io::Open;
use crate::rings;
use crate::wait::{self, On};

/// A hash of each destination that was found good; lossy, and a wrong answer only makes an error come late.
const KNOWN: usize = 1024;
static DESTINATIONS: [AtomicU64; KNOWN] = [const { AtomicU64::new(0) }; KNOWN];
/// Every path takes datagrams of this size (IPv6's smallest MTU without headers).
const LEN_ALWAYS_FITS: usize = 1232;

/// What the stack's verdict on a datagram depends on, as one number.
fn key(s: &Open, h: &Header, len: usize) -> u64 {
    let (size, lo, hi) = h.peer.to_words();
    let discovers = s.cell.guest_state.load(Ordering::Relaxed) & GF_MTU_DISCOVER != 0;
    let len = if discovers && len > LEN_ALWAYS_FITS { len as u64 } else { 0 };
    let refused = s.cell.tx_refused.load(Ordering::Acquire);
    let ip = u128::from_le_bytes(h.ip);
    let words = [
        u64::from(s.id) | u64::from(s.generation) << 32 | u64::from(h.peer.family) << 48,
        u64::from(refused) | u64::from(h.flags & !(DF_REPORT | DF_PEER)) << 32,
        u64::from(size) | u64::from(h.interface) << 32,
        lo,
        hi,
        len | u64::from(u32::from_le_bytes(h.source)) << 32,
        ip as u64,
        (ip >> 64) as u64,
    ];
    let mixed =
        words.iter().fold(0u64, |h, w| (h.rotate_left(5) ^ w).wrapping_mul(0x517c_c1b7_2722_0a95));
    // Never the 0 of an empty place.
    mixed | 1
}

fn place(key: u64) -> Option<&'static AtomicU64> {
    DESTINATIONS.get((key >> 40) as usize % KNOWN)
}

fn learn(key: u64) {
    if let Some(p) = place(key) {
        p.store(key, Ordering::Relaxed);
    }
}

fn is_known(key: u64) -> bool {
    place(key).is_some_and(|p| p.load(Ordering::Relaxed) == key)
}

fn has_port(s: &Open) -> bool {
    s.cell.state.load(Ordering::Acquire) & SF_BOUND != 0 && s.cell.local.load().port != 0
}

/// Whether the stack's word must be waited for.
fn is_unknown(s: &Open, h: &Header, len: usize) -> bool {
    if !has_port(s) {
        return true;
    }
    // connect() asked the stack about the peer.
    let plain = h.flags & !DF_REPORT == 0
        && (len <= LEN_ALWAYS_FITS
            || s.cell.guest_state.load(Ordering::Relaxed) & GF_MTU_DISCOVER == 0);
    !plain && !is_known(key(s, h, len))
}

fn is_gone(s: &Open) -> bool {
    s.is_stale() || wait::is_gone(s.p)
}

/// The errno of flags: MSG_MORE is not served, MSG_OOB is refused by Linux's IPv4 and not seen by its IPv6.
fn check_flags(s: &Open, flags: c_int) -> Result<(), c_int> {
    if flags & libc::MSG_MORE != 0 {
        s.p.count_missed(Missed::MsgFlag, libc::MSG_MORE as u64);
        return Err(libc::EOPNOTSUPP);
    }
    if flags & libc::MSG_OOB != 0 && s.cell.kind.load(Ordering::Relaxed) as u16 == AF_INET {
        return Err(libc::EOPNOTSUPP);
    }
    Ok(())
}

/// Sends one datagram; `header` has its destination and control messages.
///
/// # Errors
/// The errno of send.
pub(crate) fn send(
    s: &Open,
    source: &mut impl Source,
    len: usize,
    mut header: Header,
    flags: c_int,
) -> Result<usize, c_int> {
    check_flags(s, flags)?;
    if flags & libc::MSG_DONTROUTE != 0 {
        header.flags |= DF_DONTROUTE;
    }
    let mut until_us = 0;
    loop {
        let reports = is_unknown(s, &header, len);
        header.flags = (header.flags & !DF_REPORT) | if reports { DF_REPORT } else { 0 };
        match datagram::send(&s.socket(), &mut ProcessChunks::new(s.p), source, len, header) {
            Ok(queued) if reports => {
                let mut nqe = Nqe::new(Op::Report, s.id, s.generation);
                nqe.op_data = queued.index.into();
                rings::call(s.p, nqe, false)?;
                learn(key(s, &header, len));
                return Ok(len);
            }
            Ok(queued) => {
                if queued.kick {
                    rings::push_send(s.p, &Nqe::new(Op::Send, s.id, s.generation));
                }
                return Ok(len);
            }
            Err(SendError::Errno(e)) => return Err(e),
            Err(SendError::Pipe | SendError::Connecting) => return Err(libc::EPIPE),
            Err(why) => wait_to_send(s, why, datagram::chunks_for(len), &mut until_us, flags)?,
        }
    }
}

/// Waits for room, or for chunks.
fn wait_to_send(
    s: &Open,
    why: SendError,
    chunks: usize,
    until_us: &mut u64,
    flags: c_int,
) -> Result<(), c_int> {
    if is_gone(s) {
        return Err(libc::ENETDOWN);
    }
    let no_chunks = why == SendError::NoChunks;
    if s.is_nonblocking(flags) {
        if no_chunks {
            if grants::wait_briefly(s.p, s.cell, chunks as u32, until_us) {
                return Ok(());
            }
            crate::events::note_shortage();
            grants::ask(s.p);
        }
        return Err(libc::EAGAIN);
    }
    let timeout_us = s.cell.snd_timeout_us.load(Ordering::Relaxed);
    if no_chunks {
        return grants::wait_for_chunks(s.p, chunks as u32, timeout_us);
    }
    let ready = || {
        let shut = s.cell.guest_state.load(Ordering::Acquire) & GF_SHUT_WR != 0;
        s.cell.want_tx();
        let room = s.cell.tx().room() > 0;
        (room || shut || is_gone(s) || s.cell.pending_error().is_some()).then_some(())
    };
    wait::until(s.p, s.id, s.generation, On::Tx, timeout_us, ready).map_err(wait::Ended::errno)
}

/// A datagram that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Got {
    /// What is known of it.
    pub(crate) header: Header,
    /// Bytes of it that are in the program's buffers.
    pub(crate) count: usize,
}

impl Got {
    /// What the call returns: with MSG_TRUNC the whole length.
    pub(crate) fn result(&self, flags: c_int) -> usize {
        if flags & libc::MSG_TRUNC != 0 { self.header.len as usize } else { self.count }
    }
    /// Whether a part is lost.
    pub(crate) fn is_cut(&self) -> bool {
        self.count < self.header.len as usize
    }
}

/// Receives one datagram; `None` when shutdown ended a blocking call.
///
/// # Errors
/// The errno of recv.
pub(crate) fn recv(
    s: &Open,
    sink: &mut impl Sink,
    len: usize,
    flags: c_int,
) -> Result<Option<Got>, c_int> {
    if flags & libc::MSG_ERRQUEUE != 0 {
        return Err(libc::EAGAIN);
    }
    let peek = flags & libc::MSG_PEEK != 0;
    let mut attempt = || {
        let r = datagram::recv(&s.socket(), sink, len, peek);
        if let Received::Datagram { rx_room: true, .. } = r {
            s.push(Op::RxRoom);
        }
        r
    };
    let mut r = attempt();
    if r == Received::WouldBlock && !s.is_nonblocking(flags) {
        let timeout_us = s.cell.rcv_timeout_us.load(Ordering::Relaxed);
        let woken = wait::until(s.p, s.id, s.generation, On::Rx, timeout_us, || match attempt() {
            Received::WouldBlock if is_gone(s) => Some(Received::Errno(libc::ENETDOWN)),
            Received::WouldBlock => None,
            other => Some(other),
        });
        r = woken.map_err(wait::Ended::errno)?;
    }
    match r {
        Received::Datagram { header, count, .. } => {
            if has_port(s) {
                let back = Header { flags: DF_PEER, peer: header.peer, ..Header::default() };
                learn(key(s, &back, 0));
            }
            Ok(Some(Got { header, count }))
        }
        Received::Shut if !s.is_nonblocking(flags) => Ok(None),
        Received::WouldBlock if is_gone(s) => {
            wait::pause_without_engine();
            Err(libc::ENETDOWN)
        }
        Received::Shut | Received::WouldBlock => Err(libc::EAGAIN),
        Received::Errno(e) => Err(e),
    }
}
