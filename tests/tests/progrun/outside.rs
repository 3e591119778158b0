//! What the file, and the flow, decide of the outer headers.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use etherparse::PacketBuilder;
use mesh_common::verdict::Verdict;
use mesh_userspace::config::{Dscp, Encap};

use super::{
    packet::{assert_well_formed, ip, tcp, udp},
    spec::{A, BLUE, GENEVE, GRE, H2, H3, MTU, OLD_GENEVE, OLD_GRE, Spec, VXLAN},
    wire::{Carried, flow_label, source_port},
    world::{World, world},
};

const H2_V4: Ipv4Addr = Ipv4Addr::new(10, 42, 64, 9);
const H2_V6: Ipv6Addr = Ipv6Addr::new(0xfd42, 0, 0, 1, 0, 0, 0, 9);

/// UDP of a flow.
fn flow(v6: bool, ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let ip = if v6 { ip(A.v6.unwrap(), H2_V6, 0) } else { ip(A.v4.unwrap(), H2_V4, 0) };
    let mut packet = Vec::new();
    PacketBuilder::ip(ip).udp(ports[0], ports[1]).write(&mut packet, payload).unwrap();
    packet
}

#[test]
fn flow_keeps_its_source_port_and_label_and_flows_differ() {
    for spec in [VXLAN, Spec { ipv6: true, ..GENEVE }, Spec { ipv6: true, ..GRE }] {
        world(spec, |w| flows_differ(w, spec));
    }
}

fn flows_differ(w: &World, spec: Spec) {
    let (mut ports, mut labels) = (BTreeSet::new(), BTreeSet::new());
    const FLOWS: u16 = 64;
    for n in 0..FLOWS {
        for v6 in [false, true] {
            let sent = [&b"x"[..], &[7; 900]].map(|payload| {
                let ran = w.sends_ip(A, &flow(v6, [1000 + n, 53], payload));
                let port = spec.encap.is_udp().then(|| source_port(spec, &ran.frame));
                (port, spec.ipv6.then(|| flow_label(&ran.frame)))
            });
            assert_eq!(sent[0], sent[1], "one flow, two ways");
            ports.insert(sent[0].0);
            labels.insert(sent[0].1);
        }
    }
    // At random two of 128 meet in 14 bits every other time.
    let many = usize::from(FLOWS) * 2 * 9 / 10;
    assert_eq!(ports.len() > many, spec.encap.is_udp(), "{} ports", ports.len());
    assert_eq!(labels.len() > many, spec.ipv6, "{} labels", labels.len());
}

#[test]
fn ports_of_both_ends_and_addresses_make_the_flow() {
    world(VXLAN, |w| {
        let port = |packet: &[u8]| source_port(VXLAN, &w.sends_ip(A, packet).frame);
        let base = port(&flow(false, [1000, 53], b"x"));
        for other in [
            flow(false, [1001, 53], b"x"),
            flow(false, [1000, 54], b"x"),
            flow(true, [1000, 53], b"x"),
            udp(ip(A.v4.unwrap(), Ipv4Addr::new(10, 42, 64, 10), 0), b"x"),
            tcp(ip(A.v4.unwrap(), H2_V4, 0), b"x"),
        ] {
            assert_ne!(port(&other), base);
        }
    });
}

#[track_caller]
fn assert_sent(w: &World, inner: &[u8]) -> Vec<u8> {
    let ran = w.sends_ip(A, inner);
    assert_eq!(ran.verdict, Verdict::Encap);
    assert_eq!(ran.frame, Carried::packet(w.spec, H2, 0, inner).frame(w.spec, &ran.frame));
    assert_well_formed(&ran.frame);
    ran.frame
}

#[test]
fn ttl_or_hop_limit_and_dscp_are_the_files_and_ecn_is_the_packets() {
    let v6 = |spec| Spec { ipv6: true, ..spec };
    for (spec, ttl, dscp) in [
        (GRE, 1, Dscp::Set(0)),
        (v6(GRE), 7, Dscp::Set(46)),
        (VXLAN, 255, Dscp::Set(63)),
        (v6(GENEVE), 1, Dscp::Set(1)),
    ] {
        world(Spec { ttl: Some(ttl), dscp, ..spec }, |w| {
            for tos in [0, 1, 2, 3, 0xb8, 0xbb, 0x04, 0xff] {
                for inner in [
                    udp(ip(A.v4.unwrap(), H2_V4, tos), b"x"),
                    udp(ip(A.v6.unwrap(), H2_V6, tos), b"x"),
                ] {
                    let frame = assert_sent(w, &inner);
                    let (outer_ttl, outer_tos) = match spec.ipv6 {
                        true => (frame[21], frame[14] << 4 | frame[15] >> 4),
                        false => (frame[22], frame[15]),
                    };
                    let Dscp::Set(dscp) = dscp else { unreachable!() };
                    assert_eq!((outer_ttl, outer_tos), (ttl, dscp << 2 | tos & 3));
                }
            }
        });
    }
}

#[test]
fn outer_ipv4_is_never_cut() {
    world(VXLAN, |w| {
        let mut inner = flow(false, [1, 2], b"x");
        // What may be cut inside may not be outside.
        inner[6] = 0;
        inner[10..12].fill(0);
        let header = etherparse::Ipv4Header::from_slice(&inner).unwrap().0;
        inner[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        let frame = assert_sent(w, &inner);
        // No identification, don't fragment, offset 0.
        assert_eq!(frame[18..22], [0, 0, 0x40, 0]);
    });
}

#[test]
fn udp_port_is_the_files() {
    for (spec, port) in [(VXLAN, 8472u16), (GENEVE, 65535)] {
        world(Spec { port: Some(port), ..spec }, |w| {
            let frame = assert_sent(w, &flow(false, [1, 2], b"x"));
            assert_eq!(frame[36..38], port.to_be_bytes());
            // RFC 7348, 4 and RFC 8926, 3.3: no checksum.
            assert_eq!(frame[40..42], [0, 0]);
        });
    }
}

#[test]
fn pair_of_nodes_may_have_a_tunnel_of_its_own() {
    for ipv6 in [false, true] {
        let spec = Spec { foreign: true, ipv6, ..GRE };
        world(spec, |w| {
            for (peer, third) in [(H3, 128), (H2, 64), (OLD_GENEVE, 198), (OLD_GRE, 200)] {
                let dst = Ipv4Addr::new(10, 42, third, 7);
                for port in [A, BLUE] {
                    let inner = udp(ip(port.v4.unwrap(), dst, 0), b"x");
                    let ran = w.sends_ip(port, &inner);
                    let carried = Carried::packet(spec, peer, port.vni, &inner);
                    assert_eq!(ran.frame, carried.frame(spec, &ran.frame), "{peer:?}");
                }
            }
        });
    }
}

#[test]
fn mtu_leaves_room_for_the_headers() {
    let of = |encap, ipv6, vni| Spec { encap, ipv6, ..GRE }.mtu(vni);
    assert_eq!(Encap::ALL.map(|e| of(e, false, 0)), [MTU, MTU, 1450, 1450]);
    assert_eq!(Encap::ALL.map(|e| of(e, true, 0)), [1442, 1442, 1430, 1430]);
}
