//! What [`nk_host::control::attach`] decides, carried out on a host in memory.

use std::io;
use std::time::Instant;

use nk_device::row::ROW_EXECING;
use nk_device::sync::Ordering;
use nk_engine::{ControlError, GuestId, NewRow};
use nk_host::control::attach::Host;
use nk_host::control::members::{Hold, Members};
use nk_host::control::moves::Host as _;
use nk_host::keeper::{CLASS_HOLD, CLASS_PROCESS, CLASS_QSET, book};

use super::super::daemon::Role;
use super::super::kernel::Fd;
use super::super::simulation::Simulation;

impl Host for Simulation {
    type Token = u32;
    type Fd = Fd;

    fn now(&self) -> Instant {
        Simulation::now(self)
    }
    fn guest_of(&self, token: (u64, u64)) -> Option<GuestId> {
        self.tenants.iter().find(|t| t.members.token == token).map(|t| t.id)
    }
    fn members(&mut self, guest: GuestId) -> Option<&mut Members<u32>> {
        self.at(guest).map(|at| &mut self.tenants[at].members)
    }
    fn is_execing(&self, guest: GuestId, row: u16) -> bool {
        let row = self.at(guest).and_then(|at| self.tenants[at].region.device.row(row));
        row.is_some_and(|r| r.phase.load(Ordering::SeqCst) == ROW_EXECING)
    }

    /// Sometimes there is none left.
    fn duplicate(&self, fd: &Fd) -> io::Result<Fd> {
        if self.lacks_descriptors.replace(false) {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        Ok(*fd)
    }
    fn pidfd(&mut self, pid: i32) -> io::Result<Fd> {
        let lives = self.kernel.lives(pid).then_some(Fd::Pidfd(pid));
        lives.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
    }
    fn is_same(&self, token: u32, fd: &Fd) -> bool {
        self.daemon.sources.get(&token).is_some_and(|s| s.0 == *fd)
    }
    fn ask_credentials(&self, _: &Fd) -> io::Result<()> {
        Ok(())
    }
    fn watch_control(&mut self, fd: Fd, guest: GuestId, row: u16) -> io::Result<u32> {
        Ok(self.daemon.watch(fd, Role::Process(guest, row)))
    }
    fn watch_pidfd(&mut self, fd: Fd, guest: GuestId, row: u16) -> io::Result<u32> {
        Ok(self.daemon.watch(fd, Role::Pidfd(guest, row)))
    }
    fn watch_hold(&mut self, fd: Fd, guest: GuestId) -> io::Result<u32> {
        Ok(self.daemon.watch(fd, Role::Hold(guest)))
    }
    fn is_process(&mut self, connection: u32, guest: GuestId, row: u16) {
        if let Some(s) = self.daemon.sources.get_mut(&connection) {
            s.1 = Role::Process(guest, row);
        }
    }
    fn hear(&mut self, connection: u32) -> io::Result<()> {
        self.messages(connection)
    }
    fn is_end(&self, token: u32) -> bool {
        self.daemon.sources.get(&token).is_some_and(|s| self.kernel.is_end(&s.0))
    }
    fn forget(&mut self, token: u32) {
        self.daemon.sources.remove(&token);
    }

    fn add_row(
        &mut self,
        guest: GuestId,
        pid: i32,
        _: Fd,
    ) -> io::Result<Result<NewRow, ControlError>> {
        self.engine(move |e, _| e.add_row(guest, pid as u32))
    }
    fn exec_row(
        &mut self,
        guest: GuestId,
        row: u16,
        _: Vec<u16>,
        _: Fd,
    ) -> io::Result<Result<u16, ControlError>> {
        self.engine(move |e, notify| e.row_exec_kept(guest, row, notify))
    }
    fn end_row(&mut self, guest: GuestId, row: u16, _: Vec<u16>) -> io::Result<()> {
        let ended = self.engine(move |e, notify| e.row_dead(guest, row, notify))?;
        ended.map_err(io::Error::other)
    }
    fn has_closes(&mut self, guest: GuestId) -> io::Result<bool> {
        self.engine(move |e, _| e.has_closes(guest))
    }
    fn set_pid(&mut self, guest: GuestId, row: u16, pid: i32) -> io::Result<()> {
        self.engine(move |e, _| e.set_row_pid(guest, row, pid as u32))?.map_err(io::Error::other)
    }
    fn add_qset(
        &mut self,
        guest: GuestId,
        row: u16,
        _: Fd,
    ) -> io::Result<Result<u16, ControlError>> {
        self.engine(move |e, _| e.add_qset(guest, row))
    }
    fn drop_qset(&mut self, guest: GuestId, row: u16, qset: u16) -> io::Result<()> {
        let dropped = self.engine(move |e, notify| e.drop_qset(guest, row, qset, notify))?;
        dropped.map_err(io::Error::other)
    }
    fn hold(
        &mut self,
        guest: GuestId,
        socket: u32,
        generation: u16,
    ) -> io::Result<Result<(), ControlError>> {
        self.engine(move |e, notify| e.hold(guest, socket, generation, notify))
    }
    fn unhold(&mut self, guest: GuestId, socket: u32, generation: u16) -> io::Result<()> {
        self.engine(move |e, notify| {
            // It may have ended before, with its NSM.
            let _ = e.unhold(guest, socket, generation, notify);
        })
    }

    fn note_process(&mut self, guest: GuestId, row: u16) {
        let Some(p) = self.members(guest).and_then(|m| m.processes.get(&row)).cloned() else {
            return;
        };
        let fd = |token: Option<u32>| Some(self.daemon.sources.get(&token?)?.0);
        let (control, pidfd) = (fd(p.control), fd(p.pidfd));
        let fds: Vec<Fd> = control.into_iter().chain(pidfd).collect();
        self.keep(book::process(guest, row, p.pid, control.is_some(), pidfd.is_some()), &fds);
    }
    fn note_process_gone(&mut self, guest: GuestId, row: u16) {
        self.drop_entry(CLASS_PROCESS, book::process_key(guest, row));
    }
    fn note_qset(&mut self, guest: GuestId, row: u16, qset: u16, is_primary: bool, bell: &Fd) {
        self.keep(book::qset(guest, row, qset, is_primary), &[*bell]);
    }
    fn note_qset_gone(&mut self, guest: GuestId, row: u16, qset: u16) {
        self.drop_entry(CLASS_QSET, book::qset_key(guest, row, qset));
    }
    fn note_hold(&mut self, guest: GuestId, far: u32, hold: Hold) {
        let Some((fd, _)) = self.daemon.sources.get(&far).copied() else { return };
        self.keep(book::hold(guest, hold), &[fd]);
    }
    fn note_hold_gone(&mut self, guest: GuestId, hold: Hold) {
        self.drop_entry(CLASS_HOLD, book::hold_key(guest, hold));
    }
    fn keep_counted(&mut self, _: GuestId, _: u16) {}
}
