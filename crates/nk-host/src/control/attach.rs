//! Processes that join their guest, by attaching or by being forked, and what their ends free.
//!
//! A daemon may die between any two steps. Whoever asked asks the next one again; so what was done and not said is found again
//! ([`fork`]), or its end is seen ([`ended`]). A step that fails leaves nothing of those before it.

mod host;

use std::io;

use nk_engine::{ControlError, GuestId, NewRow};

use super::members::{Process, Refused, Who};
pub use host::Host;

/// Holds per guest.
pub const HOLDS_MAX: usize = 4096;

/// Why a request without its eventfd is refused.
pub const NO_DOORBELL: &str = "an eventfd must come with this request";

/// What a request came to. An error of the host's is none of its answers.
pub type Answer<T> = io::Result<Result<T, Refused>>;

/// A process that has a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// In this guest.
    pub guest: GuestId,
    /// Its row.
    pub row: u16,
    /// Its primary queue set.
    pub qset: u16,
    /// It had the row before its exec.
    pub is_kept: bool,
}

fn no_guest() -> Refused {
    Refused::new(libc::ENOENT, "the guest of this token has ended")
}

fn engine(e: ControlError) -> Refused {
    Refused::new(libc::EAGAIN, e.to_string())
}

fn no_descriptor(e: &io::Error) -> Refused {
    Refused::failed("the daemon has no descriptor left", e)
}

/// A process wants to join the guest of a token.
///
/// # Errors
/// Those of the host.
pub fn attach<H: Host>(
    h: &mut H,
    connection: H::Token,
    who: Who,
    token: (u64, u64),
    bell: Option<H::Fd>,
) -> Answer<Attached> {
    let Some(guest) = h.guest_of(token) else { return Ok(Err(no_guest())) };
    let admitted = h.members(guest).map_or_else(|| Err(no_guest()), |m| m.admit(who));
    if let Err(why) = admitted {
        return Ok(Err(why));
    }
    let Some(bell) = bell else { return Ok(Err(Refused::new(libc::EINVAL, NO_DOORBELL))) };
    // An exec closed the old image's connection, but its end may still be in the queue behind this request.
    let old = h.members(guest).and_then(|m| m.processes.get(&m.row_of(who.pid)?)?.control);
    if let Some(old) = old {
        h.hear(old)?;
    }
    let row = h.members(guest).and_then(|m| m.row_of(who.pid));
    let is_execing = row.is_some_and(|row| h.is_execing(guest, row));
    let Some(m) = h.members(guest) else { return Ok(Err(no_guest())) };
    let kept = match m.kept_row(who.pid, is_execing) {
        Ok(kept) => kept,
        Err(why) => return Ok(Err(why)),
    };
    let given = match kept {
        Some(row) => keep_row(h, guest, row, connection, bell)?,
        None => new_row(h, guest, who.pid, connection, bell)?,
    };
    let NewRow { row, qset } = match given {
        Ok(given) => given,
        Err(why) => return Ok(Err(why)),
    };
    let creator = h.members(guest).and_then(|m| {
        m.empty_since = None;
        m.creator.take_if(|c| c.pid == who.pid)
    });
    h.is_process(connection, guest, row);
    if let Some(pidfd) = creator.and_then(|c| c.pidfd) {
        h.forget(pidfd);
    }
    Ok(Ok(Attached { guest, row, qset, is_kept: kept.is_some() }))
}

/// A process that has a row asks again on the connection that is its: a daemon died between giving it and saying so.
///
/// # Errors
/// Those of the host.
pub fn attach_again<H: Host>(
    h: &mut H,
    connection: H::Token,
    guest: GuestId,
    row: u16,
    bell: Option<H::Fd>,
) -> Answer<Attached> {
    // The one that it has is known: but without one it is no request.
    if bell.is_none() {
        return Ok(Err(Refused::new(libc::EINVAL, NO_DOORBELL)));
    }
    let process = h.members(guest).and_then(|m| m.processes.get(&row));
    let qset = process.filter(|p| p.control == Some(connection)).and_then(|p| p.qsets.first());
    Ok(match qset {
        // Whether it had the row before its exec is not known any more. One that had not has nothing to give up.
        Some(qset) => Ok(Attached { guest, row, qset: *qset, is_kept: true }),
        None => Err(no_guest()),
    })
}

/// Gives an exec'ed process its row back.
fn keep_row<H: Host>(
    h: &mut H,
    guest: GuestId,
    row: u16,
    connection: H::Token,
    bell: H::Fd,
) -> Answer<NewRow> {
    let noted = match h.duplicate(&bell) {
        Ok(noted) => noted,
        Err(e) => return Ok(Err(no_descriptor(&e))),
    };
    let old = h.members(guest).and_then(|m| m.processes.get(&row));
    let (gone, control) = old.map_or((Vec::new(), None), |p| (p.qsets.clone(), p.control));
    let qset = match h.exec_row(guest, row, gone.clone(), bell)? {
        Ok(qset) => qset,
        Err(e) => return Ok(Err(engine(e))),
    };
    if let Some(control) = control {
        h.forget(control);
    }
    if let Some(p) = h.members(guest).and_then(|m| m.processes.get_mut(&row)) {
        p.control = Some(connection);
        p.qsets = vec![qset];
    }
    // A process without a queue set would not go on with the next daemon, and one that is known by this connection asks for what it has.
    h.note_qset(guest, row, qset, true, &noted);
    for q in gone.into_iter().filter(|q| *q != qset) {
        h.note_qset_gone(guest, row, q);
    }
    h.note_process(guest, row);
    Ok(Ok(NewRow { row, qset }))
}

fn new_row<H: Host>(
    h: &mut H,
    guest: GuestId,
    pid: i32,
    connection: H::Token,
    bell: H::Fd,
) -> Answer<NewRow> {
    // Before the row: a process that is gone by now gets none.
    let pidfd = match h.pidfd(pid) {
        Ok(fd) => fd,
        Err(e) => return Ok(Err(Refused::failed("cannot watch the process", &e))),
    };
    let noted = match h.duplicate(&bell) {
        Ok(noted) => noted,
        Err(e) => return Ok(Err(no_descriptor(&e))),
    };
    let r = match h.add_row(guest, pid, bell)? {
        Ok(r) => r,
        Err(e) => return Ok(Err(engine(e))),
    };
    let pidfd = watch_pidfd(h, pidfd, guest, r.row);
    if let Some(m) = h.members(guest) {
        let p =
            Process { pid, control: Some(connection), pidfd, qsets: vec![r.qset], parent: None };
        m.processes.insert(r.row, p);
    }
    h.note_process(guest, r.row);
    h.note_qset(guest, r.row, r.qset, true, &noted);
    Ok(Ok(r))
}

/// Without it, the control connection alone tells of a process's end.
fn watch_pidfd<H: Host>(h: &mut H, fd: H::Fd, guest: GuestId, row: u16) -> Option<H::Token> {
    match h.watch_pidfd(fd, guest, row) {
        Ok(token) => Some(token),
        Err(e) => {
            tracing::error!(error = %e, "cannot watch a process");
            None
        }
    }
}

/// A process is about to fork: the child's row exists before the child does. `far`: the far end of the child's control socket.
///
/// # Errors
/// Those of the host.
pub fn fork<H: Host>(
    h: &mut H,
    guest: GuestId,
    parent: u16,
    bell: Option<H::Fd>,
    far: Option<H::Fd>,
) -> Answer<NewRow> {
    let Some(bell) = bell else { return Ok(Err(Refused::new(libc::EINVAL, NO_DOORBELL))) };
    let Some(far) = far else {
        let why = "the far end of the child's control socket must come with this request";
        return Ok(Err(Refused::new(libc::EINVAL, why)));
    };
    if let Some(child) = child_on(h, guest, &far) {
        // Asked again: a daemon died between doing this and saying so, or this one was slow. A second row would share the child's
        // control socket.
        return Ok(Ok(child));
    }
    let useless = |e: &io::Error| Refused::failed("the child's control socket is of no use", e);
    if let Err(e) = h.ask_credentials(&far) {
        return Ok(Err(useless(&e)));
    }
    let noted = match h.duplicate(&bell) {
        Ok(noted) => noted,
        Err(e) => return Ok(Err(no_descriptor(&e))),
    };
    let r = match h.add_row(guest, 0, bell)? {
        Ok(r) => r,
        Err(e) => return Ok(Err(engine(e))),
    };
    let control = h.watch_control(far, guest, r.row);
    let (control, failed) = match control {
        Ok(token) => (Some(token), None),
        Err(e) => (None, Some(e)),
    };
    if let Some(m) = h.members(guest) {
        let p = Process { pid: 0, control, pidfd: None, qsets: vec![r.qset], parent: Some(parent) };
        m.processes.insert(r.row, p);
    }
    if let Some(e) = failed {
        ended(h, guest, r.row, "its control socket cannot be watched")?;
        return Ok(Err(useless(&e)));
    }
    h.note_process(guest, r.row);
    h.note_qset(guest, r.row, r.qset, true, &noted);
    Ok(Ok(r))
}

/// The row, with its queue set, of the child whose control socket this is.
fn child_on<H: Host>(h: &mut H, guest: GuestId, far: &H::Fd) -> Option<NewRow> {
    let m = h.members(guest)?;
    let all = m.processes.iter().filter_map(|(row, p)| Some((*row, p.control?, *p.qsets.first()?)));
    let all: Vec<(u16, H::Token, u16)> = all.collect();
    let its = all.into_iter().find(|(_, control, _)| h.is_same(*control, far));
    its.map(|(row, _, qset)| NewRow { row, qset })
}

/// Whether a row's process is a child that has not said hello. What it says is taken from its connection only when it was done.
pub fn is_embryo<H: Host>(h: &mut H, guest: GuestId, row: u16) -> bool {
    h.members(guest).and_then(|m| m.processes.get(&row)).is_some_and(|p| p.pid == 0)
}

/// A forked child is there.
///
/// # Errors
/// Those of the host.
pub fn hello<H: Host>(h: &mut H, guest: GuestId, row: u16, pid: i32) -> io::Result<()> {
    let Some(m) = h.members(guest) else { return Ok(()) };
    let Some(p) = m.processes.get_mut(&row).filter(|p| p.pid == 0) else { return Ok(()) };
    p.pid = pid;
    m.empty_since = None;
    match h.pidfd(pid) {
        Ok(fd) => {
            let pidfd = watch_pidfd(h, fd, guest, row);
            if let Some(p) = h.members(guest).and_then(|m| m.processes.get_mut(&row)) {
                p.pidfd = pidfd;
            }
        }
        // Dead already: its control socket tells.
        Err(e) => tracing::debug!(pid, error = %e, "a child was gone before it was seen"),
    }
    h.note_process(guest, row);
    h.set_pid(guest, row, pid)
}

/// A parent says that the native fork failed: the embryo never had a process. Its row may have been freed before, when its control socket was
/// closed, and be another parent's embryo's by now.
///
/// # Errors
/// Those of the host.
pub fn fork_failed<H: Host>(h: &mut H, guest: GuestId, parent: u16, row: u64) -> io::Result<()> {
    let Ok(row) = u16::try_from(row) else { return Ok(()) };
    let its = h.members(guest).and_then(|m| m.processes.get(&row));
    let is_its = its.is_some_and(|p| p.pid == 0 && p.parent == Some(parent));
    if is_its { ended(h, guest, row, "its fork failed") } else { Ok(()) }
}

/// A process wants one more queue set.
///
/// # Errors
/// Those of the host.
pub fn add_qset<H: Host>(h: &mut H, guest: GuestId, row: u16, bell: Option<H::Fd>) -> Answer<u16> {
    let Some(bell) = bell else { return Ok(Err(Refused::new(libc::EINVAL, NO_DOORBELL))) };
    let noted = match h.duplicate(&bell) {
        Ok(noted) => noted,
        Err(e) => return Ok(Err(no_descriptor(&e))),
    };
    let qset = match h.add_qset(guest, row, bell)? {
        Ok(qset) => qset,
        Err(e) => return Ok(Err(engine(e))),
    };
    if let Some(p) = h.members(guest).and_then(|m| m.processes.get_mut(&row)) {
        p.qsets.push(qset);
    }
    h.note_qset(guest, row, qset, false, &noted);
    Ok(Ok(qset))
}

/// A process wants one of its queue sets no more.
///
/// # Errors
/// Those of the host.
pub fn drop_qset<H: Host>(h: &mut H, guest: GuestId, row: u16, qset: u64) -> io::Result<()> {
    let Ok(qset) = u16::try_from(qset) else { return Ok(()) };
    let process = h.members(guest).and_then(|m| m.processes.get_mut(&row));
    let Some(p) = process else { return Ok(()) };
    // The primary one stays.
    let Some(at) = p.qsets.iter().skip(1).position(|q| *q == qset) else { return Ok(()) };
    p.qsets.remove(at + 1);
    h.note_qset_gone(guest, row, qset);
    h.drop_qset(guest, row, qset)
}

/// The control connection of a row's process closed, and is watched no more.
///
/// # Errors
/// Those of the host.
pub fn closed<H: Host>(
    h: &mut H,
    connection: H::Token,
    guest: GuestId,
    row: u16,
) -> io::Result<()> {
    let is_execing = h.is_execing(guest, row);
    let process = h.members(guest).and_then(|m| m.processes.get_mut(&row));
    let Some(p) = process.filter(|p| p.control == Some(connection)) else { return Ok(()) };
    p.control = None;
    // An exec: the new image attaches, or the pidfd tells that there is none.
    if is_execing && p.pidfd.is_some() {
        h.note_process(guest, row);
        return Ok(());
    }
    ended(h, guest, row, "its control socket closed")
}

/// A row's process is gone.
///
/// # Errors
/// Those of the host.
pub fn ended<H: Host>(h: &mut H, guest: GuestId, row: u16, why: &str) -> io::Result<()> {
    let Some(p) = h.members(guest).and_then(|m| m.processes.remove(&row)) else { return Ok(()) };
    tracing::debug!(guest = guest.0, pid = p.pid, row, why, "process gone");
    h.keep_counted(guest, row);
    for token in [p.control, p.pidfd].into_iter().flatten() {
        h.forget(token);
    }
    h.end_row(guest, row, p.qsets)?;
    h.note_process_gone(guest, row);
    let now = h.now();
    if let Some(m) = h.members(guest) {
        m.mark_if_deserted(now);
    }
    Ok(())
}

/// Somebody in a guest found a port taken, perhaps by a process that was reaped and whose end is still to be heard of. Answers whether
/// sockets still wait to be closed: an NSM has few closes before it at any time.
///
/// # Errors
/// Those of the host.
pub fn settle<H: Host>(h: &mut H, guest: GuestId) -> io::Result<bool> {
    let Some(m) = h.members(guest) else { return Ok(false) };
    if core::mem::replace(&mut m.is_settling, true) {
        // In what is heard below somebody asks, too.
        return h.has_closes(guest);
    }
    // Of one without a pidfd the hello is still to be heard, after which it may be in exec.
    let silent = m.processes.values().filter(|p| p.pidfd.is_none()).filter_map(|p| p.control);
    let silent: Vec<H::Token> = silent.collect();
    let heard = silent.into_iter().try_for_each(|control| match h.is_end(control) {
        true => h.hear(control),
        false => Ok(()),
    });
    let Some(m) = h.members(guest) else { return heard.map(|()| false) };
    m.is_settling = false;
    heard?;
    let watched = m.processes.iter().filter_map(|(row, p)| Some((*row, p.pidfd?)));
    let watched: Vec<(u16, H::Token)> = watched.collect();
    for (row, token) in watched {
        if h.is_end(token) {
            ended(h, guest, row, "it had ended when somebody asked")?;
        }
    }
    h.has_closes(guest)
}

/// A socket's stand-in is about to travel: the socket is held until the travelling pair's last end is closed.
///
/// # Errors
/// Those of the host.
pub fn hold<H: Host>(
    h: &mut H,
    guest: GuestId,
    (socket, generation): (u64, u64),
    far: Option<H::Fd>,
) -> Answer<()> {
    let Some(far) = far else {
        let why = "the far end of the stand-in pair must come with this request";
        return Ok(Err(Refused::new(libc::EINVAL, why)));
    };
    let (Ok(socket), Ok(generation)) = (u32::try_from(socket), u16::try_from(generation)) else {
        return Ok(Err(Refused::new(libc::EINVAL, "no such socket")));
    };
    if h.members(guest).is_none_or(|m| m.holds.len() >= HOLDS_MAX) {
        return Ok(Err(Refused::new(libc::EAGAIN, "too many sockets are in flight")));
    }
    if let Err(e) = h.hold(guest, socket, generation)? {
        return Ok(Err(Refused::new(libc::EBADF, e.to_string())));
    }
    let token = match h.watch_hold(far, guest) {
        Ok(token) => token,
        Err(e) => {
            h.unhold(guest, socket, generation)?;
            return Ok(Err(Refused::failed("cannot watch the stand-in pair", &e)));
        }
    };
    if let Some(hold) = h.members(guest).map(|m| m.add_hold(token, socket, generation)) {
        h.note_hold(guest, token, hold);
    }
    Ok(Ok(()))
}

/// The last end of a travelling pair is closed.
///
/// # Errors
/// Those of the host.
pub fn hold_ended<H: Host>(h: &mut H, guest: GuestId, token: H::Token) -> io::Result<()> {
    h.forget(token);
    let held = h.members(guest).and_then(|m| m.holds.remove(&token));
    let Some(hold) = held else { return Ok(()) };
    h.note_hold_gone(guest, hold);
    h.unhold(guest, hold.socket, hold.generation)
}
