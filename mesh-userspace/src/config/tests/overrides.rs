//! Links, foreign nodes, and what stands in outer headers.

use super::*;

/// The example with the lines of one more foreign node, which stand from line 21 on.
fn foreign(encap: &str, lines: &str) -> String {
    let node = "[[node]]\nname = 'x'\nunderlay = '192.0.2.13'\nsubnet = '10.42.128.0/18'\n";
    let text = example("\"gre\" ", &format!("{encap:?} "));
    format!("{text}{node}managed = false\n{lines}")
}

/// The example with these lines of a link, from line 22 on.
fn link(encap: &str, lines: &str) -> String {
    format!("{}[[link]]\n{lines}", example("\"gre\" ", &format!("{encap:?} ")))
}

/// Of two nodes by name. The two readers agree on it.
#[track_caller]
fn tunnel(text: &str, a: &str, b: &str) -> (Encap, u16) {
    let document = parse_toml(text.as_bytes()).unwrap();
    assert_eq!(parse_plain(text.as_bytes()), Some(document.clone()), "{text}");
    let cluster = document.cluster;
    let (a, b) = (cluster.node(a).unwrap(), cluster.node(b).unwrap());
    assert_eq!(cluster.tunnel(a, b), cluster.tunnel(b, a));
    let Tunnel { encap, port } = cluster.tunnel(a, b);
    (encap, port)
}

#[test]
fn each_encap_has_its_port() {
    for (encap, port) in
        [(Encap::Gre, 0), (Encap::Gretap, 0), (Encap::Vxlan, 4789), (Encap::Geneve, 6081)]
    {
        let text = example("\"gre\" ", &format!("\"{encap}\" "));
        assert_eq!(tunnel(&text, "h1", "h2"), (encap, port));
        let with_port = text.replace("# mtu =", "port = 8472 #");
        if encap.is_udp() {
            assert_eq!(tunnel(&with_port, "h1", "h2"), (encap, 8472));
        } else {
            assert_only(&with_port, "5 cluster.port", "has no ports");
        }
    }
}

#[test]
fn a_link_overrides_the_cluster_in_both_directions() {
    let vxlan = (Encap::Vxlan, 8472);
    let text = link("gre", "nodes = [\"H2\", \"h1\"]\nencap = \"vxlan\"\nport = 8472\n");
    assert_eq!(tunnel(&text, "h1", "h2"), vxlan);
    // Each key by itself.
    let cluster = link("vxlan", "nodes = ['h1', 'h2']\nport = 8472 # ours\n");
    assert_eq!(tunnel(&cluster, "h1", "h2"), vxlan);
    let port =
        link("gre", "nodes = ['h1', 'h2',]\nencap = 'vxlan'\n").replace("# mtu =", "port = 8472 #");
    assert_eq!(tunnel(&port, "h1", "h2"), vxlan);
    // Only that pair.
    let other = "[[node]]\nname = \"h0\"\nunderlay = \"192.0.2.10\"\nsubnet = \"10.42.128.0/18\"\n";
    for peer in ["h1", "h2"] {
        assert_eq!(tunnel(&(text.clone() + other), "h0", peer), (Encap::Gre, 0));
    }
}

#[test]
fn the_right_link_of_many_is_found() {
    let nodes: String =
        (1..=20).map(|n| format!("[[node]]\nname = 'n{n}'\nunderlay = '192.0.2.{n}'\n")).collect();
    let pairs = || (1..20).map(|n| (format!("n{n}"), format!("n{}", n + 1)));
    let links: String = pairs()
        .enumerate()
        .map(|(i, (a, b))| {
            format!("[[link]]\nnodes = ['{b}', '{a}']\nencap = 'vxlan'\nport = {}\n", 1000 + i)
        })
        .collect();
    let cluster = parse(cluster_of("'10.0.0.0/8'", &(nodes + &links)).as_bytes()).unwrap();
    for (i, (a, b)) in pairs().enumerate() {
        let tunnel = cluster.tunnel(cluster.node(&a).unwrap(), cluster.node(&b).unwrap());
        assert_eq!(tunnel.port, 1000 + i as u16, "{a} {b}");
    }
}

#[test]
fn link_that_can_not_be_is_a_fault() {
    let more = "[[link]]\nnodes = ['h2', 'h1']\nport = 1\n";
    for (encap, lines, place, says) in [
        ("gre", "nodes = ['h1', 'h2']\n", "21 link[0]", "changes nothing"),
        ("gre", "nodes = ['h1', 'h3']\nencap = 'vxlan'\n", "22 link[0].nodes[1]", "did you mean"),
        (
            "gre",
            "nodes = ['h1', 'orange']\nencap = 'vxlan'\n",
            "22 link[0].nodes[1]",
            "add a [[node]]",
        ),
        ("gre", "nodes = ['h1', 'H1']\nencap = 'vxlan'\n", "22 link[0].nodes[1]", "both ends"),
        ("gre", "nodes = ['h1']\nencap = 'vxlan'\n", "22 link[0].nodes", "names 1 nodes"),
        ("gre", "nodes = 'h1'\nencap = 'vxlan'\n", "22 link[0].nodes", "a list of two"),
        ("gre", "nodes = ['h1', 7]\nencap = 'vxlan'\n", "22 link[0].nodes[1]", "must be a string"),
        ("gre", "encap = 'vxlan'\n", "21 link[0].nodes", "missing"),
        ("gre", "nodes = ['h1', 'h2']\nencap = 'ipip'\n", "23 link[0].encap", "no encap"),
        (
            "gre",
            "nodes = ['h1', 'h2']\nport = 4789\n",
            "23 link[0].port",
            "gre, the encapsulation of the link",
        ),
        ("vxlan", "nodes = ['h1', 'h2']\nport = 0\n", "23 link[0].port", "1 to 65535"),
        ("vxlan", "nodes = ['h1', 'h2']\nport = 65536\n", "23 link[0].port", "1 to 65535"),
        (
            "vxlan",
            "nodes = ['h1', 'h2']\nencap = 'geneve'\nport = 4789\n",
            "24 link[0].port",
            "both vxlan and geneve",
        ),
        (
            "vxlan",
            &format!("nodes = ['h1', 'h2']\nport = 9\n{more}"),
            "24 link[1]",
            "link[0] (line 21)",
        ),
    ] {
        assert_only(&link(encap, lines), place, says);
    }
    assert_only(
        &format!("{EXAMPLE}[link]\nnodes = ['h1', 'h2']\nencap = 'vxlan'\n"),
        "21 link[0]",
        "[[link]]",
    );
    let port =
        link("vxlan", "nodes = ['h1', 'h2']\nencap = 'geneve'\n").replace("# mtu =", "port = 7 #");
    assert_only(&port, "5 cluster.port", "both vxlan and geneve");
}

#[test]
fn a_foreign_node_has_what_is_its_own() {
    let text = foreign(
        "gre",
        "encap = 'vxlan'\nvni = 42\nport = 8472\nmac = \"02:00:5E:00:53:01\"\nclamp_mss = true\n",
    );
    assert_eq!(tunnel(&text, "h1", "x"), (Encap::Vxlan, 8472));
    assert_eq!(tunnel(&text, "h1", "h2"), (Encap::Gre, 0));
    let cluster = parse(text.as_bytes()).unwrap();
    let x = cluster.node("x").unwrap();
    let expected = Foreign {
        encap: Some(Encap::Vxlan),
        vni: Some(42),
        port: Some(8472),
        mac: Some([2, 0, 0x5e, 0, 0x53, 1]),
        clamp_mss: true,
    };
    assert_eq!(x.foreign.as_ref(), Some(&expected));
    assert!(!x.is_managed() && cluster.node("h1").unwrap().is_managed());
    // What the link says is nearer.
    let link = text + "[[link]]\nnodes = ['x', 'h1']\nencap = 'geneve'\nport = 6081\n";
    assert_eq!(tunnel(&link, "h1", "x"), (Encap::Geneve, 6081));
    assert_eq!(tunnel(&link, "h2", "x"), (Encap::Vxlan, 8472));
}

#[test]
fn a_foreign_node_may_be_as_the_cluster_is() {
    let text = foreign("vxlan", "");
    assert_eq!(tunnel(&text, "h1", "x"), (Encap::Vxlan, 4789));
    let zero = parse(foreign("vxlan", "vni = 0 # none\n").as_bytes()).unwrap();
    assert_eq!(zero.node("x").unwrap().foreign.as_ref().unwrap().vni, Some(0));
}

#[test]
fn a_foreign_node_that_can_not_be_is_a_fault() {
    for (encap, lines, place, says) in [
        ("gre", "encap = 'ipip'\n", "26 node[2].encap", "no encap"),
        ("gre", "vni = 16777216\n", "26 node[2].vni", "24 bits"),
        ("gre", "vni = 7\n", "26 node[2].vni", "network[0].vni (line 19)"),
        ("gre", "port = 4789\n", "26 node[2].port", "gre, the encapsulation of the node"),
        ("gre", "mac = '02:00:00:00:00:01'\n", "26 node[2].mac", "no Ethernet header"),
        ("gretap", "mac = '02:00:00:00:00'\n", "26 node[2].mac", "six bytes"),
        ("gretap", "mac = '02:00:00:00:00:+1'\n", "26 node[2].mac", "six bytes"),
        ("gretap", "mac = '01:00:5e:00:00:01'\n", "26 node[2].mac", "no host's"),
        ("gretap", "mac = '00:00:00:00:00:00'\n", "26 node[2].mac", "no host's"),
        ("gre", "clamp_mss = 1400\n", "26 node[2].clamp_mss", "true or false"),
        ("vxlan", "encap = 'geneve'\nport = 4789\n", "27 node[2].port", "both vxlan and geneve"),
    ] {
        assert_only(&foreign(encap, lines), place, says);
    }
    let without = foreign("gre", "").replace("subnet = '10.42.128.0/18'\n", "");
    assert_only(&without, "21 node[2].subnet", "missing");
}

#[test]
fn what_only_a_foreign_node_has_is_a_fault_at_a_managed_one() {
    for managed in ["", "managed = true\n"] {
        for (key, line) in [
            ("encap", "encap = 'vxlan'\n"),
            ("vni", "vni = 42\n"),
            ("port", "port = 8472\n"),
            ("mac", "mac = '02:00:00:00:00:01'\n"),
            ("clamp_mss", "clamp_mss = true\n"),
        ] {
            let text = foreign("vxlan", line).replace("managed = false\n", managed);
            let at = if managed.is_empty() { 25 } else { 26 };
            assert_only(&text, &format!("{at} node[2].{key}"), "`managed = false`");
        }
        assert!(parse(foreign("gre", "").replace("managed = false\n", managed).as_bytes()).is_ok());
    }
    let odd = foreign("vxlan", "port = 8472\n").replace("managed = false", "managed = 'no'");
    assert_only(&odd, "25 node[2].managed", "true or false");
}

#[test]
fn there_must_be_a_node_that_runs_mesh() {
    let none = EXAMPLE.replace("/18\"", "/18\"\nmanaged = false");
    assert_only(&none, "7 node[0]", "no node is managed");
    let link = foreign("gre", "") + "[[link]]\nnodes = ['h2', 'x']\nencap = 'vxlan'\n";
    let neither = link.replace("\"10.42.64.0/18\"", "\"10.42.64.0/18\"\nmanaged = false");
    assert_only(&neither, "27 link[0]", "neither");
}

#[test]
fn ttl_and_dscp_are_what_the_file_says() {
    for (line, ttl, dscp) in [
        ("", 64, Dscp::Copy),
        ("ttl = 1", 1, Dscp::Copy),
        ("ttl = 255", 255, Dscp::Copy),
        ("dscp = \"copy\"", 64, Dscp::Copy),
        ("dscp = \"zero\"", 64, Dscp::Set(0)),
        ("dscp = 0", 64, Dscp::Set(0)),
        ("dscp = 46 # EF", 64, Dscp::Set(46)),
        ("dscp = 63", 64, Dscp::Set(63)),
    ] {
        let text = example("# mtu = 1462 ", line);
        let document = parse_toml(text.as_bytes()).unwrap();
        assert_eq!((document.cluster.ttl, document.cluster.dscp), (ttl, dscp));
        assert_eq!(parse_plain(text.as_bytes()), Some(document), "{text}");
    }
    for (line, place, says) in [
        ("ttl = 0", "5 cluster.ttl", "1 to 255"),
        ("ttl = 256", "5 cluster.ttl", "1 to 255"),
        ("dscp = 64", "5 cluster.dscp", "0 to 63"),
        ("dscp = -1", "5 cluster.dscp", "0 to 63"),
        ("dscp = \"46\"", "5 cluster.dscp", "without quotes"),
        ("dscp = true", "5 cluster.dscp", "must be \"copy\", \"zero\" or an integer"),
    ] {
        assert_only(&example("# mtu = 1462 ", line), place, says);
    }
}

#[test]
fn flood_is_what_the_file_says_of_each_network() {
    let both = |own: &str, blue: &str| {
        example("# mtu = 1462 ", own).replace("vni  = 7 ", &format!("{blue}\nvni  = 7 "))
    };
    for (own, blue, expected) in [
        ("", "", [Flood::None, Flood::None]),
        ("flood = \"none\"", "flood = 'all' # mDNS", [Flood::None, Flood::All]),
        ("flood = \"all\"", "flood = \"arp\"", [Flood::All, Flood::Arp]),
    ] {
        let text = both(own, blue);
        let document = parse_toml(text.as_bytes()).unwrap();
        let floods: Vec<_> = document.cluster.networks.iter().map(|n| n.flood).collect();
        assert_eq!(floods, expected);
        assert_eq!(parse_plain(text.as_bytes()), Some(document), "{text}");
    }
    assert_only(
        &both("flood = 'some'", ""),
        "5 cluster.flood",
        "write \"none\", \"arp\" or \"all\"",
    );
    assert_only(&both("", "flood = true"), "19 network[0].flood", "must be a string");
}

#[test]
fn network_that_is_too_large_to_flood_is_a_fault() {
    let node = |n| format!("[[node]]\nname = 'n{n}'\nunderlay = '192.0.2.{n}'\n");
    let of = |nodes| {
        cluster_of("'10.42.0.0/16'\nflood = 'all'", &(1..=nodes).map(node).collect::<String>())
    };
    assert!(parse(of(65).as_bytes()).is_ok());
    assert_only(&of(66), "4 cluster.flood", "66 nodes are in this network");
}
