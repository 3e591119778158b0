//! What to type on a node that does not run mesh, so that its kernel or its Open vSwitch speaks with
//! those that do. Pure.
//!
//! Where the tunnels carry Ethernet, the whole network is on one link there: a bridge, or a switch,
//! with the node's gateway address and the network's prefix. Each node that runs mesh answers for
//! its own addresses and passes no broadcast on, so the ports to them make no loop. Tunnels between
//! two foreign nodes would, and are not made here.

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    compile::{container_mtu, fnv1a, node_mac},
    config::{Cluster, Dscp, Node, Tunnel, Vni, gateway},
};

mod ip;
mod ovs;

/// The bridge or switch on the foreign node.
const BRIDGE: &str = "br-mesh";
/// Of the underlay, where the file says nothing.
pub const UNDERLAY_MTU: u32 = 1500;
/// IFNAMSIZ, without the zero at the end.
const IFNAME_MAX: usize = 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// With the kernel's own devices.
    Ip,
    /// With Open vSwitch, instead.
    Ovs,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Command {
    pub kind: Kind,
    pub command: String,
    /// What to know of it.
    #[serde(skip)]
    pub notes: Vec<&'static str>,
}

/// MTU of everything on the foreign node that leads into the mesh.
pub fn mtu(cluster: &Cluster) -> u32 {
    // One that does not fit is for a larger underlay.
    container_mtu(cluster, Vni::DEFAULT, UNDERLAY_MTU)
        .unwrap_or_else(|_| cluster.mtu.unwrap_or_default().into())
}

/// For a foreign node of the cluster: the tunnels to all that run mesh, in the cluster's own
/// network.
pub fn commands(cluster: &Cluster, node: &Node) -> Vec<Command> {
    let foreign = Foreign::new(cluster, node);
    let mut commands = ip::commands(&foreign);
    if foreign.has_ethernet() {
        commands.extend(ovs::commands(&foreign));
    }
    commands
}

/// Another node, which runs mesh, and the tunnel to it.
struct Peer<'a> {
    node: &'a Node,
    tunnel: Tunnel,
    device: String,
}

struct Foreign<'a> {
    cluster: &'a Cluster,
    node: &'a Node,
    peers: Vec<Peer<'a>>,
    mtu: u32,
    /// On the wire.
    vni: u32,
}

impl<'a> Foreign<'a> {
    fn new(cluster: &'a Cluster, node: &'a Node) -> Self {
        let peer = |peer: &'a Node| Peer {
            node: peer,
            tunnel: cluster.tunnel(node, peer),
            device: device(&peer.name),
        };
        Self {
            cluster,
            node,
            peers: cluster.nodes.iter().filter(|n| n.is_managed()).map(peer).collect(),
            mtu: mtu(cluster),
            vni: node.foreign.as_ref().and_then(|foreign| foreign.vni).unwrap_or_default(),
        }
    }

    fn has_ethernet(&self) -> bool {
        self.peers.iter().any(|peer| peer.tunnel.encap.has_ethernet())
    }

    /// The network's prefix that a subnet is a part of.
    fn whole(&self, subnet: IpNet) -> IpNet {
        let cidrs = self.cluster.networks.first().map_or(&[][..], |network| &network.cidrs);
        cidrs.iter().find(|cidr| cidr.contains(&subnet)).copied().unwrap_or(subnet)
    }

    /// Where mesh addresses frames to.
    fn mac(&self) -> [u8; 6] {
        let own = self.node.foreign.as_ref().and_then(|foreign| foreign.mac);
        own.unwrap_or_else(|| node_mac(self.node.underlay))
    }

    /// The commands that give the bridge the gateway addresses of the node's subnets, each with the
    /// prefix that is on the bridge's link.
    fn addresses(&self) -> impl Iterator<Item = String> {
        self.node.subnets_of(Vni::DEFAULT).map(|subnet| {
            let net = if self.has_ethernet() { self.whole(subnet) } else { subnet };
            let (address, len) = (gateway(subnet), net.prefix_len());
            // Nobody else has it. A route `src` an address that is still being probed is refused.
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            format!("ip address add {address}/{len} dev {BRIDGE}{nodad}")
        })
    }

    /// That containers behind the bridge are reached.
    fn forwarding(&self) -> impl Iterator<Item = String> {
        [(true, "net.ipv4.ip_forward"), (false, "net.ipv6.conf.all.forwarding")]
            .into_iter()
            .filter(|(v4, _)| {
                self.node.subnets_of(Vni::DEFAULT).any(|net| net.addr().is_ipv4() == *v4)
            })
            .map(|(_, sysctl)| format!("sysctl -w {sysctl}=1"))
    }

    /// Of the outer header, but for ECN; `None` where it is 0, as it is unless it is set.
    fn tos(&self) -> Option<String> {
        match self.cluster.dscp {
            Dscp::Copy => Some("inherit".to_owned()),
            Dscp::Set(0) => None,
            Dscp::Set(dscp) => Some(format!("{:#04x}", dscp << 2)),
        }
    }
}

/// The commands so far, all of one kind.
struct Script {
    kind: Kind,
    commands: Vec<Command>,
}

impl Script {
    fn new(kind: Kind) -> Self {
        Self { kind, commands: Vec::new() }
    }

    fn add(&mut self, command: impl Into<String>) {
        self.add_noted(command, []);
    }

    fn add_noted(
        &mut self,
        command: impl Into<String>,
        notes: impl IntoIterator<Item = &'static str>,
    ) {
        let (command, notes) = (command.into(), notes.into_iter().collect());
        self.commands.push(Command { kind: self.kind, command, notes });
    }
}

/// The same for the same node always.
fn device(name: &str) -> String {
    let readable = format!("mesh-{name}");
    match readable.len() {
        ..=IFNAME_MAX => readable,
        _ => format!("mesh{:08x}", fnv1a(name.as_bytes())),
    }
}

#[cfg(test)]
mod tests;
