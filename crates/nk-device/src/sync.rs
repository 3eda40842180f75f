//! Atomics behind a trait, so that the algorithms of [`crate::ring`], [`crate::stream`] and [`crate::grant`] run over shared
//! memory with `core`'s atomics and under loom with loom's.

pub use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

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
        }
    };
}
atomic_trait!(Word32, u32, "A 32-bit atomic cell.");
atomic_trait!(Word64, u64, "A 64-bit atomic cell.");

macro_rules! atomic_impl {
    ($trait:ident, $int:ty, $atomic:ty) => {
        impl $trait for $atomic {
            fn load(&self, order: Ordering) -> $int {
                <$atomic>::load(self, order)
            }
            fn store(&self, value: $int, order: Ordering) {
                <$atomic>::store(self, value, order);
            }
            fn compare_exchange(
                &self,
                current: $int,
                new: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                <$atomic>::compare_exchange(self, current, new, success, failure)
            }
        }
    };
}
atomic_impl!(Word32, u32, AtomicU32);
atomic_impl!(Word64, u64, AtomicU64);
#[cfg(loom)]
atomic_impl!(Word32, u32, loom::sync::atomic::AtomicU32);
#[cfg(loom)]
atomic_impl!(Word64, u64, loom::sync::atomic::AtomicU64);
