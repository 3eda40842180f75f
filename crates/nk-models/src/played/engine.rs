//! Single cases of what CoreEngine does with a guest's elements, over devices in memory.

use std::cell::RefCell;
use std::rc::Rc;

use nk_device::Layout;
use nk_device::bucket::Rate;
use nk_device::cell::{GF_CONNECT_CALLED, IN_USE, SF_CONNECTING, SF_DEAD, SF_FAILED};
use nk_device::nqe::{Nqe, Op};
use nk_device::ring::Consumer;
use nk_device::sync::Ordering;
use nk_engine::{
    AdoptedRow, Adoption, Engine, GuestId, GuestSetup, KeptGuest, Limits, NewRow, NsmId,
};
use nk_servicelib::Service;

use super::region::Region;
use super::shell::Shell;
use super::stack::MemoryStack;
use super::world::{Bells, NSM, World};

mod bells;
mod listeners;
mod owed;
mod rates;

const GUEST: GuestId = GuestId(1);
const LAYOUT: Layout = Layout { rows: 4, qsets: 4, cells: 64, chunks: 64 };

/// A guest on an engine whose NSMs take nothing by themselves.
struct Case {
    engine: Engine,
    bells: Bells,
    guest: Region,
    nsms: Vec<Region>,
    /// Of each NSM its end of its job ring.
    jobs: [Consumer; 2],
}

impl Case {
    fn new() -> Case {
        let mut engine = Engine::new();
        let (guest, nsms) = (Region::new(LAYOUT, GUEST.0), vec![Region::new(Layout::NSM, 0)]);
        engine.add_nsm(NSM, nsms[0].device).expect("nsm");
        engine.add_guest(World::setup(&guest, GUEST)).expect("guest");
        let bells = Bells::new(Rc::new(RefCell::new(|| ())));
        Case { engine, bells, guest, nsms, jobs: Default::default() }
    }
    fn process(&mut self) -> Shell {
        let NewRow { row, qset } = self.engine.add_row(GUEST, 100).expect("row");
        Shell::new(self.guest.device, row, qset)
    }
    fn poll(&mut self) {
        self.engine.poll(1, 256, &mut self.bells);
    }
    /// Moves the guest to a second NSM; what it has stays on the first.
    fn split(&mut self) {
        let region = Region::new(Layout::NSM, 0);
        self.engine.add_nsm(NsmId(1), region.device).expect("nsm");
        self.nsms.push(region);
        self.engine.pause_guest(GUEST).expect("known");
        self.engine.move_guest(GUEST, NsmId(1), &[], &mut self.bells).expect("known");
        self.engine.resume_guest(GUEST).expect("known");
    }
    /// The operations that the NSM takes off its job ring now, at most `max`.
    fn take(&mut self, nsm: usize, max: usize) -> Vec<Op> {
        let device = self.nsms[nsm].device;
        let q = device.qset(0).expect("an NSM's queue set");
        let (job, ring) = (&mut self.jobs[nsm], q.job());
        let taken = (0..max).map_while(|_| job.pop(&ring)).collect::<Vec<Nqe>>();
        job.commit(&ring);
        taken.into_iter().map(|nqe| Op::from_u8(nqe.op).expect("an operation")).collect()
    }
    fn state(&self, id: u32) -> u32 {
        self.guest.device.cell(id).expect("a cell").state.load(Ordering::Relaxed)
    }
}

fn connect(g: &Shell, id: u32) {
    g.device.cell(id).expect("cell").guest_state.fetch_or(GF_CONNECT_CALLED, Ordering::AcqRel);
    g.address(Op::Connect, id, 80);
}

/// A process that forked dies with a connect on its ring: who inherited the socket learns that nothing comes of it.
fn dies_after_connect(case: &mut Case, down: NsmId) {
    let before = case.engine.guest_sockets(GUEST);
    let parent = case.process();
    let (child, id) = (case.process(), parent.open().expect("an id"));
    case.poll();
    case.engine.nsm_dead(down, &mut case.bells).expect("known");
    connect(&parent, id);
    let device = case.guest.device;
    let cell = device.cell(id).expect("a cell");
    cell.hold(child.row);
    case.poll();
    assert_eq!(case.state(id), 0, "it waits for the next NSM");
    case.engine.row_dead(GUEST, parent.row, &mut case.bells).expect("a live row");
    assert_eq!(case.state(id) & (SF_DEAD | SF_FAILED | SF_CONNECTING), SF_DEAD | SF_FAILED);
    assert_eq!(cell.take_error(), libc::ECONNRESET);
    // And the socket ends with its last holder.
    child.close(id);
    let nsm = case.nsms[usize::from(down.0)].device;
    case.engine.nsm_back(down, nsm).expect("known");
    case.poll();
    assert_eq!(case.engine.guest_sockets(GUEST), before);
}

#[test]
fn who_inherits_a_connect_that_no_nsm_gets_is_told() {
    dies_after_connect(&mut Case::new(), NSM);
}

#[test]
fn who_inherits_a_connect_that_no_nsm_gets_is_told_on_two_nsms() {
    let mut case = Case::new();
    let other = case.process();
    let stays = other.open().expect("an id");
    connect(&other, stays);
    case.poll();
    case.split();
    dies_after_connect(&mut case, NsmId(1));
    assert_eq!(case.state(stays), 0, "the other NSM's goes on");
}

/// Before an NSM at once (`nk_engine`'s costly.rs).
const AHEAD: usize = 8;

fn count(ops: &[Op], op: Op) -> usize {
    ops.iter().filter(|o| **o == op).count()
}

/// Whatever names an id that was granted makes a socket of it, and is bounded as sockets are.
fn granted_ids_are_used_by(op: Op) {
    let mut case = Case::new();
    let g = case.process();
    case.poll();
    case.take(0, 100);
    let device = case.guest.device;
    let ids: Vec<u32> =
        (0..20).map_while(|_| device.row(g.row).expect("a row").id_grants.pop()).collect();
    assert_eq!(ids.len(), 20);
    for id in &ids {
        device.cell(*id).expect("a cell").hold(g.row);
        g.job(op, *id, |_| ());
    }
    let mut made = 0;
    for _ in 0..20 {
        case.poll();
        let taken = case.take(0, 100);
        assert!(count(&taken, Op::Socket) <= AHEAD, "{taken:?}");
        made += count(&taken, Op::Socket);
    }
    assert_eq!(made, 20, "the others wait, and have their turn");
    assert_eq!(case.engine.stats(Some(GUEST)).violations, 0);
}

#[test]
fn sockets_that_jobs_make_are_bounded() {
    granted_ids_are_used_by(Op::RxRoom);
}

#[test]
fn sockets_that_sends_make_are_bounded() {
    granted_ids_are_used_by(Op::Send);
}

/// How many of 20 options of a socket the NSM has before it at a time, at most.
fn options_ahead(open: impl Fn(&Shell) -> Option<u32>) -> usize {
    let mut case = Case::new();
    let g = case.process();
    case.poll();
    let id = open(&g).expect("an id");
    for _ in 0..3 {
        case.poll();
        case.take(0, 100);
    }
    for _ in 0..20 {
        g.job(Op::SetSockOpt, id, |_| ());
    }
    let (mut most, mut all) = (0, 0);
    for _ in 0..20 {
        // As often as it likes: nobody takes anything.
        case.poll();
        case.poll();
        case.poll();
        let taken = count(&case.take(0, 100), Op::SetSockOpt);
        (most, all) = (most.max(taken), all + taken);
    }
    assert_eq!(all, 20, "the others wait, and have their turn");
    most
}

#[test]
fn options_of_datagram_sockets_are_bounded() {
    assert_eq!(options_ahead(Shell::open_datagram), AHEAD);
    // Those of others are told to nobody.
    assert_eq!(options_ahead(Shell::open), 20);
}

#[test]
fn of_a_guest_on_two_nsms_each_has_its_own_bound() {
    let mut case = Case::new();
    let (old, new) = (case.process(), case.process());
    case.poll();
    let ids: Vec<u32> = (0..20).map_while(|_| old.open()).collect();
    assert_eq!(ids.len(), 20);
    for _ in 0..10 {
        case.poll();
        case.take(0, 100);
    }
    case.split();
    ids.iter().for_each(|id| connect(&old, *id));
    for _ in 0..20 {
        new.open().expect("an id");
    }
    // As often as it likes: nobody takes anything.
    for _ in 0..10 {
        case.poll();
    }
    assert!(case.engine.prepare_sleep(), "who waits for an NSM is not looked at");
    let asks = |nsm: &Region| nsm.device.header().engine_sleeping.load(Ordering::Relaxed);
    // WANTS_ROOM: each rings when it took something.
    assert_eq!(case.nsms.iter().map(asks).collect::<Vec<u32>>(), [2, 2]);
    case.engine.finish_sleep();
    let first = case.take(0, 100);
    assert_eq!(count(&first, Op::Connect), AHEAD, "{first:?}");
    assert!(!case.engine.prepare_sleep(), "one has room, whatever the other has");
    case.engine.finish_sleep();
    let mut connects = AHEAD;
    for _ in 0..10 {
        case.poll();
        connects += count(&case.take(0, 100), Op::Connect);
    }
    assert_eq!(connects, ids.len());
    let mut sockets = count(&case.take(1, 100), Op::Socket);
    assert_eq!(sockets, AHEAD);
    for _ in 0..10 {
        case.poll();
        sockets += count(&case.take(1, 100), Op::Socket);
    }
    assert_eq!(sockets, 20);
}

#[test]
fn who_waits_for_an_nsm_that_ends_goes_on_at_the_next() {
    let mut case = Case::new();
    let g = case.process();
    let ids: Vec<u32> = (0..20).map_while(|_| g.open()).collect();
    for _ in 0..10 {
        case.poll();
        case.take(0, 100);
    }
    case.split();
    ids.iter().for_each(|id| connect(&g, *id));
    case.poll();
    // The first NSM has its fill and dies: its sockets are the second's, and so are the connects that wait.
    case.engine.nsm_dead(NSM, &mut case.bells).expect("known");
    let mut connects = 0;
    for _ in 0..20 {
        case.poll();
        connects += count(&case.take(1, 100), Op::Connect);
    }
    assert_eq!(connects, ids.len() - AHEAD);
}

/// A world whose engine dies alone; the limits of the guest at the next one.
fn engine_dies(w: &mut World, guest: &Region, g: &Shell, limits: Limits) -> Region {
    w.engine = Engine::new();
    let nsm = Region::new(Layout::NSM, 0);
    let told = KeptGuest::parse(&w.services[0].keep(nsm.device, 1)).expect("complete");
    w.engine.adopt_nsm(NSM, nsm.device).expect("nsm");
    let kept = told.into_iter().find(|(id, _)| *id == GUEST).map(|(_, kept)| kept);
    let rows = vec![AdoptedRow { row: g.row, pid: 100, qsets: vec![g.qset] }];
    let adoption = Adoption { rows, listeners: Vec::new(), holds: Vec::new(), kept };
    let setup = GuestSetup { limits, ..World::setup(guest, GUEST) };
    w.engine.adopt_guest(setup, &adoption, &mut w.bells).expect("adopt");
    w.engine.hear_nsm(NSM).expect("nsm");
    nsm
}

/// A world with a service on this NSM.
fn world(nsm: &Region) -> World {
    let stack = MemoryStack::on(Rc::default(), 0, None);
    let mut w = World {
        engine: Engine::new(),
        services: vec![Service::new(stack, nsm.device)],
        bells: Bells::new(Rc::new(RefCell::new(|| ()))),
        now_ms: 1,
    };
    w.engine.add_nsm(NSM, nsm.device).expect("nsm");
    w
}

#[test]
fn a_connect_of_a_process_that_died_with_the_engine_ends() {
    let (guest, first) = (Region::new(LAYOUT, GUEST.0), Region::new(Layout::NSM, 0));
    let mut w = world(&first);
    let parent = w.add_guest(&guest, GUEST);
    let NewRow { row, qset } = w.engine.add_row(GUEST, 101).expect("row");
    let child = Shell::new(guest.device, row, qset);
    let known = parent.open().expect("an id");
    w.settle();
    // Of this one the NSM has not even heard.
    let unknown = parent.open().expect("an id");
    for id in [known, unknown] {
        connect(&parent, id);
        guest.device.cell(id).expect("a cell").hold(child.row);
    }
    // The parent is not among those that the next engine adopts.
    let _second = engine_dies(&mut w, &guest, &child, Limits::default());
    for id in [known, unknown] {
        let cell = guest.device.cell(id).expect("a cell");
        let state = cell.state.load(Ordering::Relaxed);
        assert_eq!(state & (SF_DEAD | SF_FAILED), SF_DEAD | SF_FAILED);
        assert_eq!(cell.take_error(), libc::ECONNRESET);
        child.close(id);
    }
    w.settle();
    assert_eq!(w.engine.guest_sockets(GUEST), 0);
}

#[test]
fn a_connect_that_only_the_last_engine_had_is_ended_by_the_next() {
    let (guest, first) = (Region::new(LAYOUT, GUEST.0), Region::new(Layout::NSM, 0));
    let mut w = world(&first);
    let g = w.add_guest(&guest, GUEST);
    let rate = Some(Rate { per_s: 1, burst: 1 });
    w.engine.set_limits(GUEST, Limits { connections: rate, ..Limits::default() }).expect("known");
    let ids: [u32; 4] = std::array::from_fn(|_| g.open().expect("an id"));
    let [goes, held, ringed, called] = ids;
    let state = |id: u32| guest.device.cell(id).expect("a cell").state.load(Ordering::Relaxed);
    connect(&g, goes);
    w.settle();
    connect(&g, held);
    w.settle();
    assert_ne!(state(goes), 0, "the stack says what becomes of it");
    assert_eq!(state(held), 0, "it waits for the guest's rate");
    // Lifted, and nobody has polled since: another connect stands on the ring, and a process is about to push one.
    w.engine.set_limits(GUEST, Limits::default()).expect("known");
    connect(&g, ringed);
    let cell = guest.device.cell(called).expect("a cell");
    cell.guest_state.fetch_or(GF_CONNECT_CALLED, Ordering::AcqRel);
    let _second = engine_dies(&mut w, &guest, &g, Limits::default());
    assert_eq!(state(held) & (SF_DEAD | SF_FAILED), SF_DEAD | SF_FAILED);
    assert_eq!([state(ringed), state(called)], [0, 0], "these go on");
    g.address(Op::Connect, called, 80);
    w.settle();
    for id in [ringed, called] {
        assert_ne!(state(id), 0, "they were asked of the stack");
    }
    let cell = guest.device.cell(held).expect("a cell");
    assert_eq!(cell.in_use.load(Ordering::Relaxed), IN_USE);
}

/// A process with many sockets dies: its NSM is given their closes some at a time, and others are served in between.
#[test]
fn closes_of_the_dead_do_not_hold_up_the_living() {
    let mut case = Case::new();
    let (dies, lives) = (case.process(), case.process());
    let mut ids = Vec::new();
    for _ in 0..40 {
        case.poll();
        case.take(0, usize::MAX);
        ids.extend(dies.open());
        dies.device.row(dies.row).expect("row").want.store(1, Ordering::SeqCst);
    }
    let count = ids.len();
    assert!(count >= 24, "{count} sockets");
    for _ in 0..count {
        case.poll();
        case.take(0, usize::MAX);
    }
    case.engine.row_dead(GUEST, dies.row, &mut case.bells).expect("a live row");
    let (mut closed, mut polls, mut served_after) = (0, 0, None);
    connect(&lives, lives.open().expect("an id"));
    while closed < count {
        case.poll();
        let taken = case.take(0, usize::MAX);
        let closes = taken.iter().filter(|op| **op == Op::Close).count();
        assert!(closes <= 8, "{closes} at once");
        if taken.contains(&Op::Connect) {
            served_after.get_or_insert(closed);
        }
        (closed, polls) = (closed + closes, polls + 1);
        assert!(polls < 100, "{closed} of {count} were closed");
    }
    assert!(served_after.is_some_and(|closed| closed <= 16), "{served_after:?} of {count} first");
}

/// What makes a socket stands on its process's ring, and nobody holds it any more: its last holder was another process, which died, or the
/// host, while it travelled. Neither pushes a close.
#[test]
fn what_nobody_holds_any_more_becomes_no_socket() {
    let mut case = Case::new();
    let (maker, heir) = (case.process(), case.process());
    let [inherited, travelled] = std::array::from_fn(|_| maker.open().expect("an id"));
    let generation =
        case.guest.device.cell(travelled).expect("a cell").generation.load(Ordering::Relaxed)
            as u16;
    case.guest.device.cell(inherited).expect("a cell").hold(heir.row);
    case.engine.hold(GUEST, travelled, generation, &mut case.bells).expect("granted");
    for id in [inherited, travelled] {
        maker.address(Op::Bind, id, 80);
        maker.job(Op::Listen, id, |n| n.op_data = 8);
        maker.close(id);
    }
    case.engine.row_dead(GUEST, heir.row, &mut case.bells).expect("a live row");
    case.engine.unhold(GUEST, travelled, generation, &mut case.bells).expect("held");
    case.poll();
    case.poll();
    assert_eq!(case.engine.guest_sockets(GUEST), 0, "{:?}", case.take(0, 100));
    let stats = case.engine.stats(Some(GUEST));
    // As many as a row is to have.
    assert_eq!((stats.violations, stats.ids_granted), (0, 32), "others were granted instead");
}
