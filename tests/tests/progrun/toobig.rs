//! Packets above the MTU: dropped, counted, and turned into an ICMP error for their sender.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_common::{
    maps::PeerInfo,
    verdict::{DropReason, Verdict},
};

use super::{
    counters::Counter,
    packet::{IPV4, IPV6, assert_well_formed, eth, ethertype, ip, ip_with, tcp, udp_of},
    spec::{A, B, BLUE, D, GRE, GRETAP, H2, H5_MTU, HOST, MTU, Port, SIX},
    world::{REDIRECT, Ran, SHOT, World, gateway_mac, world},
};

/// How much of the packet is sent back.
const QUOTE: usize = 128;

/// The error that a router sends: to the sender, from the gateway, with the MTU.
fn icmp_error(port: Port, packet: &[u8], mtu: usize) -> Vec<u8> {
    let quote = &packet[..QUOTE];
    let (ip, ethertype) = match packet[0] >> 4 {
        4 => {
            // RFC 792 and 1191: destination unreachable, fragmentation needed.
            let mut icmp = vec![3, 4, 0, 0, 0, 0];
            icmp.extend((mtu as u16).to_be_bytes());
            icmp.extend(quote);
            let (header, rest) = etherparse::Icmpv4Header::from_slice(&icmp).unwrap();
            let sum = header.icmp_type.calc_checksum(rest);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut packet =
                ip_with(ip(Ipv4Addr::new(10, 42, 0, 1), port.v4.unwrap(), 0), 1, &icmp);
            // Nothing keeps a router from cutting it.
            packet[6] = 0;
            packet[10..12].fill(0);
            let header = etherparse::Ipv4Header::from_slice(&packet).unwrap().0;
            packet[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
            (packet, IPV4)
        }
        _ => {
            // RFC 4443, 3.2: packet too big.
            let mut icmp = vec![2, 0, 0, 0];
            icmp.extend((mtu as u32).to_be_bytes());
            icmp.extend(quote);
            let own = port.v6.unwrap();
            let gateway = Ipv6Addr::from_bits(own.to_bits() >> 64 << 64 | 1);
            let (header, rest) = etherparse::Icmpv6Header::from_slice(&icmp).unwrap();
            let sum = header.icmp_type.calc_checksum(gateway.octets(), own.octets(), rest).unwrap();
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            (ip_with(ip(gateway, own, 0), 58, &icmp), IPV6)
        }
    };
    eth(port.mac, gateway_mac(), ethertype, &ip)
}

#[track_caller]
fn assert_answered(ran: &Ran, port: Port, packet: &[u8], mtu: usize) {
    ran.assert_dropped(DropReason::TooBig);
    assert_eq!(ran.frame, icmp_error(port, packet, mtu));
    assert_well_formed(&ran.frame);
    assert_eq!(ran.traffic, [(Counter::EndpointTx(port.id), packet.len() as u64)]);
}

/// `mtu` bytes pass, one more is answered.
#[track_caller]
fn assert_limit(w: &World, port: Port, dst: IpAddr, mtu: usize, passes: Verdict) {
    let src: IpAddr = match dst {
        IpAddr::V4(_) => port.v4.unwrap().into(),
        IpAddr::V6(_) => port.v6.unwrap().into(),
    };
    for len in [mtu - 1, mtu] {
        let ran = w.sends_ip(port, &udp_of(ip(src, dst, 0), len));
        assert_eq!(ran.verdict, passes, "{len} bytes");
    }
    for len in [mtu + 1, mtu + 2, mtu + 38, 1500, 3000] {
        let packet = udp_of(ip(src, dst, 0), len);
        assert_answered(&w.sends_ip(port, &packet), port, &packet, mtu);
    }
}

fn addr(s: &str) -> IpAddr {
    s.parse().unwrap()
}

#[test]
fn packet_above_the_mtu_is_answered_and_one_of_the_mtu_passes() {
    world(GRE, |w| {
        for port in [A, HOST, D] {
            assert_limit(w, port, addr("10.42.64.9"), MTU, Verdict::Encap);
            assert_limit(w, port, addr("fd42:0:0:1::9"), MTU, Verdict::Encap);
        }
        assert_limit(w, BLUE, addr("10.42.64.9"), MTU, Verdict::Encap);
        assert_limit(w, BLUE, addr("fd43:0:0:1::9"), MTU, Verdict::Encap);
        assert_limit(w, SIX, addr("fd49:0:0:1::9"), MTU, Verdict::Encap);
    });
}

#[test]
fn gretap_leaves_less_with_a_key() {
    world(GRETAP, |w| {
        assert_limit(w, A, addr("10.42.64.9"), 1462, Verdict::Encap);
        assert_limit(w, A, addr("fd42:0:0:1::9"), 1462, Verdict::Encap);
        assert_limit(w, BLUE, addr("10.42.64.9"), 1458, Verdict::Encap);
    });
}

#[test]
fn way_with_a_smaller_mtu_has_its_own_limit() {
    let underlay = H5_MTU as usize;
    world(GRE, |w| {
        assert_limit(w, A, addr("10.42.193.9"), underlay - 24, Verdict::Encap);
        assert_limit(w, A, addr("fd42:0:0:5::9"), underlay - 24, Verdict::Encap);
        assert_limit(w, BLUE, addr("10.42.193.9"), underlay - 28, Verdict::Encap);
    });
    world(GRETAP, |w| {
        assert_limit(w, A, addr("10.42.193.9"), underlay - 38, Verdict::Encap);
        assert_limit(w, BLUE, addr("10.42.193.9"), underlay - 42, Verdict::Encap);
    });
}

#[test]
fn local_delivery_has_the_limit_of_the_network() {
    world(GRE, |w| {
        assert_limit(w, A, B.v4.unwrap().into(), MTU, Verdict::Deliver);
        assert_limit(w, A, D.v6.unwrap().into(), MTU, Verdict::Deliver);
        assert_limit(w, A, HOST.v4.unwrap().into(), MTU, Verdict::Host);
        assert_limit(w, HOST, A.v4.unwrap().into(), MTU, Verdict::Deliver);
    });
}

#[test]
fn super_packet_is_judged_by_its_segments() {
    world(GRE, |w| {
        let cases: [(IpAddr, IpAddr, usize); 2] = [
            (A.v4.unwrap().into(), B.v4.unwrap().into(), 20),
            (A.v6.unwrap().into(), D.v6.unwrap().into(), 40),
        ];
        for (src, dst, ip_len) in cases {
            // TCP without options has 20 bytes; anything else is taken for UDP, which has 8.
            let tcp = tcp(ip(src, dst, 0), &[7; 3000]);
            for (packet, headers) in
                [(tcp, ip_len + 20), (udp_of(ip(src, dst, 0), 3000), ip_len + 8)]
            {
                let frame = eth(gateway_mac(), A.mac, ethertype(&packet), &packet);
                let fits = (MTU - headers) as u32;
                let ran = w.sends_segments(A, &frame, fits);
                assert_eq!(ran.verdict, Verdict::Deliver);
                // One that is answered is an ordinary packet from then on.
                let ran = w.sends_segments(A, &frame, fits + 1);
                ran.assert_dropped(DropReason::TooBig);
            }
        }
    });
}

#[test]
fn options_of_tcp_count_in_its_segments() {
    world(GRE, |w| {
        let builder = etherparse::PacketBuilder::ip(ip(A.v4.unwrap(), B.v4.unwrap(), 0))
            .tcp(1, 2, 3, 4)
            .options_raw(&[1; 12])
            .unwrap();
        let mut packet = Vec::new();
        builder.write(&mut packet, &[7; 3000]).unwrap();
        let frame = eth(gateway_mac(), A.mac, IPV4, &packet);
        let fits = MTU as u32 - 20 - 32;
        assert_eq!(w.sends_segments(A, &frame, fits).verdict, Verdict::Deliver);
        w.sends_segments(A, &frame, fits + 1).assert_dropped(DropReason::TooBig);
    });
}

#[test]
fn each_family_has_a_limit_of_its_own_on_the_way_to_a_peer() {
    world(GRE, |w| {
        let peer = w.tables.peers.get(&H2.index).unwrap().unwrap();
        let narrow = PeerInfo { underlay_mtu: 1000, underlay_mtu6: 1304, ..peer };
        w.set_peers(&[(H2.index, narrow)]);
        assert_limit(w, A, addr("10.42.64.9"), 1000 - 24, Verdict::Encap);
        assert_limit(w, A, addr("fd42:0:0:1::9"), 1304 - 24, Verdict::Encap);
    });
}

#[test]
fn too_big_icmp_error_is_dropped_in_silence() {
    world(GRE, |w| {
        let v4 = ip(A.v4.unwrap(), B.v4.unwrap(), 0);
        let v6 = ip(A.v6.unwrap(), Ipv6Addr::new(0xfd42, 0, 0, 2, 0, 0, 0, 9), 0);
        let long = |kind: u8| [vec![kind, 0, 0, 0], vec![0; MTU]].concat();
        // Time exceeded is an error, echo is none.
        for (packet, code) in [
            (ip_with(v4.clone(), 1, &long(11)), SHOT),
            (ip_with(v4, 1, &long(8)), REDIRECT),
            (ip_with(v6.clone(), 58, &long(3)), SHOT),
            (ip_with(v6, 58, &long(128)), REDIRECT),
        ] {
            let ran = w.sends_ip(A, &packet);
            ran.assert_dropped(DropReason::TooBig);
            assert_eq!(ran.code, code);
        }
    });
}

#[test]
fn too_big_later_fragment_is_dropped_in_silence() {
    world(GRE, |w| {
        let mut packet = udp_of(ip(A.v4.unwrap(), B.v4.unwrap(), 0), MTU + 1);
        packet[6..8].copy_from_slice(&100u16.to_be_bytes());
        packet[10..12].fill(0);
        let header = etherparse::Ipv4Header::from_slice(&packet).unwrap().0;
        packet[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        let ran = w.sends_ip(A, &packet);
        ran.assert_dropped(DropReason::TooBig);
        assert_eq!(ran.code, SHOT);
    });
}
