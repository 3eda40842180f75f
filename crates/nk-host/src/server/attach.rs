//! Processes that join their guest: by attaching, or by being forked.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nk_attach::{Credentials, Fds, Message};
use nk_engine::GuestId;

use super::{Reply, Role, Server, Source, Token};
use crate::guest::Process;
use crate::sys;

/// Takes a doorbell from a message: an eventfd, made non-blocking.
pub(super) fn doorbell(fds: &mut Fds, i: usize) -> Option<OwnedFd> {
    let fd = sys::own(fds.take(i)?);
    (sys::is_eventfd(&fd) && sys::set_nonblocking(&fd).is_ok()).then_some(fd)
}

pub(super) const NO_DOORBELL: &str = "an eventfd must come with this request";

impl Server {
    pub(super) fn attach(
        &mut self,
        token: Token,
        message: &Message,
        mut fds: Fds,
        credentials: Option<Credentials>,
    ) -> io::Result<Reply> {
        let Some(who) = credentials.filter(|c| c.pid > 0) else {
            return Ok(Reply::refused(libc::EACCES, "the daemon cannot see who asks"));
        };
        let key = (message.b, message.c);
        let Some(guest) = self.guests.values().find(|g| g.token == key) else {
            return Ok(Reply::refused(libc::ENOENT, "the guest of this token has ended"));
        };
        if who.uid != guest.uid && who.uid != 0 && guest.uid != 0 {
            let why = format!("uid {} is not the guest's user ({})", who.uid, guest.uid);
            return Ok(Reply::refused(libc::EPERM, &why));
        }
        let id = guest.id;
        let Some(bell) = doorbell(&mut fds, 0) else {
            return Ok(Reply::refused(libc::EINVAL, NO_DOORBELL));
        };
        // An exec closed the old image's connection, but its end may still be in the queue behind this request.
        if let Some(old) = guest.row_of(who.pid).and_then(|r| guest.processes.get(&r)?.control) {
            self.messages(old)?;
        }
        let Some(guest) = self.guests.get(&id.0) else {
            return Ok(Reply::refused(libc::ENOENT, "the guest of this token has ended"));
        };
        let kept = match guest.row_of(who.pid) {
            Some(row) if guest.is_execing(row) => Some(row),
            Some(_) => return Ok(Reply::refused(libc::EEXIST, "this process is attached already")),
            None => None,
        };
        let given = match kept {
            Some(row) => self.keep_row(id, row, token, bell)?,
            None => self.new_row(id, who.pid, token, bell)?,
        };
        let (row, qset) = match given {
            Ok(x) => x,
            Err(reply) => return Ok(reply),
        };
        let Some(guest) = self.guests.get_mut(&id.0) else {
            return Ok(Reply::refused(libc::ENOENT, "the guest has ended"));
        };
        guest.was_attached = true;
        guest.empty_since = None;
        let mut creator_pidfd = None;
        if guest.creator.as_ref().is_some_and(|c| c.pid == who.pid) {
            creator_pidfd = guest.creator.take().and_then(|c| c.pidfd);
        }
        let reply = Reply::ok(
            u64::from(row),
            u64::from(qset),
            guest.region.len() as u64,
            u64::from(kept.is_some()),
        )
        .with_fds(vec![guest.region.memfd.try_clone()?, guest.engine_bell.try_clone()?]);
        tracing::debug!(guest = guest.name, pid = who.pid, row, kept = kept.is_some(), "attached");
        self.set_role(token, Role::Process(id, row));
        if let Some(t) = creator_pidfd {
            self.drop_source(t);
        }
        Ok(reply)
    }

    /// Gives an exec'ed process its row back.
    fn keep_row(
        &mut self,
        id: GuestId,
        row: u16,
        token: Token,
        bell: OwnedFd,
    ) -> io::Result<Result<(u16, u16), Reply>> {
        let noted = bell.try_clone()?;
        let old = self.guests.get(&id.0).and_then(|g| g.processes.get(&row));
        let old_qsets = old.map(|p| p.qsets.clone()).unwrap_or_default();
        let old_control = old.and_then(|p| p.control);
        let gone = old_qsets.clone();
        let made = self.ask(move |s| {
            let made = s.engine.row_exec_kept(id, row, &mut s.notify);
            if let Ok(qset) = made {
                for q in old_qsets {
                    s.notify.set_doorbell(id, q, None);
                }
                s.notify.set_doorbell(id, qset, Some(bell));
            }
            made
        })?;
        let qset = match made {
            Ok(q) => q,
            Err(e) => return Ok(Err(Reply::refused(libc::EAGAIN, &e.to_string()))),
        };
        if let Some(t) = old_control {
            self.drop_source(t);
        }
        if let Some(p) = self.guests.get_mut(&id.0).and_then(|g| g.processes.get_mut(&row)) {
            p.control = Some(token);
            p.qsets = vec![qset];
        }
        for q in gone {
            self.note_qset_gone(id, row, q);
        }
        self.note_process(id, row);
        self.note_qset(id, row, qset, true, noted.as_raw_fd());
        Ok(Ok((row, qset)))
    }

    fn new_row(
        &mut self,
        id: GuestId,
        pid: i32,
        token: Token,
        bell: OwnedFd,
    ) -> io::Result<Result<(u16, u16), Reply>> {
        // Before the row: a process that is gone by now gets none.
        let pidfd = match sys::pidfd(pid) {
            Ok(fd) => fd,
            Err(e) => return Ok(Err(Reply::failed("cannot watch the process", &e))),
        };
        let noted = bell.try_clone()?;
        let made = self.ask(move |s| {
            let made = s.engine.add_row(id, pid as u32);
            if let Ok(r) = made {
                s.notify.set_doorbell(id, r.qset, Some(bell));
            }
            made
        })?;
        let r = match made {
            Ok(r) => r,
            Err(e) => return Ok(Err(Reply::refused(libc::EAGAIN, &e.to_string()))),
        };
        let pidfd = self.watch_pid(id, r.row, pidfd);
        if let Some(g) = self.guests.get_mut(&id.0) {
            let p = Process { pid, control: Some(token), pidfd, qsets: vec![r.qset] };
            g.processes.insert(r.row, p);
        }
        self.note_process(id, r.row);
        self.note_qset(id, r.row, r.qset, true, noted.as_raw_fd());
        Ok(Ok((r.row, r.qset)))
    }

    fn watch_pid(&mut self, guest: GuestId, row: u16, fd: OwnedFd) -> Option<Token> {
        let raw = fd.as_raw_fd();
        let token = self.sources.insert(Source::Pidfd { fd, guest, row });
        if let Err(e) = self.epoll.add(raw, libc::EPOLLIN, token.word()) {
            tracing::error!(error = %e, "cannot watch a process");
            self.drop_source(token);
            return None;
        }
        Some(token)
    }

    /// A process is about to fork: the child's row exists before the child does.
    pub(super) fn fork(&mut self, id: GuestId, parent: u16, mut fds: Fds) -> io::Result<Reply> {
        let Some(bell) = doorbell(&mut fds, 0) else {
            return Ok(Reply::refused(libc::EINVAL, NO_DOORBELL));
        };
        let Some(far) = fds.take(1).map(sys::own).filter(is_unix_socket) else {
            let why = "the far end of the child's control socket must come with this request";
            return Ok(Reply::refused(libc::EINVAL, why));
        };
        if let Some((row, qset)) = self.child_on(id, &far) {
            // Asked again: a daemon died between doing this and saying so, or this one was slow. A second row would share the child's
            // control socket.
            return Ok(Reply::ok(row.into(), qset.into(), 0, 0));
        }
        let raw = far.as_raw_fd();
        if let Err(e) = sys::pass_credentials(&far) {
            return Ok(Reply::failed("the child's control socket is of no use", &e));
        }
        let noted = bell.try_clone()?;
        let made = self.ask(move |s| {
            let made = s.engine.add_row(id, 0);
            if let Ok(r) = made {
                s.notify.set_doorbell(id, r.qset, Some(bell));
            }
            made
        })?;
        let r = match made {
            Ok(r) => r,
            Err(e) => return Ok(Reply::refused(libc::EAGAIN, &e.to_string())),
        };
        let role = Role::Process(id, r.row);
        let control = self.sources.insert(Source::Connection { fd: far, role });
        if let Some(g) = self.guests.get_mut(&id.0) {
            let p = Process { pid: 0, control: Some(control), pidfd: None, qsets: vec![r.qset] };
            g.processes.insert(r.row, p);
        }
        if let Err(e) = self.epoll.add(raw, libc::EPOLLIN, control.word()) {
            self.row_died(id, r.row, "its control socket cannot be watched")?;
            return Ok(Reply::failed("the child's control socket is of no use", &e));
        }
        self.note_process(id, r.row);
        self.note_qset(id, r.row, r.qset, true, noted.as_raw_fd());
        tracing::debug!(guest = id.0, parent, row = r.row, "fork");
        Ok(Reply::ok(u64::from(r.row), u64::from(r.qset), 0, 0))
    }

    /// The row, with its queue set, of the child whose control socket this is.
    fn child_on(&self, id: GuestId, far: &OwnedFd) -> Option<(u16, u16)> {
        let identity = sys::identity(far).ok()?;
        self.guests.get(&id.0)?.processes.iter().find_map(|(row, p)| {
            let control = sys::identity(self.fd(p.control)?).ok()?;
            Some((*row, *p.qsets.first().filter(|_| control == identity)?))
        })
    }

    /// A forked child is there.
    pub(super) fn hello(
        &mut self,
        id: GuestId,
        row: u16,
        credentials: Option<Credentials>,
    ) -> io::Result<()> {
        let Some(pid) = credentials.map(|c| c.pid).filter(|p| *p > 0) else { return Ok(()) };
        let fresh = self
            .guests
            .get_mut(&id.0)
            .and_then(|g| g.processes.get_mut(&row))
            .filter(|p| p.pid == 0);
        let Some(p) = fresh else { return Ok(()) };
        p.pid = pid;
        match sys::pidfd(pid) {
            Ok(fd) => {
                let token = self.watch_pid(id, row, fd);
                if let Some(p) = self.guests.get_mut(&id.0).and_then(|g| g.processes.get_mut(&row))
                {
                    p.pidfd = token;
                }
            }
            // Dead already: its control socket tells.
            Err(e) => tracing::debug!(pid, error = %e, "a child was gone before it was seen"),
        }
        self.note_process(id, row);
        self.ask(move |s| s.engine.set_row_pid(id, row, pid as u32))?.map_err(io::Error::other)
    }

    /// The native fork failed: the embryo never had a process.
    pub(super) fn fork_failed(&mut self, id: GuestId, row: u64) -> io::Result<()> {
        let Ok(row) = u16::try_from(row) else { return Ok(()) };
        let is_embryo =
            self.guests.get(&id.0).and_then(|g| g.processes.get(&row)).is_some_and(|p| p.pid == 0);
        if is_embryo { self.row_died(id, row, "its fork failed") } else { Ok(()) }
    }

    pub(super) fn add_qset(&mut self, id: GuestId, row: u16, mut fds: Fds) -> io::Result<Reply> {
        let Some(bell) = doorbell(&mut fds, 0) else {
            return Ok(Reply::refused(libc::EINVAL, NO_DOORBELL));
        };
        let noted = bell.try_clone()?;
        let made = self.ask(move |s| {
            let made = s.engine.add_qset(id, row);
            if let Ok(q) = made {
                s.notify.set_doorbell(id, q, Some(bell));
            }
            made
        })?;
        Ok(match made {
            Ok(q) => {
                if let Some(p) = self.guests.get_mut(&id.0).and_then(|g| g.processes.get_mut(&row))
                {
                    p.qsets.push(q);
                }
                self.note_qset(id, row, q, false, noted.as_raw_fd());
                Reply::ok(u64::from(q), 0, 0, 0)
            }
            Err(e) => Reply::refused(libc::EAGAIN, &e.to_string()),
        })
    }

    pub(super) fn drop_qset(&mut self, id: GuestId, row: u16, qset: u64) -> io::Result<()> {
        let Ok(qset) = u16::try_from(qset) else { return Ok(()) };
        let process = self.guests.get_mut(&id.0).and_then(|g| g.processes.get_mut(&row));
        let Some(p) = process else { return Ok(()) };
        // The primary one stays.
        let Some(at) = p.qsets.iter().skip(1).position(|q| *q == qset) else { return Ok(()) };
        p.qsets.remove(at + 1);
        self.note_qset_gone(id, row, qset);
        self.ask(move |s| {
            if let Err(e) = s.engine.drop_qset(id, row, qset, &mut s.notify) {
                tracing::debug!(qset, error = %e, "a queue set could not be dropped");
            }
            s.notify.set_doorbell(id, qset, None);
        })
    }
}

/// Whether the descriptor is a Unix socket: only these report their other end's close.
pub(super) fn is_unix_socket(fd: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_domain(fd) == Ok(rustix::net::AddressFamily::UNIX)
}
