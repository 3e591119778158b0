//! The cluster's description: the file, its faults, and the [`Cluster`] it makes.
//!
//! ```text
//! bytes -> text -> tables (syntax) -> values (spec) -> Cluster (validate)
//!   \        \_______ faults of each, all reported together ________/
//!    \_____ a sound file of the plain form (plain) ____/
//! ```
//!
//! # Even division
//!
//! If no node says what its part of a network is, each cidr of the network is divided evenly: into
//! as many shares as there are nodes, rounded up to a power of two, given out in file order. So a
//! node appended to the file changes no other node's share until a power of two is passed. Two
//! nodes share 10.43.0.0/16 as 10.43.0.0/17 and 10.43.128.0/17, three or four as /18.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use toml::de::DeTable;

mod added;
mod fault;
mod fields;
pub mod file;
mod load;
mod overrides;
mod plain;
mod prefixes;
mod spec;
mod syntax;
mod text;
mod validate;
mod value;
mod wire;

#[cfg(test)]
mod tests;

pub use added::{added_prefix_fault, host_name_fault, node_name_fault};
pub use fault::{Fault, Faults};
pub use load::{ReadError, SIZE_MAX_BYTES, read_bytes, read_stdin};
pub use prefixes::share;
pub(crate) use wire::parse_flood;
pub use wire::{Dscp, Encap, Flood, Foreign, Link, Tunnel, mac_text};

/// Name of the cluster's own network.
pub const DEFAULT_NETWORK: &str = "default";

/// TTL of the outer header, unless the file says otherwise.
pub const DEFAULT_TTL: u8 = 64;

/// A network's number: 0 for the cluster's own, 1..=16777215 for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The cluster's own network.
    pub const DEFAULT: Self = Self(0);

    /// `None` if larger than 24 bits.
    pub const fn new(vni: u32) -> Option<Self> {
        if vni <= mesh_common::maps::VNI_MAX { Some(Self(vni)) } else { None }
    }

    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A cluster whose description has no fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub name: String,
    pub encap: Encap,
    /// Container MTU, if the file sets one.
    pub mtu: Option<u16>,
    /// UDP destination port, if the file sets one.
    pub port: Option<u16>,
    /// TTL or hop limit of the outer header.
    pub ttl: u8,
    pub dscp: Dscp,
    /// In the order of the names in them, each pair once. See [`Cluster::tunnel`].
    pub links: Vec<Link>,
    /// The cluster's own network first, named "default", VNI 0; then the others in file order.
    pub networks: Vec<Network>,
    /// In file order.
    pub nodes: Vec<Node>,
    pub docker: Docker,
    /// Bridges on each host whose ports are attached, such as `docker0`.
    pub bridges: Vec<String>,
    pub interfaces: Interfaces,
}

/// What containers' interfaces are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interfaces {
    #[default]
    Veth,
    /// Since Linux 6.7: the program runs as the container sends, and a queue on the way is left out.
    Netkit,
    /// Netkit where the kernel has it.
    Auto,
}

impl Interfaces {
    pub const ALL: [Self; 3] = [Self::Veth, Self::Netkit, Self::Auto];

    /// As the config file has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Netkit => "netkit",
            Self::Auto => "auto",
        }
    }
}

/// Where each host's Docker is, and whether it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Docker {
    pub plugin: bool,
    /// Docker's API.
    pub socket: PathBuf,
    /// Where Docker looks for the plugin: the file's name is the driver's.
    pub plugin_socket: PathBuf,
}

impl Default for Docker {
    fn default() -> Self {
        Self {
            plugin: true,
            socket: "/run/docker.sock".into(),
            plugin_socket: "/run/docker/plugins/mesh.sock".into(),
        }
    }
}

impl Cluster {
    /// Case matters not, as in host names.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name.eq_ignore_ascii_case(name))
    }

    pub fn network(&self, name: &str) -> Option<&Network> {
        self.networks.iter().find(|network| network.name == name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub name: String,
    pub vni: Vni,
    /// Truncated to their prefix; one or several of each family.
    pub cidrs: Vec<IpNet>,
    pub flood: Flood,
}

impl Network {
    pub fn has_ipv4(&self) -> bool {
        self.cidrs.iter().any(|cidr| cidr.addr().is_ipv4())
    }

    pub fn has_ipv6(&self) -> bool {
        self.cidrs.iter().any(|cidr| cidr.addr().is_ipv6())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    /// Of the same family on all nodes.
    pub underlay: IpAddr,
    /// Its part of each network, in the order of `Cluster::networks`.
    pub subnets: Vec<(Vni, IpNet)>,
    /// It does not run mesh.
    pub foreign: Option<Foreign>,
}

impl Node {
    /// Its parts of one network, in the file's order.
    pub fn subnets_of(&self, vni: Vni) -> impl Iterator<Item = IpNet> {
        self.subnets.iter().filter(move |(of, _)| *of == vni).map(|(_, subnet)| *subnet)
    }
}

/// The first address of a subnet: the gateway's, and in the cluster's own network the node's.
pub fn gateway(subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(net) => Ipv4Addr::from_bits(net.network().to_bits().saturating_add(1)).into(),
        IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits().saturating_add(1)).into(),
    }
}

/// An address as a number, to count with.
pub fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The inverse of [`bits`].
pub fn from_bits(bits: u128, v4: bool) -> IpAddr {
    match u32::try_from(bits) {
        Ok(bits) if v4 => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(bits).into(),
    }
}

/// A cluster, and what of the file does not show in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub cluster: Cluster,
    /// Networks that are divided evenly: a node more may change each node's part.
    pub divided: HashSet<Vni>,
    /// Line and column of `cluster.mtu`, from 1, if the file has it: whether it fits is known only
    /// where the underlay is.
    pub mtu_at: Option<(usize, usize)>,
}

/// Reads the cluster from a config file's bytes, or all the faults that are in it.
pub fn parse(bytes: &[u8]) -> Result<Cluster, Faults> {
    parse_document(bytes).map(|document| document.cluster)
}

/// As [`parse`].
pub fn parse_document(bytes: &[u8]) -> Result<Document, Faults> {
    parse_plain(bytes).map_or_else(|| parse_toml(bytes), Ok)
}

/// A sound file of the plain form; any other is for [`parse_toml`] to judge.
fn parse_plain(bytes: &[u8]) -> Option<Document> {
    let text = str::from_utf8(bytes).ok()?;
    document(&plain::read(text)?, &mut text::Findings::new(text))
}

/// `None` if there are faults.
fn document(spec: &spec::Spec, findings: &mut text::Findings<'_>) -> Option<Document> {
    let mut document = validate::validate(spec, findings)?;
    let mtu = spec.cluster.as_ref().and_then(|c| c.mtu.as_ref());
    document.mtu_at = mtu.map(|mtu| findings.position(mtu.place.offset));
    Some(document)
}

fn parse_toml(bytes: &[u8]) -> Result<Document, Faults> {
    let decoded = text::decode(bytes).map_err(|fault| Faults(vec![fault]))?;
    let mut findings = text::Findings::new(&decoded.text);
    for (offset, message) in decoded.faults {
        findings.add_syntax(text::Place::new(offset, ""), message);
    }
    let (table, errors) = DeTable::parse_recoverable(&decoded.text);
    let mended;
    let sections = if errors.is_empty() {
        vec![syntax::whole(table.into_inner())]
    } else {
        mended = syntax::mend(&decoded.text, &mut findings);
        syntax::sections(&mended, &mut findings)
    };
    if findings.is_empty() && sections.iter().all(|section| section.body.is_empty()) {
        let message = "the file is empty: write a [cluster] and a [[node]] for each host";
        findings.add(&text::Place::new(0, ""), message);
    } else {
        let spec = spec::Spec::read(&sections, &mut findings);
        if findings.is_empty() {
            // What the parser saw may not show in any one section.
            syntax::report(&errors, &decoded.text, 0, "", &mut findings);
        }
        if let Some(document) = document(&spec, &mut findings) {
            return Ok(document);
        }
    }
    Err(findings.finish())
}

/// Reads the cluster from a config file. The bytes come along, to be kept.
pub fn read(path: &Path) -> Result<(Cluster, Vec<u8>), ReadError> {
    parse_read(path, read_bytes(path)?)
}

/// As [`read`]; `None` if the file is still the one with the bytes `known`.
pub fn read_if_not(
    path: &Path,
    known: Option<&[u8]>,
) -> Result<Option<(Cluster, Vec<u8>)>, ReadError> {
    let bytes = read_bytes(path)?;
    if known == Some(&bytes[..]) { Ok(None) } else { parse_read(path, bytes).map(Some) }
}

fn parse_read(path: &Path, bytes: Vec<u8>) -> Result<(Cluster, Vec<u8>), ReadError> {
    match parse(&bytes) {
        Ok(cluster) => Ok((cluster, bytes)),
        Err(faults) => Err(ReadError::Faults { path: path.to_owned(), faults }),
    }
}
