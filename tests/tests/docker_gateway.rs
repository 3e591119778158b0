//! `docker network create -d mesh -o gateway=mesh`: one interface for each container, and the host as
//! its router, with real Docker daemons.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Snapshot, cluster,
    docker::{Docker, scenario},
    wait,
};
use rustix::process::Signal;

/// Milliseconds, where nothing else has the processors.
const SEEN: Duration = Duration::from_secs(40);
const CREATE: &str = "network create -d mesh -o gateway=mesh --subnet 10.0.9.0/24 my-net";
const WEB: &str = "bb httpd -f -p 80 -h /var/www";
/// A web server that logs who asks.
const WHO: &str = "bb httpd -f -vv -p 9000 -h /var/www";

/// Containers in the network, with these names, one on each host; a container `asker` in each host's
/// own namespace stands for the host, and for somebody outside to the other hosts.
fn start(docker: &Docker, create: &str, names: &[&str]) -> Result<Vec<IpAddr>> {
    for host in &docker.topology.hosts {
        // As Docker leaves it on a fresh machine.
        host.netns.exec("iptables -P FORWARD DROP")?;
    }
    docker.run(0, create)?;
    docker.wait_network("my-net")?;
    let mut addresses = Vec::new();
    for (at, name) in names.iter().enumerate() {
        docker.run(at, "run -d --network host --name asker bb sleep 1000")?;
        docker.run(at, &format!("run -d --network my-net --name {name} bb sleep 1000"))?;
        addresses.push(address(docker, at, name)?);
    }
    Ok(addresses)
}

fn address(docker: &Docker, at: usize, container: &str) -> Result<IpAddr> {
    let format = "{{range.NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let text = docker.run(at, &format!("inspect -f {format} {container}"))?;
    text.parse().with_context(|| format!("{container} has the address {text:?}"))
}

fn get(docker: &Docker, at: usize, from: &str, url: &str) -> Result<()> {
    let line = format!("exec {from} timeout 5 wget -qO- {url}");
    let said = wait::until(&line, SEEN, || match docker.run(at, &line) {
        Ok(page) if page == "hello" => Ok(()),
        Ok(page) => Err(page),
        Err(e) => Err(format!("{e:#}")),
    });
    said.with_context(|| format!("h{}: {from} asks {url}", at + 1))
}

/// Nobody answers at the address.
fn get_nothing(docker: &Docker, at: usize, from: &str, url: &str) -> Result<()> {
    docker.refused(at, &format!("exec {from} timeout 1 wget -qO- {url}")).map(drop)
}

/// From which address [`WHO`], in the container `whom` of a host, is asked.
fn asked_by(
    docker: &Docker,
    at: usize,
    whom: &str,
    ask: impl Fn() -> Result<()>,
) -> Result<String> {
    let lines = || -> Result<Vec<String>> {
        let output = docker.try_run(at, &format!("logs {whom}"))?;
        Ok(String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect())
    };
    let before = lines()?.len();
    ask()?;
    // `[::ffff:10.42.2.2]:51234: url:/`
    let of = |line: &String| {
        let asker = line.split_once("]:")?.0.split_once('[')?.1;
        Some(asker.trim_start_matches("::ffff:").to_owned())
    };
    wait::until("the server's log", SEEN, || {
        let lines = lines().map_err(|e| format!("{e:#}"))?;
        lines[before..].iter().find_map(of).ok_or_else(|| format!("{lines:?}"))
    })
}

#[test]
fn the_host_is_the_router_of_its_containers() {
    scenario(2, |docker| {
        let [c1, c2] = start(docker, CREATE, &["c1", "c2"])?[..] else { unreachable!() };
        // One interface, and the first address of each host's own part.
        for (at, name, gateway) in [(0, "c1", "10.0.9.1"), (1, "c2", "10.0.9.129")] {
            let routes = docker.run(at, &format!("exec {name} ip route"))?;
            ensure!(routes.contains(&format!("default via {gateway} dev eth0")), "{routes}");
            let links = docker.run(at, &format!("exec {name} ip -o link"))?;
            ensure!(!links.contains("eth1"), "{links}");
            docker.run(at, &format!("exec {name} ping -c 1 -W 2 {gateway}"))?;
        }
        // Among themselves as ever.
        docker.run(0, &format!("exec c1 ping -c 1 -W 2 {c2}"))?;
        docker.run(1, &format!("run -d --network my-net --name who {WHO}"))?;
        let who = address(docker, 1, "who")?;
        let source = asked_by(docker, 1, "who", || get(docker, 0, "c1", "http://who:9000"))?;
        ensure!(source == c1.to_string(), "{source} is not {c1}");
        // The world, which sees the host.
        docker.run(1, &format!("run -d --network host --name world {WHO}"))?;
        let ask = || get(docker, 0, "c1", "http://192.0.2.12:9000");
        let source = asked_by(docker, 1, "world", ask)?;
        ensure!(source == "192.0.2.11", "{source}");
        // More than the MTU, each way: the router cuts or says so.
        docker.run(0, "exec c1 ping -c 1 -W 2 -s 1472 192.0.2.12")?;
        // A host and its containers, by their addresses.
        docker.run(1, &format!("exec asker ping -c 1 -W 2 {c2}"))?;
        let source =
            asked_by(docker, 1, "who", || get(docker, 1, "asker", &format!("http://{who}:9000")))?;
        ensure!(source == "10.0.9.129", "{source}");
        // Nobody gets in from outside, nor to another network.
        docker.host(0).netns.exec("ip route add 10.0.9.128/25 via 192.0.2.12")?;
        get_nothing(docker, 0, "asker", &format!("http://{who}:9000"))?;
        docker.run(1, &format!("run -d --name bridged {WEB}"))?;
        let bridged = address(docker, 1, "bridged")?;
        get_nothing(docker, 1, "c2", &format!("http://{bridged}"))?;
        docker.run(1, "network create -d mesh -o gateway=mesh --subnet 10.0.8.0/24 other")?;
        docker.run(1, &format!("run -d --network other --name apart {WEB}"))?;
        let apart = address(docker, 1, "apart")?;
        get(docker, 1, "asker", &format!("http://{apart}"))?;
        get_nothing(docker, 1, "c2", &format!("http://{apart}"))?;
        // What is for nobody in the network is dropped for that, and goes nowhere else.
        docker.run(0, "run -d --network my-net --cap-add NET_ADMIN --name near bb sleep 1000")?;
        docker.run(0, "exec near ip route add 10.0.9.77/32 via 10.0.9.1")?;
        let before = docker.topology.hosts[0].drops("no_endpoint")?;
        docker.refused(0, "exec near ping -c 2 -i 0.2 -W 1 10.0.9.77")?;
        ensure!(docker.topology.hosts[0].drops("no_endpoint")? >= before + 2);
        Ok(())
    });
}

#[test]
fn published_ports_are_reached_from_everywhere() {
    scenario(2, |docker| {
        start(docker, CREATE, &["c1", "c2"])?;
        let publish = "-p 8080:80 -p 127.0.0.1:8081:80 -p 192.0.2.11:8082-8083:80";
        docker.run(0, &format!("run -d --network my-net {publish} --name web {WEB}"))?;
        docker.run(0, &format!("run -d --network my-net -p 9000:9000 --name who {WHO}"))?;
        docker.run(1, "network create other")?;
        docker.run(1, "run -d --network other --name stranger bb sleep 1000")?;
        // Outside, the host itself, the network's own containers, and others of the mesh.
        for (at, from, url) in [
            (1, "asker", "http://192.0.2.11:8080"),
            (1, "stranger", "http://192.0.2.11:8080"),
            (1, "asker", "http://10.42.1.1:8080"),
            (0, "asker", "http://192.0.2.11:8080"),
            (0, "asker", "http://127.0.0.1:8080"),
            (0, "asker", "http://127.0.0.1:8081"),
            (0, "c1", "http://192.0.2.11:8080"),
            (0, "web", "http://192.0.2.11:8080"),
            (1, "c2", "http://192.0.2.11:8080"),
            (1, "asker", "http://192.0.2.11:8082"),
        ] {
            get(docker, at, from, url)?;
        }
        let ask = || get(docker, 1, "asker", "http://192.0.2.11:9000");
        let source = asked_by(docker, 0, "who", ask)?;
        ensure!(source == "192.0.2.12", "{source}");
        get_nothing(docker, 1, "asker", "http://192.0.2.11:8081")?;
        // A container does not get to what listens on the host's loopback.
        docker.run(
            0,
            "run -d --network host --name local bb httpd -f -p 127.0.0.1:7000 -h /var/www",
        )?;
        get(docker, 0, "asker", "http://127.0.0.1:7000")?;
        docker.run(0, "run -d --network my-net --cap-add NET_ADMIN --name evil bb sleep 1000")?;
        docker.run(0, "exec evil ip route add 127.0.0.1/32 via 10.0.9.1 table 100")?;
        docker.run(0, "exec evil ip addr del 127.0.0.1/8 dev lo")?;
        docker.run(0, "exec evil ip rule add to 127.0.0.1 lookup 100 pref 0")?;
        get_nothing(docker, 0, "evil", "http://127.0.0.1:7000")?;
        // What somebody has is refused, and said.
        for port in ["8080:80", "7000:80"] {
            let error =
                docker.refused(0, &format!("run --rm --network my-net -p {port} bb true"))?;
            ensure!(error.contains("can not be published"), "{port}: {error}");
        }
        docker.run(
            0,
            &format!("run -d --network my-net -p 192.0.2.11:8082-8083:80 --name next {WEB}"),
        )?;
        get(docker, 1, "asker", "http://192.0.2.11:8083")?;
        // Any that is free: who asks the agent finds it.
        docker.run(0, &format!("run -d --network my-net -p 80 --name any {WEB}"))?;
        let any = address(docker, 0, "any")?.to_string();
        let status = docker.topology.hosts[0].status()?;
        let endpoints = status["endpoints"].as_array().context("endpoints")?;
        let endpoint = endpoints.iter().find(|e| e["addresses"][0] == *any).context("any")?;
        let port = endpoint["ports"][0]["host_port"].as_u64().context("a port")?;
        get(docker, 1, "asker", &format!("http://192.0.2.11:{port}"))?;
        // Gone with its container, free for the next.
        docker.run(0, "rm -f web")?;
        get_nothing(docker, 1, "asker", "http://192.0.2.11:8080")?;
        docker.run(0, &format!("run -d --network my-net -p 8080:80 --name web2 {WEB}"))?;
        get(docker, 1, "asker", "http://192.0.2.11:8080")
    });
}

#[test]
fn ipv6_has_the_same_ways_out_and_in() {
    scenario(2, |docker| {
        // The world: the other host, by addresses that are none of the mesh's.
        for (at, host) in docker.topology.hosts.iter().enumerate() {
            let world = format!("2001:db8::{}/64", at + 11);
            host.netns.exec(&format!("ip addr add {world} dev eth0 nodad"))?;
            host.netns.exec("sysctl -qw net.ipv6.conf.all.forwarding=1")?;
            host.netns.exec("ip6tables -P FORWARD DROP")?;
        }
        start(docker, &format!("{CREATE} --ipv6 --subnet fd00:9::/64"), &["c1", "c2"])?;
        let v6 = |docker: &Docker, at: usize, name: &str| -> Result<IpAddr> {
            let format = "{{range.NetworkSettings.Networks}}{{.GlobalIPv6Address}}{{end}}";
            Ok(docker.run(at, &format!("inspect -f {format} {name}"))?.parse()?)
        };
        let (c1, c2) = (v6(docker, 0, "c1")?, v6(docker, 1, "c2")?);
        for (at, name, gateway) in [(0, "c1", "fd00:9::1"), (1, "c2", "fd00:9::8000:0:0:1")] {
            let routes = docker.run(at, &format!("exec {name} ip -6 route"))?;
            ensure!(routes.contains(&format!("default via {gateway} dev eth0")), "{routes}");
            docker.run(at, &format!("exec {name} ping -c 1 -W 2 {gateway}"))?;
        }
        docker.run(0, &format!("exec c1 ping -c 1 -W 2 {c2}"))?;
        // Out: the world sees the host. More than the MTU, too: to the first answer the router says so.
        docker.run(1, &format!("run -d --network host --name world {WHO}"))?;
        let ask = || get(docker, 0, "c1", "http://[2001:db8::12]:9000");
        let source = asked_by(docker, 1, "world", ask)?;
        ensure!(source == "2001:db8::11", "{source}");
        docker.run(0, "exec c1 ping -c 3 -i 0.2 -W 2 -s 1472 2001:db8::12")?;
        // In: from the world, the host by each of its addresses, and the network's own containers.
        let publish = "-p 8080:80 -p [::1]:8081:80 -p [2001:db8::11]:8082:80";
        docker.run(0, &format!("run -d --network my-net {publish} --name web {WEB}"))?;
        docker.run(0, &format!("run -d --network my-net -p 9000:9000 --name who {WHO}"))?;
        for (at, from, url) in [
            (1, "asker", "http://[2001:db8::11]:8080"),
            (1, "c2", "http://[2001:db8::11]:8080"),
            (0, "asker", "http://[2001:db8::11]:8080"),
            (0, "c1", "http://[2001:db8::11]:8080"),
            (0, "web", "http://[2001:db8::11]:8080"),
            (0, "asker", "http://[::1]:8080"),
            (0, "asker", "http://127.0.0.1:8080"),
            (0, "asker", "http://[::1]:8081"),
            (1, "asker", "http://[2001:db8::11]:8082"),
        ] {
            get(docker, at, from, url)?;
        }
        let ask = || get(docker, 1, "asker", "http://[2001:db8::11]:9000");
        let source = asked_by(docker, 0, "who", ask)?;
        ensure!(source == "2001:db8::12", "{source}");
        get_nothing(docker, 1, "asker", "http://[2001:db8::11]:8081")?;
        get_nothing(docker, 0, "asker", "http://[::1]:8082")?;
        // In UDP too, from one client after the other.
        docker.run(0, "run -d --network my-net -p 7000:7000/udp --name echo bb sleep 1000")?;
        echo(docker, 0, "echo", "first")?;
        for to in ["[::1]:7000", "[::1]:7000", "127.0.0.1:7000"] {
            ensure!(ask_udp(docker, 0, to)? == "first");
        }
        ensure!(ask_udp(docker, 1, "[2001:db8::11]:7000")? == "first");
        // Nobody gets in from outside but by a port.
        docker.host(1).netns.exec("ip route add fd00:9::/65 via 2001:db8::11")?;
        get_nothing(docker, 1, "asker", &format!("http://[{}]", v6(docker, 0, "web")?))?;
        // Who comes by ::1 keeps coming: another container, another agent.
        docker.run(0, "rm -f web")?;
        get_nothing(docker, 0, "asker", "http://[::1]:8080")?;
        docker.run(0, &format!("run -d --network my-net -p 8080:80 --name web2 {WEB}"))?;
        get(docker, 0, "asker", "http://[::1]:8080")?;
        let cluster = docker.topology.cluster.clone();
        docker.host(0).kill9();
        get(docker, 1, "asker", "http://[2001:db8::11]:8080")?;
        docker.host(0).up(&cluster)?;
        get(docker, 0, "asker", "http://[::1]:8080")?;
        ensure!(c1.is_ipv6());
        Ok(())
    });
}

#[test]
fn who_keeps_asking_in_udp_gets_to_the_next_container() {
    scenario(2, |docker| {
        for (at, host) in docker.topology.hosts.iter().enumerate() {
            host.netns.exec(&format!("ip addr add 2001:db8::{}/64 dev eth0 nodad", at + 11))?;
            host.netns.exec("sysctl -qw net.ipv6.conf.all.forwarding=1")?;
        }
        start(docker, &format!("{CREATE} --ipv6 --subnet fd00:9::/64"), &["c1", "c2"])?;
        let askers = [
            udp(docker, 1, "192.0.2.11:7001")?,
            udp(docker, 1, "[2001:db8::11]:7001")?,
            udp(docker, 0, "192.0.2.11:7001")?,
            udp(docker, 0, "127.0.0.1:7001")?,
            udp(docker, 0, "[::1]:7001")?,
        ];
        // The first speaks before anybody is there to hear it.
        askers[0].send(b"?")?;
        let run = "run -d --network my-net -p 7001:7000/udp";
        docker.run(0, &format!("{run} --name old bb sleep 1000"))?;
        echo(docker, 0, "old", "old")?;
        for asker in &askers {
            ensure!(answer(asker)? == "old");
        }
        // They never pause for as long as the kernel keeps what nobody answers, half a minute.
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // Refused, while there is nobody.
                    askers.iter().for_each(|asker| drop(asker.send(b"?")));
                    thread::sleep(Duration::from_millis(20));
                }
            });
            let next = || -> Result<()> {
                docker.run(0, "rm -f old")?;
                docker.run(0, &format!("{run} --name new bb sleep 1000"))?;
                echo(docker, 0, "new", "new")?;
                askers.iter().try_for_each(|asker| {
                    wait::until(&format!("{asker:?} to hear the new one"), SEEN, || {
                        match answer(asker) {
                            Ok(said) if said == "new" => Ok(()),
                            other => Err(format!("{other:?}")),
                        }
                    })
                })
            };
            let result = next();
            done.store(true, Ordering::Relaxed);
            result
        })
    });
}

/// Answers each datagram to port 7000 of a container with `answer`, until the container ends.
fn echo(docker: &Docker, at: usize, container: &str, answer: &'static str) -> Result<()> {
    let socket = docker.netns(at, container)?.run(|| Ok(UdpSocket::bind("[::]:7000")?))?;
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(answer.as_bytes(), from);
        }
    });
    Ok(())
}

/// A socket of a host's that speaks to this address alone.
fn udp(docker: &Docker, at: usize, to: &str) -> Result<UdpSocket> {
    let to: SocketAddr = to.parse()?;
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = docker.topology.hosts[at].netns.run(|| Ok(UdpSocket::bind((any, 0))?))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    socket.connect(to)?;
    Ok(socket)
}

/// What is answered to a datagram, sent again until it is.
fn answer(socket: &UdpSocket) -> Result<String> {
    wait::until(&format!("an answer to {socket:?}"), SEEN, || {
        socket.send(b"?").map_err(|e| e.to_string())?;
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer).map_err(|e| e.to_string())?;
        Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
    })
}

fn ask_udp(docker: &Docker, at: usize, to: &str) -> Result<String> {
    answer(&udp(docker, at, to)?).with_context(|| format!("h{}: {to}", at + 1))
}

/// What it sends to the world has the host's own address, as what the host sends itself: the nodes would
/// take it for that.
#[test]
fn no_container_sends_what_only_its_host_may() {
    scenario(2, |docker| {
        start(docker, CREATE, &["one", "two"])?;
        let senders = [
            ("the host", docker.topology.hosts[0].netns.clone(), 1),
            ("a container behind it", docker.netns(0, "one")?, 0),
        ];
        let node = cluster::underlay(2);
        // VXLAN with VNI 0 (RFC 7348, 5), the cluster's own network, and no IP in it.
        let tunnel = [&[8, 0, 0, 0, 0, 0, 0, 0][..], &[0; 64]].concat();
        for (sender, netns, arrives) in senders {
            let count = || docker.topology.hosts[1].drops("not_ip");
            let before = count()?;
            let socket = netns.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
            socket.send_to(&tunnel, (node.as_str(), 4789))?;
            // It reaches what is no tunnel there.
            socket.send_to(&tunnel, (node.as_str(), 4790))?;
            thread::sleep(Duration::from_millis(300));
            let counted = count()? - before;
            ensure!(counted == arrives, "{counted} from {sender}");
        }
        Ok(())
    });
}

#[test]
fn it_outlives_agents_and_daemons_and_leaves_nothing_behind() {
    scenario(2, |docker| {
        let cluster = docker.topology.cluster.clone();
        start(docker, CREATE, &["c1", "c2"])?;
        docker.run(0, &format!("run -d --network my-net -p 8080:80 --name web {WEB}"))?;
        let works = |docker: &Docker| {
            get(docker, 1, "asker", "http://192.0.2.11:8080")?;
            docker.run(0, "exec c1 ping -c 1 -W 2 192.0.2.12").map(drop)
        };
        works(docker)?;
        // The agent gone, and back.
        docker.host(0).kill9();
        works(docker)?;
        docker.host(0).up(&cluster)?;
        works(docker)?;
        let error = docker.refused(0, "run --rm --network my-net -p 8080:80 bb true")?;
        ensure!(error.contains("can not be published"), "{error}");
        // Rules that somebody took away come back.
        docker.host(0).netns.exec("nft delete table inet mesh_gateways")?;
        docker.host(0).netns.exec("iptables -F FORWARD")?;
        docker.run(0, &format!("run -d --network my-net -p 8081:80 --name web2 {WEB}"))?;
        get(docker, 1, "asker", "http://192.0.2.11:8081")?;
        works(docker)?;
        // The daemon, in each way.
        for signal in [Signal::TERM, Signal::KILL] {
            docker.end_daemon(0, signal)?;
            docker.start_daemon(0, &[])?;
            docker.wait_daemon(0)?;
            docker.run(0, "start c1 web")?;
            works(docker)?;
        }
        // Removed with its network, on all hosts.
        docker.run(0, "rm -f c1 web web2")?;
        docker.run(1, "rm -f c2")?;
        docker.run(0, "network rm my-net")?;
        for at in [0, 1] {
            docker.wait_for(at, "network ls -q -f name=my-net", str::is_empty)?;
            let host = docker.host(at);
            wait::until_true("the rules to go", SEEN, || {
                !host.netns.exec("nft list tables").unwrap_or_default().contains("mesh_gateways")
            })?;
            let rules = host.netns.exec("iptables -S FORWARD")?;
            ensure!(!rules.contains("mesh"), "{rules}");
            let addresses = host.netns.exec("ip addr show dev mesh0")?;
            ensure!(!addresses.contains("10.0.9."), "{addresses}");
        }
        // And with the mesh.
        docker.host(0).down()?;
        let before = Snapshot::of(docker.host(0))?;
        docker.host(0).up(&cluster)?;
        docker.run(0, CREATE)?;
        docker.run(0, "run -d --network my-net -p 8080:80 --name late bb sleep 1000")?;
        get_nothing(docker, 1, "asker", "http://192.0.2.11:8080")?;
        docker.host(0).down()?;
        before.expect_same(&Snapshot::of(docker.host(0))?)
    });
}

#[test]
fn what_can_not_be_is_refused() {
    scenario(1, |docker| {
        let create = "network create -d mesh --subnet 10.0.9.0/24";
        for (options, says) in [
            ("-o gateway=docker", "must be mesh"),
            ("-o gateway=mesh --internal", "--internal"),
            ("-o gateway=mesh --gateway 10.0.9.77", "leave it out"),
        ] {
            let error = docker.refused(0, &format!("{create} {options} x"))?;
            ensure!(error.contains(says), "{options}: {error:?} does not say {says:?}");
        }
        docker.run(0, CREATE)?;
        let error = docker.refused(0, "run --rm --network my-net --ip 10.0.9.1 bb true")?;
        ensure!(error.contains("in use"), "{error}");
        Ok(())
    });
}
