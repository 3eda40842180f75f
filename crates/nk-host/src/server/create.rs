//! Making and removing guests.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nk_attach::{CREATE_NET, CREATE_SHARE_NET, CREATE_VM, Credentials, Fds, Message};
use nk_engine::{GuestId, GuestSetup};
use nk_servicelib::GuestPool;
use rustix::event::epoll::EventFlags;

use super::attach::doorbell;
use super::names::end_resolver;
use super::nsm::Nsm;
use super::{GUESTS_MAX, Reply, Role, Server, Source, Token};
use crate::config::{GUEST_NAME, GuestConfig, is_name};
use crate::control::attach::NO_DOORBELL;
use crate::control::members::{Creator, Members};
use crate::control::place::Place;
use crate::guest::{Guest, GuestCounters, Names, Region, layout};
use crate::sys;

/// Guests at once of one user, who is not to take all that others could have.
const USERS_GUESTS_MAX: usize = GUESTS_MAX / 4;

/// Root, or the user that the daemon runs as.
pub(super) fn is_operator(who: Credentials) -> bool {
    who.uid == 0 || who.uid == rustix::process::geteuid().as_raw()
}

impl Server {
    /// The groups of whoever connected.
    fn groups(&self, token: Token, who: Credentials) -> Vec<u32> {
        let more = self.raw(Some(token)).map(sys::peer_groups).unwrap_or_default();
        [vec![who.gid], more].concat()
    }

    /// Makes a guest. A private daemon that refuses has no more to do.
    pub(super) fn create_guest(
        &mut self,
        token: Token,
        message: &Message,
        fds: Fds,
        credentials: Option<Credentials>,
    ) -> io::Result<Reply> {
        let reply = self.try_create_guest(token, message, fds, credentials)?;
        self.had_guest = true;
        Ok(reply)
    }

    fn try_create_guest(
        &mut self,
        token: Token,
        message: &Message,
        mut fds: Fds,
        credentials: Option<Credentials>,
    ) -> io::Result<Reply> {
        let Some(who) = credentials.filter(|c| c.pid > 0) else {
            return Ok(Reply::refused(libc::EACCES, "the daemon cannot see who asks"));
        };
        let name = message.text().unwrap_or("");
        if !is_name(name) {
            return Ok(Reply::refused(libc::EINVAL, GUEST_NAME));
        }
        let vm_bell = match message.a & CREATE_VM {
            0 => None,
            _ => match doorbell(&mut fds, 1) {
                Some(bell) => Some(bell),
                None => return Ok(Reply::refused(libc::EINVAL, NO_DOORBELL)),
            },
        };
        let rules = self.config.guest(name);
        if self.config.guest.contains_key(name)
            && !is_operator(who)
            && !rules.admits(who.uid, &self.groups(token, who))
        {
            tracing::warn!(guest = name, uid = who.uid, pid = who.pid, "refused: not its user");
            let why = format!(
                "the configuration does not give the guest {name:?} to uid {} or its groups",
                who.uid
            );
            return Ok(Reply::refused(libc::EPERM, &why));
        }
        if let Some(g) = self.guests.values().find(|g| g.name == name) {
            if let Err(why) = g.members.make_room(name, who.pid) {
                return Ok(why.into());
            }
            let id = g.id;
            self.remove_guest(id)?;
        }
        if self.guests.len() >= GUESTS_MAX {
            let why = format!("there are {GUESTS_MAX} guests already");
            return Ok(Reply::refused(libc::EAGAIN, &why));
        }
        let its = self.guests.values().filter(|g| g.members.uid == who.uid).count();
        if its >= USERS_GUESTS_MAX && !is_operator(who) {
            let why = format!("uid {} has {USERS_GUESTS_MAX} guests already", who.uid);
            return Ok(Reply::refused(libc::EAGAIN, &why));
        }
        // What is just the caller's own says nothing; who may name one is the operator.
        let is_named = message.a & CREATE_NET != 0 && is_operator(who);
        let passed = sys::take(&mut fds, 0);
        let netns = match self.choose_netns(name, &rules, passed, is_named, who) {
            Ok(fd) => fd,
            Err(r) => return Ok(r),
        };
        let namespace = match self.broker.register(&netns) {
            Ok(key) => key,
            Err(e) => {
                let what = "cannot open sockets in that network namespace (only root may enter another one)";
                return Ok(Reply::failed(what, &e));
            }
        };
        match self.add_guest(name, message.a, who, &rules, netns, namespace, token) {
            Ok(id) => {
                if let Some(bell) = vm_bell {
                    return self.start_vm(id, token, bell);
                }
                let g = self.guests.get(&id.0);
                let (high, low) = g.map_or((0, 0), |g| g.members.token);
                tracing::info!(guest = name, id = id.0, uid = who.uid, pid = who.pid, "guest made");
                self.warn_of_host(name, namespace);
                Ok(Reply::ok(u64::from(id.0), high, low, 0))
            }
            Err(e) => Ok(Reply::failed("cannot make the guest", &e)),
        }
    }

    /// The configuration's namespace, else the one that the caller passes: its own, unless it is root or the daemon's user.
    fn choose_netns(
        &mut self,
        name: &str,
        rules: &GuestConfig,
        passed: Option<OwnedFd>,
        is_named: bool,
        who: Credentials,
    ) -> Result<OwnedFd, Reply> {
        let refused = |why: &str| Err(Reply::refused(libc::EPERM, why));
        if let Some(configured) = self.configured_netns(name, rules) {
            return configured;
        }
        if let Some(ns) = self.config.namespace.as_ref().filter(|_| !is_named) {
            return ns.open().map_err(|e| Reply::failed(&format!("cannot open {ns}"), &e));
        }
        let Some(fd) = passed else {
            return Err(Reply::refused(libc::EINVAL, "no network namespace was named"));
        };
        if !sys::is_netns(&fd) {
            return Err(Reply::refused(libc::EINVAL, "that is not a network namespace"));
        }
        if !is_operator(who) {
            let theirs = std::fs::File::open(format!("/proc/{}/ns/net", who.pid));
            let same = theirs.and_then(|f| Ok(sys::identity(&f)? == sys::identity(&fd)?));
            if !same.unwrap_or(false) {
                return refused(
                    "a namespace that is not your own needs the configuration's leave ([guest.NAME] namespace = ...)",
                );
            }
        }
        Ok(fd)
    }

    #[allow(clippy::too_many_arguments)]
    fn add_guest(
        &mut self,
        name: &str,
        flags: u64,
        who: Credentials,
        rules: &GuestConfig,
        netns: OwnedFd,
        namespace: u64,
        connection: Token,
    ) -> io::Result<GuestId> {
        let mut id = self.next_guest;
        while id == 0 || self.guests.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        self.next_guest = id.wrapping_add(1);
        let id = GuestId(id);
        let made = self.make_guest(id, name, flags, who, rules, netns, namespace);
        let guest = made.inspect_err(|_| self.broker.release(namespace))?;
        self.had_guest = true;
        self.guests.insert(id.0, guest);
        // From here on it ends as others do.
        let settled = self.limit_bytes(id).and_then(|()| self.set_listen(id));
        if let Err(e) = settled.and_then(|()| self.spread(id)) {
            self.remove_guest(id)?;
            return Err(e);
        }
        self.set_role(connection, Role::Creator(id));
        self.note_guest(id);
        Ok(id)
    }

    /// What fails leaves nobody who knows of the guest: its memory goes.
    #[allow(clippy::too_many_arguments)]
    fn make_guest(
        &mut self,
        id: GuestId,
        name: &str,
        flags: u64,
        who: Credentials,
        rules: &GuestConfig,
        netns: OwnedFd,
        namespace: u64,
    ) -> io::Result<Guest> {
        let flags = flags & (CREATE_SHARE_NET | CREATE_VM);
        let region = Region::new(name, layout(flags), id.0)?;
        let counters = GuestCounters::new(name)?;
        let engine_bell = Arc::new(sys::eventfd()?);
        let bell = engine_bell.clone();
        let limits = rules.limits(who.uid);
        let nsm = self.choose_nsm(rules)?;
        let mut members = Members::new(sys::random()?, who.uid);
        let is_inline = self.nsm(nsm).is_some_and(Nsm::is_inline);
        let setup = GuestSetup {
            id,
            device: region.device,
            namespace,
            nsm,
            limits: limits.engine(),
            vm: flags & CREATE_VM != 0,
            counters: counters.shared,
        };
        let pool = GuestPool {
            guest: id.0,
            device: region.device,
            namespace,
            pool: 0..region.device.layout().chunks,
            ledger: None,
            counters: counters.shared,
        };
        let pidfd = self
            .watch(Source::CreatorPidfd { fd: sys::pidfd(who.pid)?, guest: id }, EventFlags::IN)?;
        let entered = self.nsm_guest(nsm, &pool, flags, &region.memfd, None).and_then(|()| {
            let entered = self.ask(move |s| {
                if let Some(service) = s.service.as_mut().filter(|_| is_inline) {
                    service.add_guest(pool);
                }
                let entered = s.engine.add_guest(setup).map_err(io::Error::other);
                let watched = entered.and_then(|()| s.add_waker(&bell, Some(id)));
                watched.inspect_err(|_| {
                    // It may not have come so far.
                    let _ = s.engine.remove_guest(id);
                    if let Some(service) = &mut s.service {
                        service.remove_guest(id.0);
                    }
                })
            });
            entered.and_then(|e| e).inspect_err(|_| self.nsm_remove_guest(nsm, id))
        });
        entered.inspect_err(|_| self.drop_source(pidfd))?;
        members.creator =
            Some(Creator { pid: who.pid, pidfd: Some(pidfd), execed: None, reported: false });
        Ok(Guest {
            id,
            name: name.to_owned(),
            members,
            region,
            engine_bell,
            netns,
            namespace,
            place: Place::new(nsm),
            spread: None,
            limits,
            flags,
            counters,
            names: Names::default(),
        })
    }

    /// Ends a guest: nobody is left who could use it.
    pub(super) fn remove_guest(&mut self, id: GuestId) -> io::Result<()> {
        let Some(guest) = self.guests.remove(&id.0) else { return Ok(()) };
        let name = guest.name.clone();
        self.forget_guest(guest)?;
        tracing::info!(guest = name, id = id.0, "guest ended");
        self.remove_networks();
        Ok(())
    }

    /// Whoever knows of a guest knows of it no more, and then its memory goes. Of one that could not be adopted some never did.
    pub(super) fn forget_guest(&mut self, guest: Guest) -> io::Result<()> {
        let id = guest.id;
        guest.members.watched().for_each(|t| self.drop_source(t));
        let bell = guest.engine_bell.clone();
        self.ask(move |s| {
            s.remove_waker(&bell);
            let _ = s.engine.remove_guest(id);
            if let Some(service) = &mut s.service {
                service.remove_guest(id.0);
            }
            s.notify.remove_guest(id);
        })?;
        for nsm in guest.place.all() {
            self.nsm_remove_guest(nsm, id);
        }
        end_resolver(&guest.names);
        self.note_guest_gone(id);
        self.broker.release(guest.namespace);
        Ok(())
    }

    /// Runs a command on the poll thread.
    pub(super) fn ask<R: Send + 'static>(
        &self,
        command: impl FnOnce(&mut crate::poll::PollState) -> R + Send + 'static,
    ) -> io::Result<R> {
        self.poll.call(command).map_err(io::Error::other)
    }
}
