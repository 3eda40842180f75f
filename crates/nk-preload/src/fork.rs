//! fork: the child is a process of the guest before it runs its first instruction.
//!
//! In the parent, with signals blocked and the gate closed, so that descriptors, counts and holder bits agree: the daemon makes a row
//! for the child, the child's bit is set on each socket held, then the native fork runs. A child killed at any instant is
//! found by its control socket or pidfd and its bits are cleared. vfork is served as fork, and so is whatever else would have the parent wait
//! for the child's exec (`CLONE_VFORK`): the gate is closed, and the parent's other threads would wait for it too.

use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use libc::{c_int, pid_t};
use nk_attach::{Kind, Message};

use crate::process::{self, Identity, Process, process};
use crate::sys::{self, SignalsBlocked};
use crate::{control, events, fdtable, gate, rings, wait};

unsafe extern "C" {
    /// glibc's own name for fork, which nobody interposes: it runs the atfork handlers.
    #[link_name = "__fork"]
    fn native_fork() -> pid_t;
}

/// The child's identity, from just before the native fork until the parent goes on or the child has switched.
static PENDING: AtomicBool = AtomicBool::new(false);
static PENDING_ROW: AtomicI32 = AtomicI32::new(0);
static PENDING_QSET: AtomicI32 = AtomicI32::new(0);
static PENDING_CONTROL: AtomicI32 = AtomicI32::new(-1);
static PENDING_DOORBELL: AtomicI32 = AtomicI32::new(-1);

/// A fork by whatever makes the process: `native` gives 0 in the child.
pub(crate) fn fork_as_guest(p: &Process, native: impl FnOnce() -> pid_t) -> pid_t {
    let signals = SignalsBlocked::new();
    gate::close();
    events::before_fork();
    let result = prepare(p).map(|child| {
        PENDING_ROW.store(child.row.into(), Ordering::Relaxed);
        PENDING_QSET.store(child.qset.into(), Ordering::Relaxed);
        PENDING_CONTROL.store(child.control_fd, Ordering::Relaxed);
        PENDING_DOORBELL.store(child.doorbell_fd, Ordering::Relaxed);
        PENDING.store(true, Ordering::Release);
        let pid = native();
        if pid == 0 {
            finish_in_child();
            return 0;
        }
        PENDING.store(false, Ordering::Release);
        let error = sys::errno();
        sys::close(child.control_fd);
        sys::close(child.doorbell_fd);
        if pid < 0 && child.row != p.row_number() {
            fdtable::for_each_socket(|_, id, _| {
                if let Some(cell) = p.cell(id) {
                    // Never the last holder: this process still has it.
                    let _ = cell.release(child.row);
                }
            });
            let mut failed = Message::new(Kind::ForkFailed);
            failed.a = child.row.into();
            control::tell(p, &failed);
        }
        sys::set_errno(error);
        pid
    });
    match result {
        Ok(0) => {
            drop(signals);
            0
        }
        Ok(pid) => {
            events::after_fork();
            gate::open();
            drop(signals);
            pid
        }
        Err(e) => {
            events::after_fork();
            gate::open();
            drop(signals);
            sys::fail(e)
        }
    }
}

fn prepare(p: &Process) -> Result<Identity, c_int> {
    let doorbell = sys::move_up(sys::eventfd().map_err(|_| libc::EAGAIN)?);
    let pair = match sys::seqpacket_pair() {
        Ok(p) => p,
        Err(_) => {
            sys::close(doorbell);
            return Err(libc::EAGAIN);
        }
    };
    let [near, far] = pair;
    let near = sys::move_up(near);
    let reply = control::request(p, &Message::new(Kind::Fork), &[doorbell, far]);
    sys::close(far);
    match reply {
        Ok((m, _)) => {
            let row = m.a as u16;
            fdtable::for_each_socket(|_, id, _| {
                if let Some(cell) = p.cell(id) {
                    cell.hold(row);
                }
            });
            Ok(Identity { row, qset: m.b as u16, control_fd: near, doorbell_fd: doorbell })
        }
        // Its calls will give the errors that ours give: no row is needed for that.
        Err(_) if wait::is_gone(p) => Ok(Identity {
            row: p.row_number(),
            qset: p.qset(),
            control_fd: near,
            doorbell_fd: doorbell,
        }),
        Err(_) => {
            sys::close(doorbell);
            sys::close(near);
            Err(libc::EAGAIN)
        }
    }
}

/// In the child of our own fork: takes its identity. `false` when no fork of ours is under way. Runs once, from the fork itself
/// or from the first call that an atfork handler makes.
pub(crate) fn finish_in_child() -> bool {
    if !PENDING.swap(false, Ordering::AcqRel) {
        return false;
    }
    let Some(p) = process::current() else { return false };
    for fd in [p.control_fd(), p.doorbell_fd()] {
        fdtable::swap(fd, fdtable::Entry::None);
        sys::close(fd);
    }
    let id = Identity {
        row: PENDING_ROW.load(Ordering::Relaxed) as u16,
        qset: PENDING_QSET.load(Ordering::Relaxed) as u16,
        control_fd: PENDING_CONTROL.load(Ordering::Relaxed),
        doorbell_fd: PENDING_DOORBELL.load(Ordering::Relaxed),
    };
    gate::reset();
    control::reset();
    crate::calls::hosts::reset();
    crate::grants::reset();
    fdtable::recount();
    rings::reset(p.device().header().epoch.load(Ordering::Acquire));
    process::become_identity(id);
    crate::attach::protect(p);
    control::tell(p, &Message::new(Kind::Hello));
    events::reset_after_fork(p);
    true
}

/// fork(2).
#[unsafe(no_mangle)]
pub extern "C" fn fork() -> pid_t {
    match process() {
        // SAFETY: takes nothing.
        Some(p) => fork_as_guest(p, || unsafe { native_fork() }),
        // SAFETY: takes nothing.
        None => unsafe { native_fork() },
    }
}

/// vfork(2): served as fork, since a child that shares memory would share this library's state too.
#[unsafe(no_mangle)]
pub extern "C" fn vfork() -> pid_t {
    fork()
}

/// _Fork(3), which runs no atfork handlers; here it does.
#[unsafe(no_mangle)]
pub extern "C" fn _Fork() -> pid_t {
    fork()
}
