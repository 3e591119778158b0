//! Arrays of slots: a key is in its own slot, or in the slot whose number a hash map has.
//!
//! ```text
//! number 0 .. SLOTS    keys' own slots: found by the key alone, or by the number in the hash map
//!        ..            [`SlotKey::LEARNED`] slots that programs fill
//!        ..            slots of keys whose own slot has another key: found by the number alone
//! ```
//!
//! A lookup in an array is a few instructions, one in a hash map is two calls (measured: 1 against
//! 9 to 11 ns).
//!
//! No program reads a slot while it is written. A slot is written after all programs that may have found
//! it have ended (an RCU grace period), and found again once it is whole. Elements of hash maps give no
//! such promise: the kernel has another key take one at once, under its readers. So they have nothing
//! but a number, and whose slot that is stands in the slot.

use bytemuck::{Pod, Zeroable};

use crate::maps::{
    Addr, EndpointInfo, EndpointKey, FibInfo, FibKey, FloodInfo, FloodKey, NetworkInfo, PeerKey,
    PeerSource, PortInfo,
};

/// Keys' own slots.
pub const SLOTS: u32 = 4096;

/// Ports of a host.
pub const PORTS_MAX: u32 = 4096;

/// The slot of `ENDPOINTS` for what is learned of a port, by its index into `ENDPOINT_STATS`.
#[inline(always)]
pub const fn learned_slot(id: u32, is_v4: bool) -> u32 {
    SLOTS + 2 * (id % PORTS_MAX) + is_v4 as u32
}

/// Slots beside those of all entries: so many entries change at once without a grace period.
const SPARE: u32 = 1024;

/// Slots of an array for a hash map of so many keys.
pub const fn slots<K: SlotKey>(entries: u32) -> u32 {
    (SLOTS + K::LEARNED + SPARE).saturating_add(entries)
}

/// One entry of an array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slot<K, V> {
    /// In a key's own slot: 0 if it is not found by the key alone.
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
    u32 => NetworkInfo,
    FloodKey => FloodInfo,
}

/// A key that has a slot.
pub trait SlotKey: Copy + PartialEq {
    /// Slots behind [`SLOTS`] that programs fill, each for one port.
    const LEARNED: u32 = 0;

    /// Its own, below [`SLOTS`].
    fn slot(&self) -> u32;
}

/// Of an interface, or of a network: those in a row have slots apart.
impl SlotKey for u32 {
    #[inline(always)]
    fn slot(&self) -> u32 {
        *self % SLOTS
    }
}

impl SlotKey for EndpointKey {
    const LEARNED: u32 = 2 * PORTS_MAX;

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

impl SlotKey for FloodKey {
    #[inline(always)]
    fn slot(&self) -> u32 {
        slot(self.list_vni, &Addr([0, 0, 0, self.index]))
    }
}

/// Addresses and subnets in a row fall into slots apart.
#[inline(always)]
fn slot(word: u32, addr: &Addr) -> u32 {
    mix(word, addr) >> (u32::BITS - SLOTS.trailing_zeros())
}

/// A sum of products by odd numbers, of which the top bits depend on all bits.
#[inline(always)]
pub(crate) fn mix(word: u32, addr: &Addr) -> u32 {
    let [a, b, c, d] = addr.0;
    d.wrapping_mul(0x9e37_79b1)
        .wrapping_add(word.wrapping_mul(0x85eb_ca77))
        .wrapping_add(c.wrapping_mul(0xc2b2_ae3d))
        .wrapping_add(b.wrapping_mul(0x27d4_eb2f))
        .wrapping_add(a.wrapping_mul(0x1656_67b1))
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
