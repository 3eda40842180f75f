//! What the engine knows of a guest, all of it private: no field here can be changed by the guest.

mod ids;

use std::collections::VecDeque;

use nk_device::ring::{Consumer, Producer};
use nk_device::{Addr, Cell, Device, HOLDER_WORDS, Nqe, Op, SharedCounters};

use crate::limits::{HeldConnect, Limiter};
use crate::ports::Space;
use crate::{GuestId, GuestSetup, Limits, Listen, NsmId};

/// No socket.
pub(crate) const NONE: u32 = u32::MAX;

/// Where an id is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Nobody's.
    #[default]
    Free,
    /// A row may make a socket of it.
    GrantedRow,
    /// The NSM may accept a connection into it.
    GrantedNsm,
    /// A socket that the NSM has, or will have.
    Open,
    /// A socket whose NSM is gone.
    Dead,
    /// Given to the NSM to end.
    Closing,
}

/// A listener's part.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    /// Accepted sockets that were not yet popped when last looked, oldest first: id and index on the listener's ring.
    pub(crate) queued: VecDeque<(u32, u32)>,
    /// Where to begin looking for an exclusive watcher, so that they take turns.
    pub(crate) turn: usize,
}

/// A socket id.
#[derive(Debug, Default)]
pub(crate) struct Socket {
    pub(crate) generation: u16,
    /// The NSM that has it, or (granted to an NSM) may accept into it.
    pub(crate) nsm: NsmId,
    /// Changed by [`Guest::set_state`] alone, which keeps `Guest::open_generations` true.
    state: State,
    /// While granted to a row: which, and the index on its grant ring.
    pub(crate) row: u16,
    pub(crate) grant_index: u32,
    /// The listener on whose ring it may still wait, or [`NONE`].
    pub(crate) parent: u32,
    pub(crate) family: u16,
    pub(crate) datagram: bool,
    pub(crate) v6only: bool,
    /// A connect was forwarded, or it was accepted.
    pub(crate) connection: bool,
    /// What a datagram socket was last connected to.
    pub(crate) peer: Option<Addr>,
    /// Its bound address as the stack said it, or as the guest asked while that is under way.
    pub(crate) local: Option<Addr>,
    pub(crate) listener: Option<Box<Listener>>,
    /// A connect that waits for the guest's rate.
    pub(crate) held: Option<Box<HeldConnect>>,
    /// The backlog last given to listen.
    pub(crate) backlog: u32,
    /// The host holds it ([`crate::Engine::hold`]): what row 0's bit in the cell should say.
    pub(crate) host_holds: u32,
    /// Its NSM died while others had sockets of the guest: what its ring names is still leased, and the guest's present NSM's to take
    /// back when nobody holds the socket any more.
    pub(crate) is_owed: bool,
    /// The sweep that first found it held by nobody.
    pub(crate) suspect_since: u64,
}

impl Socket {
    /// Nobody's.
    pub(crate) fn new(generation: u16) -> Socket {
        Socket { generation, parent: NONE, ..Socket::default() }
    }
    pub(crate) fn state(&self) -> State {
        self.state
    }
}

/// A row.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) in_use: bool,
    pub(crate) pid: u32,
    pub(crate) qset: u16,
    /// Private tail of its id grants.
    pub(crate) grant_tail: u32,
    /// Ids granted and not used.
    pub(crate) granted: u32,
}

/// A queue set.
#[derive(Debug, Default)]
pub(crate) struct QueueSet {
    pub(crate) in_use: bool,
    pub(crate) row: u16,
    pub(crate) job: Consumer,
    pub(crate) send: Consumer,
    pub(crate) completion: Producer,
    pub(crate) receive: Producer,
    pub(crate) violations: u32,
    pub(crate) quarantined: bool,
    /// On one of the guest's lists of those with work.
    pub(crate) active: bool,
    /// The poll in which its doorbell was last rung.
    pub(crate) rung_in: u64,
    /// The sleep that it was last rung for.
    pub(crate) rung_sleep: u32,
    /// How far its receive ring was filled then.
    pub(crate) rung_for: u32,
    /// Tickets whose replies are due.
    pub(crate) calls: u64,
    /// How many jobs stand on its ring from before this engine. What asks for a reply among them is asked again.
    pub(crate) stale_jobs: u32,
    /// What was popped last is not committed yet.
    pub(crate) is_uncommitted: bool,
}

/// An NSM from which a guest was moved.
#[derive(Debug)]
pub(crate) struct OldNsm {
    pub(crate) id: NsmId,
    /// Sockets that it still has.
    pub(crate) sockets: u32,
    /// That these are none was told.
    pub(crate) is_told: bool,
}

/// For how many of its connections its present NSM is to have it (`Engine::set_share`). What is no connection goes along with every move.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) most: u32,
    /// Connections that the present NSM has.
    pub(crate) connections: u32,
    /// That it has them all was told.
    pub(crate) is_told: bool,
}

/// A call that an old NSM has to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OldCall {
    pub(crate) qset: u16,
    pub(crate) ticket: u8,
    pub(crate) nsm: NsmId,
}

/// A guest.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) id: GuestId,
    pub(crate) device: Device,
    pub(crate) namespace: u64,
    /// The NSM that has its new sockets.
    pub(crate) nsm: NsmId,
    /// NSMs from which it was moved: each goes on with the sockets that it has.
    pub(crate) old: Vec<OldNsm>,
    pub(crate) share: Option<Share>,
    /// Calls that old NSMs have to answer.
    pub(crate) old_calls: Vec<OldCall>,
    /// It is being moved: nothing is taken from it.
    pub(crate) is_paused: bool,
    pub(crate) limits: Limits,
    pub(crate) limiter: Limiter,
    /// Where it may listen; `None`: anywhere.
    pub(crate) listen: Option<Vec<Listen>>,
    pub(crate) vm: bool,
    pub(crate) rows: Vec<Row>,
    pub(crate) rows_free: VecDeque<u16>,
    pub(crate) qsets: Vec<QueueSet>,
    /// How many it may have.
    pub(crate) qsets_max: u16,
    pub(crate) qsets_free: VecDeque<u16>,
    pub(crate) sockets: Vec<Socket>,
    /// Of each socket that is [`State::Open`] its generation, of all others 0, which is no generation. All that the switch looks
    /// at for most NQEs: two bytes a socket stay in the caches.
    open_generations: Vec<u16>,
    ids_free: VecDeque<u32>,
    /// Ids that are not free.
    pub(crate) ids_used: u32,
    /// Ids granted to the NSM and not used.
    pub(crate) nsm_granted: u32,
    pub(crate) listeners: u32,
    pub(crate) active: VecDeque<u16>,
    /// Queue sets with work, whose next element waits for this NSM to take what is costly ([`crate::costly`]).
    pub(crate) waiting: VecDeque<(u16, NsmId)>,
    /// Words of the bell bitmap that can name a queue set ever used.
    pub(crate) bell_words: usize,
    /// It has not rung for long: no poll looks at it, and its header goes on to say that the engine sleeps.
    pub(crate) dozes: bool,
    /// The poll that last found a bell of its.
    pub(crate) rang_in: u64,
    /// Rows that found no id when the guest was at its limit.
    pub(crate) starved: Vec<u16>,
    pub(crate) live: [u64; HOLDER_WORDS],
    pub(crate) sweep_at: usize,
    pub(crate) counters: SharedCounters,
    /// Connections made or accepted and not yet gone.
    pub(crate) connections_open: u64,
    /// Sockets in use (Open, Dead, Closing).
    pub(crate) open: u32,
}

impl Guest {
    pub(crate) fn new(s: &GuestSetup, round: u64) -> Guest {
        let layout = s.device.layout();
        let rows = layout.rows as u16;
        let qsets = layout.qsets.min(s.limits.qsets_max.max(1)) as u16;
        Guest {
            id: s.id,
            device: s.device,
            namespace: s.namespace,
            nsm: s.nsm,
            old: Vec::new(),
            share: None,
            old_calls: Vec::new(),
            is_paused: false,
            limits: s.limits,
            limiter: Limiter::new(&s.limits),
            listen: None,
            vm: s.vm,
            rows: (0..rows).map(|_| Row::default()).collect(),
            // Row 0 is the host's own, or the VM's.
            rows_free: (1..rows).collect(),
            qsets: Vec::new(),
            qsets_max: qsets,
            qsets_free: (u16::from(s.vm)..qsets).collect(),
            sockets: Vec::new(),
            open_generations: Vec::new(),
            ids_free: VecDeque::new(),
            ids_used: 0,
            nsm_granted: 0,
            listeners: 0,
            active: VecDeque::new(),
            waiting: VecDeque::new(),
            bell_words: 0,
            dozes: false,
            rang_in: round,
            starved: Vec::new(),
            live: {
                let mut live = [0; HOLDER_WORDS];
                if let Some(first) = live.first_mut() {
                    *first = 1;
                }
                live
            },
            sweep_at: 0,
            counters: s.counters,
            connections_open: 0,
            open: 0,
        }
    }

    /// An element about one of its sockets; about none with 0.
    pub(crate) fn nqe(&self, op: Op, id: u32, generation: u16) -> Nqe {
        Nqe { guest: self.id.0, ..Nqe::new(op, id, generation) }
    }

    pub(crate) fn cell(&self, id: u32) -> Option<&Cell> {
        self.device.cell(id)
    }

    pub(crate) fn socket(&self, id: u32) -> Option<&Socket> {
        self.sockets.get(id as usize)
    }

    /// Whose ports a socket's are.
    pub(crate) fn space(&self, id: u32) -> Space {
        let datagram = self.socket(id).is_some_and(|s| s.datagram);
        Space { namespace: self.namespace, datagram }
    }

    pub(crate) fn socket_mut(&mut self, id: u32) -> Option<&mut Socket> {
        self.sockets.get_mut(id as usize)
    }

    pub(crate) fn set_state(&mut self, id: u32, state: State) {
        if let (Some(s), Some(open)) =
            (self.sockets.get_mut(id as usize), self.open_generations.get_mut(id as usize))
        {
            if !self.old.is_empty() || self.share.is_some() {
                let counts = |s: State| u32::from(matches!(s, State::Open | State::Closing));
                let (before, after) = (counts(s.state), counts(state));
                let sockets = if s.nsm == self.nsm {
                    self.share.as_mut().filter(|_| s.connection).map(|share| &mut share.connections)
                } else {
                    self.old.iter_mut().find(|o| o.id == s.nsm).map(|o| &mut o.sockets)
                };
                if let Some(n) = sockets {
                    *n = (*n + after).saturating_sub(before);
                }
            }
            s.state = state;
            *open = if state == State::Open { s.generation } else { 0 };
        }
    }

    /// The generation of an open socket; 0 of any other.
    #[inline]
    pub(crate) fn open_generation(&self, id: u32) -> u16 {
        self.open_generations.get(id as usize).copied().unwrap_or(0)
    }
}
