//! Entries of arrays that change under their readers: two halves, of which one is good.
//!
//! User space writes the half that is not, and then says that it is: a reader goes on with the half
//! that it has found, which stays as it is until nobody reads it any more.

use bytemuck::{Pod, Zeroable};

use crate::maps::{NodeInfo, PeerInfo};

/// One entry of an array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Halves<V> {
    /// Which half is good: its lowest bit.
    pub good: u32,
    pub _pad: u32,
    pub halves: [V; 2],
}

// SAFETY: all zero is an entry whose good half is all zero.
unsafe impl<V: Zeroable> Zeroable for Halves<V> {}

macro_rules! pod {
    ($($info:ty),*) => { $(
        const _: () = assert!(size_of::<Halves<$info>>() == 8 + 2 * size_of::<$info>());
        // SAFETY: its parts are plain old data, and there is nothing between them or behind.
        unsafe impl Pod for Halves<$info> {}
    )* };
}
pod!(NodeInfo, PeerInfo);

impl<V: Copy> Halves<V> {
    /// The good half. The reader's own: which is good is looked at once.
    #[inline(always)]
    pub fn good(&self) -> &V {
        // SAFETY: a reference. Volatile, so that it is read once. A processor that reorders loads keeps
        // this one before those of the half, whose addresses depend on it.
        let good = unsafe { (&raw const self.good).read_volatile() };
        &self.halves[(good & 1) as usize]
    }

    /// With another value in the half that is not good.
    pub fn with_next(mut self, value: V) -> Self {
        self.halves[(self.good & 1 ^ 1) as usize] = value;
        self
    }

    /// With the other half as the good one.
    pub fn turned(self) -> Self {
        Self { good: self.good ^ 1, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_good_once_the_entry_is_turned() {
        let of = |flags| NodeInfo { flags, ..NodeInfo::default() };
        let before = Halves::<NodeInfo>::default().with_next(of(1));
        assert_eq!(before.good().flags, 0);
        let after = before.turned();
        assert_eq!(after.good().flags, 1);
        let after = after.with_next(of(2)).turned();
        assert_eq!((after.good().flags, after.halves[1].flags), (2, 1));
    }
}
