//! Bridges that are somebody else's, such as Docker's `docker0`: their ports become endpoints as
//! they appear.
//!
//! Nothing of the bridge changes, and what its containers say to each other, to the host and to the
//! world stays its own. Whose address is whose, the program on a port learns from the container's
//! traffic (`mesh-ebpf/src/bridge.rs`) and puts into `LEARNED`; here it becomes the endpoint's. That
//! works from the first packet on, for whatever stands behind the bridge, and needs no agent.
//! Reading the addresses in the container's namespace would not do: Docker sets them some time after
//! the port appears and tells nobody, and a container may set others. Where Docker can be asked, it
//! has the last word ([`Host::docker_says`]): a container then has the address that Docker gave it, and
//! no other, from its start on.

use std::{net::IpAddr, os::fd::AsFd};

use ipnet::IpNet;
use mesh_common::{
    maps::{EndpointKey, LearnedKey},
    names,
    verdict::Hook,
    wire::mac_bytes,
};

use super::{BridgeStatus, Host, HostError};
use crate::{
    bpf::{
        BpfError,
        attach::{self, Interface},
        sync,
    },
    config::{Cluster, Node, Vni},
    faults::Of,
    net::{Link, open_netns},
    state::{Bridged, Endpoint},
};

/// The config file's bridges, as they are on this host.
#[derive(Clone, Debug, Default)]
pub(super) struct Bridges {
    /// Those that there are, in the file's order.
    there: Vec<Link>,
    /// Veths whose other end is in a container, with their bridges.
    ports: Vec<(Link, String)>,
    /// All addresses of the bridges.
    pub addresses: Vec<(String, IpNet)>,
    /// Those of them that are in this node's subnet.
    own: Vec<IpAddr>,
}

impl Bridges {
    /// The index of the one where unknown addresses are asked for, or 0.
    pub fn first(&self) -> u32 {
        self.there.first().map_or(0, |bridge| bridge.index)
    }

    /// Whether addresses of this node's subnet of a family are given out by others too.
    pub fn share_subnet(&self, v4: bool) -> bool {
        self.own.iter().any(|ip| ip.is_ipv4() == v4)
    }

    /// Is this the index of one of them?
    pub fn has(&self, ifindex: u32) -> bool {
        self.there.iter().any(|bridge| bridge.index == ifindex)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.there.iter().map(|bridge| bridge.name.as_str())
    }
}

/// What Docker says of a container.
#[derive(Clone, Debug)]
pub struct Told {
    /// Of a process in it.
    pub pid: u32,
    pub container: String,
    pub addresses: Vec<IpAddr>,
    pub mac: [u8; 6],
}

impl Host {
    pub(super) async fn look_at_bridges(
        &self,
        cluster: &Cluster,
        me: &Node,
    ) -> Result<Bridges, HostError> {
        if cluster.bridges.is_empty() {
            return Ok(Bridges::default());
        }
        let links = self.net.links().await?;
        let is_bridge =
            |l: &Link, name: &str| l.name == name && l.kind.as_deref() == Some("bridge");
        let named = |name: &String| links.iter().find(|l| is_bridge(l, name)).cloned();
        let there: Vec<Link> = cluster.bridges.iter().filter_map(named).collect();
        let of = |link: &Link| there.iter().find(|b| Some(b.index) == link.controller);
        let is_port = |l: &&Link| l.kind.as_deref() == Some("veth") && l.peer_netns.is_some();
        let ports = links.iter().filter(is_port);
        let ports = ports.filter_map(|l| Some((l.clone(), of(l)?.name.clone()))).collect();
        let of_bridge = |ifindex: u32| there.iter().find(|b| b.index == ifindex);
        let addresses: Vec<(String, IpNet)> = self
            .net
            .addresses()
            .await?
            .into_iter()
            .filter_map(|a| Some((of_bridge(a.ifindex)?.name.clone(), a.net)))
            .collect();
        let own = addresses.iter().map(|(_, net)| net.addr());
        let own = own.filter(|ip| is_own(me, *ip)).collect();
        Ok(Bridges { there, ports, addresses, own })
    }

    /// Makes an endpoint of each port that has none, and forgets those that are no ports any more.
    pub(super) async fn ensure_ports(&mut self) -> Result<(), HostError> {
        let ports = std::mem::take(&mut self.bridges.ports);
        let is_port = |e: &Endpoint| ports.iter().any(|(link, _)| link.index == e.host.index);
        let gone = |(name, e): (&String, &Endpoint)| {
            (e.bridged.is_some() && !is_port(e)).then(|| name.clone())
        };
        let gone: Vec<String> = self.state.endpoints.iter().filter_map(gone).collect();
        let mut done = Ok(());
        for name in gone {
            // One that can not be taken off stops no other.
            done = done.and(self.forget_port(&name).await);
        }
        for (link, bridge) in &ports {
            let is_known = |e: &Endpoint| e.host.index == link.index;
            if !self.state.endpoints.values().any(is_known)
                && let Err(e) = self.add_port(link, bridge)
            {
                tracing::warn!("{} is not attached: {e}", link.name);
            }
        }
        self.bridges.ports = ports;
        done
    }

    fn add_port(&mut self, link: &Link, bridge: &str) -> Result<(), HostError> {
        let id = self.free_id()?;
        let clear = self.tables()?.endpoint_stats.clear(id);
        clear.map_err(|source| BpfError::Map { map: names::ENDPOINT_STATS, source })?;
        let name = format!("{}@{bridge}", link.name);
        let endpoint = Endpoint {
            vni: Vni::DEFAULT.get(),
            id,
            host: Interface { name: link.name.clone(), index: link.index },
            ifname: "?".into(),
            ifindex: link.peer.unwrap_or(0),
            mac: [0; 6],
            addresses: Vec::new(),
            mtu: link.mtu,
            mtu_max: None,
            netns: "?".into(),
            netns_id: (0, 0),
            names: Vec::new(),
            cni: None,
            netkit: false,
            bridged: Some(Bridged {
                bridge: bridge.to_owned(),
                netns: link.peer_netns.unwrap_or(-1),
                container: None,
            }),
            ports: Vec::new(),
            floods: None,
            unfinished: false,
            found: false,
        };
        tracing::info!(endpoint = name, "attached");
        self.state.endpoints.insert(name, endpoint);
        Ok(())
    }

    async fn forget_port(&mut self, name: &str) -> Result<(), HostError> {
        let Some(endpoint) = self.state.endpoints.get(name).cloned() else { return Ok(()) };
        attach::detach(&self.pins, self.mode(), Hook::FromContainer, &endpoint.host)?;
        if self.state.clsact.contains(&endpoint.host) {
            self.net.remove_clsact(endpoint.host.index).await?;
            self.state.clsact.retain(|interface| *interface != endpoint.host);
        }
        self.state.endpoints.remove(name);
        tracing::info!(endpoint = name, "detached");
        Ok(())
    }

    /// Gives ports the addresses that they told. Returns what is to be forgotten then.
    pub(super) fn adopt_learned(
        &mut self,
        me: &Node,
    ) -> Result<Vec<(LearnedKey, EndpointKey)>, HostError> {
        let learned = sync::learned(self.tables()?)?;
        for (key, told) in &learned {
            let ip = IpAddr::from(told.endpoint.addr);
            if !is_own(me, ip) || self.holder(ip).is_some() || self.is_hosts(me, ip) {
                continue;
            }
            let is_at = |e: &&mut Endpoint| e.host.index == key.ifindex && e.bridged.is_some();
            let Some(port) = self.state.endpoints.values_mut().find(is_at) else { continue };
            let is_same_family = |other: &IpAddr| other.is_ipv4() == ip.is_ipv4();
            if is_confirmed(port) || port.addresses.iter().any(is_same_family) {
                continue;
            }
            port.addresses.push(ip);
            port.mac = mac_bytes(told.mac);
            tracing::debug!(port = port.host.name, %ip, "learned");
        }
        Ok(learned.into_iter().map(|(key, told)| (key, told.endpoint)).collect())
    }

    /// The maps have what was adopted.
    pub(super) async fn forget_learned(
        &self,
        told: &[(LearnedKey, EndpointKey)],
    ) -> Result<(), HostError> {
        let given = self.contents.as_ref().map(|contents| &contents.endpoints);
        let is_given = |key: &EndpointKey| given.is_some_and(|given| given.contains_key(key));
        let keys: Vec<LearnedKey> = told.iter().map(|(key, _)| *key).collect();
        let not_given: Vec<EndpointKey> =
            told.iter().map(|(_, endpoint)| *endpoint).filter(|key| !is_given(key)).collect();
        Ok(sync::forget_learned(self.tables()?, &keys, &not_given).await?)
    }

    /// Are there ports that may tell their address yet?
    pub fn is_learning(&self) -> bool {
        self.state.endpoints.values().any(|e| e.bridged.is_some() && !is_confirmed(e))
    }

    /// Takes up what ports told since the last look.
    pub async fn take_learned(&mut self) -> Result<(), HostError> {
        let cluster = self.adopt()?;
        let done = async {
            if sync::learned(self.tables()?)?.is_empty() {
                return Ok(());
            }
            let me = super::find(&cluster, &self.state.node)?;
            self.refill(&cluster, &me).await?;
            self.save()
        };
        let done = done.await;
        self.cluster = Some(cluster);
        done
    }

    /// Docker has the last word on who has which address.
    pub async fn docker_says(&mut self, told: Told) -> Result<(), HostError> {
        let cluster = self.adopt()?;
        let done = self.docker_says_in(&cluster, told).await;
        self.cluster = Some(cluster);
        done
    }

    async fn docker_says_in(&mut self, cluster: &Cluster, mut told: Told) -> Result<(), HostError> {
        let me = super::find(cluster, &self.state.node)?;
        told.addresses.retain(|ip| is_own(&me, *ip) && !self.is_hosts(&me, *ip));
        if cluster.bridges.is_empty() || told.addresses.is_empty() {
            return Ok(());
        }
        // It may have ended by now.
        let Ok(netns) = open_netns(&told.pid.to_string()) else { return Ok(()) };
        let Some(number) = self.net.netns_number(netns.as_fd()).await? else { return Ok(()) };
        if self.port_in(number).is_none() {
            // Docker was quicker than the news of the interface.
            self.refresh_all(cluster).await?;
        }
        let Some(name) = self.port_in(number) else { return Ok(()) };
        if !self.give(&name, told) {
            return Ok(());
        }
        self.refill(cluster, &me).await?;
        self.save()
    }

    /// The only port that leads into this namespace.
    fn port_in(&self, netns: i32) -> Option<String> {
        let leads_there = |e: &Endpoint| e.bridged.as_ref().is_some_and(|b| b.netns == netns);
        let mut there = self.state.endpoints.iter().filter(|(_, e)| leads_there(e));
        let (name, _) = there.next()?;
        there.next().is_none().then(|| name.clone())
    }

    /// Returns whether that changed anything.
    fn give(&mut self, name: &str, mut told: Told) -> bool {
        for ip in told.addresses.clone() {
            let Some(holder) = self.holder(ip).filter(|holder| holder != name) else { continue };
            let Some(other) = self.state.endpoints.get_mut(&holder) else { continue };
            let container = &told.container;
            if other.bridged.is_some() && !is_confirmed(other) {
                tracing::warn!("{holder} used {ip}, which Docker gave to {container}: taken away");
                other.addresses.retain(|address| *address != ip);
            } else {
                tracing::warn!(
                    "Docker gave {ip} to {container}, but {holder} has it, and keeps it"
                );
                told.addresses.retain(|address| *address != ip);
            }
        }
        let Some(port) = self.state.endpoints.get_mut(name) else { return false };
        let before = port.clone();
        if let Some(bridged) = &mut port.bridged {
            bridged.container = Some(told.container);
        }
        (port.addresses, port.mac) = (told.addresses, told.mac);
        *port != before
    }

    /// The endpoint of the cluster's own network that has this address.
    fn holder(&self, ip: IpAddr) -> Option<String> {
        let has = |e: &Endpoint| e.vni == Vni::DEFAULT.get() && e.addresses.contains(&ip);
        self.state.endpoints.iter().find(|(_, e)| has(e)).map(|(name, _)| name.clone())
    }

    /// The routes beside a bridge follow what is attached there.
    pub(super) async fn follow_routes(
        &self,
        cluster: &Cluster,
        me: &Node,
    ) -> Result<(), HostError> {
        match self.bridges.own.is_empty() {
            true => Ok(()),
            false => self.ensure_host_routes(cluster, me).await,
        }
    }

    pub(super) fn bridge_status(&self, cluster: &Cluster) -> Vec<BridgeStatus> {
        let status = |name: &String| BridgeStatus {
            name: name.clone(),
            addresses: self.addresses_of(name).collect(),
            ports: self.ports_of(name).count(),
            faults: Vec::new(),
        };
        cluster.bridges.iter().map(status).collect()
    }

    fn addresses_of<'a>(&'a self, bridge: &'a str) -> impl Iterator<Item = IpNet> + 'a {
        self.bridges.addresses.iter().filter(move |(of, _)| of == bridge).map(|(_, net)| *net)
    }

    fn ports_of<'a>(&'a self, bridge: &'a str) -> impl Iterator<Item = &'a Endpoint> + 'a {
        self.state.endpoints.values().filter(move |e| is_of(e, bridge))
    }

    /// What is wrong with the bridges that the config file names.
    pub(super) fn bridge_faults(
        &self,
        cluster: &Cluster,
        me: &Node,
    ) -> Result<Vec<(Of, String)>, HostError> {
        if cluster.bridges.is_empty() {
            return Ok(Vec::new());
        }
        let known = sync::networks(self.tables()?)?;
        let mtu = known.get(&Vni::DEFAULT.get()).map_or(0, |network| network.mtu);
        let faults = |name: &String| {
            let mut faults = Vec::new();
            if !self.bridges.names().any(|there| there == name) {
                faults.push("there is no such bridge (yet)".to_owned());
            } else if !self.addresses_of(name).any(|net| is_own(me, net.addr())) {
                faults.push(format!(
                    "it has no address in this node's subnet: `mesh docker configure` makes Docker \
                     give it {}, after a restart",
                    self.host_addresses(me).first().map(ToString::to_string).unwrap_or_default()
                ));
            }
            let most = self.ports_of(name).map(|e| e.mtu).max();
            if let Some(most) = most.filter(|most| *most > mtu) {
                let remedy = match name.as_str() {
                    "docker0" => "`mesh docker configure` sets Docker's".to_owned(),
                    _ => format!("Docker takes `-o com.docker.network.driver.mtu={mtu}`"),
                };
                faults.push(format!(
                    "its containers have an MTU of {most}, and the mesh one of {mtu}: what is larger \
                     is answered with ICMP; {remedy}"
                ));
            }
            faults.into_iter().map(|fault| (Of::Bridge(name.clone()), fault)).collect::<Vec<_>>()
        };
        Ok(cluster.bridges.iter().flat_map(faults).collect())
    }

    fn is_hosts(&self, me: &Node, ip: IpAddr) -> bool {
        self.all_host_addresses(me).contains(&ip)
    }

    /// This node's own addresses, and those of the bridges within its subnet: by both the others
    /// reach the host.
    pub(super) fn all_host_addresses(&self, me: &Node) -> Vec<IpAddr> {
        let mut all = self.host_addresses(me);
        for ip in &self.bridges.own {
            if !all.contains(ip) {
                all.push(*ip);
            }
        }
        all
    }

    /// What the host reaches over `mesh0` of a prefix of the cluster's: all but what a bridge has,
    /// which is this node's subnet less those that are attached beside the bridge. Parts of a prefix
    /// are more specific than the whole of it, which the bridge has on link.
    pub(super) fn beside_bridges(&self, net: IpNet, me: &Node) -> Vec<IpNet> {
        if !self.bridges.share_subnet(net.addr().is_ipv4()) {
            return vec![net];
        }
        let own: Vec<IpNet> = me.subnets_of(Vni::DEFAULT).collect();
        let beside = |e: &&Endpoint| e.bridged.is_none() && e.vni == Vni::DEFAULT.get();
        let beside = self.state.endpoints.values().filter(beside).flat_map(|e| &e.addresses);
        let beside = beside.filter(|ip| net.contains(*ip)).map(|ip| IpNet::from(*ip));
        without(net, &own).into_iter().chain(beside).collect()
    }
}

fn is_of(endpoint: &Endpoint, bridge: &str) -> bool {
    endpoint.bridged.as_ref().is_some_and(|bridged| bridged.bridge == bridge)
}

fn is_confirmed(endpoint: &Endpoint) -> bool {
    endpoint.bridged.as_ref().is_some_and(|bridged| bridged.container.is_some())
}

fn is_own(me: &Node, ip: IpAddr) -> bool {
    me.subnets_of(Vni::DEFAULT).any(|net| net.contains(&ip))
}

/// `net` less all of `holes`, as few prefixes.
fn without(net: IpNet, holes: &[IpNet]) -> Vec<IpNet> {
    if holes.iter().any(|hole| hole.contains(&net)) {
        return Vec::new();
    }
    if !holes.iter().any(|hole| net.contains(hole)) {
        return vec![net];
    }
    let halves = net.subnets(net.prefix_len() + 1);
    halves.into_iter().flatten().flat_map(|half| without(half, holes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_prefix_without_a_part_of_it_is_the_other_parts() {
        let whole: IpNet = "10.42.0.0/16".parse().unwrap();
        assert_eq!(
            without(whole, &nets(&["10.42.64.0/18"])),
            nets(&["10.42.0.0/18", "10.42.128.0/17"])
        );
        assert_eq!(without(whole, &nets(&["10.43.0.0/16"])), [whole]);
        assert_eq!(without(whole, &[whole]), []);
        let two = without(whole, &nets(&["10.42.0.0/17", "10.42.192.0/18"]));
        assert_eq!(two, nets(&["10.42.128.0/18"]));
    }
}
