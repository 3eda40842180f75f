//! The NetKernel queue element: 32 bytes, the paper's fields (§4.2, figure 4) with wider ids in its reserved bytes.
//!
//! ```text
//! word 0: op 8 | flags 8 | guest 16 | queue set 16 | generation 16
//! word 1: socket 32 | size 32
//! word 2: op_data 64        word 3: data 64
//! ```
//! Bit 0 of `flags` is the ring's phase bit and never part of the element; bits 1..8 carry the ticket of a synchronous call.

/// What an NQE asks for or tells.
///
/// Job ring (guest to stack): control operations. Send ring: operations with data. Completion ring (stack to guest): results
/// of synchronous calls. Receive ring: events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Job: a socket was created with a granted id. `op_data`: family | type << 16 | protocol << 32. No reply.
    Socket = 1,
    /// Job: bind to the packed address ([`crate::Addr::to_words`]). Reply: 0 or -errno.
    Bind = 2,
    /// Job: listen; `op_data` = backlog. Reply: 0 or -errno.
    Listen = 3,
    /// Job: connect to the packed address. Reply at once: -EINPROGRESS or -errno (with ticket 0: none; the result is in the cell).
    Connect = 4,
    /// Job: shutdown for writing after what is queued; `op_data` = 0 rd, 1 wr, 2 both. No reply.
    Shutdown = 5,
    /// Job: nobody holds the socket any more; `op_data` = 1 to reset it. No reply to the guest.
    Close = 6,
    /// Job: set an option. `size` = level << 24 | length << 16 | name, value in `op_data`, `data`, or, when it is longer than these, at the start of
    /// the leased chunk `op_data`. Reply when the ticket is not 0.
    SetSockOpt = 7,
    /// Job: read an option. `size` as above. Reply: length in `size`, value in `op_data`/`data` when it fits in 16 bytes, else
    /// in the queue set's reply area; `op_data` alone is -errno when flag bit [`FLAG_ERROR`] is set.
    GetSockOpt = 8,
    /// Job: disconnect a socket (connect with AF_UNSPEC). Reply: 0 or -errno.
    Disconnect = 9,
    /// Job: the row's grants are low: top up. No reply; [`crate::Row::grant_wake`] is bumped.
    Refill = 10,
    /// Job: room in the rx ring again, asked for by [`crate::cell::SF_RX_STALLED`]. No reply.
    RxRoom = 11,
    /// Job: wait until what was queued is sent and acknowledged (`SO_LINGER`). `op_data` = seconds. Reply: 0 or -errno.
    Drain = 12,
    /// Job: sends what is queued and tells what became of the datagram at tx index `op_data` (sent with
    /// [`crate::datagram::DF_REPORT`]). Reply: 0 (sent, or the stack has no room yet) or -errno.
    Report = 13,
    /// Send: the tx ring went from idle to active.
    Send = 32,
    /// Completion: the reply of the job NQE with this ticket.
    Reply = 64,
    /// Receive: something changed on the socket; `op_data` = hint of bits ([`EPOLLIN`] and so on), never trusted for anything but speed.
    Event = 96,
    /// Receive: the row's grants were topped up.
    Granted = 97,
    /// Receive (NSM to engine only): a connection was accepted. `op_data` = listener's socket id | generation << 32, `size` = the
    /// index on its ring; the ids of the element are the new socket's.
    Accepted = 98,
    /// Receive (NSM to engine only): the stack is done with this socket, which sent `op_data` bytes and received `data`: its id may be
    /// used again.
    Closed = 99,
    /// Receive (NSM to engine only): the row `op_data` has few chunks left, and this NSM, from which the guest was moved, leases none.
    LowChunks = 100,
    /// Job (engine to NSM only): a process died; take back what was leased to the row `op_data`. `size` = sockets that there are.
    RowDead = 128,
    /// Job (engine to NSM only): a row was made; lease chunks to the row `op_data`.
    RowLive = 129,
    /// Job (engine to NSM only): the element's socket id is granted for an accepted socket.
    GrantId = 130,
}

impl Op {
    /// Parses an operation; `None` when the byte names none.
    #[inline]
    #[must_use]
    pub fn from_u8(v: u8) -> Option<Op> {
        Some(match v {
            1 => Op::Socket,
            2 => Op::Bind,
            3 => Op::Listen,
            4 => Op::Connect,
            5 => Op::Shutdown,
            6 => Op::Close,
            7 => Op::SetSockOpt,
            8 => Op::GetSockOpt,
            9 => Op::Disconnect,
            10 => Op::Refill,
            11 => Op::RxRoom,
            12 => Op::Drain,
            13 => Op::Report,
            32 => Op::Send,
            64 => Op::Reply,
            96 => Op::Event,
            97 => Op::Granted,
            98 => Op::Accepted,
            99 => Op::Closed,
            100 => Op::LowChunks,
            128 => Op::RowDead,
            129 => Op::RowLive,
            130 => Op::GrantId,
            _ => return None,
        })
    }

    /// Whether a guest may put this operation on a job ring.
    #[inline]
    #[must_use]
    pub fn is_guest_job(self) -> bool {
        (self as u8) < 32
    }
}

/// Flag: a reply carries an errno, not a value. (Bit 0 of the flags byte is the phase bit.)
pub const FLAG_ERROR: u8 = 1;
/// Flag of a job with a ticket: it was asked of an engine that died, and may have been done.
pub const FLAG_AGAIN: u8 = 1;
/// In `data` of [`Op::RowDead`]: the row lives on in a new image; the low half is the head of its chunk grants then.
pub const ROW_EXECED: u64 = 1 << 32;
/// In `data` of [`Op::RowDead`]: no row died, but there are no others than those told of by [`Op::RowLive`]: what is still leased to
/// any other is a dead one's.
pub const ROWS_TOLD: u64 = 1 << 33;
/// In `data` of [`Op::RowLive`]: the row lived before; what stands on its chunk grants is its. In the upper half is how many such
/// rows of this guest follow: none is leased anything new before the service knows what each of them has.
pub const ROW_ADOPTED: u64 = 1;
/// In `data` of [`Op::Refill`]: the row has few chunks left, and nobody waits.
pub const REFILL_LOW: u64 = 1;
/// In `data` of [`Op::Socket`]: the socket lived before under another service; what its rings carry went with that one.
pub const SOCKET_RENEWED: u64 = 1;
/// In `data` of [`Op::Socket`] and [`Op::Close`]: the NSM that had the socket is gone, and what the socket's ring names is leased
/// still: the guest's present NSM, which shared its chunks, takes it back.
pub const OWED: u64 = 2;
/// Event: readable.
pub const EPOLLIN: u32 = 0x001;
/// Event: writable.
pub const EPOLLOUT: u32 = 0x004;
/// Event: an error is pending.
pub const EPOLLERR: u32 = 0x008;
/// Event: both directions are shut.
pub const EPOLLHUP: u32 = 0x010;
/// Event: the peer shut its writing half.
pub const EPOLLRDHUP: u32 = 0x2000;
/// Tickets run from 1 to this; 0 asks for no reply.
pub const TICKET_MAX: u8 = 63;

/// One queue element, parsed. `op` stays a byte here: [`Op::from_u8`] is the strict step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nqe {
    /// Operation byte, see [`Op`].
    pub op: u8,
    /// [`FLAG_ERROR`] in a reply, [`FLAG_AGAIN`] in a job, or 0.
    pub flags: u8,
    /// Ticket of a synchronous call, 0..=63; 0 asks for no reply.
    pub ticket: u8,
    /// The guest; stamped by CoreEngine, never believed from a guest.
    pub guest: u16,
    /// The queue set the element came from, or goes to.
    pub qset: u16,
    /// Generation of the socket id.
    pub generation: u16,
    /// Socket id: the index of the socket's cell.
    pub socket: u32,
    /// Size, or small arguments.
    pub size: u32,
    /// Operation data.
    pub op_data: u64,
    /// Data pointer (offset into the device) or more operation data.
    pub data: u64,
}

impl Nqe {
    /// An element with the operation and the socket, the rest 0.
    #[inline]
    #[must_use]
    pub fn new(op: Op, socket: u32, generation: u16) -> Nqe {
        Nqe { op: op as u8, socket, generation, ..Nqe::default() }
    }

    /// Makes it a reply that carries an error.
    pub fn set_error(&mut self, errno: i32) {
        self.flags = FLAG_ERROR;
        self.op_data = i64::from(-errno) as u64;
    }

    /// The four words, with the phase bit clear.
    #[inline]
    #[must_use]
    pub fn to_words(&self) -> [u64; 4] {
        let flags = (u64::from(self.flags & 1) << 1) | (u64::from(self.ticket & TICKET_MAX) << 2);
        [
            u64::from(self.op)
                | flags << 8
                | u64::from(self.guest) << 16
                | u64::from(self.qset) << 32
                | u64::from(self.generation) << 48,
            u64::from(self.socket) | u64::from(self.size) << 32,
            self.op_data,
            self.data,
        ]
    }

    /// Parses four words; the phase bit is ignored. Any words give some element.
    #[inline]
    #[must_use]
    pub fn from_words(w: [u64; 4]) -> Nqe {
        let flags = (w[0] >> 8) as u8;
        Nqe {
            op: w[0] as u8,
            flags: (flags >> 1) & 1,
            ticket: flags >> 2,
            guest: (w[0] >> 16) as u16,
            qset: (w[0] >> 32) as u16,
            generation: (w[0] >> 48) as u16,
            socket: w[1] as u32,
            size: (w[1] >> 32) as u32,
            op_data: w[2],
            data: w[3],
        }
    }
}

/// One queue element as it lies in a ring (its phase bit aside): for those who look at little of it and pass it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedNqe(pub(crate) [u64; 4]);

impl PackedNqe {
    /// All fields.
    #[inline]
    #[must_use]
    pub fn unpack(&self) -> Nqe {
        Nqe::from_words(self.0)
    }
    /// [`Nqe::socket`].
    #[inline]
    #[must_use]
    pub fn socket(&self) -> u32 {
        self.0[1] as u32
    }
    /// [`Nqe::generation`].
    #[inline]
    #[must_use]
    pub fn generation(&self) -> u16 {
        (self.0[0] >> 48) as u16
    }
    /// Whether it is this operation, and asks for no reply.
    #[inline]
    #[must_use]
    pub fn is_untold(&self, op: Op) -> bool {
        // Operation and ticket; not the phase bit and the error flag.
        self.0[0] & 0xfcff == op as u64
    }
    /// The same element with its origin and operation data set by who knows them, and no flags.
    #[inline]
    #[must_use]
    pub fn stamped(&self, guest: u16, qset: u16, op_data: u64) -> PackedNqe {
        let [w0, w1, _, w3] = self.0;
        let origin = u64::from(guest) << 16 | u64::from(qset) << 32;
        PackedNqe([w0 & 0xffff_0000_0000_00ff | origin, w1, op_data, w3])
    }
}

impl From<&Nqe> for PackedNqe {
    #[inline]
    fn from(nqe: &Nqe) -> PackedNqe {
        PackedNqe(nqe.to_words())
    }
}

/// Packs what [`Op::SetSockOpt`] and [`Op::GetSockOpt`] carry in `size`.
#[must_use]
pub fn pack_option(level: u8, name: u16, length: u8) -> u32 {
    u32::from(level) << 24 | u32::from(length) << 16 | u32::from(name)
}

/// Undoes [`pack_option`]: level, name, length.
#[must_use]
pub fn unpack_option(size: u32) -> (u8, u16, u8) {
    ((size >> 24) as u8, size as u16, (size >> 16) as u8)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_words_survive_a_round_trip(w in any::<[u64; 4]>()) {
            let e = Nqe::from_words(w);
            let back = e.to_words();
            prop_assert_eq!(back[0], w[0] & !(1 << 8));
            prop_assert_eq!(&back[1..], &w[1..]);
        }

        #[test]
        fn a_packed_element_says_what_the_parsed_one_says(w in any::<[u64; 4]>()) {
            let (packed, nqe) = (PackedNqe(w), Nqe::from_words(w));
            prop_assert_eq!(packed.socket(), nqe.socket);
            prop_assert_eq!(packed.generation(), nqe.generation);
            for op in [Op::Send, Op::Close] {
                let untold = nqe.op == op as u8 && nqe.ticket == 0;
                prop_assert_eq!(packed.is_untold(op), untold);
            }
            let stamped = packed.stamped(7, 9, 11).unpack();
            let by_hand =
                Nqe { guest: 7, qset: 9, op_data: 11, flags: 0, ticket: 0, ..nqe };
            prop_assert_eq!(stamped, by_hand);
        }

        #[test]
        fn options_survive(level in any::<u8>(), name in any::<u16>(), length in any::<u8>()) {
            prop_assert_eq!(unpack_option(pack_option(level, name, length)), (level, name, length));
        }
    }

    #[test]
    fn op_bytes_agree_with_the_parser() {
        for b in 0..=255u8 {
            if let Some(op) = Op::from_u8(b) {
                assert_eq!(op as u8, b);
            }
        }
    }
}
