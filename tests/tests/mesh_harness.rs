//! The instruments themselves, on the bare underlay: a harness that can not see a fault proves
//! nothing when it sees none.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Result, ensure};
use etherparse::PacketBuilder;
use mesh_tests::{
    Capture, Flow, Netns, Options, Snapshot, Topology, cluster, packet::PacketSocket, ping,
    removal, scenario::bare, socket::Fragment, traffic, wait,
};

const BARE: Options = Options { containers: 0, ipv6: false, ..Options::DEFAULT };

fn pair(topology: &Topology) -> (&Netns, &Netns, IpAddr) {
    let target = cluster::underlay(2).parse().expect("an address");
    (&topology.hosts[0].netns, &topology.hosts[1].netns, target)
}

#[test]
fn two_hosts_on_the_underlay_reach_each_other() {
    bare(BARE, |topology| {
        let (from, to, target) = pair(topology);
        let report = ping::ping(from, target, 20, 56, wait::arrival())?;
        ensure!(report.received() == 20 && report.percentile(0.5) <= report.percentile(1.0));
        traffic::tcp_transfer(from, to, target, 3 << 20)?;
        let rate = traffic::tcp_throughput(from, to, target, Duration::from_millis(50))?;
        ensure!(rate > 1e6, "{rate} bit/s");
        let port = SocketAddr::new(target, 9);
        ensure!(!traffic::tcp_connects(from, port, Duration::from_millis(200))?);
        ping::expect_no_ping(from, "192.0.2.99".parse()?)
    });
}

#[test]
fn packet_of_exactly_the_mtu_arrives_and_one_byte_more_is_refused() {
    bare(Options { mtu: 1400, ..BARE }, |topology| {
        let (from, to, target) = pair(topology);
        traffic::expect_udp(from, to, target, 1400)?;
        let udp = traffic::UdpPair::new(from, to, target, Fragment::Never)?;
        ensure!(udp.carries(1401, Duration::from_millis(100)).is_err());
        ensure!(udp.path_mtu()? == 1400);
        let udp = traffic::UdpPair::new(from, to, target, Fragment::Allowed)?;
        ensure!(udp.carries(1401, wait::arrival())?);
        Ok(())
    });
}

#[test]
fn flow_over_a_cut_cable_counts_what_is_lost() {
    bare(BARE, |topology| {
        let (from, to, target) = pair(topology);
        let flow = Flow::start(from, to, target)?;
        flow.wait_for(50)?;
        flow.stop()?.expect_no_loss()?;

        let flow = Flow::start(from, to, target)?;
        topology.switch.ip_batch("link set h2 down\n")?;
        std::thread::sleep(Duration::from_millis(50));
        topology.switch.ip_batch("link set h2 up\n")?;
        flow.wait_for(50)?;
        let report = flow.stop()?;
        ensure!((10..500).contains(&report.lost.len()), "{report}");
        ensure!(report.expect_no_loss().is_err());
        Ok(())
    });
}

/// A UDP frame on the underlay; `spoil` changes one byte of it.
fn frame(spoil: Option<usize>) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([192, 0, 2, 11], [192, 0, 2, 12], 9)
        .udp(1000, 2000)
        .write(&mut frame, b"some payload")
        .expect("write into memory");
    if let Some(at) = spoil {
        frame[at] ^= 0x40;
    }
    frame
}

#[test]
fn spoiled_packets_in_a_capture_are_found() {
    bare(BARE, |topology| {
        let (from, ..) = pair(topology);
        let capture = |topology: &Topology, name| {
            Capture::start(&topology.switch, "h1", topology.dir.join(name))
        };
        let (good, bad) = (frame(None), [24, 40, 44].map(|at| frame(Some(at))));
        let socket = PacketSocket::open(from, "eth0")?;

        let clean = capture(topology, "clean.pcap")?;
        socket.send(&good)?;
        let clean = clean.stop()?;
        ensure!(clean.matching("udp")?.len() == 1);
        ensure!(clean.problems()?.is_empty(), "{:?}", clean.problems()?);

        let spoiled = capture(topology, "spoiled.pcap")?;
        bad.iter().try_for_each(|frame| socket.send(frame))?;
        socket.send(&good[..30])?;
        let spoiled = spoiled.stop()?;
        // IP checksum, UDP checksum twice, cut short.
        ensure!(spoiled.problems()?.len() == 4, "{:#?}", spoiled.problems()?);
        ensure!(spoiled.decode("udp")?.contains("Dst Port: 2000"));
        Ok(())
    });
}

#[test]
fn changes_to_a_host_show_in_its_snapshot() {
    bare(BARE, |topology| {
        let host = &topology.hosts[0];
        let before = Snapshot::of(host)?;
        before.expect_same(&Snapshot::of(host)?)?;
        for (change, undo, fact) in [
            ("ip link add d0 type bridge", "ip link del d0", "link d0"),
            ("ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500", "link eth0 mtu 1400"),
            ("ip route add 10.9.0.0/16 dev eth0", "ip route del 10.9.0.0/16", "route4 "),
            ("ip rule add pref 9 table 9", "ip rule del pref 9", "rule4 9"),
            ("tc qdisc add dev eth0 clsact", "tc qdisc del dev eth0 clsact", "qdisc eth0 clsact"),
            ("sysctl -qw net.ipv4.ip_forward=1", "sysctl -qw net.ipv4.ip_forward=0", "sysctl "),
        ] {
            host.netns.exec(change)?;
            let difference = before.difference(&Snapshot::of(host)?);
            ensure!(difference.new.iter().any(|f| f.starts_with(fact)), "{change}: {difference}");
            host.netns.exec(undo)?;
            before.expect_same(&Snapshot::of(host)?)?;
        }
        Ok(())
    });
}

#[test]
fn topology_that_is_dropped_leaves_nothing() {
    let mut left = None;
    bare(BARE, |topology| {
        left = Some((topology.dir.clone(), topology.switch.path()));
        ensure!(topology.dir.exists() && topology.switch.path().exists());
        Ok(())
    });
    if let Some((dir, netns)) = left {
        assert!(!dir.exists() && !netns.exists());
    }
}

#[test]
fn living_topology_is_not_swept() {
    bare(BARE, |topology| {
        ensure!(!removal::sweep()?.contains(&topology.name));
        ensure!(topology.dir.exists());
        Ok(())
    });
}

#[test]
fn kept_topology_stays_until_it_is_asked_to_go() -> Result<()> {
    let mut kept = None;
    bare(BARE, |topology| {
        // Not the one that `bare` owns.
        let other = Topology::new(topology.options)?;
        kept = Some((other.name.clone(), other.dir.clone()));
        other.keep()
    });
    let Some((name, dir)) = kept else { return Ok(()) };
    assert!(!removal::sweep()?.contains(&name) && dir.exists());
    removal::remove(&name)?;
    assert!(!Path::new(&dir).exists());
    Ok(())
}
