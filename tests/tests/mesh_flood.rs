//! Broadcast and multicast within a network that carries them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Encap, Options, Party, Topology, Underlay, flow,
    foreign::{self, Net},
    packet::{PacketSocket, is_timeout},
    scenario::bare,
    socket, wait,
};
use serde_json::json;

/// Longer than the agent takes to look, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const ALL: &str = "flood = \"all\"";
const PORT: u16 = 5353;
const SOON: Duration = Duration::from_secs(2);
const BRIEFLY: Duration = Duration::from_millis(200);

const THREE: Options = Options { hosts: 3, containers: 2, ..Options::DEFAULT };

/// Three hosts with two containers each, in a network that carries all.
fn flooding(options: Options, body: impl FnOnce(&mut Topology) -> Result<()>) {
    bare(options, |mesh| {
        mesh.cluster = mesh.cluster.clone().with_setting(ALL);
        mesh.up()?;
        body(mesh)
    });
}

/// A socket that hears what is sent to a group, or to all if there is none.
fn listener(party: &Party, group: Option<IpAddr>) -> Result<UdpSocket> {
    party.netns.run(|| {
        let any: IpAddr = match group {
            Some(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        };
        // What was closed is shared for an instant with a program that another test just starts.
        let bound = wait::until("the port to be free", SOON, || {
            UdpSocket::bind(SocketAddr::new(any, PORT)).map_err(|e| e.to_string())
        })?;
        let ifindex = socket::ifindex("eth0")?;
        match group {
            Some(IpAddr::V4(group)) => bound.join_multicast_v4(&group, &own_v4(party)?)?,
            Some(IpAddr::V6(group)) => bound.join_multicast_v6(&group, ifindex)?,
            None => {}
        }
        Ok(bound)
    })
}

fn own_v4(party: &Party) -> Result<Ipv4Addr> {
    match party.address(false)? {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => anyhow::bail!("asked for IPv4"),
    }
}

/// Sends `text` to all or to a group, from an address of the party's own.
fn say(party: &Party, to: IpAddr, text: &[u8]) -> Result<()> {
    party.netns.run(|| {
        let own = party.address(to.is_ipv6())?;
        let from = UdpSocket::bind(SocketAddr::new(own, 0))?;
        from.set_broadcast(true)?;
        if to.is_ipv6() {
            let ifindex = i32::try_from(socket::ifindex("eth0")?)?;
            socket::set(&from, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, ifindex)?;
        }
        from.send_to(text, SocketAddr::new(to, PORT)).with_context(|| format!("send to {to}"))?;
        Ok(())
    })
}

/// What comes next within `limit`, and from whom.
fn hear(socket: &UdpSocket, limit: Duration) -> Result<Option<(Vec<u8>, IpAddr)>> {
    let mut buffer = vec![0; 2048];
    socket.set_read_timeout(Some(limit))?;
    match socket.recv_from(&mut buffer) {
        Ok((n, from)) => Ok(Some((buffer[..n].to_vec(), from.ip()))),
        Err(e) if is_timeout(&e) => Ok(None),
        Err(e) => Err(e).context("receive"),
    }
}

/// All hear it once, with the sender's own address.
fn expect_all_hear(listeners: &[(&str, UdpSocket)], text: &[u8], from: IpAddr) -> Result<()> {
    for (name, listener) in listeners {
        let heard = hear(listener, wait::patient(SOON))?
            .with_context(|| format!("{name} heard nothing"))?;
        ensure!(heard == (text.to_vec(), from), "{name} heard {heard:?}, not of {from}");
    }
    for (name, listener) in listeners {
        let again = hear(listener, BRIEFLY)?;
        ensure!(again.is_none(), "{name} heard it twice: {again:?}");
    }
    Ok(())
}

/// Until none has anything more to hear.
fn drain(listeners: &[(&str, UdpSocket)]) -> Result<()> {
    for (_, listener) in listeners {
        while hear(listener, BRIEFLY)?.is_some() {}
    }
    Ok(())
}

fn others<'a>(parties: &'a [Party], but: &Party) -> impl Iterator<Item = &'a Party> {
    let but = but.name.clone();
    parties.iter().filter(move |party| party.name != but)
}

fn expect_broadcast(mesh: &Topology) -> Result<()> {
    let parties = mesh.parties()?;
    for sender in &parties {
        let listeners = others(&parties, sender).map(|p| Ok((&*p.name, listener(p, None)?)));
        let listeners = listeners.collect::<Result<Vec<_>>>()?;
        say(sender, Ipv4Addr::BROADCAST.into(), sender.name.as_bytes())?;
        expect_all_hear(&listeners, sender.name.as_bytes(), sender.address(false)?)?;
    }
    Ok(())
}

#[test]
fn broadcast_of_a_container_is_heard_once_by_all_others() {
    for encap in Encap::ALL {
        flooding(Options { encap, ..THREE }, |mesh| expect_broadcast(mesh));
    }
}

#[test]
fn broadcast_is_heard_over_an_underlay_of_ipv6() {
    for encap in [Encap::Gre, Encap::Geneve] {
        flooding(Options { encap, underlay: Underlay::V6, ..THREE }, |mesh| expect_broadcast(mesh));
    }
}

#[test]
fn link_local_groups_are_heard_as_mdns_needs_them() {
    flooding(THREE, |mesh| {
        let parties = mesh.parties()?;
        for group in ["224.0.0.251", "ff02::fb"] {
            let group: IpAddr = group.parse()?;
            for sender in [&parties[0], &parties[3]] {
                let joined = others(&parties, sender);
                let joined = joined.map(|p| Ok((&*p.name, listener(p, Some(group))?)));
                let joined = joined.collect::<Result<Vec<_>>>()?;
                say(sender, group, b"who is web.local?")?;
                expect_all_hear(&joined, b"who is web.local?", sender.address(group.is_ipv6())?)?;
            }
        }
        Ok(())
    });
}

/// h3 is a bridge with the kernel's VXLAN.
#[test]
fn broadcast_and_groups_are_heard_behind_a_vxlan_bridge_and_from_there() {
    for (encap, lines) in
        [(Encap::Vxlan, &[][..]), (Encap::Gre, &["encap = \"vxlan\"", "vni = 42"][..])]
    {
        bare(Options { encap, ..THREE }, |mesh| {
            let cluster = mesh.cluster.clone().with_setting(ALL).with_foreign("h3", lines);
            mesh.cluster = cluster.clone();
            mesh.up()?;
            foreign::join(&mesh.hosts[2], &cluster)?;
            let mut parties = mesh.parties()?;
            let ours = parties.len();
            parties.extend(foreign::plug_into_bridge(&mesh.hosts[2], &cluster, Net::Link)?);
            for to in ["255.255.255.255", "10.42.255.255", "224.0.0.251", "ff02::fb"] {
                let to: IpAddr = to.parse()?;
                let group = to.is_multicast().then_some(to);
                // A container of mesh's has its address alone, and knows no other broadcast.
                let knows =
                    |name: &str| to != IpAddr::from([10, 42, 255, 255]) || name.starts_with("h3");
                for sender in [&parties[0], &parties[ours], &parties[2]] {
                    let listeners = others(&parties, sender).filter(|p| knows(&p.name));
                    let listeners = listeners.map(|p| Ok((&*p.name, listener(p, group)?)));
                    let listeners = listeners.collect::<Result<Vec<_>>>()?;
                    say(sender, to, b"hello")
                        .and_then(|()| {
                            expect_all_hear(&listeners, b"hello", sender.address(to.is_ipv6())?)
                        })
                        .with_context(|| format!("{} to {to}, {encap:?}", sender.name))?;
                }
            }
            Ok(())
        });
    }
}

/// Whether the frame carries the text, bare or in a tunnel.
fn carries(frame: &[u8], text: &[u8]) -> bool {
    frame.windows(text.len()).any(|part| part == text)
}

/// Says it until all have heard: how long a membership takes to get around is the kernel's to choose.
fn say_until_heard(
    sender: &Party,
    group: IpAddr,
    text: &[u8],
    joined: &[(&str, UdpSocket)],
) -> Result<()> {
    wait::until("members to hear", Duration::from_secs(10), || {
        let heard = || -> Result<Option<&str>> {
            say(sender, group, text)?;
            for (name, socket) in joined {
                if hear(socket, BRIEFLY)?.is_none() {
                    return Ok(Some(name));
                }
            }
            Ok(None)
        };
        match heard() {
            Ok(None) => Ok(()),
            Ok(Some(name)) => Err(format!("{name} heard nothing")),
            Err(e) => Err(format!("{e:#}")),
        }
    })
}

#[test]
fn group_is_heard_by_its_members_and_carried_to_their_nodes_only() {
    flooding(THREE, |mesh| {
        let parties = mesh.parties()?;
        let sender = &parties[0];
        for group in ["239.1.2.3", "ff0e::1:2:3"] {
            let group: IpAddr = group.parse()?;
            // h1c2 and h2c1: the other of h2, and all of h3, want nothing.
            let member = |p: &'static usize| -> Result<(&str, UdpSocket)> {
                Ok((&*parties[*p].name, listener(&parties[*p], Some(group))?))
            };
            let joined = vec![member(&1)?, member(&2)?];
            say_until_heard(sender, group, b"come in", &joined)?;

            let status = mesh.hosts[0].status()?;
            let groups = status["groups"].as_array().context("no groups")?;
            let shown = groups.iter().find(|g| g["group"] == group.to_string());
            let shown = shown.with_context(|| format!("{group} is not among {groups:#?}"))?;
            let here = shown["endpoints"].as_array().map(Vec::len);
            ensure!(here == Some(1) && shown["nodes"] == json!(["h2"]), "{shown}");

            let text = format!("to the members of {group}");
            let [idle, far] = [&parties[3], &parties[4]];
            let idle = PacketSocket::open(&idle.netns, "eth0")?;
            let far_node = PacketSocket::open(&mesh.hosts[2].netns, "eth0")?;
            let far = PacketSocket::open(&far.netns, "eth0")?;
            drain(&joined)?;
            say(sender, group, text.as_bytes())?;
            expect_all_hear(&joined, text.as_bytes(), sender.address(group.is_ipv6())?)?;
            for (what, socket) in
                [("a container without", &idle), ("h3", &far_node), ("h3c1", &far)]
            {
                let seen = socket.find(BRIEFLY, |frame| carries(frame, text.as_bytes()))?;
                ensure!(seen.is_none(), "{what} got it: {seen:02x?}");
            }

            // The last member of h2 leaves, then that of h1.
            let before = mesh.hosts[0].drops("no_member")?;
            let on_h2 = PacketSocket::open(&mesh.hosts[1].netns, "eth0")?;
            drop(joined);
            wait::until("the group to end", Duration::from_secs(10), || {
                let ended = || -> Result<bool> {
                    let text = format!("is there anybody in {group}?");
                    say(sender, group, text.as_bytes())?;
                    let seen = on_h2.find(BRIEFLY, |frame| carries(frame, text.as_bytes()))?;
                    Ok(seen.is_none() && mesh.hosts[0].drops("no_member")? > before)
                };
                match ended() {
                    Ok(true) => Ok(()),
                    Ok(false) => Err("it is still carried".into()),
                    Err(e) => Err(format!("{e:#}")),
                }
            })?;
        }
        Ok(())
    });
}

/// The programs that make the copies are there only where they are wanted.
#[test]
fn broadcast_is_switched_on_and_off_and_nobody_loses_a_packet() {
    bare(Options { hosts: 2, ..THREE }, |mesh| {
        let without = mesh.cluster.clone();
        let with = without.clone().with_setting(ALL);
        mesh.up()?;
        let [one, other] = [mesh.party("h1c1")?, mesh.party("h2c1")?];
        let flows = flow::start_all(&[(&one, &other), (&other, &one)])?;
        mesh.apply(&with)?;
        expect_broadcast(mesh)?;
        mesh.apply(&without)?;
        let deaf = listener(&other, None)?;
        say(&one, Ipv4Addr::BROADCAST.into(), b"off")?;
        ensure!(hear(&deaf, BRIEFLY)?.is_none(), "it was switched off");
        drop(deaf);
        // Loaded anew by an agent whose file wants none, over maps that had room for it.
        mesh.hosts[0].kill9();
        mesh.hosts[0].up(&without)?;
        mesh.apply(&with)?;
        expect_broadcast(mesh)?;
        flow::expect_no_loss(flows)
    });
}

/// The agent of h2 starts anew, without what h1 told: it hears it again as soon as h1 asks.
#[test]
fn memberships_are_asked_for_and_what_is_not_renewed_ends() {
    bare(Options { hosts: 2, ..THREE }, |mesh| {
        mesh.cluster = mesh.cluster.clone().with_setting(ALL);
        for host in &mut mesh.hosts {
            host.up_args = ["--query-interval", "2"].map(Into::into).into();
        }
        mesh.up()?;
        let parties = mesh.parties()?;
        let group: IpAddr = "239.1.2.3".parse()?;
        let joined = vec![("h1c1", listener(&parties[0], Some(group))?)];
        say_until_heard(&parties[2], group, b"come in", &joined)?;
        // All that is known on h2 goes.
        let cluster = mesh.cluster.clone();
        let host = &mut mesh.hosts[1];
        host.down()?;
        host.up(&cluster)?;
        host.attach(0, &[])?;
        let sender = mesh.party("h2c1")?;
        say_until_heard(&sender, group, b"again", &joined)?;
        // Longer than a membership lasts, if nobody renews it.
        let end = std::time::Instant::now() + Duration::from_secs(8);
        while std::time::Instant::now() < end {
            say_until_heard(&sender, group, b"still", &joined)?;
        }
        Ok(())
    });
}

/// More networks than the maps have room for: there are new ones, with all that the old ones knew.
#[test]
fn memberships_outlast_maps_that_grow() {
    flooding(Options { hosts: 2, ..THREE }, |mesh| {
        let parties = mesh.parties()?;
        let group: IpAddr = "239.1.2.3".parse()?;
        let joined = vec![("h1c1", listener(&parties[0], Some(group))?)];
        say_until_heard(&parties[2], group, b"come in", &joined)?;
        let networks = (1..=1030u32).fold(mesh.cluster.clone(), |cluster, n| {
            let cidr = format!("100.{}.{}.0/28", 64 + (n >> 8), n & 0xff);
            cluster.with_network(&format!("n{n}"), n, &cidr)
        });
        mesh.apply(&networks)?;
        drain(&joined)?;
        say(&parties[2], group, b"still?")?;
        expect_all_hear(&joined, b"still?", parties[2].address(false)?)
    });
}

#[test]
fn containers_have_the_routes_for_broadcast_while_the_file_says_so() {
    bare(Options { hosts: 1, containers: 1, ..THREE }, |mesh| {
        mesh.up()?;
        let container = mesh.hosts[0].containers[0].netns.clone();
        let routes = || -> Result<[bool; 2]> {
            let shown = container.exec("ip route")?;
            Ok(["224.0.0.0/4 dev eth0", "255.255.255.255 dev eth0"].map(|r| shown.contains(r)))
        };
        let without = mesh.cluster.clone();
        let without_again = without.clone();
        ensure!(routes()? == [false, false]);
        mesh.apply(&without.clone().with_setting(ALL))?;
        ensure!(routes()? == [true, true], "they did not come: {}", container.exec("ip route")?);
        mesh.apply(&without)?;
        ensure!(routes()? == [false, false], "they stay: {}", container.exec("ip route")?);
        // Also by an agent that was away meanwhile.
        mesh.hosts[0].kill9();
        mesh.hosts[0].up(&without.with_setting(ALL))?;
        ensure!(routes()? == [true, true], "they did not come: {}", container.exec("ip route")?);
        // One that does not get them is a fault of the endpoint until it can be done.
        let host = &mesh.hosts[0];
        host.write_config(&without_again.to_string())?;
        wait::until_true("them to go", PATIENCE, || routes().is_ok_and(|r| r == [false, false]))?;
        container.exec("ip route add 224.0.0.0/4 dev eth0 proto static")?;
        host.write_config(&without_again.with_setting(ALL).to_string())?;
        let says = |text: &str| host.faults().is_ok_and(|faults| faults.contains(text));
        wait::until_true("a fault", PATIENCE, || {
            says("it has not all routes for broadcast") && says("\"of\":\"endpoint\"")
        })?;
        container.exec("ip route del 224.0.0.0/4 dev eth0 proto static")?;
        wait::until_true("no fault", PATIENCE, || host.faults().is_ok_and(|f| f == "[]"))?;
        ensure!(routes()? == [true, true], "they did not come: {}", container.exec("ip route")?);
        Ok(())
    });
}
