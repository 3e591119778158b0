//! Files that contradict each other.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::{Capture, Encap, Options, ping, scenario::bare};

/// Each node believes that the next one has 10.42.9.0/24: what goes there must not go round.
fn ends(encap: Encap) {
    bare(Options { hosts: 3, encap, ipv6: false, ..Options::DEFAULT }, |mesh| {
        for at in 0..3 {
            let mut cluster = mesh.cluster.clone();
            cluster.nodes[(at + 1) % 3].subnet.push("10.42.9.0/24".into());
            mesh.hosts[at].up(&cluster)?;
            mesh.hosts[at].attach(0, &[])?;
        }
        let from = mesh.party("h1c1")?;
        from.expect_reaches(&mesh.party("h3c1")?)?;
        let drops = |at: usize| -> Result<u64> {
            Ok(mesh.hosts[at].drops("no_endpoint")? + mesh.hosts[at].drops("no_route")?)
        };
        let before = [drops(0)?, drops(1)?, drops(2)?];
        let capture = Capture::start(&mesh.switch, "h2", mesh.dir.join("loop.pcap"))?;
        let elsewhere = Capture::start(&mesh.switch, "h3", mesh.dir.join("loop3.pcap"))?;
        let target = "10.42.9.5".parse()?;
        let report = ping::ping(&from.netns, target, 3, 56, Duration::from_millis(200))?;
        ensure!(report.received() == 0 && report.sent == 3, "{report:?}");
        let after = [drops(0)?, drops(1)?, drops(2)?];
        let filter = "ip.dst == 10.42.9.5";
        let (seen, seen3) =
            (capture.stop()?.matching(filter)?, elsewhere.stop()?.matching(filter)?);
        ensure!(seen.len() == 3, "each went to h2 once, not {}: {seen:#?}", seen.len());
        ensure!(seen3.is_empty(), "h2 sent it on: {seen3:#?}");
        ensure!(
            after == [before[0], before[1] + 3, before[2]],
            "drops went from {before:?} to {after:?}"
        );
        Ok(())
    });
}

#[test]
fn packet_for_a_subnet_that_each_node_says_another_has_is_dropped_and_counted() {
    Encap::ALL.into_iter().for_each(ends);
}
