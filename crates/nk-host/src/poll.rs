//! The poll thread: CoreEngine and, inline, ServiceLib with its stack, driven by one plain thread.
//!
//! It sleeps in the stack's epoll, where every guest's engine eventfd and the command eventfd are wakers. The control thread
//! reaches it by commands: closures that run between two polls.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::time::Duration;

use nk_device::patience::Patience;
use nk_engine::{Engine, GuestId};
use nk_servicelib::{Service, Stack};
use nk_stack_kernel::KernelStack;
use rustix::event::epoll::EventFlags;

use crate::beside::Beside;
use crate::notify::Notifier;
use crate::pace::{Pace, now_ns, wait_ms};
use crate::sys;

/// NQEs per turn of the engine.
const BUDGET: u32 = 1024;
/// While there is work without end, polls between two looks for guests that doze.
const LOOK_EVERY: u32 = 32;
/// How long a hostile guest's doorbell may hold up all others, once.
const BELL_MAX: Duration = Duration::from_secs(1);
/// The same between two thoughts about the place.
const PLACE_EVERY: u32 = 8;

/// What the poll thread owns, as commands see it.
#[derive(Debug)]
pub struct PollState {
    /// The switch.
    pub engine: Engine,
    /// The way out.
    pub notify: Notifier,
    /// The inline NSM; `None` where NSMs are processes.
    pub service: Option<Service<KernelStack>>,
    /// Ends the thread's sleep where there is no inline stack to sleep in.
    sleeper: Option<Sleeper>,
    end: bool,
}

impl PollState {
    /// A state to run; without a service the thread sleeps in an epoll of its own.
    ///
    /// # Errors
    /// Those of epoll_create1.
    pub fn new(
        engine: Engine,
        notify: Notifier,
        service: Option<Service<KernelStack>>,
    ) -> io::Result<PollState> {
        let sleeper = match service {
            Some(_) => None,
            None => Some(Sleeper { epoll: sys::Epoll::new()?, woken: Vec::new() }),
        };
        Ok(PollState { engine, notify, service, sleeper, end: false })
    }

    /// From now on the descriptor (an eventfd that is never read) ends the thread's sleep; a guest's also rouses the guest. It stays open until
    /// [`PollState::remove_waker`]: another one of the same eventfd takes nothing away.
    ///
    /// # Errors
    /// Those of epoll_ctl.
    pub fn add_waker(&mut self, fd: &impl AsFd, guest: Option<GuestId>) -> io::Result<()> {
        let fd = fd.as_fd();
        let word = guest.map_or(0, |g| g.0.into());
        if let Some(s) = &mut self.service {
            let added = s.stack_mut().add_waker(fd, word);
            added.map_err(|e| io::Error::from_raw_os_error(e.0))?;
        }
        if let Some(s) = &self.sleeper {
            s.epoll.add(fd, EventFlags::IN | EventFlags::ET, word.into())?;
        }
        Ok(())
    }

    /// Undoes [`PollState::add_waker`].
    pub fn remove_waker(&mut self, fd: &impl AsFd) {
        let fd = fd.as_fd();
        if let Some(s) = &mut self.service {
            s.stack_mut().remove_waker(fd);
        }
        if let Some(s) = &self.sleeper {
            s.epoll.remove(fd);
        }
    }

    /// Goes to where the thread waits that was rung last, and stays for a while. Where NSMs are processes, those do what a guest waits for.
    fn go_beside(&self, beside: &mut Beside, now_ns: u64) {
        if self.service.is_some()
            && let Err(e) = beside.place(now_ns, sys::cpu(), self.engine.awaited_on())
        {
            tracing::debug!("the poll thread cannot move: {e}");
        }
    }

    /// Waits for a waker where there is no inline stack to wait in.
    fn sleep(&mut self, wait_ms: i32) {
        if let Some(s) = &mut self.sleeper {
            let _ = s.epoll.wait(&mut s.woken, wait_ms);
        }
    }

    /// Tells the engine of the guests whose wakers were seen; whether there were any.
    fn rouse(&mut self) -> bool {
        let mut any = false;
        let mut rouse = |word: u32| {
            any = true;
            // 0 is no guest: the other wakers have no more to say than that.
            self.engine.rouse(GuestId(word as u16));
        };
        if let Some(s) = &mut self.service {
            s.stack_mut().woken().for_each(&mut rouse);
        }
        if let Some(s) = &mut self.sleeper {
            s.woken.drain(..).for_each(|(word, _)| rouse(word as u32));
        }
        any
    }
}

/// Where the thread sleeps without an inline stack.
#[derive(Debug)]
struct Sleeper {
    epoll: sys::Epoll,
    woken: Vec<(u64, EventFlags)>,
}

type Command = Box<dyn FnOnce(&mut PollState) + Send>;

/// The control thread's handle.
#[derive(Debug)]
pub struct PollHandle {
    commands: Sender<Command>,
    bell: Arc<OwnedFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The poll thread has ended.
#[derive(Debug, thiserror::Error)]
#[error("the poll thread has ended")]
pub struct PollGone;

impl PollHandle {
    /// Starts the thread, on these CPUs.
    ///
    /// # Errors
    /// Those of eventfd, epoll_ctl and of making a thread.
    pub fn start(mut state: PollState, cores: Vec<usize>) -> io::Result<PollHandle> {
        let bell = Arc::new(sys::eventfd()?);
        state.add_waker(&*bell, None)?;
        let (commands, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new().name("nk-poll".into()).spawn(move || {
            if let Err(e) = sys::pin(&cores) {
                tracing::error!(?cores, error = %e, "the poll thread may not run there");
            }
            run(&mut state, &receiver);
        })?;
        Ok(PollHandle { commands, bell, thread: Some(thread) })
    }

    /// Runs a command on the poll thread and waits for what it returns.
    ///
    /// # Errors
    /// [`PollGone`].
    pub fn call<R: Send + 'static>(
        &self,
        command: impl FnOnce(&mut PollState) -> R + Send + 'static,
    ) -> Result<R, PollGone> {
        let (reply, answer) = mpsc::sync_channel(1);
        let command: Command = Box::new(move |s| {
            let _ = reply.send(command(s));
        });
        self.commands.send(command).map_err(|_| PollGone)?;
        sys::ring(&self.bell);
        answer.recv().map_err(|_| PollGone)
    }

    /// Ends the thread.
    pub fn stop(&mut self) {
        let _ = self.call(|s| s.end = true);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

impl Drop for PollHandle {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop();
        }
    }
}

fn run(state: &mut PollState, commands: &Receiver<Command>) {
    if let Err(e) = crate::watchdog::install(BELL_MAX) {
        tracing::warn!("no timer: a hostile guest's doorbell may block this thread: {e}");
    }
    let mut polls = 0u32;
    let patience = Patience::new();
    let mut pace = Pace::new(&patience);
    let mut beside = Beside::default();
    while !state.end {
        let now = now_ns();
        let e = state.engine.poll(now, BUDGET, &mut state.notify);
        let mut due_ns = e.due_ns;
        let mut busy = e.worked > 0 || e.pending;
        if let Some(s) = &mut state.service {
            let r = s.poll(now, pace.asks(), &mut || {});
            busy |= r.worked > 0 || r.pending;
            due_ns = due_ns.into_iter().chain(r.due_ns).min();
        }
        // After the stack's look at its epoll, which takes the bell's edge: a command sent before that look is found here, one
        // sent later ends the sleep.
        loop {
            match commands.try_recv() {
                Ok(c) => {
                    c(state);
                    busy = true;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        polls = polls.wrapping_add(1);
        if polls.is_multiple_of(LOOK_EVERY) {
            state.engine.doze();
            state.sleep(0);
        }
        busy |= state.rouse();
        if polls.is_multiple_of(PLACE_EVERY) {
            state.go_beside(&mut beside, now);
        }
        pace.rest(
            state,
            busy,
            |state| {
                let found = state.service.as_mut().is_some_and(|s| {
                    let r = s.poll(now_ns(), Some(0), &mut || {});
                    r.worked > 0 || r.pending
                });
                found | state.rouse()
            },
            |state| {
                if state.engine.prepare_sleep() {
                    state.go_beside(&mut beside, now);
                    let wait_ms = wait_ms(due_ns);
                    match &mut state.service {
                        Some(s) => {
                            s.poll(now_ns(), Some(wait_ms), &mut || {});
                        }
                        None => state.sleep(wait_ms),
                    }
                }
                state.engine.finish_sleep();
                state.rouse();
            },
        );
    }
}
