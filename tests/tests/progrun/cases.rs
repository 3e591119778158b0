//! Packets at random: of all shapes that the programs tell apart, and with a few bytes wrong.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use mesh_userspace::config::Encap;
use proptest::{
    prelude::*,
    sample::{Index, select},
};

use super::{
    model::arp,
    outer::STRANGER,
    packet::{ARP, IPV4, IPV6, TEB, eth, ethertype, gre, ip, ip_with},
    spec::{A, ME, ME_V6, NEXT_HOP_MAC, PORTS, Peer, Port, STRAY, Spec, UNDERLAY_MAC},
    wire::{datagram, geneve, vxlan},
    world::gateway_mac,
};

/// A packet at a hook.
#[derive(Clone)]
pub struct Case {
    /// On the underlay if none.
    pub from: Option<u32>,
    pub frame: Vec<u8>,
    pub gso_size: u32,
}

/// As in `tests/corpus/frames.txt`.
impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = self.from.map_or("underlay".to_owned(), |ifindex| ifindex.to_string());
        write!(f, "{from} {} ", self.gso_size)?;
        self.frame.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Case {
    /// Of the three words that its `Debug` writes.
    pub fn parse(words: &[&str]) -> Option<Self> {
        let [from, gso_size, hex] = words else { return None };
        let byte = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        Some(Self {
            from: if *from == "underlay" { None } else { Some(from.parse().ok()?) },
            gso_size: gso_size.parse().ok()?,
            frame: (0..hex.len()).step_by(2).map(byte).collect::<Option<_>>()?,
        })
    }
}

fn addresses_v4() -> impl Strategy<Value = Ipv4Addr> {
    let known = "10.42.0.1 10.42.0.2 10.42.0.3 10.42.0.5 10.42.0.77 10.42.64.9 10.42.127.255 10.42.128.1 \
        10.42.129.1 10.42.130.1 10.42.192.1 10.42.193.1 10.42.194.1 10.42.196.31 10.42.250.1 10.42.197.9 10.42.197.10 10.42.198.9 10.42.199.9 10.42.199.8 10.42.200.9 \
        192.0.2.11 192.0.2.12 0.0.0.0 127.0.0.1 224.0.0.1 239.1.2.3 10.42.255.255 255.255.255.255 8.8.8.8";
    let known: Vec<_> = known.split_whitespace().map(|s| s.parse().unwrap()).collect();
    prop_oneof![20 => select(known), 1 => any::<Ipv4Addr>()]
}

fn addresses_v6() -> impl Strategy<Value = Ipv6Addr> {
    let known = "fd42::1 fd42::2 fd42::5 fd42::77 fd42:0:0:1::9 fd42:0:0:2::9 fd42:0:0:3::9 fd42:0:0:4::9 \
        fd42:0:0:5::9 fd42:0:0:a::9 fd42:0:0:d::9 fd42:0:0:6::9 fd42:0:0:6::10 fd42:0:0:7::9 \
        fd42:0:0:8::9 fd42:0:0:8::8 fd42:0:0:9::9 fd43:0:0:6::9 fd43::2 fd43::3 fd43:0:0:1::9 fd49::2 \
        fd49:0:0:1::9 fe80::1 fe80::ff:fe00:101 ff02::1 ff0e::1:3 ff01::1 :: ::1 ::ffff:10.42.0.2 ::ffff:10.42.128.1 2001:db8::1";
    let known: Vec<_> = known.split_whitespace().map(|s| s.parse().unwrap()).collect();
    prop_oneof![20 => select(known), 1 => any::<Ipv6Addr>()]
}

fn protocols() -> impl Strategy<Value = u8> {
    prop_oneof![6 => select(&[1u8, 6, 17, 47, 58][..]), 1 => any::<u8>()]
}

const OTHERS: &[&[u8]] = &[&[4, 2], &[3, 3, 7], &[8, 10, 0, 0, 0, 0, 0, 0, 0, 0], &[0], &[5, 1]];

/// TCP with the flags and options of a first packet, or nearly.
fn openings() -> impl Strategy<Value = Vec<u8>> {
    let option = prop_oneof![
        2 => Just(vec![1]),
        2 => any::<u16>().prop_map(|mss| [&[2, 4][..], &mss.to_be_bytes()].concat()),
        1 => select(OTHERS).prop_map(<[u8]>::to_vec),
    ];
    let words = prop_oneof![3 => Just(None), 1 => any::<u8>().prop_map(Some)];
    let options = prop::collection::vec(option, 0..14);
    (options, words, any::<u8>(), any::<[u8; 2]>()).prop_map(|(options, words, flags, sum)| {
        let mut options = options.concat();
        options.resize(options.len().next_multiple_of(4).min(40), 0);
        let words = words.unwrap_or(((20 + options.len()) as u8 / 4) << 4);
        let fixed =
            [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, words, flags, 4, 0, sum[0], sum[1], 0, 0];
        [&fixed[..], &options].concat()
    })
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..80),
        1 => (1380..1520usize).prop_map(|n| vec![0x55; n]),
    ]
}

/// An IP packet; sources of the ports and of peers are as likely as all others together.
fn ip_packets() -> impl Strategy<Value = Vec<u8>> {
    let v4 =
        (addresses_v4(), addresses_v4()).prop_map(|(src, dst)| (IpAddr::V4(src), IpAddr::V4(dst)));
    let v6 =
        (addresses_v6(), addresses_v6()).prop_map(|(src, dst)| (IpAddr::V6(src), IpAddr::V6(dst)));
    let body = prop_oneof![
        5 => (protocols(), payloads()),
        1 => (Just(6), openings()),
    ];
    (prop_oneof![v4, v6], any::<u8>(), body).prop_map(|((src, dst), tos, (protocol, payload))| {
        ip_with(ip(src, dst, tos), protocol, &payload)
    })
}

/// From a MAC that is nobody's of ours, or a group's.
fn arp_messages() -> impl Strategy<Value = Vec<u8>> {
    let mac = select(&[A.mac, A.mac, [2, 0, 8, 8, 8, 8], [0xff; 6]]);
    (1..4u16, addresses_v4(), addresses_v4(), mac)
        .prop_map(|(op, sender, target, mac)| arp(op, (mac, sender), ([0; 6], target)))
}

fn neighbour_messages() -> impl Strategy<Value = Vec<u8>> {
    let hops = select(&[255u8, 255, 255, 64]);
    (132..139u8, addresses_v6(), addresses_v6(), hops, payloads()).prop_map(
        |(kind, src, target, hops, options)| {
            let body = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &options].concat();
            let mut packet = ip_with(ip(src, Ipv6Addr::LOCALHOST, 0), 58, &body);
            packet[7] = hops;
            packet
        },
    )
}

/// The port's own source address, so that more than the source check is met.
fn owned(mut packet: Vec<u8>, port: Port) -> Vec<u8> {
    match (ethertype(&packet), port.v4, port.v6) {
        (IPV4, Some(own), _) => packet[12..16].copy_from_slice(&own.octets()),
        (IPV6, _, Some(own)) => packet[8..24].copy_from_slice(&own.octets()),
        _ => {}
    }
    packet
}

/// From a peer's subnet to a container's address. Of a neighbour message the target is what it is
/// about, and the sender is the peer's.
fn of_peer(mut packet: Vec<u8>, peer: Peer, to: Port) -> Vec<u8> {
    let third = [64, 128, 192, 193, 197, 198, 199, 200][peer.index as usize % 8];
    let group = [1, 2, 3, 5, 6, 7, 8, 9][peer.index as usize % 8];
    match (ethertype(&packet), to.v4, to.v6) {
        (IPV4, Some(to), _) => {
            packet[12..16].copy_from_slice(&[10, 42, third, 9]);
            packet[16..20].copy_from_slice(&to.octets());
        }
        (IPV6, _, Some(to)) => {
            packet[24..40].copy_from_slice(&to.octets());
            packet[8..24].copy_from_slice(&to.octets());
            packet[15] = group;
            if let Some(target) = packet.get_mut(48..64).filter(|_| to.octets()[15] & 1 == 0) {
                target.copy_from_slice(&to.octets());
            }
        }
        _ => {}
    }
    packet
}

/// The same of an ARP message.
fn arp_of_peer(mut packet: Vec<u8>, peer: Peer, to: Port) -> Vec<u8> {
    let third = [64, 128, 192, 193, 197, 198, 199, 200][peer.index as usize % 8];
    packet[14..18].copy_from_slice(&[10, 42, third, 8]);
    if let Some(to) = to.v4 {
        packet[24..28].copy_from_slice(&to.octets());
    }
    packet
}

fn sent() -> BoxedStrategy<Case> {
    let packet = prop_oneof![
        6 => (ip_packets(), any::<bool>()).prop_map(|(p, own)| (ethertype(&p), p, own)),
        1 => arp_messages().prop_map(|p| (ARP, p, false)),
        1 => (neighbour_messages(), any::<bool>()).prop_map(|(p, own)| (IPV6, p, own)),
        1 => (any::<u16>(), payloads()).prop_map(|(ethertype, p)| (ethertype, p, false)),
    ];
    let gso_size = prop_oneof![9 => Just(0u32), 1 => 1..3000u32];
    (select(&PORTS[..]), packet, gso_size, 0..30u8)
        .prop_map(|(port, (ethertype, packet, own), gso_size, stray)| {
            let packet = if own { owned(packet, port) } else { packet };
            let from = Some(if stray == 0 { STRAY } else { port.ifindex });
            Case { from, frame: eth(gateway_mac(), port.mac, ethertype, &packet), gso_size }
        })
        .boxed()
}

/// What is in a tunnel, and its Ethernet type.
fn inside(spec: Spec) -> BoxedStrategy<(Peer, u16, Vec<u8>, Option<Port>)> {
    let src = prop_oneof![
        10 => select(spec.peers().to_vec()),
        1 => select(vec![STRANGER, Peer { underlay: ME, underlay_v6: ME_V6, ..STRANGER }]),
    ];
    let to = prop_oneof![1 => Just(None), 3 => select(&PORTS[..]).prop_map(Some)];
    let neighbours = if spec.foreign { 2 } else { 1 };
    let packet = prop_oneof![
        6 => ip_packets(),
        neighbours => neighbour_messages(),
        neighbours => arp_messages(),
    ];
    let proto = prop_oneof![20 => Just(None), 1 => any::<u16>().prop_map(Some)];
    (src, packet, to, proto)
        .prop_map(|(peer, packet, to, proto)| {
            let (found, packet) = match (packet.len() == 28 && packet[0] == 0, to) {
                (true, Some(to)) => (ARP, arp_of_peer(packet, peer, to)),
                (true, None) => (ARP, packet),
                (false, Some(to)) => (ethertype(&packet), of_peer(packet, peer, to)),
                (false, None) => (ethertype(&packet), packet),
            };
            (peer, proto.unwrap_or(found), packet, to)
        })
        .boxed()
}

/// VXLAN and Geneve, as the port says, with what else may stand in their headers.
fn in_udp(spec: Spec) -> BoxedStrategy<UdpForm> {
    let ports: Vec<_> = spec.ports().into_iter().map(|(port, encap, _)| (port, encap)).collect();
    let port = prop_oneof![
        20 => select(ports),
        1 => any::<(u16, bool)>()
            .prop_map(|(port, is)| (port, if is { Encap::Vxlan } else { Encap::Geneve })),
    ];
    let sum = prop_oneof![2 => Just(0u16), 1 => any::<u16>()];
    let flags = prop_oneof![8 => Just(None), 1 => any::<u8>().prop_map(Some)];
    let options = prop_oneof![
        4 => Just(vec![]),
        2 => (1..64usize).prop_map(|words| vec![0x11; words * 4]),
    ];
    (port, sum, flags, options, any::<u16>())
        .prop_map(|(to, sum, flags, options, source)| UdpForm { to, sum, flags, options, source })
        .boxed()
}

#[derive(Clone, Debug)]
struct UdpForm {
    to: (u16, Encap),
    source: u16,
    sum: u16,
    flags: Option<u8>,
    options: Vec<u8>,
}

impl UdpForm {
    fn around(&self, vni: u32, is_bare: bool, proto: u16, packet: &[u8]) -> Vec<u8> {
        let frame = eth([6; 6], [8; 6], proto, packet);
        let mut body = match self.to.1 {
            Encap::Vxlan => vxlan(vni, &frame),
            _ if is_bare => geneve(proto, vni, &self.options, packet),
            _ => geneve(TEB, vni, &self.options, &frame),
        };
        if let Some(flags) = self.flags {
            body[usize::from(flags & 1)] = flags;
        }
        let mut udp = datagram([self.source, self.to.0], &body);
        udp[6..8].copy_from_slice(&self.sum.to_be_bytes());
        udp
    }
}

fn received(spec: Spec) -> BoxedStrategy<Case> {
    let dst = prop_oneof![12 => Just(None), 1 => addresses_v4().prop_map(Some)];
    let key = prop_oneof![
        8 => Just(None),
        1 => any::<u32>().prop_map(Some),
        2 => select(&[0u32, 7, 8, 9, 42, 43, 44, 0x100_0007][..]).prop_map(Some),
    ];
    let is_bare = prop_oneof![3 => Just(false), 2 => Just(true)];
    let udp = if spec.encap.is_udp() || spec.foreign { 4u8 } else { 1 };
    let form = prop_oneof![
        4 => Just(None),
        u32::from(udp) => in_udp(spec).prop_map(Some),
    ];
    (inside(spec), dst, any::<u8>(), key, is_bare, form, 0..40u8)
        .prop_map(move |((peer, proto, packet, to), dst, tos, key, is_bare, form, gso)| {
            let vni = key.unwrap_or_else(|| to.map_or(0, |to| spec.tunnel(peer, to.vni).vni));
            let (protocol, body) = match form {
                Some(form) => (17, form.around(vni, is_bare, proto, &packet)),
                None => {
                    let key = (vni != 0 || key.is_some()).then_some(vni);
                    let frame = eth([6; 6], [8; 6], proto, &packet);
                    (47, if is_bare { gre(proto, key, &packet) } else { gre(TEB, key, &frame) })
                }
            };
            let dst = match dst {
                Some(other) if !spec.ipv6 => other.into(),
                Some(other) => other.to_ipv6_mapped().into(),
                None => spec.me(),
            };
            let packet = ip_with(ip(peer.at(spec), dst, tos), protocol, &body);
            let frame = eth(UNDERLAY_MAC, NEXT_HOP_MAC, ethertype(&packet), &packet);
            Case { from: None, frame, gso_size: if gso == 0 { 500 } else { 0 } }
        })
        .boxed()
}

/// Some bytes changed, the end cut off or something added.
pub fn cases(spec: Spec) -> impl Strategy<Value = Case> {
    let mutations = prop_oneof![
        2 => Just(vec![]),
        1 => prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
    ];
    let length = prop_oneof![3 => Just(None), 1 => any::<Index>().prop_map(Some)];
    (prop_oneof![2 => sent(), 3 => received(spec)], mutations, length).prop_map(
        |(mut case, mutations, length)| {
            // Headers are where it matters.
            let near = case.frame.len().min(110);
            for (at, value) in mutations {
                case.frame[at.index(near)] = value;
            }
            if let Some(length) = length {
                case.frame.resize(14 + length.index(case.frame.len()), 0);
            }
            // The kernel runs no test on less than an IP header.
            let least = match u16::from_be_bytes([case.frame[12], case.frame[13]]) {
                IPV4 => 34,
                IPV6 => 54,
                _ => 15,
            };
            case.frame.resize(case.frame.len().max(least), 0);
            case
        },
    )
}
