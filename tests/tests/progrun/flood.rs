//! Broadcast and multicast: copies, and what becomes of each.

use std::net::IpAddr;

use mesh_common::{
    maps::FLOOD_MARK,
    names,
    verdict::{DropReason, Verdict},
};
use mesh_userspace::config::Encap;

use super::{
    counters::Counter::{EndpointRx, EndpointTx, PeerRx, PeerTx},
    model::flood::group_mac,
    packet::{assert_well_formed, eth, ethertype, ip, udp, udp_of},
    spec::{
        A, B, D, GRE, H2, H3, H4, H5, HOST, MTU, OLD_GENEVE, OLD_GRE, OLD_GRETAP, OLD_VXLAN, Peer,
        Port, SIX, SIX_VNI, Spec,
    },
    wire::Carried,
    world::{REDIRECT, Ran, SHOT, Skb, World, world},
};

const FLOOD: Spec = Spec { flood: true, foreign: true, ..GRE };

/// To all of network 0, or to groups that all get.
const TO_ALL: [&str; 5] =
    ["255.255.255.255", "10.42.255.255", "224.0.0.251", "ff02::1", "ff02::fb"];

fn own(port: Port, dst: IpAddr) -> IpAddr {
    if dst.is_ipv4() { port.v4.unwrap().into() } else { port.v6.unwrap().into() }
}

fn packet(port: Port, to: &str) -> Vec<u8> {
    let dst: IpAddr = to.parse().unwrap();
    udp(ip(own(port, dst), dst, 0), b"to all")
}

#[test]
fn packet_to_all_is_copied_to_each_other_endpoint_of_the_network() {
    world(FLOOD, |w| {
        for (from, to) in [A, HOST, D].into_iter().flat_map(|p| TO_ALL.map(|to| (p, to))) {
            let packet = packet(from, to);
            let ran = w.sends_ip(from, &packet);
            let others = [HOST, A, B, D].into_iter().filter(|p| p.id != from.id);
            let mut traffic: Vec<_> =
                others.map(|p| (EndpointRx(p.id), packet.len() as u64)).collect();
            traffic.push((EndpointTx(from.id), packet.len() as u64));
            traffic.sort();
            let mac = group_mac(to.parse().unwrap());
            let frame = eth(mac, FLOOD.gateway_mac(), ethertype(&packet), &packet);
            let expected =
                Ran { verdict: Verdict::Flood, reason: None, code: SHOT, frame, traffic };
            assert_eq!(ran, expected, "{to}");
        }
    });
}

/// One of the copies, as it comes through the program once more.
#[track_caller]
fn copy(w: &World, from: Port, index: u32, packet: &[u8]) -> Ran {
    let frame = eth([0xff; 6], w.spec.gateway_mac(), ethertype(packet), packet);
    let skb = Skb { ifindex: from.ifindex, mark: FLOOD_MARK | index, ..Skb::default() };
    let hook = from.hook();
    w.run_as(names::program(hook), hook, skb, &frame)
}

const PEERS: [Peer; 8] = [H2, H3, H4, H5, OLD_VXLAN, OLD_GENEVE, OLD_GRETAP, OLD_GRE];

#[test]
fn each_copy_for_a_peer_goes_to_that_peer() {
    for encap in Encap::ALL {
        for spec in [FLOOD, Spec { ipv6: true, ..FLOOD }] {
            world(Spec { encap, ..spec }, |w| {
                for (from, to) in [A, HOST].into_iter().flat_map(|p| TO_ALL.map(|to| (p, to))) {
                    for (index, peer) in (0..).zip(PEERS) {
                        expect_copy(w, from, index, peer, &packet(from, to));
                    }
                }
            });
        }
    }
}

#[track_caller]
fn expect_copy(w: &World, from: Port, index: u32, peer: Peer, packet: &[u8]) {
    let ran = copy(w, from, index, packet);
    if peer == H4 {
        ran.assert_dropped(DropReason::PeerIncomplete);
        assert_eq!(ran.traffic, []);
        return;
    }
    // The packet itself was counted for the endpoint.
    let traffic = [(PeerTx(peer.index), packet.len() as u64)];
    assert_eq!((ran.verdict, ran.code, &ran.traffic[..]), (Verdict::Encap, REDIRECT, &traffic[..]));
    let mut carried = Carried::packet(w.spec, peer, from.vni, packet);
    carried.macs[0] = group_mac(match ethertype(packet) {
        0x0800 => IpAddr::from(*packet[16..].first_chunk::<4>().unwrap()),
        _ => IpAddr::from(*packet[24..].first_chunk::<16>().unwrap()),
    });
    carried.assert_in(w.spec, &ran.frame);
    assert_well_formed(&ran.frame);
}

#[test]
fn group_that_nobody_asked_for_goes_to_nodes_without_mesh_alone() {
    for to in ["239.1.2.3", "ff0e::1:2:3"] {
        let packet = packet(A, to);
        world(FLOOD, |w| {
            let ran = w.sends_ip(A, &packet);
            let traffic = [(EndpointTx(A.id), packet.len() as u64)];
            assert_eq!((ran.verdict, &ran.traffic[..]), (Verdict::Flood, &traffic[..]));
        });
        world(Spec { foreign: false, ..FLOOD }, |w| {
            w.sends_ip(A, &packet).assert_dropped(DropReason::NoMember);
        });
    }
}

#[test]
fn copy_for_a_peer_that_is_gone_is_dropped() {
    world(FLOOD, |w| {
        for index in [8, 9, 63, 64, 0xffff] {
            copy(w, A, index, &packet(A, TO_ALL[0])).assert_dropped(DropReason::NoMember);
        }
    });
}

#[test]
fn mark_of_a_copy_on_any_other_packet_means_nothing() {
    world(FLOOD, |w| {
        let unicast = udp(ip(A.v4.unwrap(), B.v4.unwrap(), 0), b"x");
        assert_eq!(copy(w, A, 0, &unicast).verdict, Verdict::Deliver);
        let spoofed = udp(ip(B.v4.unwrap(), [255; 4], 0), b"x");
        copy(w, A, 0, &spoofed).assert_dropped(DropReason::Multicast);
    });
}

#[test]
fn packet_of_a_peer_to_all_is_copied_to_each_endpoint_and_to_no_peer() {
    for spec in [FLOOD, Spec { ipv6: true, ..FLOOD }] {
        world(spec, |w| {
            for to in TO_ALL {
                let dst: IpAddr = to.parse().unwrap();
                let src = if dst.is_ipv4() { "10.42.64.9" } else { "fd42:0:0:1::9" };
                let inner = udp(ip(src.parse::<IpAddr>().unwrap(), dst, 0), b"to all");
                let ends = [H2.at(spec), spec.me()];
                let outer = spec.tunnel(H2, 0).packet(ends, 0, ethertype(&inner), &inner);
                let ran = w.receives(&outer);
                let bytes = inner.len() as u64;
                let mut traffic = [HOST, A, B, D].map(|p| (EndpointRx(p.id), bytes)).to_vec();
                traffic.push((PeerRx(H2.index), bytes));
                traffic.sort();
                let frame = eth(group_mac(dst), spec.gateway_mac(), ethertype(&inner), &inner);
                let expected =
                    Ran { verdict: Verdict::Flood, reason: None, code: SHOT, frame, traffic };
                assert_eq!(ran, expected, "{to}");
            }
        });
    }
}

#[test]
fn source_that_is_not_the_senders_is_dropped_and_copied_to_nobody() {
    world(FLOOD, |w| {
        for (src, dst) in [
            ("10.42.0.3", "255.255.255.255"),
            ("0.0.0.0", "255.255.255.255"),
            ("10.42.64.9", "224.0.0.251"),
            ("fd42::5", "ff02::fb"),
            ("fe80::ff:fe00:102", "ff02::fb"),
            ("fe80::1", "ff02::fb"),
            ("::", "ff02::fb"),
        ] {
            let [src, dst] = [src, dst].map(|a| a.parse::<IpAddr>().unwrap());
            let ran = w.sends_ip(A, &udp(ip(src, dst, 0), b"x"));
            ran.assert_dropped(DropReason::Multicast);
            assert_eq!(ran.traffic, []);
        }
        // Of h3, and of this node.
        for src in ["10.42.128.9", "10.42.0.2", "0.0.0.0"] {
            let src: IpAddr = src.parse().unwrap();
            let inner = udp(ip(src, IpAddr::from([255; 4]), 0), b"x");
            let ends = [H2.at(FLOOD), FLOOD.me()];
            let outer = FLOOD.tunnel(H2, 0).packet(ends, 0, ethertype(&inner), &inner);
            w.receives(&outer).assert_dropped(DropReason::SourceNotPeers);
        }
    });
}

#[test]
fn link_local_address_of_the_senders_mac_may_send_to_groups_and_to_nobody_else() {
    world(FLOOD, |w| {
        let own: IpAddr = "fe80::ff:fe00:101".parse().unwrap();
        let dst: IpAddr = "ff02::fb".parse().unwrap();
        assert_eq!(w.sends_ip(A, &udp(ip(own, dst, 0), b"x")).verdict, Verdict::Flood);
        let to_d = udp(ip(own, D.v6.unwrap(), 0), b"x");
        w.sends_ip(A, &to_d).assert_dropped(DropReason::SpoofedSource);
    });
}

#[test]
fn packet_to_all_that_is_too_big_is_dropped_without_an_answer() {
    world(FLOOD, |w| {
        let mtu = FLOOD.mtu(0);
        assert!(mtu < MTU);
        let dst = IpAddr::from([255; 4]);
        let of = |len| udp_of(ip(own(A, dst), dst, 0), len);
        assert_eq!(w.sends_ip(A, &of(mtu)).verdict, Verdict::Flood);
        let ran = w.sends_ip(A, &of(mtu + 1));
        ran.assert_dropped(DropReason::TooBig);
        assert_eq!(ran.code, SHOT);
        // The way to one peer may be narrower.
        let index = PEERS.iter().position(|p| *p == H5).unwrap() as u32;
        copy(w, A, index, &of(mtu)).assert_dropped(DropReason::TooBig);
    });
}

#[test]
fn network_that_does_not_flood_drops_what_is_for_all() {
    world(FLOOD, |w| {
        let blue =
            udp(ip(own(super::spec::BLUE, [255; 4].into()), IpAddr::from([255; 4]), 0), b"x");
        w.sends_ip(super::spec::BLUE, &blue).assert_dropped(DropReason::Multicast);
        let six = packet(SIX, "ff02::1");
        let ran = w.sends_ip(SIX, &six);
        assert_eq!(ran.traffic, [(EndpointTx(SIX.id), six.len() as u64)]);
        assert_eq!((SIX.vni, ran.verdict), (SIX_VNI, Verdict::Flood));
    });
    world(GRE, |w| {
        for to in ["255.255.255.255", "224.0.0.251", "ff02::1"] {
            w.sends_ip(A, &packet(A, to)).assert_dropped(DropReason::Multicast);
        }
        w.sends_ip(A, &packet(A, "10.42.255.255")).assert_dropped(DropReason::NoRoute);
    });
}
