//! Arrays in front of hash maps: a key has one place in the array, and is looked up there first.
//!
//! A lookup in an array is a few instructions, one in a hash map is two calls (measured: 1 against
//! 9 to 11 ns). Of keys that share a slot one has it, the others are found in the hash map, which
//! has all.
//!
//! No program reads a slot while it is written: it is marked unused first, written after all programs
//! that may have seen it used have ended (an RCU grace period), and then marked used.

use bytemuck::{Pod, Zeroable};

use crate::maps::{
    Addr, EndpointInfo, EndpointKey, FibInfo, FibKey, PeerKey, PeerSource, PortInfo,
};

/// Slots of each array.
pub const SLOTS: u32 = 4096;

/// One entry of an array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slot<K, V> {
    /// 0 if the slot says nothing.
    pub used: u32,
    pub key: K,
    pub info: V,
}

macro_rules! pod_slots {
    ($($key:ty => $info:ty),* $(,)?) => { $(
        const _: () = assert!(
            size_of::<Slot<$key, $info>>() == 4 + size_of::<$key>() + size_of::<$info>(),
            "padding"
        );
        // SAFETY: all zero is an unused slot.
        unsafe impl Zeroable for Slot<$key, $info> {}
        // SAFETY: plain old data in C's layout, without padding, as is asserted above.
        unsafe impl Pod for Slot<$key, $info> {}
    )* };
}

pod_slots! {
    u32 => PortInfo,
    EndpointKey => EndpointInfo,
    FibKey => FibInfo,
    PeerKey => PeerSource,
}

/// A key that has a slot.
pub trait SlotKey: Copy + PartialEq {
    /// Below [`SLOTS`].
    fn slot(&self) -> u32;
}

/// Of an interface: those in a row have slots apart.
impl SlotKey for u32 {
    #[inline(always)]
    fn slot(&self) -> u32 {
        *self % SLOTS
    }
}

impl SlotKey for EndpointKey {
    #[inline(always)]
    fn slot(&self) -> u32 {
        slot(self.vni, &self.addr)
    }
}

impl SlotKey for FibKey {
    #[inline(always)]
    fn slot(&self) -> u32 {
        slot(self.len_vni, &self.addr)
    }
}

impl SlotKey for PeerKey {
    #[inline(always)]
    fn slot(&self) -> u32 {
        slot(self.vni, &self.outer_source)
    }
}

/// A sum of products by odd numbers, of which the top bits depend on all bits: addresses and subnets
/// in a row fall into slots apart.
#[inline(always)]
fn slot(word: u32, addr: &Addr) -> u32 {
    let [a, b, c, d] = addr.0;
    let sum = d
        .wrapping_mul(0x9e37_79b1)
        .wrapping_add(word.wrapping_mul(0x85eb_ca77))
        .wrapping_add(c.wrapping_mul(0xc2b2_ae3d))
        .wrapping_add(b.wrapping_mul(0x27d4_eb2f))
        .wrapping_add(a.wrapping_mul(0x1656_67b1));
    sum >> (u32::BITS - SLOTS.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr};

    use super::*;

    extern crate std;
    use std::collections::HashSet;

    fn slots_of(addrs: impl Iterator<Item = u32>, len: u8) -> (usize, usize) {
        let keys: HashSet<FibKey> =
            addrs.map(|a| FibKey::new(0, len, Addr::from(IpAddr::V4(Ipv4Addr::from(a))))).collect();
        (keys.len(), keys.iter().map(SlotKey::slot).collect::<HashSet<_>>().len())
    }

    #[test]
    fn addresses_in_a_row_share_no_slot() {
        let (keys, slots) = slots_of((0..256).map(|n| 0x0a2a_0000 + n), 128);
        assert_eq!((keys, slots), (256, 256));
    }

    #[test]
    fn subnets_in_a_row_hardly_share_slots() {
        let (keys, slots) = slots_of((0..1024).map(|n| 0x0a2a_0000 + (n << 8)), 96 + 24);
        assert_eq!(keys, 1024);
        assert!(slots > 800, "{slots}");
    }
}
