//! What comes in on the underlay in UDP: VXLAN and Geneve of peers, and what is none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpFragOffset, IpHeaders, Ipv4Header, Ipv4Options, ip_number};
use mesh_common::verdict::{
    DropReason::{self, OuterFragment, Truncated, UnknownPeer, UnknownVni, UnsupportedOuter},
    Hook, Verdict,
};
use mesh_userspace::config::Encap;

use super::{
    decap::{H2_V4, H2_V6},
    outer::STRANGER,
    packet::{IPV4, IPV6, TEB, eth, ethertype, ip, ip_with, ipv4_with, tcp, udp},
    spec::{
        A, BLUE_VNI, GENEVE, GRE, H2, H3, NEXT_HOP_MAC, Peer, Spec, UNDERLAY, UNDERLAY_MAC, VXLAN,
    },
    wire::{SOURCE_PORT, THEIR_MACS, datagram, geneve, vxlan},
    world::{Ran, Skb, World, world},
};

const V6: Spec = Spec { ipv6: true, ..VXLAN };

fn inner() -> Vec<u8> {
    udp(ip(H2_V4, A.v4.unwrap(), 0), b"a payload of some length")
}

fn frame() -> Vec<u8> {
    eth(THEIR_MACS[0], THEIR_MACS[1], IPV4, &inner())
}

/// A datagram from a peer to this host.
fn from(spec: Spec, peer: Peer, to: u16, body: &[u8]) -> Vec<u8> {
    from_address(peer.at(spec), spec.me(), to, body)
}

fn from_address(src: IpAddr, dst: IpAddr, to: u16, body: &[u8]) -> Vec<u8> {
    ip_with(ip(src, dst, 0), 17, &datagram([SOURCE_PORT, to], body))
}

#[track_caller]
fn assert_taken(ran: &Ran) {
    assert_eq!((ran.verdict, ran.reason), (Verdict::Deliver, None));
    assert_eq!(ran.frame[14..], inner());
}

/// Dropped with `reason` if a peer sent it, and as an unknown peer's if a stranger did.
#[track_caller]
fn assert_refused(w: &World, to: u16, body: &[u8], reason: DropReason) {
    for (peer, reason) in [(H2, reason), (STRANGER, UnknownPeer)] {
        let ran = w.receives(&from(w.spec, peer, to, body));
        ran.assert_dropped(reason);
        assert_eq!(ran.traffic, []);
    }
}

#[test]
fn checksum_of_the_tunnel_says_nothing() {
    for spec in [VXLAN, V6] {
        world(spec, |w| {
            let good = from(spec, H2, 4789, &vxlan(0, &frame()));
            let at = good.len() - 8 - 8 - frame().len() + 6;
            for sum in [0u16, 1, 0x1234, 0xffff] {
                let mut packet = good.clone();
                packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
                assert_taken(&w.receives(&packet));
            }
            // By etherparse, right.
            let mut sound = Vec::new();
            let builder = etherparse::PacketBuilder::ip(ip(H2.at(spec), spec.me(), 0));
            builder.udp(1, 4789).write(&mut sound, &vxlan(0, &frame())).unwrap();
            assert_taken(&w.receives(&sound));
        });
    }
}

#[test]
fn source_port_of_the_tunnel_is_any() {
    world(VXLAN, |w| {
        for port in [0, 1, 4789, 49152, 65535] {
            let body = datagram([port, 4789], &vxlan(0, &frame()));
            assert_taken(&w.receives(&ip_with(ip(H2.at(VXLAN), VXLAN.me(), 0), 17, &body)));
        }
    });
}

#[test]
fn flags_of_vxlan_are_those_of_a_vni() {
    world(VXLAN, |w| {
        for first in 0..=255u8 {
            let mut body = vxlan(0, &frame());
            body[0] = first;
            // Reserved bits are ignored (RFC 7348, 5), but for the one of VXLAN-GPE that says that
            // no frame follows.
            if first & 0x0c == 0x08 {
                assert_taken(&w.receives(&from(VXLAN, H2, 4789, &body)));
            } else {
                assert_refused(w, 4789, &body, UnsupportedOuter);
            }
        }
        for at in [1, 2, 3, 7] {
            let mut body = vxlan(0, &frame());
            body[at] = 0xff;
            assert_taken(&w.receives(&from(VXLAN, H2, 4789, &body)));
        }
    });
}

#[test]
fn geneve_is_of_version_0_and_no_control_message() {
    world(GENEVE, |w| {
        for bit in 0..16u32 {
            let mut body = geneve(TEB, 0, &[], &frame());
            let head = u16::from_be_bytes([body[0], body[1]]) | 1 << bit;
            body[..2].copy_from_slice(&head.to_be_bytes());
            match bit {
                // Reserved.
                0..=5 => assert_taken(&w.receives(&from(GENEVE, H2, 6081, &body))),
                // Critical options, OAM, version.
                6 | 7 | 14 | 15 => assert_refused(w, 6081, &body, UnsupportedOuter),
                // So many words of options, which the packet's start is taken for.
                _ => {
                    let ran = w.receives(&from(GENEVE, H2, 6081, &body));
                    assert_eq!(ran.verdict, Verdict::Drop, "{ran:?}");
                }
            }
        }
        let mut body = geneve(TEB, 0, &[], &frame());
        body[7] = 0xff;
        assert_taken(&w.receives(&from(GENEVE, H2, 6081, &body)));
    });
}

#[test]
fn options_of_geneve_are_skipped() {
    for spec in [GENEVE, Spec { ipv6: true, ..GENEVE }] {
        world(spec, |w| {
            for words in 0..64usize {
                // Class, type without the critical bit, length, and what it says.
                let mut options = vec![0x5a; words * 4];
                if let Some(head) = options.first_chunk_mut() {
                    *head = [0x01, 0x02, 0x03, (words - 1) as u8 & 0x1f];
                }
                for (proto, payload) in [(TEB, frame()), (IPV4, inner())] {
                    let body = geneve(proto, 0, &options, &payload);
                    assert_taken(&w.receives(&from(spec, H2, 6081, &body)));
                    let mut critical = body.clone();
                    critical[1] |= 0x40;
                    w.receives(&from(spec, H2, 6081, &critical)).assert_dropped(UnsupportedOuter);
                    // Options that end after the packet does.
                    let cut = &body[..8 + words * 4 - usize::from(words > 0)];
                    w.receives(&from(spec, H2, 6081, cut)).assert_dropped(Truncated);
                }
            }
        });
    }
}

#[test]
fn geneve_carries_ip_without_ethernet_too_and_nothing_else() {
    world(GENEVE, |w| {
        assert_taken(&w.receives(&from(GENEVE, H2, 6081, &geneve(IPV4, 0, &[], &inner()))));
        let six = udp(ip(H2_V6, A.v6.unwrap(), 0), b"x");
        let ran = w.receives(&from(GENEVE, H2, 6081, &geneve(IPV6, 0, &[], &six)));
        assert_eq!((ran.verdict, &ran.frame[14..]), (Verdict::Deliver, &six[..]));
        for proto in [0, 0x0806, 0x8100, 0x8847, 0xffff] {
            let ran = w.receives(&from(GENEVE, H2, 6081, &geneve(proto, 0, &[], &inner())));
            ran.assert_dropped(DropReason::NotIp);
            let framed = eth([7; 6], [8; 6], proto, &inner());
            let ran = w.receives(&from(GENEVE, H2, 6081, &geneve(TEB, 0, &[], &framed)));
            ran.assert_dropped(DropReason::NotIp);
        }
    });
}

#[test]
fn number_that_is_no_network_is_dropped() {
    world(VXLAN, |w| {
        for vni in [1, 8, 42, 0x70000, 0xff_ffff] {
            assert_refused(w, 4789, &vxlan(vni, &frame()), UnknownVni);
        }
        // The network is another than that of the destination.
        let ran = w.receives(&from(VXLAN, H3, 4789, &vxlan(BLUE_VNI, &frame())));
        ran.assert_dropped(DropReason::SourceNotPeers);
    });
}

#[test]
fn port_of_this_mesh_is_closed_to_strangers() {
    for spec in [VXLAN, V6, Spec { port: Some(8472), ..VXLAN }, GENEVE] {
        world(spec, |w| {
            let (port, body) = match spec.encap {
                Encap::Vxlan => (spec.port.unwrap_or(4789), vxlan(0, &frame())),
                _ => (6081, geneve(TEB, 0, &[], &frame())),
            };
            assert_taken(&w.receives(&from(spec, H2, port, &body)));
            w.receives(&from(spec, STRANGER, port, &body)).assert_dropped(UnknownPeer);
            // This host itself is none of its peers.
            let own = from_address(spec.me(), spec.me(), port, &body);
            w.receives(&own).assert_dropped(UnknownPeer);
            // To another address of this host.
            let other = STRANGER.at(spec);
            for src in [H2.at(spec), other] {
                w.assert_passes(&from_address(src, other, port, &body));
            }
        });
    }
}

/// The ports that any mesh may use are listened to, since a neighbour may have the next version of
/// the file already. But other tunnels of this host may be on them.
#[test]
fn default_port_that_is_not_used_is_left_to_the_stack_unless_it_is_exactly_ours() {
    let shared = Spec { shared_port: Some(4789), ..VXLAN };
    for spec in [GRE, Spec { ipv6: true, ..GRE }, GENEVE, shared] {
        world(spec, |w| {
            let good = vxlan(0, &frame());
            assert_taken(&w.receives(&from(spec, H2, 4789, &good)));
            w.assert_passes(&from(spec, STRANGER, 4789, &good));
            let mut flags = good.clone();
            flags[0] = 0x0c;
            for body in [&vxlan(8, &frame()), &flags, &good[..7], &[]] {
                for peer in [H2, STRANGER] {
                    w.assert_passes(&from(spec, peer, 4789, body));
                }
            }
        });
    }
}

#[test]
fn port_that_is_another_is_left_to_the_stack() {
    world(Spec { port: Some(8472), ..VXLAN }, |w| {
        for port in [0, 1, 53, 4788, 4790, 6080, 8471, 46354, 65535] {
            for peer in [H2, STRANGER] {
                w.assert_passes(&from(w.spec, peer, port, &vxlan(0, &frame())));
            }
        }
    });
}

#[test]
fn ordinary_packets_to_the_host_are_left_alone() {
    for spec in [VXLAN, V6, GENEVE] {
        world(spec, |w| {
            for peer in [H2, STRANGER] {
                let head = || ip(peer.at(spec), spec.me(), 0);
                w.assert_passes(&udp(head(), b"dns"));
                w.assert_passes(&tcp(head(), b"ssh"));
                w.assert_passes(&ip_with(head(), 1, &[8, 0, 0, 0]));
                w.assert_passes(&ip_with(head(), 58, &[135, 0, 0, 0]));
                // TCP to the port of the tunnels, and what is too short for any port.
                let to_port = [0xc3, 0x50, 0x12, 0xb5, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0];
                w.assert_passes(&ip_with(head(), 6, &to_port));
                for len in 0..8 {
                    w.assert_passes(&ip_with(head(), 17, &to_port[..len]));
                }
            }
        });
    }
}

#[test]
fn mapped_outer_source_is_nobodys() {
    for spec in [V6, Spec { ipv6: true, ..GRE }, VXLAN] {
        world(spec, |w| {
            let mapped = IpAddr::V6(H2.underlay.to_ipv6_mapped());
            let dst = Spec { ipv6: true, ..spec }.me();
            let tunnel = spec.tunnel(H2, 0);
            w.assert_passes(&tunnel.packet([mapped, dst], 0, IPV4, &inner()));
            // Both, of an IPv4 underlay in the clothes of IPv6.
            if let IpAddr::V4(me) = spec.me() {
                let me = IpAddr::V6(me.to_ipv6_mapped());
                w.assert_passes(&tunnel.packet([mapped, me], 0, IPV4, &inner()));
            }
        });
    }
}

#[test]
fn peer_of_the_other_family_is_a_stranger() {
    world(VXLAN, |w| {
        let ends = [H2.at(V6), V6.me()];
        w.assert_passes(&VXLAN.tunnel(H2, 0).packet(ends, 0, IPV4, &inner()));
    });
    world(V6, |w| {
        let ends = [H2.at(VXLAN), VXLAN.me()];
        w.assert_passes(&VXLAN.tunnel(H2, 0).packet(ends, 0, IPV4, &inner()));
    });
}

#[test]
fn outer_ipv6_of_another_version_is_not_taken() {
    for spec in [V6, Spec { ipv6: true, ..GRE }] {
        world(spec, |w| {
            let good = spec.tunnel(H2, 0).packet([H2.at(spec), spec.me()], 0, IPV4, &inner());
            for version in (0..16).filter(|version| *version != 6) {
                let mut packet = good.clone();
                packet[0] = version << 4;
                let frame = eth(UNDERLAY_MAC, NEXT_HOP_MAC, IPV6, &packet);
                let ran = w.receives_frame(&frame);
                match spec.encap {
                    Encap::Gre => ran.assert_dropped(UnsupportedOuter),
                    _ => ran.assert_passed(&frame),
                }
            }
        });
    }
}

#[test]
fn extension_header_outside_is_left_to_the_stack() {
    world(V6, |w| {
        let good = from(V6, H2, 4789, &vxlan(0, &frame()));
        // Hop-by-hop, routing, fragment, destination options.
        for next in [0, 43, 44, 60] {
            let body = [&[17, 0, 0, 0, 0, 0, 0, 0][..], &good[40..]].concat();
            w.assert_passes(&ip_with(ip(H2.at(V6), V6.me(), 0), next, &body));
        }
    });
}

fn header() -> Ipv4Header {
    let IpHeaders::Ipv4(mut header, _) = ip(H2.underlay, VXLAN.me(), 0) else { unreachable!() };
    header.protocol = ip_number::UDP;
    header
}

#[test]
fn first_fragment_of_a_tunnels_packet_is_dropped_and_others_are_not_known_for_one() {
    world(VXLAN, |w| {
        let body = datagram([SOURCE_PORT, 4789], &vxlan(0, &frame()));
        for (more, offset) in [(true, 0), (true, 1), (false, 1), (false, 185), (true, 8191)] {
            let mut header = header();
            header.dont_fragment = false;
            header.more_fragments = more;
            header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
            let packet = ipv4_with(header, &body);
            if offset == 0 {
                w.receives(&packet).assert_dropped(OuterFragment);
            } else {
                w.assert_passes(&packet);
            }
        }
        // On a port that is not ours it may be anybody's.
        let mut header = header();
        header.more_fragments = true;
        let body = datagram([SOURCE_PORT, 6081], &geneve(TEB, 0, &[], &frame()));
        w.assert_passes(&ipv4_with(header, &body));
    });
}

#[test]
fn outer_ip_options_before_udp_are_left_to_the_stack() {
    world(VXLAN, |w| {
        for words in [1, 10] {
            let mut header = header();
            header.options = Ipv4Options::try_from(&vec![1; words * 4][..]).unwrap();
            w.assert_passes(&ipv4_with(
                header,
                &datagram([SOURCE_PORT, 4789], &vxlan(0, &frame())),
            ));
        }
    });
}

/// A form of packet, as a peer sends it with this inner packet.
type Form = fn(Spec, &[u8]) -> Vec<u8>;

const FORMS: [(&str, Form); 8] = [
    ("gre", |s, p| around(s, Encap::Gre, 0, p)),
    ("gre with key", |s, p| around(s, Encap::Gre, BLUE_VNI, p)),
    ("gretap", |s, p| around(s, Encap::Gretap, 0, p)),
    ("gretap with key", |s, p| around(s, Encap::Gretap, BLUE_VNI, p)),
    ("vxlan", |s, p| around(s, Encap::Vxlan, 0, p)),
    ("geneve", |s, p| around(s, Encap::Geneve, 0, p)),
    ("geneve with options", |s, p| {
        let frame = eth(THEIR_MACS[0], THEIR_MACS[1], ethertype(p), p);
        from(s, H2, 6081, &geneve(TEB, 0, &[1; 24], &frame))
    }),
    ("geneve without ethernet", |s, p| from(s, H2, 6081, &geneve(ethertype(p), 0, &[], p))),
];

fn around(spec: Spec, encap: Encap, vni: u32, inner: &[u8]) -> Vec<u8> {
    super::decap::from_peer_in(spec, H2, encap, vni, 0, inner)
}

#[test]
fn what_a_peer_sends_cut_short_is_never_taken() {
    let both_ours = |ipv6| Spec { ipv6, foreign: true, ..VXLAN };
    for spec in [false, true].map(both_ours) {
        world(spec, |w| {
            for (name, form) in FORMS {
                for v6 in [false, true] {
                    cut(w, name, form, v6);
                }
            }
        });
    }
}

/// Every beginning of a packet: left alone without its outer header, or its port; then truncated; and
/// with the inner header it is taken.
fn cut(w: &World, name: &str, form: Form, v6: bool) {
    let key = name.ends_with("key");
    let inner = match (v6, key) {
        (false, _) => tcp(ip(H2_V4, A.v4.unwrap(), 0), b"payload"),
        (true, false) => tcp(ip(H2_V6, A.v6.unwrap(), 0), b"payload"),
        (true, true) => {
            let src: Ipv6Addr = "fd43:0:0:1::9".parse().unwrap();
            tcp(ip(src, super::spec::BLUE.v6.unwrap(), 0), b"payload")
        }
    };
    let packet = form(w.spec, &inner);
    let outer = if w.spec.ipv6 { 40 } else { 20 };
    let in_udp = name.contains("vxlan") || name.contains("geneve");
    // Geneve on its own port is nobody's in this world, until it is known to be a peer's.
    let judged = match (name, in_udp) {
        (name, true) if name.contains("geneve") => outer + 16,
        (_, true) => outer + 8,
        (_, false) => outer,
    };
    let needed = packet.len() - inner.len() + if v6 { 40 } else { 20 };
    let frame = eth(UNDERLAY_MAC, NEXT_HOP_MAC, ethertype(&packet), &packet);
    for len in 14..frame.len() {
        let skb = Skb { ifindex: UNDERLAY, mark: len as u32, ..Skb::default() };
        let ran = w.run_as("cut_from_underlay", Hook::FromUnderlay, skb, &frame);
        match len - 14 {
            l if l < judged => ran.assert_passed(&frame[..len]),
            l if l < needed => {
                assert_eq!((ran.reason, ran.traffic), (Some(Truncated), vec![]), "{name}, {l}");
            }
            l => assert_eq!(ran.verdict, Verdict::Deliver, "{name}, {l} of {needed}"),
        }
    }
}

#[test]
fn packet_between_other_hosts_is_left_alone() {
    world(VXLAN, |w| {
        let body = vxlan(0, &frame());
        for dst in [[192, 0, 2, 77], [224, 0, 0, 1], [255; 4]] {
            let dst = IpAddr::V4(Ipv4Addr::from(dst));
            w.assert_passes(&from_address(H2.at(VXLAN), dst, 4789, &body));
        }
        let good = from(VXLAN, H2, 4789, &body);
        for dst in [[2, 0, 0, 0, 0, 12], [0xff; 6]] {
            let frame = eth(dst, NEXT_HOP_MAC, IPV4, &good);
            w.receives_frame(&frame).assert_passed(&frame);
        }
    });
}
