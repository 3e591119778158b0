//! What is measured on each candidate: a server on the second host, a client on the first.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use mesh_tests::Netns;

use super::{
    candidate::Standing,
    results::{Better, Metric},
    traffic::{Job, Measured, Role},
    tune::{Tuner, Tuning, cpu_of},
};

#[derive(Debug, Clone, Copy)]
pub struct Workload {
    pub name: &'static str,
    /// For people: what runs, and where.
    pub what: &'static str,
    kind: Kind,
    flows: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream { wire: bool },
    Udp,
    TcpRr,
    UdpRr,
    TcpCrr,
}

/// All workloads, in the order in which they run and are shown.
pub const ALL: &[Workload] = &[
    Workload {
        name: "tcp-stream",
        what: "one connection, cubic; host 1 on CPU 0, host 2 on CPU 1, by RPS",
        kind: Kind::Stream { wire: false },
        flows: 1,
    },
    Workload {
        name: "tcp-streams",
        what: "four connections, cubic; host 1 on CPU 0, host 2 on CPU 1, by RPS",
        kind: Kind::Stream { wire: false },
        flows: 4,
    },
    Workload {
        name: "tcp-wire",
        what: "one connection, no segmentation offload on the underlay, GRO by a NAPI thread on \
               the receiver's CPU",
        kind: Kind::Stream { wire: true },
        flows: 1,
    },
    Workload {
        name: "udp-64",
        what: "64 bytes of payload; the sender on CPU 0, which does the work of both hosts, the \
               receiver on CPU 1",
        kind: Kind::Udp,
        flows: 1,
    },
    Workload {
        name: "tcp-rr",
        what: "a byte each way; both ends on CPU 0",
        kind: Kind::TcpRr,
        flows: 1,
    },
    Workload {
        name: "udp-rr",
        what: "a byte each way; both ends on CPU 0",
        kind: Kind::UdpRr,
        flows: 1,
    },
    Workload {
        name: "udp-rr-16",
        what: "a byte each way on 16 flows at a time; both ends on CPU 0",
        kind: Kind::UdpRr,
        flows: 16,
    },
    Workload {
        name: "udp-rr-64",
        what: "a byte each way on 64 flows at a time; both ends on CPU 0",
        kind: Kind::UdpRr,
        flows: 64,
    },
    Workload {
        name: "tcp-crr",
        what: "connections made, used for a byte each way, and reset; both ends on CPU 0",
        kind: Kind::TcpCrr,
        flows: 1,
    },
];

impl Workload {
    pub fn run(
        &self,
        standing: &Standing,
        tuner: &mut Tuner,
        window: Duration,
        cpus: usize,
    ) -> Result<Measured> {
        tuner.set(self.tuning(), cpus)?;
        let [client, server] = &standing.ends;
        let job = |role, cpu| {
            let warm_up = window.div_f64(4.0).min(WARM_UP);
            Job { role, cpu: cpu_of(cpu, cpus), flows: self.flows, warm_up, window }
        };
        // Two hosts have a CPU each, unless one waits while the other works.
        let apart = matches!(self.kind, Kind::Stream { .. } | Kind::Udp);
        let mut serving = Process::start(&server.netns, &job(self.server(), apart.into()))?;
        let port: u16 = serving.answer()?;
        let role = self.client((server.address, port).into());
        let mut calling = Process::start(&client.netns, &job(role, 0))?;
        if apart { serving.answer() } else { calling.answer() }.map_err(|e| {
            let causes = [serving.end(), calling.end()].concat();
            if causes.is_empty() { e } else { e.context(causes.trim().replace('\n', "; ")) }
        })
    }

    fn tuning(&self) -> Tuning {
        match self.kind {
            Kind::Stream { wire } => Tuning { by_host: !wire, wire },
            _ => Tuning { by_host: false, wire: false },
        }
    }

    fn server(&self) -> Role {
        match self.kind {
            Kind::Stream { .. } => Role::TcpSink,
            Kind::Udp => Role::UdpSink,
            Kind::TcpRr => Role::TcpEcho,
            Kind::UdpRr => Role::UdpEcho,
            Kind::TcpCrr => Role::CrrServer,
        }
    }

    fn client(&self, to: SocketAddr) -> Role {
        match self.kind {
            Kind::Stream { .. } => Role::TcpSource(to),
            Kind::Udp => Role::UdpSource(to),
            Kind::TcpRr => Role::TcpRr(to),
            Kind::UdpRr => Role::UdpRr(to),
            Kind::TcpCrr => Role::TcpCrr(to),
        }
    }

    /// The values of a window, the most telling one first.
    pub fn metrics(&self, m: &Measured) -> Vec<(Metric, f64)> {
        let (higher, lower) = (Better::Higher, Better::Lower);
        let gbit = m.bytes as f64 * 8.0 / 1e9;
        let busy = if m.usage.busy < LEAST_BUSY { f64::NAN } else { m.usage.busy };
        let per_second = |n: u64| n as f64 / m.usage.wall;
        let transactions = m.latency.map_or(0, |latency| latency.transactions);
        let mut all = match self.kind {
            Kind::Stream { wire } => {
                let throughput = (Metric::new("throughput", "Gbit/s", higher), gbit / m.usage.wall);
                let efficiency = (Metric::new("efficiency", "Gbit/CPU-s", higher), gbit / busy);
                if wire { vec![efficiency, throughput] } else { vec![throughput, efficiency] }
            }
            Kind::Udp => {
                let lost = m.lost as f64 / (m.packets + m.lost) as f64;
                vec![
                    (Metric::new("rate", "packets/s", higher), per_second(m.packets)),
                    (Metric::new("loss", "%", lower), 100.0 * lost),
                ]
            }
            Kind::TcpCrr => {
                vec![(Metric::new("rate", "connections/s", higher), per_second(transactions))]
            }
            Kind::TcpRr | Kind::UdpRr => Vec::new(),
        };
        if let Some(latency) = m.latency {
            let us = |name, value| (Metric::new(name, "us", lower), value);
            all.extend([us("p50", latency.p50), us("p99", latency.p99), us("p99.9", latency.p999)]);
            if self.kind != Kind::TcpCrr {
                all.push((Metric::new("rate", "transactions/s", higher), per_second(transactions)));
            }
        }
        let cpu = busy * 1e9 / m.packets as f64;
        all.push((Metric::new("cpu", "ns/packet", lower), cpu));
        all
    }
}

/// CPU seconds below which the kernel's counters, in hundredths, say nothing: others had nearly all.
const LEAST_BUSY: f64 = 0.02;

/// At most this; a quarter of a shorter window.
const WARM_UP: Duration = Duration::from_millis(100);

/// One end's traffic generator. Ended when it is dropped.
struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(netns: &Netns, job: &Job) -> Result<Self> {
        // Whatever has become of the file since: this program.
        let mut command = netns.command("/proc/self/exe");
        command.arg("traffic").arg(serde_json::to_string(job)?);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start a traffic generator")?;
        let stdout = child.stdout.take().context("a child without stdout")?;
        Ok(Self { child, stdout: BufReader::new(stdout) })
    }

    /// What it prints next. Waits as long as it lives, which is bounded.
    fn answer<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!("a traffic generator ended without a result");
        }
        serde_json::from_str(&line).with_context(|| format!("a traffic generator said {line:?}"))
    }

    /// Ends it, and returns what it complained about.
    fn end(&mut self) -> String {
        // It may have ended by itself.
        _ = self.child.kill();
        let mut complaints = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            _ = stderr.read_to_string(&mut complaints);
        }
        _ = self.child.wait();
        complaints
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
