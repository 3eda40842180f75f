//! Descriptor → socket, for speed: the truth is the tag on each stand-in, which the kernel keeps for us.
//!
//! Also how many descriptors this process has for each socket: the first sets the row's holder bit, the last clears it.
//! All memory is private, mapped once without reservation; entries change by atomic operations, so signal handlers may use
//! every function here.

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use libc::c_int;

use crate::{borrowers, standin, sys};

/// Descriptors that the table covers: Linux's default for fs.nr_open.
pub const FDS_MAX: usize = 1 << 20;

const KIND_SHIFT: u32 = 60;
const KIND_SOCKET: u64 = 1;
const KIND_EPOLL: u64 = 2;
const KIND_INTERNAL: u64 = 3;
/// Of a socket's word: the descriptor is one of many for the process's anchor, so only this table knows which socket it is.
const SHARED: u64 = 1 << 48;

/// What a descriptor is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Not ours.
    None,
    /// The stand-in of a socket.
    Socket {
        /// Socket id: index of its cell.
        id: u32,
        /// Generation of the id.
        generation: u16,
    },
    /// An epoll instance that events.rs serves.
    Epoll {
        /// Its index there.
        index: u32,
    },
    /// One of this library's own descriptors; the program must not touch it.
    Internal,
}

impl Entry {
    fn to_word(self) -> u64 {
        match self {
            Entry::None => 0,
            Entry::Socket { id, generation } => {
                KIND_SOCKET << KIND_SHIFT | u64::from(generation) << 32 | u64::from(id)
            }
            Entry::Epoll { index } => KIND_EPOLL << KIND_SHIFT | u64::from(index),
            Entry::Internal => KIND_INTERNAL << KIND_SHIFT,
        }
    }

    fn from_word(w: u64) -> Entry {
        match w >> KIND_SHIFT {
            KIND_SOCKET => Entry::Socket { id: w as u32, generation: (w >> 32) as u16 },
            KIND_EPOLL => Entry::Epoll { index: w as u32 },
            KIND_INTERNAL => Entry::Internal,
            _ => Entry::None,
        }
    }
}

/// The table's address, with the number of borrowers ([`crate::borrowers`]) in the low bits: one word, so that a look tells both.
static TABLE: AtomicUsize = AtomicUsize::new(0);
/// Once it is that many nobody counts down any more.
const BORROWERS_MAX: usize = 0xfff;
static COUNTS: AtomicPtr<AtomicU32> = AtomicPtr::new(core::ptr::null_mut());
static COUNTS_LEN: AtomicU32 = AtomicU32::new(0);
/// One more than the highest descriptor ever entered: bounds scans.
static TOP: AtomicU32 = AtomicU32::new(0);

/// Maps the tables for a device with `cells` sockets. `false` when there is no memory.
pub fn init(cells: u32) -> bool {
    if TABLE.load(Ordering::Acquire) != 0 {
        return true;
    }
    let table = sys::map_private(FDS_MAX * size_of::<AtomicU64>());
    let counts = sys::map_private(cells as usize * size_of::<AtomicU32>());
    if table.is_null() || counts.is_null() {
        return false;
    }
    COUNTS_LEN.store(cells, Ordering::Release);
    COUNTS.store(counts.cast(), Ordering::Release);
    TABLE.store(table.expose_provenance(), Ordering::Release);
    true
}

fn slot(fd: c_int) -> Option<&'static AtomicU64> {
    let table = TABLE.load(Ordering::Acquire);
    if table & BORROWERS_MAX != 0 {
        return slot_of_borrowed(table, fd);
    }
    slot_at(table, fd)
}

/// While borrowers may be there: to one of them a number of a socket that it put something else onto is nobody's.
#[cold]
fn slot_of_borrowed(table: usize, fd: c_int) -> Option<&'static AtomicU64> {
    let slot = slot_at(table & !BORROWERS_MAX, fd)?;
    match Entry::from_word(slot.load(Ordering::Acquire)) {
        Entry::Socket { id, generation }
            if borrowers::lender().is_some() && !standin::stands_for(fd, id, generation) =>
        {
            None
        }
        _ => Some(slot),
    }
}

fn slot_at(table: usize, fd: c_int) -> Option<&'static AtomicU64> {
    let table = core::ptr::with_exposed_provenance::<AtomicU64>(table);
    if table.is_null() || fd < 0 || fd as usize >= FDS_MAX {
        return None;
    }
    // SAFETY: the table has FDS_MAX zero-initialised entries and is never unmapped.
    Some(unsafe { &*table.add(fd as usize) })
}

/// One more child will share this memory.
pub(crate) fn add_borrower() {
    let more = |t| (t & BORROWERS_MAX < BORROWERS_MAX).then_some(t + 1);
    let _ = TABLE.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
}

/// One less.
pub(crate) fn drop_borrower() {
    let less = |t| (1..BORROWERS_MAX).contains(&(t & BORROWERS_MAX)).then_some(t - 1);
    let _ = TABLE.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
}

/// There are none: in a forked child, whose memory is its own.
pub(crate) fn forget_borrowers() {
    TABLE.fetch_and(!BORROWERS_MAX, Ordering::AcqRel);
}

/// Whether some may be there.
#[inline]
#[must_use]
pub(crate) fn has_borrowers() -> bool {
    TABLE.load(Ordering::Relaxed) & BORROWERS_MAX != 0
}

fn count(id: u32) -> Option<&'static AtomicU32> {
    let counts = COUNTS.load(Ordering::Acquire);
    if counts.is_null() || id >= COUNTS_LEN.load(Ordering::Acquire) {
        return None;
    }
    // SAFETY: as in `slot`, with COUNTS_LEN entries.
    Some(unsafe { &*counts.add(id as usize) })
}

/// What `fd` is to us.
#[must_use]
pub fn get(fd: c_int) -> Entry {
    slot(fd).map_or(Entry::None, |s| Entry::from_word(s.load(Ordering::Acquire)))
}

/// Enters `fd` and returns what was there. `None` when `fd` is beyond the table.
pub fn swap(fd: c_int, entry: Entry) -> Option<Entry> {
    let s = slot(fd)?;
    if entry != Entry::None {
        TOP.fetch_max(fd as u32 + 1, Ordering::AcqRel);
    }
    Some(Entry::from_word(s.swap(entry.to_word(), Ordering::AcqRel)))
}

/// Whether the descriptor is a stand-in that sockets share ([`crate::standin`]).
#[must_use]
pub fn is_shared(fd: c_int) -> bool {
    slot(fd).is_some_and(|s| {
        let w = s.load(Ordering::Acquire);
        w >> KIND_SHIFT == KIND_SOCKET && w & SHARED != 0
    })
}

/// Notes that the descriptor, of this socket, is a shared stand-in.
pub fn set_shared(fd: c_int, id: u32, generation: u16) {
    if let Some(s) = slot(fd) {
        let word = Entry::Socket { id, generation }.to_word();
        let _ = s.compare_exchange(word, word | SHARED, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Notes that the descriptor has a stand-in of its own. `false` when it is this socket's no more.
pub fn set_settled(fd: c_int, id: u32, generation: u16) -> bool {
    slot(fd).is_some_and(|s| {
        let word = Entry::Socket { id, generation }.to_word();
        let r = s.compare_exchange(word | SHARED, word, Ordering::AcqRel, Ordering::Acquire);
        r == Ok(word | SHARED) || r == Err(word)
    })
}

/// One more than the highest descriptor ever entered.
#[must_use]
pub fn top() -> c_int {
    TOP.load(Ordering::Acquire) as c_int
}

/// A count word: descriptors in the low bits, then calls that sleep on the socket, then the flag.
const FDS_MASK: u32 = (1 << PIN_SHIFT) - 1;
const PIN_SHIFT: u32 = 21;
const PIN: u32 = 1 << PIN_SHIFT;
const USERS_MASK: u32 = HELD - 1;
/// The daemon holds the socket too (a descriptor of it was sent to another process).
const HELD: u32 = 1 << 31;

fn add(id: u32, n: u32) -> bool {
    count(id).is_some_and(|c| c.fetch_add(n, Ordering::AcqRel) & USERS_MASK == 0)
}

fn take(id: u32, n: u32, mask: u32) -> bool {
    count(id).is_some_and(|c| {
        // Never below zero, whatever a program does with descriptors behind our back.
        let r = c.fetch_update(Ordering::AcqRel, Ordering::Acquire, |v| {
            if v & mask == 0 {
                None
            } else if (v - n) & USERS_MASK == 0 {
                Some(0)
            } else {
                Some(v - n)
            }
        });
        r.is_ok_and(|v| (v - n) & USERS_MASK == 0)
    })
}

/// This process has one more descriptor for the socket; `true` when nothing used it before.
pub fn add_holder(id: u32) -> bool {
    add(id, 1)
}

/// One less; `true` when nothing uses it now.
pub fn drop_holder(id: u32) -> bool {
    take(id, 1, FDS_MASK)
}

/// A call goes to sleep on the socket. `false` when nothing uses it any more: it was closed meanwhile.
pub(crate) fn pin(id: u32) -> bool {
    count(id).is_some_and(|c| {
        c.fetch_update(Ordering::AcqRel, Ordering::Acquire, |v| {
            (v & USERS_MASK != 0).then(|| v + PIN)
        })
        .is_ok()
    })
}

/// It is back; `true` when nothing uses the socket now.
pub(crate) fn unpin(id: u32) -> bool {
    take(id, PIN, USERS_MASK & !FDS_MASK)
}

/// Descriptors of this process for the socket, and calls of it that sleep on it.
#[must_use]
pub fn holders(id: u32) -> u32 {
    count(id).map_or(0, |c| c.load(Ordering::Acquire) & USERS_MASK)
}

/// Notes that the daemon holds the socket as long as any descriptor for it is open.
pub(crate) fn set_held(id: u32) {
    if let Some(c) = count(id) {
        // Of one that nobody uses any more the note would be the next socket's of that id.
        let used = |v| (v & USERS_MASK != 0).then_some(v | HELD);
        let _ = c.fetch_update(Ordering::AcqRel, Ordering::Acquire, used);
    }
}

/// Whether that was noted.
pub(crate) fn is_held(id: u32) -> bool {
    count(id).is_some_and(|c| c.load(Ordering::Acquire) & HELD != 0)
}

/// In a forked child: threads that slept are not there, so only descriptors count.
pub(crate) fn recount() {
    let counts = COUNTS.load(Ordering::Acquire);
    if counts.is_null() {
        return;
    }
    let len = COUNTS_LEN.load(Ordering::Acquire) as usize * size_of::<AtomicU32>();
    // SAFETY: our own private mapping; its pages read as zero afterwards.
    unsafe { sys::system_call!(libc::SYS_madvise, counts, len, libc::MADV_DONTNEED) };
    for_each_socket(|_, id, _| {
        add_holder(id);
    });
}

/// Calls `f` for each socket held (each id once per descriptor).
pub fn for_each_socket(mut f: impl FnMut(c_int, u32, u16)) {
    for fd in 0..top() {
        if let Entry::Socket { id, generation } = get(fd) {
            f(fd, id, generation);
        }
    }
}

/// Forgets all that the descriptors themselves tell (a raw-forked child starts again by scanning): what is left are those with a
/// shared stand-in.
pub fn clear() {
    for fd in 0..top() {
        if let Some(s) = slot(fd)
            && !is_shared(fd)
        {
            s.store(0, Ordering::Release);
        }
    }
    recount();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_and_counts_end_at_zero() {
        const FD: c_int = 900_000;
        assert!(init(1024));
        assert_eq!(get(FD), Entry::None);
        let e = Entry::Socket { id: 1023, generation: 65535 };
        assert_eq!(swap(FD, e), Some(Entry::None));
        assert_eq!(get(FD), e);
        assert!(!is_shared(FD));
        set_shared(FD, 1022, 65535);
        assert!(!is_shared(FD), "another socket's");
        set_shared(FD, 1023, 65535);
        assert_eq!((is_shared(FD), get(FD)), (true, e));
        assert!(!set_settled(FD, 1022, 65535) && is_shared(FD));
        assert!(set_settled(FD, 1023, 65535) && !is_shared(FD));
        assert!(set_settled(FD, 1023, 65535), "it is already");
        assert_eq!(swap(FD, Entry::Epoll { index: 9 }), Some(e));
        assert_eq!(swap(FD, Entry::Internal), Some(Entry::Epoll { index: 9 }));
        assert_eq!(swap(FD, Entry::None), Some(Entry::Internal));
        assert_eq!((get(-1), swap(FDS_MAX as c_int, e)), (Entry::None, None));
        assert!(add_holder(1003));
        assert!(!add_holder(1003));
        assert!(!drop_holder(1003));
        assert!(drop_holder(1003));
        assert!(!drop_holder(1003), "never below zero");
        assert!(!add_holder(1024), "beyond the device");
    }
}
