//! One encapsulation for all: the outer headers are data, prepared by user space for each peer.
//! What the packet itself decides is filled in here: lengths, TOS, checksum, VNI, source port.
//!
//! ```text
//! Ethernet, IPv4 | IPv6 | GRE (+ key = VNI)                     | (Ethernet) inner packet
//!                       | UDP, VXLAN | Geneve with VNI          |  Ethernet  inner packet
//! ```

use aya_ebpf::Global;
use mesh_common::{
    maps::PeerInfo,
    verdict::{DropReason, Verdict},
    wire::{
        ETH_LEN, GRE_FLAG_KEY, GRE_KEY_LEN, GRE_LEN, IPV4_LEN, IPV6_LEN, UDP_LEN, VNI_HEADER_LEN,
        front_v4, front_v6, source_port,
    },
};

use crate::{
    TELL_INNER,
    end::Done,
    inner::Family,
    packet::{self, Packet},
};

/// The flags of `PeerInfo::room` that the kernel knows: BPF_F_ADJ_ROOM_ENCAP_L2_ETH since 5.13
/// (d01b59c9ae94); others find it out from the GRE header.
#[unsafe(no_mangle)]
static ROOM_FLAGS: Global<u64> = Global::new(u64::MAX);

/// Where the tunnel's header begins.
const AFTER_IPV4: usize = ETH_LEN + IPV4_LEN;
const AFTER_IPV6: usize = ETH_LEN + IPV6_LEN;

/// The way to a peer within one network.
pub struct Route<'a> {
    pub peer: &'a PeerInfo,
    /// On the wire.
    vni: u32,
    /// Bytes that the outer IP packet is longer than the inner one.
    overhead: u32,
}

impl<'a> Route<'a> {
    /// `vni`: on the wire.
    #[inline(always)]
    pub fn new(peer: &'a PeerInfo, vni: u32) -> Self {
        let key = if vni == 0 || peer.flags & PeerInfo::UDP != 0 { 0 } else { GRE_KEY_LEN as u32 };
        Self { peer, vni, overhead: u32::from(peer.overhead) + key }
    }

    /// Largest inner packet that arrives: the smaller of the port's MTU and what the underlay leaves.
    #[inline(always)]
    pub fn mtu(&self, port_mtu: u32) -> u32 {
        self.inside(self.peer.underlay_mtu, port_mtu)
    }

    /// Largest inner packet of a family that is sent: for IPv6 it may be more than arrives.
    #[inline(always)]
    pub fn limit<F: Family>(&self, port_mtu: u32) -> u32 {
        let PeerInfo { underlay_mtu, underlay_mtu6, .. } = *self.peer;
        self.inside(if F::IS_V4 { underlay_mtu } else { underlay_mtu6 }, port_mtu)
    }

    #[inline(always)]
    fn inside(&self, outer: u32, port_mtu: u32) -> u32 {
        let path = outer.saturating_sub(self.overhead);
        if path < port_mtu { path } else { port_mtu }
    }
}

/// What a packet is, as far as the outer headers say so.
pub struct Inner<'a> {
    /// Network byte order.
    pub proto: u16,
    pub tos: u8,
    /// Without an Ethernet header.
    pub bytes: u32,
    /// Of the inner Ethernet header, where the peer wants one.
    pub macs: &'a [u32; 3],
}

/// Encapsulates and sends. `mark`: the kernel is told where the inner headers are; what is marked it
/// does not shorten any more.
#[inline(always)]
pub fn send(
    packet: &Packet,
    route: &Route<'_>,
    inner: &Inner<'_>,
    mark: bool,
) -> Result<Done, DropReason> {
    let peer = route.peer;
    // Of the inner flow, so before anything is in front of it.
    let hash = if peer.flags & (PeerInfo::UDP | PeerInfo::IPV6) != 0 { packet.hash() } else { 0 };
    grow(packet, route.overhead, if mark { peer.room } else { 0 })?;
    fill(packet, route, inner, hash)
}

/// Makes room for the outer headers. `room`: see [`PeerInfo::room`].
#[inline(always)]
fn grow(packet: &Packet, bytes: u32, room: u64) -> Result<(), DropReason> {
    if packet.grow(bytes, if TELL_INNER { room & ROOM_FLAGS.load() } else { 0 }).is_ok() {
        return Ok(());
    }
    // A packet that came in by the mesh and goes on, as through a proxy's NAT, stays marked as
    // encapsulated, and is not marked twice (EALREADY). Only a super-packet needs the mark.
    if packet.gso_size() != 0 {
        return Err(DropReason::NoRoom);
    }
    packet.grow(bytes, 0)
}

/// What stays of a packet that a question is put in front of: with outer headers as without, its
/// transport checksum is in it.
pub const REST: usize = 160;

/// Makes the packet an ordinary one of outer headers, `bytes` of a question of our own, and
/// [`REST`] bytes of padding; gives the offset where the question is to be written, before
/// [`send_own`].
///
/// The sender may have left the checksum to the card, and nothing takes that back: the card will
/// write one, to where it stands in the packet that was. So that stays where it is, behind the
/// question and empty.
#[inline(always)]
pub fn precede(packet: &Packet, route: &Route<'_>, bytes: usize) -> Result<usize, DropReason> {
    packet.trim((ETH_LEN + REST) as u32)?;
    grow(packet, route.overhead + bytes as u32, route.peer.room)?;
    let at = ETH_LEN + route.overhead as usize;
    let mut empty = 0;
    while empty < REST {
        packet.store(at + bytes + empty, &[0u64; 2])?;
        empty += 16;
    }
    Ok(at)
}

/// Makes the packet one of outer headers and `bytes` of a message of our own; gives the offset where
/// the message is to be written, before [`send_own`].
#[inline(always)]
pub fn resize(packet: &Packet, route: &Route<'_>, bytes: usize) -> Result<usize, DropReason> {
    let at = ETH_LEN + route.overhead as usize;
    packet.trim((at + bytes) as u32)?;
    Ok(at)
}

/// Sends it. `proto`: its Ethernet type.
#[inline(always)]
pub fn send_own(
    packet: &Packet,
    route: &Route<'_>,
    macs: [u32; 3],
    proto: u16,
    bytes: usize,
) -> Result<Done, DropReason> {
    let inner = Inner { proto: proto.to_be(), tos: 0, bytes: bytes as u32, macs: &macs };
    fill(packet, route, &inner, 0)
}

/// Writes the headers, for which there is room, and sends. `hash`: of the flow.
#[inline(always)]
fn fill(
    packet: &Packet,
    route: &Route<'_>,
    inner: &Inner<'_>,
    hash: u32,
) -> Result<Done, DropReason> {
    let peer = route.peer;
    let tos = inner.tos & peer.tos_mask | peer.tos_set;
    // A super-packet may be longer than the field: each segment gets its own length later.
    let len = inner.bytes + route.overhead;
    if peer.flags & PeerInfo::IPV6 == 0 {
        let front = packet.part::<AFTER_IPV4>(0)?;
        let [a, b, c, d] = front_v4(&peer.outer, peer.outer_sum, tos, len as u16);
        front.put64::<0>(a);
        front.put64::<8>(b);
        front.put64::<16>(c);
        front.put64::<24>(d);
        let [high, _] = packet::halves(peer.outer[4]);
        front.put16::<32>(packet::word_halves(high)[0]);
        put_tunnel(packet, AFTER_IPV4, route, inner, hash, len - IPV4_LEN as u32)?;
    } else {
        let (len, label) = (len - IPV6_LEN as u32, hash as u16);
        let front = packet.part::<AFTER_IPV6>(0)?;
        let [a, b, c] = front_v6(&peer.outer, tos, len as u16, label);
        front.put64::<0>(a);
        front.put64::<8>(b);
        front.put64::<16>(c);
        front.put64::<24>(peer.outer[3]);
        front.put64::<32>(peer.outer[4]);
        front.put64::<40>(peer.outer[5]);
        let [high, low] = packet::halves(peer.outer[6]);
        front.put32::<48>(high);
        front.put16::<52>(packet::word_halves(low)[0]);
        put_tunnel(packet, AFTER_IPV6, route, inner, hash, len)?;
    }

    packet.set_sent();
    let code = if peer.flags & PeerInfo::MAC_KNOWN != 0 {
        packet::redirect(peer.ifindex)
    } else {
        packet::redirect_neigh(peer.ifindex, peer.flags & PeerInfo::IPV6 == 0, &peer.next_hop)
    };
    Ok((Verdict::Encap, code))
}

/// What follows the outer IP header, at `at`. `len`: of all that follows it, in bytes.
#[inline(always)]
fn put_tunnel(
    packet: &Packet,
    at: usize,
    route: &Route<'_>,
    inner: &Inner<'_>,
    hash: u32,
    len: u32,
) -> Result<(), DropReason> {
    let Route { peer, vni, .. } = *route;
    if peer.flags & PeerInfo::UDP != 0 {
        let part = packet.part::<{ UDP_LEN + VNI_HEADER_LEN + ETH_LEN }>(at)?;
        // No checksum: over IPv4 as RFC 7348 has it, over IPv6 by RFC 6935. The inner packet has its
        // own, and the kernel can compute none for the segments of what a program encapsulated.
        part.put16::<0>(source_port(hash));
        part.put16::<2>(peer.port);
        part.put32::<4>(packet::word_of([(len as u16).to_be(), 0]));
        part.put32::<8>(peer.tunnel);
        part.put32::<12>((vni << 8).to_be());
        part.put_eth::<16>(inner.macs, inner.proto);
        return Ok(());
    }
    let ethernet = peer.flags & PeerInfo::ETHERNET != 0;
    let proto = if ethernet { 0 } else { packet::word_of([0, inner.proto]) };
    if vni == 0 {
        packet.part::<GRE_LEN>(at)?.put32::<0>(peer.tunnel | proto);
        if ethernet {
            packet.part::<ETH_LEN>(at + GRE_LEN)?.put_eth::<0>(inner.macs, inner.proto);
        }
        return Ok(());
    }
    let part = packet.part::<{ GRE_LEN + GRE_KEY_LEN }>(at)?;
    part.put32::<0>(peer.tunnel | proto | packet::word_of([GRE_FLAG_KEY.to_be(), 0]));
    part.put32::<4>(vni.to_be());
    if ethernet {
        let at = at + GRE_LEN + GRE_KEY_LEN;
        packet.part::<ETH_LEN>(at)?.put_eth::<0>(inner.macs, inner.proto);
    }
    Ok(())
}
