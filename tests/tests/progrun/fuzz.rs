//! Random and mutated packets through all programs, compared with the model.
//!
//! MESH_FUZZ_PACKETS sets how many run in each world.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use mesh_common::verdict::{DropReason, Hook, Verdict};
use proptest::{
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, TestRunner},
};

use super::{
    model::Model,
    packet::{
        ARP, IPV4, IPV6, TEB, assert_well_formed, eth, ethertype, gre, ip, ip_with, outer_ipv4,
    },
    world::{
        A, GRE, GRETAP, H2, H3, H4, H5, HOST, ME, NEXT_HOP_MAC, PORTS, Port, STRAY, Spec, UNDERLAY,
        UNDERLAY_MAC, World, gateway_mac, world,
    },
};

const PACKETS: u32 = 3000;

/// A packet at a hook.
#[derive(Clone)]
struct Case {
    /// On the underlay if none.
    from: Option<u32>,
    frame: Vec<u8>,
    gso_size: u32,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, frame, gso_size } = self;
        write!(f, "from {from:?}, segments of {gso_size}: {frame:02x?}")
    }
}

fn addresses_v4() -> impl Strategy<Value = Ipv4Addr> {
    let known = "10.42.0.1 10.42.0.2 10.42.0.3 10.42.0.5 10.42.0.77 10.42.64.9 10.42.127.255 10.42.128.1 \
        10.42.129.1 10.42.130.1 10.42.192.1 10.42.193.1 10.42.194.1 10.42.196.31 10.42.250.1 \
        192.0.2.11 192.0.2.12 0.0.0.0 127.0.0.1 224.0.0.1 255.255.255.255 8.8.8.8";
    let known: Vec<_> = known.split_whitespace().map(|s| s.parse().unwrap()).collect();
    prop_oneof![20 => select(known), 1 => any::<Ipv4Addr>()]
}

fn addresses_v6() -> impl Strategy<Value = Ipv6Addr> {
    let known = "fd42::1 fd42::2 fd42::5 fd42::77 fd42:0:0:1::9 fd42:0:0:2::9 fd42:0:0:3::9 fd42:0:0:4::9 \
        fd42:0:0:5::9 fd42:0:0:a::9 fd42:0:0:d::9 fd43::2 fd43::3 fd43:0:0:1::9 fd49::2 \
        fd49:0:0:1::9 fe80::1 ff02::1 :: ::1 ::ffff:10.42.0.2 ::ffff:10.42.128.1 2001:db8::1";
    let known: Vec<_> = known.split_whitespace().map(|s| s.parse().unwrap()).collect();
    prop_oneof![20 => select(known), 1 => any::<Ipv6Addr>()]
}

fn protocols() -> impl Strategy<Value = u8> {
    prop_oneof![6 => select(&[1u8, 6, 17, 47, 58][..]), 1 => any::<u8>()]
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..80),
        1 => (1380..1520usize).prop_map(|n| vec![0x55; n]),
    ]
}

/// An IP packet; sources of the ports and of peers are as likely as all others together.
fn ip_packets() -> impl Strategy<Value = Vec<u8>> {
    let v4 =
        (addresses_v4(), addresses_v4()).prop_map(|(src, dst)| (IpAddr::V4(src), IpAddr::V4(dst)));
    let v6 =
        (addresses_v6(), addresses_v6()).prop_map(|(src, dst)| (IpAddr::V6(src), IpAddr::V6(dst)));
    (prop_oneof![v4, v6], any::<u8>(), protocols(), payloads()).prop_map(
        |((src, dst), tos, protocol, payload)| ip_with(ip(src, dst, tos), protocol, &payload),
    )
}

fn arp() -> impl Strategy<Value = Vec<u8>> {
    (1..3u8, addresses_v4(), addresses_v4()).prop_map(|(op, sender, target)| {
        let fixed = [0, 1, 8, 0, 6, 4, 0, op];
        [&fixed[..], &A.mac, &sender.octets(), &[0; 6], &target.octets()].concat()
    })
}

fn neighbour_messages() -> impl Strategy<Value = Vec<u8>> {
    let hops = select(&[255u8, 255, 255, 64]);
    (132..139u8, addresses_v6(), addresses_v6(), hops, payloads()).prop_map(
        |(kind, src, target, hops, options)| {
            let body = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &options].concat();
            let mut packet = ip_with(ip(src, Ipv6Addr::LOCALHOST, 0), 58, &body);
            packet[7] = hops;
            packet
        },
    )
}

/// The port's own source address, so that more than the source check is met.
fn owned(mut packet: Vec<u8>, port: Port) -> Vec<u8> {
    match (ethertype(&packet), port.v4, port.v6) {
        (IPV4, Some(own), _) => packet[12..16].copy_from_slice(&own.octets()),
        (IPV6, _, Some(own)) => packet[8..24].copy_from_slice(&own.octets()),
        _ => {}
    }
    packet
}

/// From a peer's subnet to a container's address.
fn of_peer(mut packet: Vec<u8>, peer: Ipv4Addr, to: Port) -> Vec<u8> {
    let i = [H2, H3, H4, H5].iter().position(|p| p.underlay == peer).unwrap_or(0);
    match (ethertype(&packet), to.v4, to.v6) {
        (IPV4, Some(to), _) => {
            packet[12..16].copy_from_slice(&[10, 42, [64, 128, 192, 193][i], 9]);
            packet[16..20].copy_from_slice(&to.octets());
        }
        (IPV6, _, Some(to)) => {
            packet[24..40].copy_from_slice(&to.octets());
            packet[8..24].copy_from_slice(&to.octets());
            packet[15] = [1, 2, 3, 5][i];
        }
        _ => {}
    }
    packet
}

fn sent() -> impl Strategy<Value = Case> {
    let packet = prop_oneof![
        6 => (ip_packets(), any::<bool>()).prop_map(|(p, own)| (ethertype(&p), p, own)),
        1 => arp().prop_map(|p| (ARP, p, false)),
        1 => (neighbour_messages(), any::<bool>()).prop_map(|(p, own)| (IPV6, p, own)),
        1 => (any::<u16>(), payloads()).prop_map(|(ethertype, p)| (ethertype, p, false)),
    ];
    let gso_size = prop_oneof![9 => Just(0u32), 1 => 1..3000u32];
    (select(&PORTS[..]), packet, gso_size, 0..30u8).prop_map(
        |(port, (ethertype, packet, own), gso_size, stray)| {
            let packet = if own { owned(packet, port) } else { packet };
            let from = Some(if stray == 0 { STRAY } else { port.ifindex });
            Case { from, frame: eth(gateway_mac(), port.mac, ethertype, &packet), gso_size }
        },
    )
}

fn received() -> impl Strategy<Value = Case> {
    let strangers = [ME, Ipv4Addr::new(198, 51, 100, 7)];
    let src = prop_oneof![
        8 => select(vec![H2.underlay, H3.underlay, H4.underlay, H5.underlay]),
        1 => select(strangers.to_vec()),
    ];
    let dst = prop_oneof![8 => Just(ME), 1 => addresses_v4()];
    let key = prop_oneof![
        4 => Just(None),
        4 => select(&[7u32, 9][..]).prop_map(Some),
        1 => any::<u32>().prop_map(Some),
        1 => select(&[0u32, 8, 0x100_0007][..]).prop_map(Some),
    ];
    let proto = prop_oneof![20 => Just(None), 1 => any::<u16>().prop_map(Some)];
    let own = prop_oneof![1 => Just(None), 2 => select(&PORTS[..]).prop_map(Some)];
    (src, dst, any::<u8>(), key, any::<bool>(), proto, (ip_packets(), own), 0..40u8).prop_map(
        |(src, dst, tos, key, is_ethernet, proto, (inner, own), gso)| {
            let inner = match own {
                Some(to) => of_peer(inner, src, to),
                None => inner,
            };
            let of_inner = proto.unwrap_or(ethertype(&inner));
            let gre = match is_ethernet {
                true => gre(TEB, key, &eth([7; 6], [8; 6], of_inner, &inner)),
                false => gre(of_inner, key, &inner),
            };
            let frame = eth(UNDERLAY_MAC, NEXT_HOP_MAC, IPV4, &outer_ipv4(src, dst, tos, &gre));
            Case { from: None, frame, gso_size: if gso == 0 { 500 } else { 0 } }
        },
    )
}

/// Some bytes changed, the end cut off or something added.
fn cases() -> impl Strategy<Value = Case> {
    let mutations = prop_oneof![
        2 => Just(vec![]),
        1 => prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
    ];
    let length = prop_oneof![3 => Just(None), 1 => any::<Index>().prop_map(Some)];
    (prop_oneof![sent(), received()], mutations, length).prop_map(
        |(mut case, mutations, length)| {
            // Headers are where it matters.
            let near = case.frame.len().min(110);
            for (at, value) in mutations {
                case.frame[at.index(near)] = value;
            }
            if let Some(length) = length {
                case.frame.resize(14 + length.index(case.frame.len()), 0);
            }
            // The kernel runs no test on less than an IP header.
            let least = match u16::from_be_bytes([case.frame[12], case.frame[13]]) {
                IPV4 => 34,
                IPV6 => 54,
                _ => 15,
            };
            case.frame.resize(case.frame.len().max(least), 0);
            case
        },
    )
}

/// How a packet ended.
type End = (Hook, Verdict, Option<DropReason>);

/// Runs one packet and compares.
fn check(w: &World, model: &Model<'_>, case: &Case) -> End {
    let Case { from, frame, gso_size } = case;
    let (hook, ran, expected) = match from {
        None => (
            Hook::FromUnderlay,
            w.run(Hook::FromUnderlay, UNDERLAY, frame, *gso_size),
            model.receives(frame, *gso_size as usize),
        ),
        Some(ifindex) => {
            let port = PORTS.into_iter().find(|p| p.ifindex == *ifindex);
            let is_host = port.is_some_and(|p| p.id == HOST.id);
            let hook = if is_host { Hook::FromHost } else { Hook::FromContainer };
            (
                hook,
                w.run(hook, *ifindex, frame, *gso_size),
                model.sends(port, frame, *gso_size as usize),
            )
        }
    };
    let counted: Vec<_> = ran.traffic.iter().map(|(counter, _)| *counter).collect();
    assert_eq!(
        (ran.verdict, ran.reason, counted),
        (expected.verdict, expected.reason, expected.counted)
    );
    match ran.verdict {
        Verdict::Pass => assert_eq!(ran.frame, *frame),
        Verdict::Answer => drop(assert_well_formed(&ran.frame)),
        _ => {}
    }
    (hook, ran.verdict, ran.reason)
}

fn fuzz(spec: Spec) {
    let packets = std::env::var("MESH_FUZZ_PACKETS").map_or(PACKETS, |n| n.parse().unwrap());
    world(spec, |w| {
        let config = Config { cases: packets, failure_persistence: None, ..Config::default() };
        let model = Model { cluster: &w.cluster, spec };
        let seen = RefCell::new(BTreeSet::new());
        let run = TestRunner::new(config).run(&cases(), |case| {
            seen.borrow_mut().insert(check(w, &model, &case));
            Ok(())
        });
        run.unwrap_or_else(|e| panic!("{e}"));
        // A fuzzer that meets the first check only finds nothing.
        let seen = seen.into_inner();
        assert!(packets < PACKETS || seen.len() >= 30, "only {seen:?}");
    });
}

#[test]
fn random_packets_end_as_the_model_says() {
    fuzz(GRE);
}

#[test]
fn random_packets_end_as_the_model_says_with_gretap_and_foreign_tunnels() {
    fuzz(Spec { foreign_gre: true, ..GRETAP });
}

#[test]
fn random_packets_end_as_the_model_says_with_many_prefix_lengths() {
    fuzz(Spec { many_lengths: true, ..GRE });
}
