//! From what the maps contain and what they shall contain, to the changes. Pure.
//!
//! The [`ORDER`] of the changes is such that a packet in between meets either the old way or the new
//! one: what others refer to is written first and removed last.

use std::{collections::HashMap, hash::Hash};

use mesh_common::maps::{
    EndpointInfo, EndpointKey, FibInfo, FibKey, NetworkInfo, NodeInfo, PeerInfo, PeerKey,
    PeerSource, PortInfo,
};

use crate::{bpf::tables::LpmPrefix, compile::Desired};

/// What the maps contain, or shall contain. Empty slots of arrays are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    pub node: HashMap<u32, NodeInfo>,
    pub ports: HashMap<u32, PortInfo>,
    pub port_slots: HashMap<u32, PortInfo>,
    pub endpoints: HashMap<EndpointKey, EndpointInfo>,
    pub fib: HashMap<FibKey, FibInfo>,
    pub fib_lpm: HashMap<LpmPrefix, FibInfo>,
    pub peers: HashMap<u32, PeerInfo>,
    pub peer_by_addr: HashMap<PeerKey, PeerSource>,
    pub networks: HashMap<u32, NetworkInfo>,
}

/// The contents as they are.
pub type Observed = Contents;

/// Changes to one map.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes<K, V> {
    pub set: Vec<(K, V)>,
    pub remove: Vec<K>,
}

impl<K, V> Changes<K, V> {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }

    pub fn len(&self) -> usize {
        self.set.len() + self.remove.len()
    }
}

/// A map of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    Node,
    Peers,
    Fib,
    FibLpm,
    Networks,
    PeerByAddr,
    Endpoints,
    Ports,
    PortSlots,
}

/// The order in which entries are set, all of them before any is removed: what others refer to
/// comes first. Entries are removed in the reverse order.
pub const ORDER: [Map; 9] = [
    Map::Node,
    Map::Peers,
    Map::Fib,
    Map::FibLpm,
    Map::Networks,
    Map::PeerByAddr,
    Map::Endpoints,
    Map::Ports,
    Map::PortSlots,
];

/// Changes to all maps.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub node: Changes<u32, NodeInfo>,
    pub networks: Changes<u32, NetworkInfo>,
    pub peers: Changes<u32, PeerInfo>,
    pub peer_by_addr: Changes<PeerKey, PeerSource>,
    pub fib: Changes<FibKey, FibInfo>,
    pub fib_lpm: Changes<LpmPrefix, FibInfo>,
    pub endpoints: Changes<EndpointKey, EndpointInfo>,
    pub ports: Changes<u32, PortInfo>,
    pub port_slots: Changes<u32, PortInfo>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries that change.
    pub fn len(&self) -> usize {
        self.node.len()
            + self.networks.len()
            + self.peers.len()
            + self.peer_by_addr.len()
            + self.fib.len()
            + self.fib_lpm.len()
            + self.endpoints.len()
            + self.ports.len()
            + self.port_slots.len()
    }
}

/// The changes that make `observed` into `desired`.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let desired = &desired.maps;
    Plan {
        node: diff(&desired.node, &observed.node),
        networks: diff(&desired.networks, &observed.networks),
        peers: diff(&desired.peers, &observed.peers),
        peer_by_addr: diff(&desired.peer_by_addr, &observed.peer_by_addr),
        fib: diff(&desired.fib, &observed.fib),
        fib_lpm: diff(&desired.fib_lpm, &observed.fib_lpm),
        endpoints: diff(&desired.endpoints, &observed.endpoints),
        ports: diff(&desired.ports, &observed.ports),
        port_slots: diff(&desired.port_slots, &observed.port_slots),
    }
}

fn diff<K, V>(desired: &HashMap<K, V>, observed: &HashMap<K, V>) -> Changes<K, V>
where
    K: Copy + Eq + Hash,
    V: Copy + PartialEq,
{
    Changes {
        set: desired
            .iter()
            .filter(|(k, v)| observed.get(k) != Some(v))
            .map(|(k, v)| (*k, *v))
            .collect(),
        remove: observed.keys().filter(|k| !desired.contains_key(k)).copied().collect(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
