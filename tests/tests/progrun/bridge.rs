//! Ports of somebody else's bridge: what is learned from them, what is taken, and what is left to
//! the bridge.

use std::net::{IpAddr, Ipv4Addr};

use mesh_common::{
    maps::{Addr, LearnedKey},
    verdict::{DropReason, Hook, Verdict},
};
use mesh_userspace::bpf::sync;

use super::{
    counters::Counter,
    decap::from_peer,
    packet::{ARP, IPV4, Mac, eth, ethertype, ip, udp_of},
    spec::{A, GRE, H2, HOST, MTU, Port, Spec, TELLS, TOLD},
    world::{Ran, Skb, World, gateway_mac, world},
};

const BRIDGED: Spec = Spec { bridge: true, ..GRE };
const ALL: Mac = [0xff; 6];
/// The bridge's own, and a neighbour's on it.
const BRIDGE_MAC: Mac = [2, 0x42, 0, 0, 0, 1];

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// From an address that may not be the port's.
fn from(w: &World, port: Port, src: &str, dst: &str) -> Ran {
    let packet = udp_of(ip(addr(src), addr(dst), 0), 100);
    w.sends(port, &eth(gateway_mac(), port.mac, ethertype(&packet), &packet))
}

fn arp(w: &World, port: Port, op: u16, sender: &str, target: &str) -> (Ran, Vec<u8>) {
    let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
    let fixed = [0, 1, 8, 0, 6, 4];
    let body =
        [&fixed[..], &op.to_be_bytes(), &port.mac, &ip(sender), &[0; 6], &ip(target)].concat();
    let frame = eth(ALL, port.mac, ARP, &body);
    (w.sends(port, &frame), frame)
}

fn learned(w: &World) -> Vec<(u32, u32, IpAddr)> {
    let learned = sync::learned(&w.tables).unwrap().into_iter();
    let mut learned: Vec<_> =
        learned.map(|(k, told)| (k.ifindex, k.family, told.endpoint.addr.into())).collect();
    learned.sort_unstable();
    learned
}

#[test]
fn the_first_address_that_a_port_sends_from_is_its_and_it_gets_no_other() {
    world(BRIDGED, |w| {
        let sent = from(w, TELLS, "10.42.0.9", "10.42.64.9");
        assert_eq!(sent.verdict, Verdict::Encap);
        assert_eq!(from(w, TELLS, "fd42::9", "fd42:0:0:1::9").verdict, Verdict::Encap);
        let expected = [(TELLS.ifindex, 4, addr("10.42.0.9")), (TELLS.ifindex, 6, addr("fd42::9"))];
        assert_eq!(learned(w), expected);
        for (src, dst) in [
            ("10.42.0.11", "10.42.64.9"),
            // Not even to its neighbours or to the world.
            ("10.42.0.11", "10.42.0.12"),
            ("10.42.0.11", "8.8.8.8"),
            ("fd42::11", "fd42:0:0:1::9"),
            // What others have, and what is another node's.
            ("10.42.0.2", "10.42.64.9"),
            ("10.42.0.10", "10.42.64.9"),
            ("10.42.0.1", "10.42.64.9"),
            ("10.42.64.7", "10.42.64.9"),
            ("10.42.64.7", "8.8.8.8"),
        ] {
            from(w, TELLS, src, dst).assert_dropped(DropReason::SpoofedSource);
        }
        assert_eq!(learned(w), expected);
        assert_eq!(from(w, TELLS, "10.42.0.9", "10.42.64.9").verdict, Verdict::Encap);
    });
}

#[test]
fn an_address_belongs_to_the_port_that_used_it_first() {
    world(BRIDGED, |w| {
        // Free, but Docker said what this port has.
        from(w, TOLD, "10.42.0.9", "10.42.64.9").assert_dropped(DropReason::SpoofedSource);
        assert_eq!(from(w, TOLD, "10.42.0.10", "10.42.64.9").verdict, Verdict::Encap);
        assert_eq!(learned(w), []);
        // Another's.
        from(w, TELLS, "10.42.0.10", "10.42.64.9").assert_dropped(DropReason::SpoofedSource);
        assert_eq!(learned(w), []);
        // A container of mesh's own learns nothing.
        from(w, A, "10.42.0.9", "10.42.64.9").assert_dropped(DropReason::SpoofedSource);
        assert_eq!(learned(w), []);
        assert_eq!(from(w, TELLS, "10.42.0.9", "10.42.64.9").verdict, Verdict::Encap);
    });
}

#[test]
fn what_is_not_for_another_node_is_the_bridges() {
    world(BRIDGED, |w| {
        let left = |port: Port, dst_mac: Mac, src: &str, dst: &str| {
            let packet = udp_of(ip(addr(src), addr(dst), 0), 100);
            let frame = eth(dst_mac, port.mac, ethertype(&packet), &packet);
            w.sends(port, &frame).assert_passed(&frame);
        };
        for port in [TELLS, TOLD] {
            let own = port.v4.unwrap().to_string();
            // The world, the host, a neighbour, broadcast, multicast.
            for dst in ["8.8.8.8", "10.42.0.1", "10.42.0.77", "224.0.0.1"] {
                left(port, BRIDGE_MAC, &own, dst);
            }
            left(port, ALL, &own, "10.42.255.255");
            // DHCP, and addresses that the mesh has nothing to do with.
            left(port, ALL, "0.0.0.0", "255.255.255.255");
            left(port, BRIDGE_MAC, "172.17.0.2", "8.8.8.8");
            left(port, [0x33, 0x33, 0, 0, 0, 2], "fe80::1", "ff02::2");
            // What is no IP.
            let frame = eth(BRIDGE_MAC, port.mac, 0x88cc, &[0; 60]);
            w.sends(port, &frame).assert_passed(&frame);
            let ran = w.run_as(
                "tagged_from_endpoint",
                Hook::FromContainer,
                Skb { ifindex: port.ifindex, ..Skb::default() },
                &eth(
                    BRIDGE_MAC,
                    port.mac,
                    IPV4,
                    &udp_of(ip(addr(&own), addr("10.42.64.9"), 0), 60),
                ),
            );
            assert_eq!(ran.verdict, Verdict::Pass);
        }
        // The mesh can not carry it, and answers would not come back.
        from(w, TELLS, "172.17.0.2", "10.42.64.9").assert_dropped(DropReason::SpoofedSource);
        // Nobody on the bridge has the MAC that mesh answers with.
        from(w, TELLS, "10.42.0.9", "10.42.250.1").assert_dropped(DropReason::NoRoute);
    });
}

/// Not even what it gives the mesh by the MAC that this answers with.
#[test]
fn what_a_bridge_sends_to_all_stays_there() {
    world(Spec { flood: true, ..BRIDGED }, |w| {
        let ran = from(w, TELLS, "10.42.0.9", "10.42.255.255");
        ran.assert_dropped(DropReason::Multicast);
        assert_eq!(from(w, TELLS, "10.42.0.9", "10.42.64.9").verdict, Verdict::Encap);
    });
}

#[test]
fn what_is_too_big_is_answered_to_whoever_sent_it() {
    world(BRIDGED, |w| {
        let packet = udp_of(ip(addr("10.42.0.9"), addr("10.42.64.9"), 0), MTU + 1);
        let ran = w.sends(TELLS, &eth(gateway_mac(), TELLS.mac, IPV4, &packet));
        ran.assert_dropped(DropReason::TooBig);
        assert_eq!(ran.frame[..6], TELLS.mac);
        assert_eq!(ran.traffic, [(Counter::EndpointTx(TELLS.id), packet.len() as u64)]);
    });
}

#[test]
fn arp_is_answered_for_what_is_elsewhere_and_the_rest_is_the_bridges() {
    world(BRIDGED, |w| {
        for port in [TELLS, TOLD] {
            let own = port.v4.unwrap().to_string();
            // Another node's, and a container that is attached beside the bridge.
            for target in ["10.42.64.9", "10.42.0.2"] {
                let (ran, _) = arp(w, port, 1, &own, target);
                assert_eq!(ran.verdict, Verdict::Answer, "{target}");
                assert_eq!(
                    (&ran.frame[..6], &ran.frame[6..12]),
                    (&port.mac[..], &gateway_mac()[..])
                );
            }
            // The host, which has it on the bridge too; a neighbour; nobody's.
            for target in ["10.42.0.1", "10.42.0.77", "10.42.250.1", "8.8.8.8"] {
                let (ran, frame) = arp(w, port, 1, &own, target);
                ran.assert_passed(&frame);
            }
            // Is it free? Whoever has it says so.
            let (ran, frame) = arp(w, port, 1, "0.0.0.0", &own);
            ran.assert_passed(&frame);
            let (ran, _) = arp(w, port, 1, "10.42.0.1", "10.42.0.77");
            ran.assert_dropped(DropReason::SpoofedSource);
            let (ran, _) = arp(w, port, 2, "10.42.0.2", "10.42.0.77");
            ran.assert_dropped(DropReason::SpoofedSource);
        }
    });
}

#[test]
fn an_answer_to_arp_tells_the_address_too() {
    world(BRIDGED, |w| {
        let (ran, frame) = arp(w, TELLS, 2, "10.42.0.9", "10.42.0.1");
        ran.assert_passed(&frame);
        assert_eq!(learned(w), [(TELLS.ifindex, 4, addr("10.42.0.9"))]);
    });
}

#[test]
fn what_arrives_for_an_unknown_address_is_asked_for_on_the_bridge() {
    let arrives = |w: &World, dst: &str| {
        let inner = udp_of(ip(addr("10.42.64.9"), addr(dst), 0), 100);
        (w.receives(&from_peer(H2, mesh_userspace::config::Encap::Gre, 0, 0, &inner)), inner)
    };
    world(BRIDGED, |w| {
        for dst in ["10.42.0.9", "10.42.0.77"] {
            let (ran, inner) = arrives(w, dst);
            assert_eq!(ran.verdict, Verdict::Host, "{dst}");
            assert_eq!(ran.frame[14..], inner);
        }
        from(w, TELLS, "10.42.0.9", "10.42.64.9");
        let (ran, inner) = arrives(w, "10.42.0.9");
        assert_eq!(ran.verdict, Verdict::Deliver);
        assert_eq!(ran.frame, eth(TELLS.mac, gateway_mac(), IPV4, &inner));
        assert_eq!(arrives(w, "10.42.0.10").0.verdict, Verdict::Deliver);
        // Of another node's it would be wrong.
        arrives(w, "10.42.128.9").0.assert_dropped(DropReason::NoEndpoint);
        // A container beside the bridge reaches both as well.
        assert_eq!(from(w, A, "10.42.0.2", "10.42.0.77").verdict, Verdict::Host);
        assert_eq!(from(w, A, "10.42.0.2", "10.42.0.9").verdict, Verdict::Deliver);
        assert_eq!(arp(w, A, 1, "10.42.0.2", "10.42.0.77").0.verdict, Verdict::Answer);
    });
    world(GRE, |w| arrives(w, "10.42.0.77").0.assert_dropped(DropReason::NoEndpoint));
}

#[test]
fn the_host_may_send_from_each_of_its_addresses() {
    world(BRIDGED, |w| {
        assert_eq!(from(w, HOST, "10.42.0.1", "10.42.64.9").verdict, Verdict::Encap);
        from(w, HOST, "10.42.0.9", "10.42.64.9").assert_dropped(DropReason::SpoofedSource);
        let key = LearnedKey { ifindex: HOST.ifindex, family: 4 };
        assert_eq!(w.tables.learned.get(&key).unwrap(), None);
        assert_ne!(Addr::from(addr("10.42.0.1")), Addr::default());
    });
}
