//! A switch, hosts and containers in network namespaces, and their removal.
//!
//! Everything has one name, `mt<pid>-<n>`: the namespaces `mt<pid>-<n>-h1`, `-h1c1`, `-sw`, and the
//! folder `/run/mt<pid>-<n>` with config files, logs, captures, run folders and bpf file systems.
//! The folder holds a locked file; a lock that can be taken tells [`removal::sweep`] that the owner is dead
//! and what it left can go.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};

use crate::{ClusterFile, Container, Encap, Host, Netns, Underlay, netns::ip_batch, removal};

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub hosts: usize,
    /// On each host.
    pub containers: usize,
    /// MTU of the underlay, in bytes.
    pub mtu: u32,
    pub encap: Encap,
    /// Give the overlay IPv6 addresses too.
    pub ipv6: bool,
    /// The only family between the hosts.
    pub underlay: Underlay,
}

impl Options {
    pub const DEFAULT: Self = Self {
        hosts: 2,
        containers: 1,
        mtu: 1500,
        encap: Encap::Gre,
        ipv6: true,
        underlay: Underlay::V4,
    };
}

impl Default for Options {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[derive(Debug)]
pub struct Topology {
    pub name: String,
    /// `/run/mt<pid>-<n>`
    pub dir: PathBuf,
    pub options: Options,
    /// The underlay: a bridge with a port for each host, named like the host. Empty if the hosts are
    /// joined directly.
    pub switch: Netns,
    pub hosts: Vec<Host>,
    /// Describes all hosts.
    pub cluster: ClusterFile,
    lock: Option<File>,
}

impl Topology {
    /// Makes the namespaces and the underlay. No agent runs yet.
    pub fn new(options: Options) -> Result<Self> {
        let made = Self::make(options, wire_underlay)?;
        // A question to a neighbour that a port of the switch does not forward yet is asked again after
        // a second.
        for h in 1..=options.hosts {
            made.switch.wait_operational(&format!("h{h}"))?;
        }
        Ok(made)
    }

    /// The same for two hosts with one cable between them and no switch, which costs time of its
    /// own.
    pub fn direct(options: Options) -> Result<Self> {
        ensure!(options.hosts == 2, "one cable joins two hosts, not {}", options.hosts);
        Self::make(options, wire_directly)
    }

    fn make(options: Options, wire: Wire) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "{}{}-{}",
            removal::PREFIX,
            process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = Path::new(removal::RUN).join(&name);
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let lock =
            removal::locked(&dir)?.context("a folder just made is locked by another process")?;
        Self::build(&name, &dir, options, wire, lock).inspect_err(|_| removal::destroy(&name))
    }

    fn build(name: &str, dir: &Path, options: Options, wire: Wire, lock: File) -> Result<Self> {
        let names: Vec<_> = namespace_names(name, options);
        ip_batch(&names.iter().fold(String::new(), |all, n| all + &format!("netns add {n}\n")))?;
        let switch = Netns::open(format!("{name}-sw"))?;
        wire(&switch, name, options)?;
        let host = |h| -> Result<Host> {
            let netns = Netns::open(format!("{name}-h{h}"))?;
            let (family, nodad) = (
                options.underlay,
                match options.underlay {
                    Underlay::V4 => "",
                    Underlay::V6 => " nodad",
                },
            );
            netns.ip_batch(&format!(
                "link set lo up\nlink set eth0 addrgenmode none\n\
                 addr add {}/{} dev eth0{nodad}\nlink set eth0 up\n",
                family.address(h),
                family.prefix_len(),
            ))?;
            keep_ports_apart(&netns)?;
            let container = |c| -> Result<Container> {
                let short = format!("h{h}c{c}");
                let netns = Netns::open(format!("{name}-{short}"))?;
                netns.ip_batch("link set lo up\n")?;
                keep_ports_apart(&netns)?;
                Ok(Container { name: short, netns, given: None })
            };
            let containers = (1..=options.containers).map(container).collect::<Result<_>>()?;
            Ok(Host::new(format!("h{h}"), netns, containers, dir))
        };
        let hosts = (1..=options.hosts).map(host).collect::<Result<Vec<_>>>()?;
        for host in &hosts {
            host.netns.wait_operational("eth0")?;
        }
        Ok(Self {
            name: name.to_owned(),
            dir: dir.to_owned(),
            options,
            switch,
            hosts,
            cluster: ClusterFile::on(options.underlay, options.hosts, options.encap, options.ipv6),
            lock: Some(lock),
        })
    }

    /// Starts the agents of all hosts that `self.cluster` names and that run mesh, waits until they
    /// are ready, and attaches their containers.
    pub fn up(&mut self) -> Result<()> {
        let cluster = self.cluster.clone();
        let in_cluster = |host: &&mut Host| cluster.managed().any(|n| n.name == host.name);
        for host in self.hosts.iter_mut().filter(in_cluster) {
            host.spawn(&cluster)?;
        }
        for host in self.hosts.iter_mut().filter(in_cluster) {
            host.wait_ready(&cluster)?;
            for i in 0..host.containers.len() {
                host.attach(i, &[])?;
            }
        }
        Ok(())
    }

    /// Writes the config of all running agents that `cluster` names, and waits until each has it in
    /// force.
    pub fn apply(&mut self, cluster: &ClusterFile) -> Result<()> {
        let mut changing = Vec::new();
        let named = |host: &Host| cluster.nodes.iter().any(|n| n.name == host.name);
        for host in self.hosts.iter_mut().filter(|host| host.is_running() && named(host)) {
            let before = host.generation()?;
            host.write_config(&cluster.to_string())?;
            changing.push((host, before));
        }
        for (host, before) in changing {
            host.wait_newer(cluster, before)?;
        }
        self.cluster = cluster.clone();
        Ok(())
    }

    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.hosts.iter().flat_map(|host| &host.containers)
    }

    /// The container of that name, `h1c1`.
    pub fn container(&self, name: &str) -> Result<&Container> {
        let found = self.containers().find(|c| c.name == name);
        found.with_context(|| format!("no container {name} in this topology"))
    }

    /// Ends every agent, the data plane stays, and nothing is removed when this is dropped.
    /// [`removal::remove_kept`] does that.
    pub fn keep(mut self) -> Result<()> {
        removal::mark_kept(&self.dir)?;
        for host in &mut self.hosts {
            host.leave_running();
        }
        self.lock = None;
        Ok(())
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if self.lock.is_none() {
            return;
        }
        if std::thread::panicking() {
            let logs = self.hosts.iter().filter(|host| host.log.exists());
            logs.for_each(|host| eprintln!("{}\n{}", host.log_tail(), host.counters()));
        }
        self.hosts.iter_mut().for_each(Host::kill9);
        removal::destroy(&self.name);
    }
}

/// Leaves to tunnels the ports that they choose their source ports from, so that a dissector can tell
/// what is inside.
fn keep_ports_apart(netns: &Netns) -> Result<()> {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    netns.run(|| fs::write(path, "32768 49151").with_context(|| format!("write {path}")))
}

fn namespace_names(name: &str, options: Options) -> Vec<String> {
    let mut names = vec![format!("{name}-sw")];
    for h in 1..=options.hosts {
        names.push(format!("{name}-h{h}"));
        names.extend((1..=options.containers).map(|c| format!("{name}-h{h}c{c}")));
    }
    names
}

/// Gives each host its `eth0`. Takes the switch's namespace and the topology's name.
type Wire = fn(&Netns, &str, Options) -> Result<()>;

fn wire_directly(_switch: &Netns, name: &str, options: Options) -> Result<()> {
    let mtu = options.mtu;
    ip_batch(&format!(
        "link add eth0 mtu {mtu} netns {name}-h1 type veth peer name eth0 mtu {mtu} netns {name}-h2\n"
    ))
}

fn wire_underlay(switch: &Netns, name: &str, options: Options) -> Result<()> {
    let mtu = options.mtu;
    // No addresses of its own, IPv6 or other: the switch must not speak in captures.
    let mut lines = format!(
        "link add br0 mtu {mtu} type bridge mcast_snooping 0\nlink set br0 addrgenmode none\n"
    );
    for h in 1..=options.hosts {
        _ = write!(
            lines,
            "link add h{h} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}-h{h}\n\
             link set h{h} addrgenmode none\n\
             link set h{h} master br0 up\n"
        );
    }
    switch.ip_batch(&(lines + "link set br0 up\n"))
}
