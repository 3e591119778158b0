//! What an agent holds for Docker's containers: what must be gone with them.

use std::fs;

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use mesh_common::{
    maps::{EndpointKey, FibKey},
    names,
};
use mesh_tests::docker::Docker;
use mesh_userspace::bpf::Pins;
use serde_json::Value;

#[derive(Debug, PartialEq, Eq)]
pub struct Holdings {
    /// As `mesh status` tells.
    pub endpoints: usize,
    /// Host sides of containers' interfaces.
    links: Vec<String>,
    /// Entries of maps: ports, endpoints, FIB.
    entries: [usize; 3],
    /// Endpoints that are noted in the agent's run folder, and addresses that are taken there.
    noted: usize,
    taken: usize,
}

impl Holdings {
    pub fn of(docker: &Docker, at: usize) -> Result<Self> {
        let host = &docker.topology.hosts[at];
        let inside = host.inside.context("a host with namespaces of its own")?;
        let root = format!("/proc/{inside}/root");
        let links = host.netns.exec("ip -o link show type veth")?;
        // `7: mesh3f9c@if6: ...`
        let name = |line: &str| Some(line.split([':', '@']).nth(1)?.trim().to_owned());
        let ours = links.lines().filter_map(name).filter(|name| name.starts_with("mesh"));
        let pins = Pins::new(format!("{root}{}", host.pin_dir.display()).as_ref());
        let saved = fs::read(format!("{root}{}/docker.json", host.run_dir.display()))?;
        let saved: Value = serde_json::from_slice(&saved)?;
        let pools = saved["ipam"]["pools"].as_object().context("pools")?;
        Ok(Self {
            endpoints: host.status()?["endpoints"].as_array().map_or(0, Vec::len),
            links: ours.collect(),
            entries: [
                entries::<4>(&pins, names::PORTS)?,
                entries::<{ size_of::<EndpointKey>() }>(&pins, names::ENDPOINTS)?,
                entries::<{ size_of::<FibKey>() }>(&pins, names::FIB)?,
            ],
            noted: saved["endpoints"].as_object().map_or(0, serde_json::Map::len),
            taken: pools.values().map(|p| p["taken"].as_array().map_or(0, Vec::len)).sum(),
        })
    }
}

/// Keys of `K` bytes, each with the number of its slot.
fn entries<const K: usize>(pins: &Pins, name: &str) -> Result<usize> {
    let map = MapData::from_pin(pins.map(name)).with_context(|| format!("open the map {name}"))?;
    let map = HashMap::<_, [u8; K], u32>::try_from(Map::HashMap(map))?;
    Ok(map.keys().collect::<Result<Vec<_>, _>>()?.len())
}
