//! Every prefix of valid packets: never accepted once a header is cut. And packets with a VLAN tag.
//!
//! The kernel runs no test on a packet shorter than its IP header, so a program cuts it.

use mesh_common::verdict::{DropReason, Hook, Verdict};
use mesh_userspace::config::Encap;

use super::{
    decap::{H2_V4, H2_V6, from_peer},
    outer::STRANGER,
    packet::{IPV4, eth, ethertype, ip, ip_with, tcp, udp},
    spec::{A, BLUE_VNI, GRE, H2, NEXT_HOP_MAC, UNDERLAY, UNDERLAY_MAC},
    world::{Skb, gateway_mac, world},
};

#[test]
fn what_a_container_sends_cut_short_is_truncated() {
    world(GRE, |w| {
        for packet in [
            tcp(ip(A.v4.unwrap(), H2_V4, 0), b"payload"),
            udp(ip(A.v6.unwrap(), H2_V6, 0), b"payload"),
            ip_with(ip(A.v6.unwrap(), H2_V6, 0), 58, &[128, 0, 0, 0]),
        ] {
            let header = if ethertype(&packet) == IPV4 { 20 } else { 40 };
            let frame = eth(gateway_mac(), A.mac, ethertype(&packet), &packet);
            for len in 14..frame.len() {
                let skb = Skb { ifindex: A.ifindex, mark: len as u32, ..Skb::default() };
                let ran = w.run_as("cut_from_endpoint", Hook::FromContainer, skb, &frame);
                if len < 14 + header {
                    ran.assert_dropped(DropReason::Truncated);
                    assert_eq!((&ran.frame[..], &ran.traffic[..]), (&frame[..len], &[][..]));
                } else {
                    assert_eq!(ran.verdict, Verdict::Encap);
                }
            }
        }
    });
}

#[test]
fn ipv4_options_cut_short_are_truncated() {
    world(GRE, |w| {
        for words in 6..=15u8 {
            let mut sent = udp(ip(A.v4.unwrap(), H2_V4, 0), &[0; 60]);
            sent[0] = 0x40 | words;
            let mut received = udp(ip(H2_V4, A.v4.unwrap(), 0), &[0; 60]);
            received[0] = 0x40 | words;
            for len in [20, usize::from(words) * 4 - 1, usize::from(words) * 4] {
                let whole = len == usize::from(words) * 4;
                let ran = w.sends_ip(A, &sent[..len]);
                let outer = w.receives(&from_peer(H2, Encap::Gre, 0, 0, &received[..len]));
                if whole {
                    assert_eq!(ran.verdict, Verdict::Encap);
                    assert_eq!(outer.verdict, Verdict::Deliver);
                } else {
                    ran.assert_dropped(DropReason::Truncated);
                    outer.assert_dropped(DropReason::Truncated);
                }
            }
        }
    });
}

#[test]
fn what_a_peer_sends_cut_short_is_truncated() {
    world(GRE, |w| {
        for (form, vni) in
            [(Encap::Gre, 0), (Encap::Gre, BLUE_VNI), (Encap::Gretap, 0), (Encap::Gretap, BLUE_VNI)]
        {
            let v6_dst: std::net::Ipv6Addr =
                if vni == 0 { A.v6.unwrap() } else { "fd43::2".parse().unwrap() };
            let v6_src: std::net::Ipv6Addr =
                if vni == 0 { H2_V6 } else { "fd43:0:0:1::9".parse().unwrap() };
            for inner in [
                tcp(ip(H2_V4, A.v4.unwrap(), 0), b"payload"),
                udp(ip(v6_src, v6_dst, 0), b"payload"),
            ] {
                let header = if ethertype(&inner) == IPV4 { 20 } else { 40 };
                let packet = from_peer(H2, form, vni, 0, &inner);
                let needed = packet.len() - inner.len() + header;
                let frame = eth(UNDERLAY_MAC, NEXT_HOP_MAC, IPV4, &packet);
                for len in 14..frame.len() {
                    let skb = Skb { ifindex: UNDERLAY, mark: len as u32, ..Skb::default() };
                    let ran = w.run_as("cut_from_underlay", Hook::FromUnderlay, skb, &frame);
                    match len - 14 {
                        // Not even an outer header: not ours to judge.
                        0..20 => ran.assert_passed(&frame[..len]),
                        l if l < needed => {
                            ran.assert_dropped(DropReason::Truncated);
                            assert_eq!(ran.traffic, []);
                        }
                        _ => assert_eq!(ran.verdict, Verdict::Deliver),
                    }
                }
            }
        }
    });
}

#[test]
fn stranger_cut_short_is_a_stranger() {
    world(GRE, |w| {
        let packet = from_peer(STRANGER, Encap::Gre, BLUE_VNI, 0, &[0; 20]);
        for len in 20..packet.len() {
            w.receives(&packet[..len]).assert_dropped(DropReason::UnknownPeer);
        }
    });
}

#[test]
fn container_that_sends_a_vlan_tag_is_dropped() {
    world(GRE, |w| {
        for packet in
            [udp(ip(A.v4.unwrap(), H2_V4, 0), b"x"), udp(ip(A.v6.unwrap(), H2_V6, 0), b"x")]
        {
            let frame = eth(gateway_mac(), A.mac, ethertype(&packet), &packet);
            let skb = Skb { ifindex: A.ifindex, ..Skb::default() };
            let ran = w.run_as("tagged_from_endpoint", Hook::FromContainer, skb, &frame);
            ran.assert_dropped(DropReason::VlanTagged);
            assert_eq!(ran.traffic, []);
        }
    });
}

#[test]
fn packet_of_a_vlan_on_the_underlay_is_left_alone() {
    world(GRE, |w| {
        let packet = from_peer(H2, Encap::Gre, 0, 0, &udp(ip(H2_V4, A.v4.unwrap(), 0), b"x"));
        let frame = eth(UNDERLAY_MAC, NEXT_HOP_MAC, IPV4, &packet);
        let skb = Skb { ifindex: UNDERLAY, ..Skb::default() };
        let ran = w.run_as("tagged_from_underlay", Hook::FromUnderlay, skb, &frame);
        assert_eq!((ran.verdict, &ran.traffic[..]), (Verdict::Pass, &[][..]));
    });
}
