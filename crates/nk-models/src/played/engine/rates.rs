//! Connects that a guest's rate holds back, and how they go on.

use nk_engine::PollResult;

use super::*;

const SECOND_NS: u64 = 1_000_000_000;
const HELD: usize = 20;

/// A guest most of whose connects are over its rate, which brings 1000 in the next second.
fn held() -> (Case, Shell) {
    let mut case = Case::new();
    let g = case.process();
    let rate = |burst| Some(Rate { per_s: 1000, burst });
    let limits = |burst| Limits { connections: rate(burst), ..Limits::default() };
    case.engine.set_limits(GUEST, limits(4)).expect("known");
    let ids: Vec<u32> = (0..HELD + 4).map_while(|_| g.open()).collect();
    assert_eq!(ids.len(), HELD + 4);
    for _ in 0..10 {
        case.poll();
        case.take(0, 100);
    }
    ids.iter().for_each(|id| connect(&g, *id));
    let mut went = 0;
    for _ in 0..10 {
        case.poll();
        went += count(&case.take(0, 100), Op::Connect);
    }
    assert_eq!(went, 4);
    case.engine.set_limits(GUEST, limits(1000)).expect("known");
    (case, g)
}

impl Case {
    fn poll_at(&mut self, now_ns: u64) -> PollResult {
        self.engine.poll(now_ns, 256, &mut self.bells)
    }

    /// All that are held may go.
    fn they_go_by_what_the_nsm_takes(&mut self, now_ns: u64) {
        // As often as it likes: nobody takes anything.
        let last = (0..10).map(|_| self.poll_at(now_ns)).last().expect("some");
        assert_eq!(
            (last.pending, last.due_ns),
            (false, None),
            "it waits for the NSM, not for time"
        );
        assert!(self.engine.prepare_sleep());
        let asks = self.nsms[0].device.header().engine_sleeping.load(Ordering::Relaxed);
        assert_eq!(asks, 2, "WANTS_ROOM: the NSM rings when it took something");
        self.engine.finish_sleep();
        let mut went = count(&self.take(0, 1), Op::Connect);
        assert!(!self.engine.prepare_sleep(), "there is room for one");
        self.engine.finish_sleep();
        for _ in 0..20 {
            self.poll_at(now_ns);
            let taken = count(&self.take(0, 100), Op::Connect);
            assert!(taken <= AHEAD, "{taken} at once");
            went += taken;
        }
        assert_eq!(went, HELD);
    }
}

#[test]
fn connects_whose_time_has_come_are_bounded() {
    let (mut case, _g) = held();
    case.they_go_by_what_the_nsm_takes(SECOND_NS);
}

#[test]
fn connects_whose_rate_is_lifted_are_bounded() {
    let (mut case, _g) = held();
    case.engine.set_limits(GUEST, Limits::default()).expect("known");
    case.they_go_by_what_the_nsm_takes(1);
}

/// What one guest is owed leaves another its turn.
#[test]
fn connects_that_were_held_do_not_hold_up_another_guest() {
    let (mut case, _g) = held();
    let other = GuestId(2);
    let region = Region::new(LAYOUT, other.0);
    case.engine.add_guest(World::setup(&region, other)).expect("guest");
    let NewRow { row, qset } = case.engine.add_row(other, 101).expect("row");
    let shell = Shell::new(region.device, row, qset);
    let id = shell.open().expect("an id");
    case.engine.set_limits(GUEST, Limits::default()).expect("known");
    for _ in 0..4 {
        case.poll();
    }
    let mut before = count(&case.take(0, 100), Op::Connect);
    connect(&shell, id);
    // Its connect is the last of them that the NSM is told, if it is not served in turn.
    let its = |nqe: &Nqe| nqe.guest == other.0 && nqe.op == Op::Connect as u8;
    for _ in 0..20 {
        case.poll();
        let device = case.nsms[0].device;
        let q = device.qset(0).expect("an NSM's queue set");
        while let Some(nqe) = case.jobs[0].pop(&q.job()) {
            if its(&nqe) {
                assert!(before < HELD, "after all {before}");
                return;
            }
            before += usize::from(nqe.op == Op::Connect as u8);
        }
        case.jobs[0].commit(&q.job());
    }
    panic!("it had no turn");
}
