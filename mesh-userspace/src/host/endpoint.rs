//! Containers: attached, detached, forgotten when they are gone.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{ALIAS, Host, HostError, mesh0::full_len};
use crate::{
    bpf::attach::{self, Interface},
    compile,
    config::{Cluster, Network, Node, Vni, gateway},
    net::{Net, RouteSpec, Veth, VethPair, open_netns, own_netns, same_netns},
    state::Endpoint,
};
use mesh_common::names;

/// The host's end takes any size, so that what is too big for the mesh reaches the program, which
/// answers, and is not dropped by the veth, which does not.
const HOST_SIDE_MTU: u32 = 65_535;

/// Endpoints on one host; `ENDPOINT_STATS` has a row for each, and one for the host.
const MAX_ENDPOINTS: usize = 4095;

/// What `mesh attach` asks for. The namespace itself comes as a descriptor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// How the user named the namespace.
    pub netns: String,
    pub name: Option<String>,
    /// At most one of each family; chosen where not given.
    pub addresses: Vec<IpAddr>,
    pub network: Option<String>,
}

/// What a container was given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attached {
    pub name: String,
    pub network: String,
    pub vni: u32,
    /// The interface in the container.
    pub ifname: String,
    /// Its other end on the host.
    pub host_ifname: String,
    /// With prefix length.
    pub addresses: Vec<String>,
    pub gateways: Vec<IpAddr>,
    /// Destinations that lead into the mesh.
    pub routes: Vec<IpNet>,
    pub mac: String,
    pub mtu: u32,
    pub netns: String,
}

impl Host {
    /// Connects a namespace to the mesh. If anything fails, nothing remains.
    pub async fn attach(
        &mut self,
        request: AttachRequest,
        netns: BorrowedFd<'_>,
    ) -> Result<Attached, HostError> {
        let cluster = self.adopt()?;
        let done = self.attach_in(&cluster, request, netns).await;
        self.cluster = Some(cluster);
        done
    }

    async fn attach_in(
        &mut self,
        cluster: &Cluster,
        request: AttachRequest,
        netns: BorrowedFd<'_>,
    ) -> Result<Attached, HostError> {
        self.forget_gone().await?;
        let me = super::find(cluster, &self.state.node)?;
        let network = find_network(cluster, request.network.as_deref())?;
        let name = self.name_for(&request, network, netns)?;
        let addresses = self.addresses_for(&me, network, &request.addresses)?;
        let mtu = compile::container_mtu(cluster, network.vni, self.underlay(&me).await?.mtu)
            .unwrap_or_else(|largest| largest);
        let inside = Net::in_netns(netns)?;
        let ifname = free_ifname(&inside).await?;
        let mac = container_mac(network.vni, &addresses);
        let host_ifname = host_ifname(&name);
        let id = self.free_id()?;
        self.clear_away(&host_ifname).await?;
        let pair = self
            .net
            .add_veth(&Veth {
                name: &host_ifname,
                mac: compile::node_mac(me.underlay),
                mtu: HOST_SIDE_MTU,
                alias: Some(&format!("{ALIAS}{name}")),
                peer_name: &ifname,
                peer_mac: mac,
                peer_mtu: mtu,
                peer_netns: Some(netns),
            })
            .await?;
        let endpoint = Endpoint {
            vni: network.vni.get(),
            id,
            host: Interface { name: host_ifname, index: pair.ifindex },
            ifname,
            ifindex: pair.peer_ifindex,
            mac,
            addresses,
            mtu,
            netns: request.netns,
            netns_id: id_of(netns),
        };
        let attached = describe(&name, network, &me, &endpoint);
        self.state.endpoints.insert(name.clone(), endpoint);
        match self.finish(cluster, &me, network, &inside, &name, pair).await {
            Ok(()) => Ok(attached),
            Err(e) => {
                // The first error is the one that matters.
                let _ = self.remove_endpoint(cluster, &me, &name).await;
                Err(e)
            }
        }
    }

    /// Everything after the veth is there: maps and program first, so that the container finds the
    /// mesh ready when its interface comes up.
    async fn finish(
        &mut self,
        cluster: &Cluster,
        me: &Node,
        network: &Network,
        inside: &Net,
        name: &str,
        pair: VethPair,
    ) -> Result<(), HostError> {
        self.save()?;
        let Some(endpoint) = self.state.endpoints.get(name).cloned() else { return Ok(()) };
        self.tables()?
            .endpoint_stats
            .clear(endpoint.id)
            .map_err(|source| crate::bpf::BpfError::Map { map: names::ENDPOINT_STATS, source })?;
        self.fill(cluster, me).await?;
        attach::attach(&self.pins, self.mode(), names::FROM_CONTAINER, &endpoint.host)?;
        self.net.set_up(pair.ifindex).await?;
        inside.set_up(pair.peer_ifindex).await?;
        for ip in &endpoint.addresses {
            inside.add_address(pair.peer_ifindex, *ip, full_len(*ip)).await?;
            if ip.is_ipv6() {
                // The kernel confirms a neighbour only from a link-local address.
                let local = link_local(endpoint.mac);
                inside.add_address(pair.peer_ifindex, local.into(), 64).await?;
            }
        }
        for route in container_routes(network, me, &endpoint) {
            inside.add_route(&route).await?;
        }
        Ok(())
    }

    /// Takes a container off the mesh, and its interface away.
    pub async fn detach(&mut self, name: &str) -> Result<(), HostError> {
        let cluster = self.adopt()?;
        let me = super::find(&cluster, &self.state.node)?;
        let done = if self.state.endpoints.contains_key(name) {
            self.remove_endpoint(&cluster, &me, name).await
        } else {
            let known: Vec<_> = self.state.endpoints.keys().map(String::as_str).collect();
            Err(HostError::User(match known.as_slice() {
                [] => format!("there is no endpoint {name:?}: nothing is attached on this host"),
                known => format!("there is no endpoint {name:?}; there are {}", known.join(", ")),
            }))
        };
        self.cluster = Some(cluster);
        done
    }

    async fn remove_endpoint(
        &mut self,
        cluster: &Cluster,
        me: &Node,
        name: &str,
    ) -> Result<(), HostError> {
        let Some(endpoint) = self.state.endpoints.remove(name) else { return Ok(()) };
        // It goes whatever else is wrong; what is left of it in the maps, the next refresh removes.
        let filled = self.fill(cluster, me).await;
        self.drop_interface(&endpoint).await?;
        self.save()?;
        filled
    }

    /// Removes what is left of an attachment that was interrupted before it was noted.
    async fn clear_away(&self, host_ifname: &str) -> Result<(), HostError> {
        let is_known = self.state.endpoints.values().any(|e| e.host.name == host_ifname);
        match self.net.link_by_name(host_ifname).await? {
            Some(link) if !is_known && super::mesh0::is_ours(&link) => {
                Ok(self.net.delete_link(link.index).await?)
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn drop_interface(&self, endpoint: &Endpoint) -> Result<(), HostError> {
        attach::detach(&self.pins, self.mode(), names::FROM_CONTAINER, &endpoint.host)?;
        match self.net.link(endpoint.host.index).await? {
            // A number may have gone to another interface since.
            Some(link) if link.name == endpoint.host.name && super::mesh0::is_ours(&link) => {
                Ok(self.net.delete_link(link.index).await?)
            }
            _ => Ok(()),
        }
    }

    /// Forgets endpoints whose interface is gone, as it goes with its namespace.
    pub(super) async fn forget_gone(&mut self) -> Result<(), HostError> {
        let links: HashSet<(u32, String)> =
            self.net.links().await?.into_iter().map(|l| (l.index, l.name)).collect();
        let is_there = |e: &Endpoint| links.contains(&(e.host.index, e.host.name.clone()));
        let gone: Vec<String> = self
            .state
            .endpoints
            .iter()
            .filter(|(_, e)| !is_there(e))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            tracing::info!(endpoint = name, "its interface is gone: detached");
            if let Some(endpoint) = self.state.endpoints.remove(&name) {
                attach::detach(&self.pins, self.mode(), names::FROM_CONTAINER, &endpoint.host)?;
            }
        }
        Ok(())
    }

    /// Gives the containers' interfaces the MTU that the file or the underlay has now.
    pub(super) async fn follow_mtu(&mut self, cluster: &Cluster, underlay_mtu: u32) {
        for (name, endpoint) in &mut self.state.endpoints {
            let Some(vni) = Vni::new(endpoint.vni) else { continue };
            let mtu = compile::container_mtu(cluster, vni, underlay_mtu).unwrap_or_else(|m| m);
            if mtu == endpoint.mtu {
                continue;
            }
            match set_inner_mtu(endpoint, mtu).await {
                Ok(()) => endpoint.mtu = mtu,
                Err(e) => tracing::warn!(
                    "endpoint {name} keeps its MTU of {}, though the mesh now has {mtu}: {e}; \
                     packets that are too big are answered, or attach it anew",
                    endpoint.mtu
                ),
            }
        }
    }

    /// The name: as given, else the namespace's own, with the network's if that is taken.
    fn name_for(
        &self,
        request: &AttachRequest,
        network: &Network,
        netns: BorrowedFd<'_>,
    ) -> Result<String, HostError> {
        if same_netns(netns, own_netns()?.as_fd()) {
            return Err(HostError::User(
                "that is the namespace of this host, which has mesh0; give a container's".into(),
            ));
        }
        let id = id_of(netns);
        let vni = network.vni.get();
        let mut endpoints = self.state.endpoints.iter();
        if let Some((name, _)) = endpoints.find(|(_, e)| e.netns_id == id && e.vni == vni) {
            return Err(HostError::User(format!(
                "that namespace is attached to network {} already, as {name:?}; \
                 `mesh detach {name}` takes it off",
                network.name
            )));
        }
        if let Some(name) = &request.name {
            check_name(name)?;
            return match self.state.endpoints.get(name) {
                Some(e) => Err(HostError::User(format!(
                    "there is an endpoint {name:?} already, for {}; give another --name",
                    e.netns
                ))),
                None => Ok(name.clone()),
            };
        }
        let base = default_name(&request.netns);
        let candidates = [base.clone(), format!("{base}-{}", network.name)];
        let free = candidates.into_iter().find(|n| !self.state.endpoints.contains_key(n));
        let name = free.ok_or_else(|| {
            HostError::User(format!("there is an endpoint {base:?} already; give a --name"))
        })?;
        check_name(&name)?;
        Ok(name)
    }

    /// The addresses asked for, checked, and for each other family of the network the first free.
    fn addresses_for(
        &self,
        me: &Node,
        network: &Network,
        asked: &[IpAddr],
    ) -> Result<Vec<IpAddr>, HostError> {
        let subnets: Vec<&IpNet> =
            me.subnets.iter().filter(|(vni, _)| *vni == network.vni).map(|(_, n)| n).collect();
        let taken: HashSet<IpAddr> = self
            .state
            .endpoints
            .values()
            .filter(|e| e.vni == network.vni.get())
            .flat_map(|e| e.addresses.iter().copied())
            .chain(subnets.iter().map(|net| gateway(**net)))
            .collect();
        let mut chosen = Vec::new();
        for v4 in [true, false] {
            let of_family = |ip: &&IpAddr| ip.is_ipv4() == v4;
            let subnets = || subnets.iter().copied().filter(|net| net.addr().is_ipv4() == v4);
            match asked.iter().filter(of_family).collect::<Vec<_>>().as_slice() {
                [] if subnets().next().is_none() => {}
                [] => match subnets().find_map(|net| first_free(net, &taken)) {
                    Some(ip) => chosen.push(ip),
                    None => {
                        let full: Vec<_> = subnets().map(IpNet::to_string).collect();
                        return Err(HostError::User(format!(
                            "no address is free in {}: detach an endpoint or give the node a \
                             larger subnet",
                            full.join(", ")
                        )));
                    }
                },
                [ip] => chosen.push(check_asked(**ip, subnets(), &taken, me, network)?),
                _ => {
                    return Err(HostError::User(
                        "at most one address of each family can be asked for".into(),
                    ));
                }
            }
        }
        if chosen.is_empty() {
            return Err(HostError::User(format!(
                "node {} has no subnet in network {}: add one to the config file",
                me.name, network.name
            )));
        }
        Ok(chosen)
    }

    fn free_id(&self) -> Result<u32, HostError> {
        let used: HashSet<u32> = self.state.endpoints.values().map(|e| e.id).collect();
        (1..=MAX_ENDPOINTS as u32).find(|id| !used.contains(id)).ok_or_else(|| {
            HostError::User(format!("{MAX_ENDPOINTS} endpoints on one host is all there can be"))
        })
    }
}

fn find_network<'a>(cluster: &'a Cluster, name: Option<&str>) -> Result<&'a Network, HostError> {
    let Some(name) = name else {
        return cluster.networks.first().ok_or_else(|| HostError::User("no network".into()));
    };
    cluster.networks.iter().find(|n| n.name == name).ok_or_else(|| {
        let known: Vec<_> = cluster.networks.iter().map(|n| n.name.as_str()).collect();
        HostError::User(format!("there is no network {name:?}; there are {}", known.join(", ")))
    })
}

fn check_asked<'a>(
    ip: IpAddr,
    mut subnets: impl Iterator<Item = &'a IpNet>,
    taken: &HashSet<IpAddr>,
    me: &Node,
    network: &Network,
) -> Result<IpAddr, HostError> {
    let Some(net) = subnets.find(|net| net.contains(&ip)) else {
        return Err(HostError::User(format!(
            "{ip} is not in a subnet that node {} has in network {}; leave --ip out to have one \
             chosen",
            me.name, network.name
        )));
    };
    let is_edge = ip == net.network() || net.addr().is_ipv4() && ip == net.broadcast();
    if is_edge || ip == gateway(*net) {
        return Err(HostError::User(format!(
            "{ip} is not for a container: the first address of {net} is the host's own, and the \
             network and broadcast addresses are nobody's"
        )));
    }
    if taken.contains(&ip) {
        return Err(HostError::User(format!("{ip} is taken by another endpoint of this host")));
    }
    Ok(ip)
}

/// The lowest free address, neither the network's, the gateway's nor the broadcast address.
fn first_free(net: &IpNet, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    // One more candidate than are taken is enough.
    let candidates = taken.len() as u128 + 1;
    match net {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()) + 2, u32::from(net.broadcast()));
            let end = last.min(first.saturating_add(u32::try_from(candidates).ok()?));
            (first..end).map(|a| Ipv4Addr::from(a).into()).find(|ip| !taken.contains(ip))
        }
        IpNet::V6(net) => {
            let (first, last) = (u128::from(net.network()) + 2, u128::from(net.broadcast()));
            let end = last.min(first.saturating_add(candidates));
            (first..=end).map(|a| Ipv6Addr::from(a).into()).find(|ip| !taken.contains(ip))
        }
    }
}

/// Routes in the container: the gateways on the link, the rest of the network through them.
fn container_routes(network: &Network, me: &Node, endpoint: &Endpoint) -> Vec<RouteSpec> {
    let mut routes = Vec::new();
    for source in &endpoint.addresses {
        let Some(via) = gateway_for(me, network, *source) else { continue };
        let spec = RouteSpec {
            dst: IpNet::from(via),
            ifindex: endpoint.ifindex,
            gateway: None,
            source: Some(*source),
            onlink: false,
            protocol: super::ROUTE_PROTOCOL,
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
    routes
}

fn gateway_for(me: &Node, network: &Network, address: IpAddr) -> Option<IpAddr> {
    let mut subnets = me.subnets.iter().filter(|(vni, _)| *vni == network.vni).map(|(_, n)| n);
    subnets.find(|net| net.addr().is_ipv4() == address.is_ipv4()).map(|net| gateway(*net))
}

pub(super) fn describe(name: &str, network: &Network, me: &Node, endpoint: &Endpoint) -> Attached {
    Attached {
        name: name.to_owned(),
        network: network.name.clone(),
        vni: endpoint.vni,
        ifname: endpoint.ifname.clone(),
        host_ifname: endpoint.host.name.clone(),
        addresses: endpoint.addresses.iter().map(|ip| IpNet::from(*ip).to_string()).collect(),
        gateways: endpoint
            .addresses
            .iter()
            .filter_map(|ip| gateway_for(me, network, *ip))
            .collect(),
        routes: network.cidrs.clone(),
        mac: mac_text(endpoint.mac),
        mtu: endpoint.mtu,
        netns: endpoint.netns.clone(),
    }
}

pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

fn check_name(name: &str) -> Result<(), HostError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 128 || !name.chars().all(fine) {
        return Err(HostError::User(format!(
            "an endpoint cannot be named {name:?}: give a --name of letters, digits, '-', '_' and \
             '.', at most 128"
        )));
    }
    Ok(())
}

/// The last part of the path, or of a pid "pid-1234".
fn default_name(netns: &str) -> String {
    if netns.bytes().all(|b| b.is_ascii_digit()) {
        return format!("pid-{netns}");
    }
    let mut parts = netns.rsplit('/').filter(|p| !p.is_empty());
    match (parts.next(), parts.next(), parts.next()) {
        (Some("net"), Some("ns"), Some(pid)) => format!("pid-{pid}"),
        (Some(last), ..) => last.to_owned(),
        (None, ..) => "endpoint".to_owned(),
    }
}

/// A name for the host's end that the same endpoint always has: FNV-1a of its name.
fn host_ifname(name: &str) -> String {
    format!("mesh{:08x}", fnv(name.as_bytes()))
}

fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

/// A MAC that follows from network and address: the same container, the same MAC.
fn container_mac(vni: Vni, addresses: &[IpAddr]) -> [u8; 6] {
    let mut bytes = vni.get().to_be_bytes().to_vec();
    match addresses.first() {
        Some(IpAddr::V4(ip)) => bytes.extend(ip.octets()),
        Some(IpAddr::V6(ip)) => bytes.extend(ip.octets()),
        None => {}
    }
    let [a, b, c, d] = fnv(&bytes).to_be_bytes();
    [0x02, 0x6e, a, b, c, d]
}

/// RFC 4291, appendix A.
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

/// `eth0`, or the first `ethN` that is free.
async fn free_ifname(inside: &Net) -> Result<String, HostError> {
    let taken: HashSet<String> = inside.links().await?.into_iter().map(|l| l.name).collect();
    let free = (0..=taken.len()).map(|n| format!("eth{n}")).find(|name| !taken.contains(name));
    Ok(free.unwrap_or_else(|| "eth0".into()))
}

fn id_of(netns: BorrowedFd<'_>) -> (u64, u64) {
    rustix::fs::fstat(netns).map(|s| (s.st_dev, s.st_ino)).unwrap_or_default()
}

async fn set_inner_mtu(endpoint: &Endpoint, mtu: u32) -> Result<(), HostError> {
    let netns: OwnedFd = open_netns(&endpoint.netns)?;
    if id_of(netns.as_fd()) != endpoint.netns_id {
        return Err(HostError::User(format!("{} is another namespace by now", endpoint.netns)));
    }
    Ok(Net::in_netns(netns.as_fd())?.set_mtu(endpoint.ifindex, mtu).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(ips: &[&str]) -> HashSet<IpAddr> {
        ips.iter().map(|s| s.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_free_address_skips_gateway_and_taken() {
        let net = "10.42.0.0/24".parse().unwrap();
        let got = first_free(&net, &taken(&["10.42.0.1", "10.42.0.2", "10.42.0.4"]));
        assert_eq!(got, Some("10.42.0.3".parse().unwrap()));
        let net = "fd00::/64".parse().unwrap();
        assert_eq!(first_free(&net, &taken(&["fd00::1"])), Some("fd00::2".parse().unwrap()));
    }

    #[test]
    fn a_full_subnet_has_no_free_address() {
        let net = "10.42.0.0/30".parse().unwrap();
        assert_eq!(first_free(&net, &taken(&["10.42.0.1", "10.42.0.2"])), None);
    }

    #[test]
    fn a_large_subnet_is_not_walked() {
        let net = "fd00::/8".parse().unwrap();
        assert_eq!(first_free(&net, &taken(&[])), Some("fd00::2".parse().unwrap()));
    }

    #[test]
    fn names_come_from_what_the_user_typed() {
        assert_eq!(default_name("c1"), "c1");
        assert_eq!(default_name("/run/netns/c1"), "c1");
        assert_eq!(default_name("4711"), "pid-4711");
        assert_eq!(default_name("/proc/4711/ns/net"), "pid-4711");
    }

    #[test]
    fn link_local_address_follows_from_the_mac() {
        let mac = [0x02, 0x6e, 0x12, 0x34, 0x56, 0x78];
        assert_eq!(link_local(mac), "fe80::6e:12ff:fe34:5678".parse::<Ipv6Addr>().unwrap());
    }
}
