//! Whose turn it is: guests by weight (deficit round robin), and within a guest its sockets in the order in which they asked. A turn
//! costs the bytes that it moves, and no less than what its calls of the stack cost, so that a guest with many sockets, or much to move, gets no
//! more than its part while others wait; and a poll is bounded, so that those who come meanwhile are seen soon.

use std::collections::VecDeque;

use crate::gather::queued;
use crate::service::{Ctx, NS_PER_MS};
use crate::{Key, Service, Stack};

/// What a turn costs at least, in bytes: the stack moves about as many in the time that it takes for a few.
pub(crate) const TURN: i64 = 64 * 1024;
/// What a guest of weight 1 may spend each time round.
const QUANTUM: i64 = TURN;
/// What all may spend in one poll, and a socket send or receive at once, while one socket alone has turns: the more at once, the seldomer its program sleeps.
const ALONE: u64 = 1024 * 1024;
/// The same while several have turns: so long does one wait for the others' bytes.
const TOGETHER: u64 = 256 * 1024;
/// How long a socket that had a turn counts as one of several.
const COMPANY_MS: u64 = 10;

/// Whether one socket has all the turns.
#[derive(Debug, Default)]
pub(crate) struct Company {
    last: Option<Key>,
    until_ms: u64,
}

impl Company {
    fn see(&mut self, key: Key, now_ms: u64) {
        if self.last.replace(key).is_some_and(|last| last != key) {
            self.until_ms = now_ms + COMPANY_MS;
        }
    }

    /// The most bytes at once.
    pub(crate) fn most(&self, now_ms: u64) -> u64 {
        if now_ms < self.until_ms { TOGETHER } else { ALONE }
    }
}

/// A guest's sockets that asked for a turn.
#[derive(Debug)]
pub(crate) struct Turns {
    run: VecDeque<Key>,
    /// It is among the service's active guests.
    is_active: bool,
    pub(crate) weight: u32,
    /// What it may spend; a debt is paid by the times round that follow.
    credit: i64,
    in_turn: bool,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns { run: VecDeque::new(), is_active: false, weight: 1, credit: QUANTUM, in_turn: false }
    }
}

impl Turns {
    /// A socket asks; `true` when the guest becomes active.
    pub(crate) fn push(&mut self, key: Key) -> bool {
        self.run.push_back(key);
        !core::mem::replace(&mut self.is_active, true)
    }

    pub(crate) fn charge(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_sub_unsigned(bytes);
    }

    /// What was charged for and not moved after all. It ends a debt sooner, and saves nothing up.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        let most = (QUANTUM * i64::from(self.weight)).max(self.credit);
        self.credit = self.credit.saturating_add_unsigned(bytes).min(most);
    }

    /// Whether the guest has spent what it had. Never in the middle of a turn: what begins together ends together.
    pub(crate) fn is_over(&self) -> bool {
        !self.in_turn && self.credit <= 0
    }
}

impl<S: Stack> Service<S> {
    /// Turns for those who asked.
    pub(crate) fn work(&mut self, now_ns: u64) -> u32 {
        let (mut n, mut left) = (0, self.company.most(now_ns / NS_PER_MS) as i64);
        while left > 0 && !self.port.is_congested() {
            let Some(guest) = self.active.pop_front() else { break };
            let visit = self.ctx(guest, now_ns, |c| c.visit(left));
            let Some((turns, spent, more)) = visit else { continue };
            n += turns;
            left -= spent;
            if more {
                self.active.push_back(guest);
            }
        }
        n
    }

    /// Those whose guest's rate has leave for them again get a turn.
    pub(crate) fn release(&mut self, now_ns: u64) -> u32 {
        let mut n = 0;
        for i in 0..self.limited.len() {
            let Some(&guest) = self.limited.get(i) else { break };
            n += self.ctx(guest, now_ns, |c| c.release()).unwrap_or(0);
        }
        n
    }
}

impl<S: Stack> Ctx<'_, S> {
    /// The guest's turn: how many of its sockets had one, what that cost, and whether more wait.
    fn visit(&mut self, most: i64) -> (u32, i64, bool) {
        let (mut n, mut spent) = (0, 0);
        self.guest.turns.credit += QUANTUM * i64::from(self.guest.turns.weight);
        while self.guest.turns.credit > 0 && spent < most && !self.port.is_congested() {
            let Some(key) = self.guest.turns.run.pop_front() else { break };
            n += 1;
            self.company.see(key, self.now_ms);
            let before = self.guest.turns.credit;
            self.guest.turns.in_turn = true;
            self.with(key, |c, key, cell, mut s| {
                s.running = false;
                c.turn(key, cell, s)
            });
            let turns = &mut self.guest.turns;
            turns.in_turn = false;
            turns.credit = turns.credit.min(before - TURN);
            spent += before - turns.credit;
        }
        let turns = &mut self.guest.turns;
        let more = !turns.run.is_empty();
        turns.is_active = more;
        if !more {
            // Nothing is saved up, but what comes in answer to this goes without another turn.
            turns.credit = turns.credit.min(QUANTUM);
        }
        (n, spent, more)
    }

    fn release(&mut self) -> u32 {
        let mut n = 0;
        let now_ns = self.now_ns;
        let counters = self.guest.counters;
        self.guest.out.refill(now_ns, &counters.service.out);
        self.guest.input.refill(now_ns, &counters.service.input);
        let mut taken = 0;
        while let Some(key) = self.guest.out.next(taken) {
            self.with(key, |c, key, _, mut s| {
                taken += queued(&s, c.guest.out.share());
                s.waits_out = false;
                c.enqueue(key, &mut s);
                n += 1;
                Some(s)
            });
        }
        let mut taken = 0;
        while let Some(key) = self.guest.input.next(taken) {
            self.with(key, |c, key, _, mut s| {
                let wanted = (s.rx_want * nk_device::CHUNK_SIZE) as u64;
                taken += wanted.min(c.guest.input.share());
                s.waits_in = false;
                c.enqueue(key, &mut s);
                n += 1;
                Some(s)
            });
        }
        n
    }
}
