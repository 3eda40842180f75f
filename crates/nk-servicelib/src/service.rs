//! [`Service`]: the poll, and where NQEs and stack events go from there.

use core::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::os::fd::OwnedFd;

use nk_device::cell::SF_RX_STALLED;
use nk_device::nqe::{EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP};
use nk_device::sync::{Ordering, fence};
use nk_device::{Cell, Device, Op, SharedTotals};

use crate::guest::Guest;
use crate::limits::GuestLimits;
use crate::port::Port;
use crate::socket::Socket;
use crate::turns::Company;
use crate::{Errno, GuestPool, GuestStats, Key, PollResult, SetOption, Stack, StackEvent};

/// Jobs, and sends, taken in one poll.
const NQES: u32 = 512;
/// How long the stack gets when it is out of memory.
pub(crate) const RETRY_MS: u64 = 20;
pub(crate) const NS_PER_MS: u64 = 1_000_000;

/// Event hints.
pub(crate) const IN: u64 = EPOLLIN as u64;
pub(crate) const OUT: u64 = EPOLLOUT as u64;
pub(crate) const ERR: u64 = EPOLLERR as u64;
pub(crate) const HUP: u64 = EPOLLHUP as u64;
pub(crate) const RDHUP: u64 = EPOLLRDHUP as u64;
pub(crate) const ALL: u64 = IN | OUT | ERR | HUP | RDHUP;

/// What a timer is for. Late ones find nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// A listener that could not accept tries again.
    Accept,
    /// A synchronous drain looks again.
    Drain,
    /// A closed socket has had its time to send the rest.
    Orphan,
    /// The stack was out of memory.
    Retry,
    /// Chunks that somebody wrote into when they were taken.
    Settle,
}

/// ServiceLib over one stack and one NSM device.
#[derive(Debug)]
pub struct Service<S: Stack> {
    pub(crate) stack: S,
    pub(crate) port: Port,
    pub(crate) guests: Vec<Option<Box<Guest<S::Socket>>>>,
    /// Guests with sockets that asked for a turn, in the order of theirs.
    pub(crate) active: VecDeque<u16>,
    /// Guests with rates.
    pub(crate) limited: Vec<u16>,
    /// Who sends with the next [`Service::send_gathered`].
    pub(crate) gathered: Vec<Key>,
    pub(crate) company: Company,
    timers: BinaryHeap<Reverse<(u64, u64, Due)>>,
    events: Vec<StackEvent>,
    /// Guests whose pool has got chunks back that somebody may wait for.
    recovering: Vec<u16>,
    totals: Option<SharedTotals>,
}

/// What a step on a socket works with; the socket itself is taken out of the guest's table meanwhile.
pub(crate) struct Ctx<'a, S: Stack> {
    pub(crate) stack: &'a mut S,
    pub(crate) port: &'a mut Port,
    pub(crate) guest: &'a mut Guest<S::Socket>,
    pub(crate) active: &'a mut VecDeque<u16>,
    pub(crate) gathered: &'a mut Vec<Key>,
    pub(crate) company: &'a mut Company,
    pub(crate) timers: &'a mut BinaryHeap<Reverse<(u64, u64, Due)>>,
    pub(crate) now_ms: u64,
    pub(crate) now_ns: u64,
    pub(crate) totals: Option<SharedTotals>,
}

/// A socket being worked on.
pub(crate) type Taken<S> = Box<Socket<<S as Stack>::Socket>>;

impl<S: Stack> Ctx<'_, S> {
    /// Runs a step on a socket, if it is there, and puts it back unless the step ended it.
    pub(crate) fn with(
        &mut self,
        key: Key,
        f: impl FnOnce(&mut Self, Key, &Cell, Taken<S>) -> Option<Taken<S>>,
    ) -> bool {
        let device = self.guest.device;
        let Some(cell) = device.cell(key.socket) else { return false };
        let Some(socket) = self.guest.take(key) else { return false };
        if let Some(socket) = f(self, key, cell, socket) {
            self.guest.put(key.socket, socket);
        }
        true
    }

    /// Asks for a turn.
    pub(crate) fn enqueue(&mut self, key: Key, socket: &mut Socket<S::Socket>) {
        if !socket.running {
            socket.running = true;
            if self.guest.turns.push(key) {
                self.active.push_back(key.guest);
            }
        }
    }

    pub(crate) fn at(&mut self, due_ms: u64, key: Key, what: Due) {
        self.timers.push(Reverse((due_ms, key.to_word(), what)));
    }

    /// Tells whoever watches or sleeps that something changed.
    pub(crate) fn tell(&mut self, key: Key, cell: &Cell, hint: u64) {
        if hint & (IN | ERR | HUP | RDHUP) != 0 {
            cell.rx_wake.fetch_add(1, Ordering::SeqCst);
        }
        if hint & (OUT | ERR | HUP) != 0 {
            cell.tx_wake.fetch_add(1, Ordering::SeqCst);
        }
        fence(Ordering::SeqCst);
        if cell.has_audience() {
            let mut nqe = key.nqe(Op::Event);
            nqe.op_data = hint;
            self.port.push(&nqe);
        }
    }
}

impl<S: Stack> Service<S> {
    /// A service over the NSM's own device (the one given to `Engine::add_nsm`, after that call).
    pub fn new(stack: S, device: Device) -> Service<S> {
        Service {
            stack,
            port: Port::new(device),
            guests: Vec::new(),
            active: VecDeque::new(),
            limited: Vec::new(),
            gathered: Vec::new(),
            company: Company::default(),
            timers: BinaryHeap::new(),
            events: Vec::new(),
            recovering: Vec::new(),
            totals: None,
        }
    }

    /// Counts there, too, what it sends and receives for all guests.
    pub fn count_in(&mut self, totals: SharedTotals) {
        self.totals = Some(totals);
    }

    /// Serves a guest. Call before the engine is told of it.
    pub fn add_guest(&mut self, pool: GuestPool) {
        let at = usize::from(pool.guest);
        if self.guests.len() <= at {
            self.guests.resize_with(at + 1, || None);
        }
        self.remove_guest(pool.guest);
        if let Some(slot) = self.guests.get_mut(at) {
            *slot = Some(Box::new(Guest::new(pool)));
        }
    }

    /// What is told of options ([`Service::renew_option`]) begins anew.
    pub fn renew_options(&mut self, guest: u16) {
        if let Some(Some(g)) = self.guests.get_mut(usize::from(guest)) {
            g.kept_options.clear();
        }
    }

    /// A datagram socket, which another service had and the engine is going to tell of, is to have this option again.
    pub fn renew_option(&mut self, key: Key, option: SetOption) {
        if let Some(Some(g)) = self.guests.get_mut(usize::from(key.guest)) {
            g.kept_options.entry(key.to_word()).or_default().push(option);
        }
    }

    /// Forgets a guest: its sockets are aborted, its memory is not touched again.
    pub fn remove_guest(&mut self, guest: u16) {
        let Some(mut g) = self.guests.get_mut(usize::from(guest)).and_then(Option::take) else {
            return;
        };
        for (id, socket) in g.sockets.iter_mut().enumerate() {
            let Some(mut socket) = socket.take() else { continue };
            if let Some(handle) = socket.handle.take() {
                let key = Key { guest, socket: id as u32, generation: socket.generation };
                self.stack.close(handle, true, socket.listener.is_some().then_some(key));
            }
        }
        self.active.retain(|g| *g != guest);
        self.limited.retain(|g| *g != guest);
        self.gathered.retain(|k| k.guest != guest);
    }

    /// Runs something for a guest.
    pub(crate) fn ctx<R>(
        &mut self,
        guest: u16,
        now_ns: u64,
        f: impl FnOnce(&mut Ctx<'_, S>) -> R,
    ) -> Option<R> {
        let g = self.guests.get_mut(usize::from(guest))?.as_deref_mut()?;
        let mut ctx = Ctx {
            stack: &mut self.stack,
            port: &mut self.port,
            guest: &mut *g,
            active: &mut self.active,
            gathered: &mut self.gathered,
            company: &mut self.company,
            timers: &mut self.timers,
            now_ms: now_ns / NS_PER_MS,
            now_ns,
            totals: self.totals,
        };
        let r = f(&mut ctx);
        if (g.pool.has_freed() || g.look_due) && !core::mem::replace(&mut g.in_recovery, true) {
            self.recovering.push(guest);
        }
        Some(r)
    }

    /// Takes over a listener that the keeper kept, for a socket that the engine adopted.
    ///
    /// # Errors
    /// The stack's errno, or ENOENT for a guest that is not known.
    pub fn adopt_listener(&mut self, key: Key, fd: OwnedFd, backlog: u32) -> Result<(), Errno> {
        self.ctx(key.guest, 0, |c| c.adopt_listener(key, fd, backlog))
            .unwrap_or(Err(Errno(libc::ENOENT)))
    }

    /// Handles NQEs, then stack events. `now_ns` is the time on any clock that does not go back. Events are waited for at most `wait_ms`
    /// (-1: for ever; only after [`Service::prepare_sleep`] or, inline, `Engine::prepare_sleep`; `None`: the stack is not asked).
    /// `engine_doorbell` is called when the engine sleeps and must wake (never when one thread polls both).
    pub fn poll(
        &mut self,
        now_ns: u64,
        wait_ms: Option<i32>,
        engine_doorbell: &mut dyn FnMut(),
    ) -> PollResult {
        self.port.flush();
        let mut worked = self.take_nqes(now_ns);
        worked += self.take_timers(now_ns);
        if let Some(wait_ms) = wait_ms
            && !self.port.is_congested()
        {
            // What was done above may have to reach the engine before anybody waits.
            let wait_ms = if worked > 0 || self.has_turns() { 0 } else { wait_ms };
            worked += self.take_events(now_ns, wait_ms);
        }
        worked += self.release(now_ns);
        worked += self.work(now_ns);
        worked += self.send_gathered(now_ns);
        self.recover(now_ns);
        self.port.flush();
        self.port.ring(engine_doorbell);
        PollResult {
            worked,
            pending: self.port.has_work() || (self.has_turns() && !self.port.is_congested()),
            due_ns: self.due_ns(),
        }
    }

    /// Sockets wait for a turn or to send.
    fn has_turns(&self) -> bool {
        !self.active.is_empty() || !self.gathered.is_empty()
    }

    /// When the next timer is due, or a rate lets somebody go on.
    fn due_ns(&self) -> Option<u64> {
        let timer = self.timers.peek().map(|Reverse((due, _, _))| *due * NS_PER_MS);
        let guests = self.limited.iter().filter_map(|g| self.guests.get(usize::from(*g))?.as_ref());
        let gates = guests.flat_map(|g| [g.out.due_ns(), g.input.due_ns()]);
        gates.flatten().chain(timer).min()
    }

    pub(crate) fn take_nqes(&mut self, now_ns: u64) -> u32 {
        let mut n = 0;
        while n < NQES && !self.port.is_congested() {
            let Some(nqe) = self.port.pop_job() else { break };
            n += 1;
            if matches!(Op::from_u8(nqe.op), Some(Op::Bind | Op::Listen | Op::Connect)) {
                // A socket that was closed before this is to have given its port back.
                self.send_gathered(now_ns);
            }
            self.ctx(nqe.guest, now_ns, |c| c.job(&nqe));
        }
        let mut m = 0;
        while m < NQES && !self.port.is_congested() {
            let Some(nqe) = self.port.pop_send() else { break };
            m += 1;
            self.ctx(nqe.guest, now_ns, |c| c.kicked(&nqe));
        }
        if n + m > 0 {
            self.port.commit();
        }
        n + m
    }

    fn take_timers(&mut self, now_ns: u64) -> u32 {
        let mut n = 0;
        while n < NQES
            && self.timers.peek().is_some_and(|Reverse((due, _, _))| *due <= now_ns / NS_PER_MS)
        {
            let Some(Reverse((_, word, what))) = self.timers.pop() else { break };
            n += 1;
            let key = Key::from_word(word);
            self.ctx(key.guest, now_ns, |c| c.timer(key, what));
        }
        n
    }

    fn take_events(&mut self, now_ns: u64, wait_ms: i32) -> u32 {
        let mut events = core::mem::take(&mut self.events);
        self.stack.poll(wait_ms, &mut events);
        let n = events.len() as u32;
        for e in events.drain(..) {
            self.ctx(e.key.guest, now_ns, |c| {
                c.with(e.key, |c, key, cell, s| c.event(key, cell, s, &e))
            });
        }
        self.events = events;
        n
    }

    /// Limits of a guest from now on.
    pub fn set_limits(&mut self, guest: u16, limits: &GuestLimits) {
        let set = self.ctx(guest, 0, |c| {
            c.guest.set_limits(limits);
            (c.guest.out.is_limited() || c.guest.input.is_limited(), c.guest.out.now_ns())
        });
        let Some((has_rate, at)) = set else { return };
        if !self.limited.contains(&guest) {
            self.limited.push(guest);
        }
        // Who waited for a rate that is no more goes on.
        self.release(at);
        if !has_rate {
            self.limited.retain(|g| *g != guest);
        }
    }

    /// Those who wait for chunks get what was freed.
    fn recover(&mut self, now_ns: u64) {
        for guest in core::mem::take(&mut self.recovering) {
            self.ctx(guest, now_ns, |c| {
                c.guest.in_recovery = false;
                if core::mem::take(&mut c.guest.look_due) {
                    c.look_at_blocked();
                }
                if !c.guest.pool.take_freed() {
                    return;
                }
                c.ease_brake();
                c.guest.serve_wanting(c.port);
                for key in core::mem::take(&mut c.guest.pool_starved) {
                    c.with(key, |c, key, cell, mut s| {
                        s.change(cell, 0, SF_RX_STALLED);
                        s.readable = true;
                        c.enqueue(key, &mut s);
                        Some(s)
                    });
                }
            });
        }
    }

    /// Separate NSM: before waiting, asks the engine for the doorbell and looks again. `true`: wait. Call
    /// [`Service::finish_sleep`] in both cases.
    #[must_use]
    pub fn prepare_sleep(&mut self) -> bool {
        self.port.prepare_sleep() && !self.has_turns()
    }

    /// After the wait.
    pub fn finish_sleep(&mut self) {
        self.port.finish_sleep();
    }

    /// Counters of a guest.
    #[must_use]
    pub fn stats(&self, guest: u16) -> Option<GuestStats> {
        Some(self.guests.get(usize::from(guest))?.as_ref()?.snapshot())
    }

    /// The stack.
    pub fn stack_mut(&mut self) -> &mut S {
        &mut self.stack
    }
}
