//! To a peer: the bytes on the underlay, exactly.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_common::verdict::{DropReason, Verdict};

use super::{
    counters::Counter,
    packet::{IPV4, assert_well_formed, eth, ip, ip_with, tcp, udp, udp_of},
    spec::{A, B, BLUE, D, GRE, H2, H3, H4, H5, HOST, MTU, Peer, Port, SIX, Spec, all_specs},
    wire::Carried,
    world::{REDIRECT, Ran, World, world},
};

const H2_V4: Ipv4Addr = Ipv4Addr::new(10, 42, 64, 9);
const H2_V6: Ipv6Addr = Ipv6Addr::new(0xfd42, 0, 0, 1, 0, 0, 0, 9);
const H2_BLUE_V6: Ipv6Addr = Ipv6Addr::new(0xfd43, 0, 0, 1, 0, 0, 0, 9);
const H2_SIX: Ipv6Addr = Ipv6Addr::new(0xfd49, 0, 0, 1, 0, 0, 0, 9);

#[track_caller]
fn assert_encapsulated(w: &World, from: Port, peer: Peer, inner: &[u8]) {
    let ran = w.sends_ip(from, inner);
    let bytes = inner.len() as u64;
    let expected = Ran {
        verdict: Verdict::Encap,
        reason: None,
        code: REDIRECT,
        frame: Carried::packet(w.spec, peer, from.vni, inner).frame(w.spec, &ran.frame),
        traffic: vec![(Counter::EndpointTx(from.id), bytes), (Counter::PeerTx(peer.index), bytes)],
    };
    assert_eq!(ran, expected, "{:?}", w.spec);
    assert_well_formed(&ran.frame);
}

/// One world for each, since making them takes the time.
#[test]
fn packets_to_a_peer_leave_in_its_outer_headers() {
    for spec in all_specs() {
        world(spec, |w| {
            packets_of_all_ports_are_encapsulated(w);
            tos_and_traffic_class_are_copied(w);
            any_length_has_its_outer_lengths_and_checksum(w);
            next_hop_without_mac_is_left_to_the_kernel_to_resolve(w);
            packet_above_the_mtu_is_answered(w);
            super_packet_that_the_kernel_will_not_grow_is_dropped(w);
        });
    }
}

fn packets_of_all_ports_are_encapsulated(w: &World) {
    let to_h2: [(Port, IpAddr, IpAddr); 7] = [
        (A, A.v4.unwrap().into(), H2_V4.into()),
        (A, A.v6.unwrap().into(), H2_V6.into()),
        (D, D.v4.unwrap().into(), H2_V4.into()),
        (HOST, HOST.v4.unwrap().into(), H2_V4.into()),
        (HOST, HOST.v6.unwrap().into(), H2_V6.into()),
        (BLUE, BLUE.v4.unwrap().into(), H2_V4.into()),
        (BLUE, BLUE.v6.unwrap().into(), H2_BLUE_V6.into()),
    ];
    for (from, src, dst) in to_h2 {
        assert_encapsulated(w, from, H2, &udp(ip(src, dst, 0), b"payload"));
        assert_encapsulated(w, from, H2, &tcp(ip(src, dst, 0), b"odd"));
    }
    let six = udp(ip(SIX.v6.unwrap(), H2_SIX, 0), b"payload");
    assert_encapsulated(w, SIX, H2, &six);
}

fn tos_and_traffic_class_are_copied(w: &World) {
    for tos in [1, 2, 3, 0xb8, 0xbb, 0xff] {
        assert_encapsulated(w, A, H2, &udp(ip(A.v4.unwrap(), H2_V4, tos), b"x"));
        assert_encapsulated(w, BLUE, H2, &udp(ip(BLUE.v6.unwrap(), H2_BLUE_V6, tos), b"x"));
    }
}

fn any_length_has_its_outer_lengths_and_checksum(w: &World) {
    let mtu = w.spec.mtu(0);
    let step = if w.spec == GRE { 1 } else { 9 };
    for len in (28..300).step_by(step).chain(mtu - 3..=mtu) {
        assert_encapsulated(w, A, H2, &udp_of(ip(A.v4.unwrap(), H2_V4, 0), len));
    }
    for len in (48..300).step_by(step).chain(mtu - 3..=mtu) {
        assert_encapsulated(w, A, H2, &udp_of(ip(A.v6.unwrap(), H2_V6, 0), len));
    }
}

fn next_hop_without_mac_is_left_to_the_kernel_to_resolve(w: &World) {
    let inner = udp(ip(A.v4.unwrap(), Ipv4Addr::new(10, 42, 193, 7), 0), b"x");
    let ran = w.sends_ip(A, &inner);
    assert_eq!((ran.verdict, ran.code), (Verdict::Encap, REDIRECT));
    Carried::packet(w.spec, H5, 0, &inner).assert_in(w.spec, &ran.frame);
}

fn packet_above_the_mtu_is_answered(w: &World) {
    for port in [A, BLUE] {
        let of_network = w.desired.maps.networks[&port.vni].mtu as usize;
        assert_eq!(of_network, w.spec.mtu(port.vni));
        for (peer, third) in [(H2, 64), (H5, 193)] {
            let dst = Ipv4Addr::new(10, 42, third, 7);
            let most = w.spec.path_mtu(peer, port.vni);
            let sends = |len| w.sends_ip(port, &udp_of(ip(port.v4.unwrap(), dst, 0), len));
            assert_eq!(sends(most).verdict, Verdict::Encap);
            let ran = sends(most + 1);
            ran.assert_dropped(DropReason::TooBig);
            // The next-hop MTU (RFC 1191).
            assert_eq!(ran.frame[40..42], (most as u16).to_be_bytes());
        }
    }
}

/// A test can set the size of segments but not their kind, and the kernel makes room only in those of
/// TCP and UDP.
fn super_packet_that_the_kernel_will_not_grow_is_dropped(w: &World) {
    for port in [A, HOST] {
        let inner = tcp(ip(port.v4.unwrap(), H2_V4, 0), &[7; 3000]);
        let frame = eth([0; 6], port.mac, IPV4, &inner);
        let ran = w.sends_segments(port, &frame, w.spec.mtu(0) as u32 - 40);
        ran.assert_dropped(DropReason::NoRoom);
        // Nothing went to the peer.
        assert_eq!(ran.traffic, [(Counter::EndpointTx(port.id), inner.len() as u64)]);
    }
}

#[test]
fn any_protocol_and_any_fragment_is_encapsulated() {
    world(GRE, |w| {
        let (src, dst) = (A.v4.unwrap(), H2_V4);
        for protocol in 0..=255 {
            let packet = ip_with(ip(src, dst, 0), protocol, &[0; 9]);
            assert_encapsulated(w, A, H2, &packet);
            // Types 133 to 137 are neighbour discovery.
            let packet = ip_with(ip(A.v6.unwrap(), H2_V6, 0), protocol, &[128; 9]);
            assert_encapsulated(w, A, H2, &packet);
        }
        for fragment in [0x2000u16, 0x2001, 0x00b9, 0x1fff, 0x4000, 0] {
            let mut packet = udp_of(ip(src, dst, 0), MTU);
            packet[6..8].copy_from_slice(&fragment.to_be_bytes());
            assert_encapsulated(w, A, H2, &packet);
        }
    });
}

#[test]
fn a_packet_with_nothing_but_its_header_is_encapsulated() {
    world(GRE, |w| {
        assert_encapsulated(w, A, H2, &ip_with(ip(A.v4.unwrap(), H2_V4, 0), 59, &[]));
        assert_encapsulated(w, A, H2, &ip_with(ip(A.v6.unwrap(), H2_V6, 0), 59, &[]));
        // ICMPv6 without even a type.
        assert_encapsulated(w, A, H2, &ip_with(ip(A.v6.unwrap(), H2_V6, 0), 58, &[]));
    });
}

#[test]
fn every_subnet_of_a_peer_leads_to_it() {
    for many_lengths in [false, true] {
        world(Spec { many_lengths, ..GRE }, |w| {
            let v4 = [[128, 0], [128, 255], [130, 7]];
            let v4_many = [[194, 127], [195, 63], [196, 31]];
            let many = if many_lengths { &v4_many[..] } else { &[] };
            for [c, d] in v4.iter().chain(many) {
                let dst = Ipv4Addr::new(10, 42, *c, *d);
                assert_encapsulated(w, A, H3, &udp(ip(A.v4.unwrap(), dst, 0), b"x"));
            }
            let v6_many = if many_lengths { &[0xa, 0xb, 0xc, 0xd][..] } else { &[] };
            for d in [2, 4].iter().chain(v6_many) {
                let dst = Ipv6Addr::new(0xfd42, 0, 0, *d, 0, 0, 0, 7);
                assert_encapsulated(w, A, H3, &udp(ip(A.v6.unwrap(), dst, 0), b"x"));
            }
            // The other networks keep to their own prefixes.
            assert_encapsulated(w, A, H2, &udp(ip(A.v4.unwrap(), H2_V4, 0), b"x"));
            assert_encapsulated(w, BLUE, H2, &udp(ip(BLUE.v4.unwrap(), H2_V4, 0), b"x"));
        });
    }
}

#[test]
fn peer_without_route_is_dropped() {
    world(GRE, |w| {
        assert_eq!(w.desired.maps.peers[&H4.index].ifindex, 0);
        for port in [A, HOST] {
            let inner = udp(ip(port.v4.unwrap(), Ipv4Addr::new(10, 42, 192, 7), 0), b"x");
            let ran = w.sends_ip(port, &inner);
            ran.assert_dropped(DropReason::PeerIncomplete);
            assert_eq!(ran.traffic, [(Counter::EndpointTx(port.id), inner.len() as u64)]);
        }
    });
}

#[test]
fn container_without_an_ipv4_or_ipv6_address_can_not_send_it() {
    world(GRE, |w| {
        let v6 = udp(ip(Ipv6Addr::UNSPECIFIED, H2_V6, 0), b"x");
        w.sends_ip(B, &v6).assert_dropped(DropReason::SpoofedSource);
        let v4 = udp(ip(Ipv4Addr::UNSPECIFIED, H2_V4, 0), b"x");
        w.sends_ip(SIX, &v4).assert_dropped(DropReason::SpoofedSource);
    });
}
