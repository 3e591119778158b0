//! The netlink module against real namespaces. Needs root.
//!
//! The namespaces have no name but a descriptor: they go away with it, however a test ends.

#![expect(clippy::unwrap_used, reason = "a test that can not go on says so by panicking")]

use std::{
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    process::Command,
    time::Duration,
};

use ipnet::IpNet;
use mesh_userspace::net::{
    Change, Net, NetError, PairKind, RouteSpec, Veth, Watch, open_netns, own_netns, same_netns,
};

/// A protocol number that nobody else uses.
const OURS: u8 = 223;
const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// Says why, where a test can not run. With MESH_TESTS_NO_SKIP it then fails.
fn able() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("MESH_TESTS_NO_SKIP").is_none(), "namespaces need root");
        eprintln!("SKIP: namespaces need root");
    }
    root
}

/// A new, empty network namespace.
fn netns() -> OwnedFd {
    std::thread::spawn(|| {
        // SAFETY: only this thread, which ends here, gets a network namespace of its own.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(done, 0, "unshare: {} (needs root)", std::io::Error::last_os_error());
        own_netns().unwrap()
    })
    .join()
    .unwrap()
}

/// Runs a command in a namespace. It must succeed.
fn sh(ns: &OwnedFd, command: &str) -> String {
    let ns = ns.try_clone().unwrap();
    let command = command.to_owned();
    std::thread::spawn(move || {
        rustix::thread::move_into_link_name_space(ns.as_fd(), None).unwrap();
        let out = Command::new("sh").args(["-ec", &command]).output().unwrap();
        assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    })
    .join()
    .unwrap()
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn net(s: &str) -> IpNet {
    s.parse().unwrap()
}

/// Two namespaces joined by a veth pair, "a" (10.99.0.1) and "b" (10.99.0.2), both up.
struct Pair {
    ns_a: OwnedFd,
    ns_b: OwnedFd,
    a: Net,
    b: Net,
    ifindex_a: u32,
    ifindex_b: u32,
}

fn veth<'a>(ns_b: &'a OwnedFd) -> Veth<'a> {
    Veth {
        name: "a",
        mac: MAC_A,
        mtu: 1462,
        alias: Some("mesh: to b"),
        peer_name: "b",
        peer_mac: MAC_B,
        peer_mtu: 1462,
        peer_netns: Some(ns_b.as_fd()),
    }
}

/// `None` where there can be no namespaces.
async fn pair() -> Option<Pair> {
    if !able() {
        return None;
    }
    let (ns_a, ns_b) = (netns(), netns());
    let (a, b) = (Net::in_netns(ns_a.as_fd()).unwrap(), Net::in_netns(ns_b.as_fd()).unwrap());
    let made = a.add_veth(PairKind::Veth, &veth(&ns_b)).await.unwrap();
    for (net, ifindex, addrs) in [
        (&a, made.ifindex, ["10.99.0.1", "fd99::1"]),
        (&b, made.peer_ifindex, ["10.99.0.2", "fd99::2"]),
    ] {
        net.set_up(ifindex).await.unwrap();
        net.add_address(ifindex, ip(addrs[0]), 24).await.unwrap();
        net.add_address(ifindex, ip(addrs[1]), 64).await.unwrap();
    }
    Some(Pair { ns_a, ns_b, a, b, ifindex_a: made.ifindex, ifindex_b: made.peer_ifindex })
}

/// Waits for a change that `wanted` accepts.
async fn change<T>(watch: &mut Watch, what: &str, wanted: impl Fn(Change) -> Option<T>) -> T {
    let seen = async {
        loop {
            if let Some(seen) = wanted(watch.next().await.unwrap()) {
                return seen;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), seen)
        .await
        .unwrap_or_else(|_| panic!("no change within 10 s: {what}"))
}

fn is_route(change: Change) -> Option<()> {
    matches!(change, Change::Route { .. }).then_some(())
}

fn is_link(change: Change, wanted: u32) -> Option<()> {
    matches!(change, Change::Link { ifindex, .. } if ifindex == wanted).then_some(())
}

#[tokio::test]
async fn a_socket_in_another_namespace_sees_that_one_and_the_thread_stays() {
    if !able() {
        return;
    }
    let before = own_netns().unwrap();
    let ns = netns();
    let links = Net::in_netns(ns.as_fd()).unwrap().links().await.unwrap();
    assert_eq!(links.len(), 1, "{links:?}");
    assert!(links[0].loopback && !links[0].ethernet && !links[0].up);
    assert!(same_netns(before.as_fd(), own_netns().unwrap().as_fd()));
    assert!(!same_netns(before.as_fd(), ns.as_fd()));
}

#[tokio::test]
async fn a_veth_pair_has_all_it_was_asked_for_on_both_ends() {
    let Some(p) = pair().await else { return };
    let a = p.a.link_by_name("a").await.unwrap().unwrap();
    assert_eq!((a.index, a.mac, a.mtu), (p.ifindex_a, Some(MAC_A), 1462));
    assert_eq!(a.alias.as_deref(), Some("mesh: to b"));
    assert_eq!(a.kind.as_deref(), Some("veth"));
    assert_eq!(a.peer, Some(p.ifindex_b));
    assert!(a.up && a.ethernet && !a.loopback);
    let b = p.b.link(p.ifindex_b).await.unwrap().unwrap();
    assert_eq!((b.name.as_str(), b.mac, b.mtu), ("b", Some(MAC_B), 1462));
    assert_eq!(p.a.link_by_name("b").await.unwrap(), None);
    // No link-local addresses, though both ends are up: exactly those that were added.
    for net in [&p.a, &p.b] {
        let addresses = net.addresses().await.unwrap();
        assert_eq!(addresses.len(), 2, "{addresses:?}");
    }
}

#[tokio::test]
async fn a_veth_pair_that_can_not_be_made_leaves_nothing() {
    let Some(p) = pair().await else { return };
    let mut taken = veth(&p.ns_b);
    let error = p.a.add_veth(PairKind::Veth, &taken).await.unwrap_err().to_string();
    assert!(error.contains("the first name is taken"), "{error}");
    taken.name = "c";
    let error = p.a.add_veth(PairKind::Veth, &taken).await.unwrap_err().to_string();
    assert!(error.contains("the second name is taken"), "{error}");
    assert_eq!(p.a.link_by_name("c").await.unwrap(), None);
    // Made, but not finished: an alias is at most 255 bytes.
    let alias = "x".repeat(300);
    let long = Veth { name: "c", peer_name: "d", alias: Some(&alias), ..taken };
    assert!(p.a.add_veth(PairKind::Veth, &long).await.is_err());
    assert_eq!(p.a.link_by_name("c").await.unwrap(), None);
    assert_eq!(p.b.link_by_name("d").await.unwrap(), None);
}

#[tokio::test]
async fn without_ipv6_a_veth_pair_is_made_all_the_same() {
    let Some(p) = pair().await else { return };
    // Below 1280 bytes the kernel has no IPv6 on an interface.
    let small = Veth { name: "c", mtu: 1200, peer_name: "d", peer_mtu: 1200, ..veth(&p.ns_b) };
    let made = p.a.add_veth(PairKind::Veth, &small).await.unwrap();
    let error = p.a.add_address(made.ifindex, ip("fd98::1"), 64).await.unwrap_err().to_string();
    assert!(error.contains("its MTU is 1200: IPv6 needs 1280"), "{error}");
    sh(&p.ns_a, "echo 1 > /proc/sys/net/ipv6/conf/a/disable_ipv6");
    let error = p.a.add_address(p.ifindex_a, ip("fd98::1"), 64).await.unwrap_err().to_string();
    assert!(error.contains("sysctl net.ipv6.conf.all.disable_ipv6"), "{error}");
}

#[tokio::test]
async fn links_change_and_go_as_often_as_one_likes() {
    let Some(p) = pair().await else { return };
    p.a.set_mtu(p.ifindex_a, 1400).await.unwrap();
    p.a.set_alias(p.ifindex_a, "other").await.unwrap();
    p.a.set_no_arp(p.ifindex_a).await.unwrap();
    p.a.set_mac(p.ifindex_a, [2; 6]).await.unwrap();
    p.a.rename(p.ifindex_a, "renamed").await.unwrap();
    let link = p.a.link_by_name("renamed").await.unwrap().unwrap();
    assert_eq!((link.mtu, link.alias.as_deref(), link.mac), (1400, Some("other"), Some([2; 6])));
    assert!(sh(&p.ns_a, "ip link show renamed").contains("NOARP"));
    p.a.delete_link(p.ifindex_a).await.unwrap();
    p.a.delete_link(p.ifindex_a).await.unwrap();
    assert_eq!(p.b.link_by_name("b").await.unwrap(), None);
    let error = p.a.set_mtu(p.ifindex_a, 1500).await.unwrap_err().to_string();
    let expected = format!("cannot set the MTU of interface {} to 1500: No such", p.ifindex_a);
    assert!(error.starts_with(&expected), "{error}");
}

#[tokio::test]
async fn addresses_are_usable_at_once_and_adding_twice_is_fine() {
    let Some(p) = pair().await else { return };
    p.a.add_address(p.ifindex_a, ip("10.99.0.1"), 24).await.unwrap();
    p.a.add_address(p.ifindex_a, ip("fd99::1"), 64).await.unwrap();
    let addresses = p.a.addresses().await.unwrap();
    let found = addresses.iter().find(|a| a.ip() == ip("10.99.0.1")).unwrap();
    assert_eq!((found.ifindex, found.net), (p.ifindex_a, net("10.99.0.1/24")));
    assert!(!sh(&p.ns_a, "ip -6 addr show dev a").contains("tentative"));
    p.a.remove_address(p.ifindex_a, ip("10.99.0.1"), 24).await.unwrap();
    p.a.remove_address(p.ifindex_a, ip("10.99.0.1"), 24).await.unwrap();
    assert_eq!(p.a.addresses().await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_way_to_an_address_is_found() {
    let Some(p) = pair().await else { return };
    sh(&p.ns_a, "ip link set lo up; ip route add 10.98.0.0/16 via 10.99.0.2 mtu 1300");
    sh(&p.ns_a, "ip route add 10.97.0.0/16 via inet6 fd99::2");
    let hop = p.a.route_to(ip("10.99.0.2"), None).await.unwrap().unwrap();
    assert_eq!((hop.ifindex, hop.gateway, hop.mtu, hop.local), (p.ifindex_a, None, None, false));
    assert_eq!(hop.source, Some(ip("10.99.0.1")));
    let from = Some(ip("10.99.0.1"));
    let hop = p.a.route_to(ip("10.98.1.1"), from).await.unwrap().unwrap();
    assert_eq!((hop.gateway, hop.mtu), (Some(ip("10.99.0.2")), Some(1300)));
    let hop = p.a.route_to(ip("10.97.1.1"), None).await.unwrap().unwrap();
    assert_eq!(hop.gateway, Some(ip("fd99::2")));
    let hop = p.a.route_to(ip("fd99::7"), Some(ip("fd99::1"))).await.unwrap().unwrap();
    assert_eq!((hop.ifindex, hop.gateway), (p.ifindex_a, None));
    // As hosts have it: by a router that is known by its link-local address alone.
    sh(&p.ns_a, "ip route add 2001:db8:7::/48 via fe80::b dev a mtu 1400");
    let from = Some(ip("fd99::1"));
    let hops = p.a.routes_to(&[ip("2001:db8:7::1"), ip("2001:db8:8::1")], from).unwrap();
    let hop = hops[0].unwrap();
    assert_eq!((hop.ifindex, hop.gateway), (p.ifindex_a, Some(ip("fe80::b"))));
    assert_eq!((hop.mtu, hops[1]), (Some(1400), None));
    // The kernel adds the route to an IPv6 address of its own a moment after the address.
    let mut watch = p.a.watch().unwrap();
    for own in ["10.99.0.1", "fd99::1"] {
        while !p.a.route_to(ip(own), None).await.unwrap().is_some_and(|hop| hop.local) {
            change(&mut watch, "local route", is_route).await;
        }
    }
}

#[tokio::test]
async fn what_leads_nowhere_is_none() {
    let Some(p) = pair().await else { return };
    for kind in ["unreachable", "blackhole", "prohibit", "throw"] {
        sh(
            &p.ns_a,
            &format!("ip route replace {kind} 10.96.0.0/16; ip route replace {kind} fd96::/64"),
        );
        for dst in ["10.96.0.1", "fd96::1"] {
            assert_eq!(p.a.route_to(ip(dst), None).await.unwrap(), None, "{kind} {dst}");
        }
    }
    for dst in ["198.51.100.1", "2001:db8::1"] {
        assert_eq!(p.a.route_to(ip(dst), None).await.unwrap(), None, "{dst}");
    }
    let not_ours = Some(ip("198.51.100.1"));
    assert_eq!(p.a.route_to(ip("10.99.0.2"), not_ours).await.unwrap(), None);
}

#[tokio::test]
async fn our_routes_come_are_corrected_and_go() {
    let Some(p) = pair().await else { return };
    for (dst, gateway, source) in
        [("10.42.0.0/16", "10.99.0.2", "10.99.0.1"), ("fd42::/48", "fd99::2", "fd99::1")]
    {
        let mut spec = RouteSpec {
            dst: net(dst),
            ifindex: p.ifindex_a,
            gateway: None,
            source: Some(ip(source)),
            onlink: false,
            mtu: None,
            protocol: OURS,
        };
        for gateway in [None, Some(ip(gateway)), None] {
            spec.gateway = gateway;
            p.a.add_route(&spec).await.unwrap();
            p.a.add_route(&spec).await.unwrap();
            let routes = p.a.routes().await.unwrap();
            let found: Vec<_> = routes.iter().filter(|r| r.dst == spec.dst).collect();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!((found[0].ifindex, found[0].gateway), (Some(p.ifindex_a), gateway));
            assert_eq!((found[0].source, found[0].protocol), (spec.source, OURS));
        }
        p.a.remove_route(&spec).await.unwrap();
        p.a.remove_route(&spec).await.unwrap();
        assert!(!p.a.routes().await.unwrap().iter().any(|r| r.dst == spec.dst));
    }
}

#[tokio::test]
async fn a_gateway_off_the_link_needs_onlink() {
    let Some(p) = pair().await else { return };
    let mut spec = RouteSpec {
        dst: net("10.42.0.0/16"),
        ifindex: p.ifindex_a,
        gateway: Some(ip("169.254.1.1")),
        source: None,
        onlink: false,
        mtu: None,
        protocol: OURS,
    };
    let error = p.a.add_route(&spec).await.unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENETUNREACH), "{error}");
    assert!(error.to_string().contains("the gateway is not on a network"), "{error}");
    spec.onlink = true;
    p.a.add_route(&spec).await.unwrap();
    assert!(sh(&p.ns_a, "ip route show 10.42.0.0/16").contains("onlink"));
}

#[tokio::test]
async fn a_foreign_route_is_neither_replaced_nor_removed() {
    let Some(p) = pair().await else { return };
    for (dst, foreign) in [
        ("10.42.0.0/16", "10.42.0.0/16 via 10.99.0.2"),
        ("10.43.0.0/16", "10.43.0.0/16 via 10.99.0.2 metric 77"),
        ("10.44.0.0/16", "blackhole 10.44.0.0/16"),
        ("fd42::/48", "fd42::/48 via fd99::2"),
    ] {
        sh(&p.ns_a, &format!("ip route add {foreign}"));
        let before = p.a.routes().await.unwrap();
        let spec = RouteSpec {
            dst: net(dst),
            ifindex: p.ifindex_a,
            gateway: None,
            source: None,
            onlink: false,
            mtu: None,
            protocol: OURS,
        };
        let error = p.a.add_route(&spec).await.unwrap_err();
        assert!(matches!(&error, NetError::RouteTaken { holder, .. } if holder.dst == net(dst)));
        assert!(error.to_string().contains(&format!("ip route del {dst}")), "{error}");
        p.a.remove_route(&spec).await.unwrap();
        assert_eq!(p.a.routes().await.unwrap(), before);
    }
}

#[tokio::test]
async fn a_route_with_several_hops_shows_each() {
    let Some(p) = pair().await else { return };
    sh(&p.ns_a, "ip route add 10.42.0.0/16 nexthop via 10.99.0.2 nexthop via 10.99.0.3");
    let routes = p.a.routes().await.unwrap();
    let hops = routes.iter().filter(|r| r.dst == net("10.42.0.0/16")).map(|r| r.gateway);
    assert_eq!(hops.collect::<Vec<_>>(), [Some(ip("10.99.0.2")), Some(ip("10.99.0.3"))]);
}

#[tokio::test]
async fn a_neighbour_is_resolved_on_request_and_announced() {
    let Some(p) = pair().await else { return };
    p.a.add_address(p.ifindex_a, ip("fe80::a"), 64).await.unwrap();
    p.b.add_address(p.ifindex_b, ip("fe80::b"), 64).await.unwrap();
    for addr in ["10.99.0.2", "fd99::2", "fe80::b"] {
        let mut watch = p.a.watch().unwrap();
        p.a.resolve_neighbour(p.ifindex_a, ip(addr)).await.unwrap();
        let now = change(&mut watch, "neighbour resolved", |change| match change {
            Change::Neighbour { ifindex, ip: of, now: Some(now) }
                if ifindex == p.ifindex_a && of == ip(addr) && now.usable =>
            {
                Some(now)
            }
            _ => None,
        })
        .await;
        assert_eq!(now.mac, Some(MAC_B));
        let known = p.a.neighbours().await.unwrap()[&(p.ifindex_a, ip(addr))];
        assert_eq!((known.mac, known.usable, known.fixed), (Some(MAC_B), true, false));
    }
}

#[tokio::test]
async fn what_an_administrator_fixed_stays() {
    let Some(p) = pair().await else { return };
    sh(&p.ns_a, "ip neigh add 10.99.0.9 dev a lladdr 02:00:00:00:00:09 nud permanent");
    p.a.resolve_neighbour(p.ifindex_a, ip("10.99.0.9")).await.unwrap();
    let known = p.a.neighbours().await.unwrap()[&(p.ifindex_a, ip("10.99.0.9"))];
    assert_eq!((known.mac, known.fixed), (Some([2, 0, 0, 0, 0, 9]), true));
}

#[tokio::test]
async fn a_learned_mac_survives_a_request_to_resolve() {
    let Some(p) = pair().await else { return };
    sh(&p.ns_a, "ip neigh add 10.99.0.9 dev a lladdr 02:00:00:00:00:09 nud stale");
    p.a.resolve_neighbour(p.ifindex_a, ip("10.99.0.9")).await.unwrap();
    let known = p.a.neighbours().await.unwrap()[&(p.ifindex_a, ip("10.99.0.9"))];
    assert_eq!((known.mac, known.usable, known.stale), (Some([2, 0, 0, 0, 0, 9]), true, false));
}

#[tokio::test]
async fn changes_are_announced() {
    let Some(p) = pair().await else { return };
    let mut watch = p.a.watch().unwrap();
    let ifindex = p.ifindex_a;
    let is = |wanted: Change| move |change| (change == wanted).then_some(());
    let link =
        Change::Link { ifindex, name: "a".into(), kind: Some("veth".into()), controller: None };
    sh(&p.ns_a, "ip link set dev a mtu 1400");
    change(&mut watch, "MTU", is(link)).await;
    sh(&p.ns_a, "ip addr add 10.95.0.1/24 dev a");
    let address = Change::Address { ifindex, ip: Some(ip("10.95.0.1")) };
    change(&mut watch, "address", is(address)).await;
    sh(&p.ns_a, "ip route add 10.94.0.0/16 dev a");
    change(&mut watch, "route", is(Change::Route { dst: Some(net("10.94.0.0/16")) })).await;
    sh(&p.ns_a, "ip -6 route add default dev a metric 7");
    change(&mut watch, "default route", is(Change::Route { dst: Some(net("::/0")) })).await;
    sh(&p.ns_a, "tc qdisc add dev a clsact; tc qdisc del dev a clsact");
    change(&mut watch, "qdisc gone", is(Change::Filter { ifindex })).await;
    sh(&p.ns_a, "ip link add br9 type bridge; ip link set dev a master br9");
    let port = |c| match c {
        Change::Link { ifindex: port, controller: Some(_), .. } if port == ifindex => Some(()),
        _ => None,
    };
    change(&mut watch, "port of a bridge", port).await;
    sh(&p.ns_a, "ip link del dev br9");
    for family in ["-4", "-6"] {
        sh(&p.ns_a, &format!("ip {family} rule add priority 7 table main"));
        change(&mut watch, "rule", is(Change::Route { dst: None })).await;
    }
    sh(
        &p.ns_a,
        "ip neigh add 10.99.0.9 dev a lladdr 02:00:00:00:00:09; ip neigh del 10.99.0.9 dev a",
    );
    let gone = Change::Neighbour { ifindex, ip: ip("10.99.0.9"), now: None };
    change(&mut watch, "neighbour removed", is(gone)).await;
    sh(&p.ns_a, "ip link del dev a");
    change(&mut watch, "link gone", |c| is_link(c, ifindex)).await;
}

#[tokio::test]
async fn a_reader_that_does_not_keep_up_is_told_and_goes_on() {
    let Some(p) = pair().await else { return };
    let mut watch = p.a.watch().unwrap();
    // Far more than the socket's queue holds.
    sh(
        &p.ns_a,
        "seq 1 60000 | sed 's/.*/route add 10.42.0.0\\/16 dev a\\nroute del 10.42.0.0\\/16/' \
                 | ip -batch -",
    );
    change(&mut watch, "overrun", |c| (c == Change::Overrun).then_some(())).await;
    sh(&p.ns_a, "ip link set dev a mtu 1400");
    let ifindex = p.ifindex_a;
    change(&mut watch, "MTU", |c| is_link(c, ifindex)).await;
}

#[test]
fn a_namespace_is_found_by_name_and_a_near_miss_is_helped() {
    struct Named(String);
    impl Drop for Named {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }
    if !able() {
        return;
    }
    let name = format!("mesh-net-test-{}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).status().unwrap();
    assert!(made.success());
    let named = Named(name);
    let by_name = open_netns(&named.0).unwrap();
    let by_path = open_netns(&format!("/run/netns/{}", named.0)).unwrap();
    assert!(same_netns(by_name.as_fd(), by_path.as_fd()));
    let wrong = named.0.replace("test", "tset");
    let error = open_netns(&wrong).unwrap_err().to_string();
    assert!(error.contains(&format!("; there are {}", named.0)), "{error}");
}

#[tokio::test]
async fn without_capability_the_remedy_is_named() {
    let Some(p) = pair().await else { return };
    let error = std::thread::spawn(move || {
        rustix::thread::move_into_link_name_space(p.ns_a.as_fd(), None).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let net = Net::here().unwrap();
            // SAFETY: capabilities are the thread's own, and this one ends here.
            let dropped =
                unsafe { libc::syscall(libc::SYS_capset, &CAP_HEADER, [0u32; 6].as_ptr()) };
            assert_eq!(dropped, 0);
            net.set_mtu(p.ifindex_a, 1300).await.unwrap_err().to_string()
        })
    })
    .join()
    .unwrap();
    assert!(
        error.starts_with("cannot set the MTU of a to 1300: Operation not permitted"),
        "{error}"
    );
    assert!(error.contains("CAP_NET_ADMIN"), "{error}");
}

/// _LINUX_CAPABILITY_VERSION_3, this thread.
const CAP_HEADER: [u32; 2] = [0x2008_0522, 0];
