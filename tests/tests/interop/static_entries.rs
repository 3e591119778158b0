//! VXLAN as Docker and flannel have it: nobody learns and nobody asks, each address and each MAC of
//! the others has been entered.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use mesh_tests::{
    Encap, Host, Options, Party, Topology, Underlay, foreign,
    foreign::{BRIDGE, Net},
    ping,
    scenario::bare,
};

use crate::{cut_on_the_underlay, expect_all_reach, expect_large_transfers, far_end};

const LARGE: usize = 8 << 20;
/// As Docker has it on an underlay of 1500.
const MTU: u32 = 1450;
/// As that of an interface of flannel's.
const ROUTER: &str = "02:00:5e:00:53:01";
const DEVICE: &str = "vx0";

/// Of the gateways of the first two hosts.
const MESH_MACS: [&str; 2] = ["02:6d:c0:00:02:0b", "02:6d:c0:00:02:0c"];

fn with_static_vxlan(
    lines: &[&str],
    net: Net,
    wire: impl Fn(&Host, &Topology, &[Party]) -> Result<()>,
    speak_first: impl Fn(&Topology, &[Party], &[Party]) -> Result<()>,
) {
    let options = Options { hosts: 3, encap: Encap::Vxlan, containers: 2, ..Options::DEFAULT };
    bare(options, |mesh| {
        let cluster = mesh.cluster.clone().with_foreign("h3", lines);
        mesh.cluster = cluster.clone();
        mesh.up()?;
        let ours = mesh.parties()?;
        ensure!(ours[0].mtu == MTU, "{ours:?}");
        let host = far_end(mesh)?;
        host.netns.ip_batch(&format!("link add {BRIDGE} mtu {MTU} type bridge\n"))?;
        host.netns.ip_batch(&format!("link set {BRIDGE} addrgenmode none up\n"))?;
        wire(host, mesh, &ours)?;
        let theirs = foreign::plug_into_bridge(host, &cluster, net)?;
        speak_first(mesh, &ours, &theirs)?;
        expect_all_reach(&ours, &theirs)?;
        expect_large_transfers(&ours[0], &theirs[0], LARGE)?;
        cut_on_the_underlay(mesh)?;
        expect_large_transfers(&ours[2], &theirs[1], LARGE)
    });
}

/// Containers on a bridge, and VXLAN on it, which answers for the others itself.
fn bridged(host: &Host, mesh: &Topology, ours: &[Party]) -> Result<()> {
    let local = Underlay::V4.address(3);
    host.netns.exec(&format!(
        "ip link add {DEVICE} mtu {MTU} type vxlan id 4097 local {local} dstport 4789 nolearning \
         proxy l2miss l3miss"
    ))?;
    host.netns.exec(&format!("ip link set {DEVICE} master {BRIDGE} up"))?;
    enter(host, mesh, ours)
}

/// Where each address and each MAC of mesh is.
fn enter(host: &Host, mesh: &Topology, ours: &[Party]) -> Result<()> {
    let mut neighbours = String::new();
    for (node, mac) in mesh.cluster.managed().zip(MESH_MACS) {
        host.netns
            .exec(&format!("bridge fdb add {mac} dev {DEVICE} dst {} self", node.underlay))?;
        for us in ours.iter().filter(|us| us.name.starts_with(&node.name)) {
            for ip in &us.addresses {
                _ = writeln!(neighbours, "neigh add {ip} lladdr {mac} dev {DEVICE} nud permanent");
            }
        }
    }
    host.netns.ip_batch(&neighbours)
}

/// The host routes between its containers and VXLAN: a frame to it is for its own MAC.
fn routed(host: &Host, mesh: &Topology, _ours: &[Party]) -> Result<()> {
    let local = Underlay::V4.address(3);
    host.netns.exec(&format!(
        "ip link add {DEVICE} mtu {MTU} address {ROUTER} type vxlan id 1 local {local} dstport 8472 \
         nolearning"
    ))?;
    let node = mesh.cluster.nodes.last().map(|node| node.subnet.clone()).unwrap_or_default();
    let mut lines = format!("link set {DEVICE} up\n");
    for subnet in &node {
        _ = writeln!(
            lines,
            "addr add {} dev {BRIDGE} nodad",
            subnet.replace("0/", "1/").replace("::/", "::1/")
        );
    }
    for (node, mac) in mesh.cluster.managed().zip(MESH_MACS) {
        host.netns
            .exec(&format!("bridge fdb add {mac} dev {DEVICE} dst {} self", node.underlay))?;
        for subnet in &node.subnet {
            let (network, len) = subnet.split_once('/').unwrap_or((subnet, ""));
            // Flannel names the network's first address as the next hop.
            let hop =
                if network.contains(':') { format!("{network}1") } else { network.to_owned() };
            _ = writeln!(lines, "neigh add {hop} lladdr {mac} dev {DEVICE} nud permanent");
            _ = writeln!(lines, "route add {network}/{len} via {hop} dev {DEVICE} onlink");
        }
    }
    host.netns.ip_batch(&lines)?;
    host.netns.exec("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
    Ok(())
}

#[test]
fn containers_on_a_vxlan_like_dockers_and_on_mesh_reach_each_other() {
    // An interface with `proxy` answers ARP for the containers of others, and drops what its own
    // containers answer (arp_reduce in drivers/net/vxlan): over IPv4, mesh finds those that have spoken.
    with_static_vxlan(&["vni = 4097"], Net::Link, bridged, |mesh, ours, theirs| {
        let before = mesh.hosts[0].drops("unresolved")?;
        ping::expect_no_ping(&ours[0].netns, theirs[0].address(false)?)?;
        ensure!(mesh.hosts[0].drops("unresolved")? > before, "not counted");
        let each = |one: &Party| ours.iter().try_for_each(|us| one.expect_first_word(us));
        theirs.iter().try_for_each(each)
    });
}

#[test]
fn containers_behind_a_vxlan_like_flannels_and_on_mesh_reach_each_other() {
    let mac = format!("mac = {ROUTER:?}");
    let lines = ["vni = 1", "port = 8472", &mac];
    // Behind one MAC nobody needs to be found: not even the first packet is lost.
    with_static_vxlan(&lines, Net::Gateway, routed, |_, ours, theirs| {
        ours.iter().try_for_each(|us| theirs.iter().try_for_each(|one| us.expect_reaches(one)))
    });
}
