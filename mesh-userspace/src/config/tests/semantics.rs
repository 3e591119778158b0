//! TOML that describes no cluster.

use super::*;

#[test]
fn unknown_key_is_a_fault_that_names_the_near_one() {
    assert_only(
        &example("underlay", "underlai"),
        "9 node[0].underlai",
        "did you mean \"underlay\"?",
    );
    assert_only(
        &example("[[network]]", "[[Networks]]"),
        "17 Networks",
        "did you mean \"network\"?",
    );
    assert_only(
        &example("# mtu =", "colour ="),
        "5 cluster.colour",
        "name, cidr, encap, mtu, port, ttl, dscp, flood",
    );
    assert_only(&format!("{EXAMPLE}[x.\"y z\"]\n"), "21 x", "unknown key");
}

#[test]
fn missing_key_is_a_fault_at_its_table() {
    assert_only(&example("name  = \"demo\"", ""), "1 cluster.name", "missing");
    assert_only(&example("cidr  = ", "# "), "1 cluster.cidr", "missing");
    assert_only(&example("name     = \"h2\"", ""), "12 node[1].name", "missing");
    assert_only(&example("underlay = \"192.0.2.12\"", ""), "12 node[1].underlay", "missing");
    assert_only(&example("name = \"blue\"", ""), "17 network[0].name", "missing");
    assert_only(&example("vni  = 7", ""), "17 network[0].vni", "missing");
    assert_only(&example("cidr = \"10.43.0.0/16\"", ""), "17 network[0].cidr", "missing");
}

#[test]
fn missing_tables_are_faults() {
    assert_eq!(
        places("[[network]]\nname='b'\nvni=1\ncidr='10.0.0.0/8'\n"),
        ["1 cluster", "1 node"]
    );
    assert_only(&cluster_of("'10.0.0.0/8'", ""), "1 node", "[[node]]");
    assert_only(
        &cluster_of("'10.0.0.0/8'", "[node]\n")
            .replace("[node]", "[[nodes]]\nname='a'\nunderlay='192.0.2.1'"),
        "4 nodes",
        "did you mean",
    );
}

#[test]
fn wrong_type_is_a_fault_that_names_both() {
    assert_only(&example("\"demo\"", "1"), "2 cluster.name", "must be a string, not an integer");
    assert_only(&example("\"192.0.2.11\"", "[]"), "9 node[0].underlay", "a string, not a list");
    assert_only(
        &example("vni  = 7", "vni  = 7.5"),
        "19 network[0].vni",
        "an integer, not a number with",
    );
    assert_only(&example("vni  = 7", "vni  = \"7\""), "19 network[0].vni", "without quotes");
    assert_only(
        &example("\"10.42.0.0/16\"", "true"),
        "3 cluster.cidr",
        "list of prefixes, not a boolean",
    );
    assert_only(&example("\"10.42.0.0/18\"", "[1]"), "10 node[0].subnet[0]", "not an integer");
    assert_only(&example("# mtu", "mtu = 1979-05-27 #"), "5 cluster.mtu", "not a date");
    assert_only(
        &cluster_of("'10.0.0.0/8'", "node = 3\n")
            .replace("[cluster]\n", "")
            .replace("name", "cluster.name")
            .replace("cidr", "cluster.cidr"),
        "3 node",
        "[[node]]",
    );
}

#[test]
fn name_that_is_odd_is_a_fault() {
    for (name, says) in [
        ("", "empty"),
        ("a b", "character ' '"),
        ("\u{e9}", "character '\u{e9}'"),
        ("-a", "begins or ends"),
        ("a.", "begins or ends"),
        (&"a".repeat(64), "64 characters"),
    ] {
        assert_only(&example("\"h1\"", &format!("{name:?}")), "8 node[0].name", says);
        assert_only(&example("\"demo\"", &format!("{name:?}")), "2 cluster.name", says);
    }
    for (name, says) in [("", "empty"), ("Blue", "'B'"), ("-b", "begins"), ("default", "own")] {
        assert_only(&example("\"blue\"", &format!("{name:?}")), "18 network[0].name", says);
    }
    for name in ["a.b-c_d.example", "H1", "0", &"a".repeat(63)] {
        assert!(parse(example("\"h1\"", &format!("{name:?}")).as_bytes()).is_ok(), "{name}");
    }
}

#[test]
fn duplicates_are_faults_that_name_the_first() {
    assert_only(&example("\"h2\"", "\"H1\""), "13 node[1].name", "node[0].name (line 8)");
    assert_only(&example("192.0.2.12", "192.0.2.11"), "14 node[1].underlay", "(line 9)");
    let red = |name, vni| {
        format!("{EXAMPLE}[[network]]\nname = {name:?}\nvni = {vni}\ncidr = '10.44.0.0/16'\n")
    };
    assert_only(&red("blue", 8), "22 network[1].name", "blue is also network[0].name (line 18)");
    assert_only(&red("red", 7), "23 network[1].vni", "7 is also network[0].vni (line 19)");
}

#[test]
fn vni_out_of_range_is_a_fault() {
    for vni in ["0", "-1", "16777216", "0xfffffffffffffffffffffffffffffffffff"] {
        assert_only(
            &example("vni  = 7", &format!("vni  = {vni}")),
            "19 network[0].vni",
            "16777215",
        );
    }
    assert!(parse(example("vni  = 7", "vni  = 16777215").as_bytes()).is_ok());
}

#[test]
fn encap_that_is_not_there_is_a_fault_that_says_what_is() {
    for encap in ["ipip", "GRE", ""] {
        let message = only(&example("\"gre\" ", &format!("{encap:?} ")), "4 cluster.encap");
        for encap in ["no encap", "\"gre\"", "\"gretap\"", "\"vxlan\"", "\"geneve\""] {
            assert!(message.contains(encap), "{message}");
        }
    }
}

#[test]
fn mtu_that_can_not_fit_is_a_fault() {
    let mtu = |mtu: &str| example("# mtu = 1462", &format!("mtu = {mtu}"));
    assert_only(&mtu("575"), "5 cluster.mtu", "at least 576");
    assert_only(&mtu("65508"), "5 cluster.mtu", "at most 65507");
    assert_only(&mtu("70000"), "5 cluster.mtu", "65535");
    assert_only(&mtu("-1"), "5 cluster.mtu", "can not fit");
    assert_only(
        &mtu("1279").replace("10.43.0.0/16", "fd43::/48"),
        "5 cluster.mtu",
        "network[0].cidr",
    );
    assert!(parse(mtu("1280").replace("10.43.0.0/16", "fd43::/48").as_bytes()).is_ok());
    let gretap = mtu("65494").replace("\"gre\"", "\"gretap\"");
    assert_only(&gretap, "5 cluster.mtu", "gretap adds 42 bytes, so at most 65493");
    let vxlan = mtu("65486").replace("\"gre\"", "\"vxlan\"");
    assert_only(&vxlan, "5 cluster.mtu", "vxlan adds 50 bytes, so at most 65485");
    let ipv6 = vxlan.replace("192.0.2.", "2001:db8::");
    assert_only(&ipv6, "5 cluster.mtu", "vxlan adds 70 bytes, so at most 65465");
    let link = mtu("65486") + "[[link]]\nnodes = ['h1', 'h2']\nencap = 'geneve'\n";
    assert_only(&link, "5 cluster.mtu", "geneve adds 50 bytes");
}

#[test]
fn underlay_that_no_host_has_is_a_fault() {
    for (address, says) in [
        ("192.0.2.0", "network's address"),
        ("192.0.2.255", "broadcast"),
        ("255.255.255.255", "broadcast"),
        ("0.0.0.0", "no host's"),
        ("127.0.0.1", "loopback"),
        ("224.0.0.1", "multicast"),
        ("241.0.0.1", "reserved"),
        ("2001:db8::1/64", "write the host's address alone, 2001:db8::1"),
        ("[2001:db8::1]", "write 2001:db8::1"),
        ("fe80::1%eth0", "has a zone"),
        ("2001:db8::g", "no IP address"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fe80::1", "link-local"),
        ("ff02::1", "multicast"),
        ("::ffff:192.0.2.11", "written as IPv6"),
        ("192.0.2.11/24", "192.0.2.11"),
        ("192.0.2.11:4789", "no IP address"),
        ("h1.example", "names are not looked up"),
        ("192.0.2.011", "no IP address"),
        ("", "no IP address"),
    ] {
        // Of the same family, so that nothing else is wrong.
        let text = match address.contains("::") {
            true => example("192.0.2.12", "2001:db8::12"),
            false => EXAMPLE.to_owned(),
        };
        let text = text.replacen("192.0.2.11", address, 1);
        assert_only(&text, "9 node[0].underlay", says);
    }
}

#[test]
fn underlays_of_both_families_are_a_fault_that_names_both_places() {
    let message = only(&example("192.0.2.12", "2001:db8::12"), "14 node[1].underlay");
    for says in ["2001:db8::12 is IPv6", "node[0].underlay (line 9) is IPv4", "one family"] {
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn underlay_given_twice_is_a_fault_however_it_is_written() {
    let text = example("192.0.2.11", "2001:db8::11").replace("192.0.2.12", "2001:DB8:0::11");
    assert_only(&text, "14 node[1].underlay", "2001:db8::11 is also node[0].underlay (line 9)");
}

#[test]
fn underlay_inside_any_overlay_is_a_fault() {
    assert_only(
        &example("192.0.2.11", "10.42.200.1"),
        "9 node[0].underlay",
        "cluster.cidr (line 3)",
    );
    assert_only(
        &example("192.0.2.11", "10.43.0.1"),
        "9 node[0].underlay",
        "network[0].cidr (line 20)",
    );
    let ipv6 = example("192.0.2.11", "fd42::11").replace("192.0.2.12", "2001:db8::12");
    let ipv6 = ipv6.replacen("10.43.0.0/16", "fd42::/48", 1);
    assert_only(&ipv6, "9 node[0].underlay", "fd42::/48 of network[0].cidr (line 20)");
}

#[test]
fn prefix_that_is_none_is_a_fault() {
    for (prefix, says) in [
        ("10.42.0.0", "no prefix length"),
        ("10.42.0.0/33", "one of 0 to 32"),
        ("10.42.0.0/", "no prefix length"),
        ("10.42.0/18", "no IP address"),
        ("fd42::/129", "one of 0 to 128"),
        ("all", "no prefix"),
        ("10.42.0.1/18", "write 10.42.0.0/18"),
        ("10.42.0.0/31", "/30 at most"),
        ("10.42.0.0/32", "/30 at most"),
    ] {
        assert_only(&example("10.42.0.0/18", prefix), "10 node[0].subnet", says);
    }
    for prefix in [
        "127.0.0.0/16",
        "224.0.0.0/8",
        "0.0.0.0/0",
        "fe80::/64",
        "ff00::/8",
        "::ffff:0:0/104",
        "fd42::/127",
    ] {
        let places = places(&example("10.43.0.0/16", prefix));
        assert!(places.contains(&"20 network[0].cidr".to_owned()), "{prefix}: {places:?}");
    }
    assert_only(&example("\"10.42.0.0/18\"", "[]"), "10 node[0].subnet", "empty");
}

#[test]
fn subnet_outside_its_cidr_is_a_fault() {
    assert_only(
        &example("10.42.64.0/18", "10.44.0.0/18"),
        "15 node[1].subnet",
        "outside the cluster's cidr, 10.42.0.0/16",
    );
    assert_only(
        &example("\"10.42.64.0/18\"", "['10.42.64.0/18', 'fd42::/64']"),
        "15 node[1].subnet[1]",
        "outside",
    );
    let blue = EXAMPLE
        .replace("/18\"", "/18\"\nsubnets.blue = '10.44.0.0/18'")
        .replacen("10.44", "10.43", 1);
    assert_only(&blue, "17 node[1].subnets.blue", "network \"blue\"");
}

#[test]
fn overlapping_subnets_are_faults_at_the_later_of_each_pair() {
    assert_only(
        &example("10.42.64.0/18", "10.42.0.0/18"),
        "15 node[1].subnet",
        "node[0].subnet (line 10)",
    );
    assert_only(&example("10.42.64.0/18", "10.42.0.0/16"), "15 node[1].subnet", "10.42.0.0/18");
    let text = example(
        "\"10.42.0.0/18\"",
        "['10.42.0.0/18', '10.42.1.0/24', '10.42.64.0/20', '10.42.80.0/20']",
    );
    assert_eq!(places(&text), ["10 node[0].subnet[1]", "15 node[1].subnet", "15 node[1].subnet"]);
}

#[test]
fn overlapping_cidrs_of_one_network_are_a_fault() {
    let text = example("\"10.42.0.0/16\"", "['10.42.0.0/16', '10.42.128.0/17']");
    assert_only(&text, "3 cluster.cidr[1]", "cluster.cidr[0] (line 3)");
}

#[test]
fn node_without_subnet_beside_others_with_one_is_a_fault() {
    assert_only(
        &example("subnet   = \"10.42.64.0/18\"", ""),
        "12 node[1].subnet",
        "node[0] (line 7)",
    );
    let text = example(
        "subnet   = \"10.42.64.0/18\"",
        "subnet = '10.42.64.0/18'\nsubnets.blue = '10.43.0.0/24'",
    );
    assert_only(&text, "7 node[0].subnets.blue", "node[1] (line 12)");
}

#[test]
fn subnets_of_an_unknown_network_are_a_fault() {
    let text = |name: &str| {
        example("name     = \"h1\"", &format!("name='h1'\nsubnets.{name} = '10.43.0.0/24'"))
    };
    assert_only(&text("bleu"), "9 node[0].subnets.bleu", "did you mean \"blue\"?");
    assert_only(&text("orange"), "9 node[0].subnets.orange", "add a [[network]]");
    assert_only(&text("default"), "9 node[0].subnets.default", "`subnet`");
    let list = example("subnet   =", "subnets = ['10.43.0.0/24']\nsubnet =");
    assert_only(&list, "10 node[0].subnets", "`subnet`");
}

#[test]
fn cidr_too_small_to_be_divided_is_a_fault() {
    assert_only(&example("10.43.0.0/16", "10.43.0.0/30"), "20 network[0].cidr", "among 2 nodes");
    assert!(parse(example("10.43.0.0/16", "10.43.0.0/29").as_bytes()).is_ok());
    assert_only(&example("10.43.0.0/16", "fd43::/126"), "20 network[0].cidr", "/126");
}

#[test]
fn more_subnets_than_fit_are_a_fault_and_not_made() {
    let node =
        |i: usize| format!("[[node]]\nname='n{i}'\nunderlay='192.{}.{}.1'\n", i / 250, i % 250);
    let network = |i| format!("[[network]]\nname='b{i}'\nvni={}\ncidr='10.0.0.0/8'\n", i + 1);
    let rest: String = (0..2100).map(node).chain((0..2100).map(network)).collect();
    let faults = parse(cluster_of("'10.0.0.0/8'", &rest).as_bytes()).unwrap_err();
    assert!(faults.0.iter().any(|f| f.message.contains("several clusters")), "{faults}");
}

#[test]
fn faults_are_written_as_compilers_do() {
    let faults =
        parse(example("vni  = 7", "vni  = 0").replace("\"h1\"", "\"\"").as_bytes()).unwrap_err();
    let lines: Vec<_> = faults.to_string().lines().map(str::to_owned).collect();
    assert!(lines[0].starts_with("8:12: node[0].name: a name"), "{lines:?}");
    assert!(lines[1].starts_with("19:8: network[0].vni: 0 is"), "{lines:?}");
    let json = serde_json::to_value(&faults).unwrap();
    assert_eq!((&json[0]["line"], &json[0]["column"]), (&8.into(), &12.into()));
}
