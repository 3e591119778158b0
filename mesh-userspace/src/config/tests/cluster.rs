//! Files without fault.

use super::*;

#[test]
fn example_is_the_cluster_it_describes() {
    let blue = Vni::new(7).unwrap();
    let node = |name: &str, underlay: [u8; 4], own, of_blue| Node {
        name: name.into(),
        underlay: IpAddr::from(underlay),
        subnets: vec![(Vni::DEFAULT, net(own)), (blue, net(of_blue))],
        foreign: None,
    };
    let network = |name: &str, vni, cidr| Network {
        name: name.into(),
        vni,
        cidrs: vec![net(cidr)],
        flood: Flood::None,
    };
    let document = parse_document(EXAMPLE.as_bytes()).unwrap();
    let expected = Cluster {
        name: "demo".into(),
        encap: Encap::Gre,
        mtu: None,
        port: None,
        ttl: 64,
        dscp: Dscp::Copy,
        links: Vec::new(),
        networks: vec![
            network("default", Vni::DEFAULT, "10.42.0.0/16"),
            network("blue", blue, "10.43.0.0/16"),
        ],
        nodes: vec![
            node("h1", [192, 0, 2, 11], "10.42.0.0/18", "10.43.0.0/17"),
            node("h2", [192, 0, 2, 12], "10.42.64.0/18", "10.43.128.0/17"),
        ],
        docker: Docker::default(),
        bridges: Vec::new(),
        interfaces: Interfaces::default(),
    };
    assert_eq!(document.cluster, expected);
    assert_eq!(document.divided, HashSet::from([blue]));
}

#[test]
fn docker_is_where_the_file_says() {
    let text = format!("{EXAMPLE}[docker]\nplugin = false\nsocket = \"/a.sock\"\n");
    let docker = parse(text.as_bytes()).unwrap().docker;
    let expected = Docker { plugin: false, socket: "/a.sock".into(), ..Docker::default() };
    assert_eq!(docker, expected);
}

#[test]
fn docker_that_can_not_be_is_a_fault() {
    for (line, key, says) in [
        ("plugin = \"no\"", "docker.plugin", "true or false"),
        ("socket = \"a.sock\"", "docker.socket", "absolute"),
        ("sockt = \"/a.sock\"", "docker.sockt", "did you mean"),
    ] {
        let text = format!("{EXAMPLE}[docker]\n{line}\n");
        assert_only(&text, &format!("22 {key}"), says);
    }
}

#[test]
fn bridges_to_attach_are_named() {
    let text = format!("{EXAMPLE}[attach]\nbridges = [\"docker0\", \"br-1\"]\n");
    assert_eq!(parse(text.as_bytes()).unwrap().bridges, ["docker0", "br-1"]);
    for (line, key, says) in [
        ("bridges = \"docker0\"", "attach.bridges", "a list of strings"),
        ("bridges = [\"docker/0\"]", "attach.bridges[0]", "name of an interface"),
        ("interfaces = \"tap\"", "attach.interfaces", "no kind of interface"),
        ("bridges = [\"a\", \"a\"]", "attach.bridges[1]", "is also attach.bridges[0]"),
        ("bridge = []", "attach.bridge", "did you mean"),
    ] {
        let text = format!("{EXAMPLE}[attach]\n{line}\n");
        assert_only(&text, &format!("22 {key}"), says);
    }
}

#[test]
fn byte_order_mark_and_crlf_change_nothing() {
    let windows = format!("\u{feff}{}", EXAMPLE.replace('\n', "\r\n"));
    assert_eq!(parse(windows.as_bytes()), parse(EXAMPLE.as_bytes()));
}

#[test]
fn inline_tables_are_the_same_as_headers() {
    let inline = r#"
        cluster = { name = "demo", cidr = "10.42.0.0/16", encap = "gre" }
        node = [
            { name = "h1", underlay = "192.0.2.11", subnet = "10.42.0.0/18" },
            { name = "h2", underlay = "192.0.2.12", subnet = ["10.42.64.0/18"] },
        ]
        network = [{ name = "blue", vni = 0x7, cidr = "10.43.0.0/16" }]
    "#;
    assert_eq!(parse(inline.as_bytes()), parse(EXAMPLE.as_bytes()));
}

#[test]
fn gretap_and_mtu_are_taken() {
    let text = example("encap = \"gre\" ", "encap = \"gretap\"\nmtu = 1_400 ");
    let cluster = parse(text.as_bytes()).unwrap();
    assert_eq!((cluster.encap, cluster.mtu), (Encap::Gretap, Some(1400)));
}

#[test]
fn an_ipv6_underlay_is_taken_and_written_in_its_canonical_form() {
    let text = example("192.0.2.11", "2001:DB8:0:0::00b").replace("192.0.2.12", "2001:db8::c");
    assert!(parse_plain(text.as_bytes()).is_some());
    let underlays: Vec<String> =
        parse(text.as_bytes()).unwrap().nodes.iter().map(|n| n.underlay.to_string()).collect();
    assert_eq!(underlays, ["2001:db8::b", "2001:db8::c"]);
}

#[test]
fn nodes_without_subnet_share_each_family_evenly() {
    let node = |i| format!("[[node]]\nname = \"n{i}\"\nunderlay = \"192.0.2.{}\"\n", i + 1);
    let nodes: String = (0..3).map(node).collect();
    let text = cluster_of("['10.42.0.0/16', 'fd42::/48']", &nodes);
    let cluster = parse(text.as_bytes()).unwrap();
    let subnets: Vec<_> =
        cluster.nodes.iter().map(|n| n.subnets_of(Vni::DEFAULT).collect::<Vec<_>>()).collect();
    assert_eq!(
        subnets,
        [
            [net("10.42.0.0/18"), net("fd42::/50")],
            [net("10.42.64.0/18"), net("fd42:0:0:4000::/50")],
            [net("10.42.128.0/18"), net("fd42:0:0:8000::/50")],
        ]
    );
}

#[test]
fn parts_of_a_network_by_name_are_taken() {
    let text = example(
        "subnet   = \"10.42.0.0/18\"",
        "subnet = '10.42.0.0/18'\n[node.subnets]\nblue = '10.43.0.0/24'\n#",
    );
    let text = text.replace(
        "\"10.42.64.0/18\"",
        "\"10.42.64.0/18\"\nsubnets.blue = ['10.43.1.0/24', '10.43.2.0/24']",
    );
    let document = parse_document(text.as_bytes()).unwrap();
    let of_blue = |node: &str| {
        document.cluster.node(node).unwrap().subnets_of(Vni::new(7).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(of_blue("h1"), [net("10.43.0.0/24")]);
    assert_eq!(of_blue("H2"), [net("10.43.1.0/24"), net("10.43.2.0/24")]);
    assert!(document.divided.is_empty());
}

#[test]
fn same_addresses_in_two_networks_are_no_fault() {
    let text = example("10.43.0.0/16", "10.42.0.0/16");
    let cluster = parse(text.as_bytes()).unwrap();
    assert_eq!(cluster.networks[0].cidrs, cluster.networks[1].cidrs);
}

#[test]
fn first_address_of_a_subnet_is_its_gateway() {
    assert_eq!(gateway(net("10.42.64.0/18")).to_string(), "10.42.64.1");
    assert_eq!(gateway(net("fd42:0:0:4000::/50")).to_string(), "fd42:0:0:4000::1");
}

#[test]
fn smallest_and_largest_mtu_are_taken() {
    for mtu in [576, 65507] {
        let text = example("# mtu = 1462", &format!("mtu = {mtu}"));
        assert_eq!(parse(text.as_bytes()).unwrap().mtu, Some(mtu));
    }
}

#[test]
fn file_is_read_from_its_path() {
    let folder = std::env::temp_dir().join(format!("mesh-config-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let (good, bad) = (folder.join("good.toml"), folder.join("bad.toml"));
    std::fs::write(&good, EXAMPLE).unwrap();
    std::fs::write(&bad, example("vni  = 7", "vni  = -1")).unwrap();
    let (from_good, from_bad) = (read(&good), read(&bad));
    let (from_folder, from_nothing) = (read(&folder), read(&folder.join("none")));
    std::fs::remove_dir_all(&folder).unwrap();

    assert_eq!(from_good.unwrap().0, parse(EXAMPLE.as_bytes()).unwrap());
    let message = from_bad.unwrap_err().to_string();
    assert!(
        message.starts_with(&format!("{}:19:8: network[0].vni: -1", bad.display())),
        "{message}"
    );
    assert!(matches!(from_folder, Err(ReadError::NotAFile { what: "a directory", .. })));
    assert!(matches!(from_nothing, Err(ReadError::Io { .. })));
}

#[test]
fn endless_and_huge_files_are_refused_unread() {
    assert!(matches!(read(Path::new("/dev/zero")), Err(ReadError::NotAFile { .. })));
    let path = std::env::temp_dir().join(format!("mesh-huge-{}", std::process::id()));
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let huge = read(&path);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(huge, Err(ReadError::TooLarge { .. })));
}

#[test]
fn fifo_without_writer_does_not_hang() {
    let path = std::env::temp_dir().join(format!("mesh-fifo-{}", std::process::id()));
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let fifo = read(&path);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(fifo, Err(ReadError::NotAFile { .. })));
}

/// Every key that is read is in the schema, and no other; what the schema requires is there.
#[test]
fn schema_has_the_keys_that_are_read_and_fits_the_example() {
    let schema = serde_json::to_value(file::schema()).unwrap();
    let example: serde_json::Value = toml::from_str(EXAMPLE).unwrap();
    let table = |name: &str| &schema["$defs"][name];
    let check = |schema: &serde_json::Value, read: &[&str], used: &serde_json::Value| {
        let in_schema: HashSet<_> =
            schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(in_schema, read.iter().copied().collect());
        assert_eq!(schema["additionalProperties"], false);
        let used = used.as_object().unwrap();
        assert!(used.keys().all(|key| in_schema.contains(key.as_str())));
        let required = schema["required"].as_array().unwrap();
        assert!(required.iter().all(|key| used.contains_key(key.as_str().unwrap())));
        for (key, description) in schema["properties"].as_object().unwrap() {
            assert!(
                description["description"].is_string() || description["$ref"].is_string(),
                "{key}"
            );
        }
    };
    check(&schema, &super::super::syntax::TABLES, &example);
    check(table("ClusterTable"), &spec::CLUSTER_KEYS, &example["cluster"]);
    for (name, keys) in
        [("DockerTable", &spec::DOCKER_KEYS[..]), ("AttachTable", &spec::ATTACH_KEYS)]
    {
        let mut optional = table(name).clone();
        // None is required.
        optional["required"] = serde_json::json!([]);
        check(&optional, keys, &serde_json::json!({}));
    }
    let link = serde_json::json!({"nodes": ["h1", "h2"], "port": 8472});
    check(table("LinkTable"), &super::super::overrides::LINK_KEYS, &link);
    check(table("NodeTable"), &spec::NODE_KEYS, &example["node"][0]);
    check(table("NetworkTable"), &spec::NETWORK_KEYS, &example["network"][0]);
}
