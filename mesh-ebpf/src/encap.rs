//! One encapsulation for all: the outer headers are data, prepared by user space for each peer.
//! What the packet itself decides is filled in here: lengths, TOS, checksum, VNI.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_GRE,
};
use mesh_common::{
    maps::PeerInfo,
    verdict::{DropReason, Verdict},
    wire::{ETH_LEN, GRE_FLAG_KEY, GRE_KEY_LEN, OUTER_WORDS, fold, gre_overhead},
};

use crate::{
    TELL_INNER,
    end::Done,
    packet::{self, Packet},
};

/// Words of the template: TOS (with the version byte before it), length and checksum of the outer
/// IPv4 header, flags and protocol of GRE.
const TOS: usize = 7;
const LEN: usize = 8;
const SUM: usize = 12;
const GRE_FLAGS: usize = 17;
const GRE_PROTO: usize = 18;

/// `BPF_F_ADJ_ROOM_*`: what the kernel is to make of the new bytes, for segmentation and offloads.
const ENCAP_IP: u64 = (BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_GRE) as u64;
/// With an inner Ethernet header, whose length is in the top byte (BPF_ADJ_ROOM_ENCAP_L2_SHIFT).
const ENCAP_ETHERNET: u64 = ENCAP_IP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64 | (ETH_LEN as u64) << 56;

/// The way to a peer within one network.
pub struct Route<'a> {
    peer: &'a PeerInfo,
    vni: u32,
    ethernet: bool,
    /// Bytes that the outer IP packet is longer than the inner one.
    overhead: u32,
}

impl<'a> Route<'a> {
    #[inline(always)]
    pub fn new(peer: &'a PeerInfo, vni: u32) -> Self {
        let ethernet = peer.flags & PeerInfo::ETHERNET != 0;
        Self { peer, vni, ethernet, overhead: gre_overhead(vni, ethernet) as u32 }
    }

    /// Largest inner packet: the smaller of the port's MTU and what the underlay leaves.
    #[inline(always)]
    pub fn mtu(&self, port_mtu: u32) -> u32 {
        let path = self.peer.underlay_mtu - self.overhead;
        if path < port_mtu { path } else { port_mtu }
    }
}

/// Encapsulates and sends. `proto`: of the inner packet, network byte order. `bytes`: of the inner
/// packet.
#[inline(always)]
pub fn send(
    packet: &Packet,
    route: &Route<'_>,
    proto: u16,
    tos: u8,
    bytes: u32,
) -> Result<Done, DropReason> {
    let peer = route.peer;
    let inner = if route.ethernet { ENCAP_ETHERNET } else { ENCAP_IP };
    packet.grow(route.overhead, if TELL_INNER { inner } else { 0 })?;

    let outer: *mut [u16; OUTER_WORDS] = packet.at(0).ok_or(DropReason::NoRoom)?;
    // A super-packet may be longer than the field: each segment gets its own length later.
    let len = ((bytes + route.overhead) as u16).to_be();
    let tos = u16::from_ne_bytes([0, tos]);
    // SAFETY: `at` checked the bounds, and the front of a frame is aligned to two bytes.
    unsafe {
        *outer = peer.outer;
        (*outer)[TOS] |= tos;
        (*outer)[LEN] = len;
        (*outer)[SUM] = fold(peer.outer_sum + u32::from(len) + u32::from(tos));
        if !route.ethernet {
            (*outer)[GRE_PROTO] = proto;
        }
        if route.vni != 0 {
            (*outer)[GRE_FLAGS] = GRE_FLAG_KEY.to_be();
        }
    }
    if route.vni != 0 {
        let key: *mut [u16; 2] = packet.at(OUTER_WORDS * 2).ok_or(DropReason::NoRoom)?;
        // SAFETY: as above.
        unsafe { *key = words(route.vni.to_be()) };
    }
    if route.ethernet {
        let at = OUTER_WORDS * 2 + if route.vni != 0 { GRE_KEY_LEN } else { 0 };
        let inner: *mut ([u16; 6], u16) = packet.at(at).ok_or(DropReason::NoRoom)?;
        // SAFETY: as above.
        unsafe { *inner = (peer.inner_macs, proto) };
    }

    let code = if peer.flags & PeerInfo::MAC_KNOWN != 0 {
        packet::redirect(peer.ifindex)
    } else {
        packet::redirect_neigh(peer.ifindex, &peer.next_hop)
    };
    Ok((Verdict::Encap, code))
}

#[inline(always)]
fn words(v: u32) -> [u16; 2] {
    let [a, b, c, d] = v.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}
