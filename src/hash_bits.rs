//! How many bits of a hash are used to find rows: all, but for tests in which different rows shall collide.

/// The bits that what is made now uses.
#[cfg(not(test))]
pub fn mask() -> u32 {
    u32::MAX
}

#[cfg(test)]
pub use self::few::{FewHashes, mask};

#[cfg(test)]
mod few {
    use std::cell::Cell;

    thread_local! {
        static MASK: Cell<u32> = const { Cell::new(u32::MAX) };
    }

    /// The bits that what is made now uses.
    pub fn mask() -> u32 {
        MASK.get()
    }

    /// While it lives, what is made on this thread uses 5 bits of its hashes, for ever: most rows collide.
    pub struct FewHashes(u32);

    impl FewHashes {
        /// From now on.
        pub fn begin() -> FewHashes {
            FewHashes(MASK.replace(0x1f))
        }
    }

    impl Drop for FewHashes {
        fn drop(&mut self) {
            MASK.set(self.0);
        }
    }
}
