//! What is sent to addresses behind a switch: to the MAC that is known, or a question for it first.

use std::net::{IpAddr, Ipv6Addr};

use mesh_common::{
    maps::{Addr, PeerInfo},
    verdict::{
        DropReason::{PeerIncomplete, Unresolved},
        Verdict,
    },
};

use super::{
    MAC, NEW_MAC, NOBODY, OLD, OLD_V6, SWITCHES, assert_learned, assert_silent, known,
    nobody_is_known, own, says, says_arp, v4, v6,
};
use crate::{
    counters::Counter,
    fuzz::{neighbour_key, neighbour_value, seconds},
    model::{Model, arp, neighbour_message},
    packet::{ARP, IPV4, IPV6, Mac, assert_well_formed, eth, ethertype, ip, udp},
    spec::{A, BLUE, HOST, OLD_GRETAP, OLD_VXLAN, Peer, Port, SIX, Spec, TELLS},
    wire::Carried,
    world::{REDIRECT, Ran, World, world},
};

/// Destinations behind a switch, and who sends to them.
fn ways() -> Vec<(Peer, Port, IpAddr)> {
    let of = |(peer, third, group): (Peer, u8, u16)| {
        [
            (peer, A, IpAddr::V4(v4(third))),
            (peer, HOST, v4(third).into()),
            (peer, BLUE, v4(third).into()),
            (peer, A, v6(0xfd42, group).into()),
            (peer, BLUE, v6(0xfd43, group).into()),
            (peer, SIX, v6(0xfd49, group).into()),
        ]
    };
    SWITCHES.into_iter().flat_map(of).collect()
}

fn packet_to(from: Port, dst: IpAddr) -> Vec<u8> {
    match dst {
        IpAddr::V4(dst) => udp(ip(own(from), dst, 0xb9), b"payload"),
        IpAddr::V6(dst) => udp(ip(from.v6.unwrap(), dst, 0xb9), &[7; 200]),
    }
}

#[track_caller]
fn assert_question(w: &World, ran: &Ran, peer: Peer, from: Port, dst: IpAddr) {
    let model = Model { cluster: &w.cluster, spec: w.spec };
    let question = model.question(from, peer, dst);
    question.assert_in(w.spec, &ran.frame);
    assert_well_formed(&ran.frame);
    assert_well_formed(&eth(question.macs[0], question.macs[1], question.proto, &question.inner));
}

/// Sent to this MAC.
#[track_caller]
fn assert_sent_to(w: &World, peer: Peer, from: Port, dst: IpAddr, mac: Mac) {
    let inner = packet_to(from, dst);
    let ran = w.sends_ip(from, &inner);
    let bytes = inner.len() as u64;
    assert_eq!((ran.verdict, ran.reason, ran.code), (Verdict::Encap, None, REDIRECT));
    let traffic = [(Counter::EndpointTx(from.id), bytes), (Counter::PeerTx(peer.index), bytes)];
    assert_eq!(ran.traffic, traffic);
    let mut carried = Carried::packet(w.spec, peer, from.vni, &inner);
    carried.macs[0] = mac;
    carried.assert_in(w.spec, &ran.frame);
}

#[test]
fn unknown_destination_is_asked_for_and_sent_to_once_it_is_known() {
    for spec in [OLD, OLD_V6] {
        world(spec, |w| {
            for (peer, from, dst) in ways() {
                w.forget_neighbours();
                let inner = packet_to(from, dst);
                let ran = w.sends_ip(from, &inner);
                ran.assert_dropped(Unresolved);
                assert_eq!(ran.code, REDIRECT);
                assert_eq!(ran.traffic, [(Counter::EndpointTx(from.id), inner.len() as u64)]);
                assert_question(w, &ran, peer, from, dst);

                // The answer is for the gateway's MAC, from which it was asked.
                let macs = [spec.gateway_mac(), MAC];
                let (proto, reply) = match dst {
                    IpAddr::V4(dst) => (ARP, arp(2, (MAC, dst), (macs[0], own(from)))),
                    IpAddr::V6(dst) => {
                        let ends = [dst, from.v6.unwrap()];
                        (IPV6, neighbour_message([136, 0x60, 0, 0], ends, dst, (2, MAC)))
                    }
                };
                assert_learned(&says(w, peer, from.vni, macs, proto, &reply));
                assert_sent_to(w, peer, from, dst, MAC);
            }
        });
    }
}

#[test]
fn sender_of_any_packet_is_known() {
    world(OLD, |w| {
        for (peer, to, src) in ways() {
            let inner = match src {
                IpAddr::V4(src) => udp(ip(src, own(to), 0), b"x"),
                IpAddr::V6(src) => udp(ip(src, to.v6.unwrap(), 0), b"x"),
            };
            for mac in [MAC, NEW_MAC] {
                let macs = [OLD.gateway_mac(), mac];
                let ran = says(w, peer, to.vni, macs, ethertype(&inner), &inner);
                let verdict = if to.id == HOST.id { Verdict::Host } else { Verdict::Deliver };
                assert_eq!((ran.verdict, &ran.frame[14..]), (verdict, &inner[..]));
                assert_sent_to(w, peer, to, src, mac);
            }
        }
    });
}

#[test]
fn sender_of_a_packet_that_is_not_delivered_is_not() {
    world(OLD, |w| {
        for (src, dst) in [(v4(199), own(A)), (v4(197), [10, 42, 0, 77].into())] {
            let packet = udp(ip(src, dst, 0), b"x");
            let ran = says(w, OLD_VXLAN, 0, [NOBODY, MAC], IPV4, &packet);
            assert_eq!(ran.verdict, Verdict::Drop);
        }
        assert!(nobody_is_known(w));
    });
}

#[test]
fn what_another_switch_said_is_no_answer() {
    world(OLD, |w| {
        let key = neighbour_key(0, v4(197).into());
        let theirs = neighbour_value(key, (OLD_GRETAP.index, MAC), seconds(), 0);
        w.neighbours().insert(key, theirs, 0).unwrap();
        let ran = w.sends_ip(A, &packet_to(A, v4(197).into()));
        ran.assert_dropped(Unresolved);
        assert_question(w, &ran, OLD_VXLAN, A, v4(197).into());
    });
}

/// Sends to one who was heard of `ago` seconds ago, and asked for `asked` seconds ago.
fn after(w: &World, dst: IpAddr, peer: Peer, ago: u32, asked: Option<u32>) -> Ran {
    let now = seconds();
    let asked = asked.map_or(0, |asked| now.wrapping_sub(asked));
    let key = neighbour_key(0, dst);
    let value = neighbour_value(key, (peer.index, MAC), now.wrapping_sub(ago), asked);
    w.neighbours().insert(key, value, 0).unwrap();
    w.sends_ip(A, &packet_to(A, dst))
}

#[test]
fn who_was_not_heard_of_for_long_is_asked_again_and_sent_to_all_the_same() {
    for spec in [OLD, OLD_V6] {
        world(spec, |w| {
            for dst in [IpAddr::V4(v4(197)), v6(0xfd42, 6).into()] {
                let is_question = |ran: &Ran| {
                    assert_eq!(
                        (ran.verdict, ran.reason, ran.code),
                        (Verdict::Encap, None, REDIRECT)
                    );
                    assert_eq!(ran.traffic.len(), 2, "counted once for each side");
                    let mut carried = Carried::packet(spec, OLD_VXLAN, 0, &packet_to(A, dst));
                    carried.macs[0] = MAC;
                    let is_packet = ran.frame == carried.frame(spec, &ran.frame);
                    if !is_packet {
                        assert_question(w, ran, OLD_VXLAN, A, dst);
                    }
                    !is_packet
                };
                // The clock may go on by one while it is asked.
                assert!(!is_question(&after(w, dst, OLD_VXLAN, 15, None)));
                let stale = after(w, dst, OLD_VXLAN, 32, None);
                assert!(is_question(&stale));
                // Its MAC stays, and that it was asked for is noted.
                assert_eq!(known(w, 0, dst), Some((OLD_VXLAN.index, MAC)));
                assert!(is_question(&after(w, dst, OLD_VXLAN, 100, Some(5))));
                // Once a second: 1 more, for a clock that goes on.
                assert!(!is_question(&asked_now(w, dst)));
            }
            // Where the next hop's MAC is not known a copy could not be sent.
            let ran = after(w, v4(199).into(), OLD_GRETAP, 1000, None);
            let mut carried = Carried::packet(spec, OLD_GRETAP, 0, &packet_to(A, v4(199).into()));
            carried.macs[0] = MAC;
            carried.assert_in(spec, &ran.frame);
        });
    }
}

/// [`after`] with a question in this very second: the clock is read again until it stood still.
fn asked_now(w: &World, dst: IpAddr) -> Ran {
    loop {
        let before = seconds();
        let ran = after(w, dst, OLD_VXLAN, 100, Some(0));
        if seconds() == before {
            return ran;
        }
    }
}

#[test]
fn unknown_destination_is_asked_for_once_a_second() {
    world(OLD, |w| {
        for (peer, from, dst) in ways() {
            let inner = packet_to(from, dst);
            let is_asked = || {
                let ran = w.sends_ip(from, &inner);
                ran.assert_dropped(Unresolved);
                let is_asked = ran.code == REDIRECT;
                if is_asked {
                    assert_question(w, &ran, peer, from, dst);
                }
                is_asked
            };
            // Until the clock stood still.
            let (first, again) = loop {
                w.forget_neighbours();
                let before = seconds();
                let both = (is_asked(), is_asked());
                if seconds() == before {
                    break both;
                }
            };
            assert!(first && !again, "{dst}: {first} {again}");
            // A second ago.
            let key = neighbour_key(from.vni, dst);
            let asked = w.asked().get(&key, 0).unwrap();
            w.asked().insert(key, asked.wrapping_sub(1), 0).unwrap();
            assert!(is_asked(), "{dst}");
        }
    });
}

/// What a bridge's port has is not known to the program, and :: may not say a MAC (RFC 4861, 4.3).
#[test]
fn port_of_a_bridge_asks_over_ipv6_from_the_gateways_address() {
    world(Spec { bridge: true, ..OLD }, |w| {
        let dst = v6(0xfd42, 6);
        let packet = udp(ip("fd42::9".parse::<Ipv6Addr>().unwrap(), dst, 0), b"x");
        let ran = w.sends(TELLS, &eth(OLD.gateway_mac(), TELLS.mac, IPV6, &packet));
        ran.assert_dropped(Unresolved);
        let gateway = w.tables.ports.get(&TELLS.ifindex).unwrap().unwrap().gateway6;
        let IpAddr::V6(gateway) = Addr(gateway).into() else { panic!("IPv4") };
        assert!(!gateway.is_unspecified());
        let asker = Port { v6: Some(gateway), ..TELLS };
        assert_question(w, &ran, OLD_VXLAN, asker, dst.into());
    });
}

#[test]
fn question_of_a_super_packet_is_an_ordinary_one() {
    world(OLD, |w| {
        let packet = udp(ip(own(A), v4(197), 0), &[7; 3000]);
        let frame = eth(NOBODY, A.mac, IPV4, &packet);
        let ran = w.sends_segments(A, &frame, 1000);
        ran.assert_dropped(Unresolved);
        assert_question(w, &ran, OLD_VXLAN, A, v4(197).into());
    });
}

#[test]
fn switch_without_a_way_to_it_is_not_asked() {
    world(OLD, |w| {
        let key = OLD_VXLAN.index;
        let peer = w.tables.peers.get(&key).unwrap().unwrap();
        w.set_peers(&[(key, PeerInfo { ifindex: 0, ..peer })]);
        w.sends_ip(A, &packet_to(A, v4(197).into())).assert_dropped(PeerIncomplete);
        let ask = arp(1, (MAC, v4(197)), (NOBODY, own(A)));
        assert_silent(&says_arp(w, OLD_VXLAN, 0, &ask), PeerIncomplete);
    });
}
