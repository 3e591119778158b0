//! Files that are no TOML, or no text.

use super::*;

#[test]
fn empty_file_is_a_fault() {
    for text in ["", "\n\n", "# nothing\n", "\u{feff}"] {
        assert_only(text, "1", "the file is empty");
    }
}

#[test]
fn binary_file_is_a_fault_at_its_first_zero() {
    let fault = parse(b"[cluster]\nname = \"a\0b\"").unwrap_err().0.remove(0);
    assert_eq!((fault.line, fault.column), (2, 10));
    assert!(fault.message.contains("binary: byte 19 is 0"), "{}", fault.message);
}

#[test]
fn utf16_file_is_named_as_such() {
    let bytes: Vec<u8> = "\u{feff}[cluster]".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let faults = parse(&bytes).unwrap_err();
    assert!(faults.to_string().contains("UTF-16"), "{faults}");
}

#[test]
fn bytes_that_are_not_utf8_are_faults_and_hide_no_other() {
    let mut bytes = example("vni  = 7 ", "vni  = 0 ").into_bytes();
    let at = bytes.iter().position(|b| *b == b'#').unwrap();
    bytes[at + 2] = 0xe9;
    let faults = parse(&bytes).unwrap_err().0;
    let found: Vec<_> = faults.iter().map(|f| (f.line, f.column, f.key.as_str())).collect();
    assert_eq!(found, [(3, 33, ""), (19, 8, "network[0].vni")]);
    assert!(faults[0].message.contains("byte 57 is 0xe9"), "{}", faults[0].message);
}

#[test]
fn syntax_faults_are_all_found_and_so_is_what_follows_them() {
    let text = r#"[cluster
name = demo
cidr = 10.42.0.0/16
encap = "ipip"
[[node]
name = "h1"
underlay = "192.0.2.255"
subnet = ["10.42.0.0/18",
[[node]]
name = "h2
underlay = 5
mtu 7
subnet = "10.42.0.0/19"
[[network]]
name = "blue"
name = "red"
vni = 0
cidr = "10.0.0.0/8"
"#;
    assert_eq!(
        places(text),
        [
            "1 cluster",
            "2 cluster.name",
            "3 cluster.cidr",
            "4 cluster.encap",
            "5 node[0]",
            "7 node[0].underlay",
            "8 node[0].subnet",
            "10 node[1].name",
            "11 node[1].underlay",
            "12 node[1].mtu",
            "13 node[1].subnet",
            "16 network[0].name",
            "17 network[0].vni",
        ]
    );
}

#[test]
fn value_without_quotes_is_told_to_need_them() {
    assert_only(&example("\"demo\"", "demo"), "2 cluster.name", "quotes");
    assert_only(&example("\"10.42.0.0/16\"", "10.42.0.0/16"), "3 cluster.cidr", "quotes");
    assert_only(&example("\"192.0.2.11\"", "192.0.2.11"), "9 node[0].underlay", "quotes");
    assert_only(&example("= \"gre\" ", "= "), "4 cluster.encap", "no value");
}

#[test]
fn key_given_twice_is_one_fault() {
    assert_only(&example("subnet ", "name = 'h3'\nsubnet "), "10 node[0].name", "twice");
}

#[test]
fn cluster_given_twice_is_a_fault() {
    let text = format!("{EXAMPLE}[cluster]\nname = 'd'\ncidr = '10.0.0.0/8'\n");
    let faults = parse(text.as_bytes()).unwrap_err();
    assert_eq!(faults.0.len(), 1, "{faults}");
    assert_only(&text, "21 cluster", "twice");
}

#[test]
fn single_brackets_for_a_node_are_a_fault() {
    let one = cluster_of("'10.0.0.0/8'", "[node]\nname = 'a'\nunderlay = '192.0.2.1'\n");
    assert_only(&one, "4 node[0]", "[[node]]");
    let two = EXAMPLE.replace("[[node]]", "[node]");
    assert_eq!(places(&two)[0], "7 node[0]");
    assert!(places(&two).contains(&"12 node[1]".to_owned()));
}

#[test]
fn double_brackets_for_the_cluster_are_a_fault() {
    assert_only(&example("[cluster]", "[[cluster]]"), "1 cluster", "single brackets");
}

#[test]
fn subnets_above_the_first_node_are_a_fault() {
    let text = example("[[node]]", "[node.subnets]\nblue = '10.43.0.0/24'\n[[node]]");
    assert_only(&text, "7 node[0].subnets", "below the [[node]]");
}

#[test]
fn deep_nesting_is_a_fault_and_not_the_end() {
    let text = format!("a = {}", "[".repeat(100_000));
    assert!(parse(text.as_bytes()).is_err());
    let text = format!("a{} = 1", ".a".repeat(100_000));
    assert!(parse(text.as_bytes()).is_err());
}

#[test]
fn what_is_not_toml_at_all_ends_soon() {
    let text = "name: demo\n".repeat(100_000);
    let faults = parse(text.as_bytes()).unwrap_err().0;
    assert!(faults.iter().any(|f| f.message.contains("more places")));
    assert!(faults.len() < 1100);
}

#[test]
fn subnets_of_a_node_given_twice_are_a_fault() {
    let twice = "[node.subnets]\nblue = '10.43.0.0/24'\n";
    let text = example("[[network]]", &format!("{twice}{twice}[[network]]"));
    assert_eq!(places(&text)[1], "19 node[1].subnets");
}
