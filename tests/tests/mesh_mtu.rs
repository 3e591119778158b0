//! The edge of the MTU.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::{
    Encap, Options, Party, Topology, ping, scenario, scenario::bare, socket::Fragment, traffic,
    traffic::UdpPair,
};

const SOON: Duration = Duration::from_secs(1);
const LATER_THAN_SOON: Duration = Duration::from_millis(200);

/// Starts the mesh with the largest container MTU that fits, and raises it by hand in h1c1, so that
/// its stack lets through what is too big.
fn at_the_limit(
    encap: Encap,
    vni: u32,
    body: impl FnOnce(&Topology, &Party, &Party) -> Result<()>,
) {
    bare(Options { encap, ..Options::default() }, |mesh| {
        let mtu = 1500 - encap.overhead(vni);
        mesh.cluster.mtu = Some(mtu);
        mesh.up()?;
        let (from, to) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        ensure!(from.mtu == mtu, "attach gave the MTU {} instead of {mtu}", from.mtu);
        mesh.container("h1c1")?.set_mtu(mtu + 500)?;
        body(mesh, &from, &to)
    });
}

fn edge(encap: Encap) {
    at_the_limit(encap, 0, |mesh, from, to| {
        for target in &to.addresses {
            traffic::expect_udp(&from.netns, &to.netns, *target, from.mtu)?;
            let before = mesh.hosts[0].drops("too_big")?;
            let udp = UdpPair::new(&from.netns, &to.netns, *target, Fragment::Never)?;
            ensure!(udp.path_mtu()? > from.mtu, "the stack must not know the limit yet");
            ensure!(!udp.carries(from.mtu + 1, LATER_THAN_SOON)?, "{target}: too big, but arrived");
            ensure!(mesh.hosts[0].drops("too_big")? == before + 1, "{target}: not counted");
            let learnt = udp.path_mtu()?;
            ensure!(learnt == from.mtu, "{target}: ICMP taught an MTU of {learnt}");
            traffic::expect_udp(&from.netns, &to.netns, *target, from.mtu)?;
        }
        Ok(())
    });
}

#[test]
fn gre_packet_one_byte_over_the_limit_is_answered_with_the_mtu() {
    edge(Encap::Gre);
}

#[test]
fn gretap_packet_one_byte_over_the_limit_is_answered_with_the_mtu() {
    edge(Encap::Gretap);
}

#[test]
fn keyed_network_fits_into_the_underlay() {
    bare(Options { ipv6: false, ..Options::default() }, |mesh| {
        mesh.cluster = mesh.cluster.clone().with_network("blue", 7, "10.43.0.0/16");
        let cluster = mesh.cluster.clone();
        for host in &mut mesh.hosts {
            host.up(&cluster)?;
            host.attach(0, &["--network", "blue"])?;
        }
        let (from, to) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        ensure!(from.mtu <= 1500 - Encap::Gre.overhead(7), "MTU {}", from.mtu);
        from.expect_reaches(&to)
    });
}

#[test]
fn tcp_with_too_large_segments_learns_the_path_mtu() {
    at_the_limit(Encap::Gre, 0, |mesh, from, to| {
        mesh.container("h2c1")?.set_mtu(to.mtu + 500)?;
        for target in &to.addresses {
            traffic::tcp_transfer(&from.netns, &to.netns, *target, 1 << 20)?;
            let udp = UdpPair::new(&from.netns, &to.netns, *target, Fragment::Never)?;
            ensure!(udp.path_mtu()? == from.mtu, "{target}: the segments were not too large");
        }
        Ok(())
    });
}

#[test]
fn fragments_of_a_large_datagram_arrive_whole() {
    scenario(Options { containers: 2, ..Options::default() }, |mesh| {
        let from = mesh.party("h1c1")?;
        for to in ["h1c2", "h2c1"] {
            let to = mesh.party(to)?;
            for target in &to.addresses {
                let udp = UdpPair::new(&from.netns, &to.netns, *target, Fragment::Allowed)?;
                ensure!(udp.carries(20_000, SOON)?, "20 kB to {target} did not arrive");
                let report = ping::ping(&from.netns, *target, 2, 8_000, SOON)?;
                ensure!(report.received() == 2, "8 kB pings to {target} were not answered");
            }
        }
        Ok(())
    });
}

fn underlay_mtu(mtu: u32) {
    scenario(Options { mtu, ..Options::default() }, |mesh| {
        let (from, to) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        ensure!(from.mtu <= mtu - Encap::Gre.overhead(0), "MTU {} over {mtu}", from.mtu);
        ensure!(from.netns.mtu("eth0")? == from.mtu);
        from.expect_reaches(&to)
    });
}

#[test]
fn narrow_underlay_narrows_the_containers() {
    underlay_mtu(1400);
}

#[test]
fn jumbo_underlay_carries_jumbo_packets() {
    underlay_mtu(9000);
}
