//! Which changes of the network bear on the mesh. A host where others come and go all day, such as one
//! that builds containers, is not looked at for each of them.
//!
//! What is left out here by mistake is found by the next look at everything.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Host, gateway};
use crate::{config::Cluster, docker::GATEWAY, net::Change};

/// Interfaces that others make in numbers. What is of another kind may be a way to other nodes, or
/// receive what is meant for the mesh (GRE, VXLAN, Geneve).
const USUAL: [&str; 12] = [
    "bridge", "veth", "netkit", "dummy", "tun", "ifb", "nlmon", "macvlan", "macvtap", "ipvlan",
    "ipvtap", "vcan",
];
/// Names of interfaces that mesh makes begin so.
const OURS: &str = "mesh";

impl Host {
    /// Whether the host is to be looked at for this change. What only has to be confirmed of a
    /// neighbour is.
    pub async fn heeds(&self, change: &Change) -> bool {
        let Some(cluster) = &self.cluster else { return true };
        match change {
            Change::Link { ifindex, name, kind, controller } => {
                let is_usual = kind.as_ref().is_some_and(|kind| USUAL.contains(&kind.as_str()));
                !is_usual
                    || self.uses(*ifindex)
                    || self.is_named(cluster, name)
                    || controller.is_some_and(|bridge| self.bridges.has(bridge))
            }
            Change::Address { ifindex, ip } => {
                self.uses(*ifindex) || ip.is_none_or(|ip| self.is_address(cluster, ip))
            }
            Change::Filter { ifindex } => self.uses(*ifindex),
            Change::Route { dst } => dst.is_none_or(|dst| is_way(cluster, dst)),
            Change::Neighbour { ifindex, ip, now } => {
                self.heeds_neighbour(*ifindex, *ip, *now).await
            }
            Change::Forwarding { on } => self.heeds_forwarding(*on),
            Change::Overrun | Change::Tables => true,
        }
    }

    /// Is this an interface of the mesh's, or one that it stands on?
    fn uses(&self, ifindex: u32) -> bool {
        let is = |index: u32| index == ifindex;
        self.state.host.iter().chain(&self.state.underlay).any(|i| is(i.index))
            || self.state.endpoints.values().any(|e| is(e.host.index))
            || self.listeners.interfaces().iter().any(|i| is(i.index))
            || self.next_hops.keys().any(|(hop, _)| is(*hop))
            || self.headroom.is_some_and(is)
            || self.bridges.has(ifindex)
    }

    /// Is this a name that the mesh looks for?
    fn is_named(&self, cluster: &Cluster, name: &str) -> bool {
        name.starts_with(OURS)
            || cluster.bridges.iter().any(|bridge| bridge == name)
            || name == GATEWAY && cluster.docker.plugin
            || self.is_gateway() && gateway::is_dockers(name)
    }

    /// Is this an address that the mesh looks for: its own on the underlay, or one of the overlay?
    fn is_address(&self, cluster: &Cluster, ip: IpAddr) -> bool {
        cluster.nodes.iter().any(|node| node.name == self.state.node && node.underlay == ip)
            || cluster.networks.iter().flat_map(|n| &n.cidrs).any(|net| net.contains(&ip))
    }
}

/// Is this a route to another node, or into the overlay?
fn is_way(cluster: &Cluster, dst: IpNet) -> bool {
    let overlaps = |net: &IpNet| net.contains(&dst) || dst.contains(net);
    cluster.nodes.iter().any(|node| dst.contains(&node.underlay))
        || cluster.networks.iter().flat_map(|n| &n.cidrs).any(overlaps)
}
