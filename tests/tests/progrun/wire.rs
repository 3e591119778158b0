//! What goes around a packet, written from the RFCs.

use std::net::IpAddr;

use etherparse::{IpHeaders, Ipv6FlowLabel};
use mesh_userspace::config::{Dscp, Encap};

use super::{
    packet::{Mac, TEB, eth, ethertype, gre, ip, ip_with},
    spec::{H5, NEXT_HOP_MAC, OLD_GRETAP, Peer, Spec, UNDERLAY_MAC},
};

const UDP: u8 = 17;
const GRE: u8 = 47;

/// MACs of frames from a peer: nobody's.
pub const THEIR_MACS: [Mac; 2] = [[6; 6], [8; 6]];
/// A source port as senders choose it.
pub const SOURCE_PORT: u16 = 50_000;

/// What stands between the outer IP header and the inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub encap: Encap,
    /// UDP destination port, if it has one.
    pub port: u16,
    /// As on the wire.
    pub vni: u32,
}

impl Tunnel {
    /// With the port that IANA gave it.
    pub fn new(encap: Encap, vni: u32) -> Self {
        let port = match encap {
            Encap::Gre | Encap::Gretap => 0,
            Encap::Vxlan => 4789,
            Encap::Geneve => 6081,
        };
        Self { encap, port, vni }
    }

    pub fn is_udp(&self) -> bool {
        self.port != 0
    }

    /// Bytes, with the outer IP header.
    pub fn overhead(&self, ipv6: bool) -> usize {
        let key = if self.vni == 0 { 0 } else { 4 };
        let ip = if ipv6 { 40 } else { 20 };
        ip + match self.encap {
            Encap::Gre => 4 + key,
            Encap::Gretap => 4 + key + 14,
            Encap::Vxlan | Encap::Geneve => 8 + 8 + 14,
        }
    }

    /// The outer protocol, and what follows its header. `macs`: of the inner frame, if there is one.
    pub fn around(&self, source: u16, macs: [Mac; 2], proto: u16, inner: &[u8]) -> (u8, Vec<u8>) {
        let key = (self.vni != 0).then_some(self.vni);
        let frame = eth(macs[0], macs[1], proto, inner);
        match self.encap {
            Encap::Gre => (GRE, gre(proto, key, inner)),
            Encap::Gretap => (GRE, gre(TEB, key, &frame)),
            Encap::Vxlan => (UDP, datagram([source, self.port], &vxlan(self.vni, &frame))),
            Encap::Geneve => {
                (UDP, datagram([source, self.port], &geneve(TEB, self.vni, &[], &frame)))
            }
        }
    }

    /// An outer IP packet as a peer sends it.
    pub fn packet(&self, [src, dst]: [IpAddr; 2], tos: u8, proto: u16, inner: &[u8]) -> Vec<u8> {
        let (protocol, body) = self.around(SOURCE_PORT, THEIR_MACS, proto, inner);
        ip_with(ip(src, dst, tos), protocol, &body)
    }
}

/// UDP without a checksum (RFC 768; over IPv6 by RFC 6935).
pub fn datagram([src, dst]: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    [&src.to_be_bytes()[..], &dst.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}

/// VXLAN (RFC 7348, 5): the I flag, 24 bits reserved, 24 bits of VNI, 8 bits reserved.
pub fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), frame].concat()
}

/// Geneve (RFC 8926, 3.4): version 0 and the length of the options in words, no flags, the protocol,
/// 24 bits of VNI, 8 bits reserved.
pub fn geneve(proto: u16, vni: u32, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let first = [(options.len() / 4) as u8, 0];
    [&first[..], &proto.to_be_bytes(), &(vni << 8).to_be_bytes(), options, payload].concat()
}

/// What a frame to a peer carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    pub peer: Peer,
    /// The network; the peer may have another number for it.
    pub vni: u32,
    /// The number on the wire, if it is not the one to send with.
    pub tunnel: Tunnel,
    /// Destination and source of the inner frame, if there is one.
    pub macs: [Mac; 2],
    pub proto: u16,
    pub inner: Vec<u8>,
}

impl Carried {
    /// An IP packet of a container.
    pub fn packet(spec: Spec, peer: Peer, vni: u32, inner: &[u8]) -> Self {
        let macs = [spec.inner_mac(peer), spec.gateway_mac()];
        let (tunnel, proto) = (spec.tunnel(peer, vni), ethertype(inner));
        Self { peer, vni, tunnel, macs, proto, inner: inner.to_vec() }
    }

    /// The frame. What only has a range is taken from `seen`, and must be in it: the UDP source port
    /// (RFC 7348, 4 and RFC 6335, 6: 49152 to 65535), and the flow label (RFC 6437).
    #[track_caller]
    pub fn frame(&self, spec: Spec, seen: &[u8]) -> Vec<u8> {
        let source = if self.tunnel.is_udp() { source_port(spec, seen) } else { 0 };
        let (protocol, body) = self.tunnel.around(source, self.macs, self.proto, &self.inner);
        let mut header = ip(spec.me(), self.peer.at(spec), self.tos(spec));
        let ttl = spec.ttl.unwrap_or(64);
        match &mut header {
            IpHeaders::Ipv4(header, _) => header.time_to_live = ttl,
            IpHeaders::Ipv6(header, _) => {
                header.hop_limit = ttl;
                header.flow_label = Ipv6FlowLabel::try_new(flow_label(seen)).unwrap();
            }
        }
        let packet = ip_with(header, protocol, &body);
        eth(NEXT_HOP_MAC, UNDERLAY_MAC, ethertype(&packet), &packet)
    }

    /// ECN is always copied (RFC 6040, 4.1), DSCP as the file says (RFC 2983). Messages of our own
    /// have neither.
    fn tos(&self, spec: Spec) -> u8 {
        let inner = match (self.proto, &self.inner[..]) {
            (0x0800, [_, tos, ..]) => *tos,
            (0x86dd, [a, b, ..]) => a << 4 | b >> 4,
            _ => 0,
        };
        match spec.dscp {
            Dscp::Copy => inner,
            Dscp::Set(dscp) => dscp << 2 | inner & 3,
        }
    }

    /// Asserts that a frame is this one. Where the next hop's MAC is not known, the kernel writes
    /// the Ethernet header.
    #[track_caller]
    pub fn assert_in(&self, spec: Spec, frame: &[u8]) {
        let expected = self.frame(spec, frame);
        let is_resolved = ![H5, OLD_GRETAP].contains(&self.peer);
        let from = if is_resolved { 0 } else { 14 };
        assert_eq!(frame[from..], expected[from..], "to {self:02x?}");
    }
}

#[track_caller]
pub fn source_port(spec: Spec, frame: &[u8]) -> u16 {
    let at = if spec.ipv6 { 54 } else { 34 };
    let port = u16::from_be_bytes([frame[at], frame[at + 1]]);
    assert!(port >= 49152, "source port {port}");
    port
}

pub fn flow_label(frame: &[u8]) -> u32 {
    u32::from_be_bytes([0, frame[15] & 15, frame[16], frame[17]])
}
