//! Peers without mesh that are a switch: what they say and ask by ARP and neighbour discovery.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_common::verdict::{
    DropReason::{self, NoReply, NotIp, SourceNotPeers, Truncated},
    Verdict,
};
use mesh_userspace::config::Encap;

use super::{
    fuzz::{neighbour, neighbour_key},
    model::{advertisement, arp, neighbour_message, solicitation},
    packet::{ARP, IPV4, IPV6, Mac, assert_well_formed, eth, ip, ip_with, udp},
    spec::{
        A, B, BLUE, BLUE_VNI, D, GRE, H2, HOST, OLD_GENEVE, OLD_GRETAP, OLD_VXLAN, Peer, Port, SIX,
        Spec,
    },
    wire::{Carried, SOURCE_PORT, Tunnel},
    world::{REDIRECT, Ran, SHOT, World, world},
};

mod asked;

const OLD: Spec = Spec { foreign: true, ..GRE };
const OLD_V6: Spec = Spec { ipv6: true, ..OLD };
/// Of one who is behind the switch.
const MAC: Mac = [2, 0, 0, 0, 7, 7];
const NEW_MAC: Mac = [2, 0, 0, 0, 7, 8];
const EVERYBODY: Mac = [0xff; 6];
const NOBODY: Mac = [0; 6];
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// The two switches with the third number of their subnet and the fourth group of it.
const SWITCHES: [(Peer, u8, u16); 2] = [(OLD_VXLAN, 197, 6), (OLD_GRETAP, 199, 8)];

pub fn v4(third: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 42, third, 7)
}

fn v6(first: u16, group: u16) -> Ipv6Addr {
    Ipv6Addr::new(first, 0, 0, group, 0, 0, 0xab, 0xcdef)
}

fn own(port: Port) -> Ipv4Addr {
    port.v4.unwrap()
}

/// What a switch sends in its tunnel, as it is on the wire.
#[track_caller]
fn says(w: &World, peer: Peer, vni: u32, macs: [Mac; 2], proto: u16, inner: &[u8]) -> Ran {
    let (protocol, body) = w.spec.tunnel(peer, vni).around(SOURCE_PORT, macs, proto, inner);
    w.receives(&ip_with(ip(peer.at(w.spec), w.spec.me(), 0), protocol, &body))
}

#[track_caller]
fn says_arp(w: &World, peer: Peer, vni: u32, message: &[u8]) -> Ran {
    says(w, peer, vni, [EVERYBODY, MAC], ARP, message)
}

#[track_caller]
fn says_nd(w: &World, peer: Peer, vni: u32, mac: Mac, message: &[u8]) -> Ran {
    says(w, peer, vni, [[0x33, 0x33, 0xff, 0, 0, 1], mac], IPV6, message)
}

#[track_caller]
fn assert_answered(w: &World, ran: &Ran, peer: Peer, vni: u32, proto: u16, inner: Vec<u8>) {
    let macs = [MAC, w.spec.gateway_mac()];
    let tunnel = w.spec.tunnel(peer, vni);
    let carried = Carried { peer, vni, tunnel, macs, proto, inner };
    assert_eq!((ran.verdict, ran.reason, ran.code), (Verdict::Answer, None, REDIRECT));
    assert_eq!(ran.traffic, []);
    carried.assert_in(w.spec, &ran.frame);
    assert_well_formed(&ran.frame);
    assert_well_formed(&eth(macs[0], macs[1], proto, &carried.inner));
}

#[track_caller]
fn assert_silent(ran: &Ran, reason: DropReason) {
    ran.assert_dropped(reason);
    assert_eq!(ran.traffic, []);
}

#[track_caller]
fn assert_learned(ran: &Ran) {
    assert_eq!((ran.verdict, ran.code, &ran.traffic[..]), (Verdict::Learn, SHOT, &[][..]));
}

/// What is known of an address: the peer and the MAC.
fn known(w: &World, vni: u32, addr: impl Into<IpAddr>) -> Option<(u32, Mac)> {
    let key = neighbour_key(vni, addr.into());
    Some(neighbour(key, w.neighbours().get(&key, 0).ok()?))
}

fn nobody_is_known(w: &World) -> bool {
    w.neighbours().keys().next().is_none()
}

#[test]
fn arp_for_an_endpoint_here_is_answered_with_the_gateways_mac() {
    for spec in [OLD, OLD_V6] {
        world(spec, |w| {
            for (peer, third, _) in SWITCHES {
                for (vni, target) in [(0, own(A)), (0, own(B)), (0, own(HOST)), (7, own(BLUE))] {
                    // RFC 5227: with 0 it asks whether the address is free. It is not.
                    for sender in [v4(third), NONE] {
                        w.forget_neighbours();
                        let ask = arp(1, (MAC, sender), (NOBODY, target));
                        let ran = says_arp(w, peer, vni, &ask);
                        let reply = arp(2, (spec.gateway_mac(), target), (MAC, sender));
                        assert_answered(w, &ran, peer, vni, ARP, reply);
                        let expected = (sender != NONE).then_some((peer.index, MAC));
                        assert_eq!(known(w, vni, sender), expected);
                    }
                }
            }
        });
    }
}

#[test]
fn padding_of_arp_is_no_part_of_the_answer() {
    world(OLD, |w| {
        let mut ask = arp(1, (MAC, v4(197)), (NOBODY, own(A)));
        ask.resize(46, 0);
        let ran = says_arp(w, OLD_VXLAN, 0, &ask);
        let reply = arp(2, (OLD.gateway_mac(), own(A)), (MAC, v4(197)));
        assert_answered(w, &ran, OLD_VXLAN, 0, ARP, reply);
    });
}

#[test]
fn solicitation_for_an_endpoint_here_is_answered_with_the_gateways_mac() {
    for spec in [OLD, OLD_V6] {
        world(spec, |w| {
            for (peer, _, group) in SWITCHES {
                let link_local: Ipv6Addr = "fe80::1234".parse().unwrap();
                for (vni, first, port) in [(0, 0xfd42, A), (0, 0xfd42, HOST), (9, 0xfd49, SIX)] {
                    for src in [v6(first, group), link_local] {
                        w.forget_neighbours();
                        let target = port.v6.unwrap();
                        let ask = solicitation(MAC, src, target);
                        let advert = advertisement(spec.gateway_mac(), src, target);
                        let ran = says_nd(w, peer, vni, MAC, &ask);
                        assert_answered(w, &ran, peer, vni, IPV6, advert.clone());
                        // Without the option, and with more of them.
                        for len in [64, 96, 200] {
                            let mut ask = ask.clone();
                            ask.resize(len, 0);
                            let ran = says_nd(w, peer, vni, MAC, &ask);
                            assert_answered(w, &ran, peer, vni, IPV6, advert.clone());
                        }
                        let expected = (src != link_local).then_some((peer.index, MAC));
                        assert_eq!(known(w, vni, src), expected);
                    }
                }
            }
        });
    }
}

#[test]
fn question_for_what_is_not_here_is_noted_only() {
    world(OLD, |w| {
        let theirs = v4(197);
        for target in [
            "10.42.0.77",
            "10.42.64.9",
            "10.42.197.8",
            "8.8.8.8",
            "0.0.0.0",
            "255.255.255.255",
            "192.0.2.11",
        ] {
            w.forget_neighbours();
            let ask = arp(1, (MAC, theirs), (NOBODY, target.parse().unwrap()));
            assert_learned(&says_arp(w, OLD_VXLAN, 0, &ask));
            assert_eq!(known(w, 0, theirs), Some((OLD_VXLAN.index, MAC)));
        }
        // Gratuitous.
        let ask = arp(1, (NEW_MAC, theirs), (NOBODY, theirs));
        assert_learned(&says_arp(w, OLD_VXLAN, 0, &ask));
        assert_eq!(known(w, 0, theirs), Some((OLD_VXLAN.index, NEW_MAC)));
        // In another network it is another, which has no such endpoint.
        let ask = arp(1, (MAC, theirs), (NOBODY, own(D)));
        assert_learned(&says_arp(w, OLD_VXLAN, BLUE_VNI, &ask));
        assert_eq!(known(w, BLUE_VNI, theirs), Some((OLD_VXLAN.index, MAC)));
        assert_eq!(known(w, 0, theirs), Some((OLD_VXLAN.index, NEW_MAC)));

        let theirs = v6(0xfd42, 6);
        for target in ["fd42::77", "fd42:0:0:1::9", "fe80::1", "ff02::1", "::", "::ffff:10.42.0.2"]
        {
            w.forget_neighbours();
            let ask = solicitation(MAC, theirs, target.parse().unwrap());
            assert_learned(&says_nd(w, OLD_VXLAN, 0, MAC, &ask));
            assert_eq!(known(w, 0, theirs), Some((OLD_VXLAN.index, MAC)));
        }
    });
}

#[test]
fn replies_and_adverts_are_noted() {
    world(OLD, |w| {
        let reply = arp(2, (MAC, v4(197)), (OLD.gateway_mac(), own(A)));
        assert_learned(&says(w, OLD_VXLAN, 0, [OLD.gateway_mac(), MAC], ARP, &reply));
        assert_eq!(known(w, 0, v4(197)), Some((OLD_VXLAN.index, MAC)));
        // To all, unasked: a MAC that moved.
        let (theirs, all) = (v6(0xfd42, 6), "ff02::1".parse().unwrap());
        for mac in [MAC, NEW_MAC] {
            let advert = neighbour_message([136, 0x20, 0, 0], [theirs, all], theirs, (2, mac));
            assert_learned(&says_nd(w, OLD_VXLAN, 0, mac, &advert));
            assert_eq!(known(w, 0, theirs), Some((OLD_VXLAN.index, mac)));
        }
    });
}

#[test]
fn wrong_sender_is_neither_noted_nor_answered() {
    world(OLD, |w| {
        // Ours, the other switch's, another peer's, nobody's.
        for sender in ["10.42.0.2", "10.42.0.1", "10.42.199.7", "10.42.64.9", "8.8.8.8"] {
            let ask = arp(1, (MAC, sender.parse().unwrap()), (NOBODY, own(A)));
            assert_silent(&says_arp(w, OLD_VXLAN, 0, &ask), SourceNotPeers);
        }
        for sender in ["fd42::2", "fd42:0:0:8::9", "fd43:0:0:6::9", "2001:db8::1", "::", "ff02::1"]
        {
            let sender: Ipv6Addr = sender.parse().unwrap();
            let ask = solicitation(MAC, sender, A.v6.unwrap());
            assert_silent(&says_nd(w, OLD_VXLAN, 0, MAC, &ask), SourceNotPeers);
            let advert = advertisement(MAC, A.v6.unwrap(), sender);
            assert_silent(&says_nd(w, OLD_VXLAN, 0, MAC, &advert), SourceNotPeers);
        }
        // Whose sender is right, but not what it says of whom.
        let [theirs, ours] = [v6(0xfd42, 6), A.v6.unwrap()];
        let advert = neighbour_message([136, 0, 0, 0], [theirs, ours], ours, (2, MAC));
        assert_silent(&says_nd(w, OLD_VXLAN, 0, MAC, &advert), SourceNotPeers);
        assert!(nobody_is_known(w));
    });
}

#[test]
fn mac_of_a_group_is_nobodys() {
    world(OLD, |w| {
        for mac in [EVERYBODY, [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            let ask = arp(1, (mac, v4(197)), (NOBODY, [10, 42, 0, 77].into()));
            assert_learned(&says_arp(w, OLD_VXLAN, 0, &ask));
            let ask = solicitation(mac, v6(0xfd42, 6), v6(0xfd42, 0));
            assert_learned(&says_nd(w, OLD_VXLAN, 0, mac, &ask));
            let packet = udp(ip(v4(197), own(A), 0), b"x");
            let ran = says(w, OLD_VXLAN, 0, [NOBODY, mac], IPV4, &packet);
            assert_eq!(ran.verdict, Verdict::Deliver);
        }
        assert!(nobody_is_known(w));
    });
}

#[test]
fn messages_that_ask_for_nothing_stay_without_answer() {
    world(OLD, |w| {
        let good = arp(1, (MAC, v4(197)), (NOBODY, own(A)));
        for (offset, value) in [(1, 2), (2, 0x86), (3, 1), (4, 5), (5, 16)] {
            let mut ask = good.clone();
            ask[offset] = value;
            assert_silent(&says_arp(w, OLD_VXLAN, 0, &ask), NoReply);
        }
        for len in 0..28 {
            assert_silent(&says_arp(w, OLD_VXLAN, 0, &good[..len]), Truncated);
        }
        let good = solicitation(MAC, v6(0xfd42, 6), A.v6.unwrap());
        for (offset, value) in [(7, 254), (7, 0), (40, 133), (40, 134), (40, 137)] {
            let mut ask = good.clone();
            ask[offset] = value;
            assert_silent(&says_nd(w, OLD_VXLAN, 0, MAC, &ask), NoReply);
        }
        for len in 41..64 {
            assert_silent(&says_nd(w, OLD_VXLAN, 0, MAC, &good[..len]), Truncated);
        }
        assert!(nobody_is_known(w));
    });
}

#[test]
fn number_that_a_switch_does_not_use_has_no_answers() {
    world(OLD, |w| {
        // The cluster's own network has the number 42 there, and 0 is none.
        let zero = Tunnel { vni: 0, ..OLD.tunnel(OLD_VXLAN, 0) };
        for (proto, ask, reason) in [
            (ARP, arp(1, (MAC, v4(197)), (NOBODY, own(A))), NotIp),
            (ARP, arp(1, (MAC, NONE), (NOBODY, own(A))), NotIp),
            (IPV6, solicitation(MAC, v6(0xfd42, 6), A.v6.unwrap()), NoReply),
            (IPV6, solicitation(MAC, "fe80::1".parse().unwrap(), A.v6.unwrap()), NoReply),
            (IPV4, udp(ip(v4(197), own(A), 0), b"x"), SourceNotPeers),
        ] {
            let (protocol, body) = zero.around(SOURCE_PORT, [EVERYBODY, MAC], proto, &ask);
            let outer = ip(OLD_VXLAN.at(OLD), OLD.me(), 0);
            assert_silent(&w.receives(&ip_with(outer, protocol, &body)), reason);
        }
        assert!(nobody_is_known(w));
    });
}

#[test]
fn neighbour_message_without_ethernet_says_nothing_of_macs() {
    world(OLD, |w| {
        let bare = Tunnel::new(Encap::Gre, 0);
        let ends = [OLD_GRETAP.at(OLD), OLD.me()];
        let message = solicitation(MAC, v6(0xfd42, 8), A.v6.unwrap());
        let ran = w.receives(&bare.packet(ends, 0, IPV6, &message));
        assert_silent(&ran, NoReply);
        let packet = udp(ip(v4(199), own(A), 0), b"x");
        assert_eq!(w.receives(&bare.packet(ends, 0, IPV4, &packet)).verdict, Verdict::Deliver);
        assert!(nobody_is_known(w));
    });
}

#[test]
fn peer_with_one_mac_is_neither_asked_nor_answered() {
    world(OLD, |w| {
        for (peer, third, group) in [(OLD_GENEVE, 198, 7), (H2, 64, 1)] {
            let inner = udp(ip(own(A), v4(third), 0), b"x");
            let ran = w.sends_ip(A, &inner);
            assert_eq!(ran.verdict, Verdict::Encap);
            let carried = Carried::packet(OLD, peer, 0, &inner);
            assert_eq!(ran.frame, carried.frame(OLD, &ran.frame));
            let ends = [peer.at(OLD), OLD.me()];
            // In a tunnel with Ethernet, for the ARP to be in.
            let tunnel = match peer {
                H2 => Tunnel::new(Encap::Gretap, 0),
                _ => OLD.tunnel(peer, 0),
            };
            let ask = arp(1, (MAC, v4(third)), (NOBODY, own(A)));
            assert_silent(&w.receives(&tunnel.packet(ends, 0, ARP, &ask)), NotIp);
            let ask = solicitation(MAC, v6(0xfd42, group), A.v6.unwrap());
            let ran = w.receives(&tunnel.packet(ends, 0, IPV6, &ask));
            assert_silent(&ran, NoReply);
        }
        assert!(nobody_is_known(w));
    });
}
