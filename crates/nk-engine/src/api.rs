//! What the host gives to the engine, and what it gets back.

use nk_device::bucket::Rate;
use nk_device::kept::{KEPT_WORDS, KS_LISTENING, KeptSocket};
use nk_device::sync::AtomicU32;
use nk_device::{Addr, Device, SharedCounters};

/// A guest. A number is not used again while an NSM's rings may hold elements of the guest before: the host counts up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestId(pub u16);

/// An NSM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NsmId(pub u8);

/// What the engine asks its surroundings to do, because it does no I/O itself. Called from [`crate::Engine::poll`] and from the
/// control entry points that take it.
pub trait Notify {
    /// Write the doorbell eventfd of a queue set.
    fn doorbell(&mut self, guest: GuestId, qset: u16);
    /// `FUTEX_WAKE` (shared, not private) at most `count` sleepers on a word of a device.
    fn futex_wake(&mut self, word: &AtomicU32, count: u32);
    /// Wake an NSM that sleeps (never called for one that is polled by the same thread as the engine).
    fn nsm_doorbell(&mut self, nsm: NsmId);
    /// Every socket of the guest is closed and, on the NSM, done. The guest may be removed if no process is left.
    fn guest_idle(&mut self, _guest: GuestId) {}
    /// An NSM from which the guest was moved ([`crate::Engine::move_guest`]) has none of its sockets any more. Then comes
    /// [`crate::Engine::leave_nsm`].
    fn nsm_left(&mut self, _guest: GuestId, _nsm: NsmId) {}
    /// The guest's present NSM has its share of connections. Then comes [`crate::Engine::set_share`], perhaps after a move.
    fn nsm_full(&mut self, _guest: GuestId) {}
}

/// What a poll did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollResult {
    /// NQEs moved.
    pub worked: u32,
    /// Something is left to do now: poll again before sleeping.
    pub pending: bool,
    /// Something that a rate holds back has its turn then: poll again at that time, on the clock of `now_ns`.
    pub due_ns: Option<u64>,
}

/// Limits of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sockets, granted ahead or in use; at most the cells of its device.
    pub sockets_max: u32,
    /// Rows (processes).
    pub rows_max: u32,
    /// Queue sets.
    pub qsets_max: u32,
    /// NQEs taken from one queue set in one turn, and from all of a guest of weight 1.
    pub nqes_per_turn_max: u32,
    /// Protocol violations after which a queue set is quarantined.
    pub violations_max: u32,
    /// Lowest port that may be bound by number (0: whatever the stack allows). Below it: EACCES.
    pub port_min: u16,
    /// NQEs that the guest may push.
    pub nqes: Option<Rate>,
    /// Connections, made or accepted.
    pub connections: Option<Rate>,
    /// Its turn is so many times that of a guest of weight 1.
    pub weight: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sockets_max: u32::MAX,
            rows_max: 512,
            qsets_max: 1024,
            nqes_per_turn_max: 64,
            violations_max: 64,
            port_min: 0,
            nqes: None,
            connections: None,
            weight: 1,
        }
    }
}

/// Where a guest may listen: an address (all of IPv4, or with `[::]` of both families) and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address; its port counts for nothing.
    pub addr: Addr,
    /// The ports.
    pub ports: core::ops::RangeInclusive<u16>,
}

/// A guest to serve. The device is formatted and mapped for as long as the guest is known to the engine.
#[derive(Clone, Debug)]
pub struct GuestSetup {
    /// Its number.
    pub id: GuestId,
    /// Its device, made with [`Device::with_layout`] (the header is not believed).
    pub device: Device,
    /// Which network namespace its sockets live in; equal keys mean equal namespaces.
    pub namespace: u64,
    /// The NSM that serves it, until [`crate::Engine::move_guest`]. ServiceLib there must know the guest first (`Service::add_guest`).
    pub nsm: NsmId,
    /// Its limits.
    pub limits: Limits,
    /// A VM: row 0 and queue set 0 are live from the start.
    pub vm: bool,
    /// Where it is counted what the guest does: what stands there goes on.
    pub counters: SharedCounters,
}

/// A row that was made, with its primary queue set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewRow {
    /// The row.
    pub row: u16,
    /// Its primary queue set.
    pub qset: u16,
}

/// A row that lives on over a death of the engine.
#[derive(Clone, Debug)]
pub struct AdoptedRow {
    /// The row.
    pub row: u16,
    /// Its process, as the host knows it.
    pub pid: u32,
    /// Its queue sets, the primary one first.
    pub qsets: Vec<u16>,
}

/// A listener that lives on over a death of the engine or its NSM; its descriptor is with the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdoptedListener {
    /// Socket id.
    pub socket: u32,
    /// Its generation.
    pub generation: u16,
    /// What it is bound to, as the stack said it (never the cell, which the guest can write).
    pub local: Addr,
    /// Its backlog as the guest gave it.
    pub backlog: u32,
}

/// What is known of a guest that lives on.
#[derive(Clone, Debug, Default)]
pub struct Adoption {
    /// Rows with a living process.
    pub rows: Vec<AdoptedRow>,
    /// Listeners whose descriptors were kept.
    pub listeners: Vec<AdoptedListener>,
    /// Sockets that the host holds itself ([`crate::Engine::hold`]): id and generation.
    pub holds: Vec<(u32, u16)>,
    /// Where the service lives on as well: what it says. Connections then live on, and nothing is made again.
    pub kept: Option<KeptGuest>,
}

/// What a service that outlived its engine has of a guest (`Service::keep` tells it).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptGuest {
    /// Its sockets.
    pub sockets: Vec<KeptSocket>,
    /// Ids granted for accepted sockets and not used, with their generations.
    pub ids: Vec<(u32, u16)>,
    /// Rows that it knows as living.
    pub rows: Vec<u16>,
}

impl KeptGuest {
    /// Whether the service has this listener.
    #[must_use]
    pub fn listens(&self, socket: u32, generation: u16) -> bool {
        self.sockets
            .iter()
            .any(|s| (s.socket, s.generation) == (socket, generation) && s.is(KS_LISTENING))
    }

    /// Parses what a service told of all its guests; `None` when that breaks off, or there are more than guests have numbers.
    #[must_use]
    pub fn parse(mut words: &[u64]) -> Option<Vec<(GuestId, KeptGuest)>> {
        let mut all = Vec::new();
        while let Some((head, rest)) = words.split_first_chunk::<2>() {
            let [guest, sockets] = *head;
            let (rows, ids) = ((guest >> 16) as u16, (guest >> 32) as u32);
            let (rows, rest) = rest.split_at_checked(usize::from(rows))?;
            let (ids, rest) = rest.split_at_checked(ids as usize)?;
            let (sockets, rest) =
                rest.split_at_checked((sockets as u32 as usize).checked_mul(KEPT_WORDS)?)?;
            words = rest;
            let (sockets, _) = sockets.as_chunks::<KEPT_WORDS>();
            let kept = KeptGuest {
                sockets: sockets.iter().map(|w| KeptSocket::from_words(*w)).collect(),
                ids: ids.iter().map(|w| (*w as u32, (w >> 32) as u16)).collect(),
                rows: rows.iter().map(|w| *w as u16).collect(),
            };
            all.push((GuestId(guest as u16), kept));
            if all.len() > usize::from(u16::MAX) {
                return None;
            }
        }
        words.is_empty().then_some(all)
    }
}

/// Why a control call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// No such guest, or it exists already.
    Guest,
    /// No such NSM, or it exists already.
    Nsm,
    /// No such row, or none is free (or the limit is reached).
    Row,
    /// No such queue set, or none is free (or the limit is reached).
    Qset,
    /// No such socket in use.
    Socket,
    /// The device is of no use for this (too small).
    Device,
}

impl core::fmt::Display for ControlError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            ControlError::Guest => "no such guest, or its number is in use",
            ControlError::Nsm => "no such NSM, or its number is in use",
            ControlError::Row => "no such process row, or no row is free",
            ControlError::Qset => "no such queue set, or no queue set is free",
            ControlError::Socket => "no such socket",
            ControlError::Device => "the device is too small",
        })
    }
}
impl std::error::Error for ControlError {}

/// Counters, per guest or of the whole engine.
#[derive(Clone, Debug)]
pub struct Stats {
    /// NQEs from guests by operation byte.
    pub from_guest: Box<[u64; 256]>,
    /// NQEs to guests by operation byte.
    pub to_guest: Box<[u64; 256]>,
    /// Bytes taken from guests for sending: closed sockets as ServiceLib counted them (or, where it died, as their cells say), plus what
    /// the cells of open ones say.
    pub bytes_sent: u64,
    /// Bytes handed to guests; as above.
    pub bytes_received: u64,
    /// Connections made or accepted and not yet gone.
    pub connections_open: u64,
    /// Connections ever made or accepted.
    pub connections_total: u64,
    /// Sockets in use (not counting ids only granted).
    pub sockets: u64,
    /// Ids granted to rows and NSMs, and not in use.
    pub ids_granted: u64,
    /// Rows in use.
    pub rows: u64,
    /// Queue sets in use.
    pub qsets: u64,
    /// NQEs that broke the protocol; dropped.
    pub violations: u64,
    /// NQEs for a socket that is gone: normal when processes share sockets; dropped.
    pub stale: u64,
    /// Queue sets that are served no more.
    pub quarantined: u64,
    /// Events that did not fit into a guest's receive ring.
    pub overflows: u64,
    /// Ports that were not had because they are another guest's.
    pub ports_refused: u64,
    /// Binds and listens that the guest's policy does not allow.
    pub listens_refused: u64,
    /// Times that the guest's NQEs had to wait for its rate.
    pub nqes_held: u64,
    /// Connects that had to wait for its rate.
    pub connects_held: u64,
    /// Times that accepting had to wait for its rate.
    pub accepts_held: u64,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            from_guest: Box::new([0; 256]),
            to_guest: Box::new([0; 256]),
            bytes_sent: 0,
            bytes_received: 0,
            connections_open: 0,
            connections_total: 0,
            sockets: 0,
            ids_granted: 0,
            rows: 0,
            qsets: 0,
            violations: 0,
            stale: 0,
            quarantined: 0,
            overflows: 0,
            ports_refused: 0,
            listens_refused: 0,
            nqes_held: 0,
            connects_held: 0,
            accepts_held: 0,
        }
    }
}

/// One socket, as `nk flows` lists it.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Its guest.
    pub guest: GuestId,
    /// Socket id.
    pub socket: u32,
    /// Its generation.
    pub generation: u16,
    /// The NSM that has it.
    pub nsm: NsmId,
    /// `nk_device::cell::SF_*` as the cell says (information: the guest can write there).
    pub state: u32,
    /// Local address as the cell says.
    pub local: Addr,
    /// Peer address as the cell says.
    pub peer: Addr,
    /// Whether it is UDP's; TCP's otherwise.
    pub datagram: bool,
    /// Whether nobody holds it and the stack is finishing it.
    pub closing: bool,
    /// Whether it waits on a listener to be accepted.
    pub queued: bool,
    /// Rows that hold it, with their pids (row 0 of a process guest is the host's own hold).
    pub holders: Vec<(u16, u32)>,
    /// Bytes sent and received so far as the cell says.
    pub bytes: (u64, u64),
}
