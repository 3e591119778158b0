//! Traffic generators. Each is a process of its own, as the two ends of real traffic are, pinned to
//! a CPU: `xtask traffic JOB`. A server first prints its port; the one of the two that measures
//! prints a [`Measured`]; the bench ends the other. `alarm` ends both if nobody does.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::{
    process::{Signal, set_parent_process_death_signal},
    thread::{CpuSet, sched_setaffinity},
};
use serde::{Deserialize, Serialize};

use super::usage::Usage;

mod crr;
mod rr;
mod stream;
mod udp;

pub use udp::UdpBatch;

/// What one process is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub role: Role,
    /// Where all its threads run.
    pub cpu: usize,
    /// Connections, or UDP sockets with a packet in flight each.
    pub flows: usize,
    /// Not measured.
    pub warm_up: Duration,
    /// Measured.
    pub window: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Measures what it reads.
    TcpSink,
    TcpSource(SocketAddr),
    /// Measures what it receives, and what it misses.
    UdpSink,
    UdpSource(SocketAddr),
    TcpEcho,
    /// Measures transactions of one byte each way.
    TcpRr(SocketAddr),
    UdpEcho,
    /// As `TcpRr`, one after the other on each flow.
    UdpRr(SocketAddr),
    CrrServer,
    /// Measures connections: each is made, carries a byte each way, and is reset.
    TcpCrr(SocketAddr),
}

/// One window of traffic.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub usage: Usage,
    /// That carry payload, in both directions. Of TCP streams as many as there would be without
    /// segmentation offload, whatever crossed the path in one piece.
    pub packets: u64,
    /// Of payload, received.
    pub bytes: u64,
    /// UDP packets that did not arrive, and transactions without an answer.
    pub lost: u64,
    /// Of each transaction, sorted into percentiles, in microseconds.
    pub latency: Option<Latency>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub transactions: u64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
}

impl Latency {
    /// From nanoseconds of each transaction; `None` of none.
    fn of(mut ns: Vec<u32>) -> Option<Self> {
        ns.sort_unstable();
        let last = ns.len().checked_sub(1)?;
        let at = |share: f64| f64::from(ns[(last as f64 * share).round() as usize]) / 1e3;
        Some(Self { transactions: ns.len() as u64, p50: at(0.5), p99: at(0.99), p999: at(0.999) })
    }
}

/// A peer that is silent for this long is gone.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between start and end, beyond warm-up and window, whatever happens.
const LONGEST: Duration = Duration::from_secs(15);

/// The process: does `job`, which is JSON, and writes to stdout.
pub fn run(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job).context("the job")?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("end with the parent")?;
    let limit = (job.warm_up + job.window + LONGEST).as_secs();
    // SAFETY: no pointers; the default action of SIGALRM is to end the process.
    unsafe { libc::alarm(u32::try_from(limit)?) };
    let mut cpu = CpuSet::new();
    cpu.set(job.cpu);
    sched_setaffinity(None, &cpu).with_context(|| format!("run on CPU {}", job.cpu))?;
    match job.role {
        Role::TcpSink => tell(&stream::sink(&job)?),
        Role::TcpSource(to) => stream::source(&job, to),
        Role::UdpSink => tell(&udp::sink(&job)?),
        Role::UdpSource(to) => udp::source(to),
        Role::TcpEcho => rr::tcp_echo(),
        Role::TcpRr(to) => tell(&rr::tcp(&job, to)?),
        Role::UdpEcho => rr::udp_echo(),
        Role::UdpRr(to) => tell(&rr::udp(&job, to)?),
        Role::CrrServer => crr::server(),
        Role::TcpCrr(to) => tell(&crr::client(&job, to)?),
    }
}

/// Prints one line of JSON.
fn tell(what: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, what)?;
    out.write_all(b"\n").and_then(|()| out.flush()).context("tell the bench")
}

/// Where servers listen: the kernel chooses the port.
fn anywhere() -> SocketAddr {
    (IpAddr::from(Ipv4Addr::UNSPECIFIED), 0).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let ns = (1..=1001).rev().map(|us| us * 1000).collect();
        let latency = Latency::of(ns).expect("some");
        assert_eq!((latency.p50, latency.p99, latency.p999), (501.0, 991.0, 1000.0));
        assert_eq!(latency.transactions, 1001);
        assert_eq!(Latency::of(Vec::new()), None);
    }

    #[test]
    fn job_survives_the_command_line() {
        let job = Job {
            role: Role::UdpRr(([10, 42, 1, 2], 5).into()),
            cpu: 1,
            flows: 64,
            warm_up: Duration::from_millis(50),
            window: Duration::from_millis(1500),
        };
        let text = serde_json::to_string(&job).expect("serialize");
        assert_eq!(serde_json::from_str::<Job>(&text).expect("parse"), job);
    }
}
