//! A row: one process of the guest, as the host sees it.

use crate::grant::GrantRing;
use crate::sync::{AtomicU32, AtomicU64, Ordering, Pad32};

/// `phase`: nothing is going on.
pub const ROW_LIVE: u32 = 0;
/// `phase`: the process is about to exec; when its control socket closes it is not dead.
pub const ROW_EXECING: u32 = 1;

/// Entries of the table of what was not redirected.
pub const MISSED_SLOTS: usize = if cfg!(loom) { 2 } else { 64 };

/// Kinds of what `nk why` reports; the low 56 bits of the key say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Missed {
    /// A socket family, type or protocol: family | type << 16 | protocol << 32.
    Socket = 1,
    /// setsockopt: level << 16 | name.
    SetSockOpt = 2,
    /// getsockopt: level << 16 | name.
    GetSockOpt = 3,
    /// ioctl: request.
    Ioctl = 4,
    /// A call, by the number of its syscall.
    Call = 5,
    /// A message flag of send or recv: the flag's value.
    MsgFlag = 6,
    /// exec refused: reason, see [`ExecRefused`].
    Exec = 7,
    /// A control message of sendmsg or recvmsg: level << 16 | type.
    ControlMessage = 8,
    /// A question about a name that got no answer: see [`NoAnswer`].
    Name = 9,
}

/// Why a question about a name got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NoAnswer {
    /// The daemon or the resolver has too much to do.
    Busy = 1,
    /// The configuration gives this guest no names.
    Forbidden = 2,
    /// The time is up.
    Late = 3,
    /// Resolvers ended without answering.
    Ended = 4,
    /// The answer was none.
    Malformed = 5,
    /// There is no daemon, and none will come.
    NoDaemon = 6,
    /// This process lacks descriptors or memory.
    Resources = 7,
    /// It is longer than any name.
    TooLong = 8,
}

/// Why an exec was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExecRefused {
    /// Statically linked: GuestLib cannot load.
    Static = 1,
    /// Set-uid or set-gid: the loader ignores LD_PRELOAD.
    Setuid = 2,
    /// Another machine or word size.
    ForeignMachine = 3,
    /// Another C library (musl, ...).
    ForeignLibc = 4,
}

/// One process.
#[repr(C, align(4096))]
#[derive(Debug)]
#[cfg_attr(loom, derive(Default))]
pub struct Row {
    // ---- guest ----
    /// [`ROW_LIVE`] or [`ROW_EXECING`].
    pub phase: AtomicU32,
    /// The guest found a grant ring empty and wants [`crate::Op::Granted`] on its primary queue set.
    pub want: AtomicU32,
    /// The chunk that a thread writes into behind a published span, + 1; 0: none. One thread at a time, see [`Row::begin_append`].
    pub append: AtomicU32,
    guest_pad: [Pad32; 13],
    /// What was not redirected: kind << 56 | detail; 0 is free. Claimed by CAS.
    pub missed_keys: [AtomicU64; MISSED_SLOTS],
    /// How often.
    pub missed_counts: [AtomicU32; MISSED_SLOTS],
    // ---- engine ----
    /// 1 while a process has the row.
    pub in_use: AtomicU32,
    /// Bumped each time the row gets another process.
    pub generation: AtomicU32,
    /// The process's pid as the host sees it (information only).
    pub pid: AtomicU32,
    /// Primary queue set.
    pub qset: AtomicU32,
    engine_pad: [Pad32; 12],
    /// Ids for new sockets; the cell of each has its generation.
    pub id_grants: GrantRing,
    // ---- service ----
    /// Futex word, bumped when chunks were granted.
    pub grant_wake: AtomicU32,
    /// Bumped by each service that takes the row over: chunks that were taken from the ring before are leased no more.
    pub lease_epoch: AtomicU32,
    service_pad: [Pad32; 14],
    /// Chunks for sending.
    pub chunk_grants: GrantRing,
}

#[cfg(not(loom))]
const _: () = assert!(core::mem::size_of::<Row>() == 4096);

impl Row {
    /// Guest: says that this process writes into a chunk that is published already. `false`: another thread does, into some chunk.
    #[must_use]
    pub fn begin_append(&self, chunk: u32) -> bool {
        let said = self.append.compare_exchange(
            0,
            chunk.wrapping_add(1),
            Ordering::SeqCst,
            Ordering::Relaxed,
        );
        said.is_ok()
    }

    /// Guest: the copy is done.
    pub fn end_append(&self) {
        self.append.store(0, Ordering::Release);
    }

    /// Service: the chunk that the process says it writes into.
    #[must_use]
    pub fn appended_chunk(&self) -> Option<u32> {
        self.append.load(Ordering::SeqCst).checked_sub(1)
    }

    /// Guest: counts something that is not redirected. When the table is full, the last entry counts the rest.
    pub fn count_missed(&self, kind: Missed, detail: u64) {
        let key = (kind as u64) << 56 | (detail & ((1 << 56) - 1));
        for (k, n) in self.missed_keys.iter().zip(&self.missed_counts) {
            let found = match k.compare_exchange(0, key, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => key,
                Err(found) => found,
            };
            if found == key {
                n.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        if let Some(n) = self.missed_counts.last() {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Engine: zeroes a row that no process has.
    pub fn reset(&self) {
        self.in_use.store(0, Ordering::SeqCst);
        self.phase.store(ROW_LIVE, Ordering::Relaxed);
        self.want.store(0, Ordering::Relaxed);
        self.append.store(0, Ordering::Relaxed);
        self.pid.store(0, Ordering::Relaxed);
        for k in &self.missed_keys {
            k.store(0, Ordering::Relaxed);
        }
        for n in &self.missed_counts {
            n.store(0, Ordering::Relaxed);
        }
        for g in [&self.id_grants, &self.chunk_grants] {
            g.tail.store(0, Ordering::Relaxed);
            g.head.store(0, Ordering::Relaxed);
        }
        self.generation.fetch_add(1, Ordering::SeqCst);
    }
}
