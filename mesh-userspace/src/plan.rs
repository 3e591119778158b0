//! From what the maps contain and what they shall contain, to the changes. Pure.
//!
//! The [`ORDER`] of the changes is such that a packet in between meets either the old way or the new
//! one: what others refer to is written first and removed last.

use std::{collections::HashMap, hash::Hash};

use mesh_common::maps::{
    EndpointInfo, EndpointKey, FibInfo, FibKey, FloodInfo, FloodKey, NetworkInfo, NodeInfo,
    PeerInfo, PeerKey, PeerSource, PortInfo,
};

use rustc_hash::FxBuildHasher;

use crate::{
    bpf::tables::LpmPrefix,
    compile::{Desired, Difference, Facts},
    config::Node,
};

/// Entries of one map. Their keys come from the operator's own file: nobody there chooses them to
/// collide, and the hash that withstands this takes three times as long.
pub type Entries<K, V> = HashMap<K, V, FxBuildHasher>;

/// What the maps contain, or shall contain. Empty slots of arrays are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    pub node: Entries<u32, NodeInfo>,
    pub ports: Entries<u32, PortInfo>,
    pub endpoints: Entries<EndpointKey, EndpointInfo>,
    pub fib: Entries<FibKey, FibInfo>,
    pub fib_lpm: Entries<LpmPrefix, FibInfo>,
    pub peers: Entries<u32, PeerInfo>,
    pub peer_by_addr: Entries<PeerKey, PeerSource>,
    pub networks: Entries<u32, NetworkInfo>,
    pub flood: Entries<FloodKey, FloodInfo>,
}

/// The contents as they are.
pub type Observed = Contents;

/// Changes to one map.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes<K, V> {
    pub set: Vec<(K, V)>,
    pub remove: Vec<K>,
}

impl<K, V> Default for Changes<K, V> {
    fn default() -> Self {
        Self { set: Vec::new(), remove: Vec::new() }
    }
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
    Flood,
    Endpoints,
    Ports,
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
    Map::Flood,
    Map::Endpoints,
    Map::Ports,
];

/// Changes to all maps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub node: Changes<u32, NodeInfo>,
    pub networks: Changes<u32, NetworkInfo>,
    pub flood: Changes<FloodKey, FloodInfo>,
    pub peers: Changes<u32, PeerInfo>,
    pub peer_by_addr: Changes<PeerKey, PeerSource>,
    pub fib: Changes<FibKey, FibInfo>,
    pub fib_lpm: Changes<LpmPrefix, FibInfo>,
    pub endpoints: Changes<EndpointKey, EndpointInfo>,
    pub ports: Changes<u32, PortInfo>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries that change.
    pub fn len(&self) -> usize {
        self.node.len()
            + self.networks.len()
            + self.flood.len()
            + self.peers.len()
            + self.peer_by_addr.len()
            + self.fib.len()
            + self.fib_lpm.len()
            + self.endpoints.len()
            + self.ports.len()
    }
}

impl Contents {
    /// What they are after the plan was carried out.
    pub fn follow(&mut self, plan: &Plan) {
        follow(&mut self.node, &plan.node);
        follow(&mut self.networks, &plan.networks);
        follow(&mut self.flood, &plan.flood);
        follow(&mut self.peers, &plan.peers);
        follow(&mut self.peer_by_addr, &plan.peer_by_addr);
        follow(&mut self.fib, &plan.fib);
        follow(&mut self.fib_lpm, &plan.fib_lpm);
        follow(&mut self.endpoints, &plan.endpoints);
        follow(&mut self.ports, &plan.ports);
    }
}

fn follow<K: Copy + Eq + Hash, V: Copy>(entries: &mut Entries<K, V>, changes: &Changes<K, V>) {
    entries.extend(changes.set.iter().copied());
    for key in &changes.remove {
        entries.remove(key);
    }
}

/// The changes that make `observed` into `desired`.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let desired = &desired.maps;
    Plan {
        node: diff(&desired.node, &observed.node),
        networks: diff(&desired.networks, &observed.networks),
        flood: diff(&desired.flood, &observed.flood),
        peers: diff(&desired.peers, &observed.peers),
        peer_by_addr: diff(&desired.peer_by_addr, &observed.peer_by_addr),
        fib: diff(&desired.fib, &observed.fib),
        fib_lpm: diff(&desired.fib_lpm, &observed.fib_lpm),
        endpoints: diff(&desired.endpoints, &observed.endpoints),
        ports: diff(&desired.ports, &observed.ports),
    }
}

/// The changes that a difference between two clusters asks for, where `contents` is what the old one
/// made of the same facts as far as they are about other nodes. What is about this node is compared
/// whole. `facts`: as for [`Difference::compile`].
pub fn plan_difference(
    difference: &Difference,
    me: &Node,
    facts: &Facts,
    contents: &Contents,
) -> Plan {
    let (old, new) = difference.compile(me, facts);
    let observed = Contents {
        node: contents.node.clone(),
        networks: contents.networks.clone(),
        flood: contents.flood.clone(),
        ports: contents.ports.clone(),
        endpoints: contents.endpoints.clone(),
        ..old.maps
    };
    plan(&new, &observed)
}

fn diff<K, V>(desired: &Entries<K, V>, observed: &Entries<K, V>) -> Changes<K, V>
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
