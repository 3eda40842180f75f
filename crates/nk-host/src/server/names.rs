//! Questions about names, as the control thread sees them: it makes a connection between a guest's process and the guest's resolver,
//! starts the resolver when there is none, and never looks at what is asked. Nothing here waits for either.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nk_attach::{Kind, Message};
use nk_engine::GuestId;
use rustix::event::epoll::EventFlags;
use rustix::process::{WaitOptions, WaitStatus};
use serde_json::{Value, json};

use super::{Reply, Server, Source, Token};
use crate::guest::{Guest, Names, Resolver};
use crate::names::{Counter, Counters};
use crate::sys;

/// A guest's resolvers are started no faster than this: one that dies at once must not keep the control thread forking.
const START_REST: Duration = Duration::from_millis(100);

/// Why there was no connection.
enum Refused {
    /// Asking again later may help.
    Later(&'static str),
    Failed(&'static str, io::Error),
}

impl Server {
    /// A process of the guest wants to ask.
    pub(super) fn names(&mut self, id: GuestId) -> Reply {
        let Some(g) = self.guests.get_mut(&id.0) else {
            return Reply::refused(libc::EINVAL, "the guest has ended");
        };
        g.counters.shared.host.names_asked.add(1);
        if self.config.guest.get(&g.name).is_some_and(|c| c.names == Some(false)) {
            g.counters.shared.host.names_refused.add(1);
            return Reply::refused(libc::EPERM, "the configuration gives this guest no names");
        }
        let reply = match self.connect_resolver(id) {
            Ok(near) => return Reply::ok(0, 0, 0, 0).with_fds(vec![near]),
            Err(Refused::Later(why)) => Reply::refused(libc::EAGAIN, why),
            Err(Refused::Failed(what, e)) => {
                tracing::error!(guest = id.0, error = %e, "{what}");
                Reply::refused(libc::EAGAIN, what)
            }
        };
        if let Some(g) = self.guests.get_mut(&id.0) {
            g.counters.shared.host.names_refused.add(1);
        }
        reply
    }

    /// The process's end of a fresh connection whose other end the resolver has.
    fn connect_resolver(&mut self, id: GuestId) -> Result<OwnedFd, Refused> {
        let fail = |what| move |e| Refused::Failed(what, e);
        let (near, far) = sys::seqpacket_pair().map_err(fail("cannot make a connection"))?;
        let message = Message::new(Kind::Names);
        // One that has just ended, because nobody had asked for a while, is replaced at once.
        for _ in 0..3 {
            let control = match self.guests.get(&id.0).and_then(|g| g.names.resolver.as_ref()) {
                Some(r) => r.control.as_raw_fd(),
                None => {
                    self.start_resolver(id)?;
                    continue;
                }
            };
            match nk_attach::try_send(control, &message, &[far.as_raw_fd()]) {
                Ok(()) => return Ok(near),
                Err(libc::EPIPE | libc::ECONNRESET) => self.let_go_of_resolver(id),
                Err(_) => return Err(Refused::Later("too many questions wait for the resolver")),
            }
        }
        Err(Refused::Later("the resolver ended"))
    }

    fn start_resolver(&mut self, id: GuestId) -> Result<(), Refused> {
        let fail = |what| move |e| Refused::Failed(what, e);
        let Some(g) = self.guests.get_mut(&id.0) else {
            return Err(Refused::Later("the guest has ended"));
        };
        if g.names.started.is_some_and(|t| t.elapsed() < START_REST) {
            return Err(Refused::Later("the last resolver has just ended"));
        }
        g.names.started = Some(Instant::now());
        if g.names.counters.is_none() {
            g.names.counters = Some(Counters::new().map_err(fail("no memory for counters"))?);
            self.note_guest(id);
        }
        let Some(g) = self.guests.get(&id.0) else {
            return Err(Refused::Later("the guest has ended"));
        };
        let Some(counters) = &g.names.counters else { return Err(Refused::Later("no counters")) };
        let (control, theirs) = sys::seqpacket_pair().map_err(fail("cannot make a connection"))?;
        let mut m = Message::new(Kind::Names);
        m.a = id.0.into();
        let fds = [g.netns.as_raw_fd(), counters.memfd.as_raw_fd()];
        nk_attach::try_send(control.as_raw_fd(), &m, &fds)
            .map_err(|e| Refused::Failed("cannot send", io::Error::from_raw_os_error(e)))?;
        let argv = [c"nk".as_ptr(), c"resolver".as_ptr(), std::ptr::null()];
        let pid = crate::spawn::child(self.resolver, theirs.as_raw_fd(), &argv, true)
            .map_err(fail("cannot start a resolver"))?;
        let fd = match sys::pidfd(pid) {
            Ok(fd) => fd,
            Err(e) => {
                sys::end_child(pid);
                return Err(Refused::Failed("cannot watch a resolver", e));
            }
        };
        let resolver = Source::Resolver { fd, pid, guest: id };
        let token = match self.watch(resolver, EventFlags::IN) {
            Ok(token) => token,
            Err(e) => {
                sys::end_child(pid);
                return Err(Refused::Failed("cannot watch a resolver", e));
            }
        };
        if let Some(g) = self.guests.get_mut(&id.0) {
            tracing::debug!(guest = g.name, pid, "resolver started");
            g.names.resolver = Some(Resolver { pid, token, control });
        }
        Ok(())
    }

    /// It closed its end, so it is about to end, and is made to if somebody has taken it over; its pidfd stays watched.
    fn let_go_of_resolver(&mut self, id: GuestId) {
        let resolver = self.guests.get_mut(&id.0).and_then(|g| g.names.resolver.take());
        if let Some(r) = resolver {
            sys::kill_child(r.pid);
        }
    }

    /// A resolver is gone: because nobody had asked for a while, or it was killed. Whoever waits for an answer sees its connection end.
    pub(super) fn resolver_ended(&mut self, token: Token) {
        let Some(Source::Resolver { pid, guest, .. }) = self.sources.get(token) else { return };
        let (pid, guest) = (*pid, *guest);
        self.drop_source(token);
        let status = sys::reap(pid, WaitOptions::NOHANG).map_or(0, WaitStatus::as_raw);
        if status != 0 {
            tracing::warn!(guest = guest.0, pid, status, "a resolver failed");
        }
        if let Some(g) = self.guests.get_mut(&guest.0)
            && g.names.resolver.as_ref().is_some_and(|r| r.token == token)
        {
            g.names.resolver = None;
        }
    }
}

/// Its guest has ended. The pidfd tells when it is gone.
pub(super) fn end_resolver(names: &Names) {
    if let Some(r) = &names.resolver {
        sys::kill_child(r.pid);
    }
}

/// As above, and waits until it is gone.
pub(super) fn end_resolver_now(names: &Names) {
    if let Some(r) = &names.resolver {
        sys::end_child(r.pid);
    }
}

/// For `nk guests`.
pub(super) fn describe(g: &Guest) -> Value {
    let (n, own) = (&g.names, &g.counters.shared.host);
    let read = |c| n.counters.as_ref().map_or(0, |m| m.read(c));
    json!({
        "asked": own.names_asked.get(),
        "refused": own.names_refused.get() + read(Counter::Busy),
        "answered": read(Counter::Answered),
        "try_again": read(Counter::TryAgain),
        "malformed": read(Counter::Malformed),
        "resolver_pid": n.resolver.as_ref().map(|r| r.pid),
    })
}
