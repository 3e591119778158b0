//! What a host forwards, and masquerades, for others does not pass for the host.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use etherparse::{IpFragOffset, IpHeaders, IpNumber, Ipv4Header, PacketBuilder, ether_type};
use mesh_tests::{
    Encap, Host, Netns, Options, Topology, Underlay,
    packet::PacketSocket,
    scenario::bare,
    socket::Fragment,
    traffic::{self, UdpPair},
    wait::until_true,
};

use frames::{arrives, udp, vxlan};

mod frames;

const SOON: Duration = Duration::from_secs(1);
/// Until what was taken away is back: told, looked at, and made by `nft`.
const BACK: Duration = Duration::from_secs(3);
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
    forged_tunnel_packets_reach_nobody("tcx");
}

#[test]
fn forged_tunnel_packets_reach_nobody_where_programs_are_filters() {
    forged_tunnel_packets_reach_nobody("clsact");
}

fn forged_tunnel_packets_reach_nobody(attach_mode: &'static str) {
    let options = Options { containers: 2, encap: Encap::Vxlan, ..Options::default() };
    bare(options, |mesh| {
        mesh.hosts[0].attach_mode = Some(attach_mode);
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

fn has_guard(host: &Netns) -> bool {
    host.exec("nft list tables").is_ok_and(|tables| tables.contains("mesh_guard"))
}

/// Whether a fault of the status, or a past one, is about the table.
fn tells(host: &Host, kind: &str) -> Result<bool> {
    let status = host.status()?;
    let faults = status[kind].as_array().with_context(|| format!("no {kind}"))?;
    Ok(faults.iter().any(|fault| fault.to_string().contains("mesh_guard")))
}

#[test]
fn table_that_somebody_takes_away_comes_back_and_was_a_fault() {
    bare(Options { containers: 2, ..Options::default() }, |mesh| {
        masqueraded(mesh)?;
        up_with_first_containers(mesh)?;
        let host = mesh.hosts[0].netns.clone();
        until_true("a table at the start", BACK, || has_guard(&host))?;
        for how in ["flush ruleset", "delete table inet mesh_guard", "flush table inet mesh_guard"]
        {
            let rules = host.exec("nft list table inet mesh_guard")?;
            host.exec(&format!("nft {how}"))?;
            until_true(how, BACK, || {
                host.exec("nft list table inet mesh_guard").is_ok_and(|now| now == rules)
            })?;
        }
        until_true("history", BACK, || tells(&mesh.hosts[0], "past_faults").unwrap_or(false))?;
        until_true("no fault", BACK, || !tells(&mesh.hosts[0], "faults").unwrap_or(true))
    });
}

/// A `nft` that fails while there is a file `broken` beside it.
fn breakable_nft(host: &mut Host) -> Result<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = host.run_dir.with_extension("nft");
    fs::create_dir_all(&dir)?;
    let script = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
    };
    let mesh = mesh_tests::host::mesh_binary()?;
    let (here, mesh) = (dir.display(), mesh.display());
    script("nft", format!("[ -e {here}/broken ] && exit 1\nPATH=${{PATH#*:}} exec nft \"$@\""))?;
    script("mesh", format!("PATH={here}:$PATH exec {mesh} \"$@\""))?;
    host.binary = Some(dir.join("mesh"));
    Ok(dir)
}

#[test]
fn table_that_can_not_be_made_is_a_fault_until_it_is_there() {
    bare(Options { containers: 2, ..Options::default() }, |mesh| {
        masqueraded(mesh)?;
        let dir = breakable_nft(&mut mesh.hosts[0])?;
        up_with_first_containers(mesh)?;
        let host = mesh.hosts[0].netns.clone();
        until_true("a table at the start", BACK, || has_guard(&host))?;
        ensure!(!tells(&mesh.hosts[0], "faults")?, "a fault with a table");
        fs::write(dir.join("broken"), "")?;
        host.exec("nft flush ruleset")?;
        until_true("a fault", BACK, || tells(&mesh.hosts[0], "faults").unwrap_or(false))?;
        fs::remove_file(dir.join("broken"))?;
        // Any change of a table of the mesh is one more reason to look.
        host.exec("nft add table inet mesh_test")?;
        host.exec("nft delete table inet mesh_test")?;
        until_true("no fault", BACK, || !tells(&mesh.hosts[0], "faults").unwrap_or(true))?;
        ensure!(has_guard(&host), "no fault, and no table");
        fs::remove_dir_all(dir)?;
        Ok(())
    });
}

#[test]
fn table_comes_when_forwarding_does() {
    bare(Options::default(), |mesh| {
        mesh.up()?;
        let host = mesh.hosts[0].netns.clone();
        for setting in ["net.ipv4.ip_forward", "net.ipv4.conf.eth0.forwarding"] {
            ensure!(!has_guard(&host), "a table without forwarding");
            host.exec(&format!("sysctl -qw {setting}=1"))?;
            until_true(setting, BACK, || has_guard(&host))?;
            host.exec("sysctl -qw net.ipv4.ip_forward=1")?;
            host.exec("sysctl -qw net.ipv4.ip_forward=0")?;
            until_true("no table", BACK, || !has_guard(&host))?;
        }
        Ok(())
    });
}
