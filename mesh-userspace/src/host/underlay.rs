//! The underlay as this host has it: our interface, and the way to each other node.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
};

use super::{Host, HostError};
use crate::{
    bpf::attach::Interface,
    compile::{self, Path},
    config::{Cluster, Node},
    net::{Link, Neighbour},
};

/// The interface that has our underlay address.
pub(super) struct Underlay {
    pub interface: Interface,
    pub mtu: u32,
}

impl Host {
    pub(super) async fn underlay(&self, me: &Node) -> Result<Underlay, HostError> {
        let addresses = self.net.addresses().await?;
        let Some(address) = addresses.iter().find(|a| a.ip() == IpAddr::V4(me.underlay)) else {
            return Err(HostError::User(format!(
                "no interface of this host has {}, the underlay address of node {}; add it \
                 (`ip address add`), correct the config file, or say which node this is with --node",
                me.underlay, me.name
            )));
        };
        let Some(link) = self.net.link(address.ifindex).await? else {
            return Err(HostError::User(format!("the interface of {} just went", me.underlay)));
        };
        Ok(Underlay { interface: Interface { name: link.name, index: link.index }, mtu: link.mtu })
    }

    /// The container MTU of each network must fit this underlay.
    pub(super) fn check_mtu(
        &self,
        cluster: &Cluster,
        underlay: &Underlay,
    ) -> Result<(), HostError> {
        for network in &cluster.networks {
            if let Err(largest) = compile::container_mtu(cluster, network.vni, underlay.mtu) {
                return Err(HostError::User(format!(
                    "the container MTU of {} does not fit network {}: {} has an MTU of {}, which \
                     leaves {largest}; set cluster.mtu to at most that, leave it out, or raise the \
                     MTU of {}",
                    cluster.mtu.unwrap_or_default(),
                    network.name,
                    underlay.interface.name,
                    underlay.mtu,
                    underlay.interface.name,
                )));
            }
        }
        Ok(())
    }

    /// Interfaces over which packets of other nodes may arrive: the one with our address, and those
    /// by which the routes to the others leave, which differ where the address is on loopback.
    pub(super) async fn underlay_interfaces(&self, me: &Node) -> Result<Vec<Interface>, HostError> {
        let own = self.underlay(me).await?.interface;
        let mut indices: BTreeSet<u32> =
            crate::bpf::sync::observe_peer_interfaces(self.tables()?)?.into_iter().collect();
        indices.insert(own.index);
        let links = self.net.links().await?;
        Ok(links
            .into_iter()
            .filter(|l| indices.contains(&l.index) && l.ethernet && !l.loopback)
            .map(|l| Interface { name: l.name, index: l.index })
            .collect())
    }

    /// The way to each other node that has one.
    pub(super) async fn paths(
        &self,
        cluster: &Cluster,
        me: &Node,
        links: &[Link],
    ) -> Result<HashMap<Ipv4Addr, Path>, HostError> {
        let links: HashMap<u32, &Link> = links.iter().map(|l| (l.index, l)).collect();
        let neighbours = self.net.neighbours().await?;
        let mut paths = HashMap::new();
        for peer in cluster.nodes.iter().filter(|n| n.name != me.name) {
            if let Some(path) = self.path(me, peer, &links, &neighbours).await? {
                paths.insert(peer.underlay, path);
            }
        }
        Ok(paths)
    }

    async fn path(
        &self,
        me: &Node,
        peer: &Node,
        links: &HashMap<u32, &Link>,
        neighbours: &HashMap<(u32, IpAddr), Neighbour>,
    ) -> Result<Option<Path>, HostError> {
        let (to, from) = (IpAddr::V4(peer.underlay), IpAddr::V4(me.underlay));
        let Some(hop) = self.net.route_to(to, Some(from)).await? else { return Ok(None) };
        // A route into the overlay itself would go round in circles.
        let is_mesh0 = self.state.host.as_ref().is_some_and(|h| h.index == hop.ifindex);
        let (Some(link), false, false) = (links.get(&hop.ifindex), hop.local, is_mesh0) else {
            return Ok(None);
        };
        let (Some(mac), true, true) = (link.mac, link.ethernet, link.up) else { return Ok(None) };
        // An IPv6 next hop for IPv4 (RFC 5549) is one that redirect_neigh cannot be told of here.
        let next_hop = match hop.gateway.unwrap_or(to) {
            IpAddr::V4(next_hop) => next_hop,
            IpAddr::V6(_) => return Ok(None),
        };
        let neighbour = neighbours.get(&(hop.ifindex, IpAddr::V4(next_hop)));
        // What is not known is asked for, what may be old is confirmed: the answer is an event.
        // Who does not answer is not asked again and again: the first packet to it asks.
        if neighbour.is_none_or(|n| n.stale)
            && let Err(e) = self.net.resolve_neighbour(hop.ifindex, IpAddr::V4(next_hop)).await
        {
            // A full neighbour table, say: no reason to give up on all the others.
            tracing::debug!("{e}");
        }
        Ok(Some(Path {
            ifindex: hop.ifindex,
            mtu: hop.mtu.filter(|m| *m < link.mtu).unwrap_or(link.mtu),
            mac,
            next_hop,
            next_hop_mac: neighbour.filter(|n| n.usable).and_then(|n| n.mac),
        }))
    }
}
