//! From a peer to an endpoint: what is left of the frame, exactly.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_common::verdict::{DropReason, Hook, Verdict};
use mesh_userspace::config::Encap;

use super::{
    answer::hidden_advertisement,
    counters::Counter,
    model::{advertisement, solicitation},
    packet::{
        ARP, TEB, assert_well_formed, eth, ethertype, gre, ip, ip_with, outer_ipv4, tcp, udp,
        udp_of,
    },
    spec::{
        A, BLUE, BLUE_VNI, D, GENEVE, GRE, H2, H3, H4, H5, HOST, ME, MTU, NEXT_HOP_MAC, Peer, Port,
        SIX, Spec, UNDERLAY, UNDERLAY_MAC, VXLAN,
    },
    wire::Tunnel,
    world::{REDIRECT, Ran, Skb, World, world},
};

const H2_MAC: [u8; 6] = [2, 0, 0, 0, 9, 2];
pub const H2_V4: Ipv4Addr = Ipv4Addr::new(10, 42, 64, 9);
pub const H2_V6: Ipv6Addr = Ipv6Addr::new(0xfd42, 0, 0, 1, 0, 0, 0, 9);
const H2_BLUE_V6: Ipv6Addr = Ipv6Addr::new(0xfd43, 0, 0, 1, 0, 0, 0, 9);
const H2_SIX: Ipv6Addr = Ipv6Addr::new(0xfd49, 0, 0, 1, 0, 0, 0, 9);

/// An outer packet as a peer sends it over IPv4.
pub fn from_peer(peer: Peer, form: Encap, vni: u32, tos: u8, inner: &[u8]) -> Vec<u8> {
    from_peer_in(GRE, peer, form, vni, tos, inner)
}

/// An outer packet as a peer sends it, on the port that IANA gave.
pub fn from_peer_in(
    spec: Spec,
    peer: Peer,
    form: Encap,
    vni: u32,
    tos: u8,
    inner: &[u8],
) -> Vec<u8> {
    let ends = [peer.at(spec), spec.me()];
    Tunnel::new(form, vni).packet(ends, tos, ethertype(inner), inner)
}

/// The packet comes out as it went in, on a frame for the endpoint.
#[track_caller]
fn assert_delivered(w: &World, peer: Peer, form: Encap, to: Port, inner: &[u8]) {
    let bytes = inner.len() as u64;
    let ran = w.receives(&from_peer_in(w.spec, peer, form, to.vni, 0, inner));
    let expected = Ran {
        verdict: if to.id == HOST.id { Verdict::Host } else { Verdict::Deliver },
        reason: None,
        code: REDIRECT,
        frame: eth(to.mac, w.spec.gateway_mac(), ethertype(inner), inner),
        traffic: vec![(Counter::EndpointRx(to.id), bytes), (Counter::PeerRx(peer.index), bytes)],
    };
    assert_eq!(ran, expected, "{form:?} in {:?}", w.spec);
}

#[test]
fn packets_of_a_peer_are_delivered_as_they_were() {
    let to: [(Port, IpAddr, IpAddr); 8] = [
        (A, H2_V4.into(), A.v4.unwrap().into()),
        (A, H2_V6.into(), A.v6.unwrap().into()),
        (D, H2_V4.into(), D.v4.unwrap().into()),
        (HOST, H2_V4.into(), HOST.v4.unwrap().into()),
        (HOST, H2_V6.into(), HOST.v6.unwrap().into()),
        (BLUE, H2_V4.into(), BLUE.v4.unwrap().into()),
        (BLUE, H2_BLUE_V6.into(), BLUE.v6.unwrap().into()),
        (SIX, H2_SIX.into(), SIX.v6.unwrap().into()),
    ];
    for spec in [GRE, Spec { ipv6: true, ..VXLAN }, GENEVE] {
        world(spec, |w| {
            // Any form is taken, whichever the file says.
            for form in Encap::ALL {
                for (port, src, dst) in to {
                    assert_delivered(w, H2, form, port, &udp(ip(src, dst, 0), b"payload"));
                    assert_delivered(w, H2, form, port, &tcp(ip(src, dst, 0xb8), b"odd"));
                    assert_delivered(w, H2, form, port, &udp_of(ip(src, dst, 0), MTU));
                }
            }
        });
    }
}

#[test]
fn smallest_packets_are_delivered() {
    for spec in [GRE, Spec { ipv6: true, ..GRE }] {
        world(spec, |w| {
            for form in Encap::ALL {
                for len in [20, 27, 28, 39, 40, 41] {
                    let packet = ip_with(ip(H2_V4, A.v4.unwrap(), 0), 17, &vec![7; len - 20]);
                    let frame = from_peer_in(spec, H2, form, 0, 0, &packet);
                    let frame = eth(UNDERLAY_MAC, NEXT_HOP_MAC, ethertype(&frame), &frame);
                    let ran = w.receives_frame(&frame);
                    let skb = Skb { ifindex: UNDERLAY, mark: frame.len() as u32, ..Skb::default() };
                    // As before Linux 6.3, where the kernel is not told what is inside.
                    let old = w.run_as("cut_from_underlay", Hook::FromUnderlay, skb, &frame);
                    for ran in [ran, old] {
                        assert_eq!(ran.verdict, Verdict::Deliver, "{len} bytes, {form:?}");
                        assert_eq!(ran.frame[14..], packet);
                        assert_eq!(ran.traffic[0], (Counter::EndpointRx(A.id), len as u64));
                    }
                }
            }
        });
    }
}

#[test]
fn padding_of_a_short_frame_is_no_fault() {
    world(GRE, |w| {
        let inner = udp(ip(H2_V4, A.v4.unwrap(), 0), b"");
        let mut packet = from_peer(H2, Encap::Gre, 0, 0, &inner);
        packet.resize(64, 0);
        let ran = w.receives(&packet);
        assert_eq!(ran.verdict, Verdict::Deliver);
        assert_eq!(ran.frame[14..][..inner.len()], inner);
    });
}

#[test]
fn source_in_any_subnet_of_its_peer_is_taken() {
    for many_lengths in [false, true] {
        world(Spec { many_lengths, ..GRE }, |w| {
            let mut sources: Vec<IpAddr> = vec![
                "10.42.128.1".parse().unwrap(),
                "10.42.130.255".parse().unwrap(),
                "fd42:0:0:2::1".parse().unwrap(),
                "fd42:0:0:4::1".parse().unwrap(),
            ];
            if many_lengths {
                for more in ["10.42.194.127", "10.42.196.1", "fd42:0:0:a::1", "fd42:0:0:d::1"] {
                    sources.push(more.parse().unwrap());
                }
            }
            for src in sources {
                let dst: IpAddr =
                    if src.is_ipv4() { A.v4.unwrap().into() } else { A.v6.unwrap().into() };
                assert_delivered(w, H3, Encap::Gre, A, &udp(ip(src, dst, 0), b"x"));
            }
        });
    }
}

#[test]
fn peer_that_we_have_no_way_to_is_heard_all_the_same() {
    world(GRE, |w| {
        let src = Ipv4Addr::new(10, 42, 192, 1);
        assert_delivered(w, H4, Encap::Gre, A, &udp(ip(src, A.v4.unwrap(), 0), b"x"));
        let src = Ipv4Addr::new(10, 42, 193, 1);
        assert_delivered(w, H5, Encap::Gre, A, &udp(ip(src, A.v4.unwrap(), 0), b"x"));
    });
}

#[test]
fn inner_source_that_is_not_the_peers_is_dropped() {
    for many_lengths in [false, true] {
        world(Spec { many_lengths, ..GRE }, |w| {
            let v4 = |peer, src: [u8; 4]| {
                let inner = udp(ip(Ipv4Addr::from(src), A.v4.unwrap(), 0), b"x");
                w.receives(&from_peer(peer, Encap::Gre, 0, 0, &inner))
            };
            let v6 = |peer, src: &str| {
                let src: Ipv6Addr = src.parse().unwrap();
                let inner = udp(ip(src, A.v6.unwrap(), 0), b"x");
                w.receives(&from_peer(peer, Encap::Gretap, 0, 0, &inner))
            };
            for ran in [
                // Another peer's, nobody's, our own, the destination's own, and no one's.
                v4(H2, [10, 42, 128, 1]),
                v4(H3, [10, 42, 64, 1]),
                v4(H3, [10, 42, 129, 1]),
                v4(H3, [10, 42, 131, 1]),
                v4(H2, [10, 42, 250, 1]),
                v4(H2, [10, 42, 0, 3]),
                v4(H2, A.v4.unwrap().octets()),
                v4(H2, [0, 0, 0, 0]),
                v4(H2, [255, 255, 255, 255]),
                v4(H2, [127, 0, 0, 1]),
                v4(H2, H2.underlay.octets()),
                v6(H2, "fd42:0:0:2::1"),
                v6(H3, "fd42:0:0:3::1"),
                v6(H3, "fd42:0:0:1::1"),
                v6(H2, "fe80::1"),
                v6(H2, "::"),
                v6(H2, "ff02::1"),
                // H4 has no IPv6 subnet at all.
                v6(H4, "::"),
                v6(H4, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
                v6(H4, "fd42:0:0:1::9"),
            ] {
                ran.assert_dropped(DropReason::SourceNotPeers);
                assert_eq!(ran.traffic, []);
            }
        });
    }
}

#[test]
fn networks_do_not_meet() {
    world(GRE, |w| {
        // The same address, another network: another container.
        let inner = udp(ip(H2_V4, A.v4.unwrap(), 0), b"x");
        assert_delivered(w, H2, Encap::Gre, BLUE, &inner);
        assert_delivered(w, H2, Encap::Gre, A, &inner);
        // An address that only the one or the other has.
        let to_d = udp(ip(H2_V4, D.v4.unwrap(), 0), b"x");
        let ran = w.receives(&from_peer(H2, Encap::Gre, BLUE_VNI, 0, &to_d));
        ran.assert_dropped(DropReason::NoEndpoint);
        // A source of the other network.
        let inner = udp(ip(H2_BLUE_V6, A.v6.unwrap(), 0), b"x");
        let ran = w.receives(&from_peer(H2, Encap::Gre, 0, 0, &inner));
        ran.assert_dropped(DropReason::SourceNotPeers);
    });
}

#[test]
fn address_that_nobody_has_is_dropped() {
    world(GRE, |w| {
        for (dst, reason) in [
            ("10.42.0.77", DropReason::NoEndpoint),
            ("10.42.63.255", DropReason::NoEndpoint),
            // A peer's, never relayed, and none of ours.
            ("10.42.128.1", DropReason::NoEndpoint),
            ("8.8.8.8", DropReason::NoEndpoint),
            ("192.0.2.11", DropReason::NoEndpoint),
            ("224.0.0.251", DropReason::Multicast),
            ("255.255.255.255", DropReason::Multicast),
            ("fd42::77", DropReason::NoEndpoint),
            ("ff02::1", DropReason::Multicast),
        ] {
            let dst: IpAddr = dst.parse().unwrap();
            let src = if dst.is_ipv4() { IpAddr::from(H2_V4) } else { H2_V6.into() };
            for form in Encap::ALL {
                let ran = w.receives(&from_peer(H2, form, 0, 0, &udp(ip(src, dst, 0), b"x")));
                ran.assert_dropped(reason);
                assert_eq!(ran.traffic, []);
            }
        }
    });
}

#[test]
fn what_is_not_ip_inside_is_dropped() {
    world(GRE, |w| {
        let v4 = udp(ip(H2_V4, A.v4.unwrap(), 0), b"x");
        for proto in [0, ARP, 0x8100, 0x88a8, 0x880b, 0xffff] {
            let plain = outer_ipv4(H2.underlay, ME, 0, &gre(proto, None, &v4));
            w.receives(&plain).assert_dropped(DropReason::NotIp);
            let frame = eth([7; 6], [8; 6], proto, &v4);
            let framed = outer_ipv4(H2.underlay, ME, 0, &gre(TEB, Some(BLUE_VNI), &frame));
            w.receives(&framed).assert_dropped(DropReason::NotIp);
        }
        let nested =
            outer_ipv4(H2.underlay, ME, 0, &gre(TEB, None, &eth([7; 6], [8; 6], TEB, &v4)));
        w.receives(&nested).assert_dropped(DropReason::NotIp);
    });
}

#[test]
fn congestion_on_the_underlay_reaches_the_endpoint() {
    for spec in [GRE, Spec { ipv6: true, ..GRE }] {
        world(spec, congestion_reaches_the_endpoint);
    }
}

fn congestion_reaches_the_endpoint(w: &World) {
    let cases: [(IpAddr, IpAddr); 2] =
        [(H2_V4.into(), A.v4.unwrap().into()), (H2_V6.into(), A.v6.unwrap().into())];
    for (src, dst) in cases {
        for form in Encap::ALL {
            // RFC 6040, figure 4.
            for (inner_tos, outer_tos) in
                (0..=0xff).step_by(7).flat_map(|i| (0..4).map(move |o| (i, o)))
            {
                let inner = udp(ip(src, dst, inner_tos), b"payload");
                let ran = w.receives(&from_peer_in(w.spec, H2, form, 0, outer_tos, &inner));
                if outer_tos == 3 && inner_tos & 3 == 0 {
                    ran.assert_dropped(DropReason::Congestion);
                    assert_eq!(ran.traffic, []);
                    continue;
                }
                let tos = match (inner_tos & 3, outer_tos) {
                    (_, 3) => inner_tos | 3,
                    (2, 1) => inner_tos ^ 3,
                    _ => inner_tos,
                };
                assert_eq!(ran.verdict, Verdict::Deliver);
                assert_eq!(ran.frame[14..], udp(ip(src, dst, tos), b"payload"));
                assert_well_formed(&ran.frame);
            }
        }
    }
}

/// Nodes answer for all that is behind others; what a peer says unasked would be believed.
#[test]
fn neighbour_messages_of_a_peer_that_is_no_switch_go_nowhere() {
    for spec in [GRE, Spec { ipv6: true, ..VXLAN }, GENEVE] {
        world(spec, |w| {
            for form in Encap::ALL {
                let to = A.v6.unwrap();
                let mut plain = advertisement(H2_MAC, to, H2_V6);
                let mut all = vec![plain.clone(), solicitation(H2_MAC, H2_V6, to)];
                all.extend([0, 43, 60].map(|header| hidden_advertisement(header, H2_V6, to)));
                plain[40] = 134;
                all.push(plain);
                for message in all {
                    let ran = w.receives(&from_peer_in(spec, H2, form, 0, 0, &message));
                    ran.assert_dropped(DropReason::NoReply);
                }
            }
        });
    }
}
