//! The processes of the simulation join, fork, exec and end, at any step of it; what the daemon makes of it is its own code
//! ([`nk_host::control::attach`]). Whoever asked a daemon that ended asks the next one.

mod host;

use std::cell::Cell;
use std::io;

use nk_device::row::{ROW_EXECING, ROW_LIVE};
use nk_device::sync::Ordering;
use nk_engine::{GuestId, NewRow};
use nk_host::control::attach::{self, Attached};
use nk_host::control::members::{Refused, Who};

use super::daemon::Role;
use super::kernel::{Fd, Said};
use super::shell::Shell;
use super::simulation::Simulation;
use super::tenant::Open;

impl Simulation {
    /// A process of somebody asks for something, until one that lives has answered; `None`: it does not live itself, or nothing of the host does.
    fn request<R>(&mut self, by: i32, ask: impl Fn(&mut Simulation) -> io::Result<R>) -> Option<R> {
        let host = self.hosts;
        self.asks = Some(by);
        let answer = loop {
            let lacks = !self.is_over && self.random.below(40) == 0;
            self.lacks_descriptors.set(lacks);
            let mut answer = None;
            self.act(|s| {
                answer = Some(ask(s)?);
                Ok::<(), io::Error>(())
            });
            if self.hosts != host || !self.kernel.lives(by) {
                break None;
            }
            if answer.is_some() {
                break answer;
            }
            self.see("the next daemon was asked again");
        };
        self.asks = None;
        self.lacks_descriptors.set(false);
        answer
    }

    /// A process wants to join a guest, as GuestLib does it: over a connection of its own, and over another one where that was not kept.
    pub(super) fn ask_to_attach(
        &mut self,
        token: (u64, u64),
        who: Who,
        has_bell: bool,
    ) -> Option<(Result<Attached, Refused>, u32)> {
        let connection = Cell::new(self.kernel.connect(who.pid));
        let (last, daemons) = (Cell::new(None), Cell::new(self.daemons));
        let answer = self.request(who.pid, |s| {
            let mut fd = Fd::Control(connection.get());
            if daemons.replace(s.daemons) != s.daemons && s.daemon.token_of(fd).is_none() {
                s.kernel.close(connection.get());
                connection.set(s.kernel.connect(who.pid));
                fd = Fd::Control(connection.get());
            }
            let token_of = s.daemon.token_of(fd);
            let of = token_of.unwrap_or_else(|| s.daemon.watch(fd, Role::Stranger));
            let role = s.daemon.sources[&of].1;
            let bell = has_bell.then_some(Fd::Still);
            if let Role::Process(guest, row) = role {
                last.set(Some(row));
                return attach::attach_again(s, of, guest, row, bell);
            }
            attach::attach(s, of, who, token, bell)
        });
        let answer = answer?;
        if let (Some(row), Ok(a)) = (last.get(), &answer) {
            assert_eq!(a.row, row);
            self.see("a row that the last daemon gave was given");
        }
        if answer.is_err() {
            self.kernel.close(connection.get());
        }
        Some((answer, connection.get()))
    }

    fn who(&self, at: usize, pid: i32) -> Who {
        Who { pid, uid: self.tenants[at].members.uid }
    }

    /// Another process, which was spawned.
    pub(super) fn spawn(&mut self, at: usize) {
        let pid = self.kernel.start();
        let who = self.who(at, pid);
        let (id, token) = (self.tenants[at].id, self.tenants[at].members.token);
        let answer = self.ask_to_attach(token, who, true);
        let Some((Ok(a), control)) = answer else {
            if let Some((Err(why), _)) = answer {
                self.refused(&why);
            }
            return self.dies(pid);
        };
        assert_eq!(a.guest, id);
        self.is_running(a.guest, pid, control, NewRow { row: a.row, qset: a.qset });
        self.see("a process attached");
    }

    fn refused(&mut self, why: &Refused) {
        self.see(match why.errno {
            libc::EAGAIN => "refused: no row left",
            libc::EEXIST => "refused: attached already",
            libc::EPERM => "refused: another user",
            libc::ENOENT => "refused: no such guest",
            libc::EINVAL => "refused: no doorbell",
            libc::EMFILE => "refused: no descriptor left",
            libc::ESRCH => "refused: it has ended",
            e => panic!("errno {e}: {}", why.why),
        });
    }

    fn is_running(&mut self, guest: GuestId, pid: i32, control: u32, at: NewRow) -> Option<Shell> {
        let t = self.tenants.iter_mut().find(|t| t.id == guest)?;
        assert!(t.processes.iter().all(|p| p.row != at.row), "row {} is given twice", at.row);
        let shell = Shell { pid, control, ..Shell::new(t.region.device, at.row, at.qset) };
        t.processes.push(shell.clone());
        Some(shell)
    }

    /// A process ends: nobody in the host has heard of it.
    pub(super) fn dies(&mut self, pid: i32) {
        self.kernel.end(pid);
        for t in &mut self.tenants {
            let of = t.processes.iter().find(|p| p.pid == pid).map(|p| p.row);
            t.processes.retain(|p| p.pid != pid);
            t.open.retain(|o| Some(o.row) != of);
        }
    }

    pub(super) fn kill(&mut self, at: usize) {
        let Some(p) = self.some_process(at) else { return };
        self.dies(p.pid);
        if self.tenants[at].processes.is_empty() && self.random.below(3) != 0 {
            self.hear_all();
            if self.tenants[at].processes.is_empty() {
                self.spawn(at);
            }
        }
    }

    /// Somebody found a port taken: whoever ended before that is over when it is answered.
    pub(super) fn find_port_taken(&mut self, at: usize) {
        let Some(p) = self.some_process(at) else { return };
        let id = self.tenants[at].id;
        let ended = |s: &Simulation, at: usize| {
            s.tenants[at].members.processes.values().any(|p| p.pid != 0 && !s.kernel.lives(p.pid))
        };
        let had_ended = ended(self, at);
        let answer = self.request(p.pid, |s| {
            s.comes_from(id, &p)?;
            attach::settle(s, id)
        });
        let (Some(_), Some(at)) = (answer, self.at(id)) else { return };
        assert!(!ended(self, at), "a process that has ended is still in its guest");
        if had_ended {
            self.see("an end was heard of because somebody asked");
        }
    }

    pub(super) fn some_process(&mut self, at: usize) -> Option<Shell> {
        let n = self.random.below(self.tenants[at].processes.len());
        self.tenants[at].processes.get(n).cloned()
    }

    /// A request comes on a process's own connection, of which the daemon knows whose it is. What stands there before it is heard first.
    fn comes_from(&mut self, guest: GuestId, p: &Shell) -> io::Result<()> {
        let token = self.daemon.token_of(Fd::Control(p.control)).expect("it is kept");
        let role = self.daemon.sources[&token].1;
        assert_eq!(role, Role::Process(guest, p.row), "process {} of row {}", p.pid, p.row);
        self.messages(token)
    }

    pub(super) fn fork(&mut self, at: usize) {
        let Some(parent) = self.some_process(at) else { return };
        let id = self.tenants[at].id;
        let far = self.kernel.connect(parent.pid);
        let answer = self.request(parent.pid, |s| {
            s.comes_from(id, &parent)?;
            attach::fork(s, id, parent.row, Some(Fd::Still), Some(Fd::Control(far)))
        });
        let given = match answer {
            Some(Ok(given)) => given,
            Some(Err(why)) => {
                self.refused(&why);
                return self.kernel.close(far);
            }
            None => return self.see("somebody ended in the middle of asking"),
        };
        let Some(at) = self.at(id) else { return };
        let row = given.row;
        let t = &self.tenants[at];
        let is_its = |o: &&Open| o.row == parent.row && t.generation(o.id) == o.generation;
        let inherited: Vec<Open> = t.open.iter().filter(is_its).copied().collect();
        for o in &inherited {
            if let Some(c) = parent.device.cell(o.id) {
                c.hold(row);
            }
        }
        if self.random.below(8) == 0 {
            self.kernel.say(parent.control, Said::ForkFailed(row));
            self.kernel.close(far);
            return self.see("a fork failed");
        }
        let pid = self.kernel.start();
        self.kernel.hand_down(far, pid);
        self.see("a process forked");
        if self.random.below(10) == 0 {
            self.kernel.end(pid);
            return self.see("a child ended before its hello");
        }
        self.kernel.say(far, Said::Hello(pid));
        self.is_running(id, pid, far, given);
        let open = inherited.into_iter().map(|o| Open { row, ..o });
        self.tenants[at].open.extend(open);
    }

    /// A new image keeps the row, and the sockets.
    pub(super) fn exec(&mut self, at: usize) {
        let Some(p) = self.some_process(at) else { return };
        let (id, token) = (self.tenants[at].id, self.tenants[at].members.token);
        let who = self.who(at, p.pid);
        let phase = &p.device.row(p.row).expect("its row").phase;
        phase.store(ROW_EXECING, Ordering::SeqCst);
        // What it said before it connects anew is read before.
        let its = self.daemon.token_of(Fd::Control(p.control));
        if let Some(control) = its
            && !self.kernel.connections[&p.control].queue.is_empty()
        {
            self.act(|s| s.messages(control));
        }
        self.kernel.close(p.control);
        // Between two images it does nothing.
        let Some(at) = self.at(id).filter(|_| self.kernel.lives(p.pid)) else { return };
        let t = &mut self.tenants[at];
        t.processes.retain(|s| s.pid != p.pid);
        let open: Vec<Open> = t.open.extract_if(.., |o| o.row == p.row).collect();
        let daemons = self.daemons;
        match self.random.below(8) {
            0..3 => self.hear_all(),
            3 => self.daemon_dies(),
            4 => {
                self.kernel.end(p.pid);
                return self.see("a process ended in its exec");
            }
            _ => {}
        }
        let host = self.hosts;
        let answer = match self.at(id) {
            Some(_) => self.ask_to_attach(token, who, true),
            None => None,
        };
        let Some((answer, control)) = answer else {
            self.kernel.end(p.pid);
            return self.see("somebody ended in the middle of asking");
        };
        assert_eq!(self.hosts, host);
        let a = match answer {
            Ok(a) => a,
            // It does not run.
            Err(why) => {
                assert_eq!(why.errno, libc::EMFILE, "{} to {p:?}", why.why);
                self.refused(&why);
                return self.kernel.end(p.pid);
            }
        };
        assert!(a.is_kept && a.row == p.row, "{a:?} of {p:?}, before its exec");
        assert_eq!(phase.load(Ordering::SeqCst), ROW_LIVE);
        self.is_running(id, p.pid, control, NewRow { row: a.row, qset: a.qset });
        let t = self.tenants.iter_mut().find(|t| t.id == id).expect("it answered");
        t.open.extend(open);
        self.see("a process exec'ed");
        if self.daemons != daemons {
            self.see("a process exec'ed and the daemon ended");
        }
    }

    pub(super) fn change_qsets(&mut self, at: usize) {
        let Some(p) = self.some_process(at) else { return };
        let id = self.tenants[at].id;
        let answer = self.request(p.pid, |s| {
            s.comes_from(id, &p)?;
            attach::add_qset(s, id, p.row, Some(Fd::Still))
        });
        match answer {
            Some(Ok(qset)) if self.random.below(4) != 0 => {
                self.kernel.say(p.control, Said::DropQset(qset));
                self.see("a queue set came and went");
            }
            Some(Err(why)) => self.refused(&why),
            _ => {}
        }
    }

    /// A socket goes to nobody by a pair that ends some time.
    pub(super) fn travel(&mut self, at: usize) {
        let t = &self.tenants[at];
        let n = self.random.below(t.open.len());
        let Some(o) = t.open.get(n).copied().filter(|o| t.generation(o.id) == o.generation) else {
            return;
        };
        let (id, p) = (t.id, t.shell(o.row));
        let pair = self.kernel.pair();
        let socket = (u64::from(o.id), u64::from(o.generation as u16));
        let answer = self.request(p.pid, |s| {
            s.comes_from(id, &p)?;
            attach::hold(s, id, socket, Some(Fd::FarEnd(pair)))
        });
        match answer {
            Some(Ok(())) => {
                self.travelling.push(pair);
                self.see("a socket travelled");
            }
            _ => drop(self.kernel.pairs.remove(&pair)),
        }
    }

    /// Who is to get no row does not.
    pub(super) fn intrude(&mut self, at: usize) {
        let Some(p) = self.some_process(at) else { return };
        let token = self.tenants[at].members.token;
        let its = self.who(at, p.pid);
        let stranger = Who { pid: self.kernel.start(), uid: its.uid };
        let other = Who { uid: its.uid + 1, ..stranger };
        let (token, who, has_bell, errno) = match self.random.below(4) {
            0 => (token, other, true, libc::EPERM),
            1 => ((token.0, token.1 + 1), stranger, true, libc::ENOENT),
            2 => (token, stranger, false, libc::EINVAL),
            _ => {
                // Its hello comes first.
                self.hear_all();
                (token, its, true, libc::EEXIST)
            }
        };
        if let Some((answer, _)) = self.ask_to_attach(token, who, has_bell) {
            let why = answer.expect_err("it gets none");
            assert_eq!(why.errno, errno, "{}", why.why);
            self.refused(&why);
        }
        self.dies(stranger.pid);
    }
}
