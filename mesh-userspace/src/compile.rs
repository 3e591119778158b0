//! From the cluster's description and what this host is like, to the contents of the maps. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use mesh_common::{
    maps::{
        Addr, FibInfo, FibKey, FloodKey, LpmKey, NODE_PORTS, NetworkInfo, NodeInfo, PeerKey,
        PeerSource, PrefixLens, UdpPort,
    },
    wire::mac_words,
};
use rustc_hash::FxBuildHasher;

pub use difference::Difference;
pub use mtu::{container_mtu, least_path_mtu};

use lens::{Lens, long_len, prefix_lens};
use mtu::Outer;
use peer::{clamp_flag, peer_info, peer_source, source_flags, wire_vni};

use crate::{
    bpf::{load::Room, tables::LpmPrefix},
    config::{Cluster, Encap, Flood, Network, Node, Tunnel, Vni},
    plan::Contents,
};

mod attachment;
mod difference;
mod flood;
mod lens;
mod mtu;
mod peer;

/// Something of each other node, by its underlay address.
pub type ByAddress<T> = HashMap<IpAddr, T, FxBuildHasher>;

/// The way over the underlay to another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub ifindex: u32,
    /// Largest IP packet, in bytes, as interface and route have it.
    pub mtu: u32,
    /// What ICMP says of it, true or not.
    pub learned_mtu: Option<u32>,
    /// Our MAC on that interface.
    pub mac: [u8; 6],
    /// Of the family of the other node's address.
    pub next_hop: IpAddr,
    /// `None` while it is not resolved.
    pub next_hop_mac: Option<[u8; 6]>,
}

/// A local attachment: a container's, or the host's own `mesh0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub vni: Vni,
    /// Host side of the veth.
    pub ifindex: u32,
    /// Index of its counters.
    pub id: u32,
    pub addresses: Vec<IpAddr>,
    pub mac: [u8; 6],
    pub kind: AttachmentKind,
}

/// What stands behind an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachmentKind {
    /// The host itself, behind `mesh0`.
    Host,
    Container,
    /// A container behind a netkit pair.
    Netkit,
    /// A container on somebody else's bridge; without addresses until they are known.
    Bridged,
}

/// What compilation needs to know of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// By underlay address of the other node. Nodes without a route are missing.
    pub paths: ByAddress<Path>,
    pub attachments: Vec<Attachment>,
    /// MTU of the interface that has our underlay address.
    pub underlay_mtu: u32,
    /// The host's interface for what leads out of a network that this host is the gateway of, by VNI.
    pub worlds: BTreeMap<u32, u32>,
    /// The bridge that may have addresses of this node's subnet which no attachment has; 0 for none.
    pub bridge: u32,
    /// The host has GRE tunnels of its own.
    pub foreign_gre: bool,
    /// UDP ports of the mesh that it listens on for others too, such as tunnels of its own.
    pub foreign_ports: Vec<u16>,
    /// Inode number of the host's network namespace.
    pub netns: u32,
    /// Indices into PEERS that are in use, by underlay address: a node keeps its index for as long
    /// as it keeps its address.
    pub peer_indices: ByAddress<u32>,
}

/// What the maps shall contain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    pub maps: Contents,
    /// Index of each other node, by underlay address.
    pub peer_indices: ByAddress<u32>,
}

/// The first bytes of the MACs of all interfaces that mesh makes on a host.
pub const MAC_PREFIX: [u8; 2] = [0x02, 0x6d];

/// The MAC that all gateways of this node have. Locally administered; the underlay address makes
/// it the node's own.
pub fn node_mac(underlay: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match underlay {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => fnv1a(&v6.octets()).to_be_bytes(),
    };
    let [p, q] = MAC_PREFIX;
    [p, q, a, b, c, d]
}

/// The 32-bit FNV-1a hash: the same in every version and on every host.
pub fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

/// Compiles everything. `me`: this node, one of `cluster.nodes`.
pub fn compile(cluster: &Cluster, me: &Node, facts: &Facts) -> Desired {
    compile_with(&Whole::of(cluster), cluster, me, facts)
}

/// What follows from all nodes together.
#[derive(Debug, PartialEq)]
struct Whole {
    lens: Lens,
    outer: HashMap<Vni, Outer>,
    /// In UDP, each once, the cluster's own first.
    tunnels: Vec<Tunnel>,
}

impl Whole {
    fn of(cluster: &Cluster) -> Self {
        let outer = |network: &Network| (network.vni, Outer::of(cluster, network.vni));
        let outer = cluster.networks.iter().map(outer).collect();
        Self { lens: prefix_lens(cluster), outer, tunnels: cluster.udp_tunnels() }
    }
}

fn compile_with(whole: &Whole, cluster: &Cluster, me: &Node, facts: &Facts) -> Desired {
    let mut desired =
        Desired { peer_indices: assign(cluster, me, &facts.peer_indices), ..Desired::default() };
    let node = NodeInfo {
        underlay: Addr::from(me.underlay),
        flags: if facts.foreign_gre { NodeInfo::FOREIGN_GRE } else { 0 },
        netns: facts.netns,
        ports: udp_ports(&whole.tunnels, &facts.foreign_ports),
    };
    let room = room(cluster);
    desired.reserve(&room);
    // Put in at the end: what was stored long ago is read quickly (see the hash of `Addr`).
    let mut exact = Vec::with_capacity(room.prefixes as usize);
    desired.maps.node.insert(0, node);
    for network in &cluster.networks {
        let outer = whole.outer.get(&network.vni).copied().unwrap_or_default();
        let info = NetworkInfo {
            lens: whole.lens.get(&network.vni).copied().unwrap_or_default(),
            mtu: outer.container_mtu(cluster.mtu, facts.underlay_mtu).unwrap_or_else(|m| m),
            world: facts.worlds.get(&network.vni.get()).copied().unwrap_or_default(),
            bridge: if network.vni == Vni::DEFAULT { facts.bridge } else { 0 },
            gateway_mac: mac_words(node_mac(me.underlay)),
            flags: if network.flood == Flood::All { NetworkInfo::FLOOD } else { 0 },
            broadcast: flood::broadcasts(network),
        };
        desired.maps.networks.insert(network.vni.get(), info);
    }
    for (vni, subnet) in &me.subnets {
        let local = FibInfo { kind: FibInfo::LOCAL, ..FibInfo::default() };
        desired.add_prefix(&mut exact, *vni, subnet, local);
    }
    for peer in cluster.nodes.iter().filter(|n| n.name != me.name) {
        desired.add_peer(&mut exact, cluster, me, peer, facts);
    }
    desired.maps.fib.extend(exact);
    for attachment in &facts.attachments {
        desired.add_attachment(me, attachment);
    }
    for network in cluster.networks.iter().filter(|n| n.flood == Flood::All) {
        desired.add_flood(cluster, me, network, &facts.attachments);
    }
    desired
}

/// The ports in use, and those that may be soon: a receiver gets the new file before the sender, or
/// after. `shared`: ports that the host has other tunnels on.
fn udp_ports(used: &[Tunnel], shared: &[u16]) -> [UdpPort; NODE_PORTS] {
    let port = |tunnel: &Tunnel, flags| UdpPort {
        port: tunnel.port.to_be(),
        kind: if tunnel.encap == Encap::Vxlan { UdpPort::VXLAN } else { UdpPort::GENEVE },
        flags,
    };
    let is_ours = |tunnel: &Tunnel| !shared.contains(&tunnel.port);
    let used = used.iter().map(|t| port(t, if is_ours(t) { UdpPort::OURS } else { 0 }));
    let others = [Encap::Vxlan, Encap::Geneve]
        .into_iter()
        .filter_map(|encap| Some(port(&Tunnel { encap, port: encap.default_port()? }, 0)));
    let mut ports = [UdpPort::default(); NODE_PORTS];
    let mut taken = 0;
    for one in used.chain(others) {
        if taken < NODE_PORTS && ports[..taken].iter().all(|p| p.port != one.port) {
            ports[taken] = one;
            taken += 1;
        }
    }
    ports
}

/// Room that the cluster needs in the maps.
pub fn room(cluster: &Cluster) -> Room {
    let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Room {
        endpoints: 0,
        peers: len(cluster.nodes.len()),
        prefixes: len(cluster.nodes.iter().map(|n| n.subnets.len()).sum()),
        peer_networks: len(cluster.nodes.iter().map(|n| n.subnets.len() + 1).sum()),
        networks: len(cluster.networks.len()),
        flood: len(cluster.networks.iter().filter(|n| n.flood == Flood::All).count())
            .saturating_mul(FloodKey::PEERS_MAX),
    }
}

/// Gives each other node an index: the one it has, or the lowest that nobody has or has had just
/// now, so that no entry of the FIB ever leads to the wrong node while the maps change.
fn assign(cluster: &Cluster, me: &Node, had: &ByAddress<u32>) -> ByAddress<u32> {
    let mut taken: Vec<u32> = had.values().copied().collect();
    taken.sort_unstable();
    let mut taken = taken.into_iter().peekable();
    let mut next = 0..;
    let mut free = std::iter::from_fn(move || {
        next.by_ref().find(|n| {
            while taken.peek().is_some_and(|t| t < n) {
                taken.next();
            }
            taken.peek() != Some(n)
        })
    });
    cluster
        .nodes
        .iter()
        .filter(|n| n.name != me.name)
        .filter_map(|n| Some((n.underlay, had.get(&n.underlay).copied().or_else(|| free.next())?)))
        .collect()
}

/// Of FIB.
type Prefixes = Vec<(FibKey, FibInfo)>;

impl Desired {
    /// Growing step by step would move each entry once more.
    fn reserve(&mut self, room: &Room) {
        self.maps.peers.reserve(room.peers as usize);
        self.maps.fib.reserve(room.prefixes as usize);
        self.maps.peer_by_addr.reserve(room.peer_networks as usize);
    }

    fn lens(&self, vni: Vni) -> PrefixLens {
        self.maps.networks.get(&vni.get()).map(|n| n.lens).unwrap_or_default()
    }

    /// To `exact`, or to the trie if the network's lengths are too many.
    fn add_prefix(&mut self, exact: &mut Prefixes, vni: Vni, net: &IpNet, info: FibInfo) {
        let (len, addr) = (long_len(net), Addr::from(net.network()));
        let lens = self.lens(vni);
        let list = if net.addr().is_ipv4() { lens.v4 } else { lens.v6 };
        if list[0] == PrefixLens::LPM {
            let key = LpmKey { vni_be: vni.get().to_be(), addr };
            self.maps.fib_lpm.insert(LpmPrefix { bits: 32 + u32::from(len), key }, info);
        } else {
            exact.push((FibKey::new(vni.get(), len, addr), info));
        }
    }

    fn add_peer(
        &mut self,
        exact: &mut Prefixes,
        cluster: &Cluster,
        me: &Node,
        peer: &Node,
        facts: &Facts,
    ) {
        let Some(&index) = self.peer_indices.get(&peer.underlay) else { return };
        let path = facts.paths.get(&peer.underlay);
        let info = peer_info(cluster, me, peer, path);
        self.maps.peers.insert(index, info);
        let outer_source = Addr::from(peer.underlay);
        let flags = source_flags(cluster, me, peer) | clamp_flag(&info);
        let mut may_send = |wire_vni: u32, vni: u32, subnets: &[(Vni, IpNet)]| {
            let key = PeerKey { outer_source, vni: wire_vni };
            // Where it is nobody it has nothing to ask.
            let mut flags = if subnets.is_empty() { 0 } else { flags };
            if !subnets.is_empty() && flood::is_on(&self.maps.networks, vni) {
                flags |= PeerSource::FLOOD;
            }
            let source = peer_source(index, me, vni, flags, subnets);
            self.maps.peer_by_addr.insert(key, source);
        };
        // Network 0 always, so that a stranger and a stray VNI of a peer can be told apart.
        may_send(0, 0, &[]);
        // A node's subnets are in the order of the networks.
        for subnets in peer.subnets.chunk_by(|a, b| a.0 == b.0) {
            may_send(wire_vni(peer, subnets[0].0), subnets[0].0.get(), subnets);
        }
        for (vni, net) in &peer.subnets {
            let to_peer = FibInfo {
                kind: if flood::has_broadcast(&self.maps.networks, *vni, net) {
                    FibInfo::EDGE
                } else {
                    FibInfo::PEER
                },
                peer: index,
                vni: wire_vni(peer, *vni),
                ..FibInfo::default()
            };
            self.add_prefix(exact, *vni, net, to_peer);
        }
    }
}

#[cfg(test)]
mod tests;
