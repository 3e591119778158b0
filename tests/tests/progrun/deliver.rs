//! Endpoints of one host among themselves, and what an endpoint may not send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_common::verdict::{DropReason, Verdict};

use super::{
    counters::Counter,
    packet::{eth, ethertype, ip, ip_with, tcp, udp, udp_of},
    spec::{A, B, BLUE, BLUE_2, D, GRE, GRETAP, HOST, MTU, Port, SIX},
    world::{REDIRECT, Ran, World, gateway_mac, world},
};

#[track_caller]
fn assert_delivered(w: &World, from: Port, to: Port, packet: &[u8]) {
    let bytes = packet.len() as u64;
    let mut traffic =
        vec![(Counter::EndpointTx(from.id), bytes), (Counter::EndpointRx(to.id), bytes)];
    traffic.sort();
    let expected = Ran {
        verdict: if to.id == HOST.id { Verdict::Host } else { Verdict::Deliver },
        reason: None,
        code: REDIRECT,
        frame: eth(to.mac, gateway_mac(), ethertype(packet), packet),
        traffic,
    };
    assert_eq!(w.sends_ip(from, packet), expected);
}

#[test]
fn endpoints_of_one_host_and_network_reach_each_other() {
    for spec in [GRE, GRETAP] {
        world(spec, |w| {
            for (from, to) in [(A, B), (B, A), (A, D), (D, A), (HOST, A), (A, HOST), (D, HOST)] {
                let (src, dst) = (from.v4.unwrap(), to.v4.unwrap());
                assert_delivered(w, from, to, &udp(ip(src, dst, 3), b"payload"));
                assert_delivered(w, from, to, &tcp(ip(src, dst, 0), b""));
                let mtu = w.desired.maps.networks[&from.vni].mtu as usize;
                assert_eq!(mtu, MTU);
                assert_delivered(w, from, to, &udp_of(ip(src, dst, 0), mtu));
            }
            for (from, to) in [(A, D), (HOST, D), (D, HOST), (BLUE, BLUE_2)] {
                let (src, dst) = (from.v6.unwrap(), to.v6.unwrap());
                assert_delivered(w, from, to, &udp(ip(src, dst, 0), b"payload"));
            }
            // The same two addresses in the other network.
            let packet = udp(ip(A.v4.unwrap(), B.v4.unwrap(), 0), b"x");
            assert_delivered(w, BLUE, BLUE_2, &packet);
        });
    }
}

#[test]
fn super_packet_is_delivered_whole() {
    world(GRE, |w| {
        let packet = tcp(ip(A.v4.unwrap(), B.v4.unwrap(), 0), &[7; 3000]);
        let frame = eth([0; 6], A.mac, ethertype(&packet), &packet);
        let ran = w.sends_segments(A, &frame, MTU as u32 - 40);
        assert_eq!(ran.verdict, Verdict::Deliver);
        assert_eq!(ran.frame[14..], packet);
    });
}

#[test]
fn source_that_is_not_the_endpoints_own_is_dropped_and_not_counted_for_it() {
    world(GRE, |w| {
        let v4 = ["10.42.0.3", "10.42.0.1", "10.42.64.9", "192.0.2.11", "0.0.0.0", "127.0.0.1"];
        for src in v4.into_iter().chain(["255.255.255.255", "224.0.0.1"]) {
            let src: Ipv4Addr = src.parse().unwrap();
            for dst in [B.v4.unwrap(), HOST.v4.unwrap(), Ipv4Addr::new(10, 42, 64, 9)] {
                let ran = w.sends_ip(A, &udp(ip(src, dst, 0), b"x"));
                ran.assert_dropped(DropReason::SpoofedSource);
                assert_eq!(ran.traffic, []);
            }
        }
        for src in ["fd42::5", "fd42::1", "fe80::2", "::", "::1", "ff02::1", "::ffff:10.42.0.2"] {
            let src: Ipv6Addr = src.parse().unwrap();
            let ran = w.sends_ip(A, &udp(ip(src, D.v6.unwrap(), 0), b"x"));
            ran.assert_dropped(DropReason::SpoofedSource);
            assert_eq!(ran.traffic, []);
        }
        // The host has no more rights than a container.
        let ran = w.sends_ip(HOST, &udp(ip(A.v4.unwrap(), B.v4.unwrap(), 0), b"x"));
        ran.assert_dropped(DropReason::SpoofedSource);
    });
}

#[test]
fn destination_without_anybody_is_dropped() {
    world(GRE, |w| {
        for (from, dst, reason) in [
            (A, "10.42.0.77", DropReason::NoEndpoint),
            (A, "10.42.63.255", DropReason::NoEndpoint),
            (A, "10.42.250.1", DropReason::NoRoute),
            (A, "8.8.8.8", DropReason::NoRoute),
            (A, "192.0.2.12", DropReason::NoRoute),
            (A, "0.0.0.0", DropReason::NoRoute),
            (A, "224.0.0.251", DropReason::Multicast),
            (A, "239.255.255.255", DropReason::Multicast),
            (A, "255.255.255.255", DropReason::Multicast),
            (A, "fd42::77", DropReason::NoEndpoint),
            (A, "fd42:0:0:99::1", DropReason::NoRoute),
            (A, "fd43::2", DropReason::NoRoute),
            (A, "fe80::1", DropReason::NoRoute),
            (A, "ff02::fb", DropReason::Multicast),
            // The IPv4 subnet in the clothes of IPv6.
            (A, "::ffff:10.42.0.3", DropReason::NoRoute),
            // A network's gateway is the host only in the cluster's own.
            (BLUE, "10.42.0.1", DropReason::NoEndpoint),
            (BLUE, "10.42.0.5", DropReason::NoEndpoint),
            (SIX, "fd42::2", DropReason::NoRoute),
            (A, "10.42.0.2", DropReason::Hairpin),
            (A, "fd42::2", DropReason::Hairpin),
            (HOST, "10.42.0.1", DropReason::Hairpin),
            (HOST, "224.0.0.1", DropReason::Multicast),
            (HOST, "8.8.8.8", DropReason::NoRoute),
            (HOST, "10.42.0.77", DropReason::NoEndpoint),
        ] {
            let dst: IpAddr = dst.parse().unwrap();
            let src: IpAddr =
                if dst.is_ipv4() { from.v4.unwrap().into() } else { from.v6.unwrap().into() };
            let packet = udp(ip(src, dst, 0), b"x");
            let ran = w.sends_ip(from, &packet);
            ran.assert_dropped(reason);
            // Its own, so it was sent; and the packet is as it was.
            assert_eq!(ran.traffic, [(Counter::EndpointTx(from.id), packet.len() as u64)]);
        }
    });
}

#[test]
fn multicast_of_an_address_that_is_not_its_own_is_multicast_rather_than_spoofed() {
    world(GRE, |w| {
        for (src, dst) in [
            ("0.0.0.0", "224.0.0.22"),
            ("0.0.0.0", "255.255.255.255"),
            ("::", "ff02::16"),
            ("fe80::2", "ff02::fb"),
        ] {
            let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
            for port in [A, HOST] {
                let ran = w.sends_ip(port, &ip_with(ip(src, dst, 0), 2, &[0; 8]));
                ran.assert_dropped(DropReason::Multicast);
                assert_eq!(ran.traffic, []);
            }
        }
    });
}

#[test]
fn what_is_neither_ip_nor_arp_is_dropped() {
    world(GRE, |w| {
        let packet = udp(ip(A.v4.unwrap(), B.v4.unwrap(), 0), b"x");
        for ethertype in [0, 1, 46, 0x0600, 0x0801, 0x8100, 0x88a8, 0x88cc, 0x6558, 0xffff] {
            for port in [A, HOST] {
                let ran = w.sends(port, &eth(gateway_mac(), port.mac, ethertype, &packet));
                ran.assert_dropped(DropReason::NotIp);
                assert_eq!(ran.traffic, []);
            }
        }
    });
}

#[test]
fn header_of_another_version_than_its_ethertype_is_dropped() {
    world(GRE, |w| {
        let v4 = udp(ip(A.v4.unwrap(), B.v4.unwrap(), 0), &[0; 40]);
        let v6 = udp(ip(A.v6.unwrap(), D.v6.unwrap(), 0), b"x");
        for (ethertype, packet) in [(0x86dd, &v4), (0x0800, &v6)] {
            let ran = w.sends(A, &eth(gateway_mac(), A.mac, ethertype, packet));
            ran.assert_dropped(DropReason::Truncated);
        }
        for first in [0x00, 0x35, 0x40, 0x44, 0x55] {
            let mut packet = v4.clone();
            packet[0] = first;
            w.sends_ip(A, &packet).assert_dropped(DropReason::Truncated);
        }
    });
}
