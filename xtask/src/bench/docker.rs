//! `cargo xtask bench --docker`: networks of mesh's driver beside Docker's own overlay networks, on the
//! same three hosts with the same three daemons, one after the other in each round.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, UdpSocket},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use mesh_tests::{Netns, docker::Docker, ping::ping, traffic::tcp_throughput, wait};
use serde::Serialize;

use super::{
    machine,
    results::{Better, Machine, Metric},
    table::number,
};
use crate::{exec::say, setup};

const HOSTS: usize = 3;
const DRIVERS: [&str; 2] = ["mesh", "overlay"];
/// For what comes at last.
const LIMIT: Duration = Duration::from_secs(30);
/// Of one transfer.
const WINDOW: Duration = Duration::from_secs(2);
const PINGS: usize = 500;
/// Between two questions for a name.
const POLL: Duration = Duration::from_millis(5);
/// Docker's, in each container.
const RESOLVER: &str = "127.0.0.11:53";

#[derive(Serialize)]
struct Report {
    machine: Machine,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    metric: Metric,
    /// By driver.
    values: BTreeMap<&'static str, Spread>,
    /// How many times as good mesh is.
    times_better: f64,
}

#[derive(Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// What one round says of a driver.
type Values = [f64; 5];

fn metrics() -> [Metric; 5] {
    let (lower, higher) = (Better::Lower, Better::Higher);
    [
        Metric::new("network made, until all hosts have it", "ms", lower),
        Metric::new("`docker run -d`, until it returns", "ms", lower),
        Metric::new("from then until its name is found on all hosts", "ms", lower),
        Metric::new("TCP between containers of two hosts", "Gbit/s", higher),
        Metric::new("ping between them, median", "us", lower),
    ]
}

pub fn run(rounds: usize, json: bool) -> Result<()> {
    let engine = setup::docker_engine()?;
    let version = setup::docker_version(&engine)?;
    ensure!(
        version.starts_with("20."),
        "this machine's Debian has Docker {version}; the last that keeps overlay networks in etcd, \
         without Swarm, is 20.10, of Debian 12"
    );
    let etcd = setup::etcd()?;
    say(format!("setting up {HOSTS} hosts with Docker {version}, etcd and mesh"));
    let docker = Docker::with_store(HOSTS, engine, &etcd)?;
    no_world(&docker)?;
    let mut values: BTreeMap<&'static str, Vec<Values>> = BTreeMap::new();
    // The first round is not counted: plugins are found, sandboxes and caches made.
    for n in 0..=rounds {
        say(format!("round {n} of {rounds}"));
        for driver in DRIVERS {
            let measured = round(&docker, driver, n).with_context(|| format!("{driver}, {n}"))?;
            if n > 0 {
                values.entry(driver).or_default().push(measured);
            }
        }
    }
    let notes = vec![format!(
        "{HOSTS} hosts in namespaces of one kernel; Docker {version}; mesh with GRE, overlay with \
         VXLAN and etcd; {rounds} rounds, mesh and overlay in turn, medians"
    )];
    let machine = machine::machine(None, notes)?;
    let report = Report { machine, rows: rows(&values) };
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

/// What nobody knows is refused at once, and not waited for: a question for a name that is not there
/// yet would hold up those that follow.
fn no_world(docker: &Docker) -> Result<()> {
    for host in &docker.topology.hosts {
        let inside = host.inside.context("a host with namespaces of its own")?;
        let nobody = &docker.topology.cluster.nodes[0].underlay;
        let file = format!("/proc/{inside}/root/run/resolv.conf");
        std::fs::write(file, format!("nameserver {nobody}\n"))?;
    }
    Ok(())
}

fn round(docker: &Docker, driver: &str, n: usize) -> Result<Values> {
    let name = &format!("bench-{driver}-{n}");
    let start = Instant::now();
    docker.run(0, &format!("network create -d {driver} --subnet 10.0.{n}.0/24 {name}"))?;
    for at in 0..HOSTS {
        wait::until("the network", LIMIT, || match has_network(docker, at, name) {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
    }
    let network = start.elapsed();
    for at in 1..HOSTS {
        // An endpoint's name is one in the whole of the store.
        docker.run(at, &format!("run -d --network {name} --name asker{at} bb sleep 10000"))?;
    }
    let askers = (1..HOSTS).map(|at| docker.netns(at, &format!("asker{at}")));
    let askers: Vec<Netns> = askers.collect::<Result<_>>()?;
    let start = Instant::now();
    docker.run(0, &format!("run -d --network {name} --name web{n} bb sleep 10000"))?;
    let container = start.elapsed();
    let start = Instant::now();
    let mut found = None;
    for asker in &askers {
        found = Some(resolve(asker, &format!("web{n}"))?);
    }
    let named = start.elapsed();
    let web = found.context("no asker")?;
    let netns = docker.netns(0, &format!("web{n}"))?;
    let bits = tcp_throughput(&askers[0], &netns, web, WINDOW)?;
    let pings = ping(&askers[0], web, PINGS, 56, Duration::from_secs(1))?;
    let rtt = pings.percentile(0.5).context("nobody answers pings")?;

    docker.run(0, &format!("rm -f web{n}"))?;
    for at in 1..HOSTS {
        docker.run(at, &format!("rm -f asker{at}"))?;
    }
    docker.run(0, &format!("network rm {name}"))?;
    for at in 0..HOSTS {
        wait::until("the network to be gone", LIMIT, || match has_network(docker, at, name) {
            Ok(false) => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
    }
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Ok([ms(network), ms(container), ms(named), bits / 1e9, rtt.as_secs_f64() * 1e6])
}

/// Asked over Docker's socket: its command line takes longer than some of what is measured.
fn has_network(docker: &Docker, at: usize, name: &str) -> Result<bool> {
    let inside = docker.topology.hosts[at].inside.context("a host with namespaces of its own")?;
    let mut stream = UnixStream::connect(format!("/proc/{inside}/root/run/docker.sock"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET /networks/{name} HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_whitespace().nth(1) {
        Some("200") => Ok(true),
        Some("404") => Ok(false),
        _ => anyhow::bail!("Docker says {answer:?}"),
    }
}

/// Asks for a name as a container does, until it is found.
fn resolve(asker: &Netns, name: &str) -> Result<IpAddr> {
    let socket = asker.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(RESOLVER)?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(POLL))?;
    let mut id = 0u16;
    wait::until(&format!("the name {name}"), LIMIT, || {
        id = id.wrapping_add(1);
        socket.send(&question(id, name)).map_err(|e| e.to_string())?;
        let (mut answer, sent) = ([0; 512], Instant::now());
        loop {
            let len = socket.recv(&mut answer).map_err(|e| e.to_string())?;
            if let Some(ip) = address(&answer[..len]) {
                return Ok(ip);
            }
            if sent.elapsed() > POLL || answer[..2] == id.to_be_bytes() {
                // Not too often, where a refusal comes at once.
                std::thread::sleep(POLL.saturating_sub(sent.elapsed()));
                return Err("nobody knows it".into());
            }
        }
    })
}

/// For the IPv4 address of a name (RFC 1035, 4.1).
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.push(name.len() as u8);
    bytes.extend(name.as_bytes());
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// The first answer's address: the end of a message with no more than that.
fn address(answer: &[u8]) -> Option<IpAddr> {
    let [_, _, _, flags, _, _, 0, 1, ..] = answer else { return None };
    let ip: [u8; 4] = answer.get(answer.len().checked_sub(4)?..)?.try_into().ok()?;
    (flags & 0xf == 0).then(|| ip.into())
}

fn rows(values: &BTreeMap<&'static str, Vec<Values>>) -> Vec<Row> {
    let row = |(i, metric): (usize, Metric)| {
        let spread = |all: &Vec<Values>| {
            let mut all: Vec<f64> = all.iter().map(|values| values[i]).collect();
            all.sort_unstable_by(f64::total_cmp);
            let (low, high) = (all[(all.len() - 1) / 2], all[all.len() / 2]);
            Spread { median: (low + high) / 2.0, min: all[0], max: all[all.len() - 1] }
        };
        let values: BTreeMap<_, _> = values.iter().map(|(d, all)| (*d, spread(all))).collect();
        let ratio = values["mesh"].median / values["overlay"].median;
        let times_better = if metric.better == Better::Higher { ratio } else { 1.0 / ratio };
        Row { metric, values, times_better }
    };
    metrics().into_iter().enumerate().map(row).collect()
}

fn print(report: &Report) {
    let m = &report.machine;
    println!("{}, {} cores, Linux {}, {}", m.cpu, m.cores, m.kernel, m.date);
    m.notes.iter().for_each(|note| println!("{note}"));
    let mut table = Table::new();
    let header = ["", "", "mesh", "spread", "overlay", "spread", "times as good"];
    table.load_style(NOTHING).set_header(header);
    for row in &report.rows {
        let cells = DRIVERS.iter().flat_map(|driver| {
            let v = &row.values[driver];
            [number(v.median), format!("{}-{}", number(v.min), number(v.max))]
        });
        let what = [row.metric.name.to_string(), row.metric.unit.to_string()];
        let ratio = [format!("{:.1}", row.times_better)];
        table.add_row(what.into_iter().chain(cells).chain(ratio));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("\n{table}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_from_an_answer_and_from_no_refusal() {
        let mut answer = question(7, "web");
        assert_eq!(address(&answer), None);
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 10, 0, 9, 2]);
        assert_eq!(address(&answer), Some([10, 0, 9, 2].into()));
        answer[3] = 3;
        assert_eq!(address(&answer), None);
    }

    #[test]
    fn the_median_and_who_is_better_follow_from_all_rounds() {
        let of = |x: f64| [x, x, x, x, x];
        let values = BTreeMap::from([
            ("mesh", vec![of(3.0), of(1.0), of(2.0)]),
            ("overlay", vec![of(4.0), of(4.0), of(4.0)]),
        ]);
        let rows = rows(&values);
        assert_eq!((rows[0].values["mesh"].median, rows[0].times_better), (2.0, 2.0));
        assert_eq!(rows[3].times_better, 0.5);
    }
}
