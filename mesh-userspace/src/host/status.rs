//! What the mesh is on this host, and what went through it.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use ipnet::IpNet;
use mesh_common::{
    maps::{PeerInfo, Traffic},
    names,
    verdict::{DropReason, Hook, Verdict},
};
use serde::{Deserialize, Serialize};

use super::{GroupStatus, Host, HostError, path_mtu::Learned};
use crate::{
    bpf::{attach::Mode, sync, tables::Tables},
    compile::least_path_mtu,
    config::{Cluster, Node, Vni, mac_text},
    docker::DockerStatus,
    faults::{Fault, PastFault},
    net::{Link, Neighbour},
    state::Published,
};

/// `mesh status --json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub node: String,
    pub cluster: String,
    pub encap: String,
    /// Container MTU of the cluster's own network.
    pub mtu: u32,
    /// Counts the config files that were applied.
    pub generation: u64,
    /// "tcx" or "clsact"
    pub attach_mode: Mode,
    /// Pid of the agent that runs, if one does.
    pub agent: Option<u32>,
    /// Why the config file as it is now was not applied.
    pub config_error: Option<String>,
    pub underlay: String,
    /// This host's own addresses in the overlay.
    pub addresses: Vec<IpAddr>,
    pub networks: Vec<NetworkStatus>,
    pub peers: Vec<PeerStatus>,
    pub endpoints: Vec<EndpointStatus>,
    /// Multicast, in networks that carry it.
    #[serde(default)]
    pub groups: Vec<GroupStatus>,
    /// Those that the config file names.
    #[serde(default)]
    pub bridges: Vec<BridgeStatus>,
    /// Whether this host's Docker is given a driver and names, by the config file.
    #[serde(default)]
    pub docker_plugin: bool,
    /// As the agent sees it; `None` without one.
    #[serde(default)]
    pub docker: Option<DockerStatus>,
    /// What is not as it should be on this host, and the way out.
    #[serde(default)]
    pub faults: Vec<String>,
    /// The same, and what is wrong with networks, endpoints, bridges and Docker.
    #[serde(default)]
    pub all_faults: Vec<Fault>,
    /// What was wrong since the agent began and is not any more, the latest first.
    #[serde(default)]
    pub past_faults: Vec<PastFault>,
    /// Packets dropped since `mesh up`, by reason; those that never happened are left out.
    pub drops: BTreeMap<String, u64>,
    pub hooks: Vec<HookStatus>,
    pub programs: Vec<ProgramStatus>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkStatus {
    pub name: String,
    pub vni: u32,
    pub mtu: u32,
    pub cidrs: Vec<IpNet>,
    /// This node's part.
    pub subnets: Vec<IpNet>,
    /// This host, as the gateway of its containers there into the world.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// What is not as it should be here, and the way out.
    #[serde(default)]
    pub faults: Vec<String>,
}

/// rx and tx as seen from this host; bytes of inner packets.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    pub name: String,
    pub underlay: String,
    /// Between it and this host.
    pub encap: String,
    /// UDP destination port; `None` for GRE.
    pub port: Option<u16>,
    /// It runs mesh.
    pub managed: bool,
    /// In the cluster's own network.
    pub subnets: Vec<IpNet>,
    /// In the others, by name.
    pub networks: BTreeMap<String, Vec<IpNet>>,
    /// `None`: there is no route to it.
    pub next_hop: Option<NextHop>,
    pub tx: Count,
    pub rx: Count,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NextHop {
    pub ifname: String,
    pub address: IpAddr,
    pub mac: Option<String>,
    /// "reachable", "stale", "unresolved"
    pub state: String,
    /// Largest packet on the underlay.
    pub mtu: u32,
    /// How that is known: "interface", "route", or "icmp" (a router on the way said so).
    #[serde(default)]
    pub mtu_from: String,
    /// Seconds after which a larger one is tried.
    #[serde(default)]
    pub mtu_expires: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointStatus {
    pub name: String,
    pub network: String,
    pub addresses: Vec<IpAddr>,
    pub ifname: String,
    pub host_ifname: String,
    pub mac: String,
    pub mtu: u32,
    pub netns: String,
    /// What other containers call it, where it was said when it was attached.
    #[serde(default)]
    pub names: Vec<String>,
    /// The bridge that the host's side is a port of, if mesh did not make it.
    #[serde(default)]
    pub bridge: Option<String>,
    /// The container's name, where Docker confirmed that the address is its.
    #[serde(default)]
    pub container: Option<String>,
    /// Ports of this host that lead to it; those that Docker publishes are Docker's to tell.
    #[serde(default)]
    pub ports: Vec<Published>,
    /// What is not as it should be, and the way out.
    #[serde(default)]
    pub faults: Vec<String>,
    pub tx: Count,
    pub rx: Count,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BridgeStatus {
    pub name: String,
    /// As the bridge has them; empty if it is not there.
    pub addresses: Vec<IpNet>,
    /// Attached ones.
    pub ports: usize,
    /// What is not as it should be, and the way out.
    pub faults: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HookStatus {
    pub hook: String,
    /// All verdicts together.
    pub packets: u64,
    #[serde(flatten)]
    pub verdicts: BTreeMap<String, u64>,
    /// By reason; those that never happened are left out.
    pub drops: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProgramStatus {
    pub name: String,
    /// As what comes there is counted by.
    pub hook: String,
    pub ifname: String,
    /// "ingress" or "egress", or "peer" of a netkit pair: the other end's egress.
    pub side: String,
}

impl Host {
    pub async fn status(&mut self) -> Result<Status, HostError> {
        let cluster = self.adopt()?;
        let status = self.status_of(&cluster).await;
        self.cluster = Some(cluster);
        status
    }

    async fn status_of(&mut self, cluster: &Cluster) -> Result<Status, HostError> {
        self.save_again();
        self.say_spoiled();
        self.forget_gone().await?;
        self.say_endpoints();
        let me = super::find(cluster, &self.state.node)?;
        self.bridges = self.look_at_bridges(cluster, &me).await?;
        let tables = self.tables()?;
        let hooks = hooks(tables)?;
        let mut drops = BTreeMap::new();
        for (reason, n) in hooks.iter().flat_map(|h| &h.drops) {
            *drops.entry(reason.clone()).or_default() += n;
        }
        let networks = self.networks(cluster, &me, tables)?;
        let mtu = networks.first().map_or(0, |n| n.mtu);
        self.tell_faults(cluster, &me).await?;
        let mut status = Status {
            node: me.name.clone(),
            cluster: cluster.name.clone(),
            encap: cluster.encap.to_string(),
            mtu,
            generation: self.state.generation,
            attach_mode: self.mode(),
            agent: None,
            config_error: None,
            underlay: me.underlay.to_string(),
            addresses: self.host_addresses(&me),
            networks,
            peers: self.peers(cluster, &me, tables).await?,
            endpoints: self.endpoints(cluster, tables)?,
            groups: self.groups(cluster, tables)?,
            bridges: self.bridge_status(cluster),
            docker_plugin: cluster.docker.plugin,
            docker: None,
            faults: Vec::new(),
            all_faults: Vec::new(),
            past_faults: self.faults.past(),
            drops,
            hooks,
            programs: self.programs(),
        };
        status.take_faults(self.faults.now());
        Ok(status)
    }

    fn networks(
        &self,
        cluster: &Cluster,
        me: &Node,
        tables: &Tables,
    ) -> Result<Vec<NetworkStatus>, HostError> {
        let known = sync::networks(tables)?;
        let status = |n: &crate::config::Network| NetworkStatus {
            name: n.name.clone(),
            vni: n.vni.get(),
            mtu: known.get(&n.vni.get()).map_or(0, |n| n.mtu),
            cidrs: n.cidrs.clone(),
            subnets: subnets(me, n.vni),
            gateways: self.gateways_of(me, n.vni),
            faults: Vec::new(),
        };
        Ok(cluster.networks.iter().map(status).collect())
    }

    async fn peers(
        &self,
        cluster: &Cluster,
        me: &Node,
        tables: &Tables,
    ) -> Result<Vec<PeerStatus>, HostError> {
        let by_address: BTreeMap<IpAddr, (u32, PeerInfo)> =
            sync::peers(tables)?.into_iter().map(|(i, p)| (p.remote.into(), (i, p))).collect();
        let neighbours = self.net.neighbours().await?;
        let links: BTreeMap<u32, Link> =
            self.net.links().await?.into_iter().map(|l| (l.index, l)).collect();
        let mut all = Vec::new();
        for node in cluster.nodes.iter().filter(|n| n.name != me.name) {
            let entry = by_address.get(&node.underlay);
            let traffic = match entry {
                Some((index, _)) => tables.peer_traffic(*index)?,
                None => Traffic::default(),
            };
            let next_hop = entry.filter(|(_, p)| p.ifindex != 0).map(|(_, peer)| {
                let address = IpAddr::from(peer.next_hop);
                let neighbour = neighbours.get(&(peer.ifindex, address));
                let learned = self.path_mtus.get(node.underlay);
                let least = least_path_mtu(cluster, me, node);
                let learned = learned.filter(|l| l.mtu.max(least) == peer.underlay_mtu);
                next_hop(peer, address, links.get(&peer.ifindex), neighbour, learned)
            });
            let tunnel = cluster.tunnel(me, node);
            let others = cluster.networks.iter().filter(|n| n.vni != Vni::DEFAULT);
            all.push(PeerStatus {
                name: node.name.clone(),
                underlay: node.underlay.to_string(),
                encap: tunnel.encap.to_string(),
                port: tunnel.encap.is_udp().then_some(tunnel.port),
                managed: node.is_managed(),
                subnets: subnets(node, Vni::DEFAULT),
                networks: others
                    .map(|n| (n.name.clone(), subnets(node, n.vni)))
                    .filter(|(_, nets)| !nets.is_empty())
                    .collect(),
                next_hop,
                tx: Count { packets: traffic.tx_packets, bytes: traffic.tx_bytes },
                rx: Count { packets: traffic.rx_packets, bytes: traffic.rx_bytes },
            });
        }
        Ok(all)
    }

    fn endpoints(
        &self,
        cluster: &Cluster,
        tables: &Tables,
    ) -> Result<Vec<EndpointStatus>, HostError> {
        let mut all = Vec::new();
        for (name, e) in &self.state.endpoints {
            let traffic = tables.endpoint_traffic(e.id)?;
            let network = cluster.networks.iter().find(|n| n.vni.get() == e.vni);
            all.push(EndpointStatus {
                name: name.clone(),
                network: network.map_or_else(|| e.vni.to_string(), |n| n.name.clone()),
                addresses: e.addresses.clone(),
                ifname: e.ifname.clone(),
                host_ifname: e.host.name.clone(),
                mac: mac_text(e.mac),
                mtu: e.mtu,
                netns: e.netns.clone(),
                names: e.names.clone(),
                bridge: e.bridged.as_ref().map(|b| b.bridge.clone()),
                container: e.bridged.as_ref().and_then(|b| b.container.clone()),
                ports: e.ports.clone(),
                faults: Vec::new(),
                tx: Count { packets: traffic.tx_packets, bytes: traffic.tx_bytes },
                rx: Count { packets: traffic.rx_packets, bytes: traffic.rx_bytes },
            });
        }
        Ok(all)
    }

    fn programs(&self) -> Vec<ProgramStatus> {
        let program = |hook: Hook, ifname: &str, side: &str| ProgramStatus {
            name: names::program(hook).to_owned(),
            hook: hook.label().to_owned(),
            ifname: ifname.to_owned(),
            side: side.to_owned(),
        };
        let sides = [(Hook::FromUnderlay, "ingress"), (Hook::FromForward, "egress")];
        let underlay = self.state.underlay.iter();
        let underlay =
            underlay.flat_map(|i| sides.map(|(hook, side)| program(hook, &i.name, side)));
        let host = self.state.host.iter().map(|i| program(Hook::FromHost, &i.name, "egress"));
        let containers = self.state.endpoints.values().map(|e| {
            let side = if e.netkit { "peer" } else { "ingress" };
            program(Hook::FromContainer, &e.host.name, side)
        });
        underlay.chain(host).chain(containers).collect()
    }
}

fn subnets(node: &Node, vni: Vni) -> Vec<IpNet> {
    node.subnets.iter().filter(|(v, _)| *v == vni).map(|(_, net)| *net).collect()
}

fn next_hop(
    peer: &PeerInfo,
    address: IpAddr,
    link: Option<&Link>,
    neighbour: Option<&Neighbour>,
    // Where the MTU comes from it.
    learned: Option<Learned>,
) -> NextHop {
    let state = match neighbour {
        Some(n) if n.usable && n.stale => "stale",
        Some(n) if n.usable => "reachable",
        _ => "unresolved",
    };
    let mtu = peer.underlay_mtu;
    let mtu_from = match (learned, link) {
        (Some(_), _) => "icmp",
        (None, Some(link)) if link.mtu == mtu => "interface",
        (None, _) => "route",
    };
    NextHop {
        ifname: link.map_or_else(|| peer.ifindex.to_string(), |link| link.name.clone()),
        address,
        mac: neighbour.and_then(|n| n.mac).map(mac_text),
        state: state.to_owned(),
        mtu,
        mtu_from: mtu_from.to_owned(),
        mtu_expires: learned.map(|l| l.until.saturating_duration_since(Instant::now()).as_secs()),
    }
}

fn hooks(tables: &Tables) -> Result<Vec<HookStatus>, HostError> {
    let mut all = Vec::new();
    for hook in Hook::ALL {
        let mut status = HookStatus {
            hook: hook.label().to_owned(),
            packets: 0,
            verdicts: BTreeMap::new(),
            drops: BTreeMap::new(),
        };
        for verdict in Verdict::ALL {
            let n = tables.verdict(*hook, *verdict)?;
            status.packets += n;
            status.verdicts.insert(verdict.label().to_owned(), n);
        }
        for reason in DropReason::ALL {
            let n = tables.drops(*hook, *reason)?;
            if n != 0 {
                status.drops.insert(reason.label().to_owned(), n);
            }
        }
        all.push(status);
    }
    Ok(all)
}
