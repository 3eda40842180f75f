//! The control thread: attach socket, control connections, pidfds, and what they mean for guests.
//!
//! One epoll loop. It owns all bookkeeping of processes; for everything that concerns rings and sockets it asks the poll
//! thread and waits for the short answer.

mod adopt;
mod attach;
mod connection;
mod create;
mod death;
mod keep;
mod limits;
mod moves;
mod names;
mod networks;
mod nsm;
mod query;
mod reload;
mod reply;
mod slab;
mod source;
mod spread;
mod survive;
mod timers;
mod vm;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use nk_device::Layout;
use nk_engine::{Engine, NsmId};
use nk_servicelib::Service;
use nk_stack_kernel::KernelStack;
use rustix::event::epoll::EventFlags;
use sd_notify::NotifyState;

use crate::broker::Broker;
use crate::config::{Config, Placement};
use crate::control::attach::{ended, hold_ended};
use crate::control::restarts::{self, Restarts};
use crate::guest::{Guest, Region};
use crate::keeper::{CLASS_ATTACH, CLASS_TOTALS, Entry, Keeper, ListenerNotes, book};
use crate::notify::{News, Notifier};
use crate::nsm::NsmTotals;
use crate::poll::{PollHandle, PollState};
use crate::sys::{self, Epoll};
pub use reload::common_version;
pub(crate) use reply::Reply;
use slab::Slab;
pub use slab::Token;
pub(crate) use source::{Role, Source};

/// Guests at once.
pub const GUESTS_MAX: usize = 1024;
/// How long a private daemon waits for its guest.
const STARTUP_GRACE: Duration = Duration::from_secs(10);

/// How the daemon is set up.
#[derive(Debug)]
pub struct Setup {
    /// The listening attach socket.
    pub listener: OwnedFd,
    /// What the configuration says.
    pub config: Config,
    /// A private daemon: it ends with its guest.
    pub private: bool,
    /// What survives this daemon.
    pub keeper: Option<Keeper>,
    /// What survived the one before.
    pub entries: Vec<Entry>,
    /// The program whose `resolver` answers questions about names: this one, save in tests.
    pub resolver: &'static CStr,
}

/// The control thread's state.
#[derive(Debug)]
pub struct Server {
    epoll: Epoll,
    sources: Slab<Source>,
    /// Connections that have not said what they are, in the order in which they came, and whose they are.
    strangers: VecDeque<(Token, u32)>,
    poll: PollHandle,
    broker: Broker,
    bell: Arc<OwnedFd>,
    news: Receiver<News>,
    news_sender: Sender<News>,
    guests: BTreeMap<u16, Guest>,
    next_guest: u16,
    config: Config,
    private: bool,
    /// Another daemon takes over, or none is to.
    is_done: bool,
    listener: Token,
    accept_rests_until: Option<Instant>,
    started: Instant,
    had_guest: bool,
    keeper: Option<Keeper>,
    keeper_life: Restarts,
    /// It ended, and the next has not been told everything.
    keeper_is_away: bool,
    nsms: Vec<nsm::Nsm>,
    resolver: &'static CStr,
    /// Namespaces that were made, by guest.
    networks: BTreeMap<String, String>,
    /// Guests of which it was said that they are in the host's namespace; "" for those without a section.
    warned: BTreeSet<String>,
}

/// The NSMs that the configuration names, without processes, and what runs of the inline one. `totals`: what those of a dead daemon had counted.
fn make_nsms(
    config: &Config,
    engine: &mut Engine,
    broker: &Broker,
    keeper: Option<&Keeper>,
    totals: &mut [Entry],
) -> io::Result<(Vec<nsm::Nsm>, Option<Service<KernelStack>>)> {
    let (mut nsms, mut service) = (Vec::new(), None);
    for ((name, config), id) in config.nsms().into_iter().zip(0..) {
        let id = NsmId(id);
        let region = Region::new("nsm", Layout::NSM, 0)?;
        engine.add_nsm(id, region.device).map_err(io::Error::other)?;
        let kept = totals.iter_mut().find(|e| e.text == name).and_then(|e| e.fds.pop());
        // What another version counted in is not this one's: its totals begin again.
        let totals = match kept.map(NsmTotals::map) {
            Some(Ok(totals)) => totals,
            _ => NsmTotals::new()?,
        };
        if config.placement == Placement::Inline {
            let notes = keeper.map(|k| Box::new(ListenerNotes(k.clone())) as Box<_>);
            let stack = crate::nsm::kernel_stack(Box::new(broker.clone()), notes, config.io)
                .map_err(|e| io::Error::new(e.kind(), format!("NSM {name:?}: {e}")))?;
            let inline = service.insert(Service::new(stack, region.device));
            inline.count_in(totals.shared);
        }
        nsms.push(nsm::Nsm::new(id, name, config, region, totals));
    }
    Ok((nsms, service))
}

impl Server {
    /// Starts the poll thread and gets ready to serve.
    ///
    /// # Errors
    /// When descriptors, memory or threads cannot be had.
    pub fn new(setup: Setup) -> io::Result<Server> {
        // Before there is any other thread, which would take the signal.
        let hangup = setup.config.file.as_ref().map(|_| sys::signals(libc::SIGHUP)).transpose()?;
        let quit = (!setup.private).then(|| sys::signals(libc::SIGQUIT)).transpose()?;
        let epoll = Epoll::new()?;
        let mut sources = Slab::new();
        let bell = Arc::new(sys::eventfd()?);
        let (news_sender, news) = mpsc::channel();
        let broker = Broker::new();
        let mut engine = Engine::new();
        let (mut totals, entries): (Vec<Entry>, Vec<Entry>) =
            setup.entries.into_iter().partition(|e| e.class == CLASS_TOTALS);
        let (nsms, service) =
            make_nsms(&setup.config, &mut engine, &broker, setup.keeper.as_ref(), &mut totals)?;
        let inline = nsms.iter().find(|n| n.is_inline());
        let cores = inline.map(|n| n.config.core_numbers()).unwrap_or_default();
        let notify = Notifier::new(news_sender.clone(), bell.clone());
        let poll = PollHandle::start(PollState::new(engine, notify, service)?, cores)?;
        sys::set_nonblocking(&setup.listener)?;
        let listener = sources.insert(Source::Listener(setup.listener));
        if let Some(fd) = sources.get(listener).and_then(Source::fd) {
            epoll.add(fd, EventFlags::IN, listener.word())?;
        }
        let bell_token = sources.insert(Source::Bell);
        epoll.add(&bell, EventFlags::IN, bell_token.word())?;
        let mut server = Server {
            epoll,
            sources,
            strangers: VecDeque::new(),
            poll,
            broker,
            bell,
            news,
            news_sender,
            guests: BTreeMap::new(),
            next_guest: 1,
            config: setup.config,
            private: setup.private,
            is_done: false,
            listener,
            accept_rests_until: None,
            started: Instant::now(),
            had_guest: false,
            keeper: setup.keeper,
            keeper_life: Restarts::new(restarts::KEEPER, Instant::now()),
            keeper_is_away: false,
            nsms,
            resolver: setup.resolver,
            networks: BTreeMap::new(),
            warned: BTreeSet::new(),
        };
        server.watch_keeper();
        if let Some(fd) = hangup {
            server.watch(Source::Hangup(fd), EventFlags::IN)?;
        }
        if let Some(fd) = quit {
            server.watch(Source::Quit(fd), EventFlags::IN)?;
        }
        if let (Some(k), Some(fd)) = (&server.keeper, server.fd(Some(server.listener))) {
            k.keep(book::entry(CLASS_ATTACH, 0, (0, 0), ""), &[fd.as_fd()]);
        }
        server.keep_totals(&totals.iter().map(|e| e.key).collect::<Vec<_>>());
        server.set_up_networks();
        server.adopt(entries)?;
        Ok(server)
    }

    /// Serves until a private daemon's guest is gone, another daemon takes over, or SIGQUIT comes: then this process is to end at once, and to
    /// undo nothing.
    ///
    /// # Errors
    /// When epoll fails or the poll thread has ended.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::new();
        self.tell_manager(&[NotifyState::Ready]);
        loop {
            let wait = self.timers()?;
            let Some(wait) = wait else { return Ok(()) };
            self.epoll.wait(&mut events, wait)?;
            for (word, flags) in &events {
                self.event(Token::from_word(*word), *flags)?;
                if self.is_done {
                    return Ok(());
                }
            }
        }
    }

    fn event(&mut self, token: Token, flags: EventFlags) -> io::Result<()> {
        match self.sources.get(token) {
            // Closed by an earlier event of this batch.
            None => Ok(()),
            Some(Source::Listener(_)) => {
                self.accept();
                Ok(())
            }
            Some(Source::Bell) => {
                sys::drain(&self.bell);
                while let Ok(news) = self.news.try_recv() {
                    match news {
                        News::Idle(guest) => self.guest_is_idle(guest)?,
                        News::Keeper(is_there) => self.next_keeper(is_there),
                        News::Full(guest) => self.spread(guest)?,
                        News::Left(guest, nsm) => {
                            crate::control::moves::nsm_left(self, guest, nsm)?
                        }
                    }
                }
                Ok(())
            }
            Some(Source::Connection { .. }) => self.messages(token),
            Some(Source::Pidfd { guest, row, .. }) => {
                let (guest, row) = (*guest, *row);
                ended(self, guest, row, "its process ended")
            }
            Some(Source::CreatorPidfd { guest, .. }) => {
                let guest = *guest;
                self.creator_ended(guest);
                Ok(())
            }
            Some(Source::Keeper) => {
                self.keeper_ended(token);
                Ok(())
            }
            Some(Source::Nsm(id, part)) => {
                let (id, part) = (*id, *part);
                self.nsm_event(id, part)
            }
            Some(Source::Hangup(fd)) => {
                sys::drain_signals(fd);
                self.reload();
                Ok(())
            }
            Some(Source::Quit(_)) => {
                self.end();
                Ok(())
            }
            Some(Source::Resolver { .. }) => {
                self.resolver_ended(token);
                Ok(())
            }
            Some(Source::Hold { guest, .. }) => {
                let guest = *guest;
                if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                    hold_ended(self, guest, token)?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
