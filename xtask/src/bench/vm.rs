//! The comparison on another kernel, in an emulated machine whose clock counts instructions: it
//! repeats to within a percent whatever else runs here, and says nothing of time. One processor
//! does the work of both hosts.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use mesh_tests::{Netns, wait};
use serde_json::Value;

use super::{
    candidate::{self, Candidate, Standing},
    machine,
    results::{self, Better, Metric, Results, Sample, Skipped},
    table,
    traffic::UdpBatch,
};
use crate::{
    artifacts,
    exec::{self, say},
    run::MESH_BIN,
    setup,
    vm::{self, Ended, Guest},
};

/// What is measured, by name.
const WORKLOADS: [(&str, &str); 2] = [
    ("udp-64", "64 bytes of payload, from socket to socket"),
    ("tcp-wire", "one connection; packets of the MTU's size, each with its share of ACKs"),
];
/// Candidates to which the others are compared.
const BASELINES: [&str; 3] = ["bare", "routed", "kernel-gre"];
/// Not the subject here: their daemons need two processors, or they differ by a switch alone.
const LEFT_OUT: [&str; 2] = ["ovs-gre", "vxlan-bridge-nf"];
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// UDP packets of one round, in batches.
const BATCHES: usize = 32;
/// Bytes of TCP payload of one round, and before the first.
const STREAM: usize = 2 << 20;
const WARM_UP: usize = 1 << 20;
/// Nothing in a round takes longer, on the guest's clock.
const PATIENCE: Duration = Duration::from_secs(5);

/// On the host: runs [`guest`] in a machine with this kernel, and returns what it measured.
pub fn run(kernel: &str, rounds: usize, candidates: &[Candidate]) -> Result<Results> {
    let kernel = vm::prepare(kernel)?;
    setup::packages(&[setup::DEMO, setup::BENCH, setup::WIREGUARD].concat())?;
    let (mesh, xtask) = match env::var_os(MESH_BIN) {
        Some(mesh) => (mesh.into(), env::current_exe()?),
        None => {
            setup::compilers()?;
            artifacts::release()?
        }
    };
    say(format!("Linux {}, counting instructions", kernel.version));
    let names: Vec<_> = candidates.iter().map(|c| c.name.as_str()).collect();
    let mut command = Command::new(xtask);
    command.args(["vm-bench", &rounds.to_string(), &names.join(",")]).env(MESH_BIN, mesh);
    // While the guest waits for a file of this machine its clock runs ahead, to the next deadline.
    command.env(wait::PATIENCE, "1000");
    let guest = Guest { cpus: 1, limit: LIMIT, counts_instructions: true, ..Guest::new(&kernel) };
    let mut output = Vec::new();
    match guest.run(&command, &mut output)? {
        Ended::Exited(0) => serde_json::from_slice(&output).context("what the guest measured"),
        Ended::Exited(code) => bail!("the guest's part failed with status {code}, see above"),
        Ended::TimedOut => bail!("not done after {} s", LIMIT.as_secs()),
        Ended::Died(console) => bail!("the kernel died:\n{console}"),
    }
}

/// Those that are compared in a machine with one processor.
pub fn candidates() -> Vec<Candidate> {
    let mut all = candidate::all();
    all.retain(|candidate| !LEFT_OUT.contains(&candidate.name.as_str()));
    all
}

/// For people.
pub fn print(results: &Results) {
    table::print_as(results, WORKLOADS.into_iter());
}

/// In the machine: measures the candidates, and prints [`Results`].
pub fn guest(rounds: usize, names: &[String]) -> Result<()> {
    let mut all = candidates();
    all.retain(|candidate| names.contains(&candidate.name));
    // Without it there is nothing to turn off for VXLAN on a bridge.
    exec::succeeds(Command::new("modprobe").arg("br_netfilter"));
    let (mut lanes, mut skipped) = (Vec::new(), Vec::new());
    for candidate in &all {
        say(format!("setting up {}", candidate.name));
        match Lane::new(candidate) {
            Ok(lane) => lanes.push(lane),
            Err(e) => skipped
                .push(Skipped { candidate: candidate.name.clone(), reason: format!("{e:#}") }),
        }
    }
    let mut samples = Vec::new();
    for round in 0..rounds {
        say(format!("round {} of {rounds}", round + 1));
        fastrand::shuffle(&mut lanes);
        for lane in &mut lanes {
            let measured = [lane.udp(), lane.tcp()];
            for ((workload, _), measured) in WORKLOADS.into_iter().zip(measured) {
                match measured {
                    Ok(value) => samples.push(lane.sample(workload, round, value)),
                    Err(e) => say(format!("{}, {workload}: {e:#}", lane.standing.name)),
                }
            }
        }
    }
    let first = lanes.first().context("no candidate runs on this kernel")?;
    let machine = machine::machine(first.standing.underlay(), notes(rounds))?;
    let names: Vec<_> = all.iter().map(|candidate| candidate.name.as_str()).collect();
    let results = results::summarize(&samples, &names, &BASELINES);
    println!("{}", serde_json::to_string(&Results { machine, results, skipped })?);
    Ok(())
}

fn notes(rounds: usize) -> Vec<String> {
    vec![format!(
        "an emulated machine with one processor for both hosts: instructions, not time; {rounds} \
         rounds of {} packets of UDP and {} MiB of TCP, without segmentation or aggregation",
        BATCHES * UdpBatch::PACKETS,
        STREAM >> 20,
    )]
}

/// A candidate with sockets on it.
struct Lane {
    standing: Standing,
    udp: UdpBatch,
    stream: [TcpStream; 2],
}

impl Lane {
    fn new(candidate: &Candidate) -> Result<Self> {
        let standing = Standing::new(candidate)?;
        for host in 0..2 {
            standing.namespaces(host).try_for_each(plain)?;
        }
        let [client, server] = &standing.ends;
        let udp = UdpBatch::connect(&client.netns, &server.netns, server.address)?;
        let listener = server.netns.run(|| Ok(TcpListener::bind((server.address, 0))?))?;
        let to = listener.local_addr()?;
        let sender = client.netns.run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?))?;
        let receiver = listener.accept()?.0;
        receiver.set_read_timeout(Some(PATIENCE))?;
        sender.set_write_timeout(Some(PATIENCE))?;
        let mut lane = Self { standing, udp, stream: [sender, receiver] };
        lane.carry(WARM_UP)?;
        lane.udp.round_trip(1)?;
        Ok(lane)
    }

    fn sample(&self, workload: &str, round: usize, value: f64) -> Sample {
        Sample {
            candidate: self.standing.name.clone(),
            workload: workload.into(),
            metric: Metric::new("instructions", "per packet", Better::Lower),
            round,
            value,
            disturbed: false,
        }
    }

    /// Instructions for each packet from one container's socket to the other's.
    fn udp(&mut self) -> Result<f64> {
        let start = Instant::now();
        self.udp.round_trip(BATCHES)?;
        Ok(instructions(start) / (BATCHES * UdpBatch::PACKETS) as f64)
    }

    /// The same for each full segment, with its share of acknowledgements.
    fn tcp(&mut self) -> Result<f64> {
        let segment =
            mesh_tests::socket::get(&self.stream[0], libc::IPPROTO_TCP, libc::TCP_MAXSEG)?;
        let start = Instant::now();
        self.carry(STREAM)?;
        Ok(instructions(start) / STREAM.div_ceil(usize::try_from(segment)?) as f64)
    }

    /// Sends bytes from end to end of the connection.
    fn carry(&mut self, bytes: usize) -> Result<()> {
        let [sender, receiver] = &mut self.stream;
        thread::scope(|scope| {
            let writer = scope.spawn(|| sender.write_all(&vec![0x5a; bytes]));
            let (mut buffer, mut left) = (vec![0; 128 << 10], bytes);
            while left > 0 {
                let n = receiver.read(&mut buffer).context("receive")?;
                ensure!(n > 0, "the connection was closed");
                left -= n.min(left);
            }
            writer.join().map_err(|_| anyhow!("the sender died"))?.context("send")
        })
    }
}

/// One nanosecond of the guest's clock is one instruction.
fn instructions(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64
}

/// Packets as they are on a wire: none is cut or joined on the way.
fn plain(netns: &Netns) -> Result<()> {
    let links: Vec<Value> = serde_json::from_str(&netns.exec("ip -j link")?)?;
    for name in links.iter().filter_map(|link| link["ifname"].as_str()).filter(|n| *n != "lo") {
        // Not every kind of interface has them all.
        let _ = netns.exec(&format!("ethtool -K {name} tso off gso off gro off"));
    }
    Ok(())
}
