//! `docker network create -d mesh`, with real Docker daemons.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, UdpSocket},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    cni::call,
    docker::{Docker, scenario},
    netns::check,
    wait,
};
use rustix::process::Signal;

mod compose;
mod crowd;
mod endings;
mod holdings;

const CREATE: &str = "network create -d mesh --subnet 10.0.9.0/24 my-net";
const WEB: &str =
    "run -d --network my-net --name web --stop-timeout 1 bb httpd -f -p 80 -h /var/www";
const NAMES: Duration = Duration::from_secs(40);

/// Half a second at most, and what it takes to ask; a client waits 5 s for who does not answer.
const DENIED: Duration = Duration::from_secs(3);

/// `wget http://HOST` from a new container, until it works.
fn get(docker: &Docker, at: usize, url: &str) -> Result<()> {
    let line = format!("run --rm --network my-net bb timeout 5 wget -qO- {url}");
    docker.wait_for(at, &line, |page| page == "hello").map(drop)
}

fn address(docker: &Docker, at: usize, container: &str) -> Result<Ipv4Addr> {
    let format = "{{range.NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let text = docker.run(at, &format!("inspect -f {format} {container}"))?;
    text.parse().with_context(|| format!("{container} has the address {text:?}"))
}

#[test]
fn a_network_made_on_one_host_joins_containers_on_all() {
    scenario(3, |docker| {
        docker.run(0, CREATE)?;
        docker.wait_network("my-net")?;
        docker.run(0, WEB)?;
        let web = address(docker, 0, "web")?;
        ensure!(web == Ipv4Addr::new(10, 0, 9, 2), "web has {web}");
        for at in [1, 2] {
            get(docker, at, "http://10.0.9.2")?;
            get(docker, at, "http://web")?;
            get(docker, at, "http://web.my-net")?;
        }
        // The mesh's MTU, Docker's prefix.
        let link = docker.run(0, "exec web ip addr show dev eth0")?;
        ensure!(link.contains("mtu 1462") && link.contains("10.0.9.2/24"), "{link}");
        // Out into the world by Docker's own bridge.
        let routes = docker.run(0, "exec web ip route")?;
        ensure!(routes.contains("default via 172.18.0.1 dev eth1"), "{routes}");
        for (at, host) in docker.topology.hosts.iter().enumerate() {
            let policy = host.netns.exec("iptables -S FORWARD")?;
            ensure!(policy.contains("-P FORWARD DROP"), "{policy}");
            // Docker 28 waits for the bridge that gives an interface its headroom, unless told not to.
            let log = docker.log(at)?;
            ensure!(!log.contains("Bridge port not forwarding"), "{log}");
        }
        Ok(())
    });
}

#[test]
fn a_network_that_floods_carries_broadcast_to_other_hosts() {
    scenario(2, |docker| {
        let refused = docker.refused(0, "network create -d mesh -o flood=some quiet")?;
        ensure!(refused.contains("flood=some"), "{refused}");
        docker.run(0, &CREATE.replace("-d mesh", "-d mesh -o flood=all"))?;
        docker.wait_network("my-net")?;
        for (at, name) in [(0, "one"), (1, "two")] {
            docker.run(at, &format!("run -d --network my-net --name {name} bb sleep 1000"))?;
        }
        let one = address(docker, 0, "one")?;
        let hears = docker.netns(1, "two")?.run(|| Ok(UdpSocket::bind("0.0.0.0:9")?))?;
        hears.set_read_timeout(Some(Duration::from_secs(1)))?;
        let says = docker.netns(0, "one")?.run(|| Ok(UdpSocket::bind((one, 0))?))?;
        says.set_broadcast(true)?;
        wait::until("broadcast to be heard", NAMES, || {
            let mut text = [0; 16];
            says.send_to(b"hello", "10.0.9.255:9").map_err(|e| e.to_string())?;
            let (n, from) = hears.recv_from(&mut text).map_err(|e| e.to_string())?;
            if from.ip() == one && &text[..n] == b"hello" { Ok(()) } else { Err(from.to_string()) }
        })?;
        Ok(())
    });
}

#[test]
fn names_come_and_go_with_their_containers() {
    scenario(2, |docker| {
        docker.run(0, CREATE)?;
        docker.run(0, "network create -d mesh --subnet 10.0.8.0/24 other")?;
        docker.wait_network("my-net")?;
        docker.wait_network("other")?;
        docker.run(1, "run -d --network my-net --name asker bb sleep 1000")?;
        docker.run(1, "run -d --network other --name stranger bb sleep 1000")?;
        docker.run(0, "run -d --network my-net --name one --network-alias api bb sleep 1000")?;
        docker.run(0, "run -d --network my-net --name two --network-alias api bb sleep 1000")?;
        let (one, two) = (address(docker, 0, "one")?, address(docker, 0, "two")?);
        let id = docker.run(0, "inspect -f {{.Id}} one")?;
        for name in ["one", "one.my-net", &id[..12]] {
            let line = format!("exec asker nslookup {name}");
            docker.wait_for(1, &line, |text| text.contains(&format!("Address: {one}")))?;
        }
        let both =
            |text: &str| [one, two].iter().all(|ip| text.contains(&format!("Address: {ip}")));
        docker.wait_for(1, "exec asker nslookup api", both)?;
        let back = format!("exec asker nslookup {one}");
        docker.wait_for(1, &back, |text| text.contains("name = one.my-net"))?;
        let hidden = docker.refused(1, "exec stranger nslookup one")?;
        ensure!(!hidden.contains(&one.to_string()), "{hidden}");
        docker.run(0, "rm -f one")?;
        let gone = || match docker.refused(1, "exec asker nslookup one") {
            Ok(_) => Ok(()),
            Err(e) => Err(format!("{e:#}")),
        };
        wait::until("a name to be gone", NAMES, gone)?;
        docker.wait_for(1, "exec asker nslookup api", |text| {
            text.contains(&two.to_string()) && !text.contains(&format!("Address: {one}"))
        })?;
        Ok(())
    });
}

/// What changed on both sides while the hosts did not hear each other is known to both when they do.
#[test]
fn hosts_that_were_cut_off_agree_again_on_names_and_networks() {
    scenario(2, |docker| {
        docker.run(0, CREATE)?;
        docker.wait_network("my-net")?;
        docker.run(0, "run -d --network my-net --name one bb sleep 1000")?;
        docker.run(1, "run -d --network my-net --name two bb sleep 1000")?;
        let (one, two) = (address(docker, 0, "one")?, address(docker, 1, "two")?);
        let knows = |docker: &Docker, at, who: &str, name: &str, ip: Ipv4Addr| {
            let line = format!("exec {who} nslookup {name}");
            docker.wait_for(at, &line, |text| text.contains(&format!("Address: {ip}"))).map(drop)
        };
        knows(docker, 1, "two", "one", one)?;
        knows(docker, 0, "one", "two", two)?;
        docker.topology.switch.exec("ip link set h1 down")?;
        docker.run(0, "rm -f one")?;
        docker.run(0, "run -d --network my-net --name three bb sleep 1000")?;
        docker.run(0, "network create -d mesh --subnet 10.0.8.0/24 late")?;
        docker.run(1, "run -d --network my-net --name four bb sleep 1000")?;
        docker.topology.switch.exec("ip link set h1 up")?;
        let (three, four) = (address(docker, 0, "three")?, address(docker, 1, "four")?);
        knows(docker, 1, "two", "three", three)?;
        knows(docker, 0, "three", "four", four)?;
        docker.wait_network("late")?;
        docker.refused(1, "exec two nslookup one")?;
        Ok(())
    });
}

#[test]
fn a_name_that_nobody_has_is_denied_and_the_world_is_not_waited_for() {
    scenario(2, |docker| {
        docker.run(0, CREATE)?;
        docker.wait_network("my-net")?;
        docker.run(0, "run -d --network my-net --name one bb sleep 1000")?;
        docker.run(1, "run -d --network my-net --name asker bb sleep 1000")?;
        docker.wait_for(1, "exec asker nslookup -type=a one", |text| text.contains("10.0.9."))?;
        // The host's resolver does not answer at all.
        for name in ["nobody.my-net", "nobody", "one-more"] {
            let began = Instant::now();
            let output = docker.try_run(1, &format!("exec asker nslookup -type=a {name}"))?;
            let took = began.elapsed();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(said.contains("NXDOMAIN"), "{name}: {said}");
            ensure!(took < wait::patient(DENIED), "{name} was denied after {took:?}");
        }
        Ok(())
    });
}

#[test]
fn daemons_and_agents_that_end_take_nothing_with_them() {
    scenario(2, |docker| {
        docker.run(0, CREATE)?;
        docker.wait_network("my-net")?;
        docker.run(0, WEB)?;
        docker.run(1, "run -d --network my-net --name c2 bb sleep 1000")?;
        let ping = "exec c2 ping -c 1 -w 5 10.0.9.2";
        docker.run(1, ping)?;
        // The agent killed: what runs keeps talking, and what is new works when it is back.
        let cluster = docker.topology.cluster.clone();
        docker.host(0).kill9();
        docker.run(1, ping)?;
        docker.host(0).up(&cluster)?;
        docker.run(1, ping)?;
        get(docker, 1, "http://web")?;
        // The daemon, in each way.
        for signal in [Signal::TERM, Signal::KILL] {
            docker.end_daemon(0, signal)?;
            docker.start_daemon(0, &[])?;
            docker.wait_daemon(0)?;
            docker.run(0, "start web")?;
            get(docker, 1, "http://web")?;
            let attached = docker.host(0).status()?["endpoints"].as_array().map_or(0, Vec::len);
            ensure!(attached == 1, "{attached} endpoints on h1");
        }
        docker.run(0, "rm -f web")?;
        docker.run(1, "rm -f c2")?;
        docker.run(1, "network rm my-net")?;
        let gone = |text: &str| text.is_empty();
        docker.wait_for(0, "network ls -q -f name=my-net", gone)?;
        for host in &docker.topology.hosts {
            wait::until(&format!("{} to have nothing left", host.name), NAMES, || {
                let status = host.status().map_err(|e| format!("{e:#}"))?;
                let (endpoints, networks) = (&status["endpoints"], &status["networks"]);
                let is_bare = endpoints.as_array().is_some_and(Vec::is_empty)
                    && networks.as_array().is_some_and(|n| n.len() == 1);
                if is_bare { Ok(()) } else { Err(format!("{endpoints:#} {networks:#}")) }
            })?;
        }
        Ok(())
    });
}

#[test]
fn what_can_not_be_is_refused_with_the_conflict() {
    scenario(2, |docker| {
        docker.run(0, CREATE)?;
        docker.wait_network("my-net")?;
        for (line, says) in [
            (
                "network create -d mesh --ipam-driver mesh --subnet 10.0.9.128/25 x",
                "network my-net",
            ),
            ("network create -d mesh --subnet 10.42.7.0/24 x", "network default"),
            ("network create -d mesh --subnet 192.0.2.0/24 x", "underlay address of node h1"),
            ("network create -d mesh --subnet 10.0.7.0/30 x", "too small"),
            ("network create -d mesh --subnet 10.0.7.0/24 -o vni=0 x", "vni=0"),
            ("network create -d mesh --subnet 10.0.7.0/24 -o color=red x", "color"),
            ("network create -d mesh --subnet 10.0.7.0/24 -o encap=vxlan x", "encap=vxlan"),
            ("run --rm --network my-net --ip 10.0.9.200 bb true", "10.0.9.0/25"),
        ] {
            let error = docker.refused(0, line)?;
            ensure!(error.contains(says), "{line}: {error:?} does not say {says:?}");
        }
        // The other node gives out the other half, and what is asked for there.
        docker.run(1, "run -d --network my-net --name c2 --ip 10.0.9.200 bb sleep 1000")?;
        ensure!(address(docker, 1, "c2")? == Ipv4Addr::new(10, 0, 9, 200));
        docker.run(0, "run --rm --network my-net bb ping -c 1 -w 5 10.0.9.200")?;
        Ok(())
    });
}

#[test]
fn a_container_that_is_none_of_dockers_joins_its_network_and_has_a_name() {
    scenario(3, |docker| {
        docker.run(0, CREATE)?;
        docker.wait_network("my-net")?;
        docker.run(0, "run -d --network my-net --name c1 bb sleep 1000")?;
        let host = &docker.topology.hosts[1];
        let added = host.command("ip").args(["netns", "add", "pod"]).output()?;
        check("ip netns add", &added)?;
        let vars = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "sandbox"),
            ("CNI_NETNS", "/run/netns/pod"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=pod1;K8S_POD_NAMESPACE=shop"),
        ];
        let conf =
            r#"{"cniVersion": "1.0.0", "name": "pods", "type": "mesh", "network": "my-net"}"#;
        let result = call(host, &vars, conf)?.ok()?;
        // Docker's container on this host gets another address, and theirs stay apart.
        let pod = result["ips"][0]["address"].as_str().context("an address")?;
        let pod: Ipv4Addr = pod.split('/').next().unwrap_or_default().parse()?;
        docker.run(1, "run -d --network my-net --name c2 bb sleep 1000")?;
        ensure!(address(docker, 1, "c2")? != pod, "{pod} was given twice");
        for name in ["pod1", "pod1.shop", "sandbox", "pod1.my-net"] {
            let line = format!("exec c1 nslookup {name}");
            docker.wait_for(0, &line, |text| text.contains(&format!("Address: {pod}")))?;
        }
        docker.run(0, &format!("exec c1 ping -c 1 -w 5 {pod}"))?;
        // In use there, it is not removed by any host.
        docker.run(1, "rm -f c2")?;
        for at in [1, 2] {
            docker.run(at, "network rm my-net")?;
            docker.wait_for(at, "network ls -q -f name=^my-net$", |ids| !ids.is_empty())?;
            docker.run(0, &format!("exec c1 ping -c 1 -w 5 {pod}"))?;
        }
        let host = &docker.topology.hosts[1];
        ensure!(call(host, &[("CNI_COMMAND", "DEL"), vars[1], vars[3]], conf)?.code() == 0);
        ensure!(host.status()?["endpoints"].as_array().is_some_and(Vec::is_empty));
        Ok(())
    });
}

#[test]
fn bad_input_gets_an_error_and_harms_nothing() {
    scenario(1, |docker| {
        docker.run(0, CREATE)?;
        let host = &docker.topology.hosts[0];
        let inside = host.inside.context("a host with namespaces of its own")?;
        let plugin = format!("/proc/{inside}/root/run/docker/plugins/mesh.sock");
        let post = |method: &str, body: &[u8]| -> Result<String> {
            let mut stream = UnixStream::connect(&plugin)?;
            stream.set_read_timeout(Some(NAMES))?;
            let len = body.len();
            let head = format!("POST /{method} HTTP/1.1\r\nHost: \r\nContent-Length: {len}\r\n");
            stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
            // Who says no before all is read closes.
            let _ = stream.write_all(body);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        for (method, body) in [
            ("NetworkDriver.Join", &b"{\"NetworkID\":"[..]),
            ("NetworkDriver.Join", b""),
            (
                "NetworkDriver.CreateNetwork",
                b"{\"NetworkID\":\"a\",\"IPv4Data\":[{\"Pool\":\"x\"}]}",
            ),
            ("IpamDriver.RequestPool", b"{\"Pool\":\"10.0.9.1/99\"}"),
            ("IpamDriver.RequestAddress", b"{\"PoolID\":\"x\"}"),
            ("No.Such", b"{}"),
        ] {
            let answer = post(method, body)?;
            ensure!(answer.contains("\"Err\":"), "{method}: {answer}");
        }
        let long = post("NetworkDriver.Join", &vec![b'x'; 10 << 20])?;
        ensure!(long.is_empty() || long.starts_with("HTTP/1.1 413"), "{long}");
        // What Docker never made is no trouble to take away.
        let unknown = post("NetworkDriver.Leave", b"{\"NetworkID\":\"a\",\"EndpointID\":\"b\"}")?;
        ensure!(unknown.starts_with("HTTP/1.1 200") && !unknown.contains("Err"), "{unknown}");

        let overlay = host.overlay_addresses()?[0];
        let socket = host.netns.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        socket.set_read_timeout(Some(NAMES))?;
        socket.connect((overlay, 53))?;
        for bytes in [&[][..], &[0; 3], &[0xff; 300], &[0; 11]] {
            socket.send(bytes)?;
        }
        // A name that points to itself: counted as a question, and refused.
        let mut question = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1];
        let mut answer = [0; 512];
        socket.send(&question)?;
        let len = socket.recv(&mut answer)?;
        ensure!(answer[..2] == [7, 7] && answer[3] & 0xf == 1, "{:x?}", &answer[..len]);
        question.truncate(12);
        socket.send(&question)?;
        socket.recv(&mut answer)?;
        ensure!(answer[3] & 0xf == 1, "{:x?}", &answer[..12]);
        docker.run(0, WEB)?;
        get(docker, 0, "http://web")
    });
}
