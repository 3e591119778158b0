//! Who must not reach whom, and who must not be believed.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use etherparse::{IpHeaders, IpNumber, Ipv4Header, PacketBuilder, ether_type};
use mesh_tests::{
    Encap, Netns, Options, Party, Topology, Underlay,
    packet::PacketSocket,
    party::pairs,
    scenario,
    scenario::bare,
    socket::Fragment,
    traffic::{self, UdpPair},
};

const SOON: Duration = Duration::from_secs(1);
const MARK: &[u8] = b"mesh test payload";

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

fn udp(dst_mac: [u8; 6], src: IpAddr, dst: IpAddr) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], dst_mac);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let builder = builder.ipv4(src.octets(), dst.octets(), 9).udp(1000, 2000);
            builder.write(&mut frame, MARK)?;
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let builder = builder.ipv6(src.octets(), dst.octets(), 9).udp(1000, 2000);
            builder.write(&mut frame, MARK)?;
        }
        _ => anyhow::bail!("{src} and {dst} are of different families"),
    }
    Ok(frame)
}

/// Whether a UDP packet with the mark is seen within `limit`. An ICMP error that quotes it does not
/// count.
fn arrives(socket: &PacketSocket, limit: Duration) -> Result<bool> {
    let protocol = |frame: &[u8]| frame.get(if frame[12] == 0x08 { 23 } else { 20 }).copied();
    let ours = |frame: &[u8]| frame.ends_with(MARK) && protocol(frame) == Some(IpNumber::UDP.0);
    Ok(socket.find(limit, ours)?.is_some())
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

/// A frame in VXLAN, as a UDP datagram's payload (RFC 7348, 5).
fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), frame].concat()
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

/// Someone behind h1's NAT, as Docker's containers are: the second container of h1, not attached.
fn masqueraded(mesh: &Topology) -> Result<Netns> {
    let host = &mesh.hosts[0].netns;
    let guest = &mesh.hosts[0].containers[1].netns;
    for sysctl in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        host.exec(&format!("sysctl -qw {sysctl}=1"))?;
    }
    host.ip_batch(&format!(
        "link add guest type veth peer name eth1 netns {}\n\
         addr add 172.18.0.1/24 dev guest\naddr add fd18::1/64 dev guest nodad\nlink set guest up\n",
        guest.name()
    ))?;
    guest.ip_batch(
        "addr add 172.18.0.2/24 dev eth1\naddr add fd18::2/64 dev eth1 nodad\nlink set eth1 up\n\
         route add default via 172.18.0.1\nroute add default via fd18::1\n",
    )?;
    host.exec("nft add table inet foreign")?;
    host.exec("nft add chain inet foreign post { type nat hook postrouting priority 100 ; }")?;
    for source in ["ip saddr 172.18.0.0/24", "ip6 saddr fd18::/64"] {
        host.exec(&format!("nft add rule inet foreign post {source} oifname != guest masquerade"))?;
    }
    Ok(guest.clone())
}

/// The mesh without those who are masqueraded.
fn up_with_first_containers(mesh: &mut Topology) -> Result<()> {
    let cluster = mesh.cluster.clone();
    for host in &mut mesh.hosts {
        host.up(&cluster)?;
        host.attach(0, &[])?;
    }
    Ok(())
}

#[test]
fn what_a_host_masquerades_does_not_pass_for_the_host() {
    let options = Options { containers: 2, encap: Encap::Vxlan, ..Options::default() };
    bare(options, |mesh| {
        let guest = masqueraded(mesh)?;
        up_with_first_containers(mesh)?;
        let [host, far] = [mesh.hosts[0].party()?, mesh.hosts[1].party()?];
        let [near, to] = [mesh.party("h1c1")?, mesh.party("h2c1")?];
        let world = "192.0.2.12".parse()?;
        let outside = |from: &Netns| UdpPair::new(from, &far.netns, world, Fragment::Never);
        ensure!(outside(&guest)?.carries(100, SOON)?, "the guest does not reach the world");

        // By mesh0, to containers, and to other hosts, where agents listen.
        let listener = far.netns.run(|| Ok(TcpListener::bind("[::]:0")?))?;
        let port = listener.local_addr()?.port();
        for ipv6 in [false, true] {
            let agent = SocketAddr::new(far.address(ipv6)?, port);
            ensure!(traffic::tcp_connects(&host.netns, agent, SOON)?, "the host itself: {agent}");
            ensure!(!traffic::tcp_connects(&guest, agent, SOON / 5)?, "the guest: {agent}");
            for party in [&near, &to] {
                let target = party.address(ipv6)?;
                let own = UdpPair::new(&host.netns, &party.netns, target, Fragment::Never)?;
                ensure!(own.carries(100, SOON)?, "the host itself: {target}");
                let udp = UdpPair::new(&guest, &party.netns, target, Fragment::Never)?;
                ensure!(!udp.carries(100, SOON / 5)?, "the guest got to {target}");
            }
        }

        // With a tunnel of its own.
        let receiver = PacketSocket::open(&to.netns, "eth0")?;
        let inner = udp([2; 6], near.address(false)?, to.address(false)?)?;
        for (from, is_taken) in [(&host.netns, true), (&guest, false)] {
            let socket = from.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
            socket.send_to(&vxlan(0, &inner), (world, 4789))?;
            let arrives = arrives(&receiver, if is_taken { SOON } else { SOON / 5 })?;
            ensure!(arrives == is_taken, "a tunnel packet from {}: {arrives}", from.name());
        }
        Ok(())
    });
}

/// Of IPv4 the kernel takes no packet that has an address of its own, of IPv6 it forwards it.
#[test]
fn what_a_host_forwards_has_no_address_of_the_hosts() {
    let options = Options {
        containers: 2,
        encap: Encap::Vxlan,
        underlay: Underlay::V6,
        ..Options::default()
    };
    bare(options, |mesh| {
        let guest = masqueraded(mesh)?;
        up_with_first_containers(mesh)?;
        let [near, to] = [mesh.party("h1c1")?, mesh.party("h2c1")?];
        let node = |h| -> Result<Ipv6Addr> { Ok(Underlay::V6.address(h).parse()?) };
        let inner = udp([2; 6], near.address(false)?, to.address(false)?)?;
        let [own, other] = [node(1)?, node(2)?];
        let receiver = PacketSocket::open(&to.netns, "eth0")?;
        let socket = mesh.hosts[0].netns.run(|| Ok(UdpSocket::bind("[::]:0")?))?;
        socket.send_to(&vxlan(0, &inner), (other, 4789))?;
        ensure!(arrives(&receiver, SOON)?, "what the host itself sends must arrive");

        let mut frame = Vec::new();
        PacketBuilder::ethernet2(guest.mac("eth1")?, mesh.hosts[0].netns.mac("guest")?)
            .ipv6(own.octets(), other.octets(), 9)
            .udp(4789, 4789)
            .write(&mut frame, &vxlan(0, &inner))?;
        PacketSocket::open(&guest, "eth1")?.send(&frame)?;
        ensure!(!arrives(&receiver, SOON / 5)?, "the guest was taken for its host");
        Ok(())
    });
}
