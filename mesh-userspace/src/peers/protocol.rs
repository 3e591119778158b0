//! The words of agents among themselves: one request, one answer, each a JSON object.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{NetworkRecord, View};

/// Where it is asked for; another version has another path.
pub const PATH: &str = "/v1/exchange";
/// Ports that an agent asks from. Without CAP_NET_BIND_SERVICE nobody on its host can.
pub const RESERVED: Range<u16> = 600..1024;

/// Longest message in bytes: 4095 containers with long names fit.
pub const MESSAGE_MAX: usize = 4 << 20;

/// A request and its answer say the same.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct News {
    /// The sender's name, for messages; who it is says its address.
    pub node: String,
    /// The version of the receiver's names that the sender has.
    pub have: Option<Version>,
    /// The sender's names, unless the receiver has them.
    pub view: Option<View>,
    /// The version of the sender's names.
    pub version: Version,
    pub networks: Vec<NetworkRecord>,
}

/// Of a node's names: the higher is the newer.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Version {
    /// When the agent started, in ms since 1970.
    pub epoch: u64,
    pub count: u64,
}
