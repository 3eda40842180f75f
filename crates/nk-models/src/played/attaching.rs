//! Single cases of processes that come, fork and exec while something of the host ends.

use nk_device::row::ROW_EXECING;
use nk_device::sync::Ordering;
use nk_engine::GuestId;
use nk_host::control::attach;
use nk_host::control::members::Who;
use nk_host::keeper::{CLASS_HOLD, CLASS_LISTENER};

use super::deaths::Victim;
use super::kernel::{Fd, Said};
use super::shell::Shell;
use super::simulation::{Simulation, State};

fn quiet() -> (Simulation, GuestId, Shell) {
    let mut sim = Simulation::new(1);
    sim.is_over = true;
    let (id, p) = (sim.tenants[0].id, sim.tenants[0].processes[0].clone());
    (sim, id, p)
}

/// A child of a process, by the daemon's answer: its row, and its connection.
fn embryo(sim: &mut Simulation, id: GuestId, parent: &Shell) -> (u16, u32) {
    let far = sim.kernel.connect(parent.pid);
    let given = attach::fork(sim, id, parent.row, Some(Fd::Still), Some(Fd::Control(far)));
    (given.expect("a daemon").expect("a row").row, far)
}

/// What each daemon watches it numbers anew: the keeper's numbers are its own.
#[test]
fn what_travels_is_kept_from_daemon_to_daemon() {
    let (mut sim, ..) = quiet();
    let at = sim.tenants.len() - 1;
    let (id, p) = (sim.tenants[at].id, sim.tenants[at].processes[0].clone());
    let socket = sim.w.listen(&p, 80);
    let cell = p.device.cell(socket).expect("a cell");
    let generation = cell.generation.load(Ordering::SeqCst);
    for _ in 0..3 {
        let far = Some(Fd::FarEnd(sim.kernel.pair()));
        let held = attach::hold(&mut sim, id, (socket.into(), generation.into()), far);
        held.expect("a daemon").expect("a hold");
    }
    // It is watched before them from the next daemon on.
    sim.spawn(at);
    for _ in 0..3 {
        sim.next_daemon();
        let kept = sim.keeper.has(|entries| entries.of(CLASS_HOLD).count());
        assert_eq!((kept, sim.tenants[at].members.holds.len()), (3, 3));
    }
}

/// The daemon reads a child's hello, and ends at each moment of that; the child execs.
#[test]
fn a_child_whose_hello_was_read_by_a_daemon_that_ended_keeps_its_row_over_an_exec() {
    for moment in 0..8 {
        let (mut sim, id, parent) = quiet();
        let (row, far) = embryo(&mut sim, id, &parent);
        let pid = sim.kernel.start();
        sim.kernel.hand_down(far, pid);
        sim.kernel.say(far, Said::Hello(pid));
        sim.ends_in = Some((moment, Victim::Daemon));
        sim.hear_all();
        sim.hear_all();
        let phase = &parent.device.row(row).expect("a row").phase;
        phase.store(ROW_EXECING, Ordering::SeqCst);
        sim.kernel.close(far);
        let (token, uid) = (sim.tenants[0].members.token, sim.tenants[0].members.uid);
        let answer = sim.ask_to_attach(token, Who { pid, uid }, true);
        let a = answer.expect("it lives").0.expect("it is no stranger");
        assert_eq!((a.row, a.is_kept), (row, true), "at moment {moment}");
    }
}

/// The daemon ends at each moment at which it gives a process its row back.
#[test]
fn a_process_in_its_exec_keeps_its_row_whenever_the_daemon_ends() {
    for moment in 0..16 {
        let (mut sim, _, p) = quiet();
        let (token, uid) = (sim.tenants[0].members.token, sim.tenants[0].members.uid);
        let phase = &p.device.row(p.row).expect("a row").phase;
        phase.store(ROW_EXECING, Ordering::SeqCst);
        sim.kernel.close(p.control);
        sim.ends_in = Some((moment, Victim::Daemon));
        let answer = sim.ask_to_attach(token, Who { pid: p.pid, uid }, true);
        let (answer, control) = answer.expect("it lives");
        let a = answer.unwrap_or_else(|why| panic!("at moment {moment}: {why:?}"));
        assert_eq!((a.row, a.is_kept), (p.row, true), "at moment {moment}");
        sim.hear_all();
        let known = &sim.tenants[0].members.processes;
        assert_eq!(known.len(), 1, "at moment {moment}: {known:?}");
        let process = &known[&p.row];
        assert_eq!((process.pid, &process.qsets), (p.pid, &vec![a.qset]), "at moment {moment}");
        assert_eq!(process.control, sim.daemon.token_of(Fd::Control(control)));
    }
}

/// An embryo's row is free once its connection is closed, and another process forks before its parent's word of the failure is read.
#[test]
fn a_fork_that_failed_ends_no_other_parents_child() {
    let (mut sim, id, first) = quiet();
    sim.spawn(0);
    let second = sim.tenants[0].processes[1].clone();
    let (row, far) = embryo(&mut sim, id, &first);
    sim.kernel.close(far);
    sim.hear_all();
    sim.kernel.say(first.control, Said::ForkFailed(row));
    let (its, _) = embryo(&mut sim, id, &second);
    assert_eq!(its, row, "the free one");
    sim.hear_all();
    assert!(sim.tenants[0].members.processes.contains_key(&row), "its child has no row");
}

/// What an NSM that died said of a listener is heard when the guest has ended.
#[test]
fn a_listener_of_a_guest_that_has_ended_is_not_kept() {
    let (mut sim, id, p) = quiet();
    sim.w.listen(&p, 80);
    sim.nsm_ends(0);
    assert_eq!(sim.last_words[0].len(), 1, "nobody has heard of it");
    sim.dies(p.pid);
    sim.hear_all();
    sim.remove_guest(id).expect("known");
    sim.nsm_died(0);
    let kept = sim.keeper.has(|entries| entries.of(CLASS_LISTENER).count());
    assert_eq!(kept, 0);
}

/// Its NSM is not in the configuration that the next daemon reads, and that one dies: the keeper says of the guest what is so on the NSM that it
/// has now.
#[test]
fn a_guest_whose_nsm_is_no_more_is_known_to_be_on_another() {
    let (mut sim, id, _) = quiet();
    sim.file.nsms[0] = false;
    sim.next_daemon();
    assert_eq!(sim.states[0], State::Absent);
    let nsm = sim.tenants[0].place.nsm();
    assert_eq!(sim.noted(id), Some(nsm));
}
