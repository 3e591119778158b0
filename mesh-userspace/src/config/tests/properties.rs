//! What holds for every file.

use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{self, Index},
};

use super::*;
use crate::config::{
    file::{
        ClusterTable, DscpValue, DscpWord, EncapName, File, FloodName, LinkTable, NetworkTable,
        NodeTable, Prefixes,
    },
    prefixes::{Cover, overlaps, share, share_len},
};

/// A file and the cluster that it must make. Subnets, if given, are consecutive /24 and /64.
fn cluster() -> impl Strategy<Value = (File, Cluster)> {
    let networks = vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..4);
    let outer = (sample::select(&Encap::ALL[..]), any::<bool>(), option::of(1280u16..=65465));
    (1usize..20, networks, outer, overrides()).prop_map(|(nodes, networks, outer, overrides)| {
        let (encap, is_ipv6, mtu) = outer;
        let (mut file, mut cluster) = without_nodes(encap, mtu, &overrides);
        for i in 0..nodes {
            let (name, last) = (format!("n{i}.example"), i as u8 + 1);
            let underlay = match is_ipv6 {
                true => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()]),
                false => IpAddr::from([192, 0, 2, last]),
            };
            file.node.push(NodeTable {
                name: name.clone(),
                underlay: underlay.to_string(),
                ..NodeTable::default()
            });
            cluster.nodes.push(Node { name, underlay, subnets: Vec::new(), foreign: None });
        }
        for (k, (is_v4, is_v6, is_given)) in networks.into_iter().enumerate() {
            add_network(&mut file, &mut cluster, k, is_v4 || !is_v6, is_v6, is_given);
        }
        add_overrides(&mut file, &mut cluster, overrides);
        (file, cluster)
    })
}

/// What may be otherwise at single nodes, and what stands in outer headers.
#[derive(Clone, Debug)]
struct Overrides {
    port: bool,
    ttl: Option<u8>,
    dscp: Option<Dscp>,
    /// Of the last nodes.
    foreign: Vec<(Option<Encap>, Option<u32>, bool)>,
    /// Between the first node and the others.
    links: Vec<Option<Encap>>,
}

fn overrides() -> impl Strategy<Value = Overrides> {
    let encap = || option::of(sample::select(&Encap::ALL[..]));
    let dscp = option::of(prop_oneof![Just(Dscp::Copy), (0u8..64).prop_map(Dscp::Set)]);
    let foreign = vec((encap(), option::of(1000u32..=0xff_ffff), any::<bool>()), 0..4);
    (any::<bool>(), option::of(1u8..), dscp, foreign, vec(encap(), 0..4))
        .prop_map(|(port, ttl, dscp, foreign, links)| Overrides { port, ttl, dscp, foreign, links })
}

fn written(encap: Encap) -> EncapName {
    match encap {
        Encap::Gre => EncapName::Gre,
        Encap::Gretap => EncapName::Gretap,
        Encap::Vxlan => EncapName::Vxlan,
        Encap::Geneve => EncapName::Geneve,
    }
}

fn without_nodes(encap: Encap, mtu: Option<u16>, overrides: &Overrides) -> (File, Cluster) {
    let port = (overrides.port && encap.is_udp()).then_some(PORT);
    let cluster = Cluster {
        name: "some-cluster".into(),
        encap,
        mtu,
        port,
        ttl: overrides.ttl.unwrap_or(DEFAULT_TTL),
        dscp: overrides.dscp.unwrap_or_default(),
        links: Vec::new(),
        networks: Vec::new(),
        nodes: Vec::new(),
        docker: Docker::default(),
        bridges: Vec::new(),
        interfaces: Interfaces::default(),
    };
    let table = ClusterTable {
        name: cluster.name.clone(),
        encap: (encap != Encap::Gre).then_some(written(encap)),
        mtu,
        port,
        ttl: overrides.ttl,
        dscp: overrides.dscp.map(|dscp| match dscp {
            Dscp::Copy => DscpValue::Word(DscpWord::Copy),
            Dscp::Set(0) => DscpValue::Word(DscpWord::Zero),
            Dscp::Set(dscp) => DscpValue::Number(dscp),
        }),
        ..ClusterTable::default()
    };
    (File { cluster: table, ..File::default() }, cluster)
}

/// The cluster's, and from here on those of foreign nodes and links: none is another's.
const PORT: u16 = 7000;

fn add_overrides(file: &mut File, cluster: &mut Cluster, overrides: Overrides) {
    let nodes = cluster.nodes.len();
    let mut next_port = PORT;
    // Its own, so that no two encapsulations share one.
    let mut port = |encap: Option<Encap>| {
        next_port += 1;
        encap.unwrap_or(cluster.encap).is_udp().then_some(next_port)
    };
    for (i, (encap, vni, has_mac)) in (1..nodes).rev().zip(overrides.foreign) {
        let mac = has_mac && encap.unwrap_or(cluster.encap).has_ethernet();
        let mac = mac.then_some([2, 0, 0, 0, 0, i as u8]);
        let foreign = Foreign { encap, vni, port: port(encap), mac, clamp_mss: has_mac };
        let node = &mut file.node[i];
        node.managed = Some(false);
        (node.encap, node.vni, node.port) = (encap.map(written), vni, foreign.port);
        node.clamp_mss = has_mac.then_some(true);
        node.mac = mac.map(|_| format!("02:00:00:00:00:{i:02x}"));
        cluster.nodes[i].foreign = Some(foreign);
    }
    for (i, encap) in (1..nodes).zip(overrides.links) {
        let below = cluster.nodes[i].foreign.as_ref().and_then(|foreign| foreign.encap);
        let port = port(encap.or(below));
        if encap.is_none() && port.is_none() {
            continue;
        }
        let mut nodes = [&cluster.nodes[0], &cluster.nodes[i]].map(|node| node.name.clone());
        file.link.push(LinkTable { nodes: nodes.clone(), encap: encap.map(written), port });
        nodes.sort();
        cluster.links.push(Link { nodes, encap, port });
    }
    cluster.links.sort_by(|a, b| a.nodes.cmp(&b.nodes));
}

fn add_network(
    file: &mut File,
    cluster: &mut Cluster,
    k: usize,
    is_v4: bool,
    is_v6: bool,
    is_given: bool,
) {
    let vni = Vni::new(k as u32).unwrap();
    let floods = k % 2 == 1;
    let name = if k == 0 { DEFAULT_NETWORK.to_owned() } else { format!("net.{k}") };
    let cidrs: Vec<IpNet> = [(is_v4, format!("10.{k}.0.0/16")), (is_v6, format!("fd00:{k}::/48"))]
        .into_iter()
        .filter(|(is, _)| *is)
        .map(|(_, cidr)| net(&cidr))
        .collect();
    let written = Prefixes::Many(cidrs.iter().map(IpNet::to_string).collect());
    if k == 0 {
        file.cluster.cidr = written;
    } else {
        let name = name.clone();
        let flood = floods.then_some(FloodName::All);
        file.network.push(NetworkTable { name, vni: vni.get(), cidr: written, flood });
    }
    let count = cluster.nodes.len();
    for (i, node) in cluster.nodes.iter_mut().enumerate() {
        let given = [(is_v4, format!("10.{k}.{i}.0/24")), (is_v6, format!("fd00:{k}:0:{i}::/64"))];
        let given: Vec<_> = given.into_iter().filter(|(is, _)| *is).map(|(_, net)| net).collect();
        if is_given {
            node.subnets.extend(given.iter().map(|subnet| (vni, net(subnet))));
            let given = match given.as_slice() {
                [one] => Prefixes::One(one.clone()),
                _ => Prefixes::Many(given),
            };
            if k == 0 {
                file.node[i].subnet = Some(given);
            } else {
                file.node[i].subnets.insert(name.clone(), given);
            }
        } else {
            node.subnets.extend(cidrs.iter().map(|c| (vni, share(*c, count, i).unwrap())));
        }
    }
    cluster.networks.push(Network {
        name,
        vni,
        cidrs,
        flood: if floods { Flood::All } else { Flood::None },
    });
}

fn prefix() -> impl Strategy<Value = IpNet> {
    (any::<u16>(), 16u8..=30).prop_map(|(bits, len)| {
        IpNet::new(Ipv4Addr::from_bits(u32::from(bits) << 8 & 0xff_ff00).into(), len)
            .unwrap()
            .trunc()
    })
}

/// Changes at random places: what stands there is replaced by other text.
fn mutations() -> impl Strategy<Value = Vec<(Index, usize, String)>> {
    const PIECES: &[&str] = &[
        "",
        "[",
        "]",
        "\"",
        "=",
        "\n",
        ".",
        "{",
        "'''",
        "\0",
        "9",
        "[[node]]\n",
        "\u{feff}",
        "é",
        "[",
    ];
    vec((any::<Index>(), 0usize..20, sample::select(PIECES)), 1..8)
        .prop_map(|all| all.into_iter().map(|(at, len, new)| (at, len, new.to_owned())).collect())
}

fn assert_sound(bytes: &[u8]) {
    if let Err(faults) = parse(bytes) {
        let lines = bytes.iter().filter(|b| **b == b'\n').count() + 1;
        assert!(!faults.0.is_empty());
        assert!(
            faults.0.iter().all(|f| (1..=lines).contains(&f.line) && f.column > 0),
            "{faults:?}"
        );
        assert!(faults.0.is_sorted_by_key(|f| (f.line, f.column)), "{faults:?}");
    }
    assert_agree(bytes);
}

/// What the reader of plain files takes, the parser of all files takes for the same.
fn assert_agree(bytes: &[u8]) {
    if let Some(document) = parse_plain(bytes) {
        assert_eq!(parse_toml(bytes), Ok(document), "{}", String::from_utf8_lossy(bytes));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_cluster_or_faults(bytes in vec(any::<u8>(), 0..400)) {
        assert_sound(&bytes);
    }

    #[test]
    fn toml_like_text_is_a_cluster_or_faults(text in "([\\[\\]{}=,.\"'#\n a-c0-9_]|name|node|\\[\\[node\\]\\]\n|subnets){0,60}") {
        assert_sound(text.as_bytes());
    }

    #[test]
    fn mutated_file_is_a_cluster_or_faults(changes in mutations()) {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        for (at, len, new) in changes {
            let at = at.index(bytes.len() + 1);
            let end = (at + len).min(bytes.len());
            bytes.splice(at..end, new.bytes());
        }
        assert_sound(&bytes);
    }

    #[test]
    fn mutated_written_cluster_is_the_same_to_both_readers(
        (file, _) in cluster(),
        changes in mutations(),
    ) {
        let mut bytes = toml::to_string(&file).unwrap().into_bytes();
        for (at, len, new) in changes {
            let at = at.index(bytes.len() + 1);
            let end = (at + len / 4).min(bytes.len());
            bytes.splice(at..end, new.bytes());
        }
        assert_agree(&bytes);
    }

    #[test]
    fn written_cluster_is_read_back((file, cluster) in cluster()) {
        let text = toml::to_string(&file).unwrap();
        assert_agree(text.as_bytes());
        if file.node.iter().all(|node| node.subnets.is_empty()) {
            prop_assert!(parse_plain(text.as_bytes()).is_some(), "{}", text);
        }
        prop_assert_eq!(parse(text.as_bytes()), Ok(cluster), "{}", text);
    }

    #[test]
    fn shares_are_apart_and_inside(len in 8u8..24, nodes in 1usize..70) {
        let whole = IpNet::new(Ipv4Addr::new(10, 0, 0, 0).into(), len).unwrap().trunc();
        match share_len(whole, nodes) {
            Some(_) => {
                let shares: Vec<_> = (0..nodes).map(|i| share(whole, nodes, i).unwrap()).collect();
                prop_assert!(shares.iter().all(|share| whole.contains(share)));
                prop_assert_eq!(overlaps(&shares), vec![]);
            }
            None => prop_assert!(1usize << (30 - len) < nodes),
        }
    }

    /// Against the obvious way, which takes the square of the time.
    #[test]
    fn overlaps_are_those_of_comparing_all_pairs(nets in vec(prefix(), 0..30)) {
        let mut expected = Vec::new();
        for (j, second) in nets.iter().enumerate() {
            for (i, first) in nets[..j].iter().enumerate() {
                let is_repeat = |k: usize| nets[..k].contains(&nets[k]);
                let counts = if first == second { !is_repeat(i) } else { !is_repeat(if first.contains(second) { i } else { j }) };
                if counts && (first.contains(second) || second.contains(first)) {
                    expected.push((i, j));
                }
            }
        }
        let mut found = overlaps(&nets);
        found.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn cover_holds_what_any_of_its_prefixes_holds(nets in vec(prefix(), 0..20), net in prefix()) {
        let cover = Cover::new(nets.iter().map(|net| (*net, ())));
        prop_assert_eq!(cover.holder(net).is_some(), nets.iter().any(|holder| holder.contains(&net)));
    }
}

/// So many nodes, and a further network that is divided among them.
fn many(nodes: u32) -> String {
    let mut text = cluster_of("['10.0.0.0/8', 'fd42::/32']", "");
    for i in 0..nodes {
        let underlay = Ipv4Addr::from_bits((172 << 24) + ((i / 250) << 8) + i % 250 + 1);
        let subnet = Ipv4Addr::from_bits((10 << 24) + (i << 7));
        text += &format!(
            "[[node]]\nname = \"n{i}\"\nunderlay = \"{underlay}\"\n\
             subnet = [\"{subnet}/25\", \"fd42:0:{:x}:{:x}::/64\"]\n",
            i >> 16,
            i & 0xffff
        );
    }
    text + "[[network]]\nname = \"blue\"\nvni = 1\ncidr = \"10.0.0.0/8\"\n"
}

#[test]
fn example_and_large_files_are_of_the_plain_form() {
    for text in [EXAMPLE, &many(3)] {
        assert!(parse_plain(text.as_bytes()).is_some(), "{text}");
        assert_agree(text.as_bytes());
    }
}

#[test]
fn hundred_thousand_nodes_are_read() {
    let cluster = parse(many(100_000).as_bytes()).unwrap();
    assert_eq!(cluster.nodes.len(), 100_000);
    assert_eq!(cluster.nodes[99_999].subnets.len(), 3);
}

#[test]
fn fault_among_many_nodes_is_found_also_behind_a_broken_line() {
    let bad = many(2000).replace("\"10.3.231.128/25\"", "\"10.0.0.0/25\"");
    assert_eq!(places(&bad), ["8003 node[1999].subnet[0]"]);
    let worse = bad.replacen("[[node]]\n", "[[node]]\nbroken\n", 1);
    assert_eq!(places(&worse), ["5 node[0].broken", "8004 node[1999].subnet[0]"]);
}

#[test]
fn plain_prefix_lengths_are_written_plainly() {
    let with = |len: &str| {
        let cidr = format!("cidr = \"10.0.0.0/{len}\"");
        let text = format!(
            "[cluster]\nname = \"t\"\n{cidr}\n[[node]]\nname = \"a\"\nunderlay = \"192.0.2.1\"\n"
        );
        assert_agree(text.as_bytes());
        parse_plain(text.as_bytes()).is_some()
    };
    assert!(with("8"));
    assert!(!["", "08", "+8", "-8", " 8", "8 ", "0x8", "8/8", "33", "256"].into_iter().any(with));
}
