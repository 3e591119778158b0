//! Routes in containers: what leads into the mesh from there.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::BorrowedFd,
};

use ipnet::{IpNet, Ipv4Net};

use super::{Host, HostError, ROUTE_PROTOCOL, endpoint::id_of};
use crate::{
    config::{Cluster, Flood, Network, Node, gateway},
    net::{Net, Route, RouteSpec},
    state::Endpoint,
};

/// Where the kernel does not know by itself that the network carries it: multicast, and broadcast.
const FLOODED: [Ipv4Net; 2] = [
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
    Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32),
];

/// Routes in the container: the gateways on the link, the rest of the network through them.
pub(super) fn container_routes(
    network: &Network,
    me: &Node,
    endpoint: &Endpoint,
) -> Vec<RouteSpec> {
    let mut routes = Vec::new();
    for source in &endpoint.addresses {
        let Some(via) = gateway_for(me, network, *source) else { continue };
        let spec = RouteSpec {
            dst: IpNet::from(via),
            ifindex: endpoint.ifindex,
            gateway: None,
            source: Some(*source),
            onlink: false,
            mtu: None,
            protocol: ROUTE_PROTOCOL,
        };
        routes.push(spec);
        let cidrs = network.cidrs.iter().filter(|c| c.addr().is_ipv4() == source.is_ipv4());
        routes.extend(cidrs.map(|c| RouteSpec {
            dst: *c,
            gateway: Some(via),
            onlink: true,
            ..spec
        }));
        // To IPv6 the kernel gives a route for multicast on each interface by itself.
        let groups = FLOODED.iter().filter(|_| source.is_ipv4() && network.flood == Flood::All);
        routes.extend(groups.map(|dst| RouteSpec { dst: (*dst).into(), ..spec }));
    }
    routes
}

pub(super) fn gateway_for(me: &Node, network: &Network, address: IpAddr) -> Option<IpAddr> {
    let mut subnets = me.subnets.iter().filter(|(vni, _)| *vni == network.vni).map(|(_, n)| n);
    subnets.find(|net| net.addr().is_ipv4() == address.is_ipv4()).map(|net| gateway(*net))
}

/// A route for what all containers of a network get.
pub(super) fn is_for_groups(dst: IpNet) -> bool {
    FLOODED.iter().any(|net| dst == (*net).into())
}

/// Adds the routes of an endpoint. Where two networks of a container carry broadcast, the first
/// keeps the routes for that: a program says by which interface it sends to the other.
pub(super) async fn add_routes(
    inside: &Net,
    network: &Network,
    me: &Node,
    endpoint: &Endpoint,
) -> Result<(), HostError> {
    let there = inside.routes().await?;
    let is_ours = |r: &Route| r.protocol == ROUTE_PROTOCOL && r.ifindex != Some(endpoint.ifindex);
    for spec in container_routes(network, me, endpoint) {
        let is_kept =
            is_for_groups(spec.dst) && there.iter().any(|r| r.dst == spec.dst && is_ours(r));
        if !is_kept {
            inside.add_route(&spec).await?;
        }
    }
    Ok(())
}

impl Host {
    /// Fails if a container has its way to addresses of this network by an endpoint of another:
    /// they would be taken from that. Nothing was made yet.
    ///
    /// A route of somebody else's is found when ours is added.
    pub(super) async fn check_container_routes(
        &self,
        cluster: &Cluster,
        network: &Network,
        netns: BorrowedFd<'_>,
        inside: &Net,
        ifname: &str,
    ) -> Result<(), HostError> {
        let id = id_of(netns);
        for (name, other) in self.state.endpoints.iter().filter(|(_, e)| e.netns_id == id) {
            let of_other = cluster.networks.iter().find(|n| n.vni.get() == other.vni);
            let cidrs = of_other.map_or(&[][..], |n| &n.cidrs);
            let common = network.cidrs.iter().find(|a| cidrs.iter().any(|b| overlap(**a, *b)));
            if let (Some(dst), Some(n)) = (common, of_other) {
                let by = format!("{} (endpoint {name:?} of network {})", other.ifname, n.name);
                return Err(taken(*dst, ifname, &by, name));
            }
        }
        // Of an endpoint whose network is gone, or that was found again without its namespace.
        let is_taken = |r: &Route| r.protocol == ROUTE_PROTOCOL && network.cidrs.contains(&r.dst);
        let Some(route) = inside.routes().await?.into_iter().find(is_taken) else { return Ok(()) };
        let links = inside.links().await?;
        let link = links.into_iter().find(|l| Some(l.index) == route.ifindex);
        let by = link.map_or_else(|| "another interface".to_owned(), |l| l.name);
        Err(taken(route.dst, ifname, &by, "NAME"))
    }
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn taken(dst: IpNet, ifname: &str, by: &str, name: &str) -> HostError {
    HostError::User(format!(
        "cannot route {dst} through {ifname}: the container has mesh's route to it already, through \
         {by}; take that off (`mesh detach {name}`) or give one of the networks other addresses"
    ))
}
