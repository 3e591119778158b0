//! Two hosts with mesh and one with the kernel's VXLAN and a bridge.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_tests::{
    Encap, Options, Party, Topology, Underlay, foreign,
    foreign::Net,
    party::pairs,
    ping,
    scenario::bare,
    socket::Fragment,
    traffic::{self, UdpPair},
    wait,
};

use crate::{
    cut_on_the_underlay, expect_all_reach, expect_large_transfers, expect_stranger_is_not_heard,
    far_end,
};

const LARGE: usize = 32 << 20;
/// Of the tunnels to the third host, while the cluster's are GRE.
const OWN: [&str; 3] = ["encap = \"vxlan\"", "vni = 42", "port = 8472"];

/// h1 and h2 run mesh, h3 has the kernel's VXLAN. Nobody has spoken yet.
fn with_vxlan_bridge(
    encap: Encap,
    underlay: Underlay,
    lines: &[&str],
    body: impl FnOnce(&mut Topology, Vec<Party>, Vec<Party>) -> Result<()>,
) {
    bare(Options { hosts: 3, containers: 2, encap, underlay, ..Options::DEFAULT }, |mesh| {
        let cluster = mesh.cluster.clone().with_foreign("h3", lines);
        mesh.cluster = cluster.clone();
        mesh.up()?;
        foreign::join(far_end(mesh)?, &cluster)?;
        let theirs = foreign::plug_into_bridge(far_end(mesh)?, &cluster, Net::Link)?;
        let ours = mesh.parties()?;
        body(mesh, ours, theirs)
    });
}

fn meets(encap: Encap, underlay: Underlay, lines: &[&str]) {
    with_vxlan_bridge(encap, underlay, lines, |mesh, mut ours, mut theirs| {
        theirs.push(foreign::party(far_end(mesh)?, &mesh.cluster)?);
        // The hosts themselves are there as well, and all that run mesh speak first with one.
        for host in &mesh.hosts[..2] {
            ours.push(host.party()?);
        }
        for (us, one) in ours.iter().zip(theirs.iter().cycle()) {
            us.expect_first_word(one)?;
        }
        for one in &theirs {
            ours.iter().try_for_each(|us| one.expect_first_word(us))?;
        }
        expect_all_reach(&ours, &theirs)?;
        pairs(&ours[..4]).try_for_each(|(from, to)| from.expect_reaches(to))?;
        expect_large_transfers(&ours[0], &theirs[0], LARGE)?;
        cut_on_the_underlay(mesh)?;
        expect_large_transfers(&ours[2], &theirs[1], LARGE)
    });
}

#[test]
fn containers_of_mesh_and_of_a_vxlan_bridge_reach_each_other() {
    meets(Encap::Vxlan, Underlay::V4, &[]);
}

#[test]
fn containers_of_mesh_and_of_a_vxlan_bridge_reach_each_other_over_ipv6() {
    meets(Encap::Vxlan, Underlay::V6, &[]);
}

#[test]
fn vxlan_bridge_with_its_own_vni_and_port_is_part_of_a_mesh_of_gre() {
    meets(Encap::Gre, Underlay::V4, &OWN);
}

#[test]
fn vxlan_bridge_with_its_own_vni_and_port_is_part_of_a_mesh_of_geneve_over_ipv6() {
    meets(Encap::Geneve, Underlay::V6, &OWN);
}

/// In a new mesh, so that nobody knows of anybody.
#[test]
fn who_is_behind_the_bridge_may_speak_first() {
    for underlay in Underlay::ALL {
        with_vxlan_bridge(Encap::Gre, underlay, &OWN, |_, ours, theirs| {
            for target in &ours[0].addresses {
                traffic::tcp_transfer(&theirs[0].netns, &ours[0].netns, *target, 1 << 20)?;
            }
            expect_all_reach(&ours[..1], &theirs[..1])
        });
    }
}

#[test]
fn who_has_mesh_may_speak_first() {
    for underlay in Underlay::ALL {
        with_vxlan_bridge(Encap::Gre, underlay, &OWN, |mesh, ours, theirs| {
            for target in &theirs[0].addresses {
                let before = mesh.hosts[0].drops("unresolved")?;
                traffic::tcp_transfer(&ours[0].netns, &theirs[0].netns, *target, 1 << 20)?;
                let after = mesh.hosts[0].drops("unresolved")?;
                ensure!(after == before + 1, "{target}: {} were lost first", after - before);
            }
            expect_all_reach(&ours[..1], &theirs[..1])
        });
    }
}

/// Addresses of mesh resolve to the MAC of the node that has them, and no others do.
#[test]
fn arp_and_neighbour_discovery_are_answered_for_whom_there_is() {
    with_vxlan_bridge(Encap::Vxlan, Underlay::V4, &[], |_, ours, theirs| {
        let netns = &theirs[0].netns;
        for (us, mac) in [(&ours[0], "02:6d:c0:00:02:0b"), (&ours[2], "02:6d:c0:00:02:0c")] {
            theirs[0].expect_first_word(us)?;
            for address in &us.addresses {
                let neighbour = netns.exec(&format!("ip neigh show to {address} dev eth0"))?;
                ensure!(neighbour.contains(mac), "{address} is not at {mac}: {neighbour}");
            }
        }
        for nobody in ["10.42.1.200", "fd42:0:0:1::200"] {
            ping::expect_no_ping(netns, nobody.parse()?)?;
            let neighbour = netns.exec(&format!("ip neigh show to {nobody} dev eth0"))?;
            ensure!(!neighbour.contains("lladdr"), "{nobody}: {neighbour}");
        }
        Ok(())
    });
}

/// As one that is started anew with its address.
#[test]
fn container_that_returns_with_another_mac_is_found() {
    with_vxlan_bridge(Encap::Vxlan, Underlay::V4, &[], |mesh, ours, theirs| {
        expect_all_reach(&ours[..1], &theirs[..1])?;
        let netns = &theirs[0].netns;
        netns.exec("ip link set eth0 address 02:00:00:00:00:77")?;
        // It says so itself: everything that it sends does.
        theirs[0].expect_first_word(&ours[0])?;
        expect_all_reach(&ours[..1], &theirs[..1])?;
        // The same, but silent: mesh asks again after a while.
        netns.exec("ip link set eth0 address 02:00:00:00:00:78")?;
        for target in &theirs[0].addresses {
            let what = format!("the new MAC of {target} to be learned");
            let limit = Duration::from_millis(200);
            wait::until(&what, Duration::from_secs(60), || {
                let report = ping::ping(&ours[0].netns, *target, 1, 56, limit);
                let received = report.map_err(|e| format!("{e:#}"))?.received();
                if received == 1 { Ok(()) } else { Err("no answer".into()) }
            })?;
        }
        ensure!(mesh.hosts[0].drops("no_room")? == 0, "{}", mesh.hosts[0].status()?["drops"]);
        Ok(())
    });
}

/// What is as large as the MTU arrives; what is larger is answered by mesh.
#[test]
fn packets_toward_a_vxlan_bridge_are_as_large_as_the_mtu_and_no_larger() {
    for (underlay, mtu) in [(Underlay::V4, 1450), (Underlay::V6, 1430)] {
        with_vxlan_bridge(Encap::Vxlan, underlay, &[], |mesh, ours, theirs| {
            ensure!(ours[0].mtu == mtu && theirs[0].mtu == mtu, "{ours:?} {theirs:?}");
            expect_all_reach(&ours[..1], &theirs[..1])?;
            mesh.container("h1c1")?.set_mtu(1500)?;
            for target in &theirs[0].addresses {
                let before = mesh.hosts[0].drops("too_big")?;
                let udp = UdpPair::new(&ours[0].netns, &theirs[0].netns, *target, Fragment::Never)?;
                ensure!(!udp.carries(mtu + 1, Duration::from_millis(200))?, "{target}: too big");
                ensure!(mesh.hosts[0].drops("too_big")? == before + 1, "{target}: not counted");
                ensure!(udp.path_mtu()? == mtu, "{target}: {}", udp.path_mtu()?);
            }
            Ok(())
        });
    }
}

#[test]
fn vxlan_bridge_that_is_no_node_is_not_heard() {
    for underlay in Underlay::ALL {
        with_vxlan_bridge(Encap::Vxlan, underlay, &[], |mesh, ours, theirs| {
            expect_all_reach(&ours[..1], &theirs[..1])?;
            let without = mesh.cluster.clone().without_node("h3");
            expect_stranger_is_not_heard(mesh, &without, &ours[0], &theirs[0])
        });
    }
}

/// Its VNI is part of what it is known by.
#[test]
fn vxlan_bridge_with_the_wrong_vni_is_not_heard() {
    with_vxlan_bridge(Encap::Vxlan, Underlay::V4, &["vni = 42"], |mesh, ours, theirs| {
        expect_all_reach(&ours[..1], &theirs[..1])?;
        let host = far_end(mesh)?;
        let port = "vxlan4789";
        host.netns.exec(&format!("ip link del {port}"))?;
        let typed = foreign::commands(host, &mesh.cluster, foreign::Kind::Kernel)?;
        for command in typed.iter().filter(|command| command.contains(port)) {
            host.netns.exec(&command.replace("id 42", "id 43"))?;
        }
        let before = mesh.hosts[0].drops("unknown_vni")?;
        theirs[0].expect_cut_off_from(&ours[0])?;
        let after = mesh.hosts[0].drops("unknown_vni")?;
        ensure!(after > before, "not counted: {}", mesh.hosts[0].status()?);
        Ok(())
    })
}

/// Behind the bridge somebody pretends to be of another host.
#[test]
fn address_of_another_host_is_not_taken_from_behind_the_bridge() {
    with_vxlan_bridge(Encap::Vxlan, Underlay::V4, &[], |mesh, ours, theirs| {
        expect_all_reach(&ours[..1], &theirs[..1])?;
        let stolen = ours.get(2).context("a container of h2")?.address(false)?;
        theirs[1].netns.ip_batch(&format!("addr add {stolen}/32 dev eth0\n"))?;
        let before = mesh.hosts[0].drops("source_not_peers")?;
        let target = ours[0].address(false)?;
        let arping = theirs[1].netns.exec(&format!("ping -c 2 -W 1 -I {stolen} {target}"));
        ensure!(arping.is_err(), "answered");
        ensure!(mesh.hosts[0].drops("source_not_peers")? > before, "not counted");
        ours[0].expect_reaches(&ours[2])
    });
}
