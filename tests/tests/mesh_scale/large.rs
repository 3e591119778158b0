//! A host of a cluster whose other nodes are but lines in the file.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use mesh_common::maps::{Addr, FibKey};
use mesh_tests::{ClusterFile, Encap, Host, Options, Topology, cluster::Node, wait};
use mesh_userspace::bpf::{Pins, load::PROGRAMS, tables::Tables};

pub const READY: Duration = Duration::from_secs(60);
/// A state that lasts this long has settled.
const QUIET: Duration = Duration::from_millis(50);

/// Prefix length of each subnet.
const LEN: u8 = 28;

pub struct Large<'t> {
    topology: &'t mut Topology,
    pub config: ClusterFile,
}

/// The cluster of h1 and so many peers, each with so many subnets.
pub fn config(peers: u32, subnets: u32) -> ClusterFile {
    let mut file = ClusterFile::new(1, Encap::Gre, false);
    file.cidr = vec!["10.0.0.0/8".into()];
    let prefixes = |node: u32| (0..subnets).map(|i| subnet(node * subnets + i)).collect();
    file.nodes[0].subnet = prefixes(0);
    file.nodes.extend((0..peers).map(|i| {
        Node {
            name: format!("p{i}"),
            underlay: Ipv4Addr::from_bits(
                (172 << 24) + (16 << 16) + ((i / 250) << 8) + i % 250 + 1,
            )
            .to_string(),
            subnet: prefixes(i + 1),
            foreign: None,
        }
    }));
    file
}

fn subnet(index: u32) -> String {
    format!("{}/{LEN}", Ipv4Addr::from_bits((10 << 24) + (index << (32 - LEN))))
}

/// The same, but the last node has another last subnet, a different one for each `turn`.
pub fn moved(config: &ClusterFile, turn: u32) -> ClusterFile {
    let mut moved = config.clone();
    let subnets = &mut moved.nodes.last_mut().expect("a node").subnet;
    subnets.pop();
    // From the end of the cidr, where nobody has any.
    subnets.push(subnet((1 << (LEN - 8)) - 1 - turn));
    moved
}

/// The key of a subnet in FIB.
pub fn key(subnet: &str) -> FibKey {
    let address: IpAddr = subnet.split('/').next().unwrap_or_default().parse().expect("a prefix");
    FibKey::new(0, 96 + LEN, Addr::from(address))
}

impl<'t> Large<'t> {
    /// The second host is the router to all peers.
    pub const OPTIONS: Options = Options { containers: 0, ipv6: false, ..Options::DEFAULT };

    pub fn new(topology: &'t mut Topology, peers: u32, subnets: u32) -> Result<Self> {
        topology.hosts[0].netns.exec("ip route add 172.16.0.0/12 via 192.0.2.12")?;
        Ok(Self { topology, config: config(peers, subnets) })
    }

    pub fn host(&mut self) -> &mut Host {
        &mut self.topology.hosts[0]
    }

    /// Starts the agent with the config as it is; does not wait.
    pub fn start(&mut self) -> Result<()> {
        let config = self.config.clone();
        self.host().spawn(&config)
    }

    /// kill -9 to the agent.
    pub fn kill(&mut self) {
        self.host().kill9();
    }

    /// Puts another config in place. Returns when that was.
    pub fn write(&mut self, config: &ClusterFile) -> Result<Instant> {
        self.config = config.clone();
        let (path, text) = (self.host().config.clone(), config.to_string());
        let next = path.with_extension("new");
        fs::write(&next, text)?;
        let start = Instant::now();
        fs::rename(next, path)?;
        Ok(start)
    }

    fn maps(&self) -> PathBuf {
        Pins::new(&self.topology.hosts[0].pin_dir).maps()
    }

    pub fn tables(&self) -> Result<Tables> {
        Ok(Tables::open(&self.maps())?)
    }

    /// Ids of the programs that are pinned.
    pub fn programs(&self) -> Result<Vec<u32>> {
        let pins = Pins::new(&self.topology.hosts[0].pin_dir);
        let id = |name| Ok(aya::programs::ProgramInfo::from_pin(pins.program(name))?.id());
        PROGRAMS.into_iter().map(id).collect()
    }

    /// Waits until the last subnet of the last node is in the kernel.
    pub fn wait_for(&self, config: &ClusterFile) -> Result<()> {
        let last = config.nodes.last().and_then(|node| node.subnet.last()).context("a subnet")?;
        let key = key(last);
        self.wait_until("the last subnet", |tables| Ok(tables.fib.get(&key)?.is_some()))
    }

    /// Looks again and again, and hardly waits between.
    pub fn wait_until(
        &self,
        what: &str,
        mut is_so: impl FnMut(&Tables) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + READY;
        // They are other maps once there are more entries than fit.
        let mut tables = None;
        loop {
            tables = tables.or_else(|| self.tables().ok());
            if let Some(open) = &tables
                && is_so(open)?
            {
                return Ok(());
            }
            if tables.as_ref().is_some_and(|open| !self.are_pinned(open)) {
                tables = None;
            }
            if Instant::now() > deadline {
                anyhow::bail!("waited in vain for {what}\n{}", self.topology.hosts[0].log_tail());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Whether these are the maps that are in use.
    fn are_pinned(&self, open: &Tables) -> bool {
        self.tables().is_ok_and(|now| now.fib.id().ok() == open.fib.id().ok())
    }

    /// Waits until the agent has nothing to do, and has noted what it applied.
    pub fn wait_idle(&mut self) -> Result<()> {
        let (noted, text) = (self.host().run_dir.join("cluster.toml"), self.config.to_string());
        let mut seen = (0, Instant::now());
        wait::until("the agent to have nothing to do", READY, || {
            let now = self.cpu_ns().map_err(|e| e.to_string())?;
            if now != seen.0 || fs::read_to_string(&noted).ok().as_ref() != Some(&text) {
                seen = (now, Instant::now());
            }
            if seen.1.elapsed() > QUIET { Ok(()) } else { Err("it is at work".into()) }
        })
    }

    fn pid(&mut self) -> Result<u32> {
        self.host().pid().context("no agent runs")
    }

    /// Time that the agent was at work, in ns.
    pub fn cpu_ns(&mut self) -> Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()?))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            sum += text.split(' ').next().context("schedstat")?.parse::<u64>()?;
        }
        Ok(sum)
    }

    /// Memory that the agent has of its own and of its files, in bytes.
    pub fn resident_bytes(&mut self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: u64 = line.trim_end_matches("kB").trim().parse()?;
        Ok(kib << 10)
    }
}
