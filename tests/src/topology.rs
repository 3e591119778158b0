//! A switch, hosts and containers in network namespaces, and their removal.
//!
//! Everything has one name, `mt<pid>-<n>`: the namespaces `mt<pid>-<n>-h1`, `-h1c1`, `-sw`, and the
//! folder `/run/mt<pid>-<n>` with config files, logs, captures, run folders and bpf file systems.
//! The folder holds a locked file; a lock that can be taken tells [`sweep`] that the owner is dead
//! and what it left can go.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};

use crate::{
    ClusterFile, Container, Encap, Host, Netns, cluster,
    netns::{NETNS_DIR, ip_batch},
};

pub(crate) const RUN: &str = "/run";
const PREFIX: &str = "mt";
const LOCK: &str = "lock";
/// Marks a folder that outlives its owner.
const KEEP: &str = "keep";

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
}

impl Default for Options {
    fn default() -> Self {
        Self { hosts: 2, containers: 1, mtu: 1500, encap: Encap::Gre, ipv6: true }
    }
}

#[derive(Debug)]
pub struct Topology {
    pub name: String,
    /// `/run/mt<pid>-<n>`
    pub dir: PathBuf,
    pub options: Options,
    /// The underlay: a bridge with a port for each host, named like the host.
    pub switch: Netns,
    pub hosts: Vec<Host>,
    /// Describes all hosts.
    pub cluster: ClusterFile,
    lock: Option<File>,
}

impl Topology {
    /// Makes the namespaces and the underlay. No agent runs yet.
    pub fn new(options: Options) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(RUN).join(&name);
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let lock = locked(&dir)?.context("a folder just made is locked by another process")?;
        Self::build(&name, &dir, options, lock).inspect_err(|_| destroy(&name))
    }

    fn build(name: &str, dir: &Path, options: Options, lock: File) -> Result<Self> {
        let names: Vec<_> = namespace_names(name, options);
        ip_batch(&names.iter().fold(String::new(), |all, n| all + &format!("netns add {n}\n")))?;
        let switch = Netns::open(format!("{name}-sw"))?;
        wire_underlay(&switch, name, options)?;
        let host = |h| -> Result<Host> {
            let netns = Netns::open(format!("{name}-h{h}"))?;
            netns.ip_batch(&format!(
                "link set lo up\nlink set eth0 addrgenmode none\n\
                 addr add {}/24 dev eth0\nlink set eth0 up\n",
                cluster::underlay(h)
            ))?;
            let container = |c| -> Result<Container> {
                let short = format!("h{h}c{c}");
                let netns = Netns::open(format!("{name}-{short}"))?;
                netns.ip_batch("link set lo up\n")?;
                Ok(Container { name: short, netns, given: None })
            };
            let containers = (1..=options.containers).map(container).collect::<Result<_>>()?;
            Ok(Host::new(format!("h{h}"), netns, containers, dir))
        };
        Ok(Self {
            name: name.to_owned(),
            dir: dir.to_owned(),
            options,
            switch,
            hosts: (1..=options.hosts).map(host).collect::<Result<_>>()?,
            cluster: ClusterFile::new(options.hosts, options.encap, options.ipv6),
            lock: Some(lock),
        })
    }

    /// Starts the agents of all hosts that `self.cluster` names, waits until they are ready, and
    /// attaches their containers.
    pub fn up(&mut self) -> Result<()> {
        let cluster = self.cluster.clone();
        let in_cluster = |host: &&mut Host| cluster.nodes.iter().any(|n| n.name == host.name);
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
    /// [`remove_kept`] does that.
    pub fn keep(mut self) -> Result<()> {
        File::create(self.dir.join(KEEP)).context("mark as kept")?;
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
            logs.for_each(|host| eprintln!("{}", host.log_tail()));
        }
        self.hosts.iter_mut().for_each(Host::kill9);
        destroy(&self.name);
    }
}

fn namespace_names(name: &str, options: Options) -> Vec<String> {
    let mut names = vec![format!("{name}-sw")];
    for h in 1..=options.hosts {
        names.push(format!("{name}-h{h}"));
        names.extend((1..=options.containers).map(|c| format!("{name}-h{h}c{c}")));
    }
    names
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

/// The lock file of a topology's folder, locked. `None` if somebody else holds it.
fn locked(dir: &Path) -> Result<Option<File>> {
    let path = dir.join(LOCK);
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("lock {}", path.display())),
    }
}

/// Removes what dead owners left behind, but for what they meant to keep. Returns the names.
pub fn sweep() -> Result<Vec<String>> {
    remove_where(|dir| !dir.join(KEEP).exists())
}

/// Removes what [`Topology::keep`] kept, and what dead owners left behind. Returns the names.
pub fn remove_kept() -> Result<Vec<String>> {
    remove_where(|_| true)
}

/// Removes one topology that was kept. Fails while its owner lives.
pub fn remove(name: &str) -> Result<()> {
    let removed = remove_where(|dir| dir.ends_with(name))?;
    anyhow::ensure!(!removed.is_empty(), "{name} does not exist, or is in use");
    Ok(())
}

fn remove_where(wanted: impl Fn(&Path) -> bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(RUN).context("read /run")?.flatten() {
        let (name, dir) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if is_ours(&name) && wanted(&dir) && dir.join(LOCK).exists() && locked(&dir)?.is_some() {
            destroy(&name);
            removed.push(name);
        }
    }
    Ok(removed)
}

/// `mt<digits>-<digits>`
fn is_ours(name: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.split_once('-'))
        .is_some_and(|(pid, n)| digits(pid) && digits(n))
}

/// Removes all that a topology of this name made. Goes on whatever fails, and says what did. May be
/// called twice, and from two threads.
pub fn destroy(name: &str) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    if !Path::new(RUN).join(name).exists() {
        return;
    }
    let report = |what: &str, e: &dyn std::fmt::Display| eprintln!("{name}: {what}: {e}");
    let namespaces = namespaces_of(name);
    for pid in pids_inside(&namespaces) {
        if let Err(e) = kill_process(pid, Signal::KILL) {
            report("kill an agent", &e);
        }
    }
    let dir = Path::new(RUN).join(name);
    for target in mounts_below(&dir) {
        if let Err(e) = unmount(&target, UnmountFlags::DETACH) {
            report(&format!("unmount {}", target.display()), &e);
        }
    }
    let lines = namespaces.iter().fold(String::new(), |all, n| all + &format!("netns del {n}\n"));
    if let Err(e) = ip_batch(&lines) {
        report("remove namespaces", &e);
    }
    if let Err(e) = fs::remove_dir_all(&dir) {
        report(&format!("remove {}", dir.display()), &e);
    }
}

fn namespaces_of(name: &str) -> Vec<String> {
    let prefix = format!("{name}-");
    let names = fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|n| n.starts_with(&prefix)).collect()
}

/// Processes that live in one of the namespaces, which nobody but us has put anything into.
fn pids_inside(namespaces: &[String]) -> Vec<Pid> {
    use std::os::unix::fs::MetadataExt;
    let id = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let ours: Vec<_> =
        namespaces.iter().filter_map(|n| id(&Path::new(NETNS_DIR).join(n))).collect();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let inside = ours.contains(&id(&entry.path().join("ns/net"))?);
            if inside { Pid::from_raw(pid) } else { None }
        })
        .collect()
}

/// Mount points in `dir`, the innermost first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_made_here_are_ours() {
        assert!(is_ours("mt12-0"));
        for foreign in ["mt", "mt-", "mtx-1", "mt1-", "mount", "mt1-h1", "mesh"] {
            assert!(!is_ours(foreign), "{foreign}");
        }
    }
}
