//! What an agent must find again: which of Docker's networks are ours, which addresses are given
//! out, and what is known of the mesh's networks. After a reboot there is the part of it that is
//! [kept](super::kept), and what Docker and the other agents tell.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::ipam::Ipam;
use crate::peers::{NetworkRecord, NetworkSpec, Subnet};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Saved {
    /// Of the last agent's [`Version`](crate::peers::Version).
    pub epoch: u64,
    /// By Docker's id, which differs from host to host.
    pub networks: BTreeMap<String, Local>,
    pub ipam: Ipam,
    /// By Docker's id.
    pub endpoints: BTreeMap<String, Note>,
    pub records: Vec<NetworkRecord>,
    /// Which Docker the networks are of: the id of its network `host`, which it makes once.
    pub engine: Option<String>,
}

/// A network of the local Docker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// Docker tells it a moment after the network was made.
    pub name: Option<String>,
    pub subnets: Vec<Subnet>,
    /// As given to Docker.
    pub options: BTreeMap<String, String>,
    /// What it is in the mesh, once that is known.
    pub spec: Option<NetworkSpec>,
}

/// A container's endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub network: String,
    pub addresses: Vec<IpAddr>,
    pub mac: [u8; 6],
}
