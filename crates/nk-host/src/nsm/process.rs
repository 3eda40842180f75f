//! The process of an NSM: one thread that serves, one that talks with the daemon and sees when it dies.

mod commands;
mod talk;
mod worker;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use nk_attach::{Fds, Kind, Message};
use nk_device::{Addr, Layout};
use nk_servicelib::{Errno, Key, SetOption, Stack};
use nk_stack_kernel::ListenerKeeper;

use self::talk::Talk;
use self::worker::Worker;
use super::broker::{RemoteBroker, Way};
use super::{NsmTotals, command, kernel_stack, note};
use crate::config::Io;
use crate::guest::Region;
use crate::keeper::option_to_text;
use crate::sys;

/// Tells the daemon of listeners.
#[derive(Debug)]
struct Notes(Arc<OwnedFd>);

impl ListenerKeeper for Notes {
    fn keep(&mut self, key: Key, fd: BorrowedFd<'_>, local: &Addr, backlog: u32) {
        let mut m = Message::new(Kind::Nsm).with_text(&crate::keeper::format_addr(local));
        (m.a, m.b, m.c) = (note::LISTENER, key.to_word(), backlog.into());
        let _ = nk_attach::send(self.0.as_raw_fd(), &m, &[fd.as_raw_fd()]);
    }
    fn forget(&mut self, key: Key) {
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (note::LISTENER_GONE, key.to_word());
        let _ = nk_attach::send(self.0.as_raw_fd(), &m, &[]);
    }
    fn keep_option(&mut self, key: Key, option: &SetOption) {
        let mut m = Message::new(Kind::Nsm).with_text(&option_to_text(option));
        (m.a, m.b) = (note::OPTION, key.to_word());
        let _ = nk_attach::send(self.0.as_raw_fd(), &m, &[]);
    }
    fn forget_options(&mut self, key: Key) {
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (note::OPTIONS_GONE, key.to_word());
        let _ = nk_attach::send(self.0.as_raw_fd(), &m, &[]);
    }
}

/// What a worker is asked, and where the answer goes.
type Command = (Message, Fds, mpsc::SyncSender<Message>);

fn os(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// `nk nsm`: serves until the daemon closes the control socket, or for the time of grace after the daemon's death: the keeper has
/// the daemon's end as well, and passes it to the next one.
///
/// # Errors
/// When what the daemon sent is not what an NSM needs.
pub fn run() -> io::Result<()> {
    sys::name_thread(c"nk-nsm");
    sys::raise_fd_limit();
    sys::one_heap();
    let control = Arc::new(crate::spawn::passed()?);
    let raw = control.as_raw_fd();
    let odd = || io::Error::other("this is started by the daemon, not by hand");
    let (start, mut fds, _) = nk_attach::recv(raw, false).map_err(|_| odd())?;
    let mut take = |i| sys::take(&mut fds, i).ok_or_else(odd);
    let parts = [take(0)?, take(1)?, take(2)?];
    let way = Way::new(take(3)?);
    let totals = NsmTotals::map(take(4)?)?;
    if start.a != command::START {
        return Err(odd());
    }
    let mut word = Message::new(Kind::Nsm);
    word.a = command::START;
    let begun = begin(&start, parts, totals, &way, &control);
    if let Err(e) = &begun {
        word = word.with_text(&e.to_string());
        word.status = e.raw_os_error().unwrap_or(libc::EIO);
    }
    nk_attach::send(raw, &word, &[]).map_err(io::Error::from_raw_os_error)?;
    let (worker, command_bell) = begun?;
    let grace = Duration::from_secs(start.c);
    let mut talk = Talk::new(control, way, worker, command_bell, grace);
    while talk.step().is_some() {}
    talk.tell_guests();
    // The worker may be in the middle of something: the process ends as a whole.
    std::process::exit(0)
}

/// Starts the poll thread; returns the way to give it commands.
fn begin(
    start: &Message,
    [memfd, bell, engine_bell]: [OwnedFd; 3],
    totals: NsmTotals,
    way: &Way,
    control: &Arc<OwnedFd>,
) -> io::Result<(mpsc::Sender<Command>, OwnedFd)> {
    let cores = start.text().unwrap_or("").split(',').filter(|w| !w.is_empty()).map(str::parse);
    // Before there are other threads: they inherit this, and what they may not do.
    sys::pin(&cores.collect::<Result<Vec<usize>, _>>().map_err(io::Error::other)?)?;
    let region = Region::map(memfd, Layout::NSM)?;
    let notes = Notes(control.clone());
    let how = Io::from_word(start.b);
    let mut stack = kernel_stack(Box::new(RemoteBroker(way.clone())), Some(Box::new(notes)), how)?;
    let errno = |e: Errno| os(e.0);
    stack.add_waker(bell.as_fd(), 0).map_err(errno)?;
    let command_bell = sys::eventfd()?;
    stack.add_waker(command_bell.as_fd(), 0).map_err(errno)?;
    super::confine::give_up_privileges()?;
    let (sender, commands) = mpsc::channel();
    let mut worker = Worker::new(stack, region, totals, control.clone(), commands, engine_bell);
    std::thread::Builder::new().name("nk-nsm".into()).spawn(move || worker.run())?;
    super::confine::refuse_calls()?;
    Ok((sender, command_bell))
}
