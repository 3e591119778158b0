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
    /// The outer headers: IP in GRE (default), or Ethernet in GRE.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "EncapName")]
    pub encap: Option<EncapName>,
    /// Container MTU in bytes, at most underlay MTU - overhead; at least 1280 if there is an IPv6
    /// prefix. Default: chosen by each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default, with = "u16", range(min = super::value::MTU_MIN, max = MTU_MAX))]
    pub mtu: Option<u16>,
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
}

/// A host of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(title = "node", deny_unknown_fields)]
pub struct NodeTable {
    /// Name of the node, commonly its hostname.
    #[schemars(length(min = 1, max = super::value::NAME_MAX), regex(pattern = super::value::NAME_PATTERN))]
    pub name: String,
    /// The IPv4 address by which the other nodes reach it.
    #[schemars(extend("format" = "ipv4"))]
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
