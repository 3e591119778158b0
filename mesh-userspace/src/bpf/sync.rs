//! Reads the maps, and carries out a plan on them.

use std::hash::Hash;

use bytemuck::{AnyBitPattern, NoUninit, Pod};
use mesh_common::{
    maps::{EndpointKey, FloodInfo, FloodKey, GroupInfo, GroupKey, LearnedInfo, LearnedKey},
    names,
    slots::{Slot, SlotKey},
};

use super::{
    BpfError, grace,
    raw::{Store, Table},
    slotted::SlottedTable,
    tables::Tables,
};
use crate::plan::{Changes, Entries, Map, ORDER, Observed, Plan};

/// Everything the maps contain.
pub fn observe(tables: &Tables) -> Result<Observed, BpfError> {
    Ok(Observed {
        node: tables.node.used().map_err(|e| failed(names::NODE, e))?,
        ports: slotted(&tables.ports, names::PORTS)?,
        endpoints: slotted(&tables.endpoints, names::ENDPOINTS)?,
        fib: slotted(&tables.fib, names::FIB)?,
        fib_lpm: entries(&tables.fib_lpm, names::FIB_LPM)?,
        peers: peers(tables)?,
        peer_by_addr: slotted(&tables.peer_by_addr, names::PEER_BY_ADDR)?,
        networks: slotted(&tables.networks, names::NETWORKS)?,
        flood: slotted(&tables.flood, names::FLOOD)?,
    })
}

/// Carries out all changes in the plan's order, and then has keys take their own slots.
///
/// It waits for a grace period, some 15 ms, if an entry got another value, whatever their number, and
/// the first time.
pub async fn apply(tables: &Tables, plan: &Plan) -> Result<(), BpfError> {
    let (slotted, failed) = (tables.slotted(), |source| failed("slots", source));
    let mut is_new = false;
    for table in slotted {
        is_new |= table.prepare().map_err(failed)?;
    }
    if is_new {
        wait(tables).await?;
    }
    change(tables, plan)?;
    if slotted.iter().any(|table| table.is_freed()) {
        wait(tables).await?;
    }
    if slotted.iter().any(|table| table.is_wanted()) {
        slotted.iter().try_for_each(|table| table.fill()).map_err(failed)?;
        grace::order().await.map_err(failed)?;
        slotted.iter().try_for_each(|table| table.publish()).map_err(failed)?;
    }
    Ok(())
}

async fn wait(tables: &Tables) -> Result<(), BpfError> {
    grace::wait().await.map_err(|source| failed("slots", source))?;
    tables.set_waited();
    Ok(())
}

fn change(tables: &Tables, plan: &Plan) -> Result<(), BpfError> {
    for map in ORDER {
        match map {
            Map::Node => set(&tables.node, names::NODE, &plan.node),
            Map::Peers => set(&tables.peers, names::PEERS, &plan.peers),
            Map::Fib => set(&tables.fib, names::FIB, &plan.fib),
            Map::FibLpm => set(&tables.fib_lpm, names::FIB_LPM, &plan.fib_lpm),
            Map::Networks => set(&tables.networks, names::NETWORKS, &plan.networks),
            Map::PeerByAddr => set(&tables.peer_by_addr, names::PEER_BY_ADDR, &plan.peer_by_addr),
            Map::Flood => set(&tables.flood, names::FLOOD, &plan.flood),
            Map::Endpoints => set(&tables.endpoints, names::ENDPOINTS, &plan.endpoints),
            Map::Ports => set(&tables.ports, names::PORTS, &plan.ports),
        }?;
    }
    for map in ORDER.into_iter().rev() {
        match map {
            Map::Node => remove(&tables.node, names::NODE, &plan.node),
            Map::Peers => remove(&tables.peers, names::PEERS, &plan.peers),
            Map::Fib => remove(&tables.fib, names::FIB, &plan.fib),
            Map::FibLpm => remove(&tables.fib_lpm, names::FIB_LPM, &plan.fib_lpm),
            Map::Networks => remove(&tables.networks, names::NETWORKS, &plan.networks),
            Map::PeerByAddr => {
                remove(&tables.peer_by_addr, names::PEER_BY_ADDR, &plan.peer_by_addr)
            }
            Map::Flood => remove(&tables.flood, names::FLOOD, &plan.flood),
            Map::Endpoints => remove(&tables.endpoints, names::ENDPOINTS, &plan.endpoints),
            Map::Ports => remove(&tables.ports, names::PORTS, &plan.ports),
        }?;
    }
    // The next node to get the number starts to count at zero.
    for index in &plan.peers.remove {
        tables.peer_stats.clear(*index).map_err(|e| failed(names::PEER_STATS, e))?;
    }
    Ok(())
}

fn failed(map: &'static str, source: std::io::Error) -> BpfError {
    BpfError::Map { map, source }
}

fn entries<K, V>(table: &Table<K, V>, name: &'static str) -> Result<Entries<K, V>, BpfError>
where
    K: NoUninit + AnyBitPattern + Eq + Hash,
    V: NoUninit + AnyBitPattern,
{
    table.entries(|_| true).map_err(|e| failed(name, e))
}

fn slotted<K, V>(table: &SlottedTable<K, V>, name: &'static str) -> Result<Entries<K, V>, BpfError>
where
    K: SlotKey + Pod + Ord + Hash,
    V: Pod,
    Slot<K, V>: Pod,
{
    table.entries().map_err(|e| failed(name, e))
}

fn set<K, V>(
    table: &impl Store<K, V>,
    name: &'static str,
    changes: &Changes<K, V>,
) -> Result<(), BpfError> {
    table.set_all(&changes.set).map_err(|e| failed(name, e))
}

fn remove<K, V>(
    table: &impl Store<K, V>,
    name: &'static str,
    changes: &Changes<K, V>,
) -> Result<(), BpfError> {
    table.remove_all(&changes.remove).map_err(|e| failed(name, e))
}

/// All peers, by index.
pub fn peers(tables: &Tables) -> Result<Entries<u32, mesh_common::maps::PeerInfo>, BpfError> {
    tables.peers.used().map_err(|e| failed(names::PEERS, e))
}

/// All networks, by VNI.
pub fn networks(tables: &Tables) -> Result<Entries<u32, mesh_common::maps::NetworkInfo>, BpfError> {
    slotted(&tables.networks, names::NETWORKS)
}

/// All ports, by interface.
pub fn ports(tables: &Tables) -> Result<Entries<u32, mesh_common::maps::PortInfo>, BpfError> {
    slotted(&tables.ports, names::PORTS)
}

/// Who gets copies of broadcast and multicast.
pub fn flood(tables: &Tables) -> Result<Entries<FloodKey, FloodInfo>, BpfError> {
    slotted(&tables.flood, names::FLOOD)
}

/// Who asked for which multicast.
pub fn groups(tables: &Tables) -> Result<Entries<GroupKey, GroupInfo>, BpfError> {
    entries(&tables.groups, names::GROUPS)
}

/// Removes and corrects some of these.
pub fn change_groups(
    tables: &Tables,
    changes: &Changes<GroupKey, GroupInfo>,
) -> Result<(), BpfError> {
    remove(&tables.groups, names::GROUPS, changes)?;
    set(&tables.groups, names::GROUPS, changes)
}

/// What ports of bridges told of themselves.
pub fn learned(tables: &Tables) -> Result<Entries<LearnedKey, LearnedInfo>, BpfError> {
    entries(&tables.learned, names::LEARNED)
}

/// Forgets that, of these, and what a port was given for it that it may not have. A program that goes
/// by what is forgotten has ended by then.
pub async fn forget_learned(
    tables: &Tables,
    keys: &[LearnedKey],
    not_given: &[EndpointKey],
) -> Result<(), BpfError> {
    tables.learned.remove_all(keys).map_err(|e| failed(names::LEARNED, e))?;
    if !not_given.is_empty() {
        wait(tables).await?;
        let failed = |e| failed(names::ENDPOINTS, e);
        tables.endpoints.remove_all(not_given).map_err(failed)?;
    }
    Ok(())
}

/// This node's own entry; all zero if there is none.
pub fn observe_node(tables: &Tables) -> Result<mesh_common::maps::NodeInfo, BpfError> {
    let node = tables.node.get(&0).map_err(|e| failed(names::NODE, e))?;
    Ok(node.unwrap_or_default())
}
