//! A link on the way that is narrower than both ends: a router says so, and the mesh heeds it, but
//! nobody who makes it up. In the manner of the kernel's own `pmtu.sh`.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Encap, Netns, Options, Topology, Underlay, kernel,
    scenario::bare,
    socket::{self, Fragment},
    traffic::{self, UdpPair},
    wait,
};
use serde_json::Value;

const LATER: Duration = Duration::from_secs(10);
const NARROW: u32 = 1400;
const WIDE: u32 = 1500;
/// With outer headers it is too narrow for IPv6 inside.
const NARROWEST: u32 = 1280;

/// Makes the switch a router, with one hop to h2 that is narrow, and starts the mesh. Large packets
/// from h2 are too large for h2's own interface; those from h1 for the router.
fn behind_a_router(encap: Encap, underlay: Underlay, body: impl FnOnce(&Topology) -> Result<()>) {
    let options = Options { encap, underlay, mtu: WIDE, ..Options::default() };
    bare(options, |mesh| {
        route_over_the_switch(mesh, NARROW)?;
        mesh.up()?;
        body(mesh)
    });
}

/// `far`: the MTU of h2's link, at both ends.
fn route_over_the_switch(mesh: &Topology, far: u32) -> Result<()> {
    let family = mesh.options.underlay;
    let (router, len, forwarding) = match family {
        Underlay::V4 => ("192.0.2.1", 32, "/proc/sys/net/ipv4/ip_forward"),
        Underlay::V6 => ("2001:db8::1", 128, "/proc/sys/net/ipv6/conf/all/forwarding"),
    };
    // Neighbours are asked from a link-local address only.
    let (nodad, own) = match family {
        Underlay::V4 => ("", ""),
        Underlay::V6 => (" nodad", "addr add fe80::1/64 nodad dev "),
    };
    let mut lines = String::from("link del br0\n");
    for n in 1..=2 {
        let mtu = if n == 2 { far } else { WIDE };
        let host = family.address(n);
        lines += &format!("link set h{n} mtu {mtu} up\n");
        lines += &format!("addr add {router}/{len} dev h{n}{nodad}\n");
        if !own.is_empty() {
            lines += &format!("{own}h{n}\n");
        }
        lines += &format!("route add {host}/{len} dev h{n}\n");
        let (ip, other) = (&mesh.hosts[n - 1].netns, family.address(3 - n));
        ip.ip_batch(&format!(
            "link set eth0 mtu {mtu}\nroute add {other}/{len} via {router} dev eth0 onlink\n"
        ))?;
    }
    mesh.switch.ip_batch(&lines)?;
    mesh.switch.run(|| fs::write(forwarding, "1").with_context(|| format!("write {forwarding}")))
}

/// What h1 knows of the way to h2: MTU, from where, for how long.
fn path(mesh: &Topology) -> Result<(u64, String, Option<u64>)> {
    let status = mesh.hosts[0].status()?;
    let hop = &status["peers"][0]["next_hop"];
    let text = hop["mtu_from"].as_str().map(str::to_owned);
    let mtu = hop["mtu"].as_u64().with_context(|| format!("no MTU in {hop}"))?;
    Ok((mtu, text.context("no mtu_from")?, hop["mtu_expires"].as_u64()))
}

fn wait_for(mesh: &Topology, mtu: u32, from: &str) -> Result<Option<u64>> {
    wait::until("the path MTU", LATER, || match path(mesh) {
        Ok((now, by, expires)) if now == u64::from(mtu) && by == from => Ok(expires),
        other => Err(format!("{other:?} instead of {mtu} from {from}")),
    })
}

fn learns(encap: Encap, underlay: Underlay) {
    behind_a_router(encap, underlay, |mesh| {
        let (from, to) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let fits = NARROW - encap.overhead(0) - underlay.more();
        ensure!(from.mtu > fits, "the container's MTU is {}: nothing to learn", from.mtu);
        // Older kernels drop what is larger than the far container's own interface sends.
        let fits_there = if kernel::is_since(6, 3) { fits } else { fits.min(to.mtu) };
        ensure!(path(mesh)? == (WIDE.into(), "interface".into(), None), "{:?}", path(mesh)?);
        for target in &to.addresses {
            let udp = UdpPair::new(&from.netns, &to.netns, *target, Fragment::Never)?;
            let sent = udp.carries(from.mtu, Duration::from_millis(200));
            // Once the mesh knows, the container's own stack refuses.
            ensure!(!sent.unwrap_or(false), "{target}: {} fits into {NARROW}", from.mtu);
            let expires = wait_for(mesh, NARROW, "icmp")?;
            ensure!(expires.is_some_and(|s| s <= 600 && s > 500), "holds for {expires:?} s");
            _ = udp.carries(from.mtu, Duration::from_millis(200));
            ensure!(udp.path_mtu()? == fits, "{target}: ICMP taught {}", udp.path_mtu()?);
            traffic::expect_udp(&from.netns, &to.netns, *target, fits_there)?;
            traffic::tcp_transfer(&from.netns, &to.netns, *target, 1 << 20)?;
            traffic::tcp_transfer(&to.netns, &from.netns, from.addresses[0], 1 << 20)?;
        }
        Ok(())
    });
}

#[test]
fn gre_heeds_a_narrow_link_on_the_way() {
    learns(Encap::Gre, Underlay::V4);
}

#[test]
fn vxlan_heeds_a_narrow_link_on_the_way() {
    learns(Encap::Vxlan, Underlay::V4);
}

#[test]
fn gretap_heeds_a_narrow_link_on_an_ipv6_way() {
    learns(Encap::Gretap, Underlay::V6);
}

#[test]
fn geneve_heeds_a_narrow_link_on_an_ipv6_way() {
    learns(Encap::Geneve, Underlay::V6);
}

#[test]
fn larger_packets_are_tried_again_after_a_time() {
    behind_a_router(Encap::Gre, Underlay::V4, |mesh| {
        let expires = "/proc/sys/net/ipv4/route/mtu_expires";
        // Long enough for it to be seen.
        let seconds = wait::patient(Duration::from_secs(2)).as_secs().to_string();
        let has = mesh.hosts[0].netns.run(|| Ok(fs::write(expires, &seconds).is_ok()))?;
        if !has {
            // Only the first namespace has the setting before Linux 5.18.
            return Ok(());
        }
        let (from, to) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let udp = UdpPair::new(&from.netns, &to.netns, to.addresses[0], Fragment::Never)?;
        _ = udp.carries(from.mtu, Duration::from_millis(100));
        wait_for(mesh, NARROW, "icmp")?;
        wait_for(mesh, WIDE, "interface").map(drop)?;
        // The way became wider.
        mesh.switch.ip_batch(&format!("link set h2 mtu {WIDE}\n"))?;
        mesh.hosts[1].netns.ip_batch(&format!("link set eth0 mtu {WIDE}\n"))?;
        traffic::expect_udp(&from.netns, &to.netns, to.addresses[0], from.mtu)
    });
}

#[test]
fn a_path_mtu_of_the_kernels_own_counts() {
    behind_a_router(Encap::Gre, Underlay::V4, |mesh| {
        let [h1, h2] = [&mesh.hosts[0].netns, &mesh.hosts[1].netns];
        let to: IpAddr = Underlay::V4.address(2).parse()?;
        let udp = UdpPair::new(h1, h2, to, Fragment::Never)?;
        _ = udp.carries(WIDE, Duration::from_millis(100));
        ensure!(udp.path_mtu()? == NARROW, "the kernel learned {}", udp.path_mtu()?);
        look_again(h1)?;
        let expires = wait_for(mesh, NARROW, "icmp")?;
        ensure!(expires.is_some_and(|s| s <= 600), "holds for {expires:?} s");
        Ok(())
    });
}

/// An ICMP message to h1, of what it is said to have sent.
struct Forged {
    from: [u8; 4],
    to: [u8; 4],
    protocol: u8,
    length: u16,
    mtu: u16,
}

impl Forged {
    const TRUE: Self =
        Self { from: [192, 0, 2, 11], to: [192, 0, 2, 12], protocol: 47, length: 1500, mtu: 1300 };

    fn send(&self, router: &Netns) -> Result<()> {
        self.send_to(router, [192, 0, 2, 11])
    }

    fn send_to(&self, from: &Netns, to: impl Into<IpAddr>) -> Result<()> {
        let to = to.into();
        let [high, low] = self.mtu.to_be_bytes();
        let mut message = vec![3, 4, 0, 0, 0, 0, high, low];
        let [long, short] = self.length.to_be_bytes();
        message.extend([0x45, 0, long, short, 0, 0, 0x40, 0, 64, self.protocol, 0, 0]);
        message.extend([self.from, self.to].concat());
        // GRE of IPv4, or port 4789.
        message.extend(if self.protocol == 47 { [0, 0, 8, 0] } else { [0xc0, 0, 0x12, 0xb5] });
        message.extend([0; 4]);
        let words = message.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let sum: u32 = words.sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        from.run(|| {
            let socket = socket::open(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
            socket.send_to(&message, (to, 0)).with_context(|| format!("send ICMP to {to}"))?;
            Ok(())
        })
    }
}

#[test]
fn what_was_never_sent_teaches_nothing() {
    behind_a_router(Encap::Gre, Underlay::V4, |mesh| {
        let forged = [
            // Of somebody else's packet; to nobody we know.
            Forged { from: [192, 0, 2, 99], ..Forged::TRUE },
            Forged { to: [192, 0, 2, 99], ..Forged::TRUE },
            // This cluster sends no VXLAN, nor TCP.
            Forged { protocol: 17, ..Forged::TRUE },
            Forged { protocol: 6, ..Forged::TRUE },
            // It would have fitted.
            Forged { length: 1300, ..Forged::TRUE },
            // Larger than the interface.
            Forged { mtu: 1501, length: 9000, ..Forged::TRUE },
        ];
        for message in forged {
            message.send(&mesh.switch)?;
        }
        learns_nothing(mesh)?;
        // The same way of saying it, and true: nothing of the above failed for its form.
        Forged::TRUE.send(&mesh.switch)?;
        wait_for(mesh, 1300, "icmp")?;
        // Nobody makes it useless: packets of 552 bytes still go.
        Forged { mtu: 68, ..Forged::TRUE }.send(&mesh.switch)?;
        wait_for(mesh, 552 + Encap::Gre.overhead(0), "icmp")?;
        Ok(())
    });
}

/// The agent asks for what the kernel knows of the ways with the next change of one that bears on them.
fn look_again(host: &Netns) -> Result<()> {
    host.ip_batch("route add blackhole 192.0.0.0/16\nroute del blackhole 192.0.0.0/16\n")
}

fn learns_nothing(mesh: &Topology) -> Result<()> {
    std::thread::sleep(Duration::from_millis(300));
    ensure!(path(mesh)? == (WIDE.into(), "interface".into(), None), "{:?}", path(mesh)?);
    Ok(())
}

fn only_routers_teach(encap: Encap, forged: &Forged) {
    behind_a_router(encap, Underlay::V4, |mesh| {
        let (host, container) = (&mesh.hosts[0], &mesh.container("h1c1")?.netns);
        for address in host.overlay_addresses()?.into_iter().filter(IpAddr::is_ipv4) {
            forged.send_to(container, address)?;
        }
        look_again(&host.netns)?;
        learns_nothing(mesh)?;
        // To the right address, from the host's other side: as from a container on Docker's bridge.
        host.netns.ip_batch(&format!(
            "link add x0 type veth peer name x1 netns {}\n\
             addr add 198.51.100.1/24 dev x0\nlink set x0 up\n",
            container.name()
        ))?;
        container.ip_batch(
            "addr add 198.51.100.2/24 dev x1\nlink set x1 up\n\
             route add 192.0.2.11/32 via 198.51.100.1\n",
        )?;
        host.netns.wait_operational("x0")?;
        forged.send(container)?;
        look_again(&host.netns)?;
        learns_nothing(mesh)?;
        forged.send(&mesh.switch)?;
        wait_for(mesh, forged.mtu.into(), "icmp").map(drop)
    });
}

#[test]
fn what_a_container_says_teaches_nothing() {
    only_routers_teach(Encap::Gre, &Forged::TRUE);
}

#[test]
fn what_a_container_says_of_udp_teaches_nothing() {
    only_routers_teach(Encap::Vxlan, &Forged { protocol: 17, ..Forged::TRUE });
}

/// Connections that are open and new ones carry data, whatever the message says.
fn message_stops_nothing(mtu: u16) {
    behind_a_router(Encap::Gre, Underlay::V4, |mesh| {
        let (from, to) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let open = |target: &IpAddr| traffic::tcp_pair(&from.netns, &to.netns, *target);
        let before = to.addresses.iter().map(open).collect::<Result<Vec<_>>>()?;
        Forged { mtu, ..Forged::TRUE }.send(&mesh.switch)?;
        wait::until("ICMP to be heard", LATER, || match path(mesh) {
            Ok((_, by, _)) if by == "icmp" => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        for (target, pair) in to.addresses.iter().zip(before) {
            traffic::transfer(pair, 1 << 18).with_context(|| format!("open to {target}"))?;
            traffic::tcp_transfer(&from.netns, &to.netns, *target, 1 << 18)?;
            // What IPv6 promises everybody is sent; IPv4 may always be cut.
            if target.is_ipv6() {
                traffic::expect_udp(&from.netns, &to.netns, *target, 1280)?;
            }
        }
        for target in &from.addresses {
            traffic::tcp_transfer(&to.netns, &from.netns, *target, 1 << 18)?;
        }
        Ok(())
    });
}

#[test]
fn a_message_with_the_least_mtu_stops_no_tcp() {
    message_stops_nothing(552);
}

#[test]
fn a_message_with_an_mtu_too_small_for_ipv6_stops_no_tcp() {
    message_stops_nothing(1280);
}

/// Both ends are wide, and the way between them is in truth too narrow for IPv6 inside: new
/// connections of both families are kept to it, and IPv4 learns at any time.
fn narrowest(encap: Encap, underlay: Underlay) {
    let options = Options { encap, underlay, mtu: WIDE, ..Options::default() };
    bare(options, |mesh| {
        route_over_the_switch(mesh, WIDE)?;
        for n in 1..=2 {
            let (host, len) =
                (underlay.address(n), if underlay == Underlay::V4 { 32 } else { 128 });
            let route = format!("route replace {host}/{len} dev h{n} mtu lock {NARROWEST}\n");
            mesh.switch.ip_batch(&route)?;
        }
        mesh.up()?;
        let (from, to) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let is_v4 = |target: &&IpAddr| target.is_ipv4();
        for target in to.addresses.iter().filter(is_v4) {
            traffic::tcp_transfer(&from.netns, &to.netns, *target, 1 << 18)?;
        }
        wait_for(mesh, NARROWEST, "icmp")?;
        for target in &to.addresses {
            traffic::tcp_transfer(&from.netns, &to.netns, *target, 1 << 18)?;
        }
        // The other end need not have heard of it.
        for target in &from.addresses {
            traffic::tcp_transfer(&to.netns, &from.netns, *target, 1 << 18)?;
        }
        Ok(())
    });
}

#[test]
fn tcp_goes_through_a_way_too_narrow_for_ipv6_in_gre() {
    narrowest(Encap::Gre, Underlay::V4);
}

#[test]
fn tcp_goes_through_a_way_too_narrow_for_ipv6_in_vxlan() {
    narrowest(Encap::Vxlan, Underlay::V4);
}

#[test]
fn tcp_goes_through_an_ipv6_way_too_narrow_for_ipv6() {
    narrowest(Encap::Gretap, Underlay::V6);
}

#[test]
fn an_mtu_of_the_route_is_heeded_and_status_says_from_where_it_is() {
    behind_a_router(Encap::Gre, Underlay::V4, |mesh| {
        let mtu = |by: &str| format!("{} ({by}", 1300);
        let text = || mesh.hosts[0].run_mesh(&["status"]);
        Forged::TRUE.send(&mesh.switch)?;
        wait_for(mesh, 1300, "icmp")?;
        ensure!(text()?.contains(&mtu("icmp, for ")), "{}", text()?);
        let to = Underlay::V4.address(2);
        let route = format!("route replace {to}/32 via 192.0.2.1 dev eth0 onlink mtu 1280\n");
        mesh.hosts[0].netns.ip_batch(&route)?;
        wait_for(mesh, 1280, "route")?;
        ensure!(text()?.contains("1280 (route)"), "{}", text()?);
        let (from, to) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        for target in &to.addresses {
            traffic::tcp_transfer(&from.netns, &to.netns, *target, 1 << 18)?;
        }
        let status: Value = mesh.hosts[0].status()?;
        ensure!(status["peers"][0]["next_hop"]["mtu_expires"].is_null(), "{status}");
        Ok(())
    });
}
