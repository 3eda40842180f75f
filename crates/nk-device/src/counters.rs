//! What is counted of a guest, in memory that outlives the process that counts: the host's alone, and no guest or NSM process has it. And what an
//! NSM has sent and received ([`Totals`]), which its process counts.
//!
//! The engine, an inline service and the daemon's control thread each have a part, and each part one writer; anybody of the host may
//! read. Nothing rests on what stands there.

use core::ops::Deref;
use core::ptr::NonNull;
// Not the crate's: nothing is ordered by these, so no model needs to follow them.
use core::sync::atomic::{AtomicU64, Ordering};

/// Of the layout below.
pub const COUNTERS_VERSION: u64 = 2;
/// Sockets of a guest, at most.
const SOCKETS_MAX: usize = 32 * 1024;
/// Different things that are counted as not redirected.
pub const MISSED_MAX: usize = 256;

/// One counter.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts. There is one writer, so that no locked instruction is needed.
    #[inline]
    pub fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }
    /// Its value.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    /// Gives it a value.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}

/// By operation byte: also those that are no operation.
#[derive(Debug)]
#[repr(transparent)]
pub struct ByOp([Counter; 256]);

impl Default for ByOp {
    fn default() -> ByOp {
        ByOp([const { Counter(AtomicU64::new(0)) }; 256])
    }
}

impl ByOp {
    /// Counts so many of an operation.
    #[inline]
    pub fn add(&self, op: u8, n: u64) {
        if let Some(c) = self.0.get(usize::from(op)) {
            c.add(n);
        }
    }
    /// The values.
    #[must_use]
    pub fn get(&self) -> [u64; 256] {
        self.0.each_ref().map(Counter::get)
    }
}

/// A mark for each socket of a guest. There is one writer.
#[derive(Debug)]
#[repr(transparent)]
pub struct Marks([Counter; SOCKETS_MAX / 64]);

impl Default for Marks {
    fn default() -> Marks {
        Marks([const { Counter(AtomicU64::new(0)) }; SOCKETS_MAX / 64])
    }
}

impl Marks {
    fn word(&self, socket: u32) -> Option<(&Counter, u64)> {
        Some((self.0.get(socket as usize / 64)?, 1 << (socket % 64)))
    }
    /// Whether the socket has one.
    #[must_use]
    pub fn has(&self, socket: u32) -> bool {
        self.word(socket).is_some_and(|(word, bit)| word.get() & bit != 0)
    }
    /// Gives it one.
    #[inline]
    pub fn set(&self, socket: u32) {
        if let Some((word, bit)) = self.word(socket) {
            word.set(word.get() | bit);
        }
    }
    /// Takes it away.
    #[inline]
    pub fn clear(&self, socket: u32) {
        if let Some((word, bit)) = self.word(socket) {
            word.set(word.get() & !bit);
        }
    }
}

/// What the engine counts.
#[derive(Debug, Default)]
#[repr(C)]
pub struct EngineCounters {
    /// NQEs from the guest.
    pub from_guest: ByOp,
    /// NQEs to the guest.
    pub to_guest: ByOp,
    /// Bytes that sockets which are gone had sent.
    pub bytes_sent: Counter,
    /// Bytes that they had received.
    pub bytes_received: Counter,
    /// Connections ever made or accepted.
    pub connections_total: Counter,
    /// Sockets that are among these: the next engine counts those that an NSM accepted while there was none.
    pub counted: Marks,
    /// NQEs that broke the protocol.
    pub violations: Counter,
    /// NQEs for a socket that was gone.
    pub stale: Counter,
    /// Queue sets that are served no more.
    pub quarantined: Counter,
    /// Events that did not fit.
    pub overflows: Counter,
    /// Ports that are another guest's.
    pub ports_refused: Counter,
    /// Binds and listens against the guest's policy.
    pub listens_refused: Counter,
    /// Times that NQEs waited for the guest's rate.
    pub nqes_held: Counter,
    /// Connects that did.
    pub connects_held: Counter,
    /// Times that accepting did.
    pub accepts_held: Counter,
}

/// What a service counts.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ServiceCounters {
    /// Bytes that the stack took.
    pub bytes_sent: Counter,
    /// Bytes that the stack gave.
    pub bytes_received: Counter,
    /// Descriptors that broke the protocol.
    pub violations: Counter,
    /// Accepts that failed.
    pub accept_failures: Counter,
    /// Datagrams that the stack refused.
    pub datagrams_refused: Counter,
    /// Datagrams that the stack dropped.
    pub datagrams_dropped: Counter,
    /// Of sending.
    pub out: HeldCounters,
    /// Of receiving.
    pub input: HeldCounters,
}

/// What a rate held back.
#[derive(Debug, Default)]
#[repr(C)]
pub struct HeldCounters {
    /// Times that a socket had to wait.
    pub times: Counter,
    /// Nanoseconds during which some socket did.
    pub ns: Counter,
}

/// What the control thread counts.
#[derive(Debug)]
#[repr(C)]
pub struct HostCounters {
    /// Connections to the resolver asked for.
    pub names_asked: Counter,
    /// Those not given.
    pub names_refused: Counter,
    /// What processes that ended had counted as not redirected: a key that is not 0, and how often.
    pub missed: [(Counter, Counter); MISSED_MAX],
}

impl Default for HostCounters {
    fn default() -> HostCounters {
        HostCounters {
            names_asked: Counter::default(),
            names_refused: Counter::default(),
            missed: core::array::from_fn(|_| Default::default()),
        }
    }
}

/// All counters of a guest.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Counters {
    version: Counter,
    /// The engine's.
    pub engine: EngineCounters,
    /// A service's.
    pub service: ServiceCounters,
    /// The control thread's.
    pub host: HostCounters,
}

/// What an NSM counts of all its guests, those that are gone too, from life to life of its process. An NSM that was taken over may write there what it
/// likes: nothing but what is shown comes of it.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Totals {
    /// Bytes that the stack took.
    pub bytes_sent: Counter,
    /// Bytes that the stack gave.
    pub bytes_received: Counter,
}

/// Counters in memory that somebody else keeps. Copies refer to the same.
#[derive(Debug)]
pub struct Shared<T>(NonNull<T>);
/// A guest's.
pub type SharedCounters = Shared<Counters>;
/// An NSM's.
pub type SharedTotals = Shared<Totals>;

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        *self
    }
}
impl<T> Copy for Shared<T> {}

// SAFETY: all access goes through atomics.
unsafe impl<T: Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl SharedTotals {
    /// Over memory that is zeroed, or had totals before.
    ///
    /// # Safety
    /// `base` is aligned for [`Totals`] and has room for them, readable and writable for as long as any copy of the value is used.
    #[must_use]
    pub unsafe fn over(base: NonNull<u8>) -> SharedTotals {
        Shared(base.cast())
    }
}

impl SharedCounters {
    /// Over memory that is zeroed, or had counters before. `Err`: these are of another version, which it carries.
    ///
    /// # Safety
    /// `base` is aligned for [`Counters`] and has room for them, readable and writable for as long as any copy of the value is used.
    pub unsafe fn new(base: NonNull<u8>) -> Result<SharedCounters, u64> {
        let counters: SharedCounters = Shared(base.cast());
        match counters.version.get() {
            0 => counters.version.set(COUNTERS_VERSION),
            COUNTERS_VERSION => {}
            other => return Err(other),
        }
        Ok(counters)
    }
}

impl<T> From<&'static T> for Shared<T> {
    fn from(counters: &'static T) -> Shared<T> {
        Shared(NonNull::from(counters))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: whoever made the value vouches for the memory; other processes of the host change it by atomics alone.
        unsafe { self.0.as_ref() }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_next_process_goes_on_and_another_version_is_told() {
        let memory = Counters::default();
        let base = NonNull::from(&memory).cast();
        // SAFETY: `memory` outlives both.
        let (first, next) = unsafe {
            (SharedCounters::new(base).expect("fresh"), SharedCounters::new(base).expect("same"))
        };
        first.engine.from_guest.add(255, 3);
        first.engine.stale.add(u64::MAX);
        next.engine.from_guest.add(255, 4);
        next.engine.stale.add(2);
        assert_eq!((first.engine.from_guest.get()[255], next.engine.stale.get()), (7, 1));
        let marks = &first.engine.counted;
        [0, 63, 64, 32_767, u32::MAX].into_iter().for_each(|socket| marks.set(socket));
        marks.clear(63);
        let has = [0, 1, 63, 64, 32_767, u32::MAX].map(|s| next.engine.counted.has(s));
        assert_eq!(has, [true, false, false, true, true, false]);
        memory.version.set(COUNTERS_VERSION + 1);
        // SAFETY: as above.
        let other = unsafe { SharedCounters::new(base) };
        assert_eq!(other.err(), Some(COUNTERS_VERSION + 1));
    }
}
