//! Who does the work on which CPU, and what the underlay offloads. Set for each measurement on the
//! candidate that is measured: RPS anywhere costs traffic everywhere.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use mesh_tests::Netns;
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};

use super::candidate::{Standing, UNDERLAY};

/// How a workload wants the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Packets are received on the receiving host's CPU, by RPS. Without it the sender's CPU does
    /// the work of both hosts, which is what veth does by default.
    pub by_host: bool,
    /// The underlay cuts nothing and computes no checksum ahead: packets have the size of the MTU,
    /// and a NAPI thread of the receiving host aggregates them.
    pub wire: bool,
}

/// The files and sockets by which a standing candidate is tuned.
pub struct Tuner {
    hosts: [HostTuner; 2],
    now: Tuning,
}

struct HostTuner {
    underlay: Netns,
    rps: Vec<File>,
    /// Since Linux 5.12.
    threaded: Option<File>,
    takes_gro: bool,
}

/// CPU of the first and of the second host.
pub fn cpu_of(host: usize, cpus: usize) -> usize {
    host.min(cpus - 1)
}

impl Tuner {
    pub fn new(standing: &Standing) -> Result<Self> {
        let hosts = super::candidate::both(|h| HostTuner::new(standing, h))?;
        Ok(Self { hosts, now: Tuning { by_host: false, wire: false } })
    }

    /// Does nothing if all is so already.
    pub fn set(&mut self, wanted: Tuning, cpus: usize) -> Result<()> {
        for (h, host) in self.hosts.iter_mut().enumerate() {
            let cpu = cpu_of(h, cpus);
            if wanted.by_host != self.now.by_host {
                let mask = if wanted.by_host { 1_u64 << cpu } else { 0 };
                host.rps.iter_mut().try_for_each(|file| write!(file, "{mask:x}")).context("RPS")?;
            }
            if wanted.wire != self.now.wire {
                host.set_wire(wanted.wire, cpu)?;
            }
        }
        self.now = wanted;
        Ok(())
    }
}

impl HostTuner {
    fn new(standing: &Standing, host: usize) -> Result<Self> {
        let mut rps = Vec::new();
        for netns in standing.namespaces(host) {
            rps.extend(netns.run_with_sysfs(rps_files)?);
        }
        // A system may have another default.
        rps.iter_mut().try_for_each(|file| write!(file, "0")).context("RPS off")?;
        let underlay =
            standing.namespaces(host).next().context("a host without namespace")?.clone();
        let threaded = format!("/sys/class/net/{UNDERLAY}/threaded");
        let threaded = underlay.run_with_sysfs(|| Ok(open(Path::new(&threaded)).ok()))?;
        Ok(Self { underlay, rps, threaded, takes_gro: standing.takes_gro })
    }

    fn set_wire(&mut self, wire: bool, cpu: usize) -> Result<()> {
        let (cut, queue) = if wire { ("off", "replace") } else { ("on", "del") };
        self.underlay.exec(&format!("ethtool -K {UNDERLAY} tso {cut} gso {cut}"))?;
        // A queue that waits while the receiver's ring is full, where veth alone would drop.
        self.underlay.exec(&format!("tc qdisc {queue} dev {UNDERLAY} root pfifo limit 1000"))?;
        if self.takes_gro { self.set_gro(wire, cpu) } else { Ok(()) }
    }

    /// GRO by a thread on that CPU, where the kernel can.
    fn set_gro(&mut self, on: bool, cpu: usize) -> Result<()> {
        let ethtool = |state| self.underlay.exec(&format!("ethtool -K {UNDERLAY} gro {state}"));
        let Some(threaded) = &mut self.threaded else {
            return ethtool(if on { "on" } else { "off" }).map(drop);
        };
        if !on {
            write!(threaded, "0").context("NAPI threads off")?;
            return ethtool("off").map(drop);
        }
        // veth has a NAPI instance only while it has GRO.
        ethtool("on")?;
        let before = napi_threads();
        write!(threaded, "1").context("NAPI threads on")?;
        let new: Vec<_> = napi_threads().into_iter().filter(|t| !before.contains(t)).collect();
        ensure!(!new.is_empty(), "no NAPI thread for {UNDERLAY}");
        let mut set = CpuSet::new();
        set.set(cpu);
        let pin = |thread| sched_setaffinity(Some(thread), &set).context("pin a NAPI thread");
        new.into_iter().try_for_each(pin)
    }
}

/// Of all interfaces in the calling thread's `/sys`.
fn rps_files() -> Result<Vec<File>> {
    let mut files = Vec::new();
    for interface in fs::read_dir("/sys/class/net")?.flatten() {
        for queue in fs::read_dir(interface.path().join("queues"))?.flatten() {
            let path = queue.path().join("rps_cpus");
            // Transmit queues have none.
            if path.exists() {
                files.push(open(&path)?);
            }
        }
    }
    Ok(files)
}

fn open(path: &Path) -> Result<File> {
    File::options().write(true).open(path).with_context(|| format!("open {}", path.display()))
}

/// The kernel's threads that poll an underlay interface, of all topologies.
fn napi_threads() -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_underlay = |path: &Path| {
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        name.starts_with(&format!("napi/{UNDERLAY}-"))
    };
    processes
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            of_underlay(&entry.path()).then_some(pid)
        })
        .collect()
}
