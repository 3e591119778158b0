//! The exact text for each encapsulation and family.

use super::*;
use crate::config;

/// A node that runs mesh and one that does not, in that order.
fn cluster(encap: &str, underlays: [&str; 2], cidr: &str, more: &str) -> Cluster {
    let [one, two] = underlays;
    let file = format!(
        "[cluster]\nname = 'c'\ncidr = {cidr}\nencap = {encap:?}\n\
         [[node]]\nname = 'h1'\nunderlay = '{one}'\n\
         [[node]]\nname = 'x'\nunderlay = '{two}'\nmanaged = false\n{more}"
    );
    config::parse(file.as_bytes()).unwrap_or_else(|faults| panic!("{faults}"))
}

/// On an IPv4 underlay, both families in the overlay, and a VNI.
fn on_ipv4(encap: &str) -> Cluster {
    cluster(encap, ["192.0.2.1", "192.0.2.9"], "['10.42.0.0/16', 'fd42::/48']", "vni = 42\n")
}

/// On an IPv6 underlay.
fn on_ipv6(encap: &str) -> Cluster {
    cluster(encap, ["2001:db8::1", "2001:db8::9"], "'10.42.0.0/16'", "")
}

fn commands_of(cluster: &Cluster, kind: Kind) -> Vec<String> {
    let commands = commands(cluster, cluster.node("x").unwrap()).into_iter();
    commands.filter(|command| command.kind == kind).map(|command| command.command).collect()
}

#[track_caller]
fn assert_ip(cluster: &Cluster, expected: &[&str]) {
    assert_eq!(commands_of(cluster, Kind::Ip), expected);
}

#[track_caller]
fn assert_ovs(cluster: &Cluster, expected: &[&str]) {
    assert_eq!(commands_of(cluster, Kind::Ovs), expected);
}

#[test]
fn gre_on_ipv4() {
    let cluster = on_ipv4("gre");
    assert_ip(
        &cluster,
        &[
            "ip link add br-mesh type bridge",
            "ip link set br-mesh mtu 1462 up",
            "ip address add 10.42.128.1/17 dev br-mesh",
            "ip address add fd42:0:0:8000::1/49 dev br-mesh nodad",
            "sysctl -w net.ipv4.ip_forward=1",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
            "ip link add mesh-h1 type gre local 192.0.2.9 remote 192.0.2.1 key 42 ttl 64 tos \
             inherit",
            "ip link set mesh-h1 mtu 1462 up",
            "ip route add 10.42.0.0/17 dev mesh-h1 src 10.42.128.1",
            "ip route add fd42::/49 dev mesh-h1 src fd42:0:0:8000::1",
        ],
    );
    // Open vSwitch speaks Ethernet only.
    assert_ovs(&cluster, &[]);
}

#[test]
fn gretap_on_ipv4() {
    let cluster = on_ipv4("gretap");
    assert_ip(
        &cluster,
        &[
            "ip link add br-mesh address 02:6d:c0:00:02:09 type bridge",
            "ip link set br-mesh mtu 1458 up",
            "ip address add 10.42.128.1/16 dev br-mesh",
            "ip address add fd42:0:0:8000::1/48 dev br-mesh nodad",
            "sysctl -w net.ipv4.ip_forward=1",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
            "ip link add mesh-h1 type gretap local 192.0.2.9 remote 192.0.2.1 key 42 ttl 64 \
             tos inherit",
            "ip link set mesh-h1 mtu 1458 master br-mesh up",
            "bridge link set dev mesh-h1 isolated on",
        ],
    );
    assert_ovs(
        &cluster,
        &[
            "ovs-vsctl add-br br-mesh -- set bridge br-mesh \
             other-config:hwaddr='\"02:6d:c0:00:02:09\"' -- set interface br-mesh \
             mtu_request=1458",
            "ip link set br-mesh up",
            "ip address add 10.42.128.1/16 dev br-mesh",
            "ip address add fd42:0:0:8000::1/48 dev br-mesh nodad",
            "sysctl -w net.ipv4.ip_forward=1",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
            "ovs-vsctl add-port br-mesh mesh-h1 -- set port mesh-h1 protected=true \
             -- set interface mesh-h1 type=gre \
             options:local_ip=192.0.2.9 options:remote_ip=192.0.2.1 options:key=42 \
             options:ttl=64 options:tos=inherit",
        ],
    );
}

#[test]
fn vxlan_on_ipv4() {
    let cluster = on_ipv4("vxlan");
    assert_ip(
        &cluster,
        &[
            "ip link add br-mesh address 02:6d:c0:00:02:09 type bridge",
            "ip link set br-mesh mtu 1450 up",
            "ip address add 10.42.128.1/16 dev br-mesh",
            "ip address add fd42:0:0:8000::1/48 dev br-mesh nodad",
            "sysctl -w net.ipv4.ip_forward=1",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
            "ip link add vxlan4789 type vxlan id 42 dstport 4789 local 192.0.2.9 ttl 64 tos \
             inherit",
            "ip link set vxlan4789 mtu 1450 master br-mesh up",
            "bridge fdb append 00:00:00:00:00:00 dev vxlan4789 dst 192.0.2.1",
        ],
    );
    assert_ovs(
        &cluster,
        &[
            "ovs-vsctl add-br br-mesh -- set bridge br-mesh \
             other-config:hwaddr='\"02:6d:c0:00:02:09\"' -- set interface br-mesh \
             mtu_request=1450",
            "ip link set br-mesh up",
            "ip address add 10.42.128.1/16 dev br-mesh",
            "ip address add fd42:0:0:8000::1/48 dev br-mesh nodad",
            "sysctl -w net.ipv4.ip_forward=1",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
            "ovs-vsctl add-port br-mesh mesh-h1 -- set port mesh-h1 protected=true \
             -- set interface mesh-h1 type=vxlan \
             options:local_ip=192.0.2.9 options:remote_ip=192.0.2.1 options:key=42 \
             options:dst_port=4789 options:ttl=64 options:tos=inherit",
        ],
    );
}

#[test]
fn geneve_on_ipv4() {
    let cluster = on_ipv4("geneve");
    assert_ip(
        &cluster,
        &[
            "ip link add br-mesh address 02:6d:c0:00:02:09 type bridge",
            "ip link set br-mesh mtu 1450 up",
            "ip address add 10.42.128.1/16 dev br-mesh",
            "ip address add fd42:0:0:8000::1/48 dev br-mesh nodad",
            "sysctl -w net.ipv4.ip_forward=1",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
            "ip link add mesh-h1 type geneve id 42 remote 192.0.2.1 dstport 6081 ttl 64 tos \
             inherit",
            "ip link set mesh-h1 mtu 1450 master br-mesh up",
            "bridge link set dev mesh-h1 isolated on",
        ],
    );
    assert_ovs(
        &cluster,
        &[
            "ovs-vsctl add-br br-mesh -- set bridge br-mesh \
             other-config:hwaddr='\"02:6d:c0:00:02:09\"' -- set interface br-mesh \
             mtu_request=1450",
            "ip link set br-mesh up",
            "ip address add 10.42.128.1/16 dev br-mesh",
            "ip address add fd42:0:0:8000::1/48 dev br-mesh nodad",
            "sysctl -w net.ipv4.ip_forward=1",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
            "ovs-vsctl add-port br-mesh mesh-h1 -- set port mesh-h1 protected=true \
             -- set interface mesh-h1 type=geneve \
             options:local_ip=192.0.2.9 options:remote_ip=192.0.2.1 options:key=42 \
             options:dst_port=6081 options:ttl=64 options:tos=inherit",
        ],
    );
}

#[test]
fn gre_on_ipv6() {
    let cluster = on_ipv6("gre");
    assert_ip(
        &cluster,
        &[
            "ip link add br-mesh type bridge",
            "ip link set br-mesh mtu 1442 up",
            "ip address add 10.42.128.1/17 dev br-mesh",
            "sysctl -w net.ipv4.ip_forward=1",
            "ip link add mesh-h1 type ip6gre local 2001:db8::9 remote 2001:db8::1 hoplimit \
             64 tclass inherit encaplimit none",
            "ip link set mesh-h1 mtu 1442 up",
            "ip route add 10.42.0.0/17 dev mesh-h1 src 10.42.128.1",
        ],
    );
    // Open vSwitch speaks Ethernet only.
    assert_ovs(&cluster, &[]);
}

#[test]
fn gretap_on_ipv6() {
    let cluster = on_ipv6("gretap");
    assert_ip(
        &cluster,
        &[
            "ip link add br-mesh address 02:6d:66:5a:f8:5c type bridge",
            "ip link set br-mesh mtu 1442 up",
            "ip address add 10.42.128.1/16 dev br-mesh",
            "sysctl -w net.ipv4.ip_forward=1",
            "ip link add mesh-h1 type ip6gretap local 2001:db8::9 remote 2001:db8::1 \
             hoplimit 64 tclass inherit encaplimit none",
            "ip link set mesh-h1 mtu 1442 master br-mesh up",
            "bridge link set dev mesh-h1 isolated on",
        ],
    );
    assert_ovs(
        &cluster,
        &[
            "ovs-vsctl add-br br-mesh -- set bridge br-mesh \
             other-config:hwaddr='\"02:6d:66:5a:f8:5c\"' -- set interface br-mesh \
             mtu_request=1442",
            "ip link set br-mesh up",
            "ip address add 10.42.128.1/16 dev br-mesh",
            "sysctl -w net.ipv4.ip_forward=1",
            "ovs-vsctl add-port br-mesh mesh-h1 -- set port mesh-h1 protected=true \
             -- set interface mesh-h1 type=gre \
             options:local_ip='\"2001:db8::9\"' options:remote_ip='\"2001:db8::1\"' \
             options:ttl=64 options:tos=inherit",
        ],
    );
}

#[test]
fn vxlan_on_ipv6() {
    let cluster = on_ipv6("vxlan");
    assert_ip(
        &cluster,
        &[
            "ip link add br-mesh address 02:6d:66:5a:f8:5c type bridge",
            "ip link set br-mesh mtu 1430 up",
            "ip address add 10.42.128.1/16 dev br-mesh",
            "sysctl -w net.ipv4.ip_forward=1",
            "ip link add vxlan4789 type vxlan id 0 dstport 4789 local 2001:db8::9 ttl 64 tos \
             inherit udp6zerocsumrx",
            "ip link set vxlan4789 mtu 1430 master br-mesh up",
            "bridge fdb append 00:00:00:00:00:00 dev vxlan4789 dst 2001:db8::1",
        ],
    );
    assert_ovs(
        &cluster,
        &[
            "ovs-vsctl add-br br-mesh -- set bridge br-mesh \
             other-config:hwaddr='\"02:6d:66:5a:f8:5c\"' -- set interface br-mesh \
             mtu_request=1430",
            "ip link set br-mesh up",
            "ip address add 10.42.128.1/16 dev br-mesh",
            "sysctl -w net.ipv4.ip_forward=1",
            "ovs-vsctl add-port br-mesh mesh-h1 -- set port mesh-h1 protected=true \
             -- set interface mesh-h1 type=vxlan \
             options:local_ip='\"2001:db8::9\"' options:remote_ip='\"2001:db8::1\"' \
             options:key=0 options:dst_port=4789 options:ttl=64 options:tos=inherit",
        ],
    );
}

#[test]
fn geneve_on_ipv6() {
    let cluster = on_ipv6("geneve");
    assert_ip(
        &cluster,
        &[
            "ip link add br-mesh address 02:6d:66:5a:f8:5c type bridge",
            "ip link set br-mesh mtu 1430 up",
            "ip address add 10.42.128.1/16 dev br-mesh",
            "sysctl -w net.ipv4.ip_forward=1",
            "ip link add mesh-h1 type geneve id 0 remote 2001:db8::1 dstport 6081 ttl 64 tos \
             inherit udp6zerocsumrx",
            "ip link set mesh-h1 mtu 1430 master br-mesh up",
            "bridge link set dev mesh-h1 isolated on",
        ],
    );
    assert_ovs(
        &cluster,
        &[
            "ovs-vsctl add-br br-mesh -- set bridge br-mesh \
             other-config:hwaddr='\"02:6d:66:5a:f8:5c\"' -- set interface br-mesh \
             mtu_request=1430",
            "ip link set br-mesh up",
            "ip address add 10.42.128.1/16 dev br-mesh",
            "sysctl -w net.ipv4.ip_forward=1",
            "ovs-vsctl add-port br-mesh mesh-h1 -- set port mesh-h1 protected=true \
             -- set interface mesh-h1 type=geneve \
             options:local_ip='\"2001:db8::9\"' options:remote_ip='\"2001:db8::1\"' \
             options:key=0 options:dst_port=6081 options:ttl=64 options:tos=inherit",
        ],
    );
}

#[test]
fn each_node_that_runs_mesh_has_a_tunnel_of_its_own_kind() {
    let more = "encap = 'vxlan'\n\
                [[node]]\nname = 'h2'\nunderlay = '192.0.2.2'\n\
                [[node]]\nname = 'a-name-that-is-too-long'\nunderlay = '192.0.2.3'\n\
                [[node]]\nname = 'y'\nunderlay = '192.0.2.8'\nmanaged = false\n\
                [[node]]\nname = 'h4'\nunderlay = '192.0.2.4'\n\
                [[link]]\nnodes = ['x', 'a-name-that-is-too-long']\nencap = 'geneve'\n\
                [[link]]\nnodes = ['h4', 'x']\nport = 8472\n";
    let cluster = cluster("gre", ["192.0.2.1", "192.0.2.9"], "'10.42.0.0/16'", more);
    let all = commands_of(&cluster, Kind::Ip);
    let has = |wanted: &str| all.iter().filter(|command| command.contains(wanted)).count();
    assert_eq!((has("ip link add vxlan4789 "), has("ip link add vxlan8472 ")), (1, 1), "{all:#?}");
    for (device, to) in [("vxlan4789", 1), ("vxlan4789", 2), ("vxlan8472", 4)] {
        let entry = format!("bridge fdb append 00:00:00:00:00:00 dev {device} dst 192.0.2.{to}");
        assert_eq!(all.iter().filter(|command| **command == entry).count(), 1, "{entry}");
    }
    assert_eq!(has("type geneve id 0 remote 192.0.2.3"), 1, "{all:#?}");
    // A name of an interface has at most 15 bytes.
    assert_eq!(has(&format!("ip link add mesh{:08x} ", fnv1a(b"a-name-that-is-too-long"))), 1);
    // No tunnel between two that do not run mesh.
    assert_eq!(
        all.iter()
            .chain(&commands_of(&cluster, Kind::Ovs))
            .filter(|c| c.contains("192.0.2.8"))
            .count(),
        0
    );
}

#[test]
fn what_the_file_says_of_the_outer_header_and_the_mac_is_there() {
    let more = "mac = '02:00:5e:00:53:01'\n";
    let mut cluster = cluster("gretap", ["192.0.2.1", "192.0.2.9"], "'10.42.0.0/16'", more);
    (cluster.ttl, cluster.dscp, cluster.mtu) = (9, Dscp::Set(46), Some(8000));
    let all = commands_of(&cluster, Kind::Ip);
    assert_eq!(all[0], "ip link add br-mesh address 02:00:5e:00:53:01 type bridge");
    assert_eq!(all[1], "ip link set br-mesh mtu 8000 up");
    assert!(all[4].ends_with("remote 192.0.2.1 ttl 9 tos 0xb8"), "{all:#?}");
    cluster.dscp = Dscp::Set(0);
    assert!(commands_of(&cluster, Kind::Ip)[4].ends_with(" ttl 9"));
    assert!(commands_of(&cluster, Kind::Ovs).last().unwrap().ends_with(" options:ttl=9"));
}

/// Commands do not say why they are as they are: notes do.
#[test]
fn what_one_would_not_expect_has_its_reason() {
    for (cluster, option) in [
        (on_ipv6("vxlan"), "udp6zerocsumrx"),
        (on_ipv6("geneve"), "udp6zerocsumrx"),
        (on_ipv6("gre"), "encaplimit none"),
        (on_ipv6("gretap"), "encaplimit none"),
        (on_ipv4("geneve"), "type geneve"),
    ] {
        let all = commands(&cluster, cluster.node("x").unwrap());
        let with: Vec<_> = all.iter().filter(|c| c.command.contains(option)).collect();
        assert!(with.iter().any(|c| c.kind == Kind::Ip), "{option}");
        assert!(
            with.iter().filter(|c| c.kind == Kind::Ip).all(|c| !c.notes.is_empty()),
            "{option}"
        );
    }
}
