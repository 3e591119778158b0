//! The config file as types: to write one, and for its JSON schema.
//!
//! Reading does not go through these, since serde stops at the first fault. A test holds the two
//! together.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::Serialize;

/// The config file of a mesh, the same on each host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(title = "mesh config", deny_unknown_fields)]
pub struct File {
    pub cluster: ClusterTable,
    /// What is attached on each host without being asked. Default: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "AttachTable")]
    pub attach: Option<AttachTable>,
    /// Where Docker is on each host. Default: /run/docker.sock, served where it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "DockerTable")]
    pub docker: Option<DockerTable>,
    /// The hosts of the mesh. File order counts where a network is divided evenly.
    #[schemars(length(min = 1))]
    pub node: Vec<NodeTable>,
    /// Further networks, isolated from the cluster's own and from each other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub network: Vec<NetworkTable>,
    /// Pairs of nodes that wrap their packets otherwise than the cluster does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub link: Vec<LinkTable>,
}

/// What holds for all nodes, and the cluster's own network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(title = "cluster", deny_unknown_fields)]
pub struct ClusterTable {
    /// Name of the cluster.
    #[schemars(length(min = 1, max = super::value::NAME_MAX), regex(pattern = super::value::NAME_PATTERN))]
    pub name: String,
    /// The container network: a prefix, or a list of prefixes, IPv4 and IPv6.
    pub cidr: Prefixes,
    /// The outer headers: IP in GRE (default), Ethernet in GRE, VXLAN or Geneve.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "EncapName")]
    pub encap: Option<EncapName>,
    /// Container MTU in bytes, at most underlay MTU - overhead; at least 1280 if there is an IPv6
    /// prefix. Default: chosen by each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "u16", range(min = super::value::MTU_MIN, max = MTU_MAX))]
    pub mtu: Option<u16>,
    /// UDP destination port of VXLAN and Geneve. Default: 4789 and 6081.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "u16", range(min = 1))]
    pub port: Option<u16>,
    /// TTL or hop limit of the outer header. Default: 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "u8", range(min = 1))]
    pub ttl: Option<u8>,
    /// DSCP of the outer header: the inner packet's (default), 0, or always this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "DscpValue")]
    pub dscp: Option<DscpValue>,
    /// What of broadcast and multicast is carried within the cluster's own network: nothing (default),
    /// or everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "FloodName")]
    pub flood: Option<FloodName>,
}

/// What is attached without being asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(title = "attach", deny_unknown_fields)]
pub struct AttachTable {
    /// Bridges whose ports are attached as they appear, such as docker0. What its containers may
    /// send from is the node's own subnet. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default, inner(length(min = 1, max = 15)))]
    pub bridges: Vec<String>,
    /// What containers' interfaces are made of; "auto": netkit where the kernel has it (6.7). Those
    /// that are there stay as they are. Default: veth.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "InterfacesName")]
    pub interfaces: Option<InterfacesName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum InterfacesName {
    Veth,
    Netkit,
    Auto,
}

/// Docker, which mesh is a network driver of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(title = "docker", deny_unknown_fields)]
pub struct DockerTable {
    /// Serve the driver `mesh`, and names of containers. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "bool")]
    pub plugin: Option<bool>,
    /// The socket of Docker's API. Default: /run/docker.sock.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "String")]
    pub socket: Option<String>,
    /// The socket where Docker finds the plugin; the file's name is the driver's. Default:
    /// /run/docker/plugins/mesh.sock.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "String")]
    pub plugin_socket: Option<String>,
}

/// 65535 less the GRE overhead of network 0.
const MTU_MAX: u16 = 65511;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum EncapName {
    Gre,
    Gretap,
    Vxlan,
    Geneve,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum FloodName {
    None,
    All,
}

/// "copy", "zero" or 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub enum DscpValue {
    Word(DscpWord),
    Number(#[schemars(range(max = super::wire::DSCP_MAX))] u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum DscpWord {
    Copy,
    Zero,
}

/// A host of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(title = "node", deny_unknown_fields)]
pub struct NodeTable {
    /// Name of the node, commonly its hostname.
    #[schemars(length(min = 1, max = super::value::NAME_MAX), regex(pattern = super::value::NAME_PATTERN))]
    pub name: String,
    /// The address by which the other nodes reach it: IPv4, or IPv6 on all nodes.
    #[schemars(extend("anyOf" = [{"format": "ipv4"}, {"format": "ipv6"}]))]
    pub underlay: String,
    /// Its part of the cluster's own network: a prefix or a list. Its first address is the node's.
    /// Default, if no node has it: the cidr is divided evenly.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "Prefixes")]
    pub subnet: Option<Prefixes>,
    /// Its parts of further networks, by network name. Default, if no node has one of a network:
    /// the network's cidr is divided evenly.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub subnets: BTreeMap<String, Prefixes>,
    /// `false`: the node does not run mesh, but has tunnels of the kernel's or of Open vSwitch.
    /// Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "bool")]
    pub managed: Option<bool>,
    /// Of a node that is not managed: its encapsulation. Default: the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "EncapName")]
    pub encap: Option<EncapName>,
    /// Of a node that is not managed: its VNI or GRE key for the cluster's own network. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "u32", range(max = mesh_common::maps::VNI_MAX))]
    pub vni: Option<u32>,
    /// Of a node that is not managed: its UDP port. Default: the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "u16", range(min = 1))]
    pub port: Option<u16>,
    /// Of a node that is not managed, with Ethernet in its tunnels: where frames to it go. Default:
    /// made of its underlay address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "String", extend("pattern" = MAC_PATTERN))]
    pub mac: Option<String>,
    /// Of a node that is not managed: keep the segment size of TCP to what fits on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "bool")]
    pub clamp_mss: Option<bool>,
}

const MAC_PATTERN: &str = "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$";

/// Between two nodes, in both directions. Needs an encap or a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(title = "link", deny_unknown_fields)]
#[schemars(extend("anyOf" = [{"required": ["encap"]}, {"required": ["port"]}]))]
pub struct LinkTable {
    /// Names of the two nodes.
    pub nodes: [String; 2],
    /// The outer headers between them. Default: those of the foreign one of them, or the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "EncapName")]
    pub encap: Option<EncapName>,
    /// UDP destination port between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "u16", range(min = 1))]
    pub port: Option<u16>,
}

/// A further network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(title = "network", deny_unknown_fields)]
pub struct NetworkTable {
    /// Name of the network; "default" is the cluster's own.
    #[schemars(extend("not" = {"const": super::DEFAULT_NETWORK}))]
    #[schemars(length(min = 1, max = super::value::NAME_MAX), regex(pattern = super::value::NETWORK_PATTERN))]
    pub name: String,
    /// Its number on the wire.
    #[schemars(range(min = 1, max = mesh_common::maps::VNI_MAX))]
    pub vni: u32,
    /// Its prefix, or a list of prefixes, IPv4 and IPv6. May be the same as another network's.
    pub cidr: Prefixes,
    /// What of broadcast and multicast is carried within it: nothing (default), or everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "FloodName")]
    pub flood: Option<FloodName>,
}

/// A prefix such as "10.42.0.0/16" or "fd42::/48", or a list of prefixes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(title = "prefixes")]
pub enum Prefixes {
    One(#[schemars(regex(pattern = PREFIX_PATTERN))] String),
    Many(#[schemars(length(min = 1), inner(regex(pattern = PREFIX_PATTERN)))] Vec<String>),
}

/// An address and a length; which of them fit together is not for a regular expression.
const PREFIX_PATTERN: &str = "^[0-9A-Fa-f.:]+/[0-9]{1,3}$";

impl Default for Prefixes {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// The JSON schema of the config file (draft 2020-12).
pub fn schema() -> Schema {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<File>()
}
