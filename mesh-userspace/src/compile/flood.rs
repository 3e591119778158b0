//! Who gets broadcast and multicast of a network that carries it.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_common::maps::{BROADCASTS, EndpointInfo, FloodInfo, FloodKey, NetworkInfo};

use super::{Attachment, AttachmentKind, Desired, peer::wire_vni};
use crate::{
    config::{Cluster, Flood, Network, Node, Vni},
    plan::Entries,
};

type Networks = Entries<u32, NetworkInfo>;

pub(super) fn is_on(networks: &Networks, vni: u32) -> bool {
    networks.get(&vni).is_some_and(|network| network.flags & NetworkInfo::FLOOD != 0)
}

/// The broadcast addresses of a network that carries broadcast, of its first IPv4 prefixes.
pub(super) fn broadcasts(network: &Network) -> [u32; BROADCASTS] {
    let mut all = [0; BROADCASTS];
    if network.flood != Flood::All {
        return all;
    }
    let addresses = network.cidrs.iter().filter_map(broadcast);
    all.iter_mut().zip(addresses).for_each(|(slot, address)| *slot = address);
    all
}

/// The last address of an IPv4 prefix, network byte order.
fn broadcast(net: &IpNet) -> Option<u32> {
    match net.broadcast() {
        // Too small for one (RFC 3021).
        _ if net.prefix_len() > 30 => None,
        IpAddr::V4(address) => Some(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(_) => None,
    }
}

/// Is one of them in this prefix?
pub(super) fn has_broadcast(networks: &Networks, vni: Vni, net: &IpNet) -> bool {
    let Some(network) = networks.get(&vni.get()) else { return false };
    let address = |n: &u32| IpAddr::from(n.to_ne_bytes());
    network.broadcast.iter().filter(|n| **n != 0).any(|n| net.contains(&address(n)))
}

impl Desired {
    /// The two lists of a network.
    pub(super) fn add_flood(
        &mut self,
        cluster: &Cluster,
        me: &Node,
        network: &Network,
        attachments: &[Attachment],
    ) {
        let vni = network.vni;
        let has_part = |node: &&Node| node.name != me.name && node.subnets_of(vni).next().is_some();
        let peers = cluster.nodes.iter().filter(has_part).filter_map(|node| {
            let target = *self.peer_indices.get(&node.underlay)?;
            let flags = if node.foreign.is_some() { FloodInfo::EVERY_GROUP } else { 0 };
            Some(FloodInfo { target, vni_or_id: wire_vni(node, vni), flags })
        });
        let peers = listed(FloodKey::PEERS, vni, peers, FloodKey::PEERS_MAX);
        // What is on a bridge is the bridge's.
        let mut here: Vec<_> = attachments
            .iter()
            .filter(|a| a.vni == vni && a.kind != AttachmentKind::Bridged)
            .map(|a| FloodInfo {
                target: a.ifindex,
                vni_or_id: a.id,
                flags: if a.kind == AttachmentKind::Host { EndpointInfo::HOST } else { 0 },
            })
            .collect();
        here.sort_by_key(|info| info.target);
        let here = listed(FloodKey::LOCAL, vni, here.into_iter(), FloodKey::LOCAL_MAX);
        self.maps.flood.extend(peers.into_iter().chain(here));
    }
}

fn listed(
    list: u32,
    vni: Vni,
    infos: impl Iterator<Item = FloodInfo>,
    most: u32,
) -> Vec<(FloodKey, FloodInfo)> {
    (0..most)
        .zip(infos)
        .map(|(index, info)| (FloodKey::new(list, vni.get(), index), info))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mesh_common::maps::{Addr, FibInfo, PeerSource, PortInfo};

    use crate::{
        compile::{Facts, compile},
        config::parse,
    };

    use super::*;

    /// Four nodes, of which one does not run mesh, and a network besides.
    const FILE: &str = "[cluster]\nname = 'c'\ncidr = ['10.42.0.0/16', 'fd42::/48']\nFLOOD\n\
        [[node]]\nname = 'h1'\nunderlay = '192.0.2.11'\n\
        [[node]]\nname = 'h2'\nunderlay = '192.0.2.12'\n\
        [[node]]\nname = 'old'\nunderlay = '192.0.2.13'\n\
        managed = false\nencap = 'vxlan'\nvni = 42\n\
        [[node]]\nname = 'h4'\nunderlay = '192.0.2.14'\n\
        [[network]]\nname = 'blue'\nvni = 7\ncidr = '10.42.0.0/16'\n";

    fn desired(flood: &str) -> Desired {
        let cluster = parse(FILE.replace("FLOOD", flood).as_bytes()).unwrap();
        let port = |vni, ifindex, kind| Attachment {
            vni: Vni::new(vni).unwrap(),
            ifindex,
            id: ifindex + 100,
            addresses: Vec::new(),
            mac: [2; 6],
            kind,
        };
        let attachments = vec![
            port(0, 9, AttachmentKind::Container),
            port(0, 4, AttachmentKind::Host),
            port(7, 5, AttachmentKind::Container),
            port(0, 6, AttachmentKind::Bridged),
        ];
        let facts = Facts { attachments, underlay_mtu: 1500, ..Facts::default() };
        compile(&cluster, &cluster.nodes[0], &facts)
    }

    #[test]
    fn network_without_flood_has_no_lists() {
        let maps = desired("").maps;
        assert!(maps.flood.is_empty());
        assert!(maps.networks.values().all(|n| n.flags == 0 && n.broadcast == [0; BROADCASTS]));
        assert!(maps.ports.values().all(|p| p.flags & PortInfo::FLOOD == 0));
        assert!(maps.peer_by_addr.values().all(|p| p.flags & PeerSource::FLOOD == 0));
        assert!(maps.fib.values().all(|to| to.kind != FibInfo::EDGE));
    }

    #[test]
    fn all_other_nodes_and_what_is_attached_here_are_listed() {
        let Desired { maps, peer_indices } = desired("flood = 'all'");
        let index = |last: u8| peer_indices[&IpAddr::from([192, 0, 2, last])];
        let info = |target, vni_or_id, flags| FloodInfo { target, vni_or_id, flags };
        let expected = [
            (FloodKey::new(FloodKey::PEERS, 0, 0), info(index(12), 0, 0)),
            (FloodKey::new(FloodKey::PEERS, 0, 1), info(index(13), 42, FloodInfo::EVERY_GROUP)),
            (FloodKey::new(FloodKey::PEERS, 0, 2), info(index(14), 0, 0)),
            (FloodKey::new(FloodKey::LOCAL, 0, 0), info(4, 104, EndpointInfo::HOST)),
            (FloodKey::new(FloodKey::LOCAL, 0, 1), info(9, 109, 0)),
        ];
        let found: BTreeMap<_, _> =
            maps.flood.into_iter().map(|(k, v)| (k, format!("{v:?}"))).collect();
        assert_eq!(found, expected.map(|(k, v)| (k, format!("{v:?}"))).into());
        let floods = |vni: u32| maps.ports.values().filter(move |p| p.vni == vni);
        assert!(floods(0).all(|p| p.flags & PortInfo::FLOOD != 0));
        assert!(floods(7).all(|p| p.flags & PortInfo::FLOOD == 0));
    }

    #[test]
    fn only_the_prefix_with_the_broadcast_address_is_an_edge() {
        let maps = desired("flood = 'all'").maps;
        let last = u32::from_ne_bytes([10, 42, 255, 255]);
        assert_eq!(maps.networks[&0].broadcast, [last, 0, 0, 0]);
        let edges = maps.fib.iter().filter(|(_, to)| to.kind == FibInfo::EDGE);
        let edges: Vec<_> = edges.map(|(key, _)| (key.len_vni, key.addr)).collect();
        // The last quarter, h4's.
        let net = Addr::from(IpAddr::from([10, 42, 192, 0]));
        assert_eq!(edges, [((96 + 18) << 24, net)]);
    }
}
