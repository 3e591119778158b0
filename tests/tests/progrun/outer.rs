//! What comes in on the underlay and is not a good packet of a peer: left alone, or dropped with
//! the reason.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{IpFragOffset, IpHeaders, Ipv4Header, Ipv4Options, ip_number};
use mesh_common::verdict::DropReason::{
    self, OuterFragment, UnknownPeer, UnknownVni, UnsupportedOuter,
};
use mesh_userspace::config::Encap;

use super::{
    decap::{H2_V4, from_peer},
    packet::{ARP, IPV4, IPV6, eth, ethertype, gre, ip, ipv4_with, outer_ipv4, tcp, udp},
    spec::{A, BLUE_VNI, GRE, H2, ME, NEXT_HOP_MAC, Peer, SIX_VNI, STRAY, Spec, UNDERLAY_MAC},
    world::world,
};

pub const STRANGER: Peer = Peer {
    index: u32::MAX,
    underlay: Ipv4Addr::new(198, 51, 100, 7),
    underlay_v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7),
};
const FOREIGN: Spec = Spec { foreign_gre: true, ..GRE };

fn inner() -> Vec<u8> {
    udp(ip(H2_V4, A.v4.unwrap(), 0), b"payload")
}

/// Dropped with `reason` if a peer sent them, as an unknown peer's if a stranger did, and left
/// alone if the host has tunnels of its own.
#[track_caller]
fn assert_refused(packets: impl Fn(Peer) -> Vec<Vec<u8>> + Sync, reason: DropReason) {
    for spec in [GRE, FOREIGN] {
        world(spec, |w| {
            let receives = |ip: &[u8]| w.receives_frame(&on_ipv4(ip));
            for packet in packets(H2) {
                let ran = receives(&packet);
                ran.assert_dropped(reason);
                assert_eq!(ran.traffic, []);
            }
            for packet in packets(STRANGER) {
                match spec.foreign_gre {
                    true => receives(&packet).assert_passed(&on_ipv4(&packet)),
                    false => receives(&packet).assert_dropped(UnknownPeer),
                }
            }
        });
    }
}

/// Whatever the packet says that it is.
fn on_ipv4(ip: &[u8]) -> Vec<u8> {
    eth(UNDERLAY_MAC, NEXT_HOP_MAC, IPV4, ip)
}

#[test]
fn what_is_not_gre_to_this_host_is_left_alone() {
    world(GRE, |w| {
        w.assert_passes(&udp(ip(H2.underlay, ME, 0), b"dns"));
        w.assert_passes(&tcp(ip(H2.underlay, ME, 0), b"ssh"));
        let good = from_peer(H2, Encap::Gre, 0, 0, &inner());
        for protocol in (0..=255).filter(|p| *p != 47) {
            let mut packet = good.clone();
            packet[9] = protocol;
            w.assert_passes(&packet);
        }
        for (dst, ethertype) in [
            // To somebody else, to all, not IPv4.
            ([2, 0, 0, 0, 0, 12], IPV4),
            ([0xff; 6], IPV4),
            ([1, 0, 0x5e, 0, 0, 1], IPV4),
            (UNDERLAY_MAC, IPV6),
            (UNDERLAY_MAC, ARP),
            (UNDERLAY_MAC, 0x8100),
        ] {
            let frame = eth(dst, NEXT_HOP_MAC, ethertype, &good);
            w.receives_frame(&frame).assert_passed(&frame);
        }
    });
}

#[test]
fn gre_to_an_address_that_is_not_the_nodes_is_left_alone() {
    world(GRE, |w| {
        for dst in [[192, 0, 2, 77], [224, 0, 0, 1], [255; 4], H2.underlay.octets()] {
            for src in [H2, STRANGER] {
                for key in [None, Some(BLUE_VNI), Some(8), Some(0)] {
                    let gre = gre(ethertype(&inner()), key, &inner());
                    w.assert_passes(&outer_ipv4(src.underlay, Ipv4Addr::from(dst), 0, &gre));
                }
            }
        }
    });
}

#[test]
fn gre_of_a_stranger_is_dropped_unless_the_host_has_tunnels() {
    let packets = || {
        [0, BLUE_VNI, 8].into_iter().flat_map(|vni| {
            [Encap::Gre, Encap::Gretap].map(|form| from_peer(STRANGER, form, vni, 0, &inner()))
        })
    };
    world(GRE, |w| packets().for_each(|p| w.receives(&p).assert_dropped(UnknownPeer)));
    world(FOREIGN, |w| packets().for_each(|p| w.assert_passes(&p)));
}

#[test]
fn our_own_address_as_outer_source_is_a_strangers() {
    world(GRE, |w| {
        let packet = outer_ipv4(ME, ME, 0, &gre(IPV4, None, &inner()));
        w.receives(&packet).assert_dropped(UnknownPeer);
    });
}

#[test]
fn key_that_is_no_network_is_dropped() {
    // 0 has no key; 24 bits are the most, and the upper eight are not cut off.
    let keys = [0, 8, 0xff_ffff, 0x100_0000, 0x100_0000 | BLUE_VNI, 0x700_0000, u32::MAX];
    let packet =
        |peer: Peer, key| outer_ipv4(peer.underlay, ME, 0, &gre(IPV4, Some(key), &inner()));
    assert_refused(|peer| keys.map(|key| packet(peer, key)).to_vec(), UnknownVni);
}

#[test]
fn network_whose_family_is_another_has_no_such_source() {
    world(GRE, |w| {
        let packet = from_peer(H2, Encap::Gre, SIX_VNI, 0, &inner());
        w.receives(&packet).assert_dropped(DropReason::SourceNotPeers);
    });
}

#[test]
fn gre_with_other_bits_than_the_key_is_dropped() {
    // Checksum, routing, sequence, strict source route, recursion, and reserved bits.
    let bits = (3..16u16).filter(|bit| *bit != 13);
    let packet = |peer: Peer, key, bit: u16| {
        let mut gre = gre(IPV4, key, &[&[0; 8][..], &inner()].concat());
        let flags: u16 = u16::from_be_bytes([gre[0], gre[1]]) | 1 << bit;
        gre[..2].copy_from_slice(&flags.to_be_bytes());
        outer_ipv4(peer.underlay, ME, 0, &gre)
    };
    let packets = |peer| {
        let each = |bit| [None, Some(BLUE_VNI)].map(|key| packet(peer, key, bit));
        bits.clone().flat_map(each).collect()
    };
    assert_refused(packets, UnsupportedOuter);
}

#[test]
fn other_versions_of_gre_are_left_alone() {
    world(GRE, |w| {
        for version in 1..8u16 {
            for flags in [0, 0x2000, 0xb000] {
                let mut gre = gre(0x880b, None, &inner());
                gre[..2].copy_from_slice(&(flags | version).to_be_bytes());
                w.assert_passes(&outer_ipv4(H2.underlay, ME, 0, &gre));
            }
        }
    });
}

/// An outer header like a peer's, to be changed.
fn header(peer: Peer) -> Ipv4Header {
    let IpHeaders::Ipv4(mut header, _) = ip(peer.underlay, ME, 0) else { unreachable!() };
    header.protocol = ip_number::GRE;
    header
}

#[test]
fn outer_fragments_are_dropped() {
    let fragments = [(true, 0), (true, 1), (false, 1), (false, 185), (true, 8191)];
    let packet = |peer: Peer, more, offset| {
        let mut header = header(peer);
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
        ipv4_with(header, &gre(IPV4, None, &inner()))
    };
    let packets = |peer| fragments.map(|(more, offset)| packet(peer, more, offset)).to_vec();
    assert_refused(packets, OuterFragment);
}

#[test]
fn outer_header_may_have_any_id_and_ttl_and_no_df() {
    world(GRE, |w| {
        let mut header = header(H2);
        header.dont_fragment = false;
        header.identification = 0xbeef;
        header.time_to_live = 1;
        let ran = w.receives(&ipv4_with(header, &gre(IPV4, None, &inner())));
        assert_eq!(ran.verdict, mesh_common::verdict::Verdict::Deliver);
    });
}

#[test]
fn outer_ip_options_are_dropped() {
    let with_options = |peer: Peer, words: usize| {
        let mut header = header(peer);
        header.options = Ipv4Options::try_from(&vec![1; words * 4][..]).unwrap();
        ipv4_with(header, &gre(IPV4, None, &inner()))
    };
    // A header length below the least, and another version.
    let with_first = |peer: Peer, first: u8| {
        let mut packet = from_peer(peer, Encap::Gre, 0, 0, &inner());
        packet[0] = first;
        packet
    };
    let packets = |peer| {
        let options = [1, 10].map(|words| with_options(peer, words));
        let firsts = [0x40, 0x44, 0x55, 0x65].map(|first| with_first(peer, first));
        [&options[..], &firsts].concat()
    };
    assert_refused(packets, UnsupportedOuter);
}

#[test]
fn super_packet_that_the_kernel_will_not_shrink_is_dropped_as_no_room() {
    world(GRE, |w| {
        let packet = from_peer(H2, Encap::Gre, 0, 0, &inner());
        let frame = eth(UNDERLAY_MAC, NEXT_HOP_MAC, IPV4, &packet);
        let hook = mesh_common::verdict::Hook::FromUnderlay;
        // Of no kind, as a test's is.
        let ran = w.run(hook, super::spec::UNDERLAY, &frame, 500);
        ran.assert_dropped(DropReason::NoRoom);
        assert_eq!(ran.traffic, []);
    });
}

#[test]
fn container_on_an_interface_that_is_not_attached_is_dropped() {
    world(GRE, |w| {
        for ifindex in [STRAY, 1] {
            let frame = eth([0; 6], A.mac, IPV4, &inner());
            let hook = mesh_common::verdict::Hook::FromContainer;
            w.run(hook, ifindex, &frame, 0).assert_dropped(DropReason::UnknownPort);
        }
    });
}
