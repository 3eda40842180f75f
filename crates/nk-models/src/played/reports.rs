//! Single cases of calls that wait to be told what became of a datagram, which their guest's rate holds back, or others that go first.

use nk_device::Addr;
use nk_device::bucket::Rate;
use nk_device::datagram::{DF_PEER, DF_REPORT, Header};
use nk_device::nqe::{FLAG_ERROR, Nqe, Op};
use nk_device::ring::Consumer;
use nk_device::sync::Ordering;
use nk_servicelib::GuestLimits;

use super::shell::Shell;
use super::simulation::Simulation;

const TICKET: u8 = 9;

/// A process that waits for the report of the second of two datagrams.
struct Case {
    sim: Simulation,
    g: Shell,
    socket: u32,
    answers: Consumer,
}

impl Case {
    fn new() -> Case {
        let mut sim = Simulation::new(1);
        sim.is_over = true;
        let (id, g) = (sim.tenants[0].id, sim.tenants[0].processes[0].clone());
        let [socket, far] = [g.open_datagram(), g.open_datagram()].map(|id| id.expect("an id"));
        g.address(Op::Bind, far, 90);
        let rate = Some(Rate { per_s: 1, burst: 1000 });
        sim.w.services[0].set_limits(id.0, &GuestLimits { out: rate, ..GuestLimits::default() });
        sim.w.settle();
        let to = Header {
            flags: DF_PEER | DF_REPORT,
            peer: Addr::v4([127, 0, 0, 1], 90),
            ..Header::default()
        };
        let [_, held] =
            [0, 1].map(|n| g.send_datagram(socket, n, 1000, to).expect("room for a datagram"));
        g.job(Op::Report, socket, |n| (n.ticket, n.op_data) = (TICKET, held.into()));
        let mut case = Case { sim, g, socket, answers: Consumer::default() };
        case.sim.w.settle();
        assert_eq!(case.answer(), None, "it is held back");
        case
    }

    fn answer(&mut self) -> Option<i64> {
        let q = self.g.device.qset(self.g.qset).expect("a queue set");
        let is_its = |nqe: &Nqe| nqe.op == Op::Reply as u8 && nqe.ticket == TICKET;
        let nqe = std::iter::from_fn(|| self.answers.pop(&q.completion())).find(is_its)?;
        assert_eq!(nqe.flags & FLAG_ERROR != 0, (nqe.op_data as i64) < 0);
        Some(nqe.op_data as i64)
    }
}

#[test]
fn who_waits_for_a_report_is_told_when_its_datagram_goes() {
    let mut case = Case::new();
    let id = case.sim.tenants[0].id;
    case.sim.w.services[0].set_limits(id.0, &GuestLimits::default());
    case.sim.w.settle();
    assert_eq!(case.answer(), Some(0));
}

/// More stands before it than goes in one turn.
#[test]
fn who_waits_for_a_report_is_told_what_the_stack_said_behind_many() {
    let mut sim = Simulation::new(1);
    sim.is_over = true;
    let g = sim.tenants[0].processes[0].clone();
    let [socket, far] = [g.open_datagram(), g.open_datagram()].map(|id| id.expect("an id"));
    g.address(Op::Bind, far, 90);
    sim.w.settle();
    let to = |port, flags| Header {
        flags: DF_PEER | flags,
        peer: Addr::v4([127, 0, 0, 1], port),
        ..Header::default()
    };
    for n in 0..1000 {
        g.send_datagram(socket, n, 8, to(90, 0)).expect("room for a datagram");
    }
    let last = g.send_datagram(socket, 0, 8, to(97, DF_REPORT)).expect("room for it");
    g.job(Op::Report, socket, |n| (n.ticket, n.op_data) = (TICKET, last.into()));
    let mut case = Case { sim, g, socket, answers: Consumer::default() };
    (0..10).for_each(|_| case.sim.w.settle());
    assert_eq!(case.answer(), Some((-libc::ECONNREFUSED).into()));
}

/// Another thread closed the socket, and the stack took nothing in all the time that was left.
#[test]
fn who_waits_for_a_report_is_told_of_the_sockets_end() {
    let mut case = Case::new();
    case.g.close(case.socket);
    case.sim.w.settle();
    assert_eq!(case.answer(), None, "what was written before goes first");
    let net = case.sim.w.services[0].stack_mut().net.clone();
    net.borrow_mut().faults.next.extend([libc::EAGAIN; 1000]);
    let id = case.sim.tenants[0].id;
    case.sim.w.services[0].set_limits(id.0, &GuestLimits::default());
    for _ in 0..10 {
        case.sim.w.now_ms += 1000;
        case.sim.w.settle();
    }
    assert_eq!(case.answer(), Some((-libc::ECONNRESET).into()));
}

/// Another thread broke the protocol.
#[test]
fn who_waits_for_a_report_is_told_of_a_broken_ring() {
    let mut case = Case::new();
    let cell = case.g.device.cell(case.socket).expect("a cell");
    cell.tx_tail.fetch_add(1000, Ordering::SeqCst);
    case.g.job(Op::Send, case.socket, |_| ());
    case.sim.w.settle();
    assert_eq!(case.answer(), Some((-libc::ECONNRESET).into()));
}
