//! What a host forwards, and masquerades, for others does not pass for the host.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use etherparse::{IpFragOffset, IpHeaders, IpNumber, Ipv4Header, PacketBuilder, ether_type};
use mesh_tests::{
    Encap, Netns, Options, Topology, Underlay,
    packet::PacketSocket,
    scenario::bare,
    socket::Fragment,
    traffic::{self, UdpPair},
};

use frames::{arrives, udp, vxlan};

mod frames;

const SOON: Duration = Duration::from_secs(1);
const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);

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

/// An IPv4 packet of the guest to h2, as a frame to its host.
fn to_world(mesh: &Topology, guest: &Netns, header: Ipv4Header, payload: &[u8]) -> Result<()> {
    let (source, destination) = ([172, 18, 0, 2], WORLD.octets());
    let header = Ipv4Header { time_to_live: 64, source, destination, ..header };
    let protocol = header.protocol;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(guest.mac("eth1")?, mesh.hosts[0].netns.mac("guest")?)
        .ip(IpHeaders::Ipv4(header, Default::default()))
        .write(&mut frame, protocol, payload)?;
    PacketSocket::open(guest, "eth1")?.send(&frame)
}

/// Whoever takes the rules of nftables away, by `nft flush ruleset` for one, and puts others there.
#[test]
fn forged_tunnel_packets_reach_nobody_without_any_table_of_the_mesh() {
    let options = Options { containers: 2, encap: Encap::Vxlan, ..Options::default() };
    bare(options, |mesh| {
        let guest = masqueraded(mesh)?;
        up_with_first_containers(mesh)?;
        let [near, to] = [mesh.party("h1c1")?, mesh.party("h2c1")?];
        // Nobody is there to make it anew.
        mesh.hosts[0].kill9();
        let host = mesh.hosts[0].netns.clone();
        let _ = host.exec("nft delete table inet mesh_guard");
        ensure!(!host.exec("nft list tables")?.contains("mesh"), "tables of the mesh are left");
        let receiver = PacketSocket::open(&to.netns, "eth0")?;
        let inner = udp([2; 6], near.address(false)?, to.address(false)?)?;
        let gre = [&[0, 0][..], &ether_type::IPV4.0.to_be_bytes(), &inner[14..]].concat();

        let socket = host.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        socket.send_to(&vxlan(0, &inner), (WORLD, 4789))?;
        ensure!(arrives(&receiver, SOON)?, "what the host itself sends must arrive");
        near.expect_reaches(&to)?;

        let before = mesh.hosts[0].drops("forged_tunnel")?;
        let plain = Ipv4Header { protocol: IpNumber::GRE, ..Ipv4Header::default() };
        let options = Ipv4Header { options: [1, 1, 1, 1].into(), ..plain.clone() };
        to_world(mesh, &guest, plain.clone(), &gre)?;
        to_world(mesh, &guest, options, &gre)?;
        let socket = guest.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        socket.send_to(&vxlan(0, &inner), (WORLD, 4789))?;
        socket.send_to(&[0; 3000], (WORLD, 6081))?;
        let first = Ipv4Header { more_fragments: true, ..plain.clone() };
        let fragment_offset = IpFragOffset::try_new(2)?;
        to_world(mesh, &guest, first, &gre[..16])?;
        to_world(mesh, &guest, Ipv4Header { fragment_offset, ..plain }, &gre[16..])?;
        ensure!(!arrives(&receiver, SOON / 2)?, "the guest was taken for its host");
        let dropped = mesh.hosts[0].drops("forged_tunnel")? - before;
        // The last two are put together, and may leave as one.
        ensure!((5..=6).contains(&dropped), "{dropped} of 5 or 6 are counted");
        Ok(())
    });
}

/// The host's own tunnel, and what it carries of a guest behind a bridge, as Docker's overlay does.
#[test]
fn vxlan_of_the_kernel_passes_the_hosts_and_a_guests() {
    bare(Options { containers: 2, ..Options::default() }, |mesh| {
        let guest = masqueraded(mesh)?;
        up_with_first_containers(mesh)?;
        for (i, remote) in [(0, "192.0.2.12"), (1, "192.0.2.11")] {
            mesh.hosts[i].netns.ip_batch(&format!(
                "link add vx0 type vxlan id 77 dstport 4789 remote {remote}\n\
                 link add br0 type bridge\nlink set vx0 master br0\nlink set vx0 up\n\
                 addr add 198.51.100.{}/24 dev br0\nlink set br0 up\n",
                i + 1
            ))?;
        }
        let [host, far] = [0, 1].map(|i| mesh.hosts[i].netns.clone());
        host.ip_batch("addr flush dev guest\nlink set guest master br0\n")?;
        guest.ip_batch("addr add 198.51.100.9/24 dev eth1\n")?;
        let target = IpAddr::from([198, 51, 100, 2]);
        for from in [&host, &guest] {
            let pair = UdpPair::new(from, &far, target, Fragment::Never)?;
            ensure!(pair.carries(100, SOON)?, "{} does not reach {target}", from.name());
        }
        ensure!(mesh.hosts[0].drops("forged_tunnel")? == 0, "taken for forged");
        Ok(())
    });
}
