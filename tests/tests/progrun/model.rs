//! What should become of a packet: written from the cluster's file, DESIGN.md and the RFCs, knowing
//! nothing of the programs, their maps or how those are filled.

pub mod clamp;
pub mod flood;
mod receive;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_common::verdict::{
    DropReason::{self, *},
    Verdict,
};
use mesh_userspace::config::{Cluster, Vni};

use super::{
    counters::Counter::{self, EndpointRx, EndpointTx, PeerTx},
    packet::{ARP, IPV6, Mac, eth, ethertype, ip, ip_with},
    spec::{BLUE_VNI, H4, HOST, OLD_GRETAP, OLD_VXLAN, PORTS, Peer, Port, SIX_VNI, Spec},
    wire::Carried,
};

/// What is expected of a packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Expected {
    pub verdict: Verdict,
    pub reason: Option<DropReason>,
    pub counted: Vec<Counter>,
    pub frame: Frame,
    /// An address behind a peer that is a switch is known from now on, by its network.
    pub learned: Option<(u32, IpAddr, Peer, Mac)>,
}

/// What leaves.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// Nothing that the model speaks of.
    Any,
    /// These bytes.
    Bytes(Vec<u8>),
    /// To a peer.
    To(Box<Carried>),
}

impl Expected {
    pub fn ok(verdict: Verdict, counted: &[Counter]) -> Self {
        let counted = counted.to_vec();
        Self { verdict, reason: None, counted, frame: Frame::Any, learned: None }
    }

    pub fn drop(reason: DropReason) -> Self {
        Self { reason: Some(reason), ..Self::ok(Verdict::Drop, &[]) }
    }

    pub fn to(self, carried: Carried) -> Self {
        Self { frame: Frame::To(Box::new(carried)), ..self }
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

pub enum Place {
    Here,
    Peer(Peer),
}

/// The inner packet: addresses, ECN, and how long its headers make a segment at least.
pub struct Ip {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ecn: u8,
    headers: usize,
}

impl Model<'_> {
    /// A frame that `port` sends. `gso_size`: payload of its segments, or 0.
    pub fn sends(&self, port: Option<Port>, frame: &[u8], gso_size: usize) -> Expected {
        let Some(port) = port else { return Expected::drop(UnknownPort) };
        let packet = &frame[14..];
        match be16(frame, 12) {
            0x0806 => self.asked_by_arp(port, packet),
            0x86dd if is_neighbour_message(packet) => self.solicitation(port, packet),
            ethertype @ (0x0800 | 0x86dd) => match parse(ethertype, packet) {
                None => Expected::drop(Truncated),
                Some(_) if may_hide_nd(packet) => Expected::drop(NoReply),
                Some(ip) => self.forward(port, &ip, packet, gso_size),
            },
            _ => Expected::drop(NotIp),
        }
    }

    fn forward(&self, port: Port, ip: &Ip, packet: &[u8], gso_size: usize) -> Expected {
        if self.is_flooded(port.vni, ip.dst)
            && (port.has(ip.src) || flood::is_own_on_link(port, ip))
        {
            return self.flood(port, ip, packet);
        }
        if !port.has(ip.src) {
            return Expected::drop(if is_multicast(ip.dst) { Multicast } else { SpoofedSource });
        }
        let len = packet.len();
        let too_big = |mtu| len > mtu && (gso_size == 0 || gso_size + ip.headers > mtu);
        let outcome = match self.place(port.vni, ip.dst) {
            None if is_multicast(ip.dst) => Expected::drop(Multicast),
            None => Expected::drop(NoRoute),
            Some(Place::Here) => match endpoint(port.vni, ip.dst) {
                None => Expected::drop(NoEndpoint),
                Some(to) if to.id == port.id => Expected::drop(Hairpin),
                Some(_) if too_big(self.spec.mtu(port.vni)) => Expected::drop(TooBig),
                Some(to) => Expected {
                    frame: Frame::Bytes(self.to_endpoint(to, packet)),
                    ..Expected::ok(handed_to(to), &[EndpointRx(to.id)])
                },
            },
            Some(Place::Peer(H4)) => Expected::drop(PeerIncomplete),
            Some(Place::Peer(peer)) if too_big(self.spec.path_mtu(peer, port.vni)) => {
                Expected::drop(TooBig)
            }
            Some(Place::Peer(peer)) => self.encap(port, peer, ip.dst, packet, gso_size),
        };
        outcome.with(EndpointTx(port.id))
    }

    fn encap(
        &self,
        port: Port,
        peer: Peer,
        dst: IpAddr,
        packet: &[u8],
        gso_size: usize,
    ) -> Expected {
        let packet = self.clamped_to(peer, port.vni, packet);
        let mut carried = Carried::packet(self.spec, peer, port.vni, &packet);
        if self.spec.is_switch(peer) {
            match known_mac(port.vni, dst) {
                Some(mac) => carried.macs[0] = mac,
                None => return Expected::drop(Unresolved).to(self.question(port, peer, dst)),
            }
        }
        // The kernel grows no super-packet that a test makes.
        if gso_size != 0 {
            return Expected::drop(NoRoom);
        }
        Expected::ok(Verdict::Encap, &[PeerTx(peer.index)]).to(carried)
    }

    /// Who has `target`? From the port's own address, and from the gateway's MAC as all that it sends.
    pub fn question(&self, port: Port, peer: Peer, target: IpAddr) -> Carried {
        let own = self.spec.gateway_mac();
        let (dst, proto, mut inner) = match target {
            IpAddr::V4(target) => {
                let sender = port.v4.unwrap_or(Ipv4Addr::UNSPECIFIED);
                ([0xff; 6], ARP, arp(1, (own, sender), ([0; 6], target)))
            }
            IpAddr::V6(target) => {
                let [.., a, b, c] = target.octets();
                let sender = port.v6.unwrap_or(Ipv6Addr::UNSPECIFIED);
                ([0x33, 0x33, 0xff, a, b, c], IPV6, solicitation(own, sender, target))
            }
        };
        // Room for the checksum that a card may be told to write: padding behind ARP, and an option that
        // nobody knows in neighbour discovery, whose message ends with the packet.
        inner.resize(inner.len() + 160, 0);
        if proto == IPV6 {
            inner[4..6].copy_from_slice(&192u16.to_be_bytes());
            inner[72..74].copy_from_slice(&[253, 20]);
            sum_icmpv6(&mut inner);
        }
        let tunnel = self.spec.tunnel(peer, port.vni);
        Carried { peer, vni: port.vni, tunnel, macs: [dst, own], proto, inner }
    }

    /// The frame for an endpoint.
    pub fn to_endpoint(&self, to: Port, packet: &[u8]) -> Vec<u8> {
        eth(to.mac, self.spec.gateway_mac(), ethertype(packet), packet)
    }

    fn asked_by_arp(&self, port: Port, packet: &[u8]) -> Expected {
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

    /// The node whose subnet an address is in.
    pub fn place(&self, vni: u32, addr: IpAddr) -> Option<Place> {
        let has = |node: &usize| self.subnets(*node, vni).any(|net| net.contains(&addr));
        Some(match (0..self.cluster.nodes.len()).find(has)? {
            0 => Place::Here,
            n => Place::Peer(self.spec.peers()[n - 1]),
        })
    }

    pub fn subnets(&self, node: usize, vni: u32) -> impl Iterator<Item = ipnet::IpNet> {
        self.cluster.nodes[node].subnets_of(Vni::new(vni).unwrap())
    }
}

impl Port {
    pub fn has(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(v4) => self.v4 == Some(v4),
            IpAddr::V6(v6) => self.v6 == Some(v6),
        }
    }
}

pub fn endpoint(vni: u32, addr: IpAddr) -> Option<Port> {
    PORTS.into_iter().find(|p| p.vni == vni && p.has(addr))
}

/// Addresses behind switches that are known from the start, by their network.
pub const KNOWN: [(u32, Peer, &str); 10] = [
    (0, OLD_VXLAN, "10.42.197.9"),
    (0, OLD_VXLAN, "fd42:0:0:6::9"),
    (BLUE_VNI, OLD_VXLAN, "10.42.197.9"),
    (BLUE_VNI, OLD_VXLAN, "fd43:0:0:6::9"),
    (SIX_VNI, OLD_VXLAN, "fd49:0:0:6::9"),
    (0, OLD_GRETAP, "10.42.199.9"),
    (0, OLD_GRETAP, "fd42:0:0:8::9"),
    (BLUE_VNI, OLD_GRETAP, "10.42.199.9"),
    (BLUE_VNI, OLD_GRETAP, "fd43:0:0:8::9"),
    (SIX_VNI, OLD_GRETAP, "fd49:0:0:8::9"),
];

/// Their MACs.
pub fn known_mac(vni: u32, addr: IpAddr) -> Option<Mac> {
    let is_it = |known: &(u32, Peer, &str)| (known.0, known.2.parse()) == (vni, Ok(addr));
    let at = KNOWN.iter().position(is_it)?;
    Some([2, 0, 9, 0, 0, at as u8])
}

/// ARP for IPv4 over Ethernet (RFC 826).
pub fn arp(op: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let (from, to) = (sender.1.octets(), target.1.octets());
    let fixed = [0, 1, 8, 0, 6, 4];
    [&fixed[..], &op.to_be_bytes(), &sender.0, &from, &target.0, &to].concat()
}

/// A neighbour solicitation (RFC 4861, 4.3) to the solicited-node address (RFC 4291, 2.7.1).
pub fn solicitation(mac: Mac, src: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let mut group: Ipv6Addr = "ff02::1:ff00:0".parse().unwrap();
    group |= Ipv6Addr::from([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c]);
    neighbour_message([135, 0, 0, 0], [src, group], target, (1, mac))
}

/// A neighbour advertisement (RFC 4861, 4.4), with the flags router, solicited and override.
pub fn advertisement(mac: Mac, dst: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    neighbour_message([136, 0xe0, 0, 0], [target, dst], target, (2, mac))
}

/// `kind`: the type, then the bytes of the flags.
pub fn neighbour_message(
    [kind, flags @ ..]: [u8; 4],
    [src, dst]: [Ipv6Addr; 2],
    target: Ipv6Addr,
    (option, mac): (u8, Mac),
) -> Vec<u8> {
    let head = [kind, 0, 0, 0, flags[0], flags[1], flags[2], 0];
    let body = [&head[..], &target.octets(), &[option, 1], &mac].concat();
    let mut packet = ip_with(ip(src, dst, 0), 58, &body);
    packet[7] = 255;
    sum_icmpv6(&mut packet);
    packet
}

/// Sets the checksum of a message behind a plain IPv6 header.
fn sum_icmpv6(packet: &mut [u8]) {
    let (header, rest) = etherparse::Icmpv6Header::from_slice(&packet[40..]).unwrap();
    let ends = [8, 24].map(|at| v6(&packet[at..]).octets());
    let sum = header.icmp_type.calc_checksum(ends[0], ends[1], rest).unwrap();
    packet[42..44].copy_from_slice(&sum.to_be_bytes());
}

pub fn handed_to(port: Port) -> Verdict {
    if port.id == HOST.id { Verdict::Host } else { Verdict::Deliver }
}

/// Router and neighbour solicitation and advertisement, and redirect (RFC 4861).
pub fn is_neighbour_message(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6
        && packet[6] == 58
        && packet.get(40).is_some_and(|kind| (133..=137).contains(kind))
}

/// Headers in front of it do not keep one from being believed (RFC 7113, 2.1), where it has made no hop; but
/// a fragment's does (RFC 6980).
pub fn may_hide_nd(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6 && matches!(packet[6], 0 | 43 | 60) && packet[7] == 255
}

pub fn parse(ethertype: u16, packet: &[u8]) -> Option<Ip> {
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
pub fn is_multicast(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.octets()[0] >= 224,
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn v4(bytes: &[u8]) -> Ipv4Addr {
    Ipv4Addr::from(*bytes.first_chunk::<4>().unwrap())
}

pub fn v6(bytes: &[u8]) -> Ipv6Addr {
    Ipv6Addr::from(*bytes.first_chunk::<16>().unwrap())
}
