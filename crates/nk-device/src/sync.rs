//! The atomics and fences of the whole crate: `core`'s, or under `--cfg loom` loom's, so that the models of `nk-models` run the
//! shipped code and not a copy of it.
//!
//! The traits let [`crate::ring`], [`crate::stream`] and [`crate::grant`] be tried over other words than those of a device.

pub use core::sync::atomic::Ordering;
#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, fence};
#[cfg(loom)]
pub use modelled::{AtomicU32, AtomicU64, fence};

/// Padding between the groups of a structure: never accessed, so no model needs to follow it.
pub type Pad32 = core::sync::atomic::AtomicU32;
/// Padding in 64-bit steps.
pub type Pad64 = core::sync::atomic::AtomicU64;

macro_rules! atomic_trait {
    ($name:ident, $int:ty, $doc:literal) => {
        #[doc = $doc]
        pub trait $name {
            /// Atomic load.
            fn load(&self, order: Ordering) -> $int;
            /// Atomic store.
            fn store(&self, value: $int, order: Ordering);
            /// Compare and exchange; `Err` carries the value found.
            fn compare_exchange(
                &self,
                current: $int,
                new: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int>;
            /// Sets bits; the value before.
            fn fetch_or(&self, bits: $int, order: Ordering) -> $int;
        }
    };
}
atomic_trait!(Word32, u32, "A 32-bit atomic cell.");
atomic_trait!(Word64, u64, "A 64-bit atomic cell.");

macro_rules! atomic_impl {
    ($trait:ident, $int:ty, $atomic:ty) => {
        impl $trait for $atomic {
            #[inline]
            fn load(&self, order: Ordering) -> $int {
                <$atomic>::load(self, order)
            }
            #[inline]
            fn store(&self, value: $int, order: Ordering) {
                <$atomic>::store(self, value, order);
            }
            #[inline]
            fn compare_exchange(
                &self,
                current: $int,
                new: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                <$atomic>::compare_exchange(self, current, new, success, failure)
            }
            #[inline]
            fn fetch_or(&self, bits: $int, order: Ordering) -> $int {
                <$atomic>::fetch_or(self, bits, order)
            }
        }
    };
}
atomic_impl!(Word32, u32, AtomicU32);
atomic_impl!(Word64, u64, AtomicU64);

/// Has the line of a value fetched for writing, where the processor knows how. Only a hint: nothing is read or written.
#[inline]
pub fn prefetch_for_write<T>(value: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch neither faults nor changes what any program can see; processors without it run it as a NOP.
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) value, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = value;
}

/// loom's atomics, with a switch that weakens them: a model that still passes then proves nothing.
#[cfg(loom)]
pub mod modelled {
    use core::sync::atomic::{AtomicU8, Ordering};

    /// What is taken away from the code under test.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    pub enum Mutation {
        /// Nothing.
        None = 0,
        /// Every fence.
        NoFences = 1,
        /// Every ordering: all accesses are relaxed. Fences stay.
        Relaxed = 2,
    }

    // Not loom's: it belongs to the test, not to the code under test.
    static MUTATION: AtomicU8 = AtomicU8::new(0);

    /// Chooses the mutation of this process.
    pub fn mutate(m: Mutation) {
        MUTATION.store(m as u8, Ordering::SeqCst);
    }

    fn weakened(order: Ordering) -> Ordering {
        if MUTATION.load(Ordering::SeqCst) == Mutation::Relaxed as u8 {
            Ordering::Relaxed
        } else {
            order
        }
    }

    /// As [`core::sync::atomic::fence`].
    pub fn fence(order: Ordering) {
        if MUTATION.load(Ordering::SeqCst) != Mutation::NoFences as u8 {
            loom::sync::atomic::fence(order);
        }
    }

    macro_rules! modelled {
        ($name:ident, $int:ty) => {
            /// As `core`'s. `turn` is touched before each access: loom looks for races with a word's last access only, so that a thread
            /// that loads before it writes hides the load of another; when every access conflicts, the last one is enough. Relaxed, so
            /// that it orders nothing.
            #[derive(Debug)]
            pub struct $name {
                word: loom::sync::atomic::$name,
                turn: loom::sync::atomic::AtomicU32,
            }

            impl $name {
                /// A word with a value.
                #[must_use]
                pub fn new(value: $int) -> $name {
                    $name {
                        word: loom::sync::atomic::$name::new(value),
                        turn: loom::sync::atomic::AtomicU32::new(0),
                    }
                }
                fn word(&self) -> &loom::sync::atomic::$name {
                    self.turn.fetch_add(1, Ordering::Relaxed);
                    &self.word
                }
                /// As `core`'s.
                pub fn load(&self, order: Ordering) -> $int {
                    self.word().load(weakened(order))
                }
                /// As `core`'s.
                pub fn store(&self, value: $int, order: Ordering) {
                    self.word().store(value, weakened(order));
                }
                /// As `core`'s.
                pub fn swap(&self, value: $int, order: Ordering) -> $int {
                    self.word().swap(value, weakened(order))
                }
                /// As `core`'s.
                pub fn fetch_add(&self, value: $int, order: Ordering) -> $int {
                    self.word().fetch_add(value, weakened(order))
                }
                /// As `core`'s.
                pub fn fetch_sub(&self, value: $int, order: Ordering) -> $int {
                    self.word().fetch_sub(value, weakened(order))
                }
                /// As `core`'s.
                pub fn fetch_or(&self, value: $int, order: Ordering) -> $int {
                    self.word().fetch_or(value, weakened(order))
                }
                /// As `core`'s.
                pub fn fetch_and(&self, value: $int, order: Ordering) -> $int {
                    self.word().fetch_and(value, weakened(order))
                }
                /// As `core`'s.
                ///
                /// # Errors
                /// The value found, when it was not `current`.
                pub fn compare_exchange(
                    &self,
                    current: $int,
                    new: $int,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$int, $int> {
                    self.word().compare_exchange(current, new, weakened(success), weakened(failure))
                }
            }

            impl Default for $name {
                fn default() -> $name {
                    $name::new(0)
                }
            }
        };
    }
    modelled!(AtomicU32, u32);
    modelled!(AtomicU64, u64);
}
