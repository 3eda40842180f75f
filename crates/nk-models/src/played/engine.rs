//! Single cases of what CoreEngine does with a guest's elements, over devices in memory.

use std::cell::RefCell;
use std::rc::Rc;

use nk_device::Layout;
use nk_device::cell::{GF_CONNECT_CALLED, SF_CONNECTING, SF_DEAD, SF_FAILED};
use nk_device::nqe::Op;
use nk_device::sync::Ordering;
use nk_engine::{Engine, GuestId, NewRow, NsmId};

use super::region::Region;
use super::shell::Shell;
use super::world::{Bells, NSM, World};

const GUEST: GuestId = GuestId(1);
const LAYOUT: Layout = Layout { rows: 4, qsets: 4, cells: 64, chunks: 64 };

/// A guest on an engine whose NSMs take nothing by themselves.
struct Case {
    engine: Engine,
    bells: Bells,
    guest: Region,
    nsms: Vec<Region>,
}

impl Case {
    fn new() -> Case {
        let mut engine = Engine::new();
        let (guest, nsms) = (Region::new(LAYOUT, GUEST.0), vec![Region::new(Layout::NSM, 0)]);
        engine.add_nsm(NSM, nsms[0].device).expect("nsm");
        engine.add_guest(World::setup(&guest, GUEST)).expect("guest");
        Case { engine, bells: Bells::new(Rc::new(RefCell::new(|| ()))), guest, nsms }
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
