//! Containers joined by what the kernel has, wired as their usual users do.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use mesh_tests::{Host, Topology, cluster::underlay};

use super::{End, UNDERLAY_MTU, both, sysctl};

/// A host's side of its container's veth.
const PORT: &str = "c1";
const BRIDGE: &str = "br0";
const TUNNEL: &str = "tun0";
/// Outer IPv4, UDP and VXLAN headers, and the inner Ethernet.
const VXLAN_OVERHEAD: u32 = 20 + 8 + 8 + 14;

/// How a container's address is chosen.
#[derive(Clone, Copy)]
enum Net {
    /// A subnet for each host, which routes.
    Routed,
    /// One subnet for all, bridged.
    Bridged,
}

/// Address of host `h`'s container, counted from 1.
fn address(net: Net, h: usize) -> Ipv4Addr {
    match net {
        Net::Routed => Ipv4Addr::new(10, 42, h as u8, 2),
        Net::Bridged => Ipv4Addr::new(10, 42, 0, h as u8),
    }
}

/// Locally administered, the same in each topology.
fn mac(h: usize) -> String {
    format!("02:00:0a:2a:00:{h:02x}")
}

/// Where the containers ended up.
pub fn ends(topology: &Topology) -> Result<[End; 2]> {
    both(|h| {
        let netns = topology.hosts[h].containers[0].netns.clone();
        let json = netns.exec("ip -j -4 addr show dev eth0")?;
        let links: serde_json::Value = serde_json::from_str(&json)?;
        let text = links[0]["addr_info"][0]["local"].as_str().unwrap_or_default();
        Ok(End { netns, address: text.parse::<IpAddr>()? })
    })
}

/// Each host with its number, from 1, and that of the other.
fn each(topology: &Topology, f: impl Fn(&Host, usize, usize) -> Result<()>) -> Result<()> {
    topology.hosts.iter().zip(1..).try_for_each(|(host, h)| f(host, h, 3 - h))
}

/// The veth between a host and its container; the container has its address.
fn plug(host: &Host, h: usize, mtu: u32, net: Net) -> Result<()> {
    let container = &host.containers[0].netns;
    host.netns.ip_batch(&format!(
        "link add {PORT} mtu {mtu} type veth peer name eth0 mtu {mtu} address {} netns {}\n\
         link set {PORT} addrgenmode none\n\
         link set {PORT} up\n",
        mac(h),
        container.name(),
    ))?;
    container.ip_batch(&format!(
        "link set eth0 addrgenmode none\n\
         addr add {}/24 dev eth0\n\
         link set eth0 up\n",
        address(net, h),
    ))
}

/// The host routes for its container, and the other subnet by `via`.
fn route(host: &Host, h: usize, o: usize, via: &str) -> Result<()> {
    sysctl(&host.netns, "ipv4/ip_forward", "1")?;
    host.netns.ip_batch(&format!(
        "addr add 10.42.{h}.1/24 dev {PORT}\nroute add 10.42.{o}.0/24 {via}\n"
    ))?;
    host.containers[0].netns.ip_batch(&format!("route add default via 10.42.{h}.1\n"))
}

/// Bridges the container with the tunnel.
fn bridge(host: &Host, mtu: u32) -> Result<()> {
    host.netns.ip_batch(&format!(
        "link add {BRIDGE} mtu {mtu} type bridge\n\
         link set {BRIDGE} addrgenmode none\n\
         link set {TUNNEL} addrgenmode none\n\
         link set {TUNNEL} master {BRIDGE} up\n\
         link set {PORT} master {BRIDGE}\n\
         link set {BRIDGE} up\n"
    ))
}

pub fn routed(topology: &Topology) -> Result<()> {
    each(topology, |host, h, o| {
        plug(host, h, UNDERLAY_MTU, Net::Routed)?;
        route(host, h, o, &format!("via {}", underlay(o)))
    })
}

pub fn vxlan_bridge(topology: &Topology) -> Result<()> {
    vxlan(topology, "0")
}

pub fn vxlan_bridge_nf(topology: &Topology) -> Result<()> {
    vxlan(topology, "1")
}

/// As Docker and flannel have it: no learning on the tunnel, each remote MAC has an entry.
fn vxlan(topology: &Topology, netfilter: &str) -> Result<()> {
    let mtu = UNDERLAY_MTU - VXLAN_OVERHEAD;
    each(topology, |host, h, o| {
        plug(host, h, mtu, Net::Bridged)?;
        let (local, remote) = (underlay(h), underlay(o));
        host.netns.ip_batch(&format!(
            "link add {TUNNEL} mtu {mtu} type vxlan id 42 local {local} remote {remote} \
             dstport 4789 nolearning\n"
        ))?;
        bridge(host, mtu)?;
        host.netns.exec(&format!("bridge fdb add {} dev {TUNNEL} dst {remote}", mac(o)))?;
        for protocol in ["iptables", "ip6tables", "arptables"] {
            sysctl(&host.netns, &format!("bridge/bridge-nf-call-{protocol}"), netfilter)?;
        }
        Ok(())
    })
}
