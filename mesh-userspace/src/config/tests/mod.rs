//! The whole way from bytes to a cluster or to faults.

mod cluster;
mod overrides;
mod properties;
mod semantics;
mod syntax;

use super::*;

/// Two nodes and one further network: the file of the README.
const EXAMPLE: &str = r#"[cluster]
name  = "demo"
cidr  = "10.42.0.0/16"        # IPv4, IPv6 or a list with both
encap = "gre"                 # or "gretap", "vxlan", "geneve"
# mtu = 1462                  # container MTU

[[node]]
name     = "h1"
underlay = "192.0.2.11"
subnet   = "10.42.0.0/18"     # or a list, IPv4 and IPv6

[[node]]
name     = "h2"
underlay = "192.0.2.12"
subnet   = "10.42.64.0/18"

[[network]]                   # optional further, isolated networks
name = "blue"
vni  = 7                      # 1..=16777215
cidr = "10.43.0.0/16"
"#;

/// Faults of a text, each as `line key`.
fn places(text: &str) -> Vec<String> {
    let faults = parse(text.as_bytes()).expect_err("there must be a fault").0;
    faults
        .iter()
        .map(|fault| format!("{} {}", fault.line, fault.key).trim_end().to_owned())
        .collect()
}

/// The message of the only fault, which must be at `place`.
#[track_caller]
fn only(text: &str, place: &str) -> String {
    let faults = parse(text.as_bytes()).expect_err("there must be a fault");
    assert_eq!(places(text), [place], "{faults}");
    faults.0.into_iter().next().unwrap().message
}

/// [`only`], and the message must say this.
#[track_caller]
fn assert_only(text: &str, place: &str, says: &str) {
    let message = only(text, place);
    assert!(message.contains(says), "{message:?} does not say {says:?}");
}

/// The example with one piece of it replaced.
#[track_caller]
fn example(old: &str, new: &str) -> String {
    assert!(EXAMPLE.contains(old), "the example has no {old:?}");
    EXAMPLE.replacen(old, new, 1)
}

/// A cluster of this cidr, with these lines for its nodes and networks from line 4 on.
fn cluster_of(cidr: &str, rest: &str) -> String {
    format!("[cluster]\nname = \"c\"\ncidr = {cidr}\n{rest}")
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
