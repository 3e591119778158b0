//! Every pair checked and measured.

use std::{net::IpAddr, time::Duration};

use anyhow::Result;
use mesh_tests::{Party, Topology, ping, traffic};
use serde::Serialize;

const PINGS: usize = 50;
const PING_PAYLOAD: usize = 56;
const PATIENCE: Duration = Duration::from_secs(1);
/// Compared by hash at both ends.
const TRANSFER: usize = 1 << 20;
/// How long throughput is measured for each pair.
const BULK: Duration = Duration::from_millis(100);

#[derive(Debug, Serialize)]
pub struct HostRow {
    pub name: String,
    pub underlay: String,
    pub overlay: Vec<IpAddr>,
    pub attach_mode: String,
    pub containers: Vec<ContainerRow>,
}

#[derive(Debug, Serialize)]
pub struct ContainerRow {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub mtu: u32,
}

/// One direction between two parties. Faults of both address families, measurements over IPv4.
#[derive(Debug, Serialize)]
pub struct Pair {
    pub from: String,
    pub to: String,
    pub target: IpAddr,
    /// Whether its packets cross the underlay.
    pub encapsulated: bool,
    pub pings_sent: usize,
    pub pings_answered: usize,
    pub rtt_us: Option<Percentiles>,
    /// Sent over TCP and found the same at the other end, compared by hash; 0 if anything failed.
    pub tcp_verified_bytes: usize,
    /// Largest UDP packet sent, with IP header; exactly the MTU.
    pub udp_packet_bytes: u32,
    pub throughput_bits_per_second: Option<f64>,
    /// What did not work, empty if all did.
    pub faults: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

pub fn hosts(mesh: &Topology) -> Result<Vec<HostRow>> {
    let row = |host: &mesh_tests::Host| {
        let node = mesh.cluster.nodes.iter().find(|node| node.name == host.name);
        let container = |c: &mesh_tests::Container| {
            let Party { name, addresses, mtu, .. } = c.party()?;
            Ok(ContainerRow { name, addresses, mtu })
        };
        Ok(HostRow {
            name: host.name.clone(),
            underlay: node.map(|node| node.underlay.clone()).unwrap_or_default(),
            overlay: host.overlay_addresses()?,
            attach_mode: host.status()?["attach_mode"].as_str().unwrap_or_default().to_owned(),
            containers: host.containers.iter().map(container).collect::<Result<_>>()?,
        })
    };
    mesh.hosts.iter().map(row).collect()
}

/// Containers to containers, then hosts to containers. `progress`: pairs done, of all, and what is
/// next.
pub fn all_pairs(mesh: &Topology, progress: impl Fn(usize, usize, &str)) -> Result<Vec<Pair>> {
    let containers = mesh.parties()?;
    let hosts = mesh.hosts.iter().map(mesh_tests::Host::party).collect::<Result<Vec<_>>>()?;
    let senders = containers.iter().chain(&hosts);
    let all = containers.len() * (containers.len() - 1 + hosts.len());
    let mut pairs = Vec::new();
    for from in senders {
        progress(pairs.len(), all, &format!("{} to all containers", from.name));
        let others = containers.iter().filter(|to| to.name != from.name);
        for to in others {
            pairs.push(one_pair(from, to)?);
        }
    }
    Ok(pairs)
}

fn one_pair(from: &Party, to: &Party) -> Result<Pair> {
    let (target, mtu) = (to.address(false)?, from.mtu.min(to.mtu));
    let pings = ping::ping(&from.netns, target, PINGS, PING_PAYLOAD, PATIENCE)?;
    let mut faults = Vec::new();
    if pings.received() < pings.sent {
        faults.push(format!("{} of {} pings answered", pings.received(), pings.sent));
    }
    // Where not even a ping is answered, the rest would only be waited for.
    let reached = pings.received() > 0;
    for target in to.addresses.iter().filter(|_| reached) {
        let fault = |e: anyhow::Error| format!("{e:#}");
        let tcp = traffic::tcp_transfer(&from.netns, &to.netns, *target, TRANSFER);
        faults.extend(tcp.err().map(fault));
        let udp = traffic::expect_udp(&from.netns, &to.netns, *target, mtu);
        faults.extend(udp.err().map(fault));
        if target.is_ipv6() {
            faults.extend(ping::expect_ping(&from.netns, *target).err().map(fault));
        }
    }
    let throughput =
        reached.then(|| traffic::tcp_throughput(&from.netns, &to.netns, target, BULK).ok());
    let host = |party: &Party| party.name.split('c').next().unwrap_or_default().to_owned();
    Ok(Pair {
        from: from.name.clone(),
        to: to.name.clone(),
        target,
        encapsulated: host(from) != host(to),
        pings_sent: pings.sent,
        pings_answered: pings.received(),
        rtt_us: percentiles(&pings),
        tcp_verified_bytes: if faults.is_empty() { TRANSFER } else { 0 },
        udp_packet_bytes: mtu,
        throughput_bits_per_second: throughput.flatten(),
        faults,
    })
}

fn percentiles(pings: &ping::Report) -> Option<Percentiles> {
    let us = |p| Some(pings.percentile(p)?.as_secs_f64() * 1e6);
    Some(Percentiles { p50: us(0.5)?, p90: us(0.9)?, p99: us(0.99)?, max: us(1.0)? })
}
