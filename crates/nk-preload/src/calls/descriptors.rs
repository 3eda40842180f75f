//! close, dup and their relatives: the table follows what the kernel does to the stand-ins.

use core::sync::atomic::Ordering;

use libc::{c_int, c_uint};
use nk_device::{Nqe, Op};

use super::{files, native};
use crate::fdtable::{self, Entry};
use crate::process::{Process, process};
use crate::{borrowers, events, gate, rings, standin, sys};

/// Closes a descriptor of a socket: table entry, stand-in, and the socket when it was the last. The caller holds the gate.
pub(crate) fn close_socket(p: &Process, fd: c_int, id: u32, generation: u16) -> c_int {
    fdtable::swap(fd, Entry::None);
    let r = sys::close(fd);
    standin::leave(p, id, generation);
    r
}

/// Whether a close of this descriptor, the last one anywhere, has to wait for what is queued. Seconds.
fn linger_seconds(p: &Process, id: u32) -> Option<u32> {
    let cell = p.cell(id)?;
    let linger = cell.linger.load(Ordering::Relaxed);
    let row = p.row_number();
    let others = cell.holders.iter().enumerate().any(|(i, w)| {
        let mine = if i == usize::from(row) / 64 { 1u64 << (row % 64) } else { 0 };
        w.load(Ordering::SeqCst) & !mine != 0
    });
    (linger > 1 && !others && fdtable::holders(id) == 1).then(|| linger - 1)
}

fn close_ours(fd: c_int, id: u32, generation: u16) -> c_int {
    let Some(p) = process() else { return sys::close(fd) };
    if fdtable::get(fd) != (Entry::Socket { id, generation }) {
        // A raw-forked child just attached and found another table.
        return close(fd);
    }
    let Some(seconds) = linger_seconds(p, id) else {
        let _changing = gate::enter();
        return close_socket(p, fd, id, generation);
    };
    // The number is free at once; the socket goes after the wait, which a signal may end.
    {
        let _changing = gate::enter();
        fdtable::pin(id);
        close_socket(p, fd, id, generation);
    }
    let mut drain = Nqe::new(Op::Drain, id, generation);
    drain.op_data = seconds.into();
    let _ = rings::call(p, drain, true);
    let _changing = gate::enter();
    if fdtable::unpin(id) {
        standin::let_go(p, id, generation);
    }
    0
}

/// close(2).
#[unsafe(no_mangle)]
pub extern "C" fn close(fd: c_int) -> c_int {
    match fdtable::get(fd) {
        Entry::None => sys::close(fd),
        Entry::Socket { .. } | Entry::Epoll { .. } if borrowers::lender().is_some() => {
            sys::close(fd)
        }
        Entry::Socket { id, generation } => {
            let r = close_ours(fd, id, generation);
            files::follow(fd);
            r
        }
        Entry::Epoll { index } => {
            // In the child of a fork, whose handlers run first, the instance is still as the parent left it.
            let known = process().is_none() || fdtable::get(fd) == Entry::Epoll { index };
            if !known {
                return close(fd);
            }
            let r = {
                let _changing = gate::enter();
                fdtable::swap(fd, Entry::None);
                sys::close(fd)
            };
            events::close_epoll(index);
            r
        }
        Entry::Internal => sys::fail(libc::EBADF),
    }
}

/// Closes everything of ours from `first` to `last`, and natively the rest, round our internal descriptors.
fn close_all(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let top = fdtable::top() as c_uint;
    let mut start = first;
    let mut result = 0;
    for fd in first..=last.min(top) {
        match fdtable::get(fd as c_int) {
            Entry::None => {}
            Entry::Internal => {
                if start < fd {
                    result |= native!(libc::SYS_close_range, start, fd - 1, flags) as c_int;
                }
                start = fd + 1;
            }
            _ => {
                close(fd as c_int);
            }
        }
    }
    if start <= last {
        result |= native!(libc::SYS_close_range, start, last, flags) as c_int;
    }
    if result < 0 { -1 } else { 0 }
}

/// close_range(2).
#[unsafe(no_mangle)]
pub extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    // With any other flag nothing is closed: the kernel only marks them, or refuses.
    const UNSHARE: c_int = libc::CLOSE_RANGE_UNSHARE as c_int;
    if first > last || flags & !UNSHARE != 0 || process().is_none() {
        return native!(libc::SYS_close_range, first, last, flags) as c_int;
    }
    close_all(first, last, flags)
}

/// closefrom(3).
#[unsafe(no_mangle)]
pub extern "C" fn closefrom(first: c_int) {
    let first = first.max(0) as c_uint;
    if close_range(first, c_uint::MAX, 0) == 0 || sys::errno() != libc::ENOSYS {
        return;
    }
    // A kernel before 5.9: what is open, one by one.
    standin::for_each_open_fd(|fd| {
        if fd as c_uint >= first {
            close(fd);
        }
    });
}

/// One of our own descriptors is where the program wants to have one: it moves away. `false` when there is no number left.
fn move_internal(p: &Process, fd: c_int) -> bool {
    let up = sys::move_internal(fd);
    if up < 0 {
        return false;
    }
    fdtable::swap(fd, Entry::None);
    fdtable::swap(up, Entry::Internal);
    p.moved(fd, up);
    standin::anchor_moved(fd, up);
    events::internal_moved(fd, up);
    true
}

/// After the kernel made `new` from `old`. The caller holds the gate. `shared`: whether `old` had a shared stand-in before; if it was
/// settled meanwhile, the copy may be settled once more.
fn copied(p: &Process, old: Entry, new: c_int, shared: bool) {
    match old {
        Entry::Socket { id, generation } if shared => standin::enter_shared(p, new, id, generation),
        Entry::Socket { id, generation } => standin::enter(p, new, id, generation),
        other => {
            match fdtable::swap(new, if other == Entry::Internal { Entry::None } else { other }) {
                Some(Entry::Socket { id, generation }) => standin::leave(p, id, generation),
                Some(Entry::Epoll { index }) => events::close_epoll(index),
                _ => {}
            }
            if let Entry::Epoll { index } = other {
                events::dup_epoll(index);
            }
        }
    }
}

/// A borrower's copy: not entered, and of a socket one that says which it is.
fn copy_borrowed(p: &Process, old: c_int, entry: Entry, make: impl FnOnce() -> c_int) -> c_int {
    if let Entry::Socket { id, generation } = entry
        && let Err(e) = borrowers::lend(p, old, id, generation)
    {
        return sys::fail(e);
    }
    make()
}

/// A native call that makes a copy of `old` on a descriptor of the kernel's choice.
fn copy_to_new(old: c_int, make: impl Fn() -> c_int) -> c_int {
    let entry = fdtable::get(old);
    if entry == Entry::None {
        return make();
    }
    let Some(p) = process() else { return make() };
    if entry == Entry::Internal {
        return sys::fail(libc::EBADF);
    }
    if let Some(p) = borrowers::lender() {
        return copy_borrowed(p, old, entry, make);
    }
    let new = {
        let _changing = gate::enter();
        let shared = fdtable::is_shared(old);
        let new = match make() {
            // There is one number that can be spared.
            -1 if sys::errno() == libc::EMFILE && standin::weigh_anchor() => make(),
            new => new,
        };
        if new >= 0 {
            copied(p, fdtable::get(old), new, shared);
        }
        new
    };
    files::follow(new);
    new
}

/// A native call that puts a copy of `old` onto `new`.
fn copy_onto(old: c_int, new: c_int, make: impl FnOnce() -> c_int) -> c_int {
    let (from, to) = (fdtable::get(old), fdtable::get(new));
    if (from == Entry::None && to == Entry::None) || old == new {
        return make();
    }
    let Some(p) = process() else { return make() };
    if from == Entry::Internal {
        return sys::fail(libc::EBADF);
    }
    if let Some(p) = borrowers::lender() {
        // Without our own descriptors it could lend nothing.
        let would_lose = to == Entry::Internal;
        return if would_lose { sys::fail(libc::EBUSY) } else { copy_borrowed(p, old, from, make) };
    }
    let changing = gate::enter();
    if fdtable::get(new) == Entry::Internal && !move_internal(p, new) {
        return sys::fail(libc::EBUSY);
    }
    let shared = fdtable::is_shared(old);
    let r = make();
    if r >= 0 {
        let before = fdtable::get(new);
        copied(p, fdtable::get(old), new, shared);
        if let (Entry::Socket { .. }, Entry::Epoll { index }) = (fdtable::get(old), before) {
            events::close_epoll(index);
        }
    }
    drop(changing);
    files::follow(new);
    r
}

/// dup(2).
#[unsafe(no_mangle)]
pub extern "C" fn dup(old: c_int) -> c_int {
    copy_to_new(old, || native!(libc::SYS_dup, old) as c_int)
}

/// dup2(2).
#[unsafe(no_mangle)]
pub extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    if old == new {
        // Only tells whether it is open.
        let r = native!(libc::SYS_fcntl, old, libc::F_GETFD);
        return if r < 0 { -1 } else { new };
    }
    copy_onto(old, new, || native!(libc::SYS_dup3, old, new, 0) as c_int)
}

/// dup3(2).
#[unsafe(no_mangle)]
pub extern "C" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    copy_onto(old, new, || native!(libc::SYS_dup3, old, new, flags) as c_int)
}

/// fcntl's F_DUPFD and F_DUPFD_CLOEXEC.
pub(crate) fn dup_from(old: c_int, command: c_int, argument: usize) -> c_int {
    copy_to_new(old, || native!(libc::SYS_fcntl, old, command, argument) as c_int)
}
