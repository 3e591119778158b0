//! What goes around a container's packet between two hosts: which headers, and their fields.

use std::fmt;

use mesh_common::tunnel::{self, Shape};
use serde::{Deserialize, Serialize};

use super::{Cluster, Node, Vni};

/// The outer headers that the mesh uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encap {
    /// IP in GRE.
    #[default]
    Gre,
    /// Ethernet in GRE.
    Gretap,
    /// Ethernet in VXLAN.
    Vxlan,
    /// Ethernet in Geneve.
    Geneve,
}

impl Encap {
    pub const ALL: [Self; 4] = [Self::Gre, Self::Gretap, Self::Vxlan, Self::Geneve];

    /// As the config file has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gre => "gre",
            Self::Gretap => "gretap",
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
        }
    }

    /// All that the programs must know of it.
    pub const fn shape(self) -> Shape {
        match self {
            Self::Gre => tunnel::GRE,
            Self::Gretap => tunnel::GRETAP,
            Self::Vxlan => tunnel::VXLAN,
            Self::Geneve => tunnel::GENEVE,
        }
    }

    /// Bytes that it adds to a container's packet of this network.
    pub const fn overhead(self, vni: Vni, ipv6_underlay: bool) -> usize {
        self.shape().overhead(vni.get(), ipv6_underlay)
    }

    /// The UDP port that IANA gave it; `None` if it has no ports.
    pub const fn default_port(self) -> Option<u16> {
        self.shape().port
    }

    pub const fn is_udp(self) -> bool {
        self.default_port().is_some()
    }

    /// The container's packet has an Ethernet header in it.
    pub const fn has_ethernet(self) -> bool {
        self.shape().ethernet
    }
}

/// As the config file has it.
impl fmt::Display for Encap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The DSCP of the outer header (RFC 2983). ECN is not part of it: that follows RFC 6040.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dscp {
    /// The inner packet's.
    #[default]
    Copy,
    /// Always this one: 0 to 63.
    Set(u8),
}

/// As the config file has it.
impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy => f.pad("copy"),
            Self::Set(0) => f.pad("zero"),
            Self::Set(dscp) => dscp.fmt(f),
        }
    }
}

/// What of broadcast and multicast is carried within a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flood {
    /// Nothing.
    #[default]
    None,
    /// ARP and neighbour discovery. Mesh answers these itself, for addresses behind peers without mesh
    /// too, so that nothing of them is left to carry: as [`Flood::None`].
    Arp,
    /// Everything.
    All,
}

impl Flood {
    pub const ALL: [Self; 3] = [Self::None, Self::Arp, Self::All];

    /// As the config file has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Arp => "arp",
            Self::All => "all",
        }
    }
}

/// As the config file has it.
impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How two hosts wrap what they send each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tunnel {
    pub encap: Encap,
    /// UDP destination port; 0 for GRE, which has none.
    pub port: u16,
}

/// With the port if it is not the usual one.
impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.encap.default_port() {
            Some(usual) if usual != self.port => write!(f, "{} port {}", self.encap, self.port),
            _ => self.encap.fmt(f),
        }
    }
}

/// What one pair of nodes has otherwise than the cluster, in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Names of two nodes, in order.
    pub nodes: [String; 2],
    pub encap: Option<Encap>,
    pub port: Option<u16>,
}

/// Of a node that does not run mesh: what its own tunnels are like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    pub encap: Option<Encap>,
    /// What it uses on the wire for the cluster's own network, of 24 bits; 0, as all others do, if
    /// `None`. In GRE 0 is no key.
    pub vni: Option<u32>,
    pub port: Option<u16>,
    /// Where frames to it are addressed to, if not to [`crate::compile::node_mac`].
    pub mac: Option<[u8; 6]>,
    /// The segment size that TCP agrees on with what is behind it is kept to what fits.
    pub clamp_mss: bool,
}

impl Node {
    pub fn is_managed(&self) -> bool {
        self.foreign.is_none()
    }
}

impl Cluster {
    /// How two nodes wrap what they send each other: as their link says, else the foreign one of
    /// them, else the cluster.
    pub fn tunnel(&self, a: &Node, b: &Node) -> Tunnel {
        let link = self.link(a, b);
        let foreign = a.foreign.as_ref().or(b.foreign.as_ref());
        let encap = link.and_then(|l| l.encap).or_else(|| foreign?.encap).unwrap_or(self.encap);
        let port = encap.default_port().map_or(0, |default| {
            let own = link.and_then(|l| l.port).or_else(|| foreign?.port);
            own.or(self.port).unwrap_or(default)
        });
        Tunnel { encap, port }
    }

    fn link(&self, a: &Node, b: &Node) -> Option<&Link> {
        // Nearly always, and this is asked for each peer.
        if self.links.is_empty() {
            return None;
        }
        let (first, second) = (a.name.as_str().min(&b.name), a.name.as_str().max(&b.name));
        let names =
            |link: &Link| (link.nodes[0].as_str(), link.nodes[1].as_str()).cmp(&(first, second));
        self.links.binary_search_by(names).ok().map(|at| &self.links[at])
    }

    /// The foreign node that has this VNI on the wire for the cluster's own network.
    pub fn foreign_with(&self, vni: u32) -> Option<&Node> {
        self.nodes.iter().find(|node| node.foreign.as_ref().is_some_and(|f| f.vni == Some(vni)))
    }

    /// The underlay of all nodes is IPv6.
    pub fn has_ipv6_underlay(&self) -> bool {
        self.nodes.first().is_some_and(|node| node.underlay.is_ipv6())
    }

    /// Bytes that are added to a container's packet of this network, on the way to the node where
    /// they are most.
    pub fn overhead(&self, vni: Vni) -> usize {
        let ipv6 = self.has_ipv6_underlay();
        // Numbers are of the same length but for 0.
        let mut foreign =
            self.nodes.iter().filter_map(|node| Vni::new(node.foreign.as_ref()?.vni?));
        let wire = foreign.find(|wire| vni == Vni::DEFAULT && *wire != vni).unwrap_or(vni);
        self.encaps().map(|encap| encap.overhead(wire, ipv6)).max().unwrap_or_default()
    }

    /// Those in use that are in UDP, each once, the cluster's first.
    pub fn udp_tunnels(&self) -> Vec<Tunnel> {
        let of = |encap: Option<Encap>, port: Option<u16>| {
            let encap = encap.unwrap_or(self.encap);
            let default = encap.default_port()?;
            Some(Tunnel { encap, port: port.or(self.port).unwrap_or(default) })
        };
        let foreign = self.nodes.iter().filter_map(|n| n.foreign.as_ref());
        let foreign = foreign.filter_map(|f| of(f.encap, f.port));
        let links = self.links.iter().filter_map(|link| {
            let [a, b] = link.nodes.each_ref().map(|name| self.node(name));
            Some(self.tunnel(a?, b?)).filter(|t| t.encap.is_udp())
        });
        let mut all = Vec::new();
        for tunnel in of(None, None).into_iter().chain(links).chain(foreign) {
            if !all.contains(&tunnel) {
                all.push(tunnel);
            }
        }
        all
    }

    /// All that are in use, the cluster's first; some may come again.
    pub fn encaps(&self) -> impl Iterator<Item = Encap> {
        let links = self.links.iter().filter_map(|link| link.encap);
        let foreign = self.nodes.iter().filter_map(|node| node.foreign.as_ref()?.encap);
        std::iter::once(self.encap).chain(links).chain(foreign)
    }
}

pub(super) fn parse_encap(text: &str) -> Result<Encap, String> {
    Encap::ALL.into_iter().find(|encap| encap.name() == text).ok_or_else(|| {
        format!("{text:?} is no encapsulation: write \"gre\", \"gretap\", \"vxlan\" or \"geneve\"")
    })
}

pub(crate) fn parse_flood(text: &str) -> Result<Flood, String> {
    Flood::ALL.into_iter().find(|flood| flood.name() == text).ok_or_else(|| {
        format!("{text:?} is not what may be carried to all: write \"none\", \"arp\" or \"all\"")
    })
}

/// Of UDP.
pub(super) fn parse_port(number: i128) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{number} is no UDP port: write one of 1 to 65535")),
    }
}

pub(super) fn parse_ttl(number: i128) -> Result<u8, String> {
    match u8::try_from(number) {
        Ok(ttl) if ttl != 0 => Ok(ttl),
        _ => Err(format!("{number} is no TTL: write one of 1 to 255, commonly 64")),
    }
}

/// What a DSCP may be.
pub(super) const DSCP_WANTED: &str = "\"copy\", \"zero\" or an integer of 0 to 63";
pub(super) const DSCP_MAX: u8 = 63;

pub(super) fn parse_dscp(text: &str) -> Result<Dscp, String> {
    match text {
        "copy" => Ok(Dscp::Copy),
        "zero" => Ok(Dscp::Set(0)),
        _ => Err(format!("{text:?} is no DSCP: write {DSCP_WANTED}, without quotes")),
    }
}

pub(super) fn dscp_of(number: i128) -> Result<Dscp, String> {
    let fitting = u8::try_from(number).ok().filter(|dscp| *dscp <= DSCP_MAX);
    fitting.map(Dscp::Set).ok_or_else(|| format!("{number} is no DSCP: write {DSCP_WANTED}"))
}

/// What a foreign node uses on the wire, where 0 is as good as any.
pub(super) fn parse_wire_vni(number: i128) -> Result<u32, String> {
    let max = mesh_common::maps::VNI_MAX;
    let fitting = u32::try_from(number).ok().filter(|vni| *vni <= max);
    fitting.ok_or_else(|| format!("{number} does not fit into the 24 bits of a VNI: 0 to {max}"))
}

pub(super) fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let digits = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
    let octet = |part| u8::from_str_radix(part, 16).ok().filter(|_| digits(part));
    let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
    let mac: [u8; 6] = octets.and_then(|octets| octets.try_into().ok()).ok_or_else(|| {
        format!("{text:?} is no MAC address: write six bytes, such as \"02:00:5e:00:53:01\"")
    })?;
    if mac == [0; 6] || mac[0] & 1 != 0 {
        return Err(format!("{text} is no host's: write the MAC address of one interface"));
    }
    Ok(mac)
}

/// As [`parse_mac`] reads it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}
