//! Containers: attached, detached, forgotten when they are gone.

use std::{collections::HashSet, net::IpAddr, os::fd::BorrowedFd};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    ALIAS, Host, HostError, PLAIN,
    choice::{container_mac, find_network, host_ifname, link_local},
    mesh0::full_len,
    routes::{self, container_routes, gateway_for},
};
use crate::{
    bpf::attach::{self, Interface},
    compile,
    config::{Cluster, Flood, Network, Node, mac_text},
    near,
    net::{Net, Veth, VethPair},
    state::Endpoint,
};
use mesh_common::{names, verdict::Hook};

/// The host's end takes any size, so that what is too big for the mesh reaches the program, which
/// answers, and is not dropped by the veth, which does not.
pub(super) const HOST_SIDE_MTU: u32 = 65_535;

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
    /// First and last of the addresses to choose from; of all that the node has, if there is none
    /// of a family.
    #[serde(default)]
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// Addresses that are somebody's who is not attached yet.
    #[serde(skip)]
    pub reserved: HashSet<IpAddr>,
    /// The interface in the namespace; else the first `ethN` that is free.
    #[serde(default)]
    pub ifname: Option<String>,
    #[serde(default)]
    pub mac: Option<[u8; 6]>,
    /// The interface gets no more than this.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// What other containers call it.
    #[serde(default)]
    pub names: Vec<String>,
    /// The CNI network by which it comes.
    #[serde(default)]
    pub cni: Option<String>,
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
        self.roll_back().await;
        let me = super::find(cluster, &self.state.node)?;
        self.bridges = self.look_at_bridges(cluster, &me).await?;
        let network = find_network(cluster, request.network.as_deref())?;
        self.replace_stale(cluster, &me, &request, netns).await?;
        let name = self.name_for(&request, network, netns)?;
        let addresses = self.addresses_for(&me, network, &request)?;
        let mtu = compile::container_mtu(cluster, network.vni, self.underlay(&me).await?.mtu)
            .unwrap_or_else(|largest| largest);
        let mtu = request.mtu.map_or(mtu, |most| most.min(mtu));
        let inside = Net::in_netns(netns)?;
        let ifname = choose_ifname(&inside, request.ifname).await?;
        self.check_container_routes(cluster, network, netns, &inside, &ifname).await?;
        let mac = request.mac.unwrap_or_else(|| container_mac(network.vni, &addresses));
        let host_ifname = host_ifname(&name);
        let is_plain = request.names.is_empty() && request.cni.is_none() && request.mtu.is_none();
        let alias = format!("{ALIAS}{name}{}", if is_plain { PLAIN } else { "" });
        let id = self.free_id()?;
        self.clear_away(&name, &host_ifname).await?;
        let endpoint = Endpoint {
            vni: network.vni.get(),
            id,
            host: Interface { name: host_ifname.clone(), index: 0 },
            ifname: ifname.clone(),
            ifindex: 0,
            mac,
            addresses,
            mtu,
            mtu_max: request.mtu,
            netns: request.netns,
            netns_id: id_of(netns),
            names: request.names,
            cni: request.cni,
            netkit: false,
            bridged: None,
            ports: Vec::new(),
            floods: Some(network.flood == Flood::All),
            unfinished: true,
            found: false,
        };
        let veth = Veth {
            name: &host_ifname,
            mac: compile::node_mac(me.underlay),
            mtu: HOST_SIDE_MTU,
            alias: Some(&alias),
            peer_name: &ifname,
            peer_mac: mac,
            peer_mtu: mtu,
            peer_netns: Some(netns),
        };
        self.state.endpoints.insert(name.clone(), endpoint);
        let made = match self.make_pair(cluster, network, &name, &veth).await {
            Ok(pair) => self.finish(cluster, &me, network, &inside, &name, pair).await,
            Err(e) => Err(e),
        };
        let endpoint = self.conclude(cluster, &me, &name, made).await?;
        Ok(describe(&name, network, &me, &endpoint))
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
        let Some(endpoint) = self.state.endpoints.get(name).cloned() else { return Ok(()) };
        self.join(cluster, me, &endpoint).await?;
        self.net.set_up(pair.ifindex).await?;
        inside.set_up(pair.peer_ifindex).await?;
        self.net.wait_until_running(pair.ifindex).await?;
        for ip in &endpoint.addresses {
            inside.add_address(pair.peer_ifindex, *ip, full_len(*ip)).await?;
            if ip.is_ipv6() {
                // The kernel confirms a neighbour only from a link-local address.
                let local = link_local(endpoint.mac);
                inside.add_address(pair.peer_ifindex, local.into(), 64).await?;
            }
        }
        routes::add_routes(inside, &container_routes(network, me, &endpoint)).await?;
        for ip in &endpoint.addresses {
            if !inside.wait_until_local(*ip).await? {
                tracing::warn!(endpoint = name, address = %ip, "it can not be reached yet");
            }
        }
        Ok(())
    }

    /// Makes an endpoint that was noted part of the data plane, while its interface is still down.
    pub(super) async fn join(
        &mut self,
        cluster: &Cluster,
        me: &Node,
        endpoint: &Endpoint,
    ) -> Result<(), HostError> {
        self.tables()?
            .endpoint_stats
            .clear(endpoint.id)
            .map_err(|source| crate::bpf::BpfError::Map { map: names::ENDPOINT_STATS, source })?;
        self.refill(cluster, me).await?;
        attach::attach(&self.pins, self.mode_of(endpoint), Hook::FromContainer, &endpoint.host)?;
        self.follow_routes(cluster, me).await?;
        self.give_headroom(endpoint.host.index).await
    }

    /// Takes a container off the mesh, and its interface away.
    pub async fn detach(&mut self, name: &str) -> Result<(), HostError> {
        let cluster = self.adopt()?;
        let me = super::find(&cluster, &self.state.node)?;
        let done = if self.state.endpoints.get(name).is_some_and(|e| e.bridged.is_some()) {
            Err(HostError::User(format!(
                "{name} is a port of a bridge that the config file names: take the bridge out of \
                 attach.bridges, or the container off the bridge"
            )))
        } else if self.state.endpoints.contains_key(name) {
            self.remove_endpoint(&cluster, &me, name).await
        } else {
            let known = near::closest(name, self.state.endpoints.keys().map(String::as_str));
            Err(HostError::Unknown(match known.as_str() {
                "" => format!("there is no endpoint {name:?}: nothing is attached on this host"),
                known => format!("there is no endpoint {name:?}; there are {known}"),
            }))
        };
        self.cluster = Some(cluster);
        done
    }
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

/// The one asked for; else `eth0`, or the first `ethN` that is free.
async fn choose_ifname(inside: &Net, asked: Option<String>) -> Result<String, HostError> {
    let taken: HashSet<String> = inside.links().await?.into_iter().map(|l| l.name).collect();
    match asked {
        Some(name) if taken.contains(&name) => {
            return Err(HostError::User(format!("the container has an interface {name} already")));
        }
        Some(name) => return Ok(name),
        None => {}
    }
    let free = (0..=taken.len()).map(|n| format!("eth{n}")).find(|name| !taken.contains(name));
    Ok(free.unwrap_or_else(|| "eth0".into()))
}

pub(super) fn id_of(netns: BorrowedFd<'_>) -> (u64, u64) {
    rustix::fs::fstat(netns).map(|s| (s.st_dev, s.st_ino)).unwrap_or_default()
}
