//! An epoll descriptor with NetKernel sockets inside another epoll, or in poll.
//!
//! The kernel sees the inner instance's doorbell as a member of its epoll. So before anybody looks at an inner instance's descriptor, it is
//! made readable exactly if the instance has something to report ([`refresh`]); and while somebody sleeps on it, its
//! queue set counts as sleeping, so that news ring the doorbell.

use super::instance::{Pinned, pin_index};
use crate::process::Process;

/// Instances below one, at most (the kernel allows 5 levels; an outer one 16 members here).
const BELOW_MAX: usize = 32;

/// Makes an instance's descriptor readable exactly if it has something to report. Its own inner instances come first.
pub(super) fn refresh(p: &Process, i: &Pinned) {
    if !i.serves() || !i.is_ours() {
        return;
    }
    // Quiet first, look after: what comes later rings again.
    i.quieten();
    let mut held = i.hold();
    let look = held.collect(p);
    if held.state().interest.as_mut().is_some_and(|x| x.settle(&look)) {
        i.ring();
    }
}

/// Instances on whose descriptors a call is about to sleep, directly or through another instance.
#[derive(Debug)]
pub(super) struct Below {
    list: [Option<(Pinned, bool)>; BELOW_MAX],
    len: usize,
}

impl Below {
    /// None yet.
    pub(super) fn none() -> Below {
        Below { list: [const { None }; BELOW_MAX], len: 0 }
    }

    /// Everything below an instance; `None`, and cheap, when there is nothing.
    pub(super) fn of(i: &Pinned) -> Option<Below> {
        if !i.has_inner() {
            return None;
        }
        let mut b = Below::none();
        for inner in i.inner() {
            b.add(inner);
        }
        Some(b)
    }

    /// One more, with everything below it. Beyond the bound they are left out: readiness is then as old as the last call.
    pub(super) fn add(&mut self, i: Pinned) {
        let mut at = self.len;
        self.push(i);
        while let Some(Some((i, _))) = self.list.get(at) {
            let Some(again) = pin_index(i.index()) else { break };
            for inner in again.inner() {
                self.push(inner);
            }
            at += 1;
        }
    }

    fn push(&mut self, i: Pinned) {
        if self.list.iter().flatten().any(|(x, _)| x.index() == i.index()) {
            return;
        }
        if let Some(slot) = self.list.get_mut(self.len) {
            *slot = Some((i, false));
            self.len += 1;
        }
    }

    /// [`refresh`] for each, the innermost first.
    pub(super) fn refresh(&self, p: &Process) {
        for (i, _) in self.list.iter().rev().flatten() {
            refresh(p, i);
        }
    }

    /// Their news ring from now on, until this value goes. `false` when one has news: do not sleep.
    pub(super) fn enter(&mut self, p: &Process) -> bool {
        let mut quiet = true;
        for (i, entered) in self.list.iter_mut().flatten() {
            if !*entered && i.serves() && i.is_ours() {
                *entered = i.hold().enter_sleep(p, None, i.index());
                quiet &= *entered;
            }
        }
        quiet
    }

    /// They need not ring any more.
    pub(super) fn leave(&mut self, p: &Process) {
        for (i, entered) in self.list.iter_mut().flatten() {
            if core::mem::take(entered) {
                i.hold().leave_sleep(p);
            }
        }
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        if let Some(p) = crate::process::current() {
            self.leave(p);
        }
    }
}
