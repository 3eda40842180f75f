//! Ordinary guests on a host whose parts die, all of it drawn from one seed: a run that fails is run again by its number.
//!
//! Guests' processes attach, fork, exec and are killed, at any step of it; they listen, connect, send, receive, also datagrams. Meanwhile stacks fail
//! and reset, guests are moved between three NSMs, each of which dies, of which the control thread hears later, and comes back with the listeners that
//! were kept; the keeper dies, under a daemon or without one, and another is told everything; the daemon dies, with its NSMs or without, and another
//! takes over what the keeper has, or dies in the middle of that; limits change, guests doze, and the clock jumps. A death may come in the middle of a
//! poll, or of what the control thread does: between any two of its messages to NSMs, to the engine and to the keeper, also while one is being answered.
//! What must hold: no panic, no byte that was not sent there, no connection reset by the death of an engine alone, no process that is taken for
//! another or loses its sockets at an exec, every chunk accounted for; and at the end, when nothing fails any more, each guest is served, daemon and
//! keeper know of each process and of no other, and when all have ended nothing of them is left.
//!
//! | module | what |
//! |---|---|
//! | `acts`, `datagrams` | what guests do with sockets |
//! | `processes` | how processes come, fork, exec and go |
//! | `kernel` | what the kernel knows: who lives, what is in which queue; and the keeper's process |
//! | `daemon` | what the control thread watches, hears, and tells the keeper |
//! | `deaths` | of an NSM, the daemon, the keeper |
//! | `moves` | from NSM to NSM |
//! | `succession` | from a daemon's death to the next one |
//! | `adoption` | the next daemon takes over |
//! | `reload` | the configuration, read again |
//! | `faults` | what was met |
//! | `end` | what must hold at the end |
//!
//! What the control thread decides of processes, moves, the deaths of NSMs and of what goes on after a daemon's is its own code
//! (`nk_host::control`), and so is when NSMs and the keeper are started again, and what a configuration that is read again changes. What the daemon tells
//! a keeper, how that stands there, and what the keeper makes of it is theirs (`nk_host::keeper`: `link`, `book`, `state`).
//! What stays out: making a guest, names, networks, VMs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nk_device::sync::Ordering;
use nk_device::{Device, Layout};
use nk_engine::{Engine, NsmId};
use nk_host::control::place::Place;
use nk_host::control::restarts::{self, Restarts};
use nk_host::keeper::entries::Entries;
use nk_host::keeper::link::{Link, complete};
use nk_servicelib::Service;

use super::daemon::Daemon;
use super::deaths::Victim;
use super::faults::Seen;
use super::kernel::{Keeper, Kernel};
use super::region::{Region, SharedLedger};
use super::reload::Config;
use super::stack::{MemoryStack, Net, Note};
use super::tenant::Tenant;
use super::world::{Bells, World};

/// So few chunks that processes take them from each other.
pub(super) const LAYOUT: Layout = Layout { rows: 4, qsets: 6, cells: 200, chunks: 300 };
pub(super) const GUESTS: u16 = 3;
pub(super) const NSMS: usize = 3;
const STEPS: usize = 600;

/// xorshift64*: the same numbers for the same seed, on every machine and in every version.
pub(super) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// An NSM's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Up,
    /// It died, and the control thread has not heard of it.
    Dead,
    /// It died, as is known.
    Down,
    /// The configuration has none of its name.
    Absent,
}

pub(super) struct Simulation {
    pub(super) w: World,
    pub(super) random: Random,
    pub(super) tenants: Vec<Tenant>,
    /// Guests so far.
    pub(super) entered: u16,
    /// Devices of NSMs: the engine looks at a dead one's until the next is there.
    pub(super) nsms: Vec<Region>,
    /// Of each NSM the device that it has, or had.
    pub(super) devices: [Device; NSMS],
    /// Deaths so far, of an NSM or all.
    pub(super) life: u32,
    pub(super) states: [State; NSMS],
    pub(super) lives: [Restarts; NSMS],
    /// When this run began.
    began: Instant,
    pub(super) kernel: Kernel,
    pub(super) keeper: Keeper,
    /// One that is being told what there is.
    pub(super) next_keeper: Option<Keeper>,
    pub(super) keeper_life: Restarts,
    pub(super) daemon: Daemon,
    /// Who asks it for something.
    pub(super) asks: Option<i32>,
    /// The daemon has no descriptor left.
    pub(super) lacks_descriptors: Cell<bool>,
    /// Of NSMs that have one, or had.
    pub(super) nsm_pids: [i32; NSMS],
    /// Pairs that are on their way.
    pub(super) travelling: Vec<u32>,
    /// Where guests were before another daemon took over: NSMs look at these ledgers until they know better.
    pub(super) before: Vec<Place<SharedLedger>>,
    /// A take-over of which nothing is heard.
    pub(super) is_quiet: bool,
    /// Daemons so far.
    pub(super) daemons: u32,
    /// Hosts so far: one on which neither daemon nor keeper is left is no more.
    pub(super) hosts: u32,
    /// What the control thread is doing ends so many moments from now.
    pub(super) ends_in: Option<(usize, Victim)>,
    /// Nothing fails any more.
    pub(super) is_over: bool,
    /// By NSM: what one that died said of listeners, and nobody has heard.
    pub(super) last_words: [Vec<Note>; NSMS],
    pub(super) net: Rc<RefCell<Net>>,
    /// The stack gives errors. With every other seed it gives none: then all that was sent comes.
    pub(super) stack_fails: bool,
    /// Wake-ups until the engine dies in the middle of a poll.
    pub(super) dies_in: Rc<Cell<Option<usize>>>,
    /// What the daemon has read.
    pub(super) config: Config,
    /// What stands in the file, where a wrong one may stand until somebody mends it.
    pub(super) file: Config,
    /// How often which fault was seen.
    pub(super) seen: Seen,
    /// A guest that comes is to be spread over the NSMs.
    pub(super) is_spread: bool,
}

/// What the engine's end in the middle of a poll unwinds with.
#[derive(Debug)]
pub(super) struct Killed;

/// Runs one seed.
///
/// # Panics
/// When something does not hold.
#[must_use]
pub fn run(seed: u64) -> Seen {
    let mut sim = Simulation::new(seed);
    sim.is_spread = seed % 3 == 2;
    for at in 0..sim.tenants.len() {
        sim.says_spread(at);
    }
    for _ in 0..STEPS {
        sim.step();
    }
    sim.end();
    sim.seen
}

impl Simulation {
    pub(super) fn new(seed: u64) -> Simulation {
        let nsms: Vec<Region> = (0..NSMS).map(|_| Region::new(Layout::NSM, 0)).collect();
        let devices = std::array::from_fn(|n| nsms[n].device);
        let net = Rc::new(RefCell::new(Net::default()));
        let mut engine = Engine::new();
        let mut services = Vec::new();
        for (n, device) in (0u8..).zip(devices) {
            engine.add_nsm(NsmId(n), device).expect("nsm");
            services.push(Service::new(MemoryStack::on(Rc::clone(&net), n, None), device));
        }
        let dies_in: Rc<Cell<Option<usize>>> = Rc::default();
        let countdown = dies_in.clone();
        let meanwhile = move || match countdown.get() {
            Some(0) => {
                countdown.set(None);
                // No panic: nothing is printed.
                std::panic::resume_unwind(Box::new(Killed))
            }
            n => countdown.set(n.map(|n| n - 1)),
        };
        let bells = Bells::new(Rc::new(RefCell::new(meanwhile)));
        let began = Instant::now();
        let keeper = Keeper::start();
        let mut sim = Simulation {
            w: World { engine, services, bells, now_ms: 1 },
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            tenants: Vec::new(),
            entered: 0,
            nsms,
            devices,
            life: 0,
            states: [State::Up; NSMS],
            lives: [Restarts::new(restarts::NSM, began); NSMS],
            began,
            kernel: Kernel::default(),
            keeper: keeper.clone(),
            next_keeper: None,
            keeper_life: Restarts::new(restarts::KEEPER, began),
            daemon: Daemon::new(Link::new(keeper, Entries::default())),
            asks: None,
            lacks_descriptors: Cell::new(false),
            nsm_pids: [0; NSMS],
            travelling: Vec::new(),
            before: Vec::new(),
            is_quiet: false,
            daemons: 0,
            hosts: 0,
            ends_in: None,
            is_over: false,
            last_words: Default::default(),
            net,
            stack_fails: seed.is_multiple_of(2),
            dies_in,
            config: Config::new(),
            file: Config::new(),
            seen: Seen::new(),
            is_spread: false,
        };
        complete(&sim.keeper).expect("it lives");
        (0..NSMS).for_each(|nsm| sim.nsm_serves(nsm));
        for _ in 0..GUESTS {
            sim.enter();
        }
        sim
    }

    pub(super) fn see(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub(super) fn poll(&mut self) {
        // Whoever found the engine asleep has written its eventfd.
        for t in &self.tenants {
            let h = t.region.device.header();
            if h.engine_sleeping.load(Ordering::Relaxed) != 0 && h.has_bells(1) {
                self.w.engine.rouse(t.id);
            }
        }
        self.w.poll_engine();
        for nsm in 0..NSMS {
            if self.states[nsm] == State::Up {
                self.w.poll_one(nsm);
            }
        }
        if self.random.below(3) == 0 {
            self.leave_old();
            self.move_on();
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.began + Duration::from_millis(self.w.now_ms)
    }

    fn step(&mut self) {
        if self.tenants.is_empty() {
            // All ended, and no NSM serves that another could have. One comes back in time.
            self.w.now_ms += 100;
            return self.poll();
        }
        let at = self.random.below(self.tenants.len());
        match self.random.below(112) {
            0..=7 => self.listen(at),
            8..=19 => self.connect(at),
            20..=31 => self.accept(at),
            32..=49 => self.send(at),
            50..=66 => self.receive(at),
            67..=72 => self.close(at),
            73..=74 => self.fork(at),
            75 => match self.random.below(8) {
                0..4 => self.exec(at),
                4 => self.spawn(at),
                5 => self.change_qsets(at),
                6 => self.travel(at),
                _ => self.intrude(at),
            },
            76..=77 => {
                self.kill(at);
                if self.random.below(4) == 0 && at < self.tenants.len() {
                    self.find_port_taken(at);
                }
            }
            78..=89 => self.poll(),
            90..=92 => self.move_guest(at),
            93 => {
                self.w.now_ms += self.random.next() % 3000;
                for _ in 0..3 {
                    self.poll();
                }
            }
            94 => {
                let _ = self.w.engine.prepare_sleep();
                self.w.engine.finish_sleep();
                self.w.engine.doze();
            }
            95 if self.stack_fails => {
                let errnos = [0, libc::EAGAIN, libc::ENOMEM, libc::EPIPE, libc::ECONNRESET];
                let n = self.random.below(errnos.len());
                let which = self.random.below(64);
                let mut net = self.net.borrow_mut();
                net.faults.next.push_back(errnos[n]);
                net.reset(which);
            }
            96 => self.change_limits(at),
            97 => {
                let nsm = self.random.below(NSMS);
                self.nsm_ends(nsm);
            }
            98 => match self.random.below(6) {
                0 | 1 => self.all_die(),
                2..=4 => self.daemon_dies(),
                5 if self.random.below(8) == 0 => self.last_daemon_ends(),
                _ => {}
            },
            99 => match self.random.below(6) {
                0 | 1 => self.leave_and_enter(at),
                2..=4 => self.reload(),
                _ => {}
            },
            100..=101 => self.bind_datagram(at),
            102..=106 => self.send_datagram(at),
            107..=111 => self.receive_datagram(at),
            _ => {}
        }
        for nsm in 0..NSMS {
            match self.states[nsm] {
                State::Dead if self.random.below(2) == 0 => self.nsm_died(nsm),
                State::Down if self.random.below(6) == 0 => self.nsm_is_due(nsm),
                _ => {}
            }
        }
        match self.random.below(60) {
            0 => self.keeper_ends(),
            1..20 => self.keeper_is_due(),
            _ => {}
        }
        if !self.travelling.is_empty() && self.random.below(20) == 0 {
            let n = self.random.below(self.travelling.len());
            let pair = self.travelling.swap_remove(n);
            self.kernel.pairs.remove(&pair);
        }
        self.hear_some();
        self.guests_end();
        for t in &mut self.tenants {
            let s = self.w.engine.stats(Some(t.id));
            t.count([s.bytes_sent, s.bytes_received, s.connections_total]);
        }
    }
}
