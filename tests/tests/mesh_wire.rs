//! What goes over the underlay, judged by a dissector that is not ours.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Capture, Encap, Options, Topology, capture::Pcap, party::pairs, ping, scenario::bare,
    socket::Fragment, traffic::UdpPair,
};

/// Traffic of all kinds in two networks between two hosts, captured at the switch.
fn traffic_of_all_kinds(mesh: &mut Topology) -> Result<Pcap> {
    mesh.cluster = mesh.cluster.clone().with_network("blue", 7, "10.43.0.0/16");
    let cluster = mesh.cluster.clone();
    for host in &mut mesh.hosts {
        host.up(&cluster)?;
        host.attach(0, &[])?;
        host.attach(1, &["--network", "blue"])?;
    }
    for container in mesh.containers() {
        container.disable_transmit_offloads()?;
    }
    let capture = Capture::start(&mesh.switch, "h1", mesh.dir.join("underlay.pcap"))?;
    for network in ["c1", "c2"] {
        let mut parties = mesh.parties()?;
        parties.retain(|party| party.name.ends_with(network));
        for (from, to) in pairs(&parties) {
            from.expect_reaches(to)?;
            for target in &to.addresses {
                let udp = UdpPair::new(&from.netns, &to.netns, *target, Fragment::Allowed)?;
                ensure!(udp.carries(5_000, Duration::from_secs(1))?, "fragments to {target}");
                ping::ping(&from.netns, *target, 2, 4_000, Duration::from_secs(1))?;
            }
        }
    }
    capture.stop()
}

fn dissects_cleanly(encap: Encap, inside: &str) {
    bare(Options { containers: 2, encap, ..Options::default() }, |mesh| {
        let pcap = traffic_of_all_kinds(mesh)?;
        let problems = pcap.problems()?;
        ensure!(
            problems.is_empty(),
            "{}: {:#?}",
            problems.len(),
            &problems[..problems.len().min(20)]
        );
        for expected in [
            "gre && tcp && !ipv6",
            "gre && tcp && ipv6",
            "gre && udp",
            "gre && icmp",
            "gre && icmpv6.type == 128",
            "gre.key == 7 && tcp",
            inside,
        ] {
            ensure!(!pcap.matching(expected)?.is_empty(), "no packet is {expected}");
        }
        for forbidden in [
            // Nothing of the overlay in the clear; no key where there is no VNI.
            "(ip || ipv6) && !gre",
            "gre.key && !(gre.key == 7)",
            "ip.addr == 10.43.0.0/16 && !gre.key",
            // Of the outer header, which is the first of its name in a frame.
            "gre && !(ip.ttl#1 == 64)",
            "gre && !(ip.flags.df#1 == 1)",
            "gre && ip.len#1 > 1500",
        ] {
            let found = pcap.matching(forbidden)?;
            ensure!(found.is_empty(), "{forbidden}: {:#?}", found.first().context("none")?);
        }
        Ok(())
    });
}

#[test]
fn gre_on_the_underlay_dissects_cleanly() {
    dissects_cleanly(Encap::Gre, "gre.proto == 0x0800");
}

#[test]
fn gretap_on_the_underlay_dissects_cleanly() {
    dissects_cleanly(Encap::Gretap, "gre.proto == 0x6558");
}
