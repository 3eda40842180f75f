//! A daemon with an NSM process that is played.

use super::*;
use crate::nsm::command;
use crate::server::tests::{create, pid, played};
use nk_attach::{Credentials, Kind};
use nk_device::Layout;
use std::collections::BTreeSet;
use std::process::{Child, Command};

const PLAYED: NsmId = NsmId(7);

struct Case {
    server: Server,
    /// The keeper's end.
    keeper: OwnedFd,
    /// Whose pid the NSM has.
    process: Child,
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Case {
    /// The daemon has an inline NSM, and from [`Case::begin`] on the played one, which has all new guests.
    fn new() -> Case {
        let (server, keeper) = played();
        let process = Command::new("sleep").arg("1000").spawn().expect("sleep");
        Case { server, keeper, process }
    }

    /// The NSM does this with each command, and answers with the errno.
    fn begin(&mut self, mut does: impl FnMut(&Message, &OwnedFd) -> i32 + Send + 'static) {
        let region = Region::new("nsm", Layout::NSM, 0).expect("region");
        let device = region.device;
        let added = self.server.ask(move |s| s.engine.add_nsm(PLAYED, device));
        added.expect("it runs").expect("an NSM");
        let config =
            NsmConfig { placement: Placement::Process, default: true, ..NsmConfig::default() };
        let totals = NsmTotals::new().expect("totals");
        self.server.nsms.push(Nsm::new(PLAYED, "played".to_owned(), config, region, totals));
        let (control, its) = sys::seqpacket_pair().expect("pair");
        sys::set_receive_timeout(&control, 10).expect("a time-out");
        let pid = self.process.id() as i32;
        let (pidfd, bell) = (sys::pidfd(pid).expect("pidfd"), sys::eventfd().expect("eventfd"));
        self.server.nsm_serves(PLAYED, pid, false, control, pidfd, bell).expect("it serves");
        std::thread::spawn(move || {
            while let Ok((m, ..)) = nk_attach::recv(its.as_raw_fd(), false) {
                let mut answer = Message::new(Kind::Nsm);
                (answer.a, answer.status) = (m.a, does(&m, &its));
                let _ = nk_attach::send(its.as_raw_fd(), &answer, &[]);
            }
        });
    }

    fn create(&mut self, name: &str) -> Result<GuestId, i32> {
        create(&mut self.server, name, Credentials { pid: pid(), uid: 0, gid: 0 })
    }

    /// Listeners that the keeper has.
    fn kept(&self) -> BTreeSet<u64> {
        let next = || nk_attach::recv(self.keeper.as_raw_fd(), true).ok();
        let mut kept = BTreeSet::new();
        for (m, ..) in std::iter::from_fn(next).filter(|(m, ..)| m.a == CLASS_LISTENER) {
            match m.kind == Kind::Keep as u32 {
                true => kept.insert(m.b),
                false => kept.remove(&m.b),
            };
        }
        kept
    }

    /// Listeners of which the keeper was told that they are no more.
    fn dropped(&self) -> BTreeSet<u64> {
        let next = || nk_attach::recv(self.keeper.as_raw_fd(), true).ok();
        let told = std::iter::from_fn(next).map(|(m, ..)| m);
        let drops = told.filter(|m| m.kind == Kind::Drop as u32 && m.a == CLASS_LISTENER);
        drops.map(|m| m.b).collect()
    }
}

#[test]
fn no_nsm_reports_more_listeners_than_its_guest_has_sockets() {
    let mut case = Case::new();
    case.begin(|_, _| 0);
    let its = case.create("its").expect("made");
    let mut last = 0;
    for generation in 1..=9 {
        for socket in [3, Layout::GUEST.cells, u32::MAX] {
            let mut m = Message::new(Kind::Nsm);
            last = Key { guest: its.0, socket: 3, generation }.to_word();
            (m.a, m.b) = (note::LISTENER, Key { guest: its.0, socket, generation }.to_word());
            case.server.nsm_note(PLAYED, &m, Some(sys::eventfd().expect("eventfd")));
        }
    }
    assert_eq!(case.kept(), [last].into());
}

fn key(guest: GuestId) -> u64 {
    Key { guest: guest.0, socket: 3, generation: 1 }.to_word()
}

#[test]
fn no_nsm_ends_the_listener_of_a_guest_that_is_not_on_it() {
    let mut case = Case::new();
    let others = case.create("others").expect("made");
    case.begin(|_, _| 0);
    let its = case.create("its").expect("made");
    for guest in [others, its] {
        let mut m = Message::new(Kind::Nsm);
        (m.a, m.b) = (note::LISTENER_GONE, key(guest));
        case.server.nsm_note(PLAYED, &m, None);
    }
    assert_eq!(case.dropped(), [key(its)].into());
}

#[test]
fn no_nsm_gives_away_a_socket_of_a_guest_that_is_not_on_it() {
    let mut case = Case::new();
    let others = case.create("others").expect("made");
    case.begin(move |m, to| {
        if m.a == command::LEAVE {
            let at = nk_servicelib::MovedAt { backlog: Some(1), ..Default::default() };
            for guest in [others, GuestId(m.b as u16)] {
                let mut m = Message::new(Kind::Nsm).with_text(&at.to_text());
                (m.a, m.b) = (note::MOVED, key(guest));
                // The inline NSM cannot take it, and so nobody keeps it.
                let no_socket = sys::eventfd().expect("eventfd");
                nk_attach::send(to.as_raw_fd(), &m, &[no_socket.as_raw_fd()]).expect("send");
            }
        }
        0
    });
    let its = case.create("its").expect("made");
    case.server.order_move("its", "kernel").expect("it goes on");
    assert_eq!(case.dropped(), [key(its)].into());
}

#[test]
fn an_nsm_that_refuses_a_guest_has_no_leave_for_its_namespace() {
    let mut case = Case::new();
    case.begin(|m, _| if m.a == command::ADD_GUEST { libc::ENOMEM } else { 0 });
    assert_eq!(case.create("refused"), Err(libc::ENOMEM));
    let netns = OwnedFd::from(std::fs::File::open("/proc/self/ns/net").expect("netns"));
    let namespace = crate::broker::key_of(&netns).expect("its key");
    assert!(!case.server.nsm(PLAYED).expect("it is there").leave.has(namespace));
}
