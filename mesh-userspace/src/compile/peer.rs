//! What the programs know of a peer: the headers in front of a packet to it, and what it may send.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_common::{
    maps::{Addr, PeerInfo, PeerSource, mask_word},
    tunnel::Shape,
    wire::{ETH_LEN, IPPROTO_GRE, IPPROTO_UDP, mac_pair, outer_v4, outer_v6},
};

use super::{Path, long_len, mtu::Heeded, node_mac};
use crate::config::{Cluster, Dscp, Foreign, Node, Tunnel, Vni};

/// BPF_F_ADJ_ROOM_ENCAP_* (linux/bpf.h).
mod room {
    pub const IPV4: u64 = 1 << 1;
    pub const IPV6: u64 = 1 << 2;
    pub const GRE: u64 = 1 << 3;
    pub const UDP: u64 = 1 << 4;
    /// The length of an inner Ethernet header stands from here on.
    pub const L2_SHIFT: u32 = 56;
    /// The programs leave it out where the kernel does not know it.
    pub const L2_ETHERNET: u64 = 1 << 6;
}

/// How this node sends to another.
pub(super) fn peer_info(
    cluster: &Cluster,
    me: &Node,
    peer: &Node,
    path: Option<&Path>,
) -> PeerInfo {
    let remote = Addr::from(peer.underlay);
    let Some(path) = path else { return PeerInfo { remote, ..PeerInfo::default() } };
    let Tunnel { encap, port } = cluster.tunnel(me, peer);
    let shape = encap.shape();
    let is_udp = shape.port.is_some();
    let macs = [path.next_hop_mac.unwrap_or_default(), path.mac];
    let proto = if is_udp { IPPROTO_UDP } else { IPPROTO_GRE };
    let (outer, outer_sum) = match (me.underlay, peer.underlay) {
        (IpAddr::V4(local), IpAddr::V4(to)) => outer_v4(macs, local, to, proto, cluster.ttl),
        (IpAddr::V6(local), IpAddr::V6(to)) => (outer_v6(macs, local, to, proto, cluster.ttl), 0),
        // No path leads from one family to the other.
        _ => return PeerInfo { remote, ..PeerInfo::default() },
    };
    let is_ipv6 = peer.underlay.is_ipv6();
    let mtu = Heeded::of(cluster, me, peer, path);
    let (tos_mask, tos_set) = match cluster.dscp {
        Dscp::Copy => (0xff, 0),
        // ECN is always copied (RFC 6040, 4.1).
        Dscp::Set(dscp) => (0x03, dscp << 2),
    };
    PeerInfo {
        ifindex: path.ifindex,
        flags: flag(path.next_hop_mac.is_some(), PeerInfo::MAC_KNOWN)
            | flag(shape.ethernet, PeerInfo::ETHERNET)
            | flag(is_ipv6, PeerInfo::IPV6)
            | flag(is_udp, PeerInfo::UDP)
            | flag(is_switch(cluster, me, peer), PeerInfo::SWITCH)
            | flag(clamps(peer, mtu), PeerInfo::CLAMP),
        underlay_mtu: mtu.v4,
        remote,
        next_hop: Addr::from(path.next_hop),
        room: room_flags(shape, is_ipv6),
        outer,
        outer_sum,
        tunnel: shape.word.to_be(),
        port: port.to_be(),
        // At most 70.
        overhead: shape.overhead(0, is_ipv6) as u16,
        tos_mask,
        tos_set,
        inner_macs: mac_pair(inner_mac(peer), node_mac(me.underlay)),
        underlay_mtu6: mtu.v6,
        ..PeerInfo::default()
    }
}

/// The destination of inner Ethernet headers: a node of the mesh takes any.
fn inner_mac(peer: &Node) -> [u8; 6] {
    peer.foreign.as_ref().and_then(|f| f.mac).unwrap_or_else(|| node_mac(peer.underlay))
}

/// Behind a foreign node are MACs of their own, unless the file says that all is behind one.
fn is_switch(cluster: &Cluster, me: &Node, peer: &Node) -> bool {
    cluster.tunnel(me, peer).encap.has_ethernet()
        && matches!(peer.foreign, Some(Foreign { mac: None, .. }))
}

/// The file says so, or the way is too narrow for a sender of IPv6 to be told of it: then TCP learns
/// by its segment size alone.
fn clamps(peer: &Node, mtu: Heeded) -> bool {
    let is_told = peer.foreign.as_ref().is_some_and(|foreign| foreign.clamp_mss);
    is_told || mtu.is_narrow && peer.subnets.iter().any(|(_, net)| net.addr().is_ipv6())
}

fn flag(is: bool, flag: u32) -> u32 {
    if is { flag } else { 0 }
}

/// What is said of a peer in all networks that it may send in. Nearly all are managed, and quick.
pub(super) fn source_flags(cluster: &Cluster, me: &Node, peer: &Node) -> u32 {
    if peer.is_managed() {
        return 0;
    }
    flag(is_switch(cluster, me, peer), PeerSource::SWITCH)
}

/// The segment size is kept to what fits in both directions.
pub(super) fn clamp_flag(info: &PeerInfo) -> u32 {
    flag(info.flags & PeerInfo::CLAMP != 0, PeerSource::CLAMP)
}

/// The number of a network on the wire to a peer.
pub(super) fn wire_vni(peer: &Node, vni: Vni) -> u32 {
    let own = peer.foreign.as_ref().and_then(|f| f.vni).filter(|_| vni == Vni::DEFAULT);
    own.unwrap_or(vni.get())
}

fn room_flags(shape: Shape, is_ipv6: bool) -> u64 {
    let ip = if is_ipv6 { room::IPV6 } else { room::IPV4 };
    let tunnel = if shape.port.is_some() { room::UDP } else { room::GRE };
    let ethernet = (ETH_LEN as u64) << room::L2_SHIFT | room::L2_ETHERNET;
    ip | tunnel | if shape.ethernet { ethernet } else { 0 }
}

/// What a peer may send in a network, `vni`, where it has these subnets: the first of each family
/// goes into the entry. `flags`: all but [`PeerSource::MORE`].
pub(super) fn peer_source(
    index: u32,
    me: &Node,
    vni: u32,
    flags: u32,
    subnets: &[(Vni, IpNet)],
) -> PeerSource {
    let subnets =
        |v4: bool| subnets.iter().map(|(_, net)| net).filter(move |n| n.addr().is_ipv4() == v4);
    let mask = |len: u8| [0, 1, 2, 3].map(|word| mask_word(len, word));
    // A mask of 0 with a net that is not: matches nothing.
    let (mut net4, mut mask4) = (u32::MAX, 0);
    if let Some(net) = subnets(true).next() {
        (net4, mask4) = (Addr::from(net.network()).0[3], mask(long_len(net))[3]);
    }
    let (mut net6, mut mask6) = ([u32::MAX; 4], [0; 4]);
    if let Some(net) = subnets(false).next() {
        (net6, mask6) = (Addr::from(net.network()).0, mask(long_len(net)));
    }
    let more = subnets(true).nth(1).is_some() || subnets(false).nth(1).is_some();
    let flags = flags | if more { PeerSource::MORE } else { 0 };
    PeerSource { peer: index, flags, vni, local: Addr::from(me.underlay), net4, mask4, net6, mask6 }
}
