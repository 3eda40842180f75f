//! socket, bind, listen, connect, accept, shutdown and the names of both ends.

use core::sync::atomic::Ordering;

use libc::{c_int, sockaddr, socklen_t};
use nk_attach::{Kind, Message, SETTLE_ASKS};
use nk_device::addr::{AF_INET, AF_INET6};
use nk_device::cell::{
    GF_CONNECT_CALLED, GF_SHUT_RD, GF_SHUT_WR, SF_BOUND, SF_CONNECTED, SF_CONNECTING, SF_DEAD,
    SF_FAILED, SF_LISTENING,
};
use nk_device::row::Missed;
use nk_device::{Addr, Cell, Nqe, Op};
use nk_guestlib::connect::{AGAIN, ConnectState, TWICE, state as connect_state};

use super::address::{self, Given};
use super::{Target, files, int_result, native, target};
use crate::io::Open;
use crate::process::{Process, process};
use crate::wait::{self, Ended, On};
use crate::{control, gate, grants, rings, standin, sys};

const TYPE_MASK: c_int = 0xf;
/// How often bind finds its port taken while sockets of ended processes wait to be closed, a millisecond apart.
const SETTLE_TRIES: u32 = 100;
const SOCK_PACKET: c_int = 10;
pub(super) const FLAGS: c_int = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;

/// The family of a cell.
pub(crate) fn family(cell: &Cell) -> u16 {
    cell.kind.load(Ordering::Relaxed) as u16
}

/// The protocol of a cell's socket.
pub(crate) fn protocol(cell: &Cell) -> c_int {
    if cell.is_datagram() { libc::IPPROTO_UDP } else { libc::IPPROTO_TCP }
}

/// The checks of Linux's `inet_create`, for what NetKernel serves.
fn check_kind(p: &Process, domain: c_int, kind: c_int, protocol: c_int) -> Result<(), c_int> {
    if kind & !TYPE_MASK & !FLAGS != 0 {
        return Err(libc::EINVAL);
    }
    let kind = kind & TYPE_MASK;
    let missed = |e| {
        let detail =
            (domain as u64 & 0xffff) | (kind as u64) << 16 | (protocol as u64 & 0xffff) << 32;
        p.count_missed(Missed::Socket, detail);
        Err(e)
    };
    if kind > SOCK_PACKET || !(0..=libc::IPPROTO_MPTCP).contains(&protocol) {
        return Err(libc::EINVAL);
    }
    match (kind, protocol) {
        (libc::SOCK_STREAM, 0 | libc::IPPROTO_TCP) => Ok(()),
        (libc::SOCK_DGRAM, 0 | libc::IPPROTO_UDP) => Ok(()),
        (libc::SOCK_RAW | SOCK_PACKET, _) => missed(libc::EPERM),
        (libc::SOCK_STREAM | libc::SOCK_DGRAM, _) => missed(libc::EPROTONOSUPPORT),
        _ => missed(libc::ESOCKTNOSUPPORT),
    }
}

fn create(p: &Process, domain: c_int, kind: c_int, protocol: c_int) -> Result<c_int, c_int> {
    check_kind(p, domain, kind, protocol)?;
    let _changing = gate::enter();
    let epoch = grants::engine_epoch(p);
    let id = grants::take_id(p)?;
    let Some(cell) = p.cell(id) else { return Err(libc::ENFILE) };
    let generation = cell.generation.load(Ordering::Acquire) as u16;
    let fd = match standin::share(kind & FLAGS) {
        Ok(fd) => fd,
        Err(e) => {
            grants::put_back_id(epoch, id);
            return Err(e);
        }
    };
    let base = kind & TYPE_MASK;
    cell.kind.store(domain as u32 | (base as u32) << 16, Ordering::Relaxed);
    cell.nonblock.store(u32::from(kind & libc::SOCK_NONBLOCK != 0), Ordering::Relaxed);
    standin::enter_shared(p, fd, id, generation);
    let mut nqe = Nqe::new(Op::Socket, id, generation);
    nqe.op_data =
        domain as u64 | (base as u64) << 16 | u64::from(self::protocol(cell) as u32) << 32;
    rings::push_job(p, &nqe);
    Ok(fd)
}

/// socket(2).
#[unsafe(no_mangle)]
pub extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    if (domain == libc::AF_INET || domain == libc::AF_INET6)
        && let Some(p) = process()
    {
        let saved = sys::errno();
        return match create(p, domain, kind, protocol) {
            Ok(fd) => {
                files::follow(fd);
                sys::set_errno(saved);
                fd
            }
            Err(e) => sys::fail(e),
        };
    }
    native!(libc::SYS_socket, domain, kind, protocol) as c_int
}

/// socketpair(2): never for Internet sockets, on Linux too.
///
/// # Safety
/// `pair` has room for two ints.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn socketpair(
    domain: c_int,
    kind: c_int,
    protocol: c_int,
    pair: *mut c_int,
) -> c_int {
    if (domain == libc::AF_INET || domain == libc::AF_INET6) && process().is_some() {
        return sys::fail(libc::EOPNOTSUPP);
    }
    native!(libc::SYS_socketpair, domain, kind, protocol, pair) as c_int
}

fn with_address(op: Op, s: &Open, a: Addr) -> Nqe {
    let (size, op_data, data) = a.to_words();
    Nqe { size, op_data, data, ..Nqe::new(op, s.id, s.generation) }
}

/// Whether an address whose port is taken is one of the host's at all. Linux looks at that first; of a port that another guest has, the stack was
/// not asked.
fn is_here(s: &Open, a: Addr) -> bool {
    let [first, ..] = a.ip;
    if a.family == AF_INET && matches!(first, 0 | 127) {
        return true;
    }
    let kind = if s.is_datagram() { libc::SOCK_DGRAM } else { libc::SOCK_STREAM };
    let Ok(fd) = create(s.p, c_int::from(a.family), kind | libc::SOCK_CLOEXEC, 0) else {
        return true;
    };
    let bound = match target(fd) {
        Target::Socket(probe) => {
            let a = Addr { port: 0, ..a };
            rings::call(s.p, with_address(Op::Bind, &probe, a), false).map(drop)
        }
        Target::Native | Target::Error(_) => Ok(()),
    };
    super::descriptors::close(fd);
    bound != Err(libc::EADDRNOTAVAIL)
}

fn do_bind(s: &Open, addr: *const sockaddr, len: socklen_t) -> Result<(), c_int> {
    let family = family(s.cell);
    let a = match address::read(addr, len, family)? {
        Given::Addr(a) => a,
        Given::Unspecified { port_of_any: Some(port) } if family == AF_INET => {
            Addr::v4([0; 4], port)
        }
        Given::Unspecified { .. } | Given::V4Mapped(_) => return Err(libc::EAFNOSUPPORT),
    };
    let mut tries = SETTLE_TRIES;
    loop {
        let bound = rings::call(s.p, with_address(Op::Bind, s, a), false).map(drop);
        // A process that was reaped has nothing any more on Linux, but the daemon may still have to hear of its end.
        if bound != Err(libc::EADDRINUSE) || tries == 0 {
            return bound;
        }
        if tries == SETTLE_TRIES && !is_here(s, a) {
            return Err(libc::EADDRNOTAVAIL);
        }
        if tries < SETTLE_TRIES {
            sys::sleep_us(1_000);
        }
        let settle = Message { a: SETTLE_ASKS, ..Message::new(Kind::Settle) };
        let waits = control::request(s.p, &settle, &[]).is_ok_and(|(reply, _)| reply.a != 0);
        tries = if waits { tries - 1 } else { 0 };
    }
}

/// bind(2).
///
/// # Safety
/// As bind(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int {
    match target(fd) {
        Target::Socket(s) => int_result(do_bind(&s, addr, len)),
        Target::Native => native!(libc::SYS_bind, fd, addr, len) as c_int,
        Target::Error(e) => sys::fail(e),
    }
}

/// listen(2).
#[unsafe(no_mangle)]
pub extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    match target(fd) {
        Target::Socket(s) if s.is_datagram() => sys::fail(libc::EOPNOTSUPP),
        Target::Socket(s) => {
            let mut nqe = Nqe::new(Op::Listen, s.id, s.generation);
            nqe.op_data = backlog as u32 as u64;
            // A listener that was shut down is fresh when it listens again.
            s.cell.guest_state.fetch_and(!(GF_SHUT_RD | GF_SHUT_WR), Ordering::SeqCst);
            int_result(rings::call(s.p, nqe, false).map(|_| ()))
        }
        Target::Native => native!(libc::SYS_listen, fd, backlog) as c_int,
        Target::Error(e) => sys::fail(e),
    }
}

/// How a look at a connect under way ends.
fn settle(s: &Open) -> Option<Result<(), c_int>> {
    if s.is_stale() {
        return Some(Err(libc::EBADF));
    }
    match connect_state(s.cell) {
        ConnectState::InProgress if wait::stack_lives(s.p) => None,
        ConnectState::InProgress => Some(Err(libc::ECONNRESET)),
        ConnectState::Connected => {
            // Whoever clears the bit reports the success; to later callers the socket is connected.
            let g = s.cell.guest_state.fetch_and(!GF_CONNECT_CALLED, Ordering::AcqRel);
            Some(if g & GF_CONNECT_CALLED != 0 { Ok(()) } else { Err(TWICE) })
        }
        ConnectState::Failed(e) => {
            s.cell.guest_state.fetch_and(!GF_CONNECT_CALLED, Ordering::AcqRel);
            Some(Err(e))
        }
        ConnectState::Idle => Some(Err(libc::ECONNABORTED)),
        ConnectState::Listening => Some(Err(TWICE)),
    }
}

/// Asks for the connection. After an attempt that failed the answer is waited for: until the service has seen the new attempt, the
/// cell tells of the old one.
fn start_connect(s: &Open, nqe: Nqe) -> Result<(), c_int> {
    let failed_before = s.cell.state.load(Ordering::Acquire) & (SF_DEAD | SF_FAILED) != 0;
    s.cell.guest_state.fetch_or(GF_CONNECT_CALLED, Ordering::AcqRel);
    if !failed_before {
        rings::push_job(s.p, &nqe);
        return Ok(());
    }
    match rings::call(s.p, nqe, false) {
        Ok(_) | Err(libc::EINPROGRESS) => Ok(()),
        Err(e) => {
            s.cell.guest_state.fetch_and(!GF_CONNECT_CALLED, Ordering::AcqRel);
            let _ = s.cell.take_error();
            Err(e)
        }
    }
}

/// Connecting a datagram socket asks nobody but the stack, whose answer is waited for.
fn connect_datagram(s: &Open, addr: *const sockaddr, len: socklen_t) -> Result<(), c_int> {
    let nqe = match address::read_peer(addr, len, family(s.cell))? {
        Given::Unspecified { .. } => Nqe::new(Op::Disconnect, s.id, s.generation),
        // Linux says another errno for an address given as IPv4 than for a mapped one.
        Given::V4Mapped(_) if super::options::is_v6only(s)? => return Err(libc::EAFNOSUPPORT),
        Given::Addr(a) | Given::V4Mapped(a) => with_address(Op::Connect, s, a),
    };
    rings::call(s.p, nqe, false).map(|_| ())
}

fn do_connect(s: &Open, addr: *const sockaddr, len: socklen_t) -> Result<(), c_int> {
    if s.is_datagram() {
        return connect_datagram(s, addr, len);
    }
    let a = match address::read(addr, len, family(s.cell))? {
        Given::Unspecified { .. } => {
            let r = rings::call(s.p, Nqe::new(Op::Disconnect, s.id, s.generation), false);
            s.cell
                .guest_state
                .fetch_and(!(GF_CONNECT_CALLED | GF_SHUT_RD | GF_SHUT_WR), Ordering::AcqRel);
            return r.map(|_| ());
        }
        Given::Addr(a) | Given::V4Mapped(a) => a,
    };
    let nonblocking = s.is_nonblocking(0);
    let mut late = AGAIN;
    match connect_state(s.cell) {
        ConnectState::Idle => {
            wait::for_engine(s.p)?;
            start_connect(s, with_address(Op::Connect, s, a))?;
            late = libc::EINPROGRESS;
            if nonblocking {
                return Err(libc::EINPROGRESS);
            }
        }
        ConnectState::InProgress if nonblocking => {
            return settle(s).unwrap_or(Err(AGAIN));
        }
        ConnectState::InProgress => {}
        ConnectState::Failed(e) => {
            s.cell.guest_state.fetch_and(!GF_CONNECT_CALLED, Ordering::AcqRel);
            return Err(e);
        }
        ConnectState::Connected | ConnectState::Listening => {
            return settle(s).unwrap_or(Err(TWICE));
        }
    }
    let timeout_us = s.cell.snd_timeout_us.load(Ordering::Relaxed);
    match wait::until(s.p, s.id, s.generation, On::Tx, timeout_us, || settle(s)) {
        Ok(r) => r,
        Err(Ended::TimedOut) => Err(late),
        Err(ended) => Err(ended.errno()),
    }
}

/// connect(2).
///
/// # Safety
/// As connect(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int {
    match target(fd) {
        Target::Socket(s) => int_result(do_connect(&s, addr, len)),
        Target::Native => native!(libc::SYS_connect, fd, addr, len) as c_int,
        Target::Error(e) => sys::fail(e),
    }
}

fn do_shutdown(s: &Open, how: c_int) -> Result<(), c_int> {
    let bits = match how {
        libc::SHUT_RD => GF_SHUT_RD,
        libc::SHUT_WR => GF_SHUT_WR,
        libc::SHUT_RDWR => GF_SHUT_RD | GF_SHUT_WR,
        _ => return Err(libc::EINVAL),
    };
    let state = s.cell.state.load(Ordering::Acquire);
    let connected =
        state & SF_DEAD == 0 && state & (SF_CONNECTED | SF_CONNECTING | SF_LISTENING) != 0;
    // On Linux a datagram socket is shut down also when this says that it is not connected.
    if !connected && !s.is_datagram() {
        return Err(libc::ENOTCONN);
    }
    s.cell.guest_state.fetch_or(bits, Ordering::SeqCst);
    let mut nqe = Nqe::new(Op::Shutdown, s.id, s.generation);
    nqe.op_data = how as u64;
    rings::push_job(s.p, &nqe);
    // Whoever sleeps looks again; those that were about to sleep are woken by the service's answer to the NQE.
    sys::futex_wake(&s.cell.rx_wake, i32::MAX);
    sys::futex_wake(&s.cell.tx_wake, i32::MAX);
    if connected { Ok(()) } else { Err(libc::ENOTCONN) }
}

/// shutdown(2).
#[unsafe(no_mangle)]
pub extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    match target(fd) {
        Target::Socket(s) => int_result(do_shutdown(&s, how)),
        Target::Native => native!(libc::SYS_shutdown, fd, how) as c_int,
        Target::Error(e) => sys::fail(e),
    }
}

/// getsockname(2).
///
/// # Safety
/// As getsockname(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockname(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
    match target(fd) {
        Target::Socket(s) => {
            let a = if s.cell.state.load(Ordering::Acquire) & SF_BOUND != 0 {
                s.cell.local.load()
            } else if family(s.cell) == AF_INET6 {
                Addr::v6([0; 16], 0, 0)
            } else {
                Addr::v4([0; 4], 0)
            };
            int_result(address::write(&a, addr, len))
        }
        Target::Native => native!(libc::SYS_getsockname, fd, addr, len) as c_int,
        Target::Error(e) => sys::fail(e),
    }
}

/// getpeername(2).
///
/// # Safety
/// As getpeername(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getpeername(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
    match target(fd) {
        Target::Socket(s) => {
            let state = s.cell.state.load(Ordering::Acquire);
            let peer = s.cell.peer.load();
            if state & (SF_CONNECTED | SF_DEAD) != SF_CONNECTED || peer.port == 0 {
                return sys::fail(libc::ENOTCONN);
            }
            int_result(address::write(&peer, addr, len))
        }
        Target::Native => native!(libc::SYS_getpeername, fd, addr, len) as c_int,
        Target::Error(e) => sys::fail(e),
    }
}
