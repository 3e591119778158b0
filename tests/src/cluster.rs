//! The cluster's config file, as tests write and change it.

use std::fmt;

/// The outer headers to ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encap {
    #[default]
    Gre,
    Gretap,
    Vxlan,
    Geneve,
}

impl Encap {
    pub const ALL: [Self; 4] = [Self::Gre, Self::Gretap, Self::Vxlan, Self::Geneve];
    /// Those with a GRE header.
    pub const GRE: [Self; 2] = [Self::Gre, Self::Gretap];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Gre => "gre",
            Self::Gretap => "gretap",
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
        }
    }

    /// Bytes in front of the inner IP header on an IPv4 underlay: IPv4 20, GRE 4, a key 4 unless
    /// `vni` is 0, inner Ethernet 14; or UDP 8, VXLAN or Geneve 8, inner Ethernet 14. Written out
    /// here, so that the tests do not ask the code under test.
    pub const fn overhead(self, vni: u32) -> u32 {
        let key = if vni == 0 { 0 } else { 4 };
        match self {
            Self::Gre => 24 + key,
            Self::Gretap => 38 + key,
            Self::Vxlan | Self::Geneve => 50,
        }
    }

    /// Whether the inner packets have Ethernet headers.
    pub const fn has_ethernet(self) -> bool {
        !matches!(self, Self::Gre)
    }
}

/// The family between the hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underlay {
    #[default]
    V4,
    V6,
}

impl Underlay {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Address of the `n`th host, from 1.
    pub fn address(self, n: usize) -> String {
        match self {
            Self::V4 => underlay(n),
            Self::V6 => format!("2001:db8::{}", 10 + n),
        }
    }

    /// Of the network between the hosts.
    pub const fn prefix_len(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    /// By how much its header is longer than that of IPv4.
    pub const fn more(self) -> u32 {
        match self {
            Self::V4 => 0,
            Self::V6 => 20,
        }
    }
}

/// Displays as the TOML that `mesh up --config` reads.
#[derive(Clone, Debug)]
pub struct ClusterFile {
    pub name: String,
    pub cidr: Vec<String>,
    pub encap: Encap,
    pub mtu: Option<u32>,
    /// Further lines of `[cluster]`.
    pub settings: Vec<String>,
    pub nodes: Vec<Node>,
    pub networks: Vec<Network>,
    /// `[attach] bridges`
    pub bridges: Vec<String>,
    /// `[attach] interfaces`
    pub interfaces: Option<&'static str>,
    /// Lines of `[docker]`
    pub docker: String,
    pub links: Vec<Link>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub underlay: String,
    pub subnet: Vec<String>,
    /// Of a node that does not run mesh: its other lines.
    pub foreign: Option<Vec<String>>,
}

#[derive(Clone, Debug)]
pub struct Network {
    pub name: String,
    pub vni: u32,
    pub cidr: String,
}

/// Two nodes with a tunnel of their own.
#[derive(Clone, Debug)]
pub struct Link {
    pub nodes: [String; 2],
    pub encap: Encap,
}

impl ClusterFile {
    /// Nodes h1, h2, ... at 192.0.2.11, .12, ... with 10.42.1.0/24, 10.42.2.0/24, ..., and if `ipv6`
    /// with fd42:0:0:1::/64, ... too.
    pub fn new(nodes: usize, encap: Encap, ipv6: bool) -> Self {
        Self::on(Underlay::V4, nodes, encap, ipv6)
    }

    /// The same on a network of that family.
    pub fn on(between: Underlay, nodes: usize, encap: Encap, ipv6: bool) -> Self {
        let only = |list: &[&str]| {
            list.iter().take(if ipv6 { 2 } else { 1 }).map(|s| (*s).to_owned()).collect()
        };
        let node = |n| Node {
            name: format!("h{n}"),
            underlay: between.address(n),
            subnet: only(&[&format!("10.42.{n}.0/24"), &format!("fd42:0:0:{n:x}::/64")]),
            foreign: None,
        };
        Self {
            name: "test".into(),
            cidr: only(&["10.42.0.0/16", "fd42::/48"]),
            encap,
            mtu: None,
            settings: Vec::new(),
            nodes: (1..=nodes).map(node).collect(),
            networks: Vec::new(),
            bridges: Vec::new(),
            interfaces: None,
            docker: String::new(),
            links: Vec::new(),
        }
    }

    /// Adds an isolated network, divided evenly among the nodes.
    pub fn with_network(mut self, name: &str, vni: u32, cidr: &str) -> Self {
        self.networks.push(Network { name: name.into(), vni, cidr: cidr.into() });
        self
    }

    pub fn without_node(mut self, name: &str) -> Self {
        self.nodes.retain(|node| node.name != name);
        self
    }

    pub fn with_underlay(mut self, name: &str, underlay: &str) -> Self {
        for node in self.nodes.iter_mut().filter(|node| node.name == name) {
            node.underlay = underlay.into();
        }
        self
    }

    /// Says that a node does not run mesh. `lines`: `vni = 42` and the like.
    pub fn with_foreign(mut self, name: &str, lines: &[&str]) -> Self {
        for node in self.nodes.iter_mut().filter(|node| node.name == name) {
            node.foreign = Some(lines.iter().map(|line| (*line).to_owned()).collect());
        }
        self
    }

    pub fn with_encap(mut self, encap: Encap) -> Self {
        self.encap = encap;
        self
    }

    /// A further line of `[cluster]`.
    pub fn with_setting(mut self, line: &str) -> Self {
        self.settings.push(line.into());
        self
    }

    pub fn with_link(mut self, one: &str, other: &str, encap: Encap) -> Self {
        self.links.push(Link { nodes: [one, other].map(Into::into), encap });
        self
    }

    /// The nodes that run mesh.
    pub fn managed(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.foreign.is_none())
    }
}

/// Underlay address of the `n`th host, from 1.
pub fn underlay(n: usize) -> String {
    format!("192.0.2.{}", 10 + n)
}

impl fmt::Display for ClusterFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[cluster]\nname = {:?}\ncidr = {:?}", self.name, self.cidr)?;
        writeln!(f, "encap = {:?}", self.encap.name())?;
        if let Some(mtu) = self.mtu {
            writeln!(f, "mtu = {mtu}")?;
        }
        self.settings.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        for Node { name, underlay, subnet, foreign } in &self.nodes {
            writeln!(f, "\n[[node]]\nname = {name:?}\nunderlay = {underlay:?}")?;
            writeln!(f, "subnet = {subnet:?}")?;
            if let Some(lines) = foreign {
                writeln!(f, "managed = false")?;
                lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
            }
        }
        for Network { name, vni, cidr } in &self.networks {
            writeln!(f, "\n[[network]]\nname = {name:?}\nvni = {vni}\ncidr = {cidr:?}")?;
        }
        if !self.bridges.is_empty() || self.interfaces.is_some() {
            writeln!(f, "\n[attach]\nbridges = {:?}", self.bridges)?;
        }
        if let Some(interfaces) = self.interfaces {
            writeln!(f, "interfaces = {interfaces:?}")?;
        }
        if !self.docker.is_empty() {
            writeln!(f, "\n[docker]\n{}", self.docker)?;
        }
        for Link { nodes, encap } in &self.links {
            writeln!(f, "\n[[link]]\nnodes = {nodes:?}\nencap = {:?}", encap.name())?;
        }
        Ok(())
    }
}
