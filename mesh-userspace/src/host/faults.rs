//! What is wrong with endpoints, attached bridges and the ways to other nodes, told the board of faults.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Host, HostError, Status};
use crate::{
    config::{Cluster, Node},
    faults::{Fault, Of},
    state::Endpoint,
};

impl Host {
    /// Looks at all of them.
    pub(super) async fn tell_faults(&self, cluster: &Cluster, me: &Node) -> Result<(), HostError> {
        let endpoints = self.state.endpoints.iter().flat_map(|(name, endpoint)| {
            let unfollowed = self.unfollowed.get(name).map(|u| u.fault.clone());
            let unflooded = self.unflooded.get(name).map(|u| u.fault.clone());
            let faults =
                faults(cluster, me, endpoint).into_iter().chain(unfollowed).chain(unflooded);
            faults.map(|fault| (Of::Endpoint(name.clone()), fault))
        });
        self.faults.set_all_of("place", endpoints);
        self.faults.set_all_of("bridge", self.bridge_faults(cluster, me)?);
        self.faults.set("ways", self.way_fault(cluster, me).await);
        Ok(())
    }

    /// What this host itself lacks to reach others; that one of them is away is no fault of it.
    async fn way_fault(&self, cluster: &Cluster, me: &Node) -> Option<String> {
        // Without the address there is another fault.
        let underlay = self.underlay(me).await.ok()?;
        if !underlay.running {
            let name = underlay.interface.name;
            return Some(format!(
                "{name}, the interface of the underlay, is down or has no carrier: no other node is \
                 reached (`ip link set {name} up`, or look at its cable or switch)"
            ));
        }
        let peers = self.contents.iter().flat_map(|contents| contents.peers.iter());
        let cut = peers.filter(|(_, peer)| peer.ifindex == 0);
        let cut: BTreeSet<IpAddr> = cut.map(|(_, peer)| peer.remote.into()).collect();
        let nodes = cluster.nodes.iter().filter(|node| cut.contains(&node.underlay));
        no_route(&nodes.map(|node| (node.name.as_str(), node.underlay)).collect::<Vec<_>>())
    }
}

/// `nodes`: those without a route, by name and underlay address.
fn no_route(nodes: &[(&str, IpAddr)]) -> Option<String> {
    const SHOWN: usize = 5;
    let (_, first) = nodes.first()?;
    let shown: Vec<_> =
        nodes.iter().take(SHOWN).map(|(name, ip)| format!("{name} ({ip})")).collect();
    let more = match nodes.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "the underlay has no route that can be used to {}{more}: what is for their containers is \
         dropped (peer_incomplete); add one, or look at what `ip route get {first}` says",
        shown.join(", ")
    ))
}

impl Status {
    /// Takes what is wrong, and puts it beside what it is of as well.
    pub(super) fn take_faults(&mut self, faults: Vec<Fault>) {
        for Fault { of, fault } in &faults {
            let beside = match of {
                Of::Host => Some(&mut self.faults),
                Of::Network(name) => {
                    self.networks.iter_mut().find(|n| n.name == *name).map(|n| &mut n.faults)
                }
                Of::Endpoint(name) => {
                    self.endpoints.iter_mut().find(|e| e.name == *name).map(|e| &mut e.faults)
                }
                Of::Bridge(name) => {
                    self.bridges.iter_mut().find(|b| b.name == *name).map(|b| &mut b.faults)
                }
                Of::Docker | Of::Agent => None,
            };
            if let Some(beside) = beside {
                beside.push(fault.clone());
            }
        }
        self.all_faults = faults;
    }
}

/// What is wrong with an endpoint's place in the cluster, and the way out: no other node finds its
/// address any more.
fn faults(cluster: &Cluster, me: &Node, endpoint: &Endpoint) -> Vec<String> {
    let Some(network) = cluster.networks.iter().find(|n| n.vni.get() == endpoint.vni) else {
        let vni = endpoint.vni;
        return vec![format!(
            "its network, VNI {vni}, is not there any more: bring that back, or detach it"
        )];
    };
    let remedy = remedy(endpoint);
    let is_lost = |ip| !me.subnets_of(network.vni).any(|net| net.contains(ip));
    let fault = |ip| {
        format!(
            "{ip} is in no subnet of {} in network {} any more: {remedy}",
            me.name, network.name
        )
    };
    endpoint.addresses.iter().filter(|ip| is_lost(*ip)).map(fault).collect()
}

/// Who attached it must do so again.
pub(super) fn remedy(endpoint: &Endpoint) -> &'static str {
    let is_dockers = endpoint.netns.contains("/docker/netns/");
    if endpoint.bridged.is_some() || endpoint.cni.is_some() || is_dockers {
        "start its container anew"
    } else {
        "detach and attach it again"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_without_a_route_are_named_and_many_are_counted() {
        assert_eq!(no_route(&[]), None);
        let ip = |n: u8| IpAddr::from([192, 0, 2, n]);
        let one = no_route(&[("h2", ip(2))]).unwrap();
        assert!(one.contains("to h2 (192.0.2.2): what"), "{one}");
        let many: Vec<_> = (1..=7).map(|n| ("h", ip(n))).collect();
        let many = no_route(&many).unwrap();
        assert!(many.contains("h (192.0.2.5) and 2 more: "), "{many}");
        assert!(many.contains("`ip route get 192.0.2.1`"), "{many}");
    }
}
