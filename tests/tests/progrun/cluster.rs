//! The file that all worlds are made from, and what follows from it for the wire, worked out by hand.

use std::net::IpAddr;

use mesh_userspace::config::{Dscp, Encap};

use super::{
    packet::Mac,
    spec::{
        H2, H3, H4, H5, H5_MTU, ME, ME_V6, OLD_GENEVE, OLD_GENEVE_MAC, OLD_GRE, OLD_GRETAP,
        OLD_VXLAN, Peer, Spec, UNDERLAY_MTU,
    },
    wire::Tunnel,
};

const CONFIG: &str = "
[cluster]
name = 'progrun'
cidr = ['10.42.0.0/16', 'fd42::/48']
encap = 'ENCAP'
OPTIONS

[[node]]
name = 'h1'
underlay = 'NET11'
subnet = ['10.42.0.0/18', 'fd42::/64']
subnets.blue = ['10.42.0.0/18', 'fd43::/64']
subnets.six = 'fd49::/64'

[[node]]
name = 'h2'
underlay = 'NET12'
subnet = ['10.42.64.0/18', 'fd42:0:0:1::/64']
subnets.blue = ['10.42.64.0/18', 'fd43:0:0:1::/64']
subnets.six = 'fd49:0:0:1::/64'

[[node]]
name = 'h3'
underlay = 'NET13'
subnet = ['10.42.128.0/24', '10.42.130.0/24', 'fd42:0:0:2::/64', 'fd42:0:0:4::/64' MANY]
subnets.blue = ['10.42.128.0/24', 'fd43:0:0:2::/64']
subnets.six = 'fd49:0:0:2::/64'

[[node]]
name = 'h4'
underlay = 'NET14'
subnet = '10.42.192.0/24'
subnets.blue = ['10.42.192.0/24', 'fd43:0:0:3::/64']
subnets.six = 'fd49:0:0:3::/64'

[[node]]
name = 'h5'
underlay = 'NET15'
subnet = ['10.42.193.0/24', 'fd42:0:0:5::/64' EDGE]
subnets.blue = ['10.42.193.0/24', 'fd43:0:0:4::/64']
subnets.six = 'fd49:0:0:4::/64'
FOREIGN
[[network]]
name = 'blue'
vni = 7
cidr = ['10.42.0.0/16', 'fd43::/48']

[[network]]
name = 'six'
vni = 9
cidr = 'fd49::/48'
SIX
";

/// More prefix lengths than the list of them holds, so that the trie is used.
const MANY: &str = ", '10.42.194.0/25', '10.42.195.0/26', '10.42.196.0/27', \
    'fd42:0:0:a::/65', 'fd42:0:0:b::/66', 'fd42:0:0:c::/67', 'fd42:0:0:d::/68'";

const FOREIGN: &str = "
[[node]]
name = 'old-vxlan'
underlay = 'NET16'
subnet = ['10.42.197.0/24', 'fd42:0:0:6::/64']
subnets.blue = ['10.42.197.0/24', 'fd43:0:0:6::/64']
subnets.six = 'fd49:0:0:6::/64'
managed = false
encap = 'vxlan'
vni = 42

[[node]]
name = 'old-geneve'
underlay = 'NET17'
subnet = ['10.42.198.0/24', 'fd42:0:0:7::/64']
subnets.blue = ['10.42.198.0/24', 'fd43:0:0:7::/64']
subnets.six = 'fd49:0:0:7::/64'
managed = false
encap = 'geneve'
vni = 43
port = 7000
mac = '02:00:5e:00:53:01'
clamp_mss = true

[[node]]
name = 'old-gretap'
underlay = 'NET18'
subnet = ['10.42.199.0/24', 'fd42:0:0:8::/64']
subnets.blue = ['10.42.199.0/24', 'fd43:0:0:8::/64']
subnets.six = 'fd49:0:0:8::/64'
managed = false
encap = 'gretap'

[[node]]
name = 'old-gre'
underlay = 'NET19'
subnet = ['10.42.200.0/24', 'fd42:0:0:9::/64']
subnets.blue = ['10.42.200.0/24', 'fd43:0:0:9::/64']
subnets.six = 'fd49:0:0:9::/64'
managed = false
encap = 'gre'
vni = 44
clamp_mss = true

[[link]]
nodes = ['h1', 'h3']
encap = 'geneve'
port = 6082
";

/// The file of a world.
pub fn config(spec: Spec) -> String {
    let number = |key, value: Option<u16>| value.map(|v| format!("{key} = {v}\n"));
    let dscp = match spec.dscp {
        Dscp::Copy => None,
        Dscp::Set(dscp) => Some(format!("dscp = {dscp}\n")),
    };
    let flood = if spec.flood { "flood = 'all'\n" } else { "" };
    let options = [number("port", spec.port), number("ttl", spec.ttl.map(u16::from)), dscp];
    CONFIG
        .replace("FOREIGN", if spec.foreign { FOREIGN } else { "" })
        .replace("MANY", if spec.many_lengths { MANY } else { "" })
        .replace("OPTIONS", &(options.into_iter().flatten().collect::<String>() + flood))
        .replace("SIX", flood)
        .replace("EDGE", if spec.flood { ", '10.42.255.0/24'" } else { "" })
        .replace("ENCAP", spec.encap.name())
        .replace("NET", if spec.ipv6 { "2001:db8::" } else { "192.0.2." })
}

impl Spec {
    pub fn me(self) -> IpAddr {
        if self.ipv6 { ME_V6.into() } else { ME.into() }
    }

    pub fn peers(self) -> &'static [Peer] {
        let all = &[H2, H3, H4, H5, OLD_VXLAN, OLD_GENEVE, OLD_GRETAP, OLD_GRE];
        if self.foreign { all } else { &all[..4] }
    }

    /// How a packet of a network goes to a peer.
    pub fn tunnel(self, peer: Peer, vni: u32) -> Tunnel {
        let own = |vni_of_0: u32| if vni == 0 { vni_of_0 } else { vni };
        let (encap, port, vni) = match peer {
            OLD_VXLAN => (Encap::Vxlan, None, own(42)),
            OLD_GENEVE => (Encap::Geneve, Some(7000), own(43)),
            OLD_GRETAP => (Encap::Gretap, None, vni),
            OLD_GRE => (Encap::Gre, None, own(44)),
            H3 if self.foreign => (Encap::Geneve, Some(6082), vni),
            _ => (self.encap, self.port, vni),
        };
        let tunnel = Tunnel::new(encap, vni);
        Tunnel { port: port.unwrap_or(tunnel.port), ..tunnel }
    }

    /// The UDP ports that are listened to, what is on them, and whether nobody else is.
    pub fn ports(self) -> Vec<(u16, Encap, bool)> {
        let is_ours = |port| self.shared_port != Some(port);
        let mut ports = Vec::new();
        let used = self.peers().iter().map(|peer| self.tunnel(*peer, 0));
        let mine = Tunnel { port: self.port.unwrap_or_default(), ..Tunnel::new(self.encap, 0) };
        let mine = if self.port.is_some() { mine } else { Tunnel::new(self.encap, 0) };
        for tunnel in used.chain([mine]).filter(Tunnel::is_udp) {
            ports.push((tunnel.port, tunnel.encap, is_ours(tunnel.port)));
        }
        // A neighbour may have the next version of the file already.
        for (port, encap) in [(4789, Encap::Vxlan), (6081, Encap::Geneve)] {
            if ports.iter().all(|(taken, ..)| *taken != port) {
                ports.push((port, encap, false));
            }
        }
        ports
    }

    /// Who asks, and is asked, for MACs.
    pub fn is_switch(self, peer: Peer) -> bool {
        [OLD_VXLAN, OLD_GRETAP].contains(&peer)
    }

    /// Where inner frames to a peer go, if it is no switch.
    pub fn inner_mac(self, peer: Peer) -> Mac {
        if peer == OLD_GENEVE { OLD_GENEVE_MAC } else { gateway_mac_of(peer.at(self)) }
    }

    pub fn gateway_mac(self) -> Mac {
        gateway_mac_of(self.me())
    }

    /// Bytes on the wire to a peer beyond those of the packet.
    pub fn overhead(self, peer: Peer, vni: u32) -> usize {
        self.tunnel(peer, vni).overhead(self.ipv6)
    }

    /// Largest packet of a network's containers.
    pub fn mtu(self, vni: u32) -> usize {
        let overheads = self.peers().iter().map(|peer| self.overhead(*peer, vni));
        let gretap = Tunnel::new(Encap::Gretap, 0).overhead(self.ipv6);
        UNDERLAY_MTU as usize - overheads.chain([gretap]).max().unwrap_or_default()
    }

    /// Largest packet to a peer.
    pub fn path_mtu(self, peer: Peer, vni: u32) -> usize {
        self.mtu(vni).min(self.whole_path_mtu(peer, vni))
    }

    /// The same whatever the containers' interfaces have.
    pub fn whole_path_mtu(self, peer: Peer, vni: u32) -> usize {
        let underlay = if peer == H5 { H5_MTU } else { UNDERLAY_MTU };
        underlay as usize - self.overhead(peer, vni)
    }
}

impl Peer {
    pub fn at(self, spec: Spec) -> IpAddr {
        if spec.ipv6 { self.underlay_v6.into() } else { self.underlay.into() }
    }
}

/// Locally administered, and a node's own: from DESIGN.md.
fn gateway_mac_of(underlay: IpAddr) -> Mac {
    mesh_userspace::compile::node_mac(underlay)
}
