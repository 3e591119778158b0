//! From the cluster's description and what this host is like, to the contents of the maps. Pure.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use mesh_common::{
    maps::{
        Addr, EndpointInfo, EndpointKey, FibInfo, FibKey, LpmKey, NetworkInfo, NodeInfo,
        PORT_SLOTS, PeerInfo, PeerKey, PeerSource, PortInfo, PrefixLens, mask_word,
    },
    wire::{mac_pair, mac_words, outer_template},
};
use rustc_hash::FxBuildHasher;

use crate::{
    bpf::{load::Room, tables::LpmPrefix},
    config::{Cluster, Encap, Node, Vni, gateway},
    plan::Contents,
};

/// The container MTU that mesh chooses leaves this much of the underlay's, or the overhead if that
/// is more: GRETAP's, so that `gre` and `gretap` are interchangeable, and segments of which more
/// fit into a super-packet than with the arithmetic maximum of GRE.
const CHOSEN_HEADROOM: usize = 38;

/// Something of each other node, by its underlay address.
pub type ByAddress<T> = HashMap<Ipv4Addr, T, FxBuildHasher>;

/// The way over the underlay to another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub ifindex: u32,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Our MAC on that interface.
    pub mac: [u8; 6],
    pub next_hop: Ipv4Addr,
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
    /// The bridge that may have addresses of this node's subnet which no attachment has; 0 for none.
    pub bridge: u32,
    /// The host has GRE tunnels of its own.
    pub foreign_gre: bool,
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

/// Container MTU of a network: the file's, or what mesh chooses for this underlay.
///
/// # Errors
///
/// The largest that would fit, if the file's does not.
pub fn container_mtu(cluster: &Cluster, vni: Vni, underlay_mtu: u32) -> Result<u32, u32> {
    let overhead = cluster.encap.overhead(vni);
    let largest = underlay_mtu.saturating_sub(overhead as u32);
    match cluster.mtu.map(u32::from) {
        Some(mtu) if mtu > largest => Err(largest),
        Some(mtu) => Ok(mtu),
        None => Ok(underlay_mtu.saturating_sub(overhead.max(CHOSEN_HEADROOM) as u32)),
    }
}

/// The first bytes of the MACs of all interfaces that mesh makes on a host.
pub const MAC_PREFIX: [u8; 2] = [0x02, 0x6d];

/// The MAC that all gateways of this node have. Locally administered; the underlay address makes
/// it the node's own.
pub fn node_mac(underlay: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = underlay.octets();
    let [p, q] = MAC_PREFIX;
    [p, q, a, b, c, d]
}

/// Compiles everything. `me`: this node, one of `cluster.nodes`.
pub fn compile(cluster: &Cluster, me: &Node, facts: &Facts) -> Desired {
    compile_with(&prefix_lens(cluster), cluster, me, facts)
}

/// How a cluster became another: both without the nodes that are the same at the beginning and at
/// the end of the two files, and the prefix lengths of both.
#[derive(Debug)]
pub struct Difference {
    old: Cluster,
    new: Cluster,
    lens: Lens,
}

impl Difference {
    /// `None` if more than nodes, or this node, or the prefix lengths differ, on which the entries of
    /// all nodes depend.
    pub fn of(old: &Cluster, new: &Cluster, me: &str) -> Option<Self> {
        let (a, b) = (&old.nodes[..], &new.nodes[..]);
        let head = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        let (a, b) = (&a[head..], &b[head..]);
        let tail = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
        let (a, b) = (&a[..a.len() - tail], &b[..b.len() - tail]);
        let lens = prefix_lens(new);
        let is_same = (old.encap, old.mtu, &old.networks) == (new.encap, new.mtu, &new.networks)
            && old.bridges == new.bridges
            && a.iter().chain(b).all(|node| node.name != me)
            && prefix_lens(old) == lens;
        let of = |cluster: &Cluster, nodes: &[Node]| Cluster {
            nodes: nodes.to_vec(),
            name: cluster.name.clone(),
            networks: cluster.networks.clone(),
            docker: cluster.docker.clone(),
            bridges: cluster.bridges.clone(),
            ..*cluster
        };
        is_same.then(|| Self { old: of(old, a), new: of(new, b), lens })
    }

    /// The new cluster, as far as it is about it.
    pub fn new_cluster(&self) -> &Cluster {
        &self.new
    }

    /// Underlay addresses of all nodes that it is about.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.old.nodes.iter().chain(&self.new.nodes).map(|node| node.underlay)
    }

    /// What the maps contain of these nodes, and what they shall contain. `facts`: with the indices
    /// of all nodes of the old cluster.
    pub fn compile(&self, me: &Node, facts: &Facts) -> (Desired, Desired) {
        let compile = |cluster| compile_with(&self.lens, cluster, me, facts);
        (compile(&self.old), compile(&self.new))
    }
}

/// The prefix lengths in use in each network.
type Lens = HashMap<Vni, PrefixLens>;

fn compile_with(lens: &Lens, cluster: &Cluster, me: &Node, facts: &Facts) -> Desired {
    let mut desired =
        Desired { peer_indices: assign(cluster, me, &facts.peer_indices), ..Desired::default() };
    let node = NodeInfo {
        underlay: Addr::from(IpAddr::V4(me.underlay)),
        flags: if facts.foreign_gre { NodeInfo::FOREIGN_GRE } else { 0 },
        netns: facts.netns,
    };
    desired.reserve(&room(cluster));
    desired.maps.node.insert(0, node);
    for network in &cluster.networks {
        let info = NetworkInfo {
            lens: lens.get(&network.vni).copied().unwrap_or_default(),
            mtu: container_mtu(cluster, network.vni, facts.underlay_mtu).unwrap_or_else(|m| m),
            flags: 0,
            bridge: if network.vni == Vni::DEFAULT { facts.bridge } else { 0 },
        };
        desired.maps.networks.insert(network.vni.get(), info);
    }
    for (vni, subnet) in &me.subnets {
        let local = FibInfo { kind: FibInfo::LOCAL, ..FibInfo::default() };
        desired.add_prefix(*vni, subnet, local);
    }
    for peer in cluster.nodes.iter().filter(|n| n.name != me.name) {
        desired.add_peer(cluster, me, peer, facts);
    }
    for attachment in &facts.attachments {
        desired.add_attachment(me, attachment);
    }
    desired
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

/// A prefix length of the 128-bit form.
fn long_len(net: &IpNet) -> u8 {
    net.prefix_len() + if net.addr().is_ipv4() { 96 } else { 0 }
}

/// The lengths in use in each network.
fn prefix_lens(cluster: &Cluster) -> Lens {
    // How often each length occurs, IPv4 and IPv6.
    let mut counts = HashMap::<Vni, [[usize; 129]; 2], FxBuildHasher>::default();
    for (vni, net) in cluster.nodes.iter().flat_map(|n| &n.subnets) {
        let of = counts.entry(*vni).or_insert([[0; 129]; 2]);
        of[usize::from(net.addr().is_ipv6())][usize::from(long_len(net))] += 1;
    }
    let lens = |[v4, v6]: [_; 2]| PrefixLens { v4: commonest_first(v4), v6: commonest_first(v6) };
    counts.into_iter().map(|(vni, counts)| (vni, lens(counts))).collect()
}

/// The commonest length first; or the mark for more than fit. `counts`: by length.
fn commonest_first(counts: [usize; 129]) -> [u8; 4] {
    let mut lens: Vec<(u8, usize)> = (0..).zip(counts).filter(|(_, n)| *n > 0).collect();
    lens.sort_by_key(|(len, n)| (std::cmp::Reverse(*n), *len));
    let mut list = [0; 4];
    if lens.len() > list.len() {
        list[0] = PrefixLens::LPM;
    } else {
        list.iter_mut().zip(lens).for_each(|(slot, (len, _))| *slot = len);
    }
    list
}

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

    fn add_prefix(&mut self, vni: Vni, net: &IpNet, info: FibInfo) {
        let (len, addr) = (long_len(net), Addr::from(net.network()));
        let lens = self.lens(vni);
        let list = if net.addr().is_ipv4() { lens.v4 } else { lens.v6 };
        if list[0] == PrefixLens::LPM {
            let key = LpmKey { vni_be: vni.get().to_be(), addr };
            self.maps.fib_lpm.insert(LpmPrefix { bits: 32 + u32::from(len), key }, info);
        } else {
            self.maps.fib.insert(FibKey::new(vni.get(), len, addr), info);
        }
    }

    fn add_peer(&mut self, cluster: &Cluster, me: &Node, peer: &Node, facts: &Facts) {
        let Some(&index) = self.peer_indices.get(&peer.underlay) else { return };
        let path = facts.paths.get(&peer.underlay);
        self.maps.peers.insert(index, peer_info(cluster.encap, me.underlay, peer.underlay, path));
        let to_peer = FibInfo { kind: FibInfo::PEER, peer: index, ..FibInfo::default() };
        let local = Addr::from(IpAddr::V4(me.underlay));
        let outer_source = Addr::from(IpAddr::V4(peer.underlay));
        // Network 0 always, so that a stranger and a stray VNI of a peer can be told apart.
        if peer.subnets.first().is_none_or(|(vni, _)| *vni != Vni::DEFAULT) {
            let key = PeerKey { outer_source, vni: Vni::DEFAULT.get() };
            self.maps.peer_by_addr.insert(key, peer_source(index, local, &[]));
        }
        // A node's subnets are in the order of the networks.
        for subnets in peer.subnets.chunk_by(|a, b| a.0 == b.0) {
            let vni = subnets[0].0;
            subnets.iter().for_each(|(_, net)| self.add_prefix(vni, net, to_peer));
            let key = PeerKey { outer_source, vni: vni.get() };
            self.maps.peer_by_addr.insert(key, peer_source(index, local, subnets));
        }
    }

    fn add_attachment(&mut self, me: &Node, a: &Attachment) {
        let gateway_mac = mac_words(node_mac(me.underlay));
        let mac = mac_words(a.mac);
        let subnets = || me.subnets.iter().filter(|(vni, _)| *vni == a.vni).map(|(_, net)| net);
        let gateway_of = |v4: bool| {
            subnets().find(|net| net.addr().is_ipv4() == v4).map(|net| Addr::from(gateway(*net)))
        };
        let is_bridged = a.kind == AttachmentKind::Bridged;
        let mut port = PortInfo {
            ifindex: a.ifindex,
            vni: a.vni.get(),
            id: a.id,
            mtu: self.maps.networks.get(&a.vni.get()).map_or(0, |n| n.mtu),
            gateway_mac,
            mac,
            lens: self.lens(a.vni),
            gateway4: gateway_of(true).unwrap_or_default().0[3],
            gateway6: gateway_of(false).unwrap_or_default().0,
            flags: if is_bridged { PortInfo::BRIDGED } else { 0 },
            ..PortInfo::default()
        };
        let info = EndpointInfo {
            ifindex: a.ifindex,
            id: a.id,
            flags: match a.kind {
                AttachmentKind::Host => EndpointInfo::HOST,
                AttachmentKind::Container => 0,
                AttachmentKind::Bridged => EndpointInfo::BRIDGED,
            },
            macs: mac_pair(a.mac, node_mac(me.underlay)),
            identity: 0,
        };
        // An address that the file no longer gives this node is nobody's: the peers would not take
        // what it sends.
        for ip in a.addresses.iter().filter(|ip| subnets().any(|net| net.contains(*ip))) {
            let addr = Addr::from(*ip);
            match ip {
                IpAddr::V4(_) if is_bridged => port.flags |= PortInfo::BOUND4,
                IpAddr::V6(_) if is_bridged => port.flags |= PortInfo::BOUND6,
                // The first of each family stands here, which is looked at first.
                IpAddr::V4(_) if port.addr4 == 0 => port.addr4 = addr.0[3],
                IpAddr::V6(_) if port.addr6 == [0; 4] => port.addr6 = addr.0,
                _ => {}
            }
            self.maps.endpoints.insert(EndpointKey { vni: a.vni.get(), addr }, info);
        }
        self.maps.ports.insert(a.ifindex, port);
        // Of those that share a slot the lowest number has it.
        let slot = self.maps.port_slots.entry(a.ifindex % PORT_SLOTS).or_insert(port);
        if port.ifindex < slot.ifindex {
            *slot = port;
        }
    }
}

fn peer_info(encap: Encap, local: Ipv4Addr, remote: Ipv4Addr, path: Option<&Path>) -> PeerInfo {
    let remote_addr = Addr::from(IpAddr::V4(remote));
    let Some(path) = path else {
        return PeerInfo { remote: remote_addr, ..PeerInfo::default() };
    };
    let ethernet = encap == Encap::Gretap;
    let mac = path.next_hop_mac.unwrap_or_default();
    let template = outer_template(mac, path.mac, local.octets(), remote.octets(), ethernet);
    let known = if path.next_hop_mac.is_some() { PeerInfo::MAC_KNOWN } else { 0 };
    PeerInfo {
        ifindex: path.ifindex,
        flags: known | if ethernet { PeerInfo::ETHERNET } else { 0 },
        underlay_mtu: path.mtu,
        remote: remote_addr,
        next_hop: Addr::from(IpAddr::V4(path.next_hop)),
        outer_sum: template.outer_sum,
        outer: template.outer,
        inner_macs: mac_pair(node_mac(remote), node_mac(local)),
        ..PeerInfo::default()
    }
}

/// What a peer may send in a network where it has these subnets: the first of each family goes into
/// the entry.
fn peer_source(index: u32, local: Addr, subnets: &[(Vni, IpNet)]) -> PeerSource {
    let subnets =
        |v4: bool| subnets.iter().map(|(_, net)| net).filter(move |n| n.addr().is_ipv4() == v4);
    let more = subnets(true).count() > 1 || subnets(false).count() > 1;
    let mask = |len: u8| [0, 1, 2, 3].map(|word| mask_word(len, word));
    // A mask of 0 with a net that is not: matches nothing.
    let (mut net4, mut mask4) = (u32::MAX, 0);
    if let Some(net) = subnets(true).next() {
        (net4, mask4) = (Addr::from(net.network()).0[3], mask(long_len(net))[3]);
    }
    let (mut net6, mut mask6) = ([u32::MAX; 4], [0; 4]);
    if let Some(net) = subnets(false).next() {
        (net6, mask6) = (Addr::from(net.network()).0, mask(long_len(net)));
    }
    let flags = if more { PeerSource::MORE } else { 0 };
    PeerSource { peer: index, flags, local, net4, mask4, net6, mask6 }
}

#[cfg(test)]
mod tests;
