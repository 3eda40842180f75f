//! Ordinary guests on a host whose parts die, all of it drawn from one seed: a run that fails is run again by its number.
//!
//! Guests listen, connect, send, receive, also datagrams, fork, exit and are killed. Meanwhile stacks fail and reset, guests are moved between three NSMs,
//! each of which dies, of which the control thread hears later, and comes back with the listeners that were kept; the daemon dies, with its
//! NSMs or without, and another adopts the guests; limits change, guests doze, and the clock jumps. A death may come in the middle of a poll,
//! or of what the control thread does: between any two of its messages to NSMs and to the engine, also while one is being answered. What must
//! hold: no panic, no byte that was not sent there, no connection reset
//! by the death of an engine alone, every chunk accounted for; and at the end, when nothing fails any more, each guest is served, and
//! when all have ended nothing of them is left.
//!
//! | module | what |
//! |---|---|
//! | `acts`, `datagrams` | what guests do |
//! | `deaths` | of an NSM, the daemon, the keeper |
//! | `moves` | from NSM to NSM |
//! | `adoption` | the next daemon |
//! | `reload` | the configuration, read again |
//! | `end` | what must hold at the end |
//!
//! What the control thread decides of moves, of the deaths of NSMs and of what goes on after a daemon's is its own code
//! (`nk_host::control`), and so is when NSMs and the keeper are started again, and what a configuration that is read again changes.
//! What stays out: attaching itself, the keeper's process.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nk_device::sync::Ordering;
use nk_device::{Addr, Device, Layout};
use nk_engine::{Engine, GuestId, NsmId};
use nk_host::control::moves::Host;
use nk_host::control::place::Place;
use nk_host::control::restarts::{self, Restarts};
use nk_host::limits::GuestLimits;
use nk_servicelib::Service;

use super::acts::Way;
use super::datagrams::Posted;
use super::deaths::Victim;
use super::region::{Region, SharedLedger};
use super::reload::Config;
use super::shell::Shell;
use super::stack::{MemoryStack, Net};
use super::world::{Bells, NSM, World};

/// So few chunks that processes take them from each other.
pub(super) const LAYOUT: Layout = Layout { rows: 4, qsets: 6, cells: 200, chunks: 300 };
const GUESTS: u16 = 3;
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Listener,
    Client,
    Server,
    Datagram,
}

/// A socket as one process has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) id: u32,
    pub(super) generation: u32,
    pub(super) row: u16,
    pub(super) part: Part,
    pub(super) port: u16,
    /// How many deaths had been when it was made.
    pub(super) life: u32,
}

pub(super) struct Tenant {
    pub(super) id: GuestId,
    pub(super) region: Region,
    pub(super) processes: Vec<Shell>,
    pub(super) open: Vec<Open>,
    /// Bytes sent and received.
    pub(super) flows: HashMap<Way, (usize, usize)>,
    /// Datagrams sent.
    pub(super) posted: Vec<Posted>,
    /// Datagram sockets that were seen at the ports that they asked for.
    pub(super) bound: HashSet<(u32, u32)>,
    pub(super) place: Place<SharedLedger>,
    /// It is on several NSMs for good.
    pub(super) is_spread: bool,
    /// Where the keeper has it.
    pub(super) noted: NsmId,
    /// They outlive the daemon.
    pub(super) limits: GuestLimits,
    /// What the engine had counted when last looked: bytes sent and received, connections.
    counted: [u64; 3],
}

impl Tenant {
    pub(super) fn shell(&self, row: u16) -> Shell {
        self.processes.iter().find(|p| p.row == row).expect("a process of this row").clone()
    }
    pub(super) fn pick(&self, random: &mut Random, part: Part) -> Option<Open> {
        let lives = |o: &&Open| o.part == part && self.generation(o.id) == o.generation;
        let of_part: Vec<Open> = self.open.iter().filter(lives).copied().collect();
        of_part.get(random.below(of_part.len())).copied()
    }
    pub(super) fn generation(&self, id: u32) -> u32 {
        self.region.device.cell(id).map_or(0, |c| c.generation.load(Ordering::Relaxed))
    }
    /// Closes a socket, unless it ended with a service and its id is another's by now.
    pub(super) fn close(&self, o: &Open) {
        if self.generation(o.id) == o.generation {
            self.shell(o.row).close(o.id);
        }
    }
    pub(super) fn state(&self, id: u32) -> u32 {
        self.region.device.cell(id).map_or(0, |c| c.state.load(Ordering::Relaxed))
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

/// The keeper. What it has is the daemon's copy, of which the next one is told all.
pub(super) struct Keeper {
    pub(super) is_up: bool,
    pub(super) life: Restarts,
}

pub(super) struct Simulation {
    pub(super) w: World,
    pub(super) random: Random,
    pub(super) tenants: Vec<Tenant>,
    /// Guests so far.
    entered: u16,
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
    pub(super) keeper: Keeper,
    /// What the control thread is doing ends so many moments from now.
    pub(super) ends_in: Option<(usize, Victim)>,
    /// Nothing fails any more.
    pub(super) is_over: bool,
    /// What a keeper has of listeners that are between two NSMs.
    pub(super) given: HashMap<u64, (Addr, u32)>,
    /// By NSM: what a keeper has of the listeners of one that died.
    pub(super) kept: [HashMap<u64, (Addr, u32)>; NSMS],
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
    is_spread: bool,
}

/// How often what was seen.
pub type Seen = BTreeMap<&'static str, u64>;

/// What must be seen in a few hundred runs, or a fault is no more played.
pub const FAULTS: &[&str] =
    &["reload", "reload of NSMs", "reload refused", "next daemon without an NSM"];

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
            keeper: Keeper { is_up: true, life: Restarts::new(restarts::KEEPER, began) },
            ends_in: None,
            is_over: false,
            given: HashMap::new(),
            kept: Default::default(),
            net,
            stack_fails: seed.is_multiple_of(2),
            dies_in,
            config: Config::new(),
            file: Config::new(),
            seen: Seen::new(),
            is_spread: false,
        };
        for _ in 0..GUESTS {
            sim.enter();
        }
        sim
    }

    /// Numbers go up: what is on an NSM's rings of a guest that left must not reach another.
    fn enter(&mut self) {
        self.entered += 1;
        let id = GuestId(self.entered);
        let region = Region::new(LAYOUT, id.0);
        let first = self.w.add_guest(&region, id);
        let (open, flows) = (Vec::new(), HashMap::new());
        let processes = vec![first];
        let (place, noted) = (Place::new(NSM), NSM);
        let (limits, counted) = (GuestLimits::default(), [0; 3]);
        let (posted, bound) = (Vec::new(), HashSet::new());
        let tenant = Tenant {
            id,
            region,
            processes,
            open,
            flows,
            posted,
            bound,
            place,
            is_spread: false,
            noted,
            limits,
            counted,
        };
        self.tenants.push(tenant);
        self.says_spread(self.tenants.len() - 1);
    }

    /// The configuration says from the beginning whether a guest is spread.
    fn says_spread(&mut self, at: usize) {
        if self.is_spread {
            let t = &mut self.tenants[at];
            t.is_spread = true;
            self.config.spread(t.id);
            self.file.spread(t.id);
        }
        self.spread(at);
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
        let at = self.random.below(self.tenants.len());
        match self.random.below(112) {
            0..=7 => self.listen(at),
            8..=19 => self.connect(at),
            20..=31 => self.accept(at),
            32..=49 => self.send(at),
            50..=66 => self.receive(at),
            67..=72 => self.close(at),
            73..=75 => self.fork(at),
            76..=77 => self.kill(at),
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
                2 | 3 => self.daemon_dies(),
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
        self.look_at_counters();
    }

    /// Whoever died, no counter falls.
    fn look_at_counters(&mut self) {
        for t in &mut self.tenants {
            let s = self.w.engine.stats(Some(t.id));
            let now = [s.bytes_sent, s.bytes_received, s.connections_total];
            let falls = now.iter().zip(&t.counted).any(|(now, before)| now < before);
            assert!(!falls, "guest {} counted {:?}, and now {now:?}", t.id.0, t.counted);
            t.counted = now;
        }
    }

    // ---- what befalls the host ----

    fn change_limits(&mut self, at: usize) {
        self.draw_limits(at);
        self.act(|s| s.set_limits(at));
    }

    pub(super) fn set_limits(&mut self, at: usize) -> io::Result<()> {
        let (id, limits) = (self.tenants[at].id, self.tenants[at].limits.engine());
        self.engine(move |e, _| e.set_limits(id, limits))?.map_err(io::Error::other)?;
        self.limit(id)
    }

    pub(super) fn draw_limits(&mut self, at: usize) {
        self.tenants[at].limits = self.some_limits();
    }

    pub(super) fn some_limits(&mut self) -> GuestLimits {
        let mut rate = |per_s: u64| if self.random.below(2) == 0 { per_s } else { 0 };
        let (nqes_per_s, connections_per_s) = (rate(20_000), rate(200));
        let (out, input) = (rate(2_000_000), rate(2_000_000));
        let weight = 1 + self.random.below(4) as u32;
        GuestLimits {
            out,
            input,
            nqes_per_s,
            connections_per_s,
            weight,
            burst_ms: 100,
            ..GuestLimits::default()
        }
    }

    fn leave_and_enter(&mut self, at: usize) {
        if self.states[0] != State::Up {
            // It would be told of the new one when it is back, which is not the matter here.
            return;
        }
        let t = self.tenants.swap_remove(at);
        self.w.engine.remove_guest(t.id).expect("known");
        for service in &mut self.w.services {
            service.remove_guest(t.id.0);
        }
        self.enter();
    }
}
