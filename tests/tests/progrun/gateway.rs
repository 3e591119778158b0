//! A network that this host is the gateway of: what leads out of it is the host's.

use std::net::IpAddr;

use mesh_common::verdict::{DropReason, Verdict};

use super::{
    decap::from_peer,
    packet::{eth, ethertype, ip, udp_of},
    spec::{A, BLUE, GRE, H2, Port, Spec},
    world::{Ran, World, gateway_mac, world},
};

const GATEWAY: Spec = Spec { gateway: true, ..GRE };

fn to(w: &World, port: Port, dst: &str) -> Ran {
    let dst: IpAddr = dst.parse().unwrap();
    let own: IpAddr = if dst.is_ipv4() { port.v4.unwrap().into() } else { port.v6.unwrap().into() };
    let packet = udp_of(ip(own, dst, 0), 100);
    w.sends(port, &eth(gateway_mac(), port.mac, ethertype(&packet), &packet))
}

#[test]
fn the_world_and_the_gateway_are_the_hosts_and_nothing_else() {
    world(GATEWAY, |w| {
        for dst in ["8.8.8.8", "198.51.100.1", "10.42.0.1"] {
            assert_eq!(to(w, BLUE, dst).verdict, Verdict::Host, "{dst}");
        }
        assert_eq!(to(w, BLUE, "10.42.64.9").verdict, Verdict::Encap);
        to(w, BLUE, "10.42.0.77").assert_dropped(DropReason::NoEndpoint);
        to(w, BLUE, "127.0.0.1").assert_dropped(DropReason::NoRoute);
        for dst in ["224.0.0.1", "255.255.255.255"] {
            to(w, BLUE, dst).assert_dropped(DropReason::Multicast);
        }
        // Another network has no gateway.
        to(w, A, "8.8.8.8").assert_dropped(DropReason::NoRoute);
        to(w, A, "10.42.0.77").assert_dropped(DropReason::NoEndpoint);
    });
    world(GRE, |w| to(w, BLUE, "8.8.8.8").assert_dropped(DropReason::NoRoute));
}

#[test]
fn a_spoofed_source_gets_nowhere() {
    world(GATEWAY, |w| {
        let packet = udp_of(ip([10, 42, 0, 77], [8, 8, 8, 8], 0), 100);
        let sent = w.sends(BLUE, &eth(gateway_mac(), BLUE.mac, ethertype(&packet), &packet));
        sent.assert_dropped(DropReason::SpoofedSource);
    });
}

#[test]
fn a_peer_gets_out_by_its_own_host_alone() {
    world(GATEWAY, |w| {
        for dst in [[8, 8, 8, 8], [10, 42, 0, 1]] {
            let inner = udp_of(ip([10, 42, 64, 9], dst, 0), 100);
            let frame = from_peer(H2, GRE.encap, BLUE.vni, 0, &inner);
            w.receives(&frame).assert_dropped(DropReason::NoEndpoint);
        }
    });
}
