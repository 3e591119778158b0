//! The resolver among containers that take what they can get, and resolvers that do not answer.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Host, Netns, Options, Topology, cni,
    dns::{self, World},
    scenario::bare,
    wait,
};

const OPTIONS: Options = Options { hosts: 1, containers: 3, ipv6: false, ..Options::DEFAULT };
const H1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 42, 1, 1));
/// On the underlay, where nobody has them.
const DEAD: [&str; 2] = ["192.0.2.201", "192.0.2.202"];
/// On the host itself, but for its agent a resolver as any other.
const WORLD: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 200));
const SAYS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Between two questions of somebody who asks now and then.
const NOW_AND_THEN: Duration = Duration::from_millis(50);
/// A client waits longer before it asks again.
const PATIENCE: Duration = Duration::from_secs(2);

/// An agent whose host has these resolvers, and two containers with a name each.
fn up(mesh: &mut Topology, resolvers: &[&str]) -> Result<()> {
    let file = mesh.dir.join("resolv.conf");
    let lines = resolvers.iter().map(|ip| format!("nameserver {ip}\n"));
    fs::write(&file, lines.collect::<String>())?;
    let cluster = mesh.cluster.clone();
    let host = &mut mesh.hosts[0];
    host.netns.ip_batch(&format!("addr add {WORLD}/32 dev lo\n"))?;
    let before = format!("ulimit -n 1024\nmount --bind {} /etc/resolv.conf", file.display());
    host.spawn_after(&cluster, &before)?;
    host.wait_ready(&cluster)?;
    cni::add(host, 0)?;
    cni::add(host, 1)?;
    dns::wait_known(&host.containers[0].netns, H1, "h1c1").map(drop)
}

/// What a question is answered with.
fn ask(from: &Netns, name: &str) -> Result<Option<dns::Answer>> {
    dns::ask(from, H1, name, wait::patient(PATIENCE))
}

fn connect(from: &Netns) -> Result<TcpStream> {
    connect_to(from, H1)
}

fn connect_to(from: &Netns, server: IpAddr) -> Result<TcpStream> {
    let stream = from.run(|| {
        let to = SocketAddr::new(server, dns::PORT);
        Ok(TcpStream::connect_timeout(&to, wait::patient(PATIENCE))?)
    })?;
    stream.set_read_timeout(Some(wait::patient(PATIENCE)))?;
    Ok(stream)
}

fn descriptors(host: &Host) -> Result<usize> {
    let folder = format!("/proc/{}/fd", host.pid().context("no agent")?);
    Ok(fs::read_dir(folder)?.count())
}

/// Asks for another name of the world a thousand times a second, until it is told to end.
fn flood(from: &Netns, ends: &AtomicBool) -> Result<()> {
    let socket = from.run(|| Ok(UdpSocket::bind(("0.0.0.0", 0))?))?;
    socket.connect((H1, dns::PORT))?;
    let began = Instant::now();
    for n in 0..60_000_u16 {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        // Full of answers that nobody reads, or refused: as it comes.
        _ = socket.send(&dns::question(n, &format!("n{n}.example.com")));
        let due = began + Duration::from_millis(n.into());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

#[test]
fn names_of_the_mesh_are_answered_beside_dead_resolvers_and_a_flood() {
    bare(OPTIONS, |mesh| {
        up(mesh, &DEAD)?;
        let host = &mesh.hosts[0];
        let [calm, wild, _] = &host.containers[..] else { unreachable!() };
        let ends = AtomicBool::new(false);
        let (mut unanswered, mut most) = (0, 0);
        let asked = thread::scope(|scope| -> Result<()> {
            let flood = scope.spawn(|| flood(&wild.netns, &ends));
            let asked = (0..100).try_for_each(|n| -> Result<()> {
                // Long enough for the first ones to be given up.
                thread::sleep(NOW_AND_THEN);
                let name = if n % 2 == 0 { "h1c1" } else { "h1c2.default" };
                let answer = ask(&calm.netns, name)?.and_then(|answer| answer.address);
                unanswered += u32::from(answer.is_none());
                most = most.max(descriptors(host)?);
                Ok(())
            });
            ends.store(true, Ordering::Relaxed);
            asked.and(flood.join().expect("the flood"))
        });
        asked?;
        ensure!(unanswered == 0, "{unanswered} of 100 were not answered");
        ensure!(most < 200, "the agent has had {most} descriptors open");
        Ok(())
    });
}

#[test]
fn forwarded_questions_of_one_leave_others_theirs() {
    bare(OPTIONS, |mesh| {
        up(mesh, &[DEAD[0], &WORLD.to_string()])?;
        let host = &mesh.hosts[0];
        let _world = World::start(&host.netns, WORLD, SAYS, 0)?;
        let [calm, wild, _] = &host.containers[..] else { unreachable!() };
        let ends = AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            let flood = scope.spawn(|| flood(&wild.netns, &ends));
            let asked = (0..40).try_for_each(|_| {
                thread::sleep(NOW_AND_THEN);
                let answer = ask(&calm.netns, "go.dev")?.context("no answer")?;
                ensure!(answer.address == Some(SAYS), "{answer:?}");
                Ok(())
            });
            ends.store(true, Ordering::Relaxed);
            asked.and(flood.join().expect("the flood"))
        })
    });
}

#[test]
fn idle_clients_by_tcp_make_room_for_others() {
    bare(OPTIONS, |mesh| {
        up(mesh, &DEAD)?;
        let host = &mesh.hosts[0];
        let [calm, wild, _] = &host.containers[..] else { unreachable!() };
        let mut first = connect(&calm.netns)?;
        let idle: Vec<_> = (0..1100).filter_map(|_| connect(&wild.netns).ok()).collect();
        let open = descriptors(host)?;
        ensure!(open < 400, "the agent has {open} descriptors open");
        // One that was there before, a new one, and even one more of who has so many.
        dns::ask_tcp(&mut first, "h1c1").context("one that was there before")?;
        for from in [calm, wild] {
            let answer = dns::ask_tcp(&mut connect(&from.netns)?, "h1c1");
            let answer = answer.with_context(|| format!("{} by TCP", from.name))?;
            ensure!(answer.address == Some("10.42.1.2".parse()?), "{answer:?}");
        }
        ask(&calm.netns, "h1c1")?.context("by UDP")?;
        cni::add(host, 2)?;
        drop(idle);
        Ok(())
    });
}

#[test]
fn answers_by_udp_are_no_longer_than_who_asks_may_get() {
    bare(OPTIONS, |mesh| {
        up(mesh, &[&WORLD.to_string()])?;
        let host = &mesh.hosts[0];
        let _world = World::start(&host.netns, WORLD, SAYS, 3600)?;
        let [known, _, other] = &host.containers[..] else { unreachable!() };
        let answer = ask(&known.netns, "go.dev")?.context("no answer")?;
        ensure!(answer.truncated && answer.len <= 512, "{answer:?}");
        let whole = dns::ask_tcp(&mut connect(&known.netns)?, "go.dev")?;
        ensure!(whole.address == Some(SAYS) && whole.len > 3600, "{whole:?}");
        // Who is not known may have made up its address.
        host.netns.ip_batch(&format!(
            "link add docker_gwbridge type bridge\nlink set docker_gwbridge up\n\
             addr add 172.30.0.1/24 dev docker_gwbridge\n\
             link add port0 type veth peer name eth0 netns {}\n\
             link set port0 master docker_gwbridge up\n",
            other.netns.name()
        ))?;
        other.netns.ip_batch(
            "addr add 172.30.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 172.30.0.1\n",
        )?;
        mesh_tests::ping::expect_ping(&other.netns, H1)?;
        let answer = wait::until("an answer", Duration::from_secs(40), || {
            let answer = ask(&other.netns, "go.dev").map_err(|e| format!("{e:#}"))?;
            answer.ok_or_else(|| "none".to_owned())
        })?;
        let asked = dns::question(0, "go.dev").len();
        ensure!(answer.truncated && answer.len <= asked, "{answer:?}, asked with {asked}");
        let whole = dns::ask_tcp(&mut connect(&other.netns)?, "go.dev")?;
        ensure!(whole.address == Some(SAYS), "{whole:?}");
        Ok(())
    });
}

#[test]
fn the_host_and_its_containers_are_answered_by_tcp_whatever_was_made_anew() {
    bare(Options { ipv6: true, ..OPTIONS }, |mesh| {
        up(mesh, &DEAD)?;
        let cluster = mesh.cluster.clone();
        let host = &mut mesh.hosts[0];
        let index = |host: &Host| -> Result<String> {
            let line = host.netns.exec("ip -o link show dev mesh0")?;
            Ok(line.split(':').next().unwrap_or_default().to_owned())
        };
        answered_by_tcp(host).context("at first")?;
        host.kill9();
        host.spawn(&cluster)?;
        host.wait_ready(&cluster)?;
        answered_by_tcp(host).context("after a restart")?;
        let before = index(host)?;
        host.netns.exec("ip link del dev mesh0")?;
        wait::until("mesh0 anew", PATIENCE * 20, || match index(host) {
            Ok(is) if is != before => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        answered_by_tcp(host).context("with mesh0 made anew")
    });
}

/// Who asks by `lo`, and who asks by `mesh0`.
fn answered_by_tcp(host: &Host) -> Result<()> {
    for server in [H1, "fd42:0:0:1::1".parse()?] {
        for from in [&host.netns, &host.containers[0].netns] {
            let what = format!("an answer by TCP for {} at {server}", from.name());
            wait::until(&what, PATIENCE * 10, || {
                let ask =
                    || dns::ask_tcp(&mut connect_to(from, server)?, "h1c1").map_err(Into::into);
                ask().map_err(|e: anyhow::Error| format!("{e:#}"))
            })?;
        }
    }
    Ok(())
}
