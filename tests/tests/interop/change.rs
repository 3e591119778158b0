//! Tunnels of several kinds side by side, and one that becomes another while packets flow.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use mesh_tests::{
    Capture, Encap, Netns, Options, Topology, Underlay, flow, party::pairs, ping, scenario::bare,
    traffic, wait,
};

#[test]
fn pair_with_a_link_of_its_own_speaks_that_and_no_other_does() {
    bare(Options { hosts: 3, ..Options::DEFAULT }, |mesh| {
        mesh.cluster = mesh.cluster.clone().with_link("h1", "h2", Encap::Vxlan);
        mesh.up()?;
        let capture = Capture::start(&mesh.switch, "h1", mesh.dir.join("one.pcap"))?;
        let third = Capture::start(&mesh.switch, "h3", mesh.dir.join("three.pcap"))?;
        let parties = mesh.parties()?;
        pairs(&parties).try_for_each(|(from, to)| from.expect_reaches(to))?;
        let (one, three) = (capture.stop()?, third.stop()?);
        let between = "ip.addr == 192.0.2.11 && ip.addr == 192.0.2.12";
        for (pcap, filter, is_there) in [
            (&one, format!("vxlan && tcp && {between}"), true),
            (&one, format!("gre && {between}"), false),
            (&one, "gre && tcp && ip.addr == 192.0.2.13".to_owned(), true),
            (&three, "gre && tcp".to_owned(), true),
            (&three, "vxlan".to_owned(), false),
        ] {
            let found = pcap.matching(&filter)?;
            ensure!(is_there != found.is_empty(), "{filter}: {:?}", found.first());
        }
        Ok(())
    });
}

/// Gives one agent after the other the new file, and waits for each.
fn change_one_by_one(mesh: &mut Topology, encap: Encap) -> Result<()> {
    let cluster = mesh.cluster.clone().with_encap(encap);
    for host in &mut mesh.hosts {
        let before = host.generation()?;
        host.write_config(&cluster.to_string())?;
        host.wait_newer(&cluster, before)?;
    }
    mesh.cluster = cluster;
    Ok(())
}

/// Pings without a pause, in the background.
struct Pings {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<(usize, usize)>>,
}

impl Pings {
    fn start(from: &Netns, target: IpAddr) -> Self {
        let (from, stop) = (from.clone(), Arc::new(AtomicBool::new(false)));
        let ended = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            let (mut sent, mut received) = (0, 0);
            while !ended.load(Ordering::Relaxed) {
                let report = ping::ping(&from, target, 50, 56, wait::arrival())?;
                sent += report.sent;
                received += report.received();
            }
            Ok((sent, received))
        });
        Self { stop, sender }
    }

    /// How many were sent, and how many answered.
    fn stop(self) -> Result<(usize, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().map_err(|_| anyhow!("the pings panicked"))?
    }
}

/// With an MTU for the largest of them, each change loses nothing: datagrams a thousand a second both
/// ways, pings, and a connection.
fn changes_lose_nothing(underlay: Underlay) {
    bare(Options { underlay, ..Options::DEFAULT }, |mesh| {
        mesh.cluster.mtu = Some(1500 - Encap::Vxlan.overhead(0) - underlay.more());
        mesh.up()?;
        let (a, b) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        for encap in [Encap::Vxlan, Encap::Geneve, Encap::Gretap, Encap::Gre] {
            let flows = flow::start_all(&[(&a, &b), (&b, &a)])?;
            let (from, to, target) = (a.netns.clone(), b.netns.clone(), b.address(false)?);
            let time = wait::patient(Duration::from_secs(8));
            let stream = thread::spawn(move || traffic::tcp_throughput(&from, &to, target, time));
            let pings = Pings::start(&a.netns, b.address(true)?);
            change_one_by_one(mesh, encap)?;
            flows.iter().try_for_each(|flow| flow.wait_for(50))?;
            ensure!(!stream.is_finished(), "the stream ended before the change");
            let rate = stream.join().map_err(|_| anyhow!("the stream panicked"))??;
            ensure!(rate > 1e6, "{}: {rate} bit/s", encap.name());
            let (sent, received) = pings.stop()?;
            ensure!(sent > 0 && received == sent, "{}: {received} of {sent}", encap.name());
            for flow in flows {
                let report = flow.stop()?;
                report.expect_no_loss().with_context(|| format!("to {}", encap.name()))?;
            }
        }
        Ok(())
    });
}

#[test]
fn encapsulation_that_changes_on_one_host_after_the_other_loses_nothing() {
    changes_lose_nothing(Underlay::V4);
}

#[test]
fn encapsulation_that_changes_over_ipv6_loses_nothing() {
    changes_lose_nothing(Underlay::V6);
}
