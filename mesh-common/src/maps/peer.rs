//! The other nodes: how to send to one, what one may send, and who is behind those that are a switch.

use bytemuck::{Pod, Zeroable};

use super::{Addr, EndpointKey};
use crate::slots::mix;

/// `PEERS`: how to send to another node. An index is never given to another node while an entry of
/// `FIB` may still name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PeerInfo {
    /// Interface of the underlay; 0 while there is no route.
    pub ifindex: u32,
    pub flags: u32,
    /// Largest outer IP packet on the way there, in bytes.
    pub underlay_mtu: u32,
    /// Room for a number that counts the changes of this entry.
    pub generation: u32,
    /// The other node's underlay address, also while there is no route to it.
    pub remote: Addr,
    /// For `redirect_neigh` while the next hop's MAC is not known: its address.
    pub next_hop: Addr,
    /// BPF_F_ADJ_ROOM_*: what the kernel is to make of the outer headers, for segmentation and
    /// offloads.
    pub room: u64,
    /// Outer Ethernet and IP header, all but what the packet decides.
    pub outer: crate::wire::OuterWords,
    /// IPv4: see [`crate::wire::outer_v4`].
    pub outer_sum: u32,
    /// The first word of the tunnel's header, network byte order: of GRE without the inner packet's
    /// protocol and the flag for a key.
    pub tunnel: u32,
    /// UDP: the destination port, network byte order.
    pub port: u16,
    /// Bytes that the outer IP packet is longer than the inner one, in network 0.
    pub overhead: u16,
    /// Bits of the inner TOS that are copied, and bits that are set.
    pub tos_mask: u8,
    pub tos_set: u8,
    pub _pad: u16,
    /// Ethernet inside: its two MACs.
    pub inner_macs: [u32; 3],
    /// As `underlay_mtu`, for what has IPv6 inside: packets of 1280 bytes are sent whatever was heard
    /// of the way, since nobody who sends IPv6 makes smaller ones (RFC 8200, 5).
    pub underlay_mtu6: u32,
}

impl PeerInfo {
    /// The MACs in `outer` are good: plain `redirect`. Otherwise `redirect_neigh` resolves.
    pub const MAC_KNOWN: u32 = 1;
    /// Ethernet inside: GRETAP, VXLAN, Geneve.
    pub const ETHERNET: u32 = 2;
    /// IPv6 outside.
    pub const IPV6: u32 = 4;
    /// UDP, and a header with the VNI: VXLAN, Geneve.
    pub const UDP: u32 = 8;
    /// No mesh behind it but a switch: the inner destination MAC is the destination's own, from
    /// `NEIGHBOURS`.
    pub const SWITCH: u32 = 16;
    /// The segment size of TCP is kept to what fits.
    pub const CLAMP: u32 = 32;
}

/// `PEER_BY_ADDR`: who may send to us. The exact VNI is part of the key, so that one lookup
/// answers whether this host may speak for this network at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct PeerKey {
    pub outer_source: Addr,
    pub vni: u32,
}

/// `PEER_BY_ADDR`: what a peer may send in a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PeerSource {
    /// Index into `PEERS` and `PEER_STATS`.
    pub peer: u32,
    pub flags: u32,
    /// The network that this is; the key has its number on the wire.
    pub vni: u32,
    /// The outer destination it must use: our underlay address.
    pub local: Addr,
    /// Its subnet of each family in this network; never matches when it has none.
    pub net4: u32,
    pub mask4: u32,
    pub net6: [u32; 4],
    pub mask6: [u32; 4],
}

impl PeerSource {
    /// More than one subnet of a family: a source outside the one here may still be in the FIB.
    pub const MORE: u32 = 1;
    /// As [`PeerInfo::SWITCH`]: it asks by ARP and neighbour discovery, and MACs are learned.
    pub const SWITCH: u32 = 2;
    /// As [`PeerInfo::CLAMP`].
    pub const CLAMP: u32 = 4;
    /// The network carries broadcast and multicast.
    pub const FLOOD: u32 = 8;
}

/// `NEIGHBOURS`: an address behind a peer that is a switch.
pub type NeighbourKey = EndpointKey;

/// `NEIGHBOURS`: its MAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NeighbourInfo {
    /// The MAC's three words, the first one lowest, and above them the key's tag. In one word, which is
    /// read and written at once: another key may take the element while it is read.
    pub mac_tag: u64,
    /// The peer that said so.
    pub peer: u32,
    /// When it was last heard of, and asked for, in seconds since boot.
    pub heard: u32,
    pub asked: u32,
    pub _pad: u32,
}

impl NeighbourInfo {
    #[inline(always)]
    pub fn new(key: &NeighbourKey, mac: [u16; 3], peer: u32, heard: u32, asked: u32) -> Self {
        let [a, b, c] = mac.map(u64::from);
        Self { mac_tag: tag(key) << 48 | c << 32 | b << 16 | a, peer, heard, asked, _pad: 0 }
    }

    /// The MAC, unless it is another key's.
    #[inline(always)]
    pub fn mac(&self, key: &NeighbourKey) -> Option<[u16; 3]> {
        // SAFETY: a reference. Volatile, so that it is read once.
        let word = unsafe { (&raw const self.mac_tag).read_volatile() };
        let mac = [word as u16, (word >> 16) as u16, (word >> 32) as u16];
        (word >> 48 == tag(key)).then_some(mac)
    }
}

/// 16 bits that tell one key from another.
#[inline(always)]
fn tag(key: &NeighbourKey) -> u64 {
    (mix(key.vni, &key.addr) >> 16).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_of_a_neighbour_is_read_with_its_own_key_only() {
        let key = |last| NeighbourKey { vni: 7, addr: Addr([0, 0, 0, u32::to_be(last)]) };
        let info = NeighbourInfo::new(&key(1), [1, 2, 0xffff], 3, 4, 5);
        assert_eq!(info.mac(&key(1)), Some([1, 2, 0xffff]));
        assert_eq!(info.mac(&key(2)), None);
        assert_eq!(info.mac(&key(257)), None);
    }
}
