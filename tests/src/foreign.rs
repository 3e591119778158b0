//! A host that does not run mesh: the commands that mesh prints for it, typed there, and containers
//! behind what they make.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{ClusterFile, Encap, Host, Party, Underlay, cluster::Node, ping::ping, wait};

/// What the commands make on such a host.
pub const BRIDGE: &str = "br-mesh";

/// Who makes the tunnels there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Kernel,
    OpenVswitch,
}

/// What `mesh check --peer-commands` prints for this host.
pub fn commands(host: &Host, cluster: &ClusterFile, kind: Kind) -> Result<Vec<String>> {
    host.write_config(&cluster.to_string())?;
    let config = host.config.to_str().context("path")?;
    let args = ["check", "--config", config, "--peer-commands", &host.name, "--json"];
    let report: Value = serde_json::from_str(&host.run_mesh(&args)?)?;
    let kind = match kind {
        Kind::Kernel => "ip",
        Kind::OpenVswitch => "ovs",
    };
    let all = report["commands"].as_array().into_iter().flatten();
    let chosen = all.filter(|command| command["kind"] == kind);
    let text = chosen.filter_map(|command| command["command"].as_str().map(str::to_owned));
    let text: Vec<_> = text.collect();
    ensure!(!text.is_empty(), "no command for {}: {report}", host.name);
    Ok(text)
}

/// Joins the host to the mesh by the kernel's own tunnels.
pub fn join(host: &Host, cluster: &ClusterFile) -> Result<()> {
    for command in commands(host, cluster, Kind::Kernel)? {
        host.netns.exec(&command)?;
    }
    wait_addresses(host)
}

/// Waits until the bridge's addresses are its own, which takes IPv6 a while.
pub fn wait_addresses(host: &Host) -> Result<()> {
    let what = format!("addresses on {BRIDGE} of {}", host.name);
    wait::until(&what, Duration::from_secs(10), || {
        let text = host.netns.exec(&format!("ip addr show dev {BRIDGE} tentative"));
        let text = text.map_err(|e| format!("{e:#}"))?;
        if text.is_empty() { Ok(()) } else { Err(text) }
    })
}

/// Whether this kernel has the tunnel of its own, else why not.
pub fn kernel_has(host: &Host, encap: Encap, underlay: Underlay) -> Result<(), String> {
    let kind = match (encap, underlay) {
        (Encap::Gre, Underlay::V4) => "gre",
        (Encap::Gre, Underlay::V6) => "ip6gre",
        (Encap::Gretap, Underlay::V4) => "gretap",
        (Encap::Gretap, Underlay::V6) => "ip6gretap",
        (Encap::Vxlan, _) => "vxlan dstport 9",
        (Encap::Geneve, _) => "geneve",
    };
    let id = if kind.contains("gre") { "" } else { " id 1" };
    let (local, remote) = (underlay.address(98), underlay.address(99));
    let local = if encap == Encap::Geneve { String::new() } else { format!(" local {local}") };
    let add = format!("ip link add probe0 type {kind}{id}{local} remote {remote}");
    match host.netns.exec(&add) {
        Ok(_) => host.netns.exec("ip link del probe0").map(|_| ()).map_err(|e| format!("{e:#}")),
        Err(error) if says_unknown(&error.to_string()) => {
            Err(format!("this kernel has no {} device", kind.split(' ').next().unwrap_or(kind)))
        }
        // A test will say what it is.
        Err(_) => Ok(()),
    }
}

/// As the kernel says it, with and without netlink's own words.
fn says_unknown(error: &str) -> bool {
    error.contains("not supported") || error.contains("Unknown device type")
}

/// How a container behind the bridge sees the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// All of it on its link, as with a bridge that tunnels of Ethernet are ports of.
    Link,
    /// By way of its host, which routes.
    Gateway,
}

impl Net {
    pub fn of(encap: Encap) -> Self {
        if encap.has_ethernet() { Self::Link } else { Self::Gateway }
    }
}

/// Plugs all containers of the host into its bridge, and gives them addresses of the host's subnets,
/// the second, third, ...
pub fn plug(host: &Host, cluster: &ClusterFile, net: Net) -> Result<Vec<Party>> {
    let node = node(host, cluster)?;
    let mtu = host.netns.mtu(BRIDGE)?;
    let mut parties = Vec::new();
    for (container, c) in host.containers.iter().zip(1..) {
        let port = format!("c{c}");
        host.netns.ip_batch(&format!(
            "link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
             link set {port} addrgenmode none\nlink set {port} up\n",
            container.netns.name()
        ))?;
        let addresses = configure(node, cluster, c + 1, net, |lines| {
            container.netns.ip_batch(&format!("link set eth0 addrgenmode none up\n{lines}"))
        })?;
        container.netns.wait_operational("eth0")?;
        let (name, netns) = (container.name.clone(), container.netns.clone());
        parties.push(Party { name, netns, addresses, mtu });
    }
    Ok(parties)
}

/// [`plug`] for a bridge of the kernel's.
pub fn plug_into_bridge(host: &Host, cluster: &ClusterFile, net: Net) -> Result<Vec<Party>> {
    let parties = plug(host, cluster, net)?;
    for c in 1..=parties.len() {
        host.netns.exec(&format!("ip link set c{c} master {BRIDGE}"))?;
    }
    host.netns.wait_operational(BRIDGE)?;
    if net == Net::Gateway {
        wait_neighbours(host, &parties)?;
    }
    Ok(parties)
}

/// Waits until the host reaches all of its own containers, as those do that it routes for.
fn wait_neighbours(host: &Host, parties: &[Party]) -> Result<()> {
    for address in parties.iter().flat_map(|party| &party.addresses) {
        let what = format!("{address} to be reached by its own host");
        wait::until(&what, Duration::from_secs(10), || {
            let report = ping(&host.netns, *address, 1, 56, Duration::from_millis(200));
            let received = report.map_err(|e| format!("{e:#}"))?.received();
            if received == 1 { Ok(()) } else { Err("no answer".into()) }
        })?;
    }
    Ok(())
}

/// The host itself, at its bridge.
pub fn party(host: &Host, cluster: &ClusterFile) -> Result<Party> {
    let subnets = node(host, cluster)?.subnet.iter();
    let addresses = subnets.map(|subnet| nth(subnet, 1)).collect::<Result<_>>()?;
    let (name, netns) = (host.name.clone(), host.netns.clone());
    Ok(Party { name, mtu: netns.mtu(BRIDGE)?, netns, addresses })
}

fn node<'c>(host: &Host, cluster: &'c ClusterFile) -> Result<&'c Node> {
    let found = cluster.nodes.iter().find(|node| node.name == host.name);
    found.with_context(|| format!("no node {} in the file", host.name))
}

/// Gives `n`th addresses to an `eth0` by lines of `ip`; returns them.
fn configure(
    node: &Node,
    cluster: &ClusterFile,
    n: u8,
    net: Net,
    ip: impl FnOnce(&str) -> Result<()>,
) -> Result<Vec<IpAddr>> {
    let (mut lines, mut addresses) = (String::new(), Vec::new());
    for (subnet, cidr) in node.subnet.iter().zip(&cluster.cidr) {
        let len = |prefix: &String| prefix.rsplit('/').next().unwrap_or_default().to_owned();
        let (address, gateway) = (nth(subnet, n)?, nth(subnet, 1)?);
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        lines += &match net {
            Net::Link => format!("addr add {address}/{} dev eth0{nodad}\n", len(cidr)),
            Net::Gateway => format!(
                "addr add {address}/{} dev eth0{nodad}\nroute add default via {gateway}\n",
                len(subnet)
            ),
        };
        addresses.push(address);
    }
    ip(&lines)?;
    Ok(addresses)
}

/// The `n`th address of a subnet.
fn nth(subnet: &str, n: u8) -> Result<IpAddr> {
    let base = subnet.split('/').next().unwrap_or_default();
    let last = |bytes: &mut [u8]| bytes.last_mut().into_iter().for_each(|byte| *byte += n);
    Ok(match base.parse().with_context(|| format!("subnet {subnet}"))? {
        IpAddr::V4(ip) => {
            let mut bytes = ip.octets();
            last(&mut bytes);
            bytes.into()
        }
        IpAddr::V6(ip) => {
            let mut bytes = ip.octets();
            last(&mut bytes);
            bytes.into()
        }
    })
}

impl Party {
    /// The first packets to somebody: mesh makes the very first to an address behind a switch the
    /// question for its MAC, so that one may be lost to each address, and no more.
    pub fn expect_first_word(&self, to: &Self) -> Result<()> {
        for target in &to.addresses {
            ping(&self.netns, *target, 1, 56, Duration::from_secs(1))?;
            let report = ping(&self.netns, *target, 3, 56, wait::patient(Duration::from_secs(3)))?;
            let received = report.received();
            let what = || format!("{} -> {} ({target})", self.name, to.name);
            ensure!(received == 3, "{}: {received} of 3 pings after the first", what());
        }
        Ok(())
    }
}
