//! Everybody reaches everybody.

use std::{sync::mpsc, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Encap, Netns, Options, Topology, Underlay, netns::check, party::pairs, ping, scenario,
    scenario::bare, traffic, wait,
};

const SOON: Duration = Duration::from_secs(5);

fn all_pairs(hosts: usize, encap: Encap, underlay: Underlay) {
    scenario(Options { hosts, containers: 2, encap, underlay, ..Options::default() }, |mesh| {
        let parties = mesh.parties()?;
        ensure!(parties.len() == 2 * hosts && parties.iter().all(|p| p.addresses.len() == 2));
        pairs(&parties).try_for_each(|(from, to)| from.expect_reaches(to))?;
        expect_drops_add_up(mesh)
    });
}

/// The sum law, as far as `mesh status` shows it: every dropped packet has a reason.
fn expect_drops_add_up(mesh: &Topology) -> Result<()> {
    for host in &mesh.hosts {
        // Again where they differ: a packet may be dropped between the reading of two counters.
        wait::until(&format!("the drops of {} to add up", host.name), SOON, || {
            let status = host.status().map_err(|e| format!("{e:#}"))?;
            let sum = |values: &mut dyn Iterator<Item = Option<u64>>| values.flatten().sum::<u64>();
            let reasons = status["drops"].as_object().into_iter().flatten();
            let by_reason = sum(&mut reasons.map(|(_, n)| n.as_u64()));
            let hooks = status["hooks"].as_array().into_iter().flatten();
            let by_hook = sum(&mut hooks.map(|hook| hook["dropped"].as_u64()));
            if by_reason == by_hook { Ok(()) } else { Err(format!("{by_reason} != {by_hook}")) }
        })?;
    }
    Ok(())
}

#[test]
fn containers_over_gre_all_reach_each_other() {
    all_pairs(3, Encap::Gre, Underlay::V4);
}

#[test]
fn containers_over_gretap_all_reach_each_other() {
    all_pairs(3, Encap::Gretap, Underlay::V4);
}

#[test]
fn containers_over_vxlan_all_reach_each_other() {
    all_pairs(2, Encap::Vxlan, Underlay::V4);
}

#[test]
fn containers_over_geneve_all_reach_each_other() {
    all_pairs(2, Encap::Geneve, Underlay::V4);
}

#[test]
fn containers_over_gre_over_ipv6_all_reach_each_other() {
    all_pairs(2, Encap::Gre, Underlay::V6);
}

#[test]
fn containers_over_gretap_over_ipv6_all_reach_each_other() {
    all_pairs(2, Encap::Gretap, Underlay::V6);
}

#[test]
fn containers_over_vxlan_over_ipv6_all_reach_each_other() {
    all_pairs(2, Encap::Vxlan, Underlay::V6);
}

#[test]
fn containers_over_geneve_over_ipv6_all_reach_each_other() {
    all_pairs(2, Encap::Geneve, Underlay::V6);
}

/// Linux asks for a neighbour of its own accord only from a link-local address. A question that it can
/// not put fails after three seconds, and takes the packets with it that came to wait for the answer.
#[test]
fn a_peer_is_asked_for_before_the_first_packet_only_where_the_kernel_can_ask() {
    bare(Options { underlay: Underlay::V6, ..Options::default() }, |mesh| {
        mesh.up()?;
        let host = &mesh.hosts[0];
        let peer = || host.netns.exec("ip -6 neigh show dev eth0");
        let before = peer()?;
        ensure!(before.is_empty(), "no address to ask from, and yet there is {before}");
        host.netns.ip_batch("addr add fe80::1/64 dev eth0 nodad\n")?;
        wait::until_true("the peer to be found", Duration::from_secs(10), || {
            peer().is_ok_and(|all| all.contains("REACHABLE"))
        })?;
        let (a, b) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        a.expect_reaches(&b)
    });
}

#[test]
fn hosts_reach_all_containers_and_are_reached() {
    scenario(Options { hosts: 2, containers: 1, ..Options::default() }, |mesh| {
        let mut parties = mesh.parties()?;
        for host in &mesh.hosts {
            parties.push(host.party()?);
        }
        ensure!(parties.iter().all(|p| p.addresses.len() == 2), "{parties:?}");
        pairs(&parties).try_for_each(|(from, to)| from.expect_reaches(to))
    });
}

#[test]
fn mesh_without_ipv6_carries_ipv4() {
    scenario(Options { ipv6: false, ..Options::default() }, |mesh| {
        let (a, b) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        ensure!(a.addresses.len() == 1);
        a.expect_reaches(&b)
    });
}

#[test]
fn address_that_nobody_has_is_dropped_and_counted() {
    scenario(Options { ipv6: false, ..Options::default() }, |mesh| {
        let from = mesh.party("h1c1")?;
        for (host, target, reason) in [
            (1, "10.42.2.200", "no_endpoint"),
            (0, "10.42.1.200", "no_endpoint"),
            (0, "10.42.99.1", "no_route"),
        ] {
            let before = mesh.hosts[host].drops(reason)?;
            ping::expect_no_ping(&from.netns, target.parse()?)?;
            let after = mesh.hosts[host].drops(reason)?;
            ensure!(after == before + 3, "{target}: {reason} went from {before} to {after}");
        }
        expect_drops_add_up(mesh)
    });
}

#[test]
fn traffic_is_counted_at_peers_and_endpoints() {
    scenario(Options { ipv6: false, ..Options::default() }, |mesh| {
        let (a, b) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let before = mesh.hosts[0].status()?;
        let report = ping::ping(&a.netns, b.address(false)?, 10, 56, wait::arrival())?;
        ensure!(report.received() == 10);
        let after = mesh.hosts[0].status()?;
        for row in ["/peers/0", "/endpoints/0"] {
            // IPv4 20, ICMP 8, payload 56, as seen inside.
            for (count, expected) in [("packets", 10), ("bytes", 840)] {
                for way in ["rx", "tx"] {
                    let path = format!("{row}/{way}/{count}");
                    let read = |status: &serde_json::Value| {
                        status.pointer(&path).and_then(serde_json::Value::as_u64)
                    };
                    let (old, new) = (read(&before), read(&after));
                    ensure!(
                        old.zip(new).is_some_and(|(old, new)| new - old == expected),
                        "{path}: {old:?} then {new:?}, not {expected} more"
                    );
                }
            }
        }
        Ok(())
    });
}

#[test]
fn container_with_a_dead_agent_everywhere_still_reaches_everybody() {
    scenario(Options { hosts: 2, containers: 2, ..Options::default() }, |mesh| {
        let parties = mesh.parties()?;
        mesh.hosts.iter_mut().for_each(mesh_tests::Host::kill9);
        pairs(&parties).try_for_each(|(from, to)| from.expect_reaches(to))
    });
}

#[test]
fn agents_with_mount_namespaces_of_their_own_carry_traffic() {
    bare(Options::default(), |mesh| {
        for host in &mut mesh.hosts {
            host.private_mounts = true;
        }
        mesh.up()?;
        let parties = mesh.parties()?;
        pairs(&parties).try_for_each(|(from, to)| from.expect_reaches(to))?;
        mesh.hosts.iter_mut().try_for_each(mesh_tests::Host::down)
    });
}

/// As Docker in Docker or Kubernetes in containers has it: TCP's super-packets leave the containers in
/// VXLAN.
#[test]
fn tunnel_between_containers_carries_tcp() {
    for interfaces in ["veth", "auto"] {
        bare(Options { ipv6: false, ..Options::default() }, |mesh| {
            mesh.cluster.interfaces = Some(interfaces);
            mesh.up()?;
            let (a, b) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
            for (own, other, ip) in [(&a, &b, "198.18.0.1/24"), (&b, &a, "198.18.0.2/24")] {
                let (local, remote) = (own.address(false)?, other.address(false)?);
                own.netns.ip_batch(&format!(
                    "link add vx0 type vxlan id 7 dstport 4789 local {local} remote {remote} dev eth0\n\
                     addr add {ip} dev vx0\nlink set vx0 up\n"
                ))?;
            }
            let sent = tcp_within(&a.netns, &b.netns, "198.18.0.2", Duration::from_secs(10));
            let no_room = mesh.hosts[0].drops("no_room")?;
            sent.with_context(|| format!("{interfaces}: dropped for want of room: {no_room}"))?;
            ensure!(no_room == 0, "{interfaces}: dropped for want of room: {no_room}");
            Ok(())
        });
    }
}

/// 10 MB, all of which must have arrived in time.
fn tcp_within(from: &Netns, to: &Netns, target: &str, limit: Duration) -> Result<()> {
    let (from, to, target) = (from.clone(), to.clone(), target.parse()?);
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(traffic::tcp_transfer(&from, &to, target, 10_000_000)));
    result.recv_timeout(wait::patient(limit)).context("10 MB take too long")?
}

/// The kernel keeps the mark of the encapsulation that a super-packet came in.
#[test]
fn container_sends_on_by_nat_what_came_in_by_the_mesh() {
    scenario(Options { containers: 2, ipv6: false, ..Options::default() }, |mesh| {
        let (from, via, to) = (mesh.party("h1c1")?, mesh.party("h2c1")?, mesh.party("h1c2")?);
        via.netns.exec("sysctl -q -w net.ipv4.ip_forward=1")?;
        let (asked, answers) = (via.address(false)?, to.address(false)?);
        let rules = format!(
            "add table ip nat\n\
             add chain ip nat pre {{ type nat hook prerouting priority -100; }}\n\
             add chain ip nat post {{ type nat hook postrouting priority 100; }}\n\
             add rule ip nat pre ip daddr {asked} dnat to {answers}\n\
             add rule ip nat post masquerade\n"
        );
        check("nft", &via.netns.command("nft").arg(rules).output()?)?;
        let sent = tcp_within(&from.netns, &to.netns, &asked.to_string(), Duration::from_secs(10));
        let no_room = mesh.hosts[1].drops("no_room")?;
        sent.with_context(|| format!("dropped for want of room: {no_room}"))?;
        ensure!(no_room == 0, "dropped for want of room: {no_room}");
        Ok(())
    });
}
