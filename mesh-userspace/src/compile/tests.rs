use std::{net::Ipv4Addr, time::Instant};

use ipnet::{Ipv4Net, Ipv6Net};
use mesh_common::maps::{EndpointInfo, EndpointKey, PortInfo};
use proptest::prelude::*;

use super::*;
use crate::{
    config::{Dscp, Flood, Foreign, Link, Network},
    plan::{
        Observed, plan,
        tests::{
            layout::{self, IFINDICES, Layout, VNIS, edges, layout, observed},
            model::{self, Fate},
        },
    },
};

const ME: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));

fn vni(n: u32) -> Vni {
    Vni::new(n).unwrap()
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

pub(super) fn node(name: &str, underlay: impl Into<IpAddr>, subnets: &[(u32, &str)]) -> Node {
    let subnets = subnets.iter().map(|(v, net)| (vni(*v), net.parse().unwrap())).collect();
    Node { name: name.into(), underlay: underlay.into(), subnets, foreign: None }
}

pub(super) fn cluster(encap: Encap, mtu: Option<u16>, vnis: &[u32], nodes: Vec<Node>) -> Cluster {
    let network = |n: &u32| Network {
        name: format!("net{n}"),
        vni: vni(*n),
        cidrs: Vec::new(),
        flood: Flood::None,
    };
    let networks = vnis.iter().map(network).collect();
    Cluster {
        name: "test".into(),
        encap,
        mtu,
        port: None,
        ttl: 64,
        dscp: Dscp::Copy,
        links: Vec::new(),
        networks,
        nodes,
        docker: Default::default(),
        bridges: Vec::new(),
        interfaces: Default::default(),
    }
}

fn attachment(n: u32, ifindex: u32, addresses: &[&str]) -> Attachment {
    Attachment {
        vni: vni(n),
        ifindex,
        id: ifindex,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        mac: [2; 6],
        kind: AttachmentKind::Container,
    }
}

#[test]
fn a_node_mac_is_local_and_the_nodes_own_in_both_families() {
    assert_eq!(node_mac(ME), [0x02, 0x6d, 192, 0, 2, 10]);
    // FNV-1a of the 16 octets.
    assert_eq!(node_mac(ip("2001:db8::a")), [0x02, 0x6d, 0x69, 0x5a, 0xfd, 0x15]);
    assert_ne!(node_mac(ip("2001:db8::a")), node_mac(ip("2001:db8::b")));
}

/// This node alone, with these attached.
fn alone(subnets: &[(u32, &str)], attachments: Vec<Attachment>) -> Desired {
    let nodes = vec![node("me", ME, subnets)];
    let cluster = cluster(Encap::Gre, None, &[0, 7], nodes);
    let facts = Facts { attachments, underlay_mtu: 1500, ..Facts::default() };
    compile(&cluster, &cluster.nodes[0], &facts)
}

/// Addresses around all prefixes of a network, and some within each.
fn addresses(layout: &Layout, of: u32, salt: u128) -> Vec<IpAddr> {
    let within = |net: IpNet| match net {
        IpNet::V4(net) => {
            let host = net.hostmask().to_bits() & salt as u32;
            IpAddr::V4(Ipv4Addr::from_bits(net.network().to_bits() | host))
        }
        IpNet::V6(net) => {
            let host = net.hostmask().to_bits() & salt;
            IpAddr::V6((net.network().to_bits() | host).into())
        }
    };
    let subnets = layout.subnets();
    let own = subnets.into_iter().filter(|(vni, ..)| vni.get() == of).map(|(_, net, _)| net);
    own.flat_map(|net| edges(net).into_iter().chain([within(net), within(net)])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_address_finds_the_node_that_has_it(layout in layout(), salt: u128) {
        let maps = observed(layout.desired(&Observed::default()));
        for (n, of) in VNIS.into_iter().enumerate().filter(|(n, _)| layout.networks[*n]) {
            let lens = maps.networks[&of].lens;
            prop_assert_eq!(lens, maps.ports[&IFINDICES[n]].lens);
            for ip in addresses(&layout, of, salt) {
                let found = model::lookup(&maps, &lens, of, ip).map(|to| match to.kind {
                    FibInfo::LOCAL => layout.underlay(0),
                    _ => maps.peers[&to.peer].remote.into(),
                });
                let owner = layout.owner(of, ip).map(|n| layout.underlay(n));
                prop_assert_eq!(found, owner, "{}/{}", of, ip);
            }
        }
    }

    #[test]
    fn a_peer_may_send_from_its_own_addresses_and_no_others(layout in layout(), salt: u128) {
        let maps = observed(layout.desired(&Observed::default()));
        for of in VNIS {
            for peer in (1..layout::NODES).filter(|n| layout.present[*n]) {
                let outer_source = Addr::from(layout.underlay(peer));
                let source = maps.peer_by_addr.get(&PeerKey { outer_source, vni: of });
                let has_part = layout.subnets().iter().any(|(v, _, n)| v.get() == of && *n == peer);
                prop_assert_eq!(source.is_some(), has_part || of == 0);
                for ip in addresses(&layout, of, salt) {
                    let may = source.is_some_and(|s| model::may_send(&maps, s, of, ip));
                    prop_assert_eq!(may, layout.owner(of, ip) == Some(peer), "{}/{}", of, ip);
                }
                // Not even the address that the never-matching entries are made of.
                for none in ["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
                    prop_assert!(source.is_none_or(|s| !model::may_send(&maps, s, of, ip(none))));
                }
            }
        }
    }
}

#[test]
fn every_address_of_small_subnets_finds_its_node() {
    for lens in [1, 4, 5] {
        let net = |n: u8| format!("10.0.{n}.0/{}", 24 + n % lens);
        let nets: Vec<String> = (0..10).map(net).collect();
        let mut nodes = vec![node("me", ME, &[])];
        nodes.extend(nets.iter().enumerate().map(|(n, net)| {
            node(&format!("n{n}"), Ipv4Addr::new(192, 0, 2, 100 + n as u8), &[(7, net)])
        }));
        let cluster = cluster(Encap::Gre, None, &[0, 7], nodes);
        let maps = observed(compile(&cluster, &cluster.nodes[0], &Facts::default()));
        assert_eq!(maps.fib_lpm.is_empty(), lens <= 4);
        for (n, net) in nets.iter().enumerate() {
            let net: Ipv4Net = net.parse().unwrap();
            let wide = Ipv4Net::new(net.network(), 24).unwrap();
            let all = wide.network().to_bits()..=wide.broadcast().to_bits();
            for ip in all.map(Ipv4Addr::from_bits) {
                let found = model::lookup(&maps, &maps.networks[&7].lens, 7, ip.into());
                let remote = found.map(|to| IpAddr::from(maps.peers[&to.peer].remote));
                let owner = Ipv4Addr::new(192, 0, 2, 100 + n as u8);
                assert_eq!(remote, net.contains(&ip).then_some(IpAddr::V4(owner)), "{ip}");
            }
        }
    }
}

#[test]
fn the_commonest_length_is_looked_up_first() {
    let subnets = [(0, "10.0.0.0/20"), (0, "10.0.16.0/24"), (0, "10.0.17.0/24"), (7, "10.0.0.0/8")];
    let desired = alone(&subnets, Vec::new());
    assert_eq!(desired.maps.networks[&0].lens.v4, [96 + 24, 96 + 20, 0, 0]);
    assert_eq!(desired.maps.networks[&7].lens.v4, [96 + 8, 0, 0, 0]);
    assert_eq!(desired.maps.networks[&7].lens.v6, [0; 4]);
}

#[test]
fn lengths_of_both_families_are_not_told_apart_by_their_number() {
    let v6 = |subnets: &[(u32, &str)]| alone(subnets, Vec::new()).maps.networks[&0].lens.v6;
    assert_eq!(v6(&[(0, "10.0.0.0/24"), (0, "fd42::/64")]), [64, 0, 0, 0]);
    assert_eq!(v6(&[(0, "10.0.0.0/24"), (0, "fd42::/112")]), [112, 0, 0, 0]);
    // 24 bits of an IPv4 address are 120 of its IPv6 form.
    assert_eq!(v6(&[(0, "10.0.0.0/24"), (0, "fd42::/120")]), [PrefixLens::LPM, 0, 0, 0]);
    assert_eq!(v6(&[(7, "10.0.0.0/24"), (0, "fd42::/120")]), [120, 0, 0, 0]);
}

#[test]
fn an_address_outside_the_nodes_subnets_is_nobodys() {
    let inside = attachment(0, 5, &["10.0.0.2", "fd00::2"]);
    let outside = attachment(0, 6, &["10.9.0.2", "fd00::3"]);
    let desired =
        alone(&[(0, "10.0.0.0/24"), (0, "fd00::/64"), (7, "10.9.0.0/24")], vec![inside, outside]);
    let has =
        |a: &str| desired.maps.endpoints.contains_key(&EndpointKey { vni: 0, addr: ip(a).into() });
    assert!(has("10.0.0.2") && has("fd00::2") && has("fd00::3"));
    assert!(!has("10.9.0.2") && desired.maps.endpoints.len() == 3);
    assert_eq!(desired.maps.ports[&6].addr4, 0);
    assert_eq!(Addr(desired.maps.ports[&6].addr6), Addr::from(ip("fd00::3")));
    // And may send from there neither.
    let maps = observed(desired);
    assert_eq!(model::send(&maps, 6, ip("10.9.0.2"), ip("10.0.0.2")), Fate::Spoofed);
    assert_eq!(model::send(&maps, 6, ip("0.0.0.0"), ip("10.0.0.2")), Fate::Spoofed);
    assert_eq!(model::send(&maps, 6, ip("fd00::3"), ip("fd00::2")), Fate::Delivered(5));
}

#[test]
fn the_same_address_in_two_networks_is_two_endpoints() {
    let attachments = vec![attachment(0, 5, &["10.0.0.2"]), attachment(7, 6, &["10.0.0.2"])];
    let desired = alone(&[(0, "10.0.0.0/24"), (7, "10.0.0.0/24")], attachments);
    let at =
        |vni| desired.maps.endpoints[&EndpointKey { vni, addr: ip("10.0.0.2").into() }].ifindex;
    assert_eq!((at(0), at(7)), (5, 6));
}

#[test]
fn a_port_of_a_bridge_has_its_addresses_among_the_endpoints_alone() {
    let port = |addresses: &[&str]| {
        let bridged = Attachment { kind: AttachmentKind::Bridged, ..attachment(0, 5, addresses) };
        alone(&[(0, "10.42.0.0/24"), (0, "fd42::/64")], vec![bridged]).maps
    };
    let unknown = port(&[]);
    assert_eq!(unknown.ports[&5].flags, PortInfo::BRIDGED);
    assert!(unknown.endpoints.is_empty());
    let known = port(&["10.42.0.7"]);
    assert_eq!(known.ports[&5].flags, PortInfo::BRIDGED | PortInfo::BOUND4);
    assert_eq!((known.ports[&5].addr4, known.endpoints.len()), (0, 1));
    assert!(known.endpoints.values().all(|e| e.flags == EndpointInfo::BRIDGED));
}

#[test]
fn the_first_of_several_addresses_is_the_ports_and_all_are_endpoints() {
    let two = attachment(0, 5, &["10.42.0.1", "10.42.0.9"]);
    let maps = alone(&[(0, "10.42.0.0/24")], vec![two]).maps;
    assert_eq!(maps.ports[&5].addr4, Addr::from(ip("10.42.0.1")).0[3]);
    assert_eq!(maps.endpoints.len(), 2);
}

#[test]
fn gateways_are_the_first_addresses_of_the_first_subnets() {
    let subnets = [(0, "10.0.4.0/24"), (0, "10.0.0.0/24"), (0, "fd00:4::/64"), (7, "10.8.0.0/24")];
    let attachments = vec![attachment(0, 5, &[]), attachment(7, 6, &[])];
    let desired = alone(&subnets, attachments);
    let port = desired.maps.ports[&5];
    assert_eq!(IpAddr::from(Addr::from_v4(port.gateway4)), ip("10.0.4.1"));
    assert_eq!(IpAddr::from(Addr(port.gateway6)), ip("fd00:4::1"));
    assert_eq!(IpAddr::from(Addr::from_v4(desired.maps.ports[&6].gateway4)), ip("10.8.0.1"));
    assert_eq!(desired.maps.ports[&6].gateway6, [0; 4]);
}

#[test]
fn a_node_without_a_route_keeps_its_entry_but_takes_no_packet() {
    let nodes = vec![
        node("me", ME, &[(0, "10.0.0.0/24")]),
        node("far", Ipv4Addr::new(192, 0, 2, 11), &[(0, "10.0.1.0/24")]),
    ];
    let cluster = cluster(Encap::Gre, None, &[0], nodes);
    let facts = Facts { attachments: vec![attachment(0, 5, &["10.0.0.2"])], ..Facts::default() };
    let maps = observed(compile(&cluster, &cluster.nodes[0], &facts));
    let fate = model::send(&maps, 5, ip("10.0.0.2"), ip("10.0.1.2"));
    assert_eq!(fate, Fate::PeerIncomplete);
    assert_eq!(IpAddr::from(maps.peers[&0].remote), ip("192.0.2.11"));
}

/// (encapsulation, network, bytes that it adds, bytes that mesh leaves by itself)
const OVERHEADS: [(Encap, u32, bool, u32, u32); 10] = [
    (Encap::Gre, 0, false, 24, 38),
    (Encap::Gre, 7, false, 28, 38),
    (Encap::Gretap, 0, false, 38, 38),
    (Encap::Gretap, 7, false, 42, 42),
    (Encap::Vxlan, 7, false, 50, 50),
    (Encap::Geneve, 0, false, 50, 50),
    (Encap::Gre, 0, true, 44, 58),
    (Encap::Gretap, 7, true, 62, 62),
    (Encap::Vxlan, 0, true, 70, 70),
    (Encap::Geneve, 7, true, 70, 70),
];

/// Of one node, on an underlay of this family.
fn with_mtu(encap: Encap, ipv6: bool, mtu: Option<u16>) -> Cluster {
    let underlay = ip(if ipv6 { "2001:db8::1" } else { "192.0.2.1" });
    cluster(encap, mtu, &[0, 7], vec![node("n", underlay, &[])])
}

#[test]
fn the_mtu_that_mesh_chooses_leaves_room_for_the_outer_headers() {
    for (encap, n, ipv6, overhead, left) in OVERHEADS {
        let cluster = with_mtu(encap, ipv6, None);
        for underlay in [1280, 1500, 9000, 65_535] {
            let mtu = container_mtu(&cluster, vni(n), underlay).unwrap();
            assert_eq!(mtu, underlay - left);
            assert!(mtu + overhead <= underlay);
        }
        // No underlay is that small, but nothing wraps around.
        for underlay in [0, 1, left - 1, left] {
            assert_eq!(container_mtu(&cluster, vni(n), underlay), Ok(0));
        }
        assert_eq!(container_mtu(&cluster, vni(n), left + 1), Ok(1));
    }
}

#[test]
fn the_files_mtu_may_be_the_largest_that_fits_and_not_one_more() {
    for (encap, n, ipv6, overhead, _) in OVERHEADS {
        for underlay in [1300, 1500, 9000, 65_535] {
            let largest = underlay - overhead;
            let with = |mtu: u32| {
                container_mtu(&with_mtu(encap, ipv6, Some(mtu as u16)), vni(n), underlay)
            };
            assert_eq!(with(largest), Ok(largest));
            assert_eq!(with(1280.min(largest)), Ok(1280.min(largest)));
            assert_eq!(with(largest + 1), Err(largest));
        }
        let cluster = with_mtu(encap, ipv6, Some(1));
        assert_eq!(container_mtu(&cluster, vni(n), overhead), Err(0));
        assert_eq!(container_mtu(&cluster, vni(n), 0), Err(0));
    }
}

#[test]
fn the_largest_overhead_of_any_pair_counts_for_all_containers() {
    let mut cluster = with_mtu(Encap::Gre, false, None);
    assert_eq!(container_mtu(&cluster, vni(0), 1500), Ok(1462));
    let nodes = ["a".to_owned(), "b".to_owned()];
    cluster.links.push(Link { nodes, encap: Some(Encap::Vxlan), port: None });
    assert_eq!(container_mtu(&cluster, vni(0), 1500), Ok(1450));
    cluster.links.clear();
    cluster.nodes[0].foreign = Some(Foreign { encap: Some(Encap::Geneve), ..Foreign::default() });
    assert_eq!(container_mtu(&cluster, vni(0), 1500), Ok(1450));
    // A number in GRE takes four bytes, also where it is that of the cluster's own network.
    cluster.nodes[0].foreign =
        Some(Foreign { encap: Some(Encap::Gretap), vni: Some(42), ..Foreign::default() });
    assert_eq!(container_mtu(&cluster, vni(0), 1500), Ok(1458));
}

/// A change of other nodes must not be compiled with another MTU than that of all of them.
#[test]
fn a_difference_has_the_mtu_of_the_whole_cluster() {
    let ends = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4"];
    let nodes = ["me", "far", "old", "alien"].iter().zip(ends).enumerate();
    let node =
        |(i, (name, at)): (_, (&&str, _))| node(name, ip(at), &[(0, &format!("10.{i}.0.0/16"))]);
    let mut old = cluster(Encap::Gre, None, &[0], nodes.map(node).collect());
    old.nodes[3].foreign = Some(Foreign { encap: Some(Encap::Vxlan), ..Foreign::default() });
    let mut new = old.clone();
    new.nodes.remove(2);
    let facts = Facts { underlay_mtu: 1500, ..Facts::default() };
    let whole = compile(&new, &new.nodes[0], &facts).maps.networks;
    assert_eq!(whole[&0].mtu, 1430);
    let (before, after) = Difference::of(&old, &new, "me").unwrap().compile(&new.nodes[0], &facts);
    assert_eq!((before.maps.networks, after.maps.networks), (whole.clone(), whole));
    // Another overhead is one for all nodes.
    new.nodes[2].foreign = None;
    assert!(Difference::of(&old, &new, "me").is_none());
}

/// `networks` networks, in each of which every node has a /28 and a /64.
fn large(nodes: u32, networks: u32) -> Cluster {
    let part = |n: u32| {
        move |network: u32| {
            let v4 = Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 + n * 16), 28).unwrap();
            let v6 = (0xfd00u128 << 112 | u128::from(n) << 64).into();
            let v6 = Ipv6Net::new(v6, 64).unwrap();
            [(vni(network), IpNet::V4(v4)), (vni(network), IpNet::V6(v6))]
        }
    };
    let node = |n: u32| Node {
        name: format!("n{n}"),
        underlay: Ipv4Addr::from_bits(0xac10_0000 + n).into(),
        subnets: (0..networks).flat_map(part(n)).collect(),
        foreign: None,
    };
    let vnis: Vec<u32> = (0..networks).collect();
    cluster(Encap::Gre, None, &vnis, (0..nodes).map(node).collect())
}

/// Prints how long it takes; what must not be is that it takes forever.
fn assert_scales(nodes: u32, networks: u32) {
    let mut cluster = large(nodes, networks);
    let start = Instant::now();
    let first = compile(&cluster, &cluster.nodes[0].clone(), &Facts::default());
    let compiled = start.elapsed();
    let from_nothing = plan(&first, &Observed::default());
    let prefixes = (2 * nodes * networks) as usize;
    assert_eq!(from_nothing.fib.set.len(), prefixes);
    let planned = start.elapsed() - compiled;

    // One node moves: the rest stays.
    cluster.nodes[1].underlay = ip("198.51.100.1");
    let maps = observed(first);
    let facts = Facts { peer_indices: layout::peer_indices(&maps), ..Facts::default() };
    let start = Instant::now();
    let moved = plan(&compile(&cluster, &cluster.nodes[0].clone(), &facts), &maps);
    let again = start.elapsed();
    assert_eq!((moved.peers.set.len(), moved.peers.remove.len()), (1, 1));
    assert_eq!(moved.fib.set.len(), 2 * networks as usize);
    println!(
        "{nodes} nodes, {networks} networks, {prefixes} prefixes: compile {compiled:.1?}, \
         plan {planned:.1?}, both after a change {again:.1?}"
    );
}

#[test]
fn a_hundred_thousand_nodes_take_seconds() {
    assert_scales(100_000, 1);
}

#[test]
fn a_hundred_thousand_subnets_take_seconds() {
    assert_scales(1000, 100);
    assert_scales(100, 1000);
}
