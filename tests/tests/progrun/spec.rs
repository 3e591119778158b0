//! How worlds differ, and who is in them: interfaces of this host, and peers.

use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_common::verdict::Hook;
use mesh_userspace::config::{Dscp, Encap};

use super::packet::Mac;

/// An interface with something behind it.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    pub ifindex: u32,
    /// Index of its counters.
    pub id: u32,
    pub vni: u32,
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    pub mac: Mac,
}

impl Port {
    /// Where what it sends is looked at.
    pub fn hook(&self) -> Hook {
        if self.id == HOST.id { Hook::FromHost } else { Hook::FromContainer }
    }
}

const fn port(ifindex: u32, id: u32, vni: u32, v4: Option<u8>, v6: Option<(u16, u16)>) -> Port {
    let v4 = match v4 {
        Some(last) => Some(Ipv4Addr::new(10, 42, 0, last)),
        None => None,
    };
    let v6 = match v6 {
        Some((first, last)) => Some(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last)),
        None => None,
    };
    Port { ifindex, id, vni, v4, v6, mac: [2, 0, 0, 0, 1, id as u8] }
}

/// The host itself, on mesh0.
pub const HOST: Port = port(20, 0, 0, Some(1), Some((0xfd42, 1)));
pub const A: Port = port(21, 1, 0, Some(2), Some((0xfd42, 2)));
/// Has no IPv6 address.
pub const B: Port = port(22, 2, 0, Some(3), None);
/// In network 7, with the IPv4 address that A has in network 0.
pub const BLUE: Port = port(23, 3, BLUE_VNI, Some(2), Some((0xfd43, 2)));
/// Shares A's place among the `PORT_SLOTS`.
pub const D: Port = port(21 + mesh_common::slots::SLOTS, 4, 0, Some(5), Some((0xfd42, 5)));
/// In a network that has no IPv4.
pub const SIX: Port = port(24, 5, SIX_VNI, None, Some((0xfd49, 2)));
pub const BLUE_2: Port = port(25, 6, BLUE_VNI, Some(3), Some((0xfd43, 3)));
pub const PORTS: [Port; 7] = [HOST, A, B, BLUE, D, SIX, BLUE_2];

/// Ports of a bridge, in a world that has one; the second one's address is known to the agent.
pub const TELLS: Port = port(26, 7, 0, Some(9), Some((0xfd42, 9)));
pub const TOLD: Port = port(27, 8, 0, Some(10), Some((0xfd42, 10)));
pub const BRIDGE: u32 = 28;

pub const BLUE_VNI: u32 = 7;
pub const SIX_VNI: u32 = 9;

pub const UNDERLAY: u32 = 30;
/// An interface that mesh has nothing to do with.
pub const STRAY: u32 = 31;
pub const UNDERLAY_MAC: Mac = [2, 0, 0, 0, 0, 11];
pub const NEXT_HOP_MAC: Mac = [2, 0, 0, 0, 0, 99];
pub const UNDERLAY_MTU: u32 = 1500;
/// Containers' MTU in every network of `gre`, by the headroom that mesh chooses.
pub const MTU: usize = 1462;

/// This host, over IPv4 and over IPv6.
pub const ME: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
pub const ME_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11);
pub const H2: Peer = peer(0, 12);
/// Has several subnets of each family.
pub const H3: Peer = peer(1, 13);
/// Has no route on the underlay.
pub const H4: Peer = peer(2, 14);
/// Its next hop's MAC is not known, and the way there has a smaller MTU.
pub const H5: Peer = peer(3, 15);
pub const H5_MTU: u32 = 1300;

/// Peers without mesh, in worlds that have them. A switch behind VXLAN.
pub const OLD_VXLAN: Peer = peer(4, 16);
/// One MAC behind Geneve.
pub const OLD_GENEVE: Peer = peer(5, 17);
pub const OLD_GENEVE_MAC: Mac = [2, 0, 0x5e, 0, 0x53, 1];
/// A switch behind GRETAP; the next hop's MAC is not known.
pub const OLD_GRETAP: Peer = peer(6, 18);
pub const OLD_GRE: Peer = peer(7, 19);

/// A peer, by its index and the last number of its underlay addresses.
const fn peer(index: u32, last: u8) -> Peer {
    Peer {
        index,
        underlay: Ipv4Addr::new(192, 0, 2, last),
        // The same digits.
        underlay_v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last as u16 + 6),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub index: u32,
    pub underlay: Ipv4Addr,
    pub underlay_v6: Ipv6Addr,
}

/// How worlds differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spec {
    pub encap: Encap,
    /// The underlay.
    pub ipv6: bool,
    /// `cluster.port`, `cluster.ttl`, `cluster.dscp`.
    pub port: Option<u16>,
    pub ttl: Option<u8>,
    pub dscp: Dscp,
    /// Nodes that do not run mesh, and a link of its own to H3.
    pub foreign: bool,
    /// The host has GRE tunnels of its own.
    pub foreign_gre: bool,
    /// The host has VXLAN or Geneve tunnels of its own on this port.
    pub shared_port: Option<u16>,
    /// More prefix lengths than `PrefixLens` holds.
    pub many_lengths: bool,
    /// There is a bridge, with [`TELLS`] and [`TOLD`].
    pub bridge: bool,
    /// Network 0 and [`SIX_VNI`] carry broadcast and multicast.
    pub flood: bool,
    /// This host leads out of the network of [`BLUE`].
    pub gateway: bool,
    /// Room for so many more endpoints, prefixes and peers.
    pub entries: u32,
}

pub const GRE: Spec = Spec {
    encap: Encap::Gre,
    ipv6: false,
    port: None,
    ttl: None,
    dscp: Dscp::Copy,
    foreign: false,
    foreign_gre: false,
    shared_port: None,
    many_lengths: false,
    bridge: false,
    flood: false,
    gateway: false,
    entries: 0,
};
pub const GRETAP: Spec = Spec { encap: Encap::Gretap, ..GRE };
pub const VXLAN: Spec = Spec { encap: Encap::Vxlan, ..GRE };
pub const GENEVE: Spec = Spec { encap: Encap::Geneve, ..GRE };

/// All encapsulations over both families.
pub fn all_specs() -> impl Iterator<Item = Spec> {
    let over = |encap| [false, true].map(|ipv6| Spec { encap, ipv6, ..GRE });
    Encap::ALL.into_iter().flat_map(over)
}
