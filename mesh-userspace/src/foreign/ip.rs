//! With the kernel's own tunnels and bridge.

use super::{BRIDGE, Command, Foreign, Kind, Peer, Script};
use crate::config::{Encap, Vni, gateway, mac_text};

const CHECKSUM: &str =
    "Mesh sends UDP over IPv6 without a checksum (RFC 6935), which the kernel refuses by default";
const ENCAP_LIMIT: &str = "Without the option that the kernel adds to the IPv6 header by default";
const SOURCE: &str =
    "Geneve has no `local`: the route to the other node must leave from the underlay address";

pub(super) fn commands(foreign: &Foreign<'_>) -> Vec<Command> {
    let mut script = Script::new(Kind::Ip);
    // So that frames which mesh addresses to the node are the bridge's own.
    let mac = match foreign.has_ethernet() {
        true => format!(" address {}", mac_text(foreign.mac())),
        false => String::new(),
    };
    script.add(format!("ip link add {BRIDGE}{mac} type bridge"));
    script.add(format!("ip link set {BRIDGE} mtu {} up", foreign.mtu));
    foreign.addresses().for_each(|command| script.add(command));
    foreign.forwarding().for_each(|command| script.add(command));
    let mut ports = Vec::new();
    for peer in &foreign.peers {
        match peer.tunnel.encap {
            Encap::Gre => add_gre(foreign, peer, &mut script),
            Encap::Gretap => add_gretap(foreign, peer, &mut script),
            Encap::Geneve => add_geneve(foreign, peer, &mut script),
            Encap::Vxlan => {
                let port = peer.tunnel.port;
                if !ports.contains(&port) {
                    ports.push(port);
                    add_vxlan(foreign, port, &mut script);
                }
                let (device, to) = (vxlan(port), peer.node.underlay);
                script.add(format!("bridge fdb append 00:00:00:00:00:00 dev {device} dst {to}"));
            }
        }
    }
    script.commands
}

fn add_gre(foreign: &Foreign<'_>, peer: &Peer<'_>, script: &mut Script) {
    add_gre_tunnel(foreign, peer, ["gre", "ip6gre"], script);
    let device = &peer.device;
    script.add(format!("ip link set {device} mtu {} up", foreign.mtu));
    for subnet in peer.node.subnets_of(Vni::DEFAULT) {
        let mut own = foreign.node.subnets_of(Vni::DEFAULT);
        // What is sent from elsewhere no node would take.
        if let Some(own) = own.find(|own| own.addr().is_ipv4() == subnet.addr().is_ipv4()) {
            script.add(format!("ip route add {subnet} dev {device} src {}", gateway(own)));
        }
    }
}

fn add_gretap(foreign: &Foreign<'_>, peer: &Peer<'_>, script: &mut Script) {
    add_gre_tunnel(foreign, peer, ["gretap", "ip6gretap"], script);
    add_port(foreign, &peer.device, script);
    isolate(&peer.device, script);
}

/// `kinds`: on IPv4 and on IPv6.
fn add_gre_tunnel(foreign: &Foreign<'_>, peer: &Peer<'_>, kinds: [&str; 2], script: &mut Script) {
    let (device, ttl) = (&peer.device, foreign.cluster.ttl);
    let (local, remote) = (foreign.node.underlay, peer.node.underlay);
    let key = match foreign.vni {
        0 => String::new(),
        vni => format!(" key {vni}"),
    };
    let is_ipv6 = local.is_ipv6();
    let kind = kinds[usize::from(is_ipv6)];
    let tunnel = format!("ip link add {device} type {kind} local {local} remote {remote}{key}");
    if is_ipv6 {
        let tclass = option("tclass", foreign.tos());
        let command = format!("{tunnel} hoplimit {ttl}{tclass} encaplimit none");
        script.add_noted(command, [ENCAP_LIMIT]);
    } else {
        script.add(format!("{tunnel} ttl {ttl}{}", option("tos", foreign.tos())));
    }
}

fn add_vxlan(foreign: &Foreign<'_>, port: u16, script: &mut Script) {
    let (device, vni, local) = (vxlan(port), foreign.vni, foreign.node.underlay);
    let rest = udp_options(foreign);
    let command =
        format!("ip link add {device} type vxlan id {vni} dstport {port} local {local}{rest}");
    script.add_noted(command, checksum(foreign));
    add_port(foreign, &device, script);
}

fn add_geneve(foreign: &Foreign<'_>, peer: &Peer<'_>, script: &mut Script) {
    let Peer { node, tunnel, device } = peer;
    let (vni, remote, port) = (foreign.vni, node.underlay, tunnel.port);
    let rest = udp_options(foreign);
    let command =
        format!("ip link add {device} type geneve id {vni} remote {remote} dstport {port}{rest}");
    script.add_noted(command, std::iter::once(SOURCE).chain(checksum(foreign)));
    add_port(foreign, device, script);
    isolate(device, script);
}

fn udp_options(foreign: &Foreign<'_>) -> String {
    let checksum = if foreign.node.underlay.is_ipv6() { " udp6zerocsumrx" } else { "" };
    format!(" ttl {}{}{checksum}", foreign.cluster.ttl, option("tos", foreign.tos()))
}

fn checksum(foreign: &Foreign<'_>) -> Option<&'static str> {
    foreign.node.underlay.is_ipv6().then_some(CHECKSUM)
}

fn add_port(foreign: &Foreign<'_>, device: &str, script: &mut Script) {
    script.add(format!("ip link set {device} mtu {} master {BRIDGE} up", foreign.mtu));
}

/// What one node sends to all comes from it to each other node, and needs no bridge to go on.
fn isolate(device: &str, script: &mut Script) {
    script.add(format!("bridge link set dev {device} isolated on"));
}

/// One device for all nodes with this port.
fn vxlan(port: u16) -> String {
    format!("vxlan{port}")
}

fn option(key: &str, value: Option<String>) -> String {
    value.map_or_else(String::new, |value| format!(" {key} {value}"))
}
