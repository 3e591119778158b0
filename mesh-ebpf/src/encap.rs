//! One encapsulation for all: the outer headers are data, prepared by user space for each peer.
//! What the packet itself decides is filled in here: lengths, TOS, checksum, VNI.

use aya_ebpf::{
    Global,
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_GRE,
    },
};
use mesh_common::{
    maps::PeerInfo,
    verdict::{DropReason, Verdict},
    wire::{
        ETH_LEN, GRE_FLAG_KEY, GRE_KEY_LEN, OUTER_LEN, OuterFields, gre_overhead, outer_headers,
    },
};

use crate::{
    TELL_INNER,
    end::Done,
    packet::{self, Packet},
};

/// `BPF_F_ADJ_ROOM_*`: what the kernel is to make of the new bytes, for segmentation and offloads.
const ENCAP_IP: u64 = (BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_GRE) as u64;
/// With an inner Ethernet header, whose length is in the top byte (BPF_ADJ_ROOM_ENCAP_L2_SHIFT).
const ENCAP_ETHERNET: u64 = ENCAP_IP | (ETH_LEN as u64) << 56;
/// And that it is Ethernet, for kernels that know the flag (5.13, d01b59c9ae94); 0 for others, which
/// find it out from the GRE header.
#[unsafe(no_mangle)]
static ENCAP_L2_ETH: Global<u64> = Global::new(BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64);

/// Where the headers end with a key.
const KEY_END: usize = OUTER_LEN + GRE_KEY_LEN;

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
        let path = self.peer.underlay_mtu.saturating_sub(self.overhead);
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
    let inner = if route.ethernet { ENCAP_ETHERNET | ENCAP_L2_ETH.load() } else { ENCAP_IP };
    let told = packet.grow(route.overhead, if TELL_INNER { inner } else { 0 });
    if told.is_err() {
        // A packet that came in by the mesh and goes on, as through a proxy's NAT, stays marked as
        // encapsulated, and is not marked twice (EALREADY). Only a super-packet needs the mark.
        if packet.gso_size() != 0 {
            return Err(DropReason::NoRoom);
        }
        packet.grow(route.overhead, 0)?;
    }

    let keyed = route.vni != 0;
    let fields = OuterFields {
        tos,
        // A super-packet may be longer than the field: each segment gets its own length later.
        len: (bytes + route.overhead) as u16,
        flags: if keyed { GRE_FLAG_KEY.to_be() } else { 0 },
        proto: if route.ethernet { 0 } else { proto },
    };
    packet.front::<OUTER_LEN>()?.put_outer(&outer_headers(&peer.outer, peer.outer_sum, fields));
    if keyed {
        packet.front::<KEY_END>()?.put32::<OUTER_LEN>(route.vni.to_be());
    }
    if route.ethernet {
        let macs = &peer.inner_macs;
        if keyed {
            packet.front::<{ KEY_END + ETH_LEN }>()?.put_eth::<KEY_END>(macs, proto);
        } else {
            packet.front::<{ OUTER_LEN + ETH_LEN }>()?.put_eth::<OUTER_LEN>(macs, proto);
        }
    }

    let code = if peer.flags & PeerInfo::MAC_KNOWN != 0 {
        packet::redirect(peer.ifindex)
    } else {
        packet::redirect_neigh(peer.ifindex, true, &peer.next_hop)
    };
    Ok((Verdict::Encap, code))
}
