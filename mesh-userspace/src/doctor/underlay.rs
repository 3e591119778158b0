//! The interfaces that tunnel packets would take.

use std::net::IpAddr;

use super::{
    AS_ROOT, Finding,
    Status::{Fail, Info, Ok, Warn},
    sysctl,
};
use crate::{
    compile,
    config::{Cluster, Encap, Vni},
    net::{self, Address, Link, Net, NetError, Route},
};

/// `cluster`: that of the config file, if there is one.
pub(super) async fn findings(net: &Net, cluster: Option<&Cluster>) -> Vec<Finding> {
    let all =
        async { Result::Ok((net.links().await?, net.addresses().await?, net.routes().await?)) };
    let (links, addresses, routes) = match all.await {
        Result::Ok(all) => all,
        Err(e) => return vec![unseen(&e)],
    };
    let underlay = candidates(&links, &addresses, &routes);
    let mut findings: Vec<Finding> = underlay.iter().map(|link| mtu(link, cluster)).collect();
    if underlay.is_empty() {
        findings.push(no_underlay());
    }
    findings.push(rp_filter(&underlay));
    findings.extend(underlay.iter().map(|link| xdp(link)));
    findings.push(gre(underlay.first().map_or("any", |link| &link.name), cluster));
    findings.push(gre_devices(&links));
    findings
}

fn no_underlay() -> Finding {
    let meaning = "No interface is up and has an address that other hosts reach: tunnel packets have no way out.";
    Finding::new("underlay", Fail, "none", meaning)
        .mended_by("ip link set dev IFACE up; ip address add ADDR/LEN dev IFACE")
}

/// When the kernel does not even say which interfaces there are.
pub(super) fn unseen(e: &NetError) -> Finding {
    Finding::new("underlay", Fail, "unseen", format!("The kernel does not list interfaces: {e}."))
        .mended_by(AS_ROOT)
}

/// The interfaces of the default routes, IPv4 and IPv6. Without one: all that are up and have an
/// address that other hosts may reach, but for bridges and mesh's own.
fn candidates<'a>(links: &'a [Link], addresses: &[Address], routes: &[Route]) -> Vec<&'a Link> {
    let up = |link: &&Link| link.up && !link.loopback;
    let is_default = |r: &&Route| r.dst.prefix_len() == 0;
    let default: Vec<&Link> = links
        .iter()
        .filter(up)
        .filter(|link| routes.iter().filter(is_default).any(|r| r.ifindex == Some(link.index)))
        .collect();
    if !default.is_empty() {
        return default;
    }
    let is_reachable = |a: &Address| match a.ip() {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    let has_address =
        |link: &&Link| addresses.iter().any(|a| a.ifindex == link.index && is_reachable(a));
    let other = |link: &&Link| link.name != "mesh0" && link.kind.as_deref() != Some("bridge");
    links.iter().filter(up).filter(has_address).filter(other).collect()
}

/// RFC 8200, 5.
const IPV6_MIN_MTU: u32 = 1280;

fn mtu(link: &Link, cluster: Option<&Cluster>) -> Finding {
    let inside = |encap: Encap| link.mtu.saturating_sub(encap.overhead(Vni::DEFAULT, false) as u32);
    let [gre, gretap, udp] = [Encap::Gre, Encap::Gretap, Encap::Vxlan].map(inside);
    let of_file = |cluster| {
        compile::container_mtu(cluster, Vni::DEFAULT, link.mtu).unwrap_or_else(|largest| largest)
    };
    let here = cluster.map_or(gretap, of_file);
    let value = format!("{} {}, containers {here}", link.name, link.mtu);
    let meaning = format!(
        "With gre, containers get an MTU of {gretap} if the config file sets none; it may set up to {gre} with \
         gre, {gretap} with gretap, 4 less in networks with a VNI. With vxlan and geneve it is \
         {udp}. Between IPv6 addresses all of it is 20 less."
    );
    if here < IPV6_MIN_MTU {
        let meaning = format!("{meaning} IPv6 needs {IPV6_MIN_MTU}.");
        return Finding::new("underlay_mtu", Warn, value, meaning)
            .mended_by(format!("ip link set dev {} mtu 1500", link.name));
    }
    Finding::new("underlay_mtu", Ok, value, meaning)
}

fn rp_filter(underlay: &[&Link]) -> Finding {
    let names = ["all", "default"].into_iter().chain(underlay.iter().map(|l| l.name.as_str()));
    let values: Vec<String> = names
        .map(|name| {
            // A dot in a name is part of it, not a separator: this is a path.
            let value = sysctl(&format!("net/ipv4/conf/{name}/rp_filter"));
            format!("{name} {}", value.as_deref().unwrap_or("unseen"))
        })
        .collect();
    let meaning = "Any setting is right. Tunnel packets are taken before the kernel looks at their \
                   source, and mesh0 is the way back to all that comes in by it, so that even \
                   strict (1) holds.";
    Finding::new("rp_filter", Ok, values.join(", "), meaning)
}

/// Drivers that run XDP before a packet buffer exists.
const NATIVE_XDP: [&str; 29] = [
    "atlantic",
    "bnxt_en",
    "dpaa2-eth",
    "ena",
    "enetc",
    "fsl_dpa",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "qede",
    "sfc",
    "stmmaceth",
    "thunder-nicvf",
    "tun",
    "ti-cpsw",
    "veth",
    "virtio_net",
    "vmxnet3",
];

fn xdp(link: &Link) -> Finding {
    let driver = net::driver(&link.name).or_else(|e| link.kind.clone().ok_or(e));
    let (mode, driver) = match &driver {
        Result::Ok(driver) if NATIVE_XDP.contains(&driver.as_str()) => ("native", driver.as_str()),
        Result::Ok(driver) => ("generic", driver.as_str()),
        Err(_) => ("unseen", "driver unknown"),
    };
    let meaning = match mode {
        "native" => "The driver could run XDP programs before a packet buffer exists.",
        "generic" => "Not a driver known to run XDP programs itself.",
        _ => "The interface does not name its driver.",
    };
    let meaning = format!("{meaning} mesh attaches to tc and needs no XDP.");
    Finding::new("xdp", Info, format!("{} {mode} ({driver})", link.name), meaning)
}

/// Whether tunnels are in GRE, if a config file says.
fn gre(interface: &str, cluster: Option<&Cluster>) -> Finding {
    let is_gre = |encap: Encap| !encap.is_udp();
    if cluster.is_some_and(|cluster| !cluster.encaps().any(is_gre)) {
        let meaning = "The config file has no tunnel in gre or gretap.";
        return Finding::new("gre", Ok, "not used", meaning);
    }
    let meaning = "With gre and gretap, tunnel packets are IP protocol 47, which has no ports; with \
                   vxlan they are UDP to port 4789, with geneve to 6081. This host's own firewall \
                   is not asked, for mesh takes them first; firewalls between the hosts and a \
                   cloud's security groups must let them through.";
    Finding::new("gre", Info, "IP protocol 47", meaning)
        .mended_by(format!("tcpdump -ni {interface} ip proto 47  # shows whether they arrive"))
}

fn gre_devices(links: &[Link]) -> Finding {
    let tunnel = |link: &&Link| {
        let kind = link.kind.as_deref().unwrap_or_default();
        // The module makes the 0 ones in every namespace; as long as they are down they do nothing.
        let fallback = ["gre0", "gretap0", "erspan0"].contains(&link.name.as_str()) && !link.up;
        matches!(kind, "gre" | "gretap" | "erspan") && !fallback
    };
    let names: Vec<&str> = links.iter().filter(tunnel).map(|l| l.name.as_str()).collect();
    if names.is_empty() {
        let meaning = "No other GRE tunnel on this host.";
        return Finding::new("gre_devices", Ok, "none", meaning);
    }
    let meaning = "Other GRE tunnels on this host go on working: what does not come from a node of \
                   the mesh is left to them. A tunnel to such a node itself gets nothing any more.";
    Finding::new("gre_devices", Info, names.join(", "), meaning)
        .mended_by("ip -d link show type gre; ip -d link show type gretap")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            mac: None,
            mtu: 1500,
            up: true,
            running: true,
            ethernet: true,
            loopback: name == "lo",
            alias: None,
            peer: None,
            peer_netns: None,
            controller: None,
            udp_port: None,
        }
    }

    fn names(links: &[&Link]) -> Vec<String> {
        links.iter().map(|l| l.name.clone()).collect()
    }

    #[test]
    fn the_underlay_is_where_the_default_route_goes() {
        let links = [link(1, "lo", None), link(2, "eth0", None), link(3, "eth1", None)];
        let address = |ifindex, net: &str| Address { ifindex, net: net.parse().unwrap() };
        let addresses =
            [address(1, "127.0.0.1/8"), address(2, "192.0.2.1/24"), address(3, "198.51.100.1/24")];
        let default = Route {
            dst: "0.0.0.0/0".parse().unwrap(),
            ifindex: Some(3),
            gateway: None,
            source: None,
            mtu: None,
            protocol: 3,
            metric: 0,
        };
        let ipv6 = Route { dst: "::/0".parse().unwrap(), ..default.clone() };
        assert_eq!(names(&candidates(&links, &addresses, &[default])), ["eth1"]);
        assert_eq!(names(&candidates(&links, &addresses, &[ipv6])), ["eth1"]);
        let ipv6 = [address(2, "fe80::1/64"), address(3, "2001:db8::1/64")];
        assert_eq!(names(&candidates(&links, &ipv6, &[])), ["eth1"]);
        assert_eq!(names(&candidates(&links, &addresses, &[])), ["eth0", "eth1"]);
    }

    #[test]
    fn an_mtu_too_small_for_ipv6_is_warned_of() {
        let mut eth0 = link(2, "eth0", None);
        assert_eq!(mtu(&eth0, None).status, Ok);
        assert!(mtu(&eth0, None).meaning.contains("an MTU of 1462"));
        let file = "[cluster]\nname='c'\ncidr='10.42.0.0/16'\nencap='vxlan'\n\
            [[node]]\nname='h1'\nunderlay='192.0.2.1'\n";
        let cluster = crate::config::parse(file.as_bytes()).unwrap();
        assert_eq!(mtu(&eth0, Some(&cluster)).value, "eth0 1500, containers 1450");
        assert_eq!(gre("eth0", Some(&cluster)).value, "not used");
        let with_link = format!(
            "{file}[[node]]\nname='h2'\nunderlay='192.0.2.2'\n\
            [[link]]\nnodes=['h1', 'h2']\nencap='gretap'\n"
        );
        let with_link = crate::config::parse(with_link.as_bytes()).unwrap();
        assert_eq!(gre("eth0", Some(&with_link)).value, "IP protocol 47");
        assert_eq!(gre("eth0", None).value, "IP protocol 47");
        eth0.mtu = 1280 + 38;
        assert_eq!(mtu(&eth0, None).status, Ok);
        eth0.mtu -= 1;
        assert_eq!(mtu(&eth0, None).status, Warn);
    }

    #[test]
    fn fallback_tunnels_that_are_down_do_not_count() {
        let mut fallback = link(4, "gre0", Some("gre"));
        assert_eq!(gre_devices(std::slice::from_ref(&fallback)).value, "gre0");
        fallback.up = false;
        let ours = link(5, "tun1", Some("gretap"));
        assert_eq!(gre_devices(&[fallback.clone(), ours]).value, "tun1");
        assert_eq!(gre_devices(&[fallback]).value, "none");
    }
}
