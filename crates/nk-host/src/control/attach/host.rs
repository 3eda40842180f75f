//! What joining a guest needs of the host.

use std::io;
use std::time::Instant;

use nk_engine::{ControlError, GuestId, NewRow};

use crate::control::members::{Hold, Members};

/// Who carries it out.
#[allow(clippy::missing_errors_doc, reason = "those of the host end the daemon")]
pub trait Host {
    /// By what a descriptor is watched.
    type Token: Copy + Ord;
    /// A descriptor.
    type Fd;

    /// The time.
    fn now(&self) -> Instant;
    /// The guest of a token.
    fn guest_of(&self, token: (u64, u64)) -> Option<GuestId>;
    /// Who is in a guest.
    fn members(&mut self, guest: GuestId) -> Option<&mut Members<Self::Token>>;
    /// Whether a row's process said that it is about to exec: a hint of the guest's.
    fn is_execing(&self, guest: GuestId, row: u16) -> bool;

    /// Another descriptor of the same.
    fn duplicate(&self, fd: &Self::Fd) -> io::Result<Self::Fd>;
    /// A pidfd.
    fn pidfd(&mut self, pid: i32) -> io::Result<Self::Fd>;
    /// Whether it is what is watched by that.
    fn is_same(&self, token: Self::Token, fd: &Self::Fd) -> bool;
    /// Makes a socket tell who writes into it.
    fn ask_credentials(&self, fd: &Self::Fd) -> io::Result<()>;
    /// Watches a child's control socket.
    fn watch_control(&mut self, fd: Self::Fd, guest: GuestId, row: u16) -> io::Result<Self::Token>;
    /// Watches for a process's end.
    fn watch_pidfd(&mut self, fd: Self::Fd, guest: GuestId, row: u16) -> io::Result<Self::Token>;
    /// Watches the far end of a pair that travels.
    fn watch_hold(&mut self, fd: Self::Fd, guest: GuestId) -> io::Result<Self::Token>;
    /// A connection is a process's from now on.
    fn is_process(&mut self, connection: Self::Token, guest: GuestId, row: u16);
    /// What is still in the queue of a connection is heard, and its end.
    fn hear(&mut self, connection: Self::Token) -> io::Result<()>;
    /// Whether the process has ended whose pidfd that is, or the other end of the connection.
    fn is_end(&self, token: Self::Token) -> bool;
    /// Watches and has it no more.
    fn forget(&mut self, token: Self::Token);

    /// The engine makes a row, with a doorbell.
    fn add_row(
        &mut self,
        guest: GuestId,
        pid: i32,
        bell: Self::Fd,
    ) -> io::Result<Result<NewRow, ControlError>>;
    /// The engine keeps the row of a process that exec'ed, with a fresh queue set in place of those.
    fn exec_row(
        &mut self,
        guest: GuestId,
        row: u16,
        gone: Vec<u16>,
        bell: Self::Fd,
    ) -> io::Result<Result<u16, ControlError>>;
    /// The engine frees a row, and its queue sets.
    fn end_row(&mut self, guest: GuestId, row: u16, qsets: Vec<u16>) -> io::Result<()>;
    /// Whether the engine has yet to have sockets of a guest closed that nobody holds.
    fn has_closes(&mut self, guest: GuestId) -> io::Result<bool>;
    /// The engine learns the pid of a row.
    fn set_pid(&mut self, guest: GuestId, row: u16, pid: i32) -> io::Result<()>;
    /// The engine makes one more queue set for a row.
    fn add_qset(
        &mut self,
        guest: GuestId,
        row: u16,
        bell: Self::Fd,
    ) -> io::Result<Result<u16, ControlError>>;
    /// The engine drops a queue set.
    fn drop_qset(&mut self, guest: GuestId, row: u16, qset: u16) -> io::Result<()>;
    /// The engine holds a socket.
    fn hold(
        &mut self,
        guest: GuestId,
        socket: u32,
        generation: u16,
    ) -> io::Result<Result<(), ControlError>>;
    /// The engine holds it no more.
    fn unhold(&mut self, guest: GuestId, socket: u32, generation: u16) -> io::Result<()>;

    /// The keeper is told of a process as it is now.
    fn note_process(&mut self, guest: GuestId, row: u16);
    /// The keeper is told that it is no more, nor are its queue sets.
    fn note_process_gone(&mut self, guest: GuestId, row: u16);
    /// The keeper is told of a queue set.
    fn note_qset(&mut self, guest: GuestId, row: u16, qset: u16, is_primary: bool, bell: &Self::Fd);
    /// The keeper is told that it is no more.
    fn note_qset_gone(&mut self, guest: GuestId, row: u16, qset: u16);
    /// The keeper is told of a hold.
    fn note_hold(&mut self, guest: GuestId, far: Self::Token, hold: Hold);
    /// The keeper is told that it is no more.
    fn note_hold_gone(&mut self, guest: GuestId, hold: Hold);
    /// What a process that ended had counted is its guest's.
    fn keep_counted(&mut self, guest: GuestId, row: u16);
}
