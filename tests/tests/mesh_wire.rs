//! What goes over the underlay, judged by a dissector that is not ours.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use mesh_tests::{
    Capture, Encap, Options, Topology, Underlay, capture::Pcap, party::pairs, ping, scenario::bare,
    socket, socket::Fragment, traffic::UdpPair, wait,
};

/// Traffic of all kinds in two networks between two hosts, captured at the switch. What the first
/// network carries is whole before it is encapsulated; in the second, containers hand over
/// super-packets without checksums, as they do, and the kernel cuts and sums up what mesh made of
/// them, as the hardware of a network card would.
fn traffic_of_all_kinds(mesh: &mut Topology) -> Result<Pcap> {
    mesh.cluster = mesh.cluster.clone().with_network("blue", 7, "10.43.0.0/16");
    let cluster = mesh.cluster.clone();
    for host in &mut mesh.hosts {
        host.up(&cluster)?;
        host.attach(0, &[])?.disable_transmit_offloads()?;
        host.attach(1, &["--network", "blue"])?;
        host.netns.run(|| Ok(socket::disable_transmit_offloads("eth0")?))?;
    }
    let capture = Capture::start(&mesh.switch, "h1", mesh.dir.join("underlay.pcap"))?;
    for network in ["c1", "c2"] {
        let mut parties = mesh.parties()?;
        parties.retain(|party| party.name.ends_with(network));
        for (from, to) in pairs(&parties) {
            from.expect_reaches(to)?;
            for target in &to.addresses {
                let udp = UdpPair::new(&from.netns, &to.netns, *target, Fragment::Allowed)?;
                ensure!(udp.carries(5_000, wait::arrival())?, "fragments to {target}");
                ping::ping(&from.netns, *target, 2, 4_000, wait::arrival())?;
            }
        }
    }
    capture.stop()
}

/// As the dissector calls the tunnel, and its VNI.
const fn names(encap: Encap) -> [&'static str; 2] {
    match encap {
        Encap::Gre | Encap::Gretap => ["gre", "gre.key"],
        Encap::Vxlan => ["vxlan", "vxlan.vni"],
        Encap::Geneve => ["geneve", "geneve.vni"],
    }
}

/// Filters for what no packet may be, of the outer header, which is the first of its name in a frame.
fn forbidden_outside(underlay: Underlay, tunnel: &str) -> Vec<String> {
    match underlay {
        Underlay::V4 => vec![
            format!("(ip || ipv6) && !{tunnel}"),
            format!("{tunnel} && !(ip.ttl#1 == 64)"),
            format!("{tunnel} && !(ip.flags.df#1 == 1)"),
            format!("{tunnel} && ip.len#1 > 1500"),
        ],
        Underlay::V6 => vec![
            // The hosts find each other by neighbour discovery, and tell in which groups they are.
            format!("(ip || ipv6) && !{tunnel} && !(icmpv6.type in {{133 .. 136, 143}})"),
            format!("{tunnel} && !(ipv6.hlim#1 == 64)"),
            format!("{tunnel} && !(ipv6.version#1 == 6)"),
            format!("{tunnel} && ipv6.plen#1 > 1460"),
            // Nor is it a fragment.
            format!("{tunnel} && ipv6.nxt#1 == 44"),
        ],
    }
}

fn dissects_cleanly(encap: Encap, underlay: Underlay) {
    bare(Options { containers: 2, encap, underlay, ..Options::default() }, |mesh| {
        let pcap = traffic_of_all_kinds(mesh)?;
        let problems = pcap.problems()?;
        ensure!(
            problems.is_empty(),
            "{}: {:#?}",
            problems.len(),
            &problems[..problems.len().min(20)]
        );
        let [tunnel, vni] = names(encap);
        for expected in ["tcp && tcp.len > 1300", "udp", "ip.flags.mf == 1", "icmp", "tcp && ipv6"]
        {
            ensure!(!pcap.matching(&format!("{tunnel} && {expected}"))?.is_empty(), "{expected}");
        }
        for expected in [
            format!("{tunnel} && icmpv6.type == 128"),
            format!("{vni} == 7 && tcp"),
            format!("{vni} == 7 && tcp && tcp.len > 1300"),
            match encap {
                Encap::Gre => "gre.proto == 0x0800".into(),
                Encap::Gretap => "gre.proto == 0x6558".into(),
                Encap::Vxlan => "udp.dstport == 4789 && vxlan.flag_i == 1".into(),
                Encap::Geneve => "udp.dstport == 6081 && geneve.proto_type == 0x6558".into(),
            },
        ] {
            ensure!(!pcap.matching(&expected)?.is_empty(), "no packet is {expected}");
        }
        let mut forbidden = forbidden_outside(underlay, tunnel);
        forbidden.push(format!("ip.addr == 10.43.0.0/16 && !({vni} == 7)"));
        forbidden.push(match encap {
            // No key where there is no VNI.
            Encap::Gre | Encap::Gretap => "gre.key && !(gre.key == 7)".to_owned(),
            _ => format!("{vni} && !({vni} == 7) && !({vni} == 0)"),
        });
        // In one go: a dissector takes its time to start.
        let found = pcap.matching(&format!("({})", forbidden.join(") || (")))?;
        ensure!(found.is_empty(), "one of {forbidden:#?}: {:#?}", found.first());
        Ok(())
    });
}

#[test]
fn gre_on_the_underlay_dissects_cleanly() {
    dissects_cleanly(Encap::Gre, Underlay::V4);
}

#[test]
fn gretap_on_the_underlay_dissects_cleanly() {
    dissects_cleanly(Encap::Gretap, Underlay::V4);
}

#[test]
fn vxlan_on_the_underlay_dissects_cleanly() {
    dissects_cleanly(Encap::Vxlan, Underlay::V4);
}

#[test]
fn geneve_on_the_underlay_dissects_cleanly() {
    dissects_cleanly(Encap::Geneve, Underlay::V4);
}

#[test]
fn gre_on_an_ipv6_underlay_dissects_cleanly() {
    dissects_cleanly(Encap::Gre, Underlay::V6);
}

#[test]
fn gretap_on_an_ipv6_underlay_dissects_cleanly() {
    dissects_cleanly(Encap::Gretap, Underlay::V6);
}

#[test]
fn vxlan_on_an_ipv6_underlay_dissects_cleanly() {
    dissects_cleanly(Encap::Vxlan, Underlay::V6);
}

#[test]
fn geneve_on_an_ipv6_underlay_dissects_cleanly() {
    dissects_cleanly(Encap::Geneve, Underlay::V6);
}

/// Expedited forwarding, with each of the four values of ECN.
const EF: i32 = 46;
/// Of the datagrams that are marked, without headers.
const MARKED: u32 = 100;

/// Sends one datagram with each value of ECN to every address.
fn send_marked(mesh: &Topology) -> Result<()> {
    let (from, to) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
    for target in &to.addresses {
        for ecn in 0..4 {
            let udp = UdpPair::new(&from.netns, &to.netns, *target, Fragment::Never)?;
            let (level, name) = match target {
                IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            socket::set(&udp.tx, level, name, EF << 2 | ecn)?;
            let headers = if target.is_ipv4() { 20 + 8 } else { 40 + 8 };
            let arrives = udp.carries(headers + MARKED, wait::arrival())?;
            ensure!(arrives, "ECN {ecn} to {target}");
        }
    }
    Ok(())
}

/// The outer header's TTL and DSCP are as configured, and its ECN is the inner one's.
fn outer_header_is_as_configured(encap: Encap, underlay: Underlay) {
    for (setting, dscp) in [("\"copy\"", EF), ("\"zero\"", 0), ("10", 10)] {
        bare(Options { encap, underlay, ..Options::default() }, |mesh| {
            let cluster = mesh.cluster.clone().with_setting("ttl = 33");
            mesh.cluster = cluster.with_setting(&format!("dscp = {setting}"));
            mesh.up()?;
            let capture = Capture::start(&mesh.switch, "h1", mesh.dir.join("marked.pcap"))?;
            send_marked(mesh)?;
            let pcap = capture.stop()?;
            let [tunnel, _] = names(encap);
            let sent = format!("{tunnel} && data.len == {MARKED}");
            let rows = pcap.fields(&sent, ["ip.dsfield", "ipv6.tclass", "ip.ttl", "ipv6.hlim"])?;
            let mut seen = Vec::new();
            for [v4, v6, ttl, hops] in rows {
                let number = |text: &String| {
                    i32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(-1)
                };
                let [outer, inner, outer_ttl] = match (underlay, v4.len(), v6.len()) {
                    (Underlay::V4, 2, _) => [&v4[0], &v4[1], &ttl[0]],
                    (Underlay::V4, ..) => [&v4[0], &v6[0], &ttl[0]],
                    (Underlay::V6, _, 2) => [&v6[0], &v6[1], &hops[0]],
                    (Underlay::V6, ..) => [&v6[0], &v4[0], &hops[0]],
                };
                let ecn = number(inner) & 3;
                ensure!(number(inner) == EF << 2 | ecn, "sent with {inner}");
                ensure!(number(outer) == dscp << 2 | ecn, "{setting}: {outer} around {inner}");
                ensure!(outer_ttl == "33", "TTL {outer_ttl}");
                seen.push(ecn);
            }
            seen.sort_unstable();
            ensure!(seen == [0, 0, 1, 1, 2, 2, 3, 3], "{setting}: {seen:?}");
            Ok(())
        });
    }
}

#[test]
fn marks_outside_are_as_configured_in_gre() {
    outer_header_is_as_configured(Encap::Gre, Underlay::V4);
}

#[test]
fn marks_outside_are_as_configured_in_vxlan() {
    outer_header_is_as_configured(Encap::Vxlan, Underlay::V4);
}

#[test]
fn marks_outside_are_as_configured_in_gre_over_ipv6() {
    outer_header_is_as_configured(Encap::Gre, Underlay::V6);
}

#[test]
fn marks_outside_are_as_configured_in_geneve_over_ipv6() {
    outer_header_is_as_configured(Encap::Geneve, Underlay::V6);
}
