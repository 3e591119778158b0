//! The cluster's config file, as tests write and change it.

use std::fmt;

/// The outer headers to ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encap {
    #[default]
    Gre,
    Gretap,
}

impl Encap {
    pub const ALL: [Self; 2] = [Self::Gre, Self::Gretap];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Gre => "gre",
            Self::Gretap => "gretap",
        }
    }

    /// Bytes in front of the inner IP header on an IPv4 underlay: IPv4 20, GRE 4, a key 4 unless
    /// `vni` is 0, inner Ethernet 14. Written out here, so that the tests do not ask the code under
    /// test.
    pub const fn overhead(self, vni: u32) -> u32 {
        let key = if vni == 0 { 0 } else { 4 };
        match self {
            Self::Gre => 24 + key,
            Self::Gretap => 38 + key,
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
    pub nodes: Vec<Node>,
    pub networks: Vec<Network>,
    /// `[attach] bridges`
    pub bridges: Vec<String>,
    /// Lines of `[docker]`
    pub docker: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub underlay: String,
    pub subnet: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Network {
    pub name: String,
    pub vni: u32,
    pub cidr: String,
}

impl ClusterFile {
    /// Nodes h1, h2, ... at 192.0.2.11, .12, ... with 10.42.1.0/24, 10.42.2.0/24, ..., and if `ipv6`
    /// with fd42:0:0:1::/64, ... too.
    pub fn new(nodes: usize, encap: Encap, ipv6: bool) -> Self {
        let only = |list: &[&str]| {
            list.iter().take(if ipv6 { 2 } else { 1 }).map(|s| (*s).to_owned()).collect()
        };
        let node = |n| Node {
            name: format!("h{n}"),
            underlay: underlay(n),
            subnet: only(&[&format!("10.42.{n}.0/24"), &format!("fd42:0:0:{n:x}::/64")]),
        };
        Self {
            name: "test".into(),
            cidr: only(&["10.42.0.0/16", "fd42::/48"]),
            encap,
            mtu: None,
            nodes: (1..=nodes).map(node).collect(),
            networks: Vec::new(),
            bridges: Vec::new(),
            docker: String::new(),
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
        for Node { name, underlay, subnet } in &self.nodes {
            writeln!(f, "\n[[node]]\nname = {name:?}\nunderlay = {underlay:?}")?;
            writeln!(f, "subnet = {subnet:?}")?;
        }
        for Network { name, vni, cidr } in &self.networks {
            writeln!(f, "\n[[network]]\nname = {name:?}\nvni = {vni}\ncidr = {cidr:?}")?;
        }
        if !self.bridges.is_empty() {
            writeln!(f, "\n[attach]\nbridges = {:?}", self.bridges)?;
        }
        if !self.docker.is_empty() {
            writeln!(f, "\n[docker]\n{}", self.docker)?;
        }
        Ok(())
    }
}
