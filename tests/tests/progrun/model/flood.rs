//! What should become of broadcast and multicast, where it is carried.

use std::net::IpAddr;

use mesh_common::verdict::{DropReason::*, Verdict};

use super::{Expected, Frame, Ip, Model, receive::marked};
use crate::{
    counters::Counter::{self, EndpointRx, EndpointTx, PeerRx},
    packet::{Mac, eth, ethertype},
    spec::{PORTS, Peer, Port, SIX_VNI},
};

impl Model<'_> {
    /// Is it for many, in a network that carries that?
    pub fn is_flooded(&self, vni: u32, dst: IpAddr) -> bool {
        self.spec.flood
            && [0, SIX_VNI].contains(&vni)
            && match dst {
                // 10.42.255.255 is the last of the cidr, which network 9 has not.
                IpAddr::V4(dst) => {
                    dst.is_multicast()
                        || dst.is_broadcast()
                        || vni == 0 && dst.octets() == [10, 42, 255, 255]
                }
                // Not of interface-local scope, and none that is reserved.
                IpAddr::V6(dst) => dst.is_multicast() && dst.octets()[1] & 15 >= 2,
            }
    }

    /// What a port sends: a copy to each other port of the network.
    pub fn flood(&self, port: Port, ip: &Ip, packet: &[u8]) -> Expected {
        if packet.len() > self.spec.mtu(port.vni) {
            return Expected::drop(TooBig).with(EndpointTx(port.id));
        }
        self.copied(port.vni, Some(port), ip, packet).with(EndpointTx(port.id))
    }

    /// What a peer sends: a copy to each port of the network.
    pub fn flooded(
        &self,
        peer: Peer,
        vni: u32,
        ip: &Ip,
        (outer_ecn, gso_size): (u8, usize),
        packet: &[u8],
        learned: Option<(u32, IpAddr, Peer, Mac)>,
    ) -> Expected {
        if outer_ecn == 3 && ip.ecn == 0 {
            return Expected::drop(Congestion);
        }
        if gso_size != 0 {
            return Expected { learned, ..Expected::drop(NoRoom) };
        }
        let packet = marked(ip, packet, outer_ecn);
        let copied = self.copied(vni, None, ip, &packet).with(PeerRx(peer.index));
        Expected { learned, ..copied }
    }

    fn copied(&self, vni: u32, but: Option<Port>, ip: &Ip, packet: &[u8]) -> Expected {
        // Nobody asked for any group; nodes without mesh get all that nodes with it send.
        let is_limited = is_limited(ip.dst);
        if is_limited && !(but.is_some() && self.spec.foreign) {
            return Expected::drop(NoMember);
        }
        let is_other = |port: &&Port| {
            port.vni == vni && !is_limited && but.is_none_or(|but| but.id != port.id)
        };
        let counted: Vec<Counter> =
            PORTS.iter().filter(is_other).map(|port| EndpointRx(port.id)).collect();
        let frame = eth(group_mac(ip.dst), self.spec.gateway_mac(), ethertype(packet), packet);
        Expected { frame: Frame::Bytes(frame), ..Expected::ok(Verdict::Flood, &counted) }
    }
}

/// Only members get it (RFC 4541).
fn is_limited(dst: IpAddr) -> bool {
    match dst {
        IpAddr::V4(dst) => dst.is_multicast() && dst.octets()[..3] != [224, 0, 0],
        IpAddr::V6(dst) => dst.octets()[1] & 15 > 2,
    }
}

/// The link-local address that follows from the port's MAC (RFC 4291, appendix A).
pub fn is_own_on_link(port: Port, ip: &Ip) -> bool {
    let [a, b, c, d, e, f] = port.mac;
    let own = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    ip.src == IpAddr::from(own)
}

/// RFC 1112, 6.4; RFC 2464, 7.
pub fn group_mac(dst: IpAddr) -> Mac {
    match dst {
        IpAddr::V4(dst) if dst.is_multicast() => {
            let [_, b, c, d] = dst.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V4(_) => [0xff; 6],
        IpAddr::V6(dst) => {
            let [.., a, b, c, d] = dst.octets();
            [0x33, 0x33, a, b, c, d]
        }
    }
}
