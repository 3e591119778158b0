//! How large a container's packet may be, and one around it.

use super::{Path, peer::wire_vni};
use crate::config::{Cluster, Encap, Node, Vni};

/// The container MTU that mesh chooses leaves what this takes of the underlay's, or the overhead if
/// that is more: so `gre` and `gretap` are interchangeable, and segments are such that more fit into
/// a super-packet than with the arithmetic maximum of GRE.
const CHOSEN_ENCAP: Encap = Encap::Gretap;

/// Nobody who sends IPv4 goes below this (the kernel's net.ipv4.route.min_pmtu), and every link
/// carries this of IPv6 (RFC 8200, 5): a smaller MTU stops a sender, and does not teach it.
const LEAST_V4: u32 = 552;
const LEAST_V6: u32 = 1280;

/// Container MTU of a network: the file's, or what mesh chooses for this underlay. The same for all
/// containers, so the way to the node with the largest overhead counts.
///
/// # Errors
///
/// The largest that would fit, if the file's does not.
pub fn container_mtu(cluster: &Cluster, vni: Vni, underlay_mtu: u32) -> Result<u32, u32> {
    Outer::of(cluster, vni).container_mtu(cluster.mtu, underlay_mtu)
}

/// Bytes around a container's packet of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outer {
    /// [`Cluster::overhead`].
    overhead: u32,
    /// What mesh leaves for it if the file sets no MTU.
    chosen: u32,
}

impl Outer {
    pub(super) fn of(cluster: &Cluster, vni: Vni) -> Self {
        let overhead = cluster.overhead(vni);
        let chosen = CHOSEN_ENCAP.overhead(Vni::DEFAULT, cluster.has_ipv6_underlay());
        Self { overhead: overhead as u32, chosen: overhead.max(chosen) as u32 }
    }

    pub(super) fn container_mtu(self, set: Option<u16>, underlay_mtu: u32) -> Result<u32, u32> {
        let largest = underlay_mtu.saturating_sub(self.overhead);
        match set.map(u32::from) {
            Some(mtu) if mtu > largest => Err(largest),
            Some(mtu) => Ok(mtu),
            None => Ok(underlay_mtu.saturating_sub(self.chosen)),
        }
    }
}

/// Largest outer packets to a peer, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heeded {
    /// With IPv4 inside: what arrives.
    pub v4: u32,
    /// With IPv6 inside: what is sent, be it that it does not arrive.
    pub v6: u32,
    /// Less arrives than a sender of IPv6 can be told.
    pub is_narrow: bool,
}

impl Heeded {
    /// Of what ICMP says, as much as a sender can follow. Interface and route are always heeded.
    pub fn of(cluster: &Cluster, me: &Node, peer: &Node, path: &Path) -> Self {
        let overhead = most_overhead(cluster, me, peer);
        let heed = |least: u32| {
            path.learned_mtu.map_or(path.mtu, |learned| learned.max(least).min(path.mtu))
        };
        let (v4, least_v6) = (heed(least_around_v4(peer, overhead)), LEAST_V6 + overhead);
        Self { v4, v6: heed(least_v6), is_narrow: v4 < least_v6 }
    }
}

/// The least MTU of the way to a peer that ICMP is believed, in bytes of the outer IP packet.
pub fn least_path_mtu(cluster: &Cluster, me: &Node, peer: &Node) -> u32 {
    least_around_v4(peer, most_overhead(cluster, me, peer))
}

fn least_around_v4(peer: &Node, overhead: u32) -> u32 {
    let outer = if peer.underlay.is_ipv6() { LEAST_V6 } else { 0 };
    outer.max(LEAST_V4 + overhead)
}

/// Bytes around a packet to this peer, in the network where they are most.
fn most_overhead(cluster: &Cluster, me: &Node, peer: &Node) -> u32 {
    let shape = cluster.tunnel(me, peer).encap.shape();
    let vnis = peer.subnets.iter().map(|(vni, _)| wire_vni(peer, *vni));
    let overheads = vnis.map(|vni| shape.overhead(vni, peer.underlay.is_ipv6()) as u32);
    overheads.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use mesh_common::maps::{PeerInfo, PeerSource};

    use super::super::{
        Facts, compile,
        tests::{cluster, node},
    };
    use super::*;

    const V4: &[(u32, &str)] = &[(0, "10.0.0.0/24")];
    const BOTH: &[(u32, &str)] = &[(0, "10.0.0.0/24"), (0, "fd00::/64")];
    const KEYED: &[(u32, &str)] = &[(0, "10.0.0.0/24"), (7, "fd00::/64")];

    /// The limits for IPv4 and IPv6 inside GRE, in outer bytes, and whether segments are clamped.
    fn heeded(subnets: &[(u32, &str)], v6: bool, mtu: u32, learned: u32) -> (u32, u32, bool) {
        let ends: [std::net::IpAddr; 2] = match v6 {
            false => ["192.0.2.1", "192.0.2.2"].map(|a| a.parse().unwrap()),
            true => ["2001:db8::1", "2001:db8::2"].map(|a| a.parse().unwrap()),
        };
        let nodes = vec![node("me", ends[0], &[]), node("far", ends[1], subnets)];
        let cluster = cluster(Encap::Gre, None, &[0, 7], nodes);
        let path = Path {
            ifindex: 2,
            mtu,
            learned_mtu: Some(learned),
            mac: [2; 6],
            next_hop: ends[1],
            next_hop_mac: None,
        };
        let paths = [(ends[1], path)].into_iter().collect();
        let facts = Facts { paths, underlay_mtu: 1500, ..Facts::default() };
        let maps = compile(&cluster, &cluster.nodes[0], &facts).maps;
        let peer = maps.peers.values().next().unwrap();
        let clamps = peer.flags & PeerInfo::CLAMP != 0;
        for source in maps.peer_by_addr.values().filter(|source| source.mask4 != 0) {
            assert_eq!(source.flags & PeerSource::CLAMP != 0, clamps, "both directions");
        }
        assert_eq!(peer.underlay_mtu, {
            let [me, far] = &cluster.nodes[..] else { unreachable!() };
            learned.max(least_path_mtu(&cluster, me, far)).min(mtu)
        });
        (peer.underlay_mtu, peer.underlay_mtu6, clamps)
    }

    #[test]
    fn what_is_learned_is_heeded_as_far_as_senders_can() {
        assert_eq!(heeded(BOTH, false, 1500, 1400), (1400, 1400, false));
        assert_eq!(heeded(BOTH, false, 1500, 1304), (1304, 1304, false));
        assert_eq!(heeded(BOTH, false, 1500, 1280), (1280, 1304, true));
        assert_eq!(heeded(BOTH, false, 1500, 68), (576, 1304, true));
        // With a key; between hosts of IPv6, where no link is narrower.
        assert_eq!(heeded(KEYED, false, 1500, 68), (580, 1308, true));
        assert_eq!(heeded(BOTH, true, 1500, 68), (1280, 1324, true));
    }

    #[test]
    fn where_no_ipv6_is_inside_no_segment_is_clamped() {
        assert_eq!(heeded(V4, false, 1500, 1280), (1280, 1304, false));
    }

    #[test]
    fn no_more_is_sent_than_interface_and_route_allow() {
        assert_eq!(heeded(BOTH, false, 1280, 1400), (1280, 1280, true));
        assert_eq!(heeded(BOTH, false, 500, 68), (500, 500, true));
    }
}
