//! Processes that join their guest, by attaching or by being forked, and their ends: [`crate::control::attach`], carried out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nk_attach::{Credentials, Fds, Message};
use nk_engine::{ControlError, GuestId, NewRow};
use rustix::event::epoll::EventFlags;

use super::{Reply, Role, Server, Source, Token};
use crate::control::attach::{self, Attached, Host};
use crate::control::members::{Hold, Members, Refused, Who};
use crate::poll::PollState;
use crate::sys;

/// Takes a doorbell from a message: an eventfd, made non-blocking.
pub(super) fn doorbell(fds: &mut Fds, i: usize) -> Option<OwnedFd> {
    let fd = sys::take(fds, i)?;
    (sys::is_eventfd(&fd) && sys::set_nonblocking(&fd).is_ok()).then_some(fd)
}

/// Takes a Unix socket from a message: only these report their other end's close.
fn unix_socket(fds: &mut Fds, i: usize) -> Option<OwnedFd> {
    let fd = sys::take(fds, i)?;
    let is_unix = rustix::net::sockopt::socket_domain(&fd) == Ok(rustix::net::AddressFamily::UNIX);
    is_unix.then_some(fd)
}

fn reply<T>(answer: Result<T, Refused>, ok: impl FnOnce(T) -> Reply) -> Reply {
    answer.map_or_else(Reply::from, ok)
}

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
        let who = Who { pid: who.pid, uid: who.uid };
        let key = (message.b, message.c);
        let bell = doorbell(&mut fds, 0);
        let attached = attach::attach(self, token, who, key, bell)?;
        Ok(reply(attached, |attached| self.attached(attached)))
    }

    /// On a connection that is a process's: a daemon gave it what it asked for, and died before it said so.
    pub(super) fn attach_again(
        &mut self,
        token: Token,
        id: GuestId,
        row: u16,
        mut fds: Fds,
    ) -> io::Result<Reply> {
        let bell = doorbell(&mut fds, 0);
        let attached = attach::attach_again(self, token, id, row, bell)?;
        Ok(reply(attached, |attached| self.attached(attached)))
    }

    fn attached(&self, attached: Attached) -> Reply {
        let Attached { guest, row, qset, is_kept: kept } = attached;
        let Some(g) = self.guests.get(&guest.0) else {
            return Reply::refused(libc::ENOENT, "the guest has ended");
        };
        tracing::debug!(guest = g.name, row, kept, "attached");
        let fds = [&g.region.memfd, &*g.engine_bell].into_iter().map(OwnedFd::try_clone);
        match fds.collect() {
            Ok(fds) => {
                Reply::ok(row.into(), qset.into(), g.region.len() as u64, kept.into()).with_fds(fds)
            }
            // It closes its connection, with which the row goes.
            Err(e) => Reply::failed("the daemon has no descriptor left", &e),
        }
    }

    pub(super) fn fork(&mut self, id: GuestId, parent: u16, mut fds: Fds) -> io::Result<Reply> {
        let (bell, far) = (doorbell(&mut fds, 0), unix_socket(&mut fds, 1));
        let made = attach::fork(self, id, parent, bell, far)?;
        Ok(reply(made, |NewRow { row, qset }| {
            tracing::debug!(guest = id.0, parent, row, "fork");
            Reply::ok(row.into(), qset.into(), 0, 0)
        }))
    }

    pub(super) fn hello(
        &mut self,
        id: GuestId,
        row: u16,
        credentials: Option<Credentials>,
    ) -> io::Result<()> {
        match credentials.map(|c| c.pid).filter(|p| *p > 0) {
            Some(pid) => attach::hello(self, id, row, pid),
            None => Ok(()),
        }
    }

    pub(super) fn add_qset(&mut self, id: GuestId, row: u16, mut fds: Fds) -> io::Result<Reply> {
        let made = attach::add_qset(self, id, row, doorbell(&mut fds, 0))?;
        Ok(reply(made, |q| Reply::ok(q.into(), 0, 0, 0)))
    }

    pub(super) fn hold(&mut self, id: GuestId, m: &Message, mut fds: Fds) -> io::Result<Reply> {
        let held = attach::hold(self, id, (m.a, m.b), unix_socket(&mut fds, 0))?;
        Ok(reply(held, |()| Reply::ok(0, 0, 0, 0)))
    }
}

impl Host for Server {
    type Token = Token;
    type Fd = OwnedFd;

    fn now(&self) -> Instant {
        Instant::now()
    }
    fn guest_of(&self, token: (u64, u64)) -> Option<GuestId> {
        self.guests.values().find(|g| g.members.token == token).map(|g| g.id)
    }
    fn members(&mut self, guest: GuestId) -> Option<&mut Members<Token>> {
        self.guests.get_mut(&guest.0).map(|g| &mut g.members)
    }
    fn is_execing(&self, guest: GuestId, row: u16) -> bool {
        self.guests.get(&guest.0).is_some_and(|g| g.is_execing(row))
    }

    fn duplicate(&self, fd: &OwnedFd) -> io::Result<OwnedFd> {
        fd.try_clone()
    }
    fn pidfd(&mut self, pid: i32) -> io::Result<OwnedFd> {
        sys::pidfd(pid)
    }
    fn is_same(&self, token: Token, fd: &OwnedFd) -> bool {
        let watched = self.fd(Some(token)).and_then(|fd| sys::identity(fd).ok());
        watched.is_some_and(|w| sys::identity(fd).is_ok_and(|fd| fd == w))
    }
    fn ask_credentials(&self, fd: &OwnedFd) -> io::Result<()> {
        sys::pass_credentials(fd)
    }
    fn watch_control(&mut self, fd: OwnedFd, guest: GuestId, row: u16) -> io::Result<Token> {
        let role = Role::Process(guest, row);
        self.watch(Source::Connection { fd, role }, EventFlags::IN)
    }
    fn watch_pidfd(&mut self, fd: OwnedFd, guest: GuestId, row: u16) -> io::Result<Token> {
        self.watch(Source::Pidfd { fd, guest, row }, EventFlags::IN)
    }
    fn watch_hold(&mut self, fd: OwnedFd, guest: GuestId) -> io::Result<Token> {
        // No events asked for: EPOLLHUP comes unasked.
        self.watch(Source::Hold { fd, guest }, EventFlags::empty())
    }
    fn is_process(&mut self, connection: Token, guest: GuestId, row: u16) {
        self.set_role(connection, Role::Process(guest, row));
    }
    fn hear(&mut self, connection: Token) -> io::Result<()> {
        self.messages(connection)
    }
    fn is_end(&self, token: Token) -> bool {
        match self.sources.get(token) {
            Some(Source::Pidfd { fd, .. }) => sys::has_ended(fd),
            Some(Source::Connection { fd, .. }) => sys::is_hung_up(fd),
            _ => false,
        }
    }
    fn forget(&mut self, token: Token) {
        self.drop_source(token);
    }

    fn add_row(
        &mut self,
        id: GuestId,
        pid: i32,
        bell: OwnedFd,
    ) -> io::Result<Result<NewRow, ControlError>> {
        self.ask(move |s| {
            let made = s.engine.add_row(id, pid as u32);
            if let Ok(r) = made {
                s.notify.set_doorbell(id, r.qset, Some(bell));
            }
            made
        })
    }
    fn exec_row(
        &mut self,
        id: GuestId,
        row: u16,
        gone: Vec<u16>,
        bell: OwnedFd,
    ) -> io::Result<Result<u16, ControlError>> {
        self.ask(move |s| {
            let made = s.engine.row_exec_kept(id, row, &mut s.notify);
            if let Ok(qset) = made {
                forget_doorbells(s, id, gone);
                s.notify.set_doorbell(id, qset, Some(bell));
            }
            made
        })
    }
    fn end_row(&mut self, id: GuestId, row: u16, qsets: Vec<u16>) -> io::Result<()> {
        self.ask(move |s| {
            if let Err(e) = s.engine.row_dead(id, row, &mut s.notify) {
                tracing::error!(row, error = %e, "the engine did not know a row");
            }
            forget_doorbells(s, id, qsets);
        })
    }
    fn has_closes(&mut self, id: GuestId) -> io::Result<bool> {
        self.ask(move |s| s.engine.has_closes(id))
    }
    fn set_pid(&mut self, id: GuestId, row: u16, pid: i32) -> io::Result<()> {
        self.ask(move |s| s.engine.set_row_pid(id, row, pid as u32))?.map_err(io::Error::other)
    }
    fn add_qset(
        &mut self,
        id: GuestId,
        row: u16,
        bell: OwnedFd,
    ) -> io::Result<Result<u16, ControlError>> {
        self.ask(move |s| {
            let made = s.engine.add_qset(id, row);
            if let Ok(q) = made {
                s.notify.set_doorbell(id, q, Some(bell));
            }
            made
        })
    }
    fn drop_qset(&mut self, id: GuestId, row: u16, qset: u16) -> io::Result<()> {
        self.ask(move |s| {
            if let Err(e) = s.engine.drop_qset(id, row, qset, &mut s.notify) {
                tracing::debug!(qset, error = %e, "a queue set could not be dropped");
            }
            s.notify.set_doorbell(id, qset, None);
        })
    }
    fn hold(
        &mut self,
        id: GuestId,
        socket: u32,
        generation: u16,
    ) -> io::Result<Result<(), ControlError>> {
        self.ask(move |s| s.engine.hold(id, socket, generation, &mut s.notify))
    }
    fn unhold(&mut self, id: GuestId, socket: u32, generation: u16) -> io::Result<()> {
        self.ask(move |s| {
            if let Err(e) = s.engine.unhold(id, socket, generation, &mut s.notify) {
                tracing::debug!(socket, error = %e, "a hold had ended before");
            }
        })
    }

    fn note_process(&mut self, guest: GuestId, row: u16) {
        Server::note_process(self, guest, row);
    }
    fn note_process_gone(&mut self, guest: GuestId, row: u16) {
        Server::note_process_gone(self, guest, row);
    }
    fn note_qset(&mut self, guest: GuestId, row: u16, qset: u16, primary: bool, bell: &OwnedFd) {
        Server::note_qset(self, guest, row, qset, primary, bell.as_fd());
    }
    fn note_qset_gone(&mut self, guest: GuestId, row: u16, qset: u16) {
        Server::note_qset_gone(self, guest, row, qset);
    }
    fn note_hold(&mut self, guest: GuestId, far: Token, hold: Hold) {
        Server::note_hold(self, guest, far, hold);
    }
    fn note_hold_gone(&mut self, guest: GuestId, hold: Hold) {
        Server::note_hold_gone(self, guest, hold);
    }
    fn keep_counted(&mut self, guest: GuestId, row: u16) {
        if let Some(g) = self.guests.get(&guest.0) {
            g.keep_missed(row);
        }
    }
}

fn forget_doorbells(s: &mut PollState, id: GuestId, qsets: Vec<u16>) {
    for q in qsets {
        s.notify.set_doorbell(id, q, None);
    }
}
