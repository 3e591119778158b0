//! Routes in containers: what leads into the mesh from there.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::BorrowedFd,
};

use ipnet::{IpNet, Ipv4Net};

use super::{
    Host, HostError, ROUTE_PROTOCOL,
    endpoint::id_of,
    faults::remedy,
    inside::{Unfollowed, inside_of},
};
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
    }
    if network.flood == Flood::All {
        routes.extend(group_routes(endpoint));
    }
    routes
}

/// To IPv6 the kernel gives a route for multicast on each interface by itself.
fn group_routes(endpoint: &Endpoint) -> Vec<RouteSpec> {
    let v4 = endpoint.addresses.iter().copied().filter(IpAddr::is_ipv4);
    let route = |source, dst: Ipv4Net| RouteSpec {
        dst: dst.into(),
        ifindex: endpoint.ifindex,
        gateway: None,
        source: Some(source),
        onlink: false,
        mtu: None,
        protocol: ROUTE_PROTOCOL,
    };
    v4.flat_map(|source| FLOODED.map(|dst| route(source, dst))).collect()
}

pub(super) fn gateway_for(me: &Node, network: &Network, address: IpAddr) -> Option<IpAddr> {
    let mut subnets = me.subnets.iter().filter(|(vni, _)| *vni == network.vni).map(|(_, n)| n);
    subnets.find(|net| net.addr().is_ipv4() == address.is_ipv4()).map(|net| gateway(*net))
}

/// A route for what all containers of a network get.
pub(super) fn is_for_groups(dst: IpNet) -> bool {
    FLOODED.iter().any(|net| dst == (*net).into())
}

/// Adds routes of an endpoint. Where two networks of a container carry broadcast, the first keeps
/// the routes for that: a program says by which interface it sends to the other.
pub(super) async fn add_routes(inside: &Net, routes: &[RouteSpec]) -> Result<(), HostError> {
    let there = inside.routes().await?;
    for spec in routes {
        let is_anothers = |r: &Route| {
            r.dst == spec.dst && r.protocol == ROUTE_PROTOCOL && r.ifindex != Some(spec.ifindex)
        };
        if !(is_for_groups(spec.dst) && there.iter().any(is_anothers)) {
            inside.add_route(spec).await?;
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

    /// Where it is not known whether an endpoint has routes for broadcast, as a version before did not
    /// note that, the file that was applied last tells.
    pub(super) fn recall_flood(&mut self) {
        if self.state.endpoints.is_empty() {
            return;
        }
        let of_file = if self.cluster.is_none() { self.file_cluster() } else { None };
        let Some(last) = self.cluster.as_ref().or(of_file.as_ref()) else { return };
        for endpoint in self.state.endpoints.values_mut().filter(|e| e.floods.is_none()) {
            let network = last.networks.iter().find(|n| n.vni.get() == endpoint.vni);
            endpoint.floods = network.map(|n| n.flood == Flood::All);
        }
    }

    /// Gives the containers of each network that carries broadcast the routes for it, and takes them
    /// from those of one that does not any more. What can not be done is tried again at the next look.
    pub(super) async fn follow_flood(&mut self, cluster: &Cluster) {
        let mut before = std::mem::take(&mut self.unflooded);
        // Those on a bridge have it from there.
        let made_here = self.state.endpoints.iter_mut().filter(|(_, e)| e.bridged.is_none());
        for (name, endpoint) in made_here.filter(|(_, e)| !e.unfinished) {
            let network = cluster.networks.iter().find(|n| n.vni.get() == endpoint.vni);
            let Some(network) = network else { continue };
            let carries = network.flood == Flood::All;
            if *endpoint.floods.get_or_insert(carries) == carries {
                continue;
            }
            let last = before.remove(name).filter(|last| last.wanted == carries);
            if let Some(last) = last.filter(|last| !last.is_due()) {
                self.unflooded.insert(name.clone(), last);
                continue;
            }
            match follow_flood_in(&self.net, endpoint, carries).await {
                Ok(()) => endpoint.floods = Some(carries),
                Err(e) => {
                    let fault = kept_routes(endpoint, carries, &e);
                    self.unflooded.insert(name.clone(), Unfollowed::new(carries, fault));
                }
            }
        }
    }
}

fn kept_routes(endpoint: &Endpoint, carries: bool, why: &HostError) -> String {
    let what = match carries {
        true => "it has not all routes for broadcast and multicast, which its network carries now",
        false => {
            "it keeps its routes for broadcast and multicast, which its network no longer carries"
        }
    };
    format!("{what}: {why}; {}, or mend that: it is tried again", remedy(endpoint))
}

async fn follow_flood_in(here: &Net, endpoint: &Endpoint, carries: bool) -> Result<(), HostError> {
    let (inside, _) = inside_of(here, endpoint).await?;
    let routes = group_routes(endpoint);
    if carries {
        return add_routes(&inside, &routes).await;
    }
    for spec in &routes {
        inside.remove_route(spec).await?;
    }
    Ok(())
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
