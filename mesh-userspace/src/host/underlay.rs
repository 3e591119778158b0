//! The underlay as this host has it: our interface, and the way to each other node.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use super::{Host, HostError, gro};
use crate::{
    bpf::attach::Interface,
    compile::{self, ByAddress, Path},
    config::{Cluster, Node},
    net::{Hop, Link, Neighbour},
};

/// The MAC of each next hop in use, by its interface and address; `None` while it is not known.
pub(super) type NextHops = HashMap<(u32, IpAddr), Option<[u8; 6]>>;

/// The interface that has our underlay address.
pub(super) struct Underlay {
    pub interface: Interface,
    pub mtu: u32,
    /// It is up and has carrier.
    pub running: bool,
}

impl Host {
    pub(super) async fn underlay(&self, me: &Node) -> Result<Underlay, HostError> {
        let addresses = self.net.addresses().await?;
        let Some(address) = addresses.iter().find(|a| a.ip() == me.underlay) else {
            return Err(HostError::User(format!(
                "no interface of this host has {}, the underlay address of node {}; add it \
                 (`ip address add`), correct the config file, or say which node this is with --node",
                me.underlay, me.name
            )));
        };
        let Some(link) = self.net.link(address.ifindex).await? else {
            return Err(HostError::User(format!("the interface of {} just went", me.underlay)));
        };
        let (mtu, running) = (link.mtu, link.up && link.running);
        Ok(Underlay { interface: Interface { name: link.name, index: link.index }, mtu, running })
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
        let mut indices: BTreeSet<u32> =
            self.next_hops.keys().map(|(ifindex, _)| *ifindex).collect();
        match self.underlay(me).await {
            Ok(own) => drop(indices.insert(own.interface.index)),
            // Until the address is back, which is a fault of its own, all stays where it is.
            Err(_) => indices.extend(self.state.underlay.iter().map(|i| i.index)),
        }
        let links = self.net.links().await?;
        Ok(links
            .into_iter()
            .filter(|l| indices.contains(&l.index) && l.ethernet && !l.loopback)
            .map(|l| Interface { name: l.name, index: l.index })
            .collect())
    }

    /// The way to each of these nodes that has one.
    pub(super) async fn paths(
        &mut self,
        nodes: &[IpAddr],
        me: &Node,
        links: &[Link],
    ) -> Result<ByAddress<Path>, HostError> {
        self.look_up_hops(nodes, me, links.iter().any(gro::is_listener))?;
        let links: HashMap<u32, &Link> = links.iter().map(|l| (l.index, l)).collect();
        let neighbours = self.net.neighbours().await?;
        let path = |to: &IpAddr| {
            let hop = self.hops.get(to)?.as_ref()?;
            Some((*to, self.path(*to, hop, &links, &neighbours)?))
        };
        let paths: ByAddress<Path> = nodes.iter().filter_map(path).collect();
        let next_hops: NextHops =
            paths.values().map(|p| ((p.ifindex, p.next_hop), p.next_hop_mac)).collect();
        // What is not known is asked for, what may be old is confirmed: the answer is an event. Who
        // does not answer is not asked again and again: the first packet to it asks.
        let asked = next_hops.keys().filter(|hop| neighbours.get(hop).is_none_or(|n| n.stale));
        self.confirm(&asked.copied().collect::<Vec<_>>()).await;
        self.next_hops.extend(next_hops);
        Ok(paths)
    }

    /// Has the kernel find out, or confirm, the MACs of next hops. Where it can not ask of its own
    /// accord, the first packet does.
    async fn confirm(&self, hops: &[(u32, IpAddr)]) {
        let mut asking = HashSet::new();
        if hops.iter().any(|(_, ip)| ip.is_ipv6()) {
            asking = self.net.with_link_local().await.unwrap_or_else(|e| {
                tracing::debug!("{e}");
                HashSet::new()
            });
        }
        for (ifindex, ip) in hops.iter().filter(|(i, ip)| ip.is_ipv4() || asking.contains(i)) {
            if let Err(e) = self.net.resolve_neighbour(*ifindex, *ip).await {
                // A full neighbour table, say: no reason to give up on all the others.
                tracing::debug!("{e}");
            }
        }
    }

    /// Asks the kernel for the routes to those nodes of which it was not asked before, or not since
    /// [`Host::forget_routes`]. `listens`: there is a socket of ours for tunnels in UDP.
    fn look_up_hops(
        &mut self,
        nodes: &[IpAddr],
        me: &Node,
        listens: bool,
    ) -> Result<(), HostError> {
        if self.hops_from != Some(me.underlay) {
            self.forget_routes();
            self.hops_from = Some(me.underlay);
        }
        let missing = || nodes.iter().filter(|to| !self.hops.contains_key(to)).copied();
        let asked: Vec<IpAddr> = missing().collect();
        if asked.is_empty() {
            return Ok(());
        }
        let found = self.net.routes_to(&asked, Some(me.underlay))?;
        let mut found: Vec<_> = missing().zip(found).collect();
        for (to, hop) in found.iter_mut().filter_map(|(to, hop)| Some((*to, hop.as_mut()?))) {
            // Learned by the kernel, from traffic of the host's own; or from whatever is said to our
            // socket, by whoever and wherever (__udp4_lib_err), of which [`Host::learn_path_mtu`]
            // hears itself.
            if let (Some(mtu), Some(expires)) = (hop.mtu, hop.mtu_expires) {
                if !listens {
                    self.path_mtus.set(to, mtu, expires);
                }
                hop.mtu = None;
            }
        }
        self.hops.extend(found);
        Ok(())
    }

    /// Forgets all next hops but those to these nodes.
    pub(super) fn keep_hops(&mut self, nodes: &[IpAddr]) {
        self.next_hops.clear();
        if self.hops.len() > nodes.len() {
            let kept: HashSet<&IpAddr> = nodes.iter().collect();
            self.hops.retain(|to, _| kept.contains(to));
        }
    }

    /// Routes may have changed: they are looked up anew when they are needed next.
    pub fn forget_routes(&mut self) {
        self.hops = ByAddress::default();
    }

    /// Whether this news of a neighbour changes how the mesh sends. What only has to be confirmed
    /// is.
    pub(super) async fn heeds_neighbour(
        &self,
        ifindex: u32,
        ip: IpAddr,
        now: Option<Neighbour>,
    ) -> bool {
        let Some(mac) = self.next_hops.get(&(ifindex, ip)) else { return false };
        if now.filter(|n| n.usable).and_then(|n| n.mac) != *mac {
            return true;
        }
        if now.is_some_and(|n| n.stale) {
            self.confirm(&[(ifindex, ip)]).await;
        }
        false
    }

    fn path(
        &self,
        to: IpAddr,
        hop: &Hop,
        links: &HashMap<u32, &Link>,
        neighbours: &HashMap<(u32, IpAddr), Neighbour>,
    ) -> Option<Path> {
        // A route into the overlay itself would go round in circles.
        let is_mesh0 = self.state.host.as_ref().is_some_and(|h| h.index == hop.ifindex);
        let link = links.get(&hop.ifindex).filter(|_| !hop.local && !is_mesh0)?;
        let mac = link.mac.filter(|_| link.ethernet && link.up)?;
        // An IPv6 next hop for IPv4 (RFC 5549) is one that redirect_neigh cannot be told of here.
        let next_hop = hop.gateway.unwrap_or(to);
        if next_hop.is_ipv4() != to.is_ipv4() {
            return None;
        }
        let neighbour = neighbours.get(&(hop.ifindex, next_hop));
        Some(Path {
            ifindex: hop.ifindex,
            mtu: hop.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
            learned_mtu: self.path_mtus.get(to).map(|learned| learned.mtu),
            mac,
            next_hop,
            next_hop_mac: neighbour.filter(|n| n.usable).and_then(|n| n.mac),
        })
    }
}
