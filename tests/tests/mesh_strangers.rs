//! Who may not ask the agent, and what it costs when they try.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Host, Netns, Options, Topology, cni, dns, ping, scenario::bare, socket, wait};

const OPTIONS: Options = Options { hosts: 2, containers: 3, ipv6: false, ..Options::DEFAULT };
const H1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 42, 1, 1));
const NAMES: u16 = dns::PORT;
const AGENTS: u16 = 7473;
/// As many descriptors as most hosts give a program.
const FEW: &str = "ulimit -n 1024";
const SEEN: Duration = Duration::from_secs(40);
/// For an answer that must not come.
const SILENCE: Duration = Duration::from_millis(700);

/// Agents on all hosts of the cluster, and their first containers, which know each other by name.
fn up(mesh: &mut Topology) -> Result<()> {
    let cluster = mesh.cluster.clone();
    let in_cluster = |host: &&mut Host| cluster.managed().any(|node| node.name == host.name);
    for host in mesh.hosts.iter_mut().filter(in_cluster) {
        host.spawn_after(&cluster, FEW)?;
    }
    for host in mesh.hosts.iter_mut().filter(in_cluster) {
        host.wait_ready(&cluster)?;
        cni::add(host, 0)?;
    }
    let from = &mesh.hosts[0].containers[0].netns;
    for node in cluster.managed() {
        dns::wait_known(from, H1, &format!("{}c1", node.name))?;
    }
    Ok(())
}

fn agent_file(host: &Host, name: &str) -> Result<String> {
    let path = format!("/proc/{}/{name}", host.pid().context("no agent")?);
    fs::read_to_string(&path).with_context(|| path)
}

fn descriptors(host: &Host) -> Result<usize> {
    let folder = format!("/proc/{}/fd", host.pid().context("no agent")?);
    Ok(fs::read_dir(folder)?.count())
}

/// Resident memory of the agent, in bytes.
fn memory(host: &Host) -> Result<u64> {
    let status = agent_file(host, "status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib << 10)
}

/// What the agent says is wrong.
fn faults(host: &Host) -> Result<Vec<String>> {
    let status = host.status()?;
    let faults = status["faults"].as_array().cloned().unwrap_or_default();
    Ok(faults.iter().filter_map(|fault| fault.as_str().map(str::to_owned)).collect())
}

/// A connection from a port of its own, or from one that only root may have.
fn connect(from: &Netns, to: SocketAddr, port: Option<u16>) -> Result<TcpStream> {
    from.run(|| {
        let limit = wait::patient(Duration::from_secs(2));
        let Some(port) = port else { return Ok(TcpStream::connect_timeout(&to, limit)?) };
        let socket = socket::open(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        socket::set(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        Ok(socket::connect_from(socket, port, to)?)
    })
}

#[test]
fn idle_connections_of_a_container_take_nothing_from_the_host() {
    bare(OPTIONS, |mesh| {
        up(mesh)?;
        let [host, other] = &mesh.hosts[..] else { unreachable!() };
        cni::add(host, 1)?;
        let evil = &host.containers[1].netns;
        let mut idle = Vec::new();
        for n in 0..1500 {
            // Root in a container may have reserved ports as well.
            let port = (n % 2 == 0).then(|| 600 + (n / 2) % 400);
            idle.extend(connect(evil, (H1, AGENTS).into(), port));
        }
        ensure!(host.status()?["agent"].as_u64() == host.pid().map(Into::into), "no answer");
        let open = descriptors(host)?;
        ensure!(open < 400, "the agent has {open} descriptors open");
        cni::add(host, 2)?;
        // Agents tell each other of a name that is new.
        cni::add(other, 1)?;
        dns::wait_known(&host.containers[0].netns, H1, "h2c2")?;
        dns::wait_known(&other.containers[0].netns, "10.42.2.1".parse()?, "h1c3")?;
        drop(idle);
        Ok(())
    });
}

#[test]
fn unfinished_requests_take_little_memory_and_give_it_back() {
    bare(Options { hosts: 3, ..OPTIONS }, |mesh| {
        up(mesh)?;
        let host = &mesh.hosts[0];
        let before = memory(host)?;
        // Another host that was taken over.
        let evil = &mesh.hosts[1].netns;
        let body = vec![b' '; 4 << 20];
        let mut held = Vec::new();
        for n in 0..200 {
            let Ok(mut stream) = connect(evil, (H1, AGENTS).into(), Some(600 + n)) else {
                continue;
            };
            stream.set_write_timeout(Some(wait::patient(Duration::from_secs(1))))?;
            let head = format!(
                "POST /v1/exchange HTTP/1.1\r\nhost: mesh\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n",
                body.len()
            );
            // It may be refused in the middle of it.
            let sent = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(&body[..body.len() - 1]));
            held.push((stream, sent));
        }
        let most = memory(host)?.saturating_sub(before) >> 20;
        ensure!(most < 64, "it took {most} MiB");
        cni::add(&mesh.hosts[2], 1)?;
        dns::wait_known(&host.containers[0].netns, H1, "h3c2")?;
        drop(held);
        wait::until("the memory to come back", SEEN, || {
            let more = memory(host).map_err(|e| format!("{e:#}"))?.saturating_sub(before) >> 20;
            if more < 24 { Ok(()) } else { Err(format!("{more} MiB")) }
        })
    });
}

/// No answer by UDP, no connection by TCP.
fn expect_closed(from: &Netns, server: IpAddr) -> Result<()> {
    let answer = dns::ask(from, server, "h1c1", SILENCE)?;
    ensure!(answer.is_none(), "port {NAMES} of {server} answered {answer:?}");
    for port in [NAMES, AGENTS] {
        let stream = connect(from, (server, port).into(), None);
        ensure!(stream.is_err(), "port {port} of {server} took a connection");
    }
    Ok(())
}

#[test]
fn the_underlay_and_other_bridges_find_closed_ports() {
    bare(Options { ipv6: true, ..OPTIONS }, |mesh| {
        mesh.cluster = mesh.cluster.clone().without_node("h2");
        up(mesh)?;
        let [host, machine] = &mesh.hosts[..] else { unreachable!() };
        let container = &host.containers[2];
        host.netns.ip_batch("addr add 2001:db8::1/64 dev eth0 nodad\n")?;
        machine.netns.ip_batch(
            "addr add 2001:db8::2/64 dev eth0 nodad\nroute add 10.42.1.1 via 192.0.2.11\n\
             route add fd42:0:0:1::1 via 2001:db8::1\n",
        )?;
        host.netns.ip_batch(&format!(
            "link add other0 type bridge\nlink set other0 up\naddr add 172.30.0.1/24 dev other0\n\
             addr add fd30::1/64 dev other0 nodad\n\
             link add port0 type veth peer name eth0 netns {}\nlink set port0 master other0 up\n",
            container.netns.name()
        ))?;
        container.netns.ip_batch(
            "addr add 172.30.0.2/24 dev eth0\naddr add fd30::2/64 dev eth0 nodad\n\
             link set eth0 up\nroute add default via 172.30.0.1\nroute add default via fd30::1\n",
        )?;
        let servers = [H1, "fd42:0:0:1::1".parse()?];
        for server in servers {
            for from in [&machine.netns, &container.netns] {
                // It can be reached: what is closed are the ports.
                ping::expect_ping(from, server)?;
                expect_closed(from, server)?;
            }
            // Who may: the host and a container of the mesh.
            dns::wait_known(&host.netns, server, "h1c1")?;
            dns::wait_known(&host.containers[0].netns, server, "h1c1")?;
        }
        // And one of the bridge by which Docker leads containers of other networks out, whenever that
        // comes.
        host.netns.ip_batch(
            "link set other0 down\nlink set other0 name docker_gwbridge\n\
             link set docker_gwbridge up\naddr replace fd30::1/64 dev docker_gwbridge nodad\n",
        )?;
        for server in servers {
            ping::expect_ping(&container.netns, server)?;
            wait::until("an answer on docker_gwbridge", SEEN, || {
                let answer = dns::ask(&container.netns, server, "h1c1", SILENCE);
                answer.map_err(|e| format!("{e:#}"))?.ok_or_else(|| "none".to_owned())
            })?;
            expect_closed(&machine.netns, server)?;
        }
        Ok(())
    });
}

#[test]
fn a_busy_port_is_a_fault_until_it_is_free() {
    bare(Options { hosts: 1, ..OPTIONS }, |mesh| {
        let cluster = mesh.cluster.clone();
        let any = Ipv4Addr::UNSPECIFIED;
        let netns = mesh.hosts[0].netns.clone();
        let names = netns.run(|| Ok(UdpSocket::bind((any, NAMES))?))?;
        let agents = netns.run(|| Ok(TcpListener::bind((any, AGENTS))?))?;
        let host = &mut mesh.hosts[0];
        host.up(&cluster)?;
        cni::add(host, 0)?;
        let says = |port: u16| format!("port {port} of {H1} is taken by ");
        let fault = |host: &Host, port: u16| -> Result<String, String> {
            let faults = faults(host).map_err(|e| format!("{e:#}"))?;
            let found = faults.iter().find(|fault| fault.starts_with(&says(port)));
            found.cloned().ok_or_else(|| format!("{faults:?}"))
        };
        let pid = format!("(process {})", std::process::id());
        for port in [NAMES, AGENTS] {
            let text = wait::until("the fault", SEEN, || fault(host, port))?;
            ensure!(text.contains(&pid) && text.contains("end it"), "{text}");
        }
        drop(names);
        let gone = |host: &Host, port: u16| {
            wait::until("the fault to go", SEEN, || match fault(host, port) {
                Ok(text) => Err(text),
                Err(_) => Ok(()),
            })
        };
        gone(host, NAMES)?;
        dns::wait_known(&host.containers[0].netns, H1, "h1c1")?;
        fault(host, AGENTS).map_err(anyhow::Error::msg)?;
        drop(agents);
        gone(host, AGENTS)
    });
}

/// Answers every request to h2's agent with news of its own, until `ended`. Counts them.
fn pose_as_h2(listener: &TcpListener, answered: &AtomicUsize, ended: &AtomicBool) -> Result<()> {
    let version = serde_json::json!({"epoch": u64::MAX, "count": 9});
    let named = serde_json::json!({"names": ["bank"], "addresses": ["10.42.2.9"]});
    let news = serde_json::json!({
        "node": "h2", "have": version, "version": version, "view": {"networks": {"default": [named]}},
        "networks": [record("forged", "10.77.0.0/24")],
    });
    let body = news.to_string();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
    listener.set_nonblocking(true)?;
    while !ended.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut request = vec![0; 64 << 10];
        if stream.read(&mut request).is_ok() {
            write!(stream, "{head}{}\r\n\r\n{body}", body.len())?;
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// A network that h2 tells of.
fn record(name: &str, net: &str) -> serde_json::Value {
    serde_json::json!({
        "name": name, "version": 1, "node": "h2",
        "spec": {
            "vni": 501, "subnets": [{"net": net, "gateway": null}], "first": "h2", "internal": false,
            "options": {}, "labels": {},
        },
    })
}

/// Any user may have the port while the agent is started anew.
#[test]
fn who_has_the_port_of_an_agent_does_not_speak_for_its_node() {
    bare(OPTIONS, |mesh| {
        let cluster = mesh.cluster.clone();
        for host in &mut mesh.hosts {
            host.up(&cluster)?;
            cni::add(host, 0)?;
        }
        dns::wait_known(&mesh.hosts[0].containers[0].netns, H1, "h2c1")?;
        let [host, other] = &mut mesh.hosts[..] else { unreachable!() };
        other.stop()?;
        let address: SocketAddr = "10.42.2.1:7473".parse()?;
        let listener = other.netns.run(|| Ok(TcpListener::bind(address)?))?;
        let (answered, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
        let from = &host.containers[0].netns;
        let seen = thread::scope(|scope| {
            let poser = scope.spawn(|| pose_as_h2(&listener, &answered, &ended));
            let seen = wait::until("answers to be taken", SEEN, || {
                match answered.load(Ordering::Relaxed) {
                    3.. => Ok(()),
                    n => Err(format!("{n} so far")),
                }
            });
            ended.store(true, Ordering::Relaxed);
            poser.join().map_err(|_| anyhow::anyhow!("the poser panicked"))??;
            seen
        });
        seen?;
        let answer = dns::ask(from, H1, "bank", SILENCE)?;
        ensure!(answer.is_none_or(|a| a.address.is_none()), "believed: {answer:?}");
        let networks = host.status()?["networks"].to_string();
        ensure!(!networks.contains("forged"), "believed: {networks}");
        drop(listener);
        other.spawn(&cluster)?;
        other.wait_ready(&cluster)?;
        // Each hears of the other again.
        cni::add(other, 1)?;
        dns::wait_known(from, H1, "h2c2")?;
        dns::wait_known(&other.containers[0].netns, "10.42.2.1".parse()?, "h1c1")?;
        Ok(())
    });
}

/// Tells h1 as h2 does: from its address, and a port that only root may have.
fn tell(
    from: &Netns,
    port: u16,
    view: &serde_json::Value,
    networks: &[serde_json::Value],
) -> Result<()> {
    let news = serde_json::json!({
        "node": "h2", "have": null, "version": {"epoch": u64::MAX, "count": port}, "view": view,
        "networks": networks,
    });
    let body = news.to_string();
    let mut stream = connect(from, (H1, AGENTS).into(), Some(port))?;
    stream.set_read_timeout(Some(wait::patient(Duration::from_secs(5))))?;
    let head = "POST /v1/exchange HTTP/1.1\r\nhost: mesh\r\ncontent-type: application/json\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

/// A host that was taken over.
#[test]
fn networks_and_names_that_may_not_be_are_not_taken_and_are_a_fault() {
    bare(OPTIONS, |mesh| {
        let cluster = mesh.cluster.clone();
        for host in &mut mesh.hosts {
            host.up(&cluster)?;
            cni::add(host, 0)?;
        }
        dns::wait_known(&mesh.hosts[0].containers[0].netns, H1, "h2c1")?;
        let [host, other] = &mut mesh.hosts[..] else { unreachable!() };
        other.stop()?;
        let nets = [
            "0.0.0.0/0",
            "192.0.2.0/24",
            "1.1.1.0/24",
            "127.0.0.0/8",
            "224.0.0.0/4",
            "10.42.0.0/16",
        ];
        let mut networks: Vec<_> = nets
            .iter()
            .enumerate()
            .map(|(n, net)| {
                let mut record = record(&format!("g{n}"), net);
                record["spec"]["vni"] = (510 + n).into();
                record["spec"]["options"] = serde_json::json!({"gateway": "mesh"});
                record
            })
            .collect();
        networks.push(record("\u{1b}[31mok\nagent  pid 1", "10.78.0.0/24"));
        networks.push(record("fine", "10.77.0.0/24"));
        let named = |name: &str, ip: &str| serde_json::json!({"names": [name], "addresses": [ip]});
        let names =
            [named("mine", "10.42.2.77"), named("bank", "6.6.6.6"), named("*", "10.42.2.78")];
        let view = serde_json::json!({"networks": {"default": names}});
        tell(&other.netns, 600, &view, &networks)?;
        let from = &host.containers[0].netns;
        dns::wait_known(from, H1, "mine")?;
        let answer = dns::ask(from, H1, "bank", SILENCE)?;
        ensure!(answer.is_none_or(|a| a.address.is_none()), "believed: {answer:?}");
        let all = wait::until("the network that is sound", SEEN, || {
            let networks = host.status().map_err(|e| format!("{e:#}"))?["networks"].to_string();
            if networks.contains("10.77.0.0/24") { Ok(networks) } else { Err(networks) }
        })?;
        let taken: Vec<_> = nets[..5].iter().filter(|net| all.contains(**net)).collect();
        ensure!(taken.is_empty() && !all.contains("u001b"), "taken: {taken:?} of {all}");
        let faults = faults(host)?.join("\n");
        for what in ["node h2 tells of networks", "node h2 tells of names", "g0"] {
            ensure!(faults.contains(what), "{faults}");
        }
        // However many there are, the agent goes on, and ends when it is told to.
        for n in 0..3u16 {
            let many = (0..20_000u32).map(|i| {
                let (a, b) = (100 + i / 256 % 100, i % 256);
                let mut record = record(&format!("m{n}x{i}"), &format!("10.{a}.{b}.0/24"));
                record["spec"]["vni"] = (1000 + u32::from(n) * 20_000 + i).into();
                record
            });
            tell(&other.netns, 610 + n, &serde_json::Value::Null, &many.collect::<Vec<_>>())?;
        }
        wait::until("the agent to have at most its networks", SEEN, || {
            let status = host.status().map_err(|e| format!("{e:#}"))?;
            match status["networks"].as_array().map_or(0, Vec::len) {
                200..=514 => Ok(()),
                n => Err(format!("{n} networks")),
            }
        })?;
        host.stop()?;
        host.up(&cluster)
    });
}
