//! Small clusters that are easy to change: a grid of blocks of addresses, each given to a node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::{collection::vec, option, prelude::*};

use crate::{
    compile::{Attachment, AttachmentKind, ByAddress, Desired, Facts, Path, compile},
    config::{Cluster, Dscp, Encap, Flood, Network, Node, Vni, gateway},
    plan::Observed,
};

/// Blocks in each family of each network, and nodes, of which number 0 is this one.
pub const BLOCKS: usize = 8;
pub const NODES: usize = 6;
/// The networks that there may be.
pub const VNIS: [u32; 3] = [0, 7, 0xff_ffff];

/// The interface of this node's endpoint in each; two of them share a slot.
pub const IFINDICES: [u32; 3] = [5, 6, 5 + mesh_common::slots::SLOTS];

/// A block's owner, and the length of the owner's prefix beyond the block's.
pub type Block = Option<(usize, u8)>;

#[derive(Clone, Debug)]
pub struct Layout {
    /// Last octet of each node's underlay address.
    pub underlays: [u8; NODES],
    pub present: [bool; NODES],
    /// By network, then IPv4 and IPv6.
    pub blocks: [[[Block; BLOCKS]; 2]; 3],
    pub networks: [bool; 3],
    pub encap: Encap,
    pub reversed: bool,
    /// Addresses without a route to them.
    pub unreachable: Vec<u8>,
}

/// One change to a cluster.
#[derive(Clone, Debug)]
pub enum Edit {
    Toggle(usize),
    /// To an address that nobody has.
    Move(usize, u8),
    Swap(usize, usize),
    Give(usize, usize, usize, Block),
    Network(usize),
    Encap,
    Reverse,
    Route(u8),
}

fn block() -> impl Strategy<Value = Block> {
    // Up to nine lengths, so that four are often too few; and often not.
    let extra = prop_oneof![3 => Just(0u8), 2 => 0..3u8, 1 => 0..9u8];
    option::weighted(0.7, (0..NODES, extra))
}

pub fn layout() -> impl Strategy<Value = Layout> {
    let family = || vec(block(), BLOCKS).prop_map(|b| b.try_into().unwrap());
    let network = || [family(), family()];
    ([network(), network(), network()], any::<[bool; NODES]>(), any::<[bool; 3]>(), any::<bool>())
        .prop_map(|(blocks, mut present, mut networks, gretap)| {
            (present[0], networks[0]) = (true, true);
            Layout {
                underlays: std::array::from_fn(|i| 10 + i as u8),
                present,
                blocks,
                networks,
                encap: if gretap { Encap::Gretap } else { Encap::Gre },
                reversed: false,
                unreachable: Vec::new(),
            }
        })
}

pub fn edit() -> impl Strategy<Value = Edit> {
    let other = 1..NODES;
    prop_oneof![
        other.clone().prop_map(Edit::Toggle),
        (other.clone(), 10..30u8).prop_map(|(n, u)| Edit::Move(n, u)),
        (other.clone(), other).prop_map(|(a, b)| Edit::Swap(a, b)),
        (0..3usize, 0..2usize, 0..BLOCKS, block())
            .prop_map(|(v, f, b, to)| Edit::Give(v, f, b, to)),
        (1..3usize).prop_map(Edit::Network),
        Just(Edit::Encap),
        Just(Edit::Reverse),
        (10..30u8).prop_map(Edit::Route),
    ]
}

impl Layout {
    pub fn edited(&self, edits: &[Edit]) -> Self {
        let mut new = self.clone();
        edits.iter().for_each(|e| new.edit(e));
        new
    }

    fn edit(&mut self, edit: &Edit) {
        match *edit {
            Edit::Toggle(node) => self.present[node] ^= true,
            Edit::Move(node, to) => {
                if !self.underlays.contains(&to) {
                    self.underlays[node] = to;
                }
            }
            Edit::Swap(a, b) => self.underlays.swap(a, b),
            Edit::Give(vni, family, block, to) => self.blocks[vni][family][block] = to,
            Edit::Network(vni) => self.networks[vni] ^= true,
            Edit::Encap => {
                self.encap = if self.encap == Encap::Gre { Encap::Gretap } else { Encap::Gre };
            }
            Edit::Reverse => self.reversed ^= true,
            Edit::Route(to) => match self.unreachable.iter().position(|u| *u == to) {
                Some(at) => drop(self.unreachable.remove(at)),
                None => self.unreachable.push(to),
            },
        }
    }

    pub fn underlay(&self, node: usize) -> IpAddr {
        IpAddr::from([192, 0, 2, self.underlays[node]])
    }

    pub fn reachable(&self, node: usize) -> bool {
        !self.unreachable.contains(&self.underlays[node])
    }

    /// All that is given to somebody: (network, prefix, node).
    pub fn subnets(&self) -> Vec<(Vni, IpNet, usize)> {
        let mut all = Vec::new();
        for (n, vni) in VNIS.into_iter().enumerate().filter(|(n, _)| self.networks[*n]) {
            for (f, blocks) in self.blocks[n].iter().enumerate() {
                for (b, block) in blocks.iter().enumerate() {
                    if let Some((node, extra)) = block
                        && self.present[*node]
                    {
                        all.push((Vni::new(vni).unwrap(), prefix(f, b, *extra), *node));
                    }
                }
            }
        }
        all
    }

    /// Who has an address.
    pub fn owner(&self, vni: u32, ip: IpAddr) -> Option<usize> {
        let subnets = self.subnets();
        subnets.iter().find(|(v, net, _)| v.get() == vni && net.contains(&ip)).map(|(.., n)| *n)
    }

    pub fn cluster(&self) -> Cluster {
        let network = |(_, vni): (usize, u32)| Network {
            name: format!("net{vni}"),
            vni: Vni::new(vni).unwrap(),
            cidrs: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()],
            flood: Flood::None,
        };
        let subnets = self.subnets();
        let node = |n: usize| Node {
            name: format!("n{n}"),
            underlay: self.underlay(n),
            subnets: subnets
                .iter()
                .filter(|s| s.2 == n)
                .map(|(vni, net, _)| (*vni, *net))
                .collect(),
            foreign: None,
        };
        let mut nodes: Vec<Node> = (0..NODES).filter(|n| self.present[*n]).map(node).collect();
        if self.reversed {
            nodes.reverse();
        }
        let networks = VNIS.into_iter().enumerate().filter(|(n, _)| self.networks[*n]);
        Cluster {
            name: "grid".into(),
            encap: self.encap,
            mtu: None,
            port: None,
            ttl: 64,
            dscp: Dscp::Copy,
            links: Vec::new(),
            networks: networks.map(network).collect(),
            nodes,
            docker: Default::default(),
            bridges: Vec::new(),
            interfaces: Default::default(),
        }
    }

    /// One endpoint in each network, with the second address of the first subnet of each family.
    pub fn attachments(&self) -> Vec<Attachment> {
        let attachment = |(n, vni): (usize, u32)| {
            let own = |f: usize| {
                let mut blocks = self.blocks[n][f].iter().enumerate();
                let (b, extra) = blocks.find_map(|(b, at)| match at {
                    Some((0, extra)) => Some((b, *extra)),
                    _ => None,
                })?;
                Some(second(prefix(f, b, extra)))
            };
            Attachment {
                vni: Vni::new(vni).unwrap(),
                ifindex: IFINDICES[n],
                id: n as u32,
                addresses: [own(0), own(1)].into_iter().flatten().collect(),
                mac: [2, 0, 0, 0, 0, n as u8],
                kind: AttachmentKind::Container,
            }
        };
        let networks = VNIS.into_iter().enumerate().filter(|(n, _)| self.networks[*n]);
        networks.map(attachment).collect()
    }

    /// Compiled on a host whose maps are `before`.
    pub fn desired(&self, before: &Observed) -> Desired {
        let cluster = self.cluster();
        compile(&cluster, cluster.node("n0").unwrap(), &self.facts(before))
    }

    /// Of a host whose maps are `before`.
    pub fn facts(&self, before: &Observed) -> Facts {
        let path = |u: IpAddr| Path {
            ifindex: 2,
            mtu: 1500,
            learned_mtu: None,
            mac: [2; 6],
            next_hop: u,
            next_hop_mac: Some([4; 6]),
        };
        let reachable = (1..NODES).filter(|n| self.reachable(*n)).map(|n| self.underlay(n));
        Facts {
            worlds: [].into(),
            netns: 9,
            paths: reachable.map(|u| (u, path(u))).collect(),
            attachments: self.attachments(),
            underlay_mtu: 1500,
            bridge: 0,
            foreign_gre: false,
            foreign_ports: Vec::new(),
            peer_indices: peer_indices(before),
        }
    }
}

/// The indices in use.
pub fn peer_indices(maps: &Observed) -> ByAddress<u32> {
    maps.peers.iter().map(|(index, peer)| (peer.remote.into(), *index)).collect()
}

/// What the maps contain when they contain what is desired.
pub fn observed(desired: Desired) -> Observed {
    desired.maps
}

/// The prefix of a block: 10.0.16.0/20 and so on, fd00:0:0:1000::/52 and so on, or the front of one.
fn prefix(family: usize, block: usize, extra: u8) -> IpNet {
    let block = block as u16;
    if family == 0 {
        let [high, low] = (block << 12).to_be_bytes();
        Ipv4Net::new(Ipv4Addr::new(10, 0, high, low), 20 + extra).unwrap().into()
    } else {
        let net = Ipv6Addr::new(0xfd00, 0, 0, block << 12, 0, 0, 0, 0);
        Ipv6Net::new(net, 52 + extra).unwrap().into()
    }
}

/// The first address that an endpoint can have.
pub fn second(net: IpNet) -> IpAddr {
    match gateway(net) {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() + 1).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() + 1).into(),
    }
}

/// First and last address of a prefix, and the one after it.
pub fn edges(net: IpNet) -> [IpAddr; 3] {
    match net {
        IpNet::V4(net) => {
            let last = net.broadcast().to_bits();
            [net.network(), Ipv4Addr::from_bits(last), Ipv4Addr::from_bits(last + 1)]
                .map(IpAddr::from)
        }
        IpNet::V6(net) => {
            let last = net.broadcast().to_bits();
            [net.network(), Ipv6Addr::from_bits(last), Ipv6Addr::from_bits(last + 1)]
                .map(IpAddr::from)
        }
    }
}
