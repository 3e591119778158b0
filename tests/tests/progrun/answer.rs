//! ARP and neighbour discovery: what is answered, exactly, and what is not.

use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_common::verdict::{DropReason, Verdict};

use super::{
    model::advertisement,
    packet::{ARP, IPV6, Mac, assert_well_formed, eth, ip, ip_with},
    spec::{A, B, BLUE, D, GRE, HOST, Port, SIX},
    world::{REDIRECT, Ran, World, gateway_mac, world},
};

const ALL: Mac = [0xff; 6];
const GATEWAY: [u8; 4] = [10, 42, 0, 1];
const REMOTE: [u8; 4] = [10, 42, 64, 9];

/// ARP for IPv4 over Ethernet (RFC 826).
fn arp(op: u16, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])) -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4];
    [&fixed[..], &op.to_be_bytes(), &sender.0, &sender.1, &target.0, &target.1].concat()
}

fn request(port: Port, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    eth(ALL, port.mac, ARP, &arp(1, (port.mac, sender), ([0; 6], target)))
}

#[track_caller]
fn assert_answered(ran: &Ran, frame: Vec<u8>) {
    let expected =
        Ran { verdict: Verdict::Answer, reason: None, code: REDIRECT, frame, traffic: vec![] };
    assert_eq!(*ran, expected);
    assert_well_formed(&ran.frame);
}

#[track_caller]
fn assert_silent(ran: &Ran, reason: DropReason) {
    ran.assert_dropped(reason);
    assert_eq!(ran.traffic, []);
}

#[test]
fn arp_for_an_address_of_the_overlay_is_answered_with_the_gateways_mac() {
    world(GRE, |w| {
        let own = |port: Port| port.v4.unwrap().octets();
        for (port, target) in [
            (A, GATEWAY),
            (A, REMOTE),
            (A, own(B)),
            (A, [10, 42, 192, 3]),
            (HOST, own(A)),
            (HOST, REMOTE),
            (BLUE, GATEWAY),
            (BLUE, REMOTE),
        ] {
            let ran = w.sends(port, &request(port, own(port), target));
            let reply = arp(2, (gateway_mac(), target), (port.mac, own(port)));
            assert_answered(&ran, eth(port.mac, gateway_mac(), ARP, &reply));
            // RFC 5227: is this address free? It is not.
            let ran = w.sends(port, &request(port, [0; 4], target));
            let reply = arp(2, (gateway_mac(), target), (port.mac, [0; 4]));
            assert_answered(&ran, eth(port.mac, gateway_mac(), ARP, &reply));
        }
    });
}

#[test]
fn arp_that_a_frame_pads_is_answered_with_its_padding() {
    world(GRE, |w| {
        let mut frame = request(A, A.v4.unwrap().octets(), GATEWAY);
        frame.resize(60, 0);
        let ran = w.sends(A, &frame);
        assert_eq!((ran.verdict, ran.frame.len()), (Verdict::Answer, 60));
    });
}

#[test]
fn arp_for_what_nobody_else_has_stays_without_answer() {
    world(GRE, |w| {
        let own = A.v4.unwrap().octets();
        for target in [own, [10, 42, 0, 77], [10, 42, 250, 1], [8, 8, 8, 8], [0; 4], [255; 4]] {
            for sender in [own, [0; 4]] {
                let ran = w.sends(A, &request(A, sender, target));
                assert_silent(&ran, DropReason::NoReply);
            }
        }
        // It asks in its own network only.
        let own = BLUE.v4.unwrap().octets();
        let ran = w.sends(BLUE, &request(BLUE, own, D.v4.unwrap().octets()));
        assert_silent(&ran, DropReason::NoReply);
        // Gateways of which there is none are nobody's.
        let ran = w.sends(SIX, &request(SIX, [0; 4], [0; 4]));
        assert_silent(&ran, DropReason::NoReply);
    });
}

#[test]
fn arp_of_another_sender_is_spoofed() {
    world(GRE, |w| {
        for sender in [B.v4.unwrap().octets(), GATEWAY, REMOTE, [255; 4]] {
            let ran = w.sends(A, &request(A, sender, GATEWAY));
            assert_silent(&ran, DropReason::SpoofedSource);
        }
    });
}

#[test]
fn arp_that_is_no_request_for_ipv4_over_ethernet_stays_without_answer() {
    world(GRE, |w| {
        let good = request(A, A.v4.unwrap().octets(), GATEWAY);
        for (offset, value) in
            [(15, 2), (16, 0x86), (17, 1), (18, 5), (18, 0), (19, 16), (20, 1), (21, 2), (21, 0)]
        {
            let mut frame = good.clone();
            frame[offset] = value;
            assert_silent(&w.sends(A, &frame), DropReason::NoReply);
        }
        for len in 14..good.len() {
            assert_silent(&w.sends(A, &good[..len]), DropReason::Truncated);
        }
    });
}

/// A neighbour solicitation (RFC 4861, 4.3), with the sender's MAC unless it has no address.
fn solicit(port: Port, src: Ipv6Addr, target: Ipv6Addr, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
    if !src.is_unspecified() {
        body.extend([1, 1]);
        body.extend(port.mac);
    }
    let group: Ipv6Addr = "ff02::1:ff00:1".parse().unwrap();
    let mut packet = ip_with(ip(src, group, 0), 58, &body);
    packet[7] = 255;
    change(&mut packet);
    let sum = sum_icmpv6(&packet);
    if let Some(field) = packet.get_mut(42..44) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    eth([0x33, 0x33, 0xff, 0, 0, 1], port.mac, IPV6, &packet)
}

/// By etherparse.
fn sum_icmpv6(packet: &[u8]) -> u16 {
    let (src, dst) = (packet[8..24].try_into().unwrap(), packet[24..40].try_into().unwrap());
    let Ok((header, rest)) = etherparse::Icmpv6Header::from_slice(&packet[40..]) else { return 0 };
    header.icmp_type.calc_checksum(src, dst, rest).unwrap()
}

/// The neighbour advertisement for `target`: router, solicited, override, and the gateway's MAC.
fn advert(port: Port, dst: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let head = [136, 0, 0, 0, 0xe0, 0, 0, 0];
    let body = [&head[..], &target.octets(), &[2, 1], &gateway_mac()].concat();
    let mut packet = ip_with(ip(target, dst, 0), 58, &body);
    packet[7] = 255;
    let sum = sum_icmpv6(&packet);
    packet[42..44].copy_from_slice(&sum.to_be_bytes());
    eth(port.mac, gateway_mac(), IPV6, &packet)
}

fn v6(s: &str) -> Ipv6Addr {
    s.parse().unwrap()
}

#[test]
fn solicitation_for_an_address_of_the_overlay_is_answered_with_the_gateways_mac() {
    world(GRE, |w| {
        for (port, target) in [
            (A, v6("fd42::1")),
            (A, v6("fd42::5")),
            (A, v6("fd42:0:0:1::9")),
            (A, v6("fd42:0:0:5:ffff::1")),
            (HOST, A.v6.unwrap()),
            (HOST, v6("fd42:0:0:1::9")),
            (BLUE, v6("fd43::1")),
            (SIX, v6("fd49:0:0:1::9")),
        ] {
            for src in [port.v6.unwrap(), v6("fe80::1234"), v6("febf::1")] {
                let ran = w.sends(port, &solicit(port, src, target, |_| {}));
                assert_answered(&ran, advert(port, src, target));
                // Asked without the option, or with more of them.
                for len in [64, 96, 200] {
                    let ask = solicit(port, src, target, |p| p.resize(len, 0));
                    assert_answered(&w.sends(port, &ask), advert(port, src, target));
                }
            }
        }
    });
}

#[test]
fn duplicate_address_detection_meets_silence() {
    world(GRE, |w| {
        for target in ["fd42::2", "fd42::1", "fd42:0:0:1::9", "fe80::1234", "fd42::77"] {
            let ask = solicit(A, Ipv6Addr::UNSPECIFIED, v6(target), |_| {});
            assert_silent(&w.sends(A, &ask), DropReason::NoReply);
        }
    });
}

#[test]
fn solicitation_for_what_nobody_else_has_stays_without_answer() {
    world(GRE, |w| {
        let unanswered = |port: Port, src: Ipv6Addr, target: &str| {
            let ran = w.sends(port, &solicit(port, src, v6(target), |_| {}));
            assert_silent(&ran, DropReason::NoReply);
        };
        for target in ["fd42::2", "fd42::77", "fd43::2", "fe80::1", "ff02::1", "::1", "::"] {
            unanswered(A, A.v6.unwrap(), target);
        }
        // B has no IPv6 address, but it is in a network that has.
        unanswered(B, v6("fe80::3"), "fd42::77");
        unanswered(B, v6("fe80::3"), "::");
        unanswered(SIX, SIX.v6.unwrap(), "fd42::1");
    });
}

#[test]
fn solicitation_of_another_sender_is_spoofed() {
    world(GRE, |w| {
        for src in ["fd42::5", "fd42::1", "fd43::2", "::1", "fec0::1", "ff02::1", "fe00::1"] {
            let ran = w.sends(A, &solicit(A, v6(src), v6("fd42::1"), |_| {}));
            assert_silent(&ran, DropReason::SpoofedSource);
        }
    });
}

#[test]
fn other_neighbour_messages_stay_without_answer() {
    world(GRE, |w| {
        let ask = |change: &dyn Fn(&mut Vec<u8>)| {
            let frame = solicit(A, A.v6.unwrap(), v6("fd42::1"), change);
            assert_silent(&w.sends(A, &frame), DropReason::NoReply);
        };
        for kind in [133, 134, 136, 137] {
            ask(&|p| p[40] = kind);
        }
        // From beyond a router.
        for hops in [0, 1, 64, 254] {
            ask(&|p| p[7] = hops);
        }
    });
}

#[test]
fn solicitation_that_is_cut_stays_without_answer() {
    world(GRE, |w| {
        let good = solicit(A, A.v6.unwrap(), v6("fd42::1"), |_| {});
        for len in 55..14 + 40 + 24 {
            assert_silent(&w.sends(A, &good[..len]), DropReason::Truncated);
        }
    });
}

#[test]
fn other_icmpv6_is_carried() {
    world(GRE, |w: &World| {
        let dst = v6("fd42:0:0:1::9");
        for kind in [1, 2, 128, 129, 132, 138, 143] {
            let packet = ip_with(ip(A.v6.unwrap(), dst, 0), 58, &[kind, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(w.sends_ip(A, &packet).verdict, Verdict::Encap);
        }
        let unused: Ipv4Addr = Ipv4Addr::from(REMOTE);
        let packet = ip_with(ip(A.v4.unwrap(), unused, 0), 58, &[135; 24]);
        assert_eq!(w.sends_ip(A, &packet).verdict, Verdict::Encap);
    });
}

/// An advertisement of A's behind a header of another protocol, to `to`.
pub fn hidden_advertisement(header: u8, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let advertisement = advertisement(A.mac, to, from);
    // What comes next, 8 bytes in all, and padding (RFC 8200, 4.2), or no segments left (4.4).
    let front: [u8; 8] =
        if header == 43 { [58, 0, 0, 0, 0, 0, 0, 0] } else { [58, 0, 1, 4, 0, 0, 0, 0] };
    let mut packet = ip_with(ip(from, to, 0), header, &[&front, &advertisement[40..]].concat());
    packet[7] = 255;
    packet
}

#[test]
fn neighbour_message_behind_another_header_goes_nowhere() {
    world(GRE, |w| {
        for header in [0, 43, 60] {
            for to in [D.v6.unwrap(), "fd42:0:0:1::9".parse().unwrap()] {
                let mut packet = hidden_advertisement(header, A.v6.unwrap(), to);
                let ran = w.sends(A, &eth(gateway_mac(), A.mac, IPV6, &packet));
                assert_silent(&ran, DropReason::NoReply);
                // With any other hop limit nobody believes it.
                packet[7] = 254;
                let ran = w.sends(A, &eth(gateway_mac(), A.mac, IPV6, &packet));
                assert_eq!(ran.reason, None, "{header} to {to}");
            }
        }
    });
}
