//! Hosts that are as whole machines: a network, mount and UTS namespace, with a /run, a /var/lib, a /sys
//! and a bpf file system of their own.

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Netns, Topology,
    netns::check,
    scenario::{NO_SKIP, able},
    wait,
};

const STARTING: Duration = Duration::from_secs(30);
const ENDING: Duration = Duration::from_secs(15);

/// Makes what the host must have of its own, and keeps it until killed. `$1`: folder, `$2`: name.
const HOLD: &str = r#"
set -e
hostname "$2"
mkdir -p "$1/run-$2" && mount -n -t tmpfs -o mode=755 tmpfs "$1/run-$2"
mkdir -p "$1/run-$2/${1#/run/}" && mount -n --bind "$1" "$1/run-$2/${1#/run/}"
mount -n --move "$1/run-$2" /run
mkdir -p /run/lock /run/cgroups /run/lib/upper /run/lib/work
mount -n -t overlay overlay -o lowerdir=/var/lib,upperdir=/run/lib/upper,workdir=/run/lib/work /var/lib
cp -f "$1/$2.resolv" /run/resolv.conf && mount -n --bind /run/resolv.conf /etc/resolv.conf
mount -n --rbind /sys/fs/cgroup /run/cgroups
umount -n -l /sys && mount -n -t sysfs sysfs /sys
mount -n --rbind /run/cgroups /sys/fs/cgroup && umount -n -l /run/cgroups
mount -n -t bpf bpf /sys/fs/bpf
touch "$1/$2.ready"
exec sleep infinity
"#;

/// Folders of programs that `cargo xtask test` unpacked, by the variables that say where. `None`: the
/// test is to be skipped, which was said.
///
/// # Panics
///
/// If skipping is forbidden.
pub fn unpacked<const N: usize>(vars: [&str; N]) -> Option<[PathBuf; N]> {
    let missing = vars.iter().find(|name| env::var_os(name).is_none());
    let able = able().and_then(|()| match missing {
        Some(name) => Err(format!("{name} does not say what is unpacked where")),
        None => Ok(vars.map(|name| env::var_os(name).unwrap_or_default().into())),
    });
    match able {
        Ok(folders) => Some(folders),
        Err(cause) => {
            assert!(env::var_os(NO_SKIP).is_none(), "{NO_SKIP} is set, but: {cause}");
            eprintln!("SKIP: {cause}");
            None
        }
    }
}

/// What keeps the machines' namespaces, until this is dropped.
#[derive(Debug, Default)]
pub struct Machines {
    holders: Vec<Child>,
}

impl Machines {
    /// Makes machines of all hosts, on which nothing runs yet.
    pub fn make(&mut self, topology: &mut Topology) -> Result<()> {
        for at in 0..topology.hosts.len() {
            let holder = hold(topology, at)?;
            self.holders.push(holder);
        }
        Ok(())
    }

    /// Kills what runs on a machine and takes away what is gone after a reboot, then makes it anew. What
    /// is in the topology's folder, as a disk is, stays.
    pub fn reboot(&mut self, topology: &mut Topology, at: usize) -> Result<()> {
        let holder = &mut self.holders[at];
        kill_inside(holder.id())?;
        holder.kill()?;
        holder.wait()?;
        clear_network(&topology.hosts[at].netns)?;
        let name = &topology.hosts[at].name;
        fs::remove_file(topology.dir.join(format!("{name}.ready")))?;
        self.holders[at] = hold(topology, at)?;
        Ok(())
    }
}

/// Kills all processes in the mount namespace of this one, but itself.
fn kill_inside(holder: u32) -> Result<()> {
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = of(&holder.to_string()).context("a holder without a mount namespace")?;
    wait::until("a machine's processes to be gone", ENDING, || {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let inside: Vec<i32> = names
            .filter(|name| of(name).as_ref() == Some(&own))
            .filter_map(|name| name.parse().ok())
            .filter(|pid| u32::try_from(*pid) != Ok(holder))
            .collect();
        for pid in inside.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if inside.is_empty() { Ok(()) } else { Err(format!("{inside:?}")) }
    })
}

/// Leaves the interface of the underlay, as the host's own configuration makes it.
fn clear_network(netns: &Netns) -> Result<()> {
    let links = netns.exec("ip -o link show")?;
    let names = links.lines().filter_map(|line| line.split([':', '@']).nth(1));
    for name in names.map(str::trim).filter(|name| !["lo", "eth0"].contains(name)) {
        // The other end of a pair goes with the first.
        let _ = netns.exec(&format!("ip link del {name}"));
    }
    // There is none with tcx.
    let _ = netns.exec("tc qdisc del dev eth0 clsact");
    let _ = netns.exec("nft flush ruleset");
    Ok(())
}

/// Makes a machine of a host, and returns what keeps it.
fn hold(topology: &mut Topology, at: usize) -> Result<Child> {
    let host = &topology.hosts[at];
    let dir = &topology.dir;
    // Nobody answers there: names that are not of the mesh are nobody's.
    fs::write(dir.join(format!("{}.resolv", host.name)), "nameserver 192.0.2.254\n")?;
    host.netns.exec("sysctl -qw net.ipv4.ip_forward=1")?;
    let mut unshare = host.netns.command("unshare");
    unshare.args(["--mount", "--uts", "--propagation", "private", "sh", "-c", HOLD, "sh"]);
    unshare.arg(dir).arg(&host.name).stdin(Stdio::null()).process_group(0);
    let holder = unshare.spawn().context("start unshare")?;
    let ready = dir.join(format!("{}.ready", host.name));
    wait::until_true("a host's namespaces", STARTING, || ready.exists())?;
    let host = &mut topology.hosts[at];
    host.inside = Some(holder.id());
    host.run_dir = "/run/mesh".into();
    host.pin_dir = "/sys/fs/bpf/mesh".into();
    Ok(holder)
}

impl Drop for Machines {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

/// Kills what is in a control group, in every hierarchy.
pub fn kill_cgroup(name: &str) {
    for pid in groups(name).iter().flat_map(|group| pids(group)) {
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// The same, and removes the group.
pub fn remove_cgroup(name: &str) {
    kill_cgroup(name);
    for group in groups(name) {
        let _ = wait::until_true("a control group to be empty", ENDING, || {
            pids(&group).is_empty() && fs::remove_dir(&group).is_ok()
        });
    }
}

/// The folders of a control group and of those in it, the innermost first.
fn groups(name: &str) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = vec!["/sys/fs/cgroup".into()];
    roots.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path()));
    let groups = roots.iter().map(|root| root.join(name.trim_start_matches('/')));
    let mut folders: Vec<PathBuf> = groups.filter(|group| group.is_dir()).collect();
    let mut all = Vec::new();
    while let Some(folder) = folders.pop() {
        let inner = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(inner.map(|e| e.path()).filter(|p| p.is_dir()));
        all.push(folder);
    }
    all.reverse();
    all
}

fn pids(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// busybox, all its applets, and a page for its web server: an archive, and the folder `image` in
/// `dir`. `engine`: where Debian's static busybox is unpacked.
pub fn image(engine: &Path, dir: &Path) -> Result<PathBuf> {
    let (root, tar) = (dir.join("image"), dir.join("image.tar"));
    for folder in ["bin", "etc", "var/www", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = engine.join("bin/busybox");
    fs::copy(&busybox, root.join("bin/busybox")).context("the engine's busybox")?;
    fs::write(root.join("var/www/index.html"), "hello\n")?;
    // Not the copy: a process that another thread starts meanwhile has it open for writing, and
    // Linux runs no program that is (ETXTBSY).
    let applets = Command::new(&busybox).arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|a| *a != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    let output = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").output()?;
    check("tar", &output)?;
    Ok(tar)
}
