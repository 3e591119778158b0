//! With Open vSwitch, for the tunnels that carry Ethernet. Its ordinary forwarding (the action NORMAL,
//! which a new switch has) is all that is needed.

use super::{BRIDGE, Command, Foreign, Kind, Peer, Script};
use crate::config::{Encap, mac_text};

pub(super) fn commands(foreign: &Foreign<'_>) -> Vec<Command> {
    let mut script = Script::new(Kind::Ovs);
    let mac = quoted(mac_text(foreign.mac()));
    script.add(format!(
        "ovs-vsctl add-br {BRIDGE} -- set bridge {BRIDGE} other-config:hwaddr={mac} -- set interface \
         {BRIDGE} mtu_request={}",
        foreign.mtu
    ));
    script.add(format!("ip link set {BRIDGE} up"));
    foreign.addresses().for_each(|command| script.add(command));
    foreign.forwarding().for_each(|command| script.add(command));
    for peer in &foreign.peers {
        if let Some(kind) = kind(peer.tunnel.encap) {
            script.add(port(foreign, peer, kind));
        }
    }
    script.commands
}

/// As Open vSwitch calls it, on either family.
fn kind(encap: Encap) -> Option<&'static str> {
    match encap {
        Encap::Gre => None,
        Encap::Gretap => Some("gre"),
        Encap::Vxlan => Some("vxlan"),
        Encap::Geneve => Some("geneve"),
    }
}

fn port(foreign: &Foreign<'_>, peer: &Peer<'_>, kind: &str) -> String {
    let device = &peer.device;
    let (local, remote) = (quoted(foreign.node.underlay), quoted(peer.node.underlay));
    let mut options = vec![format!("local_ip={local}"), format!("remote_ip={remote}")];
    // In GRE, a key of 0 would be sent, and network 0 has none.
    if foreign.vni != 0 || peer.tunnel.encap.is_udp() {
        options.push(format!("key={}", foreign.vni));
    }
    if peer.tunnel.encap.is_udp() {
        options.push(format!("dst_port={}", peer.tunnel.port));
    }
    options.push(format!("ttl={}", foreign.cluster.ttl));
    options.extend(foreign.tos().map(|tos| format!("tos={tos}")));
    let options: String = options.iter().map(|option| format!(" options:{option}")).collect();
    // What one node sends to all comes from it to each other node: it does not go from port to port.
    format!(
        "ovs-vsctl add-port {BRIDGE} {device} -- set port {device} protected=true -- set interface \
         {device} type={kind}{options}"
    )
}

/// Its database takes colons for its own, unless in quotes that the shell leaves there.
fn quoted(value: impl ToString) -> String {
    let value = value.to_string();
    if value.contains(':') { format!("'\"{value}\"'") } else { value }
}
