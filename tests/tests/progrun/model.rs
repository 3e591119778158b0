//! What should become of a packet: written from the cluster's file, DESIGN.md and the RFCs, knowing
//! nothing of the programs, their maps or how those are filled.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_common::verdict::{
    DropReason::{self, *},
    Verdict,
};
use mesh_userspace::config::{Cluster, Vni};

use super::{
    counters::Counter::{self, EndpointRx, EndpointTx, PeerRx, PeerTx},
    world::{
        H2, H3, H4, H5, H5_MTU, HOST, ME, MTU, PORTS, Peer, Port, Spec, UNDERLAY_MAC, UNDERLAY_MTU,
    },
};

/// What is expected of a packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Expected {
    pub verdict: Verdict,
    pub reason: Option<DropReason>,
    pub counted: Vec<Counter>,
}

impl Expected {
    fn ok(verdict: Verdict, counted: &[Counter]) -> Self {
        Self { verdict, reason: None, counted: counted.to_vec() }
    }

    fn drop(reason: DropReason) -> Self {
        Self { verdict: Verdict::Drop, reason: Some(reason), counted: vec![] }
    }

    fn with(mut self, counter: Counter) -> Self {
        self.counted.push(counter);
        self.counted.sort();
        self
    }
}

/// Who is where.
pub struct Model<'a> {
    pub cluster: &'a Cluster,
    pub spec: Spec,
}

enum Place {
    Here,
    Peer(Peer),
}

/// The inner packet: addresses, ECN, and how long its headers make a segment at least.
struct Ip {
    src: IpAddr,
    dst: IpAddr,
    ecn: u8,
    headers: usize,
}

impl Model<'_> {
    /// A frame that `port` sends. `gso_size`: payload of its segments, or 0.
    pub fn sends(&self, port: Option<Port>, frame: &[u8], gso_size: usize) -> Expected {
        let Some(port) = port else { return Expected::drop(UnknownPort) };
        let packet = &frame[14..];
        match be16(frame, 12) {
            0x0806 => self.arp(port, packet),
            0x86dd if is_neighbour_message(packet) => self.solicitation(port, packet),
            ethertype @ (0x0800 | 0x86dd) => match parse(ethertype, packet) {
                None => Expected::drop(Truncated),
                Some(ip) => self.forward(port, &ip, packet.len(), gso_size),
            },
            _ => Expected::drop(NotIp),
        }
    }

    fn forward(&self, port: Port, ip: &Ip, len: usize, gso_size: usize) -> Expected {
        if !port.has(ip.src) {
            return Expected::drop(if is_multicast(ip.dst) { Multicast } else { SpoofedSource });
        }
        let too_big = |mtu| len > mtu && (gso_size == 0 || gso_size + ip.headers > mtu);
        let own_mtu = MTU.min(self.path_mtu(UNDERLAY_MTU, port));
        let outcome = match self.place(port.vni, ip.dst) {
            None if is_multicast(ip.dst) => Expected::drop(Multicast),
            None => Expected::drop(NoRoute),
            Some(Place::Here) => match endpoint(port.vni, ip.dst) {
                None => Expected::drop(NoEndpoint),
                Some(to) if to.id == port.id => Expected::drop(Hairpin),
                Some(_) if too_big(own_mtu) => Expected::drop(TooBig),
                Some(to) => Expected::ok(handed_to(to), &[EndpointRx(to.id)]),
            },
            Some(Place::Peer(peer)) => {
                let underlay = if peer == H5 { H5_MTU } else { UNDERLAY_MTU };
                match () {
                    () if peer == H4 => Expected::drop(PeerIncomplete),
                    () if too_big(own_mtu.min(self.path_mtu(underlay, port))) => {
                        Expected::drop(TooBig)
                    }
                    // The kernel grows no super-packet that a test makes.
                    () if gso_size != 0 => Expected::drop(NoRoom),
                    () => Expected::ok(Verdict::Encap, &[PeerTx(peer.index)]),
                }
            }
        };
        outcome.with(EndpointTx(port.id))
    }

    /// What of the underlay's MTU is left inside.
    fn path_mtu(&self, underlay: u32, port: Port) -> usize {
        let key = if port.vni == 0 { 0 } else { 4 };
        underlay as usize - 24 - key - if self.spec.gretap { 14 } else { 0 }
    }

    fn arp(&self, port: Port, packet: &[u8]) -> Expected {
        let Some(arp) = packet.first_chunk::<28>() else { return Expected::drop(Truncated) };
        if arp[..8] != [0, 1, 8, 0, 6, 4, 0, 1] {
            return Expected::drop(NoReply);
        }
        let (sender, target) = (v4(&arp[14..]), v4(&arp[24..]));
        if !sender.is_unspecified() && !port.has(sender.into()) {
            return Expected::drop(SpoofedSource);
        }
        self.answer(port, target.into())
    }

    fn solicitation(&self, port: Port, packet: &[u8]) -> Expected {
        let src = v6(&packet[8..]);
        if packet[40] != 135 || packet[7] != 255 || src.is_unspecified() {
            return Expected::drop(NoReply);
        }
        if !port.has(src.into()) && !src.is_unicast_link_local() {
            return Expected::drop(SpoofedSource);
        }
        match packet.get(48..64) {
            None => Expected::drop(Truncated),
            Some(target) => self.answer(port, v6(target).into()),
        }
    }

    /// Everything that the asker may send to is behind the gateway.
    fn answer(&self, port: Port, target: IpAddr) -> Expected {
        let answers = match self.place(port.vni, target) {
            None => false,
            Some(Place::Peer(_)) => true,
            Some(Place::Here) => {
                let is_gateway = self
                    .subnets(0, port.vni)
                    .any(|net| mesh_userspace::config::gateway(net) == target);
                let others = endpoint(port.vni, target).is_some_and(|to| to.id != port.id);
                others || is_gateway
            }
        };
        if answers { Expected::ok(Verdict::Answer, &[]) } else { Expected::drop(NoReply) }
    }

    /// A frame that comes in on the underlay.
    pub fn receives(&self, frame: &[u8], gso_size: usize) -> Expected {
        let pass = || Expected::ok(Verdict::Pass, &[]);
        let outer = &frame[14..];
        if frame[..6] != UNDERLAY_MAC || be16(frame, 12) != 0x0800 || outer[9] != 47 {
            return pass();
        }
        let (src, dst) = (v4(&outer[12..]), v4(&outer[16..]));
        let peer = [H2, H3, H4, H5].into_iter().find(|p| p.underlay == src);
        let refused = |reason| match peer {
            _ if dst != ME => pass(),
            Some(_) => Expected::drop(reason),
            None if self.spec.foreign_gre => pass(),
            None => Expected::drop(UnknownPeer),
        };
        if outer[0] != 0x45 {
            return refused(UnsupportedOuter);
        }
        if be16(outer, 6) & 0x3fff != 0 {
            return refused(OuterFragment);
        }
        let gre = &outer[20..];
        if gre.len() < 4 {
            return refused(Truncated);
        }
        let (vni, header) = match be16(gre, 0) {
            0 => (0, 4),
            0x2000 if gre.len() < 8 => return refused(Truncated),
            0x2000 => (u32::from_be_bytes(gre[4..8].try_into().unwrap()), 8),
            flags if flags & 7 != 0 => return pass(),
            _ => return refused(UnsupportedOuter),
        };
        let is_network = self.cluster.networks.iter().any(|n| n.vni.get() == vni);
        if !is_network || header == 8 && vni == 0 {
            return refused(UnknownVni);
        }
        match peer {
            Some(peer) if dst == ME => {
                self.decap(peer, vni, outer[1] & 3, be16(gre, 2), &gre[header..], gso_size)
            }
            _ => refused(UnknownPeer),
        }
    }

    fn decap(
        &self,
        peer: Peer,
        vni: u32,
        outer_ecn: u8,
        proto: u16,
        inner: &[u8],
        gso_size: usize,
    ) -> Expected {
        let (proto, packet) = match (proto, inner.get(..14)) {
            (0x6558, None) => return Expected::drop(Truncated),
            (0x6558, Some(eth)) => (be16(eth, 12), &inner[14..]),
            _ => (proto, inner),
        };
        if proto != 0x0800 && proto != 0x86dd {
            return Expected::drop(NotIp);
        }
        let Some(ip) = parse(proto, packet) else { return Expected::drop(Truncated) };
        match self.place(vni, ip.src) {
            Some(Place::Peer(owner)) if owner == peer => {}
            _ => return Expected::drop(SourceNotPeers),
        }
        match endpoint(vni, ip.dst) {
            None if is_multicast(ip.dst) => Expected::drop(Multicast),
            None => Expected::drop(NoEndpoint),
            Some(_) if outer_ecn == 3 && ip.ecn == 0 => Expected::drop(Congestion),
            Some(_) if gso_size != 0 => Expected::drop(NoRoom),
            Some(to) => Expected::ok(handed_to(to), &[EndpointRx(to.id), PeerRx(peer.index)]),
        }
    }

    /// The node whose subnet an address is in.
    fn place(&self, vni: u32, addr: IpAddr) -> Option<Place> {
        let node = (0..5).find(|node| self.subnets(*node, vni).any(|net| net.contains(&addr)))?;
        Some(match node {
            0 => Place::Here,
            n => Place::Peer([H2, H3, H4, H5][n - 1]),
        })
    }

    fn subnets(&self, node: usize, vni: u32) -> impl Iterator<Item = ipnet::IpNet> {
        self.cluster.nodes[node].subnets_of(Vni::new(vni).unwrap())
    }
}

impl Port {
    fn has(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(v4) => self.v4 == Some(v4),
            IpAddr::V6(v6) => self.v6 == Some(v6),
        }
    }
}

fn endpoint(vni: u32, addr: IpAddr) -> Option<Port> {
    PORTS.into_iter().find(|p| p.vni == vni && p.has(addr))
}

fn handed_to(port: Port) -> Verdict {
    if port.id == HOST.id { Verdict::Host } else { Verdict::Deliver }
}

/// Router and neighbour solicitation and advertisement, and redirect (RFC 4861).
fn is_neighbour_message(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6
        && packet[6] == 58
        && packet.get(40).is_some_and(|kind| (133..=137).contains(kind))
}

fn parse(ethertype: u16, packet: &[u8]) -> Option<Ip> {
    let (src, dst, tos, header, next): (IpAddr, IpAddr, _, _, _) = if ethertype == 0x0800 {
        let fixed = packet.first_chunk::<20>()?;
        let header = usize::from(fixed[0] & 15) * 4;
        if fixed[0] >> 4 != 4 || header < 20 || packet.len() < header {
            return None;
        }
        (v4(&fixed[12..]).into(), v4(&fixed[16..]).into(), fixed[1], header, fixed[9])
    } else {
        let fixed = packet.first_chunk::<40>()?;
        if fixed[0] >> 4 != 6 {
            return None;
        }
        let tos = fixed[0] << 4 | fixed[1] >> 4;
        (v6(&fixed[8..]).into(), v6(&fixed[24..]).into(), tos, 40, fixed[6])
    };
    let transport = match next {
        6 => packet.get(header + 12).map_or(20, |offset| usize::from(offset >> 4) * 4),
        _ => 8,
    };
    Some(Ip { src, dst, ecn: tos & 3, headers: header + transport })
}

/// 255.255.255.255 and all that is reserved are no more than multicast to us.
fn is_multicast(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.octets()[0] >= 224,
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn v4(bytes: &[u8]) -> Ipv4Addr {
    Ipv4Addr::from(*bytes.first_chunk::<4>().unwrap())
}

fn v6(bytes: &[u8]) -> Ipv6Addr {
    Ipv6Addr::from(*bytes.first_chunk::<16>().unwrap())
}
