//! Who must not reach whom, and who must not be believed.

use std::{
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use etherparse::{IpHeaders, IpNumber, Ipv4Header, PacketBuilder, ether_type};
use mesh_tests::{
    Encap, Options, Party, Topology, packet::PacketSocket, party::pairs, scenario, scenario::bare,
    socket::Fragment, traffic::UdpPair,
};

use frames::{MARK, arrives, udp, vxlan};

mod frames;

const SOON: Duration = Duration::from_secs(1);

/// Two hosts with a container each in the networks red and blue, which have the same addresses.
fn red_and_blue(body: impl FnOnce(&mut Topology) -> Result<()>) {
    bare(Options { containers: 2, ipv6: false, ..Options::default() }, |mesh| {
        mesh.cluster = mesh.cluster.clone().with_network("red", 7, "10.43.0.0/16").with_network(
            "blue",
            0xff_ffff,
            "10.43.0.0/16",
        );
        let cluster = mesh.cluster.clone();
        for (host, ip) in mesh.hosts.iter_mut().zip(["10.43.0.77", "10.43.128.77"]) {
            host.up(&cluster)?;
            host.attach(0, &["--network", "red", "--ip", ip])?;
            host.attach(1, &["--network", "blue", "--ip", ip])?;
        }
        body(mesh)
    });
}

#[test]
fn same_address_in_two_networks_is_two_containers() {
    red_and_blue(|mesh| {
        let [red1, red2] = [mesh.party("h1c1")?, mesh.party("h2c1")?];
        let [blue1, blue2] = [mesh.party("h1c2")?, mesh.party("h2c2")?];
        ensure!(red1.addresses == blue1.addresses && red2.addresses == blue2.addresses);
        for (from, to, other) in [(&red1, &red2, &blue2), (&blue2, &blue1, &red1)] {
            from.expect_reaches(to)?;
            let target = to.address(false)?;
            let udp = UdpPair::new(&from.netns, &other.netns, target, Fragment::Never)?;
            ensure!(!udp.carries(100, SOON / 5)?, "{} is in another network", other.name);
        }
        Ok(())
    });
}

#[test]
fn containers_of_different_networks_never_reach_each_other() {
    bare(Options { containers: 2, ..Options::default() }, |mesh| {
        mesh.cluster = mesh.cluster.clone().with_network("blue", 7, "10.43.0.0/16");
        let cluster = mesh.cluster.clone();
        for host in &mut mesh.hosts {
            host.up(&cluster)?;
            host.attach(0, &[])?;
            host.attach(1, &["--network", "blue"])?;
        }
        let blue = |party: &Party| party.name.ends_with("c2");
        let mut parties = mesh.parties()?;
        // The hosts are in the cluster's own network.
        parties.push(mesh.hosts[0].party()?);
        for (from, to) in pairs(&parties) {
            if blue(from) == blue(to) {
                from.expect_reaches(to)?;
            } else {
                from.expect_cut_off_from(to)?;
            }
        }
        Ok(())
    });
}

/// Some switches and adapters tag all that is in no VLAN with VLAN 0, for its priority.
#[test]
fn packet_with_a_priority_tag_arrives_and_one_of_a_vlan_does_not() {
    scenario(Options::default(), |mesh| {
        let [from, to] = [mesh.party("h1c1")?, mesh.party("h2c1")?];
        from.expect_reaches(&to)?;
        let [ours, theirs] = [0, 1].map(|i| PacketSocket::open(&mesh.hosts[i].netns, "eth0"));
        let (ours, theirs) = (ours?, theirs?);
        let receiver = PacketSocket::open(&to.netns, "eth0")?;
        let packet = udp(gateway_mac(&from)?, from.address(false)?, to.address(false)?)?;
        PacketSocket::open(&from.netns, "eth0")?.send(&packet)?;
        let plain = theirs.find(SOON, |frame| frame.ends_with(MARK))?;
        let plain = plain.context("nothing was encapsulated")?;
        ensure!(arrives(&receiver, SOON)?, "without a tag it must arrive");
        for (priority_and_vlan, is_taken) in [([0xa0, 0], true), ([0, 0], true), ([0, 5], false)] {
            let tag = [[0x81, 0], priority_and_vlan].concat();
            ours.send(&[&plain[..12], &tag, &plain[12..]].concat())?;
            let arrives = arrives(&receiver, if is_taken { SOON } else { SOON / 5 })?;
            ensure!(arrives == is_taken, "with tag {tag:02x?}: {arrives}");
        }
        Ok(())
    });
}

#[test]
fn spoofed_source_is_dropped_and_counted() {
    scenario(Options { containers: 2, ..Options::default() }, |mesh| {
        let [from, other, to] = [mesh.party("h1c1")?, mesh.party("h1c2")?, mesh.party("h2c1")?];
        let sender = PacketSocket::open(&from.netns, "eth0")?;
        let receiver = PacketSocket::open(&to.netns, "eth0")?;
        from.expect_reaches(&to)?;
        let gateway_mac = gateway_mac(&from)?;
        for ipv6 in [false, true] {
            let (own, target) = (from.address(ipv6)?, to.address(ipv6)?);
            sender.send(&udp(gateway_mac, own, target)?)?;
            ensure!(arrives(&receiver, SOON)?, "an honest packet must arrive");

            let outside = if ipv6 { "2001:db8::1" } else { "198.51.100.1" }.parse()?;
            let before = mesh.hosts[0].drops("spoofed_source")?;
            for source in [other.address(ipv6)?, target, outside] {
                sender.send(&udp(gateway_mac, source, target)?)?;
            }
            ensure!(!arrives(&receiver, SOON / 5)?, "a spoofed packet arrived");
            let after = mesh.hosts[0].drops("spoofed_source")?;
            ensure!(after == before + 3, "spoofed_source went from {before} to {after}");
        }
        Ok(())
    });
}

/// What the container has for its gateway, after it has talked to anybody.
fn gateway_mac(party: &Party) -> Result<[u8; 6]> {
    let text = party.netns.exec("ip -j neigh show dev eth0")?;
    let neighbours: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let text = neighbours.iter().find_map(|n| n["lladdr"].as_str()).context("no neighbour yet")?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes = bytes.collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().ok().context("a MAC has 6 bytes")
}

/// `inner`: an IP packet. `key`: the GRE key.
fn gre(
    mesh: &Topology,
    from: usize,
    source: [u8; 4],
    key: Option<u32>,
    inner: &[u8],
) -> Result<()> {
    let dst_mac = mesh.hosts[0].netns.mac("eth0")?;
    let src_mac = mesh.hosts[from].netns.mac("eth0")?;
    let flags: u16 = if key.is_some() { 0x2000 } else { 0 };
    let mut payload = [flags.to_be_bytes(), ether_type::IPV4.0.to_be_bytes()].concat();
    payload.extend(key.map(u32::to_be_bytes).into_iter().flatten());
    payload.extend(inner);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src_mac, dst_mac).ipv4(source, [192, 0, 2, 11], 64).write(
        &mut frame,
        IpNumber::GRE,
        &payload,
    )?;
    PacketSocket::open(&mesh.hosts[from].netns, "eth0")?.send(&frame)
}

#[test]
fn only_peers_are_believed_and_only_for_their_own_subnets() {
    bare(Options { hosts: 3, ipv6: false, ..Options::default() }, |mesh| {
        // h3 is on the underlay, and not in the mesh.
        mesh.cluster = mesh.cluster.clone().without_node("h3");
        mesh.up()?;
        let [to, peer] = [mesh.party("h1c1")?, mesh.party("h2c1")?];
        let (target, own) = (to.address(false)?, peer.address(false)?);
        let receiver = PacketSocket::open(&to.netns, "eth0")?;
        let ip = |source: IpAddr| udp([2; 6], source, target).map(|frame| frame[14..].to_vec());
        let (peer_ip, stranger_ip) = ([192, 0, 2, 12], [192, 0, 2, 13]);

        gre(mesh, 1, peer_ip, None, &ip(own)?)?;
        ensure!(arrives(&receiver, SOON)?, "what the peer itself sends must arrive");

        let foreign = "10.42.1.200".parse()?;
        let outside = "198.51.100.1".parse()?;
        for (from, source, key, inner, reason) in [
            (2, stranger_ip, None, own, "unknown_peer"),
            (2, stranger_ip, None, foreign, "unknown_peer"),
            (1, peer_ip, Some(99), own, "unknown_vni"),
            (1, peer_ip, None, foreign, "source_not_peers"),
            (1, peer_ip, None, outside, "source_not_peers"),
        ] {
            let before = mesh.hosts[0].drops(reason)?;
            gre(mesh, from, source, key, &ip(inner)?)?;
            ensure!(!arrives(&receiver, SOON / 5)?, "{inner} by {source:?} arrived: {reason}");
            let after = mesh.hosts[0].drops(reason)?;
            ensure!(after == before + 1, "{reason} went from {before} to {after}");
        }
        Ok(())
    });
}

#[test]
fn malformed_packets_are_dropped_and_the_mesh_goes_on() {
    scenario(Options { ipv6: false, encap: Encap::Gre, ..Options::default() }, |mesh| {
        let [to, from] = [mesh.party("h1c1")?, mesh.party("h2c1")?];
        let whole = udp([2; 6], from.address(false)?, to.address(false)?)?;
        for cut in 0..whole.len() - 14 - MARK.len() {
            gre(mesh, 1, [192, 0, 2, 12], None, &whole[14..14 + cut])?;
        }
        let container = PacketSocket::open(&from.netns, "eth0")?;
        for cut in 14..whole.len() {
            container.send(&whole[..cut])?;
        }
        from.expect_reaches(&to)?;
        ensure!(mesh.hosts[0].drops("truncated")? > 0 && mesh.hosts[1].drops("truncated")? > 0);
        Ok(())
    });
}

/// In Geneve (RFC 8926, 3.4).
fn geneve(vni: u32, frame: &[u8]) -> Vec<u8> {
    [&[0, 0, 0x65, 0x58][..], &(vni << 8).to_be_bytes(), frame].concat()
}

/// The kernel's own socket takes every VNI from everybody, wherever no program does before.
#[test]
fn vxlan_that_passes_the_underlays_program_gets_nowhere() {
    passes_and_gets_nowhere(Encap::Vxlan, "mesh-gro-vxlan", 4789, vxlan);
}

#[test]
fn geneve_that_passes_the_underlays_program_gets_nowhere() {
    passes_and_gets_nowhere(Encap::Geneve, "mesh-gro-geneve", 6081, geneve);
}

/// `listener`: the interface that keeps GRO alive, which is there if the kernel has the tunnel.
fn passes_and_gets_nowhere(
    encap: Encap,
    listener: &str,
    port: u16,
    around: fn(u32, &[u8]) -> Vec<u8>,
) {
    bare(Options { hosts: 3, encap, ..Options::default() }, |mesh| {
        // h3 is on the underlay, and not in the mesh.
        mesh.cluster = mesh.cluster.clone().without_node("h3");
        mesh.up()?;
        let [host, peer] = [mesh.hosts[0].party()?, mesh.hosts[1].party()?];
        let Ok(mac) = mesh.hosts[0].netns.mac(listener) else {
            // Not to be counted as skipped: there is nothing to get in by.
            eprintln!("not here: this kernel has no {encap:?} of its own");
            return Ok(());
        };
        let container = mesh.party("h1c1")?;
        let socket = container.netns.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        let receiver = host.netns.run(|| Ok(UdpSocket::bind("[::]:2000")?))?;
        receiver.set_read_timeout(Some(SOON / 5))?;
        for (ipv6, vni) in [(false, 0), (false, 77), (true, 0), (true, 77)] {
            let payload = around(vni, &udp(mac, peer.address(ipv6)?, host.address(ipv6)?)?);
            let before = mesh.hosts[0].drops("unknown_port")?;
            with_options(mesh, 2, port, &payload)?;
            // To the host itself, at an address that is not the underlay's.
            socket.send_to(&payload, (host.address(false)?, port))?;
            ensure!(receiver.recv(&mut [0; 64]).is_err(), "VNI {vni}: received, judged by nobody");
            let dropped = mesh.hosts[0].drops("unknown_port")? - before;
            ensure!(dropped == 2, "VNI {vni}: {dropped} of 2 are counted");
        }
        Ok(())
    });
}

/// A datagram to h1, behind four IP options that say nothing.
fn with_options(mesh: &Topology, from: usize, port: u16, payload: &[u8]) -> Result<()> {
    let mut frame = Vec::new();
    let options = [1, 1, 1, 1].into();
    let netns = &mesh.hosts[from].netns;
    PacketBuilder::ethernet2(netns.mac("eth0")?, mesh.hosts[0].netns.mac("eth0")?)
        .ip(IpHeaders::Ipv4(
            Ipv4Header {
                time_to_live: 64,
                source: [192, 0, 2, 13],
                destination: [192, 0, 2, 11],
                options,
                ..Ipv4Header::default()
            },
            Default::default(),
        ))
        .udp(port, port)
        .write(&mut frame, payload)?;
    PacketSocket::open(netns, "eth0")?.send(&frame)
}
