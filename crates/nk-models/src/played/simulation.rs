//! Ordinary guests on a host whose parts die, all of it drawn from one seed: a run that fails is run again by its number.
//!
//! Guests listen, connect, send, receive, fork, exit and are killed. Meanwhile the stack fails and resets, the NSM dies and comes back
//! with the listeners that were kept, the daemon dies and another adopts the guests, limits change, guests doze, and the clock jumps. What
//! must hold: no panic, no byte that was not sent there, every chunk accounted for; and at the end, when nothing fails any more, each
//! guest is served, and when all have ended nothing of them is left.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use nk_device::Layout;
use nk_device::bucket::Rate;
use nk_device::cell::{SF_CONNECTED, SF_DEAD};
use nk_device::nqe::Op;
use nk_device::sync::Ordering;
use nk_engine::{AdoptedListener, AdoptedRow, Adoption, Engine, GuestId, Limits, NewRow};
use nk_servicelib::{Key, Service};

use super::region::Region;
use super::shell::Shell;
use super::stack::MemoryStack;
use super::world::{Bells, NSM, World, datagrams, transfer};

/// So few chunks that processes take them from each other.
const LAYOUT: Layout = Layout { rows: 4, qsets: 6, cells: 200, chunks: 300 };
const GUESTS: u16 = 3;
const STEPS: usize = 600;
const SOCKETS_MAX: usize = 24;
/// Longer than any orphan is left to send what it has.
const DRAIN_MS: u64 = 200_000;

/// xorshift64*: the same numbers for the same seed, on every machine and in every version.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Which connection's bytes, and which way: the life of the stack that it is on, and its client's port.
type Way = (u32, u16, bool);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Listener,
    Client,
    Server,
}

/// A socket as one process has it.
#[derive(Clone, Copy, Debug)]
struct Open {
    id: u32,
    row: u16,
    part: Part,
    port: u16,
    /// The stack's life in which it was connected.
    life: u32,
}

struct Tenant {
    id: GuestId,
    region: Region,
    processes: Vec<Shell>,
    open: Vec<Open>,
    /// Bytes sent and received.
    flows: HashMap<Way, (usize, usize)>,
}

impl Tenant {
    fn shell(&self, row: u16) -> Shell {
        self.processes.iter().find(|p| p.row == row).expect("a process of this row").clone()
    }
    fn pick(&self, random: &mut Random, part: Part) -> Option<Open> {
        let of_part: Vec<Open> = self.open.iter().filter(|o| o.part == part).copied().collect();
        of_part.get(random.below(of_part.len())).copied()
    }
    fn state(&self, id: u32) -> u32 {
        self.region.device.cell(id).map_or(0, |c| c.state.load(Ordering::Relaxed))
    }
}

struct Simulation {
    w: World,
    random: Random,
    tenants: Vec<Tenant>,
    /// Guests so far.
    entered: u16,
    /// Devices of NSMs, the present one last: the engine looks at a dead one's until the next is there.
    nsms: Vec<Region>,
    /// How many lives the stack has had.
    life: u32,
    is_down: bool,
}

fn stack(life: u32) -> MemoryStack {
    let mut s = MemoryStack::new(None);
    s.begin_ports_at(40_000 + (life % 20) as u16 * 1000);
    s
}

/// Runs one seed.
///
/// # Panics
/// When something does not hold.
pub fn run(seed: u64) {
    let nsm = Region::new(Layout::NSM, 0);
    let mut engine = Engine::new();
    engine.add_nsm(NSM, nsm.device).expect("nsm");
    let service = Service::new(stack(0), nsm.device);
    let bells = Bells { meanwhile: Rc::new(RefCell::new(|| ())) };
    let mut sim = Simulation {
        w: World { engine, service, bells, now_ms: 1 },
        random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        tenants: Vec::new(),
        entered: 0,
        nsms: vec![nsm],
        life: 0,
        is_down: false,
    };
    for _ in 0..GUESTS {
        sim.enter();
    }
    for _ in 0..STEPS {
        sim.step();
    }
    sim.end();
}

impl Simulation {
    /// Numbers go up: what is on an NSM's rings of a guest that left must not reach another.
    fn enter(&mut self) {
        self.entered += 1;
        let id = GuestId(self.entered);
        let region = Region::new(LAYOUT, id.0);
        let first = self.w.add_guest(&region, id);
        let (open, flows) = (Vec::new(), HashMap::new());
        self.tenants.push(Tenant { id, region, processes: vec![first], open, flows });
    }

    fn poll(&mut self) {
        // Whoever found the engine asleep has written its eventfd.
        for t in &self.tenants {
            let h = t.region.device.header();
            if h.engine_sleeping.load(Ordering::Relaxed) != 0 && h.has_bells(1) {
                self.w.engine.rouse(t.id);
            }
        }
        self.w.poll_engine();
        if !self.is_down {
            self.w.poll_service();
        }
    }

    fn step(&mut self) {
        let at = self.random.below(self.tenants.len());
        match self.random.below(100) {
            0..=7 => self.listen(at),
            8..=19 => self.connect(at),
            20..=31 => self.accept(at),
            32..=49 => self.send(at),
            50..=66 => self.receive(at),
            67..=72 => self.close(at),
            73..=75 => self.fork(at),
            76..=77 => self.kill(at),
            78..=92 => self.poll(),
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
            95 => {
                let errnos = [0, libc::EAGAIN, libc::ENOMEM, libc::EPIPE, libc::ECONNRESET];
                let n = self.random.below(errnos.len());
                let which = self.random.below(64);
                let stack = self.w.service.stack_mut();
                stack.faults.next.push_back(errnos[n]);
                stack.reset(which);
            }
            96 => self.limit(at),
            97 => self.nsm_dies(),
            98 if self.random.below(3) == 0 => self.daemon_dies(),
            99 if self.random.below(3) == 0 => self.leave_and_enter(at),
            _ => {}
        }
        if self.is_down && self.random.below(6) == 0 {
            self.nsm_returns();
        }
    }

    // ---- what guests do ----

    fn any_process(&mut self, at: usize) -> Shell {
        let n = self.random.below(self.tenants[at].processes.len());
        self.tenants[at].processes[n].clone()
    }

    fn has_room(&self, at: usize) -> bool {
        self.tenants[at].open.len() < SOCKETS_MAX
    }

    fn listen(&mut self, at: usize) {
        let port = 80 + self.random.below(3) as u16;
        let shell = self.any_process(at);
        let is_taken =
            self.tenants[at].open.iter().any(|o| o.part == Part::Listener && o.port == port);
        if is_taken || !self.has_room(at) {
            return;
        }
        let Some(id) = shell.open() else { return };
        shell.address(Op::Bind, id, port);
        shell.job(Op::Listen, id, |n| n.op_data = 8);
        let life = self.life;
        self.tenants[at].open.push(Open { id, row: shell.row, part: Part::Listener, port, life });
    }

    fn connect(&mut self, at: usize) {
        let shell = self.any_process(at);
        if !self.has_room(at) {
            return;
        }
        let Some(id) = shell.open() else { return };
        let port = 80 + self.random.below(3) as u16;
        shell.address(Op::Connect, id, port);
        let life = self.life;
        self.tenants[at].open.push(Open { id, row: shell.row, part: Part::Client, port: 0, life });
    }

    fn accept(&mut self, at: usize) {
        let Some(l) = self.tenants[at].pick(&mut self.random, Part::Listener) else { return };
        let shell = self.tenants[at].shell(l.row);
        let Some(accepted) = shell.accept(l.id) else { return };
        let id = accepted.socket;
        let port = shell.device.cell(id).map_or(0, |c| c.peer.load().port);
        let life = self.life;
        self.tenants[at].open.push(Open { id, row: l.row, part: Part::Server, port, life });
    }

    /// A connected socket with its port; a client's is known once it is connected.
    fn connected(&mut self, at: usize) -> Option<Open> {
        let part = if self.random.below(2) == 0 { Part::Client } else { Part::Server };
        let t = self.tenants.get_mut(at)?;
        let mut o = t.pick(&mut self.random, part)?;
        if o.port == 0 {
            let state = t.state(o.id);
            if o.life != self.life || state & SF_CONNECTED == 0 || state & SF_DEAD != 0 {
                return None;
            }
            o.port = t.region.device.cell(o.id)?.local.load().port;
            for all in t.open.iter_mut().filter(|s| s.id == o.id) {
                all.port = o.port;
            }
        }
        Some(o)
    }

    fn send(&mut self, at: usize) {
        let Some(o) = self.connected(at) else { return };
        let len = 1 + self.random.below(9000);
        let t = &mut self.tenants[at];
        let shell = t.shell(o.row);
        let flow = t.flows.entry((o.life, o.port, o.part == Part::Client)).or_default();
        flow.0 += shell.send(o.id, base(&o, o.part == Part::Client) + flow.0, len);
    }

    fn receive(&mut self, at: usize) {
        let Some(o) = self.connected(at) else { return };
        let len = 1 + self.random.below(9000);
        let t = &mut self.tenants[at];
        let shell = t.shell(o.row);
        // From the other side.
        let from_client = o.part == Part::Server;
        let flow = t.flows.entry((o.life, o.port, from_client)).or_default();
        flow.1 += shell.recv(o.id, base(&o, from_client) + flow.1, len, true);
        assert!(flow.1 <= flow.0, "{} bytes came of {}", flow.1, flow.0);
    }

    fn close(&mut self, at: usize) {
        let t = &mut self.tenants[at];
        let n = self.random.below(t.open.len());
        if n < t.open.len() {
            let o = t.open.swap_remove(n);
            t.shell(o.row).close(o.id);
        }
    }

    fn fork(&mut self, at: usize) {
        let parent = self.any_process(at);
        let t = &mut self.tenants[at];
        let Ok(NewRow { row, qset }) = self.w.engine.add_row(t.id, 200) else { return };
        let child = Shell::new(parent.device, row, qset);
        let inherited: Vec<Open> = t.open.iter().filter(|o| o.row == parent.row).copied().collect();
        for o in inherited {
            if let Some(c) = parent.device.cell(o.id) {
                c.hold(row);
            }
            t.open.push(Open { row, ..o });
        }
        t.processes.push(child);
    }

    fn kill(&mut self, at: usize) {
        let dead = self.any_process(at);
        let t = &mut self.tenants[at];
        t.processes.retain(|p| p.row != dead.row);
        t.open.retain(|o| o.row != dead.row);
        self.w.engine.row_dead(t.id, dead.row, &mut self.w.bells).expect("a live row");
        if t.processes.is_empty() {
            let NewRow { row, qset } = self.w.engine.add_row(t.id, 300).expect("a free row");
            t.processes.push(Shell::new(dead.device, row, qset));
        }
    }

    // ---- what befalls the host ----

    fn limit(&mut self, at: usize) {
        let mut rate = |per_s: u64| {
            (self.random.below(2) == 0).then_some(Rate { per_s, burst: per_s / 10 + 1 })
        };
        let (nqes, connections) = (rate(20_000), rate(200));
        let weight = 1 + self.random.below(4) as u32;
        let limits = Limits { nqes, connections, weight, ..Limits::default() };
        self.w.engine.set_limits(self.tenants[at].id, limits).expect("known");
    }

    fn leave_and_enter(&mut self, at: usize) {
        let t = self.tenants.swap_remove(at);
        self.w.engine.remove_guest(t.id).expect("known");
        self.w.service.remove_guest(t.id.0);
        self.enter();
    }

    fn nsm_dies(&mut self) {
        if self.is_down {
            return;
        }
        self.is_down = true;
        self.w.engine.nsm_dead(NSM, &mut self.w.bells).expect("known");
    }

    /// The next NSM, with the listeners whose descriptors the keeper has.
    fn nsm_returns(&mut self) {
        self.is_down = false;
        let kept = self.next_service();
        let device = self.nsms.last().expect("an NSM's device").device;
        let listeners = self.w.engine.nsm_back(NSM, device).expect("known");
        self.w.service = Service::new(stack(self.life), device);
        for t in &self.tenants {
            self.w.service.add_guest(World::pool(&t.region, t.id));
        }
        for (guest, l) in listeners {
            let key = Key { guest: guest.0, socket: l.socket, generation: l.generation };
            self.give(key, &l, &kept);
        }
    }

    fn give(&mut self, key: Key, l: &AdoptedListener, kept: &HashMap<u64, (nk_device::Addr, u32)>) {
        let fd = kept.get(&key.to_word()).map(|(addr, _)| MemoryStack::kept_descriptor(addr));
        // One in four is missing.
        let given = fd
            .filter(|_| self.random.below(4) != 0)
            .map(|fd| self.w.service.adopt_listener(key, fd, l.backlog));
        if !matches!(given, Some(Ok(()))) {
            let (id, bells) = (GuestId(key.guest), &mut self.w.bells);
            let _ = self.w.engine.listener_lost(id, key.socket, key.generation, bells);
        }
    }

    /// Ends the present service; what its listeners were.
    fn next_service(&mut self) -> HashMap<u64, (nk_device::Addr, u32)> {
        self.life += 1;
        // What a process has taken from its grants, nobody leases to it any more.
        for p in self.tenants.iter().flat_map(|t| &t.processes) {
            p.spare.borrow_mut().clear();
        }
        self.nsms.push(Region::new(Layout::NSM, 0));
        std::mem::take(&mut self.w.service.stack_mut().kept)
    }

    /// Engine and service are gone, devices and kept listeners stay.
    fn daemon_dies(&mut self) {
        self.is_down = false;
        let kept = self.next_service();
        let device = self.nsms.last().expect("an NSM's device").device;
        self.w.engine = Engine::new();
        self.w.engine.add_nsm(NSM, device).expect("nsm");
        self.w.service = Service::new(stack(self.life), device);
        for at in 0..self.tenants.len() {
            let t = &self.tenants[at];
            self.w.service.add_guest(World::pool(&t.region, t.id));
            let rows = t.processes.iter();
            let of_guest = kept.iter().filter(|(word, _)| Key::from_word(**word).guest == t.id.0);
            let mut listeners: Vec<AdoptedListener> = of_guest
                .map(|(word, (local, backlog))| {
                    let key = Key::from_word(*word);
                    let (socket, generation) = (key.socket, key.generation);
                    AdoptedListener { socket, generation, local: *local, backlog: *backlog }
                })
                .collect();
            listeners.sort_by_key(|l| l.socket);
            let adoption = Adoption {
                rows: rows
                    .map(|p| AdoptedRow { row: p.row, pid: 100, qsets: vec![p.qset] })
                    .collect(),
                listeners: listeners.clone(),
                holds: Vec::new(),
            };
            let setup = World::setup(&t.region, t.id);
            self.w.engine.adopt_guest(setup, &adoption, &mut self.w.bells).expect("adopt");
            let guest = t.id.0;
            for l in listeners {
                let key = Key { guest, socket: l.socket, generation: l.generation };
                if !self.w.engine.is_listener(GuestId(guest), l.socket, l.generation) {
                    continue;
                }
                self.give(key, &l, &kept);
            }
        }
    }

    // ---- the end ----

    fn drain(&mut self) {
        for _ in 0..60 {
            self.w.now_ms += DRAIN_MS / 60;
            self.poll();
        }
    }

    fn end(&mut self) {
        if self.is_down {
            self.nsm_returns();
        }
        self.w.service.stack_mut().faults.next.clear();
        for at in 0..self.tenants.len() {
            let id = self.tenants[at].id;
            self.w.engine.set_limits(id, Limits::default()).expect("known");
            self.w.engine.rouse(id);
            self.w.assert_chunks(id, LAYOUT.chunks);
            while let Some(o) = self.tenants[at].open.pop() {
                self.tenants[at].shell(o.row).close(o.id);
                self.poll();
            }
            self.drain();
            self.w.engine.rouse(id);
            let shell = self.any_process(at);
            transfer(&mut self.w, &shell, id, 20_000);
            datagrams(&mut self.w, &shell, id);
        }
        for at in 0..self.tenants.len() {
            let t = &mut self.tenants[at];
            for p in t.processes.drain(..) {
                self.w.engine.row_dead(t.id, p.row, &mut self.w.bells).expect("a live row");
            }
        }
        self.drain();
        for t in &self.tenants {
            assert_eq!(self.w.engine.guest_sockets(t.id), 0, "sockets of guest {}", t.id.0);
            let s = self.w.service.stats(t.id.0).expect("known");
            let left = (s.sockets, s.chunks_leased, s.chunks_tx, s.chunks_rx);
            assert_eq!(left, (0, 0, 0, 0), "guest {}: {s:?}", t.id.0);
        }
        assert_eq!(self.w.service.stack_mut().open_sockets(), 0);
    }
}

/// No two connections, and no two ways of one, carry the same bytes at the same place.
fn base(o: &Open, from_client: bool) -> usize {
    (usize::from(o.port) * 2 + usize::from(from_client)) * 1_000_003 + o.life as usize * 7_919
}
