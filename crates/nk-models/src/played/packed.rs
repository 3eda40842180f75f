//! Single cases of descriptors that have several datagrams.

use nk_device::bucket::Rate;
use nk_device::datagram::{DF_PEER, Header};
use nk_device::nqe::Op;
use nk_device::stream::{Open, Span, read_slot};
use nk_device::sync::Ordering;
use nk_device::{Addr, Cell};
use nk_engine::{GuestId, NsmId};
use nk_host::control::moves;
use nk_servicelib::GuestLimits;

use super::shell::Shell;
use super::simulation::{LAYOUT, Simulation};

const PORT: u16 = 90;

/// A process with a socket to send from, and one to receive.
struct Case {
    sim: Simulation,
    id: GuestId,
    g: Shell,
    socket: u32,
    far: u32,
}

impl Case {
    fn new() -> Case {
        let mut sim = Simulation::new(1);
        sim.is_over = true;
        let (id, g) = (sim.tenants[0].id, sim.tenants[0].processes[0].clone());
        let [socket, far] = [g.open_datagram(), g.open_datagram()].map(|id| id.expect("an id"));
        g.address(Op::Bind, socket, PORT + 1);
        g.address(Op::Bind, far, PORT);
        sim.w.settle();
        Case { sim, id, g, socket, far }
    }

    fn cell(&self) -> &Cell {
        self.g.device.cell(self.socket).expect("a cell")
    }

    /// Sends these, to a port or to the peer, before the service looks.
    fn post(&self, numbers: impl IntoIterator<Item = usize>, to: Option<u16>) {
        let peer = |port| Addr::v4([127, 0, 0, 1], port);
        let header = to.map_or_else(Header::default, |port| Header {
            flags: DF_PEER,
            peer: peer(port),
            ..Header::default()
        });
        for n in numbers {
            self.g.post(self.socket, n, len(n), header).expect("room for a datagram");
        }
    }

    /// The stack takes so many, and then none for a while.
    fn take(&mut self, count: usize) {
        let net = self.sim.w.services[0].stack_mut().net.clone();
        net.borrow_mut().faults.next.extend([0].repeat(count));
        net.borrow_mut().faults.next.extend([libc::EAGAIN; 1000]);
        self.sim.w.settle();
        assert!(self.came().is_empty(), "nothing is received meanwhile");
    }

    /// It takes all again.
    fn go_on(&mut self) {
        let net = self.sim.w.services[0].stack_mut().net.clone();
        net.borrow_mut().faults.next.clear();
        self.sim.w.settle();
    }

    /// What came, each as it was sent, in its order.
    fn came(&self) -> Vec<usize> {
        let each = || {
            let (_, n, count) = self.g.fetch(self.far)?;
            assert_eq!(count, len(n));
            Some(n)
        };
        std::iter::from_fn(each).collect()
    }

    fn spans(&self) -> Vec<Span> {
        let cell = self.cell();
        let (head, tail) =
            (cell.tx_head.load(Ordering::Relaxed), cell.tx_tail.load(Ordering::Relaxed));
        let span = |n| Span::from_payload(read_slot(&cell.tx_slots, n)?);
        (head..tail).map(|n| span(n).expect("a span")).collect()
    }

    fn assert_nothing_is_out(&mut self) {
        self.sim.w.now_ms += 50;
        self.sim.w.settle();
        self.sim.w.assert_chunks(self.id, LAYOUT.chunks);
        let s = self.sim.w.stats(self.id);
        assert_eq!((s.chunks_tx, s.violations), (0, 0), "{s:?}");
    }
}

/// How long which is.
fn len(number: usize) -> usize {
    8 + number * 37 % 300
}

#[test]
fn what_is_left_of_a_descriptor_goes_along() {
    let mut case = Case::new();
    case.post(0..6, Some(PORT));
    assert_eq!(case.spans().len(), 1, "they share one");
    case.take(2);
    let whole = case.spans()[0];
    assert_eq!(whole.offset, 0);
    moves::move_guest(&mut case.sim, case.id, NsmId(1)).expect("moved");
    let left = case.spans()[0];
    assert!(left.offset > 0 && left.offset + left.len == whole.len, "{left:?} of {whole:?}");
    // Behind that there is room as before.
    case.post(6..8, Some(PORT));
    assert_eq!(case.spans().len(), 1);
    case.go_on();
    assert_eq!(case.came(), [0, 1, 2, 3, 4, 5, 6, 7]);
    case.assert_nothing_is_out();
}

/// Somebody is in the middle of appending when the service takes the descriptor, and the guest is moved before he goes on: which he does where
/// nothing of it was sent. Otherwise what he appends is not of the descriptor; and nobody else writes there meanwhile.
#[test]
fn who_appends_while_his_guest_is_moved_is_heard_or_told() {
    for taken in [0, 1] {
        let mut case = Case::new();
        case.post(0..2, Some(PORT));
        let g = case.g.clone();
        let row = g.device.row(g.row).expect("a row");
        let open: Open = case.cell().tx().open(64, 128).expect("room behind them");
        assert!(row.begin_append(open.span.chunk) && case.cell().tx().begin(&open));
        case.take(taken);
        moves::move_guest(&mut case.sim, case.id, NsmId(1)).expect("moved");
        let empty = Header {
            flags: DF_PEER,
            peer: Addr::v4([127, 0, 0, 1], PORT + 2),
            ..Header::default()
        };
        case.g.device.put_header(open.place, &empty);
        assert_eq!(case.cell().tx().commit(&open), taken == 0, "{taken} were sent");
        assert_eq!(case.cell().tx().open(64, 128).is_some(), taken == 0);
        case.go_on();
        let out = case.sim.w.stats(case.id).chunks_tx;
        assert_eq!(out, u64::from(taken > 0), "a chunk into which somebody writes is kept");
        row.end_append();
        assert_eq!(case.came(), [0, 1]);
        case.post(2..3, Some(PORT));
        case.sim.w.settle();
        assert_eq!(case.came(), [2]);
        case.assert_nothing_is_out();
    }
}

/// The guest writes into headers that the service has read, and into those that it has not.
#[test]
fn a_header_holds_once_it_is_read() {
    let mut case = Case::new();
    case.post(0..4, Some(PORT));
    let whole = case.spans()[0];
    case.take(1);
    let headers: Vec<Header> = case.g.device.headers_of(whole).collect();
    let mut at = whole;
    for (n, header) in headers.iter().enumerate() {
        let (_, left) = header.split(at).expect("right");
        let lie = |len| Header { len, ..*header };
        match n {
            // It is about to be sent; the next is not yet looked at.
            1 => case.g.device.put_header(at, &lie(5)),
            2 => case.g.device.put_header(at, &lie(20_000)),
            _ => {}
        }
        at = left.unwrap_or(at);
    }
    case.go_on();
    assert_eq!(case.came(), [0, 1], "with the third all that is behind it is gone");
    assert_eq!(case.sim.w.stats(case.id).violations, 1);
    case.post(4..6, Some(PORT));
    case.sim.w.settle();
    assert_eq!(case.came(), [4, 5]);
    case.sim.w.assert_chunks(case.id, LAYOUT.chunks);
    assert_eq!(case.sim.w.stats(case.id).chunks_tx, 0);
}

/// What a rate holds back goes to whom the socket was connected when it was sent, each of a descriptor.
#[test]
fn what_is_held_back_goes_where_it_was_sent() {
    let mut case = Case::new();
    case.g.address(Op::Connect, case.socket, PORT);
    case.sim.w.settle();
    let rate = Some(Rate { per_s: 1, burst: len(0) as u64 });
    let limits = GuestLimits { out: rate, ..GuestLimits::default() };
    case.sim.w.services[0].set_limits(case.id.0, &limits);
    case.post(0..4, None);
    case.sim.w.settle();
    assert_eq!(case.came(), [0]);
    case.g.address(Op::Connect, case.socket, PORT + 5);
    case.sim.w.settle();
    case.sim.w.services[0].set_limits(case.id.0, &GuestLimits::default());
    case.sim.w.settle();
    assert_eq!(case.came(), [1, 2, 3]);
    case.assert_nothing_is_out();
}

/// A turn has an end, however little its datagrams carry, and whatever the stack says to them.
#[test]
fn a_turn_ends() {
    for to in [PORT, PORT + 7] {
        let case = Case::new();
        let mut sim = case.sim;
        let header =
            Header { flags: DF_PEER, peer: Addr::v4([127, 0, 0, 1], to), ..Header::default() };
        let mut sent = 0;
        while case.g.post(case.socket, sent, 8, header).is_some() {
            sent += 1;
        }
        assert!(sent > 1100, "{sent} wait");
        sim.w.poll_engine();
        sim.w.poll_service();
        let seen = |sim: &Simulation| {
            let s = sim.w.stats(case.id);
            s.bytes_sent as usize / 8 + s.datagrams_refused as usize
        };
        assert_eq!(seen(&sim), 32, "two sockets had turns");
        (0..10).for_each(|_| sim.w.settle());
        assert_eq!(seen(&sim), sent);
    }
}
