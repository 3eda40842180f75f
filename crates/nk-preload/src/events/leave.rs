//! Leaving a kernel epoll that another process shares ([`super::inherit`]), with all that hangs together with it.
//!
//! The kernel's epoll of an outer instance has an inner one's *file* as its member: left alone, either would go on telling of, or be told by,
//! what the other process has. So all are left together, the inner ones first, and an instance of this process's own never contains one that is
//! not.

use libc::c_int;

use super::inherit::{self, Left};
use super::instance::{Pinned, any_descriptor, outer_of, strays};
use crate::process::Process;
use crate::{gate, sys};

/// The kernel allows no deeper nesting.
const LEVELS_MAX: u32 = 5;
/// Of those that hang together, so many are left with a call to those who wait there.
const LEFT_MAX: usize = 32;
/// How long they are called. One that is in a signal handler comes out by itself, and may be the one that calls.
const LOOKS_MAX: u32 = 100;
const LOOK_US: u64 = 1_000;

/// Whether an instance of another process's is to be left before it is used: with sockets in it, or below it, it tells what concerns that one.
pub(super) fn is_due(i: &Pinned) -> bool {
    !i.is_ours() && (i.serves() || serves_below(i, LEVELS_MAX))
}

fn serves_below(i: &Pinned, levels: u32) -> bool {
    let serves = |x: Pinned| x.serves() || serves_below(&x, levels - 1);
    levels > 0 && i.has_inner() && i.inner().any(serves)
}

/// The instance is this process's own from now on. `serves`: it has, or is to have, sockets.
///
/// # Errors
/// What epoll_ctl or epoll_wait is to fail with.
pub(super) fn own(p: &Process, i: &Pinned, epfd: c_int, serves: bool) -> Result<(), c_int> {
    let gate = gate::enter();
    let mut leaving = Leaving { p, gate, left: [const { None }; LEFT_MAX] };
    let was_ours = i.is_ours();
    let mut r = leaving.with_inner(i, epfd, serves, LEVELS_MAX);
    if r.is_ok() && !was_ours {
        r = leaving.outer(i, LEVELS_MAX);
    }
    let Leaving { gate, left, .. } = leaving;
    drop(gate);
    call_out(&left);
    r
}

struct Leaving<'a> {
    p: &'a Process,
    gate: gate::Changing,
    left: [Option<Left>; LEFT_MAX],
}

impl Leaving<'_> {
    fn with_inner(
        &mut self,
        i: &Pinned,
        epfd: c_int,
        serves: bool,
        levels: u32,
    ) -> Result<(), c_int> {
        if levels > 0 && !i.is_ours() && i.has_inner() {
            for inner in i.inner() {
                if let Some(fd) = any_descriptor(inner.index()) {
                    self.with_inner(&inner, fd, inner.serves(), levels - 1)?;
                }
            }
        }
        let left = if serves {
            i.serve(self.p, epfd, i.index(), &self.gate)?
        } else {
            i.leave_shared(epfd, i.index(), &self.gate)?
        };
        if left.is_some()
            && let Some(slot) = self.left.iter_mut().find(|slot| slot.is_none())
        {
            *slot = left;
        }
        Ok(())
    }

    fn outer(&mut self, i: &Pinned, levels: u32) -> Result<(), c_int> {
        for outer in outer_of(i) {
            if levels > 0
                && !outer.is_ours()
                && let Some(fd) = any_descriptor(outer.index())
            {
                self.with_inner(&outer, fd, outer.serves(), LEVELS_MAX)?;
                self.outer(&outer, levels - 1)?;
            }
        }
        Ok(())
    }
}

/// This process's threads that wait in a kernel epoll that was left come out of it.
fn call_out(left: &[Option<Left>]) {
    if left.iter().flatten().next().is_none() || !strays() {
        return;
    }
    inherit::give_back();
    left.iter().flatten().for_each(|l| l.call_all(true));
    for _ in 0..LOOKS_MAX {
        if !strays() {
            break;
        }
        sys::sleep_us(LOOK_US);
    }
    left.iter().flatten().for_each(|l| l.call_all(false));
}
