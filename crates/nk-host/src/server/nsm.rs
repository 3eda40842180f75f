//! NSMs as the control thread sees them: nothing to do for an inline one; a child process each otherwise, which is started again when
//! it dies.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nk_attach::{Kind, Message, RecvError};
use nk_device::Layout;
use nk_engine::{GuestId, NsmId};
use nk_servicelib::{GuestPool, Key};

use super::{Server, Source, Token};
use crate::config::{GuestConfig, NsmConfig, Placement};
use crate::guest::Region;
use crate::keeper::{CLASS_LISTENER, CLASS_NSM, option_from_text, option_to_text};
use crate::limits::GuestLimits;
use crate::nsm::{Leave, command, note};
use crate::sys;

/// How long an NSM process may take to answer.
const ANSWER_MAX_S: i64 = 10;
/// How long the end of a killed process is waited for.
const END_MAX_MS: i32 = 5_000;
/// How long an NSM process must have run for its death not to count as one of a row.
const RAN_WELL: Duration = Duration::from_secs(10);
/// Of a row of deaths the first is mended at once; before each further restart the rest doubles, from this...
const REST_MIN: Duration = Duration::from_millis(100);
/// ...to this.
const REST_MAX: Duration = Duration::from_secs(10);

/// How long to rest before the restart after so many deaths in a row.
fn rest(deaths: u32) -> Duration {
    match deaths.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => REST_MIN.saturating_mul(1 << doublings.min(16)).min(REST_MAX),
    }
}

/// What of an NSM process reports in the epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Its control socket.
    Control,
    /// Its pidfd.
    End,
}

/// An NSM.
#[derive(Debug)]
pub(crate) struct Nsm {
    pub(super) id: NsmId,
    pub(super) name: String,
    pub(super) config: NsmConfig,
    /// Its own device; kept mapped as long as the engine uses it.
    pub(super) region: Region,
    /// Where its process may have sockets opened.
    pub(super) leave: Leave,
    pub(super) child: Option<Child>,
    /// Rung by the NSM for the engine.
    pub(super) engine_bell: Option<OwnedFd>,
    /// Listeners that it reported: descriptor and backlog.
    pub(super) listeners: HashMap<u64, (OwnedFd, u32)>,
    started: Instant,
    restart_at: Option<Instant>,
    /// Times that it was started again.
    pub(super) restarts: u64,
    /// Times that it did what it must not do, and was killed for it.
    pub(super) violations: u64,
    /// Deaths since it last ran well.
    deaths: u32,
}

#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: i32,
    /// Not of one that another daemon started.
    is_ours: bool,
    pub(super) control: OwnedFd,
    control_token: Token,
    pub(super) pidfd: OwnedFd,
    pidfd_token: Token,
}

impl Nsm {
    pub(super) fn new(
        id: NsmId,
        name: String,
        config: NsmConfig,
        region: Region,
        leave: Leave,
    ) -> Nsm {
        Nsm {
            id,
            name,
            config,
            region,
            leave,
            child: None,
            engine_bell: None,
            listeners: HashMap::new(),
            started: Instant::now(),
            restart_at: None,
            restarts: 0,
            violations: 0,
            deaths: 0,
        }
    }

    pub(super) fn is_inline(&self) -> bool {
        self.config.placement == Placement::Inline
    }

    /// The pid of its process.
    pub(super) fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(|c| c.pid)
    }

    /// Whether it serves now.
    pub(super) fn is_up(&self) -> bool {
        self.is_inline() || self.child.is_some()
    }

    /// Sends a command and waits for its answer; returns it and what the NSM reported meanwhile.
    pub(super) fn ask(&self, m: &Message, fds: &[i32]) -> io::Result<(Message, Vec<Note>)> {
        let child = self.child.as_ref().ok_or_else(gone)?;
        exchange(&child.control, m, fds, |reply| reply.a == m.a)
    }
}

fn gone() -> io::Error {
    io::Error::other("the NSM process is gone")
}

/// Sends a command to an NSM process and waits for its answer; returns it and what the NSM reported meanwhile. Answers to other
/// commands, which a dead daemon gave, are dropped.
pub(super) fn exchange(
    control: &OwnedFd,
    m: &Message,
    fds: &[i32],
    is_answer: impl Fn(&Message) -> bool,
) -> io::Result<(Message, Vec<Note>)> {
    let raw = control.as_raw_fd();
    nk_attach::send(raw, m, fds).map_err(io::Error::from_raw_os_error)?;
    let mut notes = Vec::new();
    loop {
        let (reply, mut fds, _) = nk_attach::recv(raw, false).map_err(|_| gone())?;
        if is_answer(&reply) {
            return Ok((reply, notes));
        }
        if reply.a >= note::LISTENER {
            notes.push((reply, fds.take(0).map(sys::own)));
        }
    }
}

/// What an NSM process reported unasked, with its descriptor.
pub(super) type Note = (Message, Option<OwnedFd>);

impl Server {
    pub(super) fn nsm(&self, id: NsmId) -> Option<&Nsm> {
        self.nsms.iter().find(|n| n.id == id)
    }

    pub(super) fn nsm_mut(&mut self, id: NsmId) -> Option<&mut Nsm> {
        self.nsms.iter_mut().find(|n| n.id == id)
    }

    /// The NSM of a name.
    pub(super) fn nsm_named(&self, name: &str) -> Option<NsmId> {
        self.nsms.iter().find(|n| n.name == name).map(|n| n.id)
    }

    /// The NSM of a new guest: the configured one, else of those that are for all that with the fewest guests, and of these that
    /// with the fewest sockets.
    pub(super) fn choose_nsm(&self, rules: &GuestConfig) -> io::Result<NsmId> {
        if let Some(id) = rules.nsm.as_ref().and_then(|n| self.nsm_named(n.get_ref())) {
            return Ok(id);
        }
        let any_default = self.nsms.iter().any(|n| n.config.default);
        let candidates: Vec<NsmId> =
            self.nsms.iter().filter(|n| n.config.default || !any_default).map(|n| n.id).collect();
        if let [only] = candidates[..] {
            return Ok(only);
        }
        let guests: Vec<(GuestId, NsmId)> = self.guests.values().map(|g| (g.id, g.nsm)).collect();
        let sockets = self.ask(move |s| {
            guests.into_iter().map(|(g, n)| (n, s.engine.guest_sockets(g))).collect::<Vec<_>>()
        })?;
        let load = |id: &NsmId| {
            let its = sockets.iter().filter(|(n, _)| n == id);
            (its.clone().count(), its.map(|(_, n)| u64::from(*n)).sum::<u64>())
        };
        candidates.into_iter().min_by_key(load).ok_or_else(|| io::Error::other("there is no NSM"))
    }

    /// Starts the processes of all NSMs that are processes and have none. One that cannot work is a mistake of the configuration's.
    pub(super) fn start_nsms(&mut self) -> io::Result<()> {
        for at in 0..self.nsms.len() {
            let lacks_one = |n: &&Nsm| !n.is_inline() && n.child.is_none();
            let Some(nsm) = self.nsms.get(at).filter(lacks_one) else { continue };
            let (id, name) = (nsm.id, nsm.name.clone());
            self.start_nsm(id)
                .map_err(|e| io::Error::new(e.kind(), format!("NSM {name:?}: {e}")))?;
        }
        Ok(())
    }

    /// Starts an NSM's process over the NSM's device, and waits until it can serve. The engine knows the device already.
    pub(super) fn start_nsm(&mut self, id: NsmId) -> io::Result<()> {
        let (control, theirs) = sys::seqpacket_pair()?;
        let (broker, their_broker) = sys::seqpacket_pair()?;
        let nsm_bell = sys::eventfd()?;
        let bell = self.engine_bell(id)?;
        let engine_bell = bell.as_raw_fd();
        let server_broker = self.broker.clone();
        let Some(nsm) = self.nsm_mut(id) else { return Ok(()) };
        let name = std::ffi::CString::new(nsm.name.as_str())?;
        let argv =
            [c"nk".as_ptr(), c"nsm".as_ptr(), c"serve".as_ptr(), name.as_ptr(), std::ptr::null()];
        // It dies along with a daemon that leaves no keeper behind: by the end of its control socket.
        let pid = crate::spawn::child(crate::spawn::THIS, theirs.as_raw_fd(), &argv, false)?;
        drop(theirs);
        let started = nsm.greet(&control, [nsm_bell.as_raw_fd(), engine_bell], &their_broker);
        nsm.engine_bell = Some(bell);
        if let Err(e) = started {
            end_child(pid);
            return Err(e);
        }
        crate::nsm::serve_broker(server_broker, nsm.leave.clone(), broker)?;
        let name = nsm.name.clone();
        self.nsm_serves(id, pid, true, control, sys::pidfd(pid)?, nsm_bell)?;
        tracing::info!(nsm = name, pid, "NSM process started");
        Ok(())
    }

    /// What the NSM rings for the engine.
    pub(super) fn engine_bell(&self, id: NsmId) -> io::Result<OwnedFd> {
        if let Some(bell) = self.nsm(id).and_then(|n| n.engine_bell.as_ref()) {
            return bell.try_clone();
        }
        let bell = sys::eventfd()?;
        let waker = bell.try_clone()?;
        self.ask(move |s| s.add_waker(&waker, None))??;
        Ok(bell)
    }

    /// An NSM has a process from now on.
    pub(super) fn nsm_serves(
        &mut self,
        id: NsmId,
        pid: i32,
        is_ours: bool,
        control: OwnedFd,
        pidfd: OwnedFd,
        bell: OwnedFd,
    ) -> io::Result<()> {
        let control_token = self.sources.insert(Source::Nsm(id, Part::Control));
        self.epoll.add(control.as_raw_fd(), libc::EPOLLIN, control_token.word())?;
        let pidfd_token = self.sources.insert(Source::Nsm(id, Part::End));
        self.epoll.add(pidfd.as_raw_fd(), libc::EPOLLIN, pidfd_token.word())?;
        self.ask(move |s| s.notify.set_nsm(id, Some(bell)))?;
        if let Some(nsm) = self.nsm_mut(id) {
            let child = Child { pid, is_ours, control, control_token, pidfd, pidfd_token };
            nsm.child = Some(child);
            nsm.started = Instant::now();
        }
        self.note_nsm(id);
        Ok(())
    }

    /// Sends a command and waits for its answer; what the NSM reports meanwhile is taken in.
    pub(super) fn nsm_command(
        &mut self,
        id: NsmId,
        m: &Message,
        fds: &[i32],
    ) -> io::Result<Message> {
        let nsm = self.nsm(id).ok_or_else(|| io::Error::other("no such NSM"))?;
        let (reply, notes) = nsm.ask(m, fds)?;
        for (m, fd) in notes {
            self.nsm_note(id, &m, fd);
        }
        Ok(reply)
    }

    /// A listener came or went.
    pub(super) fn nsm_note(&mut self, id: NsmId, m: &Message, fd: Option<OwnedFd>) {
        let keeper = self.keeper.clone();
        let Some(nsm) = self.nsm_mut(id) else { return };
        match (m.a, fd) {
            (note::LISTENER, Some(fd)) => {
                if let Some(k) = &keeper {
                    let text = m.text().unwrap_or("");
                    k.keep(CLASS_LISTENER, m.b, (m.c, 0), text, &[fd.as_raw_fd()]);
                }
                nsm.listeners.insert(m.b, (fd, m.c as u32));
            }
            (note::LISTENER_GONE, _) => {
                nsm.listeners.remove(&m.b);
                if let Some(k) = &keeper {
                    k.drop_entry(CLASS_LISTENER, m.b);
                }
            }
            (note::OPTION | note::OPTIONS_GONE, _) => {
                let key = Key::from_word(m.b);
                let is_its = self.guests.get(&key.guest).is_some_and(|g| g.is_on(id));
                let option = m.text().and_then(option_from_text);
                match (keeper.filter(|_| is_its), option) {
                    (Some(k), Some(option)) if m.a == note::OPTION => k.keep_option(key, &option),
                    (Some(k), _) if m.a == note::OPTIONS_GONE => k.forget_options(key),
                    _ => {}
                }
            }
            _ => tracing::warn!(nsm = nsm.name, what = m.a, "an odd message from an NSM"),
        }
    }

    pub(super) fn nsm_event(&mut self, id: NsmId, part: Part) -> io::Result<()> {
        let Some(child) = self.nsm(id).and_then(|n| n.child.as_ref()) else { return Ok(()) };
        let raw = child.control.as_raw_fd();
        loop {
            match nk_attach::recv(raw, true) {
                Ok((m, mut fds, _)) => self.nsm_note(id, &m, fds.take(0).map(sys::own)),
                // What it said last, and is in force, is heard before its end.
                Err(RecvError::Os(libc::EAGAIN)) if part == Part::Control => return Ok(()),
                Err(_) => return self.nsm_died(id),
            }
        }
    }

    fn nsm_died(&mut self, id: NsmId) -> io::Result<()> {
        let Some(nsm) = self.nsm_mut(id) else { return Ok(()) };
        let Some(c) = nsm.child.take() else { return Ok(()) };
        if nsm.started.elapsed() >= RAN_WELL {
            nsm.deaths = 0;
        }
        let name = nsm.name.clone();
        let status = self.forget_child(&c);
        let by =
            |signal| status.is_some_and(|s| libc::WIFSIGNALED(s) && libc::WTERMSIG(s) == signal);
        let violation = by(libc::SIGSYS);
        if violation && let Some(nsm) = self.nsm_mut(id) {
            nsm.violations += 1;
            tracing::error!(
                nsm = name,
                pid = c.pid,
                "an NSM made a system call that it must not make: it was taken over, or its filter lacks one"
            );
        }
        let how = status.map_or_else(|| "not known".to_owned(), describe_end);
        tracing::error!(
            nsm = name,
            pid = c.pid,
            how,
            "an NSM process died; its connections are reset"
        );
        // What it had of a guest that was moved from it is renewed at once, where the guest is.
        let moved = self.guests.values().filter(|g| g.old_nsms.contains(&id));
        for (nsm, guest) in moved.map(|g| (g.nsm, g.id)).collect::<Vec<_>>() {
            self.give_options(nsm, guest)?;
        }
        let listeners = self.ask(move |s| {
            s.notify.set_nsm(id, None);
            s.engine.nsm_dead(id, &mut s.notify).map_err(io::Error::other)
        })??;
        self.after_death(id, &listeners)?;
        self.try_restart(id)
    }

    /// Ends a process, if it lives, and all that is known of it; its wait status. Of one that another daemon started nobody here can
    /// learn how it ended.
    pub(super) fn forget_child(&mut self, c: &Child) -> Option<i32> {
        for (fd, token) in [(&c.control, c.control_token), (&c.pidfd, c.pidfd_token)] {
            self.epoll.remove(fd.as_raw_fd());
            self.sources.remove(token);
        }
        if let Some(k) = &self.keeper {
            k.drop_entry(CLASS_NSM, c.pid as u64);
        }
        if c.is_ours {
            return Some(end_child(c.pid));
        }
        end_stranger(&c.pidfd);
        None
    }

    /// Starts a dead NSM again, now or after the rest that is due.
    fn try_restart(&mut self, id: NsmId) -> io::Result<()> {
        let Some(nsm) = self.nsm_mut(id) else { return Ok(()) };
        nsm.deaths = nsm.deaths.saturating_add(1);
        let rest = rest(nsm.deaths);
        if rest.is_zero() {
            return self.restart_nsm(id);
        }
        tracing::warn!(
            nsm = nsm.name,
            deaths = nsm.deaths,
            rest_ms = rest.as_millis() as u64,
            "an NSM dies again and again: it rests before it is started"
        );
        nsm.restart_at = Some(Instant::now() + rest);
        Ok(())
    }

    /// When the next restart is due; does what is.
    pub(super) fn nsm_timer(&mut self, now: Instant) -> io::Result<Option<Instant>> {
        for at in 0..self.nsms.len() {
            let Some(nsm) = self.nsms.get_mut(at) else { continue };
            if nsm.restart_at.is_some_and(|t| t <= now) {
                nsm.restart_at = None;
                let id = nsm.id;
                self.restart_nsm(id)?;
            }
        }
        Ok(self.nsms.iter().filter_map(|n| n.restart_at).min())
    }

    fn restart_nsm(&mut self, id: NsmId) -> io::Result<()> {
        let region = Region::new("nsm", Layout::NSM, 0)?;
        let device = region.device;
        let Some(nsm) = self.nsm_mut(id) else { return Ok(()) };
        nsm.restarts += 1;
        let old = std::mem::replace(&mut nsm.region, region);
        if let Err(e) = self.start_nsm(id) {
            let Some(nsm) = self.nsm_mut(id) else { return Ok(()) };
            // The engine still has the old one.
            nsm.region = old;
            tracing::error!(nsm = nsm.name, error = %e, "an NSM cannot be started");
            nsm.deaths = nsm.deaths.max(1);
            return self.try_restart(id);
        }
        // Until the engine has the new device it does not look at the old one; the old one goes when it has.
        let its: Vec<GuestId> =
            self.guests.values().filter(|g| g.nsm == id).map(|g| g.id).collect();
        for guest in its {
            self.drop_stale_options(guest)?;
            self.nsm_add_guest(id, guest)?;
        }
        let listeners =
            self.ask(move |s| s.engine.nsm_back(id, device).map_err(io::Error::other))??;
        drop(old);
        for (guest, l) in listeners {
            let key = Key { guest: guest.0, socket: l.socket, generation: l.generation };
            let kept = self.nsm(id).and_then(|n| n.listeners.get(&key.to_word()));
            match kept.and_then(|k| k.0.try_clone().ok()) {
                Some(fd) => self.nsm_adopt_listener(key, fd, l.backlog)?,
                None => self.listener_lost(key)?,
            }
        }
        Ok(())
    }

    pub(super) fn listener_lost(&mut self, key: Key) -> io::Result<()> {
        tracing::error!(?key, "a listener could not be given to the NSM: it is closed");
        self.ask(move |s| {
            let id = GuestId(key.guest);
            let _ = s.engine.listener_lost(id, key.socket, key.generation, &mut s.notify);
        })
    }

    /// Tells an NSM of a guest that is known here; an inline one knows it, unless others do too.
    pub(super) fn nsm_add_guest(&mut self, nsm: NsmId, id: GuestId) -> io::Result<()> {
        let Some(g) = self.guests.get(&id.0) else { return Ok(()) };
        let device = g.region.device;
        let pool = GuestPool {
            guest: id.0,
            device,
            namespace: g.namespace,
            pool: 0..device.layout().chunks,
            ledger: g.ledger.as_ref().map(|l| l.ledger.of_service(nsm.0)),
            counters: g.counters.shared,
        };
        let (memfd, flags) = (g.region.memfd.try_clone()?, g.flags);
        let ledger = g.ledger.as_ref().map(|l| l.memfd.try_clone()).transpose()?;
        if pool.ledger.is_some() && self.nsm(nsm).is_some_and(Nsm::is_inline) {
            return self.ask(move |s| {
                if let Some(service) = &mut s.service {
                    service.add_guest(pool);
                }
            });
        }
        self.nsm_guest(nsm, &pool, flags, &memfd, ledger.as_ref())?;
        self.give_options(nsm, id)?;
        self.nsm_limits(id)
    }

    /// Tells an NSM which options the guest's datagram sockets are to have again when they are made again there.
    pub(super) fn give_options(&mut self, nsm: NsmId, id: GuestId) -> io::Result<()> {
        let all = self.keeper.as_ref().map(|k| k.options_of(id.0)).unwrap_or_default();
        let Some(n) = self.nsm(nsm).filter(|_| !all.is_empty()) else { return Ok(()) };
        if n.is_inline() {
            return self.ask(move |s| {
                let Some(service) = &mut s.service else { return };
                service.renew_options(id.0);
                for (key, options) in all {
                    options.into_iter().for_each(|o| service.renew_option(key, o));
                }
            });
        }
        if n.child.is_none() {
            // The next one is told of every guest.
            return Ok(());
        }
        let mut begin = Message::new(Kind::Nsm);
        (begin.a, begin.b) = (command::OPTIONS, id.0.into());
        let told = all.into_iter().flat_map(|(key, options)| {
            options.into_iter().map(move |option| {
                let mut m = Message::new(Kind::Nsm).with_text(&option_to_text(&option));
                (m.a, m.b) = (command::OPTION, key.to_word());
                m
            })
        });
        for m in [begin].into_iter().chain(told) {
            if self.nsm_command(nsm, &m, &[]).is_err() {
                // It died, and its end is in the queue: the next one is told of every guest.
                break;
            }
        }
        Ok(())
    }

    /// Options of sockets that the guest closed while no NSM could tell are not kept any more.
    pub(super) fn drop_stale_options(&self, id: GuestId) -> io::Result<()> {
        let Some(k) = &self.keeper else { return Ok(()) };
        let mut keys: Vec<Key> = k.options_of(id.0).into_iter().map(|(key, _)| key).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let stale = self.ask(move |s| {
            keys.retain(|k| !s.engine.is_open(id, k.socket, k.generation));
            keys
        })?;
        stale.into_iter().for_each(|key| k.forget_options(key));
        Ok(())
    }

    /// Tells the guest's NSM processes of its limits.
    pub(super) fn nsm_limits(&mut self, id: GuestId) -> io::Result<()> {
        let Some(g) = self.guests.get(&id.0) else { return Ok(()) };
        let nsms = g.all_nsms();
        let limits = g.limits.divided(nsms.len());
        nsms.into_iter().try_for_each(|nsm| self.nsm_limit(nsm, id, &limits))
    }

    fn nsm_limit(&mut self, nsm: NsmId, id: GuestId, limits: &GuestLimits) -> io::Result<()> {
        if self.nsm(nsm).is_none_or(|n| n.child.is_none()) {
            return Ok(());
        }
        let mut m = Message::new(Kind::Nsm).with_text(&limits.to_text());
        (m.a, m.b) = (command::LIMITS, id.0.into());
        match self.nsm_command(nsm, &m, &[]).map(|r| r.status) {
            Ok(0) => Ok(()),
            Ok(e) => Err(io::Error::from_raw_os_error(e)),
            // It died, and its end is in the queue: the next one is told of every guest.
            Err(_) => Ok(()),
        }
    }

    /// Tells an NSM process of a guest, before the engine is told.
    pub(super) fn nsm_guest(
        &mut self,
        id: NsmId,
        pool: &GuestPool,
        flags: u64,
        memfd: &OwnedFd,
        ledger: Option<&OwnedFd>,
    ) -> io::Result<()> {
        let Some(nsm) = self.nsm(id).filter(|n| !n.is_inline()) else { return Ok(()) };
        nsm.leave.give(pool.guest, pool.namespace);
        if nsm.child.is_none() {
            // The next one is told of every guest.
            return Ok(());
        }
        let mut m = Message::new(Kind::Nsm).with_text(&id.0.to_string());
        (m.a, m.b, m.c) = (command::ADD_GUEST, pool.guest.into(), pool.namespace);
        m.d = flags;
        let fds: Vec<i32> = [memfd].into_iter().chain(ledger).map(AsRawFd::as_raw_fd).collect();
        match self.nsm_command(id, &m, &fds).map(|r| r.status) {
            Ok(0) => Ok(()),
            Ok(e) => Err(io::Error::from_raw_os_error(e)),
            // It died, and its end is in the queue: the next one is told of every guest.
            Err(e) => {
                tracing::debug!(error = %e, "the NSM was not told of a guest");
                Ok(())
            }
        }
    }

    pub(super) fn nsm_remove_guest(&mut self, nsm: NsmId, id: GuestId) {
        let Some(n) = self.nsm_mut(nsm).filter(|n| !n.is_inline()) else { return };
        n.listeners.retain(|k, _| Key::from_word(*k).guest != id.0);
        n.leave.take(id.0);
        if n.child.is_none() {
            return;
        }
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (command::REMOVE_GUEST, id.0.into());
        if let Err(e) = self.nsm_command(nsm, &m, &[]) {
            tracing::debug!(error = %e, "the NSM was not told that a guest ended");
        }
    }

    /// Hands a kept listener to its guest's NSM, inline or not; one that it cannot take is lost.
    pub(super) fn nsm_adopt_listener(
        &mut self,
        key: Key,
        fd: OwnedFd,
        backlog: u32,
    ) -> io::Result<()> {
        let Some(id) = self.guests.get(&key.guest).map(|g| g.nsm) else { return Ok(()) };
        let errno = if self.nsm(id).is_some_and(|n| !n.is_inline()) {
            let mut m = Message::new(Kind::Nsm);
            (m.a, m.b, m.c) = (command::ADOPT_LISTENER, key.to_word(), backlog.into());
            let r = self.nsm_command(id, &m, &[fd.as_raw_fd()]);
            if let Some(nsm) = self.nsm_mut(id) {
                nsm.listeners.insert(key.to_word(), (fd, backlog));
            }
            // One that died has its end in the queue: the next one is given every listener.
            r.map_or(0, |m| m.status)
        } else {
            let r = self.ask(move |s| {
                s.service.as_mut().map_or(Ok(()), |v| v.adopt_listener(key, fd, backlog))
            })?;
            r.map_or_else(|e| e.0, |()| 0)
        };
        if errno == 0 { Ok(()) } else { self.listener_lost(key) }
    }

    /// What an NSM process counted for a guest: the words of [`crate::nsm::format_stats`].
    pub(super) fn nsm_stats(
        &mut self,
        nsm: NsmId,
        id: GuestId,
    ) -> Option<nk_servicelib::GuestStats> {
        self.nsm(nsm)?.child.as_ref()?;
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (command::STATS, id.0.into());
        let reply = self.nsm_command(nsm, &m, &[]).ok().filter(|r| r.status == 0)?;
        crate::nsm::parse_stats(reply.text()?)
    }
}

impl Nsm {
    /// Tells a process that was just started what it is, and waits for its word.
    fn greet(&self, control: &OwnedFd, bells: [i32; 2], broker: &OwnedFd) -> io::Result<()> {
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b, m.c) = (command::START, self.config.io.to_word(), self.config.grace_s().into());
        let cores: Vec<String> =
            self.config.cores.iter().map(|c| c.get_ref().to_string()).collect();
        let m = m.with_text(&cores.join(","));
        let [bell, engine_bell] = bells;
        let fds = [self.region.memfd.as_raw_fd(), bell, engine_bell, broker.as_raw_fd()];
        let raw = control.as_raw_fd();
        nk_attach::send(raw, &m, &fds).map_err(io::Error::from_raw_os_error)?;
        sys::set_receive_timeout(raw, ANSWER_MAX_S)?;
        let (reply, ..) = nk_attach::recv(raw, false)
            .map_err(|e| io::Error::other(format!("its process did not start ({e:?})")))?;
        match reply.status {
            0 => Ok(()),
            e => {
                let kind = io::Error::from_raw_os_error(e).kind();
                Err(io::Error::new(kind, reply.text().unwrap_or("").to_owned()))
            }
        }
    }
}

/// Ends a child, which may hang instead of having ended; its wait status.
fn end_child(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: our own child, not yet waited for.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, &raw mut status, 0);
    }
    status
}

/// Ends an NSM process that another daemon started.
pub(super) fn end_stranger(pidfd: &OwnedFd) {
    let mut p = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: plain numbers, no information for the signal, and one entry of ours. Where it does not end nobody waits for it for ever.
    unsafe {
        let none = std::ptr::null::<libc::siginfo_t>();
        libc::syscall(libc::SYS_pidfd_send_signal, p.fd, libc::SIGKILL, none, 0);
        libc::poll(&raw mut p, 1, END_MAX_MS);
    }
}

fn describe_end(status: i32) -> String {
    if libc::WIFSIGNALED(status) {
        format!("signal {}", libc::WTERMSIG(status))
    } else {
        format!("status {}", libc::WEXITSTATUS(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_deaths_rests_ever_longer_and_a_single_one_not() {
        assert_eq!(rest(1), Duration::ZERO);
        assert_eq!(rest(2), REST_MIN);
        assert_eq!(rest(3), REST_MIN * 2);
        assert_eq!(rest(8), REST_MIN * 64);
        assert_eq!(rest(9), REST_MAX);
        assert_eq!(rest(u32::MAX), REST_MAX);
    }
}
