//! Containers joined by what the kernel has, wired as their usual users do.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use mesh_tests::{Encap, Host, Topology, cluster::underlay};

use super::{End, UNDERLAY_MTU, both, sysctl};
use crate::{exec, setup};

/// A host's side of its container's veth.
pub const PORT: &str = "c1";
const BRIDGE: &str = "br0";
const TUNNEL: &str = "tun0";
/// Outer IPv4, UDP and VXLAN headers, and the inner Ethernet.
const VXLAN_OVERHEAD: u32 = 20 + 8 + 8 + 14;

/// Outer IPv6 or IPv4, UDP, and WireGuard's own; what wg-quick reckons with.
const WIREGUARD_OVERHEAD: u32 = 80;

/// How a container's address is chosen.
#[derive(Clone, Copy)]
pub enum Net {
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
pub fn each(topology: &Topology, f: impl Fn(&Host, usize, usize) -> Result<()>) -> Result<()> {
    topology.hosts.iter().zip(1..).try_for_each(|(host, h)| f(host, h, 3 - h))
}

/// The veth between a host and its container; the container has its address.
pub fn plug(host: &Host, h: usize, mtu: u32, net: Net) -> Result<()> {
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

/// Makes the tunnel, of that kind and with these arguments.
fn tunnel(host: &Host, mtu: u32, kind: &str, arguments: &str) -> Result<()> {
    let mut ip = host.netns.command("ip");
    ip.args(["link", "add", TUNNEL, "mtu", &mtu.to_string(), "type", kind]);
    let made = ip.args(arguments.split_whitespace()).output().context("start ip (of iproute2)")?;
    let fault = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "this kernel makes no {kind} interface: {}", fault.trim());
    Ok(())
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

pub fn kernel_gre(topology: &Topology) -> Result<()> {
    let mtu = UNDERLAY_MTU - Encap::Gre.overhead(0);
    each(topology, |host, h, o| {
        tunnel(host, mtu, "gre", &format!("local {} remote {} ttl 64", underlay(h), underlay(o)))?;
        routed_by_tunnel(host, h, o, mtu)
    })
}

pub fn kernel_wireguard(topology: &Topology) -> Result<()> {
    let mtu = UNDERLAY_MTU - WIREGUARD_OVERHEAD;
    each(topology, |host, _, _| tunnel(host, mtu, "wireguard", ""))?;
    setup::packages(setup::WIREGUARD)?;
    let keys = both(|_| Ok(exec::output(Command::new("wg").arg("genkey"))?.trim().to_owned()))?;
    each(topology, |host, h, o| {
        let (own, peer) = (file(topology, h, &keys[h - 1])?, file(topology, o, &keys[o - 1])?);
        let peer = exec::output(Command::new("wg").arg("pubkey").stdin(File::open(peer)?))?;
        host.netns.exec(&format!(
            "wg set {TUNNEL} listen-port 51820 private-key {} peer {} endpoint {}:51820 \
             allowed-ips 10.42.{o}.0/24",
            own.display(),
            peer.trim(),
            underlay(o),
        ))?;
        routed_by_tunnel(host, h, o, mtu)
    })
}

/// A private key in the topology's own folder.
fn file(topology: &Topology, h: usize, key: &str) -> Result<PathBuf> {
    let path = topology.dir.join(format!("wireguard{h}"));
    fs::write(&path, key).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn routed_by_tunnel(host: &Host, h: usize, o: usize, mtu: u32) -> Result<()> {
    host.netns.ip_batch(&format!("link set {TUNNEL} addrgenmode none\nlink set {TUNNEL} up\n"))?;
    plug(host, h, mtu, Net::Routed)?;
    route(host, h, o, &format!("dev {TUNNEL}"))
}

pub fn kernel_gretap(topology: &Topology) -> Result<()> {
    let mtu = UNDERLAY_MTU - Encap::Gretap.overhead(0);
    each(topology, |host, h, o| {
        let ends = format!("local {} remote {} ttl 64", underlay(h), underlay(o));
        tunnel(host, mtu, "gretap", &ends)?;
        plug(host, h, mtu, Net::Bridged)?;
        bridge(host, mtu)
    })
}

pub fn vxlan_bridge(topology: &Topology) -> Result<()> {
    vxlan(topology)?;
    // Where br_netfilter is not loaded there is nothing to turn off.
    let off = |host: &Host| match Path::new("/proc/sys/net/bridge").exists() {
        true => netfilter(host, "0"),
        false => Ok(()),
    };
    each(topology, |host, _, _| off(host))
}

pub fn vxlan_bridge_nf(topology: &Topology) -> Result<()> {
    // Where it is built in, or there are no modules, this fails and says nothing.
    exec::succeeds(Command::new("modprobe").arg("br_netfilter"));
    vxlan(topology)?;
    each(topology, |host, _, _| netfilter(host, "1"))
}

/// Whether iptables see what the bridges carry.
fn netfilter(host: &Host, on: &str) -> Result<()> {
    ["iptables", "ip6tables", "arptables"].into_iter().try_for_each(|protocol| {
        sysctl(&host.netns, &format!("bridge/bridge-nf-call-{protocol}"), on)
    })
}

/// As Docker and flannel have it: no learning on the tunnel, each remote MAC has an entry.
fn vxlan(topology: &Topology) -> Result<()> {
    let mtu = UNDERLAY_MTU - VXLAN_OVERHEAD;
    each(topology, |host, h, o| {
        let (local, remote) = (underlay(h), underlay(o));
        let ends = format!("id 42 local {local} remote {remote} dstport 4789 nolearning");
        tunnel(host, mtu, "vxlan", &ends)?;
        plug(host, h, mtu, Net::Bridged)?;
        bridge(host, mtu)?;
        host.netns.exec(&format!("bridge fdb add {} dev {TUNNEL} dst {remote}", mac(o)))?;
        Ok(())
    })
}
