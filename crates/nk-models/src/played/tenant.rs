//! A guest of the simulation: what its processes know, and what the daemon does.

use std::collections::{HashMap, HashSet};

use nk_device::sync::Ordering;
use nk_engine::{GuestId, NsmId};
use nk_host::control::members::Members;
use nk_host::control::place::Place;
use nk_host::control::spread::Spread;
use nk_host::limits::GuestLimits;

use super::acts::Way;
use super::datagrams::Posted;
use super::region::{Region, SharedLedger};
use super::shell::Shell;
use super::simulation::Random;

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
    /// Processes that live and have a row.
    pub(super) processes: Vec<Shell>,
    pub(super) open: Vec<Open>,
    /// Bytes sent and received.
    pub(super) flows: HashMap<Way, (usize, usize)>,
    /// Datagrams sent.
    pub(super) posted: Vec<Posted>,
    /// Datagram sockets that were seen at the ports that they asked for.
    pub(super) bound: HashSet<(u32, u32)>,
    /// The daemon's from here on.
    pub(super) place: Place<SharedLedger>,
    pub(super) members: Members<u32>,
    /// It is on several NSMs for good.
    pub(super) spread: Option<Spread>,
    pub(super) limits: GuestLimits,
    /// What the engine had counted when last looked: bytes sent and received, connections.
    counted: [u64; 3],
}

impl Tenant {
    /// One that is made by this user.
    pub(super) fn new(id: GuestId, region: Region, nsm: NsmId, uid: u32) -> Tenant {
        // Nobody guesses it.
        let token = (u64::from(id.0), 77);
        Tenant {
            id,
            region,
            processes: Vec::new(),
            open: Vec::new(),
            flows: HashMap::new(),
            posted: Vec::new(),
            bound: HashSet::new(),
            place: Place::new(nsm),
            members: Members::new(token, uid),
            spread: None,
            limits: GuestLimits::default(),
            counted: [0; 3],
        }
    }
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
    pub(super) fn engine_state(&self) -> u32 {
        self.region.device.header().engine_state.load(Ordering::SeqCst)
    }
    /// Whoever died, no counter falls.
    pub(super) fn count(&mut self, now: [u64; 3]) {
        let falls = now.iter().zip(&self.counted).any(|(now, before)| now < before);
        assert!(!falls, "guest {} counted {:?}, and now {now:?}", self.id.0, self.counted);
        self.counted = now;
    }
}
