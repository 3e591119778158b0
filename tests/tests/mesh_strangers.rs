//! Who may not ask the agent, and what it costs when they try.

use std::{
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Host, Netns, Options, Topology, cni, dns, scenario::bare, socket, wait};
use serde_json::{Value, json};

const OPTIONS: Options = Options { hosts: 2, containers: 3, ipv6: false, ..Options::DEFAULT };
const H1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 42, 1, 1));
const NAMES: u16 = dns::PORT;
const AGENTS: u16 = 7473;
/// As many descriptors as the agent had.
const FEW: &str = "ulimit -n 1024";
const SEEN: Duration = Duration::from_secs(40);
/// For an answer that must not come.
const SILENCE: Duration = Duration::from_millis(700);

/// Attaches a container as its runtime does, by which it has a name.
fn add(host: &Host, container: usize) -> Result<Value> {
    let Some(container) = host.containers.get(container) else { return Ok(Value::Null) };
    let netns = container.netns.path().display().to_string();
    let vars = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", &container.name),
        ("CNI_NETNS", &netns),
        ("CNI_IFNAME", "eth0"),
    ];
    let conf = json!({"cniVersion": "1.0.0", "type": "mesh", "name": "mesh"});
    cni::call(host, &vars, &conf.to_string())?.ok()
}

/// Agents on all hosts of the cluster, and their first containers, which know each other by name.
fn up(mesh: &mut Topology) -> Result<()> {
    let cluster = mesh.cluster.clone();
    let in_cluster = |host: &&mut Host| cluster.managed().any(|node| node.name == host.name);
    for host in mesh.hosts.iter_mut().filter(in_cluster) {
        host.spawn_after(&cluster, FEW)?;
    }
    for host in mesh.hosts.iter_mut().filter(in_cluster) {
        host.wait_ready(&cluster)?;
        add(host, 0)?;
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
        add(host, 1)?;
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
        add(host, 2)?;
        // Agents tell each other of a name that is new.
        add(other, 1)?;
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
        add(&mesh.hosts[2], 1)?;
        dns::wait_known(&host.containers[0].netns, H1, "h3c2")?;
        drop(held);
        wait::until("the memory to come back", SEEN, || {
            let more = memory(host).map_err(|e| format!("{e:#}"))?.saturating_sub(before) >> 20;
            if more < 24 { Ok(()) } else { Err(format!("{more} MiB")) }
        })
    });
}

/// No answer by UDP, no connection by TCP.
fn expect_closed(from: &Netns) -> Result<()> {
    let answer = dns::ask(from, H1, "h1c1", SILENCE)?;
    ensure!(answer.is_none(), "port {NAMES} answered {answer:?}");
    for port in [NAMES, AGENTS] {
        let stream = connect(from, (H1, port).into(), None);
        ensure!(stream.is_err(), "port {port} took a connection");
    }
    Ok(())
}

#[test]
fn the_underlay_and_other_bridges_find_closed_ports() {
    bare(OPTIONS, |mesh| {
        mesh.cluster = mesh.cluster.clone().without_node("h2");
        up(mesh)?;
        let [host, machine] = &mesh.hosts[..] else { unreachable!() };
        machine.netns.ip_batch("route add 10.42.1.1 via 192.0.2.11\n")?;
        ping(&machine.netns)?;
        expect_closed(&machine.netns).context("a machine on the underlay")?;
        let container = &host.containers[2];
        host.netns.ip_batch(&format!(
            "link add other0 type bridge\nlink set other0 up\naddr add 172.30.0.1/24 dev other0\n\
             link add port0 type veth peer name eth0 netns {}\nlink set port0 master other0 up\n",
            container.netns.name()
        ))?;
        container.netns.ip_batch(
            "addr add 172.30.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 172.30.0.1\n",
        )?;
        ping(&container.netns)?;
        expect_closed(&container.netns).context("a container of another bridge")?;
        // Who may: the host, a container of the mesh, and one of the bridge by which Docker leads
        // containers of other networks out, whenever that comes.
        dns::wait_known(&host.netns, H1, "h1c1")?;
        dns::wait_known(&host.containers[0].netns, H1, "h1c1")?;
        host.netns.ip_batch("link set other0 down\nlink set other0 name docker_gwbridge up\n")?;
        ping(&container.netns)?;
        wait::until("an answer on docker_gwbridge", SEEN, || {
            let answer = dns::ask(&container.netns, H1, "h1c1", SILENCE);
            answer.map_err(|e| format!("{e:#}"))?.ok_or_else(|| "none".to_owned())
        })?;
        expect_closed(&machine.netns).context("a machine on the underlay")
    });
}

/// The address can be reached: what is closed are the ports.
fn ping(from: &Netns) -> Result<()> {
    mesh_tests::ping::expect_ping(from, H1)
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
        add(host, 0)?;
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
