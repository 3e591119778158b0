//! The pinned maps, open, with the types of their keys and values.

use mesh_common::{
    maps::{
        EndpointInfo, EndpointKey, FibInfo, FibKey, FloodInfo, FloodKey, GroupInfo, GroupKey,
        LearnedInfo, LearnedKey, LpmKey, NetworkInfo, NodeInfo, PeerInfo, PeerKey, PeerSource,
        PortInfo, Traffic,
    },
    names,
    verdict::{DropReason, Hook, Verdict, drop_index, verdict_index},
};
use std::{io, path::Path};

use super::{
    BpfError,
    halves::HalvedTable,
    raw::{PerCpu, Table},
    slotted::{Slots, SlottedTable},
};

/// Key of `FIB_LPM` with its length, as the kernel has it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    bytemuck::Pod,
    bytemuck::Zeroable,
)]
#[repr(C)]
pub struct LpmPrefix {
    /// Bits of `key`: 32 for the VNI, then the 128-bit prefix length.
    pub bits: u32,
    pub key: LpmKey,
}

/// All maps of a data plane.
pub struct Tables {
    pub ports: SlottedTable<u32, PortInfo>,
    pub endpoints: SlottedTable<EndpointKey, EndpointInfo>,
    pub learned: Table<LearnedKey, LearnedInfo>,
    pub fib: SlottedTable<FibKey, FibInfo>,
    pub fib_lpm: Table<LpmPrefix, FibInfo>,
    pub peers: HalvedTable<PeerInfo>,
    pub peer_by_addr: SlottedTable<PeerKey, PeerSource>,
    pub networks: SlottedTable<u32, NetworkInfo>,
    pub node: HalvedTable<NodeInfo>,
    pub flood: SlottedTable<FloodKey, FloodInfo>,
    /// Kernel's numbers of the programs.
    pub tails: Table<u32, u32>,
    /// Filled by the programs.
    pub groups: Table<GroupKey, GroupInfo>,
    pub endpoint_stats: PerCpu<Traffic>,
    pub peer_stats: PerCpu<Traffic>,
    verdicts: PerCpu<u64>,
    drops: PerCpu<u64>,
}

impl Tables {
    /// Opens all maps in the folder `maps`.
    pub fn open(maps: &Path) -> Result<Self, BpfError> {
        fn at<T>(
            maps: &Path,
            name: &'static str,
            open: impl FnOnce(&Path) -> io::Result<T>,
        ) -> Result<T, BpfError> {
            let path = maps.join(name);
            open(&path).map_err(|source| BpfError::Pin { what: "opening the map", path, source })
        }
        Ok(Self {
            ports: SlottedTable::new(
                at(maps, names::PORTS, Table::open)?,
                at(maps, names::PORT_SLOTS, Table::open)?,
            ),
            endpoints: SlottedTable::new(
                at(maps, names::ENDPOINTS, Table::open)?,
                at(maps, names::ENDPOINT_SLOTS, Table::open)?,
            ),
            learned: at(maps, names::LEARNED, Table::open)?,
            fib: SlottedTable::new(
                at(maps, names::FIB, Table::open)?,
                at(maps, names::FIB_SLOTS, Table::open)?,
            ),
            fib_lpm: at(maps, names::FIB_LPM, Table::open)?,
            peers: HalvedTable::new(at(maps, names::PEERS, Table::open)?),
            peer_by_addr: SlottedTable::new(
                at(maps, names::PEER_BY_ADDR, Table::open)?,
                at(maps, names::PEER_SLOTS, Table::open)?,
            ),
            networks: SlottedTable::new(
                at(maps, names::NETWORKS, Table::open)?,
                at(maps, names::NETWORK_SLOTS, Table::open)?,
            ),
            node: HalvedTable::new(at(maps, names::NODE, Table::open)?),
            flood: SlottedTable::new(
                at(maps, names::FLOOD, Table::open)?,
                at(maps, names::FLOOD_SLOTS, Table::open)?,
            ),
            tails: at(maps, names::TAILS, Table::open)?,
            groups: at(maps, names::GROUPS, Table::open)?,
            endpoint_stats: at(maps, names::ENDPOINT_STATS, PerCpu::open)?,
            peer_stats: at(maps, names::PEER_STATS, PerCpu::open)?,
            verdicts: at(maps, names::VERDICTS, PerCpu::open)?,
            drops: at(maps, names::DROPS, PerCpu::open)?,
        })
    }

    /// Those with slots.
    pub(super) fn slotted(&self) -> [&dyn Slots; 6] {
        let Self { ports, endpoints, fib, peer_by_addr, networks, flood, .. } = self;
        [ports, endpoints, fib, peer_by_addr, networks, flood]
    }

    /// A grace period is over.
    pub(super) fn set_waited(&self) {
        self.slotted().iter().for_each(|table| table.set_waited());
        self.peers.set_waited();
        self.node.set_waited();
    }

    /// Packets that had this verdict at this hook.
    pub fn verdict(&self, hook: Hook, verdict: Verdict) -> Result<u64, BpfError> {
        sum(&self.verdicts, names::VERDICTS, verdict_index(hook, verdict))
    }

    /// Packets that were dropped for this reason at this hook.
    pub fn drops(&self, hook: Hook, reason: DropReason) -> Result<u64, BpfError> {
        sum(&self.drops, names::DROPS, drop_index(hook, reason))
    }

    pub fn endpoint_traffic(&self, id: u32) -> Result<Traffic, BpfError> {
        traffic(&self.endpoint_stats, names::ENDPOINT_STATS, id)
    }

    pub fn peer_traffic(&self, index: u32) -> Result<Traffic, BpfError> {
        traffic(&self.peer_stats, names::PEER_STATS, index)
    }
}

fn sum(map: &PerCpu<u64>, name: &'static str, index: u32) -> Result<u64, BpfError> {
    let cpus = map.get(index).map_err(|source| BpfError::Map { map: name, source })?;
    Ok(cpus.iter().sum())
}

fn traffic(map: &PerCpu<Traffic>, name: &'static str, index: u32) -> Result<Traffic, BpfError> {
    let cpus = map.get(index).map_err(|source| BpfError::Map { map: name, source })?;
    Ok(cpus.iter().fold(Traffic::default(), |sum, t| Traffic {
        rx_packets: sum.rx_packets + t.rx_packets,
        rx_bytes: sum.rx_bytes + t.rx_bytes,
        tx_packets: sum.tx_packets + t.tx_packets,
        tx_bytes: sum.tx_bytes + t.tx_bytes,
    }))
}
