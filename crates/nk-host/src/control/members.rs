//! Who is in a guest: its processes, by row, sockets that travel, who made it, and since when nobody is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a guest without processes stays: a program that was spawned may not have attached yet.
pub const LINGER: Duration = Duration::from_secs(1);
/// How long a guest without processes may take to send what its last one left; or a child, of whose guest nobody else is left, to say hello.
pub const DRAIN_MAX: Duration = Duration::from_secs(60);
/// How long after its exec a command may take until it attaches.
pub const ATTACH_MAX: Duration = Duration::from_secs(5);

/// Who asks, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// Its pid.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// As an errno.
    pub errno: i32,
    /// In words.
    pub why: String,
}

impl Refused {
    /// With this reason.
    pub fn new(errno: i32, why: impl Into<String>) -> Refused {
        Refused { errno, why: why.into() }
    }
    /// Something failed.
    #[must_use]
    pub fn failed(what: &str, e: &std::io::Error) -> Refused {
        Refused::new(e.raw_os_error().unwrap_or(libc::EIO), format!("{what}: {e}"))
    }
}

/// One process of a guest. `T`: by what a descriptor is watched.
#[derive(Clone, Debug)]
pub struct Process<T> {
    /// 0 while it is an embryo that has not said hello.
    pub pid: i32,
    /// Its control connection; `None` while it execs.
    pub control: Option<T>,
    /// Its pidfd.
    pub pidfd: Option<T>,
    /// Its queue sets, the primary one first.
    pub qsets: Vec<u16>,
    /// Of a forked one, as long as the daemon lives that did that: its parent's row.
    pub parent: Option<u16>,
}

/// A socket that travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The keeper has it by this number, which no other of the guest's has or had, whichever daemon serves.
    pub serial: u64,
    /// The socket.
    pub socket: u32,
    /// Its generation.
    pub generation: u16,
}

/// The process that made a guest and is about to become its first process.
#[derive(Clone, Debug)]
pub struct Creator<T> {
    /// Its pid.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: Option<T>,
    /// Set when it exec'ed, which closed its connection.
    pub execed: Option<Instant>,
    /// Its silence was reported.
    pub reported: bool,
}

/// Who is in a guest.
#[derive(Clone, Debug)]
pub struct Members<T> {
    /// By which processes attach.
    pub token: (u64, u64),
    /// Who made it; its processes are this user's, or any user's when it is root.
    pub uid: u32,
    /// By row.
    pub processes: BTreeMap<u16, Process<T>>,
    /// Holds, by the token of the far end.
    pub holds: BTreeMap<T, Hold>,
    /// The `nk run` that made it, until it attached or ended.
    pub creator: Option<Creator<T>>,
    /// Since when it has had no process.
    pub empty_since: Option<Instant>,
    /// Of its last hold.
    last_serial: u64,
    /// Deserted since then, it was asked for whether its sockets are done.
    asked: Option<Instant>,
    /// Its processes are being looked at ([`super::attach::settle`]).
    pub(super) is_settling: bool,
}

/// Whether a guest without processes goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Somebody is there.
    Lives,
    /// Nobody is; whoever was spawned may still attach until then.
    Lingers(Instant),
    /// It ends as soon as its sockets are done, and then at the latest.
    Drains(Instant),
    /// It ends now.
    Over,
}

/// Whether the command that a guest was made for has attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// It has, or that is not known, or was reported.
    Settled,
    /// It has time until then.
    Awaited(Instant),
    /// It, which is to be reported once, never did.
    Silent {
        /// Its pid.
        pid: i32,
    },
}

impl<T: Copy + Ord> Members<T> {
    /// Nobody.
    #[must_use]
    pub fn new(token: (u64, u64), uid: u32) -> Members<T> {
        let (processes, holds) = (BTreeMap::new(), BTreeMap::new());
        let (creator, empty_since) = (None, None);
        let (last_serial, asked, is_settling) = (0, None, false);
        Members {
            token,
            uid,
            processes,
            holds,
            creator,
            empty_since,
            last_serial,
            asked,
            is_settling,
        }
    }

    /// A socket travels from now on.
    pub fn add_hold(&mut self, far: T, socket: u32, generation: u16) -> Hold {
        let hold = Hold { serial: self.last_serial + 1, socket, generation };
        self.adopt_hold(far, hold);
        hold
    }

    /// A socket travels as it did with the last daemon.
    pub fn adopt_hold(&mut self, far: T, hold: Hold) {
        self.last_serial = self.last_serial.max(hold.serial);
        self.holds.insert(far, hold);
    }

    /// Whether somebody may attach.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, who: Who) -> Result<(), Refused> {
        if who.uid == self.uid || who.uid == 0 || self.uid == 0 {
            return Ok(());
        }
        let why = format!("uid {} is not the guest's user ({})", who.uid, self.uid);
        Err(Refused::new(libc::EPERM, why))
    }

    /// The row of a process, by pid.
    #[must_use]
    pub fn row_of(&self, pid: i32) -> Option<u16> {
        self.processes.iter().find(|(_, p)| p.pid == pid && pid != 0).map(|(r, _)| *r)
    }

    /// The row that a process keeps over its exec, if it has one. `is_execing`: it said that it is about to.
    ///
    /// # Errors
    /// It has one and is not about to exec.
    pub fn kept_row(&self, pid: i32, is_execing: bool) -> Result<Option<u16>, Refused> {
        let Some(row) = self.row_of(pid) else { return Ok(None) };
        // Of its word nothing is left where a daemon died that gave it the row back, and did not say so.
        let is_between = self.processes.get(&row).is_some_and(|p| p.control.is_none());
        if is_execing || is_between {
            return Ok(Some(row));
        }
        Err(Refused::new(libc::EEXIST, "this process is attached already"))
    }

    /// Whether nobody is there, as far as is known, who could still make use of it. Of a child that has not said hello nothing is known but a
    /// socket, whose other end anybody may have, the daemon itself among them.
    #[must_use]
    pub fn is_deserted(&self) -> bool {
        self.processes.values().all(|p| p.pid == 0) && self.creator.is_none()
    }

    /// Starts the clock of a guest that nobody is left to use.
    pub fn mark_if_deserted(&mut self, now: Instant) {
        if self.is_deserted() {
            self.empty_since.get_or_insert(now);
        }
    }

    /// Whether it may go on.
    #[must_use]
    pub fn life(&self, now: Instant) -> Life {
        match self.empty_since {
            None => Life::Lives,
            Some(t) if t + DRAIN_MAX <= now => Life::Over,
            Some(t) if !self.processes.is_empty() => Life::Lingers(t + DRAIN_MAX),
            Some(t) if t + LINGER <= now => Life::Drains(t + DRAIN_MAX),
            Some(t) => Life::Lingers(t + LINGER),
        }
    }

    /// Whether the engine is to be asked if the sockets of a guest that drains are done. Once: it tells of the end of the last one by itself.
    pub fn is_to_be_asked_for(&mut self) -> bool {
        std::mem::replace(&mut self.asked, self.empty_since) != self.empty_since
    }

    /// Whether its command came, and if not, whether that is to be said; it is said once.
    pub fn command(&mut self, now: Instant) -> Command {
        let Some(c) = self.creator.as_mut().filter(|c| !c.reported) else {
            return Command::Settled;
        };
        match c.execed {
            None => Command::Settled,
            Some(t) if t + ATTACH_MAX <= now => {
                c.reported = true;
                Command::Silent { pid: c.pid }
            }
            Some(t) => Command::Awaited(t + ATTACH_MAX),
        }
    }

    /// Whether the guest makes room for another of its name, which `pid` wants.
    ///
    /// # Errors
    /// Somebody is in it.
    pub fn make_room(&self, name: &str, pid: i32) -> Result<(), Refused> {
        let is_others = self.creator.as_ref().is_some_and(|c| c.pid != pid);
        if self.processes.is_empty() && !is_others {
            return Ok(());
        }
        let why = format!("a guest named {name:?} is running; choose another --name");
        Err(Refused::new(libc::EEXIST, why))
    }

    /// Everything by which something of it is watched.
    pub fn watched(&self) -> impl Iterator<Item = T> {
        let processes = self.processes.values().flat_map(|p| [p.control, p.pidfd]);
        let creator = self.creator.as_ref().and_then(|c| c.pidfd);
        processes.chain([creator]).flatten().chain(self.holds.keys().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32) -> Process<u32> {
        Process { pid, control: Some(7), pidfd: None, qsets: vec![1], parent: None }
    }

    #[test]
    fn its_user_root_and_for_roots_guest_anybody_may_attach() {
        let admits = |uid, who| Members::<u32>::new((0, 0), uid).admit(Who { pid: 1, uid: who });
        for (uid, who) in [(5, 5), (5, 0), (0, 6)] {
            assert_eq!(admits(uid, who), Ok(()));
        }
        assert_eq!(admits(5, 6).expect_err("another").errno, libc::EPERM);
    }

    #[test]
    fn who_execs_keeps_its_row_and_nobody_attaches_twice() {
        let mut m = Members::new((0, 0), 0);
        m.processes.insert(1, process(70));
        m.processes.insert(2, process(0));
        assert_eq!(m.kept_row(70, true), Ok(Some(1)));
        assert_eq!(m.kept_row(71, false), Ok(None));
        assert_eq!(m.kept_row(70, false).expect_err("twice").errno, libc::EEXIST);
        assert_eq!(m.row_of(0), None, "an embryo has no pid");
        m.processes.insert(1, Process { control: None, ..process(70) });
        assert_eq!(m.kept_row(70, false), Ok(Some(1)), "it is known to be between two images");
    }

    #[test]
    fn a_deserted_guest_lingers_drains_and_ends() {
        let now = Instant::now();
        let mut m = Members::<u32>::new((0, 0), 0);
        assert_eq!(m.life(now), Life::Lives);
        let creator = Creator { pid: 70, pidfd: None, execed: Some(now), reported: false };
        m.creator = Some(creator);
        m.mark_if_deserted(now);
        assert_eq!(m.life(now), Life::Lives, "its creator is there");
        assert_eq!(m.command(now), Command::Awaited(now + ATTACH_MAX));
        assert_eq!(m.command(now + ATTACH_MAX), Command::Silent { pid: 70 });
        assert_eq!(m.command(now + ATTACH_MAX), Command::Settled, "once");
        assert_eq!(m.make_room("g", 71).expect_err("another's").errno, libc::EEXIST);
        assert_eq!(m.make_room("g", 70), Ok(()));
        m.creator = None;
        m.mark_if_deserted(now);
        m.mark_if_deserted(now + LINGER);
        assert_eq!(m.life(now), Life::Lingers(now + LINGER));
        assert_eq!(m.life(now + LINGER), Life::Drains(now + DRAIN_MAX));
        assert!(m.is_to_be_asked_for() && !m.is_to_be_asked_for(), "once");
        m.empty_since = Some(now + LINGER);
        assert!(m.is_to_be_asked_for(), "somebody was there in between");
        m.empty_since = Some(now);
        assert_eq!(m.life(now + DRAIN_MAX), Life::Over);
        m.processes.insert(1, process(0));
        assert_eq!(m.life(now + LINGER), Life::Lingers(now + DRAIN_MAX), "a child may say hello");
        assert_eq!(m.life(now + DRAIN_MAX), Life::Over, "it is none");
        m.processes.insert(1, process(70));
        assert_eq!(m.make_room("g", 70).expect_err("it runs").errno, libc::EEXIST);
        assert_eq!(m.watched().collect::<Vec<_>>(), [7]);
    }
}
